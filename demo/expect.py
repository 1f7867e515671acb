"""Rewrite pg_mlx/demo/expected.json, which `pg-mlx doctor` expects of the bundled checkpoint, when that has changed:

python -m demo.expect
"""

from __future__ import annotations

import json

from pg_mlx.measure import demo_check
from pg_mlx.ops.device import mx


def main() -> None:
    found = demo_check.run(mx.cpu, mx.float32)
    demo_check.EXPECTED.write_text(json.dumps(demo_check.to_store(found)) + "\n")
    for prompt, text in zip(demo_check.PROMPTS, found.texts, strict=True):
        print(f"{prompt}: {text}")


if __name__ == "__main__":
    main()
