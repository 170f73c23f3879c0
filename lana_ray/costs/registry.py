"""The registry of meters, which read the costs of networks on targets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs import energy, latency, macs, memory, params
from lana_ray.costs.meter import Meter
from lana_ray.deploy.inputs import example_input
from lana_ray.errors import UserError
from lana_ray.registries import Registry

__all__ = ["COUNTED", "METERS", "Meter", "metered", "unavailable"]

METERS = Registry("meter", (module.METER for module in (latency, memory, energy, params, macs)))
"""All meters by name."""
COUNTED = tuple(name for name, meter in METERS.items() if meter.counted)
"""Names of the counted costs, which budgets limit exactly."""


def unavailable(target: Target, names: Sequence[str] = tuple(METERS)) -> dict[str, str]:
    """Reasons why this node cannot read meters, by name; raises UserError for an unknown name."""
    reasons = {name: METERS[name].unavailable(target) for name in names}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def metered(
    module: nn.Module,
    target: Target,
    names: Sequence[str] | None = None,
    *,
    example: Tensor | None = None,
) -> dict[str, float]:
    """Costs of ``module`` on ``target``, read on this node, by meter and in the meter's unit.

    Args:
        module: left unchanged; metered in evaluation mode.
        names: names of meters, by default all that this node can read (see ``lana-ray doctor``).
        example: the input batch, by default random numbers of shape [batch_size, *input_shape].

    Raises:
        UserError: unknown or unavailable meter (checked before any is read), or network refused by runtime.
    """
    if names is None:
        missing = unavailable(target)
        names = [name for name in METERS if name not in missing]
    for name, reason in unavailable(target, names).items():
        raise UserError(
            "unavailable", f"target {target.name!r}: {name} is not available on this node, because {reason}"
        )
    images = example_input(target) if example is None else example
    return {name: METERS[name].read(module, images, target) for name in names}
