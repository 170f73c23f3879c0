"""A space of students as a trial searches it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lana_ray.cluster.tasks import device
from lana_ray.config import Config, FinetuneConfig
from lana_ray.costs.table import CostTable
from lana_ray.evaluation.networks import validated
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.latencies import Sampled
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.run_dir import layout
from lana_ray.run_dir.resumable import checkpoint_in
from lana_ray.search.bilevel import Batch, Batches, Loss, cross_entropy
from lana_ray.search.cost import AdditiveCost
from lana_ray.search.layerwise import LayerwiseSupernet, divergence
from lana_ray.search.supernet import Supernet
from lana_ray.spaces.cells import CellStudents, CellSupernet
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import Space, StudentSpace
from lana_ray.training.loop import Training, train_network
from lana_ray.workspace import Workspace, cell_space

EPOCHS = 20
"""Parts that a search is divided into: the points of its trajectory."""
_DECISIVE = 0.1
"""Weight of α's entropy at the end, so that the discretisation keeps what is decided."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all trials of a sweep have in common; sent to the process of every trial."""

    config: Config
    sampled: Sampled
    of: CostId
    """The cost that is searched for."""
    model: CostTable | LatencyPredictor
    """Predicts the cost of an architecture."""
    reference: float
    """Cost that λ is relative to: the teacher's, or the mean of random cells."""
    scores: Sequence[NDArray[np.float64]] = ()
    """Per layer, shape [candidates]: the summed score is what the program minimises. Infinite for candidates
    that may not be chosen. Empty for a space of cells."""

    def predict(self, space: Space, architecture: Architecture) -> float:
        """The predicted cost of an architecture, in the cost's unit."""
        if isinstance(self.model, CostTable):
            return self.model.predict(architecture)
        return float(self.model.predict(space.encode(architecture)[None])[0])

    def differentiable(self) -> nn.Module:
        """The cost as a differentiable function of encodings."""
        return AdditiveCost(self.model) if isinstance(self.model, CostTable) else self.model.as_module()


class Problem(ABC):
    """One space in the process of one trial, which sets ``lambda`` or ``budget``, and perhaps ``seed``."""

    space: StudentSpace
    """The architectures that may be found."""

    def __init__(self, workspace: Workspace, setup: Setup, settings: Mapping[str, float]) -> None:
        self.workspace, self.setup, self.settings = workspace, setup, settings
        self.seed = workspace.config.run.seed + int(settings.get("seed", 0))
        self.device = device(workspace)
        self.steps = max(1, workspace.config.search.steps // EPOCHS)
        """Steps of one epoch."""

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
        """Loss, if known, and accuracy on the validation split; a training may keep its state in ``file``."""

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


class LayerwiseProblem(Problem):
    """LANA's space: the distilled candidates are the supernet, whose weights are frozen.

    Students are not trained: their accuracy is that of their distilled weights, with batch statistics.
    """

    def __init__(self, workspace: Workspace, setup: Setup, settings: Mapping[str, float]) -> None:
        super().__init__(workspace, setup, settings)
        self.space: LayerwiseSpace = workspace.space

    def supernet(self) -> Supernet:
        ids, candidate = self.space.ids, self.workspace.candidate
        choices = tuple(tuple(np.flatnonzero(np.isfinite(s)).tolist()) for s in self.setup.scores)
        return LayerwiseSupernet(self.space, lambda i, j: candidate(ids[i][j]), choices).to(self.device)

    def search_settings(self) -> dict[str, Any]:
        return {"warmup_epochs": 0, "alpha_decay": 0.0, "entropy_weight": _DECISIVE}

    def loss(self) -> Loss:
        return divergence(self.teacher())

    def worth(self, architecture: Architecture, file: str) -> tuple[float | None, float]:
        return validated(self.workspace, architecture)


class CellProblem(Problem):
    """A space of cells (LA-DNAS, arXiv 2001.06392): the supernet's weights learn during the search.

    Every network that is found is trained for ``search.cells.trial_epochs``, with the teacher's help.
    """

    def __init__(self, workspace: Workspace, setup: Setup, settings: Mapping[str, float]) -> None:
        super().__init__(workspace, setup, settings)
        self.space: CellStudents = CellStudents(workspace.cells.cells, workspace.space, seed=self.seed)

    def supernet(self) -> Supernet:
        config, classes = self.workspace.config, self.workspace.data.num_classes
        assert config.search.cells is not None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            space = cell_space(config, classes, of_supernet=True)
            return CellSupernet(space, partial=config.search.cells.partial).to(self.device)

    def search_settings(self) -> dict[str, Any]:
        search = self.workspace.config.search
        return {"warmup_epochs": round(search.warmup * EPOCHS), "weight_lr": search.weight_lr}

    def worth(self, architecture: Architecture, file: str) -> tuple[float | None, float]:
        storage, state = self.workspace.storage, layout.trial_training(file)
        config = trial_training(self.workspace.config)
        trained = train_network(
            self.space.build(architecture).to(self.device),
            self.workspace.data,
            Training(config=config, seed=self.seed, teacher=self.teacher()),
            checkpoint=checkpoint_in(storage, state),
        )
        storage.write_tensors(layout.trial_weights(file), trained.state, {})
        storage.remove(state)
        return None, trained.validation_accuracy


def trial_training(config: Config) -> FinetuneConfig:
    """How the networks of trials of cells are trained."""
    assert config.search.cells is not None
    return config.finetune.model_copy(update={"epochs": config.search.cells.trial_epochs})


PROBLEMS: dict[str, type[Problem]] = {LayerwiseSpace.name: LayerwiseProblem, CellStudents.name: CellProblem}
"""By the name of the space of students."""
