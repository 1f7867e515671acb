"""What packing costs: error of each mode on single matrices, and of recipes on a whole model.

    python -m benchmarks.quantization_error            # the tables of docs/quantization.md, in Markdown

The model has the widths of PaliGemma 2 3B at 224 pixels, but two layers and random weights, because real ones are not
available here. Rankings of modes and recipes carry over to real weights; absolute divergences do not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from PIL import Image

from pg_mlx.checkpoint.open import open_local
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.conversion import convert
from pg_mlx.conversion.quality import Sample, compare
from pg_mlx.ops.device import mx
from pg_mlx.quantization import RECIPES, Quantization, Recipe, uniform
from pg_mlx.quantization.modes import AFFINE_BITS, AFFINE_GROUPS, FLOAT_MODES
from tools import random_checkpoint

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "pg2_classic"


def modes() -> Iterator[Quantization]:
    """Everything that MLX packs."""
    for bits in AFFINE_BITS:
        for group_size in AFFINE_GROUPS:
            yield Quantization(bits, group_size)
    for mode, (bits, group_size) in FLOAT_MODES.items():
        yield Quantization(bits, group_size, mode)


def relative_error(weight: mx.array, quantization: Quantization) -> float:
    """RMS of what packing changes, relative to the RMS of the weight [outputs, columns] (bfloat16)."""
    difference = quantization.unpack(quantization.pack(weight)) - weight.astype(mx.float32)
    power = mx.mean(weight.astype(mx.float32) ** 2)
    return cast(float, mx.sqrt(mx.mean(difference**2) / power).item())


def bits_per_weight(quantization: Quantization) -> float:
    """Scales and biases included, in 16 bits for affine modes."""
    return quantization.bits + (32 if quantization.mode == "affine" else 8) / quantization.group_size


def mode_table() -> list[str]:
    """Error on a golden layer's gate_proj [68, 64] and on a full-size one [16384, 2048], normally distributed."""
    golden = SafetensorsFolder(GOLDEN).read("language_model.model.layers.0.mlp.gate_proj.weight").astype(mx.bfloat16)
    mx.random.seed(0)
    full = (mx.random.normal((16384, 2048)) * 2048**-0.5).astype(mx.bfloat16)
    lines = ["| mode | bits a weight | error, golden layer | error, full-size layer |", "|---|--:|--:|--:|"]
    for q in modes():
        name = f"{q.bits} bits, groups of {q.group_size}" if q.mode == "affine" else q.mode
        on_golden = f"{relative_error(golden, q):.2%}" if q.fits(golden.shape[1]) else "-"
        lines.append(f"| {name} | {bits_per_weight(q):.2f} | {on_golden} | {relative_error(full, q):.2%} |")
    return lines


def recipe_table(layers: int) -> list[str]:
    """Recipes and uniform settings on one model: bytes a token, and divergence from the float model."""
    recipes: list[Recipe] = [*RECIPES.values(), uniform(4, 64, None), uniform(4, 32, None), uniform(4, 32, "mxfp4")]
    recipes += [uniform(bits, 64, None) for bits in (3, 5, 6, 8)]
    picture = Image.open(ROOT / "tests" / "cat.jpg")
    samples = [Sample(picture, prompt) for prompt in ("caption en", "detect cat", "ocr", "answer en what is it?")]
    lines = [
        "| recipe | bits a weight | GB a token | KL, nats | same token | features, error |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        raw = random_checkpoint.raw_config("paligemma2-3b-224", layers)
        random_checkpoint.write(source, raw, None, random_checkpoint.PUBLISHED_TOKENIZER)
        for recipe in recipes:
            target = Path(scratch) / "target"
            report = convert(source, target, check=False, force=True, **_options(recipe))
            quality = compare(open_local(source), target, samples=samples, max_tokens=8)
            written = open_local(target).source
            per_token = sum(written.stored_bytes(name) for name in written.shapes if name.startswith("language_model."))
            lines.append(
                f"| {_label(recipe)} | {report.bits_per_weight:.2f} | {per_token / 1e9:.3f} | {quality.kl_mean:.2e} "
                f"| {quality.top1_agreement:.0%} | {quality.feature_error:.2%} |"
            )
            print(lines[-1], file=sys.stderr)
    return lines


def _label(recipe: Recipe) -> str:
    first = recipe.rules[0].quantization
    narrow = recipe.name not in RECIPES and first and first.mode == "affine" and first.group_size != 64
    return f"{recipe.name}, groups of {first.group_size}" if first and narrow else recipe.name


def _options(recipe: Recipe) -> dict[str, Any]:
    if recipe.name in RECIPES:
        return {"q_recipe": recipe.name}
    quantization = recipe.rules[0].quantization
    assert quantization is not None
    return {"q_bits": quantization.bits, "q_group_size": quantization.group_size, "q_mode": quantization.mode}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--modes-only", action="store_true")
    args = parser.parse_args()
    print("\n".join(mode_table()))
    if not args.modes_only:
        print("\n".join(["", *recipe_table(args.layers)]))


if __name__ == "__main__":
    main()
