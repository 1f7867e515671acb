"""A conversion in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoint.adapters.merge import AdapterPath
from .pipeline import Conversion
from .report import Report
from .samples import Calibration
from .target import choose_packing
from .weights import Progress


def convert(
    source: str | Path,
    target: str | Path,
    *,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    q_recipe: str | None = None,
    q_overrides: Mapping[str, str] | None = None,
    q_method: str | None = None,
    target_size: str | int | None = None,
    target_per_token: str | int | None = None,
    target_bits: float | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    adapter_path: AdapterPath = None,
    tokenizer: str | Path | None = None,
    need_tokenizer: bool = True,
    mask_decoder: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = True,
    calibration: Calibration | None = None,
    calibration_prompts: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Convert `source` (folder, hub repository or big_vision .npz) into the folder `target`.

    Without any q_ option or `quantize` what is float stays float. dtype: of float tensors and scales; if not given,
    as stored, except that float32 becomes bfloat16 in a quantized folder. check: compare the result with the source
    (see quality.py) on the pictures in `calibration`, or on a few drawn ones. q_method: how codes are chosen, one
    of quantization.METHODS; "gptq" calibrates on three of four pictures in `calibration`, with
    `calibration_prompts`, the pictures' own or the card's, and compares on the others. target_size,
    target_per_token, target_bits: choose the bits of each matrix on pictures in `calibration`, for so many bytes of
    the file ("1.6GB" or a number), bytes read for each token, or bits a weight with scales. mask_decoder: a file of
    the decoder of <seg> codes (vae-oid.npz) to put into the folder; one that is in the source's folder is copied
    anyway.
    force: replace `target` if it is a folder that a conversion wrote and nothing in it has changed since. A folder that
    holds anything else, the source or the working directory is never replaced. in_place: `target` is `source`, which
    the result replaces when it is complete; as with force, only what a conversion wrote is.
    Raises InputError for wrong options or sources, PgMlxError if the disk is full; the target then is as it was before.
    """
    recipe = choose_packing(
        *(quantize, q_bits, q_group_size, q_mode, q_recipe, q_overrides, q_method),
        *(target_size, target_per_token, target_bits),
    )
    conversion = Conversion(
        source,
        recipe,
        dequantize=dequantize,
        dtype=dtype,
        adapter_path=adapter_path,
        tokenizer=tokenizer,
        need_tokenizer=need_tokenizer,
        mask_decoder=mask_decoder,
        revision=revision,
    )
    target = Path(target).expanduser()
    return conversion.run(
        target,
        force=force,
        in_place=in_place,
        check=check,
        calibration=calibration,
        calibration_prompts=calibration_prompts,
        progress=progress,
    )
