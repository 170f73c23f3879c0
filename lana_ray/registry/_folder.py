"""Saves a network as a folder that MLflow can load: a PyTorch program and small files."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lana_ray.deploy import INPUT_NAME, OUTPUT_NAME, anonymise_program, to_program

EXTRA_FILES = "extra_files"
"""MLflow's folder for additional files of a model."""
VERIFICATION_FILE = "verification.safetensors"
ONNX_FILE = "model.onnx"
PROGRAM_FILE = "data/model.pt2"


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
    program = anonymise_program(folder / PROGRAM_FILE).module()
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
