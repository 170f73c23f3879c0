"""Search spaces: what an architecture is, how it is drawn, encoded and built."""

from lana_ray.spaces.cells import CellSupernet, DartsSpace, NasBench201Space
from lana_ray.spaces.fbnet import FBNetSpace
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import Architecture

__all__ = [
    "Architecture",
    "CellSupernet",
    "DartsSpace",
    "FBNetSpace",
    "LayerwiseSpace",
    "NasBench201Space",
]
