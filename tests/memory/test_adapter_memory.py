"""What adapters take is in the estimate that --max-memory is compared with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.adapters import DOWN, EMBEDDING, GATE, K, O, Q, Trained, wide
from helpers.models import Tensors, one_line_error, quantized, write_folder
from helpers.paths import ROOT

from pg_mlx import load_model
from pg_mlx.checkpoint.adapters.merge import open_adapters
from pg_mlx.checkpoint.footprint import needed_bytes
from pg_mlx.checkpoint.load import DTYPES
from pg_mlx.checkpoint.open import open_local

RANK = 48
KINDS = {
    "LoRA": lambda tensors: Trained(tensors).low_rank(Q, K, O, GATE, DOWN, rank=RANK),
    "DoRA": lambda tensors: Trained(tensors, use_dora=True).low_rank(Q, K, O, GATE, DOWN, rank=RANK),
    "embedding": lambda tensors: Trained(tensors).embedding(EMBEDDING, rank=RANK),
    "whole": lambda tensors: Trained(tensors).whole(f"{GATE}.weight", f"{DOWN}.weight"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tensors]:
    """A checkpoint, the same packed, and its tensors."""
    folder = tmp_path_factory.mktemp("base")
    raw, tensors = wide()
    write_folder(folder / "float", raw, tensors)
    raw_packed, packed, _ = quantized(raw, tensors, lambda _, weight: weight.shape[-1] % 64 == 0)
    write_folder(folder / "packed", raw_packed, packed)
    return folder / "float", folder / "packed", tensors


def needed(folder: Path, *adapters: Path, dtype: str = "float32") -> int:
    checkpoint = open_local(folder)
    return needed_bytes(checkpoint.with_adapters(open_adapters(adapters)) if adapters else checkpoint, DTYPES[dtype])


def peak(folder: Path, adapter: Path, dtype: str) -> int:
    script = (
        "import sys, mlx.core as mx, pg_mlx\n"
        "pg_mlx.load_model(sys.argv[1], adapter_path=sys.argv[2], dtype=sys.argv[3], keep_quantized=True)\n"
        "print(mx.get_peak_memory())\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(adapter), dtype]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout)


@pytest.mark.parametrize("packed", [False, True], ids=["float", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_loading_takes_no_more_than_the_estimate(
    kind: str, packed: bool, base: tuple[Path, Path, Tensors], tmp_path: Path
) -> None:
    folder, adapter = base[packed], KINDS[kind](base[2]).save(tmp_path / "adapter")
    for dtype in ("float32", "bfloat16"):
        estimate, taken = needed(folder, adapter, dtype=dtype), peak(folder, adapter, dtype)
        print(f"{kind}, {dtype}: without {needed(folder, dtype=dtype):,}, with {estimate:,}, loading took {taken:,}")
        assert needed(folder, dtype=dtype) <= estimate and taken <= estimate


def test_factors_beside_a_packed_model_count(base: tuple[Path, Path, Tensors], tmp_path: Path) -> None:
    """And each of several adapters; a model that only they make too large is refused."""
    first = KINDS["LoRA"](base[2]).save(tmp_path / "first")
    second = KINDS["LoRA"](base[2]).save(tmp_path / "second")
    factors = sum(tensor.size for name, tensor in KINDS["LoRA"](base[2]).tensors.items()) * 4
    bare, one, two = needed(base[1]), needed(base[1], first), needed(base[1], first, second)
    assert bare + factors <= one and one + factors <= two <= bare + 4 * factors
    load_model(base[1], max_memory=bare)
    with one_line_error("this model needs", "allowed"):
        load_model(base[1], max_memory=bare, adapter_path=first)
    load_model(base[1], max_memory=one, adapter_path=first)
