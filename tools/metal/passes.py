"""The passes of every published PaliGemma, traced: pictures, prefixes, steps, and masks.

A recipe of pg_mlx packs the weights; without one they are bfloat16. Two layers stand for all of them, since the last
layer of a prefix is unlike the others, and the others are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pg_mlx.cache import KVCache
from pg_mlx.config import SIZES, PaliGemmaConfig
from pg_mlx.generation.sampling import Sampler, SamplingOptions
from pg_mlx.linear import Matrix
from pg_mlx.ops.device import mx
from pg_mlx.paligemma import PaliGemma
from pg_mlx.quantization import RECIPES
from pg_mlx.regions import mask_vae
from tools.random_checkpoint import raw_config

from .chips import CHIPS, Chip
from .trace import Operation, trace

PIXELS = (224, 448, 896)
PROMPT = 11
"""Tokens of a prompt: odd, as most are, so that no length is a multiple of anything."""
SUFFIX = 40
"""Slots for the answer."""
TEXT_IDS = 257152
"""Ids that are text, so that an answer may have them."""


@dataclass(frozen=True)
class Pass:
    """phase: vision, connect, prefill, step, extend, locations or masks. recipe: None for bfloat16. batch: rows.

    even: whether they are equally long.
    """

    model: str
    pixels: int
    recipe: str | None
    phase: str
    batch: int
    even: bool = True

    def __str__(self) -> str:
        rows = f"{self.batch} rows" if self.even else f"{self.batch} unequal rows"
        return f"{self.model}-{self.pixels} {self.recipe or 'bf16'}, {self.phase}, {rows}"


def passes(models: Sequence[str] = tuple(SIZES)) -> Iterator[Pass]:
    """All that are looked at, of these models. The vision tower is the same in all, and traced for the first only."""
    for model, pixels, recipe in product(models, PIXELS, (None, *RECIPES)):
        for batch, even in ((1, True), (8, True), (8, False)):
            if even and model == next(iter(SIZES)):
                yield Pass(model, pixels, recipe, "vision", batch)
            for phase in ("connect", "prefill", "step", "extend"):
                if even or phase != "connect":
                    yield Pass(model, pixels, recipe, phase, batch, even)
        if pixels == PIXELS[0]:
            yield Pass(model, pixels, recipe, "locations", 1)
    if next(iter(SIZES)) in models:
        yield from (Pass(next(iter(SIZES)), PIXELS[0], None, "masks", batch) for batch in (1, 32))


def by_chip(wanted: Pass) -> Iterator[tuple[Chip, Operation]]:
    """What the pass gives to each kind of chip."""
    plain, nax = ([chip for chip in CHIPS if chip.nax == has] for has in (False, True))
    differs = wanted.phase == "prefill" and not wanted.even  # where attention may be one kernel on an M5 only
    for group in (plain, nax) if differs else (CHIPS,):
        yield from product(group, dict.fromkeys(operations(wanted, group[0])))


def operations(wanted: Pass, chip: Chip) -> list[Operation]:
    """What the pass gives to a chip of that kind."""
    model = _model(wanted)
    named = _parameters(model)
    function, arrays = _PHASES[wanted.phase](model, wanted)

    def run(*given: mx.array) -> list[mx.array]:
        first = given[: len(arrays)]
        for (module, name), array in zip(named, given[len(arrays) :], strict=True):
            module[name] = array
        return function(*first)

    return trace(run, [*arrays, *(module[name] for module, name in named)], chip)


Phase = tuple[Callable[..., list[mx.array]], Sequence[mx.array]]


def _lengths(wanted: Pass, prefix: int) -> list[int]:
    return [prefix - (0 if wanted.even else row % 4) for row in range(wanted.batch)]


def _vision(model: PaliGemma, wanted: Pass) -> Phase:
    pixels = mx.zeros((wanted.batch, wanted.pixels, wanted.pixels, 3))
    return lambda pixels: [model.vision_tower(pixels)], [pixels]


def _connect(model: PaliGemma, wanted: Pass) -> Phase:
    vision = model.config.vision
    features = mx.zeros((wanted.batch, vision.num_patches, vision.hidden_size), mx.bfloat16)
    return lambda features: [model.connector(features)], [features]


def _prefill(model: PaliGemma, wanted: Pass) -> Phase:
    config = model.config
    features = mx.zeros((wanted.batch, config.vision.num_patches, config.text.hidden_size), mx.bfloat16)
    ids = mx.zeros((wanted.batch, PROMPT), mx.int32)
    capacity = config.vision.num_patches + PROMPT + SUFFIX
    lengths = None if wanted.even else _lengths(wanted, PROMPT)

    def run(features: mx.array, ids: mx.array) -> list[mx.array]:
        logits, cache = model.prefill(features, ids, capacity=capacity, prefix_lengths=lengths)
        return [logits, _greedy(logits), *cache.layers]

    return run, [features, ids]


def _greedy(logits: mx.array) -> mx.array:
    return Sampler(SamplingOptions(), TEXT_IDS)(logits)


def _extend(model: PaliGemma, wanted: Pass, count: int = 3) -> Phase:
    text = model.config.text
    prefix = model.config.vision.num_patches + PROMPT
    shape = (2, wanted.batch, text.num_key_value_heads, prefix + SUFFIX, text.head_dim)
    layers = [mx.zeros(shape, mx.bfloat16) for _ in range(2)]
    lengths = tuple(_lengths(wanted, prefix))

    def run(ids: mx.array, *layers: mx.array) -> list[mx.array]:
        logits, cache = model.extend(ids, KVCache(layers, lengths))
        return [logits, _greedy(logits), *cache.layers]

    return run, [mx.zeros((wanted.batch, count), mx.int32), *layers]


def _locations(model: PaliGemma, wanted: Pass) -> Phase:
    """The logits of <loc0000> to <loc1023> only, as a guide asks for them."""
    hidden = mx.zeros((wanted.batch, model.config.text.hidden_size), mx.bfloat16)
    return lambda hidden: [model.language_model.head(hidden, range(256000, 257024))], [hidden]


def _masks(model: PaliGemma, wanted: Pass) -> Phase:
    """The mask decoder, with the widths of the published one."""
    wide = {"_vq_vae._embedding": (mask_vae.CODEBOOK_SIZE, 512), "decoder.0.weight": (128, 512, 1, 1)}
    for number, outputs in zip((4, 6, 8, 10), (128, 64, 32, 16), strict=True):
        wide[f"decoder.{number}.weight"] = (0, outputs)
    shapes = mask_vae.decoder_shapes(wide)
    decoder = mask_vae.MaskDecoder({name: mx.zeros(shape) for name, shape in shapes.items()})
    return lambda codes: [decoder._decode(codes)], [mx.zeros((wanted.batch, 16), mx.int32)]


_PHASES: dict[str, Callable[[PaliGemma, Pass], Phase]] = {
    "vision": _vision,
    "connect": _connect,
    "prefill": _prefill,
    "step": lambda model, wanted: _extend(model, wanted, 1),
    "extend": _extend,
    "locations": _locations,
    "masks": _masks,
}


def _model(wanted: Pass) -> PaliGemma:
    """The model with weights that are shapes only, as loading a converted checkpoint leaves it."""
    config = PaliGemmaConfig.from_dict(
        raw_config(f"{wanted.model}-{wanted.pixels}", layers=2, padded=bool(wanted.recipe))
    )
    model = PaliGemma(config, dtype=mx.bfloat16)
    for name, module in model.named_modules():
        if isinstance(module, Matrix):
            _pack(module, name, wanted.recipe)
        elif "Norm" not in type(module).__name__:
            for key, value in module.items():
                if isinstance(value, mx.array):
                    module[key] = mx.zeros(value.shape, mx.bfloat16)
    return model


def _pack(module: Matrix, name: str, recipe: str | None) -> None:
    rows, columns = module.num_outputs, module.num_columns
    canonical = name.replace("connector", "multi_modal_projector")
    if name.endswith("patch_embedding"):
        recipe = None
    packing = RECIPES[recipe].choose(canonical, columns) if recipe else None
    module.quantization = packing
    if packing is None:
        module.weight = mx.zeros((rows, columns), mx.bfloat16)
    else:
        module.weight = mx.zeros((rows, columns * packing.bits // 32), mx.uint32)
        module.scales, module.biases = (mx.zeros((rows, columns // packing.group_size), mx.bfloat16) for _ in range(2))
    if "bias" in module:
        module.bias = mx.zeros((rows,), mx.bfloat16)


def _parameters(model: PaliGemma) -> list[tuple[Any, str]]:
    """Where each array of the model is."""
    return [
        (module, name)
        for _, module in model.named_modules()
        for name, value in module.items()
        if isinstance(value, mx.array)
    ]
