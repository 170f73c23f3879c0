"""Finds the image and label columns of a Parquet file, and turns labels of any type into class numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lana_ray.data.names import class_name, listed
from lana_ray.data.sources import UNLABELLED, Labels, invalid_data, positions
from lana_ray.errors import first_line

_IMAGE_COLUMNS = ("image", "img")
_BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
_TEXT = (pa.string(), pa.large_string(), pa.string_view())


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names from the configuration; None for the hub's names, ``image`` or ``img`` and ``label``."""

    image: str | None = None
    label: str | None = None

    @property
    def label_name(self) -> str:
        return self.label or "label"

    def image_path(self, url: str, parquet: Any) -> str:
        """Returns the path of the column of a ``ParquetFile`` with encoded bytes, such as ``image.bytes``.

        Raises:
            UserError: there is no such column, it has another type, or it only names files.
        """
        schema = parquet.schema_arrow
        candidates = (self.image,) if self.image else _IMAGE_COLUMNS
        name = next((x for x in candidates if x in schema.names), None)
        if name is None:
            raise invalid_data(
                f"{url}: no image column {' or '.join(candidates)}; set data.image_column to one of "
                f"{listed(schema.names, 20)}"
            )
        kind = schema.field(name).type
        if kind in _BINARY:
            path = name
        elif pa.types.is_struct(kind) and any(x.name == "bytes" and x.type in _BINARY for x in kind):
            path = f"{name}.bytes"
        else:
            raise invalid_data(
                f"{url}: column {name} is {kind}; expected encoded images: binary or struct<bytes: binary>"
            )
        if _is_null(parquet.metadata, path):
            raise invalid_data(
                f"{url}: column {path} is empty, and images in separate files are not read; write their "
                "bytes into the column"
            )
        return path

    def labels(self, url: str, column: Any) -> tuple[Labels, tuple[str, ...] | None]:
        """Returns a class number per row, shape [rows], and the class names if the labels are names.

        Names are numbered in alphabetical order. All labels are ``UNLABELLED`` if the column is empty.

        Raises:
            UserError: a row has no label, or the labels are neither integral numbers nor names.
        """
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if column.null_count == len(column):
            return np.full(len(column), UNLABELLED, dtype=np.int64), None
        kind = column.type
        if kind in _TEXT:
            encoded = column.combine_chunks().dictionary_encode()
            texts = [class_name(text) for text in encoded.dictionary.to_pylist()]
            names = sorted(set(filter(None, texts)))
            labels = positions(texts, names)[encoded.indices.fill_null(0).to_numpy()]
            self._refuse_empty(url, pc.is_null(column).to_numpy() | (labels == UNLABELLED))
            return labels, tuple(names)
        self._refuse_empty(url, pc.is_null(column, nan_is_null=True).to_numpy())
        if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise invalid_data(
                f"{url}: column {self.label_name} is {kind}; expected one class per image, as a number or a "
                "name"
            )
        try:
            return column.cast(pa.int64()).to_numpy().astype(np.int64), None
        except pa.ArrowInvalid as error:
            raise invalid_data(
                f"{url}: column {self.label_name} is {kind}, and not all of its values are class numbers "
                f"({first_line(error)})"
            ) from None

    def _refuse_empty(self, url: str, empty: npt.NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(empty)
        if len(rows):
            raise invalid_data(f"{url} row {rows[0]}: has no {self.label_name}; remove the row or label it")


def _is_null(metadata: Any, path: str) -> bool:
    """Returns whether a column has rows but no value, according to the file's statistics."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    counts = [chunk.statistics for chunk in chunks if chunk.path_in_schema == path]
    if not all(count is not None and count.has_null_count for count in counts):
        return False
    return 0 < metadata.num_rows == sum(count.null_count for count in counts)
