"""The grammar of detect and segment answers, walked by dice instead of a model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.models import one_line_error
from helpers.paths import PUBLISHED_TOKENIZER
from helpers.regions import loc, seg
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx import RegionParser
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import RegionGrammar, Request, Row, SamplingOptions, grammar_for
from pg_mlx.generation.next_tokens import Choice
from pg_mlx.processor import Tokenizer
from pg_mlx.regions.prompt import RegionPrompt

PUBLISHED = PUBLISHED_TOKENIZER
FOLDERS = [
    ROOT / "tools" / "small_tokenizer",
    CHECKPOINT,
    pytest.param(PUBLISHED, marks=pytest.mark.skipif(not PUBLISHED.is_dir(), reason="not here"), id="published"),
]
tokenizers = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
examples = settings(max_examples=60, deadline=None, derandomize=True)


@functools.cache
def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


words = st.sampled_from(["cat", "cats", "red", "circle", "dog", "food", "U.S.", "(left)", "12", "狗", "é", "<", "a>b"])
labels = st.one_of(
    st.lists(words, min_size=1, max_size=3).map(" ".join),
    st.text(st.characters(exclude_characters=";\n", exclude_categories=["Cs"]), min_size=1, max_size=8),
).filter(lambda label: label == label.strip() != "" and not RegionParser((1, 1)).push(f"{label};"))
prompts = st.builds(
    RegionPrompt,
    st.sampled_from(["detect", "segment"]),
    st.lists(labels, min_size=1, max_size=5, unique=True).map(tuple),
)


def walk(grammar: RegionGrammar, eos_id: int, seed: int, steps: int = 200) -> list[int]:
    """A random answer, <eos> included unless the steps run out: labels' ways are likelier than the first <eos>."""
    random = np.random.default_rng(seed)
    ids: list[int] = []
    while len(ids) < steps:
        allowed = grammar.allowed()
        assert allowed, "a dead end"
        options = [token for token in allowed if ids or token != eos_id] or list(allowed)
        ids.append(int(random.choice(options)))
        if ids[-1] != eos_id:
            ids += grammar.advance(ids[-1])
        if ids[-1] == eos_id:
            break
    return ids


@tokenizers
@examples
@given(prompt=prompts, seed=st.integers(0, 999))
def test_whatever_is_chosen_the_answer_is_well_formed(folder: Path, prompt: RegionPrompt, seed: int) -> None:
    tokenizer = tokenizer_of(folder)
    ids = walk(RegionGrammar(tokenizer, prompt), tokenizer.eos_id, seed)
    finished = ids[-1] == tokenizer.eos_id
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text)[: len(ids) - 1] == ids[:-1], "cut as training data is"
    parser = RegionParser((100, 100))
    regions = parser.push(text)
    if finished:
        regions += parser.flush()
        assert len(regions) + len(parser.malformed) == text.count(" ; ") + 1
    assert {region.label for region in regions} <= set(prompt.labels)
    assert {region.codes is not None for region in regions} <= {prompt.task == "segment"}
    assert all("inverted" in fault.reason for fault in parser.malformed)


@tokenizers
@examples
@given(prompt=prompts, data=st.data())
def test_every_well_formed_answer_is_allowed(folder: Path, prompt: RegionPrompt, data: st.DataObject) -> None:
    """Token by token as training data has it, which is what a trained model says of itself."""
    tokenizer = tokenizer_of(folder)
    named = data.draw(st.lists(st.sampled_from(prompt.labels), max_size=4))
    codes = seg(tuple(range(16))) if prompt.task == "segment" else ""
    answer = " ; ".join(f"{loc(9, 8, 7, 1023)}{codes} {label}" for label in named)
    ids = [*tokenizer.encode(answer), tokenizer.eos_id]
    grammar = RegionGrammar(tokenizer, prompt)
    chosen = 0
    while ids:
        allowed = grammar.allowed()
        assert allowed is not None and ids[0] in allowed
        chosen += 1
        taken = [ids[0], *(grammar.advance(ids[0]) if ids[0] != tokenizer.eos_id else ())]
        assert taken == ids[: len(taken)]
        ids = ids[len(taken) :]
    if len(prompt.labels) == 1:  # all of a label is forced, and asked is only whether the answer goes on
        assert chosen == 1 if not named else len(named) * (4 + 16 * bool(codes) + 1)


