"""The output head of the decoder: PaliGemma's is its embedding, but fine-tuning may have made it a table of its own."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from ..config import PaliGemmaConfig
from .layouts import EMBEDDING, HEAD
from .tensors import Source

PARTS = ("weight", "scales", "biases")


def has_own_head(source: Source, config: PaliGemmaConfig) -> bool:
    """Whether a head is stored that is not a copy of the embedding. Where tensors cannot be read, config.json decides.

    As in transformers, a stored head that differs counts even if config.json calls the two tied.
    """
    if f"{HEAD}.weight" not in source.shapes:
        return False
    for part in PARTS:
        head, embedding = (source.shapes.get(f"{module}.{part}") for module in (HEAD, EMBEDDING))
        if head != embedding:
            return True
        if head is not None:
            same = source.same(f"{HEAD}.{part}", f"{EMBEDDING}.{part}")
            if same is None:
                return not config.tie_word_embeddings
            if not same:
                return True
    return False


def untied(config: PaliGemmaConfig) -> PaliGemmaConfig:
    """The config of the same model with a copy of its embedding as head, packed alike."""
    quantization = dict(config.quantization)
    if EMBEDDING in quantization:
        quantization[HEAD] = quantization[EMBEDDING]
    return replace(config, tie_word_embeddings=False, quantization=quantization)


class UntiedSource(Source):
    """A Source whose head is a copy of its embedding, so that one of the two can be changed."""

    def __init__(self, source: Source):
        self._source = source
        self.shapes = {name: shape for name, shape in source.shapes.items() if not name.startswith(f"{HEAD}.")}
        self.shapes |= {
            f"{HEAD}.{part}": self.shapes[f"{EMBEDDING}.{part}"]
            for part in PARTS
            if f"{EMBEDDING}.{part}" in self.shapes
        }

    def read(self, name: str) -> mx.array:
        """As the source's; of the embedding for the head."""
        return self._source.read(_tied(name))

    def stored_bytes(self, name: str) -> int:
        """As the source's; of the embedding for the head."""
        return self._source.stored_bytes(_tied(name))


def _tied(name: str) -> str:
    return name.replace(f"{HEAD}.", f"{EMBEDDING}.", 1) if name.startswith(f"{HEAD}.") else name
