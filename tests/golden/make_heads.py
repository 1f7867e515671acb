"""Makes golden/heads: adapters of embedding and head as PEFT saves them, and its own logits with each.

Needs torch, transformers and PEFT (made with torch 2.13, transformers 5.24, PEFT 0.21.2), and pg_mlx for the names of
tensors; run from the repository root:

    PYTHONPATH=tests:. python tests/golden/make_heads.py

Each case is a folder <family>_<case> with what PEFT saves, in bfloat16, which holds the values exactly. In
logits.safetensors, <family>_<case> is float32 [7, rows of the vocabulary]: the logits of heads.PROMPT (all of it
prefix) and heads.ANSWER behind the picture heads.heads_pixels(). `untied` is a model without adapter whose head is
`untied.head`, bfloat16 [96, 64].
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from helpers.heads import (
    ADDED,
    ANSWER,
    GOLDEN_HEADS,
    IMAGE,
    MORE_ROWS,
    PROMPT,
    ROWS,
    heads_config,
    heads_pixels,
    heads_tensors,
)
from helpers.models import FAMILIES, channels_second, write_folder
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PaliGemmaForConditionalGeneration

TARGETS = ["q_proj", "down_proj"]


def lora(**options: object) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": TARGETS, **options})


CASES: dict[str, Callable[[], LoraConfig | TrainableTokensConfig]] = {
    "both": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "embedding": lambda: lora(modules_to_save=["embed_tokens"]),
    "head": lambda: lora(modules_to_save=["lm_head"]),
    "tied": lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "low_rank": lambda: lora(target_modules=[*TARGETS, "embed_tokens"]),
    "low_rank_head": lambda: lora(target_modules=[*TARGETS, "lm_head"]),
    "low_rank_tied": lambda: lora(target_modules=[*TARGETS, "embed_tokens"], ensure_weight_tying=True),
    "tokens": lambda: lora(trainable_token_indices=ADDED),
    "tokens_by_name": lambda: lora(trainable_token_indices={"model.language_model.embed_tokens": ADDED}),
    "tokens_alone": lambda: TrainableTokensConfig(token_indices=ADDED[:2], target_modules=["embed_tokens"]),
    "resized": lora,
    "resized_both": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "resized_low_rank": lambda: lora(target_modules=[*TARGETS, "embed_tokens"]),
    "resized_low_rank_head": lambda: lora(target_modules=[*TARGETS, "lm_head"]),
    "resized_tokens": lambda: lora(trainable_token_indices=[*ADDED, *range(ROWS, MORE_ROWS)]),
}

SAVE_TABLES = ("low_rank_tied", "resized", "resized_low_rank", "resized_low_rank_head")
"""Cases in which PEFT also saves the tables that were not trained, as it does by itself where it finds the base."""


def base(family: str, folder: Path) -> PaliGemmaForConditionalGeneration:
    """The small model in transformers, read from a folder that is written here."""
    raw = heads_config(family) | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": True}
    raw["text_config"] |= {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "pad_token_id": 0}
    raw["vision_config"] |= {"vision_use_head": False, "projection_dim": 64, "patch_size": 14}
    raw |= {"hidden_size": 64, "projection_dim": 64, "architectures": ["PaliGemmaForConditionalGeneration"]}
    write_folder(folder, raw, channels_second(heads_tensors(family)))
    model, info = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """float32 [7, rows] at the text's positions."""
    ids = torch.tensor([[IMAGE] * 4 + PROMPT + ANSWER])
    with torch.no_grad():
        found = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.tensor([[0] * (4 + len(PROMPT)) + [1] * len(ANSWER)]),
            pixel_values=torch.from_numpy(heads_pixels().transpose(0, 3, 1, 2).copy()),
        ).logits
    return found[0, 4:].float().contiguous()


def train(model: torch.nn.Module) -> None:
    """Random numbers in all that would be trained, rounded to bfloat16."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                moved = parameter + 0.1 * torch.randn(parameter.shape, generator=random)
                parameter.copy_(moved.to(torch.bfloat16).float())


def make(family: str, case: str, folder: Path) -> torch.Tensor:
    model = base(family, folder)
    if case.startswith("resized"):
        torch.manual_seed(2)
        model.resize_token_embeddings(MORE_ROWS, mean_resizing=False)
        with torch.no_grad():
            table = model.get_input_embeddings().weight
            table.copy_(table.to(torch.bfloat16).float())
    model = get_peft_model(model, CASES[case]())
    train(model)
    target = GOLDEN_HEADS / f"{family}_{case}"
    model.save_pretrained(target, save_embedding_layers=case in SAVE_TABLES)
    stored = load_file(target / "adapter_model.safetensors")
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in stored.items()}
    assert all(torch.equal(narrow[name].float(), stored[name]) for name in stored)
    save_file(narrow, target / "adapter_model.safetensors")
    (target / "README.md").unlink()
    config = json.loads((target / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"nobody/{family}"
    (target / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return logits(model)


def untied(family: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a model with a head of its own, and that head."""
    model = base(family, folder)
    head = (torch.randn((ROWS, 64), generator=torch.Generator().manual_seed(3)) / 8).to(torch.bfloat16)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head.float())
    return logits(model), head


def main() -> None:
    warnings.filterwarnings("ignore")
    shutil.rmtree(GOLDEN_HEADS, ignore_errors=True)
    GOLDEN_HEADS.mkdir()
    dump: dict[str, torch.Tensor] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            dump[f"{family}_untied"], dump["untied.head"] = untied(family, Path(folder))
            dump[f"{family}_base"] = logits(base(family, Path(folder)))
            for case in CASES:
                dump[f"{family}_{case}"] = make(family, case, Path(folder))
                print(family, case, np.abs(dump[f"{family}_{case}"][:, :ROWS] - dump[f"{family}_base"]).max().item())
    save_file(dump, GOLDEN_HEADS / "logits.safetensors")


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
