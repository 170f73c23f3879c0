"""What is tried of a teacher before anything is measured or trained: all that a later stage would fail on."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
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
"""Pixels: larger images are made so small where the network allows it and their size does not matter."""

_TRIES = 3  # of a step in training mode: networks with layer drop leave other parts out each time


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A teacher that every stage can work with."""

    space: LayerwiseSpace
    notes: tuple[str, ...]
    """What is odd about it and does no harm, for people."""


def check_teacher(
    config: Config, network: nn.Module, num_classes: int, images: Tensor | None = None
) -> Checked:
    """Tries a prepared network in a few passes: what it answers, its layers, training and export.

    Args:
        network: in evaluation mode, left unchanged.
        images: two of the data's, shape [2, 3, size, size], normalised; by default random ones.

    Raises:
        UserError: in one line, the tensor, layer or parameter that does not fit, and why.
    """
    size = config.data.image_size
    images = (example_images(size) if images is None else images).contiguous()
    network = copy.deepcopy(network).to(memory_format=memory_format(network))
    _check_tensors(network)
    answers = check_outputs(network, images, num_classes)
    _check_finite(network, images, answers)
    space = find_space(config, network)
    small = _small(network, images, num_classes)
    _check_independence(network, small, check_outputs(network, small, num_classes))
    check_shortcuts(network, space.layers, small)
    notes = tuple(_check_training(network, small, num_classes))
    _check_export(config, network, images, answers)
    return Checked(space=space, notes=notes)


def first_images(data: ImageData) -> Tensor | None:
    """Two images of the data, None if they do not decode."""
    images, _ = next(data.batches("train", batch_size=2, max_images=2), (torch.zeros(0), None))
    return images if len(images) == 2 else None


def check_outputs(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """The network's answers to a batch [N, 3, H, W].

    Raises:
        UserError: unless they are a tensor [N, num_classes].
    """
    answers = run(network, images)
    _check_shape(answers, len(images), num_classes, "")
    assert isinstance(answers, Tensor)
    return answers


def _check_shape(answers: Any, count: int, num_classes: int, mode: str) -> None:
    if not isinstance(answers, Tensor):
        keys = f" with {', '.join(map(str, answers))}" if isinstance(answers, dict) else ""
        raise UserError(
            f"teacher: answers{mode} with {type(answers).__name__}{keys}; let its forward return the logits "
            f"alone, a tensor [images, {num_classes}]"
        )
    if list(answers.shape) != [count, num_classes]:
        raise UserError(
            f"teacher: answers{mode} with {list(answers.shape)} where the data has {num_classes} classes; "
            f"{[count, num_classes]} is expected"
        )
    if not answers.is_floating_point():
        raise UserError(f"teacher: answers{mode} with {answers.dtype}; let its forward return the logits")


def _check_tensors(network: nn.Module) -> None:
    parameters = {name for name, _ in network.named_parameters()}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() or tensor.is_complex():
            # infinity may stand in a buffer, as masks of attention have it
            sound = tensor.isfinite() if name in parameters else ~tensor.isnan()
            if not sound.all():
                count = int((~sound).sum())
                raise UserError(
                    f"teacher: its tensor {name} has {count} values that are NaN or infinite; "
                    "give the weights of a training that did not diverge"
                )


def _check_finite(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Names the first module that makes numbers which are none of numbers which are."""
    if answers.isfinite().all():
        return
    blamed: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                blamed.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    run(network, images)
    for handle in handles:
        handle.remove()
    where = f"; the first module that does is {blamed[0]}" if blamed else ""
    raise UserError(
        f"teacher: answers with NaN or infinity{where}; check its weights, data.mean and data.std"
    )


def _small(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """The images at a size that passes of a large network take little time at, if it runs on such."""
    if images.shape[-1] <= _SMALL:
        return images
    small = nn.functional.interpolate(images, size=(_SMALL, _SMALL), mode="bilinear", antialias=True)
    try:
        with torch.no_grad():
            answers = network(small)
    except Exception:  # of a network that is made for one size
        return images
    fits = isinstance(answers, Tensor) and list(answers.shape) == [len(images), num_classes]
    return small if fits else images


def _check_independence(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Each image alone must get the answer that it gets in a batch, whatever the layout in memory."""
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    alone = torch.cat([run(plain, images[i : i + 1]) for i in range(len(images))])
    if _agree(alone, answers):
        return
    if not _agree(run(plain, images), answers):
        raise UserError(
            "teacher: answers otherwise where its weights lie in memory channels-last; "
            "its forward must not depend on strides"
        )
    norms = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats
    ]
    cause = f"; its norm {norms[0]} has no running statistics" if norms else ""
    raise UserError(f"teacher: what it answers to an image depends on the others in its batch{cause}")


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().max()))


