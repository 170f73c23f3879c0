"""What every runtime must do; a new one is tested by being known to the configuration."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy import to_onnx
from lana_ray.deploy.runtimes import (
    RUNTIMES,
    check,
    load,
    prepare,
    program,
)
from lana_ray.deploy.runtimes import torch_compile as compiled
from lana_ray.errors import UserError

from ..errors import refuses
from ..small_networks import net

pytestmark = pytest.mark.usefixtures("own_process")
ROOT = Path(__file__).parents[2]
PRECISIONS = get_args(Target.model_fields["precision"].annotation)
SLOW = {"torch-compile"}  # a second and more for every network
PLACES = [
    pytest.param(
        (runtime, device),
        marks=[pytest.mark.slow] * (runtime in SLOW) + [pytest.mark.gpu] * (device == "cuda"),
        id=f"{runtime}-{device}",
    )
    for runtime in RUNTIMES
    for device in RUNTIMES[runtime].precisions
    if not RUNTIMES[runtime].is_remote  # tests/deploy/test_command.py
]
EXAMPLE = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(2))
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Of the largest output; a GPU convolves in TF32, of as many bits as fp16."""


@pytest.fixture(params=PLACES)
def target(request: pytest.FixtureRequest) -> Target:
    """Every runtime on every kind of device, where both are here."""
    runtime, device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    if fix := RUNTIMES[runtime].missing:
        pytest.skip(fix)
    if (runtime, device) == ("onnxruntime", "cuda"):
        providers = pytest.importorskip("onnxruntime").get_available_providers()
        if "CUDAExecutionProvider" not in providers:
            pytest.skip("pip install onnxruntime-gpu")
    return Target(name="here", runtime=runtime, device=device, batch_size=4, input_shape=(3, 16, 16))


def network() -> nn.Module:
    """Batch-norms with statistics and factors of their own, as trained networks have."""
    torch.manual_seed(0)
    trained = net(5).train()
    with torch.no_grad():
        for module in trained.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
        for _ in range(3):
            trained(2 * torch.randn(8, 3, 16, 16) + 1)
    return trained.eval()


def first(output: object) -> Tensor:
    """The one output of ``run``, which is the runtime's own kind of array or a list of one."""
    return torch.as_tensor(output[0] if isinstance(output, list) else output).float().cpu()


def assert_answers(found: Tensor, module: nn.Module, images: Tensor, target: Target) -> None:
    """``found`` is what the module answers, as exactly as the target computes."""
    with torch.no_grad():
        expected = module(images)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    tolerance = TOLERANCE[
        "fp16" if target.device == "cuda" and target.precision == "fp32" else target.precision
    ]
    assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


def test_predictions_are_those_of_the_module(target: Target) -> None:
    module = network()
    session = prepare(module, EXAMPLE, target)
    for images in (EXAMPLE, OTHERS, EXAMPLE.contiguous(memory_format=torch.channels_last)):
        assert_answers(session.predict(images), module, images, target)


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_is_one_inference_of_the_bound_batch(target: Target, size: int) -> None:
    module = network()
    session = prepare(module, EXAMPLE[:size], target.model_copy(update={"batch_size": size}))
    kept = session.predict(OTHERS[:size])
    again = kept.clone()
    assert_answers(first(session.run()), module, EXAMPLE[:size], target)
    assert torch.equal(kept, again)  # predictions are not overwritten by the next call


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_that_is_declared_is_computed_in(target: Target, precision: str) -> None:
    chosen = target.model_copy(update={"precision": precision})
    if precision not in RUNTIMES[target.runtime].precisions[target.device]:
        with refuses("invalid_setting", "target 'here'", f"runtime {target.runtime} ", f"in {precision} on"):
            check(chosen)
        return
    module = network()
    try:
        session = prepare(module, EXAMPLE, chosen)
    except UserError as error:
        if error.code != "unavailable" or f"no {precision} on this CPU" not in str(error):
            raise
        pytest.skip(str(error))
    predicted = session.predict(OTHERS)
    assert_answers(predicted, module, OTHERS, chosen)
    assert_answers(first(session.run()), module, EXAMPLE, chosen)
    with torch.no_grad():
        assert precision == "fp32" or float((predicted - module(OTHERS)).abs().max()) > 1e-5
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_a_module_in_training_mode_is_measured_in_evaluation_and_left_alone(target: Target) -> None:
    module, evaluated = network(), network()
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    session = prepare(module, EXAMPLE, target)
    assert_answers(session.predict(EXAMPLE), evaluated, EXAMPLE, target)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert_answers(session.predict(EXAMPLE), evaluated, EXAMPLE, target)


