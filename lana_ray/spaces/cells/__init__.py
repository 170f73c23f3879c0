"""Cell spaces: a network is one small cell, or two, repeated; an operation is chosen for each edge of a cell.

``wiring`` says what a cell is, ``space`` what can be chosen, ``network`` builds
one choice. ``nasbench201`` is a preset: numbers and a text format.
"""

from lana_ray.spaces.cells.nasbench201 import NasBench201Space
from lana_ray.spaces.cells.network import CellNetwork
from lana_ray.spaces.cells.space import CellSpace

__all__ = ["CellNetwork", "CellSpace", "NasBench201Space"]
