"""Tokens that fine-tuning has added: found in text, written in answers, whichever file lists them."""

import json
from pathlib import Path

import pytest
from helpers.vocabulary import write_small_tokenizer, write_small_tokenizer_json

from pg_mlx.conversion.tokenizer_json import write_tokenizer_json
from pg_mlx.errors import InputError
from pg_mlx.processor import Processor, Tokenizer
from pg_mlx.processor.tokenizer import listed_tokens

PLAIN, SPECIAL = ["<s_total>", "INVOICE_NO"], "<answer>"
TEXT = "read <s_total>a INVOICE_NO</s_total> <answer>, <s_total"


def listed(folder: Path) -> dict[str, int]:
    """The new tokens behind <image>, which is behind the small vocabulary."""
    first = 1 + Tokenizer.from_file(folder / "tokenizer.model").vocab_size
    return {token: first + number for number, token in enumerate([*PLAIN, SPECIAL])}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_small_tokenizer(folder)
    return folder


def add_to_model(small: Path, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes((small / "tokenizer.model").read_bytes())


def add_to_json(small: Path, folder: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    add_to_model(small, folder)
    write_small_tokenizer_json(folder)
    path = str(folder / "tokenizer.json")
    backend = Backend.from_file(path)
    backend.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    backend.add_special_tokens([AddedToken(SPECIAL, special=True)])
    backend.save(path)


def list_them(small: Path, folder: Path) -> None:
    add_to_model(small, folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<image>": min(listed(small).values()) - 1} | listed(small)))


def config_lists_them(small: Path, folder: Path) -> None:
    """As transformers writes it, with tokens that the vocabulary has, too."""
    add_to_model(small, folder)
    known = {"<pad>": 0, "<eos>": 1, "<image>": min(listed(small).values()) - 1}
    decoder = {str(i): {"content": token, "special": token == SPECIAL} for token, i in (known | listed(small)).items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))


def json_alone(small: Path, folder: Path) -> None:
    add_to_json(small, folder)
    (folder / "tokenizer.model").unlink()


def both(small: Path, folder: Path) -> None:
    add_to_json(small, folder)
    list_them(small, folder)


def json_made_from_the_list(small: Path, folder: Path) -> None:
    list_them(small, folder)
    write_tokenizer_json(folder / "tokenizer.model", folder / "tokenizer.json", listed(small))
    for name in ("tokenizer.model", "added_tokens.json"):
        (folder / name).unlink()


@pytest.mark.parametrize("save", [add_to_json, list_them, config_lists_them, json_alone, both, json_made_from_the_list])
def test_added_tokens(save, small: Path, tmp_path: Path) -> None:
    save(small, tmp_path)
    tokenizer, ids = Tokenizer.from_folder(tmp_path), listed(small)
    found = tokenizer.encode(TEXT)
    assert [i for i in found if i in ids.values()] == list(ids.values())
    assert tokenizer.decode(found) == TEXT
    assert tokenizer.vocab_size == 1 + max(ids.values())
    assert tokenizer.barred == {min(ids.values()) - 1}, "only <image>"
    assert tokenizer.piece(min(ids.values()) - 1) == b""
    plain = Tokenizer.from_file(small / "tokenizer.model")
    assert tokenizer.location_ids == plain.location_ids
    for text in ("a cat", "<loc0001><seg001> dog", "<eos><bos><pad><unk><image>", "a  b\n\n"):
        assert tokenizer.encode(text) == plain.encode(text), "the rest is as before; control tokens are letters"
    assert Processor(tokenizer, 28).prompt_ids("<answer>")[1] == ids[SPECIAL]


def test_gaps_are_barred(small: Path, tmp_path: Path) -> None:
    add_to_model(small, tmp_path)
    size = Tokenizer.from_file(tmp_path / "tokenizer.model").vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": size + 4}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.barred == {*range(size, size + 4)}
    assert tokenizer.encode("a<new>")[-1] == size + 4


def test_longer_tokens_win(small: Path, tmp_path: Path) -> None:
    add_to_model(small, tmp_path)
    size = Tokenizer.from_file(tmp_path / "tokenizer.model").vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<a": size, "<ab>": size + 1, "(.*)": size + 2}))
    encode = Tokenizer.from_folder(tmp_path).encode
    assert encode("<ab>") == [size + 1] and encode("<a<ab>(.*)") == [size, size + 1, size + 2]


def test_files_without_more_change_nothing(small: Path, tmp_path: Path) -> None:
    """<image> alone, which every PaliGemma lists, is no reason to read the slower file; nor is a broken one."""
    add_to_model(small, tmp_path)
    write_small_tokenizer_json(tmp_path)
    expected = type(Tokenizer.from_file(tmp_path / "tokenizer.model")._pieces)
    assert type(Tokenizer.from_folder(tmp_path)._pieces) is expected
    for text in ("", "not read", '{"added_tokens": [', '{"added_tokens": [3]}', '{"added_tokens": ' + "[" * 100_000):
        (tmp_path / "tokenizer.json").write_text(text)
        assert type(Tokenizer.from_folder(tmp_path)._pieces) is expected


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a": "3"}', '{"a": -1}', '{"a": 1e3}', '{"a": 99999999999}', '{"": 4}']
)
def test_lists_that_are_none_are_refused_by_name(content: str, small: Path, tmp_path: Path) -> None:
    add_to_model(small, tmp_path)
    (tmp_path / "added_tokens.json").write_text(content)
    with pytest.raises(InputError, match=r"^\S+added_tokens\.json.*\Z"):
        Tokenizer.from_folder(tmp_path)


def test_a_list_that_does_not_follow_makes_no_json(small: Path, tmp_path: Path) -> None:
    add_to_model(small, tmp_path)
    with pytest.raises(InputError, match="does not follow"):
        write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json", {"<new>": 9_999})


@pytest.mark.parametrize(
    "decoder",
    [[], [1], "x", {"x": {"content": "a"}}, {"-1": {"content": "a"}}, {"9999999": {"content": "a"}}, {"7": "a"}],
)
def test_a_decoder_of_another_kind_is_one_line(decoder: object, small: Path, tmp_path: Path) -> None:
    add_to_model(small, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    if not decoder:  # transformers has no entry, or an empty one
        assert Tokenizer.from_folder(tmp_path).vocab_size
        return
    with pytest.raises(InputError, match="added_tokens_decoder does not hold tokens by their ids"):
        Tokenizer.from_folder(tmp_path)


def test_a_conversion_keeps_what_the_config_lists(small: Path, tmp_path: Path) -> None:
    config_lists_them(small, tmp_path)
    files = {path.name: path for path in tmp_path.iterdir()}
    write_tokenizer_json(files["tokenizer.model"], tmp_path / "tokenizer.json", listed_tokens(files))
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").encode(TEXT) == Tokenizer.from_folder(tmp_path).encode(TEXT)
    (tmp_path / "tokenizer.model").unlink()
    assert [i for i in Tokenizer.from_folder(tmp_path).encode(TEXT) if i in listed(small).values()]
