"""Stage of ``lana-ray fit``: fits a latency predictor to the networks sampled on each target."""

from __future__ import annotations

import functools

from lana_ray.measurement.fitting import MeasuredNetworks, fit_predictors, paced
from lana_ray.measurement.latencies import latencies
from lana_ray.predictors.fits import Fit
from lana_ray.preflight.planned import Planned
from lana_ray.stages.sample import SampledCandidates, Sampling
from lana_ray.workspace import Workspace


def run(workspace: Workspace, sampling: Sampling) -> list[Fit]:
    """Writes ``predictors/layers/latency_ms/<target>.safetensors`` with the quality of each predictor."""
    targets = sampling.targets.values()
    networks = {sampled.latency: _networks(workspace, sampling, sampled) for sampled in targets}
    more = functools.partial(latencies, workspace, workspace.space, sampling.targets)
    return fit_predictors(workspace, networks, workspace.space.name, more)


def _networks(workspace: Workspace, sampling: Sampling, sampled: SampledCandidates) -> MeasuredNetworks:
    space, measured = workspace.space, sampling.tables[sampled.latency].networks
    return MeasuredNetworks(
        encode=space.encode,
        # Of all stored networks, some were chosen by this very stage.
        networks={architecture: measured[architecture].value for architecture in sampled.drawn},
        active=sampled.target.measure.active,
        structure=space.network_structure,
        draw=lambda rng: space.random(rng, sampled.considered),
        sample_s=paced(workspace, space, sampled, sampled.drawn),
    )


def plan(planned: Planned) -> list[str]:
    """The number of networks that every predictor is fitted to."""
    return [
        f"{target.name}: a predictor from {target.measure.architectures} networks and "
        f"{target.measure.active} chosen ones"
        for target in planned.config.targets
    ]
