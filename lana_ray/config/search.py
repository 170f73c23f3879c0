"""Sweeps of searches, and the cells that they may be over."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lana_ray.config.section import Section, Share, refusal


class CellsConfig(Section):
    """A cell space, in place of the teacher's layers."""

    space: Literal["nasbench201", "darts"] = Field(examples=["darts"])
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
    drop_path: Share = Field(default=0.2, ge=0, lt=1)
    """Of that full training: the probability, in its last epoch, that an edge's answer is dropped."""
    auxiliary_weight: float = Field(default=0.4, ge=0)
    """Of the second classifier's loss in it; 0 for none."""

    @model_validator(mode="after")
    def _reductions(self) -> CellsConfig:
        if self.space == "darts" and min(self.cells, self.search_cells or self.cells) < 3:
            key = "search_cells" if self.cells >= 3 else "cells"
            raise refusal(
                f"{getattr(self, key)} is too few: DARTS has two reduction cells; give at least 3", key
            )
        width = self.search_width or self.width
        if width % self.partial:
            raise refusal(f"{self.partial} does not divide the supernet's width, {width}", "partial")
        return self


class SearchConfig(Section):
    """``lana-ray search``: sweeps of the differentiable search (LA-DNAS) and of the integer program."""

    cells: CellsConfig | None = None
    """Search a cell space; by default the scored candidates of the teacher's layers."""
    cost: Literal["latency_ms", "peak_memory_mb", "energy_mj", "params", "macs"] = "latency_ms"
    """What is searched for beside accuracy, on every target: its latency, or another meter of its node."""
    methods: tuple[Literal["differentiable", "program"], ...] = Field(
        default=("differentiable", "program"), min_length=1
    )
    trials: int = Field(default=12, ge=1)
    """Of each method on each target. Where latency budgets are drawn, the run's own come first."""
    lambdas: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.003, 3.0)
    """The range that λ is drawn from, on a log scale: by how much the loss may rise for saving what
    the teacher costs, or the mean random cell."""
    grid: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
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
    warmup: Share = Field(default=0.5, ge=0, lt=1)
    """Share of the steps in which the weights of a cell supernet learn alone: operations that learn are
    judged too early otherwise, beside those that have nothing to learn."""
    concurrency: int = Field(default=1, ge=1)
    """Trials at a time. On one machine, more of them disturb its measurements."""

    @model_validator(mode="after")
    def _a_range(self) -> SearchConfig:
        low, high = self.lambdas
        if low >= high:
            raise refusal(f"[{low:g}, {high:g}] is empty; give the smaller end first", "lambdas")
        return self

    @model_validator(mode="after")
    def _methods_that_can(self) -> SearchConfig:
        if len(set(self.methods)) < len(self.methods):
            raise refusal("each method may be given once", "methods")
        if self.metered and "differentiable" not in self.methods:
            raise refusal(
                f"the program needs search.cost latency_ms, not {self.cost}; add differentiable", "methods"
            )
        if self.cells is not None and "differentiable" not in self.methods:
            raise refusal("only the differentiable method searches search.cells; add it", "methods")
        return self

    @model_validator(mode="after")
    def _a_grid(self) -> SearchConfig:
        if self.grid is None:
            if self.seeds > 1:
                raise refusal(f"{self.seeds} seeds try each λ of search.grid; give that too", "seeds")
            return self
        if self.aim != "lambda":
            raise refusal(
                f"holds values of λ, which search.aim: {self.aim} does not take; remove one", "grid"
            )
        if repeated := [value for value in self.grid if self.grid.count(value) > 1]:
            raise refusal(f"{repeated[0]:g} is given twice; to try each λ again set search.seeds", "grid")
        return self

    @property
    def metered(self) -> bool:
        """Whether the cost is read of a meter, where latencies are sampled against the machine's drift."""
        return self.cost != "latency_ms"
