"""The small checkpoint that comes with the package, and pictures it can read.

It is a PaliGemma 2 of 5 million parameters which knows scenes of coloured shapes and short words, and nothing else (see
`checkpoint/README.md`). It is there to try every feature with, offline and in a second.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
PICTURES = tuple(sorted(Path(__file__).parent.glob("*.png")))
