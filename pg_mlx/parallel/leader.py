"""Rank 0: it alone reads pictures, decides, and speaks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.load import LoadOptions, Progress, load_weights, with_processor
from ..errors import PgMlxError
from ..paligemma import PaliGemma
from .agreement import Ask, agree
from .decoder import leading_model
from .link import Command, Link, first_line
from .modes import mode_of

if TYPE_CHECKING:
    from ..processor import Processor


class Leader:
    """Loads models together with the other ranks (checkpoint.load.Team).

    mode: "pipeline" or "tensor". shares: how much each rank holds, in proportion; None for equal parts.
    """

    def __init__(self, link: Link, mode: str, shares: Sequence[int] | None = None):
        self.link, self._mode, self._shares = link, mode, shares

    def load(
        self, path_or_repo: str | Path, options: LoadOptions, progress: Progress | None = None
    ) -> tuple[PaliGemma, Processor]:
        """As `load_with`. Raises InputError if the ranks do not agree, and PgMlxError if one cannot read its part."""
        ask, link = Ask.of(path_or_repo, self._mode, self._shares, options), self.link
        with link.lock:
            with link.command(Command.LOAD, ask.to_numbers()):
                pass
            agreed = agree(link, ask)
            mode = mode_of(agreed.part)

            def read() -> PaliGemma:
                make = partial(leading_model, link, mode)
                model = load_weights(agreed.part.checkpoint, agreed.options, progress, make)
                mode.prepare(link, model.language_model)
                return model

            loaded, failure = link.together(lambda: with_processor(agreed.found, read))
            errors = link.exchange("" if failure is None else first_line(failure))
            if failure is not None:
                raise failure
            for rank, error in enumerate(errors):
                if error:
                    raise PgMlxError(f"rank {rank}: {error}")
        assert loaded is not None
        return loaded

    def stop(self) -> None:
        """Let the other ranks end."""
        self.link.stop()
