"""What recipes mean, and what they make of the published sizes: decided from shapes, without any weights."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from helpers.models import one_line_error

from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.checkpoint.tensors import Source
from pg_mlx.config import SIZES, PaliGemmaConfig
from pg_mlx.conversion.bit_table import find_recipe, published
from pg_mlx.conversion.plan import Module, Plan, make_plan
from pg_mlx.quantization import RECIPES, Quantization, Recipe, uniform
from pg_mlx.quantization.recipes import Rule, parse_packing
from tools.random_checkpoint import raw_config

FOUR, SIX, EIGHT = (Quantization(bits, 64) for bits in (4, 6, 8))
TEXT, VISION = "language_model.model", "vision_tower.vision_model"


class Shapes(Source):
    """A checkpoint that has no weights."""

    def __init__(self, config: PaliGemmaConfig):
        self.shapes = dict(pair for spec in weight_specs(config) for pair in spec.expected())

    def read(self, name: str) -> mx.array:
        raise AssertionError(f"{name} was read")


def without_weights(raw: dict[str, Any]) -> Checkpoint:
    return Checkpoint.of(Shapes(PaliGemmaConfig.from_dict(raw)), raw)


def plan_of(model: str, recipe: Recipe | None = None) -> Plan:
    raw = raw_config(model, vocab_size=257152)  # as the papers count: without rows for <image>
    return make_plan(without_weights(raw | {"image_token_index": 257215}), recipe)


def bits(modules: list[Module]) -> float:
    """Bits a weight where scales and floats have 16."""
    return 8 * sum(module.bytes_after(2) for module in modules) / sum(module.parameters for module in modules)


# --- the published sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("paligemma-3b-224", 2_923_335_408),
        ("paligemma-3b-448", 2_924_220_144),
        ("paligemma-3b-896", 2_927_759_088),
        ("paligemma2-3b-224", 3_032_094_960),
        ("paligemma2-3b-448", 3_032_979_696),
        ("paligemma2-3b-896", 3_036_518_640),
        ("paligemma2-10b-224", 9_662_409_456),
        ("paligemma2-28b-224", 27_650_192_112),
    ],
)
def test_parameters_are_counted_as_published(model: str, count: int):
    """Padding SigLIP's MLP for packing does not count."""
    assert sum(module.parameters for module in plan_of(model).modules) == count
    assert sum(module.parameters for module in plan_of(model, RECIPES["quality"]).modules) == count


@pytest.mark.parametrize("name", published())
@pytest.mark.parametrize("pixels", [224, 896])
def test_recipes_of_published_shapes_fit_them(name: str, pixels: int) -> None:
    """In the size of 4 bits everywhere, with the positions of any resolution; and they say what they are."""
    recipe = find_recipe(name)
    plan = plan_of(f"{name.removesuffix('-4bit')}-{pixels}", recipe)
    widths = {module.target.bits for module in plan.modules if module.target}
    assert bits(plan.modules) == pytest.approx(4.5, abs=0.03) and min(widths) >= 3 and len(widths) >= 3
    assert plan.left_float == [] and "not measured on real" in recipe.about


def test_every_published_shape_has_a_recipe() -> None:
    assert published() == sorted(f"{size}-4bit" for size in SIZES)


BITS = [  # by hand: 4, 6 and 8 bits in groups of 64 are 4.5, 6.5 and 8.5 with scale and bias
    ("paligemma-3b-224", "tiny", 5.080, 4.500),
    ("paligemma-3b-224", "balanced", 5.440, 4.500),
    ("paligemma-3b-224", "quality", 8.512, 8.500),
    ("paligemma2-3b-448", "tiny", 5.063, 4.501),
    ("paligemma2-3b-448", "balanced", 6.344, 5.835),
    ("paligemma2-3b-448", "quality", 8.515, 8.501),
    ("paligemma2-10b-448", "tiny", 4.678, 4.501),
    ("paligemma2-10b-448", "balanced", 4.869, 4.501),
    ("paligemma2-10b-448", "quality", 8.505, 8.501),
    ("paligemma2-28b-896", "tiny", 4.564, 4.500),
    ("paligemma2-28b-896", "balanced", 4.650, 4.500),
    ("paligemma2-28b-896", "quality", 8.503, 8.500),
]


@pytest.mark.parametrize(("model", "recipe", "whole", "decoder"), BITS)
def test_bits_a_weight(model: str, recipe: str, whole: float, decoder: float):
    plan = plan_of(model, RECIPES[recipe])
    assert bits(plan.modules) == pytest.approx(whole, abs=0.0006)
    assert bits([m for m in plan.modules if m.component == "decoder"]) == pytest.approx(decoder, abs=0.0006)
    assert plan.left_float == []


@pytest.mark.parametrize("model", ["paligemma-3b-224", "paligemma2-3b-448", "paligemma2-10b-448", "paligemma2-28b-224"])
def test_six_bits_where_mlx_has_no_fast_four_bit_kernel(model: str):
    """2304 columns, PaliGemma 2 3B's width, are no multiple of 512; nothing else in any decoder is like that."""
    packed = {m.name: m.target for m in plan_of(model, RECIPES["balanced"]).modules if m.name.startswith(f"{TEXT}.l")}
    layers = 26 if model.startswith("paligemma2-3b") else 0
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    wide = {f"{TEXT}.layers.{layer}.{part}" for layer in range(layers) for part in parts}
    assert {name for name, packing in packed.items() if packing == SIX} == wide
    matrices = {name for name in packed if name.endswith("_proj")}
    assert {name for name, packing in packed.items() if packing == FOUR} == matrices - wide
    assert {name for name, packing in packed.items() if packing is None} == packed.keys() - matrices  # norms


