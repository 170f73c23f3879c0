"""Defines the configuration of a run, and the rules between its blocks."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from lana_ray.config.budgets import BudgetsConfig
from lana_ray.config.data import DataConfig
from lana_ray.config.distill import DistillConfig
from lana_ray.config.finetune import FinetuneConfig
from lana_ray.config.pool import PoolConfig
from lana_ray.config.ray import RayConfig
from lana_ray.config.reader import write
from lana_ray.config.registry import RegistryConfig
from lana_ray.config.run import RunConfig
from lana_ray.config.score import ScoreConfig
from lana_ray.config.search import SearchConfig
from lana_ray.config.section import Section, refusal
from lana_ray.config.select import SelectConfig
from lana_ray.config.targets import Target
from lana_ray.config.teacher import TeacherConfig
from lana_ray.redact import public


class Config(Section):
    """The configuration of a run. ``load_config`` reads it from YAML."""

    run: RunConfig = RunConfig()
    ray: RayConfig = RayConfig()
    teacher: TeacherConfig = Field(examples=["{timm: efficientnet_b0, pretrained: true}"])
    data: DataConfig = Field(examples=["{folder: images}"])
    pool: PoolConfig = PoolConfig()
    targets: tuple[Target, ...] = Field(min_length=1, examples=["[{name: edge, runtime: onnxruntime}]"])
    budgets: BudgetsConfig = Field(examples=["{latency_ms: [70%, 50%]}"])
    distill: DistillConfig = DistillConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    search: SearchConfig = SearchConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _check_targets(self) -> Config:
        shape = (3, self.data.image_size, self.data.image_size)
        for place, target in enumerate(self.targets):
            for other in self.targets[:place]:
                if target.name.lower() == other.name.lower():
                    case = "" if target.name == other.name else ", as some disks ignore case"
                    text = f"{target.name} is the name of two targets{case}; choose another"
                    raise refusal(text, "targets", place, "name")
            if target.input_shape not in (None, shape):
                text = (
                    f"{list(target.input_shape or ())} is not the data's {list(shape)}; remove it or "
                    "change data.image_size"
                )
                raise refusal(text, "targets", place, "input_shape")
        return self

    @model_validator(mode="after")
    def _check_default_budget(self) -> Config:
        default, budgets = self.registry.default_budget, [str(budget) for budget in self.budgets.latencies]
        if default not in (None, *budgets):
            text = f"{default} is none of the budgets; choose one of {', '.join(budgets)}"
            raise refusal(text, "registry", "default_budget")
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Config:
        most, least = self.ray.workers, self.ray.min_workers
        if most is not None and least > most:
            raise refusal(f"{least} is more than ray.workers, {most}; lower it", "ray", "min_workers")
        return self

    def to_yaml(self, *, only_set: bool = False) -> str:
        """The configuration as YAML that reads back equal; ``only_set`` leaves out unset settings."""
        return write(self._data(only_set))

    def to_public_yaml(self) -> str:
        """Returns the configuration as YAML without the passwords and parameters of URLs."""
        return write(public(self._data(only_set=False)))

    def _data(self, only_set: bool) -> dict[str, Any]:
        data = self.model_dump(mode="json", exclude_unset=only_set)
        for name in ("latency_ms", "throughput_ips"):
            if name in data["budgets"]:
                data["budgets"][name] = [str(budget) for budget in getattr(self.budgets, name)]
        data["budgets"] |= {name: str(budget) for name, budget in self.budgets.bounds.items()}
        return data
