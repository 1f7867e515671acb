"""With a GPU's operations a guided pass begins before its token is known, where any token leads to the same choice."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import pytest
from helpers.commands import CAT, tiny_checkpoint

import pg_mlx
from pg_mlx import PaliGemma, Processor
from pg_mlx.generation import RegionGrammar, SamplingOptions, make_request
from pg_mlx.generation.engine import Engine, engine_for
from pg_mlx.regions.parser import CODES_PER_MASK, LOCATIONS_PER_BOX

Loaded = tuple[PaliGemma, Processor]
pytestmark = pytest.mark.ops("gpu", reason="the CPU's operations begin nothing ahead")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return pg_mlx.load(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), dtype="float32")


def answers(
    loaded: Loaded, prompts: Sequence[str], monkeypatch: pytest.MonkeyPatch, ahead: bool = True, **options: int | float
) -> tuple[list[list[int]], list[bool]]:
    """The tokens of constrained answers given together, and for each pass whether it began before the tokens that it
    read were known. ahead: False has every pass wait, as if what a guide allows always depended on the token."""
    engine = engine_for(*loaded, batch_size=len(prompts))
    rows, early, advance = [], [], Engine._advance
    for seed, prompt in enumerate(prompts):
        chosen = SamplingOptions(seed=seed, **options)
        rows.append(engine.add(make_request(loaded[1], prompt, CAT, chosen, constrain=prompt != "ocr")))

    def noting(self: Engine, *arguments: object) -> None:
        early.append(known == [row.decoded for row in self._rows])
        advance(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_advance", noting)
        if not ahead:
            patch.setattr(RegionGrammar, "allowed_after_next", lambda self: None)
        while engine.busy:
            known = [row.decoded for row in rows if row.finish_reason is None]
            engine.step()
    mx.synchronize()
    return [row.token_ids for row in rows], early


@pytest.mark.parametrize(
    "prompt, tokens, early",
    [
        ("detect cat", LOCATIONS_PER_BOX, LOCATIONS_PER_BOX - 1),
        ("segment cat", LOCATIONS_PER_BOX + CODES_PER_MASK, LOCATIONS_PER_BOX + CODES_PER_MASK - 1),
    ],
)
def test_all_but_the_last_region_token_of_a_record_are_read_ahead(
    loaded: Loaded, prompt: str, tokens: int, early: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the passes of one record, one waits: the one that reads its last region token, with the label forced then."""
    options = dict(temperature=1.0, max_tokens=tokens + 2)
    (ids,), passes = answers(loaded, [prompt], monkeypatch, **options)
    (same,), waiting = answers(loaded, [prompt], monkeypatch, ahead=False, **options)
    print(f"{prompt}: {waiting.count(False)} passes waited for their token, now {passes.count(False)} of {len(passes)}")
    assert ids == same and len(ids) > tokens
    assert passes.count(True) == early and len(passes) == tokens
    assert waiting == [False] * tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
@pytest.mark.parametrize(
    "prompts",
    [
        ["segment cat", "segment cat"],
        ["segment cat", "detect red dog ; cat"],
        ["detect cat ; dog", "ocr", "segment red cat ; dog"],
    ],
    ids=["equal", "unequal", "some free"],
)
def test_tokens_are_those_of_passes_that_wait(
    loaded: Loaded, prompts: list[str], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, passes = answers(loaded, prompts, monkeypatch, temperature=temperature, max_tokens=70)
    same, waiting = answers(loaded, prompts, monkeypatch, ahead=False, temperature=temperature, max_tokens=70)
    assert ids == same
    assert passes.count(True) > waiting.count(True)
