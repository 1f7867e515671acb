"""Laws that any PaliGemma obeys, whatever its weights: tried on small random models of both families, in float32."""

import mlx.core as mx
import pytest
from helpers.laws import examples, fixed, kinds, near, seeds
from helpers.memory import growth
from helpers.models import (
    FAMILIES,
    VOCAB,
    Json,
    config_json,
    distance,
    greedy,
    model_of,
    one_line_error,
    pictures,
    random_ids,
    random_tensors,
    same,
    tiny,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx import PaliGemma
from pg_mlx.attention_mask import prefix_lm_mask
from pg_mlx.cache import KVCache

STEPS = 5
lengths_of_rows = st.lists(st.integers(1, 8), min_size=2, max_size=4)


# --- rows and padding -------------------------------------------------------------------------------


@kinds
@examples
@given(lengths=lengths_of_rows, suffixes=lengths_of_rows, seed=seeds)
def test_row_of_a_padded_batch_equals_the_row_alone(
    kind: str, lengths: list[int], suffixes: list[int], seed: int
) -> None:
    model, batch = fixed(kind), min(len(lengths), len(suffixes))
    lengths, suffixes = lengths[:batch], suffixes[:batch]
    features = pictures(model, batch, seed)
    prefix, suffix = random_ids(batch, max(lengths) + 1, seed), random_ids(batch, max(suffixes) + 2, seed + 1)
    slots = prefix.shape[1]
    logits = model.logits(features, prefix, suffix, lengths, suffixes)
    tokens, step_logits = greedy(model, features, prefix, STEPS, lengths)
    for row, (length, more) in enumerate(zip(lengths, suffixes, strict=True)):
        image, own, own_suffix = features[row : row + 1], prefix[row : row + 1, :length], suffix[row : row + 1, :more]
        alone = model.logits(image, own, own_suffix)[0]
        near(logits[row, :length], alone[:length])
        near(logits[row, slots : slots + more], alone[length:])
        tokens_alone, step_logits_alone = greedy(model, image, own, STEPS)
        near(step_logits[row], step_logits_alone[0])
        assert tokens[row].tolist() == tokens_alone[0].tolist()


@kinds
@examples
@given(length=st.integers(1, 8), seed=seeds)
def test_lengths_that_say_nothing_change_nothing(kind: str, length: int, seed: int) -> None:
    model = fixed(kind)
    features, prefix, suffix = pictures(model, 2, seed), random_ids(2, length, seed), random_ids(2, 4, seed)
    near(
        model.logits(features, prefix, suffix, [length] * 2, [4] * 2),
        model.logits(features, prefix, suffix),
    )
    near(
        greedy(model, features, prefix, STEPS, [length] * 2)[1],
        greedy(model, features, prefix, STEPS)[1],
    )


@kinds
@examples
@given(lengths=lengths_of_rows, seed=seeds)
def test_what_stands_in_padding_is_never_read(kind: str, lengths: list[int], seed: int) -> None:
    model, batch, slots = fixed(kind), len(lengths), max(lengths) + 2
    features = pictures(model, batch, seed)
    real = mx.arange(slots) < mx.array(lengths)[:, None]
    ids = random_ids(batch, slots, seed)
    other = mx.where(real, ids, random_ids(batch, slots, seed + 1))
    results = [greedy(model, features, prefix, STEPS, lengths)[1] for prefix in (ids, other)]
    assert same(*results)


# --- the cache --------------------------------------------------------------------------------------


@kinds
@examples
@given(length=st.integers(1, 8), steps=st.integers(1, 10), seed=seeds)
def test_cached_decoding_equals_teacher_forcing(kind: str, length: int, steps: int, seed: int) -> None:
    model = fixed(kind)
    features, prefix, suffix = pictures(model, 2, seed), random_ids(2, length, seed), random_ids(2, steps, seed + 1)
    forced = model.logits(features, prefix, suffix)
    logits, cache_ = model.prefill(features, prefix, capacity=features.shape[1] + length + steps)
    near(logits, forced[:, length - 1])
    for step in range(steps):
        logits, cache_ = model.step(suffix[:, step], cache_)
        near(logits, forced[:, length + step])


@st.composite
def configs(draw: st.DrawFn) -> Json:
    """Any small decoder: heads that share keys, odd widths, layers that slide or not, caps on or off."""
    layers, kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    text = dict(
        hidden_size=draw(st.integers(8, 40)),
        intermediate_size=draw(st.integers(8, 40)),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(2, 12)),
    )
    if family := draw(st.sampled_from([None, "gemma2"])):
        kinds_of_layer = st.sampled_from(["sliding_attention", "full_attention"])
        text |= dict(
            query_pre_attn_scalar=draw(st.integers(4, 40)),
            attn_logit_softcapping=draw(st.sampled_from([None, 2.0, 50.0])),
            final_logit_softcapping=draw(st.sampled_from([None, 5.0])),
            sliding_window=draw(st.integers(1, 9)),
            layer_types=draw(st.lists(kinds_of_layer, min_size=layers, max_size=layers)),
        )
    vision = dict(num_attention_heads=draw(st.sampled_from([1, 2, 3])), image_size=14 * draw(st.integers(1, 3)))
    return config_json(family or "gemma", text, vision)


