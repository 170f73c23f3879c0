"""Networks of a cell space as students of a teacher."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lana_ray.errors import UserError
from lana_ray.ids import Architecture
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.spaces.cells.network import CellNetwork
from lana_ray.spaces.cells.space import CellSpace
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace


class CellStudents(StudentSpace):
    """Cell networks that are sampled on a target, with the teacher as their reference.

    Its network is measured to correct for the machine's drift, as for LANA's students, so that latencies of
    both kinds are comparable. The networks' weights depend only on the seed.
    """

    name = "cells"
    keeps_layers = False

    def __init__(self, cells: CellSpace, teacher: LayerwiseSpace, *, seed: int = 0) -> None:
        self.cells, self._seed = cells, seed
        self.network, self.layers, self.fingerprint = teacher.network, teacher.layers, teacher.fingerprint

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

    def label(self, architecture: Architecture) -> str:
        return self.cells.format(architecture)

    def parse(self, label: str) -> Architecture:
        try:
            return self.cells.parse(label)
        except UserError as error:
            raise ValueError(str(error)) from None

    def network_structure(self, architecture: Architecture) -> str:
        """Returns the identity of a network's structure, without its weights; dead edges do not count."""
        live = self.cells.live(architecture)
        return fingerprint("cells", repr(self.cells.wiring), repr(self.cells.skeleton), live)

    def build(
        self, architecture: Architecture, *, drop_path: float = 0.0, auxiliary: bool = False
    ) -> CellNetwork:
        """Builds the network; arguments as for ``CellNetwork``."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            return self.cells.build(architecture, drop_path=drop_path, auxiliary=auxiliary)
