"""Pictures to pixels and prompts to ids: everything between a person and the model's arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .images import load_image, to_pixels
from .tokenizer import TextStream, Tokenizer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Processor", "TextStream", "Tokenizer", "load_image", "to_pixels"]

_RESAMPLES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json has them
_MAX_CONFIG_BYTES = 1 << 20
_PLACEHOLDERS = re.compile(r"\A(?:<image>|<bos>)+| ?<image>(?=\s*\Z)|<image> ?")


@dataclass(frozen=True)
class Processor:
    """The settings of a checkpoint: its vocabulary, its picture size in pixels, and how pictures are resized."""

    tokenizer: Tokenizer
    image_size: int
    resample: str = "bicubic"
    mask_decoder: Callable[[Any], Any] | None = None
    """<seg> codes int [B, 16] -> float32 [B, 64, 64], or None where no decoder can be had: see MaskDecoder."""

    @classmethod
    def from_folder(cls, folder: Path, image_size: int) -> Processor:
        """Raises InputError if the tokenizer is missing or preprocessor_config.json asks for what no PaliGemma does."""
        return cls(Tokenizer.from_folder(folder), image_size, read_resample(folder / "preprocessor_config.json"))

    def pixels(self, image: Any) -> np.ndarray:
        """float32 [image_size, image_size, 3] in -1..1, from anything `images.load_image` takes."""
        return to_pixels(load_image(image), self.image_size, self.resample)

    def prompt_ids(self, prompt: str) -> list[int]:
        """<bos>, the prompt as it is, one newline.

        As in the original code the newline is a token of its own, never merged with what stands before it; a
        prompt that ends in one already gets no second. Leading <image> and <bos>, which Hugging Face's prompts may
        carry, are dropped: the program places both itself.
        """
        ids = self.tokenizer.encode(plain_prompt(prompt).removesuffix("\n"))
        return [self.tokenizer.bos_id, *ids, *self.tokenizer.newline_ids]

    def suffix_ids(self, text: str) -> list[int]:
        """An answer as training wants it: its ids and <eos>."""
        return [*self.tokenizer.encode(text), self.tokenizer.eos_id]


def plain_prompt(prompt: str) -> str:
    """Without any <image>, since pictures go first anyway, without <bos> at its start, and without what files made on
    Windows bring: a byte order mark, and carriage returns at the ends of lines. Raises InputError if it is not text."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text, not {type(prompt).__name__}")
    prompt = prompt.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\r")
    return _PLACEHOLDERS.sub("", prompt)


def read_resample(path: Path) -> str:
    if not path.is_file():
        return "bicubic"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    for key in ("image_mean", "image_std"):
        values = config.get(key)
        if values is not None and values != [0.5, 0.5, 0.5]:
            raise InputError(f"{path}: {key} is {values}, but SigLIP's pictures are scaled by 0.5")
    resample = config.get("resample")
    if resample is None:
        return "bicubic"
    if not isinstance(resample, int) or resample not in _RESAMPLES:
        raise InputError(f"{path}: resample is {resample!r}, not 2 (bilinear) or 3 (bicubic)")
    return _RESAMPLES[resample]
