"""Exports networks as ONNX programs."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.deploy.program import deployed
from lana_ray.errors import Unsupported, UserError, first_line, is_fault
from lana_ray.monitoring.progress import muted
from lana_ray.networks.layers import evaluating
from lana_ray.networks.padding import with_fixed_padding

INPUT_NAME = "input"
OUTPUT_NAME = "output"
OPSET = 18
"""The lowest version that both exporters write without converting."""


def to_onnx(network: nn.Module, example: Tensor, *, dynamic_batch: bool) -> bytes:
    """Exports ``network`` for inference, in eval mode and folded (``deployed``), and restores its modes.

    The input is named ``input``, the output ``output``; with ``dynamic_batch``, their first dimension is
    free. torch's tracing exporter comes first (0.03 s for a block; the newer one takes 50 times as long), and
    the newer one only exports operators that tracing cannot express.

    Args:
        network: maps one tensor to one tensor.
        example: an input, shape [N, ...], on the network's device.

    Raises:
        Unsupported: neither exporter can express the network.
        UserError: the newer exporter is needed but not installed.
    """
    network = with_fixed_padding(deployed(network), example)
    with evaluating(network), torch.no_grad(), _quiet():
        try:
            # If tracing fails, C++ writes the full graph to standard output.
            with muted(1):
                return _trace(network, example, dynamic_batch)
        except Exception as traced:  # the network's own code may raise anything
            if is_fault(traced):
                raise
            try:
                return _capture(network, example, dynamic_batch)
            except ModuleNotFoundError as missing:
                raise UserError(
                    "missing_package",
                    f"ONNX export needs the package {missing.name}; pip install 'lana-ray[onnx]'",
                ) from traced
            except Exception as captured:
                if is_fault(captured):
                    raise
                reason = first_line(traced)
                raise Unsupported(
                    "refused",
                    f"{type(network).__name__}: ONNX cannot express it ({reason}); use the runtime torch",
                ) from traced


class _OneInput(nn.Module):
    """Hides further arguments: tracing would turn their defaults into tensors, as with timm's ViT blocks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y


def _trace(network: nn.Module, example: Tensor, dynamic_batch: bool) -> bytes:
    buffer: Any = io.BytesIO()  # torch accepts it, though its annotation does not
    axes = {INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}} if dynamic_batch else None
    torch.onnx.export(
        _OneInput(network).eval(),
        (example,),
        buffer,
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_axes=axes,
    )
    return buffer.getvalue()


def _capture(network: nn.Module, example: Tensor, dynamic_batch: bool) -> bytes:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
    )
    assert program is not None  # torch returns None only if it writes to a file itself
    model = program.model_proto
    # The metadata holds stack traces of the exporting machine.
    for node in model.graph.node:
        del node.metadata_props[:]
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
