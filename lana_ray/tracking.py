"""Logs a pipeline run in MLflow while it is running, with the commit and versions that it ran with."""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import yaml

import lana_ray
from lana_ray import registry
from lana_ray.cluster.connection import node_count
from lana_ray.config import Config
from lana_ray.errors import UserError
from lana_ray.ids import dotted
from lana_ray.measurement.latencies import Sampled
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.redact import without_passwords
from lana_ray.registry import Part
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.hours import Hours
from lana_ray.run_dir.storage import Storage
from lana_ray.selection.loop import Tables
from lana_ray.workspace import Workspace

_PACKAGES = ("lana-ray", "torch", "timm", "ray", "mlflow", "highspy")
_NO_PARAMETERS = ("ray.", "registry.")  # results do not depend on them


@dataclass(kw_only=True)
class Tracking:
    """A pipeline run, which is logged in MLflow from ``begin`` on."""

    workspace: Workspace
    hours: Hours
    teacher: Teacher | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of every finished stage."""

    def begin(self, teacher: Teacher) -> None:
        """Creates the run or resumes it; raises UserError if the registry is unreachable or refuses."""
        run_of(self.workspace, teacher, parts=self._stages())
        self.teacher = teacher

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times and logs a stage; if the registry is away when it ends, it is logged with the next one."""
        with self.hours.stage(name):
            yield
        self.seconds[name] = self.hours.stages[name].seconds
        self._try_to_log("RUNNING", f"; the stage {name} is logged later")

    def finish(
        self,
        sampled: Mapping[str, Sampled],
        tables: Tables,
        plots: Mapping[str, Mapping[str, str]],
        files: Sequence[str],
    ) -> None:
        """Logs the targets, and that the run has finished.

        Args:
            tables: the last cost tables, calibrated with every measured student.
            plots: SVG by target and file name.
            files: files of the run directory to keep with the run.
        """
        assert self.teacher is not None
        storage = self.workspace.storage
        targets = [_target(storage, target, tables, plots.get(name, {})) for name, target in sampled.items()]
        kept = {name: storage.read_bytes(name) for name in files}
        parts = [*self._stages(), *targets]
        run_of(self.workspace, self.teacher, parts=parts, files=kept, status="FINISHED")

    def fail(self) -> None:
        """Logs that the run failed, if it was begun and the registry is reachable."""
        self._try_to_log("FAILED")

    def _try_to_log(self, status: str, consequence: str = "") -> None:
        if self.teacher is not None:
            try:
                run_of(self.workspace, self.teacher, parts=self._stages(), status=status)
            except UserError as error:
                say(f"tracking: {error}{consequence}")

    def _stages(self) -> list[Part]:
        return [
            Part(
                name=f"stage {name}",
                metrics={"seconds": seconds},
                curve=curve_of(self.workspace.storage, layout.TEACHER) if name == "teacher" else (),
            )
            for name, seconds in self.seconds.items()
        ]


@contextmanager
def tracking(workspace: Workspace) -> Iterator[Tracking]:
    """Yields the tracking of a run; an exception logs it as failed."""
    tracked = Tracking(workspace=workspace, hours=Hours(workspace.storage, node_count))
    try:
        yield tracked
    except BaseException:
        tracked.fail()
        raise


def run_of(
    workspace: Workspace,
    teacher: Teacher,
    *,
    parts: Sequence[Part] = (),
    files: Mapping[str, bytes] | None = None,
    status: str = "RUNNING",
) -> str:
    """Updates this pipeline run in MLflow and returns its id.

    Run directory, teacher, data and settings identify it. Raises UserError if the registry is unreachable.
    """
    config, data = workspace.config, workspace.data
    settings = parameters(config)
    identity = (without_passwords(config.run.dir), workspace.teacher_key, data.fingerprint, settings)
    pipeline = registry.Pipeline(
        name=PurePath(without_passwords(config.run.dir)).name,
        key=fingerprint(*identity),
        tags={"teacher": teacher.name, "commit": commit()},
        parameters=settings,
        data=registry.DataSet(name=_data_name(config), digest=data.fingerprint, sizes=data.sizes),
    )
    return registry.track(
        pipeline,
        parts=parts,
        files=files or {},
        status=status,
        tracking_uri=registry.default_tracking_uri(config.registry, workspace.storage),
        prefix=config.registry.name or teacher.name,
    )


def parameters(config: Config) -> dict[str, str]:
    """The settings that results depend on, without passwords: ``distill.steps`` -> ``200``."""
    settings = yaml.safe_load(config.to_public_yaml())
    settings["targets"] = {target.pop("name"): target for target in settings["targets"]}
    return {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in dotted(settings)
        if value is not None and not key.startswith(_NO_PARAMETERS)
    }


def _data_name(config: Config) -> str:
    data = config.data
    path = without_passwords(data.parquet or data.folder or "")
    return data.source or data.torchvision or PurePath(path).name


def curve_of(storage: Storage, file: str) -> list[dict[str, float]]:
    """The learning curve of a network, see ``training.loop.Trained``; empty if it was not trained."""
    return list(json.loads((storage.tensor_metadata(file) or {}).get("curve", "[]")))


def run_directory(workspace: Workspace) -> str:
    """Identity of the run directory in MLflow's tags."""
    return fingerprint(workspace.storage.root)


def _target(storage: Storage, sampled: Sampled, tables: Tables, plots: Mapping[str, str]) -> Part:
    name, table = sampled.target.name, tables[sampled.latency].table
    metrics = {
        "teacher_latency_ms": sampled.teacher_ms,
        "table_error": table.error,
        "table_error_isolated": table.error_isolated,
        "networks": table.networks,
        "candidates": sum(map(len, table.costs)),
    }
    files = {file: svg.encode() for file, svg in plots.items()}
    files["costs.parquet"] = storage.read_bytes(layout.costs(name))
    return Part(
        name=f"target {name}",
        tags={"target": name, "target_fingerprint": sampled.target_key},
        metrics={key: value for key, value in metrics.items() if math.isfinite(value)},
        files=files,
    )


def versions(runtimes: Iterable[str]) -> dict[str, str]:
    """The installed versions of the packages that a result depends on, with those of ``runtimes``."""
    packages = dict.fromkeys((*_PACKAGES, *runtimes))
    return {package: version for package in packages if (version := installed_version(package))}


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of this package's checkout, with ``-dirty`` if it was changed, else its version."""
    git = ("git", "-C", str(Path(lana_ray.__file__).parent))
    try:
        # A package that is installed somewhere below another checkout does not belong to that checkout.
        subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], check=True, capture_output=True)
        described = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        output = subprocess.run([*git, *described], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("lana-ray")
    return output.stdout.strip()
