"""Pictures, and what the demo says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pictures import saved
from helpers.regions import scene


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 11 pictures of which two, 03.png and 08.png, are broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(11):
        data = saved(scene((20 + number, 24), number), "PNG")
        (folder / f"{number:02}.png").write_bytes(data[:40] if number in (3, 8) else data)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def sound(pictures: Path) -> list[Path]:
    """The pictures of the folder that are not broken."""
    return [path for path in sorted(pictures.glob("*.png")) if path.stem not in ("03", "08")]
