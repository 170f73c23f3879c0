"""One run, whole."""

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
    """One run, whole. ``load_config`` reads it from YAML."""

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
    def _distinct_targets(self) -> Config:
        for place, target in enumerate(self.targets):
            for other in self.targets[:place]:
                if target.name.lower() == other.name.lower():
                    unlike = "" if target.name == other.name else " but for its case, which some disks ignore"
                    raise refusal(
                        f"{target.name} is the name of two targets{unlike}; choose another",
                        "targets",
                        place,
                        "name",
                    )
        return self

    @model_validator(mode="after")
    def _targets_take_the_data(self) -> Config:
        shape = (3, self.data.image_size, self.data.image_size)
        for place, target in enumerate(self.targets):
            if target.input_shape not in (None, shape):
                raise refusal(
                    f"{list(target.input_shape or ())} is not the data's {list(shape)}; leave it out or "
                    "change data.image_size",
                    *("targets", place, "input_shape"),
                )
        return self

    @model_validator(mode="after")
    def _a_budget_of_the_run(self) -> Config:
        wanted, budgets = self.registry.default_budget, [str(budget) for budget in self.budgets.latency_ms]
        if wanted not in (None, *budgets):
            raise refusal(
                f"{wanted} is none of budgets.latency_ms: {', '.join(budgets)}", "registry", "default_budget"
            )
        return self

    @model_validator(mode="after")
    def _workers_to_begin_with(self) -> Config:
        most, least = self.ray.workers, self.ray.min_workers
        if most is not None and least > most:
            raise refusal(f"{least} is more than ray.workers, {most}", "ray", "min_workers")
        return self

    def to_yaml(self, *, only_given: bool = False) -> str:
        """The configuration as a file that reads back equal.

        Args:
            only_given: without what is by default.
        """
        return write(self._data(only_given))

    def to_public_yaml(self) -> str:
        """The same for others to read: without the passwords and parameters of URLs."""
        return write(public(self._data(only_given=False)))

    def _data(self, only_given: bool) -> dict[str, Any]:
        data = self.model_dump(mode="json", exclude_unset=only_given)
        data["budgets"] |= {"latency_ms": [str(budget) for budget in self.budgets.latency_ms]}
        data["budgets"] |= {name: str(budget) for name, budget in self.budgets.bounds.items()}
        return data
