"""Sizes as people write them; a model that needs too much is refused before it is read; what it needs is true; and what
is left over is used."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import CAT, ROOT, assert_one_line, run
from helpers.memory import growth
from helpers.models import config_json, distance, load_packed, model_of, one_line_error, pictures, quantized, random_ids
from helpers.models import random_tensors as tensors_of
from helpers.worker import Raw
from hypothesis import given
from hypothesis import strategies as st

import pg_mlx
from pg_mlx import load_model
from pg_mlx.checkpoint.footprint import needed_bytes
from pg_mlx.checkpoint.load import DTYPES
from pg_mlx.checkpoint.open import open_local
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.demo import CHECKPOINT, PICTURES
from pg_mlx.linear import Linear, matrices
from pg_mlx.memory import residency
from pg_mlx.memory.size import parse_size
from pg_mlx.ops import device, products
from pg_mlx.quantization import Quantization

MB = 10**6
SIZES = [("8GB", 8 * 10**9), ("6.5GiB", 13 << 29), ("6.5 g", 13 << 29), ("500MB", 500 * MB), ("1 kib", 1024),
         ("12", 12), ("12B", 12), (77, 77)]  # fmt: skip


@pytest.mark.parametrize("text, size", SIZES)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@given(st.one_of(st.text(), st.sampled_from(["-1GB", "GB", "0GB", "1e9", "8 GB GB", "nan", "8,5GB", "0.1", "8Gb b"])))
def test_anything_else_is_one_line(text: str) -> None:
    if text.strip().rstrip("bBkKmMgGtT")[-1:].isdigit():
        return
    with one_line_error("8GB"):
        parse_size(text)


def needed(dtype: str = "float32", folder: Path = CHECKPOINT) -> int:
    return needed_bytes(open_local(folder), DTYPES[dtype])


def test_too_large_a_model_is_refused_before_a_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(CHECKPOINT, folder)
    monkeypatch.setattr(SafetensorsFolder, "read", lambda self, name: pytest.fail(f"{name} was read"))
    for option in ({"max_memory": "9MB"}, {"memory": 9 * MB}, {"memory": "1GB", "max_memory": "9MB"}):
        with one_line_error(f"{needed() / 1e6:.1f} MB", "9.0 MB"):
            load_model(folder, **option)


@pytest.mark.parametrize(
    "option, words",
    [
        (["--max-memory", "9MB"], "MB allowed"),
        (["--max-memory", "much"], "--max-memory: 'much' is not a size"),
        (["--memory", "much"], "--memory: 'much' is not a size"),
        (["--memory", "1GB", "--dtype", "bfloat16"], "of no use to bfloat16"),
        (["--layers-at-once", "0"], "--layers-at-once: 0 is not from 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_refusals(option: list[str], words: str) -> None:
    done = run("--model", str(CHECKPOINT), "--image", str(CAT), *option)
    assert_one_line(done, 2, words)


@pytest.mark.parametrize("command", ["worker", "serve"])
def test_servers_refuse_sizes_that_are_none(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pg_mlx", command, "--memory", "much"],
        cwd=ROOT, input="", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert_one_line(done, 2, "--memory: 'much' is not a size")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_takes_what_was_told(dtype: str) -> None:
    """The estimate is the peak or up to half more."""
    script = (
        "import sys, pg_mlx\n"
        "model, processor = pg_mlx.load(sys.argv[1], dtype=sys.argv[3], max_memory='1GB')\n"
        "print(pg_mlx.generate(model, processor, 'caption en', sys.argv[2], max_tokens=256).stats.peak_memory_bytes)\n"
    )
    command = [sys.executable, "-c", script, str(CHECKPOINT), str(PICTURES[0]), dtype]
    peak = int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout)
    print(f"{dtype}: estimate {needed(dtype) / 1e6:.2f} MB, peak {peak / 1e6:.2f} MB")
    assert peak <= needed(dtype) <= 1.5 * peak


def test_float_copies_answer_alike_within_the_memory_given() -> None:
    """As many decoder layers as fit, then head and tower; the packed weights are gone."""
    reference, processor = pg_mlx.load(CHECKPOINT, keep_quantized=True)
    answer = lambda model: pg_mlx.generate(model, processor, "caption en", CAT, max_tokens=24).token_ids  # noqa: E731
    expected, layers = answer(reference), reference.config.text.num_hidden_layers
    assert reference.float_layers == 0
    layer_bytes = 4 * sum(m.num_outputs * m.num_columns for m in matrices(reference.language_model.layers[0]))
    for size, least, most in ((needed(), 0, 0), (needed() + 3 * layer_bytes, 3, layers - 1), ("1GB", layers, layers)):
        model = load_model(CHECKPOINT, memory=size)
        assert least <= model.float_layers <= most
        grown = residency.held_bytes(model) - residency.held_bytes(reference)
        assert grown <= parse_size(size) - needed()
        packed = [matrix for matrix in matrices(model) if matrix.quantization]
        assert bool(packed) == (size != "1GB")
        assert all("scales" in matrix for matrix in packed)
        assert answer(model) == expected


def test_small_models_are_float_by_themselves() -> None:
    """Unless a limit was given, 16 bits are computed in, it is larger than that, or they were to stay quantized."""
    packed = residency.held_bytes(load_packed(CHECKPOINT))
    model = load_model(CHECKPOINT)
    assert not any(matrix.quantization for matrix in matrices(model)) and residency.held_bytes(model) > 3 * packed
    assert residency.held_bytes(load_model(CHECKPOINT, max_memory="1GB")) == packed
    assert any(matrix.quantization for matrix in matrices(load_model(CHECKPOINT, dtype="bfloat16")))
    larger = load_packed(CHECKPOINT)
    residency.dequantize_if_small(larger, 3 * packed // 2)
    assert residency.held_bytes(larger) == packed


def test_the_command_tells_how_many_layers_are_float() -> None:
    done = run("--image", str(CAT), "--prompt", "caption en", "--max-tokens", "2", "--memory", "1GB", "--verbose")
    assert done.returncode == 0 and "6 layers of 192, 6 of them in float32" in done.stderr, done.stderr


def test_a_worker_holds_float_copies_too() -> None:
    with Raw("--memory", "1GB", "--layers-at-once", "2") as worker:
        info = worker.greet(load=False).ask("load")["model"]
        assert info["weight_bytes"] > 2 * residency.held_bytes(load_packed(CHECKPOINT))


@pytest.mark.parametrize("q", [Quantization(4, 64), Quantization(6, 32), Quantization(4, 32, "mxfp4")], ids=str)
def test_an_unpacked_matrix_has_its_adapter_in_it(q: Quantization) -> None:
    layer = Linear(128, 96, bias=True, quantization=q)
    for name, array in q.pack(mx.random.normal((96, 128))).items():
        layer[name] = array
    layer.bias, layer.up, layer.down = mx.random.normal((96,)), mx.random.normal((96, 3)), mx.random.normal((3, 128))
    layer.row_scale = mx.random.uniform(shape=(96,))
    x = mx.random.normal((5, 128))
    expected = layer(x)
    layer.dequantize_in_place()
    assert layer.quantization is None and set(layer.parameters()) == {"weight", "bias"}
    assert distance(layer(x), expected) <= 1e-4


def test_copies_are_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpu_ops", lambda: True)
    with one_line_error("only serves the CPU"):
        load_model(CHECKPOINT, memory="8GB", dtype="float32")


@pytest.mark.parametrize("bits", [4, 6])
def test_no_more_than_a_layer_is_unpacked_at_a_time(bits: int) -> None:
    """4 bits are looked up, 6 bits unpacked by MLX, which takes seven times the memory of what it gives."""
    text = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=8, head_dim=32)
    raw = config_json("gemma", text)
    raw, tensors, _ = quantized(
        raw, tensors_of(raw), lambda module, _: ".layers." in module and "language" in module, bits
    )
    model = model_of(raw, tensors)
    features, ids = pictures(model), random_ids(1, 20)
    prefill = lambda: model.prefill(features, ids, capacity=24)  # noqa: E731
    mx.eval(features, ids, prefill()[0])  # tables
    with growth() as grown:
        mx.eval(prefill()[0])
    layer = 4 * sum(m.num_outputs * m.num_columns for m in matrices(model.language_model.layers[0]))
    print(f"a layer is {layer / 1e6:.1f} MB; {bits} bits: {grown.peak / 1e6:.1f} MB")
    assert grown.peak < 1.1 * layer + products.scratch_bytes(Quantization(bits, 64)) + 0.5e6 < 8 * layer / 2


def wired(monkeypatch: pytest.MonkeyPatch, model_bytes: int, previous: int = 0) -> list[int]:
    """What is asked for on a Mac that recommends 16 GB."""
    asked: list[int] = []
    monkeypatch.setattr(device, "gpu_ops", lambda: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 16 * 10**9})
    monkeypatch.setattr(mx, "set_wired_limit", lambda size: (asked.append(size), previous)[1])
    monkeypatch.setattr(mx, "set_cache_limit", lambda size: None)
    residency.keep_within(model_bytes)
    return asked


def test_a_mac_keeps_the_model_resident_but_never_all_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wired(monkeypatch, 3 * 10**9) == [3 * 10**9 + residency.SPARE_BYTES["gpu"] + 10**9]
    assert wired(monkeypatch, 15 * 10**9) == []
    assert wired(monkeypatch, 3 * 10**9, previous=9 * 10**9)[1:] == [9 * 10**9]


def test_loading_bounds_what_mlx_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    load_model(CHECKPOINT)
    assert limits == [residency.SPARE_BYTES["cpu"]]
