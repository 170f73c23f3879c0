"""Defines the ``registry`` block: where students are registered."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from lana_ray.config.budgets import LatencyBudget
from lana_ray.config.section import Section


def _budget_name(value: Any) -> str | None:
    return None if value is None else str(LatencyBudget.parse(value))


class RegistryConfig(Section):
    """Where students are registered in MLflow, and under which names."""

    tracking_uri: str | None = None
    """MLflow tracking URI; defaults to ``MLFLOW_TRACKING_URI``, else to a database in the run directory."""
    name: str | None = None
    """Prefix of the names of registered models; defaults to the teacher's name."""
    default_budget: Annotated[str | None, BeforeValidator(_budget_name)] = None
    """Budget whose most accurate student becomes ``champion``; defaults to the first of
    ``budgets.latency_ms``."""
