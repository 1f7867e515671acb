"""Do the tensors of a checkpoint fit its config.json? Everything that does not is said at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..quantization import Quantization
from .layouts import HEAD, WeightSpec

Shapes = Mapping[str, tuple[int, ...]]


def check(specs: Iterable[WeightSpec], shapes: Shapes, config: PaliGemmaConfig) -> None:
    """Raises one InputError that lists every missing, misshapen and surplus tensor."""
    expected = {name: shape for spec in specs for name, shape in _expected(spec, shapes, config)}
    missing = [name for name in expected if name not in shapes]
    misshapen = [
        f"{name} is {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    surplus = sorted(set(shapes) - set(expected))
    if config.tie_word_embeddings:  # then a stored head is a copy of the embedding
        surplus = [name for name in surplus if not name.startswith(f"{HEAD}.")]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("misshapen", misshapen), ("surplus", surplus))
        if names
    ]
    if problems:
        raise InputError(f"the tensors do not fit config.json; {'; '.join(problems)}")


def _expected(spec: WeightSpec, shapes: Shapes, config: PaliGemmaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The spec's tensors as they must be stored: float, or packed where there are scales."""
    for name, shape in spec.expected():
        module = name.removesuffix(".weight")
        if spec.kind not in ("linear", "embedding", "array") or f"{module}.scales" not in shapes or name not in shapes:
            yield name, shape
            continue
        quantization = packing(shapes, module, spec.columns, config)
        rows = shape[0]
        yield name, (rows, spec.columns * quantization.bits // 32)
        for part in quantization.parts[1:]:
            yield f"{module}.{part}", (rows, spec.columns // quantization.group_size)


def packing(shapes: Shapes, module: str, columns: int, config: PaliGemmaConfig) -> Quantization:
    """How a quantized module is packed: found from the shapes of its tensors, and checked against config.json.

    Raises InputError if no mode packs like that, or config.json says otherwise.
    """
    weight, scales = shapes[f"{module}.weight"], shapes[f"{module}.scales"]
    if len(weight) != 2 or len(scales) != 2:
        raise InputError(f"{module}: weight {list(weight)} and scales {list(scales)} are not both matrices")
    try:
        found = Quantization.recognise(weight[1], scales[1], columns, has_biases=f"{module}.biases" in shapes)
    except InputError as error:
        raise InputError(f"{module}: {error}") from None
    entry = config.quantization.get(module)
    entry = entry if isinstance(entry, Mapping) else config.quantization
    for key in ("bits", "group_size", "mode"):
        if entry.get(key, getattr(found, key)) != getattr(found, key):
            raise InputError(
                f"config.json says {key} of {module} is {entry[key]}, but the tensors say {getattr(found, key)}"
            )
    return found
