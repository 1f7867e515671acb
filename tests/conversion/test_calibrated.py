"""Conversions by method: gptq calibrates and is judged, mse fits, and both write what rtn writes, in form and size."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import WEIGHTS, contents, names
from helpers.commands import KILLED_CONVERSION, ROOT, tiny_checkpoint
from helpers.conversions import fitted, sixteen_pictures
from helpers.models import one_line_error
from PIL import Image

import pg_mlx
from pg_mlx.checkpoint.open import open_local
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.conversion import answers, candidates
from pg_mlx.conversion.samples import MAX_PICTURES, PROMPTS, AskedPictures, Sample, calibration_samples
from pg_mlx.conversion.tried import FILE

MAX_TOKENS = 3
"""A random model seldom says <eos>."""

KILLS = int(os.environ.get("PG_MLX_KILLS", "3"))
"""How many points a calibration is killed at. 10 are thorough."""

RUNNER = f"""
from helpers.conversions import fitted
from pg_mlx.conversion import answers, candidates
answers.MAX_TOKENS, candidates.calibrated = {MAX_TOKENS}, fitted
{KILLED_CONVERSION}"""
"""Packing writes nothing to the disk, so it need not be GPTQ's here."""

convert = partial(pg_mlx.convert, q_bits=3, q_method="gptq", check=False)


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_TOKENS", MAX_TOKENS)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sixteen_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def rtn(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, tmp_path_factory.mktemp("models") / "rtn", q_method="rtn").target


