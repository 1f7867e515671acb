"""Adapters as people publish them: by hub name, as the model itself, with a tokenizer, for another base."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.adapters import TOLERANCE
from helpers.heads import GOLDEN_HEADS, expected, golden_logits, heads_config, heads_tensors
from helpers.models import distance, one_line_error, write_folder
from helpers.vocabulary import write_small_tokenizer

from pg_mlx import convert, load, load_model
from pg_mlx.checkpoint import hub
from pg_mlx.checkpoint.wanted import Wanted
from pg_mlx.processor import Tokenizer

ADAPTER = GOLDEN_HEADS / "gemma2_both"


class Hub:
    """A hub of folders. `fetched` has what was downloaded, "owner/name file"."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.fetched, self.away = folder, list[str](), False
        monkeypatch.setattr(hub, "_snapshot", self.snapshot)
        monkeypatch.setattr(hub, "files", self.files)

    def files(self, repo: str, revision: str | None = None) -> frozenset[str] | None:
        return None if self.away else frozenset(path.name for path in (self.folder / repo).iterdir())

    def snapshot(self, repo: str, revision: str | None, wanted: Wanted, local_files_only: bool) -> Path:
        place = self.folder / "cache" / f"models--{repo.replace('/', '--')}"
        cached = place / "snapshots" / "0"
        if not local_files_only:
            assert not self.away
            cached.mkdir(parents=True, exist_ok=True)
            (place / "blobs").mkdir(exist_ok=True)
            for path in (self.folder / repo).iterdir():
                left = any(path.match(ignored) for ignored in wanted.ignored if "/" not in ignored)
                if any(path.match(pattern) for pattern in wanted.patterns) and not left:
                    shutil.copy(path, cached)
                    self.fetched.append(f"{repo} {path.name}")
        if not cached.is_dir():
            raise FileNotFoundError
        return cached


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """nobody/gemma2 is a base with tokenizer, bare/gemma2 one without, me/lora an adapter for the first."""
    monkeypatch.chdir(tmp_path)
    for name in ("nobody", "bare"):
        write_folder(tmp_path / "hub" / name / "gemma2", heads_config("gemma2"), heads_tensors("gemma2"))
    write_small_tokenizer(tmp_path / "hub" / "nobody" / "gemma2")
    shutil.copytree(ADAPTER, tmp_path / "hub" / "me" / "lora")
    return Hub(tmp_path / "hub", monkeypatch)


