"""Tries a teacher before anything is measured or trained, so that no later stage fails on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.config import Config
from lana_ray.data import ImageData
from lana_ray.deploy import to_onnx, to_program
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.errors import UserError, one_line
from lana_ray.networks.factories import seeded
from lana_ray.networks.layers import evaluating
from lana_ray.networks.preparation import example_images, memory_format, run
from lana_ray.networks.shortcuts import check_shortcuts
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.workspace import find_space, reached_parameters

_SMALL = 128
"""Image size, pixels, to which larger images are reduced for checks that do not depend on it."""

_TRIES = 3
"""Steps in training mode that are tried, since networks with layer drop skip other parts each time."""


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """The result of checking a teacher that every stage can use."""

    space: LayerwiseSpace
    notes: tuple[str, ...]
    """Lines for the user on what is unusual about it but harmless."""


def check_teacher(
    config: Config,
    network: nn.Module,
    num_classes: int,
    images: Tensor | None = None,
    find: Callable[[Config, nn.Module], LayerwiseSpace] = find_space,
) -> TeacherCheck:
    """Checks the outputs, layers, training and export of a prepared network with a few passes.

    Args:
        network: a network in evaluation mode; remains unchanged.
        images: two images of the data, shape [2, 3, size, size], normalised; defaults to random ones.
        find: returns the space of the network's structure, or raises UserError.

    Raises:
        UserError: a check fails; the message names the tensor, layer or parameter, and the reason.
    """
    size = config.data.image_size
    images = (example_images(size) if images is None else images).contiguous()
    network = copy.deepcopy(network).to(memory_format=memory_format(network))
    _check_tensors(network)
    answers = check_outputs(network, images, num_classes)
    _check_finite(network, images, answers)
    space = find(config, network)
    small = _small(network, images, num_classes)
    _check_independence(network, small, check_outputs(network, small, num_classes))
    check_shortcuts(network, space.layers, small)
    notes = tuple(_check_training(network, small, num_classes))
    _check_export(config, network, images, answers)
    return TeacherCheck(space=space, notes=notes)


def _refusal(reason: str) -> UserError:
    return UserError("unsupported_network", f"teacher: {reason}")


def first_images(data: ImageData) -> Tensor | None:
    """Returns two images of the data, shape [2, 3, size, size]; None if they do not decode."""
    images, _ = next(data.batches("train", batch_size=2, max_images=2), (torch.zeros(0), None))
    return images if len(images) == 2 else None


def check_outputs(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Logits for a batch [N, 3, H, W]; raises UserError unless they are floats [N, num_classes]."""
    return _checked(run(network, images), len(images), num_classes)


def _checked(answers: Any, count: int, num_classes: int, mode: str = "") -> Tensor:
    """Returns logits [count, num_classes]; raises UserError for anything else, in a mode to be named."""
    if not isinstance(answers, Tensor):
        keys = f" with {', '.join(map(str, answers))}" if isinstance(answers, dict) else ""
        raise _refusal(
            f"returns {type(answers).__name__}{keys}{mode}; make its forward return only the "
            f"logits, a tensor [images, {num_classes}]"
        )
    if list(answers.shape) != [count, num_classes]:
        raise _refusal(
            f"returns a tensor {list(answers.shape)}{mode}, but the data has {num_classes} classes; "
            f"make its forward return {[count, num_classes]}"
        )
    if not answers.is_floating_point():
        raise _refusal(f"returns {answers.dtype}{mode}; make its forward return the logits")
    return answers


def _check_tensors(network: nn.Module) -> None:
    """Raises UserError for a parameter or buffer with NaN, or a parameter with infinity."""
    parameters = {name for name, _ in network.named_parameters()}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() or tensor.is_complex():
            # Buffers may contain infinity, as the masks of attention do.
            valid = tensor.isfinite() if name in parameters else ~tensor.isnan()
            if count := int((~valid).sum()):
                raise _refusal(
                    f"its tensor {name} has {count} values that are NaN or infinite; "
                    "use the weights of a training that did not diverge"
                )


