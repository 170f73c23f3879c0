"""Search spaces: what an architecture is, how it is drawn, encoded and built."""

from lana_ray.ids import Architecture
from lana_ray.spaces.cells import CellSupernet, DartsSpace, NasBench201Space
from lana_ray.spaces.fbnet import FBNetSpace
from lana_ray.spaces.layerwise import LayerwiseSpace

__all__ = ["Architecture", "CellSupernet", "DartsSpace", "FBNetSpace", "LayerwiseSpace", "NasBench201Space"]
