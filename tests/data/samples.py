"""Small real data sets for these tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lana_ray.config import DataConfig
from lana_ray.data import ImageData, load_data

NAMES = ("cat", "dog", "eel")


def picture(number: int, *, width: int = 12, height: int = 12) -> Image.Image:
    """A picture that differs from every other number's."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Any = None,
    *,
    column: str = "image",
    as_struct: bool = True,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """A Parquet file in the hub's layout; labels are 0, 1, 2, 0, 1, … unless given."""
    labels = labels if labels is not None else [index % 3 for index in range(len(images))]
    values = [{"bytes": data, "path": None} for data in images] if as_struct else list(images)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if as_struct else pa.binary()
    table = pa.table({column: pa.array(values, type=kind), "label": labels})
    encoded_metadata = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    pq.write_table(table.replace_schema_metadata(encoded_metadata), path, row_group_size=16)
    return path


def pictures(count: int, start: int = 0) -> list[bytes]:
    return [encoded(picture(number)) for number in range(start, start + count)]


def write_folder(root: Path, per_class: int, names: Sequence[str] = NAMES) -> Path:
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            picture(100 * label + number).save(root / name / f"{number}.png")
    return root


def load(*, seed: int = 0, **settings: Any) -> ImageData:
    """The data a configuration names, with small splits."""
    defaults: dict[str, Any] = {"image_size": 12, "score_images": 4, "validation_images": 4}
    return load_data(DataConfig(**{**defaults, **settings}), seed=seed)
