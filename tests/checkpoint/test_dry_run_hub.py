"""convert.py --dry-run on a repository of a hub, here a small server whose weights are headers and no more."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from helpers.commands import ROOT, assert_one_line

from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.conversion.pipeline import Conversion
from pg_mlx.errors import PgMlxError
from tools import random_checkpoint

SHA = "a" * 40
CONFIG = random_checkpoint.raw_config("paligemma2-3b-448")
SHAPES = dict(pair for spec in weight_specs(PaliGemmaConfig.from_dict(CONFIG)) for pair in spec.expected())
HEADER_BYTES = 400_000
"""More than is asked for of three files: at least 100 kB of each."""


@dataclass(frozen=True)
class File:
    """The bytes a file begins with, and its size: the rest is zeros that nobody should ask for."""

    head: bytes
    size: int


def plain(content: bytes) -> File:
    return File(content, len(content))


def weights(names: list[str]) -> File:
    """A file of safetensors in bfloat16 with the shapes of the 3B model."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + 2 * math.prod(SHAPES[name])
        header[name] = {"dtype": "BF16", "shape": SHAPES[name], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return File(struct.pack("<Q", len(text)) + text, 8 + len(text) + end)


def broken_weights(entry: object) -> File:
    text = json.dumps({"x": entry}).encode()
    return plain(struct.pack("<Q", len(text)) + text)


CONFIG_JSON = {"config.json": plain(json.dumps(CONFIG).encode())}
SHARDS = {f"model-{i + 1:05}-of-00003.safetensors": list(SHAPES)[i::3] for i in range(3)}
INDEX = {"weight_map": {name: file for file, names in SHARDS.items() for name in names}}
INDEX_JSON = {"model.safetensors.index.json": plain(json.dumps(INDEX).encode())}
REPOS = {
    "good/single": CONFIG_JSON | {"model.safetensors": weights(list(SHAPES))},
    "good/sharded": CONFIG_JSON | INDEX_JSON | {file: weights(names) for file, names in SHARDS.items()},
    "bad/no-config": {"model.safetensors": weights(list(SHAPES))},
    "bad/no-weights": CONFIG_JSON | {"pytorch_model.bin": plain(b"x")},
    "bad/no-shards": CONFIG_JSON | INDEX_JSON,
    "bad/wrong-size": CONFIG_JSON
    | {"model.safetensors": broken_weights({"dtype": "F32", "shape": [3], "data_offsets": [0, 4]})},
    "bad/no-dtype": CONFIG_JSON | {"model.safetensors": broken_weights({"shape": [3]})},
    "bad/no-header": CONFIG_JSON | {"model.safetensors": plain(b"1234567")},
    "bad/index": CONFIG_JSON | {"model.safetensors.index.json": plain(b"[]")},
    "bad/other-model": CONFIG_JSON | {"model.safetensors": weights(list(SHAPES)[:-1])},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Files of repositories, with ranges."""

    served: list[tuple[str, int]]  # set on the subclass of a fixture

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?", path)
        if found is None:
            return self.answer(404)
        repo, what, revision, name = found.groups()
        if repo == "shy/gated":
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if repo not in REPOS:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", SHA):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            siblings = [{"rfilename": file} for file in REPOS[repo]]
            return self.answer(200, body=json.dumps({"id": repo, "sha": SHA, "siblings": siblings}).encode())
        file = REPOS[repo].get(name)
        if what != "resolve" or file is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(file.head).hexdigest()}"'}
        if self.command == "HEAD":
            return self.answer(200, headers | {"Content-Length": str(file.size)})
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), min(int(asked[2]) + 1, file.size)) if asked else (0, file.size)
        self.served.append((f"{repo}/{name}", stop - start))
        if stop - start > 1 << 20:
            return self.answer(500)  # it asks for the weights
        body = file.head[start:stop].ljust(stop - start, b"\0")
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return self.answer(206 if asked else 200, headers, body)

    def answer(self, code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Place:
    """An empty folder to work in, a cache, and the hub."""

    folder: Path
    cache: Path
    endpoint: str
    served: list[tuple[str, int]] = field(default_factory=list)

    def convert(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        # huggingface_hub reads its environment when it is imported, hence the process.
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        env |= {"HF_HOME": str(self.cache), "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", **more}
        command = [sys.executable, str(ROOT / "convert.py"), *arguments]
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, check=False, timeout=120
        )

    def dry_run(self, repo: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.convert("--hf-path", repo, "--mlx-path", "out", "-q", "--dry-run", *arguments, **more)

    def cached(self) -> set[str]:
        return {path.name for path in self.cache.rglob("snapshots/*/*")}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    served: list[tuple[str, int]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Hub,), {"served": served}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    (tmp_path / "work").mkdir()
    try:
        yield Place(tmp_path / "work", tmp_path / "cache", f"http://127.0.0.1:{server.server_port}", served)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("repo", ["good/single", "good/sharded"])
def test_only_the_headers_are_fetched(place: Place, repo: str) -> None:
    done = place.dry_run(repo)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    table = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert table["embedding/head"][1:4] == [f"{257216 * 2304:,}", "16.00", "6.50"]
    assert table["all"][1:3] == [f"{sum(map(math.prod, SHAPES.values())):,}", "16.00"]
    fetched = sum(size for name, size in place.served if name.endswith(".safetensors"))
    assert 0 < fetched <= HEADER_BYTES
    assert sum(file.size for name, file in REPOS[repo].items() if name.endswith(".safetensors")) > 5e9
    assert place.cached() == {"config.json"} | ({"model.safetensors.index.json"} if repo == "good/sharded" else set())
    assert list(place.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("repo", "arguments", "code", "words"),
    [
        ("shy/gated", (), 2, "access to shy/gated is restricted: accept its licence"),
        ("no/such", (), 2, "no such repository, or it is private"),
        ("bad--name/x", (), 2, "not a possible name"),
        ("good/single", ("--revision", "nowhere"), 2, "good/single has no revision nowhere"),
        ("good/single", ("--adapter-path", "lora"), 2, "lora"),
        ("good/single", ("--tokenizer", "nothing"), 2, "nothing holds no tokenizer"),
        ("bad/no-config", (), 2, "bad/no-config has no config.json"),
        ("bad/no-weights", (), 2, "bad/no-weights has no weights"),
        ("bad/no-shards", (), 2, "bad/no-shards lacks 3 of 3 weight files: model-00001-of-00003.safetensors"),
        ("bad/wrong-size", (), 2, "bad/wrong-size/model.safetensors: the entry of 'x' is malformed"),
        ("bad/no-dtype", (), 2, "the headers of the hub repository bad/no-dtype cannot be read"),
        ("bad/no-header", (), 2, "the headers of the hub repository bad/no-header cannot be read"),
        ("bad/index", (), 2, "bad/index/model.safetensors.index.json has no weight_map"),
        ("bad/other-model", (), 2, "language_model.model.norm"),
    ],
)
def test_refusals(place: Place, repo: str, arguments: tuple[str, ...], code: int, words: str) -> None:
    assert_one_line(place.dry_run(repo, *arguments), code, words)
    assert list(place.folder.iterdir()) == []


def test_without_the_hub(place: Place) -> None:
    words = "no folder good/single here, and the hub could not be reached ("
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert_one_line(place.dry_run("good/single", **away), 1, words)
    assert place.dry_run("good/single").returncode == 0
    # A dry run leaves config.json in the cache, which must not pass for a checkpoint.
    for environment in (away, {"HF_HUB_OFFLINE": "1"}):
        assert_one_line(place.dry_run("good/single", **environment), 1, words)
        done = place.convert("--hf-path", "good/single", "--mlx-path", "out", **environment)
        assert_one_line(done, 1, words)


def test_a_whole_snapshot_in_the_cache_serves(place: Place) -> None:
    assert place.dry_run("good/single").returncode == 0
    (config,) = place.cache.rglob("snapshots/*/config.json")
    refs = config.parents[2] / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(SHA)
    file = weights(list(SHAPES))
    (config.parent / "model.safetensors").write_bytes(file.head)
    os.truncate(config.parent / "model.safetensors", file.size)  # sparse
    place.served.clear()
    done = place.dry_run("good/single", "--no-tokenizer", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert place.dry_run("good/single", "--no-tokenizer").stdout == done.stdout
    assert place.served == []


def test_a_job_of_headers_cannot_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pg_mlx.checkpoint import hub

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    entries, end = {}, 0
    for name, shape in SHAPES.items():
        start, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": (start, end)}
    headers = hub.Headers(tmp_path / "config.json", {"model.safetensors": entries})
    monkeypatch.setattr(hub, "at_hand", lambda *_: None)
    monkeypatch.setattr(hub, "headers", lambda *_: headers)
    job = Conversion("some/model", headers_only=True)
    assert str(job.dtype) == "mlx.core.float32"
    assert job.checkpoint.num_bytes == 4 * sum(map(math.prod, SHAPES.values()))
    with pytest.raises(PgMlxError, match="only the headers"):
        job.checkpoint.source.read(next(iter(SHAPES)))
