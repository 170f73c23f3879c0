"""What networks cost on a target: measured, stored, made into a table that adds up, and predicted."""

from lana_ray.config import Target
from lana_ray.latency.measure import measure
from lana_ray.latency.meters import METERS, metered
from lana_ray.latency.predictor import LatencyPredictor
from lana_ray.latency.timing import Measurement
from lana_ray.latency.transfer import TransferPredictor

__all__ = [
    "METERS",
    "LatencyPredictor",
    "Measurement",
    "Target",
    "TransferPredictor",
    "measure",
    "metered",
]
