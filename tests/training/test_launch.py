"""`mlx.launch -n 2` learns what one process learns, and only the first one speaks and writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.paths import ROOT
from helpers.training_run import SMALL, color_data, command, train

LAUNCH = Path(sys.executable).with_name("mlx.launch")


@pytest.mark.skipif(not LAUNCH.exists(), reason="mlx.launch is not here")
def test_two_processes_are_one(tmp_path: Path) -> None:
    model, data = tiny_checkpoint(tmp_path / "tiny"), color_data(tmp_path / "colors")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(model, data, one) == 0
    words = command("--model", str(model), "--data", str(data), "--adapter-path", str(two), *SMALL)
    done = subprocess.run(
        [str(LAUNCH), "-n", "2", "--", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 6: done") == 1
    assert done.stdout.count("best at") == 1
    for place in ("", "best"):
        first, second = (mx.load(str(out / place / "adapter_model.safetensors")) for out in (one, two))
        assert max(mx.abs(first[name] - second[name]).max().item() for name in first) < 1e-5
