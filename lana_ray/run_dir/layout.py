"""The names of all files in a run directory; no other module spells them out."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from lana_ray.ids import CandidateId, CostId

SETTINGS = "run.yaml"
"""The configuration of the last run, without secrets."""
LEASE = "lease.json"
"""The driver that is using the directory."""
IDENTITY = "identity.json"
"""Versions of everything that all results depend on: code, weights, answers, images."""
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
"""Results of ``lana-ray search``: the fully trained students."""
REPORT = "report.html"
SEARCH_PAGE = "search.html"

BEGUN = ".begun"
"""Suffix of the files that hold the settings of started trials."""

SAMPLES = "samples"
HOURS = "hours"
CANDIDATE_STATES = "distilling"
NETWORK_STATES = "training"
"""Folders; the last two hold training states for resuming."""


def samples(target: str) -> str:
    """A new file for a block of samples."""
    return f"{SAMPLES}/{target}-{uuid.uuid4().hex[:12]}.parquet"


def costs(target: str) -> str:
    """A target's cost tables; ``target`` may be the placeholder ``{target}``."""
    return f"costs/{target}.parquet"


def counts(cost: str) -> str:
    """A counted cost of every candidate structure."""
    return f"counts/{cost}.json"


def profile(target: str) -> str:
    """What the layers of a target's networks take."""
    return f"profiles/{target}.parquet"


def readings(target_key: str) -> str:
    """Folder of the meter readings on one target's hardware."""
    return f"metered/{target_key}"


def reading(target_key: str, cost: str, structure: str) -> str:
    return f"{readings(target_key)}/{cost}-{structure}.json"


def candidate(candidate: CandidateId) -> str:
    """Weights of a distilled candidate."""
    return f"candidates/{candidate.layer}--{candidate.op}.safetensors"


def candidate_state(candidate: CandidateId) -> str:
    return f"{CANDIDATE_STATES}/{candidate.layer}--{candidate.op}.safetensors"


def scores(layer: str) -> str:
    return f"scores/{layer}.parquet"


def solutions(key: str) -> str:
    """Solutions of one integer program."""
    return f"selections/{key}.json"


def evaluation(key: str) -> str:
    """A loss or an accuracy of one network."""
    return f"evaluations/{key}.json"


def student(key: str) -> str:
    """Weights of a fine-tuned student."""
    return f"students/{key}.safetensors"


def network_states(space: str) -> str:
    """Folder of the training states of a space's networks."""
    return NETWORK_STATES if space == "layers" else f"{NETWORK_STATES}-{space}"


def network_state(space: str, key: str) -> str:
    return f"{network_states(space)}/{key}.safetensors"


def predictor(space: str, of: CostId) -> str:
    """Weights of a predictor for the networks of a space."""
    return f"predictors/{space}/{of.cost}/{of.target}.safetensors"


def predictor_facts(space: str, of: CostId) -> str:
    """Measured quality of a predictor."""
    return f"predictors/{space}/{of.cost}/{of.target}.json"


def predictor_plot(space: str, of: CostId, ending: str = "") -> str:
    return f"predictors/{space}/{of.cost}/{of.target}{ending}.svg"


def trials(sweep: str) -> str:
    return f"search/{sweep}"


def trial(sweep: str, key: str) -> str:
    return f"{trials(sweep)}/{key}.json"


def trial_begun(sweep: str, key: str) -> str:
    """Settings of a started trial."""
    return f"{trials(sweep)}/{key}{BEGUN}"


def trial_state(sweep: str, key: str) -> str:
    """State of a trial's search, for resuming."""
    return f"{trials(sweep)}/{key}.search"


def trial_training(state: str) -> str:
    """Training state of the network that a trial found."""
    return f"{state}.training"


def trial_weights(state: str) -> str:
    """Weights of the network that a trial found and trained."""
    return f"{state.removesuffix('.search')}.safetensors"


def search_plot(target: str, name: str) -> str:
    return f"search/{target}-{name}.svg"


def factory(name: str) -> str:
    """Copy of a source file of the teacher's factory."""
    return f"factory/{name}"


def hours() -> str:
    """A new file for the hours of an invocation."""
    return f"{HOURS}/{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}.json"
