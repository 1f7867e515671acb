"""What macOS says when it ends a GPU's work is answered with what helps; float32 keeps its bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pg_mlx.checkpoint.load import compute_dtype
from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import Engine
from pg_mlx.ops import blas, watchdog

HELD_UP = RuntimeError(
    "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackError"
    "ImpactingInteractivity)"
)
IGNORED = RuntimeError(
    "[METAL] Command buffer execution failed: Ignored (kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"
)


def test_the_messages_of_macos_are_known() -> None:
    for error in (HELD_UP, IGNORED):
        line = watchdog.explained(error)
        assert line.isprintable()
        assert "--layers-at-once 1" in line and "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in line and str(error) in line
    assert [watchdog.is_final(error) for error in (HELD_UP, IGNORED)] == [False, True]
    other = RuntimeError("[METAL] Insufficient\nMemory")
    assert watchdog.advice(other) is None
    assert watchdog.explained(other) == "RuntimeError: [METAL] Insufficient Memory"


def test_a_command_says_what_helps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(self: Engine, *arguments: object) -> None:
        raise HELD_UP

    monkeypatch.setattr(Engine, "_prefill", ended)
    picture = CHECKPOINT.parent / "scene.png"
    assert main(["generate", "--model", str(CHECKPOINT), "--image", str(picture), "--prompt", "caption en"]) == 1
    error = capsys.readouterr().err
    assert "held up the screen" in error and "--layers-at-once 1" in error


@pytest.mark.parametrize("dtype, expected", [("float32", "0"), ("bfloat16", None)])
def test_float32_keeps_its_bits(dtype: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(blas.FULL_FLOAT32, raising=False)
    compute_dtype(dtype)
    assert os.environ.get(blas.FULL_FLOAT32) == expected
    monkeypatch.setenv(blas.FULL_FLOAT32, "1")
    compute_dtype("float32")
    assert os.environ[blas.FULL_FLOAT32] == "1", "whoever set it means it"


def test_a_command_asks_for_it_before_mlx_is_imported() -> None:
    program = """
import argparse, sys
from pg_mlx.cli import options
from pg_mlx.ops import blas
blas.full_float32 = lambda: print("mlx.core" in sys.modules)
parser = argparse.ArgumentParser()
options.add_model_options(parser)
options.load_options(parser.parse_args(["--dtype", "float32"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
