"""Operations by name: declared once by a family's constructor, written like ``mbconv_e3_k3`` everywhere else.

A family registers a constructor and the parameters it takes; a new one is a small file::

    @register("conv", parameters={"k": odd})
    def conv(layer: Layer, *, act: Activation, k: int) -> nn.Module:
        '''One convolution.'''
        return nn.Conv2d(layer.in_channels, layer.out_channels, k, layer.stride, k // 2)

A parameter's name is its letters in the operation's name; one with a default is left out of the name where
it has that value. What a constructor returns keeps the layer's input and output shape, and its input added
where ``layer.residual`` says so (DESIGN 2.3). Its arguments come checked; ``act`` builds the activation.

Images are always [N, C, H, W] and tokens [N, T, D], whatever the network's layout: in a layer of another one
the candidate is put between two permutations. ``blocks.conv_bn(..., strided=layer)`` takes over the layer's
stride together with its padding, which may be on one side only.

Operations of your own need no change here. A file, ``my_ops.py``, with the lines above and what they use::

    from torch import nn

    from lana_ray.networks.layers import Layer
    from lana_ray.ops.registry import Activation, odd, register

and the configuration that names the file, relative to itself, and the operations wanted::

    pool: {modules: [my_ops.py], ops: [identity, conv_k3, conv_k5, mbconv_e3_k3]}

The file is run in every process that takes part, so it must be there on every node, as that of
``teacher.factory``. Where its content changes, costs and candidates of its operations are made anew.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lana_ray.errors import UserError
from lana_ray.networks.factories import import_file
from lana_ray.networks.layers import Layer
from lana_ray.networks.layouts import Layout, Rearranged
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.method import closure, code_version

Activation = Callable[[], nn.Module]
Constructor = Callable[..., nn.Module]
Kind = Callable[[float], float]

TEACHER = "teacher"
"""The family of the layer's own module."""


@dataclass(frozen=True)
class Family:
    """What ``register`` keeps of a family."""

    build: Constructor
    parameters: Mapping[str, Kind]
    defaults: Mapping[str, float]
    fits: Callable[..., bool]
    of_teacher: bool
    any_layout: bool
    own: bool
    """One of lana_ray's, whose candidates need no check."""
    source: str = ""
    """Identity of the user's file it comes from; empty for our own."""


_FAMILIES: dict[str, Family] = {}
_FILES: set[Path] = set()


@dataclass(frozen=True)
class Op:
    """One operation of the pool: a family and its parameters, those equal to a default left out."""

    family: str
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Canonical: ``parse_op(op.name) == op``."""
        return "_".join([self.family, *(f"{key}{_written(value)}" for key, value in self.parameters.items())])

    @property
    def key(self) -> str:
        """Identity: the name and, for an operation from a user's file, what the file says."""
        source = _FAMILIES[self.family].source
        return f"{self.name} {source}" if source else self.name

    @property
    def of_teacher(self) -> bool:
        """Made of the layer's own module, and so another structure in each layer."""
        return _FAMILIES[self.family].of_teacher

    @property
    def is_ours(self) -> bool:
        """Comes with lana_ray, not from the user."""
        return _FAMILIES[self.family].own

    def __str__(self) -> str:
        return self.name


def is_image_layer(layer: Layer) -> bool:
    """Maps images to images with a whole stride, as padded convolutions can."""
    if not layer.is_image or layer.offset is None:
        return False
    sizes = zip(layer.input_size, layer.output_size, strict=True)
    return all(after == math.ceil(before / layer.stride) for before, after in sizes)


_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z]+)*")
_LETTERS = re.compile(r"[a-z]+")


def register(
    name: str,
    *,
    parameters: Mapping[str, Kind] | None = None,
    fits: Callable[..., bool] = is_image_layer,
    of_teacher: bool = False,
    any_layout: bool = False,
) -> Callable[[Constructor], Constructor]:
    """Makes a constructor known as a family of operations.

    Args:
        name: lower-case words joined by ``_``; digits in the first word only, since later ones would read
            as parameters.
        parameters: the constructor's parameters that belong to the name, in the name's order, each with
            the check it must pass (``odd``, ``count``, ``positive``, ``fraction``). Lower-case letters.
        fits: the layers the family can stand in for.
        of_teacher: made of the layer's own module, which the constructor is given as ``teacher``. So is
            ``fits``, with the parameters. The layer comes as it is, whatever its layout.
        any_layout: works on any arrangement of axes; the layer comes as it is.

    Raises:
        ValueError: for a name or a parameter that could not be read back, and a constructor that cannot be
            called with what belongs to the name.
    """
    kinds = dict(parameters or {})

    def keep(build: Constructor) -> Constructor:
        defaults = _check_declaration(name, kinds, build, of_teacher)
        own = getattr(build, "__module__", "").partition(".")[0] == __name__.partition(".")[0]
        _FAMILIES[name] = Family(build, kinds, defaults, fits, of_teacher, any_layout or of_teacher, own)
        return build

    return keep


