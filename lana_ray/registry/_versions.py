"""Versions in the registry: their names, how they are found, which of them carries which alias."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lana_ray.config import LatencyBudget
from lana_ray.errors import UserError
from lana_ray.registry._moved import existing
from lana_ray.registry._session import database, pages

CHAMPION = "champion"
_PASSED = "passed"
_COMPARABLE = ("teacher_fingerprint", "target_settings", "processor", "runtime")
_LONGEST_VERDICT = 500  # characters
_TEACHER_URI = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")  # an id that MLflow gives
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
        """Whether it was loaded back and answered as it should: only such versions carry aliases."""
        return self.tags.get("verified") == _PASSED

    @property
    def teacher_uri(self) -> str:
        """The teacher's model, of the same files as this one; it is not registered.

        Raises:
            UserError: where the version is not of this package's making.
        """
        if "teacher_model" not in self.tags:
            raise UserError(f"{self.model_uri}: names no teacher in a tag teacher_model; register it again")
        return f"models:/{self.tags['teacher_model']}"


def model_name(prefix: str, target: str) -> str:
    """The registered model's name for a target, of signs that MLflow and its URIs accept."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{prefix}-{target}").strip("-")


def budget_alias(budget: str) -> str:
    """``50%`` -> ``budget-50pct``, ``12.5ms`` -> ``budget-12_5ms``: aliases allow no other signs."""
    return "budget-" + re.sub(r"[^\w-]", "_", budget.replace("%", "pct"), flags=re.ASCII)


def finished_versions(client: Any, name: str) -> list[Version]:
    """The versions of ``name`` that ``register`` made and finished, oldest first."""
    aliases = client.get_registered_model(name).aliases
    found = (
        _version(entry, aliases)
        for entry in pages(client.search_model_versions, f"name = '{name}'")
        if entry.status == "READY" and "student_fingerprint" in entry.tags
    )
    return sorted(found, key=lambda v: v.version)


def find_version(client: Any, model_uri: str) -> Version:
    """The version of a ``models:/`` URI.

    Raises:
        UserError: where there is none, or the URI is of another form.
    """
    from mlflow.exceptions import MlflowException

    parts = _MODEL_URI.fullmatch(model_uri)
    if parts is None:
        raise UserError(f"{model_uri}: no model URI; write models:/NAME/VERSION or models:/NAME@ALIAS")
    name = parts["name"]
    try:
        aliases = client.get_registered_model(name).aliases
        number = parts["version"] or client.get_model_version_by_alias(name, parts["alias"]).version
        return _version(client.get_model_version(name, str(number)), aliases)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"{model_uri}: not in this registry; lana-ray models lists what is") from None


def files_uri(client: Any, model_uri: str) -> str:
    """Where the files of a version or of a ``Version.teacher_uri`` are, for MLflow.

    Raises:
        UserError: as ``find_version``, and where a registry in a file has lost them.
    """
    file = database(client.tracking_uri)
    if teacher := _TEACHER_URI.fullmatch(model_uri):  # MLflow finds no single files below such a URI
        uri = str(client.get_logged_model(teacher["id"]).artifact_location)
    else:
        version = find_version(client, model_uri)
        if file is None:
            return version.model_uri
        uri = str(client.get_model_version_download_uri(version.name, str(version.version)))
    return existing(uri, file, model_uri) if file else uri


def _version(entry: Any, aliases: Mapping[str, Any]) -> Version:
    number = int(entry.version)
    own = tuple(sorted(alias for alias, version in aliases.items() if int(version) == number))
    return Version(name=entry.name, version=number, aliases=own, tags=dict(entry.tags))


def record_verification(client: Any, version: Version, problem: str | None) -> None:
    """Writes in a version's tag ``verified`` what verification found: nothing wrong, or ``problem``."""
    verdict = _PASSED if problem is None else f"failed: {problem}"[:_LONGEST_VERDICT]
    if version.tags.get("verified") != verdict:
        client.set_model_version_tag(version.name, str(version.version), "verified", verdict)


def set_aliases(client: Any, name: str, default_budget: str) -> None:
    """Points every alias at its version: computed from all of them, so that repeating changes nothing.

    What has not passed verification gets none, and loses what it had.
    """
    versions = finished_versions(client, name)
    wanted: dict[str, Version] = {}
    # A version without that tag was registered by an earlier lana_ray, which compared test accuracies.
    if passed := [v for v in versions if v.is_verified and "validation_accuracy" in v.tags]:
        latest = _comparable(passed)
        wanted[CHAMPION] = _best([v for v in latest if _keeps(v, default_budget)] or latest)
    for budget in dict.fromkeys(v.tags["budget"] for v in passed):
        wanted[budget_alias(budget)] = _best(_comparable(v for v in passed if v.tags["budget"] == budget))
    for alias, version in wanted.items():
        if alias not in version.aliases:
            client.set_registered_model_alias(name, alias, str(version.version))
    ours = {CHAMPION, *(budget_alias(v.tags["budget"]) for v in versions)}
    for version in versions:
        for alias in ours.difference(wanted).intersection(version.aliases):
            client.delete_registered_model_alias(name, alias)


def _keeps(version: Version, budget: str) -> bool:
    """Whether a version was measured within a budget, whatever the one it was made for."""
    limit_ms = LatencyBudget.parse(budget).limit(float(version.tags["teacher_latency_ms"]))
    return float(version.tags["latency_ms"]) <= limit_ms


def _comparable(versions: Iterable[Version]) -> list[Version]:
    """Those with the newest version's teacher, data and hardware: neither accuracies nor latencies of others
    compare."""
    listed = sorted(versions, key=lambda v: v.version)

    def identity(version: Version) -> list[str | None]:
        return [version.tags.get(tag) for tag in _COMPARABLE]

    return [version for version in listed if identity(version) == identity(listed[-1])]


def _best(versions: Iterable[Version]) -> Version:
    """The most accurate on the validation images: who chose by the test images would flatter the choice."""
    return max(versions, key=lambda v: (float(v.tags["validation_accuracy"]), v.version))
