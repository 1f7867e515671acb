"""Two kernels of our own for Metal, each in place of several of MLX's. They are off unless they are asked for.

The environment variable PG_MLX_KERNELS names those that are wanted, as in "add_norm,capped". No Apple GPU has run them
yet; they were run as C++ on NumPy arrays (tests/ops/test_metal_kernels.py). So they are options until `pg-mlx doctor`
has compared them on a Mac.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import InputError
from . import device

NAMES = ("add_norm", "capped")


class Kernel(NamedTuple):
    """What mx.fast.metal_kernel makes a kernel of. source: its body. header: what stands before the function."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str
    header: str = ""


def _names(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if unknown := sorted(names.difference(NAMES)):
        raise InputError(f"PG_MLX_KERNELS has {unknown[0]!r}, but must be a list of {' and '.join(NAMES)}")
    return names


_wanted = _names(os.environ.get("PG_MLX_KERNELS", ""))


@contextlib.contextmanager
def use(names: str) -> Iterator[None]:
    """Within the block, in all threads, use the kernels in this list, as PG_MLX_KERNELS has it. Raises InputError for
    another name."""
    global _wanted
    before, _wanted = _wanted, _names(names)
    try:
        yield
    finally:
        _wanted = before


def wanted(name: str) -> bool:
    """Whether to use the kernel of this name: it was asked for, and the operations are those of Metal."""
    return name in _wanted and device.backend() == "metal"


def add_norm(
    x: mx.array, y: mx.array, weight: mx.array, eps: float, post: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """x + y, and its RMS norm with this weight: x and y [..., D] in one dtype, weight float32 [D] -> both [..., D].

    post: with it (float32 [D]), y's own norm with that weight is added instead of y. Roundings are those of the
    operations that this replaces: y / rms(y), the sum and the norm are rounded once each.
    """
    width = x.shape[-1]
    threads = min(1024, 32 * -(-width // 128))  # about four values each
    inputs: list[mx.array | float] = [x, y, weight, eps] if post is None else [x, y, weight, eps, post]
    hidden, normed = launch(
        ADD_NORM if post is None else ADD_POST_NORM,
        inputs,
        template=[("T", x.dtype), ("D", width)],
        grid=(x.size // width * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[x.shape, x.shape],
        dtypes=[x.dtype, x.dtype],
    )
    return hidden, normed


def capped(query: mx.array, layer: mx.array, slots: range, scale: float, softcap: float) -> mx.array:
    """Attention with capped scores: query [B, heads, T, head_dim] of the last T tokens of `slots`, and a layer's buffer
    [2, B, kv_heads, capacity, head_dim] as it is -> [B, heads, T, head_dim].

    A token sees the slots up to its own. head_dim is a multiple of 32, and its values are neighbours in the buffer.
    """
    batch, heads, length, head_dim = query.shape
    (mixed,) = launch(
        CAPPED,
        [query, layer, slots.start, slots.stop, scale, softcap],
        template=[
            ("T", query.dtype),
            ("D", head_dim),
            ("HEADS", heads),
            ("KV_HEADS", layer.shape[2]),
            ("LENGTH", length),
        ],
        grid=(batch * heads * 1024, length, 1),
        threadgroup=(1024, 1, 1),
        shapes=[query.shape],
        dtypes=[query.dtype],
    )
    return mixed


def launch(
    kernel: Kernel,
    inputs: Sequence[mx.array | float],
    *,
    template: Sequence[tuple[str, Any]],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[mx.Dtype],
) -> list[mx.array]:
    """The outputs of a kernel, of these shapes and dtypes. grid: in threads."""
    return _compiled(kernel)(
        inputs=[_array(value) for value in inputs],
        template=list(template),
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=list(shapes),
        output_dtypes=list(dtypes),
    )


def _array(value: mx.array | float) -> mx.array:
    """A number as an array without dimensions, int32 or float32."""
    return value if isinstance(value, mx.array) else mx.array(value)


@functools.cache
def _compiled(kernel: Kernel) -> Any:
    return mx.fast.metal_kernel(
        name=f"pg_mlx_{kernel.name}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=kernel.source,
        header=kernel.header,
        ensure_row_contiguous=kernel.name != "capped",  # which reads the strides of its inputs
    )


_ADD_NORM_SOURCE = """
  // A threadgroup for each row of D values; each thread has every `size`th of them.
  const uint row = threadgroup_position_in_grid.x;
  const uint thread_id = thread_position_in_threadgroup.x;
  const uint size = threads_per_threadgroup.x;
  const uint lane = thread_index_in_simdgroup;
  const uint group = simdgroup_index_in_threadgroup;
  const uint groups = size / 32;
  const size_t first = size_t(row) * D;
  threadgroup float parts[32];
#if POST
  float square = 0;
  for (uint i = thread_id; i < D; i += size) {
    const float value = float(y[first + i]);
    square += value * value;
  }
  square = simd_sum(square);
  if (lane == 0) parts[group] = square;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  square = simd_sum(lane < groups ? parts[lane] : 0.0f);
  const float factor = metal::precise::rsqrt(square / D + eps);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // parts are written again below
#endif
  float sum = 0;
  for (uint i = thread_id; i < D; i += size) {
    float added = float(y[first + i]);
#if POST
    added = float(T(added * factor)) * post[i];
#endif
    const T value = T(float(x[first + i]) + added);
    hidden[first + i] = value;
    sum += float(value) * float(value);
  }
  sum = simd_sum(sum);
  if (lane == 0) parts[group] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sum = simd_sum(lane < groups ? parts[lane] : 0.0f);
  const float scale = metal::precise::rsqrt(sum / D + eps);
  for (uint i = thread_id; i < D; i += size) {  // each thread reads what it has written itself
    normed[first + i] = T(weight[i] * (float(hidden[first + i]) * scale));
  }
"""

ADD_NORM = Kernel("add_norm", ("x", "y", "weight", "eps"), ("hidden", "normed"), _ADD_NORM_SOURCE, "#define POST 0\n")
ADD_POST_NORM = Kernel(
    "add_post_norm", ("x", "y", "weight", "eps", "post"), ("hidden", "normed"), _ADD_NORM_SOURCE, "#define POST 1\n"
)

CAPPED = Kernel(
    "capped",
    ("query", "layer", "start", "stop", "scale", "softcap"),
    ("mixed",),
    """
  // A threadgroup of 32 simdgroups for each query of each head. A simdgroup takes every 32nd slot, and each of its
  // lanes some values of the head. At the end the simdgroups' sums are joined.
  constexpr int PART = D / 32;
  const uint lane = thread_index_in_simdgroup;
  const uint group = simdgroup_index_in_threadgroup;
  const uint row = threadgroup_position_in_grid.x / HEADS;
  const uint head = threadgroup_position_in_grid.x % HEADS;
  const uint token = threadgroup_position_in_grid.y;
  const uint kv_head = head / (HEADS / KV_HEADS);
  const device T* own = query + row * query_strides[0] + head * query_strides[1] + token * query_strides[2];
  const device T* keys = layer + row * layer_strides[1] + kv_head * layer_strides[2];
  const device T* values = keys + layer_strides[0];
  threadgroup float maxima[32];
  threadgroup float sums[32];
  threadgroup float parts[32 * 32];
  float asked[PART], mixing[PART];
  for (int i = 0; i < PART; i++) {
    asked[i] = float(own[(lane * PART + i) * query_strides[3]]) * (scale / softcap);
    mixing[i] = 0;
  }
  const int end = stop - int(LENGTH) + int(token) + 1;
  float top = -INFINITY, sum = 0;
  for (int slot = start + int(group); slot < end; slot += 32) {
    const device T* key = keys + slot * layer_strides[3] + lane * PART;
    const device T* value = values + slot * layer_strides[3] + lane * PART;
    float score = 0;
    for (int i = 0; i < PART; i++) score += asked[i] * float(key[i]);
    score = softcap * metal::precise::tanh(simd_sum(score));
    const float larger = metal::max(top, score);
    const float before = metal::exp(top - larger), weight = metal::exp(score - larger);
    top = larger;
    sum = sum * before + weight;
    for (int i = 0; i < PART; i++) mixing[i] = mixing[i] * before + weight * float(value[i]);
  }
  if (lane == 0) { maxima[group] = top; sums[group] = sum; }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float largest = simd_max(maxima[lane]);
  const float share = metal::exp(maxima[lane] - largest);  // of the simdgroup with this lane's number
  const float total = simd_sum(sums[lane] * share);
  const size_t first = ((size_t(row) * HEADS + head) * LENGTH + token) * D + group * PART;
  for (int i = 0; i < PART; i++) {
    parts[lane * 32 + group] = mixing[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float result = simd_sum(parts[group * 32 + lane] * share);
    if (lane == 0) mixed[first + i] = T(result / total);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
""",
)
