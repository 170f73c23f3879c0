"""``lana-ray doctor``: what the machines of a cluster are, what they can serve and what is missing."""

from __future__ import annotations

import importlib.metadata
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
from lana_ray.cluster.connection import Node
from lana_ray.cluster.everywhere import ask_nodes
from lana_ray.config import RayConfig, Target
from lana_ray.costs.registry import METERS, unavailable
from lana_ray.deploy.runtimes import RUNTIMES

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
_ANSWER_S = 120.0
_SMALL_SHM_BYTES = 1 << 30
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What one machine has installed, as seen by a process on it."""

    architecture: str
    versions: dict[str, str | None]
    """Python's and the packages' versions; None where a package is not installed."""
    runtimes: dict[str, str | None]
    """The version behind each runtime that this machine has the device for; None where it is missing."""
    mends: dict[str, str]
    """What to install for each missing runtime."""
    meters: dict[str, dict[str, str]]
    """By device: the meters that are not available for it, and why."""
    cuda: str | None
    """The CUDA version torch was built for."""
    shm_bytes: int | None
    """Size of /dev/shm; None where there is none."""
    measuring: tuple[str, ...]
    """Who measures on it now, in words."""
    load: float
    """Processes running or waiting, averaged over a minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """A node and what was found on it, or why nothing could be."""

    node: Node
    machine: Machine | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    address: str | None
    """The cluster looked at; None: only this machine, Ray was not started."""
    nodes: tuple[Examined, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """What could be added, where a target asks for it."""


def diagnose(address: str | None = None) -> Report:
    """Looks at a cluster: the one given, else the one running, else at this machine alone.

    Raises:
        UserError: when nothing answers at ``address``.
    """
    found = cluster.find_cluster(address or "auto")
    if found is None:
        examined = [Examined(node=cluster.this_machine(), machine=examine())]
    else:
        with cluster.connect(RayConfig(address=found)):
            examined = _examine_nodes(cluster.nodes())
    return Report(
        address=found,
        nodes=tuple(examined),
        warnings=tuple(_warnings(found, examined)),
        notes=tuple(_notes(examined)),
    )


def examine() -> Machine:
    """Looks at the machine this runs on."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    usable = [name for name, runtime in RUNTIMES.items() if not runtime.precisions.keys().isdisjoint(kinds)]
    return Machine(
        architecture=platform.machine(),
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        runtimes={name: RUNTIMES[name].version for name in usable},
        mends={name: mend for name in usable if (mend := RUNTIMES[name].missing)},
        meters={kind: unavailable(Target(name="this", device=kind)) for kind in kinds},
        cuda=torch.version.cuda,
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        measuring=tuple(leases.held()),
        load=os.getloadavg()[0],
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _examine_nodes(asked: Sequence[Node]) -> list[Examined]:
    what = "what it has installed"
    found = []
    for node, machine, error in ask_nodes(examine, (), asked, what=what, limit_s=_ANSWER_S):
        last = None if error is None else str(error).strip().split("\n")[-1]
        found.append(Examined(node=node, machine=machine, error=last))
    return sorted(found, key=lambda entry: asked.index(entry.node))


def _warnings(address: str | None, examined: Sequence[Examined]) -> Iterator[str]:
    if address is None:
        yield "no cluster is running; a run starts one of its own on this machine"
    if (os.environ.get("RAY_AUTH_MODE") or "token").lower() != "token":
        yield "RAY_AUTH_MODE is not token: whoever reaches the cluster can run code on it; unset it"
    for entry in examined:
        yield from _node_warnings(entry)
    if len(examined) > 1 and not any(entry.node.target for entry in examined):
        yield f"no node serves a target; start them with ray start --labels={cluster.LABEL}=NAME"
    machines = [entry.machine for entry in examined if entry.machine]
    for name in _SAME_EVERYWHERE:
        versions = sorted({str(machine.versions[name]) for machine in machines})
        if len(versions) > 1:
            yield f"{name} differs between nodes ({', '.join(versions)}); install one version everywhere"


def _node_warnings(entry: Examined) -> Iterator[str]:
    node, machine = entry.node, entry.machine
    if (label := node.labels.get(cluster.ROLE, node.role)) not in cluster.ROLES:
        yield (
            f"{node.name}: {cluster.ROLE}={label} is not a role, so it will {node.role}; use "
            f"{', '.join(cluster.ROLES[:-1])} or {cluster.ROLES[-1]}"
        )
    if node.target and not node.devices:
        yield (
            f"{node.name}: carries {cluster.LABEL}={node.target} but no {cluster.DEVICE}, so it cannot be "
            f"measured on; start it with --resources='{{\"{cluster.DEVICE}\": 1}}'"
        )
    if machine is None:
        yield f"{node.name}: could not be examined ({entry.error}); is lana-ray installed there?"
        return
    if node.gpus and machine.cuda is None:
        yield f"{node.name}: has a GPU, but its torch was built without CUDA; install torch's CUDA build"
    if machine.shm_bytes is not None and machine.shm_bytes < _SMALL_SHM_BYTES:
        size = machine.shm_bytes / _GIB
        yield f"{node.name}: /dev/shm has {size:.2f} GiB and objects spill to disk; docker run --shm-size=2g"
    for holder in machine.measuring:
        yield f"{node.name}: {holder} measures on it now; others get other cores, or wait for it"
    if machine.load > max(1.0, node.cpus / 2):
        yield f"{node.name}: busy (load {machine.load:.1f} on {node.cpus} CPUs); latencies will spread"


def _notes(examined: Sequence[Examined]) -> Iterator[str]:
    """One line per runtime that is missing somewhere: none is needed unless a target asks for it."""
    machines = {entry.node.name: entry.machine for entry in examined if entry.machine}
    mends = {name: mend for machine in machines.values() for name, mend in machine.mends.items()}
    for name, mend in mends.items():
        where = ", ".join(node for node, machine in machines.items() if name in machine.mends)
        yield f"runtime {name} is not installed on {where}; where a target asks for it: {mend}"


def serves(node: Node, *, alone: bool) -> str:
    """The target a node is measured for: its label's, or any as the only machine there is."""
    if node.target:
        return node.target if node.devices else "-"
    return "any (stands in)" if alone else "-"


def role(node: Node, known: Sequence[Node]) -> str:
    """What a node does among others: it may have to train since no other does, or to stand in."""
    trains, measures = (
        node in trainers(known),
        node.role != "train" or serves(node, alone=len(known) == 1) != "-",
    )
    return "both" if trains and measures else "measure" if measures else "train"


def render(report: Report) -> RenderableType:
    """The report as tables for a terminal."""
    where = f"cluster at {report.address}" if report.address else "this machine"
    parts: list[RenderableType] = [_node_table(report, where), _version_table(report)]
    parts += [Text(line) for entry in report.nodes for line in _meter_lines(entry)]
    parts += [Text(f"! {warning}", style="yellow") for warning in report.warnings]
    parts += [Text(f"  {note}", style="dim") for note in report.notes]
    return Group(*parts)


def _node_table(report: Report, where: str) -> Table:
    table = Table(title=f"Nodes: {where}", title_justify="left")
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
            _runtime_cell(machine) if machine else Text(entry.error or "", style="red"),
        )
    return table


def _runtime_cell(machine: Machine) -> str:
    return "\n".join(f"{name} {version or 'missing'}" for name, version in machine.runtimes.items())


def _meter_lines(entry: Examined) -> Iterator[str]:
    """One line for each device of a node: what can be metered on it, and why the rest cannot."""
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
