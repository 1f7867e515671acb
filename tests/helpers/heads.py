"""Small models for adapters of embedding and head: random weights that 8 bits hold exactly, made anew each time.

tests/golden/make_heads.py gives them to transformers and PEFT. Since packing loses nothing, one golden answer serves
the float checkpoint and the packed one.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from helpers.models import Json, Tensors, config_json
from helpers.paths import GOLDEN
from pg_mlx import PaliGemma
from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.config import PaliGemmaConfig

ROWS, GROUP, IMAGE = 96, 32, 88
"""Rows of the vocabulary, columns of a group that is packed, the id of <image>."""
PROMPT, ANSWER = [2, 17, 33, 80], [40, 41, 7]
"""Tokens of the golden logits. ADDED names some of them, so that changed rows of the table are read."""
ADDED = [33, 40, 90]
"""Tokens that the golden adapters train."""
MORE_ROWS = 104
"""Rows of the resized vocabulary."""
GOLDEN_HEADS = GOLDEN / "heads"

_TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16, vocab_size=ROWS)
_VISION = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, image_size=28)


def heads_config(family: str) -> Json:
    """A config.json. Gemma 2 without its sliding window, which golden prompts of 11 tokens would meet."""
    scalar = dict(query_pre_attn_scalar=16, sliding_window=4096) if family == "gemma2" else {}
    return config_json(family, {**_TEXT, **scalar}, _VISION, image_token_index=IMAGE, vocab_size=ROWS)


def heads_tensors(family: str) -> Tensors:
    """Canonical float32 tensors. Every group of a matrix spans all 256 steps, so that 8 bits hold it exactly."""
    random, tensors = np.random.default_rng(5), {}
    for spec in weight_specs(PaliGemmaConfig.from_dict(heads_config(family))):
        for name, shape in spec.expected():
            if len(shape) == 2:
                steps = random.integers(-128, 128, shape)
                steps[:, ::GROUP], steps[:, 1::GROUP] = -128, 127
                tensors[name] = mx.array((steps * 2.0**-10).astype(np.float32))
            else:
                tensors[name] = mx.array(random.normal(0, 0.1, shape).astype(np.float32))
    return tensors


def heads_pixels() -> np.ndarray:
    """The golden picture, float32 [1, 28, 28, 3]."""
    return np.random.default_rng(6).uniform(-1, 1, (1, 28, 28, 3)).astype(np.float32)


def is_packable(module: str, weight: mx.array) -> bool:
    """For helpers.models.quantized: every matrix."""
    return weight.shape[-1] % GROUP == 0


def expected(case: str) -> mx.array:
    """The golden logits of "<family>_<case>", float32 [7, rows]."""
    return mx.load(str(GOLDEN_HEADS / "logits.safetensors"))[case]


def golden_logits(model: PaliGemma) -> mx.array:
    """A model's own, to compare with them."""
    return model.logits(model.encode_image(mx.array(heads_pixels())), mx.array([PROMPT]), mx.array([ANSWER]))[0]
