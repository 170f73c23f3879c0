"""Reads the tensors that match a network, and nothing else, from the weights files of training scripts."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from lana_ray.errors import UserError, first_line, one_line

_DEPTH = 4
"""Levels of nested mappings that are searched; optimizer states are deeper and contain no weights."""
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that wrappers such as DataParallel and torch.compile insert anywhere in a name."""
_LIGHTNING = (
    "lightning.fabric.utilities.data",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)
"""Modules that define Lightning's dictionary of hyper-parameters."""
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])")
_COUNTER = "num_batches_tracked"
"""Suffix of batch-norms' counters; frozen batch-norms and those of early versions of torch have none."""


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """A set of named tensors in a weights file."""

    place: str
    """Keys of the mappings around it and prefix of its names, for messages; empty at the file's top level."""
    tensors: Mapping[str, Tensor]

    @property
    def is_average(self) -> bool:
        """Whether it is a moving average of the weights, according to its name."""
        return bool(_AVERAGE.search(self.place.lower()))


def read_weights(path: str) -> list[WeightSet]:
    """Returns the sets of tensors in a file without running its code; raises UserError if it is damaged."""
    if not Path(path).is_file():
        raise UserError("missing_file", f"teacher.weights: {path}: no such file")
    try:
        content = _load(path)
    except Exception as error:  # unpickling, zip and header errors have no common base class
        raise UserError("invalid_file", f"teacher.weights: {path}: {_refusal(path, error)}") from None
    sets = list(_sets(content, ()))
    if not sets:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
        raise UserError(
            "invalid_file",
            f"teacher.weights: {path}: contains no state dict of tensors, but a {type(content).__name__}"
            f"{f' of {keys}' if keys else ''}; save network.state_dict()",
        )
    return sets


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        start = file.read(10)
    if path.endswith(".safetensors") or start[8:] == b'{"':  # its header is JSON after eight bytes
        return safetensors.torch.load_file(path)
    with torch.serialization.safe_globals(_plain_types()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain_types() -> list[Any]:
    """Returns the types of plain values that scripts save with weights: settings, numbers, dates, paths."""
    scalar: Any = np.float64(0).__reduce__()[0]
    rebuild: Any = np.zeros(1).__reduce__()[0]
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        (_empty_dict, "collections.defaultdict"),
        *((collections.OrderedDict, f"{module}.AttributeDict") for module in _LIGHTNING),
        *(dict, list, tuple, int, float, str, bool, frozenset, range, slice),
        *(datetime.datetime, datetime.date, datetime.timedelta),
        *(pathlib.PosixPath, pathlib.PurePosixPath),
        *(np.dtype, np.ndarray, scalar, rebuild),
        (scalar, "numpy.core.multiarray.scalar"),  # NumPy 1 wrote these names
        (rebuild, "numpy.core.multiarray._reconstruct"),
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name not in ("ObjectDType", "VoidDType")),
    ]


def _empty_dict(*_: Any) -> dict[str, Any]:
    """Returns an empty dictionary for each ``defaultdict``, which torch does not fill."""
    return {}


def _refusal(path: str, error: Exception) -> str:
    """Returns why a file cannot be read, given the error of reading it."""
    plain = "not safetensors and not a plain state dict"
    try:
        with torch.serialization.safe_globals(_plain_types()):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only torch.save's newer format can be inspected; the first error has the reason
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    if not names:
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        return f"{plain} ({one_line(reason[1]) if reason else first_line(error)})"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{plain}: it contains an object of {names[0]}{more}, whose code would run on loading; "
        f"save the tensors alone: torch.save(network.state_dict(), FILE)"
    )


def _sets(content: Any, keys: tuple[str, ...]) -> Iterator[WeightSet]:
    """Yields the sets of tensors in nested mappings; ``keys`` lead to ``content``."""
    if not isinstance(content, Mapping) or len(keys) > _DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield WeightSet(place=".".join(keys), tensors=tensors)
    for key, value in content.items():
        yield from _sets(value, (*keys, str(key)))


