"""A mask decoder whose weights are no numbers: named, not drawn as empty masks."""

import shutil
import struct
from pathlib import Path

import pytest
from helpers.service import SCENE

from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import PgMlxError
from pg_mlx.regions.mask_vae import MaskDecoder

pytestmark = pytest.mark.ops("cpu", reason="the mask decoder is the same")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    path = folder / "mask_decoder.weights"
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[:start] + b"\xff" * (len(data) - start))
    return folder


def test_masks_of_nan_are_no_masks(broken: Path):
    decoder = MaskDecoder.load(broken / "mask_decoder.weights")
    with pytest.raises(PgMlxError, match="NaN"):
        decoder([[0] * 16])


def test_the_answers_line_ends_before_the_error(broken: Path, capfd: pytest.CaptureFixture[str]):
    code = main(["generate", "--model", str(broken), "--image", str(SCENE), "--prompt", "segment red circle"])
    out, err = capfd.readouterr()
    assert code == 1 and err.endswith("so its file is damaged\n") and err.count("error:") == 1
    assert out.endswith("\n") and out.count("\n") == 1