def _check_declaration(
    name: str, kinds: Mapping[str, Kind], build: Constructor, of_teacher: bool
) -> dict[str, float]:
    """Raises ValueError as ``register``; returns the parameters' defaults."""
    if name in _FAMILIES:
        raise ValueError(f"operation {name!r} is registered already")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"operation {name!r}: write its name as lower-case words joined by _, digits in the first only"
        )
    for parameter, kind in kinds.items():
        if not _LETTERS.fullmatch(parameter):
            raise ValueError(f"operation {name!r}: parameter {parameter!r} must be lower-case letters alone")
        if not callable(kind):
            raise ValueError(f"operation {name!r}: the check of {parameter!r} is {kind!r}, not a function")
    signature = inspect.signature(build)
    teacher = {"teacher": None} if of_teacher else {}
    try:
        signature.bind(None, act=None, **teacher, **dict.fromkeys(kinds))
    except TypeError as error:
        called = ", ".join(["layer", "act=…", *(f"{p}=…" for p in (*teacher, *kinds))])
        raise ValueError(
            f"operation {name!r}: its constructor cannot be called with ({called}): {error}"
        ) from None
    defaults = {
        p: signature.parameters[p].default
        for p in kinds
        if p in signature.parameters and signature.parameters[p].default is not inspect.Parameter.empty
    }
    for parameter, value in defaults.items():
        if not isinstance(value, int | float):
            raise ValueError(f"operation {name!r}: {parameter}={value!r} is no number to be left out")
    return defaults


def register_files(files: Sequence[str]) -> None:
    """Runs Python files that register families of their own; each once in a process, however often asked.

    Raises:
        UserError: for a file that is missing, fails or registers a name that is taken. Nothing of it is kept.
    """
    for file in (Path(file).resolve() for file in files):
        if file in _FILES:
            continue
        before = dict(_FAMILIES)
        try:
            module = import_file(file)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            _FAMILIES.clear()
            _FAMILIES.update(before)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"pool.modules: {file}: {reason}") from error
        source = code_version(closure([file], file.parent), file.parent)
        for name, family in _FAMILIES.items():
            # The file may have been run before, as that of teacher.factory.
            if name not in before or family.build.__module__ == module.__name__:
                _FAMILIES[name] = replace(family, source=source)
        _FILES.add(file)


def families() -> tuple[str, ...]:
    """Names of all families known, ``teacher`` first."""
    return tuple(_FAMILIES)


def odd(value: float) -> float:
    """A kernel size: 1, 3, 5, …"""
    if value != int(value) or value % 2 != 1:
        raise ValueError(f"{value:g} must be an odd whole number")
    return int(value)


def count(value: float) -> float:
    """1, 2, 3, …"""
    if value != int(value) or value < 1:
        raise ValueError(f"{value:g} must be a whole number from 1")
    return int(value)


def positive(value: float) -> float:
    """A width or an expansion, relative to the layer's channels."""
    if value <= 0:
        raise ValueError(f"{value:g} must be greater than 0")
    return value


def fraction(value: float) -> float:
    """A share, 0 meaning none."""
    if value > 1:
        raise ValueError(f"{value:g} must be at most 1")
    return value


