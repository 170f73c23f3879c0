"""Runtimes, meters and spaces of this package hold to the public suites, and so do the examples."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from lana_ray.config import Target
from lana_ray.costs.registry import METERS
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.networks.layers import find_layers
from lana_ray.spaces import DartsSpace, FBNetSpace, LayerwiseSpace, NasBench201Space
from lana_ray.spaces.cells import CellStudents
from lana_ray.spaces.space import Space
from lana_ray.testing import MeterSuite, RuntimeSuite, SpaceSuite

from ..small_networks import net

JOBS = Path(__file__).parents[2] / "jobs" / "examples"
BENCH = f"sh -c '{sys.executable} {JOBS}/bench.py < $0' {{program}}"
VERSION = f"{sys.executable} {JOBS}/bench.py --version"
EXAMPLES = sorted(JOBS.glob("own_*.py"))


@pytest.fixture(params=METERS)
def meter(request: pytest.FixtureRequest) -> None:
    request.cls.meter = METERS[request.param]


@pytest.mark.usefixtures("meter")
class TestMeters(MeterSuite):
    pass


@pytest.fixture(params=[name for name, runtime in RUNTIMES.items() if "cpu" in runtime.precisions])
def runtime(request: pytest.FixtureRequest) -> None:
    request.cls.runtime = RUNTIMES[request.param]


@pytest.mark.usefixtures("runtime", "own_process")
class TestRuntimes(RuntimeSuite):
    @property
    def target(self) -> Target:
        if self.runtime.name != "command":
            return super().target
        return Target.model_validate(
            {
                **super().target.model_dump(),
                "runtime": "command",
                "command": {"run": BENCH, "version": VERSION},
            }
        )


@cache
def _layerwise() -> LayerwiseSpace:
    network = net(5).eval()
    return LayerwiseSpace(network, find_layers(network, torch.zeros(2, 3, 16, 16)), "tiny")


class TestLayerwise(SpaceSuite):
    image_size = 16

    def space(self) -> Space:
        return _layerwise()


class TestNasBench201(SpaceSuite):
    def space(self) -> Space:
        return NasBench201Space(width=4, cells=1)


class TestDarts(SpaceSuite):
    def space(self) -> Space:
        return DartsSpace(width=4, cells=3)


class TestCellStudents(SpaceSuite):
    def space(self) -> Space:
        return CellStudents(NasBench201Space(width=4, cells=1), _layerwise())


class TestFBNet(SpaceSuite):
    def space(self) -> Space:
        return FBNetSpace(classes=7)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_passes_its_suite(example: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=example.parents[2])
    assert done.returncode == 0, done.stdout
    assert "[100%]" in done.stdout


def test_there_is_an_example_of_each() -> None:
    assert [path.stem for path in EXAMPLES] == ["own_cost", "own_operation", "own_runtime", "own_space"]
