"""What can be asked for: the sections of a configuration, their defaults and their bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

_MS_PER_UNIT = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
_COUNT_PER_UNIT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_FRACTION = Annotated[float, Field(ge=0, lt=1)]
LOCATION = "location"
"""Marks fields that hold a path, or several, made absolute against the file that names them."""


class Section(BaseModel):
    """A block of the configuration; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _location(**extra: Any) -> Any:
    return Field(json_schema_extra={LOCATION: True}, **extra)


class Budget(Section):
    """An upper bound on a cost: absolute, or a share of what the teacher costs on the same target."""

    value: float = Field(gt=0)
    relative: bool

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """Reads ``50%``, ``12.5ms``, ``800us``, ``0.02s`` or a plain number of milliseconds."""
        return cls._read(text, {"": 1.0, **_MS_PER_UNIT}, "12.5ms")

    @classmethod
    def _read(cls, text: Any, units: Mapping[str, float], example: str) -> Self:
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(\D*?)\s*", str(text))
        try:
            number = float(match[1]) if match else float("nan")
        except ValueError:
            number = float("nan")
        if match is None or match[2] not in {"%", *units} or not 0 < number < float("inf"):
            raise ValueError(f"{text!r} is no budget; write for example 50% or {example}")
        if match[2] == "%":
            return cls(value=number / 100, relative=True)
        return cls(value=number * units[match[2]], relative=False)

    def limit(self, of_teacher: float) -> float:
        """The bound where the teacher takes ``of_teacher``, in the same unit: milliseconds for latencies."""
        return self.value * of_teacher if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value * 100:.12g}%" if self.relative else f"{self.value:.12g}ms"


class CountBudget(Budget):
    """An upper bound on what is counted: absolute, or a share of the teacher's."""

    @classmethod
    def parse(cls, text: Any) -> CountBudget:
        """Reads ``50%``, ``2.5M``, ``300k``, ``1.2G`` or a plain number."""
        return cls._read(text, _COUNT_PER_UNIT, "2.5M")

    def __str__(self) -> str:
        return f"{self.value * 100:.12g}%" if self.relative else f"{self.value:.12g}"


def _as_budget(value: Any) -> Any:
    return value if isinstance(value, Budget | dict) else Budget.parse(value)


def _budget_name(value: Any) -> str | None:
    return None if value is None else str(Budget.parse(value))


def _as_count(value: Any) -> Any:
    return value if isinstance(value, CountBudget | dict | None) else CountBudget.parse(value)


class RunConfig(Section):
    dir: str = _location(default="runs/default")
    """Where everything of this run is kept: a local path or an fsspec URL."""
    seed: int = 0


class RayConfig(Section):
    address: str = "auto"
    """``auto`` (a running cluster, else a local one), ``local``, or a cluster's address."""
    workers: int | None = Field(default=None, ge=1)
    """Ray Train workers; by default one per GPU of the cluster, or one per CPU where it has none."""
    min_workers: int | None = Field(default=None, ge=1)
    """Let distillation begin with so many of its workers, and follow the cluster as nodes come and go."""
    cpu_workers: int = Field(default=0, ge=0)
    """Workers without a GPU that distil beside those with one."""
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    label_wait_s: float = Field(default=0, ge=0)
    """How long to wait for an autoscaler to bring the node of a target."""
    node_price_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What a node costs in any currency, the mean where nodes differ: the report multiplies it with the hours
    that nodes were there."""


class TrainConfig(Section):
    """Training of a whole network: the teacher's adaptation and the students' fine-tuning."""

    epochs: float = Field(default=2, gt=0)
    """Passes over the training split; a fraction is allowed."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step over all workers together."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW's one-cycle schedule."""
    weight_decay: float = Field(default=0.01, ge=0)
    label_smoothing: _FRACTION = 0.0


