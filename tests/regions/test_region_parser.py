"""Records out of text: whole and cut anywhere, between any text, and what is none."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
from helpers.commands import ROOT
from helpers.models import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st

import pg_mlx
from pg_mlx.regions import Region, RegionParser, parse_regions

SIZE = (640, 480)
CODES = (*range(7, 127, 8), 127)


def loc(*numbers: int) -> str:
    return "".join(f"<loc{n:04}>" for n in numbers)


def seg(numbers: tuple[int, ...] = CODES) -> str:
    return "".join(f"<seg{n:03}>" for n in numbers)


BOX = loc(100, 200, 800, 900)


def pushed(pieces: list[str]) -> tuple[list[Region], RegionParser]:
    parser = RegionParser(SIZE)
    regions = [region for piece in pieces for region in parser.push(piece)]
    return regions + parser.flush(), parser


# --- records ------------------------------------------------------------------------------------------


def test_a_box_is_y0_x0_y1_x1_of_1023_and_comes_out_as_x0_y0_x1_y1_of_the_picture():
    (region,) = pg_mlx.parse_regions(BOX + " cat", image_size=SIZE)
    assert region.label == "cat" and region.codes is None and region.mask is None
    assert region.box_normalized == pytest.approx((200 / 1023, 100 / 1023, 900 / 1023, 800 / 1023))
    assert region.box == pytest.approx((200 / 1023 * 640, 100 / 1023 * 480, 900 / 1023 * 640, 800 / 1023 * 480))


def test_the_last_location_is_the_edge():
    (region,) = parse_regions(loc(0, 0, 1023, 1023), SIZE)
    assert region.box == (0, 0, 640, 480) and region.box_normalized == (0, 0, 1, 1)


def test_several_records_with_and_without_masks_and_labels():
    text = f"{BOX} cat ; {loc(1, 2, 3, 4)}{seg()} dog's tail, left ; {loc(5, 6, 7, 8)} ; {BOX}{seg()}"
    regions = parse_regions(text, SIZE)
    assert [region.label for region in regions] == ["cat", "dog's tail, left", "", ""]
    assert [region.codes for region in regions] == [None, CODES, None, CODES]
    assert [text[slice(*region.span)].strip() for region in regions] == [part.strip() for part in text.split(";")]


@pytest.mark.parametrize(
    "label", ["st. bernard", "C++", "<3", "a<b>c", "犬", "собака", "כלב", "कुत्ता", "<loc>", "<seg7>"]
)
def test_labels_hold_anything_but_separators_and_region_tokens(label: str):
    assert [region.label for region in parse_regions(f"{BOX} {label} ; {BOX}", SIZE)] == [label, ""]


def test_text_before_between_and_behind_records_is_no_label():
    regions = parse_regions(f"I see {BOX} cat ; and then\n{BOX} dog\nthat is all; really", SIZE)
    assert [region.label for region in regions] == ["cat", "dog"]


def test_records_need_no_separator_and_tokens_no_closeness():
    text = f"{BOX}{BOX} cat{BOX}{seg()}{BOX}  <loc0001> <loc0002> <loc0003> <loc0004> {seg()} dog"
    regions = parse_regions(text, SIZE)
    assert [(region.label, region.codes is not None) for region in regions] == [
        *(("", False), ("cat", False), ("", True), ("", False), ("dog", True)),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (loc(1, 2, 3) + " cat", "3 <loc>"),
        (loc(1, 2, 3, 4, 5) + " cat", "5 <loc>"),
        (BOX + seg(CODES[:15]) + " cat", "15 <seg>"),
        (BOX + seg((*CODES, 1)) + " cat", "17 <seg>"),
        (seg() + " cat", "without a box"),
        (loc(800, 200, 100, 900) + " cat", "inverted"),
        (loc(100, 900, 800, 200) + " cat", "inverted"),
        (loc(100, 200, 100, 900) + " cat", "empty"),
        (loc(100, 200, 800, 1024) + " cat", "<loc1024>"),
        (BOX + seg((*CODES[:15], 128)) + " cat", "<seg128>"),
    ],
)
def test_what_is_no_record_is_reported_and_the_others_stand(text: str, reason: str):
    whole = f"{BOX} before ; {text} ; {BOX} behind"
    regions, parser = pushed([whole])
    assert [region.label for region in regions] == ["before", "behind"]
    (fault,) = parser.malformed
    assert reason in fault.reason and fault.text == text and whole[slice(*fault.span)] == text


@pytest.mark.parametrize("cut", range(1, 9))
def test_an_answer_that_ends_inside_a_token_has_no_more_regions_than_whole_ones(cut: int):
    regions, parser = pushed([(BOX + " cat ; " + loc(1, 2, 3, 4))[:-cut]])
    assert [region.label for region in regions] == ["cat"] and len(parser.malformed) == 1


@pytest.mark.parametrize("size", [(0, 4), (4,), (4, 5, 6), ("4", 4), 4, (4.5, 3), None])
def test_an_image_size_is_two_positive_numbers(size):
    with one_line_error("image_size"):
        parse_regions(BOX, size)


# --- pieces -------------------------------------------------------------------------------------------


def test_a_region_comes_with_the_separator_that_completes_it():
    parser = RegionParser(SIZE)
    assert parser.push(BOX + " cat") == []
    assert [region.label for region in parser.push(" ;")] == ["cat"]
    assert parser.push(" " + BOX) == [] and parser.push(" do") == []
    assert [region.label for region in parser.push("g" + BOX)] == ["dog"]
    assert [region.label for region in parser.flush()] == [""] and parser.flush() == []


PLAIN = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
TOKENS = st.one_of(
    *(st.integers(0, 1023).map(loc), st.integers(0, 127).map(lambda n: seg((n,)))),
    *(st.just(BOX), st.just(BOX + seg()), st.just(" ; "), st.just(" cat"), st.just("\n")),
    *(st.sampled_from(["<", "<loc", "<loc9999>", "<seg999>", "<seg12", ">", "<loc００１２>", "\u2028", "\0"]), PLAIN),
)


@settings(max_examples=2_000, deadline=None)
@given(st.lists(TOKENS, max_size=20), st.integers(0, 2**32))
def test_random_tokens_never_raise_and_pieces_give_what_the_whole_gives(tokens: list[str], seed: int):
    text = "".join(tokens)
    whole, reports = pushed([text])
    cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=4))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    again, others = pushed(parts)
    assert again == whole and others.malformed == reports.malformed
    for region in whole:
        y0, x0, y1, x1 = region.locations
        assert 0 <= y0 < y1 <= 1023 and 0 <= x0 < x1 <= 1023
        assert region.codes is None or len(region.codes) == 16
        start, stop = region.span
        assert text[start : start + 4] == "<loc" and text[start:stop].endswith((region.label, ">"))


@dataclass(frozen=True)
class Planted:
    locations: tuple[int, int, int, int]
    codes: tuple[int, ...] | None
    label: str

    def __str__(self) -> str:
        return loc(*self.locations) + (seg(self.codes) if self.codes else "") + (f" {self.label}" if self.label else "")


def _text(numbers: random.Random) -> str:
    """Up to twelve characters of any kind but surrogates; half of them those that the parser looks for."""
    letters = (
        numbers.choice("<>locseg0129;\n ") if numbers.random() < 0.5 else chr(numbers.randrange(0xD800))
        for _ in range(numbers.randrange(13))
    )
    return "".join(letters)


def _record(numbers: random.Random) -> Planted:
    y0, y1 = sorted(numbers.sample(range(1024), 2))
    x0, x1 = sorted(numbers.sample(range(1024), 2))
    codes = tuple(numbers.choices(range(128), k=16)) if numbers.random() < 0.5 else None
    return Planted((y0, x0, y1, x1), codes, _text(numbers).replace(";", "").replace("\n", "").strip())


def _junk(numbers: random.Random) -> str:
    broken = [loc(1, 2, 3), loc(1, 2, 3, 4, 5), seg(), BOX + seg()[:-9], loc(9, 9, 1, 1) + " no", loc(1, 2, 3, 1024)]
    return numbers.choice([_text(numbers), "", *broken])


@settings(max_examples=3_000, deadline=None)
@given(st.integers(0, 2**64))
def test_records_found_are_the_records_planted(seed: int):
    numbers = random.Random(seed)
    planted = [_record(numbers) for _ in range(numbers.randrange(6))]
    text = "".join(f"{_junk(numbers)} ; {record} ; " for record in planted) + _junk(numbers)
    found = [Planted(region.locations, region.codes, region.label) for region in parse_regions(text, SIZE)]
    assert found == planted


def test_parsing_imports_neither_mlx_nor_numpy():
    code = "import sys, pg_mlx; pg_mlx.parse_regions('', (1, 1)); print({'mlx', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
