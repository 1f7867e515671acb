"""What the image scale does when it is wrong, and what dividing and multiplying back costs in 16 bits.

    python -m benchmarks.scaling

prints the two tables of docs/scaling.md, from the small golden models in tests/golden. tests/benchmarks/test_scaling.py
makes them again and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pg_mlx.checkpoint.load import load_model
from pg_mlx.ops.device import dtype_name, mx
from pg_mlx.paligemma import PaliGemma

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
FAMILIES = {"pg1": "PaliGemma 1", "pg2": "PaliGemma 2"}
WIDTHS = (2048, 2304, 3584, 4608)
"""Decoder widths of PaliGemma 3B and of PaliGemma 2 3B, 10B and 28B."""


@dataclass(frozen=True)
class Case:
    """One picture and one prompt, with what the reference answered (float32, full attention)."""

    model: PaliGemma
    features: mx.array  # [1, N, D]
    ids: mx.array  # [1, P]
    logits: mx.array  # [1, N + P, V]
    tokens: list[int]


@dataclass(frozen=True)
class Variant:
    """A way to scale: by how much image rows and text rows differ from what the decoder was trained on."""

    name: str
    image: float = 1.0
    text: float = 1.0


@dataclass(frozen=True)
class Effect:
    """What a variant does, beside the reference."""

    rows: float  # largest change of a row, in parts of the row's largest value
    logits: float  # largest change of a logit, over all positions
    divergence: float  # of the distribution of the first token of the answer
    tokens: int  # of the greedy answer that come before the first wrong one


@dataclass(frozen=True)
class RoundTrip:
    """What dividing by sqrt(D) and multiplying back does to 16-bit values."""

    factor: float  # sqrt(D) as the dtype holds it
    exact: float  # share of values that come back as they were
    mean: float  # mean of the relative error's size
    bias: float  # mean of the relative error
    largest: float  # largest relative error


def case(family: str) -> Case:
    """The golden single picture of a family."""
    stored = cast(dict[str, mx.array], mx.load(str(GOLDEN / f"{family}_batch1.safetensors")))
    model = load_model(GOLDEN / f"{family}_classic", dtype="float32")
    features = model.encode_image(stored["pixel_values"].transpose(0, 2, 3, 1))
    tokens = stored.get("greedy_tokens_no_sliding", stored["greedy_tokens"])  # Gemma 1 has no sliding window
    ids = stored["input_ids"][:, features.shape[1] :]
    return Case(model, features, ids, stored["prefill_logits"], cast(list[int], tokens[0].tolist()))


def variants(width: int) -> list[Variant]:
    """The right way, and the ways to miss it. `width` is the decoder's."""
    root = width**0.5
    return [
        Variant("right: image rows as they are, text rows once"),
        Variant("image rows divided, never multiplied", image=1 / root),
        Variant("image rows multiplied, never divided", image=root),
        *(Variant(f"divided by √2048 where D is {d}", image=(d / 2048) ** 0.5) for d in WIDTHS[1:]),
        Variant("text rows not scaled", text=1 / root),
    ]


def effect(case: Case, variant: Variant) -> Effect:
    """Run a variant beside the reference."""
    decoder = case.model.language_model
    right = mx.concatenate([case.features, decoder.embed(case.ids)], axis=1)
    rows = mx.concatenate([variant.image * case.features, variant.text * decoder.embed(case.ids)], axis=1)
    logits = decoder.head(decoder(rows))
    change = mx.abs(rows - right).max(axis=-1) / mx.abs(right).max(axis=-1)  # [1, N + P]
    return Effect(
        rows=number(change.max()),
        logits=number(mx.abs(logits - case.logits).max()),
        divergence=kl(case.logits[0, -1], logits[0, -1]),
        tokens=agreeing(greedy(case, rows, variant.text), case.tokens),
    )


def greedy(case: Case, rows: mx.array, text: float) -> list[int]:
    """Greedy continuation of rows [1, T, D], the answer's own rows scaled by `text` too."""
    decoder = case.model.language_model
    hidden, cache = decoder.prefill(rows, rows.shape[1] + len(case.tokens))
    tokens = []
    for _ in case.tokens:
        token = mx.argmax(decoder.head(hidden[:, 0]), axis=-1)
        tokens.append(cast(int, token.item()))
        hidden, cache = decoder.extend(text * decoder.embed(token[:, None]), cache)
    return tokens


def agreeing(tokens: list[int], expected: list[int]) -> int:
    """How many tokens agree before the first that does not."""
    pairs = enumerate(zip(tokens, expected, strict=True))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), len(expected))


def kl(logits: mx.array, other: mx.array) -> float:
    """Kullback-Leibler divergence, in nats, from softmax(logits [V]) to softmax(other [V])."""
    log_p, log_q = (x - mx.logsumexp(x) for x in (logits, other))
    return number((mx.exp(log_p) * (log_p - log_q)).sum())


def round_trip(width: int, dtype: mx.Dtype, values: int = 1 << 20) -> RoundTrip:
    """What the pair costs in `dtype` on values drawn from N(0, 1), as transformers before 5 computed it.

    The divisor is a Python number, so the quotient is rounded once; the multiplier is itself rounded to
    `dtype` first. Values under 0.01 are left out: in float16 their quotients have no full precision.
    """
    x = mx.random.normal((values,), key=mx.random.key(width)).astype(dtype)
    root = width**0.5
    multiplier = mx.array(root, dtype=dtype)
    back = (x.astype(mx.float32) / root).astype(dtype) * multiplier
    wide = x.astype(mx.float32)
    counted = mx.abs(wide) >= 0.01
    error = mx.where(counted, (back.astype(mx.float32) - wide) / wide, 0)
    count = counted.sum()
    return RoundTrip(
        factor=number(multiplier),
        exact=number(((back == x) & counted).sum() / count),
        mean=number(mx.abs(error).sum() / count),
        bias=number(error.sum() / count),
        largest=number(mx.abs(error).max()),
    )


def number(x: mx.array) -> float:
    """The one value of an array."""
    return cast(float, x.item())


def effects_table() -> list[str]:
    """Markdown rows of the first table."""
    lines = [
        "| model | variant | largest row change | largest logit change | KL, nats | greedy tokens kept |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for family, title in FAMILIES.items():
        given = case(family)
        for variant in variants(given.features.shape[-1]):
            found = effect(given, variant)
            lines.append(
                f"| {title} | {variant.name} | {found.rows:.1%} | {found.logits:.2f} "
                f"| {abs(found.divergence):.4f} | {found.tokens} of {len(given.tokens)} |"
            )
    return lines


def round_trip_table() -> list[str]:
    """Markdown rows of the second table."""
    lines = [
        "| D | √D | dtype | multiplier | returned exactly | mean error | bias | largest error |",
        "|--:|--:|---|--:|--:|--:|--:|--:|",
    ]
    for dtype in (mx.bfloat16, mx.float16):
        for width in WIDTHS:
            found = round_trip(width, dtype)
            lines.append(
                f"| {width} | {width**0.5:.4f} | {dtype_name(dtype)} | {found.factor:g} "
                f"| {found.exact:.0%} | {found.mean:.3%} | {round(found.bias, 4) + 0.0:+.2%} | {found.largest:.2%} |"
            )
    return lines


def main() -> None:
    print("\n".join([*effects_table(), "", *round_trip_table()]))


if __name__ == "__main__":
    main()
