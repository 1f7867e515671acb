"""--report: all answers on one page, whole or not at all, safe whatever labels and names say."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import ROOT
from helpers.regions import region, scene
from helpers.service import SCENE, alone

from pg_mlx.cli import main
from pg_mlx.cli.gallery import Gallery
from pg_mlx.cli.pictures import Item
from pg_mlx.cli.writers import Failure, Success
from pg_mlx.errors import InputError, PgMlxError
from pg_mlx.generation import Generation, SamplingOptions, Stats

pytestmark = pytest.mark.ops("cpu", reason="it is about a page, however the answers were computed")

STATS = Stats(0, 0, 0, 0, 1, 0, 1, 0, 0)
SIZE = (320, 240)
HOSTILE = "</script></li><img src=http://example.com/x onerror=alert(1)>\"'&$title\x00\udcff"


def answer(number: int, *labels: str, name: str = "", score: float | None = None, text: str = "a text") -> Success:
    item = Item(name or f"p{number}.png", f"p{number}", f"detect thing {number % 2}", image=scene(SIZE, number))
    found = [region(label, (100, 200, 800, 900), SIZE, score, mask=number == 0) for label in labels]
    return Success(item, Generation(text, [1], "stop", STATS, found, image_size=SIZE))


@dataclass
class Card:
    data: dict[str, str | None]
    text: str = ""
    images: list[dict[str, str | None]] = field(default_factory=list)


class Page(html.parser.HTMLParser):
    """What a browser makes of the page's cards."""

    def __init__(self, path: Path):
        super().__init__()
        self.cards: list[Card] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.addresses += [str(attributes[name]) for name in ("src", "href", "action", "data") if name in attributes]
        if tag == "li" and "data-name" in attributes:
            self.cards.append(Card(attributes))
        if tag == "img":
            self.cards[-1].images.append(attributes)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cards:
            self.cards[-1].text += data


def test_the_command_writes_a_card_for_each_answer_and_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    asked = [
        "generate",
        "-i",
        SCENE,
        bad,
        "-p",
        "detect red circle",
        "-p",
        "caption en",
        "--report",
        tmp_path / "out.html",
    ]
    assert main(list(map(str, asked))) == 1
    page = Page(tmp_path / "out.html")
    assert [card.data["data-name"] for card in page.cards] == [str(SCENE)] * 2 + [str(bad)] * 2
    found = alone("detect red circle", (SCENE,), SamplingOptions())
    assert page.cards[0].data["data-found"] == str(len(found.regions)) and "red circle" in page.cards[0].text
    assert alone("caption en", (SCENE,), SamplingOptions()).text in page.cards[1].text
    assert all("is not a picture" in card.text and not card.images for card in page.cards[2:])
    assert "2 of 4 answered, 2 failed" in page.text and "detect red circle · caption en" in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "out.html"]


def test_hostile_labels_and_names_are_text(tmp_path: Path) -> None:
    gallery = Gallery(str(tmp_path / "out.html"), [HOSTILE], 3)
    gallery.add(answer(0, HOSTILE, "cat", name=HOSTILE, score=0.25))
    gallery.add(answer(1, text=HOSTILE))
    gallery.failure(Failure(Item(HOSTILE, "p"), InputError(HOSTILE)))
    gallery.close()
    page = Page(tmp_path / "out.html")
    printed = HOSTILE.replace("\x00", "\ufffd").replace("\udcff", "?")
    assert page.tags.count("script") == 1 and page.tags.count("img") == 2 and len(page.cards) == 3
    assert page.cards[0].data["data-name"] == printed and page.cards[0].data["data-score"] == "0.2500"
    assert json.loads(str(page.cards[0].data["data-labels"])) == [HOSTILE, "cat"]
    assert all(printed in card.text for card in page.cards) and page.text.count(printed) >= 5
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not any(name.startswith("on") for card in page.cards for image in card.images for name in image)


def test_hundreds_of_pictures_are_written_one_by_one(tmp_path: Path) -> None:
    target = tmp_path / "out.html"
    gallery = Gallery(str(target), ["ocr"], 120)
    sizes = []
    for number in range(120):
        gallery.add(answer(number % 3, "cat"))
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert not target.exists() and sizes[-1] > 60 * (sizes[20] - sizes[10]) / 10  # on disk as it goes, not at the end
    gallery.close()
    assert len(Page(target).cards) == 120 and [path.name for path in tmp_path.iterdir()] == ["out.html"]


