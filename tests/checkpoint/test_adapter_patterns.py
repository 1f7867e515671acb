"""Patterns of adapters: PEFT's meaning, and an end."""

import re
import time

import pytest

from pg_mlx.checkpoint.adapters.patterns import matches

NAMES = [
    f"model.language_model.layers.{layer}.{part}"
    for layer in (0, 3, 12)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")
] + ["model.vision_tower.vision_model.encoder.layers.3.self_attn.q_proj", "lm_head"]
PATTERNS = [
    "q_proj",
    "proj",
    r"self_attn\.q_proj",
    "lm_head|embed_tokens",
    r".*layers\.3\..*",
    r"layers\.\d+\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    r"^(?!.*(vision|projector)).*layers\.\d+\..*(q|o)_proj",
    r"(model\.)?language_model\.layers\.(0|12)\.self_attn\.[qo]_proj",
    r"layers\.1{1,2}2?\.mlp\.gate_proj",
    r"layers\.[^.)+*]+\.mlp\.gate_proj",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_peft_means(pattern: str):
    for name in NAMES:
        assert matches(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\w+\.?)+X",
        "(a|aa)+b",
        "(a*)*b",
        "(a+){2,}b",
        "(?:a+)*?b",
        "(?x)(a+) +b",
        "((a+)) +",
        ".*.*.*.*.*.*X",
        "(.|..)" * 30 + "X",
        ".?" * 40 + "X",
        "(" * 2000,
        "(",
        "[",
        "a{99999999999}",
        "*",
        "(?P<a>.)(?P=a)",
    ],
)
def test_what_might_not_end_is_refused_at_once(pattern: str):
    began = time.perf_counter()
    try:
        for name in NAMES:
            matches(pattern, name)
    except ValueError as error:
        assert len(str(error)) < 200
    else:
        assert pattern == "((a+)) +"  # which repeats a space
    assert time.perf_counter() - began < 1


def test_names_are_bounded():
    with pytest.raises(ValueError, match="120"):
        matches(".*.*.*X", "a" * 5000)
