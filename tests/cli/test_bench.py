"""What bench counts is what the graphs hold, and its command says it to people and to programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from helpers.models import FAMILIES, model_of, pictures, quantized, random_ids, random_tensors, tiny, wide_config_json
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx import PaliGemma
from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.measure import experiments, machine, stages, work
from pg_mlx.measure.experiments import Sizes

pytestmark = pytest.mark.ops(
    "cpu", reason="it times the machine's own operations; those of a GPU in 16 bits take minutes on a CPU"
)


def multiplied(function: Callable[..., list[mx.array]], *arrays: mx.array) -> int:
    """Operations of the matrix products in the graph of function(*arrays)."""
    found: list[dict[str, Any]] = []
    mx.export_function(found.append, function, *arrays)
    total = 0
    for operation in found:
        if operation["type"] == "primitive" and operation["name"] in ("Matmul", "AddMM", "QuantizedMatmul"):
            (_, left, _), (_, result, _) = operation["inputs"][0], operation["outputs"][0]
            total += 2 * left[-1] * math.prod(result)
    return total


def packed(family: str) -> PaliGemma:
    raw = wide_config_json(family)
    raw, tensors, _ = quantized(raw, random_tensors(raw), lambda module, _: module.startswith("language_model"))
    return model_of(raw, tensors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [tiny, packed])
def test_counted_operations_are_those_of_the_graph(family: str, make: Callable[[str], PaliGemma]) -> None:
    model = make(family)
    side, images = model.config.vision.image_size, model.config.vision.num_patches
    pixels, ids = mx.zeros((2, side, side, 3)), random_ids(1, 5)
    features = pictures(model)
    assert work.encode_work(model, 2).flops == multiplied(lambda p: [model.encode_image(p)], pixels)

    def prefill(features: mx.array, ids: mx.array) -> list[mx.array]:
        logits, cache = model.prefill(features, ids, capacity=images + 9)
        return [logits, *cache.layers]

    assert work.prefill_work(model, images + 5).flops == multiplied(prefill, features, ids)
    _, cache = model.prefill(mx.repeat(features, 3, axis=0), mx.repeat(ids, 3, axis=0), capacity=images + 9)
    token = mx.array([1, 2, 3])
    mx.eval(token, cache.layers)
    lengths = [images + 5] * 3
    assert work.decode_work(model, lengths).flops == multiplied(lambda t: [model.step(t, cache)[0]], token)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=5), st.integers(1, 5000))
def test_a_row_more_costs_its_arithmetic_and_its_cache_but_no_weights(lengths: list[int], other: int) -> None:
    model = MODEL
    before, after = work.decode_work(model, lengths), work.decode_work(model, [*lengths, other])
    alone = work.decode_work(model, [other])
    assert after.flops == before.flops + alone.flops
    assert after.bytes - before.bytes == work.cache_bytes(model, [other])
    assert alone.bytes == work.weight_bytes(model.language_model) + work.cache_bytes(model, [other])


MODEL = tiny("gemma2")


def test_weights_are_counted_as_stored() -> None:
    model = packed("gemma")
    width, vocab = model.config.text.hidden_size, model.config.text.vocab_size
    assert work.cells(model.language_model.embed_tokens) == width * vocab
    assert work.weight_bytes(model.language_model.embed_tokens) == width * vocab // 2 + 2 * 4 * width * vocab // 64


def test_stages_and_their_fractions() -> None:
    model = tiny("gemma")
    side, notes = model.config.vision.image_size, list[str]()
    found = list(
        stages.measure(
            model, mx.zeros((1, side, side, 3)), [2, 7, 9], rows=(1, 3), repeats=2, steps=3, note=notes.append
        )
    )
    assert [(stage.name, stage.rows) for stage in found] == [
        ("vision", 1),
        ("prefill", 1),
        ("decode", 1),
        ("decode", 3),
    ]
    assert notes == ["vision", "prefill", "decode", "decode, 3 rows"]
    assert all(stage.seconds > 0 and stage.work.flops > 0 for stage in found)
    assert found[1].tokens == model.config.vision.num_patches + 3
    stage = stages.StageTime("decode", 2, 0.5, work.Work(flops=300, bytes=100), 2)
    report = stage.report(stages.MachineLimits(copied_bytes=400.0, flops=1200.0))
    assert (report["of_copy_bandwidth"], report["of_matmul_rate"], report["tokens_per_second"]) == (0.5, 0.5, 4.0)


def test_the_machine_is_described_without_names() -> None:
    import getpass
    import socket

    described = machine.description()
    assert described["backend"] in ("CPU", "Metal", "CUDA") and described["memory_bytes"] > 1e8
    assert described["dtype"] == ("float32" if described["backend"] == "CPU" else "bfloat16")
    text = json.dumps(described)
    assert socket.gethostname() not in text and str(CHECKPOINT.parent.parent) not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text
    assert machine.copy_bandwidth(1 << 20) > 1e6 and machine.matmul_rate(mx.float32, 64) > 1e5


SMALL = ("--rows", "1,2", "--repeats", "1", "--steps", "2")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons with the machine that take no time."""
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(machine, "matmul_rate", lambda dtype, size=None: {mx.float16: 3e9}.get(dtype, 1e9))


