"""A report asks every part for itself, says what it found, and names nobody. The figures of a CPU mean nothing."""

from __future__ import annotations

import getpass
import json
import math
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import msgspec
import pytest
from helpers.paths import ROOT

from pg_mlx.errors import InputError
from pg_mlx.measure import kernels
from pg_mlx.measure.report import buffers, checks, context, plan, products, run, small, steps, timing, weights, write
from pg_mlx.measure.report.context import Context, Found, NotHereError, Part
from pg_mlx.measure.report.page import page, tidy
from pg_mlx.measure.report.shapes import FAMILIES, Shapes
from pg_mlx.measure.report.structs import MacReport
from pg_mlx.ops import attention, device, metal_kernels

SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_text())
PACE = 1e-4


def made(parts: list[Part], **options: Any) -> MacReport:
    return run.make_report(Context(Shapes.named("small"), PACE, **options), lambda _: None, plan=parts)


def part(work: Callable[[Context], Found], name: str = "x") -> Part:
    return Part(name, "Is it so?", "If so, do it.", 1, work)


def answer(text: str = "Yes.", **figures: Any) -> Callable[[Context], Found]:
    return lambda _: Found(text, figures)


def fails(error: BaseException) -> Callable[[Context], Found]:
    def work(_: Context) -> Found:
        raise error

    return work


def as_json(report: MacReport) -> Any:
    found = json.loads(json.dumps(tidy(msgspec.to_builtins(report)), allow_nan=False))
    jsonschema.validate(found, SCHEMA)
    return found


@pytest.mark.ops("cpu", "gpu", reason="what a Mac computes is measured")
def test_every_part_answers_here_or_says_why_not(monkeypatch: pytest.MonkeyPatch, ops: str) -> None:
    """Without those that repeat what other tests do, and without processes."""
    alone = dict(first_token_s=0.2, prefill_peak_bytes=3e6, step_s=0.1, step_peak_bytes=2e6)
    monkeypatch.setattr(buffers, "_alone", lambda context, family, limits: alone)
    monkeypatch.setattr(checks, "all_checks", lambda model: iter([kernels.Check("x", 0.0, 1.0)]))
    monkeypatch.setattr(kernels, "checks", lambda model: iter(()))
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(small, "rates", lambda sizes: ("fast", {}))  # 16 bits take long here
    monkeypatch.setattr(small, "odd_width", lambda dtype, sizes: ("fast", {}))
    parts = [one for one in plan.PLAN if one.name not in ("stages", "float16")]
    found = as_json(made(parts, dtype=mx.float32))
    by_name = {one["name"]: one for one in found["parts"]}
    left_out = {"own_kernels_gemma", "own_kernels_gemma2", "forced_attention"}
    assert {name: one["answer"] for name, one in by_name.items() if one["status"] == "failed"} == {}
    assert {name for name, one in by_name.items() if one["status"] == "left out"} == left_out
    assert found["healthy"] and not found["on_a_mac"]
    assert by_name["guided"]["figures"]["equal"] is True
    assert set(by_name["in_place"]["figures"]["rows_8"]["orders"]) == set(steps.ORDERS)
    assert by_name["overheads"]["figures"]["wait_s"] > 0
    assert by_name["command_buffers"]["figures"]["gemma"]["large"]["step_s"] == 0.1
    assert "1.000 of the usual time" in by_name["command_buffers"]["answer"]


def test_a_part_that_fails_is_a_line_and_the_others_run() -> None:
    report = made([part(fails(RuntimeError("[metal] no\n room")), "a"), part(fails(MemoryError()), "b"),
                   part(fails(NotHereError("no GPU")), "c"), part(answer(), "d")])  # fmt: skip
    as_json(report)
    assert [(one.status, one.answer) for one in report.parts] == [
        ("failed", "It failed here: RuntimeError: [metal] no room"),
        ("failed", "It failed here: there is not enough memory."),
        ("left out", "Left out: no GPU."),
        ("answered", "Yes."),
    ]
    assert report.healthy
    assert "- Failed: `a`, `b`." in page(report) and "- Left out: `c`." in page(report)


def test_a_wrong_check_makes_the_whole_report_unhealthy() -> None:
    report = made([part(lambda _: Found("WRONG", {}, healthy=False)), part(answer())])
    assert not report.healthy and "**Something is wrong.**" in page(report)


