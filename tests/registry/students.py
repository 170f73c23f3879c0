"""Students of a small network, and what registers them."""

from __future__ import annotations

import torch
from torch import nn

from lana_ray import registry
from lana_ray.registry import Model, Student, Version

from ..small_networks import plain

SHAPE = (3, 8, 8)
CLASSES = ("cat", "dog", "newt", "owl", "yak")


def network() -> nn.Module:
    return plain(len(CLASSES)).eval()


def model(own: nn.Module | None = None, onnx: bytes | None = None) -> Model:
    return Model(
        network=own or network(),
        input_shape=SHAPE,
        classes=CLASSES,
        verification={"images": torch.zeros(8, *SHAPE)},
        preprocessing={"mean": [0.5, 0.5, 0.5]},
        onnx=onnx,
    )


def student(
    key: str, *, accuracy: float = 0.9, budget: str = "50%", teacher: str = "t0", **other: object
) -> Student:
    tags = {
        "latency_ms": "0.5",
        "sustained_latency_ms": "0.5",
        "budget_ms": "0.625",
        "teacher_latency_ms": "1.25",
        "speedup": "2.5",
        "accuracy": str(accuracy),
        "validation_accuracy": str(accuracy),
        "teacher_accuracy": "0.95",
        "architecture": "0,3,1",
        "student_fingerprint": key,
        "teacher_fingerprint": teacher,
        "target_fingerprint": "x0",
        "target_settings": "{}",
        "processor": "Z80",
        "runtime": "onnxruntime 1.2",
        "run_directory": "d0",
    }
    values: dict[str, object] = {
        "model": model(),
        "target": "ort 1t",
        "budget": budget,
        "teacher": "tiny_net",
        "tags": tags,
    }
    return Student(**{**values, **other})  # type: ignore[arg-type]


def register(uri: str, *students: Student, default_budget: str = "50%") -> list[Version]:
    teachers = {"ort 1t": model()}
    versions = registry.register(students, teachers, parent="p0", tracking_uri=uri, prefix="tiny/net")
    return promote(uri, *versions, default_budget=default_budget)


def promote(
    uri: str, *versions: Version, problem: str | None = None, default_budget: str = "50%"
) -> list[Version]:
    judged = [(version, problem) for version in versions]
    return registry.promote(judged, tracking_uri=uri, default_budget=default_budget)
