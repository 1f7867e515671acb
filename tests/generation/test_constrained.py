"""Constrained answers of a real (random) model and of the demo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.commands import CAT, assert_one_line, run, tiny_checkpoint
from helpers.models import one_line_error
from helpers.regions import ARCHIVE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

import pg_mlx
from pg_mlx import PaliGemma, Processor
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import Generation, RegionGrammar, Request, SamplingOptions
from pg_mlx.generation.engine import engine_for
from pg_mlx.generation.request import make_pictures
from pg_mlx.linear import Embedding
from pg_mlx.regions.prompt import RegionPrompt

Loaded = tuple[PaliGemma, Processor]
PROMPTS = ("detect cat", "detect cat ; dog", "detect red cat ; red dog ; cat", "segment white cat", "segment cat ; 狗")
SCENE = CHECKPOINT.parent / "scene.png"
examples = settings(max_examples=15, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return pg_mlx.load(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), mask_decoder=ARCHIVE)


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return pg_mlx.load(CHECKPOINT)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many ids each call of the decoder computed the logits of."""
    counted: list[int] = []
    plain = Embedding.as_head

    def as_head(table: Embedding, x: mx.array, ids: range | list[int] | None = None) -> mx.array:
        counted.append(table.num_outputs if ids is None else len(ids))
        return plain(table, x, ids)

    monkeypatch.setattr(Embedding, "as_head", as_head)
    yield counted


sampled = st.fixed_dictionaries(
    dict(
        temperature=st.sampled_from([0.0, 1.0, 5.0]),
        top_p=st.sampled_from([1.0, 0.8]),
        seed=st.integers(0, 999),
        max_tokens=st.integers(1, 60),
    )
)


@examples
@given(prompt=st.sampled_from(PROMPTS), options=sampled)
def test_whatever_the_logits_the_answer_is_well_formed(loaded: Loaded, prompt: str, options: dict) -> None:
    answer = pg_mlx.generate(*loaded, prompt, CAT, constrain=True, **options)
    asked = RegionPrompt.required(prompt)
    assert loaded[1].tokenizer.encode(answer.text) == answer.token_ids or answer.finish_reason == "length"
    faults = [fault for fault in answer.malformed if "inverted" not in fault.reason]
    if answer.finish_reason == "stop":
        assert faults == [] and {region.label for region in answer.regions} <= set(asked.labels)
        assert len(answer.regions) + len(answer.malformed) == answer.text.count(" ; ") + bool(answer.text)
    else:
        assert len(answer.token_ids) == options["max_tokens"]
        assert all(fault.span[1] == len(answer.text.rstrip("; ")) for fault in faults), "only the open record"


@settings(examples, max_examples=6)
@given(
    prompts=st.lists(st.sampled_from([*PROMPTS, "ocr"]), min_size=2, max_size=5).filter(lambda p: len(set(p)) > 1),
    options=sampled,
)
def test_a_row_of_a_batch_is_the_row_alone(loaded: Loaded, prompts: list[str], options: dict) -> None:
    """Constrained rows and free ones, in whatever states."""
    model, processor = loaded
    picture = make_pictures(processor, CAT)
    engine = engine_for(model, processor, 3)
    rows = []
    for prompt in prompts:
        asked = RegionPrompt.of(prompt)
        guide = RegionGrammar(processor.tokenizer, asked) if asked else None
        rows.append(
            engine.add(Request(picture, processor.prompt_ids(prompt), SamplingOptions(**options), guide, logprobs=True))
        )
    while engine.busy:
        engine.step()
    for prompt, row in zip(prompts, rows, strict=True):
        constrain = RegionPrompt.of(prompt) is not None
        *steps, last = pg_mlx.stream_generate(*loaded, prompt, CAT, constrain=constrain, logprobs=True, **options)
        assert last.generation is not None
        assert (row.token_ids, row.finish_reason) == (last.generation.token_ids, last.generation.finish_reason)
        assert [step.logprob is None for step in steps] == [logprob is None for logprob in row.logprobs]
        expected = [step.logprob or 0.0 for step in steps]
        assert [logprob or 0.0 for logprob in row.logprobs] == pytest.approx(expected, abs=1e-4)


