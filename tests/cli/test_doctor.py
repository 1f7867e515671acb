"""doctor finds a healthy machine healthy, and whatever is broken in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import FAMILIES, load_packed, model_of, quantized, random_tensors, wide_config_json
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx import gemma
from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.measure import demo_check, kernels, machine
from pg_mlx.ops import device
from pg_mlx.quantization import Quantization
from pg_mlx.quantization.reference import spelled_out


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 1e9)


@pytest.fixture(scope="module")
def reference() -> demo_check.Run:
    return demo_check.run(mx.cpu, mx.float32, [answer["tokens"] for answer in demo_check.stored()])


def test_this_machine_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out and out.splitlines()[-1].startswith("healthy: ")
    assert "stored answer to 'detect red circle' (6 of 6 tokens)" in out
    assert "computes in" in out and "copied at 1.0 GB/s" in out
    if mx.default_device() == mx.cpu:
        assert "no GPU, so MLX computes on the CPU" in out


def broken(name: str, wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(mx.fast, name, wrong(getattr(mx.fast, name)))


def without_last_key(attend: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """A kernel that forgets the last key, as one with a wrong bound would."""

    def wrong(query: mx.array, key: mx.array, value: mx.array, **options: Any) -> mx.array:
        if options.get("mask") is not None:
            return attend(query, key, value, **options)
        return attend(query, key[:, :, :-1], value[:, :, :-1], **options)

    return wrong


def late_rotation(rope: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda x, dims, *, offset, **options: rope(x, dims, offset=offset + 1, **options)


def refused(kernel: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def wrong(*arguments: Any, **options: Any) -> mx.array:
        raise RuntimeError("[rms_norm] No implementation\nhere")

    return wrong


BROKEN = {
    "rms_norm": (lambda norm: lambda x, *rest: norm(x, *rest) * 1.01, "rms_norm"),
    "layer_norm": (lambda norm: lambda x, w, b, eps: norm(x, w, None, eps), "layer_norm"),
    "scaled_dot_product_attention": (without_last_key, "attention"),
    "rope": (late_rotation, "rope"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_kernel_is_named_and_the_exit_code_is_1(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reference: demo_check.Run
) -> None:
    wrong, named = BROKEN[name]
    if name != "rms_norm":  # one of them with its consequences is enough
        monkeypatch.setattr(demo_check, "run", lambda *_: reference)
    broken(name, wrong)(monkeypatch)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert any(f"  {named}" in line for line in failed), lines
    assert lines[-1].startswith(f"not healthy: {len(failed)} of ")


def test_a_broken_product_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *a, **k: multiply(*a, **k) * 1.5)
    model = load_packed(CHECKPOINT)
    failed = [check.name for check in kernels.checks(model) if not check.healthy]
    assert failed and all(name.startswith("product, affine, 8 bits") for name in failed)


def test_a_broken_compiled_function_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemma, "cap_logits", lambda x, cap: x.astype(mx.float32))
    failed = [check.name for check in kernels.checks(load_packed(CHECKPOINT)) if not check.healthy]
    assert failed == ["cap of logits"]


def test_a_kernel_that_is_missing_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_packed(CHECKPOINT)
    broken("rms_norm", refused)(monkeypatch)
    failed = [check for check in kernels.checks(model) if not check.healthy]
    assert {check.route for check in failed} == {"RuntimeError: [rms_norm] No implementation here"}
    assert failed[0].report()["error"] is None
    json.dumps([check.report() for check in failed], allow_nan=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_is_right_in_every_dtype(family: str, dtype: str) -> None:
    raw = wide_config_json(family)
    raw, tensors, _ = quantized(raw, random_tensors(raw), lambda module, _: module.startswith("language_model"))
    found = list(kernels.checks(model_of(raw, tensors, dtype)))
    assert [check for check in found if not check.healthy] == []
    names = " ".join(check.name for check in found)
    assert "affine, 4 bits" in names and "product, float" in names and "of a step of two rows" in names
    assert ("capped" in names and "weighted" in names) == (family == "gemma2")


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(
        [Quantization(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 128)]
        + [Quantization(4, 32, "mxfp4"), Quantization(4, 16, "nvfp4"), Quantization(8, 32, "mxfp8")]
    ),
    st.integers(0, 2**30),
)
def test_unpacking_by_hand_is_unpacking(quantization: Quantization, seed: int) -> None:
    arrays = quantization.pack(mx.random.normal((3, 256), key=mx.random.key(seed)) * 4)
    by_hand = spelled_out(quantization, {name: np.array(array) for name, array in arrays.items()})
    np.testing.assert_allclose(by_hand, np.array(quantization.unpack(arrays)), rtol=1e-5, atol=1e-5)


def test_stored_answers_are_those_of_the_bundled_checkpoint(reference: demo_check.Run) -> None:
    """If this fails after a retraining: python -m demo.expect"""
    assert [answer["prompt"] for answer in demo_check.stored()] == list(demo_check.PROMPTS)
    assert reference.tokens == [answer["tokens"] for answer in demo_check.stored()]
    assert reference.texts == [answer["text"] for answer in demo_check.stored()]
    found = list(demo_check.against_stored("CPU", reference, mx.float32))
    assert len(found) == 2 * len(demo_check.PROMPTS) and all(check.error < 1e-3 for check in found)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_another_device_is_compared_with_the_cpu(
    reference: demo_check.Run, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the CPU again, for want of another device; 16 bits stay within their bound. A short answer, since the CPU is
    slow in 16 bits."""
    monkeypatch.setattr(demo_check, "PROMPTS", demo_check.PROMPTS[:1])
    found = demo_check.run(mx.cpu, dtype, reference.tokens)
    compared = list(demo_check.against_run("GPU", found, reference, dtype))
    for check in compared:
        print(f"{check.error:.1e} of {check.bound:.0e} {check.name}")
    assert len(compared) == 1 + 2 * len(demo_check.PROMPTS) and all(check.healthy for check in compared)


