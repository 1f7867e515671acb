"""The samples on which models are compared: drawn ones, and those of a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from helpers.models import one_line_error
from PIL import Image

from pg_mlx.conversion.quality import default_samples
from pg_mlx.conversion.samples import PROMPTS


def test_drawn_samples_are_the_same_every_time() -> None:
    first, second = default_samples(), default_samples()
    assert [sample.prompt for sample in first] == list(PROMPTS) * 4
    assert [s.image.tobytes() for s in first] == [s.image.tobytes() for s in second]
    assert len({s.image.tobytes() for s in first}) == 4
    for sample in first:
        assert len(sample.image.getcolors(1 << 20)) > 100


def test_samples_of_a_folder(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("RGB", (3, 2), (number, 0, 0)).save(tmp_path / f"{number:02}.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._00.png").write_bytes(b"left by macOS")
    samples = default_samples(tmp_path)
    assert [sample.image.name for sample in samples[::4]] == [f"{number:02}.PNG" for number in range(32)]
    assert {sample.prompt for sample in samples[-4:]} == set(PROMPTS)


def test_folders_without_samples(tmp_path: Path) -> None:
    with one_line_error("no such folder", "nowhere"):
        default_samples(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with one_line_error("no pictures", str(tmp_path)):
        default_samples(tmp_path)
    Image.new("RGB", (3, 2)).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    (tmp_path / "empty.webp").write_bytes(b"")
    with one_line_error("2 of 3 pictures", "bad.jpg", "empty.webp"):
        default_samples(tmp_path)
