"""Where the time of a network goes: its runtime's own profile, added up by layer."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import trim_mean
from torch import nn

from lana_ray.config import Target
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import RUNTIMES, program
from lana_ray.deploy.runtimes.runtime import ROOT
from lana_ray.errors import Unsupported

_INTERRUPTED = 0.25
"""Share of the fastest and of the slowest calls of an operator that do not count."""


def profile(network: nn.Module, target: Target, layers: Sequence[str]) -> dict[str, float]:
    """Milliseconds per call that a network spends in each of its layers, and outside of them (``""``).

    A profile slows a network down: only the shares of its layers can be compared with latencies.

    Args:
        layers: paths of modules of the network.

    Raises:
        Unsupported: the target's runtime has no profile, or its operators do not say where they come from.
    """
    runtime, example = RUNTIMES[target.runtime], example_input(target)
    if runtime.profile is None:
        raise Unsupported("refused", f"{runtime.title} has no profile")
    took = dict.fromkeys([*layers, ""], 0.0)
    for name, calls_ms in runtime.profile(program(network, example, target), example, target).items():
        took[_layer(name, layers)] += float(trim_mean(calls_ms, _INTERRUPTED))
    if not any(took[layer] for layer in layers):
        raise Unsupported("refused", f"{runtime.title} does not tell which layers its operators are from")
    return took


def _layer(name: str, layers: Sequence[str]) -> str:
    """The innermost layer that an operator is from; empty if it is from none."""
    path, last, inside = "", "", [""]
    for part in name.partition(f"/{ROOT}/")[2].split("/"):
        # Parts of a sequence carry its name before their own.
        own = part.removeprefix(f"{last}.")
        path, last = f"{path}.{own}" if path else own, part
        inside += [path] if path in layers else []
    return inside[-1]
