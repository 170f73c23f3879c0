"""``lana-ray doctor``: examines the machines of a cluster, the targets they serve, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lana_ray.cluster import connection as cluster
from lana_ray.cluster import leases
from lana_ray.cluster.claims import trainers
from lana_ray.cluster.connection import Node, ask_nodes
from lana_ray.config import RayConfig, Target
from lana_ray.costs.registry import METERS, unavailable
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.tracking import installed_version

PACKAGES = (
    "lana-ray",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "mlflow",
    "highspy",
    "optuna",
    "pyarrow",
    "numpy",
)

_SAME_EVERYWHERE = ("python", "lana-ray", "ray", "torch")  # pickles travel between nodes
_NO_PACKAGE = "(needs no package)"
_ANSWER_S = 120.0
_SMALL_SHM_BYTES = 1 << 30
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Software and state of one machine, as seen by a process on it."""

    architecture: str
    versions: dict[str, str | None]
    """Python's and the packages' versions; None if a package is not installed."""
    runtimes: dict[str, str | None]
    """Version of each runtime for which this machine has a device, or that it needs none; None if it is not
    installed."""
    fixes: dict[str, str]
    """How to install each missing runtime."""
    meters: dict[str, dict[str, str]]
    """Device -> the meters that are not available on it, and why."""
    cuda: str | None
    """The CUDA version that torch was built for."""
    shm_bytes: int | None
    """Size of /dev/shm; None if there is none."""
    measuring: tuple[str, ...]
    """Processes that measure on it now, each with its purpose."""
    load: float
    """Processes running or waiting, averaged over a minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReport:
    """A node and its machine, or the reason why it could not be examined."""

    node: Node
    machine: Machine | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All nodes of a cluster or this machine, with warnings."""

    address: str | None
    """Address of the examined cluster; None if only this machine was examined, without Ray."""
    nodes: tuple[NodeReport, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """What can be installed if a target needs it."""


def diagnose(address: str | None = None) -> Report:
    """Examines the cluster at ``address`` (UserError if it is silent), a running one, or this machine."""
    used = cluster.find_cluster(address or "auto")
    if used is None:
        examined = [NodeReport(node=cluster.this_machine(), machine=examine())]
    else:
        with cluster.connect(RayConfig(address=used)):
            examined = _examine_nodes(cluster.nodes())
    warnings, notes = tuple(_warnings(used, examined)), tuple(_notes(examined))
    return Report(address=used, nodes=tuple(examined), warnings=warnings, notes=notes)


def examine() -> Machine:
    """Examines the machine on which this process runs."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    usable = [name for name, runtime in RUNTIMES.items() if not runtime.precisions.keys().isdisjoint(kinds)]
    return Machine(
        architecture=platform.machine(),
        versions={name: installed_version(name) for name in PACKAGES} | {"python": platform.python_version()},
        runtimes={
            name: RUNTIMES[name].version if RUNTIMES[name].packages else _NO_PACKAGE for name in usable
        },
        fixes={name: fix for name in usable if (fix := RUNTIMES[name].missing)},
        meters={kind: unavailable(Target(name="this", device=kind)) for kind in kinds},
        cuda=torch.version.cuda,
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        measuring=tuple(leases.held()),
        load=os.getloadavg()[0],
    )


def _examine_nodes(nodes: Sequence[Node]) -> list[NodeReport]:
    answers = ask_nodes(examine, (), nodes, what="what it has installed", limit_s=_ANSWER_S)
    reports = [
        NodeReport(
            node=node, machine=machine, error=None if error is None else str(error).strip().split("\n")[-1]
        )
        for node, machine, error in answers
    ]
    return sorted(reports, key=lambda entry: nodes.index(entry.node))


def _warnings(address: str | None, examined: Sequence[NodeReport]) -> Iterator[str]:
    if address is None:
        yield "no cluster is running; a run starts one of its own on this machine"
    if (os.environ.get("RAY_AUTH_MODE") or "token").lower() != "token":
        yield "RAY_AUTH_MODE is not token: anyone who can reach the cluster can run code on it; unset it"
    for entry in examined:
        yield from _node_warnings(entry)
    if len(examined) > 1 and not any(entry.node.target for entry in examined):
        yield f"no node serves a target; start them with ray start --labels={cluster.LABEL}=NAME"
    machines = [entry.machine for entry in examined if entry.machine]
    for name in _SAME_EVERYWHERE:
        versions = sorted({str(machine.versions[name]) for machine in machines})
        if len(versions) > 1:
            yield f"{name} differs between nodes ({', '.join(versions)}); install one version everywhere"


def _node_warnings(entry: NodeReport) -> Iterator[str]:
    node, machine = entry.node, entry.machine
    if (label := node.labels.get(cluster.ROLE, node.role)) not in cluster.ROLES:
        yield (
            f"{node.name}: {cluster.ROLE}={label} is not a valid role, so it will {node.role}; use "
            f"{', '.join(cluster.ROLES[:-1])} or {cluster.ROLES[-1]}"
        )
    if node.target and not node.devices:
        yield (
            f"{node.name}: carries {cluster.LABEL}={node.target} but offers no {cluster.DEVICE}, so nothing "
            f"can be measured on it; start it with --resources='{{\"{cluster.DEVICE}\": 1}}'"
        )
    if machine is None:
        yield f"{node.name}: could not be examined ({entry.error}); is lana-ray installed there?"
        return
    if node.gpus and machine.cuda is None:
        yield f"{node.name}: has a GPU, but its torch was built without CUDA; install torch's CUDA build"
    if machine.shm_bytes is not None and machine.shm_bytes < _SMALL_SHM_BYTES:
        size = machine.shm_bytes / _GIB
        yield (
            f"{node.name}: /dev/shm has only {size:.2f} GiB, so objects spill to disk; "
            "use docker run --shm-size=2g"
        )
    for holder in machine.measuring:
        yield f"{node.name}: {holder} is measuring on it; others get other cores, or wait for it"
    if machine.load > max(1.0, node.cpus / 2):
        yield f"{node.name}: busy (load {machine.load:.1f} on {node.cpus} CPUs); latencies will vary"


def _notes(examined: Sequence[NodeReport]) -> Iterator[str]:
    """Yields a line for each runtime that is missing on a node; it matters only if a target needs it."""
    machines = {entry.node.name: entry.machine for entry in examined if entry.machine}
    fixes = {name: fix for machine in machines.values() for name, fix in machine.fixes.items()}
    for name, fix in fixes.items():
        nodes = ", ".join(node for node, machine in machines.items() if name in machine.fixes)
        yield f"runtime {name} is not installed on {nodes}; if a target needs it: {fix}"


def serves(node: Node, *, alone: bool) -> str:
    """Returns the target that a node serves: its label's, or any target if it is the only machine."""
    if node.target:
        return node.target if node.devices else "-"
    return "any (stands in)" if alone else "-"


def role(node: Node, nodes: Sequence[Node]) -> str:
    """Returns a node's role among ``nodes``; it may train because no other does, or stand in for targets."""
    if node.role == "train" and serves(node, alone=len(nodes) == 1) == "-":
        return "train"
    return "both" if node in trainers(nodes) else "measure"


def render(report: Report) -> RenderableType:
    """Returns the report as tables for a terminal."""
    parts: list[RenderableType] = [_node_table(report), _version_table(report)]
    parts += [Text(line) for entry in report.nodes for line in _meter_lines(entry)]
    parts += [Text(f"! {warning}", style="yellow") for warning in report.warnings]
    parts += [Text(f"  {note}", style="dim") for note in report.notes]
    return Group(*parts)


def _node_table(report: Report) -> Table:
    place = f"cluster at {report.address}" if report.address else "this machine"
    table = Table(title=f"Nodes: {place}", title_justify="left")
    for heading in ("node", "CPUs", "GPUs", "labels", "role", cluster.DEVICE, "serves target", "runtimes"):
        table.add_column(heading, overflow="fold")
    for entry in report.nodes:
        node, machine = entry.node, entry.machine
        kinds = [key.partition(":")[2] for key in node.resources if key.startswith("accelerator_type:")]
        table.add_row(
            node.name,
            f"{node.cpus} {machine.architecture if machine else ''}",
            " ".join([str(node.gpus), *kinds]),
            "\n".join(f"{key}={value}" for key, value in sorted(node.labels.items())) or "-",
            role(node, [entry.node for entry in report.nodes]),
            str(node.devices),
            serves(node, alone=len(report.nodes) == 1),
            "\n".join(f"{name} {version or 'missing'}" for name, version in machine.runtimes.items())
            if machine
            else Text(entry.error or "", style="red"),
        )
    return table


def _meter_lines(entry: NodeReport) -> Iterator[str]:
    """Yields a line per device of a node: the meters that are available on it, and why others are not."""
    for device, reasons in (entry.machine.meters if entry.machine else {}).items():
        available = ", ".join(name for name in METERS if name not in reasons)
        lacking = "".join(f"; no {name}, because {reason}" for name, reason in reasons.items())
        yield f"{entry.node.name}: meters on {device}: {available}{lacking}"


def _version_table(report: Report) -> Table:
    machines = [entry.machine for entry in report.nodes if entry.machine]
    table = Table(title="Versions", title_justify="left", show_header=False)
    for name in ("python", *PACKAGES):
        versions = sorted({machine.versions[name] or "missing" for machine in machines})
        table.add_row(name, ", ".join(versions))
    return table
