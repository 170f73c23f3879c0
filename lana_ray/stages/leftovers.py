"""At the end of a run: what processes that were killed, and settings that were changed, left behind."""

from __future__ import annotations

from collections.abc import Sequence

from lana_ray import registry
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.workspace import Workspace


def collect(workspace: Workspace, teacher: Teacher, states: Sequence[str]) -> None:
    """Removes half-written files and training states, and ends in MLflow what no process goes on with.

    Args:
        states: folders of training states; every network that this run wanted is trained.

    Raises:
        UserError: registry unreachable or refusing.
    """
    storage = workspace.storage
    files = [*storage.temporaries(), *(file for folder in states for file in storage.list(folder))]
    for file in files:
        storage.remove(file)
    uri = registry.default_tracking_uri(workspace.config.registry, storage)
    prefix = workspace.config.registry.name or teacher.name
    ended = registry.end_abandoned(run_directory(workspace), tracking_uri=uri, prefix=prefix)
    if files or ended:
        say(f"removed {len(files)} leftover files, ended {ended} abandoned uploads in MLflow")


def run_directory(workspace: Workspace) -> str:
    """Tells in MLflow what this run directory's driver, of which there is one at a time, left there."""
    return fingerprint(workspace.storage.root)