class TeacherConfig(Section):
    timm: str | None = None
    """The name of a timm network."""
    factory: str | None = _location(default=None)
    """``package.module:function`` or ``file.py:function``, called with ``num_classes``."""
    pretrained: bool = False
    """Take timm's pretrained weights (from an installed weights package if there is one, else the hub)."""
    weights: str | None = _location(default=None)
    """Safetensors or a state dict, loaded without unpickling code."""
    layers: tuple[str, ...] | None = None
    """Glob patterns of module names, in place of the block structure found by itself."""
    adapt: TrainConfig = TrainConfig()
    """How the teacher is trained on the data, where its head does not fit or its weights are random."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if (self.timm is None) == (self.factory is None):
            raise ValueError("give exactly one of timm and factory")
        if self.pretrained and (self.weights or self.factory):
            raise ValueError("pretrained goes with timm and without weights")
        return self


class DataConfig(Section):
    source: Literal["digits"] | None = None
    """A data set that an installed package carries."""
    parquet: str | None = _location(default=None)
    """A Parquet file or a folder of them: image bytes (column ``image`` or ``img``) and ``label``."""
    folder: str | None = _location(default=None)
    """A folder with one folder of images per class."""
    torchvision: str | None = None
    """The name of a torchvision data set with a train/test split, for example ``CIFAR10``."""
    test: str | None = _location(default=None)
    """The test images in the same form; without it a share of the training images is set aside."""
    root: str = _location(default="data")
    """Where torchvision keeps its files."""
    download: bool = False
    """Let torchvision download what is missing."""
    image_size: int = Field(default=224, ge=8)
    score_images: int | None = Field(default=None, ge=2)
    """Training images set aside to score candidates and to choose among students; by default an eighth of
    them, at most 1024."""
    validation_images: int | None = Field(default=None, ge=1)
    """Training images set aside to follow a training and to pick its best epoch; the same by default."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share set aside for the report where the data has no test images of its own."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most so many training images."""
    max_undecodable: _FRACTION = 0.01
    """Refuse the data when more than this share of the images does not decode."""
    augment: Literal["none", "crop", "flip"] = "flip"
    """Training-time augmentation: random crops after padding, the same and a horizontal flip, or none."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if sum(x is not None for x in (self.source, self.parquet, self.folder, self.torchvision)) != 1:
            raise ValueError("give exactly one of source, parquet, folder and torchvision")
        return self


class PoolConfig(Section):
    preset: Literal["tiny", "small", "lana"] = "tiny"
    ops: tuple[str, ...] | None = None
    """Names of operations, in place of a preset's; teacher is always a candidate."""
    modules: tuple[str, ...] = _location(default=())
    """Python files that register operations of your own; they are run on every node (``ops.registry``)."""
    max_cost: float | None = Field(default=1.0, gt=0)
    """Leave candidates out that alone take more than this share of their layer's time on every target: they
    would be trained and never chosen. ``null`` keeps all."""


class MeasureConfig(Section):
    """How a target is sampled."""

    architectures: int = Field(default=48, ge=8)
    """Whole networks measured to turn candidate costs into what they cost in place."""
    active: int = Field(default=0, ge=0)
    """Further networks measured for a predictor of them, chosen where it is least certain."""
    rel_error: float = Field(default=0.02, gt=0, lt=1)
    """Stop repeating once the median's 95 % confidence interval is this narrow."""
    time_limit_s: float = Field(default=0.5, gt=0)
    """Stop repeating one network after so long, and mark it if it has not settled."""


class Target(Section):
    """A named piece of hardware and how networks run on it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runtime: Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt"] = "torch"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(default=1, ge=1)
    batch_size: int = Field(default=1, ge=1)
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What the network computes in there; which a runtime knows on which device is checked before a run."""
    input_shape: tuple[int, ...] | None = None
    """One input without the batch dimension; the data's (3, image_size, image_size) by default."""
    label: str | None = None
    """Value of the node label ``lana.target``; the target's name by default."""
    measure: MeasureConfig = MeasureConfig()

    @property
    def node_label(self) -> str:
        return self.label or self.name


