"""Networks of a cell space beside the teacher that they are to replace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lana_ray.errors import UserError
from lana_ray.ids import Architecture
from lana_ray.networks.layers import Layer
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.spaces.cells.network import CellNetwork
from lana_ray.spaces.cells.space import CellSpace
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace


class CellStudents(StudentSpace):
    """What is sampled on a target: cell networks, against the teacher as their reference.

    Args:
        cells: the space.
        teacher: the layer-wise space of the teacher: its network tells the machine's drift, as for LANA's
            students, so that latencies of both kinds compare.
        seed: of the networks' weights.
    """

    name = "cells"
    keeps_layers = False

    def __init__(self, cells: CellSpace, teacher: LayerwiseSpace, *, seed: int = 0) -> None:
        self.cells, self._teacher, self._seed = cells, teacher, seed

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.cells.sizes

    @property
    def size(self) -> int:
        return self.cells.size

    def random(self, rng: np.random.Generator) -> Architecture:
        return self.cells.random(rng)

    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        return self.cells.encode(architecture)

    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        return self.cells.decode(encoding)

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        return self.cells.discretise(scores)

    @property
    def network(self) -> nn.Module:
        """The teacher."""
        return self._teacher.network

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of the teacher."""
        return self._teacher.layers

    @property
    def fingerprint(self) -> str:
        """Identity of the teacher's structure."""
        return self._teacher.fingerprint

    def label(self, architecture: Architecture) -> str:
        """The cells as published."""
        return self.cells.format(architecture)

    def parse(self, label: str) -> Architecture:
        """The architecture that ``label`` writes so.

        Raises:
            ValueError: for other text.
        """
        try:
            return self.cells.parse(label)
        except UserError as error:
            raise ValueError(str(error)) from None

    def network_structure(self, architecture: Architecture) -> str:
        """Identity of a whole network, whatever its weights; dead edges make no difference."""
        cells = self.cells
        live = cells.live(architecture)
        return fingerprint("cells", repr(cells.wiring), repr(cells.skeleton), live)

    def build(
        self, architecture: Architecture, *, drop_path: float = 0.0, auxiliary: bool = False
    ) -> CellNetwork:
        """The network with weights that depend on the seed alone; arguments as for ``CellNetwork``."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            return self.cells.build(architecture, drop_path=drop_path, auxiliary=auxiliary)
