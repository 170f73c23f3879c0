"""A space of students as a trial searches it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lana_ray.cluster.tasks import device
from lana_ray.ids import Architecture
from lana_ray.search.bilevel import Batch, Batches, Loss, cross_entropy
from lana_ray.search.supernet import Supernet
from lana_ray.spaces.space import StudentSpace
from lana_ray.trials.setup import Setup
from lana_ray.workspace import Workspace

EPOCHS = 20
"""Parts that a search is divided into: the points of its trajectory."""


class Problem(ABC):
    """One space in the process of one trial.

    Args:
        settings: of the trial: ``lambda`` or ``budget``, and perhaps ``seed``.
    """

    def __init__(self, workspace: Workspace, setup: Setup, settings: Mapping[str, float]) -> None:
        self.workspace, self.setup, self.settings = workspace, setup, settings
        self.seed = workspace.config.run.seed + int(settings.get("seed", 0))
        self.device = device(workspace)
        self.steps = max(1, workspace.config.search.steps // EPOCHS)
        """Steps of one epoch."""

    @property
    @abstractmethod
    def space(self) -> StudentSpace:
        """The architectures that may be found."""

    @abstractmethod
    def supernet(self) -> Supernet:
        """A new supernet, on the trial's device."""

    @abstractmethod
    def search_settings(self) -> dict[str, Any]:
        """Fields of ``SearchSettings`` that are particular to the space."""

    def loss(self) -> Loss:
        """What the search minimises together with the cost."""
        return cross_entropy

    @abstractmethod
    def worth(self, architecture: Architecture, file: str) -> tuple[float | None, float]:
        """Loss, if it is known, and accuracy on the validation split of what was found.

        Args:
            file: of the run directory, where a training may keep its state.
        """

    def batches(self, split: str) -> Batches:
        """Images for the epochs of the search."""
        data, size = self.workspace.data, self.workspace.config.search.batch_size

        def of_epoch(epoch: int, start: int) -> Iterator[Batch]:
            step = epoch * self.steps + start
            return data.endless(split, batch_size=size, start_step=step, seed=self.seed)

        return of_epoch

    def teacher(self) -> nn.Module:
        """The trained teacher, on the trial's device."""
        return self.workspace.teacher.to(self.device)
