"""Operations by name: a constructor declares a family, and names such as ``mbconv_e3_k3`` refer to it.

A family registers a constructor and its parameters; a new one is a small file::

    @register("conv", parameters={"k": odd})
    def conv(layer: Layer, *, act: Activation, k: int) -> nn.Module:
        '''One convolution.'''
        return nn.Conv2d(layer.in_channels, layer.out_channels, k, layer.stride, k // 2)

A parameter's name is its letters in the operation's name; a parameter at its default value is left out of
the name. The module that a constructor returns keeps the layer's input and output shapes, and adds its
input if ``layer.residual`` is set. The arguments are checked beforehand; ``act`` builds the
activation.

Images are always [N, C, H, W] and tokens [N, T, D], whatever the network's layout: in a layer of another
layout the candidate is put between two permutations. ``blocks.conv_bn(..., strided=layer)`` takes over the
layer's stride together with its padding, which may be on one side only.

To add operations of your own, write a file ``my_ops.py`` with the lines above and their imports::

    from torch import nn

    from lana_ray.networks.layers import Layer
    from lana_ray.ops.registry import Activation, odd, register

and name the file, relative to the configuration, and the operations in the configuration::

    pool: {modules: [my_ops.py], ops: [identity, conv_k3, conv_k5, mbconv_e3_k3]}

Every process of the run executes the file, so it must exist on every node, like that of ``teacher.factory``.
If its content changes, its operations are measured and distilled again.
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

from lana_ray.errors import Code, UserError
from lana_ray.networks.factories import import_file
from lana_ray.networks.layers import Layer
from lana_ray.networks.layouts import Layout, Rearranged
from lana_ray.registries import Registry
from lana_ray.run_dir.code_version import closure, code_version
from lana_ray.run_dir.fingerprint import fingerprint

Activation = Callable[[], nn.Module]
Constructor = Callable[..., nn.Module]
Kind = Callable[[float], float]

TEACHER = "teacher"
"""The family of the layer's own module."""


@dataclass(frozen=True)
class Family:
    """A registered family of operations: its constructor and what ``register`` was called with."""

    name: str
    build: Constructor
    parameters: Mapping[str, Kind]
    defaults: Mapping[str, float]
    fits: Callable[..., bool]
    of_teacher: bool
    any_layout: bool
    own: bool
    """Whether the family is part of lana_ray, so that its candidates need no check."""
    source: str = ""
    """Identity of the user's file that registered the family; empty for our own."""


FAMILIES: Registry[Family] = Registry("operation")
"""All families by name, ``teacher`` first."""
_FILES: set[Path] = set()


@dataclass(frozen=True)
class Op:
    """One operation of the pool: a family and those of its parameters that differ from their defaults."""

    family: str
    parameters: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The canonical name: ``parse_op(op.name) == op``."""
        return "_".join([self.family, *(f"{key}{_written(value)}" for key, value in self.parameters.items())])

    @property
    def key(self) -> str:
        """The identity: the name and, for an operation from a user's file, a hash of the file's content."""
        source = FAMILIES[self.family].source
        return f"{self.name} {source}" if source else self.name

    @property
    def of_teacher(self) -> bool:
        """Whether it is made from the layer's own module, so that its structure differs between layers."""
        return FAMILIES[self.family].of_teacher

    @property
    def is_ours(self) -> bool:
        """Whether it is part of lana_ray, not the user's own."""
        return FAMILIES[self.family].own

    def __str__(self) -> str:
        return self.name


def is_image_layer(layer: Layer) -> bool:
    """Returns whether the layer maps images to images with a whole stride, as padded convolutions do."""
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
    """Registers a constructor as a family of operations.

    Args:
        name: lower-case words joined by ``_``; digits in the first word only, since later ones would read
            as parameters.
        parameters: the constructor's parameters that appear in the name, in that order, each with the
            check it must pass (``odd``, ``count``, ``positive``, ``fraction``); lower-case letters.
        fits: returns whether the family can replace a layer.
        of_teacher: the constructor also takes the layer's own module as ``teacher``, and ``fits`` takes it
            and the parameters. The layer is passed as it is, whatever its layout.
        any_layout: works on any arrangement of axes; the layer is passed as it is.

    Raises:
        ValueError: for a name or a parameter that could not be parsed back, and for a constructor that
            cannot be called with its parameters.
    """
    kinds = dict(parameters or {})

    def keep(build: Constructor) -> Constructor:
        defaults = _check_declaration(name, kinds, build, of_teacher)
        own = getattr(build, "__module__", "").partition(".")[0] == __name__.partition(".")[0]
        FAMILIES[name] = Family(name, build, kinds, defaults, fits, of_teacher, any_layout or of_teacher, own)
        return build

    return keep


