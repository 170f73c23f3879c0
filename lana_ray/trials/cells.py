"""A cell space in a trial (LA-DNAS, arXiv 2001.06392): the supernet's weights learn during the search."""

from __future__ import annotations

from typing import Any

import torch

from lana_ray.config import Config, FinetuneConfig
from lana_ray.ids import Architecture
from lana_ray.run_dir import layout
from lana_ray.run_dir.resumable import checkpoint_in
from lana_ray.search.supernet import Supernet
from lana_ray.spaces.cells import CellStudents, CellSupernet
from lana_ray.training.loop import Rank, train_network
from lana_ray.trials.problem import EPOCHS, Problem
from lana_ray.workspace import cell_space


class CellProblem(Problem):
    """Every network that is found is trained for ``search.cells.trial_epochs``, with the teacher's help."""

    @property
    def space(self) -> CellStudents:
        workspace = self.workspace
        return CellStudents(workspace.cells.cells, workspace.space, seed=self.seed)

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
        trained = train_network(
            self.space.build(architecture),
            self.workspace.data,
            trial_training(self.workspace.config),
            teacher=self.teacher(),
            rank=Rank(),
            seed=self.seed,
            checkpoint=checkpoint_in(storage, state),
            on_step=lambda: None,
            device=self.device,
        )
        storage.write_tensors(layout.trial_weights(file), trained.state, {})
        storage.remove(state)
        return None, trained.validation_accuracy


def trial_training(config: Config) -> FinetuneConfig:
    """How the networks of trials are trained."""
    assert config.search.cells is not None
    return config.finetune.model_copy(update={"epochs": config.search.cells.trial_epochs})
