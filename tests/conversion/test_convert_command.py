"""convert.py as a person runs it: in a process of its own, with right and wrong options."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import GOLDEN, PARTS_OF_A_FOLDER, contents, convert_py, names, packings
from helpers.commands import CAT, ROOT, run
from helpers.convert_command import assert_refused, call, convert

from pg_mlx.files.safetensors import read_header
from pg_mlx.quantization import Quantization

ARCHIVE = GOLDEN / "pg1_big_vision.npz"


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """-q and nothing else."""
    folder = tmp_path_factory.mktemp("models") / "packed"
    done = convert(source, folder, "-q")
    assert done.returncode == 0, done.stderr
    return folder


def test_q_alone_is_the_balanced_recipe_and_says_what_came_of_it(source: Path, packed: Path, tmp_path: Path):
    done = convert(source, tmp_path / "out", "--q-recipe", "balanced")
    assert done.returncode == 0 and done.stderr == ""
    first = done.stdout.splitlines()[0]
    assert (
        first.startswith(f"{tmp_path / 'out'}: ")
        and " MB (before: " in first
        and "bits a weight" in first
        and "peak" in first
    )
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == names(packed) == PARTS_OF_A_FOLDER
    ours, theirs = contents(packed), contents(tmp_path / "out")
    different = [name for name in ours if name not in ("README.md", "pg_mlx.json") and ours[name] != theirs[name]]
    assert different == []


def test_a_converted_folder_answers_in_generate(packed: Path):
    done = run("--model", str(packed), "--image", str(CAT), "--prompt", "caption en", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr


def test_bits_group_mode_and_overrides(source: Path, tmp_path: Path):
    flags = ("--q-bits", "3", "--q-group-size", "32", "--q-override", "*.k_proj=float", "--q-override", "*_proj=mxfp8")
    again = ("--q-override", "*.k_proj=8")  # the first match wins
    assert convert(source, tmp_path / "out", *flags, *again).returncode == 0
    for module, packing in packings(tmp_path / "out").items():
        expected = Quantization(8, 32, "mxfp8") if module.endswith("_proj") else Quantization(3, 32)
        assert packing == (None if module.endswith("k_proj") else expected), module


def test_modules_left_float_are_told_on_stderr(tmp_path: Path):
    done = convert(GOLDEN / "pg1_new", tmp_path / "out", "--q-bits", "4", "--no-tokenizer")
    assert done.returncode == 0
    assert done.stderr.startswith("left float, as no whole groups fit: ") and len(done.stderr.splitlines()) == 1


def test_the_default_target_is_mlx_model_here(source: Path, tmp_path: Path):
    done = convert_py("--hf-path", source, "--no-check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["mlx_model"]


def test_an_archive_with_and_without_a_tokenizer(source: Path, tmp_path: Path):
    assert_refused(convert(ARCHIVE, tmp_path / "out"), 2, "no tokenizer", "--tokenizer", "--no-tokenizer")
    assert_refused(convert(ARCHIVE, tmp_path / "out", "--tokenizer", source), 2, "only 288 rows")
    assert names(tmp_path) == []
    done = convert(ARCHIVE, tmp_path / "out", "--no-tokenizer", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    dtypes = {dtype for dtype, _ in read_header(tmp_path / "out" / "model-00001-of-00001.safetensors").values()}
    assert dtypes == {"F16"}


def test_a_dry_run_reads_no_weights_and_writes_nothing(source: Path, tmp_path: Path):
    hollow = Path(shutil.copytree(source, tmp_path / "hollow"))
    (weights,) = hollow.glob("*.safetensors")
    size, head = weights.stat().st_size, 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    os.truncate(weights, head)
    os.truncate(weights, size)  # sparse: all data are zeros now
    outputs = [convert(folder, tmp_path / "out", "-q", "--dry-run") for folder in (source, hollow)]
    assert outputs[0].returncode == 0 and outputs[0].stderr == ""
    assert outputs[0].stdout == outputs[1].stdout
    assert names(tmp_path) == ["hollow"]
    table = {line.split("  ")[0]: line.split() for line in outputs[0].stdout.splitlines()}
    assert set(table) >= {"SigLIP", "projector", "embedding/head", "decoder", "all"}
    assert table["embedding/head"][1:4] == ["237,568", "16.00", "6.50"]  # 1856 rows of 128, 6 bits and scales
    assert "peak memory" in outputs[0].stdout and "for each token" in outputs[0].stdout


def test_a_dry_run_may_name_an_existing_target(source: Path, packed: Path):
    before = contents(packed)
    assert convert(source, packed, "--dry-run").returncode == 0
    assert contents(packed) == before


def test_an_existing_target_is_kept_unless_forced(source: Path, tmp_path: Path):
    old = tmp_path / "out"
    old.mkdir()
    (old / "precious.txt").write_text("mine")
    assert_refused(convert(source, old), 2, "exists already", "--force")
    assert contents(old) == {"precious.txt": b"mine"} and names(tmp_path) == ["out"]
    assert_refused(convert(source, old, "--force"), 2, "precious.txt, which no conversion wrote")
    assert contents(old) == {"precious.txt": b"mine"} and names(tmp_path) == ["out"]
    (old / "precious.txt").unlink()
    assert convert(source, old, "--force").returncode == 0
    assert names(old) == PARTS_OF_A_FOLDER and names(tmp_path) == ["out"]


def test_a_folder_is_not_replaced_by_its_own_conversion(source: Path, packed: Path, tmp_path: Path):
    for original, words in ((source, "which no conversion wrote"), (packed, "which is to be converted")):
        folder = Path(shutil.copytree(original, tmp_path / original.name))
        before = contents(folder)
        assert_refused(convert(folder, folder, "-d", "--force"), 2, words)
        assert contents(folder) == before


def test_force_does_not_replace_a_file(source: Path, tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    assert_refused(convert(source, tmp_path / "out", "--force"), 2, "is a file")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_link_stays_a_link_to_what_is_replaced(source: Path, tmp_path: Path):
    (tmp_path / "disk" / "old").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "old")
    assert convert(source, tmp_path / "link", "--force").returncode == 0
    assert (
        (tmp_path / "link").is_symlink() and names(tmp_path / "disk") == ["old"] and names(tmp_path) == ["disk", "link"]
    )
    assert names(tmp_path / "disk" / "old") == PARTS_OF_A_FOLDER


def test_validate_says_what_is_wrong_and_exits_with_2(packed: Path, tmp_path: Path):
    done = convert_py("--validate", packed)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{packed} is complete\n", "")
    broken = Path(shutil.copytree(packed, tmp_path / "broken"))
    (broken / "preprocessor_config.json").unlink()
    os.truncate(next(broken.glob("*.safetensors")), 5000)
    done = convert_py("--validate", broken)
    assert_refused(done, 2, "2 problems")
    assert len(done.stdout.splitlines()) == 2 and "truncated" in done.stdout
    assert_refused(convert_py("--validate", GOLDEN / "pg2_new"), 2, "problems")
    assert_refused(convert_py("--validate", tmp_path / "nowhere"), 2, "no such folder", "nowhere")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--q-recipe", "huge"], "no recipe 'huge'"),
        (["--q-bits", "7"], "7 bits"),
        (["--q-bits", "0"], "0 bits"),
        (["--q-bits", "four"], "--q-bits"),
        (["--q-bits", "4", "--q-group-size", "48"], "groups of 48"),
        (["--q-mode", "mxfp5"], "mxfp5"),
        (["--q-mode", "mxfp4", "--q-bits", "8"], "mxfp4 always has 4 bits"),
        (["--q-bits", "4", "--q-recipe", "tiny"], "exclude each other"),
        (["-q", "-d"], "exclude each other"),
        (["-d", "--q-override", "*=8"], "exclude each other"),
        (["-q", "--q-override", "8"], "GLOB=PACKING"),
        (["-q", "--q-override", "=8"], "GLOB=PACKING"),
        (["-q", "--q-override", "*.o_proj="], "GLOB=PACKING"),
        (["-q", "--q-override", "*.o_proj=7"], "7 bits"),
        (["-q", "--q-override", "*.o_proj=four"], "not a packing"),
        (["-q", "--q-override", "*=float"], "quantizes nothing"),
        (["-q", "--q-override", "vison_tower.*=8"], "no module is called"),
        (["--dtype", "int8"], "int8"),
        (["--quantise"], "--quantise"),
        (["--q-bit", "4"], "--q-bit"),
        (["--tokenizer", "./nowhere"], "nowhere"),
        (["--adapter-path", "./nowhere"], "nowhere"),
        (["--mlx-path", "./nowhere/out"], f"no such folder: {ROOT / 'nowhere'}"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_and_exit_2(
    flags: list[str], words: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    done = call(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out", "--no-check", *flags)
    assert_refused(done, 2, words)
    assert done.stdout == "" and names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["./nowhere", "nowhere", "nowhere.npz", "~no-such-user/model", "~no-such-user/model.npz"]
)
def test_a_missing_source_is_one_line_and_exit_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert_refused(call(capsys, "--hf-path", name, "--mlx-path", tmp_path / "out"), 2, name.removeprefix("./"))
    assert names(tmp_path) == []


def test_the_script_passes_on_code_and_line(source: Path, tmp_path: Path):
    assert_refused(convert_py(), 2, "--hf-path")
    assert_refused(convert(source, tmp_path / "out", "--q-bits", "7"), 2, "7 bits")
    assert_refused(convert("nowhere", tmp_path / "out", cwd=tmp_path), 2, "nowhere")
    assert convert_py("--help").stdout.startswith("usage: convert.py")


def test_debug_shows_the_traceback(tmp_path: Path):
    done = convert("./nowhere", tmp_path / "out", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr
