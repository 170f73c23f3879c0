"""The two parts of a trial: find an architecture, then measure it."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from lana_ray.cluster.claims import Ask, Claim, share, threads
from lana_ray.cluster.connection import nodes
from lana_ray.cluster.sweeps import Trial
from lana_ray.config import Config
from lana_ray.costs.work import network_work
from lana_ray.measurement.latencies import LATENCY, SESSIONS, in_many_sessions, measured
from lana_ray.measurement.readings import readings
from lana_ray.trials.methods import METHODS
from lana_ray.trials.problem import PROBLEMS, Problem, Setup
from lana_ray.workspace import workspace_in_worker


def trial_claim(config: Config) -> Claim:
    """What a trial takes of its node: concurrent trials share the nodes that train."""
    settings = config.search
    ask = Ask(
        most=min(settings.concurrency, max(settings.trials, 1)),
        gpus=config.ray.gpus_per_worker,
        cpus=config.ray.cpus_per_worker,
    )
    return share(ask, nodes(gone=True))[1]


def _problem(settings: dict[str, float], setup: Setup) -> Problem:
    workspace = workspace_in_worker(setup.config)
    return PROBLEMS[setup.sampled.space](workspace, setup, settings)


def _find(settings: dict[str, float], setup: Setup, method: str, file: str) -> dict[str, Any]:
    """Finds an architecture and how exact it is."""
    torch.set_num_threads(threads(trial_claim(setup.config).cpus))
    problem = _problem(settings, setup)
    begin = time.monotonic()
    found = METHODS[method].find(problem, file)
    search_s = time.monotonic() - begin
    loss, accuracy = problem.worth(found.architecture, file)
    predicted = setup.predict(problem.space, found.architecture)
    return {
        "choices": list(found.architecture),
        "predicted_ms": predicted if setup.of.cost == LATENCY else None,
        "predicted_cost": predicted,
        "accuracy": accuracy,
        "loss": loss,
        "search_s": search_s,
        "collapsed": found.collapsed,
        "trajectory": [(point.expected_cost, point.cost) for point in found.trajectory],
    }


def _judge(found: dict[str, Any], settings: dict[str, float], setup: Setup, _: str) -> dict[str, Any]:
    """Measures an architecture on its target; a cost that cannot be read is NaN."""
    problem = _problem(settings, setup)
    workspace, space, sampled = problem.workspace, problem.space, setup.sampled
    architecture, name = tuple(found["choices"]), sampled.target.name
    asked = {name: {architecture: network_work(space, architecture)}}
    sessions = in_many_sessions(workspace, asked, {name: sampled}, SESSIONS, "search")
    latency = measured(sessions[name, architecture])
    cost = latency.value
    if setup.of.cost != LATENCY:
        only = {name: [architecture]}
        read = readings(workspace, space, setup.of.cost, {name: sampled}, only, "search")
        cost = read[name].get(architecture, math.nan)
    return {
        "architecture": space.label(architecture),
        "measured_cost": cost,
        "measured_ms": latency.value,
        "iqr_ms": latency.iqr,
    }


TRIAL = Trial(find=_find, judge=_judge)
