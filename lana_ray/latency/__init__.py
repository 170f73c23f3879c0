"""What networks cost on a target: measured, stored, made into a table that adds up, and predicted."""

from lana_ray.config import Target
from lana_ray.costs.measure import measure
from lana_ray.costs.registry import METERS, metered
from lana_ray.costs.timing import Measurement
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.predictors.transfer import TransferPredictor

__all__ = ["METERS", "LatencyPredictor", "Measurement", "Target", "TransferPredictor", "measure", "metered"]
