"""What pages are made of: templates, pictures, tables, the configuration, and the time of every stage."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from lana_ray.config import BudgetsConfig, Config, DataConfig, Target, TeacherConfig
from lana_ray.config.section import Section
from lana_ray.errors import UserError
from lana_ray.ids import dotted
from lana_ray.redact import without_passwords
from lana_ray.report import numbers
from lana_ray.run_dir import layout
from lana_ray.run_dir.hours import Invocation, StageTime
from lana_ray.run_dir.storage import Storage

_ALWAYS = {
    "budgets": {"latency_ms"},
    "data": {"image_size"},
    "pool": {"preset"},
    "target": {"runtime", "device", "threads", "batch_size", "precision"},
}
"""Settings that are always shown."""
_FIRST = ("teacher", "data", "targets", "budgets", "pool")
_NEVER = {"run.dir", "data.root"}  # paths, which always differ from their relative defaults


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
        rows=lambda table: zip(*(column.cells for column in table.columns), strict=True),
    )
    return environment.get_template(template).render(**values)


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


def write_svgs(storage: Storage, svgs: Mapping[str, str]) -> list[str]:
    """Writes plots by file name; returns their paths."""
    for name, svg in svgs.items():
        storage.write_text(name, svg)
    return [storage.url(name) for name in svgs]


def read_settings(storage: Storage) -> dict[str, Any] | None:
    """The settings of the last run, None if there was none; raises UserError if ``run.yaml`` is damaged.

    Returns:
        ``sections``: those that define the run or are not defaults, by section, of which every target has its
        own: (key within the section, value, the default if another value was set). ``text``: everything as
        YAML, without passwords.
    """
    if not storage.exists(layout.SETTINGS):
        return None
    text = without_passwords(storage.read_text(layout.SETTINGS), instead="")
    try:
        settings: dict[str, Any] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            "damaged_file", f"{storage.url(layout.SETTINGS)}: damaged ({' '.join(str(error).split())})"
        ) from None
    kinds: dict[str, type[Section]] = {
        "teacher": TeacherConfig,
        "data": DataConfig,
        "budgets": BudgetsConfig,
        "target": Target,
    }
    defaults = Config.model_construct().model_dump(mode="json")
    defaults |= {name: kind.model_construct().model_dump(mode="json") for name, kind in kinds.items()}
    sections = {}
    for section in dict.fromkeys((*_FIRST, *settings)):
        if section == "targets":
            for target in settings[section]:
                name = target.pop("name")
                sections[f"target {name}"] = list(_settings("target", target, defaults["target"]))
        else:
            sections[section] = list(_settings(section, settings[section], defaults.get(section, {})))
    return {"sections": {name: some for name, some in sections.items() if some}, "text": text}


def _settings(
    section: str, values: dict[str, Any], defaults: dict[str, Any]
) -> Iterator[tuple[str, str, str | None]]:
    usual, always = dict(dotted(defaults)), _ALWAYS.get(section, set())
    if values.get("ops"):
        always = always - {"preset"}  # operations replace the preset
    for key, value in dotted(values):
        default = usual.get(key)
        if f"{section}.{key}" not in _NEVER and (key in always or value != default):
            named = default is not None and key not in always
            yield key, _written(value), _written(default) if named else None


def _written(value: Any) -> str:
    """A value as it is written in a configuration."""
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def spending(invocations: Sequence[Invocation], price: float | None) -> dict[str, Any] | None:
    """Sums up the stages of all invocations, at a price per node-hour; None if nothing was recorded.

    ``killed`` has the stages in which earlier invocations were killed; ``last`` of a stage is None if the
    last invocation did not reach it.
    """
    if not invocations:
        return None
    last = invocations[-1].stages
    names = dict.fromkeys(name for one in invocations for name in one.stages)
    spent = {name: _sum(one.stages[name] for one in invocations if name in one.stages) for name in names}
    total = _sum(spent.values())

    def row(stage: str, spent: StageTime, last: StageTime | None) -> dict[str, Any]:
        node_hours = spent.node_seconds / 3600
        return {
            "stage": stage,
            "seconds": spent.seconds,
            "share": spent.seconds / total.seconds if total.seconds else 0.0,
            "last": None if last is None else last.seconds,
            "node_hours": node_hours,
            "cost": None if price is None else price * node_hours,
        }

    return {
        "rows": [row(name, time, last.get(name)) for name, time in spent.items()],
        "total": row("all", total, _sum(last.values())),
        "invocations": len(invocations),
        "killed": [one.running for one in invocations[:-1] if one.running is not None],
        "price": price,
    }


def _sum(times: Iterable[StageTime]) -> StageTime:
    times = list(times)
    return StageTime(
        seconds=sum(time.seconds for time in times), node_seconds=sum(time.node_seconds for time in times)
    )
