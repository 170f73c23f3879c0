"""What a process must share with the driver to take part in a run: its code, and the run directory."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from lana_ray.cluster.connection import Node, nodes
from lana_ray.cluster.everywhere import ask_nodes
from lana_ray.errors import UserError
from lana_ray.run_dir import lease
from lana_ray.run_dir.method import check_code, installed_code
from lana_ray.run_dir.storage import Storage

_STALE_S = 60.0
"""How long a file system of the network may show an earlier state of a directory, as NFS does."""
_LOOK_S = 1.0
_ANSWER_S = 180.0
"""How long a node may take to start a process that looks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What the driver has."""

    run_dir: str
    lease: str | None
    """The id in the run directory's lease; None where the driver holds none: nothing is compared."""
    code: Mapping[str, str]

    def check(self) -> None:
        """Returns where this process has the same.

        Raises:
            UserError: naming this node, where its code is other code or its run directory another directory.
        """
        check_code(self.code)
        if self.lease is not None:
            _check_run_dir(self.run_dir, self.lease)


def of_driver(run_dir: str) -> Agreement:
    """What this process, the driver, has."""
    return Agreement(run_dir=run_dir, lease=lease.holder(Storage(run_dir)), code=installed_code())


class NodeCheck:
    """Has every node of the connected cluster look whether it agrees, each once."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._agreed: set[str] = set()

    def look(self) -> None:
        """Asks the nodes that have joined since the last time; this process's own node agrees.

        Raises:
            UserError: a node that does not agree, or that starts no process.
        """
        here = ray.get_runtime_context().get_node_id()
        joined = [node for node in nodes() if node.id not in self._agreed | {here}]
        if joined:
            _ask(joined, of_driver(self._run_dir))
        self._agreed |= {node.id for node in joined}


def _ask(asked: Sequence[Node], agreement: Agreement) -> None:
    what = f"whether it shares run.dir {agreement.run_dir}"
    for node, _, error in ask_nodes(Agreement.check, (agreement,), asked, what=what, limit_s=_ANSWER_S):
        if error is None or all(other.id != node.id for other in nodes()):  # one that left need not agree
            continue
        if isinstance(error, TimeoutError):
            raise UserError(f"{node.name}: starts no process within {_ANSWER_S:g} s; see raylet.err there")
        raise error


@functools.cache
def _check_run_dir(run_dir: str, expected: str) -> None:
    storage = Storage(run_dir)
    end = time.monotonic() + (_STALE_S if storage.is_local else 0)  # object stores are always up to date
    while (found := lease.holder(storage)) != expected:
        if time.monotonic() > end:
            what = "another driver works there" if found else "it does not see what the driver writes there"
            raise UserError(
                f"run.dir {run_dir}: node {platform.node()} has another directory of that name ({what}); use "
                "one that all nodes share, such as NFS or an s3:// URL"
            )
        time.sleep(_LOOK_S)
