"""One run, whole."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, model_validator

from lana_ray.config.budgets import Budget, BudgetsConfig
from lana_ray.config.networks import DataConfig, PoolConfig, TeacherConfig
from lana_ray.config.search import SearchConfig
from lana_ray.config.section import Section, location
from lana_ray.config.stages import DistillConfig, FinetuneConfig, ScoreConfig, SelectConfig
from lana_ray.config.targets import Target


class RunConfig(Section):
    dir: str = location(default="runs/default")
    """Where everything of this run is kept: a local path or an fsspec URL."""
    seed: int = 0


class RayConfig(Section):
    address: str = "auto"
    """``auto`` (a running cluster, else a local one), ``local``, or a cluster's address."""
    workers: int | None = Field(default=None, ge=1)
    """Ray Train workers; by default one per GPU of the cluster, or one per CPU where it has none."""
    min_workers: int = Field(default=1, ge=1)
    """The fewest to begin or to go on with: their number follows the cluster as nodes come and go."""
    cpu_workers: int = Field(default=0, ge=0)
    """Workers without a GPU that distil beside those with one."""
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    label_wait_s: float = Field(default=0, ge=0)
    """How long to wait for an autoscaler to bring the node of a target."""
    node_price_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What a node costs in any currency, the mean where nodes differ: the report multiplies it with the hours
    that nodes were there."""


def _budget_name(value: Any) -> str | None:
    return None if value is None else str(Budget.parse(value))


class RegistryConfig(Section):
    tracking_uri: str | None = None
    """MLflow's tracking URI; by default ``MLFLOW_TRACKING_URI``, else a database in the run directory."""
    name: str | None = None
    """Prefix of the registered models' names; the teacher's name by default."""
    default_budget: Annotated[str | None, BeforeValidator(_budget_name)] = None
    """The budget within which the most accurate student becomes ``champion``; by default the first listed."""


class Config(Section):
    """One run, whole. ``load_config`` reads it from YAML."""

    run: RunConfig = RunConfig()
    ray: RayConfig = RayConfig()
    teacher: TeacherConfig
    data: DataConfig
    pool: PoolConfig = PoolConfig()
    targets: tuple[Target, ...] = Field(min_length=1)
    budgets: BudgetsConfig
    distill: DistillConfig = DistillConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    search: SearchConfig = SearchConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _distinct_targets(self) -> Config:
        names = [target.name for target in self.targets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two targets are named {name!r}; names must differ")
        return self

    @model_validator(mode="after")
    def _targets_take_the_data(self) -> Config:
        shape = (3, self.data.image_size, self.data.image_size)
        for target in self.targets:
            if target.input_shape not in (None, shape):
                raise ValueError(
                    f"target {target.name!r}: input_shape {list(target.input_shape or ())} is not the data's "
                    f"{list(shape)}; leave it out or change data.image_size"
                )
        return self

    def to_yaml(self) -> str:
        data = self.model_dump(mode="json")
        data["budgets"]["latency_ms"] = [str(budget) for budget in self.budgets.latency_ms]
        counts = {"params": self.budgets.params, "macs": self.budgets.macs}
        data["budgets"] |= {name: str(budget) for name, budget in counts.items() if budget}
        return yaml.safe_dump(data, sort_keys=False)
