"""Makes golden/bf16_reference.safetensors: what transformers answers in float32 and in bfloat16.

Needs torch and transformers (made with torch 2.13, transformers 5.23), not MLX; run from the repository root:

    python tests/golden/make_bf16_reference.py

For each family, `pg1` and `pg2`, over PROMPTS random prompts, each about one of the golden pictures:

    <family>.prompts               int32 [N, LONGEST]  <bos> ... newline, right-padded with 0
    <family>.lengths               int32 [N]           how much of a prompt is real
    <family>.images                int32 [N]           index into IMAGES
    <family>.tokens_f32            int32 [N, STEPS]    greedy answer in float32
    <family>.tokens_bf16           int32 [N, STEPS]    greedy answer in bfloat16
    <family>.teacher_argmax_bf16   int32 [N, STEPS]    bfloat16 choice after prompt + tokens_f32[:, :step]

The end token is an ordinary one here, so that every answer has STEPS tokens. Gemma 2 runs without its sliding
window, as the original code does and as pg_mlx does unless asked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.paths import GOLDEN
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, GenerationConfig, PaliGemmaForConditionalGeneration

IMAGES = ("img0_rgb_56x56", "img1_rgb_90w61h", "img2_rgba_40w77h", "img3_gray_33x33")
IMAGE_ID, IMAGE_TOKENS = 280, 16
BOS, NEWLINE = 2, 108
PROMPTS, LONGEST, STEPS, SEED = 192, 12, 16, 20240707


def load(folder: Path, dtype: torch.dtype) -> PaliGemmaForConditionalGeneration:
    """The golden model with full attention in every layer."""
    config = AutoConfig.from_pretrained(folder)
    config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    model = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager"
    ).eval()
    model.generation_config = GenerationConfig(max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model


def inputs(prompt: np.ndarray, pixels: np.ndarray, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """prompt int [P], pixels float [3, H, W] -> what the model reads, all of it bidirectional prefix (type 0)."""
    ids = torch.tensor([[IMAGE_ID] * IMAGE_TOKENS + prompt.tolist()])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": torch.from_numpy(pixels)[None].to(dtype),
    }


def greedy(model: PaliGemmaForConditionalGeneration, given: dict[str, torch.Tensor]) -> list[int]:
    """STEPS tokens by transformers' own loop."""
    return model.generate(**given)[0, given["input_ids"].shape[1] :].tolist()


def teacher_forced(
    model: PaliGemmaForConditionalGeneration, given: dict[str, torch.Tensor], tokens: list[int]
) -> list[int]:
    """The model's choice at every step, if the answer so far had been `tokens`."""
    result = model(**given, use_cache=True)
    choices = []
    for token in tokens:
        choices.append(int(result.logits[0, -1].argmax()))
        result = model(input_ids=torch.tensor([[token]]), past_key_values=result.past_key_values, use_cache=True)
    return choices


@torch.inference_mode()
def reference(family: str) -> dict[str, np.ndarray]:
    """All arrays of one family."""
    random = np.random.default_rng(SEED)
    pixels = load_file(GOLDEN / "pixels.safetensors")
    float32 = load(GOLDEN / f"{family}_classic", torch.float32)
    bfloat16 = load(GOLDEN / f"{family}_classic", torch.bfloat16)
    lengths = random.integers(3, LONGEST + 1, PROMPTS)
    images = random.integers(0, len(IMAGES), PROMPTS)
    prompts = np.zeros((PROMPTS, LONGEST), np.int32)
    tokens_f32, tokens_bf16, teacher = [], [], []
    for row, length, image in zip(prompts, lengths, images, strict=True):
        row[:length] = [BOS, *random.integers(3, IMAGE_ID, length - 2), NEWLINE]
        picture = pixels[f"{IMAGES[image]}.white_background"]
        given = inputs(row[:length], picture, torch.float32)
        tokens_f32.append(greedy(float32, given))
        if teacher_forced(float32, given, tokens_f32[-1]) != tokens_f32[-1]:
            raise RuntimeError("transformers' loop and this file's disagree in float32")
        given = inputs(row[:length], picture, torch.bfloat16)
        tokens_bf16.append(greedy(bfloat16, given))
        teacher.append(teacher_forced(bfloat16, given, tokens_f32[-1]))
    arrays = {
        "prompts": prompts,
        "lengths": lengths,
        "images": images,
        "tokens_f32": tokens_f32,
        "tokens_bf16": tokens_bf16,
        "teacher_argmax_bf16": teacher,
    }
    return {f"{family}.{name}": np.asarray(array, np.int32) for name, array in arrays.items()}


if __name__ == "__main__":
    arrays = reference("pg1") | reference("pg2")
    save_file(arrays, GOLDEN / "bf16_reference.safetensors")
    for family in ("pg1", "pg2"):
        truth = arrays[f"{family}.tokens_f32"]
        for name in ("tokens_bf16", "teacher_argmax_bf16"):
            print(f"{family} {name}: {np.mean(arrays[f'{family}.{name}'] == truth):.4f} agree with float32")
