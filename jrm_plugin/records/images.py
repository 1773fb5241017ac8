"""Every image enters here: whatever the user holds becomes an upright 8-bit RGB `PIL.Image`, or one clear error.

Every function may be called from many threads at once, and what others set for all of Pillow does not count: where
somebody allowed truncated files, changed the limit of pixels or made errors of warnings, that is held off while an
image is opened and decoded, and then given back.
"""

import base64
import binascii
import hashlib
import io
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from jrm_plugin.errors import JRMError
from jrm_plugin.switches import WARNINGS_AS_ERRORS, Switch

# What an image may be wherever one is asked for; `load_image` says what each of them is.
ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

# More pixels are refused: a file of some kilobytes can spell gigabytes. It is Pillow's own limit by default, but that
# one is a switch of the whole process, which any library may turn; this one is the user's to raise.
MAX_PIXELS = 2**30 // 4 // 3
MAX_ASPECT_RATIO = 200  # beyond it Qwen's image processors refuse the image, and there is nothing to judge in a line

# The raster formats people exchange. A list, because some of Pillow's other plugins start programs (EPS calls
# Ghostscript) and these bytes may come from a network. HEIF is readable where the user registered a plugin for it.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "ICO")

_TRUNCATED_FILES = Switch(lambda: ImageFile.LOAD_TRUNCATED_IMAGES, partial(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES"))
_PIXEL_LIMIT = Switch(lambda: Image.MAX_IMAGE_PIXELS, partial(setattr, Image, "MAX_IMAGE_PIXELS"))

# Pixels that are converted to RGB at once: the conversion of some modes takes several times what its result takes.
_STRIP_PIXELS = 2**20

# EXIF orientation (tag 0x0112): the transposition that turns the stored pixels upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A `PIL.Image` that was opened but not read yet decodes on first use, and that is not safe in two threads at once: the
# candidates of one group often share their source image.
_LAZY_DECODING = threading.Lock()


class MeasuredFile(bytes):
    """The bytes of an image file, which keep their `image_size` once somebody has asked for it."""

    size: tuple[int, int] | None = None


def load_image(image: ImageLike, *, name: str | None = None) -> Image.Image:
    """Turn an image into upright 8-bit RGB.

    Palette, grey, CMYK and 16-bit images are converted (16 bits are scaled to 8, not clipped), transparent pixels are
    laid over white, and the EXIF orientation is applied. Colour profiles are not applied. Of an animation or a
    multi-page file, the first frame is read.

    Args:
        image: a `PIL.Image`; a path (`str` or `os.PathLike`); `bytes` of an image file; a `data:` URL; or a numpy array
            of shape `[height, width]` or `[height, width, 1 | 3 | 4]` that holds bool, uint8, uint16 or floats in
            [0, 1].
        name: what to call the image in an error, for example `"row 7, source image"`.

    Returns:
        A new image of mode `RGB` that shares nothing with the input.

    Raises:
        JRMError: the image is missing, not an image, damaged, cut off, empty, more than 200 times longer than wide (or
            the reverse), over `MAX_PIXELS` or a URL to be downloaded. The message names the image.
    """
    label = _label(image, name)
    if isinstance(image, np.ndarray):
        _check_size(_array_size(image, label), label)
        return _to_rgb(_array_to_picture(image, label), label)
    with _as_pillow_comes(), _opened(image, label) as picture:
        _check_size(picture.size, label)
        with _LAZY_DECODING if picture is image else nullcontext(), _damage_named(label):
            orientation = _orientation(picture)
            picture.load()
        rgb = _to_rgb(picture, label)
    return rgb if orientation == 1 else rgb.transpose(_UPRIGHT[orientation])


def plain_image(image: Any) -> Any:
    """The bytes or the path in the dict of both that `datasets` makes of an image; anything else as it is."""
    if isinstance(image, Mapping) and image and set(image) <= {"bytes", "path"}:
        return image.get("bytes") or image.get("path")
    return image


def image_size(image: ImageLike, *, name: str | None = None) -> tuple[int, int]:
    """`(width, height)` in pixels of what `load_image` would return, from a file's header alone.

    Takes the same images and raises the same errors as `load_image`, but damage behind the header stays unseen.
    """
    label = _label(image, name)
    if isinstance(image, np.ndarray):
        size = _array_size(image, label)
    elif (file := _file_as_it_is(image)) is not None:
        size = _size_of_file(label, *file)
    elif isinstance(image, MeasuredFile):
        size = image.size = image.size or _upright_size(image, label)
    else:
        size = _upright_size(image, label)
    _check_size(size, label)
    return size


def _upright_size(image: ImageLike, label: str) -> tuple[int, int]:
    with _as_pillow_comes(), _opened(image, label) as picture:
        _check_size(picture.size, label)
        with _damage_named(label):
            turned = _orientation(picture) >= 5
        width, height = picture.size
        return (height, width) if turned else (width, height)


def _file_as_it_is(image: ImageLike) -> tuple[str, int, int, int] | None:
    """A path, and what tells its file from another one there without opening it; None for what is no file."""
    if isinstance(image, (str, os.PathLike)) and not is_data_url(image):
        with suppress(OSError, ValueError):
            state = os.stat(image)
            return os.fspath(image), state.st_ino, state.st_size, state.st_mtime_ns
    return None


@lru_cache(maxsize=2**16)  # a check of data asks for one image many times, and on a network each time takes its while
def _size_of_file(label: str, path: str, inode: int, length: int, modified: int) -> tuple[int, int]:
    return _upright_size(path, label)


def to_data_url(image: ImageLike, *, name: str | None = None) -> str:
    """Write an image as a `data:` URL without loss: bytes of a file as they are, anything else as PNG.

    `load_image` gives the same pixels for the URL as for the image. Raises `JRMError` as `load_image` does.
    """
    if isinstance(image, bytes):
        with _as_pillow_comes(), _identified(io.BytesIO(image), _label(image, name)) as picture:
            mime = picture.get_format_mimetype() or "application/octet-stream"
        content = image
    else:
        buffer = io.BytesIO()
        load_image(image, name=name).save(buffer, format="PNG")
        mime, content = "image/png", buffer.getvalue()
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def is_data_url(image: object) -> TypeGuard[str]:
    """Whether `image` is a `data:` URL, the one kind of `str` that is not a path."""
    return isinstance(image, str) and image[:5].lower() == "data:"


def digest(image: ImageLike) -> bytes:
    """What an image is, as 32 bytes: equal for equal images, so that one of a pair need not be looked at again.

    No file is opened: a path is its spelling (so two paths to one file differ). The bytes of a file and a `data:` URL
    that carries them are equal. A `PIL.Image` or an array is the size and the RGB pixels that `load_image` makes of it;
    the bytes of a file that holds the same pixels are another image. A megapixel in memory takes a few milliseconds.

    Raises:
        JRMError: `load_image` refuses an image in memory.
    """
    if is_data_url(image):
        with suppress(JRMError):  # a broken one is but its spelling, and `load_image` says what is wrong with it
            image = data_url_content(image, "")
    if isinstance(image, (str, os.PathLike)):
        kind, content = "path", os.fspath(image).encode(errors="surrogatepass")
    elif isinstance(image, bytes):
        kind, content = "file", image
    else:
        rgb = load_image(image)
        kind, content = _by(rgb.size), rgb.tobytes()
    whole = hashlib.sha256(f"{kind}\n".encode())
    whole.update(content)
    return whole.digest()


# --- what to call an image in an error --------------------------------------------------------------------------------


def _label(image: object, name: str | None) -> str:
    if is_data_url(image):
        what = f"image in a data: URL of {len(image)} characters"
    elif isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        what = f"image {path!r}" if len(path) <= 300 else f"image {path[:300]!r}..."
    elif isinstance(image, bytes):
        what = f"image bytes ({len(image)} bytes)"
    elif isinstance(image, np.ndarray):
        what = f"image array ({image.dtype}, shape {image.shape})"
    elif isinstance(image, Image.Image):
        what = getattr(image, "filename", "")
        what = f"image {os.fspath(what)!r}" if what else f"PIL image ({image.mode}, {_by(image.size)})"
    else:
        what = f"image of type {type(image).__name__}"
    return f"{name} ({what})" if name else what


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def _as_pillow_comes() -> Iterator[None]:
    """Pillow's switches as they are where nobody has touched them."""
    with _TRUNCATED_FILES.held(0), _PIXEL_LIMIT.held(MAX_PIXELS), WARNINGS_AS_ERRORS.held(None):
        yield


@contextmanager
def _opened(image: ImageLike, label: str) -> Iterator[Image.Image]:
    """The image as a `PIL.Image` whose pixels may not be decoded yet; closes what it opened."""
    if isinstance(image, Image.Image):
        yield image
    elif is_data_url(image):
        with _identified(io.BytesIO(data_url_content(image, label)), label) as picture:
            yield picture
    elif isinstance(image, (str, os.PathLike)):
        if isinstance(image, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", image):
            raise JRMError(f"{label} is a URL: download it first and give its path or its bytes.")
        with _file(image, label) as file, _identified(file, label) as picture:
            yield picture
    elif isinstance(image, bytes):
        with _identified(io.BytesIO(image), label) as picture:
            yield picture
    else:
        raise JRMError(f"{label}: give a PIL image, a path, bytes, a data: URL or a numpy array.")


def _file(path: str | os.PathLike[str], label: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise JRMError(f"{label} does not exist: check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise JRMError(f"{label} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def data_url_content(url: str, label: str) -> bytes:
    """The bytes that a `data:` URL carries; a [`JRMError`] names `label` where it is broken."""
    head, comma, payload = url.partition(",")
    try:
        content = urllib.parse.unquote_to_bytes(payload)
    except UnicodeError:
        raise JRMError(
            f"{label} holds half of a character, which is no base64: encode the file's bytes again."
        ) from None
    if not comma:
        raise JRMError(f"{label} has no comma before its content: write data:image/png;base64,....")
    if not head.lower().endswith(";base64"):
        return content
    content = b"".join(content.split())
    try:
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except binascii.Error as error:
        raise JRMError(f"{label} is not valid base64 ({error}): encode the file's bytes again.") from None


@contextmanager
def _identified(file: BinaryIO, label: str) -> Iterator[ImageFile.ImageFile]:
    try:
        is_empty = not file.read(1)
    except OSError as error:  # a disk or a network share that fails
        raise JRMError(f"{label} cannot be read: {error.strerror or error}.") from error
    if is_empty:
        raise JRMError(f"{label} is empty (0 bytes): give an image file.")
    Image.init()
    readable = [name for name in FORMATS if name in Image.OPEN]
    try:
        # Pillow raises over twice the limit; over the limit it only warns, which ends in the error of `_check_size`
        picture = Image.open(file, formats=readable)
    except Image.DecompressionBombError:
        raise JRMError(f"{label} {_over_limit()}") from None
    except UnidentifiedImageError:
        raise JRMError(f"{label} is not an image that can be read (known: {', '.join(readable)}).") from None
    except Exception as error:  # Pillow's parsers raise nearly every kind of exception on broken headers
        raise JRMError(f"{label} has a damaged header and cannot be read: {error}.") from error
    with picture:
        yield picture


@contextmanager
def _damage_named(label: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # as above: OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise JRMError(f"{label} is damaged or cut off: {str(error).rstrip('.')}.") from error


def _check_size(size: tuple[int, int], label: str) -> None:
    width, height = size
    if width == 0 or height == 0:
        raise JRMError(f"{label} has no pixels ({_by(size)}).")
    if width * height > MAX_PIXELS:
        raise JRMError(f"{label}, {_by(size)}, {_over_limit()}")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise JRMError(f"{label} is {_by(size)} pixels: one side is over {MAX_ASPECT_RATIO} times the other; crop it.")


def _over_limit() -> str:
    return (
        f"has more than {MAX_PIXELS} pixels (a decompression bomb?): make it smaller, or raise "
        "jrm_plugin.records.images.MAX_PIXELS if you trust it."
    )


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8, 1 where there is no valid one; to be asked before the pixels are read."""
    if picture.format == "TIFF" and hasattr(picture, "tag_v2"):
        return 1  # Pillow turns a TIFF upright itself, and its size is the upright one from the start
    # The base class reads what stands before the pixels; PNG's own `getexif` would decode the whole file first.
    orientation = Image.Image.getexif(picture).get(_ORIENTATION_TAG)
    return orientation if orientation in _UPRIGHT else 1


# --- colours ----------------------------------------------------------------------------------------------------------


def _to_rgb(picture: Image.Image, label: str) -> Image.Image:
    """8-bit RGB from any mode; transparency over white; no metadata, so that loading twice changes nothing.

    Every pixel is converted by itself, so that a large picture may be converted strip by strip.
    """
    width, height = picture.size
    if width * height <= _STRIP_PIXELS:
        return _strip_to_rgb(picture, label)
    rgb = Image.new("RGB", picture.size)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        rgb.paste(_strip_to_rgb(strip, label), (0, top))
    return rgb


def _strip_to_rgb(picture: Image.Image, label: str) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _deep_to_grey(picture, label)
    if _has_transparency(picture):
        if picture.mode == "La":
            picture = picture.convert("LA")  # Pillow knows no direct way from premultiplied grey
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        rgb = Image.alpha_composite(white, picture).convert("RGB")
    elif picture.mode == "LAB":
        raise JRMError(f"{label} is in LAB colours: convert it to RGB first (PIL.ImageCms).")
    else:
        rgb = picture.copy() if picture.mode == "RGB" else picture.convert("RGB")
    rgb.info = {}
    return rgb


def _has_transparency(picture: Image.Image) -> bool:
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return True
    if picture.mode == "P" and picture.palette is not None and picture.palette.mode == "RGBA":
        return True
    return picture.mode in ("1", "L", "P", "RGB") and "transparency" in picture.info


def _deep_to_grey(picture: Image.Image, label: str) -> Image.Image:
    """Grey of 16 bits (modes `I;16...`, and `I` as older Pillow reads a 16-bit PNG) or float in [0, 1], to 8 bits."""
    array = np.asarray(picture)
    if picture.mode == "I":
        if array.min() < 0 or array.max() > 65535:
            raise JRMError(f"{label} holds {array.min()}..{array.max()}: 32-bit grey must lie in 0..65535.")
        array = array.astype(np.uint16)
    grey = _array_to_picture(array, label)
    transparent = picture.info.get("transparency")
    if transparent is not None:  # PNG's one transparent grey value
        grey.putalpha(_array_to_picture(array != transparent, label))
    return grey


def _array_size(array: NDArray[Any], label: str) -> tuple[int, int]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise JRMError(f"{label}: the shape must be [height, width] or [height, width, 1, 3 or 4].")
    return array.shape[1], array.shape[0]


def _array_to_picture(array: NDArray[Any], label: str) -> Image.Image:
    kind, bytes_each = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        array = array * np.uint8(255)
    elif kind == "u" and bytes_each == 2:
        array = ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise JRMError(f"{label}: floats must lie in [0, 1]; divide by 255 or give uint8.")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif not (kind == "u" and bytes_each == 1):
        raise JRMError(f"{label}: give bool, uint8, uint16 or floats in [0, 1], not {array.dtype}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


# --- checked without decoding -----------------------------------------------------------------------------------------

# How a whole file of the format ends.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


def check_image(image: ImageLike, *, name: str | None = None) -> None:
    """Raises the errors of `load_image` for an image that is missing, no image, or cut off; rarely decodes one.

    Of a PNG, JPEG or WebP that ends as its format says, the header and the end are read. All else is decoded: a
    file that goes on behind its end may still be whole. Damage in the middle of a file stays unseen.
    """
    if not _ends_as_it_should(image, _label(image, name)):
        load_image(image, name=name)


def _ends_as_it_should(image: ImageLike, label: str) -> bool:
    if isinstance(image, (Image.Image, np.ndarray)):
        return False
    with _opened(image, label) as picture:
        _check_size(picture.size, label)
        with _damage_named(label):
            _orientation(picture)
        file: IO[bytes] | None = getattr(picture, "fp", None)
        if file is None:
            return False
        size = file.seek(0, os.SEEK_END)
        if picture.format == "WEBP":  # bytes 4 to 8 say how many follow them
            file.seek(4)
            return size >= int.from_bytes(file.read(4), "little") + 8
        end = _ENDS.get(picture.format or "")
        if end is None:
            return False
        file.seek(size - len(end))
        return file.read() == end
