"""Search spaces: what an architecture is, how it is drawn, encoded and built."""

from lana_ray.spaces.cells import DartsSpace, NasBench201Space
from lana_ray.spaces.fbnet import FBNetSpace
from lana_ray.spaces.layerwise import Architecture, LayerwiseSpace

__all__ = [
    "Architecture",
    "DartsSpace",
    "FBNetSpace",
    "LayerwiseSpace",
    "NasBench201Space",
]
