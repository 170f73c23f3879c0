"""Example of your own cost: the bytes of a network's weights, as they are stored.

Put the module into ``lana_ray/costs/`` and its ``METER`` into ``METERS`` there to use it in ``search.cost``,
tables and plots. ``pytest jobs/examples/own_cost.py`` runs the tests that all meters pass.
"""

from __future__ import annotations

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.meter import Meter
from lana_ray.deploy import deployed
from lana_ray.testing import MeterSuite


def unavailable(target: Target) -> None:
    """Returns None, since it can be counted on any node."""


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Returns the bytes of parameters and buffers of the deployed network, with batch-norms folded."""
    return float(sum(tensor.nbytes for tensor in deployed(module).state_dict().values()))


METER = Meter(
    name="weight_bytes",
    unit="bytes",
    axis="weights (bytes)",
    counted=True,
    unavailable=unavailable,
    read=read,
)


class TestWeightBytes(MeterSuite):
    meter = METER
