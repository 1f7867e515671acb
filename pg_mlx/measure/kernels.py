"""Compares every fused kernel that a model uses with its formula in plain operations, on the active device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from .. import gemma, residual
from ..linear import Embedding, Linear
from ..ops import metal_kernels
from ..ops.attention import cap_scores, capped
from ..ops.device import dtype_name
from ..ops.gelu import geglu, gelu
from ..paligemma import PaliGemma
from ..quantization import Quantization
from ..quantization.reference import spelled_out
from ..residual import Residual, RMSNorm
from . import graph

BOUNDS = {mx.float32: 1e-3, mx.float16: 8e-3, mx.bfloat16: 5e-2}
"""Largest |difference| / |formula| (Euclidean norms) of a kernel that is right. It allows for some roundings to the
dtype (the CPU backend sums packed products in 16 bits) and for 32-bit products in TF32, whose mantissa is float16's. A
wrong sign, head or neighbour shows as one or more, a missing token of 72 as 0.1."""

TOKENS = 72
"""Tokens of the prefix for which attention is checked: more than 8, up to which MLX uses its kernel for vectors, and
not a multiple of a tile."""


@dataclass(frozen=True)
class Check:
    """One comparison. `error` and `bound` are relative, see BOUNDS. `route` names the operations that MLX ran."""

    name: str
    error: float
    bound: float
    route: str = ""

    @property
    def healthy(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound  # which a NaN is not

    def report(self) -> dict[str, Any]:
        """For JSON, which has neither infinity nor NaN."""
        return {**asdict(self), "error": self.error if np.isfinite(self.error) else None, "healthy": self.healthy}


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected|, Euclidean norms over all elements; infinity if the shapes differ."""
    a, b = (np.array(mx.array(x).astype(mx.float32)).astype(np.float64) for x in (actual, expected))
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)


def check(name: str, dtype: mx.Dtype, fused: Callable[[], mx.array], plain: Callable[[], Any]) -> Check:
    """Run both and compare. If a backend lacks the kernel, the error is infinite and `route` is the message."""
    try:
        result = fused()
        route = _route(result)
        return Check(name, relative_error(result, plain()), BOUNDS[dtype], route)
    except Exception as error:  # whatever a backend raises
        return Check(name, float("inf"), BOUNDS[dtype], " ".join(f"{type(error).__name__}: {error}".split()))


def _route(result: mx.array) -> str:
    """The operations that MLX built for the call: one kernel, or several parts if it has no kernel."""
    operations = graph.kernels(result)
    return f"one kernel, {next(iter(operations))}" if operations.total() == 1 else f"{operations.total()} operations"


def checks(model: PaliGemma) -> Iterator[Check]:
    """All checks, in the shapes and dtype of the model; fused attention also in the shapes of the published models."""
    yield from _norms(model)
    yield from _rotations(model)
    yield from _attentions(model)
    yield from _elementwise(model)
    yield from _products(model)
    if mx.metal.is_available():
        yield from own_kernels(model)


def own_kernels(model: PaliGemma) -> Iterator[Check]:
    """The kernels that PG_MLX_KERNELS switches on, whether they are or not. They need Metal."""
    text, dtype = model.config.text, model.dtype
    x, y = (_random(TOKENS, text.hidden_size, dtype=dtype) * factor for factor in (3, 2))
    norm, post = RMSNorm(text.hidden_size, text.rms_norm_eps), RMSNorm(text.hidden_size, text.rms_norm_eps)
    norm.weight, post.weight = (1 + _random(text.hidden_size) * factor for factor in (0.5, 0.25))
    residual_ = Residual(x, y, post if text.is_gemma2 else None)

    arguments = (x, y, norm.weight, norm.eps, post.weight if text.is_gemma2 else None)
    with metal_kernels.use(""):
        expected = mx.stack([*residual_.then(norm)])
    name = f"own kernel add_norm, {text.hidden_size} wide"
    yield check(name, dtype, lambda: mx.stack([*metal_kernels.add_norm(*arguments)]), lambda: expected)
    cap = text.attn_logit_softcapping
    if cap is None or text.head_dim % 32:
        return
    scale = text.query_pre_attn_scalar**-0.5
    for rows, tokens in ((1, 1), (2, 3)):
        query = _random(rows, text.num_attention_heads, tokens, text.head_dim, dtype=dtype)
        layer = _random(2, rows, text.num_key_value_heads, TOKENS + 5, text.head_dim, dtype=dtype)
        keys, values = layer[0, :, :, :TOKENS], layer[1, :, :, :TOKENS]
        mask = (mx.arange(TOKENS) <= mx.arange(TOKENS - tokens, TOKENS)[:, None])[None, None]
        yield check(
            f"own kernel capped, rows: {rows}, new tokens: {tokens}",
            dtype,
            partial(metal_kernels.capped, query, layer, range(TOKENS), scale, cap),
            partial(_plain_attention, query, keys, values, scale, mask, cap),
        )