@settings(examples, max_examples=40)
@given(raw=configs(), window=st.booleans(), lengths=lengths_of_rows, seed=seeds)
def test_ragged_cached_decoding_equals_teacher_forcing_in_any_dimensions(
    raw: Json, window: bool, lengths: list[int], seed: int
) -> None:
    model, batch, slots = model_of(raw, random_tensors(raw, seed)), len(lengths), max(lengths)
    model.use_sliding_window = window
    features, prefix, suffix = pictures(model, batch), random_ids(batch, slots, seed), random_ids(batch, 4, seed + 1)
    forced = model.logits(features, prefix, suffix, lengths)
    capacity = features.shape[1] + slots + 4
    logits, cache_ = model.prefill(features, prefix, capacity=capacity, prefix_lengths=lengths)
    near(logits, mx.stack([forced[row, length - 1] for row, length in enumerate(lengths)]))
    for step in range(4):
        logits, cache_ = model.step(suffix[:, step], cache_)
        near(logits, forced[:, slots + step])


def prefilled(model: PaliGemma, lengths: list[int] | None, capacity: int = 16) -> KVCache:
    return model.prefill(pictures(model, 2), random_ids(2, 4), capacity=capacity, prefix_lengths=lengths)[1]


ragged = pytest.mark.parametrize("lengths", [None, [4, 2]], ids=["even", "ragged"])


@kinds
@ragged
def test_a_cache_is_a_value(kind: str, lengths: list[int] | None) -> None:
    """Steps from one cache do not disturb each other, nor the steps after them."""
    model, first, second = fixed(kind), mx.array([5, 6]), mx.array([7, 8])
    root = prefilled(model, lengths)
    expected = model.step(second, prefilled(model, lengths))[0]
    mx.eval(expected)
    _, branch = model.step(first, root)
    deeper, _ = model.step(first, branch)
    mx.eval(deeper, branch.keys, branch.values)
    assert same(model.step(second, root)[0], expected)
    assert same(model.step(first, branch)[0], deeper)


@ragged
def test_a_step_writes_in_place_when_the_old_cache_is_dropped(lengths: list[int] | None) -> None:
    model = fixed("gemma2")
    cache_ = prefilled(model, lengths, capacity=20_000)
    mx.eval(cache_.keys, cache_.values)
    cache_bytes = sum(array.nbytes for array in (*cache_.keys, *cache_.values))
    token = mx.array([5, 6])
    mx.eval(model.step(token, prefilled(model, lengths))[0])  # whatever is only made once
    with growth() as grown:
        for _ in range(3):
            logits, cache_ = model.step(token, cache_)
            mx.eval(logits, cache_.keys, cache_.values)
    assert grown.peak < cache_bytes / 100


@kinds
def test_a_full_cache_and_an_impossible_capacity_are_errors(kind: str) -> None:
    model = fixed(kind)
    prefix_tokens = pictures(model).shape[1] + 4
    with one_line_error(str(prefix_tokens - 1), str(prefix_tokens)):
        prefilled(model, None, capacity=prefix_tokens - 1)
    cache_ = prefilled(model, [4, 2], capacity=prefix_tokens + 1)
    _, cache_ = model.step(mx.array([1, 1]), cache_)
    with one_line_error("full", str(prefix_tokens + 1)):
        model.step(mx.array([1, 1]), cache_)