def test_sequences_of_tokens_run_too(target: Target) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8)).eval()
    tokens = torch.randn(4, 10, 6)
    assert_answers(prepare(module, tokens, target).predict(tokens), module, tokens, target)


def test_what_is_deployed_loads(target: Target, tmp_path: Path) -> None:
    """A program with a free batch dimension, from a file, as whoever deploys it may have it."""
    module = network()
    if RUNTIMES[target.runtime].loads_onnx:
        session = load(to_onnx(module, EXAMPLE, dynamic_batch=True), EXAMPLE, target)
    else:
        file = tmp_path / "network.pt2"
        batch = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(module, (EXAMPLE,), dynamic_shapes=batch), file)
        session = load(torch.export.load(file).module(), EXAMPLE, target)
    assert_answers(session.predict(OTHERS), module, OTHERS, target)
    assert_answers(session.predict(OTHERS[:3]), module, OTHERS[:3], target)
    assert first(session.run()).shape == (4, 5)


def test_a_program_of_a_fixed_batch_answers_any_number_of_images(target: Target) -> None:
    if target.runtime == "torch":
        pytest.skip("answers as many as its program takes")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = torch.randn(5, 3, 8, 8)
    assert_answers(prepare(module, images[:2], target).predict(images), module, images, target)


def busy_threads(call: Callable[[], object]) -> int:
    """Threads of this process that took part in a second of computing.

    With a tenth at least of what the busiest took: where others want the CPUs too, the runtimes give a thread
    that gets none of them less to do, and one that only waits or starts the work takes next to nothing.
    """
    for _ in range(5):
        call()
    before, start = thread_ticks(), time.process_time()
    while time.process_time() - start < 1.0:
        call()
    spent = [ticks - before.get(thread, 0) for thread, ticks in thread_ticks().items()]
    return sum(ticks > max(spent) / 10 for ticks in spent)


def thread_ticks() -> dict[str, int]:
    """User time by thread in the system's ticks: the 14th field of its ``stat``."""
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        found[folder.name] = int(fields[11])  # counted from the third
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_compute_as_the_target_has(target: Target, threads: int) -> None:
    if target.device != "cpu":
        pytest.skip("a GPU's work is not the CPU's threads'")
    if len(os.sched_getaffinity(0)) < threads:
        pytest.skip("fewer CPUs than threads")
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
    ).eval()
    session = prepare(module, torch.randn(4, 3, 64, 64), target.model_copy(update={"threads": threads}))
    taken = [busy_threads(session.run)]
    while max(taken) < threads and len(taken) < 10:  # other processes may want the CPUs meanwhile
        taken.append(busy_threads(session.run))
    assert max(taken) == threads


