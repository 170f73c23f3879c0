"""One run, whole."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from lana_ray.config.budgets import Budget, BudgetsConfig
from lana_ray.config.networks import DataConfig, PoolConfig, TeacherConfig
from lana_ray.config.reader import write
from lana_ray.config.search import SearchConfig
from lana_ray.config.section import Seconds, Section, location, refusal
from lana_ray.config.stages import DistillConfig, FinetuneConfig, ScoreConfig, SelectConfig
from lana_ray.config.targets import Target
from lana_ray.redact import public


class RunConfig(Section):
    """Where the run is kept, and its seed."""

    dir: str = location(default="runs/default")
    """Run directory, a local path or an fsspec URL. Everything measured and trained is kept there."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of every random choice: the same seed gives the same choices."""


class RayConfig(Section):
    """The cluster, and how many workers train on it."""

    address: str = "auto"
    """``auto`` uses a running cluster or starts a local one, ``local`` always starts a local one; or the
    address of a cluster."""
    workers: int | None = Field(default=None, ge=1)
    """Maximum number of training workers; by default as many as the training nodes hold. One network is
    trained by at most one worker per micro-batch, and distillation uses at most one worker per
    candidate."""
    min_workers: int = Field(default=1, ge=1)
    """Minimum number of training workers. Between the minimum and the maximum, the number follows the
    cluster as nodes come and go."""
    cpu_workers: int = Field(default=0, ge=0)
    """Additional workers without a GPU for distillation; used only if ``gpus_per_worker`` is set."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPUs of a worker or task, which is also its number of threads; by default the workers of a node share
    all its CPUs."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of a worker; 0 trains on CPUs."""
    label_wait_s: Seconds = Field(default=0, ge=0)
    """Time limit in seconds for an autoscaler to add a missing node, of a target or for training."""
    node_price_per_hour: float | None = Field(default=None, ge=0)
    """Mean price of a node per hour, in any currency. The report multiplies it by the node hours of the
    run."""


def _budget_name(value: Any) -> str | None:
    return None if value is None else str(Budget.parse(value))


class RegistryConfig(Section):
    """Where students are registered in MLflow, and under which names."""

    tracking_uri: str | None = None
    """MLflow tracking URI; by default ``MLFLOW_TRACKING_URI``, else a database in the run directory."""
    name: str | None = None
    """Prefix of the names of registered models; defaults to the teacher's name."""
    default_budget: Annotated[str | None, BeforeValidator(_budget_name)] = None
    """Budget whose most accurate student becomes ``champion``; defaults to the first of
    ``budgets.latency_ms``."""


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
        counts = {"params": self.budgets.params, "macs": self.budgets.macs}
        data["budgets"] |= {name: str(budget) for name, budget in counts.items() if budget}
        return data