def _check_finite(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Raises UserError for NaN or infinity in the answers; it names the first module that returns them."""
    if answers.isfinite().all():
        return
    not_finite: list[str] = []

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                not_finite.append(name)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in network.named_modules() if name]
    run(network, images)
    for handle in handles:
        handle.remove()
    where = f", first in module {not_finite[0]}" if not_finite else ""
    raise _refusal(f"returns NaN or infinity{where}; check its weights, data.mean and data.std")


def _small(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Returns the images, reduced to ``_SMALL`` pixels if the network takes that size, to save time."""
    if images.shape[-1] <= _SMALL:
        return images
    small = nn.functional.interpolate(images, size=(_SMALL, _SMALL), mode="bilinear", antialias=True)
    try:
        with torch.no_grad():
            answers = network(small)
    except Exception:  # the network may take one size only
        return images
    fits = isinstance(answers, Tensor) and list(answers.shape) == [len(images), num_classes]
    return small if fits else images


def _check_independence(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Raises UserError if an image's answer depends on its batch or on the layout in memory."""
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    alone = torch.cat([run(plain, images[i : i + 1]) for i in range(len(images))])
    if _agree(alone, answers):
        return
    if not _agree(run(plain, images), answers):
        raise _refusal(
            "its answers change with the memory layout channels-last; make its forward independent of strides"
        )
    norms = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats
    ]
    cause = f"; its norm {norms[0]} has no running statistics" if norms else ""
    raise _refusal(
        f"its answer to an image depends on the other images in the batch{cause}; "
        "make its forward treat each image alone"
    )


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))


def _check_training(network: nn.Module, images: Tensor, num_classes: int) -> Iterator[str]:
    """Tries steps in training mode; yields a line on everything unusual about them but harmless."""
    trainable = reached_parameters(network, images)
    if not trainable:
        raise _refusal("no gradient reaches its parameters; remove no_grad and detach from its forward")
    unused = [name for name, _ in network.named_parameters() if name not in trainable]
    if unused:
        yield f"its answers do not depend on {list_parameters(unused)}, which training does not change"
    silent = trainable
    for seed in range(_TRIES):
        missed = _without_gradient(network, images, num_classes, trainable, seed)
        silent &= missed
        if not missed:
            return
    names = [name for name, _ in network.named_parameters() if name in silent]
    if names:
        raise _refusal(
            f"no gradient reaches {list_parameters(names)} in training mode; make its forward use "
            "them in that mode too, or create them with requires_grad=False"
        )
    yield "in training mode its forward skips parts at random"


def _without_gradient(
    network: nn.Module, images: Tensor, num_classes: int, trainable: Collection[str], seed: int
) -> set[str]:
    """Returns the parameters that get no gradient in a step in training mode, on a copy of the network."""
    trial = copy.deepcopy(network).train()
    parameters = {name: p for name, p in trial.named_parameters() if name in trainable}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        with seeded(seed):
            output = trial(images)
            # Auxiliary classifiers follow the logits in a tuple.
            answers = output[0] if isinstance(output, tuple) else output
            logits = _checked(answers, len(images), num_classes, " in training mode")
            loss = nn.functional.cross_entropy(logits, torch.arange(len(images)) % num_classes)
            loss.backward()  # type: ignore[no-untyped-call]
    except UserError:
        raise
    except Exception as error:  # the network's code may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise _refusal(
            f"fails in training mode on a batch of {len(images)} ({reason}); fix its forward"
        ) from error
    wrong = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    if wrong:
        raise _refusal(
            f"the gradient of {wrong[0]} is NaN or infinite on the first images; "
            "check its weights, data.mean and data.std"
        )
    return {name for name, p in parameters.items() if p.grad is None}


def list_parameters(names: Sequence[str]) -> str:
    """Returns the names of parameters for a message, at most two."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"the parameters {', '.join(names[:2])}{more}" if len(names) > 1 else f"the parameter {names[0]}"


def _check_export(config: Config, network: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Raises UserError if the network cannot be exported for the registry, or to ONNX for a target."""
    plain = network.to(memory_format=torch.contiguous_format)
    program = to_program(plain, images, dynamic_batch=True)
    if not _agree(run(program, images[:1]), answers[:1]):
        raise UserError(
            "unsupported_network",
            f"{type(network).__name__}: its answers change when torch.export exports it; make its forward "
            "independent of the values and the number of its images",
        )
    onnx = [target for target in config.targets if RUNTIMES[target.runtime].loads_onnx]
    if onnx:
        try:
            with evaluating(plain):
                to_onnx(plain, images[:1], dynamic_batch=False)
        except UserError as error:
            raise UserError(error.code, f"target {onnx[0].name!r}: {error}") from None
        except Exception as error:  # the traced code of the network may raise anything
            raise UserError(
                "unsupported_network",
                f"target {onnx[0].name!r}: {type(network).__name__} cannot be exported to ONNX "
                f"({type(error).__name__}: {one_line(error)}); use the runtime torch",
            ) from error