def test_it_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.html"
    gallery = Gallery(str(target), ["ocr"], 2)
    gallery.add(answer(0))
    gallery.abort()
    assert list(tmp_path.iterdir()) == []
    gallery = Gallery(str(target), ["ocr"], 2)
    gallery.add(answer(0))
    target.mkdir()  # so that the last step fails
    with pytest.raises(PgMlxError, match="cannot write"):
        gallery.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_if_stdout_fails_nothing_is_left(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "pg_mlx", "generate", "-i", str(SCENE), "-p", "ocr", "--format", "json", "--report"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*asked, str(tmp_path / "out.html")], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1 and b"No space left" in done.stderr and list(tmp_path.iterdir()) == []


def test_only_its_own_pages_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.html"
    asked = ["generate", "-i", str(SCENE), "-p", "ocr", "--report"]
    for name, words in ((tmp_path / "out.png", ".html"), (tmp_path / "no/out.html", "no such folder")):
        assert main([*asked, str(name)]) == 2 and words in capsys.readouterr().err
    target.write_text("<p>mine</p>")
    assert main([*asked, str(target)]) == 2 and target.read_text() == "<p>mine</p>"
    assert "not a page that --report wrote" in capsys.readouterr().err
    target.unlink()
    for _ in range(2):
        assert main([*asked, str(target)]) == 0
    assert len(Page(target).cards) == 1


# --- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in Chromium; anything that it asks for, and any error, fails the test."""
    target = tmp_path_factory.mktemp("gallery") / "out.html"
    gallery = Gallery(str(target), ["detect cat ; dog"], 5)
    gallery.add(answer(10, "cat", score=0.5, text="x"))
    gallery.add(answer(2, "cat", "dog", score=0.9, text="x"))
    gallery.add(answer(1, HOSTILE, score=0.1, text="x"))
    gallery.add(answer(3, text="nothing here"))
    gallery.failure(Failure(Item("p4.png", "p4"), InputError("it is broken")))
    gallery.close()
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: wrong.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    page.goto(target.as_uri())
    yield page
    page.close()
    assert wrong == []


def names(page: Any) -> list[str]:
    shown = page.locator(
        "#answers > li:not([hidden]) h2"
    ).all_text_contents()  # inner_text lacks what is off the screen
    return [name.removesuffix(".png") for name in shown]


def test_a_person_sorts_filters_and_searches(shown: Any) -> None:
    everything = ["p10", "p2", "p1", "p3", "p4"]
    assert names(shown) == everything and shown.locator("#count").inner_text() == "5 of 5"
    for order, expected in {
        "name": ["p1", "p2", "p3", "p4", "p10"],
        "-found": ["p2", "p10", "p1", "p3", "p4"],
        "-score": ["p2", "p10", "p1", "p3", "p4"],
        "score": ["p1", "p10", "p2", "p3", "p4"],
        "number": everything,
    }.items():
        shown.locator("#order").select_option(order)
        assert names(shown) == expected, order
    for kind, expected in {"=dog": ["p2"], "=cat": ["p10", "p2"], "-": ["p3", "p4"], "": everything}.items():
        shown.locator("#shown").select_option(kind)
        assert names(shown) == expected, kind
    for words, expected in {
        "BROKEN": ["p4"],
        "dog p2": ["p2"],
        "alert(1)": ["p1"],
        "no such": [],
        "": everything,
    }.items():
        shown.locator("#words").fill(words)
        assert names(shown) == expected and shown.locator("#count").inner_text() == f"{len(expected)} of 5"
    assert shown.evaluate("document.documentElement.scrollWidth") == 390, "it is wider than a phone"


def test_ctrl_c_leaves_a_page_of_what_was_answered_or_none(tmp_path: Path) -> None:
    """The first Ctrl-C ends the run where it is whole."""
    import signal

    target = tmp_path / "out.html"
    asked = [
        sys.executable,
        "-m",
        "pg_mlx",
        "generate",
        "-i",
        *[str(SCENE)] * 200,
        "-p",
        "caption en",
        "--batch-size",
        "1",
    ]
    with subprocess.Popen(
        [*asked, "--report", str(target)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        run.stdout.read()
    assert run.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"] and 0 < len(Page(target).cards) < 200