def test_the_command_runs_the_demo_and_prints_a_table(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL]) == 0
    out, errors = capsys.readouterr()
    assert "bundled demo: gemma2, 6 layers of 192" in out and "copies 1.0 GB/s, multiplies 1 GFLOP/s" in out
    assert [line.split()[:2] for line in out.splitlines()[5:]] == [
        ["load", "1"],
        ["vision", "1"],
        ["prefill", "1"],
        ["decode", "1"],
        ["decode", "2"],
    ]
    assert "pg-mlx bench: vision ..." in errors and "questions" not in errors


def test_json_holds_every_figure(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "--model", str(CHECKPOINT), *SMALL]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["name"] == "checkpoint" and report["machine"]["mlx"]
    for stage in report["stages"]:
        assert stage["of_copy_bandwidth"] == pytest.approx(stage["bytes"] / stage["seconds"] / 1e9)
    assert report["questions"] == []


@pytest.mark.parametrize("flags", [["--rows", "0"], ["--rows", "1,x"], ["--steps", "-1"], ["--model", "/nowhere"]])
def test_wrong_flags_are_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors.splitlines()[-1].startswith("pg-mlx bench: error: ")


def test_on_a_mac_open_questions_are_answered(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pretended one, with small experiments; the CPU refuses to force a fused attention, and the rest goes on."""
    small = Sizes(prefixes=(16, 40), matrix=(64, 64), vector_outputs=8, head=(2, 16), square=32)
    monkeypatch.setattr(experiments, "on_a_mac", lambda: True)
    monkeypatch.setattr(experiments, "Sizes", lambda: small)
    monkeypatch.setattr(experiments, "matmul_rate", machine.matmul_rate)
    assert main(["bench", *SMALL]) == 0
    out = capsys.readouterr().out
    said = out.split("answered by this run:\n")[1].splitlines()
    assert len(said) == 6
    assert "at 40 tokens unpacking takes" in said[0]
    assert "Yes, for this picture: the largest is" in said[1]
    assert "ms with raised limits" in said[2] and "no advice to raise them" in said[2]
    assert "It failed here: " in said[3]
    assert "GB/s at 2304" in said[4]
    assert "float16 is 3.00 times as fast as bfloat16" in said[5]


def test_the_largest_activation_is_found_and_the_model_left_as_it_was() -> None:
    model = tiny("gemma")
    side = model.config.vision.image_size
    pixels = mx.zeros((1, side, side, 3))
    layers = list(model.language_model.layers)
    said, figures = experiments.maxima(model, pixels, [2, 3])
    assert said.startswith("Yes") and len(figures["largest"]) == 4 * (1 + 3)
    model.language_model.layers[1].mlp.down_proj.weight *= 1e7
    said, figures = experiments.maxima(model, pixels, [2, 3])
    assert said.startswith("No") and figures["largest"]["decoder.1 output"] > 65504
    assert figures["largest"]["decoder.0 output"] < 65504
    assert list(model.language_model.layers) == layers
