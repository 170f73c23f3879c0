"""The parts of self-contained pages: pictures, tables and templates."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from lana_ray.report import numbers


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot with its caption."""

    title: str
    svg: str
    caption: str

    @property
    def file(self) -> str:
        """A file name, such as ``accuracy-and-latency.svg``."""
        return re.sub(r"\W+", "-", self.title.lower(), flags=re.ASCII).strip("-") + ".svg"

    @property
    def uri(self) -> str:
        """A data URI; as images, pictures cannot clash in the ids of their SVG elements."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table for a page."""

    title: str
    columns: tuple[tuple[str, bool], ...]
    """Headings, and whether the column holds numbers."""
    rows: tuple[tuple[str, ...], ...]


def sheet(table: Table) -> Sheet:
    """Converts a table for the terminal."""
    cells = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return Sheet(
        title=_plain(table.title),
        columns=tuple((_plain(column.header), column.justify == "right") for column in table.columns),
        rows=tuple(zip(*cells, strict=True)),
    )


def render(template: str, **values: Any) -> str:
    """Renders a template in this folder."""
    environment = Environment(
        loader=PackageLoader("lana_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=numbers.number,
        percent=numbers.percent,
        count=numbers.count,
        duration=numbers.duration,
    )
    return environment.get_template(template).render(**values)


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
