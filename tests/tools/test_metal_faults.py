"""The tool itself: it finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.metal import require_compiler, shipped

from tools.metal import memory, source
from tools.metal.bits import from_bfloat16, rounded, to_bfloat16
from tools.metal.checks import check
from tools.metal.chips import CHIPS
from tools.metal.kernel import Kernel
from tools.metal.layout import Layout
from tools.metal.library import BadLibrary, Library
from tools.metal.report import KNOWN_FAULTS
from tools.metal.routes import route
from tools.metal.routes.base import Route, longs
from tools.metal.trace import Operation


def _norm(width: int, output_width: int) -> tuple[list, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape, np.float32) for shape in ((3, width), (width,), (width,)))
    out = memory.empty((3, output_width), np.float32)
    sizes = [np.uint32([n]) for n in (width, 1, 1)]
    buffers = dict(enumerate([x, weight, bias, out, np.float32([1e-6]), *sizes]))
    threads = 32 * -(-width // 256)
    faults = Kernel(shipped(), "layer_normfloat32")(buffers, (3 * threads,), (threads,))
    centred = x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    wanted = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weight + bias
    return faults, np.array(out), wanted


def test_a_width_of_whole_simdgroups_has_no_fault() -> None:
    faults, got, wanted = _norm(1280, 1280)
    assert faults == []
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_mlx_layer_norm_writes_below_its_array_at_siglip_s_width() -> None:
    """A fault of MLX's: threads beyond the row write before their own array. The result is right all the same."""
    faults, got, wanted = _norm(1152, 1152)
    assert [(fault.kind, fault.what) for fault in faults] == [("write", "a thread's own [8 x float]")]
    assert -480 <= faults[0].offset < 0
    assert {("layer_normfloat32", fault.what) for fault in faults} <= KNOWN_FAULTS
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_write_past_the_end_is_found() -> None:
    faults, _, _ = _norm(1280, 1200)
    assert ("write", "buffer 3 (out)") in {(fault.kind, fault.what) for fault in faults}
    assert min(fault.offset for fault in faults if fault.what == "buffer 3 (out)") >= 3 * 1200 * 4


def _attention() -> Route:
    query = Layout.new((1, 8, 1, 256), "bfloat16")
    cache = Layout.new((2, 1, 1, 90, 256), "bfloat16")
    key, value = (cache.sliced((at, 0, 0, 0, 0), (1, 1, 1, 77, 256), (1,) * 5).squeezed([0]) for at in (0, 1))
    operation = Operation("scaled_dot_product_attention", (query, key, value), (query,), (1 / 16,))
    return route(operation, CHIPS[0])


def test_the_strides_of_a_cache_are_right() -> None:
    result = check(_attention(), shipped())
    assert result.good
    assert not result.faults


@pytest.mark.parametrize("index", [7, 9])  # from one key, or value, to the next
@pytest.mark.parametrize("step", [255, 512])
def test_a_wrong_stride_is_found(index: int, step: int) -> None:
    right = _attention()
    (dispatch,) = right.dispatches
    slots = tuple((i, longs([step]) if i == index else slot) for i, slot in dispatch.slots)
    result = check(replace(right, dispatches=(replace(dispatch, slots=slots),)), shipped())
    assert not result.good or result.faults


def test_a_wrong_tile_of_a_product_is_found() -> None:
    a, b = Layout.new((70, 256), "bfloat16"), Layout.new((512, 256), "bfloat16").transposed((1, 0))
    found = route(Operation("Matmul", (a, b), (Layout.new((70, 512), "bfloat16"),)), CHIPS[1])
    assert check(found, shipped()).good
    (dispatch,) = found.dispatches
    wrong = replace(dispatch, constants=tuple((i, True if i == 200 else v) for i, v in dispatch.constants))
    assert check(replace(found, dispatches=(wrong,)), shipped()).faults  # 70 rows are not whole tiles


# --- sources as C++ ------------------------------------------------------------------------------------


def test_a_source_runs_as_mlx_would_run_it() -> None:
    require_compiler()
    x = np.random.default_rng(1).standard_normal((3, 100), np.float32)
    text = """
        threadgroup float part[32];
        uint row = threadgroup_position_in_grid.x, lane = thread_index_in_simdgroup;
        float sum = 0;
        for (uint i = thread_position_in_threadgroup.x; i < x_shape[1]; i += threads_per_threadgroup.x)
            sum += float(x[row * x_strides[0] + i]) * scale;
        sum = simd_sum(sum);
        if (lane == 0) part[simdgroup_index_in_threadgroup] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum = simd_sum(lane < simdgroups_per_threadgroup ? part[lane] : 0.0f);
        if (thread_position_in_threadgroup.x == 0) out[row] = T(DOUBLED ? 2 * sum : sum);
    """
    made = source.run(
        text,
        "",
        {"x": to_bfloat16(x), "scale": 0.5},
        {"out": ((3,), "bfloat16")},
        grid=(3 * 96, 1, 1),
        threadgroup=(96, 1, 1),
        template={"T": "bfloat16", "DOUBLED": True},
    )
    np.testing.assert_allclose(from_bfloat16(made["out"]), rounded(x).sum(axis=-1), rtol=1e-2)


@pytest.mark.parametrize(
    "statement",
    [
        "out[i + 1] = x[i];",
        "out[i] = x[i] + x[int(i) - 1];",
        "out[i] = x[i + x_shape[0] - 7];",
        "float own[4]; for (int k = 0; k < 4; k++) own[k] = x[k]; out[i] = own[i];",
    ],
)
def test_a_source_that_leaves_its_memory_is_found(statement: str) -> None:
    require_compiler()
    text = f"uint i = thread_position_in_grid.x; {statement}"
    with pytest.raises(source.OutOfBounds):
        source.run(text, "", {"x": np.ones(8, np.float32)}, {"out": ((8,), "float32")}, (8, 1, 1), (8, 1, 1))


# --- the file format -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"MTLB", b"MTL", b"MTLB" + b"\xff" * 200, b"MTLB" + b"\0" * 20 + b"\x58" * 64]
)
def test_a_broken_library_is_one_error(tmp_path, content: bytes) -> None:
    path = tmp_path / "broken.metallib"
    path.write_bytes(content)
    with pytest.raises(BadLibrary):
        Library(path)
