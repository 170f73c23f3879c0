"""Checks of the user's own operations: each is built and run once for every kind of layer that it fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.errors import UserError
from lana_ray.networks.layers import Layer
from lana_ray.ops.registry import Op, build_op, fits

_BATCH = 3
_checked: set[tuple[Any, ...]] = set()


def fits_and_works(op: Op, layer: Layer, teacher: nn.Module) -> bool:
    """Returns ``fits``; also builds and runs an operation of the user's own, once for each kind of layer.

    Args:
        teacher: the layer's own module, left unchanged.

    Raises:
        UserError: naming the operation and the layer, if its code fails, or if its candidate does not keep
            the layer's output shape and batch, gives two answers to one input in evaluation mode, changes
            its input, or has weights that its answer does not depend on.
    """
    if op.is_ours:
        return fits(op, layer, teacher)
    try:
        suits = fits(op, layer, teacher)
    except Exception as error:  # raised by the user's code
        raise _failure(op, layer, "its fits() fails", error) from error
    key = (op.key, layer.place, layer.name if op.of_teacher else "")
    if suits and key not in _checked:
        _try(op, layer, teacher)
        _checked.add(key)
    return suits


def _failure(op: Op, layer: Layer, what: str, error: Exception | None = None) -> UserError:
    reason = f": {type(error).__name__}: {' '.join(str(error).split())}" if error else ""
    return UserError("invalid_extension", f"operation {op.name!r} at layer {layer.name}: {what}{reason}")


def _try(op: Op, layer: Layer, teacher: nn.Module) -> None:
    try:
        module = build_op(op, layer, seed=0, teacher=teacher)
    except UserError:
        raise
    except Exception as error:  # raised by the user's code
        raise _failure(op, layer, "its constructor fails", error) from error
    module = module.cpu()
    inputs = torch.randn(_BATCH, *layer.input_shape, generator=torch.Generator().manual_seed(0))
    original = inputs.clone()
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.no_grad():
                first, second = module.eval()(inputs), module(inputs)
            with torch.enable_grad():
                trained = module.train()(original.clone())
        except Exception as error:  # raised by the user's code
            shape = [_BATCH, *layer.input_shape]
            raise _failure(op, layer, f"its module fails on an input of shape {shape}", error) from error
    problem = _problem(layer, first, second) or _problem(layer, trained, trained)
    if problem:
        raise _failure(op, layer, problem)
    if not torch.equal(inputs, original):
        raise _failure(op, layer, "its module changes its input; let it work on a copy")
    if any(weight.requires_grad for weight in module.parameters()) and not trained.requires_grad:
        raise _failure(op, layer, "its output does not depend on its weights, so it cannot be trained")


def _problem(layer: Layer, output: Any, again: Any) -> str:
    """Describes what is wrong with a candidate's two outputs for the same input; empty if nothing is."""
    if not isinstance(output, Tensor):
        return f"its module returns {type(output).__name__}, not a tensor"
    expected = (_BATCH, *layer.output_shape)
    if tuple(output.shape) != expected:
        return f"its module maps an input of shape {[_BATCH, *layer.input_shape]} to shape " + (
            f"{list(output.shape)}; the layer's output is {list(expected)}"
        )
    if output.dtype != torch.float32:
        return f"its module returns {output.dtype}, not torch.float32"
    if not output.isfinite().all():
        return "its module returns numbers that are not finite"
    if not torch.equal(output, again):
        return "its module in evaluation mode returns different outputs for the same input"
    return ""
