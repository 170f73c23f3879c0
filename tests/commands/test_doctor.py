from __future__ import annotations

import pytest
import ray
import torch
from rich.console import Console

from lana_ray.cluster import connection as cluster
from lana_ray.cluster.connection import Node
from lana_ray.commands import doctor
from lana_ray.commands.doctor import Machine, NodeReport, Report


def _text(report: Report) -> str:
    console = Console(width=200, record=True, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(doctor.render(report))
    return capture.get()


def _machine(**changes: object) -> Machine:
    values = {
        "architecture": "x86_64",
        "versions": {"python": "3.12.1", **dict.fromkeys(doctor.PACKAGES, "1.0")},
        "runtimes": {"torch": "2.9", "onnxruntime": "1.20"},
        "fixes": {},
        "meters": {"cpu": {"energy_mj": "it is hidden"}},
        "cuda": None,
        "shm_bytes": 8 << 30,
        "measuring": (),
        "load": 0.0,
    }
    return Machine(**{**values, **changes})  # type: ignore[arg-type]


def _examined(name: str, machine: Machine | None, **resources: float) -> NodeReport:
    node = Node(id=name, name=name, labels={"lana.target": name}, resources={"CPU": 4, **resources})
    return NodeReport(node=node, machine=machine, error=None if machine else "no answer within 120 s")


def test_without_a_cluster_this_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    connected = ray.is_initialized()
    report = doctor.diagnose()
    assert ray.is_initialized() == connected
    assert report.address is None
    (entry,) = report.nodes
    assert entry.machine is not None
    assert entry.machine.runtimes["torch"] == entry.machine.versions["torch"]
    assert ("tensorrt" in entry.machine.runtimes) == torch.cuda.is_available()
    assert entry.machine.runtimes["command"] == "(needs no package)"
    assert "command" not in entry.machine.fixes
    assert "no cluster is running" in report.warnings[0]
    assert "this machine" in _text(report)
    assert "any (stands in)" in _text(report)
    assert entry.machine.meters["cpu"].keys() <= {"energy_mj", "peak_memory_mb"}
    assert "meters on cpu: latency_ms" in _text(report)


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_of_a_cluster_is_asked() -> None:
    address = ray.get_runtime_context().gcs_address
    report = doctor.diagnose(address)
    (entry,) = report.nodes
    assert entry.error is None
    assert entry.machine is not None
    assert entry.machine.versions["ray"] == ray.__version__
    assert f"cluster at {address}" in _text(report)


def test_what_is_wrong_comes_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    old = {**_machine().versions, "ray": "0.9"}
    examined = (
        _examined("xeon", _machine(), lana_device=1),
        _examined("t4", _machine(shm_bytes=64 << 20, versions=old), GPU=1, lana_device=1),
        _examined("arm", _machine(load=9.0, measuring=("process 7 (runs/other)",))),
        _examined("dead", None, lana_device=1),
    )
    warnings = list(doctor._warnings("192.0.2.1:6379", examined))
    expected = [
        "RAY_AUTH_MODE is not token",
        "t4: has a GPU, but its torch was built without CUDA",
        "t4: /dev/shm has only 0.06 GiB",
        "arm: carries lana.target=arm but offers no lana_device",
        "arm: process 7 (runs/other) is measuring on it",
        "arm: busy (load 9.0 on 4 CPUs)",
        "dead: could not be examined (no answer within 120 s)",
        "ray differs between nodes (0.9, 1.0)",
    ]
    assert len(warnings) == len(expected)
    for part in expected:
        assert any(warning.startswith(part) for warning in warnings), part
    text = _text(Report(address="192.0.2.1:6379", nodes=examined, warnings=tuple(warnings), notes=()))
    for word in ("lana.target=xeon", "no answer within 120 s"):
        assert word in text


def test_what_could_be_installed_is_one_line_per_runtime_and_no_warning() -> None:
    lacking = _machine(
        runtimes={"torch": "2.9", "onnxruntime": None, "openvino": None},
        fixes={"onnxruntime": "pip install 'lana-ray[onnx]'", "openvino": "pip install 'lana-ray[openvino]'"},
    )
    some = _machine(fixes={"openvino": "pip install 'lana-ray[openvino]'"})
    examined = [
        _examined(name, machine, lana_device=1)
        for name, machine in (("xeon", lacking), ("arm", some), ("t4", _machine()), ("dead", None))
    ]
    notes = tuple(doctor._notes(examined))
    assert notes == (
        "runtime onnxruntime is not installed on xeon; if a target needs it: pip install 'lana-ray[onnx]'",
        "runtime openvino is not installed on xeon, arm; if a target needs it: "
        "pip install 'lana-ray[openvino]'",
    )
    assert list(doctor._warnings("192.0.2.1:6379", examined[:3])) == []
    text = _text(Report(address="192.0.2.1:6379", nodes=tuple(examined), warnings=(), notes=notes))
    for word in ("onnxruntime missing", *notes):
        assert word in text
    able = "latency_ms, peak_memory_mb, params, macs"
    assert f"xeon: meters on cpu: {able}; no energy_mj, because it is hidden" in text


def test_the_role_of_every_node_is_shown() -> None:
    """The only machine does both; so do those that are measured on if nothing else can train."""

    def node(name: str, cpus: int = 4, devices: int = 1, **labels: str) -> Node:
        resources = {"CPU": cpus, "lana_device": devices}
        return Node(
            id=name, name=name, labels={f"lana.{k}": v for k, v in labels.items()}, resources=resources
        )

    head, pi, both = node("h", devices=0), node("pi", target="pi"), node("x", target="x", role="both")
    assert [doctor.role(n, [head, pi, both]) for n in (head, pi, both)] == ["train", "measure", "both"]
    assert [doctor.role(n, [pi, node("i", target="i")]) for n in (pi,)] == ["both"]
    alone = node("laptop")
    assert doctor.role(alone, [alone]) == "both"
    report = Report(address="a", nodes=(NodeReport(node=pi, machine=None),) * 2, warnings=(), notes=())
    assert "role" in _text(report)


def test_a_role_that_there_is_not_is_told() -> None:
    node = Node(id="a", name="a", labels={"lana.role": "trains"}, resources={"CPU": 1, "lana_device": 1})
    (warning,) = doctor._warnings("192.0.2.1:6379", [NodeReport(node=node, machine=_machine())])
    assert "lana.role=trains" in warning
    for name in cluster.ROLES:
        assert name in warning


def test_a_healthy_machine_gives_no_warning() -> None:
    assert list(doctor._warnings("192.0.2.1:6379", [_examined("xeon", _machine(), lana_device=1)])) == []
