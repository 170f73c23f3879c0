from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from lana_ray.data import pixels
from lana_ray.data.pixels import UndecodableError, crop_and_flip, decode, fit, margin, normalise

from .samples import encoded, picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_decodes_what_pillow_decodes(kind: str) -> None:
    data = encoded(picture(1, width=20, height=10), kind)
    decoded = decode(data)
    assert decoded.shape == (10, 20, 3)
    assert decoded.dtype == np.uint8
    if kind in ("PNG", "BMP"):
        np.testing.assert_array_equal(decoded, np.asarray(picture(1, width=20, height=10)))


def test_pillow_decodes_the_same_where_torchvision_has_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(1, width=40, height=24), "JPEG")
    fast = decode(data)
    monkeypatch.setattr(pixels, "_jpeg_decoder", lambda: None)
    np.testing.assert_array_equal(decode(data), fast)


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("L", "PNG"), ("CMYK", "JPEG")])
@pytest.mark.parametrize("size", [(8, 8), (9, 5)])
def test_other_colour_models_become_rgb(mode: str, kind: str, size: tuple[int, int]) -> None:
    assert decode(encoded(picture(2).resize(size).convert(mode), kind)).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_palette_and_opaque_images_keep_their_colours(mode: str) -> None:
    for value in (0, 255):
        image = Image.new("RGB", (4, 4), (value, value, value)).convert(mode)
        assert (decode(encoded(image)) == value).all()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGBA", "GIF", {}),
        ("RGBA", "TIFF", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("L", "PNG", {"transparency": 0}),
        ("1", "PNG", {"transparency": 0}),
        ("RGB", "PNG", {"transparency": (0, 0, 0)}),
    ],
)
def test_transparent_parts_are_white(mode: str, kind: str, options: dict[str, Any]) -> None:
    """Black ink on nothing: without a background it would be all black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert (decode(encoded(image, kind, **options)) == 255).all()
    if mode == "RGBA":
        image.paste((0, 0, 0, 255), (0, 0, 8, 4))
        decoded = decode(encoded(image, kind, **options))
        assert (decoded[:4] == 0).all()
        assert (decoded[4:] == 255).all()


def test_cmyk_as_adobe_writes_it() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(encoded(red, "JPEG")).astype(int) - [255, 0, 0]).max() < 8
    assert np.abs(decode(encoded(red, "TIFF")).astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames(kind: str) -> None:
    first, second = (Image.new("RGB", (8, 8), (value, value, value)) for value in (40, 200))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(decode(data).astype(int) - 40).max() <= 2


GREY = np.random.default_rng(0).integers(0, 65536, (6, 9)).astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_scaled(kind: str) -> None:
    decoded = decode(encoded(Image.fromarray(GREY), kind))
    assert decoded.shape == (6, 9, 3)
    np.testing.assert_array_equal(decoded[..., 1], np.rint(GREY / 257))
    twelve = decode(encoded(Image.fromarray(GREY // 16), kind), value_range=(0, 4095))
    assert np.abs(twelve[..., 0].astype(int) - GREY / 257).max() <= 1


def test_grey_of_16_bits_in_the_other_byte_order_and_with_white_as_zero() -> None:
    big = Image.frombytes("I;16B", (9, 6), GREY.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(encoded(big, "TIFF"))[..., 0], np.rint(GREY / 257))
    inverted = encoded(Image.fromarray(GREY), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode(inverted)[..., 0], 255 - np.rint(GREY / 257))


def test_colours_of_16_bits_are_scaled() -> None:
    rows = b"".join(b"\0" + bytes((value, 1) * 9) for value in (0, 100, 255))
    header = struct.pack(">IIBBBBB", 3, 3, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    assert decode(png)[:, 0, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_range_need_one(kind: type) -> None:
    values: npt.NDArray[Any] = np.asarray([[0, 50, 100, 200]], dtype=kind)
    data = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(UndecodableError, match=r"data\.value_range"):
        decode(data)
    assert decode(data, value_range=(0, 100))[0, :, 0].tolist() == [0, 128, 255, 255]
    if kind is np.float32:
        holes = np.asarray([[np.nan, np.inf, -np.inf, 100]], dtype=kind)
        assert decode(encoded(Image.fromarray(holes), "TIFF"), value_range=(50, 100))[0, :, 0].tolist() == [
            *(0, 255, 0, 255)
        ]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_viewers_turn_them(kind: str, orientation: int) -> None:
    image = picture(7).resize((24, 16))
    exif = image.getexif()
    exif[274] = orientation
    data = encoded(image, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data), np.asarray(expected))
    assert decode(data).shape[:2] == ((24, 16) if 5 <= orientation <= 8 else (16, 24))


def test_an_orientation_in_xmp_alone_counts() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    assert decode(encoded(picture(7).resize((24, 16)), "JPEG", xmp=xmp)).shape == (24, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_metadata_is_no_damage_to_the_image(kind: str) -> None:
    data = encoded(picture(7), kind, exif=b"Exif\0\0no such thing")
    assert decode(data).shape == (12, 12, 3)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PDF", "SGI"])
def test_formats_that_are_not_named_are_not_read(kind: str) -> None:
    """Among them EPS, for which Pillow starts Ghostscript."""
    with pytest.raises(UndecodableError, match="not an image in a supported format"):
        decode(encoded(picture(1), kind))


@pytest.mark.parametrize("tiffinfo", [{254: 1}, {50706: b"\1\4\0\0"}])
def test_raw_files_of_cameras_are_no_thumbnails(tiffinfo: dict[int, Any]) -> None:
    with pytest.raises(UndecodableError, match="raw file"):
        decode(encoded(picture(1), "TIFF", tiffinfo=tiffinfo))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_too_many_pixels_are_not_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (400, 300)), kind)
    assert decode(data).shape == (300, 400, 3)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 400 * 300 - 1)
    with pytest.raises(UndecodableError, match="400 x 300 is more than 119999 pixels"):
        decode(data)


def test_a_small_file_that_claims_to_be_huge() -> None:
    data = bytearray(encoded(picture(1), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(UndecodableError, match="pixels"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_bytes_are_undecodable(kind: str) -> None:
    intact = encoded(picture(3, width=64, height=64), kind)
    for bad in (None, b"", b"no image", intact[: len(intact) // 2], intact[:12]):
        with pytest.raises(UndecodableError):
            decode(bad)


def test_fit_cuts_the_centre_square_and_keeps_the_order() -> None:
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200  # the centre square alone
    tall = np.full((8, 4, 3), 7, dtype=np.uint8)
    square = np.full((16, 16, 3), 99, dtype=np.uint8)
    fitted = fit([wide, square, tall, wide], 8)
    assert fitted.shape == (4, 8, 8, 3)
    assert [np.unique(image).tolist() for image in fitted] == [[200], [99], [7], [200]]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 3), (2, 2, 3)])
def test_fit_enlarges_what_is_smaller(shape: tuple[int, int, int]) -> None:
    assert (fit([np.full(shape, 77, dtype=np.uint8)], 16) == 77).all()


def test_fit_resizes_as_pillow_does() -> None:
    image = picture(4, width=32, height=32)
    reference = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(fit([np.asarray(image)], 20)[0].astype(int) - reference).max() <= 1


def test_crop_and_flip_move_whole_images() -> None:
    images = np.stack([np.asarray(picture(number, width=16, height=16)) for number in range(3)])
    pad = margin(16)
    assert pad == 2
    offsets = np.array([[pad, pad], [pad, pad], [0, pad + 1]])
    changed = crop_and_flip(images, offsets, np.array([False, True, False]))
    np.testing.assert_array_equal(changed[0], images[0])
    np.testing.assert_array_equal(changed[1], images[1][:, ::-1])
    assert (changed[2][:pad] == 0).all()
    np.testing.assert_array_equal(changed[2][pad:, :-1], images[2][:-pad, 1:])


def test_normalise_is_the_usual_formula_channels_last() -> None:
    images = np.stack([np.asarray(picture(5))])
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / (
        torch.tensor(std).view(3, 1, 1)
    )
    tensor = normalise(images, mean, std)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)
