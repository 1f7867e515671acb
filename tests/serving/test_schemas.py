"""The structs of the messages: the documents made from them, the other code that must agree, and what stays light."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
from helpers.commands import ROOT

from pg_mlx.generation import sampling
from pg_mlx.generation.results import Stats
from pg_mlx.generation.sampling import MAX_TOKENS, SamplingOptions
from pg_mlx.serving import structs
from pg_mlx.serving.http.parameters import ignored, neutral
from pg_mlx.serving.http.responses_schemas import ResponsesRequest
from pg_mlx.serving.http.schemas import ChatRequest
from pg_mlx.serving.service.limits import Limits
from pg_mlx.serving.service.runner import ModelInfo
from pg_mlx.serving.strict_json import BadJson, loads
from pg_mlx.serving.structs import Invalid, convert
from pg_mlx.serving.worker import schemas
from tools.schemas import openapi, protocol
from tools.write_schemas import documents

pytestmark = pytest.mark.ops("cpu", reason="it tries what is read, not what is computed")


@pytest.mark.parametrize("document", documents().items(), ids=lambda item: item[0].name)
def test_the_committed_documents_are_those_made_from_the_structs(document: tuple[Any, str]):
    path, text = document
    assert path.read_text() == text, "run python -m tools.write_schemas"


def test_the_documents_are_schemas():
    jsonschema.Draft202012Validator.check_schema(protocol.document())
    for schema in openapi.document()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("kind", "changing", "only_false", "without_effect"),
    [(ChatRequest, 19, [], 10), (ResponsesRequest, 7, ["background"], 12)],
)
def test_the_document_says_what_becomes_of_openais_parameters(
    kind: Any, changing: int, only_false: list[str], without_effect: int
):
    fields = openapi.document()["components"]["schemas"][kind.__name__]["properties"]
    assert set(fields) == set(kind.__struct_fields__)
    found = neutral(kind)
    assert len(found) == changing and all(fields[name]["enum"] == values for name, values in found.items())
    assert [name for name, values in found.items() if values[0] is False] == only_false  # and not 0
    assert sum(field == {"description": "Ignored."} for field in fields.values()) == len(ignored(kind))
    assert len(ignored(kind)) == without_effect


def test_the_structs_say_what_the_program_has():
    def names(kind: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)}

    assert schemas.MAX_TOKENS == MAX_TOKENS
    for name in ("MAX_STOPS", "MAX_STOP_CHARACTERS", "MAX_ALTERNATIVES"):
        assert getattr(structs, name) == getattr(sampling, name)
    assert set(schemas.Model.__struct_fields__) == names(ModelInfo)
    assert set(schemas.AnswerStats.__struct_fields__) == names(Stats) | {"queue_s"}
    assert set(schemas.Limits.__struct_fields__) - {"line_bytes"} <= names(Limits)
    assert names(SamplingOptions) <= set(schemas.ClientGenerate.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"5.0", 5), (b"5e3", 5000), (b"-0.0", 0), (b"0.5", 0.5), (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", 2.0**64), (b"-9223372036854775809", -(2.0**63)), (b"1e25", 1e25),
        (b"1" + b"0" * 25, 1e25), (b"true", True), (b"[null]", [None]),
    ],
)  # fmt: skip
def test_a_number_is_an_int_if_it_is_whole_and_fits_in_64_bits(text: bytes, value: object):
    assert (loads(text), type(loads(text))) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":1,"a":1}', b'"\xff"', b"\xff"],
)
def test_what_is_ambiguous_or_hostile_is_refused_in_one_short_line(text: bytes):
    with pytest.raises(BadJson) as error:
        loads(text)
    assert len(str(error.value)) < 150 and "\n" not in str(error.value)


def test_nulls_may_be_left_out_of_objects():
    assert loads(b'{"a": null, "b": [null, {"c": null}]}', nulls=False) == {"b": [None, {}]}


@pytest.mark.parametrize("value", [True, 1.5, "1", None, [], 2.0**64, 10**400])
def test_what_is_no_whole_number_is_refused_with_its_place(value: object):
    with pytest.raises(Invalid) as error:
        convert({"type": "cancel", "id": 1, "request": 2, "bytes": value}, schemas.Client)
    assert error.value.place == "bytes" and error.value.unknown
    with pytest.raises(Invalid) as error:
        schemas.read({"type": "generate", "id": 1, "prompt": "", "images": [{"bytes": value}]})
    assert error.value.place == "images[0].bytes" and not error.value.unknown


LIGHT = {
    "import pg_mlx": ("msgspec", "numpy"),
    "import pg_mlx.client": ("msgspec", "mlx", "numpy", "PIL"),
    "import pg_mlx.cli.serve, pg_mlx.cli.worker": ("msgspec", "starlette", "uvicorn", "mlx"),
    "import pg_mlx.serving.worker.supervisor": ("mlx", "numpy"),
    "import pg_mlx.cli; pg_mlx.cli.main(['generate', '--max-tokens', '2', '--image', 'tests/cat.jpg'])": ("msgspec",),
}


@pytest.mark.parametrize("code", LIGHT)
def test_only_those_who_need_msgspec_import_it(code: str):
    program = f"import sys; {code}; print([name for name in {LIGHT[code]!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