@given(prompt=prompts, seed=st.integers(0, 999), most=st.integers(0, 4))
@examples
def test_max_regions_are_not_exceeded(prompt: RegionPrompt, seed: int, most: int) -> None:
    tokenizer = tokenizer_of(CHECKPOINT)
    ids = walk(RegionGrammar(tokenizer, prompt, most), tokenizer.eos_id, seed, 2000)
    parser = RegionParser((100, 100))
    regions = parser.push(tokenizer.decode(ids)) + parser.flush()
    assert ids[-1] == tokenizer.eos_id and len(regions) <= most
    assert {region.label for region in regions} <= set(prompt.labels)


def test_boxes_are_the_models_own_choice() -> None:
    """One in the wrong order is not made another one, but reported; and does not count as a region."""
    tokenizer = tokenizer_of(CHECKPOINT)
    grammar = RegionGrammar(tokenizer, RegionPrompt("detect", ("cat",)), 1)
    for location in (900, 5, 100, 7):
        allowed = grammar.allowed()
        assert allowed is not None and set(tokenizer.location_ids) <= set(allowed)
        grammar.advance(tokenizer.location_ids[location])
    assert grammar.allowed() == sorted([tokenizer.eos_id, tokenizer.encode(" ; ")[0]])


def test_labels_that_begin_alike_branch_where_they_differ() -> None:
    tokenizer = tokenizer_of(CHECKPOINT)
    red, circle, star = tokenizer.encode(" red circle star")
    semicolon, space = tokenizer.encode(" ; ")
    grammar = RegionGrammar(tokenizer, RegionPrompt("detect", ("red circle", "red star", "red circle star")))
    forced = [grammar.advance(tokenizer.location_ids[place]) for place in (1, 2, 3, 4)]
    assert forced == [[], [], [], [red]] and grammar.allowed() == sorted([circle, star])
    assert grammar.advance(circle) == [] and grammar.allowed() == sorted([tokenizer.eos_id, semicolon, star])
    assert grammar.advance(semicolon) == [space] and grammar.allowed() == tokenizer.location_ids


def test_a_label_may_be_long_and_is_not_read_beyond_max_tokens() -> None:
    """Its tree is deeper than Python's stack, and what may follow the answer's last token takes no cache."""
    tokenizer = tokenizer_of(CHECKPOINT)
    long = RegionPrompt("detect", ("red", "red" + " circle" * 2000))
    row = Row(Request([], [], SamplingOptions(8), RegionGrammar(tokenizer, long, 1)), 0, tokenizer.eos_id)
    for place in (1, 2, 3, 4):
        row.take([Choice(tokenizer.location_ids[place])])
    red, circle = tokenizer.encode(" red circle")
    assert row.token_ids[4:] == [red] and row.left == 3
    assert row.reads == [tokenizer.location_ids[4], red, circle, circle, circle]
    row.take([Choice(circle), Choice(0)])
    assert row.token_ids[4:] == [red, circle, circle, circle] and row.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("detect cat", ("cat",)),
        ("segment  cat ;red dog;; cat \n", ("cat", "red dog")),
        ("detect cat, dog", ("cat, dog",)),
        ("detect", None),
        ("detect ; ", None),
        ("detection cat", None),
        ("caption en", None),
        ("", None),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, labels: tuple[str, ...] | None) -> None:
    asked = RegionPrompt.of(prompt)
    assert (asked and asked.labels) == labels


def test_what_cannot_be_constrained_is_one_line() -> None:
    tokenizer = tokenizer_of(CHECKPOINT)
    for prompt in ("caption en", "", "detect ;", "answer en where?\n" + "x" * 500):
        with one_line_error("detect cat ; dog", repr(prompt)[:50]):
            grammar_for(tokenizer, prompt)
    for label in ("<loc0001>", "a<seg001>", "a\nb"):
        with one_line_error("label", repr(label)):
            grammar_for(tokenizer, f"detect cat ; {label}")
    with one_line_error("max_regions", "-1"):
        grammar_for(tokenizer, "detect cat", max_regions=-1)
    with one_line_error("max_regions", "constrain=True"):
        grammar_for(tokenizer, "detect cat", False, max_regions=3)
    assert grammar_for(tokenizer, "caption en", False) is None
    assert grammar_for(tokenizer, "<image><bos>detect cat") is not None
