"""Pixels of any kind to 8-bit RGB, and RGB to the square of numbers that SigLIP reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_STRIP_PIXELS = 1 << 21
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")


def to_pixels(image: Image.Image, size: int, resample: str = "bicubic") -> np.ndarray:
    """float32 [size, size, 3] in -1..1, from RGB, squeezed to a square without regard to its aspect ratio.

    As Hugging Face's processor does it: antialiased resizing of 8-bit values, then x / 127.5 - 1. The models were
    trained on bilinear resizing (big_vision); "bilinear" is there for checkpoints that ask for it.
    Raises InputError for any other `resample`.
    """
    import numpy as np
    from PIL import Image

    methods = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    if resample not in methods:
        raise InputError(f"resample is {resample!r}; it must be one of {', '.join(methods)}")
    resized = image.resize((size, size), methods[resample])
    return np.asarray(resized, dtype=np.float32) / np.float32(127.5) - np.float32(1)


def to_rgb(
    image: Image.Image,
    white: int | tuple[int, int, int] | None = None,
    inverted: bool = False,
    levels: int = 65535,
    trusted_alpha: bool = True,
    derived: bool = False,
) -> Image.Image:
    """A loaded picture of any mode in 8-bit RGB, strip by strip, so that no second whole copy is held.

    white: a grey level or colour that is transparent. inverted: 0 is white. levels: the largest value of more than 8
    bits; 0 says that the file does not tell. derived: the picture was made in Python, so a transparent colour that it
    remembers may be that of another picture; only a palette's, which goes with its indexes, counts.
    trusted_alpha: False takes a picture whose alpha is 0 everywhere as opaque: it was never filled.

    What has alpha is laid over white. 32-bit integers have no range of their own: they are taken as 0..255 if none is
    larger, as 0..65535 if none is larger than that, else their largest value becomes white; negative ones are black.
    Floats must lie in 0..1. Raises InputError for those that do not, and whatever Pillow raises.
    """
    from PIL import Image

    if image.mode == "1" and (white is not None or "transparency" in image.info):
        image = image.convert("L")
    transparent = _is_transparent(image, derived)
    if image.mode == "RGB" and not transparent and white is None:
        return image
    if (
        transparent
        and not trusted_alpha
        and image.mode in ("RGBA", "LA")
        and image.getchannel("A").getextrema()[1] == 0
    ):
        transparent = False
    convert = _converter(image, white, inverted, levels, transparent)
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    if rows >= image.height:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        whole.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return whole


def _is_transparent(image: Image.Image, derived: bool) -> bool:
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa"):
        return True
    key = image.info.get("transparency")
    if image.mode == "P":
        return isinstance(key, (int, bytes)) or (image.palette is not None and image.palette.mode.endswith("A"))
    return key is not None and not derived


def _converter(
    image: Image.Image, white: int | tuple[int, int, int] | None, inverted: bool, levels: int, transparent: bool
) -> Callable[[Image.Image], Image.Image]:
    """What turns a strip of the picture into RGB."""
    if image.mode in _GREY_16 or image.mode == "I":
        return _grey(_range(image) if levels == 0 else levels, white, inverted)
    if image.mode == "F":
        return _floats(inverted)
    if image.mode == "LAB":
        return _lab()
    if white is not None and image.mode == "L":
        table = [255 if level == white else level for level in range(256)]
        return lambda part: part.point(table).convert("RGB")
    if isinstance(white, tuple) and image.mode == "RGB":
        return _with_key(white)
    if transparent:
        return _over_white
    return lambda part: part.convert("RGB")


def _over_white(part: Image.Image) -> Image.Image:
    from PIL import Image

    # La and RGBa (premultiplied) have no direct way to RGBA but through their plain forms.
    plain = {"La": "LA", "RGBa": "RGBA"}.get(part.mode, part.mode)
    layer = part.convert(plain).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _with_key(white: tuple[int, int, int]) -> Callable[[Image.Image], Image.Image]:
    def convert(part: Image.Image) -> Image.Image:
        keyed = part.copy()
        keyed.info = {"transparency": white}
        return _over_white(keyed)

    return convert


def _range(image: Image.Image) -> int:
    most = int(image.getextrema()[1])  # type: ignore[arg-type]
    return 255 if most <= 255 else 65535 if most <= 65535 else most


def _grey(levels: int, white: Any, inverted: bool) -> Callable[[Image.Image], Image.Image]:
    """Grey of more than 8 bits, scaled; Pillow would clip it at 255."""

    def convert(part: Image.Image) -> Image.Image:
        import numpy as np
        from PIL import Image

        values = np.clip(np.asarray(part).astype(np.int64), 0, levels)
        scaled = ((levels - values if inverted else values) * 255 + levels // 2) // levels
        if white is not None:
            scaled[values == white] = 255
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")

    return convert


def _floats(inverted: bool) -> Callable[[Image.Image], Image.Image]:
    def convert(part: Image.Image) -> Image.Image:
        import numpy as np
        from PIL import Image

        array = np.asarray(part)
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError("it holds floats that do not lie in 0..1")
        return Image.fromarray(np.round((1 - array if inverted else array) * 255).astype(np.uint8)).convert("RGB")

    return convert


def _lab() -> Callable[[Image.Image], Image.Image]:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")

    def convert(part: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(part, transform)
        assert converted is not None  # only None when converting in place
        return converted

    return convert


def from_array(source: Any) -> tuple[Image.Image, str]:
    """An array as a picture, not yet RGB, and how messages call it.

    uint8, or floats in 0..1 (bfloat16 too): [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; of NumPy, MLX, PyTorch, or
    nested lists. Raises InputError for all else.
    """
    import numpy as np
    from PIL import Image

    try:
        array = _as_numpy(source)
    except Exception as error:  # whatever the object's own conversion raises
        raise InputError(f"{_no_picture(source)} ({type(error).__name__})") from error
    shown = f"an array of shape {list(array.shape)} and dtype {array.dtype}"
    if array.dtype == object or array.dtype.kind in "US":
        raise InputError(_no_picture(source))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise InputError(f"{shown} is not a picture; it must be [H, W], [H, W, 3] or [H, W, 4]")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(f"{shown} is not a picture; floats must lie in 0..1")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"{shown} is not a picture; it must be uint8, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array)), shown


def _as_numpy(source: Any) -> np.ndarray:
    import numpy as np

    if hasattr(source, "detach") and hasattr(source, "cpu"):  # PyTorch, maybe on a GPU
        source = source.detach().cpu()
        source = source.float() if str(source.dtype) == "torch.bfloat16" else source
    elif type(source).__module__.startswith("mlx.") and str(source.dtype) == "mlx.core.bfloat16":
        import mlx.core as mx

        source = source.astype(mx.float32)
    array = np.asarray(source)
    if array.dtype.name == "bfloat16":  # ml_dtypes, as JAX has it
        array = array.astype(np.float32)
    return array


def _no_picture(source: Any) -> str:
    return f"a picture cannot be read from an object of type {type(source).__name__}"