def test_by_hub_name(published: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    base = published.folder / "nobody" / "gemma2"
    model = load_model(base, dtype="float32", adapter_path="me/lora")
    assert distance(golden_logits(model), expected("gemma2_both")) <= TOLERANCE
    assert sorted(published.fetched) == ["me/lora adapter_config.json", "me/lora adapter_model.safetensors"]
    assert capfd.readouterr().err == "", "it is the base that the adapter names"


def test_as_the_model(published: Hub, tmp_path: Path) -> None:
    """A repository or a folder; its base comes from the hub, and with it, in a conversion, the tokenizer."""
    shutil.copytree(ADAPTER, tmp_path / "local")
    for name in ("me/lora", str(tmp_path / "local")):
        target = tmp_path / name.replace("/", "_")
        convert(name, target, need_tokenizer=False, check=False, dtype="float32")
        assert distance(golden_logits(load_model(target, dtype="float32")), expected("gemma2_both")) <= TOLERANCE
    with one_line_error("pieces", "96 rows"):  # found, and too large for this base: its rows come from the golden files
        load("me/lora")


@pytest.mark.parametrize("start", ["https://huggingface.co/", "hf://"])
def test_by_the_address_of_its_page(start: str, published: Hub, tmp_path: Path) -> None:
    """As adapter, as the model, as tokenizer."""
    base = published.folder / "nobody" / "gemma2"
    model = load_model(base, dtype="float32", adapter_path=f"{start}me/lora")
    assert distance(golden_logits(model), expected("gemma2_both")) <= TOLERANCE
    convert(f"{start}me/lora", tmp_path / "out", need_tokenizer=False, check=False, dtype="float32")
    assert distance(golden_logits(load_model(tmp_path / "out", dtype="float32")), expected("gemma2_both")) <= TOLERANCE
    with one_line_error("pieces", "96 rows"):
        load("bare/gemma2", tokenizer=f"{start}nobody/gemma2")


def test_a_conversion_replaces_neither_adapter_nor_its_base(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "source", heads_config("gemma2"), heads_tensors("gemma2"))
    target, adapter = tmp_path / "base", tmp_path / "lora"
    convert(base, target, need_tokenizer=False, check=False)
    shutil.copytree(ADAPTER, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(target)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for options in ({}, {"adapter_path": adapter}):
        with one_line_error(str(target), "choose another folder"):
            convert(target if options else adapter, target, need_tokenizer=False, check=False, force=True, **options)
    with one_line_error(str(adapter)):
        convert(adapter, adapter, need_tokenizer=False, check=False, force=True)
    assert load_model(target, adapter_path=adapter)


def test_as_the_model_without_the_hub(published: Hub) -> None:
    load_model(published.folder / "nobody" / "gemma2", adapter_path="me/lora")
    hub.resolve("nobody/gemma2")
    published.away, published.fetched = True, []
    with one_line_error("pieces", "96 rows"):
        load("me/lora")
    assert not published.fetched


@pytest.mark.parametrize("base, words", [(None, "names no base"), ("/content/base", "no such folder: /content/base")])
def test_a_base_that_is_nowhere(base: str | None, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(ADAPTER, folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with one_line_error(words, "as the model"):
        load(folder)


@pytest.mark.parametrize("name, said", [("other", True), ("Gemma2-8bit", False), ("gemma2", False)])
def test_another_base_is_said_in_a_line(
    name: str, said: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / name, heads_config("gemma2"), heads_tensors("gemma2"))
    load_model(folder, adapter_path=ADAPTER)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == said and all("nobody/gemma2" in line and str(folder) in line for line in lines)


def test_no_tokenizer_is_said_before_the_download(published: Hub, tmp_path: Path) -> None:
    with one_line_error("bare/gemma2", "--tokenizer FOLDER|REPO|FILE", "tokenizer="):
        load("bare/gemma2")
    with one_line_error("bare/gemma2", "--tokenizer FOLDER|REPO|FILE"):
        convert("bare/gemma2", tmp_path / "out")
    with one_line_error("no tokenizer"):
        load("bare/gemma2", tokenizer=tmp_path)
    with one_line_error("me/lora has no tokenizer"):
        load("bare/gemma2", tokenizer="me/lora")
    assert not any(name.endswith("model.safetensors") and "bare" in name for name in published.fetched)


def test_a_tokenizer_from_the_hub(published: Hub) -> None:
    with one_line_error("pieces", "96 rows"):  # it was found, and is too large for this base
        load("bare/gemma2", tokenizer="nobody/gemma2")
    assert "nobody/gemma2 tokenizer.model" in published.fetched
    assert "nobody/gemma2 model.safetensors" not in published.fetched


def test_the_adapters_tokenizer_comes_with_it(tmp_path: Path) -> None:
    """In a conversion and, with more rows, in an answer: its added token has an id beyond the base's vocabulary."""
    raw, tensors = heads_config("gemma2"), heads_tensors("gemma2")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    write_small_tokenizer(base)
    size = Tokenizer.from_folder(base).vocab_size
    table = "language_model.model.embed_tokens.weight"
    tensors[table] = mx.concatenate([tensors[table]] * (1 + (size + 8) // 96))
    raw["text_config"]["vocab_size"] = raw["vocab_size"] = tensors[table].shape[0]
    write_folder(base, raw | {"image_token_index": size}, tensors)
    shutil.copytree(GOLDEN_HEADS / "gemma2_tokens", adapter)
    (adapter / "added_tokens.json").write_text(json.dumps({"<image>": size, "<new>": size + 1}))
    _, processor = load(base, adapter_path=adapter)
    assert processor.tokenizer.encode("a<new>")[-1] == size + 1 and processor.tokenizer.barred == {size}
    convert(base, tmp_path / "out", adapter_path=adapter, check=False)
    for names in (("tokenizer.json",), ("tokenizer.model", "tokenizer.json", "added_tokens.json")):
        files = {name: tmp_path / "out" / name for name in names}
        assert Tokenizer.from_files(files).encode("a<new>")[-1] == size + 1


def test_an_adapter_beside_weights_is_said(published: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody can tidy a repository on the hub: its weights are read, the adapter is named, and put on where it is asked
    for. Once cached, too, with the adapter's files in the same folder."""
    both = published.folder / "both" / "gemma2"
    shutil.copytree(published.folder / "nobody" / "gemma2", both)
    for path in ADAPTER.iterdir():
        shutil.copy(path, both)
    for _ in range(2):
        model = load_model(hub.resolve("both/gemma2"), dtype="float32")
        assert distance(golden_logits(model), expected("gemma2_base")) <= TOLERANCE
        said = capfd.readouterr().err
        assert all(word in said for word in ("both/gemma2 holds an adapter", "model.safetensors", "--adapter-path"))
        assert len(said.splitlines()) == 1
    assert not any("adapter_model" in name for name in published.fetched)
    for _ in range(2):
        model = load_model(hub.resolve("both/gemma2"), dtype="float32", adapter_path="both/gemma2")
        assert distance(golden_logits(model), expected("gemma2_both")) <= TOLERANCE
    local = published.folder / "local"
    shutil.copytree(both, local)
    with one_line_error("holds two things", "adapter_model.safetensors"):
        load_model(local)
