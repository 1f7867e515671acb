"""Conversions to a size: what is measured is right, the size is met, and the table gives the same bytes again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import WEIGHTS, contents, names
from helpers.commands import KILLED_CONVERSION, ROOT
from helpers.conversions import fitted, sixteen_pictures
from helpers.convert_command import assert_refused, call
from helpers.memory import growth
from PIL import Image

import pg_mlx
from pg_mlx.checkpoint.open import open_local
from pg_mlx.conversion import answers, by_budget, candidates, sensitivity
from pg_mlx.conversion.bit_table import KINDS, grouped
from pg_mlx.conversion.layerwise import AnsweredPrompt, Streamed
from pg_mlx.conversion.metrics import predict
from pg_mlx.conversion.peak import measuring_peak
from pg_mlx.conversion.plan import make_plan
from pg_mlx.conversion.quality import read
from pg_mlx.conversion.report import Report
from pg_mlx.quantization import uniform

MEASURING, MAX_TOKENS = 2, 2

RUNNER = f"""
from pg_mlx.conversion import answers, by_budget
answers.MAX_TOKENS, by_budget.MAX_MEASURING = {MAX_TOKENS}, {MEASURING}
{KILLED_CONVERSION}"""


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_TOKENS", MAX_TOKENS)
        patch.setattr(by_budget, "MAX_MEASURING", MEASURING)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sixteen_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def four(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """4 bits everywhere."""
    return pg_mlx.convert(tiny, tmp_path_factory.mktemp("models") / "four", q_bits=4, check=False)


@pytest.fixture(scope="module")
def by_size(tiny: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory, four: Report) -> Report:
    """As large as 4 bits everywhere."""
    out = tmp_path_factory.mktemp("models") / "sized"
    return to_size(tiny, out, pictures, target_size=four.bytes_after, check=True)


def to_size(source: Path, target: Path, pictures: Path, **options: object) -> Report:
    convert = partial(pg_mlx.convert, source, target, calibration=pictures, calibration_prompts=["ocr"])
    return convert(**{"check": False, **options})  # type: ignore[arg-type]


# --- what is measured -----------------------------------------------------------------------------------


def test_sensitivities_are_those_of_checkpoints_with_one_group_packed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is compared with a folder in which only that group was packed, read by itself."""
    checkpoint = open_local(tiny)
    pixels = [mx.random.uniform(-1, 1, (1, 56, 56, 3), key=mx.random.key(seed)) for seed in range(2)]
    texts = [AnsweredPrompt(number, [2, 5 + number, 9], [7, 8, 1][number:]) for number in range(2)]
    plan = make_plan(checkpoint, uniform(3, 64, None))
    groups = grouped(module.name for module in plan.modules if module.target)
    specs = {name: spec for spec in checkpoint.specs for name in spec.sources}
    some = [key for key in groups if key[1] == 1 or key[0] in ("SigLIP fc2", "projector", "embedding/head")]
    wanted = [specs[groups[key][0]] for key in some]
    seen: list[tuple[int, int]] = []
    found = sensitivity.sensitivities(
        checkpoint, wanted, mx.float32, pixels, texts, 1792, lambda *done: seen.append(done)
    )
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]

    monkeypatch.setattr(sensitivity, "HELD_BYTES", 3 * sensitivity.held_bytes(checkpoint.config, 2, [5, 4]))
    in_waves = sensitivity.sensitivities(checkpoint, wanted, mx.float32, pixels, texts, 1792)
    assert in_waves == pytest.approx(found, rel=1e-4)

    source = read("source", Streamed(checkpoint, mx.float32), pixels, texts)
    for key in [("SigLIP q/k/v", 1), ("SigLIP fc2", 0), ("embedding/head", 0), ("decoder gate/up", 1)]:
        pattern = KINDS[key[0]].replace("layers.*", f"layers.{key[1]}")
        out = tmp_path / key[0].replace("/", "")
        pg_mlx.convert(tiny, out, q_overrides={pattern: "3", "*": "float"}, dtype="float32", check=False)
        packed = read("result", Streamed(open_local(out), mx.float32), pixels, texts)
        kl = float(predict(source, packed, 1792).kl.mean())
        assert kl > 1e-7 and found[some.index(key)] == pytest.approx(kl, rel=1e-3)


