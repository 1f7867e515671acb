"""What we convert runs in mlx-vlm with the same logits, and what it converts runs here.

mlx-vlm need not be installed beside us: PG_MLX_PEER_PYTHON may name another interpreter that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compatibility
from benchmarks.compatibility import FAMILIES, OURS, STEPS, THEIRS, Row
from pg_mlx import load_model
from pg_mlx.checkpoint.validate import validate
from pg_mlx.conversion import convert
from pg_mlx.measure import decode_work

PEER = os.environ.get("PG_MLX_PEER_PYTHON") or (sys.executable if importlib.util.find_spec("mlx_vlm") else None)
needs_peer = pytest.mark.skipif(PEER is None, reason="no mlx-vlm here, and PG_MLX_PEER_PYTHON names no interpreter")

TESTED = ["float32", "bfloat16", "balanced", "mxfp4", "4 bits, eyes float"]
THEIRS_TESTED = ["float32", "4 bits", "mixed_4_6"]
ROUNDED_PIXELS = {"bfloat16", "mxfp4"}
"""Forms whose embedding mlx-vlm unpacks to bfloat16; it rounds the pixels to the embedding's dtype."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Row]:
    assert PEER is not None
    folder = tmp_path_factory.mktemp("peers")
    found = compatibility.measure(PEER, folder, TESTED, THEIRS_TESTED, transformers=False)
    return {(row.family, row.written_by, row.form): row for row in found}


def assert_same(row: Row) -> None:
    assert not row.error, row.error
    assert row.same_input
    rounded = row.form in ROUNDED_PIXELS
    assert row.difference < (0.1 if rounded else 5e-5)
    assert row.difference_float32 < (0.02 if row.form == "mxfp4" else 5e-5)
    assert len(row.our_tokens) == STEPS
    assert rounded or row.agreed == STEPS, (row.their_tokens, row.our_tokens)


@needs_peer
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", TESTED)
def test_mlx_vlm_runs_what_we_write(rows: dict[tuple[str, str, str], Row], family: str, form: str) -> None:
    assert_same(rows[family, "pg_mlx", form])


@needs_peer
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", THEIRS_TESTED)
def test_we_run_what_mlx_vlm_writes(rows: dict[tuple[str, str, str], Row], family: str, form: str) -> None:
    assert_same(rows[family, "mlx-vlm", form])


@needs_peer
def test_converting_repairs_the_image_scale(rows: dict[tuple[str, str, str], Row]) -> None:
    """mlx-vlm divides picture rows by the root of the top-level hidden_size, which PaliGemma 2's files do not have."""
    assert rows["PaliGemma 2", "Hugging Face", "as published"].difference > 0.1
    assert_same(rows["PaliGemma 2", "pg_mlx", "as published, converted"])


@needs_peer
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["bfloat16", "balanced, bfloat16"])
def test_a_decode_step_starts_half_as_many_kernels_as_mlx_vlm(family: str, form: str, tmp_path: Path) -> None:
    """By one rule, for one layer: what a model of three layers starts beyond one of two."""
    assert PEER is not None
    jobs, ours = [], []
    for layers in (3, 2):
        source = compatibility.hugging_face_folder(tmp_path / f"source-{layers}", family, num_hidden_layers=layers)
        folder, inputs = tmp_path / f"model-{layers}", tmp_path / "inputs.safetensors"
        convert(source, folder, check=False, **OURS[form])
        compatibility.write_inputs(folder, inputs)
        jobs.append(dict(do="mlx_vlm_kernels", folder=str(folder), inputs=str(inputs)))
        ours.append(decode_work.decode_kernels(load_model(folder, dtype="bfloat16")).total())
    three, two = compatibility.ask(PEER, tmp_path, jobs)
    assert "kernels" in three, three
    kernels, views = (three[name] - two[name] for name in ("kernels", "views"))
    print(f"{family}, {form}: mlx-vlm {kernels} kernels and {views} views a layer, pg_mlx {ours[0] - ours[1]} kernels")
    assert 2 * (ours[0] - ours[1]) <= kernels


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compatibility.hugging_face_folder(tmp_path_factory.mktemp("source") / "source", request.param)


@pytest.mark.parametrize("form", OURS)
def test_swift_can_decode_what_we_write(source: Path, tmp_path: Path, form: str) -> None:
    """Fields, names and vocabulary as `validate` knows them, and a `quantization` that BaseConfiguration.swift takes:
    numbers at the top, and by module either false or numbers."""
    convert(source, tmp_path / "out", check=False, **OURS[form])
    assert validate(tmp_path / "out") == []
    entry = json.loads((tmp_path / "out" / "config.json").read_text()).get("quantization")
    if form in ("float32", "bfloat16"):
        assert entry is None
        return
    modules = {name: entry.pop(name) for name in list(entry) if "." in name}
    for packing in [entry, *(packing for packing in modules.values() if packing is not False)]:
        assert_decodes(packing)
    if form == "4 bits, eyes float":
        assert set(modules.values()) == {False}


def assert_decodes(packing: dict[str, Any]) -> None:
    assert {"group_size", "bits"} <= set(packing) <= {"group_size", "bits", "mode"}
    assert type(packing["group_size"]) is int and type(packing["bits"]) is int
    assert packing.get("mode", "affine") in ("affine", "mxfp4", "mxfp8", "nvfp4")


def test_the_table_covers_what_is_tested() -> None:
    assert set(TESTED) <= set(OURS) and set(THEIRS_TESTED) <= set(THEIRS)
