"""Memory of an answer besides the weights: OMP_NUM_THREADS=1 python -m benchmarks.large_pictures FOLDER

FOLDER: a checkpoint, for example from `python -m tools.random_checkpoint --model paligemma-3b-896 --layers 2 --q-bits 4
FOLDER`. Few layers show as much as all of them, since only one layer computes at a time. Prints the peaks of loading,
of the vision tower, of the prefill and of decode steps, and the estimate that --max-memory uses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pg_mlx import load_model
from pg_mlx.checkpoint.footprint import needed_bytes
from pg_mlx.checkpoint.open import open_local
from pg_mlx.ops.device import mx


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--memory", metavar="SIZE", help="as that of generate.py")
    args = parser.parse_args()
    mx.disable_compile()
    model = load_model(args.folder, memory=args.memory)
    loading, weights = mx.get_peak_memory(), mx.get_active_memory()
    print(f"weights {weights / 1e9:.3f} GB; peak of loading {loading / 1e9:.3f} GB")

    peaks = list[int]()

    def measured(name: str, work: Callable[[], Any]) -> Any:
        mx.reset_peak_memory()
        start, cpu = time.perf_counter(), time.process_time()
        result = work()
        mx.eval((result[0], result[1].layers) if isinstance(result, tuple) else result)
        peaks.append(mx.get_peak_memory())
        seconds, cpu, peak = time.perf_counter() - start, time.process_time() - cpu, peaks[-1]
        print(f"{name:<8}{seconds:7.2f} s, {cpu:.2f} of CPU; weights + {(peak - weights) / 1e9:.3f} GB")
        return result

    side = model.config.vision.image_size
    pixels = mx.random.uniform(-1, 1, (1, side, side, 3))
    features = measured("vision", lambda: model.encode_image(pixels))
    ids = mx.zeros((1, args.prompt_tokens), dtype=mx.int32)
    capacity = features.shape[1] + args.prompt_tokens + 256
    logits, cache = measured("prefill", lambda: model.prefill(features, ids, capacity=capacity))
    for step in range(3):
        logits, cache = measured(f"step {step}", partial(model.step, mx.argmax(logits, axis=-1), cache))
    estimate = needed_bytes(open_local(args.folder), model.dtype)
    print(f"estimate {estimate / 1e9:.4f} GB, {estimate / max(loading, *peaks):.2f} times the peak")


if __name__ == "__main__":
    main()
