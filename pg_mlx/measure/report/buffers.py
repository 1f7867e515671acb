"""MLX's command buffers of other sizes. MLX reads their limits when it is imported, so each size has a process:
`python -m pg_mlx.measure.report.buffers KIND FAMILY DTYPE` prints a step's seconds and the peaks of memory as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import mlx.core as mx

from ...memory.size import format_size
from ...ops.device import dtype_name
from .context import Context, Found, NotHereError
from .shapes import Shapes
from .steps import decode

SETTINGS: dict[str, dict[str, str]] = {
    "usual": {},
    "small": {"MLX_MAX_OPS_PER_BUFFER": "20"},
    "large": {"MLX_MAX_OPS_PER_BUFFER": "200", "MLX_MAX_MB_PER_BUFFER": "400"},
}

WITHIN_S = 300
"""A process that takes longer is ended, and the part fails."""


def command_buffers(context: Context) -> Found:
    """Steps and a prefix with command buffers of three sizes, in processes of their own that take turns."""
    if any(name in os.environ for limits in SETTINGS.values() for name in limits):
        raise NotHereError("MLX_MAX_OPS_PER_BUFFER or MLX_MAX_MB_PER_BUFFER is set; run it again without")
    context.release()  # the processes need the memory
    figures = {}
    said = []
    for family in context.shapes.text if context.full else ("gemma",):
        rounds = 2 if context.full else 1
        found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        for _ in range(rounds):
            for name, limits in SETTINGS.items():
                found[name].append(_alone(context, family, limits))
        best = {name: {key: min(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}
        figures[family] = best
        usual = best["usual"]
        for name in ("small", "large"):
            more = best[name]["prefill_peak_bytes"] - usual["prefill_peak_bytes"]
            said.append(
                f"{family}, {name} buffers: a step takes {best[name]['step_s'] / usual['step_s']:.3f}, the first token "
                f"{best[name]['first_token_s'] / usual['first_token_s']:.3f} of the usual time, and the peak of a "
                f"prefix is {'+' if more >= 0 else '-'}{format_size(int(abs(more)))}"
            )
    return Found(f"{'; '.join(said)}.", figures)


def _alone(context: Context, family: str, limits: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "pg_mlx.measure.report.buffers", context.shapes.kind, family]
    done = subprocess.run(
        [*command, dtype_name(context.dtype)],
        env={**os.environ, **limits},
        capture_output=True,
        check=True,
        timeout=WITHIN_S,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(kind: str, family: str, dtype: str) -> dict[str, float]:
    """Seconds to a first token and of a step, and the most bytes that both held beside the weights."""
    import time

    shapes = Shapes.named(kind)
    model = shapes.model(family, getattr(mx, dtype))
    side = model.config.vision.image_size
    pixels, ids = mx.zeros((1, side, side, 3)), mx.ones((1, 16), dtype=mx.int32)
    mx.eval(pixels, ids)
    times = []
    for _ in range(3):
        mx.clear_cache()
        held, began = mx.get_active_memory(), time.perf_counter()
        mx.reset_peak_memory()
        features = model.encode_image(pixels)
        logits, cache = model.prefill(features, ids, capacity=features.shape[1] + 32)
        mx.eval(logits, cache.layers)
        times.append(time.perf_counter() - began)
        peak = mx.get_peak_memory() - held
        del features, logits, cache
    peaks: list[int] = []
    steps = [decode(model, [20], shapes.steps, peaks=peaks) for _ in range(4)]
    return {
        "first_token_s": min(times),
        "prefill_peak_bytes": peak,
        "step_s": min(steps),
        "step_peak_bytes": min(peaks),
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
