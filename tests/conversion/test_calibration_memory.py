"""What a calibration holds in memory: counted from shapes, and measured."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.models import config_json, random_tensors, write_folder

from pg_mlx.checkpoint.open import open_local
from pg_mlx.conversion import calibrate
from pg_mlx.conversion.layerwise import AnsweredPrompt
from pg_mlx.conversion.peak import calibration_peak
from pg_mlx.conversion.plan import make_plan
from pg_mlx.quantization import gptq, uniform


def test_a_calibration_stays_within_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block and its column blocks are held, not the model: twelve layers, and an MLP three times as wide as a block
    of columns may be."""
    monkeypatch.setattr(gptq, "MAX_COLUMNS", 512)
    text = dict(hidden_size=256, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=4, head_dim=64)
    raw = config_json("gemma2", {**text, "vocab_size": 2048}, dict(hidden_size=128, intermediate_size=256))
    folder = write_folder(tmp_path / "model", raw, random_tensors(raw))
    size = (folder / "model.safetensors").stat().st_size
    checkpoint = open_local(folder)
    plan = make_plan(checkpoint, uniform(4, 64, None))
    pictures = [mx.random.uniform(-1, 1, (1, 28, 28, 3), key=mx.random.key(seed)) for seed in range(4)]
    texts = [AnsweredPrompt(number, [2, 5 + number, 9], [7, 8, 1]) for number in range(4)]
    mx.eval(pictures)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    packed = [name for name, _ in calibrate.calibrated(checkpoint, plan.modules, pictures, texts, mx.bfloat16)]
    peak = mx.get_peak_memory() - before
    counted = calibration_peak(plan.modules, checkpoint.config, len(pictures), len(texts), 4)
    print(f"{size / 1e6:.1f} MB of weights: {peak / 1e6:.1f} MB held, {counted / 1e6:.1f} MB counted")
    assert packed == [module.name for module in plan.modules if calibrate.is_calibrated(module)]
    assert 0.3 * counted < peak <= counted and peak < 0.5 * size