def parse_op(name: str) -> Op:
    """Reads an operation's name; parameters may come in any order.

    Raises:
        UserError: for an unknown family (with the nearest known one) or parameter, a missing parameter or
            an impossible value.
    """
    family = max((f for f in families() if f"{name}_".startswith(f"{f}_")), key=len, default=None)
    if family is None:
        near = difflib.get_close_matches(re.sub(r"(_[a-z]+[\d.]+)+$", "", name), families(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown operation {name!r}; {hint}known: {', '.join(families())}")
    given: dict[str, float] = {}
    for part in name[len(family) :].split("_")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d{1,6}(?:\.\d{1,12})?)", part)
        if match is None or match[1] in given:
            raise UserError(f"operation {name!r}: cannot read {part!r}; {_usage(family)}")
        given[match[1]] = float(match[2])
    kinds, defaults = _FAMILIES[family].parameters, _FAMILIES[family].defaults
    for key in given:
        if key not in kinds:
            raise UserError(f"operation {name!r}: unknown parameter {key!r}; {_usage(family)}")
    for key in kinds:
        if key not in given and key not in defaults:
            raise UserError(f"operation {name!r}: parameter {key!r} is missing; {_usage(family)}")
    checked: dict[str, float] = {}
    for key in (key for key in kinds if key in given):
        try:
            value = kinds[key](given[key])
        except ValueError as error:
            raise UserError(f"operation {name!r}: {key} {error}") from None
        if value != defaults.get(key):
            checked[key] = value
    return Op(family, checked)


def fits(op: Op, layer: Layer, teacher: nn.Module | None = None) -> bool:
    """Whether the operation can stand in for the layer.

    Args:
        teacher: the layer's own module; what is made of it fits nothing without.
    """
    family = _FAMILIES[op.family]
    if family.of_teacher:
        return teacher is not None and family.fits(layer, teacher=teacher, **op.parameters)
    if family.any_layout:
        return family.fits(layer)
    return layer.layout is not Layout.UNKNOWN and family.fits(layer.usual)


def build_op(
    op: Op, layer: Layer, *, seed: int, act: Activation = nn.ReLU, teacher: nn.Module | None = None
) -> nn.Module:
    """The candidate as a module, on the CPU and in training mode.

    The weights depend on the operation, the layer and the seed alone, or on the teacher's for what is made
    of it; torch's global generator is left as it was.

    Args:
        act: builds the activations, those of the teacher for instance.
        teacher: the layer's own module, left unchanged.

    Raises:
        ValueError: when the operation does not fit the layer, or is made of a teacher that is missing.
        UserError: when its constructor does not return a module.
    """
    family = _FAMILIES[op.family]
    if family.of_teacher and teacher is None:
        raise ValueError(f"layer {layer.name}: the operation {op.name!r} needs the layer's module")
    if not fits(op, layer, teacher):
        shapes = f"{layer.input_shape} to {layer.output_shape}"
        raise ValueError(f"layer {layer.name}: {op} cannot be made for it, which maps {shapes}")
    own = {"teacher": teacher} if family.of_teacher else {}
    key = fingerprint(op.name, layer.name, *layer.place, seed)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int(key, 16) >> 1)
        given = layer if family.any_layout else layer.usual
        candidate = family.build(given, act=act, **own, **op.parameters)
    if not isinstance(candidate, nn.Module):
        raise UserError(f"layer {layer.name}: operation {op} is {type(candidate).__name__}, not a module")
    return candidate if given is layer else Rearranged(candidate, layer.layout)


def count_weights(op: Op, layer: Layer) -> int:
    """Weights of the candidate, counted without making them; 0 for what is made of the layer's own module."""
    if op.of_teacher:
        return 0
    # A constructor of the user's own may compute with its weights, which meta tensors cannot.
    device = "meta" if op.is_ours else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        candidate = _FAMILIES[op.family].build(layer.usual, act=nn.ReLU, **op.parameters)
    return sum(weight.numel() for weight in candidate.parameters())


def is_trained(op: Op, layer: Layer, teacher: nn.Module) -> bool:
    """Whether the candidate has weights that distillation trains: the layer itself or a pooling has none.

    Args:
        teacher: the layer's own module.
    """
    if op.is_ours:
        return op.family not in (TEACHER, "identity")
    candidate = build_op(op, layer, seed=0, teacher=teacher)
    return any(weight.requires_grad for weight in candidate.parameters())


@register(TEACHER, fits=lambda layer, teacher: True, of_teacher=True)
def teacher(layer: Layer, *, act: Activation, teacher: nn.Module) -> nn.Module:
    """A copy of the layer itself."""
    return copy.deepcopy(teacher).train()


def _usage(family: str) -> str:
    if not _FAMILIES[family].parameters:
        return f"{family} takes no parameters"
    known = _FAMILIES[family]
    needed = "".join(f"_{key}…" for key in known.parameters if key not in known.defaults)
    optional = "".join(f"[_{key}…]" for key in known.parameters if key in known.defaults)
    return f"write {family}{needed}{optional}"


def _written(value: float) -> str:
    return str(np.format_float_positional(value, trim="-"))