# --- what is said before --------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_known(tiny: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--hf-path", tiny, "--target-size", "900kB", "--dry-run", "--calibration", pictures]
    done = call(capsys, *options, "--q-method", "gptq")
    assert done.returncode == 0
    assert done.stdout.startswith("--target-size 900kB: ") and "for 26 groups of matrices" in done.stdout
    assert "4 bits everywhere if it does not fit" in done.stdout and "measured on 12 of the pictures" in done.stdout
    assert "peak memory of the conversion: about " in done.stdout


def test_wrong_use_is_one_line_and_exit_code_2(
    tiny: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--hf-path", tiny, "--mlx-path", tmp_path / "out"]
    assert_refused(call(capsys, *options, "--target-bits", "4"), 2, "--target-bits needs pictures", "--calibration DIR")
    assert_refused(
        call(capsys, *options, "--target-bits", "4", "-d", "--calibration", pictures), 2, "exclude each other"
    )
    for size in ("100kB", "10MB"):
        done = call(capsys, *options, "--target-size", size, "--calibration", pictures)
        assert_refused(done, 2, f"--target-size {size} is ", "2 bits everywhere take 581 kB, 8 bits 1.5 MB")
    assert names(tmp_path) == []


# --- what is written ------------------------------------------------------------------------------------


def test_the_size_is_met_and_said(by_size: Report, four: Report) -> None:
    size = (by_size.target / WEIGHTS).stat().st_size
    assert 0.99 * four.bytes_after <= size <= four.bytes_after
    assert by_size.bits and by_size.bits.reached == size
    widths = {bits for own in by_size.bits.table.bits.values() for bits in own}
    assert len(widths) > 1, "a model whose matrices all cost the same would prove nothing"
    card = (by_size.target / "README.md").read_text()
    assert f"bits chosen for --target-size {four.bytes_after}" in card and "decoder gate/up" in card
    stored = json.loads((by_size.target / "bits.json").read_text())
    assert stored["reached_bytes"] == size and stored["measured"]["pictures"] == MEASURING
    assert set(stored["measured"]["kl"]) == set(stored["bits"]) == set(KINDS) - {"head of its own"}


def test_what_was_tried_is_in_the_card(by_size: Report, four: Report) -> None:
    tried = json.loads((by_size.target / "quality.json").read_text())["tried"]
    measured = [one for one in tried if one["error"] is not None]
    assert [one["name"] for one in measured] == ["4 bits everywhere, rtn", "chosen bits, rtn"]
    assert [one["bytes"] for one in measured] == [four.bytes_after, by_size.bytes_after]
    predicted = [(one["bytes"], one["kl"]) for one in tried if one["error"] is None]
    assert predicted == sorted(predicted) and predicted[0][1] > predicted[-1][1] > 0
    assert "(kl_by_bytes.png)" in (by_size.target / "README.md").read_text()
    with Image.open(by_size.target / "kl_by_bytes.png") as image:
        assert image.width == 960


def test_its_table_gives_the_same_bytes_without_pictures(by_size: Report, tiny: Path, tmp_path: Path) -> None:
    again = pg_mlx.convert(tiny, tmp_path / "again", q_recipe=str(by_size.target / "bits.json"), check=False).target
    for name in (WEIGHTS, "config.json", "model.safetensors.index.json"):
        assert (again / name).read_bytes() == (by_size.target / name).read_bytes()


def test_twice_is_the_same(by_size: Report, tiny: Path, pictures: Path, four: Report, tmp_path: Path) -> None:
    again = to_size(tiny, tmp_path / "again", pictures, target_size=four.bytes_after)
    first, second = contents(by_size.target), contents(again.target)
    assert all(first[name] == second[name] for name in (WEIGHTS, "config.json", "bits.json"))


def test_gptq_packs_the_chosen_bits(
    tiny: Path, pictures: Path, four: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes are those of "mse" here, and the sensitivities are given, to be quick."""

    monkeypatch.setattr(candidates, "calibrated", fitted)
    monkeypatch.setattr(by_budget, "sensitivities", lambda c, groups, *_: [1 / (1 + i) for i in range(len(groups))])
    report = to_size(tiny, tmp_path / "gptq", pictures, target_size=four.bytes_after, q_method="gptq")
    assert report.choice and report.bits and report.bits.recipe.method == "gptq"
    assert [one.name for one in report.tried if one.error is not None] == [
        "4 bits everywhere, rtn",
        *(f"chosen bits, {method}" for method in ("rtn", "mse", "gptq")),
    ]
    bits = str(report.target / "bits.json")
    again = pg_mlx.convert(tiny, tmp_path / "again", q_recipe=bits, q_method=report.choice.method, check=False).target
    assert (again / WEIGHTS).read_bytes() == (report.target / WEIGHTS).read_bytes()


def test_bytes_a_token_and_bits_a_weight_are_met(tiny: Path, pictures: Path, tmp_path: Path) -> None:
    token = to_size(tiny, tmp_path / "token", pictures, target_per_token=500_000)
    assert token.bits and token.bits.table.bits["SigLIP fc1"] == [8, 8]
    checkpoint = open_local(token.target)
    read_by_tokens = sum(
        checkpoint.source.read(name).nbytes for name in checkpoint.source.shapes if name.startswith("language_model.")
    )
    assert token.bits.reached == read_by_tokens and 495_000 <= read_by_tokens <= 500_000
    bits = to_size(tiny, tmp_path / "bits", pictures, target_bits=5.0)
    assert 4.95 <= bits.bits_per_weight <= 5.0


def test_measuring_stays_within_its_count(tiny: Path) -> None:
    checkpoint = open_local(tiny)
    plan = make_plan(checkpoint, uniform(8, 64, None))
    pixels = [mx.random.uniform(-1, 1, (1, 56, 56, 3), key=mx.random.key(seed)) for seed in range(4)]
    texts = [AnsweredPrompt(number, [2, 5, 9], [7, 1]) for number in range(4)]
    mx.eval(pixels)
    specs = [spec for spec in checkpoint.specs if spec.kind in ("linear", "embedding")]
    with growth() as grown:
        sensitivity.sensitivities(checkpoint, specs, mx.bfloat16, pixels, texts, 1792)
    counted = measuring_peak(plan.modules, checkpoint.config, 4, 2)
    print(f"{grown.peak / 1e6:.1f} MB held, {counted / 1e6:.1f} MB counted")
    assert 0.05 * counted < grown.peak <= counted


def test_killed_while_measuring_nothing_is_lost(four: Report, tiny: Path, pictures: Path, tmp_path: Path) -> None:
    """It is stopped as the first tensor of the result is written, when all has been measured."""
    target = tmp_path / "out"
    pg_mlx.convert(tiny, target, q_bits=4, check=False)
    before = contents(target)
    tensors = len(open_local(four.target).source.shapes)
    code = RUNNER.replace(
        "    events.append(event)", "    events.append(event)\n    if event != 'tensor': return"
    ).replace("len(events) == last", "events.count('tensor') == last")
    options = ["--hf-path", tiny, "--mlx-path", target, "--target-bits", "5", "--force", "--no-check"]
    options += ["--calibration", pictures, "--calibration-prompt", "ocr"]
    command = [sys.executable, "-c", code, int(signal.SIGKILL), tensors + 1, tmp_path, *options]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert contents(target) == before
    pg_mlx.convert(tiny, target, q_bits=8, force=True, check=False)
    assert names(tmp_path) == ["out"]