def _check_declaration(
    name: str, kinds: Mapping[str, Kind], build: Constructor, of_teacher: bool
) -> dict[str, float]:
    """Checks the arguments of ``register`` and returns the parameters' defaults."""
    if name in FAMILIES:
        raise ValueError(f"operation {name!r} is registered already")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"operation {name!r}: write its name as lower-case words joined by _, digits in the first only"
        )
    for parameter, kind in kinds.items():
        if not _LETTERS.fullmatch(parameter):
            raise ValueError(
                f"operation {name!r}: parameter {parameter!r} must consist of lower-case letters only"
            )
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
            raise ValueError(f"operation {name!r}: the default {parameter}={value!r} is not a number")
    return defaults


def register_files(files: Sequence[str]) -> None:
    """Runs Python files that register families, each once per process; if one fails, raises UserError."""
    for file in (Path(file).resolve() for file in files):
        if file in _FILES:
            continue
        before = dict(FAMILIES)
        try:
            module = import_file(file)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            FAMILIES.clear()
            FAMILIES.update(before)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            code: Code = "invalid_extension" if file.exists() else "missing_file"
            raise UserError(code, f"pool.modules: {file}: {reason}") from error
        source = code_version(closure([file], file.parent), file.parent)
        for name, family in FAMILIES.items():
            # teacher.factory may be in the same file, which then was run before.
            if name not in before or family.build.__module__ == module.__name__:
                FAMILIES[name] = replace(family, source=source)
        _FILES.add(file)


def odd(value: float) -> float:
    """Checks a kernel size: 1, 3, 5, …"""
    if value != int(value) or value % 2 != 1:
        raise ValueError(f"{value:g} must be an odd whole number")
    return int(value)


def count(value: float) -> float:
    """Checks a number of things: 1, 2, 3, …"""
    if value != int(value) or value < 1:
        raise ValueError(f"{value:g} must be a whole number from 1")
    return int(value)


def positive(value: float) -> float:
    """Checks a width or an expansion, relative to the layer's channels."""
    if value <= 0:
        raise ValueError(f"{value:g} must be greater than 0")
    return value


def fraction(value: float) -> float:
    """Checks a share, 0 for none."""
    if value > 1:
        raise ValueError(f"{value:g} must be at most 1")
    return value


