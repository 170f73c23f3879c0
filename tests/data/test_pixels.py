from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

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
    monkeypatch.setattr(pixels, "_decode_jpeg", None)
    np.testing.assert_array_equal(decode(data), fast)


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("L", "PNG"), ("CMYK", "JPEG")])
@pytest.mark.parametrize("size", [(8, 8), (9, 5)])
def test_other_colour_models_become_rgb(mode: str, kind: str, size: tuple[int, int]) -> None:
    assert decode(encoded(picture(2).resize(size).convert(mode), kind)).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_palette_and_transparent_images_keep_their_colours(mode: str) -> None:
    white = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert (decode(encoded(white)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_bytes_are_undecodable(kind: str) -> None:
    whole = encoded(picture(3, width=64, height=64), kind)
    for bad in (None, b"", b"no image", whole[: len(whole) // 2], whole[:12]):
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
