"""What is asked of an operation of the user's own, found by trying it at each kind of layer it fits."""

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
    """``fits``; an operation of the user's own is also built and run once for each kind of layer.

    Args:
        teacher: the layer's own module, left unchanged.

    Raises:
        UserError: where its code fails, or its candidate does not keep the layer's output shape and batch,
            answers otherwise the second time in evaluation mode, changes its input, or has weights that
            its answer does not depend on; it names the operation and the layer.
    """
    if op.is_ours:
        return fits(op, layer, teacher)
    try:
        suits = fits(op, layer, teacher)
    except Exception as error:  # of the user's code
        raise _failure(op, layer, "its fits() fails", error) from error
    key = (op.key, layer.place, layer.name if op.of_teacher else "")
    if suits and key not in _checked:
        _try(op, layer, teacher)
        _checked.add(key)
    return suits


def _failure(op: Op, layer: Layer, what: str, error: Exception | None = None) -> UserError:
    reason = f": {type(error).__name__}: {' '.join(str(error).split())}" if error else ""
    return UserError(f"operation {op.name!r} at layer {layer.name}: {what}{reason}")


def _try(op: Op, layer: Layer, teacher: nn.Module) -> None:
    try:
        module = build_op(op, layer, seed=0, teacher=teacher)
    except UserError:
        raise
    except Exception as error:  # of the user's code
        raise _failure(op, layer, "its constructor fails", error) from error
    module = module.cpu()
    inputs = torch.randn(_BATCH, *layer.input_shape, generator=torch.Generator().manual_seed(0))
    given = inputs.clone()
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.no_grad():
                first, second = module.eval()(inputs), module(inputs)
            with torch.enable_grad():
                trained = module.train()(given.clone())
        except Exception as error:  # of the user's code
            shape = [_BATCH, *layer.input_shape]
            raise _failure(op, layer, f"its module fails on an input of shape {shape}", error) from error
    wrong = _wrong(layer, first, second) or _wrong(layer, trained, trained)
    if wrong:
        raise _failure(op, layer, wrong)
    if not torch.equal(inputs, given):
        raise _failure(op, layer, "its module changes its input; let it work on a copy")
    if any(weight.requires_grad for weight in module.parameters()) and not trained.requires_grad:
        raise _failure(op, layer, "its answer does not depend on its weights, so it cannot be trained")


def _wrong(layer: Layer, answer: Any, again: Any) -> str:
    """What is wrong with a candidate's answers to the same input; empty where nothing is."""
    if not isinstance(answer, Tensor):
        return f"its module returns {type(answer).__name__}, not a tensor"
    wanted = (_BATCH, *layer.output_shape)
    if tuple(answer.shape) != wanted:
        return f"its module answers an input of shape {[_BATCH, *layer.input_shape]} with shape " + (
            f"{list(answer.shape)}; the layer's output is {list(wanted)}"
        )
    if answer.dtype != torch.float32:
        return f"its module answers in {answer.dtype}, not torch.float32"
    if not answer.isfinite().all():
        return "its module answers with numbers that are not finite"
    if not torch.equal(answer, again):
        return "its module in evaluation mode answers the same input differently each time"
    return ""
