"""What networks cost on a target: measured, stored, and made into a table that adds up."""

from lana_ray.config import Target
from lana_ray.latency.measure import measure
from lana_ray.latency.timing import Measurement

__all__ = ["Measurement", "Target", "measure"]