def test_impossible_inputs_are_errors() -> None:
    model = fixed("gemma")
    features, ids = pictures(model, 2), random_ids(2, 4)
    for lengths in ([4], [4, 5], [4, -1], [4, 2.5]):
        with one_line_error("prefix_lengths"):
            model.logits(features, ids, prefix_lengths=lengths)
        with one_line_error("suffix_lengths"):
            model.logits(features, ids, ids, suffix_lengths=lengths)
    with one_line_error("batch"):
        model.logits(features[:1], ids)
    for shape in [(28, 28, 3), (1, 28, 28, 1), (1, 42, 28, 3), (1, 3, 28, 28)]:
        with one_line_error("28"):
            model.encode_image(mx.zeros(shape))


# --- who sees whom ----------------------------------------------------------------------------------


@examples
@given(prefix=st.integers(1, 6), suffix=st.integers(0, 6), padding=st.integers(0, 3), window=st.integers(1, 9))
def test_the_mask_is_its_definition(prefix: int, suffix: int, padding: int, window: int) -> None:
    used, length = prefix + suffix, prefix + suffix + padding
    for wide in (None, window):
        mask = prefix_lm_mask(length, mx.array([prefix]), mx.array([used]), wide)[0, 0].tolist()
        for query in range(length):
            for key in range(length):
                seen = max(query, key) < prefix or (key <= query and (wide is None or query - key < wide))
                assert mask[query][key] == (seen and key < used)


@kinds
@examples
@given(changed=st.integers(1, 5), seed=seeds)
def test_the_prefix_sees_itself_in_both_directions(kind: str, changed: int, seed: int) -> None:
    model = fixed(kind)
    features, prefix = pictures(model, seed=seed), random_ids(1, 6, seed)
    other = mx.where(mx.arange(6) == changed, (prefix + 1) % VOCAB, prefix)
    moved = mx.abs(model.logits(features, prefix) - model.logits(features, other)).max(axis=-1)[0]
    assert (moved > 1e-3).all().item()


@kinds
@examples
@given(changed=st.integers(0, 5), seed=seeds)
def test_the_suffix_is_causal(kind: str, changed: int, seed: int) -> None:
    """A changed suffix token moves the logits at its own position and after, and not one bit before."""
    model = fixed(kind)
    features, prefix, suffix = pictures(model, seed=seed), random_ids(1, 4, seed), random_ids(1, 6, seed + 1)
    other = mx.where(mx.arange(6) == changed, (suffix + 1) % VOCAB, suffix)
    moved = mx.abs(model.logits(features, prefix, suffix) - model.logits(features, prefix, other)).max(axis=-1)[0]
    position = prefix.shape[1] + changed
    assert (moved[:position] == 0).all().item()
    assert moved[position].item() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_image_rows_enter_unscaled_and_text_rows_times_the_root_of_the_width(family: str) -> None:
    model = fixed(family)
    gemma = model.language_model
    features, ids = pictures(model), random_ids(1, 4)
    text = gemma.embed_tokens.weight[ids] * gemma.config.hidden_size**0.5
    expected = gemma.head(gemma(mx.concatenate([features, text], axis=1))[:, features.shape[1] :])
    assert same(model.logits(features, ids), expected)


@pytest.mark.parametrize("lengths", [None, [6, 3]], ids=["even", "ragged"])
def test_a_window_wider_than_everything_equals_no_window(lengths: list[int] | None) -> None:
    results = []
    for window in (True, False):
        model = tiny("gemma2", seed=3, window=window, sliding_window=4 + 6 + STEPS)
        features, ids = pictures(model, 2), random_ids(2, 6)
        logits = model.logits(features, ids, ids[:, :STEPS], lengths)
        results.append((greedy(model, features, ids, STEPS, lengths)[1], logits))
    (decoded, logits), (decoded_without, logits_without) = results
    assert same(decoded, decoded_without)
    assert same(logits, logits_without)


def test_a_narrow_window_changes_the_answer_but_not_the_first_token() -> None:
    """Nothing slides within the prefix; from the first step on, something is out of sight."""
    features, ids = pictures(fixed("gemma2")), random_ids(1, 6)
    with_window, without = (greedy(fixed(kind), features, ids, 2)[1][0] for kind in ("gemma2 with window", "gemma2"))
    assert same(with_window[0], without[0])
    assert distance(with_window[1], without[1]) > 1e-3
