"""Rank 0: it alone reads pictures, decides, and prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..checkpoint.load import LoadOptions, Progress, load_weights, with_processor
from ..errors import PgMlxError
from ..memory.residency import HeldPart
from ..paligemma import PaliGemma
from .agreement import Agreed, LoadRequest, agree, read
from .link import Command, Link
from .modes import mode_of

if TYPE_CHECKING:
    from ..processor import Processor

R = TypeVar("R")


class Leader:
    """Loads models together with the other ranks (checkpoint.load.Team).

    mode: "pipeline" or "tensor". shares: how much each rank holds, in proportion; None for equal parts.
    """

    def __init__(self, link: Link, mode: str, shares: Sequence[int] | None = None):
        self.link, self._mode, self._shares = link, mode, shares
        self.parts = tuple[HeldPart, ...]()
        """What each rank holds of the model that was loaded last, by rank."""

    def load(
        self, path_or_repo: str | Path, options: LoadOptions, progress: Progress | None = None
    ) -> tuple[PaliGemma, Processor]:
        """As `load_with`. Raises InputError if the ranks do not agree, and PgMlxError if one cannot read its part."""

        def work(agreed: Agreed) -> tuple[PaliGemma, Processor]:
            return with_processor(agreed.found, lambda: self._weights(agreed, progress))

        return self._together(path_or_repo, options, work, need_tokenizer=True)

    def load_model(self, path: str | Path, options: LoadOptions) -> PaliGemma:
        """As `load_model_with`. Raises what `load` raises."""
        return self._together(path, options, lambda agreed: self._weights(agreed, None), need_tokenizer=False)

    def stop(self) -> None:
        """Let the other ranks end."""
        self.link.stop()

    def _together(
        self, path_or_repo: str | Path, options: LoadOptions, work: Callable[[Agreed], R], need_tokenizer: bool
    ) -> R:
        ask, link = LoadRequest.of(path_or_repo, self._mode, self._shares, options), self.link
        with link.lock:
            with link.command(Command.LOAD, ask.to_numbers()):
                pass
            agreed = agree(link, ask, need_tokenizer)
            loaded, failure, everybody = read(link, agreed, lambda: work(agreed))
        if failure is not None:
            raise failure
        for rank, facts in enumerate(everybody):
            if facts.error:
                raise PgMlxError(f"rank {rank} on {facts.host}: {facts.error}")
        assert loaded is not None
        self.parts = tuple(
            HeldPart(f"rank {rank} on {facts.host}: {facts.about}", facts.weight_bytes, facts.token_bytes)
            for rank, facts in enumerate(everybody)
        )
        return loaded

    def _weights(self, agreed: Agreed, progress: Progress | None) -> PaliGemma:
        mode = mode_of(agreed.part)
        make = partial(mode.make, self.link)
        model = load_weights(agreed.part.checkpoint, agreed.options, progress, make)
        mode.prepare(self.link, model.language_model)
        return model
