"""The stand-in for real weights: complete folders of the true shapes, float or packed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import CAT, run
from helpers.models import load_packed

from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.config import PaliGemmaConfig


def make(target: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.random_checkpoint", *flags, str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "flags", [[], ["--q-bits", "4"], ["--q-bits", "4", "--q-mode", "mxfp4", "--q-group-size", "32"]]
)
def test_a_folder_is_complete_and_answers(tmp_path: Path, flags: list[str]):
    made = make(tmp_path / "tiny", "--model", "tiny-56", *flags)
    assert made.returncode == 0, made.stderr
    answered = run("--model", str(tmp_path / "tiny"), "--image", str(CAT), "--prompt", "ocr", "--max-tokens", "3")
    assert answered.returncode == 0, answered.stderr


def test_everything_is_packed_and_the_vision_mlp_padded_for_it(tmp_path: Path):
    assert make(tmp_path / "tiny", "--model", "tiny-56", "--q-bits", "8").returncode == 0
    model = load_packed(tmp_path / "tiny")
    assert model.config.vision.intermediate_size == 384  # 300 does not divide into groups
    packed = [model.vision_tower.layers[0].mlp.fc2, model.language_model.embed_tokens, model.connector.linear]
    assert all(module.quantization is not None and module.quantization.bits == 8 for module in packed)


@pytest.mark.parametrize("flags", [["--model", "paligemma3-1b-224"], ["--model", "tiny-56", "--q-bits", "7"]])
def test_what_does_not_exist_is_one_line(tmp_path: Path, flags: list[str]):
    made = make(tmp_path / "out", *flags)
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_presets_have_the_published_shapes():
    from tools import random_checkpoint

    config = PaliGemmaConfig.from_dict(random_checkpoint.raw_config("paligemma2-3b-448"))
    shapes = dict(pair for spec in weight_specs(config) for pair in spec.expected())
    assert shapes["language_model.model.embed_tokens.weight"] == (257216, 2304)
    assert shapes["language_model.model.layers.25.self_attn.q_proj.weight"] == (2048, 2304)
    assert shapes["vision_tower.vision_model.embeddings.position_embedding.weight"] == (1024, 1152)
