"""Checkpoints in forms that are not read here: what they are, and how they become one that is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..errors import InputError

_SAVE_AGAIN = (
    "save it again in Python, with PaliGemmaForConditionalGeneration.from_pretrained(FOLDER)"
    ".save_pretrained(OTHER, safe_serialization=True)"
)
_FORMS = [
    (r"zero_to_fp32\.py|global_step\d+|zero_pp_rank.*|mp_rank_.*", "a DeepSpeed checkpoint",
     "run `python zero_to_fp32.py . OTHER --safe_serialization` in it, and copy config.json and the tokenizer there"),
    (r"pytorch_model_fsdp.*|.*\.distcp|\.metadata", "an FSDP checkpoint in parts",
     "run `accelerate merge-weights FOLDER OTHER`, and copy config.json and the tokenizer there"),
    (r"rank_?\d+.*\.pt|.*_rank\d+\.pth?", "a checkpoint in parts, one a process", "merge it as its trainer explains"),
    (r"pytorch_model.*\.bin(\.index\.json)?|.*\.(pt|pth|ckpt|bin)", "a PyTorch file, which may hold a program",
     _SAVE_AGAIN),
    (r".*\.gguf", "a GGUF file of llama.cpp",
     "use the repository that it was made from, and quantize that with convert.py -q"),
    (r".*\.(h5|keras)|model\.weights\.json", "a Keras checkpoint",
     "export it with KerasHub: model.export_to_transformers(OTHER)"),
    (r".*\.msgpack(\.index\.json)?", "Flax weights",
     "load them with from_flax=True in transformers before 5, and save them"),
    (r"_METADATA|_CHECKPOINT_METADATA|ocdbt\.process_\d+|manifest\.ocdbt|checkpoint", "an Orbax checkpoint",
     "save its parameters with numpy.savez under big_vision's names"),
    (r".*\.(onnx|tflite|task|mlmodelc?|mlpackage|pte|ot)", "a model compiled for another program",
     "use the repository that it was made from"),
    (r".*\.npz", "an archive", "name it itself as the model"),
]  # fmt: skip
"""Names of files and folders, what they belong to, and the way out; the first that fits wins."""


_ANYTHING_AS_A_FOLDER = ("checkpoint", ".metadata")
"""Names that belong to a form only if they are files'; as a folder's name they are used for everything."""


def way_out(files: Collection[str], folders: Iterable[str] = ()) -> str:
    """What files and subfolders of these names are, and what to do, as the end of a message; "" if they say nothing."""
    names = {*files, *(name for name in folders if name not in _ANYTHING_AS_A_FOLDER)}
    for pattern, what, advice in _FORMS:
        found = next((name for name in sorted(names) if re.fullmatch(pattern, name)), None)
        if found and found != "training_args.bin":
            return f". {found} is {what}: {advice}"
    if len(names) == 1 and next(iter(names)).endswith(".safetensors"):
        return "; name its folder, where config.json is, too"
    runs = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if runs:
        last = max(runs, key=lambda name: int(name.rpartition("-")[2]))
        return f". It is the folder of a training run; name one of its checkpoints, as its last: {last}"
    return ""


_UNMERGED = re.compile(r"\.lora_|\.base_layer\.|\.lora_magnitude_vector|\.modules_to_save\.|\.original_module\.")
_PACKED_ELSEWHERE = [
    (re.compile(r"\.absmax$|\.quant_map$|quant_state\.bitsandbytes"), "bitsandbytes (4 bits)"),
    (re.compile(r"\.SCB$|\.weight_format$"), "bitsandbytes (8 bits)"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.weight_packed$|\.weight_shape$"), "compressed-tensors"),
    (re.compile(r"\.weight_scale(_inv)?$|\.input_scale$"), "FP8 with scales"),
]
_UNREADABLE = {
    "F64": "float64, which MLX cannot read: save it in float32 (model.float() in PyTorch)",
    "C64": "complex numbers",
}


def refuse_unreadable(place: str, dtypes: Mapping[str, str]) -> None:
    """Raises InputError for tensors that show another program's packing, or an adapter that was not merged.

    place: what messages call the checkpoint. dtypes: of every tensor in its files, under its stored name.
    """
    for key, dtype in dtypes.items():
        if _UNMERGED.search(key):
            raise InputError(
                f"{place} holds an adapter that is not merged into its weights ({key}): merge it in PEFT with "
                "merge_and_unload() and save that, or save the adapter alone and name it with --adapter-path"
            )
        if dtype.startswith("F8_"):
            raise _packed(place, "FP8", key)
        for pattern, program in _PACKED_ELSEWHERE:
            if pattern.search(key):
                raise _packed(place, program, key)
        if dtype in _UNREADABLE:
            raise InputError(f"{place}: {key} holds {_UNREADABLE[dtype]}")


def without_foreign_quantization(place: str, raw: Any, dtypes: Iterable[str]) -> Any:
    """A config.json without the entry that another quantizer has left there, if all tensors are float.

    dtypes: of the tensors in the files. Raises InputError if some are not.
    """
    entry = raw.get("quantization_config") if isinstance(raw, Mapping) else None
    if not isinstance(entry, Mapping) or raw.get("quantization"):
        return raw
    if "bits" in entry and "group_size" in entry and "quant_method" not in entry:  # MLX's own, under its second name
        return raw
    if not all(dtype in ("F32", "F16", "BF16") for dtype in dtypes):
        if "quant_method" in entry or "load_in_4bit" in entry or "load_in_8bit" in entry:
            raise _packed(place, str(entry.get("quant_method", "bitsandbytes")), "config.json says so")
        return raw
    return {key: value for key, value in raw.items() if key != "quantization_config"}


def _packed(place: str, program: str, where: str) -> InputError:
    return InputError(
        f"{place} is quantized by {program} ({where}), which MLX cannot read; convert the original float checkpoint, "
        "or save this one again after model.dequantize() in transformers"
    )
