"""The pool of operations. Importing this package registers every family; a new one joins its first import."""

from lana_ray.ops import attention, convs, grouped, identity, lambdas, mbconv, repvgg, transformer
from lana_ray.ops.presets import PRESETS, candidates, pool
from lana_ray.ops.pruning import pruned
from lana_ray.ops.registry import (
    FAMILIES,
    Op,
    build_op,
    count_weights,
    fits,
    is_trained,
    parse_op,
    register,
    register_files,
)
from lana_ray.ops.warmstart import warm_start

__all__ = [
    "FAMILIES",
    "PRESETS",
    "Op",
    "attention",
    "build_op",
    "candidates",
    "convs",
    "count_weights",
    "fits",
    "grouped",
    "identity",
    "is_trained",
    "lambdas",
    "mbconv",
    "parse_op",
    "pool",
    "pruned",
    "register",
    "register_files",
    "repvgg",
    "transformer",
    "warm_start",
]
