"""Weights files as training scripts leave them: the set of tensors that fits a network, and nothing else."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from lana_ray.errors import UserError, one_line

_DEPTH = 4  # of mappings inside one another; optimizers' states lie deep and hold nothing to load
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel, torch.compile and their kind add, anywhere in a name."""
_LIGHTNING = (
    "lightning.fabric.utilities.data",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)
"""Where Lightning's dictionary of hyper-parameters is defined."""
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])")
_COUNTER = "num_batches_tracked"
"""Batch-norms count it; frozen ones and those of early versions of torch do not."""


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """Tensors by name, somewhere in a weights file."""

    place: str
    """The keys that lead to it and the prefix of its names, for messages; empty for the whole file."""
    tensors: Mapping[str, Tensor]

    @property
    def is_average(self) -> bool:
        """A moving average of the weights, by its name."""
        return bool(_AVERAGE.search(self.place.lower()))


def read_weights(path: str) -> list[WeightSet]:
    """Every set of tensors in a file of safetensors or ``torch.save``, without running code of the file.

    Raises:
        UserError: missing or damaged file, objects other than tensors and plain values, no tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"teacher.weights: {path}: no such file")
    try:
        content = safetensors.torch.load_file(path) if _is_safetensors(path) else _load(path)
    except Exception as error:  # unpickling, zip and header errors share no base class
        raise UserError(f"teacher.weights: {path}: {_refusal(path, error)}") from None
    sets = list(_sets(content, ()))
    if not sets:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
        raise UserError(
            f"teacher.weights: {path}: holds no state dict of tensors, but a {type(content).__name__}"
            f"{f' of {keys}' if keys else ''}; "
            "save network.state_dict()"
        )
    return sets


def _is_safetensors(path: str) -> bool:
    """Whether the file is named so, or has JSON after its first eight bytes, whatever its name."""
    with open(path, "rb") as file:
        return path.endswith(".safetensors") or file.read(10)[8:] == b'{"'


def _load(path: str) -> Any:
    with torch.serialization.safe_globals(_values()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _values() -> list[Any]:
    """Types of plain values that scripts keep with their weights: settings, numbers, dates and paths."""
    scalar: Any = np.float64(0).__reduce__()[0]
    rebuild: Any = np.zeros(1).__reduce__()[0]
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        (_mapping, "collections.defaultdict"),
        *((collections.OrderedDict, f"{module}.AttributeDict") for module in _LIGHTNING),
        dict,
        list,
        tuple,
        int,
        float,
        str,
        bool,
        frozenset,
        range,
        slice,
        datetime.datetime,
        datetime.date,
        datetime.timedelta,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        np.dtype,
        np.ndarray,
        scalar,
        rebuild,
        (scalar, "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote them
        (rebuild, "numpy.core.multiarray._reconstruct"),
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name not in ("ObjectDType", "VoidDType")),
    ]


def _mapping(*_: Any) -> dict[str, Any]:
    """A dictionary in place of one with defaults, which torch does not fill."""
    return {}


def _refusal(path: str, error: Exception) -> str:
    plain = "not safetensors and not a plain state dict"
    try:
        with torch.serialization.safe_globals(_values()):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # no file of torch.save, or one of its old format: the first error says what it is
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    if not names:
        text = str(error).strip() or repr(error)
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", text)
        return f"{plain} ({one_line(reason[1] if reason else text.splitlines()[0])})"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{plain}: it holds an object of {names[0]}{more}, whose code would run on loading; "
        f"save the tensors alone, torch.save(network.state_dict(), FILE)"
    )


def _sets(content: Any, keys: tuple[str, ...]) -> Iterator[WeightSet]:
    if not isinstance(content, Mapping) or len(keys) > _DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield WeightSet(place=".".join(keys), tensors=tensors)
    for key, value in content.items():
        yield from _sets(value, (*keys, str(key)))


def fitting(sets: list[WeightSet], network: nn.Module, source: str) -> WeightSet:
    """The set whose names are the network's, under these names.

    What wrappers add to names is left out, and so is a prefix that all of the network's names have in the
    file, such as Lightning's ``model.``; each only if the names do not fit as they are. A moving average
    comes before the weights that it is an average of.

    Raises:
        UserError: naming the first difference of the nearest set, or the sets if several fit.
    """
    own = network.state_dict()
    fits = [match for group in sets for match in _matches(group, own)]
    shaped = [match for match in fits if _misshapen(match.tensors, own) is None] or fits
    if not shaped:
        raise UserError(_difference(max(sets, key=lambda group: _shared(group, own)), network, source))
    averages = [match for match in shaped if match.is_average]
    chosen = (averages or shaped)[0]
    others = [m.place for m in (averages or shaped)[1:] if not _same(m.tensors, chosen.tensors)]
    if others:
        raise UserError(
            f"{source}: holds several sets of weights that fit {type(network).__name__}: "
            f"{', '.join(place or 'its first level' for place in (chosen.place, *others))}; save one alone"
        )
    return chosen


def _matches(group: WeightSet, own: Mapping[str, Tensor]) -> Iterator[WeightSet]:
    """The group under the network's names, once for each prefix that the file may have put before them."""
    for clean in (str, _unwrapped) if own else ():
        names = {clean(name): name for name in own}
        given = {clean(name): name for name in group.tensors}
        if len(names) < len(own) or len(given) < len(group.tensors):
            continue
        matched = False
        for prefix, inner in _prefixes(names, given):
            pairs = {full: given.get(f"{prefix}{name.removeprefix(inner)}") for name, full in names.items()}
            known = {file for file in pairs.values() if file is not None}
            extra = {name for name in given.values() if name not in known} if not prefix else set()
            missing = [full for full, file in pairs.items() if file is None]
            if all(name.endswith(_COUNTER) for name in (*missing, *extra)):
                matched = True
                tensors = {full: group.tensors[file] for full, file in pairs.items() if file is not None}
                yield WeightSet(place=f"{group.place}.{prefix}".strip("."), tensors=tensors)
        if matched:
            return


