"""Cell spaces: a network repeats one small cell, or two; each edge of a cell has an operation to choose.

``wiring`` defines cells, ``space`` the choices, ``network`` builds one architecture and ``supernet`` all at
once. ``nasbench201`` and ``darts`` are the presets: numbers and a text format each.
"""

from lana_ray.registries import Registry
from lana_ray.spaces.cells.darts import DartsSpace
from lana_ray.spaces.cells.nasbench201 import NasBench201Space
from lana_ray.spaces.cells.network import CellNetwork
from lana_ray.spaces.cells.space import CellSpace
from lana_ray.spaces.cells.students import CellStudents
from lana_ray.spaces.cells.supernet import CellSupernet

SPACES: Registry[type[NasBench201Space] | type[DartsSpace]] = Registry(
    "cell space", (NasBench201Space, DartsSpace)
)

__all__ = [
    "SPACES",
    "CellNetwork",
    "CellSpace",
    "CellStudents",
    "CellSupernet",
    "DartsSpace",
    "NasBench201Space",
]
