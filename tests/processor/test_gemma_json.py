"""tokenizer.json files that panic, hang or explode in the Rust library, which must not see them."""

import json
import os
from pathlib import Path

import pytest
from helpers.vocabulary import write_small_tokenizer, write_small_tokenizer_json

from pg_mlx.errors import InputError
from pg_mlx.processor import Tokenizer

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def replaced(pattern: dict, content: str = "x") -> dict:
    return {"normalizer": {"type": "Replace", "pattern": pattern, "content": content}}


def split(pattern: dict) -> dict:
    return {"pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}}


def nested(kind: str, depth: int) -> dict:
    part = {"type": "NFC"}
    for _ in range(depth):
        part = {"type": "Sequence", kind: [part]}
    return part


FOREIGN = {
    "endless expression": split({"Regex": "(a+)+$"}),
    "expression in the normalizer": replaced({"Regex": "((a*)*)*b"}),
    "nothing replaced": replaced({"String": ""}),
    "growth": {"normalizer": {"type": "Sequence", "normalizers": [SPACES, *[replaced({"String": "a"}, "aa")] * 40]}},
    "nested": {"normalizer": nested("normalizers", 60)},
    "table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"}},
    "no normalizer": {"normalizer": None},
    "a normalizer of another type": {"normalizer": [SPACES]},
    "chunks of nothing": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "bytes": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    "added tokens without end": {"added_tokens": [{"id": i, "content": f"t{i}"} for i in range(50_001)]},
    "added token without id": {"added_tokens": [{"content": "<a>"}]},
}
MODELS = {
    "dropout": {"dropout": 0.5},
    "prefix": {"continuing_subword_prefix": "é"},
    "suffix": {"end_of_word_suffix": "é" * 50},
    "other model": {"type": "Unigram"},
    "no byte fallback": {"byte_fallback": False},
    "merge of nothing": {"merges": [["zzzz", "yyyy"]]},
    "merges that are none": {"merges": 3},
    "huge id": {"vocab": {"<pad>": 0, "<eos>": 1, "<bos>": 2, "zz": 4_294_967_295}, "merges": []},
    "no bytes": {"vocab": {"<pad>": 0, "<eos>": 1, "<bos>": 2}, "merges": [], "unk_token": None},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_small_tokenizer(folder)
    write_small_tokenizer_json(folder)
    return folder / "tokenizer.json"


def changed(whole: Path, tmp_path: Path, change: dict, model: dict) -> Path:
    content = json.loads(whole.read_bytes()) | change
    content["model"] |= model
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def refused(path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{path}[^\n]{{10,400}}\Z"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_gemmas_does_not_have_is_refused(name: str, whole: Path, tmp_path: Path):
    refused(changed(whole, tmp_path, FOREIGN[name], {}))


@pytest.mark.parametrize("name", MODELS)
def test_other_models_are_refused(name: str, whole: Path, tmp_path: Path):
    refused(changed(whole, tmp_path, {}, MODELS[name]))


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": AT_SPACES},
        {"normalizer": {"type": "Sequence", "normalizers": [SPACES]}},
        {"decoder": {"type": "Strip", "content": "a", "start": 10**18, "stop": 10**18}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no", "type_id": 0}}]}},
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0, "pad_token": "<pad>"}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}},
    ],
)
def test_what_does_not_matter_for_encoding_is_not_read(change: dict, whole: Path, tmp_path: Path):
    expected = Tokenizer.from_file(whole)
    other = Tokenizer.from_file(changed(whole, tmp_path, change, {}))
    text = "detect  cat ; dog\n<loc0001> ü"
    assert other.encode(text) == expected.encode(text) and other.decode(other.encode(text)) == text


def test_a_tab_may_stand_as_itself(whole: Path, tmp_path: Path):
    """As in Gemma's published file, which has no <0x09>. A vocabulary with neither is refused."""
    vocabulary = json.loads(whole.read_bytes())["model"]["vocab"]
    tab = vocabulary.pop("<0x09>")
    refused(changed(whole, tmp_path, {}, {"vocab": vocabulary}))
    own = Tokenizer.from_file(changed(whole, tmp_path, {}, {"vocab": vocabulary | {"\t": tab}}))
    assert own.encode("\t\t") == [tab, tab] and own.decode([tab, tab]) == "\t\t"


def test_a_second_value_of_a_name_is_no_way_in(whole: Path, tmp_path: Path):
    """The library takes both values of a name that stands twice; what is checked is all that it gets."""
    evil = json.dumps({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"})
    path = tmp_path / "tokenizer.json"
    path.write_text('{"normalizer": ' + evil + "," + whole.read_text()[1:])
    assert Tokenizer.from_file(path).encode("a cat") == Tokenizer.from_file(whole).encode("a cat")
    path.write_text(whole.read_text().rstrip()[:-1] + ', "normalizer": ' + evil + "}")
    refused(path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_files_of_any_size_are_not_read(name: str, tmp_path: Path):
    path = tmp_path / name
    path.touch()
    os.truncate(path, 20 << 30)
    with pytest.raises(InputError, match=r"larger than \d+ MiB"):
        Tokenizer.from_file(path)


def test_depth_is_bounded(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"normalizer":' + "[" * 100_000 + "]" * 100_000 + "}")
    refused(path)
