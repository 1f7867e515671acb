"""The options of an answer, described once for every function and command that takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from .sampling import SamplingOptions, alternatives


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate`, `stream_generate`, `batch_generate` and `stream_batch`; all can be left out.

    max_tokens: int, 256 if not given. The answer ends after this many tokens, <eos> included; 1 to 8192.
    temperature: float, 0.0. With 0 the likeliest token is chosen each time (greedy), and top_p, top_k, min_p and seed
        have no effect. Above 0 the token is drawn at random, from probabilities that are flatter the higher it is.
    top_p: float, 1.0. Draw only among the likeliest tokens that together have this probability; above 0, at most 1.
    top_k: int, 0. Draw only among this many likeliest tokens; 0 means all.
    min_p: float, 0.0. Draw only among tokens that are at least this times as probable as the likeliest; 0 to 1.
    seed: int or None, None. Makes the draws repeatable; 0 to 2^64 - 1. None draws a new seed for each answer.
    stop: str or several of them, (). The answer ends before the first of these strings, with finish_reason "stop". No
        Step shows a part of it, also if it spans tokens. 16 strings of up to 1000 characters.
    repetition_penalty: float, 1.0, which is off. As in mlx_lm and transformers: the logits of tokens among the last
        repetition_context_size ones of prompt and answer are divided by it where they are above 0, and multiplied by it
        elsewhere. So above 1 they become less likely.
    repetition_context_size: int, 20 as in mlx_lm. 0 means all tokens, as in transformers.
    no_repeat_ngram_size: int, 0, which is off. As in transformers: no sequence of so many tokens comes a second time in
        prompt and answer. A token that a constrained answer must have comes all the same.
    logprobs: bool or int, False. Report each token's log-probability (natural logarithm, before penalties, temperature
        and truncation), and scores of regions computed from them. A number, 0 to 20, asks for as many of the likeliest
        tokens at each place; True is 0. One more pass over the logits for each token.
    constrain: bool, False. The answer to a detect or segment prompt consists of records with labels out of the prompt,
        and of nothing else (see RegionGrammar).
    max_regions: int or None, None. Only with constrain: the answer ends after this many regions.
    cancelled: a function without arguments that returns a bool. It is called between tokens; once it returns True, the
        answers that are under way end with finish_reason "cancelled".

    A value out of range raises InputError, and an unknown name TypeError, both before anything is computed.
    """

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    repetition_penalty: float
    repetition_context_size: int
    no_repeat_ngram_size: int
    logprobs: bool | int
    constrain: bool
    max_regions: int | None
    cancelled: Callable[[], bool] | None


_SAMPLING = {option.name for option in fields(SamplingOptions)}


def _never() -> bool:
    return False


@dataclass(frozen=True)
class AnswerOptions:
    """GenerateOptions with every value filled in and checked."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    logprobs: bool | int = False
    constrain: bool = False
    max_regions: int | None = None
    cancelled: Callable[[], bool] = _never

    @classmethod
    def read(cls, options: GenerateOptions) -> AnswerOptions:
        """Raises InputError for a value out of range, TypeError for an unknown name."""
        given: dict[str, Any] = dict(options)
        sampling = SamplingOptions(**{name: given.pop(name) for name in _SAMPLING & given.keys()})
        given["cancelled"] = given.get("cancelled") or _never
        alternatives(given.get("logprobs"))  # or InputError
        return cls(sampling, **given)