def choose_weights(sets: list[WeightSet], network: nn.Module, source: str) -> WeightSet:
    """Returns the set whose names match the network's, under the network's names.

    If the names do not match exactly, parts that wrappers insert are ignored, and so is a prefix of all of
    the network's names in the file, such as Lightning's ``model.``. A moving average has precedence over the
    weights that it averages.

    Raises:
        UserError: no set matches (the message names the first difference of the nearest one), or several do.
    """
    own = network.state_dict()
    matches = [match for group in sets for match in _matches(group, own)]
    shaped = [match for match in matches if _misshapen(match.tensors, own) is None] or matches
    if not shaped:
        raise UserError("invalid_file", _difference(sets, network, source))
    averages = [match for match in shaped if match.is_average]
    chosen = (averages or shaped)[0]
    others = [m.place for m in (averages or shaped)[1:] if not _equal(m.tensors, chosen.tensors)]
    if others:
        raise UserError(
            "invalid_file",
            f"{source}: contains several sets of weights that match {type(network).__name__}: "
            f"{', '.join(place or 'its top level' for place in (chosen.place, *others))}; save one alone",
        )
    return chosen


def _matches(group: WeightSet, own: Mapping[str, Tensor]) -> Iterator[WeightSet]:
    """Yields the set under the network's names, once for each prefix that the file's names may have."""
    for clean in (str, _unwrap) if own else ():
        names = {clean(name): name for name in own}
        in_file = {clean(name): name for name in group.tensors}
        if len(names) < len(own) or len(in_file) < len(group.tensors):
            continue
        matched = False
        for prefix, inner in _prefixes(names, in_file):
            pairs = {full: in_file.get(f"{prefix}{name.removeprefix(inner)}") for name, full in names.items()}
            used = {name for name in pairs.values() if name is not None}
            extra = {name for name in in_file.values() if name not in used} if not prefix else set()
            missing = [full for full, name in pairs.items() if name is None]
            if all(name.endswith(_COUNTER) for name in (*missing, *extra)):
                matched = True
                tensors = {full: group.tensors[name] for full, name in pairs.items() if name is not None}
                yield WeightSet(place=f"{group.place}.{prefix}".strip("."), tensors=tensors)
        if matched:
            return


def _prefixes(names: Mapping[str, str], in_file: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns pairs of a prefix that only the file's names may have and one that only the network's may have.

    The empty prefix of the file comes first; with it, the file may contain nothing else.
    """
    probe = next(name for name in names if not name.endswith(_COUNTER))
    inner = f"{probe.partition('.')[0]}."
    pairs = [(probe, "")]
    if all(name.startswith(inner) for name in names):
        pairs.append((probe.removeprefix(inner), inner))
    prefixes = [
        (name.removesuffix(ending), cut)
        for ending, cut in pairs
        for name in in_file
        if name == ending or name.endswith(f".{ending}")
    ]
    return sorted(prefixes, key=lambda pair: (len(pair[1]), len(pair[0])))


def _unwrap(name: str) -> str:
    """Returns a name without the parts that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Returns whether the tensors that two sets have in common are equal."""
    return all(torch.equal(one[name], other[name]) for name in one.keys() & other.keys())


def _difference(sets: Sequence[WeightSet], network: nn.Module, source: str) -> str:
    """Returns how the names of the nearest set differ from the network's, for messages."""
    own = set(network.state_dict())
    unwrapped = set(map(_unwrap, own))
    group = max(sets, key=lambda group: len(unwrapped.intersection(map(_unwrap, group.tensors))))
    in_file = set(group.tensors)
    if not own & in_file:
        own, in_file = unwrapped, set(map(_unwrap, in_file))
    inside = f" ({group.place})" if group.place else ""
    missing = sorted(name for name in own - in_file if not name.endswith(_COUNTER))
    unknown = sorted(name for name in in_file - own if not name.endswith(_COUNTER))
    differs = f"lacks {missing[0]}" if missing else f"has unknown {unknown[0]}"
    count = len(missing or unknown)
    return f"{source}{inside}: not the weights of {type(network).__name__}: {differs} ({count} keys differ)"


def _misshapen(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first tensor whose shape differs from the network's; None if none does."""
    return next((name for name, value in state.items() if value.shape != own[name].shape), None)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a set that ``choose_weights`` chose; raises UserError for a tensor of another shape."""
    own = network.state_dict()
    if (name := _misshapen(state, own)) is not None:
        raise UserError(
            "invalid_file",
            f"{source}: not the weights of {type(network).__name__}: "
            f"{name} has shape {list(state[name].shape)}, the network's has {list(own[name].shape)}",
        )
    network.load_state_dict(dict(state), strict=False)  # only counters may be missing
