"""The fields of a request that say how the tokens of its answer are chosen."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from ...errors import InputError
from ...generation import SamplingOptions
from ...generation.sampling import MAX_TOKENS
from ..structs import ContextSize, NgramSize, Penalty, Stop, Unit
from .errors import bad_request

_Seed = Annotated[
    int,
    Meta(ge=-(2**63), extra_json_schema={"maximum": 2**64 - 1}, description="Negative ones count from 2^64 down."),
]
_Tokens = Annotated[int, Meta(ge=-1, description=f"-1, or more than {MAX_TOKENS}: as many as may be.")]
_TopK = Annotated[int, Meta(ge=-1, extra_json_schema={"maximum": 2**64 - 1}, description="0 or -1: all tokens.")]


class Sampling(Struct, kw_only=True):
    """How the tokens of an answer are chosen; greedily without a temperature."""

    max_tokens: _Tokens = SamplingOptions.max_tokens
    max_completion_tokens: Annotated[_Tokens, Meta(description="In place of max_tokens.")] | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0)] = SamplingOptions.temperature
    top_p: Annotated[float, Meta(gt=0, le=1)] = SamplingOptions.top_p
    top_k: _TopK = SamplingOptions.top_k
    min_p: Unit = SamplingOptions.min_p
    seed: _Seed | UnsetType = UNSET
    stop: Stop = ()  # type: ignore[assignment]  # msgspec wants a default that cannot be changed
    repetition_penalty: Penalty = SamplingOptions.repetition_penalty
    repetition_context_size: ContextSize = SamplingOptions.repetition_context_size
    no_repeat_ngram_size: NgramSize = SamplingOptions.no_repeat_ngram_size

    @property
    def wanted_tokens(self) -> int:
        """The most tokens of the answer, as the request says it."""
        return self.max_tokens if self.max_completion_tokens is UNSET else self.max_completion_tokens

    @property
    def as_long_as_may_be(self) -> bool:
        """Whether only the model and the memory bound the answer."""
        return self.wanted_tokens == -1 or self.wanted_tokens > MAX_TOKENS

    def options(self) -> SamplingOptions:
        """Raises APIError."""
        tokens = MAX_TOKENS if self.as_long_as_may_be else self.wanted_tokens
        seed = None if self.seed is UNSET else self.seed % 2**64
        try:
            return SamplingOptions(
                tokens,
                self.temperature,
                self.top_p,
                max(0, self.top_k),
                self.min_p,
                seed,
                self.stop,
                self.repetition_penalty,
                self.repetition_context_size,
                self.no_repeat_ngram_size,
            )
        except InputError as error:
            raise bad_request(str(error), str(error).partition(" ")[0]) from None
