"""Write a checkpoint folder with a published model's true shapes and random weights.

    python -m tools.random_checkpoint --model paligemma-3b-224 --q-bits 4 OUT

Real weights are gated and cannot be shipped. For speed, memory and file handling random ones serve as well. The
tokenizer is copied from --tokenizer; "tiny-56" and the like come with a small one of their own. Memory stays below
about 1 GB whatever the size, because large matrices are made, packed and written in slices of their outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from math import isqrt
from pathlib import Path
from typing import Any

from pg_mlx.checkpoint.layouts import FINAL_NORM, WeightSpec, weight_specs
from pg_mlx.config import SIZES, PaliGemmaConfig
from pg_mlx.errors import InputError
from pg_mlx.files.folder import whole_folder
from pg_mlx.files.shards import ShardWriter
from pg_mlx.ops.device import mx
from pg_mlx.processor.tokenizer import Tokenizer
from pg_mlx.quantization import Quantization, padded_size

ROOT = Path(__file__).parent.parent
SMALL_TOKENIZER = ROOT / "tools" / "small_tokenizer"
PUBLISHED_TOKENIZER = Path(os.environ.get("PG_MLX_TOKENIZER", ROOT.parent / "shared" / "tokenizer"))
SLICE_VALUES = 32 << 20
"""Values of a matrix that are made at once: 128 MiB in float32."""

TINY = dict(model_type="gemma2", hidden_size=128, num_hidden_layers=4, intermediate_size=256,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32)  # fmt: skip
GEMMA2 = dict(query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096)
"""Fields of the 3B and 10B models. pg_mlx and transformers have them as defaults; mlx-vlm needs them written out."""
TINY_VISION = dict(hidden_size=128, intermediate_size=300, num_hidden_layers=2, num_attention_heads=4)


def raw_config(name: str, layers: int | None = None, vocab_size: int = 257216, padded: bool = False) -> dict[str, Any]:
    """A complete config.json for e.g. "paligemma2-3b-448", or "tiny-56" for a few layers of width 128."""
    size, _, pixels = name.rpartition("-")
    if size not in {*SIZES, "tiny"} or not pixels.isdigit():
        raise InputError(f"no model {name!r}; there are {', '.join(f'{size}-{{224,448,896}}' for size in SIZES)}")
    text: dict[str, Any] = {**(TINY if size == "tiny" else SIZES[size]), "vocab_size": vocab_size}
    if text["model_type"] == "gemma2":
        text = GEMMA2 | text
    vision: dict[str, Any] = dict(TINY_VISION) if size == "tiny" else {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    }  # fmt: skip
    if layers is not None:
        text["num_hidden_layers"] = vision["num_hidden_layers"] = layers
    if padded:
        vision["intermediate_size"] = padded_size(vision["intermediate_size"])
    vision |= {"model_type": "siglip_vision_model", "image_size": int(pixels), "patch_size": 14}
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": 257152,
        "hidden_size": text["hidden_size"],
        "projection_dim": text["hidden_size"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "text_config": text,
        "vision_config": vision,
    }


def write(
    target: Path, raw: dict[str, Any], quantization: Quantization | None, tokenizer: Path | None, seed: int = 0
) -> int:
    """Write the folder and return the bytes of its tensors. `raw` is config.json, its MLP already padded if need be."""
    config = PaliGemmaConfig.from_dict(raw)
    if quantization:
        raw = {**raw, "quantization": asdict(quantization)}
    mx.random.seed(seed)
    with whole_folder(target) as folder:
        (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
        for name in ("tokenizer.model", "tokenizer.json"):
            if tokenizer and (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
        writer = ShardWriter(folder)
        for spec in weight_specs(config):
            for name, shape in spec.expected():
                packed = (
                    quantization if _packable(spec, name) and quantization and quantization.fits(shape[1]) else None
                )
                _write_tensor(writer, spec, name, shape, packed)
        writer.close()
    return writer.total_bytes


def _packable(spec: WeightSpec, name: str) -> bool:
    return spec.kind in ("linear", "embedding") and name.endswith(".weight")


def _write_tensor(
    writer: ShardWriter, spec: WeightSpec, name: str, shape: tuple[int, ...], quantization: Quantization | None
) -> None:
    if quantization is None:
        chunks = (chunk for chunk in _random(spec, name, shape))
        writer.add_chunks(name, mx.bfloat16, shape, chunks)
        return
    pieces: dict[str, list[mx.array]] = {}
    for chunk in _random(spec, name, shape):  # packing works row by row, so slices of rows are exact
        for part, array in quantization.pack(chunk).items():
            mx.eval(array)
            pieces.setdefault(part, []).append(array)
    for part, arrays in pieces.items():
        whole = (shape[0], arrays[0].shape[1])
        writer.add_chunks(f"{name.removesuffix('.weight')}.{part}", arrays[0].dtype, whole, arrays)


def _random(spec: WeightSpec, name: str, shape: tuple[int, ...]) -> Iterator[mx.array]:
    """Slices of a matrix along its outputs, in bfloat16, scaled so that activations keep their size from layer to
    layer."""
    columns = 1
    for size in shape[1:]:
        columns *= size
    vector = len(shape) == 1
    scale = 0.02 if vector else 1 / isqrt(columns)
    offset = 1.0 if spec.kind == "layer_norm" and name.endswith("weight") else 0.0
    # The head is the embedding, so with rows of full length the token just read would always be the likeliest next.
    # Short rows leave the word to the layers, and the final norm gives logits their spread back.
    if spec.kind == "embedding":
        scale /= 8
    if name == FINAL_NORM:
        offset = 7.0  # the norm multiplies by 1 + weight
    rows = max(1, SLICE_VALUES // columns)
    for start in range(0, shape[0], rows):
        part = (min(rows, shape[0] - start), *shape[1:])
        yield (offset + scale * mx.random.normal(part)).astype(mx.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument(
        "--model", default="tiny-224", help="paligemma-3b-224, paligemma2-{3b,10b,28b}-448, tiny-56 ..."
    )
    parser.add_argument("--layers", type=int, help="cut tower and decoder to this many layers")
    parser.add_argument("--q-bits", type=int, help="quantize everything that can be (default: bfloat16)")
    parser.add_argument("--q-group-size", type=int, default=64)
    parser.add_argument("--q-mode", default="affine")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="where tokenizer.model or .json is")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        tiny = args.model.startswith("tiny-")
        folder = args.tokenizer or (SMALL_TOKENIZER if tiny else PUBLISHED_TOKENIZER)
        pieces = Tokenizer.from_folder(folder).vocab_size
        quantization = Quantization(args.q_bits, args.q_group_size, args.q_mode) if args.q_bits else None
        rows = padded_size(pieces + 1, 64)  # <image> and up to a multiple of 64: 257152 pieces, 257216 rows
        raw = raw_config(args.model, args.layers, rows, padded=quantization is not None)
        total = write(args.target, raw, quantization, folder, args.seed)
    except InputError as error:
        parser.exit(2, f"random_checkpoint.py: error: {error}\n")
    print(f"{args.target}: {total / 1e9:.2f} GB of tensors; peak memory {mx.get_peak_memory() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
