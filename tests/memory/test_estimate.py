"""What a command expects of one answer and what a server reserves for its passes are one knowledge."""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.memory import growth
from helpers.models import load_packed
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.config import PaliGemmaConfig
from pg_mlx.demo import CHECKPOINT
from pg_mlx.memory.estimate import ANSWER_TOKENS, PROMPT_TOKENS, pass_bytes, scratch_bytes
from pg_mlx.memory.residency import model_scratch_bytes
from pg_mlx.ops import device
from pg_mlx.quantization import Quantization
from tools.random_checkpoint import raw_config

MODELS = ("tiny-56", "paligemma-3b-224", "paligemma2-3b-448", "paligemma2-10b-896")
PACKINGS = st.sampled_from([None, Quantization(4, 64), Quantization(6, 64)])


def config_of(model: str) -> PaliGemmaConfig:
    return PaliGemmaConfig.from_dict(raw_config(model, vocab_size=257216))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from([mx.float32, mx.bfloat16]),
    st.booleans(),
    st.integers(1, 8),
    st.integers(0, 9000),
    PACKINGS,
    PACKINGS,
)
def test_a_server_reserves_at_least_what_one_answer_takes(
    model: str,
    dtype: mx.Dtype,
    gpu: bool,
    pictures: int,
    more_tokens: int,
    tower: Quantization | None,
    decoder: Quantization | None,
) -> None:
    config = config_of(model)
    tokens = config.vision.num_patches + PROMPT_TOKENS
    cache = config.text.cache_bytes(dtype.size) * (tokens + ANSWER_TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "gpu_ops", lambda: gpu)
        one = pass_bytes(config, dtype, tower, decoder)
        same = scratch_bytes(config, dtype, 1, tokens, 1, tower, decoder)
        assert same <= one <= same + cache
        served = scratch_bytes(config, dtype, pictures, tokens + more_tokens, 4, tower, decoder)
        assert served >= same
        if gpu and more_tokens:
            assert served + cache > one


def test_attention_scores_are_counted_where_they_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 8192 tokens 8 heads have scores of 1.07 GB in 16 bits, of which a GPU holds two copies. The CPU's are computed
    in blocks."""
    config = config_of("paligemma-3b-224")
    scores = 2 * 8 * 8192**2 * 2
    monkeypatch.setattr(device, "gpu_ops", lambda: True)
    on_gpu = scratch_bytes(config, mx.bfloat16, 32, 8192, 8, None, None)
    assert scores < on_gpu < 1.5 * scores
    monkeypatch.setattr(device, "gpu_ops", lambda: False)
    assert scratch_bytes(config, mx.float32, 1, 8192, 8, None, None) < scores


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_passes_of_a_server_stay_within_what_is_reserved(dtype: str) -> None:
    model = load_packed(CHECKPOINT, dtype=dtype)
    side, patches, rows, prompt = model.config.vision.image_size, model.config.vision.num_patches, 6, 150
    pixels = mx.zeros((rows, side, side, 3))
    ids = mx.full((rows, prompt), 5)
    mx.eval(model.prefill(model.encode_image(pixels), ids, capacity=patches + prompt)[0])  # tables
    with growth() as grown:
        features = model.encode_image(pixels)
        mx.eval(features)
        logits, cache = model.prefill(features, ids, capacity=patches + prompt)
        mx.eval(logits, cache.layers)
    taken = grown.peak - features.nbytes - sum(layer.nbytes for layer in cache.layers)
    reserved = model_scratch_bytes(model, rows, rows * (patches + prompt), rows)
    print(f"{dtype}: {taken / 1e6:.1f} MB taken, {reserved / 1e6:.1f} MB reserved")
    assert taken <= reserved
