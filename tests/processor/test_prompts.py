"""A prompt and an answer as the model reads them, and what a folder says of its pictures."""

import json
from pathlib import Path

import pytest

from pg_mlx.errors import InputError
from pg_mlx.processor import Processor


def test_placeholders_are_dropped(small):
    processor = Processor(small, 56)
    expected = processor.prompt_ids("a cat")
    for prompt in (
        *(f"{prefix}a cat" for prefix in ("<image>", "<bos>", "<image><image><bos>", "<bos><image>")),
        *("a cat<image>", "a cat <image>", "a <image> cat", "a <image>cat", "a cat <image>\n", "<image>a cat<image>"),
    ):
        assert processor.prompt_ids(prompt) == expected, prompt
    assert small.decode(processor.prompt_ids("a cat <bos>")) == "a cat <bos>\n"
    assert processor.prompt_ids("<image> a cat") == processor.prompt_ids(" a cat") != expected


@pytest.mark.parametrize("prompt", ["a cat\r\n", "a cat\r", "\ufeffa cat", "\ufeff<image>a cat\r\n"])
def test_prompts_from_windows_are_read_as_others(small, prompt):
    processor = Processor(small, 56)
    assert processor.prompt_ids(prompt) == processor.prompt_ids("a cat")
    assert processor.prompt_ids("a\r\nb") == processor.prompt_ids("a\nb")


@pytest.mark.parametrize("prompt", [None, 1, ["a cat"], b"a cat"])
def test_a_prompt_is_text(small, prompt):
    with pytest.raises(InputError, match=type(prompt).__name__):
        Processor(small, 56).prompt_ids(prompt)


@pytest.mark.parametrize(
    "prompt", ["", " ", "  A Cat  ", "CAPTION en", "tab\tand  two spaces", "detect cat ; dog", "é\n\nb"]
)
def test_a_prompt_is_bos_itself_and_one_newline(small, prompt):
    ids = Processor(small, 56).prompt_ids(prompt)
    assert ids == Processor(small, 56).prompt_ids(prompt + "\n")
    assert ids[0] == small.bos_id
    assert ids[-1:] == small.newline_ids
    assert small.decode(ids[1:]) == prompt + "\n"


def test_the_newline_of_a_prompt_is_never_merged(small):
    assert len(small.encode("\n\n")) == 1
    assert Processor(small, 56).prompt_ids("a\n\n")[-2:] == [*small.newline_ids, *small.newline_ids]


def test_a_suffix_ends_in_eos(small):
    assert Processor(small, 56).suffix_ids("on the beach") == [*small.encode("on the beach"), small.eos_id]


def config(folder: Path, tmp_path: Path, content) -> Path:
    tmp_path.joinpath("tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    tmp_path.joinpath("preprocessor_config.json").write_bytes(content)
    return tmp_path


def test_without_settings_pictures_are_resized_bicubically(folder):
    assert Processor.from_folder(folder, 56).resample == "bicubic"


@pytest.mark.parametrize(
    "content, resample",
    [
        ({}, "bicubic"),
        ({"resample": None, "image_mean": None}, "bicubic"),
        ({"resample": 3, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5] * 3}, "bicubic"),
        ({"resample": 2}, "bilinear"),
    ],
)
def test_settings_choose_how_pictures_are_resized(folder, tmp_path, content, resample):
    processor = Processor.from_folder(config(folder, tmp_path, content), 56)
    assert (processor.image_size, processor.resample) == (56, resample)


@pytest.mark.parametrize(
    "content",
    [
        *({"resample": value} for value in (0, 1, 4, -2, "3", [3], {}, False)),
        {"image_mean": [0.485, 0.456, 0.406]},
        {"image_std": [1, 1, 1]},
        {"image_mean": "line\nbreak"},
        [],
        3,
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (1 << 20) + b"{}",
    ],
    ids=lambda content: str(content)[:30],
)
def test_settings_that_no_paligemma_has_are_refused(folder, tmp_path, content):
    with pytest.raises(InputError, match=r"^\S+preprocessor_config\.json.*\Z"):
        Processor.from_folder(config(folder, tmp_path, content), 56)
