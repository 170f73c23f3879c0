"""Decodes image bytes to pixels, and resizes, crops and normalises pixels to tensors; has no state.

Images stay uint8 arrays [height, width, 3] until a batch is normalised: torch resizes them about ten times
faster in that layout than in float32 or with the channels first.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 2**27
"""Pixels of the largest image that is decoded, 400 MB as RGB. A few kilobytes can claim far more."""
# Pillow reads more, but some formats start programs (EPS starts Ghostscript) and others are hardly tested.
_NAMES = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()
FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)
"""Pillow's names of the formats that are decoded. The content determines the format, not the file's name."""

_JPEG_START = b"\xff\xd8\xff"
# Tags of EXIF and TIFF.
_ORIENTATION, _PHOTOMETRIC, _BITS, _SUBFILE, _DNG_VERSION = 274, 262, 258, 254, 50706


class UndecodableError(Exception):
    """The bytes are not an image, are truncated, or have an unsupported format."""


def decode(data: bytes | None, *, value_range: tuple[float, float] | None = None) -> Pixels:
    """Returns the pixels [height, width, 3] of an image in one of ``FORMATS``, as a viewer shows it.

    The image is rotated according to its EXIF orientation; transparent parts are white; grey, palette and
    CMYK images become RGB without colour profiles; only the first of several frames or pages is read.

    Args:
        value_range: values that become black and white in grey images of more than 8 bits; defaults to 0 to
            65535 for images of 16 bits. Other values are clipped and NaN is black.

    Raises:
        UndecodableError: the bytes are missing, truncated or not an image, or the image has more than
            ``MAX_PIXELS`` or values of an unknown range.
    """
    if not data:
        raise UndecodableError("no bytes")
    if _is_plain_jpeg(data) and (decode_jpeg := _jpeg_decoder()) is not None:
        with contextlib.suppress(RuntimeError):
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()
    try:
        with _open(data) as image:
            return rgb(image, value_range)
    except Exception as error:  # Pillow raises a dozen types of exceptions for damaged bytes
        raise UndecodableError(str(error) or type(error).__name__) from None


@functools.cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """A decoder to RGB that is twice as fast as Pillow and gives the same pixels.

    torchvision 0.29 announces its removal; Pillow, which also decodes what this one refuses, then decodes
    everything.
    """
    from torchvision.io import ImageReadMode  # takes a second; registers torch.ops.image too

    decode_jpeg = getattr(torch.ops.image, "decode_jpeg", None)
    return None if decode_jpeg is None else functools.partial(decode_jpeg, mode=ImageReadMode.RGB.value)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UndecodableError(f"not an image in a supported format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise UndecodableError(f"more than {MAX_PIXELS} pixels; scale it down") from None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_thumbnail = image.tag_v2.get(_SUBFILE, 0) == 1  # raw files begin with one
        if is_thumbnail or _DNG_VERSION in image.tag_v2 or data[8:10] == b"CR":
            raise UndecodableError("a camera's raw file; convert it to JPEG or PNG")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UndecodableError(f"{width} x {height} is more than {MAX_PIXELS} pixels; scale it down")
    return image


def _is_plain_jpeg(data: bytes) -> bool:
    """Returns whether torchvision decodes a JPEG like Pillow: upright, grey or RGB, within ``MAX_PIXELS``."""
    if not data.startswith(_JPEG_START):
        return False
    place, is_plain = 2, False
    # Read the segments up to the first scan: a marker of two bytes, a length of two bytes, then the content.
    while data[place : place + 1] == b"\xff" and place + 10 <= len(data):
        marker, length = struct.unpack_from(">BH", data, place + 1)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack_from(">HHB", data, place + 5)
            is_plain = channels in (1, 3) and 0 < width * height <= MAX_PIXELS
        elif marker == 0xDA:
            return is_plain
        elif marker == 0xE1 and _may_be_turned(data[place + 4 : place + 2 + length]):
            return False
        place += 2 + length
    return False


def _may_be_turned(metadata: bytes) -> bool:
    """Returns whether an APP1 segment of a JPEG is unreadable or has an orientation that is not upright."""
    if not metadata.startswith(b"Exif"):
        return b"tiff:Orientation" in metadata
    exif = Image.Exif()
    try:
        exif.load(metadata)
        return bool(exif.get(_ORIENTATION, 1) != 1)
    except Exception:  # Pillow distinguishes damaged metadata from a damaged image
        return True


def rgb(image: Image.Image, value_range: tuple[float, float] | None = None) -> Pixels:
    """Returns the pixels [height, width, 3] of a Pillow image, converted like those of ``decode``."""
    image.load()
    with contextlib.suppress(Exception):  # an image with damaged metadata is still intact
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        return np.repeat(_eight_bits(image, value_range)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def _eight_bits(image: Image.Image, value_range: tuple[float, float] | None) -> Pixels:
    """Returns the pixels [height, width] of a grey image of 16-bit, 32-bit or floating-point values."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    low, high = value_range or _range(image, tags)
    values = np.clip(np.nan_to_num(np.asarray(image, dtype=np.float32), nan=low), low, high)
    values -= low
    values *= 255 / (high - low)
    scaled = np.rint(values).astype(np.uint8)
    return 255 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled  # 0: white is zero; Pillow ignores it