def _prefixes(names: Mapping[str, str], given: Mapping[str, str]) -> list[tuple[str, str]]:
    """What the file's names may have before the network's, and the network's before the file's.

    The empty prefix, under which nothing else may be in the file, comes first.
    """
    probe = next(name for name in names if not name.endswith(_COUNTER))
    inner = f"{probe.partition('.')[0]}."
    pairs = [(probe, "")]
    if all(name.startswith(inner) for name in names):
        pairs.append((probe.removeprefix(inner), inner))
    found = [
        (name.removesuffix(ending), cut)
        for ending, cut in pairs
        for name in given
        if name == ending or name.endswith(f".{ending}")
    ]
    return sorted(found, key=lambda pair: (len(pair[1]), len(pair[0])))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() & other.keys())


def _shared(group: WeightSet, own: Mapping[str, Tensor]) -> int:
    names = {_unwrapped(name) for name in own}
    return len(names & {_unwrapped(name) for name in group.tensors})


def _difference(group: WeightSet, network: nn.Module, source: str) -> str:
    """How the names of the nearest set differ from the network's."""
    own, given = set(network.state_dict()), set(group.tensors)
    if not own & given:
        own, given = {_unwrapped(n) for n in own}, {_unwrapped(n) for n in given}
    inside = f" ({group.place})" if group.place else ""
    where = f"{source}{inside}: not the weights of {type(network).__name__}: "
    lacks = sorted(name for name in own - given if not name.endswith(_COUNTER))
    unknown = sorted(name for name in given - own if not name.endswith(_COUNTER))
    if lacks:
        return f"{where}lacks {lacks[0]} ({len(lacks)} keys differ)"
    return f"{where}has unknown {unknown[0]} ({len(unknown)} keys differ)"


def _misshapen(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    return next((name for name, value in state.items() if value.shape != own[name].shape), None)


def fit_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a set that ``fitting`` chose; raises UserError, naming the first tensor of another shape."""
    own = network.state_dict()
    if (name := _misshapen(state, own)) is not None:
        raise UserError(
            f"{source}: not the weights of {type(network).__name__}: "
            f"{name} has shape {list(state[name].shape)}, the network's has {list(own[name].shape)}"
        )
    network.load_state_dict(dict(state), strict=False)  # all but counters are there
