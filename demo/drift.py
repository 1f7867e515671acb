"""What fewer bits do to the answers: python -m demo.drift RUN/hf --mask-decoder RUN/mask_vae.npz.

Packs the float checkpoint in every way, lets each answer the same test questions, and prints a table: task scores, and
how far the boxes moved from where the float32 model draws them. The last rows pack one module at a time to 4 bits,
which shows where the harm comes from. Activations are float32, in the row "bfloat16" bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pg_mlx
from demo.evaluate import Case, _pairs, answer, cases, score

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    **{f"{bits} bits": {"q_bits": bits} for bits in (8, 6, 5, 4, 3, 2)},
    "mxfp4": {"q_mode": "mxfp4"},
    **{f"recipe `{name}`": {"q_recipe": name} for name in ("tiny", "balanced", "quality")},
}
MODULES = {
    "vision tower": "vision_tower.*",
    "projector": "multi_modal_projector.*",
    "embedding and head": "*.embed_tokens",
    "attention": "language_model.*.self_attn.*",
    "MLP": "language_model.*.mlp.*",
}
COLUMNS = {
    "recall": "detect: recall",
    "precision": "detect: precision",
    "box IoU": "detect: mean IoU",
    "mask IoU": "segment: mean IoU",
    "answers": "answer",
    "caption": "caption",
    "ocr": "ocr",
}


def box_sides(reference: Sequence[Case], moved: Sequence[Case]) -> tuple[list[float], int, int]:
    """For each box of two runs' answers that has a partner, how far its sides moved on the mean, in pixels; the number
    of boxes without a partner, and of all boxes."""
    distances, lonely, total = [], 0, 0
    for one, two in zip(reference, moved, strict=True):
        if one.question.task != "detect":
            continue
        size = one.scene.image.size
        boxes = [[r.box for r in pg_mlx.parse_regions(c.text, image_size=size)] for c in (one, two)]
        pairs = list(_pairs(*boxes)) if all(boxes) else []
        distances += [float(np.abs(np.subtract(boxes[0][i], boxes[1][j])).mean()) for _, i, j in pairs]
        lonely += len(boxes[0]) + len(boxes[1]) - 2 * len(pairs)
        total += len(boxes[0]) + len(boxes[1])
    return distances, lonely, total


def box_shift(reference: Sequence[Case], moved: Sequence[Case]) -> tuple[float, float]:
    """(mean distance in pixels of box sides between two runs' answers, the share of boxes that have no partner)."""
    distances, lonely, total = box_sides(reference, moved)
    return float(np.mean(distances)) if distances else float("nan"), lonely / max(total, 1)


def run(
    source: Path, mask_decoder: Path, options: dict[str, Any], todo: list[Case], work: Path
) -> tuple[list[Case], float]:
    """The cases answered by a conversion of `source`, and its megabytes, those of the mask decoder left out."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        packed = Path(folder) / "packed"
        pg_mlx.convert(source, packed, mask_decoder=mask_decoder, check=False, **options)
        size = sum(file.stat().st_size for file in packed.glob("*.safetensors")) / 1e6
        model, processor = pg_mlx.load(packed, dtype="bfloat16" if options.get("dtype") == "bfloat16" else "float32")
        done = [copy.copy(case) for case in todo]
        answer(model, processor, done, batch_size=16)
    return done, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the float checkpoint, a Hugging Face folder")
    parser.add_argument("--mask-decoder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="some settings instead of all")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()

    decoder = pg_mlx.MaskDecoder.load(args.mask_decoder)
    todo = cases(args.scenes, ("detect", "segment", "answer", "caption", "ocr"))
    ablations = {
        f"4 bits: {name}": {"q_bits": 4, "q_overrides": {other: "float" for n, other in MODULES.items() if n != name}}
        for name in MODULES
    }
    settings = SETTINGS | ablations
    if args.only:
        settings = {name: settings[name] for name in ("float32", *args.only)}

    print(f"| weights | MB | {' | '.join(COLUMNS)} | box shift, px | boxes without partner |")
    print(f"|---|--:|{'--:|' * (len(COLUMNS) + 2)}")
    reference: list[Case] = []
    rows = {}
    with tempfile.TemporaryDirectory() as work:
        for name, options in settings.items():
            done, size = run(args.source, args.mask_decoder, options, todo, Path(work))
            reference = reference or done
            means = score(done, decoder).means()
            shift, lonely = box_shift(reference, done)
            rows[name] = {"MB": size, **means, "box shift": shift, "boxes without partner": lonely}
            figures = [f"{means[key]:.3f}" for key in COLUMNS.values()]
            print(f"| {name} | {size:.1f} | {' | '.join(figures)} | {shift:.2f} | {lonely:.1%} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
