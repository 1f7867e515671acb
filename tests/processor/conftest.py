"""Fixtures of this folder's tests."""

from pathlib import Path

import pytest
from helpers.vocabulary import FORMS, write_small_tokenizer, write_small_tokenizer_json

from pg_mlx.processor import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small")
    write_small_tokenizer(path)
    write_small_tokenizer_json(path)
    return path


@pytest.fixture(scope="module", params=FORMS)
def small(request, folder) -> Tokenizer:
    return Tokenizer.from_file(folder / request.param)