def test_a_constrained_batch_is_what_each_gets_alone(loaded: Loaded) -> None:
    options = dict(constrain=True, max_regions=2, temperature=2.0, seed=5, max_tokens=60)
    together = pg_mlx.batch_generate(*loaded, PROMPTS, CAT, batch_size=3, **options)
    alone = [pg_mlx.generate(*loaded, prompt, CAT, **options) for prompt in PROMPTS]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.regions for answer in together] == [answer.regions for answer in alone]
    assert sum(len(answer.token_ids) for answer in alone) > 60


@examples
@given(prompt=st.sampled_from(PROMPTS), seed=st.integers(0, 999))
def test_logits_are_those_of_reading_token_by_token(loaded: Loaded, prompt: str, seed: int) -> None:
    """Each chosen token's log-probability, among what was allowed, is that of a pass over the whole answer without a
    cache; the forced ones, read several at a time, have none."""
    model, processor = loaded
    options = dict(temperature=2.0, seed=seed, max_tokens=50)
    *steps, last = pg_mlx.stream_generate(*loaded, prompt, CAT, constrain=True, logprobs=True, **options)
    assert last.generation is not None
    ids = last.generation.token_ids
    if not ids:
        return
    features, prefix = model.encode_image(mx.array(processor.pixels(CAT))[None]), processor.prompt_ids(prompt)
    logits = np.array(model.logits(features, mx.array([prefix]), mx.array([ids]))[0, len(prefix) - 1 : -1], np.float64)
    grammar = RegionGrammar(processor.tokenizer, RegionPrompt.required(prompt))
    place = 0
    while place < len(ids):
        allowed = list(grammar.allowed() or ())
        own = logits[place, allowed]
        expected = logits[place, ids[place]] - np.log(np.exp(own - own.max()).sum()) - own.max()
        assert steps[place].logprob == pytest.approx(expected, abs=1e-4)
        forced = grammar.advance(ids[place])
        assert all(step.logprob is None for step in steps[place + 1 : place + 1 + len(forced)])
        place += 1 + len(forced)


@examples
@given(prompt=st.sampled_from([*PROMPTS, "ocr"]), options=sampled)
def test_each_region_comes_once_in_the_step_that_completes_it(loaded: Loaded, prompt: str, options: dict) -> None:
    steps = list(pg_mlx.stream_generate(*loaded, prompt, CAT, constrain=prompt != "ocr", logprobs=True, **options))
    generation = steps[-1].generation
    assert generation is not None
    assert [region for step in steps for region in step.regions] == generation.regions
    text = ""
    for step in steps:
        before, text = text, text + step.text
        for region in step.regions:
            assert region.label == text[slice(*region.span)].rpartition(">")[2].strip()
            assert (region.codes is None) == (region.decoded is None)
            assert (step is steps[-1] and region.span[1] == len(text)) or (
                prompt == "ocr" or text == before + " ;" or (text.endswith(";") and before.endswith(" "))
            )
    (whole,) = pg_mlx.batch_generate(*loaded, [prompt], CAT, constrain=prompt != "ocr", logprobs=True, **options)
    assert whole.regions == generation.regions and whole.malformed == generation.malformed


def test_only_what_is_allowed_is_computed(loaded: Loaded, calls: list[int]) -> None:
    most = 0
    for seed in range(6):
        calls.clear()
        answer = pg_mlx.generate(
            *loaded, "segment white cat", CAT, constrain=True, temperature=3.0, seed=seed, max_tokens=400
        )
        first, *rest = calls
        assert first == 1024 + 1  # or <eos>
        # y0 comes with the decision to go on; after the last record it is computed in vain.
        records = answer.text.count("white cat")
        assert rest == ([1024] * 3 + [128] * 16 + [1024 + 2]) * records
        most = max(most, records)
    assert most > 1
    calls.clear()
    pg_mlx.generate(*loaded, "segment white cat", CAT, constrain=True, max_regions=0)
    assert calls == [1]


