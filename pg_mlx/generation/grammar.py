"""The grammar of answers to detect and segment prompts: nothing, or records with labels out of the prompt."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from ..errors import InputError
from ..processor import Tokenizer, plain_prompt
from ..regions.parser import CODES_PER_MASK, LOCATIONS_PER_BOX
from ..regions.prompt import RegionPrompt
from .sampling import Allowed

SEPARATOR = " ; "

_Node = dict[int, "_Node"]
"""A tree of token sequences: each token that may come next, with the tree of what may follow it."""


class RegionGrammar:
    """A Guide: (<loc>x4 label (" ; " <loc>x4 label)*)? <eos>, with <seg>x16 behind the <loc> of a segment prompt.

    Label and separator are tokenized together, as they are in training data. Labels whose tokens begin alike share that
    beginning. Where only one token can follow, it is forced.

    The model chooses the boxes freely. A box whose corners are in the wrong order stays as it is, and is reported as
    malformed: to allow only <loc> beyond the first corner would make a box where the model did not mean one.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: RegionPrompt, max_regions: int | None = None):
        """max_regions: the answer ends with so many boxes, those in the wrong order not counted. Raises InputError if
        it is below 0."""
        if max_regions is not None and max_regions < 0:
            raise InputError(f"max_regions is {max_regions}, but must be 0 or more")
        self._locations, self._codes = tokenizer.location_ids, tokenizer.segmentation_ids
        self._eos_id = tokenizer.eos_id
        self._masks = prompt.task == "segment"
        self.left = max_regions
        """How many boxes may still come; None for any number."""
        last = [[*tokenizer.encode(f" {label}"), self._eos_id] for label in prompt.labels]
        inner = [tokenizer.encode(f" {label}{SEPARATOR}") for label in prompt.labels]
        self._last, self._any = _tree(last), _tree(last + inner)
        self._begun = False
        self._record: list[int] = []
        """The region tokens of the record that is being written."""
        self._node: _Node | None = None
        """The place in the trees after those, in label or separator; None within region tokens."""

    def __deepcopy__(self, memo: dict[int, object]) -> RegionGrammar:
        """A copy that shares the trees. They never change, and may be too deep to be copied."""
        twin = copy.copy(self)
        twin._record = list(self._record)
        return twin

    def allowed(self) -> Allowed:
        """As Guide."""
        if self._node is not None:
            return sorted(self._node)
        if self.left == 0:
            return [self._eos_id]
        if len(self._record) >= LOCATIONS_PER_BOX:
            return self._codes
        return self._locations if self._begun else sorted([self._eos_id, *self._locations])

    def advance(self, token_id: int) -> Sequence[int]:
        """As Guide."""
        self._begun = True
        if self._node is not None:
            self._node = self._node[token_id]
            return self._forced()
        self._record.append(token_id)
        if len(self._record) < LOCATIONS_PER_BOX + (CODES_PER_MASK if self._masks else 0):
            return []
        y0, x0, y1, x1 = self._record[:LOCATIONS_PER_BOX]
        if self.left is not None and y0 < y1 and x0 < x1:
            self.left -= 1
        self._node = self._last if self.left == 0 else self._any
        return self._forced()

    def allowed_after_next(self) -> Allowed:
        """As Guide: known within the region tokens of a record."""
        if self._node is not None or self.left == 0:
            return None
        count = len(self._record) + 1
        if count < LOCATIONS_PER_BOX:
            return self._locations
        return self._codes if self._masks and count < LOCATIONS_PER_BOX + CODES_PER_MASK else None

    def _forced(self) -> list[int]:
        """Advance to the next choice, in the tree or at the next record. Returns the tokens on the way."""
        forced: list[int] = []
        while self._node is not None and len(self._node) == 1:
            ((token, self._node),) = self._node.items()
            forced.append(token)
        if not self._node:
            self._node, self._record = None, []
        return forced


def _tree(sequences: Iterable[Sequence[int]]) -> _Node:
    root: _Node = {}
    for sequence in sequences:
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
    return root


def grammar_for(
    tokenizer: Tokenizer, prompt: str, constrain: bool = True, max_regions: int | None = None
) -> RegionGrammar | None:
    """The guide of an answer that is to be constrained, None for one that is not. max_regions: see RegionGrammar.

    Raises InputError for a prompt whose answers have no grammar.
    """
    if not constrain:
        if max_regions is not None:
            raise InputError("max_regions ends a constrained answer early: it needs constrain=True")
        return None
    return RegionGrammar(tokenizer, RegionPrompt.required(plain_prompt(prompt)), max_regions)