class BudgetsConfig(Section):
    latency_ms: tuple[Annotated[Budget, BeforeValidator(_as_budget)], ...] = Field(min_length=1)
    """Each is kept by a student of its own, on every target."""
    params: Annotated[CountBudget | None, BeforeValidator(_as_count)] = None
    """The most parameters of every student: ``2.5M``, or a share of the teacher's."""
    macs: Annotated[CountBudget | None, BeforeValidator(_as_count)] = None
    """The most multiply-accumulates of every student on one input: the same."""

    @field_validator("latency_ms", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [value]


class DistillConfig(Section):
    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=2e-3, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the candidates' arithmetic (autocast); their weights and errors stay fp32."""
    memory_gb: float = Field(default=4.0, gt=0)
    """GiB that the candidates a worker trains at once may take beside the teacher. One that takes more alone
    trains on each batch in parts."""
    group_size: int = Field(default=128, ge=1)
    """Most candidates that a worker trains at once: what its death can lose."""
    stop_hopeless: bool = False
    """Stop candidates at a quarter and at half of their steps that others of their layer have left behind,
    costing no more and erring by much less. Saves time; what is left out had little chance to be chosen."""


class ScoreConfig(Section):
    by: Literal["kl", "loss"] = "kl"
    """What a candidate's score is: its divergence from the teacher's answers, or the change of the loss."""
    images: int = Field(default=512, ge=2)
    batch_size: int = Field(default=128, ge=2)
    students: int = Field(default=32, ge=0)
    """Random students evaluated as wholes, to tell how well sums of scores rank them."""


class SelectConfig(Section):
    count: int = Field(default=10, ge=1)
    """Diverse students per target and budget that are measured and evaluated (the paper: 100)."""
    max_overlap: float = Field(default=0.7, gt=0, le=1)
    time_limit_s: float = Field(default=10.0, gt=0)
    """For all students of one target and budget; what is not proven optimal by then says its gap."""
    joint: bool = False
    """Also choose, for every budget, one architecture that keeps it on all targets."""
    force: tuple[str, ...] = ()
    """``LAYER=OPERATION``, glob patterns both: at these layers only these operations."""
    forbid: tuple[str, ...] = ()
    """The same: at these layers none of these operations."""
    max_ops: int | None = Field(default=None, ge=0)
    """At most so many different operations in a student, the teacher's own layers not counted."""
    rounds: int = Field(default=4, ge=1)
    """How often the program is solved, each time with a table calibrated by the students measured before;
    twice as often for a budget that none of them kept."""
    margin: _FRACTION = 0.02
    """Share of the budget kept free against the spread of re-measurements, at least."""
    confidence: float | None = Field(default=None, ge=0.5, lt=1)
    """Share of re-measurements that shall keep the budget: as much of it is kept free as the spread of the
    students' sessions on the target asks for."""


class CellsConfig(Section):
    """A cell space, in place of the teacher's layers."""

    space: Literal["nasbench201", "darts"]
    width: int = Field(default=16, ge=4)
    """Channels of the first cells."""
    cells: int = Field(default=5, ge=1)
    """For NAS-Bench-201 in each of three stages, for DARTS in all, at least 3."""
    search_width: int | None = Field(default=None, ge=4)
    """Of the supernet; the same by default."""
    search_cells: int | None = Field(default=None, ge=1)
    """The same."""
    partial: int = Field(default=4, ge=1)
    """In the supernet one in so many channels goes through the mixture (PC-DARTS); 1 for all."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """One convolution that keeps the image's size, or three that halve it each."""
    samples: int = Field(default=200, ge=20)
    """Random cells measured on every target, for the latency predictor."""
    active: int = Field(default=0, ge=0)
    """Further ones, where predictors disagree most."""
    trial_epochs: float = Field(default=2.0, gt=0)
    """Of training, as ``finetune`` says, by which the cells found are compared. What is chosen for a budget
    is trained again, in full."""
    drop_path: float = Field(default=0.2, ge=0, lt=1)
    """Of that full training: the probability, in its last epoch, that an edge's answer is dropped."""
    auxiliary_weight: float = Field(default=0.4, ge=0)
    """Of the second classifier's loss in it; 0 for none."""

    @model_validator(mode="after")
    def _reductions(self) -> CellsConfig:
        if self.space == "darts" and min(self.cells, self.search_cells or self.cells) < 3:
            raise ValueError("cells: DARTS has two reduction cells; give at least 3")
        width = self.search_width or self.width
        if width % self.partial:
            raise ValueError(f"partial: {self.partial} does not divide the supernet's width, {width}")
        return self


class SearchConfig(Section):
    """``lana-ray search``: sweeps of the differentiable search (LA-DNAS) and of the integer program."""

    cells: CellsConfig | None = None
    """Search a cell space; by default the scored candidates of the teacher's layers."""
    cost: Literal["latency_ms", "peak_memory_mb", "energy_mj", "params", "macs"] = "latency_ms"
    """What is searched for beside accuracy, on every target: its latency, or another meter of its node."""
    methods: tuple[Literal["differentiable", "program"], ...] = ("differentiable", "program")
    trials: int = Field(default=12, ge=1)
    """Of each method on each target."""
    lambdas: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.003, 3.0)
    """The range that λ is drawn from, on a log scale: by how much the loss may rise for saving what
    the teacher costs, or the mean random cell."""
    grid: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = Field(
        default=None, min_length=1
    )
    """Exactly these λ, 0 among them if you like, in place of ``trials`` drawn ones."""
    seeds: int = Field(default=1, ge=1)
    """How often each λ of the grid is tried, with other weights, images and order each time."""
    aim: Literal["lambda", "budget"] = "lambda"
    """What a trial of the differentiable search is given: λ, or a budget of the cost as the program is, for
    which it finds λ on the way."""
    steps: int = Field(default=200, ge=10)
    """Of the differentiable search."""
    batch_size: int = Field(default=64, ge=2)
    lr: float = Field(default=0.1, gt=0)
    """Of the architecture parameters (Adam)."""
    mixture: Literal["paired", "sampled", "relaxed"] = "paired"
    """What a step computes of each choice: two of its operations, weighed against one another; one of them,
    which has to do without a comparison; or all."""
    weight_lr: float = Field(default=0.1, gt=0)
    """Of a cell supernet's weights (SGD, falling by half a cosine)."""
    warmup: float = Field(default=0.5, ge=0, lt=1)
    """Share of the steps in which the weights of a cell supernet learn alone: operations that learn are
    judged too early otherwise, beside those that have nothing to learn."""
    concurrency: int = Field(default=1, ge=1)
    """Trials at a time. On one machine, more of them disturb its measurements."""

    @model_validator(mode="after")
    def _a_range(self) -> SearchConfig:
        if self.lambdas[0] >= self.lambdas[1]:
            raise ValueError("lambdas: give the smaller end of the range first")
        return self

    @model_validator(mode="after")
    def _a_table_for_the_program(self) -> SearchConfig:
        if self.metered and "differentiable" not in self.methods:
            raise ValueError(f"methods: the program needs latency_ms as its cost, not {self.cost}")
        return self

    @model_validator(mode="after")
    def _a_grid(self) -> SearchConfig:
        if self.grid is None:
            if self.seeds > 1:
                raise ValueError("seeds: tries each λ of a grid again; give search.grid")
            return self
        if self.aim != "lambda":
            raise ValueError("grid: holds values of λ, and goes with aim: lambda alone")
        if len(set(self.grid)) < len(self.grid):
            raise ValueError("grid: give each λ once; seeds tries it again")
        return self

    @property
    def metered(self) -> bool:
        """Whether the cost is read of a meter, where latencies are sampled against the machine's drift."""
        return self.cost != "latency_ms"


class FinetuneConfig(TrainConfig):
    kd_weight: float = Field(default=0.7, ge=0, le=1)
    """Share of the loss that is the divergence from the teacher, the rest is the labels' cross-entropy."""
    temperature: float = Field(default=2.0, gt=0)


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
