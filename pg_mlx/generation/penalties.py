"""Against repetition: logits are changed by what stands in the prompt and the answer so far."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import mlx.core as mx

from ..linear import Ids


def penalized(
    logits: mx.array,
    ids: Ids,
    history: Sequence[int],
    repetition_penalty: float = 1.0,
    repetition_context_size: int = 0,
    no_repeat_ngram_size: int = 0,
) -> mx.array:
    """float32 logits [1, len(ids)] of the tokens in ids, which are in order, as the two options change them.

    history: the prompt and the answer so far. repetition_penalty: among its last repetition_context_size tokens (0: all
    of them), each one's logit is divided by the penalty if it is above 0, and multiplied by it otherwise.
    no_repeat_ngram_size: a token gets -inf if it would complete a sequence of this many tokens that the history already
    holds. Where that would leave nothing to choose, as it can with a guide, it is not done.
    """
    if repetition_penalty != 1:
        recent = _places(history[-repetition_context_size:], ids)  # [-0:] is everything
        if recent:
            index = mx.array(recent)
            old = logits[:, index]
            logits = _with(logits, index, mx.where(old > 0, old / repetition_penalty, old * repetition_penalty))
    banned = _places(repeating(history, no_repeat_ngram_size), ids)
    if banned and len(banned) < len(ids):
        logits = _with(logits, mx.array(banned), -mx.inf)
    return logits


def repeating(history: Sequence[int], size: int) -> set[int]:
    """The tokens that would complete an n-gram of this size that the history already holds. With size 0 there are
    none."""
    if not 0 < size <= len(history):
        return set()
    end = list(history[len(history) - size + 1 :])
    starts = range(len(history) - size + 1)
    return {history[start + size - 1] for start in starts if list(history[start : start + size - 1]) == end}


def _places(tokens: Iterable[int], ids: Ids) -> list[int]:
    """The indices in `ids` of those tokens that it holds, each once."""
    found = []
    for token in sorted(set(tokens)):
        place = bisect_left(ids, token)
        if place < len(ids) and ids[place] == token:
            found.append(place)
    return found


def _with(logits: mx.array, index: mx.array, values: mx.array | float) -> mx.array:
    changed = logits[:]  # assigning to it leaves the caller's array as it is
    changed[:, index] = values
    return changed
