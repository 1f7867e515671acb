"""How fast conversion is, compared with only reading and writing the same bytes.

    python -m benchmarks.conversion --rounds 3

Interleaved rounds on one random checkpoint (PaliGemma 3B's widths, two layers): a plain copy with fsync, our conversion
without and with packing, and packing each tensor whole with mlx.core.quantize and saving a shard, which is what
mlx_lm.convert does. Ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.conversion import convert
from pg_mlx.ops.device import mx
from pg_mlx.quantization import Quantization
from tools import random_checkpoint


def copy(source: Path, target: Path) -> None:
    """Read and write every byte once, 16 MiB at a time, as durable as ours."""
    target.mkdir()
    for path in source.glob("*.safetensors"):
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            while chunk := reader.read(16 << 20):
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())


def pack_whole_tensors(source: Path, target: Path) -> None:
    """mlx_lm's way: the whole checkpoint lazily, every matrix packed whole, saved at once."""
    target.mkdir()
    folder, quantization = SafetensorsFolder(source), Quantization(4, 64)
    tensors: dict[str, mx.array] = {}
    for name, shape in folder.shapes.items():
        array = folder.read(name)
        packable = len(shape) == 2 and shape[1] % 64 == 0 and "position" not in name
        parts = quantization.pack(array) if packable else {"weight": array}
        tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}
    path = target / "model.safetensors"
    mx.save_safetensors(str(path), tensors)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        raw = random_checkpoint.raw_config("paligemma-3b-224", args.layers)
        total = random_checkpoint.write(source, raw, None, None)
        ways: dict[str, Callable[[Path, Path], object]] = {
            "plain copy": copy,
            "convert, float": lambda a, b: convert(a, b, need_tokenizer=False, check=False),
            "convert, 4 bits": lambda a, b: convert(a, b, q_bits=4, need_tokenizer=False, check=False),
            "whole tensors, 4 bits": pack_whole_tensors,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds * len(ways)):
            name = list(ways)[number % len(ways)]
            start = time.perf_counter()
            ways[name](source, Path(scratch) / f"out-{number}")
            seconds[name].append(time.perf_counter() - start)
        print(f"{total / 1e9:.2f} GB of bfloat16, {args.rounds} rounds\n")
        print("| way | median s | GB/s read | ratio to a plain copy |\n|---|--:|--:|--:|")
        for name, times in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(times, seconds["plain copy"], strict=True))
            median = statistics.median(times)
            print(f"| {name} | {median:.2f} | {total / median / 1e9:.2f} | {ratio:.2f} |")
        pairs = zip(seconds["convert, 4 bits"], seconds["whole tensors, 4 bits"], strict=True)
        print(f"\nours / whole tensors, 4 bits: {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
