"""Memory for pictures while they are decoded: counted in the service's limit, waited for, given back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers.pictures import png_header
from helpers.service import SCENE, Asked, service

import pg_mlx.serving.service.requests as requests_module
from pg_mlx.processor.images import decoding_bytes
from pg_mlx.serving.service.requests import Answered, Ask

pytestmark = pytest.mark.ops("cpu", reason="the same code, whatever computes")
NEEDED = decoding_bytes(SCENE.read_bytes())
ROOM = 40 << 20
"""For a few answers of the demo."""


@contextmanager
def small(room: int = ROOM, **limits: int) -> Iterator[object]:
    """A service whose limit leaves `room` bytes for caches and decoding."""
    with service(memory_bytes=1 << 40, feature_bytes=1 << 20, **limits) as running:
        running._runner._room.room_bytes = room
        yield running


def test_a_picture_that_never_fits_is_refused_and_others_are_answered():
    with small() as running:
        large = Asked(running, Ask("ocr", [png_header(8000, 8000)]))
        assert large.code() == "out_of_memory"
        assert isinstance(Asked(running, Ask("ocr", [SCENE])).last(), Answered)
        assert running._decoding.taken == 0


def test_pictures_wait_for_each_other(monkeypatch: pytest.MonkeyPatch):
    """Two of them do not fit together: the second begins when the first is done, and both are answered."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    decode = requests_module.make_pictures
    together: list[int] = []

    def slow(*arguments: object) -> object:
        together.append(1)
        begun.release()
        assert go_on.wait(60)
        assert len(together) == 1
        together.pop()
        return decode(*arguments)

    monkeypatch.setattr(requests_module, "make_pictures", slow)
    with small(decoders=2) as running:
        running._runner._room.room_bytes = 2 * NEEDED - 1 + 5 * (1 << 20)
        running._decoding.taken = 5 << 20  # another picture
        asked = [Asked(running, Ask("ocr", [SCENE])) for _ in range(2)]
        assert begun.acquire(timeout=60)
        assert not begun.acquire(timeout=0.3) and running._decoding.taken == NEEDED + (5 << 20)
        running._decoding.taken -= 5 << 20
        go_on.set()
        assert all(isinstance(one.last(), Answered) for one in asked)
        assert running._decoding.taken == 0


def test_one_that_waits_for_memory_ends_at_its_deadline_or_when_it_is_cancelled():
    with small(decoders=2) as running:
        running._decoding.taken = ROOM
        late = Asked(running, Ask("ocr", [SCENE], deadline_s=0.2))
        cancelled = Asked(running, Ask("ocr", [SCENE]))
        assert late.code() == "deadline"
        cancelled.cancel()
        assert cancelled.code() == "cancelled"
        with running._changed:
            running._decoding.taken = 0
            running._changed.notify_all()
        assert isinstance(Asked(running, Ask("ocr", [SCENE])).last(), Answered)


def test_without_a_limit_nothing_is_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests_module, "decoding_bytes", lambda *_: pytest.fail("it was counted"))
    with service() as running:
        assert isinstance(Asked(running, Ask("ocr", [SCENE])).last(), Answered)
