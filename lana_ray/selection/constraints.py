"""Restricts the candidates of a selection by patterns of layers and operations."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from lana_ray.config.messages import nearest
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
    """Returns the scores with ``inf`` for every candidate that may not be chosen.

    Args:
        scores: per layer, shape [M_i].
        layers: the layers' names.
        ops: per layer, the names of its candidates.
        force: ``LAYER=OPERATION``, each a glob pattern: these layers may have only these operations.
        forbid: ``LAYER=OPERATION``, each a glob pattern: these layers may have none of these operations.

    Raises:
        UserError: if a pattern matches no layer, or no operation there, or if a layer is left without a
            candidate that has a score.
    """
    allowed = [np.ones(len(of_layer), dtype=bool) for of_layer in ops]
    for setting, patterns in (("force", force), ("forbid", forbid)):
        for pattern in patterns:
            where, what = _parts(setting, pattern)
            places = [i for i, layer in enumerate(layers) if fnmatchcase(layer, where)]
            named = {i: np.array([fnmatchcase(op, what) for op in ops[i]]) for i in places}
            if not any(matches.any() for matches in named.values()):
                raise UserError(
                    "unknown_name",
                    f"select.{setting}: {pattern!r}: {_missing(where, what, layers, ops, places)}",
                )
            for i, matches in named.items():
                allowed[i] &= matches if setting == "force" else ~matches
    found = [np.where(keep, of_layer, np.inf) for keep, of_layer in zip(allowed, scores, strict=True)]
    for i, layer in enumerate(layers):
        if not np.isfinite(found[i]).any():
            left = [op for op, keep in zip(ops[i], allowed[i], strict=True) if keep]
            why = f": {', '.join(left)} was left out, as too slow (pool.max_cost) or failing" if left else ""
            raise UserError(
                "invalid_setting",
                f"select.force and select.forbid leave layer {layer} without a candidate to choose{why}",
            )
    return found


def _missing(
    where: str, what: str, layers: Sequence[str], ops: Sequence[Sequence[str]], places: Sequence[int]
) -> str:
    """Describes which part of a pattern matches nothing, and what there is instead."""
    missing, wanted = (f"operation {what!r} there", what) if places else (f"layer {where!r}", where)
    known = list(dict.fromkeys(op for i in places for op in ops[i])) if places else list(layers)
    near = nearest(wanted, known)
    return f"no {missing}; " + (f"did you mean {near}?" if near else f"available: {', '.join(known)}")


def _parts(setting: str, pattern: str) -> tuple[str, str]:
    where, equals, what = pattern.partition("=")
    if not (where and equals and what):
        raise UserError(
            "invalid_setting",
            f"select.{setting}: {pattern!r}: write LAYER=OPERATION, for example 'blocks.0.*=teacher'",
        )
    return where, what