@pytest.mark.ops("gpu", reason="the GPU is pretended")
def test_a_doctor_with_a_gpu_compares_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reference: demo_check.Run
) -> None:
    """A pretended GPU, whose second run has lost its features."""

    lost = demo_check.Run(-reference.features, reference.logits, reference.tokens, reference.texts, reference.eos_id)
    monkeypatch.setattr(kernels, "checks", lambda model: iter(()))
    monkeypatch.setattr(demo_check, "run", lambda device, dtype, expected: reference if device == mx.cpu else lost)
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in report["checks"] if not check["healthy"]] == [
        "GPU, float32: features",
        "GPU, bfloat16: features",
    ]
    assert report["healthy"] is False and report["machine"]["backend"] in ("CUDA", "Metal")


def test_near_ties_may_fall_either_way() -> None:
    logits = mx.array([[0.0, 1.0, 5.0], [4.0, 4.01, -3.0], [0.0, 1.0, 5.0]])
    tokens = demo_check._tokens
    assert tokens("", [2, 1], [2, 1], logits, 0.01).error == 0
    assert tokens("", [2, 0], [2, 1], logits, 0.01).healthy
    assert not tokens("", [2, 2], [2, 1], logits, 0.01).healthy
    assert not tokens("", [2], [2, 1], logits, 0.01).healthy
    assert not tokens("", [2, 1, 2], [2, 1], logits, 0.01).healthy


def test_nothing_is_healthy_about_nan() -> None:
    check = kernels.Check("", float("nan"), 1.0)
    assert not check.healthy and check.report()["error"] is None
    assert kernels.relative_error(mx.zeros((2,)), mx.zeros((3,))) == float("inf")


def test_without_blas_it_warns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "blas_name", lambda: None)
    monkeypatch.setattr(kernels, "checks", lambda model: iter([kernels.Check("x", 0.0, 1.0)]))
    monkeypatch.setattr(demo_check, "against_stored", lambda *_: iter(()))
    assert main(["doctor", "--json"]) == 0
    warned = "200 times slower" in capsys.readouterr().out
    assert warned == (mx.default_device() == mx.cpu)


def test_a_wrong_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "/nowhere"]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and errors.splitlines()[-1] == "pg-mlx doctor: error: no such folder: /nowhere"