def test_a_plan_pads_the_vision_mlp_only_where_it_is_packed():
    fc1, fc2 = (f"{VISION}.encoder.layers.26.mlp.{name}" for name in ("fc1", "fc2"))
    for recipe, width in [
        (None, 4304),
        (RECIPES["tiny"], 4352),
        (uniform(4, 32, None), 4352),
        (uniform(None, None, "nvfp4"), 4304),  # groups of 16, which 4304 is a multiple of
        (RECIPES["tiny"].with_overrides({"*.mlp.fc2": "float"}), 4304),
    ]:
        plan = plan_of("paligemma-3b-224", recipe)
        modules = {module.name: module for module in plan.modules}
        assert plan.config.vision.intermediate_size == width
        assert modules[fc1].padded == (width, 1152) and modules[fc2].padded == (1152, width)
        assert (modules[fc1].rows, modules[fc2].columns) == (4304, 4304)


def test_the_quantization_entry_names_what_is_not_as_most():
    plan = plan_of("paligemma-3b-224", RECIPES["tiny"].with_overrides({"*.o_proj": "mxfp8", "*.embed_tokens": "float"}))
    entry = plan.config.quantization
    assert {key: entry[key] for key in ("bits", "group_size")} == {"bits": 8, "group_size": 64}  # 163 of SigLIP's
    assert entry[f"{TEXT}.embed_tokens"] is False
    assert entry[f"{TEXT}.layers.3.self_attn.o_proj"] == {"bits": 8, "group_size": 32, "mode": "mxfp8"}
    assert entry[f"{TEXT}.layers.3.mlp.up_proj"] == {"bits": 4, "group_size": 64}
    assert len(entry) == 2 + 1 + 18 * 7  # layers of the decoder have seven matrices


def test_nothing_is_packed_but_matrices():
    for module in plan_of("paligemma2-3b-448", uniform(8, None, None)).modules:
        is_matrix = module.name.endswith(("_proj", "fc1", "fc2", "linear", "embed_tokens"))
        assert (module.target == EIGHT) == is_matrix, module.name
        assert is_matrix or module.target is None


# --- rules ----------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides():
    recipe = Recipe(
        "r", "", (Rule("a.*", EIGHT), Rule("*.b", None), Rule("*", SIX, unless_multiple=512), Rule("*", FOUR))
    )
    assert recipe.choose("a.b", 512) == EIGHT
    assert recipe.choose("c.b", 512) is None
    assert recipe.choose("c.d", 2304) == SIX
    assert recipe.choose("c.d", 2048) == FOUR
    assert Recipe("r", "", (Rule("A*", FOUR),)).choose("a", 64) is None  # letters count, and no rule means float


def test_overrides_go_before_the_rules_in_their_order():
    recipe = RECIPES["tiny"].with_overrides({"*.embed_tokens": "8", "language_*": "3/32", "*.q_proj": "float"})
    assert recipe.choose(f"{TEXT}.embed_tokens", 2048) == EIGHT
    assert recipe.choose(f"{TEXT}.layers.0.self_attn.q_proj", 2048) == Quantization(3, 32)
    assert recipe.choose(f"{VISION}.encoder.layers.0.self_attn.q_proj", 1152) is None
    assert recipe.choose(f"{VISION}.encoder.layers.0.self_attn.k_proj", 1152) == EIGHT
    assert recipe.name == "tiny, overridden" and RECIPES["tiny"].with_overrides({}).name == "tiny"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ((None, None, None), FOUR),
        ((6, None, None), SIX),
        ((3, 128, "affine"), Quantization(3, 128)),
        ((None, 32, None), Quantization(4, 32)),
        ((None, None, "mxfp4"), Quantization(4, 32, "mxfp4")),
        ((None, None, "mxfp8"), Quantization(8, 32, "mxfp8")),
        ((4, 16, "nvfp4"), Quantization(4, 16, "nvfp4")),
    ],
)
def test_uniform_settings_and_their_defaults(given: tuple, meant: Quantization):
    assert uniform(*given).choose("anything", 512) == meant


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((7, None, None), "7 bits"),
        ((0, None, None), "0 bits"),
        ((-4, None, None), "-4 bits"),
        ((4, 48, None), "groups of 48"),
        ((4, 0, None), "groups of 0"),
        ((4, 16, None), "groups of 16"),
        ((None, None, "mxfp5"), "mxfp5"),
        ((8, None, "mxfp4"), "mxfp4 always has 4 bits in groups of 32"),
        ((None, 64, "mxfp8"), "mxfp8 always has 8 bits in groups of 32"),
    ],
)
def test_uniform_settings_that_mlx_does_not_have(given: tuple, words: str):
    with one_line_error(words):
        uniform(*given)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("6", SIX),
        ("4/32", Quantization(4, 32)),
        ("mxfp8", Quantization(8, 32, "mxfp8")),
        ("float", None),
    ],
)
def test_packings_in_words(text: str, meant: Quantization | None):
    assert parse_packing(text) == meant


@pytest.mark.parametrize(
    "text", ["", "x", "-4", "4/", "/64", "4.5", "7", "4/48", "4/32/1", " 4", "4\n", "²", "٤", "FLOAT"]
)
def test_words_that_are_no_packing(text: str):
    with one_line_error():
        parse_packing(text)


def test_a_recipe_that_could_pack_nothing_is_an_error():
    checkpoint = without_weights(raw_config("tiny-56", vocab_size=300))
    with one_line_error("quantizes nothing"):
        make_plan(checkpoint, RECIPES["tiny"].with_overrides({"*": "float"}))
