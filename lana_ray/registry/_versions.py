"""Versions in the registry: names, look-up, results of verification, and aliases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lana_ray.config import LatencyBudget
from lana_ray.errors import UserError
from lana_ray.registry._session import pages, session

CHAMPION = "champion"
_PASSED = "passed"
_COMPARABLE = ("teacher_fingerprint", "target_settings", "processor", "runtime")
_LONGEST_VERDICT = 500
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[\w-]+))")


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def model_uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    @property
    def is_verified(self) -> bool:
        """Whether it passed verification; only such versions have aliases."""
        return self.tags.get("verified") == _PASSED

    @property
    def teacher_uri(self) -> str:
        """The URI of the teacher's unregistered model; UserError if this package did not make the version."""
        if "teacher_model" not in self.tags:
            raise UserError(
                "invalid_file", f"{self.model_uri}: has no tag teacher_model; register the model again"
            )
        return f"models:/{self.tags['teacher_model']}"

    @property
    def floor_uri(self) -> str | None:
        """The model of the second reference of drift; None if there was none."""
        model = self.tags.get("floor_model")
        return f"models:/{model}" if model else None


def model_name(prefix: str, target: str) -> str:
    """Returns the registered model's name for a target, with only characters that MLflow's URIs accept."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{prefix}-{target}").strip("-")


def budget_alias(budget: str) -> str:
    """Returns the alias of a budget: ``50%`` -> ``budget-50pct``, ``12.5ms`` -> ``budget-12_5ms``."""
    return "budget-" + re.sub(r"[^\w-]", "_", budget.replace("%", "pct"), flags=re.ASCII)


def find(model_uri: str, tracking_uri: str) -> Version:
    """The version of ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``; UserError if there is none."""
    with session(tracking_uri) as client:
        return find_version(client, model_uri)


def list_models(tracking_uri: str, target: str | None = None) -> list[Version]:
    """Returns all versions that ``register`` finished, sorted by name and version.

    Args:
        target: return only the versions of this target.

    Raises:
        UserError: no model is for ``target``.
    """
    with session(tracking_uri) as client:
        models = [model for model in pages(client.search_registered_models) if "target" in model.tags]
        targets = sorted({model.tags["target"] for model in models})
        if target is not None and targets and target not in targets:
            raise UserError(
                "unknown_name",
                f"no model is registered for target {target!r}; use one of {', '.join(targets)}",
            )
        names = sorted(model.name for model in models if target in (None, model.tags["target"]))
        return [version for name in names for version in finished_versions(client, name)]


def promote(
    verified: Sequence[tuple[Version, str | None]], *, tracking_uri: str, default_budget: str
) -> list[Version]:
    """Records the results of verification, and sets the aliases to the best versions that passed.

    Only versions with the newest version's teacher, data and hardware are compared, by their accuracy on the
    validation images. ``budget-…`` is the most accurate version of each budget; ``champion`` is the most
    accurate of all that were measured within ``default_budget`` (of all versions if none was). The newest
    version wins a tie.

    Args:
        verified: versions, each with its problem, or None if it passed.

    Returns:
        The versions with their aliases, in the order of ``verified``.
    """
    with session(tracking_uri) as client:
        for version, problem in verified:
            verdict = _PASSED if problem is None else f"failed: {problem}"[:_LONGEST_VERDICT]
            if version.tags.get("verified") != verdict:
                client.set_model_version_tag(version.name, str(version.version), "verified", verdict)
        for name in dict.fromkeys(version.name for version, _ in verified):
            client.set_registered_model_tag(name, "default_budget", default_budget)
            _set_aliases(client, name, default_budget)
        return [find_version(client, version.model_uri) for version, _ in verified]


def finished_versions(client: Any, name: str) -> list[Version]:
    """Returns the versions of ``name`` that ``register`` finished, the oldest first."""
    aliases = client.get_registered_model(name).aliases
    versions = (
        _version(entry, aliases)
        for entry in pages(client.search_model_versions, f"name = '{name}'")
        if entry.status == "READY" and "student_fingerprint" in entry.tags
    )
    return sorted(versions, key=lambda v: v.version)


def find_version(client: Any, model_uri: str) -> Version:
    """The version of a ``models:/`` URI; raises UserError if it does not exist or the URI is wrong."""
    from mlflow.exceptions import MlflowException

    parts = _MODEL_URI.fullmatch(model_uri)
    if parts is None:
        raise UserError(
            "invalid_setting",
            f"{model_uri}: not a model URI; use models:/NAME/VERSION or models:/NAME@ALIAS",
        )
    name = parts["name"]
    try:
        aliases = client.get_registered_model(name).aliases
        number = parts["version"] or client.get_model_version_by_alias(name, parts["alias"]).version
        return _version(client.get_model_version(name, str(number)), aliases)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(
            "unknown_name", f"{model_uri}: not in this registry; list its models with lana-ray models"
        ) from None


def _version(entry: Any, aliases: Mapping[str, Any]) -> Version:
    number = int(entry.version)
    own = tuple(sorted(alias for alias, version in aliases.items() if int(version) == number))
    return Version(name=entry.name, version=number, aliases=own, tags=dict(entry.tags))


def _set_aliases(client: Any, name: str, default_budget: str) -> None:
    """Sets every alias to its version, computed from all versions, so that repeating it changes nothing.

    Versions that have not passed verification get no aliases, and lose the ones they had.
    """
    versions = finished_versions(client, name)
    assigned: dict[str, Version] = {}
    # Versions without that tag were registered by an earlier lana_ray, which compared test accuracies.
    if passed := [v for v in versions if v.is_verified and "validation_accuracy" in v.tags]:
        latest = _comparable(passed)
        assigned[CHAMPION] = _best([v for v in latest if _keeps(v, default_budget)] or latest)
    for budget in dict.fromkeys(v.tags["budget"] for v in passed):
        assigned[budget_alias(budget)] = _best(_comparable(v for v in passed if v.tags["budget"] == budget))
    for alias, version in assigned.items():
        if alias not in version.aliases:
            client.set_registered_model_alias(name, alias, str(version.version))
    ours = {CHAMPION, *(budget_alias(v.tags["budget"]) for v in versions)}
    for version in versions:
        for alias in ours.difference(assigned).intersection(version.aliases):
            client.delete_registered_model_alias(name, alias)


def _keeps(version: Version, budget: str) -> bool:
    """Whether a version's measured latency is within a budget, even one that it was not made for."""
    asked = LatencyBudget.parse(budget)
    if asked.quantile != "p50" or asked.per_second:
        return version.tags["budget"].split()[0] == budget
    limit_ms = asked.limit(float(version.tags["teacher_latency_ms"]))
    # An earlier lana_ray did not measure sustained latencies.
    latency = version.tags.get("sustained_latency_ms" if asked.is_absolute else "latency_ms", "inf")
    return float(latency) <= limit_ms


def _comparable(versions: Iterable[Version]) -> list[Version]:
    """The versions with the newest version's teacher, data and hardware, whose figures are comparable."""
    listed = sorted(versions, key=lambda v: v.version)

    def identity(version: Version) -> list[str | None]:
        return [version.tags.get(tag) for tag in _COMPARABLE]

    return [version for version in listed if identity(version) == identity(listed[-1])]


def _best(versions: Iterable[Version]) -> Version:
    """Returns the most accurate version on the validation images; choosing by test images would bias them."""
    return max(versions, key=lambda v: (float(v.tags["validation_accuracy"]), v.version))
