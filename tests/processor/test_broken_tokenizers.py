"""Which file is read, and vocabularies that are broken or lack something."""

from pathlib import Path

import pytest
from helpers.vocabulary import FORMS, train

from pg_mlx.errors import InputError
from pg_mlx.processor import Tokenizer
from pg_mlx.processor.tokenizer import LOCATIONS


def test_the_model_file_is_preferred(folder, tmp_path):
    tmp_path.joinpath("tokenizer.json").write_bytes(b"not read")
    with pytest.raises(InputError):
        Tokenizer.from_folder(tmp_path)
    tmp_path.joinpath("tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    assert Tokenizer.from_folder(tmp_path).encode("\n") == Tokenizer.from_file(folder / "tokenizer.json").encode("\n")


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path} has no tokenizer: .*\Z"):
        Tokenizer.from_folder(tmp_path)


def refused(path: Path) -> str:
    with pytest.raises(InputError, match=rf"^{path}.*\Z") as caught:
        Tokenizer.from_file(path)
    return str(caught.value)


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_tokenizer_is_refused_by_name(folder, tmp_path, form, part):
    data = (folder / form).read_bytes()
    (tmp_path / form).write_bytes(data[: int(part * len(data))])
    refused(tmp_path / form)


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"model": {}}', "text\nand more", '{"model": {"type": "BPE"}}'])
def test_json_that_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    refused(tmp_path / "tokenizer.json")


def test_a_vocabulary_without_bos_is_refused(tmp_path):
    train(tmp_path / "tokenizer.model", bos_id=-1)
    assert "<bos>" in refused(tmp_path / "tokenizer.model")


def test_a_vocabulary_whose_regions_are_not_in_a_row_is_refused(tmp_path):
    train(tmp_path / "tokenizer.model", user_defined_symbols=[LOCATIONS[0], LOCATIONS[-1]])
    assert "<loc0000>" in refused(tmp_path / "tokenizer.model")
