"""What is measured: checkpoints, prompts, and who takes part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from pg_mlx.checkpoint.layouts import PATCH_KERNEL
from pg_mlx.conversion import convert
from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError
from pg_mlx.quantization.modes import Quantization
from tools import random_checkpoint

ROOT = Path(__file__).parents[2]


SCENE = CHECKPOINT.parent / "scene.png"


ON_MLX = ("pg_mlx", "mlx-vlm")


FLOAT = ("pg_mlx", "mlx-vlm", "transformers float32", "transformers bfloat16")


PACKED = ("pg_mlx", "pg_mlx --memory", "mlx-vlm")


PROMPT = "detect red circle"


LONG_PROMPT = "detect cat ; dog ; red car"


STEPS = 8


@dataclass(frozen=True)
class Setting:
    """A checkpoint and who runs it. model: a name for random_checkpoint.py, or None for the bundled one."""

    title: str
    model: str | None = None
    q_bits: int | None = None
    contestants: tuple[str, ...] = FLOAT

    def folder(self, place: Path, layers: int) -> Path:
        """The checkpoint: made in `place` unless it is the bundled one as it is. Float ones are as the hub has them."""
        if self.model is None and self.q_bits:
            return CHECKPOINT
        target = place / "model"
        if self.model is None:
            convert(CHECKPOINT, target, dequantize=True, check=False)
            as_on_the_hub(target)
            return target
        quantization = Quantization(self.q_bits, 64) if self.q_bits else None
        raw = random_checkpoint.raw_config(self.model, layers, padded=self.q_bits is not None)
        random_checkpoint.write(target, raw, quantization, random_checkpoint.PUBLISHED_TOKENIZER)
        if quantization is None:
            as_on_the_hub(target)
        return target


def check_tokenizer(names: Collection[str], folder: Path = random_checkpoint.PUBLISHED_TOKENIZER) -> None:
    """Raises InputError if one of these settings needs the published vocabulary, and there is none. The bundled small
    one would give prompts of another length, so the figures could not be compared with earlier ones."""
    without = [name for name in names if SETTINGS[name].model is None]
    there = any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    if not there and len(without) < len(names):
        raise InputError(
            f"these settings need PaliGemma's vocabulary, which is not in {folder}: name a folder with its "
            f"tokenizer.model in PG_MLX_TOKENIZER, or measure --settings {' '.join(without or BUNDLED)} only"
        )


BUNDLED = ("demo-8bit", "demo")
"""Settings of the bundled checkpoint, which brings its tokenizer."""

SETTINGS = {
    "demo-8bit": Setting("demo, 8 bits", q_bits=8, contestants=ON_MLX),
    "demo": Setting("demo, float"),
    "3b-224": Setting("3B, 224 px, float", "paligemma-3b-224"),
    "3b-224-4bit": Setting("3B, 224 px, 4 bits", "paligemma-3b-224", 4, PACKED),
    "2-3b-448": Setting("2-3B, 448 px, float", "paligemma2-3b-448"),
    "2-3b-448-4bit": Setting("2-3B, 448 px, 4 bits", "paligemma2-3b-448", 4, PACKED[:2]),
}
"""Those of published models have true widths and a head of 257216 rows, but few layers (--layers). mlx-vlm is left out
of the last one: a run takes it more than 15 minutes on two cores."""


def as_on_the_hub(folder: Path) -> None:
    """Turn the patch kernel to PyTorch's order, which all of them read, in a folder of ours."""
    for path in folder.glob("*.safetensors"):
        tensors = mx.load(str(path))
        assert isinstance(tensors, dict)
        if PATCH_KERNEL in tensors:
            tensors[PATCH_KERNEL] = mx.contiguous(tensors[PATCH_KERNEL].transpose(0, 3, 1, 2))
        mx.eval(tensors)
        changed = path.with_suffix(".new.safetensors")
        mx.save_safetensors(str(changed), tensors, {"format": "pt"})
        changed.replace(path)
