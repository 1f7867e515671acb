"""What a detect or segment prompt asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError

TASKS = ("detect", "segment")

_NO_LABEL = re.compile(r"<loc\d{4}>|<seg\d{3}>|\n", re.ASCII)
"""Text that would end a label, or begin a record within it."""


@dataclass(frozen=True)
class RegionPrompt:
    """ "detect cat ; dog" or "segment cat", as a task and labels."""

    task: str
    """One of TASKS."""
    labels: tuple[str, ...]
    """The things it names, in its order, each once."""

    @classmethod
    def of(cls, prompt: str) -> RegionPrompt | None:
        """The parts of a detect or segment prompt; None for any other prompt, and for one that names nothing."""
        task, _, things = prompt.strip().partition(" ")
        labels = tuple(dict.fromkeys(filter(None, map(str.strip, things.split(";")))))
        return cls(task, labels) if task in TASKS and labels else None

    @classmethod
    def required(cls, prompt: str) -> RegionPrompt:
        """As `of`; raises InputError instead of returning None, and for a label that no record could have."""
        asked = cls.of(prompt)
        if asked is None:
            shown = _shown(prompt)
            raise InputError(f"only 'detect cat ; dog' and 'segment cat' can be constrained, not the prompt {shown}")
        for label in asked.labels:
            if _NO_LABEL.search(label):
                raise InputError(f"no region can have the label {_shown(label)}: it has a region token or line break")
        return asked


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
