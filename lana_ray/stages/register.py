"""Stage 7: students that keep their budget become versions of their target's registered model."""

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
from lana_ray.monitoring.progress import say
from lana_ray.monitoring.provenance import commit, versions
from lana_ray.networks.teachers import Teacher
from lana_ray.registry.verification import problem
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.stages.evaluate import trained_network, weights_digest
from lana_ray.stages.finetune import Finished
from lana_ray.stages.leftovers import run_directory
from lana_ray.stages.sample import Sampled
from lana_ray.stages.track import curve_of, run_of
from lana_ray.workspace import Workspace

VERIFICATION_BYTES = 4 << 20
"""Test images kept with every version, for ``lana-ray verify`` to hold it against."""


def default_budget(config: Config) -> str:
    """The budget whose best student becomes champion."""
    return config.registry.default_budget or str(config.budgets.latency_ms[0])


def run(
    workspace: Workspace,
    teacher: Teacher,
    finished: Sequence[Finished],
    sampled: Mapping[str, Sampled],
    evidence: Mapping[str, str],
) -> dict[tuple[str, str], str]:
    """Registers in MLflow what may be registered.

    Args:
        evidence: what is kept with every version: name there -> file of the run directory, where ``{target}``
            stands for the target's name.

    Returns:
        ``models:/…`` URI by (target, budget).
    """
    sound = [f for f in finished if f.problem is None]
    for f in finished:
        if f.problem is not None:
            say(f"register: {f.target} {f.budget} is not registered: {f.problem}")
    if not sound:
        return {}
    uri = registry.default_tracking_uri(workspace.config.registry, workspace.storage)
    tests = _first_test_images(workspace)
    with tempfile.TemporaryDirectory() as folder:
        students, teachers = [], {}
        for f in sound:
            known, name = sampled[f.target], f.target
            model = _model(workspace, _as_tested(workspace, f), known.target, tests)
            files = {
                there: _copy(workspace, file.format(target=name), Path(folder))
                for there, file in evidence.items()
            }
            students.append(_student(workspace, teacher, f, known, model, files))
            teachers[name] = _model(workspace, workspace.teacher, known.target, tests)
        registered = registry.register(
            students,
            teachers,
            parent=run_of(workspace, teacher),
            tracking_uri=uri,
            prefix=workspace.config.registry.name or teacher.name,
        )
    _promote(workspace.config, registered, uri)
    say(f"register: {len(registered)} versions in MLflow; see them with lana-ray models")
    return {(f.target, f.budget): version.model_uri for f, version in zip(sound, registered, strict=True)}


def _promote(config: Config, registered: Sequence[registry.Version], uri: str) -> None:
    """Loads every version back; one that does not answer as it should has no alias from then on."""
    judged = [(version, problem(version, uri)) for version in registered]
    for version, reason in judged:
        if reason is not None:
            say(f"register: {version.model_uri} failed verification and gets no alias: {reason}")
    registry.promote(judged, tracking_uri=uri, default_budget=default_budget(config))


def _as_tested(workspace: Workspace, f: Finished) -> nn.Module:
    """The student's network, from the very weights that were tested.

    Raises:
        UserError: the file is damaged or was changed since.
    """
    network = trained_network(workspace, f.job)
    if weights_digest(workspace, f.job) != f.tested.weights:
        raise UserError(
            f"{workspace.storage.url(f.job.file)}: changed since it was tested, so it is not registered; run "
            "the same command again"
        )
    return network


def _copy(workspace: Workspace, file: str, folder: Path) -> Path:
    """A local copy of a file, whatever storage it is kept on."""
    copied = folder / file
    copied.parent.mkdir(exist_ok=True)
    copied.write_bytes(workspace.storage.read_bytes(file))
    return copied


def _student(
    workspace: Workspace,
    teacher: Teacher,
    f: Finished,
    known: Sampled,
    model: registry.Model,
    files: Mapping[str, Path],
) -> registry.Student:
    predicted = {
        **({} if f.predicted_ms is None else {"predicted_ms": f"{f.predicted_ms:.6g}"}),
        **({} if f.calibration is None else {"calibration": str(f.calibration)}),
    }
    identity = (f.tested.weights, f.sample.key, known.target_key, f.budget, f.sample.median_ms, predicted)
    tags = {
        "latency_ms": f"{f.sample.median_ms:.6g}",
        "latency_iqr_ms": f"{f.sample.iqr_ms:.6g}",
        **predicted,
        "budget_ms": f"{f.budget_ms:.6g}",
        "teacher_latency_ms": f"{f.teacher_ms:.6g}",
        **{name: f"{value:.0f}" for name, value in f.counts.items()},
        "speedup": f"{f.teacher_ms / f.sample.median_ms:.4g}",
        "accuracy": f"{f.tested.accuracy:.6g}",
        "validation_accuracy": f"{f.tested.validation_accuracy:.6g}",
        "teacher_accuracy": f"{f.tested.teacher_accuracy:.6g}",
        "architecture": f.architecture,
        "student_fingerprint": fingerprint(*identity),
        "run_directory": run_directory(workspace),
        "teacher_fingerprint": fingerprint(workspace.teacher_key, workspace.data.fingerprint),
        "target_fingerprint": known.target_key,
        "processor": f.sample.processor,
        "runtime": f.sample.runtime,
        "target_settings": known.target.model_dump_json(exclude={"measure", "label"}),
        "commit": commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    return registry.Student(
        model=model,
        target=known.target.name,
        budget=f.budget,
        teacher=teacher.name,
        tags=tags,
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


def _onnx(network: nn.Module, target: Target) -> bytes | None:
    """The ONNX program of a target that runs such; of another one, where it can be had, for use elsewhere."""
    example = example_input(target)
    if RUNTIMES[target.runtime].loads_onnx:
        # With the target's own batch size, as measured: a free one keeps the runtime from folding shapes, and
        # an EfficientNet-Lite0 student at 64 pixels then takes 1.8 times as long.
        deployed = program(network, example, target)
        assert isinstance(deployed, bytes)
        return deployed
    if importlib.util.find_spec("onnx") is None:
        return None
    try:
        return to_onnx(network, example, dynamic_batch=True)
    except UserError as error:
        say(f"register: {target.name}: without {registry.ONNX_FILE}: {error}")
        return None


def _first_test_images(workspace: Workspace) -> tuple[Tensor, Tensor]:
    """About 4 MB of test images, at least 8 of them: [n, C, H, W] float32, and their labels [n] int64."""
    bytes_each = 4 * 3 * workspace.config.data.image_size**2
    count = max(8, VERIFICATION_BYTES // bytes_each)
    batches = list(workspace.data.batches("test", batch_size=count, max_images=count, channels_last=False))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
