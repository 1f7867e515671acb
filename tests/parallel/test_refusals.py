"""Ranks that do not fit together load nothing: one line of rank 0 and its exit code 2, and nothing of the others."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from helpers.checkpoints import GOLDEN
from helpers.models import random_tensors, wide_config_json, write_folder
from helpers.paths import ROOT

from benchmarks.parallel_ranks import Ranks, command, run, run_alone
from pg_mlx.demo import CHECKPOINT
from pg_mlx.quantization import Quantization

pytestmark = pytest.mark.xdist_group("ranks")

ASK = ("generate", "--image", str(ROOT / "tests" / "cat.jpg"), "--prompt", "caption en")
TENSOR = (*ASK, "--parallel", "tensor", "--tokenizer", str(CHECKPOINT))
OTHER_VERSION = """
import sys
import pg_mlx.parallel.agreement
from pg_mlx.cli import command
pg_mlx.parallel.agreement.__version__ = "99"
command(sys.argv[1:])
"""


def refused(*commands: list[str], size: int = 2, folders: tuple[Path, ...] = (ROOT,)) -> str:
    """The one line with which rank 0 refuses a command, or commands of the ranks."""
    with Ranks(commands, size, folders) as ranks:
        first, *others = ranks.finish()
    assert first.returncode == 2 and first.stdout == "", first
    assert [(one.returncode, one.stdout, one.stderr) for one in others] == [(0, "", "")] * (size - 1), others
    return only_line(first.stderr)


def only_line(stderr: str) -> str:
    """A line beside which nothing is said, but which model there is."""
    lines = [line for line in stderr.splitlines() if not line.startswith("no --model")]
    assert len(lines) == 1, lines
    return lines[0]


def folders_with_model(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of two ranks, each with a copy of the demo called model."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        shutil.copytree(CHECKPOINT, folder / "model")
    return folders


def test_other_files_on_a_rank(tmp_path: Path) -> None:
    folders = folders_with_model(tmp_path)
    ask = command(*ASK, "--parallel", "pipeline", "--model", "./model")
    for path in folders[1].glob("model/tokenizer*"):
        path.unlink()
    first, second = run(2, *ask[3:], folders=folders)  # rank 1 reads no text
    assert first.returncode == second.returncode == 0 and first.stdout, first.stderr
    weights = folders[1] / "model" / "model-00001-of-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "has other weights in ./model than rank 0" in refused(ask, folders=folders)
    shutil.rmtree(folders[1] / "model")
    line = refused(ask, folders=folders)
    assert "rank 1 on" in line and "model" in line, line


def test_another_version_on_a_rank() -> None:
    ask = (*ASK, "--parallel", "pipeline")
    assert "runs pg_mlx 99 with MLX" in refused(command(*ask), [sys.executable, "-c", OTHER_VERSION, *ask])


def test_a_process_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher, and as `mlx.launch -n 1` starts it."""
    done = run_alone(*ASK, "--parallel", "pipeline")
    assert done.returncode == 2 and done.stdout == "" and "this one is alone" in only_line(done.stderr)
    monkeypatch.setitem(os.environ, "MLX_RANK", "0")
    done = run_alone(*ASK, "--parallel", "pipeline")
    assert done.returncode == 2 and "no other process can be reached" in only_line(done.stderr), done


def test_more_ranks_than_heads_of_keys() -> None:
    """Those of pg2 are two: three ranks cannot have them."""
    line = refused(command(*TENSOR, "--model", str(GOLDEN / "pg2_new")), size=3)
    assert "2 heads of keys and values cannot be divided among 3 ranks" in line


def test_a_share_inside_a_packed_group(tmp_path: Path) -> None:
    raw = wide_config_json("gemma2")
    raw["text_config"] |= dict(num_attention_heads=2, num_key_value_heads=1)
    tensors = random_tensors(raw)
    name = "language_model.model.layers.0.self_attn.o_proj"
    packed = Quantization(8, 64).pack(tensors.pop(f"{name}.weight"))
    folder = write_folder(tmp_path, raw, tensors | {f"{name}.{part}": array for part, array in packed.items()})
    line = refused(command(*TENSOR, "--model", str(folder)))
    assert "64 attention outputs cannot be divided among 2 ranks in whole groups of 64" in line


def test_an_adapter_cannot_be_divided() -> None:
    model = ("--model", str(GOLDEN / "pg1_classic"), "--adapter-path", str(GOLDEN / "pg1_lora_classic"))
    assert "cannot divide an adapter" in refused(command(*TENSOR, *model))


@pytest.mark.parametrize(("arguments", "words"), [
    (("--parallel", "both"), "invalid choice"),
    (("--parallel=tensor", "--shares", "2"), "not shares"),
    (("--shares", "2:1"), "needs --parallel"),
    (("--parallel", "tensor", "--silence", "0"), "not from 1"),
])  # fmt: skip
def test_wrong_options(arguments: tuple[str, ...], words: str) -> None:
    """Rank 0 alone says what all ranks see."""
    assert words in refused(command(*ASK, *arguments))


def test_supervise() -> None:
    assert "--supervise cannot" in refused(command("worker", "--supervise", "--parallel", "pipeline"))


def test_shares_for_other_ranks() -> None:
    assert "is for 3 ranks, but there are 2" in refused(command(*ASK, "--parallel", "pipeline", "--shares", "1:1:1"))


def test_a_dry_run_refuses() -> None:
    assert "6 layers cannot be divided among 7 ranks" in dry_run("--shares", "1:1:1:1:1:1:1")
    assert "rank 0: this model needs" in dry_run("--max-memory", "7MB")


def dry_run(*arguments: str) -> str:
    """The error of a dry run."""
    done = run_alone("generate", "--parallel", "pipeline", "--dry-run", *arguments)
    assert done.returncode == 2 and done.stdout == "", done
    return only_line(done.stderr)


def test_followers_of_other_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes that share no model each say what is wrong."""
    monkeypatch.setitem(os.environ, "MLX_RANK", "1")
    assert "error" in only_line(run_alone(*ASK, "--nonsense").stderr)