def _random(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    array = mx.random.normal(shape, key=mx.random.key(sum(shape))).astype(dtype)
    mx.eval(array)
    return array


def _norms(model: PaliGemma) -> Iterator[Check]:
    text, vision = model.config.text, model.config.vision
    x, weight, bias = _random(TOKENS, vision.hidden_size), *(_random(vision.hidden_size) for _ in range(2))

    def layer_norm() -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, vision.layer_norm_eps)

    def plain_layer_norm() -> mx.array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = mx.square(centred).mean(axis=-1, keepdims=True)
        return centred / mx.sqrt(variance + vision.layer_norm_eps) * weight + bias

    yield check(f"layer_norm, {vision.hidden_size} wide", mx.float32, layer_norm, plain_layer_norm)
    kinds: list[tuple[mx.Dtype, mx.array | None]] = [(mx.float32, _random(text.hidden_size))]
    if text.is_gemma2:  # its post-norms leave the weight to the addition that follows
        kinds.append((model.dtype, None))
    for dtype, scale in kinds:
        y = _random(TOKENS, text.hidden_size, dtype=dtype)

        def rms_norm(y: mx.array = y, scale: mx.array | None = scale) -> mx.array:
            return mx.fast.rms_norm(y, scale, text.rms_norm_eps)

        def plain_rms_norm(y: mx.array = y, scale: mx.array | None = scale) -> mx.array:
            wide = y.astype(mx.float32)
            normed = wide / mx.sqrt(mx.square(wide).mean(axis=-1, keepdims=True) + text.rms_norm_eps)
            return normed if scale is None else normed * scale

        kind = "with" if scale is not None else "without"
        name = f"rms_norm {kind} weight, {text.hidden_size} wide, {dtype_name(dtype)}"
        yield check(name, dtype, rms_norm, plain_rms_norm)


def _rotations(model: PaliGemma) -> Iterator[Check]:
    text = model.config.text
    attention = model.language_model.layers[0].self_attn
    heads, width = text.num_attention_heads + 2 * text.num_key_value_heads, text.head_dim

    def plain(x: mx.array, positions: mx.array) -> mx.array:
        """x [B, heads, T, width] at positions [B, T]: a pair is an element and the one half a width further."""
        turns = text.rope_theta ** (-mx.arange(0, width, 2) / width)
        angles = positions[:, None, :, None].astype(mx.float32) * turns
        first, second = mx.split(x.astype(mx.float32), 2, axis=-1)
        cos, sin = mx.cos(angles), mx.sin(angles)
        return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def rope(x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(x, width, traditional=False, base=text.rope_theta, scale=1.0, offset=offset)

    x = _random(1, heads, TOKENS, width, dtype=model.dtype)
    positions = mx.arange(TOKENS)[None]
    yield check(f"rope of a prefix, {width} wide", model.dtype, lambda: rope(x, 0), lambda: plain(x, positions))
    angles = attention.angles(np.array([[300], [4100]], np.int32))
    mx.eval(angles)
    y = _random(2 * heads, 1, width, dtype=model.dtype)
    name = "rope of a step, heads by angles of their own"
    yield check(name, model.dtype, lambda: rope(y, angles), lambda: plain(y[:, None], angles[:, None])[:, 0])


def _attentions(model: PaliGemma) -> Iterator[Check]:
    vision, text = model.config.vision, model.config.text
    eyes = {(vision.num_attention_heads, vision.hidden_size // vision.num_attention_heads), (16, 72)}
    for heads, width in sorted(eyes):
        yield _attention(
            f"attention of the tower, {heads} heads, {width} wide", model.dtype, heads, heads, width, TOKENS
        )
    own = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
    if text.is_gemma2:
        of = "{} heads, {} of keys, {} wide".format(*own)
        yield _capped(model, f"capped attention of a prefix, {of}", TOKENS)
        yield _capped(model, f"capped attention of a step, {of}", 1)
    for heads, kv_heads, width in sorted({(8, 1, 256)} | (set() if text.is_gemma2 else {own})):
        of = f"{heads} heads, {kv_heads} of keys, {width} wide"
        yield _attention(f"attention of a prefix, {of}", model.dtype, heads, kv_heads, width, TOKENS)
        yield _attention(f"attention of a step, {of}", model.dtype, heads, kv_heads, width, 1)
        yield _attention(f"attention of a step of two rows, {of}", model.dtype, heads, kv_heads, width, 1, ragged=True)


def _attention(
    name: str, dtype: mx.Dtype, heads: int, kv_heads: int, width: int, queries: int, ragged: bool = False
) -> Check:
    """ragged: two rows of unequal length, and therefore a mask."""
    rows = 2 if ragged else 1
    query = _random(rows, heads, queries, width, dtype=dtype)
    key, value = (_random(rows, kv_heads, length, width, dtype=dtype)[:, :, :TOKENS] for length in (TOKENS, TOKENS + 1))
    mask = (mx.arange(TOKENS) < mx.array([TOKENS, 40])[:, None])[:, None, None] if ragged else None
    mx.eval(key, value, *([mask] if ragged else []))

    def fused() -> mx.array:
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=width**-0.5, mask=mask)

    return check(name, dtype, fused, lambda: _plain_attention(query, key, value, width**-0.5, mask))


def _plain_attention(
    query: mx.array, key: mx.array, value: mx.array, scale: float, mask: mx.array | None, cap: float | None = None
) -> mx.array:
    """In float32, with keys and values repeated for every query head."""
    shared = query.shape[1] // key.shape[1]
    q, k, v = (array.astype(mx.float32) for array in (query, key, value))
    k, v = mx.repeat(k, shared, axis=1), mx.repeat(v, shared, axis=1)
    scores = (q @ k.swapaxes(-1, -2)) * scale
    if cap is not None:
        scores = mx.tanh(scores / cap) * cap
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights = mx.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v


def _capped(model: PaliGemma, name: str, queries: int) -> Check:
    """Gemma 2's attention, for which MLX has no single kernel."""
    attention = model.language_model.layers[0].self_attn
    query = _random(1, attention.heads, queries, attention.head_dim, dtype=model.dtype)
    key, value = (_random(1, attention.kv_heads, n, attention.head_dim, dtype=model.dtype)[:, :, :TOKENS]
                  for n in (TOKENS, TOKENS + 1))  # fmt: skip
    mx.eval(key, value)

    def plain() -> mx.array:
        return _plain_attention(query, key, value, attention.scale, None, attention.softcap)

    softcap = attention.softcap
    assert softcap is not None
    fused = partial(capped, query, key, value, None, attention.scale, softcap)
    return check(name, model.dtype, fused, plain)


def _elementwise(model: PaliGemma) -> Iterator[Check]:
    """The functions that mx.compile makes one kernel of, on a GPU."""
    dtype = model.dtype
    x, y = _random(TOKENS, 192, dtype=dtype), _random(TOKENS, 193, dtype=dtype)[:, :192]
    weight = _random(192)
    mx.eval(y)
    wide, other = x.astype(mx.float32), y.astype(mx.float32)

    def plain_gelu() -> mx.array:
        return 0.5 * wide * (1 + mx.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3)))

    yield check("gelu", dtype, lambda: gelu(x), plain_gelu)
    yield check("geglu", dtype, lambda: geglu(x, y), lambda: plain_gelu() * other)
    yield check("residual addition", dtype, lambda: residual.add(x, y)[1], lambda: wide + other)
    if model.config.text.is_gemma2:
        yield check(
            "weighted addition", dtype, lambda: residual.add_weighted(x, y, weight)[1], lambda: wide + other * weight
        )
        yield check("cap of scores", dtype, lambda: cap_scores(x, 3.0, 2.0), lambda: 3 * mx.tanh(wide * 2 / 3))
        yield check("cap of logits", mx.float32, lambda: gemma.cap_logits(x, 3.0), lambda: 3 * mx.tanh(wide / 3))


def _products(model: PaliGemma) -> Iterator[Check]:
    """One matrix of each packing in the checkpoint, times one token and times a prefix."""
    found: dict[Quantization | None, Linear | Embedding] = {}
    for _, module in model.named_modules():
        if isinstance(module, (Linear, Embedding)) and module.quantization not in found:
            found[module.quantization] = module
    for quantization, module in found.items():
        count = min(module.num_outputs, 512)
        part = module.outputs(range(count)) if isinstance(module, Embedding) else module.outputs(0, count)
        arrays = {name: np.array(array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array)
                  for name, array in part.parameters().items()}  # fmt: skip
        plain = arrays["weight"] if quantization is None else spelled_out(quantization, arrays)
        how = "float" if quantization is None else f"{quantization.mode}, {quantization.bits} bits"
        for tokens in (1, TOKENS):
            x = _random(tokens, module.num_columns, dtype=model.dtype)
            name = f"product, {how}, {module.num_columns} wide, rows: {tokens}"
            yield check(
                name,
                model.dtype,
                lambda part=part, x=x: part.multiply(x),  # type: ignore[misc]
                lambda plain=plain, x=x: np.array(x.astype(mx.float32)) @ plain.T.astype(np.float32),  # type: ignore[misc]
            )
