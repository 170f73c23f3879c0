"""Stage 7: registers students that keep their budget as versions of their target's model."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lana_ray import registry
from lana_ray.config import Config, Target
from lana_ray.deploy import to_onnx
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import RUNTIMES, program
from lana_ray.errors import UserError
from lana_ray.evaluation.networks import accuracies, trained_network, weights_digest
from lana_ray.measurement.counts import count_network
from lana_ray.measurement.latencies import Sampled
from lana_ray.monitoring.progress import say
from lana_ray.networks.layers import removable, replace
from lana_ray.networks.teachers import Teacher
from lana_ray.preflight.planned import Planned
from lana_ray.registry.verification import problem
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.summary import DataFacts, Result, Summary, TargetFacts, TeacherFacts
from lana_ray.selection.loop import Loop
from lana_ray.stages.finetune import FinishedStudent
from lana_ray.stages.sample import Sampling
from lana_ray.tracking import commit, curve_of, run_directory, run_of, versions
from lana_ray.workspace import Workspace

VERIFICATION_BYTES = 4 << 20
"""Size of the test images kept with every version, which ``lana-ray verify`` runs again."""


def default_budget(config: Config) -> str:
    """The budget whose best student becomes ``champion``."""
    return config.registry.default_budget or str(config.budgets.latencies[0])


def run(
    workspace: Workspace,
    teacher: Teacher,
    finished: Sequence[FinishedStudent],
    evidence: Mapping[str, str],
) -> list[Result]:
    """Registers the students that keep their budgets in MLflow; returns the results of all students.

    Args:
        evidence: files to keep with every version: name there -> file in the run directory, with ``{target}``
            for the target's name.
    """
    uris = _registered(workspace, teacher, finished, evidence)
    return [_result(f, uris.get((f.target.target.name, f.budget))) for f in finished]


def _registered(
    workspace: Workspace, teacher: Teacher, finished: Sequence[FinishedStudent], evidence: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """Registers students; returns URIs ``models:/…`` by (target, budget)."""
    sound = [f for f in finished if f.problem is None]
    for f in finished:
        if f.problem is not None:
            say(f"register: {f.target.target.name} {f.budget} is not registered: {f.problem}")
    if not sound:
        return {}
    uri = registry.default_tracking_uri(workspace.config.registry, workspace.storage)
    tests = _first_test_images(workspace)
    with tempfile.TemporaryDirectory() as folder:
        students: list[registry.Student] = []
        teachers: dict[str, registry.Model] = {}
        floors: dict[str, registry.Model | None] = {}
        for f in sound:
            target = f.target.target
            model = _model(workspace, _as_tested(workspace, f), target, tests)
            files = {
                there: _copy(workspace, file.format(target=target.name), Path(folder))
                for there, file in evidence.items()
            }
            if target.name not in teachers:
                teachers[target.name] = _model(workspace, workspace.teacher, target, tests)
                floors[target.name] = _floor(workspace, f.target, tests)
            students.append(_student(workspace, teacher, f, model, floors[target.name], files))
        registered = registry.register(
            students,
            teachers,
            parent=run_of(workspace, teacher),
            tracking_uri=uri,
            prefix=workspace.config.registry.name or teacher.name,
        )
    _promote(workspace.config, registered, uri)
    say(f"register: {len(registered)} versions in MLflow; see them with lana-ray models")
    pairs = zip(sound, registered, strict=True)
    return {(f.target.target.name, f.budget): version.model_uri for f, version in pairs}


def _result(f: FinishedStudent, uri: str | None) -> Result:
    return Result(
        target=f.target.target.name,
        budget=f.budget,
        budget_ms=f.budget_ms,
        predicted_ms=f.predicted.get(f.bounded),
        calibration=f.calibration,
        measured_ms=f.latency.value,
        iqr_ms=f.latency.iqr,
        teacher_ms=f.teacher_ms,
        speedup=f.teacher_ms / f.latency.value,
        costs={of.cost: cost.value for of, cost in f.costs.items()},
        params=f.counts["params"],
        macs=f.counts["macs"],
        accuracy=f.tested.accuracy,
        validation_accuracy=f.tested.validation_accuracy,
        accuracy_before=f.accuracy_before,
        teacher_accuracy=f.tested.teacher_accuracy,
        architecture=f.architecture,
        model_uri=uri,
        problem=f.problem,
    )


def write_summary(
    workspace: Workspace,
    teacher: Teacher,
    sampling: Sampling,
    loop: Loop,
    results: Sequence[Result],
    seconds: Mapping[str, float],
) -> Summary:
    """Writes ``summary.json``."""
    data, counts = workspace.data, count_network(workspace, workspace.teacher)
    itself = workspace.teacher_job
    summary = Summary(
        teacher=TeacherFacts(
            name=teacher.name,
            layers=len(workspace.layers),
            parameters=int(counts["params"]),
            macs=counts["macs"],
            accuracy=accuracies(workspace, [itself])[itself],
            trained=teacher.untrained,
            fingerprint=workspace.teacher_key,
        ),
        data=DataFacts(classes=tuple(data.classes), sizes=dict(data.sizes), skipped=data.skipped),
        targets=tuple(_target_facts(sampling, loop, name) for name in sampling.targets),
        results=tuple(results),
        unmet=tuple(choice.unmet for choice in loop.choices if choice.unmet),
        versions=_versions(),
        seconds={stage: round(value, 1) for stage, value in seconds.items()},
    )
    summary.write(workspace.storage)
    return summary


def _versions() -> dict[str, str]:
    return versions(package for runtime in RUNTIMES.values() for package in runtime.packages)


def _target_facts(sampling: Sampling, loop: Loop, name: str) -> TargetFacts:
    sampled = sampling.targets[name]
    target, table = sampled.target, loop.tables[sampled.latency].table
    return TargetFacts(
        name=name,
        runtime=target.runtime,
        threads=target.threads,
        batch_size=target.batch_size,
        processor=sampled.teacher.processor,
        teacher_ms=sampled.teacher_ms,
        error=table.error,
        error_isolated=table.error_isolated,
        networks=table.networks,
        stand_in=sampled.placement.stand_in,
    )


def _promote(config: Config, registered: Sequence[registry.Version], uri: str) -> None:
    """Loads and verifies every version; gives aliases to those that pass and takes them from the others."""
    commands = {target.name: target.command for target in config.targets}
    judged = [(version, problem(version, uri, commands[version.tags["target"]])) for version in registered]
    for version, reason in judged:
        if reason is not None:
            say(f"register: {version.model_uri} failed verification and gets no alias: {reason}")
    registry.promote(judged, tracking_uri=uri, default_budget=default_budget(config))


def _as_tested(workspace: Workspace, f: FinishedStudent) -> nn.Module:
    """The network with the tested weights; raises UserError if the file is damaged or was changed."""
    network = trained_network(workspace, f.job)
    if weights_digest(workspace, f.job) != f.tested.weights:
        raise UserError(
            "changed",
            f"{workspace.storage.url(f.job.file)}: changed since it was tested; rerun the same command; "
            "finished work is kept",
        )
    return network


def _copy(workspace: Workspace, file: str, folder: Path) -> Path:
    """A local copy of a file in the run directory."""
    copied = folder / file
    copied.parent.mkdir(exist_ok=True)
    copied.write_bytes(workspace.storage.read_bytes(file))
    return copied


def _student(
    workspace: Workspace,
    teacher: Teacher,
    f: FinishedStudent,
    model: registry.Model,
    floor: registry.Model | None,
    files: Mapping[str, Path],
) -> registry.Student:
    target, median = f.target, f.costs[f.target.latency]
    predicted = {
        **({"predicted_ms": f"{f.predicted[f.bounded]:.6g}"} if f.bounded in f.predicted else {}),
        **({} if f.calibration is None else {"calibration": str(f.calibration)}),
    }
    identity = (f.tested.weights, f.job.key, target.target_key, f.budget, f.latency.value, predicted)
    others = {of: cost for of, cost in f.costs.items() if of != target.latency}
    tags = {
        "latency_ms": f"{median.value:.6g}",
        "latency_iqr_ms": f"{median.iqr:.6g}",
        "sustained_latency_ms": f"{median.sustained:.6g}",
        **predicted,
        "budget_ms": f"{f.budget_ms:.6g}",
        "teacher_latency_ms": f"{target.teacher_ms:.6g}",
        **({} if target.floor is None else {"floor_latency_ms": f"{target.floor.median_ms:.6g}"}),
        **{of.cost: f"{cost.value:.6g}" for of, cost in others.items()},
        **{name: f"{value:.0f}" for name, value in f.counts.items()},
        "speedup": f"{target.teacher_ms / median.value:.4g}",
        "accuracy": f"{f.tested.accuracy:.6g}",
        "validation_accuracy": f"{f.tested.validation_accuracy:.6g}",
        "teacher_accuracy": f"{f.tested.teacher_accuracy:.6g}",
        "architecture": f.architecture,
        "student_fingerprint": fingerprint(*identity),
        "run_directory": run_directory(workspace),
        "teacher_fingerprint": fingerprint(workspace.teacher_key, workspace.data.fingerprint),
        "target_fingerprint": target.target_key,
        "processor": target.teacher.processor,
        "runtime": target.teacher.runtime,
        "target_settings": target.target.model_dump_json(exclude={"measure", "label", "command"}),
        "commit": commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in _versions().items()),
    }
    return registry.Student(
        model=model,
        target=target.target.name,
        budget=f.budget,
        teacher=teacher.name,
        tags=tags,
        floor=floor,
        artifacts=files,
        curve=curve_of(workspace.storage, f.job.file),
    )


def _model(
    workspace: Workspace, network: nn.Module, target: Target, tests: tuple[Tensor, Tensor]
) -> registry.Model:
    assert target.input_shape is not None
    images, labels = tests
    network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
    with torch.inference_mode():
        logits = network(images)
    return registry.Model(
        network=network,
        input_shape=target.input_shape,
        classes=workspace.data.classes,
        preprocessing=workspace.data.preprocessing.as_dict(),
        verification={"images": images, "labels": labels, "logits": logits},
        onnx=_onnx(network, target),
    )


def _floor(workspace: Workspace, sampled: Sampled, tests: tuple[Tensor, Tensor]) -> registry.Model | None:
    """The teacher without its removable layers, if it served as a reference."""
    if sampled.floor is None:
        return None
    spare = {layer.name: nn.Identity() for layer in removable(workspace.layers)}
    return _model(workspace, replace(workspace.teacher, spare), sampled.target, tests)


def _onnx(network: nn.Module, target: Target) -> bytes | None:
    """The ONNX program that the target runs; for other runtimes one for use elsewhere, None if impossible."""
    example = example_input(target)
    if RUNTIMES[target.runtime].loads_onnx:
        # A free batch dimension would keep the runtime from folding shapes: an EfficientNet-Lite0 student at
        # 64 pixels then takes 1.8 times as long.
        deployed = program(network, example, target)
        assert isinstance(deployed, bytes)
        return deployed
    if importlib.util.find_spec("onnx") is None:
        return None
    try:
        return to_onnx(network, example, dynamic_batch=True)
    except UserError as error:
        say(f"register: {target.name}: no {registry.ONNX_FILE}: {error}")
        return None


def _first_test_images(workspace: Workspace) -> tuple[Tensor, Tensor]:
    """About 4 MB of test images, at least 8: [n, C, H, W] float32, and their labels [n] int64."""
    bytes_each = 4 * 3 * workspace.config.data.image_size**2
    count = max(8, VERIFICATION_BYTES // bytes_each)
    batches = list(workspace.data.batches("test", batch_size=count, max_images=count, channels_last=False))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def plan(planned: Planned) -> list[str]:
    """The number of versions."""
    targets = len(planned.config.targets)
    versions = len(planned.config.budgets.latencies) * targets * (1 + planned.is_joint)
    return [f"at most {versions} versions in {targets} registered models of MLflow"]
