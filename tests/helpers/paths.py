"""Where things are in this repository."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CAT = ROOT / "tests" / "cat.jpg"
PUBLISHED_TOKENIZER = Path(os.environ.get("PG_MLX_TOKENIZER") or ROOT.parent / "shared" / "tokenizer")
"""The published vocabulary, if it is there."""
