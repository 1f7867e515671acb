"""Pictures to pixels, prompts to token ids, and token ids to text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files.json import read_json
from . import images
from .images import load_image, to_pixels
from .tokenizer import TextStream, Tokenizer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Processor", "TextStream", "Tokenizer", "load_image", "to_pixels"]

RESAMPLES = {2: "bilinear", 3: "bicubic"}
"""How pictures are resized, by Pillow's numbers, as preprocessor_config.json has them."""

_MAX_CONFIG_BYTES = 1 << 20
_PLACEHOLDERS = re.compile(r"\A(?:<image>|<bos>)+| ?<image>(?=\s*\Z)|<image> ?")


@dataclass(frozen=True)
class Processor:
    """How a checkpoint wants its input: its tokenizer, the side of its pictures in pixels, and how they are resized."""

    tokenizer: Tokenizer
    image_size: int
    resample: str = "bicubic"
    mask_decoder: Callable[[Any], Any] | None = None
    """<seg> codes int [B, 16] -> float32 [B, 64, 64], or None where no decoder can be had: see MaskDecoder."""

    @classmethod
    def from_folder(cls, folder: Path, image_size: int) -> Processor:
        """The processor of a checkpoint folder. Raises InputError if the tokenizer is missing or cannot be read, or if
        preprocessor_config.json asks for something that no PaliGemma does."""
        return cls(Tokenizer.from_folder(folder), image_size, read_resample(folder / "preprocessor_config.json"))

    def pixels(self, image: Any) -> np.ndarray:
        """float32 [image_size, image_size, 3] in -1..1, from anything that `images.load_image` takes. Raises InputError
        for a bad picture."""
        return images.to_pixels(images.load_image(image), self.image_size, self.resample)

    def prompt_ids(self, prompt: str) -> list[int]:
        """<bos>, the prompt as it is, one newline.

        As in the original code the newline is a token of its own, never merged with what stands before it; a
        prompt that ends in one already gets no second. Leading <image> and <bos>, which Hugging Face's prompts may
        carry, are dropped: the program places both itself. Raises InputError for text that cannot be tokenized.
        """
        ids = self.tokenizer.encode(plain_prompt(prompt).removesuffix("\n"))
        return [self.tokenizer.bos_id, *ids, *self.tokenizer.newline_ids]

    def suffix_ids(self, text: str) -> list[int]:
        """The ids of an answer, and <eos>: what a model is trained to say."""
        return [*self.tokenizer.encode(text), self.tokenizer.eos_id]


def plain_prompt(prompt: str) -> str:
    """Without any <image>, since pictures go first anyway, without <bos> at its start, and without what files made on
    Windows bring: a byte order mark, and carriage returns at the ends of lines. Raises InputError if it is not text."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text, not {type(prompt).__name__}")
    prompt = prompt.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\r")
    return _PLACEHOLDERS.sub("", prompt)


def read_resample(path: Path) -> str:
    """The resampling that a preprocessor_config.json, or a processor_config.json with all in it, asks for: "bicubic" or
    "bilinear"; "bicubic" if there is no file.

    Raises InputError if it cannot be read, or asks for other resampling or for scaling that SigLIP does not use.
    """
    if not path.is_file():
        return "bicubic"
    config = read_json(path, _MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object")
    config = config.get("image_processor", config)
    if not isinstance(config, dict):
        raise InputError(f"{path}: image_processor is not a JSON object")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(key) is False:
            raise InputError(f"{path}: {key} is false, but SigLIP's pictures are resized and scaled to -1..1")
    factor = config.get("rescale_factor")
    if factor is not None and not (isinstance(factor, float) and abs(factor * 255 - 1) < 1e-3):
        raise InputError(f"{path}: rescale_factor is {factor!r}, but SigLIP's pictures are scaled by 1/255")
    for key in ("image_mean", "image_std"):
        values = config.get(key)
        if values is not None and values != [0.5, 0.5, 0.5]:
            raise InputError(f"{path}: {key} is {values}, but SigLIP's pictures are scaled by 0.5")
    resample = config.get("resample")
    if resample is None:
        return "bicubic"
    if not isinstance(resample, int) or resample not in RESAMPLES:
        raise InputError(f"{path}: resample is {resample!r}, not 2 (bilinear) or 3 (bicubic)")
    return RESAMPLES[resample]