def test_an_interrupt_gets_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        made([part(answer()), part(fails(KeyboardInterrupt()))])


def test_figures_are_json_whatever_they_are() -> None:
    found = as_json(made([part(answer(ratio=math.nan, error=math.inf, rows={8: [1 / 3]}))]))
    assert found["parts"][0]["figures"] == {"ratio": None, "error": None, "rows": {"8": [0.333333]}}


def test_it_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "jane.doe")
    monkeypatch.setattr(socket, "gethostname", lambda: "janes-mac.example.org")
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/jane"))
    monkeypatch.setenv("PG_MLX_KERNELS", "/Users/jane/x y")
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    errors = [
        FileNotFoundError(2, "No such file", "/Users/jane/My Models/secret/x.safetensors"),
        ValueError("jane.doe@janes-mac: /Volumes/Work/secret/model.json and C:\\work\\secret\\a.txt are bad"),
        subprocess.CalledProcessError(1, ["/opt/jane/secret/bin/python", "-m", "pg_mlx", "--model", "/data/secret/m"]),
        RuntimeError(f"{Path.cwd()}/secret said janes-mac.example.org, my-secret-model"),
    ]
    report = made([part(fails(error)) for error in errors], private=("my-secret-model",))
    text = json.dumps(as_json(report)) + page(report)
    for private in ("jane", "secret", "example.org", "/Users", "Volumes", "My Models", str(ROOT), str(Path.cwd())):
        assert private not in text, private
    assert report.settings == {"PG_MLX_KERNELS": "(set)", "MLX_ENABLE_TF32": "0"} | {
        name: value for name, value in report.settings.items() if name == "PG_MLX_OPS"
    }


def test_every_part_says_what_it_decides() -> None:
    names = [one.name for one in plan.PLAN]
    assert len(set(names)) == len(names) >= 20
    assert all(one.question.endswith("?") and one.decides.endswith(".") and one.seconds > 0 for one in plan.PLAN)
    assert 300 < sum(one.seconds for one in plan.PLAN) < 600, "a full report takes about ten minutes, a quick one one"


def test_time_left_shrinks() -> None:
    said: list[str] = []
    parts = [replace(part(answer()), seconds=200), replace(part(answer()), seconds=30)]
    run.make_report(Context(Shapes.named("small")), said.append, plan=parts)
    assert said == ["1 of 2, about 4 min left: Is it so?", "2 of 2, about 30 s left: Is it so?"]


# --- own kernels, whose results are made by the formula here ---------------------------------------------


def add_norm(x: mx.array, y: mx.array, weight: mx.array, eps: float, post: mx.array | None = None) -> Any:
    added = y if post is None else mx.fast.rms_norm(y, post, eps)
    return x + added, mx.fast.rms_norm(x + added, weight, eps)


def capped(query: mx.array, layer: mx.array, slots: range, scale: float, cap: float) -> mx.array:
    keys, values = layer[0, :, :, slots.start : slots.stop], layer[1, :, :, slots.start : slots.stop]
    return attention.capped(query, keys, values, None, scale, cap)


@pytest.fixture
def like_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "need_metal", lambda: None)
    monkeypatch.setattr(metal_kernels, "add_norm", add_norm)
    monkeypatch.setattr(metal_kernels, "capped", capped)
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.ops("gpu", reason="own kernels are a GPU's")
def test_own_kernels_are_compared(like_a_mac: None, family: str) -> None:
    found = steps.own_kernels(Context(Shapes.named("small"), PACE, dtype=mx.float32), family)
    options = {"add_norm"} if family == "gemma" else {"add_norm", "capped", "add_norm,capped"}
    assert set(found.figures["errors"]) == options and set(found.figures["rows_8"]) == options | {"usual"}
    assert found.healthy and max(found.figures["errors"].values()) < 1e-4


@pytest.mark.ops("gpu", reason="own kernels are a GPU's")
def test_a_wrong_kernel_is_never_advised(like_a_mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal_kernels, "add_norm", lambda *arguments: [-one for one in add_norm(*arguments)])
    ratio = timing.Timing(0.1, 0.5, 0.4, 0.6, 3)
    monkeypatch.setattr(steps, "compare", lambda ways, budget: dict.fromkeys(ways, ratio))
    found = steps.own_kernels(Context(Shapes.named("small"), PACE, dtype=mx.float32), "gemma2")
    assert not found.healthy and found.figures["advice"] == "capped"
    report = made([Part("own_kernels_gemma2", "?", ".", 1, lambda _: found)])
    assert "- PaliGemma 2: set `PG_MLX_KERNELS=capped`." in page(report)


