"""Pictures of the page: several of them, from files, the clipboard and the camera; and the history of questions."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from helpers.page import PICTURE, answer_with, ask, choose, opened, put, region, saved, status
from helpers.service import SCENE, alone
from PIL import Image

from pg_mlx.generation import SamplingOptions

pytestmark = pytest.mark.ops("cpu", reason="it tries the page")

OTHERS = tuple(SCENE.with_name(f"{name}.png") for name in ("dog", "clutter"))
HOSTILE = "<img src=x onerror='window.hacked = 1'>"


def thumbs(page: Any) -> list[str]:
    return page.locator(".thumb").evaluate_all(
        "(all) => all.map((one) => one.ariaLabel + (one.ariaPressed === 'true' ? ' *' : ''))"
    )


def test_several_pictures_are_asked_about_one_by_one_and_together(page: Any):
    choose(page, SCENE, *OTHERS)
    assert thumbs(page) == ["Picture 1: scene.png *", "Picture 2: dog.png", "Picture 3: clutter.png"]
    page.get_by_role("button", name="Picture 2: dog.png", exact=True).click()
    ask(page, "caption en")
    assert page.locator("#answer").inner_text() == alone("caption en", (OTHERS[0],), SamplingOptions()).text
    page.get_by_role("button", name="Picture 1: scene.png", exact=True).click()
    assert page.locator("#answer").inner_text() == ""
    page.get_by_label("all 3 pictures, together").check()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "detect red circle")
    kinds = [part["type"] for part in asked.value.post_data_json["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "image_url", "image_url"]
    together = alone("detect red circle", (SCENE, *OTHERS), SamplingOptions())
    assert page.locator("#raw").text_content() == together.text
    assert "3 pictures; boxes are in the first" in page.locator("#asked").inner_text()


def test_a_removed_picture_is_gone_and_the_focus_stays(page: Any):
    choose(page, SCENE, *OTHERS)
    page.get_by_role("button", name="Remove picture 1: scene.png").press("Enter")
    assert thumbs(page) == ["Picture 1: dog.png *", "Picture 2: clutter.png"]
    assert page.evaluate("() => document.activeElement.ariaLabel") == "Picture 1: dog.png"
    page.get_by_role("button", name="Remove picture 2").click()
    assert page.locator("#about").is_hidden()
    page.get_by_role("button", name="Remove picture 1").click()
    assert page.locator("#canvas").is_hidden()
    assert page.evaluate("() => document.activeElement.id") == "choose"


def test_a_pasted_picture_joins_the_others(page: Any):
    choose(page, OTHERS[0])
    put(page, "paste", SCENE.read_bytes(), "image/png", "image.png")
    page.locator(".thumb").nth(1).wait_for()
    assert thumbs(page) == ["Picture 1: dog.png", "Picture 2: image.png *"]


def test_a_large_picture_is_saved_in_its_own_size_and_transparency_is_white(page: Any):
    large = Image.new("RGBA", (2400, 600), (0, 0, 0, 0))
    large.paste((10, 120, 200, 255), (1200, 0, 2400, 600))
    file = io.BytesIO()
    large.save(file, "PNG")
    choose(page, {"name": "wide sky.final.png", "mimeType": "image/png", "buffer": file.getvalue()})
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "wide-sky-final-boxes.png"
    pixels = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert pixels.shape == (600, 2400, 3)
    assert (pixels[300, 600] == 255).all() and (pixels[300, 1800] == (10, 120, 200)).all()


def test_the_camera_is_asked_only_when_wanted_and_goes_off_again(browser: Any, page_address: str):
    """Chromium has a camera for tests."""
    count = """() => {
      const media = navigator.mediaDevices, real = media.getUserMedia.bind(media);
      window.streams = [];
      media.getUserMedia = async (wanted) => {
        const stream = await real(wanted);
        window.streams.push(stream);
        return stream;
      };
    }"""
    with opened(browser, page_address) as page:
        page.evaluate(count)
        choose(page, SCENE)
        assert page.evaluate("() => window.streams.length") == 0
        page.get_by_role("button", name="Camera", exact=True).click()
        page.get_by_role("button", name="Take the picture").click()
        page.locator(".thumb").nth(1).wait_for()
        assert thumbs(page) == ["Picture 1: scene.png", "Picture 2: camera.jpg *"]
        page.get_by_role("button", name="Camera", exact=True).click()
        page.locator("#snap:enabled").wait_for()
        page.keyboard.press("Escape")
        page.locator("#camera").wait_for(state="hidden")
        page.wait_for_function(
            """() => {
              const tracks = window.streams.flatMap((stream) => stream.getTracks());
              return tracks.length === 2 && tracks.every(({ readyState }) => readyState === "ended");
            }"""
        )
        assert saved(page).std() > 5, "it is one colour"


def test_a_camera_that_comes_when_it_is_no_longer_wanted_goes_off(page: Any):
    page.evaluate(
        """() => {
          const media = navigator.mediaDevices, real = media.getUserMedia.bind(media);
          window.tracks = [];
          media.getUserMedia = async (wanted) => {
            const stream = await real(wanted);
            window.tracks.push(...stream.getTracks());
            await new Promise((done) => window.allow = done);
            return stream;
          };
        }"""
    )
    page.get_by_role("button", name="Camera", exact=True).click()
    page.wait_for_function("() => window.allow")
    page.get_by_role("button", name="Close").click()
    page.evaluate("window.allow()")
    page.wait_for_function("() => window.tracks.every(({ readyState }) => readyState === 'ended')")


@pytest.mark.parametrize(
    ("name", "words"),
    [("NotAllowedError", "is not allowed"), ("NotFoundError", "There is no camera"), ("AbortError", "does not start")],
)
def test_a_camera_that_cannot_be_used_is_explained(page: Any, name: str, words: str):
    page.evaluate(
        "(name) => navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name))", name
    )
    page.get_by_role("button", name="Camera", exact=True).click()
    status(page, words, bad=True)
    assert page.locator("#camera").is_hidden()


def test_without_a_camera_for_pages_the_file_dialog_offers_it(page: Any):
    """So it is with http on another machine than this one."""
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Camera", exact=True).click()
    assert chooser.value.element.get_attribute("capture") == "environment"


def test_earlier_questions_come_back_with_their_pictures(page: Any):
    choose(page, SCENE)
    ask(page, "detect red circle")
    choose(page, OTHERS[0])
    ask(page, "caption en")
    caption = page.locator("#answer").inner_text()
    cards = page.locator("#history button")
    assert cards.all_inner_texts() == [f"caption en\n{caption}", "detect red circle\n1 box"]
    page.get_by_role("button", name="Remove picture 1: scene.png").click()
    cards.nth(1).click()
    assert page.locator("#prompt").input_value() == "detect red circle"
    assert page.locator("#answer").inner_text() == "red circle" and page.locator("#found li").count() == 1
    assert thumbs(page) == ["Picture 1: dog.png", "Picture 2: scene.png *"]
    assert cards.nth(1).get_attribute("aria-current") == "true"
    page.get_by_role("button", name="Clear").click()
    assert cards.count() == 0 and page.locator("#answer").inner_text() == ""
    assert page.locator("#clear").is_disabled()
    assert page.evaluate("() => localStorage.length + sessionStorage.length") == 0


def test_an_answer_that_comes_late_stays_with_its_question(page: Any):
    choose(page, SCENE, OTHERS[0])
    waiting: list[Any] = []
    page.route("**/v1/chat/completions", lambda route: waiting.append(route))
    page.locator("#ask").click()
    status(page, "Asking…")
    page.get_by_role("button", name="Picture 2: dog.png", exact=True).click()
    page.wait_for_timeout(100)
    waiting[0].continue_()
    status(page, "Done in")
    assert page.locator("#answer").inner_text() == "" and page.locator("#raw").text_content() == ""
    page.get_by_role("button", name="Picture 1: scene.png", exact=True).click()
    assert page.locator("#answer").inner_text() == alone("caption en", (SCENE,), SamplingOptions()).text


def test_hostile_names_and_labels_are_only_text(page: Any):
    choose(page, {"name": f"{HOSTILE}.png", "mimeType": "image/png", "buffer": SCENE.read_bytes()})
    put(page, "drop", b"?", "text/html", HOSTILE)
    status(page, f"This browser cannot read {HOSTILE} as a picture.", bad=True)
    answer_with(page, f"<loc0001><loc0001><loc0900><loc0900> {HOSTILE}", [region(HOSTILE, 10, 20, 200, 300)])
    page.locator("#prompt").fill(f"detect {HOSTILE}")
    page.locator("#ask").click()
    status(page, "Done in")
    assert page.locator("#answer").inner_text() == HOSTILE
    assert page.locator("#found b").inner_text() == HOSTILE
    assert page.locator("#history b").inner_text() == f"detect {HOSTILE}"
    assert page.locator("img[src=x]").count() == 0 and page.evaluate("() => window.hacked") is None
    assert saved(page).shape == PICTURE.shape
