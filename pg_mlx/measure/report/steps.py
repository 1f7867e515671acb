"""Parts about decode steps: the order in which they are begun, our own kernels, unequal rows, Python's share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx

from ...cache import KVCache
from ...memory.size import format_size
from ...ops import metal_kernels
from ...paligemma import PaliGemma
from ..decode_work import decode_kernels
from ..kernels import BOUNDS, relative_error
from ..machine import dtype_name
from .context import Context, Found, need_metal
from .timing import FASTER, Timing, compare

Fill = Callable[[tuple[int, ...]], mx.array]
"""Makes an array of a shape."""

ORDERS = ("after layers", "early", "after token")
"""When the next step begins: when the layers of the one under way are done, as the engine does it; at once; or when its
token is known."""


def fresh_cache(model: PaliGemma, prompts: Sequence[int], room: int, fill: Fill = mx.zeros) -> KVCache:
    """A cache as if so many prompt tokens of each row had been read behind a picture, with room for more tokens."""
    text = model.config.text
    used = tuple(model.config.vision.num_patches + count for count in prompts)
    shape = (2, len(prompts), text.num_key_value_heads, max(used) + room, text.head_dim)
    layers = []
    for _ in range(text.num_hidden_layers):
        layers.append(fill(shape).astype(model.dtype))
        mx.eval(layers[-1])
    return KVCache(tuple(layers), used)


def decode(
    model: PaliGemma, prompts: Sequence[int], steps: int, order: str = ORDERS[0], peaks: list[int] | None = None
) -> float:
    """Seconds of a decode step: `steps` of them behind two that are not counted. peaks: gets the bytes that they held
    at most beside what was there."""
    cache, token = fresh_cache(model, prompts, steps + 3), mx.ones((len(prompts),), dtype=mx.int32)
    began = 0.0
    for index in range(steps + 2):
        if index == 2:
            mx.synchronize()
            mx.reset_peak_memory()
            held, began = mx.get_active_memory(), time.perf_counter()
        last_read = cache.last_read
        logits, cache = model.step(token, cache)
        following = mx.argmax(logits, axis=-1)
        if order == "after layers":
            mx.eval(last_read)
        elif order == "after token":
            mx.eval(token)
        mx.async_eval(*cache.last_read, *cache.layers)
        mx.async_eval(following)
        token.tolist()
        token = following
    token.tolist()
    seconds = (time.perf_counter() - began) / steps
    if peaks is not None:
        peaks.append(mx.get_peak_memory() - held)
    mx.synchronize()
    return seconds


def in_place(context: Context) -> Found:
    """Steps begun in three orders: their times, and how much memory beside the cache they held. PaliGemma 1."""
    model = context.model("gemma")
    figures: dict[str, Any] = {}
    said = []
    for rows in (1, 8):
        prompts = [20] * rows
        layer = fresh_cache(model, prompts, context.shapes.steps + 3).layers[0].nbytes
        peaks: dict[str, list[int]] = {order: [] for order in ORDERS}
        ways = {order: partial(decode, model, prompts, context.shapes.steps, order, peaks[order]) for order in ORDERS}
        found = compare(ways, context.budget(10))
        beside = {order: min(peaks[order]) for order in ORDERS}
        copied = {order: round((beside[order] - beside["after token"]) / layer, 2) for order in ORDERS}
        figures[f"rows_{rows}"] = {
            "layer_bytes": layer,
            "beside_bytes": beside,
            "layers_copied": copied,
            "orders": {order: timing.figures() for order, timing in found.items()},
        }
        others = ", ".join(f"{found[order].ratio:.3f} of that begun {order}" for order in ORDERS[1:])
        said.append(
            f"rows: {rows}: {found[ORDERS[0]].seconds * 1e3:.2f} ms a step, {others}; it held "
            f"{copied[ORDERS[0]]:.1f} layers' keys and values more than begun after the token, and "
            f"{copied['early']:.1f} more if begun early (a layer's are {format_size(layer)})"
        )
    return Found(f"{'. '.join(said)}.", figures)


def own_kernels(context: Context, family: str) -> Found:
    """Each kernel of PG_MLX_KERNELS, and all of them, against the usual operations: a step's logits, and its time."""
    need_metal()
    model = context.model(family)
    names = ["add_norm", *(["capped"] if model.config.text.is_gemma2 else [])]
    options = [*names, ",".join(names)] if len(names) > 1 else names
    figures: dict[str, Any] = {}
    said, worst = [], 0.0

    def logits(option: str) -> mx.array:
        with metal_kernels.use(option):
            return model.step(mx.array([7]), cache)[0]

    cache = fresh_cache(model, [20], 4, mx.random.normal)
    errors = {option: relative_error(logits(option), logits("")) for option in options}
    for rows in (1, 8):

        def way(option: str, rows: int = rows) -> float:
            with metal_kernels.use(option):
                return decode(model, [20] * rows, context.shapes.steps)

        ways: dict[str, Callable[[], float]] = {option: partial(way, option) for option in ("", *options)}
        found = compare(ways, context.budget(12))
        figures[f"rows_{rows}"] = {option or "usual": timing.figures() for option, timing in found.items()}
        said += [_ratio(option, rows, found[option]) for option in options]
    worst = max(errors.values())
    figures["errors"] = errors
    bound = BOUNDS[model.dtype]
    wrong = [option for option, error in errors.items() if not error <= bound]
    best = advice({option: figures["rows_1"][option]["ratio"] for option in options if option not in wrong})
    figures["advice"] = best
    verdict = f"Set PG_MLX_KERNELS={best}." if best else "Leave PG_MLX_KERNELS unset."
    said.append(f"error of a step's logits: {worst:.1e} of {bound:.0e}")
    return Found(f"{verdict} {'; '.join(said)}.", figures, not wrong)


