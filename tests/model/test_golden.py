"""Numbers of other people's code (transformers 5.23 and big_vision, float32) for two tiny models, reproduced.

Run with -rP to see how far off each one is.
"""

from dataclasses import dataclass

import mlx.core as mx
import pytest
from helpers.models import distance, greedy, same
from helpers.paths import GOLDEN

from pg_mlx import PaliGemma, load_model
from pg_mlx.attention_mask import prefix_lm_mask

TOLERANCE = 1e-4
IMAGE_TOKENS = 16
STEPS = 24


@dataclass(frozen=True)
class Case:
    """A checkpoint, and the reference dumps of its family."""

    family: str
    model: PaliGemma

    def dump(self, name: str) -> dict[str, mx.array]:
        return mx.load(str(GOLDEN / f"{self.family}_{name}.safetensors"))

    def key(self, name: str, window: bool) -> str:
        """The dumps of PaliGemma 2 without a suffix were made with the sliding window."""
        self.model.use_sliding_window = window
        return f"{name}_no_sliding" if self.family == "pg2" and not window else name


@pytest.fixture(scope="module", params=["pg1_classic", "pg1_new", "pg2_classic", "pg2_new"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param[:3], load_model(GOLDEN / request.param, dtype="float32"))


WINDOWS = pytest.mark.parametrize("window", [False, True], ids=["no window", "window"])


def agrees(name: str, actual: mx.array, expected: mx.array) -> None:
    worst = distance(actual, expected)
    print(f"{name}: off by {worst:.1e} at most")
    assert worst <= TOLERANCE


def features_of(model: PaliGemma, dump: dict[str, mx.array]) -> mx.array:
    return model.encode_image(dump["pixel_values"].transpose(0, 2, 3, 1))


def right_padded(dump: dict[str, mx.array]) -> tuple[mx.array, list[int]]:
    """The text of a left-padded batch with its padding moved to the right, and the lengths."""
    rows = [
        [token for token, real in zip(ids, mask, strict=True) if real][IMAGE_TOKENS:]
        for ids, mask in zip(dump["input_ids"].tolist(), dump["attention_mask"].tolist(), strict=True)
    ]
    width = max(map(len, rows))
    return mx.array([row + [0] * (width - len(row)) for row in rows]), [len(row) for row in rows]


def test_vision_and_projected_features(case: Case) -> None:
    dump = case.dump("batch3")
    vision = case.model.vision_tower(dump["pixel_values"].transpose(0, 2, 3, 1))
    agrees("vision_features", vision, dump["vision_features"])
    agrees("projected_features", case.model.connector(vision), dump["projected_features"])


def test_decoder_rows_and_hidden_states(case: Case) -> None:
    """Image rows stand in transformers 5's inputs_embeds unscaled, text rows multiplied by sqrt(D)."""
    dump, gemma = case.dump("batch1"), case.model.language_model
    features = features_of(case.model, dump)
    rows = mx.concatenate([features, gemma.embed(dump["input_ids"][:, IMAGE_TOKENS:])], axis=1)
    agrees("inputs_embeds", rows, dump["inputs_embeds"])
    first = gemma.layers[0]
    query, key, value = first.self_attn.project(first.pre_attention_norm(rows), 0)
    after = first.finish(rows, first.self_attn.attend(query, key, value, None))
    agrees("hidden_after_layer0", after.hidden, dump["hidden_after_layer0"])
    agrees("hidden_final_norm", gemma(rows), dump["hidden_final_norm"])


@WINDOWS
def test_prefill_logits(case: Case, window: bool) -> None:
    """A window never acts within the prefix, so both settings meet the same numbers."""
    case.model.use_sliding_window = window
    dump = case.dump("batch1")
    features, ids = features_of(case.model, dump), dump["input_ids"][:, IMAGE_TOKENS:]
    agrees("logits", case.model.logits(features, ids), dump["prefill_logits"][:, IMAGE_TOKENS:])
    last, _ = case.model.prefill(features, ids, capacity=64)
    agrees("prefill", last, dump["prefill_logits"][:, -1])


@WINDOWS
def test_greedy_decoding_of_one(case: Case, window: bool) -> None:
    dump, key = case.dump("batch1"), case.key("greedy_tokens", window)
    ids = dump["input_ids"][:, IMAGE_TOKENS:]
    tokens, logits = greedy(case.model, features_of(case.model, dump), ids, STEPS)
    assert tokens.tolist() == dump[key].tolist()
    agrees("greedy_step_logits", logits, dump[case.key("greedy_step_logits", window)])


@WINDOWS
def test_greedy_decoding_of_a_padded_batch(case: Case, window: bool) -> None:
    dump, key = case.dump("batch3"), case.key("greedy_tokens", window)
    ids, lengths = right_padded(dump)
    assert len(set(lengths)) == 3
    features = features_of(case.model, dump)
    logits = case.model.logits(features, ids, prefix_lengths=lengths)
    for row, length in enumerate(lengths):
        agrees(f"logits of row {row}", logits[row, :length], dump["prefill_logits"][row, -length:])
    tokens, step_logits = greedy(case.model, features, ids, STEPS, lengths)
    assert tokens.tolist() == dump[key].tolist()
    if window or case.family == "pg1":
        agrees("greedy_step_logits", step_logits, dump["greedy_step_logits"])


def test_two_images_in_one_prompt(case: Case) -> None:
    dump, pixels = case.dump("two_images"), mx.load(str(GOLDEN / "pixels.safetensors"))
    names = ("img0_rgb_56x56.white_background", "img1_rgb_90w61h.white_background")
    pair = mx.stack([pixels[name].transpose(1, 2, 0) for name in names])
    features = case.model.encode_image(pair).reshape(1, 2 * IMAGE_TOKENS, -1)
    ids = dump["input_ids"][:, 2 * IMAGE_TOKENS :]
    expected = dump["prefill_logits"][:, 2 * IMAGE_TOKENS :]
    agrees("logits", case.model.logits(features, ids), expected)
    agrees("prefill", case.model.prefill(features, ids, capacity=40)[0], expected[:, -1])


@WINDOWS
def test_training_logits_and_loss(case: Case, window: bool) -> None:
    dump, key = case.dump("train"), case.key("logits", window)
    ids, types = dump["input_ids"][:, IMAGE_TOKENS:], dump["token_type_ids"][:, IMAGE_TOKENS:]
    prefix = (types == 0).sum().item()
    logits = case.model.logits(features_of(case.model, dump), ids[:, :prefix], ids[:, prefix:])
    agrees(key, logits, dump[key][:, IMAGE_TOKENS:])
    if window or case.family == "pg1":
        labels = dump["labels"][0, IMAGE_TOKENS + 1 :].tolist()
        log_likelihood = logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True)
        losses = [-log_likelihood[position, label].item() for position, label in enumerate(labels) if label >= 0]
        assert len(losses) == ids.shape[1] - prefix
        agrees("loss", mx.array([sum(losses) / len(losses)]), dump["loss"])


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_masks(family: str) -> None:
    dump = mx.load(str(GOLDEN / f"{family}_train.safetensors"))
    prefix, length = (dump["token_type_ids"] == 0).sum(axis=1), dump["input_ids"].shape[1]
    lengths = mx.array([length])
    assert same(prefix_lm_mask(length, prefix, lengths)[:, 0], dump["mask_full"] > 0)
    if family == "pg2":
        assert same(prefix_lm_mask(length, prefix, lengths, window=8)[:, 0], dump["mask_sliding"] > 0)


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_both_layouts_are_the_same_model(family: str) -> None:
    dump = mx.load(str(GOLDEN / f"{family}_batch1.safetensors"))
    ids = dump["input_ids"][:, IMAGE_TOKENS:]
    models = [load_model(GOLDEN / f"{family}_{layout}", dtype="float32") for layout in ("classic", "new")]
    assert same(*(model.logits(features_of(model, dump), ids) for model in models))
