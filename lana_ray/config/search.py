"""Defines the ``search`` block: sweeps of searches, and the cells that they may search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lana_ray.config.section import Section, Share, refusal
from lana_ray.registries import OneOf


class CellsConfig(Section):
    """A space of networks of cells, which is searched instead of the teacher's layers."""

    space: Annotated[str, OneOf("lana_ray.spaces.cells", "SPACES")] = Field(examples=["darts"])
    """Published cell space."""
    width: int = Field(default=16, ge=4)
    """Channels of the first cells."""
    cells: int = Field(default=5, ge=1)
    """Number of cells: in each of three stages for NAS-Bench-201, in the whole network (at least 3) for
    DARTS."""
    search_width: int | None = Field(default=None, ge=4)
    """Channels of the first cells of the supernet; defaults to ``width``."""
    search_cells: int | None = Field(default=None, ge=1)
    """Number of cells of the supernet; defaults to ``cells``."""
    partial: int = Field(default=4, ge=1)
    """In the supernet, one channel in ``partial`` passes through the operations (PC-DARTS); 1 for all
    channels."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """``cifar`` is one convolution that keeps the image size, ``imagenet`` three that halve it."""
    samples: int = Field(default=200, ge=20)
    """Number of random cells measured on every target for the latency predictor."""
    active: int = Field(default=0, ge=0)
    """Number of further cells measured where the latency predictor is least certain."""
    trial_epochs: float = Field(default=2.0, gt=0)
    """Epochs of the short training that compares the cells found by the search. The best one for each budget
    is trained again in full, according to ``finetune``."""
    drop_path: Share = Field(default=0.2, ge=0, lt=1)
    """Probability that an edge is dropped in the last epoch of the full training."""
    auxiliary_weight: float = Field(default=0.4, ge=0)
    """Weight of the auxiliary classifier's loss in the full training; 0 for no auxiliary classifier."""

    @model_validator(mode="after")
    def _check_sizes(self) -> CellsConfig:
        if self.space == "darts" and min(self.cells, self.search_cells or self.cells) < 3:
            key = "search_cells" if self.cells >= 3 else "cells"
            raise refusal(
                f"{getattr(self, key)} is too few: DARTS has two reduction cells; give at least 3", key
            )
        width = self.search_width or self.width
        if width % self.partial:
            raise refusal(
                f"{self.partial} does not divide the supernet's width, {width}; choose a divisor of it",
                "partial",
            )
        return self


class SearchConfig(Section):
    """``lana-ray search``: sweeps of the differentiable search (LA-DNAS) and of the integer program."""

    cells: CellsConfig | None = None
    """Space of cells to search; by default the scored candidates of the teacher's layers are searched."""
    cost: Annotated[str, OneOf("lana_ray.costs.registry", "METERS")] = "latency_ms"
    """Cost to minimise together with the loss, on every target."""
    methods: tuple[Annotated[str, OneOf("lana_ray.trials.methods", "METHODS")], ...] = Field(
        default=("differentiable", "program"), min_length=1
    )
    """Search methods: the differentiable search of LA-DNAS, the integer program of LANA."""
    trials: int = Field(default=12, ge=1)
    """Number of trials per method and target. Trials over latency budgets begin with those of
    ``budgets.latency_ms``."""
    lambdas: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.003, 3.0)
    """Range of λ, drawn on a log scale. λ is the price of latency: the increase of the loss that is worth
    saving as much as the teacher (or the mean random cell) costs."""
    grid: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(default=None, min_length=1)
    """Values of λ to try instead of ``trials`` drawn ones; 0 is allowed."""
    seeds: int = Field(default=1, ge=1)
    """Number of seeds per value of ``grid``."""
    aim: Literal["lambda", "budget"] = "lambda"
    """Input of a trial of the differentiable search: ``lambda`` is a value of λ, ``budget`` a budget for
    which the trial finds λ itself."""
    steps: int = Field(default=200, ge=10)
    """Steps of the differentiable search."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step."""
    lr: float = Field(default=0.1, gt=0)
    """Learning rate of the architecture parameters (Adam)."""
    mixture: Literal["paired", "sampled", "relaxed"] = "paired"
    """Operations computed per choice and step: two with ``paired``, weighed against each other, one with
    ``sampled``, all with ``relaxed``."""
    weight_lr: float = Field(default=0.1, gt=0)
    """Peak learning rate of the weights of a cell supernet (SGD, cosine schedule)."""
    warmup: Share = Field(default=0.5, ge=0, lt=1)
    """Share of the steps in which only the weights of a cell supernet learn. Without a warm-up,
    convolutions compete with skips and pools before they have learned anything."""
    concurrency: int = Field(default=1, ge=1)
    """Number of trials that run at the same time. Several trials on one machine disturb its measurements."""

    @model_validator(mode="after")
    def _check_sweep(self) -> SearchConfig:
        low, high = self.lambdas
        if low >= high:
            raise refusal(f"[{low:g}, {high:g}] is empty; give the smaller end first", "lambdas")
        if len(set(self.methods)) < len(self.methods):
            raise refusal("a method is given twice; list each method once", "methods")
        if self.cells is not None and "differentiable" not in self.methods:
            raise refusal("only differentiable searches search.cells; add it", "methods")
        if self.grid is None:
            if self.seeds > 1:
                raise refusal(f"{self.seeds} seeds need values of λ to repeat; set search.grid", "seeds")
            return self
        if self.aim != "lambda":
            raise refusal(
                f"search.aim: {self.aim} takes no values of λ; remove search.aim or search.grid", "grid"
            )
        if repeated := [value for value in self.grid if self.grid.count(value) > 1]:
            raise refusal(f"{repeated[0]:g} is given twice; set search.seeds to repeat each λ", "grid")
        return self
