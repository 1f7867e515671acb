"""An answer that is begun again after a failure repeats itself; whoever reads it should not notice."""

from __future__ import annotations

from collections.abc import Sequence


class Told:
    """Which tokens of one answer its asker was told already."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._at = 0

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def begin_again(self) -> None:
        """What comes next is the answer's beginning."""
        self._at = 0

    def new(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Those of the answer's next tokens that were not told yet; now they are. Raises RuntimeError if this attempt
        says something else than the one before."""
        known = self._tokens[self._at : self._at + len(token_ids)]
        if list(token_ids[: len(known)]) != known:
            raise RuntimeError("a second attempt did not repeat the first")
        self._at += len(token_ids)
        self._tokens += token_ids[len(known) :]
        return token_ids[len(known) :]
