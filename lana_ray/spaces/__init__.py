"""Search spaces: what an architecture is, how it is drawn, encoded and built."""

from lana_ray.spaces.layerwise import Architecture, LayerwiseSpace

__all__ = ["Architecture", "LayerwiseSpace"]
