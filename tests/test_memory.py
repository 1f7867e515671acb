"""Sizes as people write them; a model that needs too much is refused before it is read; and what it needs is true."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_fixtures import CAT, ROOT, run
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import one_line_error

from pg_mlx import load_model
from pg_mlx.checkpoint.load import DTYPES
from pg_mlx.checkpoint.safetensors import SafetensorsFolder, read_json
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.demo import CHECKPOINT, PICTURES
from pg_mlx.memory import needed_bytes, parse_size


@pytest.mark.parametrize(
    "text, size",
    [("8GB", 8 * 10**9), ("6.5GiB", 13 << 29), ("500MB", 5 * 10**8), ("1 kib", 1024), ("12", 12), (77, 77)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@given(st.one_of(st.text(), st.sampled_from(["8G", "-1GB", "GB", "0GB", "1e9", "8 GB GB", "nan", "8,5GB", "0.1"])))
def test_anything_else_is_one_line(text: str) -> None:
    if text.strip().isdecimal() and text.isascii() and int(text):
        return
    with one_line_error("8GB"):
        parse_size(text)


def needed(dtype: str) -> int:
    source = SafetensorsFolder(CHECKPOINT)
    config = PaliGemmaConfig.from_dict(read_json(CHECKPOINT / "config.json"))
    return needed_bytes(config, source.shapes, DTYPES[dtype])


def test_too_large_a_model_is_refused_before_a_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(CHECKPOINT, folder)
    monkeypatch.setattr(SafetensorsFolder, "read", lambda self, name: pytest.fail(f"{name} was read"))
    with one_line_error("needs about", "0.01 GB"):
        load_model(folder, max_memory="10MB")
    for size, words in {"10MB": "GB allowed", "much": "is not a size"}.items():
        done = run("--image", str(CAT), "--max-memory", size)
        assert (done.returncode, done.stdout) == (2, "") and words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_stays_within_what_was_told(dtype: str) -> None:
    """Within: the peak is at most the estimate, and at least a quarter of it, for short answers."""
    script = (
        "import sys, pg_mlx\n"
        "model, processor = pg_mlx.load(sys.argv[1], dtype=sys.argv[3])\n"
        "print(pg_mlx.generate(model, processor, 'caption en', sys.argv[2], max_tokens=8).stats.peak_memory_bytes)\n"
    )
    command = [sys.executable, "-c", script, str(CHECKPOINT), str(PICTURES[0]), dtype]
    peak = int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout)
    assert needed(dtype) / 4 <= peak <= needed(dtype)