MODULES = {"torch-compile": 20}
"""How many a runtime makes and drops, where 150 would take it minutes."""
KEPT_BYTES = {"torch-compile": 500_000}
"""What a module may leave behind, where that is more than 30 kB (0.3 GB after ten thousand).

torch-compile loads a library for every new kernel and never gives it back.
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
def test_what_is_dropped_is_released(target: Target) -> None:
    """A sampler makes ten thousand modules in one process."""
    count = MODULES.get(target.runtime, 150)
    command = [sys.executable, "-m", "tests.deploy.leftovers", target.model_dump_json(), str(count)]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    kept = json.loads(answer)
    assert kept["bytes"] < KEPT_BYTES.get(target.runtime, 30_000)
    assert kept["threads"] <= 0
    assert kept["files"] <= 0


def test_versions_are_those_installed(target: Target) -> None:
    found = RUNTIMES[target.runtime].version
    assert found is not None
    assert found[0].isdigit()


def test_torch_takes_the_targets_threads() -> None:
    prepare(net(5), EXAMPLE, Target(name="here", threads=3))
    assert torch.get_num_threads() == 3


def test_what_is_measured_is_what_is_registered() -> None:
    """The same bytes every time, in the precision that the runtime wants its program in."""
    proto = pytest.importorskip("onnx")
    module = network()
    for runtime, device, precision, kind in (
        ("onnxruntime", "cpu", "fp32", "FLOAT"),
        ("onnxruntime", "cuda", "fp16", "FLOAT16"),
        ("openvino", "cpu", "bf16", "FLOAT"),
        ("tensorrt", "cuda", "bf16", "BFLOAT16"),
    ):
        settings = {"runtime": runtime, "device": device, "precision": precision}
        target = Target.model_validate({"name": "here", **settings})
        deployed = program(module, EXAMPLE, target)  # whether the runtime is installed or not
        assert deployed == program(module, EXAMPLE, target)
        graph = proto.load_from_string(deployed).graph
        values = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
        types = {*values, *(tensor.data_type for tensor in graph.initializer)}
        assert types - {proto.TensorProto.INT64} == {getattr(proto.TensorProto, kind)}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"runtime": "openvino", "device": "cuda"},
            "openvino does not run on cuda; set its device to cpu, or",
        ),
        ({"runtime": "tensorrt"}, ["tensorrt", "cpu", "device to cuda, "]),
        (
            {"runtime": "onnxruntime", "device": "cuda:1", "precision": "bf16"},
            ["onnxruntime", "bf16 on cuda", "precision to fp32 or fp16, "],
        ),
        (
            {"runtime": "onnxruntime", "precision": "fp16"},
            ["onnxruntime", "fp16 on cpu", "precision to fp32, "],
        ),
    ],
)
def test_what_a_runtime_cannot_do_is_refused_with_the_fix(settings: dict[str, str], named: list[str]) -> None:
    target = Target.model_validate({"name": "edge", **settings})
    for refusing in (
        lambda: check(target),
        lambda: program(net(5), EXAMPLE, target),
        lambda: load(b"", EXAMPLE, target),
    ):
        with refuses("invalid_setting", "target 'edge'", *named, "choose another runtime"):
            refusing()


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_says_how(
    monkeypatch: pytest.MonkeyPatch, runtime: str, extra: str
) -> None:
    lost = dataclasses.replace(RUNTIMES[runtime], packages=("no-such-package", "nor-this"))
    monkeypatch.setitem(RUNTIMES, runtime, lost)
    assert RUNTIMES[runtime].version is None
    assert RUNTIMES[runtime].missing == f"pip install 'lana-ray[{extra}]'"
    with refuses("unavailable", "target 'here'", f"runtime {runtime} ", f"pip install 'lana-ray[{extra}]'"):
        prepare(net(5), EXAMPLE, Target.model_validate({"name": "here", "runtime": runtime}))


@pytest.mark.parametrize(("runtime", "name"), [("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_a_damaged_program_names_the_target(runtime: str, name: str) -> None:
    pytest.importorskip(runtime)
    with refuses("refused", "target 'here'", name):
        load(b"no program", EXAMPLE, Target.model_validate({"name": "here", "runtime": runtime}))


def test_without_a_compiler_the_fix_is_one() -> None:
    from torch._inductor import config

    no_compiler = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with no_compiler, refuses("unavailable", "target 'here'", "torch-compile", "C++ compiler", "g++"):
        prepare(net(5), EXAMPLE, Target(name="here", runtime="torch-compile"))


def test_what_the_compiler_cannot_take_names_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such\nkernel")

    monkeypatch.setattr(compiled.CompiledSession, "run", refuse)
    with refuses("refused", "target 'here'", "torch.compile", "ValueError: no such kernel"):
        prepare(net(5), EXAMPLE, Target(name="here", runtime="torch-compile"))
