from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..errors import refuses
from .samples import NAMES, encoded, load, picture, pictures, write_folder, write_parquet


def fill(root: Path, image: Image.Image, count: int = 10) -> str:
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(count):
            image.save(root / name / f"{number}.tiff")
    return str(root)


def test_sound_images_pass_without_a_remark(tmp_path: Path) -> None:
    assert load(folder=str(write_folder(tmp_path / "pictures", 10))).check() == []


def test_images_without_a_range_are_refused_until_it_is_set(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((12, 12)).astype(np.float32)
    root = fill(tmp_path / "pictures", Image.fromarray(values))
    with refuses("invalid_data", "30 of 30", "0.tiff", "data.value_range"):
        load(folder=root).check()
    assert load(folder=root, value_range=(0, 1)).check() == []


def test_images_that_hardly_show_anything_are_remarked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (12, 12)).astype(np.uint16)
    root = fill(tmp_path / "pictures", Image.fromarray(values))
    (dark,) = load(folder=root).check()
    assert "brightest value is 16" in dark
    assert "data.value_range" in dark
    (bright,) = load(folder=root, value_range=(-2, -1)).check()
    assert "darkest value is 255" in bright
    assert load(folder=root, value_range=(0, 4095)).check() == []


def test_long_images_are_remarked(tmp_path: Path) -> None:
    (remark,) = load(folder=fill(tmp_path / "pictures", picture(1, width=60, height=12))).check()
    assert "5.0 times as long as wide" in remark


@pytest.mark.parametrize(("damaged", "is_refused"), [(2, False), (3, True)])
def test_damage_counts_against_all_images(tmp_path: Path, damaged: int, is_refused: bool) -> None:
    images = [b"no image"] * damaged + pictures(200 - damaged)
    data = load(parquet=str(write_parquet(tmp_path / "a.parquet", images)))
    if is_refused:
        with refuses("invalid_data", "3 of 8", "a.parquet row 0", "data.max_undecodable"):
            data.check()
    else:
        assert data.check() == []


def test_every_class_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 40)
    for file in (root / "eel").iterdir():
        file.write_bytes(encoded(picture(1))[:60])
    with refuses("invalid_data", " of 32 ", "eel", "data.max_undecodable") as error:
        load(folder=str(root)).check()
    assert any(f" {count} of 32 " in str(error.value) for count in (10, 11))