# --- the demo ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions() -> list[tuple]:
    """(prompt, picture) for a few test scenes, written in Pillow's own font, since the machine may have no other."""
    from demo import evaluate, scenes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "font", lambda name, size: ImageFont.load_default(size))
        cases = evaluate.cases(8, ("detect", "segment"))
    more = [(prompt, SCENE) for prompt in ("detect circle ; star", "segment red circle", "detect purple cross")]
    return [(case.question.prompt, case.scene.image) for case in cases] + more


def test_constrained_is_free_where_free_is_well_formed(demo: Loaded, questions: list[tuple], calls: list[int]) -> None:
    prompts, pictures = [prompt for prompt, _ in questions], [picture for _, picture in questions]

    def ask(**options: bool) -> tuple[list[Generation], list[int]]:
        answers, steps = [], []
        for prompt, picture in zip(prompts, pictures, strict=True):
            calls.clear()
            answers.append(pg_mlx.generate(*demo, prompt, picture, **options))
            steps.append(len(calls))
        return answers, steps

    (free, free_steps), (constrained, steps) = ask(), ask(constrain=True)
    same, detect = 0, []
    for index, prompt in enumerate(prompts):
        assert constrained[index].malformed == []
        well_formed = not free[index].malformed and free[index].finish_reason == "stop"
        found = {region.label for region in free[index].regions}
        if well_formed and found <= set(RegionPrompt.required(prompt).labels):
            assert constrained[index].token_ids == free[index].token_ids
            same += 1
            if prompt.startswith("detect") and free[index].text:
                detect.append((free_steps[index], steps[index]))
                # The prefix, and four a record: the label and the way to the next one cost none of their own. Of
                # several labels one has to be chosen, in one call where their first tokens differ.
                if ";" not in prompt:
                    assert steps[index] == 1 + 4 * (free[index].text.count(" ; ") + 1)
    assert same >= 15 and len(detect) >= 5
    assert all(fewer < many for many, fewer in detect)


def test_max_regions_saves_the_steps_of_the_others(demo: Loaded, calls: list[int]) -> None:
    whole = pg_mlx.generate(*demo, "detect circle ; star", SCENE, constrain=True)
    before = len(calls)
    first = pg_mlx.generate(*demo, "detect circle ; star", SCENE, constrain=True, max_regions=1)
    assert len(whole.regions) > 1 and first.regions == whole.regions[:1] and first.finish_reason == "stop"
    assert before == 1 + 5 * len(whole.regions) and len(calls) - before == 5


def test_scores_are_of_what_was_chosen(demo: Loaded) -> None:
    *steps, last = pg_mlx.stream_generate(*demo, "detect red circle", SCENE, constrain=True, logprobs=True)
    assert last.generation is not None
    (region,) = last.generation.regions
    assert [step.logprob is None for step in steps] == [False] * 4 + [True] * 2
    assert region.score == pytest.approx(np.exp(np.mean([step.logprob for step in steps[:4]])))


# --- the doors -----------------------------------------------------------------------------------------


def test_other_prompts_are_one_line_before_anything_is_computed(loaded: Loaded) -> None:
    with one_line_error("caption en"):
        pg_mlx.generate(*loaded, "caption en", "nothere.jpg", constrain=True)
    with one_line_error("caption en"):
        pg_mlx.stream_batch(*loaded, ["detect cat", "caption en"], "nothere.jpg", constrain=True)
    with one_line_error("max_regions"):
        pg_mlx.generate(*loaded, "detect cat", "nothere.jpg", max_regions=1)


def test_the_command_constrains(tmp_path: Path) -> None:
    assert_one_line(run("--model", str(tmp_path), "--image", str(SCENE), "--prompt", "ocr", "--constrain"), 2, "'ocr'")
    done = run(
        *("--image", str(SCENE), "--prompt", "detect circle ; star", "--format", "json"),
        *("--constrain", "--max-regions", "1", "--dtype", "float32"),
    )
    answer = json.loads(done.stdout)
    assert answer["text"].endswith("> circle") and len(answer["regions"]) == 1