@pytest.fixture(scope="module")
def calibrated(source: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> pg_mlx.conversion.Report:
    folder = tmp_path_factory.mktemp("models") / "gptq"
    return convert(source, folder, calibration=pictures, calibration_prompts=["ocr"])


def tensors(folder: Path) -> dict[str, mx.array]:
    opened = SafetensorsFolder(folder)
    return {name: opened.read(name) for name in opened.shapes}


# --- what is written ------------------------------------------------------------------------------------


def test_gptq_is_the_nearest_and_says_so(calibrated: pg_mlx.conversion.Report) -> None:
    choice = calibrated.choice
    assert choice is not None and choice.method == "gptq"
    assert [each.method for each in choice.judgements] == ["rtn", "mse", "gptq"]
    assert (choice.calibrated_on, choice.judged_on) == (12, 4)
    assert min(choice.judgements, key=lambda each: each.kl_mean).method == "gptq"
    card = (calibrated.target / "README.md").read_text()
    assert "chosen: gptq, the nearest to the source on 4 pictures that did not calibrate" in card


@pytest.mark.parametrize("method", ["mse", "gptq"])
def test_form_and_size_are_those_of_the_nearest_codes(
    method: str, source: Path, rtn: Path, calibrated: pg_mlx.conversion.Report, tmp_path: Path
) -> None:
    folder = calibrated.target if method == "gptq" else convert(source, tmp_path / "mse", q_method="mse").target
    beside = [FILE] if method == "gptq" else []
    assert names(folder) == sorted([*names(rtn), *beside])
    same = ("config.json", "tokenizer.json", "tokenizer.model", "model.safetensors.index.json")
    assert all((folder / name).read_bytes() == (rtn / name).read_bytes() for name in same)
    assert (folder / WEIGHTS).stat().st_size == (rtn / WEIGHTS).stat().st_size
    ours, theirs = tensors(folder), tensors(rtn)
    assert {n: (a.shape, a.dtype) for n, a in ours.items()} == {n: (a.shape, a.dtype) for n, a in theirs.items()}
    for name, array in theirs.items():  # norms, biases, SigLIP's patches and positions
        module, _, part = name.rpartition(".")
        if f"{module}.scales" not in theirs or part == "bias":
            assert mx.array_equal(ours[name], array), name
        elif part == "weight":
            assert not mx.array_equal(ours[name], array), name


def test_the_same_pictures_give_the_same_bytes(
    source: Path, pictures: Path, calibrated: pg_mlx.conversion.Report, tmp_path: Path
) -> None:
    again = convert(source, tmp_path / "gptq", calibration=pictures, calibration_prompts=["ocr"]).target
    assert contents(again) == contents(calibrated.target)


def test_padded_rows_of_the_tower_stay_zero(calibrated: pg_mlx.conversion.Report) -> None:
    """SigLIP's MLP is padded; what is padded must stay gelu(0)."""
    opened = open_local(calibrated.target)
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1"
    width = opened.config.vision.intermediate_size
    spec = next(spec for spec in opened.specs if name in spec.sources)
    arrays = {part: opened.source.read(f"{name}.{part}") for part in ("weight", "scales", "biases")}
    weight = pg_mlx.quantization.Quantization(3, 64).unpack(arrays)
    stored = 300
    assert width > stored and spec.rows == (width,)
    assert not weight[stored:].any().item() and weight[:stored].any().item()


def test_a_source_packed_alike_is_copied(rtn: Path, pictures: Path, tmp_path: Path) -> None:
    copied = convert(rtn, tmp_path / "out", calibration=pictures, calibration_prompts=["ocr"]).target
    assert (copied / WEIGHTS).read_bytes() == (rtn / WEIGHTS).read_bytes()


def test_parts_with_different_bits_and_a_packed_source(source: Path, pictures: Path, tmp_path: Path) -> None:
    """Query, key and value of 3, float and 8 bits; the source has 8 bits everywhere, so the last ones are copied."""
    eight = pg_mlx.convert(source, tmp_path / "eight", q_bits=8, check=False).target
    overrides = {"*.layers.0.self_attn.k_proj": "float", "*.layers.0.self_attn.v_proj": "8"}
    out = convert(
        eight, tmp_path / "out", q_overrides=overrides, calibration=pictures, calibration_prompts=["ocr"]
    ).target
    ours, theirs = tensors(out), tensors(eight)
    stem = "language_model.model.layers.0.self_attn"
    assert f"{stem}.k_proj.scales" not in ours
    assert mx.array_equal(ours[f"{stem}.v_proj.weight"], theirs[f"{stem}.v_proj.weight"])
    pg_mlx.load_model(out)


@pytest.mark.parametrize(("best", "found"), [("rtn", [1, 1, 1]), ("mse", [3, 1, 2])])
def test_what_is_worse_is_not_written(
    best: str,
    found: list[int],
    source: Path,
    pictures: Path,
    rtn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the judging says: of equally good ones the simpler is kept."""
    values = iter(found)
    monkeypatch.setattr(candidates, "calibrated", fitted)  # it will not be kept
    monkeypatch.setattr(candidates, "mean_and_error", lambda kl, lengths: (float(next(values)), 0.1))
    report = convert(source, tmp_path / "out", calibration=pictures, calibration_prompts=["ocr"])
    assert report.choice is not None and report.choice.method == best
    other = convert(source, tmp_path / "other", q_method=best).target
    assert contents(report.target)[WEIGHTS] == contents(other)[WEIGHTS]
    assert names(report.target) == sorted([*names(rtn), FILE])


def test_the_card_is_made_on_the_pictures_that_judge(
    source: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "calibrated", fitted)
    report = convert(source, tmp_path / "out", calibration=pictures, calibration_prompts=["ocr"], check=True)
    assert report.quality is not None and (report.quality.pictures, report.quality.samples) == (4, 4)


# --- which pictures -------------------------------------------------------------------------------------


def test_every_fourth_picture_judges(pictures: Path) -> None:
    calibrating, judging = calibration_samples(pictures)
    ours = [sample.image.stem for sample in calibrating]
    theirs = [sample.image.stem for sample in judging]
    assert sorted({*ours, *theirs}) == [f"{number:02}" for number in range(16)]
    assert sorted(set(theirs)) == ["03", "07", "11", "15"] and not {*ours} & {*theirs}
    assert [sample.prompt for sample in calibrating] == list(PROMPTS) * 3
    assert len(judging) == 16 and len(set(judging)) == 16


def test_many_pictures_are_bounded(tmp_path: Path) -> None:
    for number in range(300):
        Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(tmp_path / f"{number}.png")
    calibrating, judging = calibration_samples(tmp_path, ["ocr"])
    assert (len(calibrating), len(judging)) == (192, MAX_PICTURES)


def test_copies_of_a_picture_count_once(tmp_path: Path) -> None:
    """Else a picture that calibrated would judge, and the card would praise what it knows by heart."""
    for number in range(16):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
        shutil.copy(tmp_path / f"{number:02}.png", tmp_path / f"{number:02} copy.png")
    calibrating, judging = calibration_samples(tmp_path, ["ocr"])
    assert (len(calibrating), len(judging)) == (12, 4)
    asked = AskedPictures(tmp_path, [Sample(path, "ocr") for path in tmp_path.iterdir()])
    assert [len(some) for some in calibration_samples(asked)] == [12, 4]
    for name in ("15.png", "15 copy.png"):
        shutil.copy(tmp_path / "00.png", tmp_path / name)
    for folder in (tmp_path, asked):
        with one_line_error("holds 15 different pictures"):
            calibration_samples(folder)


# --- refused --------------------------------------------------------------------------------------------


def test_wrong_use_is_one_line(source: Path, pictures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:15]:
        shutil.copy(path, few)
    out = tmp_path / "out"
    with one_line_error("needs pictures to calibrate on (--calibration DIR); --q-method mse needs none"):
        convert(source, out)
    with one_line_error("few holds 15 different pictures; gptq needs 16 or more, --q-method mse needs none"):
        convert(source, out, calibration=few)
    with one_line_error("method gptq fits affine scales, but ", "is to be mxfp4"):
        convert(source, out, q_bits=None, q_mode="mxfp4", calibration=pictures)
    with one_line_error("no method 'awq'; there are rtn, mse, gptq"):
        convert(source, out, q_method="awq")
    with one_line_error("calibration prompts are for method gptq"):
        convert(source, out, q_method="mse", calibration_prompts=["ocr"])
    assert names(tmp_path) == ["few"]


def test_a_method_alone_packs(source: Path, tmp_path: Path) -> None:
    pg_mlx.convert(source, tmp_path / "out", q_method="mse", check=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["bits"] in (4, 6, 8)
    assert "method: mse" in (tmp_path / "out" / "README.md").read_text()


# --- killed ---------------------------------------------------------------------------------------------


def killed(last: int, source: Path, pictures: Path, target: Path) -> subprocess.CompletedProcess[str]:
    options = ["--hf-path", source, "--mlx-path", target, "--q-bits", 3, "--force", "--no-check"]
    options += ["--q-method", "gptq", "--calibration", pictures, "--calibration-prompt", "ocr"]
    command = [sys.executable, "-c", RUNNER, int(signal.SIGKILL), last, target.parent, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def events(source: Path, pictures: Path, rtn: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many tensors and changes a conversion that replaces a folder makes before the folder changes places."""
    target = Path(shutil.copytree(rtn, tmp_path_factory.mktemp("events") / "out"))
    done = killed(0, source, pictures, target)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout.splitlines()[-1])
    return [number for number, event in enumerate(listed, 1) if event == "os.rename"][-2]


@pytest.mark.parametrize("point", range(KILLS))
def test_a_killed_calibration_loses_nothing(
    point: int, events: int, source: Path, pictures: Path, rtn: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(rtn, tmp_path / "out"))
    last = 1 + point * (events - 1) // (KILLS - 1)
    assert killed(last, source, pictures, target).returncode == -signal.SIGKILL
    assert contents(target) == contents(rtn)
    pg_mlx.convert(source, target, q_bits=8, force=True, check=False)
    assert names(tmp_path) == ["out"]
