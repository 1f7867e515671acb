"""Rewrite pg_mlx/demo/expected.json, which `pg-mlx doctor` expects of the bundled checkpoint, when that has changed:

python demo/expect.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pg_mlx.measure import answers
from pg_mlx.ops.device import mx


def main() -> None:
    found = answers.run(mx.cpu, mx.float32)
    answers.EXPECTED.write_text(json.dumps(answers.to_store(found)) + "\n")
    for prompt, text in zip(answers.PROMPTS, found.texts, strict=True):
        print(f"{prompt}: {text}")


if __name__ == "__main__":
    main()