def _range(image: Image.Image, tags: Mapping[int, Any]) -> tuple[float, float]:
    if image.mode.startswith("I;16"):
        return 0, 2 ** tags.get(_BITS, (16,))[0] - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow's mode for their 16 bits
        return 0, 65535
    kind = "floating-point" if image.mode == "F" else "32-bit or signed"
    raise UndecodableError(
        f"{kind} values; set data.value_range to the values of black and white, e.g. [0, 1]"
    )


def fit(images: Sequence[Pixels], size: int) -> Pixels:
    """Resizes the centre squares of images (bilinear, antialiased) to uint8 [n, size, size, 3]."""
    fitted = np.empty((len(images), size, size, 3), dtype=np.uint8)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_shape[image.shape].append(index)
    for (height, width, _), members in by_shape.items():
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        squares = np.stack([images[index][top : top + side, left : left + side] for index in members])
        if side != size:
            channels_last = torch.from_numpy(squares).permute(0, 3, 1, 2)
            resized = functional.interpolate(channels_last, (size, size), mode="bilinear", antialias=True)
            squares = resized.permute(0, 2, 3, 1).numpy()
        fitted[members] = squares
    return fitted


def margin(size: int) -> int:
    """Returns the pixels added on each side before a random crop: an eighth of the image size."""
    return size // 8


def crop_and_flip(images: Pixels, offsets: npt.NDArray[np.int64], flips: npt.NDArray[np.bool_]) -> Pixels:
    """Mirrors the images of ``flips`` [n], pads with black, crops at ``offsets`` [n, 2] (row, column)."""
    count, size = images.shape[:2]
    pad = margin(size)
    padded = np.zeros((count, size + 2 * pad, size + 2 * pad, 3), dtype=np.uint8)
    inner = padded[:, pad : pad + size, pad : pad + size]
    inner[:] = images
    # torch's flip is four times as fast as numpy's [:, :, ::-1].
    inner[flips] = torch.from_numpy(images[flips]).flip(2).numpy()
    cropped = np.empty_like(images)
    for index, (top, left) in enumerate(offsets.tolist()):
        cropped[index] = padded[index, top : top + size, left : left + size]
    return cropped


def normalise(images: Pixels, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns (pixel / 255 - mean) / std of [n, size, size, 3]: float32 [n, 3, size, size], channels last."""
    count, size = images.shape[:2]
    centre, spread = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    # Scaling entire rows makes numpy's inner loop long.
    scale = np.tile((1 / (255 * spread)).astype(np.float32), size)
    shift = np.tile((-centre / spread).astype(np.float32), size)
    rows = images.reshape(count, size, size * 3).astype(np.float32)
    rows *= scale
    rows += shift
    return torch.from_numpy(rows.reshape(count, size, size, 3)).permute(0, 3, 1, 2)
