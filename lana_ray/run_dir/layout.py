"""Every file of a run directory by its name, which no other module spells."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from lana_ray.ids import CandidateId, CostId

SETTINGS = "run.yaml"
"""The configuration of the last run, without secrets."""
LEASE = "lease.json"
"""Which driver uses the directory."""
IDENTITY = "identity.json"
"""Versions of what all results depend on: code, weights, answers, images."""
TEACHER = "teacher.safetensors"
ANSWERS = "answers.safetensors"
"""The teacher's outputs for fixed images."""
SCORES = "scores.parquet"
CURVES = "curves.parquet"
PROXY = "proxy.parquet"
SELECTIONS = "selections.parquet"
TRIALS = "search.parquet"
SUMMARY = "summary.json"
"""Results of ``lana-ray run``."""
SEARCH_SUMMARY = "cells.json"
"""Results of ``lana-ray search``: the students that were trained in full."""
REPORT = "report.html"
SEARCH_PAGE = "search.html"

BEGUN = ".begun"
"""Ending of the settings of trials that were begun."""

SAMPLES = "samples"
HOURS = "hours"
CANDIDATE_STATES = "distilling"
NETWORK_STATES = "training"
"""Folders; the last two hold training states, for resuming."""


def samples(target: str) -> str:
    """A new block of samples."""
    return f"{SAMPLES}/{target}-{uuid.uuid4().hex[:12]}.parquet"


def costs(target: str) -> str:
    """A target's cost tables; ``{target}`` may stand for its name."""
    return f"costs/{target}.parquet"


def counts(cost: str) -> str:
    """A counted cost of every candidate structure."""
    return f"counts/{cost}.json"


def readings(target_key: str) -> str:
    """Folder of what meters read on one target's hardware."""
    return f"metered/{target_key}"


def reading(target_key: str, cost: str, structure: str) -> str:
    """One reading of a meter."""
    return f"{readings(target_key)}/{cost}-{structure}.json"


def candidate(candidate: CandidateId) -> str:
    """Weights of a distilled candidate."""
    return f"candidates/{candidate.layer}--{candidate.op}.safetensors"


def candidate_state(candidate: CandidateId) -> str:
    """State of a candidate in training."""
    return f"{CANDIDATE_STATES}/{candidate.layer}--{candidate.op}.safetensors"


def scores(layer: str) -> str:
    """Scores of one layer's candidates."""
    return f"scores/{layer}.parquet"


def solutions(key: str) -> str:
    """Solutions of one integer program."""
    return f"selections/{key}.json"


def evaluation(key: str) -> str:
    """A loss or an accuracy of one network."""
    return f"evaluations/{key}.json"


def student(key: str) -> str:
    """Weights of a student trained as a whole."""
    return f"students/{key}.safetensors"


def network_states(space: str) -> str:
    """Folder of the states of a space's networks in training."""
    return NETWORK_STATES if space == "layers" else f"{NETWORK_STATES}-{space}"


def network_state(space: str, key: str) -> str:
    """State of a network in training."""
    return f"{network_states(space)}/{key}.safetensors"


def predictor(space: str, of: CostId) -> str:
    """Weights of a predictor for the networks of a space."""
    return f"predictors/{space}/{of.cost}/{of.target}.safetensors"


def predictor_facts(space: str, of: CostId) -> str:
    """How good a predictor is."""
    return f"predictors/{space}/{of.cost}/{of.target}.json"


def predictor_plot(space: str, of: CostId, ending: str = "") -> str:
    """A picture of a predictor."""
    return f"predictors/{space}/{of.cost}/{of.target}{ending}.svg"


def trials(sweep: str) -> str:
    """Folder of a sweep's trials."""
    return f"search/{sweep}"


def trial(sweep: str, key: str) -> str:
    """Result of one trial."""
    return f"{trials(sweep)}/{key}.json"


def trial_begun(sweep: str, key: str) -> str:
    """Settings of a trial that was begun."""
    return f"{trials(sweep)}/{key}{BEGUN}"


def trial_state(sweep: str, key: str) -> str:
    """State of a trial's search, to resume it."""
    return f"{trials(sweep)}/{key}.search"


def trial_training(state: str) -> str:
    """State of the training of what a trial found."""
    return f"{state}.training"


def trial_weights(state: str) -> str:
    """Weights of what a trial found and trained."""
    return f"{state.removesuffix('.search')}.safetensors"


def search_plot(target: str, name: str) -> str:
    """A picture of a target's searches."""
    return f"search/{target}-{name}.svg"


def factory(name: str) -> str:
    """A copy of a file of the teacher's factory."""
    return f"factory/{name}"


def hours() -> str:
    """A new account of what an invocation spends."""
    return f"{HOURS}/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}.json"
