"""Sessions in processes of their own."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from lana_ray.config import Target
from lana_ray.costs.session_process import Program, SessionProcess
from lana_ray.costs.timing import Timing
from lana_ray.deploy.runtimes import program
from lana_ray.errors import Unsupported

from ..small_networks import net

SHAPE = (3, 16, 16)
TIMING = Timing(rel_error=0.5, time_limit_s=0.02)


def target(runtime: str) -> Target:
    return Target(name="here", runtime=runtime, threads=1, input_shape=SHAPE)


def deployed(runtime: str) -> Program:
    example = torch.randn(1, *SHAPE)
    return program(net(3).eval(), example, target(runtime)), example


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_program_is_timed_against_references_in_another_process(runtime: str) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    process = SessionProcess(target(runtime), [deployed(runtime)], [1.0])
    try:
        measured = process.time(deployed(runtime), TIMING)
    finally:
        process.close()
    assert measured.raw_ms > 0
    # The program is its own reference, whose baseline is said to be 1 ms.
    assert 0.5 < measured.median_ms < 2.0
    assert measured.drift == pytest.approx(measured.raw_ms / measured.median_ms)


def test_what_a_runtime_refuses_and_a_death_are_told_apart() -> None:
    pytest.importorskip("onnxruntime")
    _, example = deployed("onnxruntime")
    process = SessionProcess(target("onnxruntime"), [], [])
    try:
        with pytest.raises(Unsupported):
            process.time((b"no model", example), TIMING)
        assert process.time(deployed("onnxruntime"), TIMING).raw_ms > 0  # it goes on
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with status -9"):
            process.time(deployed("onnxruntime"), TIMING)
    finally:
        process.close()


def test_references_that_do_not_load_are_refused_as_here() -> None:
    pytest.importorskip("onnxruntime")
    _, example = deployed("onnxruntime")
    with pytest.raises(Unsupported, match="here"):
        SessionProcess(target("onnxruntime"), [(b"no model", example)], [1.0])
