"""The model that streams its weights computes what the loaded one does, in a fraction of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.adapters import write_adapter
from helpers.memory import growth
from helpers.models import (
    FAMILIES,
    VOCAB,
    Json,
    Memory,
    config_json,
    distance,
    quantized,
    random_tensors,
    text_logits,
    wide_config_json,
    write_folder,
)
from helpers.paths import GOLDEN

from pg_mlx import load_model
from pg_mlx.checkpoint.adapters.merge import AdaptedSource, Adapter
from pg_mlx.checkpoint.big_vision import BigVisionArchive
from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.open import Checkpoint, open_local
from pg_mlx.checkpoint.tensors import Source
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.conversion.layerwise import AnsweredPrompt, Streamed

TEXTS = [
    AnsweredPrompt(0, [2, 9, 5], [7, 8, 1, 30]),
    AnsweredPrompt(1, [2, 4], [3]),
    AnsweredPrompt(0, [2, 50, 60, 70, 3], [90, 91]),
]


def assert_streams(raw: Json, source: Source, dtype: str = "float32", tolerance: float = 1e-5) -> None:
    """Streamed features and logits are those of the loaded model."""
    checkpoint = Checkpoint.of(source, raw)
    model, streamed = build(checkpoint, dtype), Streamed(checkpoint, dtype)
    side, rows = streamed.config.vision.image_size, streamed.config.text.vocab_size
    pixels = [mx.random.uniform(-1, 1, (1, side, side, 3), key=mx.random.key(seed)) for seed in range(2)]
    features = streamed.features(pixels)
    for one, seen in zip(pixels, features, strict=True):
        assert seen.dtype == model.dtype
        assert distance(seen, model.encode_image(one)) <= tolerance
    for text, hidden in zip(TEXTS, streamed.hidden(features, TEXTS), strict=True):
        prefix, answer = mx.array([text.prefix]), mx.array([text.answer])
        expected = model.logits(model.encode_image(pixels[text.picture]), prefix, answer)
        first = len(text.prefix) - 1
        expected = expected[0, first : first + len(text.answer)]
        logits = [streamed.head(start, min(start + 40, rows))(hidden) for start in range(0, rows, 40)]
        assert logits[0].dtype == mx.float32
        assert mx.abs(expected).max().item() > 0.5
        assert distance(mx.concatenate(logits, axis=-1), expected) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_equals_loaded(family: str) -> None:
    raw = config_json(family)
    assert_streams(raw, Memory(random_tensors(raw)))


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_equals_loaded_if_quantized(family: str) -> None:
    """All that can be packed, and fused projections whose parts are packed differently."""
    raw = wide_config_json(family)
    raw, tensors, _ = quantized(raw, random_tensors(raw), lambda name, w: "v_proj" not in name and w.shape[1] % 64 == 0)
    assert_streams(raw, Memory(tensors))


def test_streamed_equals_loaded_in_bfloat16() -> None:
    """From float32 tensors, so that everything is rounded at load; nothing else differs."""
    raw = config_json("gemma2")
    assert_streams(raw, Memory(random_tensors(raw)), "bfloat16", tolerance=0)


def test_streams_adapters_beside_packed_modules(tmp_path: Path) -> None:
    """Of the embedding too, whose rows are read in slices."""
    raw = wide_config_json("gemma2")
    raw, tensors, _ = quantized(raw, random_tensors(raw), lambda _, w: w.shape[1] % 64 == 0)
    thin = {
        "embed_tokens.lora_embedding_A": (4, VOCAB),
        "embed_tokens.lora_embedding_B": (128, 4),
        "layers.0.self_attn.q_proj.lora_A.weight": (4, 128),
        "layers.0.self_attn.q_proj.lora_B.weight": (128, 4),
    }
    arrays = {f"base_model.model.language_model.model.{name}": 0.2 * mx.random.normal(thin[name]) for name in thin}
    folder = write_adapter(tmp_path / "adapter", arrays, peft_type="LORA", r=4, lora_alpha=8)

    adapted = AdaptedSource(Memory(tensors), [Adapter(folder)], weight_specs(PaliGemmaConfig.from_dict(raw)))
    plain = text_logits(build(Checkpoint.of(Memory(tensors), raw), "float32"))
    assert distance(text_logits(build(Checkpoint.of(adapted, raw), "float32")), plain) > 0.1
    assert_streams(raw, adapted)


def test_streams_the_original_archive_too() -> None:
    archive = GOLDEN / "pg2_big_vision.npz"
    assert_streams(BigVisionArchive(archive).config(), BigVisionArchive(archive))


def test_streaming_holds_the_embedding_and_one_block(tmp_path: Path) -> None:
    text = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=24, num_attention_heads=8, head_dim=64)
    raw = config_json("gemma2", {**text, "vocab_size": 8192}, dict(hidden_size=512, intermediate_size=1024))
    raw["vision_config"]["num_hidden_layers"] = 12
    tensors = {name: tensor.astype(mx.bfloat16) for name, tensor in random_tensors(raw).items()}
    folder = write_folder(tmp_path / "model", raw, tensors)
    size = (folder / "model.safetensors").stat().st_size
    del tensors
    assert size > 200e6

    def peak(work: Any) -> int:
        with growth() as grown:
            work()
        return grown.peak

    def stream() -> None:
        streamed = Streamed(open_local(folder), "bfloat16")
        features = streamed.features([mx.zeros((1, 28, 28, 3))])
        hidden = streamed.hidden(features, [AnsweredPrompt(0, [2, 3], [4, 5])])
        mx.eval(streamed.head(0, 4096)(hidden[0]))

    streaming, loading = peak(stream), peak(lambda: load_model(folder, dtype="bfloat16"))
    print(f"{size / 1e6:.0f} MB of weights: streamed in {streaming / 1e6:.1f} MB, loaded in {loading / 1e6:.1f} MB")
    assert loading > size
    assert streaming < 0.15 * size
