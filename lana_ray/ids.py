"""Names that stay the same in every process, file and registry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Architecture = tuple[int, ...]
"""The index of what is chosen for each decision of a space; for a layer, 0 is the teacher's own operation."""
Choices = tuple[tuple[int, ...], ...]
"""For each decision, the indices of some of its options."""


def family_of(op: str) -> str:
    """The part of an operation's name before its parameters: ``mbconv`` of ``mbconv_e3_k3``."""
    return re.sub(r"(_[a-z]+[\d.]+)+$", "", op)


class CandidateId(NamedTuple):
    """One operation in the place of one layer.

    Its text, ``layer=operation``, is what labels of architectures, ``select.force`` and messages say.
    """

    layer: str
    """Path of the layer in the teacher, such as ``blocks.1.0``."""
    op: str
    """Name of the operation, such as ``mbconv_e3_k5``."""

    def __str__(self) -> str:
        return f"{self.layer}={self.op}"

    @classmethod
    def parse(cls, text: str) -> CandidateId:
        """Reads ``layer=operation``; ValueError for other text."""
        layer, separator, op = text.partition("=")
        if not (layer and separator and op):
            raise ValueError(f"{text!r} is not of the form layer=operation")
        return cls(layer, op)


def read_label(label: str) -> tuple[CandidateId, ...]:
    """The candidates of a layer-wise architecture's label, ``layer=operation|…``, in the order of layers."""
    return tuple(map(CandidateId.parse, label.split("|")))


def write_label(candidates: tuple[CandidateId, ...]) -> str:
    """The inverse of ``read_label``."""
    return "|".join(map(str, candidates))


QUANTILES = ("p50", "p90", "p99")
"""The quantiles of a latency that a budget may bound."""


def latency_cost(quantile: str) -> str:
    """The cost's name: ``latency_ms`` for the median, else such as ``latency_p99_ms``."""
    return "latency_ms" if quantile == QUANTILES[0] else f"latency_{quantile}_ms"


class CostId(NamedTuple):
    """One cost on one target, such as ``latency_ms on edge``."""

    cost: str
    """As in ``budgets``, with the unit at its end."""
    target: str | None = None
    """None for a cost that is the same on every target, such as ``params``."""

    @property
    def is_latency(self) -> bool:
        """Whether it is some quantile of the latency."""
        return self.cost in map(latency_cost, QUANTILES)

    @property
    def unit(self) -> str:
        """The unit in which it is written; the cost's name if it is a number of something."""
        return _UNITS.get(self.cost.rpartition("_")[2], self.cost)

    def __str__(self) -> str:
        return self.cost if self.target is None else f"{self.cost} on {self.target}"

    def written(self, value: float) -> str:
        """A value of this cost with its unit: ``1.750 ms``, ``2.5e+06 params``."""
        if self.unit == self.cost:
            return f"{value:.6g} {self.cost}"
        return f"{value:.3f} {self.unit}" if abs(value) >= 0.01 else f"{value:.3g} {self.unit}"


_UNITS = {"ms": "ms", "mb": "MB", "mj": "mJ"}


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in nested mappings by their paths, such as ``distill.steps``; a list is one value."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
