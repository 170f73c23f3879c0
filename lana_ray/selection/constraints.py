"""Which candidates a selection may use, by patterns of layers and operations."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from lana_ray.errors import UserError
from lana_ray.selection.problem import Floats


def constrained(
    scores: Sequence[Floats],
    layers: Sequence[str],
    ops: Sequence[Sequence[str]],
    *,
    force: Sequence[str] = (),
    forbid: Sequence[str] = (),
) -> list[Floats]:
    """The scores with ``inf`` for every candidate that may not be chosen.

    Args:
        scores: per layer, shape [M_i].
        layers: their names.
        ops: per layer, the names of its candidates.
        force: ``LAYER=OPERATION``, each a glob pattern: at these layers only these operations.
        forbid: the same: at these layers none of these operations.

    Raises:
        UserError: for a pattern that names no layer, or no operation there, and for a layer that is left
            without a candidate that has a score.
    """
    allowed = [np.ones(len(of_layer), dtype=bool) for of_layer in ops]
    for setting, patterns in (("force", force), ("forbid", forbid)):
        for pattern in patterns:
            where, what = _parts(setting, pattern)
            places = [i for i, layer in enumerate(layers) if fnmatchcase(layer, where)]
            named = {i: np.array([fnmatchcase(op, what) for op in ops[i]]) for i in places}
            if not any(matches.any() for matches in named.values()):
                missing = f"operation {what!r} there" if places else f"layer {where!r}"
                raise UserError(f"select.{setting}: {pattern!r}: no {missing}")
            for i, matches in named.items():
                allowed[i] &= matches if setting == "force" else ~matches
    found = [np.where(keep, of_layer, np.inf) for keep, of_layer in zip(allowed, scores, strict=True)]
    for layer, of_layer in zip(layers, found, strict=True):
        if not np.isfinite(of_layer).any():
            raise UserError(
                f"select.force and select.forbid leave layer {layer} without a candidate to choose"
            )
    return found


def _parts(setting: str, pattern: str) -> tuple[str, str]:
    where, equals, what = pattern.partition("=")
    if not (where and equals and what):
        raise UserError(
            f"select.{setting}: {pattern!r}: write LAYER=OPERATION, for example 'blocks.0.*=teacher'"
        )
    return where, what