def _check_training(network: nn.Module, images: Tensor, num_classes: int) -> Iterator[str]:
    """Steps in training mode; yields what is odd about them and does no harm."""
    trainable = reached_parameters(network, images)
    if not trainable:
        raise UserError(
            "teacher: no gradient reaches its parameters; its forward must not run under no_grad or detach"
        )
    unused = [name for name, _ in network.named_parameters() if name not in trainable]
    if unused:
        yield f"its answers do not depend on {list_parameters(unused)}, which training leaves alone"
    silent = trainable
    for seed in range(_TRIES):
        missed = _without_gradient(network, images, num_classes, trainable, seed)
        silent &= missed
        if not missed:
            return
    names = [name for name, _ in network.named_parameters() if name in silent]
    if names:
        raise UserError(
            f"teacher: no gradient reaches {list_parameters(names)} in training mode; let its "
            "forward use them there too, or make them with requires_grad=False"
        )
    yield "in training mode its forward leaves parts out at random"


def _without_gradient(
    network: nn.Module, images: Tensor, num_classes: int, trainable: Collection[str], seed: int
) -> set[str]:
    """The parameters that a step in training mode, on a copy, gives no gradient."""
    trial = copy.deepcopy(network).train()
    parameters = {name: p for name, p in trial.named_parameters() if name in trainable}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        with seeded(seed):
            given = trial(images)
            answers = given[0] if isinstance(given, tuple) else given  # auxiliary classifiers follow
            _check_shape(answers, len(images), num_classes, " in training mode")
            loss = nn.functional.cross_entropy(answers, torch.arange(len(images)) % num_classes)
            loss.backward()  # type: ignore[no-untyped-call]
    except UserError:
        raise
    except Exception as error:  # of the network's own code
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"teacher: fails in training mode on a batch of {len(images)} ({reason})") from error
    wrong = [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    if wrong:
        raise UserError(f"teacher: the gradient of {wrong[0]} is NaN or infinite on the first images")
    return {name for name, p in parameters.items() if p.grad is None}


def list_parameters(names: Sequence[str]) -> str:
    """Names of parameters in a message, two at most."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"the parameters {', '.join(names[:2])}{more}" if len(names) > 1 else f"the parameter {names[0]}"


def _check_export(config: Config, network: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Exports the network as registering does, and as ONNX where a runtime of the targets loads that."""
    plain = network.to(memory_format=torch.contiguous_format)
    program = to_program(plain, images, dynamic_batch=True)
    if not _agree(run(program, images[:1]), answers[:1]):
        raise UserError(
            f"{type(network).__name__}: exported by torch.export it answers otherwise; its forward must not "
            "depend on the values or the number of its images"
        )
    onnx = [target for target in config.targets if RUNTIMES[target.runtime].loads_onnx]
    if onnx:
        try:
            with evaluating(plain):
                to_onnx(plain, images[:1], dynamic_batch=False)
        except UserError as error:
            raise UserError(f"target {onnx[0].name!r}: {error}") from None
        except Exception as error:  # of the network's own code, which is traced
            raise UserError(
                f"target {onnx[0].name!r}: {type(network).__name__} cannot be exported to ONNX "
                f"({type(error).__name__}: {one_line(error)}); use the runtime torch"
            ) from error
