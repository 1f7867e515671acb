"""Where checkpoints come from: local folders, and a hub that is a small server in this process."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from helpers.paths import ROOT

SHA = {"main": "a" * 40, "float16": "b" * 40}


NEEDED = {
    "config.json": b'{"model_type": "paligemma"}',
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
    "tokenizer.model": b"pieces",
    "tokenizer.json": b"{ }",
    "tokenizer_config.json": b"{  }",
    "added_tokens.json": b"{   }",
    "special_tokens_map.json": b"{    }",
    "preprocessor_config.json": b"{     }",
    "generation_config.json": b"{      }",
}


UNWANTED = [
    "README.md",
    ".gitattributes",
    "model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "paligemma.npz",
    "examples/car.png",
    "car.png",
    "chat_template.json",
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "consolidated.safetensors",
    "fp16/model.safetensors",
    "fp16/config.json",
]


WHOLE = NEEDED | dict.fromkeys(UNWANTED, b"not needed")


ARCHIVE = {"model.npz": b"x", "._model.npz": b"z", "vae-oid.npz": b"z", "paligemma_tokenizer.model": b"t"}


REPOS = {
    "good/model": WHOLE,
    "good/weights-only-in-npz": {**ARCHIVE, "README.md": b"y"},
    "bad/two-archives": {"a.bf16.npz": b"x", "a.f16.npz": b"y"},
    "bad/other-weights": {"pytorch_model.bin": b"x", "README.md": b"y"},
}


# What the hub answers about a repository it does not open, before any file is named.
REFUSED = {
    "shy/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "shy/forbidden": (403, {}),
    "shy/disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "shy/private": (401, {}),
    "shy/bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "shy/broken": (500, {}),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs: what a repository is, what it lists, and its files."""

    asked: list[str]  # set on the subclass of a fixture

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?", path)
        if found is None:
            return self.answer(404)
        repo, what, revision, name = found.groups()
        if repo in REFUSED:
            code, headers = REFUSED[repo]
            return self.answer(code, headers)
        if repo == "shy/gated-files" and what == "resolve":  # the page is public, the files are not
            return self.answer(401, {"X-Error-Code": "GatedRepo"})
        files = REPOS["good/model"] if repo == "shy/gated-files" else REPOS.get(repo)
        if files is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        sha = SHA.get(revision, revision)
        if sha not in SHA.values():
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, body=json.dumps({"id": repo, "sha": sha, "siblings": siblings}).encode())
        if what == "tree":
            tree = [{"type": "file", "path": f, "size": len(b), "oid": etag(b)} for f, b in files.items()]
            return self.answer(200, body=json.dumps(tree).encode())
        if name not in files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        body = files[name]
        return self.answer(200, {"X-Repo-Commit": sha, "ETag": f'"{etag(body)}"'}, body)

    def answer(self, code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


RESOLVE_ALL = """
import json, sys
from pg_mlx.checkpoint.hub import resolve
from pg_mlx.errors import PgMlxError
for name, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"folder": str(resolve(name, revision))}))
    except PgMlxError as error:
        print(json.dumps({"code": error.exit_code, "message": str(error)}))
"""


@dataclass
class Outcome:
    """What `resolve` did in a process of its own: the folder, or the error."""

    folder: str = ""
    code: int = 0
    message: str = ""


@dataclass
class Session:
    """A fake hub's whole story: `online` first, then without the server, then with HF_HUB_OFFLINE."""

    endpoint: str
    online: dict[tuple[str, str | None], Outcome] = field(default_factory=dict)
    down: dict[tuple[str, str | None], Outcome] = field(default_factory=dict)
    offline: dict[tuple[str, str | None], Outcome] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stderr: str = ""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    # huggingface_hub reads its environment when it is imported, hence the processes; each takes many cases.
    home = tmp_path_factory.mktemp("hf_home")
    elsewhere = tmp_path_factory.mktemp("empty")
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    story = Session(f"http://127.0.0.1:{server.server_port}", asked=asked)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {
        "HF_HOME": str(home),
        "HF_ENDPOINT": story.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TQDM_POSITION": "-1",  # bars even without a terminal, unless they are disabled
    }

    def resolve_all(cases: list[tuple[str, str | None]], **more: str) -> dict[tuple[str, str | None], Outcome]:
        command = [sys.executable, "-c", RESOLVE_ALL, json.dumps(cases)]
        done = subprocess.run(command, env=env | more, cwd=elsewhere, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        story.stderr += done.stderr
        return dict(zip(cases, (Outcome(**json.loads(line)) for line in done.stdout.splitlines()), strict=True))

    try:
        refused = [(repo, None) for repo in [*REFUSED, "shy/gated-files", "no/such", "bad--name/x"]]
        story.online = resolve_all(
            [
                ("good/model", None),
                ("good/model", "float16"),
                ("good/model", "nowhere"),
                *((repo, None) for repo in REPOS if repo != "good/model"),
                *refused,
            ]
        )
    finally:
        server.shutdown()
        server.server_close()
    story.down = resolve_all([("good/model", None), ("good/model", "float16"), ("good/other", None)])
    story.offline = resolve_all([("good/model", None), ("good/other", None)], HF_HUB_OFFLINE="1")
    yield story


def test_downloads_what_is_needed_and_nothing_else(session: Session) -> None:
    folder = Path(session.online["good/model", None].folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == NEEDED
    asked = [path for path in session.asked if path.startswith("/good/model/")]
    fetched = {path.partition(f"/resolve/{SHA['main']}/")[2] for path in asked} - {""}
    assert fetched == set(NEEDED)


def test_an_archive_comes_with_its_tokenizer(session: Session) -> None:
    outcome = session.online["good/weights-only-in-npz", None]
    assert outcome.code == 0, outcome
    assert {path.name for path in Path(outcome.folder).iterdir()} == {"model.npz", "paligemma_tokenizer.model"}


def test_revisions_have_folders_of_their_own(session: Session) -> None:
    main, float16 = (session.online["good/model", revision].folder for revision in (None, "float16"))
    assert Path(main).name == SHA["main"]
    assert Path(float16).name == SHA["float16"]


def test_no_bars_without_a_terminal(session: Session) -> None:
    assert not re.search(r"\d+%\|", session.stderr), session.stderr


def test_the_cache_serves_when_the_hub_is_away(session: Session) -> None:
    assert session.down["good/model", None] == session.online["good/model", None]
    assert session.down["good/model", "float16"] == session.online["good/model", "float16"]
    assert session.offline["good/model", None] == session.online["good/model", None]


@pytest.mark.parametrize(
    ("repo", "revision", "code", "words"),
    [
        ("shy/gated", None, 2, ["shy/gated", "licence", "{endpoint}/shy/gated", "`hf auth login`"]),
        ("shy/gated-files", None, 2, ["licence", "{endpoint}/shy/gated-files", "`hf auth login`"]),
        ("shy/forbidden", None, 2, ["licence", "{endpoint}/shy/forbidden", "token that may read it"]),
        ("shy/disabled", None, 2, ["disabled", "shy/disabled"]),
        ("shy/private", None, 2, ["no such repository, or it is private", "shy/private"]),
        ("shy/bad-token", None, 2, ["token", "`hf auth login` again"]),
        ("shy/broken", None, 1, ["shy/broken", "HTTP 500"]),
        ("no/such", None, 2, ["no such repository, or it is private", "no/such"]),
        ("bad--name/x", None, 2, ["bad--name/x", "not a possible name"]),
        ("good/model", "nowhere", 2, ["good/model", "no revision nowhere"]),
        (
            "bad/two-archives",
            None,
            2,
            ["bad/two-archives holds several archives", "name one of them, as bad/two-archives/a.bf16.npz"],
        ),
        ("bad/other-weights", None, 2, ["bad/other-weights has no config.json", "save it again in Python"]),
    ],
)
def test_refusals(session: Session, repo: str, revision: str | None, code: int, words: list[str]) -> None:
    outcome = session.online[repo, revision]
    assert outcome.code == code, outcome
    assert "\n" not in outcome.message
    for word in words:
        assert word.format(endpoint=session.endpoint) in outcome.message


def test_nothing_cached_and_no_hub(session: Session) -> None:
    down, offline = session.down["good/other", None], session.offline["good/other", None]
    assert (down.code, offline.code) == (1, 1)
    for message in (down.message, offline.message):
        assert message.startswith("no folder good/other here, and the hub could not be reached (")
        assert "\n" not in message
    assert "onnect" in down.message  # ConnectError, ConnectionError: the network's own word for it
    assert "HF_HUB_OFFLINE" in offline.message
