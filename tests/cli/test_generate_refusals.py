"""generate.py with wrong input: one line that names what is wrong, and the right exit code."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import CAT, ask, assert_one_line, run
from PIL import Image

pytestmark = pytest.mark.ops("cpu", reason="what is refused is not computed")


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


def _bomb(path: Path) -> None:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _truncated(suffix: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        whole = path.with_name(f"whole.{suffix}")
        Image.open(CAT).save(whole)
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    return write


BAD_PICTURES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "empty directory": lambda path: path.mkdir(),
    "truncated png": _truncated("png"),
    "truncated jpeg": _truncated("jpg"),
    "zero bytes": lambda path: path.write_bytes(b"") and None,
    "text": lambda path: path.write_text("not a picture\n") and None,
    "bomb": _bomb,
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_one_line_and_exit_2(model: Path, tmp_path: Path, kind: str):
    BAD_PICTURES[kind](tmp_path / "picture")
    done = ask(model, tmp_path / "picture")
    assert_one_line(done, 2, "picture")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temp", "nan"], "temperature"),
        (["--temp", "-1"], "temperature"),
        (["--max-tokens", "-5"], "max_tokens"),
        (["--max-tokens", "many"], "--max-tokens"),
        (["--top-p", "0"], "top_p"),
        (["--top-p", "nan"], "top_p"),
        (["--min-p", "2"], "min_p"),
        (["--top-k", "-1"], "top_k"),
        (["--seed", "-1"], "seed"),
        (["--dtype", "int8"], "--dtype"),
        (["--annotate-me"], "--annotate-me"),
        (["--min-score", "2"], "min_score"),
        (["--dedup-iou", "nan"], "dedup_iou"),
        (["--max-regions", "-1"], "max_regions"),
        (["--mask-decoder", "nowhere.npz"], "nowhere.npz"),
        (["--mask-decoder", str(CAT)], "cat.jpg"),
        (["--annotate", str(CAT)], "would be replaced"),
        (["--annotate", "nowhere/out.png"], "nowhere"),
        (["--annotate", "out.psd"], "out.psd"),
        (["--annotate", "out.png", "--image", str(CAT)], "folder"),
        (["--masks", str(CAT)], "cat.jpg"),
        (["--soft-masks"], "--masks"),
        (["--image", "-", "--image", "-"], "stdin"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_2(model: Path, flags: list[str], words: str):
    assert_one_line(run("--model", str(model), "--image", str(CAT), *flags), 2, words)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "tests/nowhere"])
def test_a_missing_folder_is_not_mistaken_for_a_hub_name(name: str):
    assert_one_line(ask(name, CAT), 2, "nowhere")


def _damage_config(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        change(raw)
        (folder / "config.json").write_text(json.dumps(raw))

    return damage


def _damage_weights(change: Callable[[dict[str, mx.array]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = folder.glob("*.safetensors")
        tensors = mx.load(str(path))
        assert isinstance(tensors, dict)
        mx.eval(tensors)
        change(tensors)
        mx.save_safetensors(str(path), tensors)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, path.name)}))

    return damage


def _remove(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return damage


def _truncate(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    os.truncate(path, path.stat().st_size * 3 // 4)


LAYER_NORM = "language_model.model.layers.1.input_layernorm.weight"

BAD_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (_remove("model*"), "no weights"),
    "no config": (_remove("config.json"), "config.json"),
    "no tokenizer": (_remove("tokenizer*"), "tokenizer"),
    "truncated weights": (_truncate, "truncated"),
    "missing tensor": (_damage_weights(lambda tensors: tensors.pop(LAYER_NORM)), f"1 missing: {LAYER_NORM}"),
    "surplus tensor": (_damage_weights(lambda tensors: tensors.update(surprise=mx.zeros(3))), "1 surplus: surprise"),
    "wrong shape": (
        _damage_weights(lambda tensors: tensors.update({"multi_modal_projector.linear.bias": mx.zeros(3)})),
        "multi_modal_projector.linear.bias is [3]",
    ),
    "contradiction": (_damage_config(lambda raw: raw["text_config"].update(hidden_size=99)), "99"),
    "unknown type": (_damage_config(lambda raw: raw.update(model_type="llava")), "llava"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{") and None, "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_one_line_and_exit_2(broken: Path, kind: str):
    damage, words = BAD_MODELS[kind]
    damage(broken)
    assert_one_line(ask(broken, CAT), 2, words)


def test_debug_shows_the_traceback():
    done = run("--model", "./nowhere", "--image", str(CAT), "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr
