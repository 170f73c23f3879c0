"""Checks that a process shares the driver's code and run directory, as every process of a run must."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from lana_ray.cluster.connection import Node, ask_nodes, nodes
from lana_ray.errors import UserError
from lana_ray.run_dir import lease
from lana_ray.run_dir.code_version import check_code, installed_code
from lana_ray.run_dir.storage import Storage

_STALE_S = 60.0
"""How long a network file system such as NFS may show an outdated directory."""
_LOOK_S = 1.0
_ANSWER_S = 180.0
"""How long a node may take to start the process that checks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """The driver's run directory and code, which every other process must share."""

    run_dir: str
    lease: str | None
    """The id in the run directory's lease; None if the driver holds no lease, then run directories are not
    compared."""
    code: Mapping[str, str]

    def check(self) -> None:
        """Raises UserError, naming this node, if its code or run directory differs from the driver's."""
        check_code(self.code)
        if self.lease is not None:
            _check_run_dir(self.run_dir, self.lease)


def of_driver(run_dir: str) -> Agreement:
    """Returns the agreement that other processes must match; called in the driver."""
    return Agreement(run_dir=run_dir, lease=lease.holder(Storage(run_dir)), code=installed_code())


class NodeCheck:
    """Checks every node of the connected cluster against the driver, each node once."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._agreed: set[str] = set()

    def look(self) -> None:
        """Checks nodes that joined since the last call, except our own; raises UserError if one disagrees."""
        here = ray.get_runtime_context().get_node_id()
        joined = [node for node in nodes() if node.id not in self._agreed | {here}]
        if joined:
            _ask(joined, of_driver(self._run_dir))
        self._agreed |= {node.id for node in joined}


def _ask(asked: Sequence[Node], agreement: Agreement) -> None:
    what = f"whether it shares run.dir {agreement.run_dir}"
    for node, _, error in ask_nodes(Agreement.check, (agreement,), asked, what=what, limit_s=_ANSWER_S):
        # A node that has left the cluster need not agree.
        if error is None or node.id not in {other.id for other in nodes()}:
            continue
        if isinstance(error, TimeoutError):
            raise UserError(
                "unreachable",
                f"node {node.name}: Ray started no process within {_ANSWER_S:g} s; see raylet.err there",
            )
        raise error


@functools.cache
def _check_run_dir(run_dir: str, expected: str) -> None:
    storage = Storage(run_dir)
    # Object stores are always up to date.
    end = time.monotonic() + (_STALE_S if storage.is_local else 0)
    while (holder := lease.holder(storage)) != expected:
        if time.monotonic() > end:
            reason = "another driver uses it" if holder else "it does not show the driver's files"
            raise UserError(
                "invalid_setting",
                f"run.dir {run_dir}: node {platform.node()} has a different directory of that name "
                f"({reason}); use one that all nodes share, such as NFS or an s3:// URL",
            )
        time.sleep(_LOOK_S)
