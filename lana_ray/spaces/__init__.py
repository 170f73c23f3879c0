"""Search spaces: what an architecture is, how it is drawn, encoded and built."""

from lana_ray.spaces.cells import NasBench201Space
from lana_ray.spaces.fbnet import FBNetSpace
from lana_ray.spaces.layerwise import Architecture, LayerwiseSpace

__all__ = ["Architecture", "FBNetSpace", "LayerwiseSpace", "NasBench201Space"]