def test_an_option_is_advised_below_the_threshold_only() -> None:
    assert steps.advice({"add_norm": 0.98}) is None and steps.advice({}) is None
    assert steps.advice({"add_norm": 0.96, "add_norm,capped": 0.9}) == "add_norm,capped"


# --- single parts ---------------------------------------------------------------------------------------


def test_ways_take_turns() -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> Callable[[], float]:
        return lambda: calls.append(name) or seconds  # type: ignore[func-returns-value]

    found = timing.compare({"usual": way("usual", 2.0), "other": way("other", 1.0)}, 0)
    assert calls == ["usual", "other"] * (timing.LEAST_ROUNDS + 1)
    assert (found["other"].ratio, found["other"].rounds, found["usual"].ratio) == (0.5, timing.LEAST_ROUNDS, 1)
    assert found["other"].faster and not found["usual"].faster


def test_rows_from_which_unpacking_pays() -> None:
    assert products.from_rows({64: 0.9, 256: 1.2, 512: 0.9, 1024: 0.8}) == 512
    assert products.from_rows({64: 0.9, 256: 1.2}) is None
    assert products.from_rows({64: 0.9, 256: 0.8}) == 64


def test_tf32_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = small.exact_float32(Context(Shapes.named("small"), PACE))
    assert exact.healthy and "all their bits" in exact.answer
    product = mx.array.__matmul__

    def in_fewer_bits(*pair: mx.array) -> mx.array:
        return product(*(one.astype(mx.float16).astype(mx.float32) for one in pair))

    monkeypatch.setattr(mx.array, "__matmul__", in_fewer_bits)
    found = small.exact_float32(Context(Shapes.named("small"), PACE))
    assert found.healthy and "the bits of TF32" in found.answer


def test_steps_are_timed_in_every_order_and_their_memory_noted() -> None:
    with device.use("gpu"):
        model = Shapes.named("small").model("gemma", mx.float32)
        peaks: list[int] = []
        for order in steps.ORDERS:
            assert steps.decode(model, [20] * 8, 3, order, peaks) > 0
    assert len(peaks) == 3 and all(peak > 0 for peak in peaks)


def test_folding_is_compared_on_real_weights() -> None:
    found = weights.folding(Context(Shapes.named("small"), PACE))
    assert set(found.figures) == {"4_bits", "6_bits", "8_bits"} and "the demo" in found.answer
    assert all(0 < error < 0.5 for one in found.figures.values() for error in one["folded"] + one["before"])


@pytest.mark.parametrize("kind", ["published", "quick"])
def test_published_shapes_are_those_of_checkpoints(kind: str) -> None:
    """Their configuration only: nothing of that size is made."""
    shapes = Shapes.named(kind)
    assert shapes.kind == kind and shapes._config("gemma2")["text_config"]["hidden_size"] == 2304
    layers = [text["num_hidden_layers"] for text in shapes.text.values()]
    assert layers == ([18, 26] if kind == "published" else [6, 6])


def test_a_process_of_its_own_measures_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    found = buffers.measure("small", "gemma", "float32")
    assert set(found) == {"first_token_s", "prefill_peak_bytes", "step_s", "step_peak_bytes"}
    assert all(value > 0 for value in found.values())
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    with pytest.raises(NotHereError, match="is set"):
        buffers.command_buffers(Context(Shapes.named("small"), PACE))


# --- files ----------------------------------------------------------------------------------------------


def test_both_files_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, target = made([part(answer())]), str(tmp_path / "mac.json")
    rename, renamed = Path.rename, list[Path]()

    def second_fails(self: Path, to: Path) -> Any:
        renamed.append(to)
        if len(renamed) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(Exception, match="could not be written: No space"):
            write.write(report, target)
    assert len(renamed) == 2 and list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in write.write(report, target)) == ["mac.json", "mac.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mac.json", "mac.md"]
    with pytest.raises(InputError, match="exists already"):
        write.write(report, target)


def test_context_holds_one_model_at_a_time() -> None:
    held = context.Context(Shapes.named("small"), PACE, dtype=mx.float32)
    first = held.model("gemma")
    assert held.model("gemma") is first
    held.model("gemma2")
    assert list(held._held) == ["gemma2"]
