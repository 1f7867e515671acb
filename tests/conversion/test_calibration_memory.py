"""What a calibration holds in memory: counted from shapes, and measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.conversions import fitted, sixteen_pictures
from helpers.memory import growth
from helpers.models import config_json, random_tensors, write_folder

from pg_mlx.checkpoint.open import open_local
from pg_mlx.conversion import answers, calibrate, candidates
from pg_mlx.conversion.block_inputs import get, inputs_of
from pg_mlx.conversion.layerwise import AnsweredPrompt, Streamed, mask_of
from pg_mlx.conversion.peak import calibration_peak, pixel_bytes
from pg_mlx.conversion.pipeline import Conversion
from pg_mlx.conversion.plan import make_plan
from pg_mlx.conversion.target import packing_samples
from pg_mlx.quantization import gptq, uniform

PICTURES = 4


@pytest.fixture(autouse=True)
def narrow_column_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's MLP is three times as wide as a block of columns may be."""
    monkeypatch.setattr(gptq, "MAX_COLUMNS", 256)


def model(folder: Path, layers: int, vocabulary: int) -> Path:
    text = dict(hidden_size=128, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=2, head_dim=64)
    raw = config_json("gemma2", {**text, "vocab_size": vocabulary}, dict(hidden_size=64, intermediate_size=128))
    return write_folder(folder, raw, random_tensors(raw))


def pixels() -> list[mx.array]:
    pictures = [mx.random.uniform(-1, 1, (1, 28, 28, 3), key=mx.random.key(seed)) for seed in range(PICTURES)]
    mx.eval(pictures)
    return pictures


def held_and_counted(folder: Path) -> tuple[int, int]:
    """The peak of calibrating a model on four texts about four pictures, and the count of it."""
    checkpoint = open_local(folder)
    plan = make_plan(checkpoint, uniform(8, 64, None))
    pictures = pixels()
    texts = [AnsweredPrompt(number, [2, *range(5 + number, 80), 9], [*range(6, 20), 1]) for number in range(PICTURES)]
    hidden = mx.random.normal((PICTURES * 15, 128), key=mx.random.key(9))
    mx.eval(hidden)
    given = checkpoint, plan.modules, pictures, texts, hidden, mx.bfloat16
    with growth() as grown:
        packed = [name for name, _ in calibrate.calibrated(*given)]
    counted = calibration_peak(plan.modules, checkpoint.config, PICTURES, len(texts), 4)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{size / 1e6:.1f} MB of weights: {grown.peak / 1e6:.1f} MB held, {counted / 1e6:.1f} MB counted")
    assert packed == list(calibrate.calibrated_modules(plan.modules))
    return grown.peak, counted


def test_a_calibration_stays_within_its_count(tmp_path: Path) -> None:
    """The embedding, one block and its column blocks are held, whatever the depth; and the count is no wild guess."""
    peak, counted = held_and_counted(model(tmp_path / "model", layers=1, vocabulary=2048))
    deeper, same = held_and_counted(model(tmp_path / "deeper", layers=3, vocabulary=2048))
    wide = model(tmp_path / "wider", layers=1, vocabulary=8192)
    wider, more = max(held_and_counted(wide) for _ in range(2))  # MLX's thread frees early or late: 30 to 32 MB
    layer = (
        (tmp_path / "deeper/model.safetensors").stat().st_size - (tmp_path / "model/model.safetensors").stat().st_size
    ) / 2
    assert same == counted and abs(deeper - peak) < 0.25 * layer  # MLX's threads free some small arrays sooner or later
    assert peak < wider and counted < more
    for held, limit in ((peak, counted), (deeper, same), (wider, more)):
        assert held <= limit < 1.5 * held


@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"])
def test_nothing_is_computed_beyond_a_matrix(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inputs are wanted. The CPU would compute what follows as well, which no one reads."""
    checkpoint = open_local(model(tmp_path / "model", layers=1, vocabulary=256))
    streamed = Streamed(checkpoint, mx.float32)
    _, block = next(streamed.blocks("language_model"))
    order = ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]
    called = []

    class Noted:
        def __init__(self, matrix: Any, path: str):
            self.matrix, self.path, self.num_outputs = matrix, path, matrix.num_outputs

        def __call__(self, x: mx.array) -> mx.array:
            called.append(self.path)
            return self.matrix(x)

    matrices = {path: Noted(get(block, path), path) for path in order}
    x = mx.random.normal((2, 9, 128))
    inputs = inputs_of(block, name, matrices, x, mask_of(AnsweredPrompt(0, [2], [1]), 9))
    assert inputs.shape == (18, get(block, name).num_columns)
    assert called == order[: order.index(name)]


# --- around the calibration -----------------------------------------------------------------------------


def test_a_conversion_calibrates_with_nothing_else_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge has read the source's embedding before; and no block is in memory while the embedding is packed."""
    source = tiny_checkpoint(tmp_path / "tiny")
    pictures = sixteen_pictures(tmp_path)
    events: list[str] = []
    active: list[int] = []

    def watched(*given: Any) -> Iterator[tuple[str, calibrate.Arrays]]:
        active.append(mx.get_active_memory())
        for name, arrays in fitted(*given):
            events.append(f"packed {name}")
            yield name, arrays

    monkeypatch.setattr(candidates, "calibrated", watched)
    monkeypatch.setattr(answers, "MAX_TOKENS", 2)
    job = Conversion(source, uniform(3, 64, None).by("gptq"))
    table = next(module for module in job.plan.modules if module.kind == "embedding")
    with growth() as grown:
        report = job.run(
            tmp_path / "out",
            check=False,
            calibration=pictures,
            calibration_prompts=["ocr"],
            progress=lambda what, done, total: events.append(what),
        )
    samples = packing_samples(job.recipe, pictures, ["ocr"])
    assert samples
    beside = active[0] - grown.before - pixel_bytes(job.checkpoint.config, 16)
    assert beside < table.bytes_before(job.checkpoint.dtype.size)
    first = next(event for event in events if event.startswith("packed language_model"))
    assert events.index(f"gptq: {table.name}") < events.index(first)
    peak = report.peak_memory_bytes - grown.before
    print(f"{grown.before / 1e6:.0f} MB before, {peak / 1e6:.0f} MB more at the peak")
    assert peak <= job.expected_peak(samples)