def parse_op(name: str) -> Op:
    """Parses an operation's name; parameters may be in any order.

    Raises:
        UserError: for an unknown family (with the nearest name) or parameter, a missing parameter or an
            impossible value.
    """
    matching = [family for family in FAMILIES if f"{name}_".startswith(f"{family}_")]
    if not matching:
        near = difflib.get_close_matches(re.sub(r"(_[a-z]+[\d.]+)+$", "", name), FAMILIES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError("unknown_name", f"unknown operation {name!r}; {hint}available: {', '.join(FAMILIES)}")
    family = FAMILIES[max(matching, key=len)]
    arguments: dict[str, float] = {}
    for part in name[len(family.name) :].split("_")[1:]:
        match = re.fullmatch(r"([a-z]+)(\d{1,6}(?:\.\d{1,12})?)", part)
        if match is None or match[1] in arguments:
            raise UserError("invalid_setting", f"operation {name!r}: cannot parse {part!r}; {_usage(family)}")
        arguments[match[1]] = float(match[2])
    kinds, defaults = family.parameters, family.defaults
    for key in arguments:
        if key not in kinds:
            raise UserError(
                "unknown_name", f"operation {name!r}: unknown parameter {key!r}; {_usage(family)}"
            )
    for key in kinds:
        if key not in arguments and key not in defaults:
            raise UserError(
                "invalid_setting", f"operation {name!r}: parameter {key!r} is missing; {_usage(family)}"
            )
    checked: dict[str, float] = {}
    for key in (key for key in kinds if key in arguments):
        try:
            value = kinds[key](arguments[key])
        except ValueError as error:
            raise UserError("invalid_setting", f"operation {name!r}: {key} {error}") from None
        if value != defaults.get(key):
            checked[key] = value
    return Op(family.name, checked)


def fits(op: Op, layer: Layer, teacher: nn.Module | None = None) -> bool:
    """Whether the operation can replace the layer; operations made from ``teacher`` fit none without it."""
    family = FAMILIES[op.family]
    if family.of_teacher:
        return teacher is not None and family.fits(layer, teacher=teacher, **op.parameters)
    if family.any_layout:
        return family.fits(layer)
    return layer.layout is not Layout.UNKNOWN and family.fits(layer.usual)


def build_op(
    op: Op, layer: Layer, *, seed: int, act: Activation = nn.ReLU, teacher: nn.Module | None = None
) -> nn.Module:
    """Builds the candidate as a module on the CPU, in training mode.

    The weights depend only on the operation, the layer and the seed, or on the teacher's if it is made from
    them; torch's global generator is left unchanged.

    Args:
        act: builds the activations, for instance the teacher's.
        teacher: the layer's own module, left unchanged.

    Raises:
        ValueError: if the operation does not fit the layer, or if it needs a teacher and none is passed.
        UserError: if its constructor does not return a module.
    """
    family = FAMILIES[op.family]
    if family.of_teacher and teacher is None:
        raise ValueError(f"layer {layer.name}: the operation {op.name!r} needs the layer's module")
    if not fits(op, layer, teacher):
        shapes = f"{layer.input_shape} to {layer.output_shape}"
        raise ValueError(f"layer {layer.name}: {op} does not fit a layer that maps {shapes}")
    extra = {"teacher": teacher} if family.of_teacher else {}
    key = fingerprint(op.name, layer.name, *layer.place, seed)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int(key, 16) >> 1)
        target = layer if family.any_layout else layer.usual
        candidate = family.build(target, act=act, **extra, **op.parameters)
    if not isinstance(candidate, nn.Module):
        raise UserError(
            "invalid_extension",
            f"operation {op.name!r} at layer {layer.name}: its constructor returned "
            f"{type(candidate).__name__}, not a torch Module",
        )
    return candidate if target is layer else Rearranged(candidate, layer.layout)


def count_weights(op: Op, layer: Layer) -> int:
    """Counts the candidate's weights without making them; 0 if it is made from the layer's own module."""
    if op.of_teacher:
        return 0
    # The constructor of a user's own operation may compute with its weights, which meta tensors cannot do.
    device = "meta" if op.is_ours else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        candidate = FAMILIES[op.family].build(layer.usual, act=nn.ReLU, **op.parameters)
    return sum(weight.numel() for weight in candidate.parameters())


def is_trained(op: Op, layer: Layer, teacher: nn.Module) -> bool:
    """Whether the candidate has weights to distill; the layer itself and poolings have none."""
    if op.is_ours:
        return op.family not in (TEACHER, "identity")
    candidate = build_op(op, layer, seed=0, teacher=teacher)
    return any(weight.requires_grad for weight in candidate.parameters())


@register(TEACHER, fits=lambda layer, teacher: True, of_teacher=True)
def teacher(layer: Layer, *, act: Activation, teacher: nn.Module) -> nn.Module:
    """Returns a copy of the layer itself."""
    return copy.deepcopy(teacher).train()


def _usage(family: Family) -> str:
    if not family.parameters:
        return f"{family.name} takes no parameters"
    needed = "".join(f"_{key}…" for key in family.parameters if key not in family.defaults)
    optional = "".join(f"[_{key}…]" for key in family.parameters if key in family.defaults)
    return f"write {family.name}{needed}{optional}"


def _written(value: float) -> str:
    return str(np.format_float_positional(value, trim="-"))