def advice(ratios: dict[str, float]) -> str | None:
    """The option with the lowest ratio, if that is low enough."""
    best = min(ratios, key=lambda option: ratios[option], default=None)
    return best if best is not None and ratios[best] < FASTER else None


def _ratio(option: str, rows: int, timing: Timing) -> str:
    return f"{option} with rows: {rows} takes {timing.ratio:.3f} ({timing.low:.3f} to {timing.high:.3f})"


def unequal_rows(context: Context) -> Found:
    """Steps of eight unequally long rows against equal ones, and what the first unequal one takes."""
    model, steps = context.model("gemma2"), context.shapes.steps
    equal, unequal = [20] * 8, [20 - row for row in range(8)]
    decode(model, equal, 1)
    first = decode(model, unequal, 1)
    ways = {"equal": partial(decode, model, equal, steps), "unequal": partial(decode, model, unequal, steps)}
    found = compare(ways, context.budget(10))
    said = (
        f"Unequal rows take {found['unequal'].ratio:.2f} of the time of equal ones; the first such step after a "
        f"warm-up took {first * 1e3:.1f} ms, later ones {found['unequal'].seconds * 1e3:.1f}."
    )
    return Found(said, {"first_s": first} | {name: timing.figures() for name, timing in found.items()})


def python_share(context: Context) -> Found:
    """How long Python builds a step's graph, without computing it, beside the time of the step."""
    figures: dict[str, Any] = {}
    said = []
    for family in context.shapes.text:
        model = context.model(family)
        cache, token = fresh_cache(model, [20], 4), mx.array([7])

        def build(model: PaliGemma = model, token: mx.array = token, cache: KVCache = cache) -> float:
            began = time.perf_counter()
            for _ in range(4):
                model.step(token, cache)
            return (time.perf_counter() - began) / 4

        steps = context.shapes.steps
        ways: dict[str, Callable[[], float]] = {"whole": partial(decode, model, [20], steps), "building": build}
        found = compare(ways, context.budget(4))
        kernels = decode_kernels(model).total()
        figures[family] = {"kernels": kernels} | {name: timing.figures() for name, timing in found.items()}
        said.append(
            f"{family}, {model.config.text.num_hidden_layers} layers, {dtype_name(model.dtype)}: building the graph of "
            f"{kernels} kernels takes {found['building'].seconds * 1e3:.2f} of {found['whole'].seconds * 1e3:.2f} ms"
        )
    return Found(f"{'; '.join(said)}.", figures)
