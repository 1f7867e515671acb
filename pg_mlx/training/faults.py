"""What is wrong with training data: all of it is collected, each fault one line with its file and place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InputError

SHOWN = 20
"""So many faults are written out; the others are counted."""


class DataError(InputError):
    """Training data is wrong. Its text is one line a fault, at most SHOWN, and then how many more there are."""

    def __init__(self, faults: list[str], count: int):
        """faults: the lines. count: of all faults."""
        super().__init__(faults[0] if faults else "the data is wrong")
        self.faults = [" ".join(fault.split()) for fault in faults[:SHOWN]]
        self.count = count

    def __str__(self) -> str:
        more = self.count - len(self.faults)
        return "\n".join([*self.faults, *([f"and {more} more faults"] if more > 0 else [])])


class Faults:
    """Collects faults, and raises them together."""

    def __init__(self) -> None:
        self.count = 0
        self._lines: list[str] = []

    def add(self, where: str, text: str) -> None:
        """One more fault. where: file and line or record."""
        self.count += 1
        if len(self._lines) < SHOWN:
            self._lines.append(f"{where}: {text}" if where else text)

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """An InputError inside is a fault at this place, and goes no further."""
        try:
            yield
        except InputError as error:
            self.add(where, str(error))

    def check(self) -> None:
        """Raises DataError if there are any."""
        if self.count:
            raise DataError(self._lines, self.count)
