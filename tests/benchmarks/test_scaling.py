"""Scale once: what connector.py tells and docs/scaling.md shows."""

from __future__ import annotations

import functools

import mlx.core as mx
import pytest
from helpers.paths import ROOT

from benchmarks import scaling
from pg_mlx.gemma import Gemma

case = functools.cache(scaling.case)


def difference(family: str, rows: mx.array) -> float:
    """Largest difference of the logits of rows [1, N + P, D] from the reference, over all positions."""
    decoder: Gemma = case(family).model.language_model
    return mx.abs(decoder.head(decoder(rows)) - case(family).logits).max().item()


@pytest.mark.parametrize("family", scaling.FAMILIES)
def test_direct_scaling_gives_the_reference_logits(family: str) -> None:
    given = case(family)
    rows = mx.concatenate([given.features, given.model.language_model.embed(given.ids)], axis=1)
    assert difference(family, rows) <= 1e-4


@pytest.mark.parametrize("family", scaling.FAMILIES)
@pytest.mark.parametrize("width", [64, *scaling.WIDTHS])
def test_dividing_and_multiplying_back_is_the_same_in_float32(family: str, width: int) -> None:
    """The golden models' own width, 64, has a root that divides without rounding; the published widths have not,
    so their roots are tried as well. Text is looked up so that the common factor brings it to sqrt(64)."""
    given = case(family)
    root = width**0.5
    table = given.model.language_model.embed_tokens(given.ids)  # unscaled
    rows = mx.concatenate([given.features / root, table * (8 / root)], axis=1) * root
    assert given.features.shape[-1] == 64
    assert difference(family, rows) <= 1e-4


@pytest.mark.parametrize("family", scaling.FAMILIES)
def test_every_wrong_scale_shows(family: str) -> None:
    right, *wrong = scaling.variants(64)
    assert scaling.effect(case(family), right).logits <= 1e-4
    assert scaling.effect(case(family), right).tokens == 24
    assert len(wrong) == 6
    for variant in wrong:
        effect = scaling.effect(case(family), variant)
        assert effect.logits > 0.1 and effect.divergence > 1e-4 and effect.tokens < 24, variant
    by_name = {variant.name: scaling.effect(case(family), variant).logits for variant in wrong}
    measured = {"pg1": (6.57, 6.28, 3.83), "pg2": (4.05, 5.90, 3.27)}[family]
    names = ("image rows divided, never multiplied", "image rows multiplied, never divided", "text rows not scaled")
    assert [by_name[name] for name in names] == pytest.approx(measured, abs=0.02)


EXACT = {  # dtype -> share returned exactly, for each width
    mx.bfloat16: (0.85, 0.86, 0.65, 0.69),
    mx.float16: (0.85, 0.86, 0.79, 0.84),
}


@pytest.mark.parametrize("dtype", EXACT)
def test_the_round_trip_is_not_exact_in_16_bits(dtype: mx.Dtype) -> None:
    step = mx.finfo(dtype).eps  # between neighbouring values just above 1
    for width, share in zip(scaling.WIDTHS, EXACT[dtype], strict=True):
        found = scaling.round_trip(width, dtype)
        assert found.exact == pytest.approx(share, abs=0.01)
        assert step / 2 < found.largest <= 2 * step  # never more than two of them
        assert found.bias == pytest.approx(found.factor / width**0.5 - 1, abs=2e-4)
    assert scaling.round_trip(4096, dtype).exact == 1  # 64 is a power of two


def test_the_rounded_roots() -> None:
    """What transformers multiplies by, in the dtype of the checkpoint."""
    factors = {dtype: [scaling.round_trip(d, dtype, 1024).factor for d in scaling.WIDTHS] for dtype in EXACT}
    assert factors == {mx.bfloat16: [45.25, 48, 59.75, 68], mx.float16: [45.25, 48, 59.875, 67.875]}


def test_the_document_shows_what_the_script_prints() -> None:
    document = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    tables = scaling.effects_table() + scaling.round_trip_table()
    assert len(tables) == 16 + 10
    assert [line for line in tables if line not in document] == []
