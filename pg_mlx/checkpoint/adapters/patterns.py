"""Patterns of an adapter's config that choose modules: regular expressions whose matching ends soon.

Python's can take hours for a name of thirty letters, and nothing can interrupt them.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from math import comb

_MAX_PATTERN, _MAX_NAME = 1000, 120
"""Characters."""
_MAX_WAYS = 10**8
"""Ways in which a pattern may be laid over a name; a second's work at most."""
_MAX_SECONDS = 5.0
"""For all names together."""
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_TOKEN = re.compile(r"\\.|\(\?(?:[:=!]|<[=!])|\(\?|(?:\{[\d,]+\}|[*+?])[?+]?|.", re.DOTALL)


def matches(pattern: str, name: str) -> bool:
    """Whether a module is meant, as PEFT decides it: the pattern matches all of its name, or what follows a dot. Raises
    ValueError for what is no regular expression, and for one that might not end soon."""
    if len(name) > _MAX_NAME:
        raise ValueError(f"the name of a module has more than {_MAX_NAME} characters")
    return _compiled(pattern).matches(name)


class _Pattern:
    """A regular expression and the time that it has taken."""

    def __init__(self, pattern: str):
        self._regex = re.compile(rf"(.*\.)?({pattern})$")
        self._seconds = 0.0

    def matches(self, name: str) -> bool:
        if self._seconds > _MAX_SECONDS:
            raise ValueError("it takes too long")
        began = time.perf_counter()
        found = self._regex.match(name) is not None
        self._seconds += time.perf_counter() - began
        return found


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> _Pattern:
    if len(pattern) > _MAX_PATTERN:
        raise ValueError(f"it has more than {_MAX_PATTERN} characters")
    _check_ways(pattern)
    try:
        return _Pattern(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _check_ways(pattern: str) -> None:
    """Raises ValueError where groups are repeated, and for too many ways: a repeat may end at every place in a name,
    what is optional may be there or not, and a group has as many branches as it has."""
    repeats, ways = 0, 1
    branches, before = [1], ""
    for token in _TOKEN.findall(_CLASS.sub("x", pattern)):
        if token == "(?":
            raise ValueError("only the groups (...), (?:...), (?=...), (?!...), (?<=...) and (?<!...) are read")
        if token.startswith("("):
            branches.append(1)
        elif token == ")" and len(branches) > 1:
            ways *= branches.pop()
        elif token == "|":
            branches[-1] += 1
        elif token.startswith("?"):
            ways *= 2
        elif token[0] in "*+" or (token[0] == "{" and len(token) > 2):
            if before == ")":
                raise ValueError("it repeats a group, which may take forever")
            repeats += 1
        before = token
    if comb(_MAX_NAME, repeats) * ways * branches[0] > _MAX_WAYS:
        raise ValueError("it has too many repeats and choices, which may take forever")
