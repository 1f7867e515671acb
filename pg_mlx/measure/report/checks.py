"""All comparisons of `doctor`: kernels with their formulas, and the demo's answers with the stored ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from ...checkpoint.load import load
from ...demo import CHECKPOINT
from ...ops import device
from ...paligemma import PaliGemma
from .. import demo_check, kernels
from ..kernels import Check
from ..machine import copy_bandwidth, matmul_rate
from ..stages import MachineLimits, measure
from .context import Context, Found


def all_checks(model: PaliGemma, note: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """Checks of the kernels in a model's shapes, then of the demo's answers on the CPU and, if there is one, the GPU.
    note: called with what comes next."""
    note("fused kernels")
    yield from kernels.checks(model)
    expected = [answer["tokens"] for answer in demo_check.stored()]

    def run(where: mx.DeviceType, dtype: mx.Dtype) -> tuple[str, demo_check.Run]:
        name = demo_check.description(where, dtype)
        note(f"bundled checkpoint on the {name}")
        return name, demo_check.run(where, dtype, expected)

    name, reference = run(mx.cpu, mx.float32)
    yield from demo_check.against_stored(name, reference, mx.float32)
    if device.is_gpu():
        for dtype in (mx.float32, device.default_dtype()):
            name, found = run(mx.gpu, dtype)
            yield from demo_check.against_run(name, found, reference, dtype)


def healthy(context: Context) -> Found:
    """All checks, with the demo's shapes and with those of the report's models."""
    model, _ = load(CHECKPOINT, keep_quantized=True)
    found = list(all_checks(model))
    for family in context.shapes.text:
        found += kernels.checks(context.model(family))
    sick = [check.name for check in found if not check.healthy]
    said = f"{len(found)} checks are right." if not sick else f"WRONG: {'; '.join(sick)}. {len(found)} checks in all."
    return Found(said, {"checks": [check.report() for check in found]}, not sick)


def stages(context: Context) -> Found:
    """The stages of an answer, as `bench` times them."""
    figures: dict[str, Any] = {}
    said = []
    limits = MachineLimits(copy_bandwidth(), matmul_rate(context.dtype))
    for family in context.shapes.text:
        model = context.model(family)
        side = model.config.vision.image_size
        repeats, steps = (5, 16) if context.full else (2, 4)
        timed = list(
            measure(model, mx.zeros((1, side, side, 3)), [2] * 20, rows=(1, 2, 4, 8), repeats=repeats, steps=steps)
        )
        figures[family] = [stage.report(limits) for stage in timed]
        words = ", ".join(f"{stage.name} of {stage.rows} {stage.seconds * 1e3:.2f} ms" for stage in timed)
        said.append(f"{family}, {model.config.text.num_hidden_layers} layers at {side} px: {words}")
    figures["limits"] = {"copied_bytes_per_second": limits.copied_bytes, "matmul_flops_per_second": limits.flops}
    return Found(f"{'; '.join(said)}.", figures)
