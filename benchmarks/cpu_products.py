"""Time products and functions of the CPU backend, interleaved: OMP_NUM_THREADS=1 python -m benchmarks.cpu_products

CPU time (all threads) shows the cost of an operation even on a busy machine; --wall measures elapsed time, for an idle
machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import mlx.core as mx

from pg_mlx.ops import attention, gelu, products
from pg_mlx.ops.device import cores
from pg_mlx.quantization import Packed, Quantization


def of_a_matrix(rows: int, columns: int, q: Quantization) -> dict[str, Callable[[], mx.array]]:
    weight = mx.random.normal((rows, columns))
    arrays = q.pack(weight)
    packed = Packed(q, arrays["weight"], arrays["scales"], arrays.get("biases"))
    one, eight, prefix = (mx.random.normal((n, columns)) for n in (1, 8, 276))
    mx.eval(weight, list(arrays.values()), one, eight, prefix)
    return {
        "float, 1 row, MLX": lambda: one @ weight.T,
        "float, 1 row, NumPy": lambda: products.multiply_floats(one, weight),
        "float, 8 rows": lambda: eight @ weight.T,
        "float, 276 rows": lambda: prefix @ weight.T,
        "packed, 1 row, one stream": lambda: packed.matmul(one),
        "packed, 1 row, a stream a core": lambda: products.multiply_packed(one, packed),
        "packed, 8 rows": lambda: products.multiply_packed(eight, packed),
        "unpack, MLX": lambda: packed.dequantize(mx.float32),
        "unpack and multiply, 8 rows": lambda: products.multiply_unpacked(eight, packed),
        "unpack and multiply, 276 rows": lambda: products.multiply_unpacked(prefix, packed),
    }


def functions() -> dict[str, Callable[[], mx.array]]:
    """A layer of the tower at 448 pixels."""
    hidden, heads = mx.random.normal((1, 1024, 4304)), mx.random.normal((1, 16, 1024, 72))
    mx.eval(hidden, heads)
    return {
        "GELU of 4.4 M, MLX": lambda: gelu._gelu(hidden),
        "GELU of 4.4 M, NumPy": lambda: gelu.gelu(hidden),
        "attention, 16.8 M scores, MLX": lambda: attention._kernel(heads, heads, heads, None, 1 / 8),
        "attention, 16.8 M scores, NumPy": lambda: attention.attention(heads, heads, heads, None, scale=1 / 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--q-bits", type=int, default=4)
    parser.add_argument("--q-group-size", type=int, default=64)
    parser.add_argument("--q-mode", default="affine")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--wall", action="store_true")
    args = parser.parse_args()
    mx.set_cache_limit(128 << 20)  # as loading a model does
    clock = time.perf_counter if args.wall else time.process_time
    work = of_a_matrix(args.rows, args.columns, Quantization(args.q_bits, args.q_group_size, args.q_mode)) | functions()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.repeat):
        for name, function in work.items():
            start = clock()
            mx.eval(function())
            times[name].append(clock() - start)
    print(f"{args.rows} x {args.columns}, {cores()} cores, ms of {'wall' if args.wall else 'CPU'} time: least, median")
    for name, values in times.items():
        print(f"{name:<32} {min(values) * 1e3:8.1f} {median(values) * 1e3:8.1f}")


if __name__ == "__main__":
    main()
