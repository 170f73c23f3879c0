"""A network as a folder that MLflow can load, saved and read back: a PyTorch program and small files."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lana_ray.deploy import INPUT_NAME, OUTPUT_NAME, anonymise_program, to_program
from lana_ray.errors import UserError
from lana_ray.registry._program import load_program
from lana_ray.registry._session import accessing, database, existing_uri, session
from lana_ray.registry._versions import find_version

VERIFICATION_FILE = "verification.safetensors"
ONNX_FILE = "model.onnx"
_EXTRA_FILES = "extra_files"
"""MLflow's folder for additional files of a model."""
_PROGRAM_FILE = "data/model.pt2"
_UNREGISTERED = re.compile(r"models:/(?P<id>m-[0-9a-f]{32})")
"""URI of a model that is not registered, by the id that MLflow assigns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A network and the files stored with it."""

    network: nn.Module
    input_shape: tuple[int, ...]
    """(C, H, W)."""
    classes: Sequence[str]
    verification: Mapping[str, Tensor]
    """Test data for whoever loads the network: preprocessed ``images`` [n, C, H, W] float32, their ``labels``
    [n] int64 and the network's ``logits`` [n, classes] float32."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    onnx: bytes | None = None
    """The ONNX program: with the target's batch size if the target runs ONNX, else with a free batch size."""


def save(model: Model, scratch: Path, *, model_id: str, run_id: str | None = None) -> Path:
    """Writes MLflow's model folder below ``scratch`` and checks it; raises UserError if export fails."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model as Metadata
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
    network = network.to(memory_format=torch.contiguous_format)
    eighths = np.random.default_rng(0).integers(-8, 9, (3, *model.input_shape))
    # MLflow writes the example as text, so its numbers have few digits.
    images = (eighths / 8).astype(np.float32)
    floats = np.dtype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(floats, (-1, *model.input_shape), INPUT_NAME)]),
        Schema([TensorSpec(floats, (-1, len(model.classes)), OUTPUT_NAME)]),
    )
    folder = scratch / "model"
    mlflow.pytorch.save_model(
        to_program(network, torch.from_numpy(images), dynamic_batch=True),
        str(folder),
        mlflow_model=Metadata(run_id=run_id, model_id=model_id, model_uuid=model_id),
        signature=signature,
        input_example=images[:2],  # the exporter would treat a batch of one as a constant
        extra_files=[str(path) for path in _extra_files(model, scratch)],
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],  # not inferred by MLflow
        serialization_format="pt2",
    )
    program = anonymise_program(folder / _PROGRAM_FILE).module()
    with torch.inference_mode():
        for batch in (torch.from_numpy(images[:count]) for count in (1, 3)):
            actual, expected = program(batch), network(batch)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    return folder


def _extra_files(model: Model, folder: Path) -> Iterator[Path]:
    contents = {
        "preprocessing.json": json.dumps(dict(model.preprocessing), indent=2).encode(),
        "labels.json": json.dumps(list(model.classes), indent=2).encode(),
        VERIFICATION_FILE: safetensors.torch.save({k: v.contiguous() for k, v in model.verification.items()}),
        ONNX_FILE: model.onnx,
    }
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
            yield folder / name


def load(model_uri: str, tracking_uri: str) -> nn.Module:
    """Returns the network of a version, which maps [N, C, H, W] to [N, classes].

    It fetches only the program, and executes no code from the registry's files.

    Args:
        model_uri: as for ``find``, or a ``Version.teacher_uri``.

    Raises:
        UserError: as ``find``; the program is missing, damaged, or contains more than ATen operators.
    """
    with session(tracking_uri) as client, tempfile.TemporaryDirectory() as folder:
        source = f"{_files_uri(client, model_uri)}/{_PROGRAM_FILE}"
        return load_program(_fetch(source, Path(folder), tracking_uri))


def download(model_uri: str, file: str, folder: Path, tracking_uri: str) -> Path:
    """Copies a file of a version to a path below ``folder`` and returns that path.

    The files are ``preprocessing.json``, ``labels.json``, ``verification.safetensors`` (see ``Model``) and
    ``model.onnx``, which is missing if the network could not be exported.

    Args:
        model_uri: as for ``find``, or a ``Version.teacher_uri``.

    Raises:
        UserError: as ``find``; the version has no such file.
    """
    with session(tracking_uri) as client:
        import mlflow.artifacts

        source = f"{_files_uri(client, model_uri)}/{_EXTRA_FILES}"
        with accessing(tracking_uri):
            entries = mlflow.artifacts.list_artifacts(source)
        present = sorted(Path(entry.path).name for entry in entries)
        if file not in present:
            raise UserError("missing_file", f"{model_uri}: has no file {file}; it has {', '.join(present)}")
        return _fetch(f"{source}/{file}", folder, tracking_uri)


def _fetch(source: str, folder: Path, tracking_uri: str) -> Path:
    import mlflow.artifacts

    with accessing(tracking_uri):
        return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))


def _files_uri(client: Any, model_uri: str) -> str:
    """The URI of the files of a version or teacher; raises UserError if the version or files are missing."""
    file = database(client.tracking_uri)
    # MLflow cannot resolve single files below a teacher's URI.
    if teacher := _UNREGISTERED.fullmatch(model_uri):
        uri = str(client.get_logged_model(teacher["id"]).artifact_location)
    else:
        version = find_version(client, model_uri)
        if file is None:
            return version.model_uri
        uri = str(client.get_model_version_download_uri(version.name, str(version.version)))
    if file is None:
        return uri
    with accessing(client.tracking_uri):
        return existing_uri(uri, file, model_uri)
