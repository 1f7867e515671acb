"""Pictures from anywhere to the square of numbers that SigLIP reads.

Pictures may come from strangers, so their bytes are counted and their header is checked before anything is decoded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InputError, TooLarge
from ..limits import MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_BYTES = 256 << 20
"""A picture file of more bytes is refused."""
URL_TIMEOUT_S = 30.0

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def load_image(source: Any, max_pixels: int | None = None) -> Image.Image:
    """A picture in RGB, the right way up.

    source: a path ("-" is stdin), an http(s) URL, bytes, an open binary file, a PIL image, or an array: uint8 or
    0..1 float, [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. EXIF orientation is applied, and transparency is
    laid over white. Any mode and bit depth becomes 8-bit RGB. An animation gives its first frame.
    max_pixels: MAX_PIXELS if not given.
    Raises InputError, one line that names the source, for everything that is not a sound picture of bounded size, and
    TooLarge if only the size is wrong.
    """
    from PIL import Image

    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        return _finish(source, "the picture", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if memoryview(source).nbytes > MAX_BYTES:
            raise _too_large("the picture's bytes")
        return _decode(bytes(source), "the picture's bytes", max_pixels)
    if isinstance(source, (str, Path)):
        name = str(source)
        return _decode(_fetch(name), "stdin" if name == "-" else name, max_pixels)
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "the open file"))
        try:
            return _decode(_read(source, name), name, max_pixels)
        except InputError:
            raise
        except UnicodeDecodeError:
            raise InputError(f"{name} is open as text; a picture must be opened as binary") from None
        except (OSError, ValueError) as error:  # closed, or open for writing only
            raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    return _from_array(source, max_pixels)


def to_pixels(image: Image.Image, size: int, resample: str = "bicubic") -> np.ndarray:
    """An RGB picture as float32 [size, size, 3] in -1..1. It is made square; its aspect ratio is not kept.

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


# --- bytes --------------------------------------------------------------------------------------------


def _fetch(name: str) -> bytes:
    if name == "-":
        if sys.stdin is None:  # a program without a terminal, as in a macOS app
            raise InputError("there is no stdin to read a picture from")
        return _read(sys.stdin.buffer, "stdin")
    scheme, separator, _ = name.partition("://")
    if scheme.lower() in ("http", "https"):
        return _download(name)
    if separator and scheme.isalnum():
        raise InputError(f"cannot fetch {name}: only http and https addresses are read")
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # "~x.png" is not a user's home, but may be a file
        path = path.expanduser()
    try:
        if path.is_dir():
            raise InputError(f"{name} is a folder, not a picture")
        with path.open("rb") as file:
            return _read(file, name)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such picture: {name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


def _download(url: str) -> bytes:
    import urllib.error  # half of this package's import time, were it imported above
    import urllib.parse
    import urllib.request

    opener = urllib.request.OpenerDirector()  # the default one follows a redirect to ftp before anyone can look
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    try:
        quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # addresses are pasted with spaces and umlauts
        request = urllib.request.Request(quoted, headers={"User-Agent": "pg_mlx"})
        with opener.open(request, timeout=URL_TIMEOUT_S) as response:
            if urllib.parse.urlsplit(response.geturl()).scheme not in ("http", "https"):
                raise InputError(f"{url} leads away from http")
            return _read(response, url)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        raise InputError(f"cannot fetch {url}: the server answered {error.code}") from None
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors; http.client's are below
        raise InputError(f"cannot fetch {url}: {getattr(error, 'reason', error)}") from None
    except Exception as error:  # http.client.HTTPException: the answer is not HTTP
        raise InputError(f"cannot fetch {url}: {type(error).__name__}") from None


def _read(file: BinaryIO | Any, name: str) -> bytes:
    chunks, total = [], 0
    while chunk := file.read(min(1 << 20, MAX_BYTES + 1 - total)):
        if not isinstance(chunk, bytes):
            raise InputError(f"{name} is open as text; a picture must be opened as binary")
        chunks.append(chunk)
        total += len(chunk)
        if total > MAX_BYTES:
            raise _too_large(name)
    return b"".join(chunks)


def _too_large(name: str) -> TooLarge:
    return TooLarge(f"{name} is larger than {MAX_BYTES >> 20} MiB, which is too much for a picture")


# --- decoding -----------------------------------------------------------------------------------------


def _decode(data: bytes, name: str, max_pixels: int) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise InputError(f"{name} is empty")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and b"avif" not in data[12:64]:  # Pillow reads AVIF
        _enable_heic(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise TooLarge(f"{name} has more than {MAX_PIXELS} pixels; make it smaller first") from None
    except Exception as error:  # Pillow's readers raise whatever their parsers stumble over
        raise InputError(f"{name} is damaged: {_reason(error)}") from None
    if image.format == "EPS":  # a program, which Pillow would have Ghostscript run
        raise InputError(f"{name} is PostScript, which is not read; save it as PNG or JPEG")
    return _finish(image, name, max_pixels)


def _enable_heic(name: str) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise InputError(f"{name} is a HEIC picture; to read those, `pip install pillow-heif`, or save it as JPEG")
    import pillow_heif

    pillow_heif.register_heif_opener()


def _finish(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Bound, decode, turn upright, lay over white, bring to RGB."""
    from PIL import ImageOps

    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise TooLarge(f"{name} has {width} x {height} pixels; the limit is {max_pixels}, so make it smaller first")
    try:
        image.load()
    except Exception as error:
        raise InputError(f"{name} is truncated or damaged: {_reason(error)}") from None
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about the pixels
        upright = image
    try:
        return _to_rgb(upright)
    except Exception as error:
        raise InputError(f"{name} has mode {image.mode}, which cannot be brought to RGB: {_reason(error)}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _GREY_16:  # Pillow would clip at 255; 65535 / 257 = 255
        import numpy as np

        grey = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255)
        return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        import numpy as np

        return _from_array(np.asarray(image), MAX_PIXELS)
    if image.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only None when converting in place
        return converted
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        # La and RGBa (premultiplied) have no direct way to RGBA but through their plain forms.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        layer = image.convert(plain).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_array(source: Any, max_pixels: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    try:
        array = np.asarray(source)
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
    return _finish(Image.fromarray(np.ascontiguousarray(array)), shown, max_pixels)


def _no_picture(source: Any) -> str:
    return f"a picture cannot be read from an object of type {type(source).__name__}"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
