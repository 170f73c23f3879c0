"""Compares the speed of distillation with loops written by hand, and its memory with the limit.

    python jobs/benchmark_distill.py --workers 1 --workers 2 --json distill.json

The first table has candidate-steps per second, all with the same candidates of EfficientNet-Lite0, the same
images and one thread per worker: a loop of a few lines that shares one teacher pass among all candidates, the
same loop with a teacher pass for each of them, our own step, and Ray Train with each number of workers (its
start is excluded: two runs of different length are compared). The second table has the peak memory of one
worker and what ``distill.memory_gb`` allows.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from lana_ray.cluster.connection import connect
from lana_ray.cluster.distill_worker import GIB, distill_round
from lana_ray.config import Config, load_config
from lana_ray.distill.rounds import memory, plan_rounds
from lana_ray.distill.step import Distiller, Recipe, Trainee
from lana_ray.ids import CandidateId
from lana_ray.monitoring.progress import console
from lana_ray.networks.layers import observe
from lana_ray.networks.teachers import load_teacher
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import FINGERPRINT_KEY
from lana_ray.stages.distill import find_demands, train
from lana_ray.workspace import Workspace

OPS = ("mbconv_e3_k3", "mbconv_e1_k5", "fused_mbconv_e1_k3", "bottleneck_w0.25_k3", "conv_pair_w0.25_k3")


def main(
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 64,
    batch_size: int = 64,
    steps: Annotated[int, typer.Option(help="Steps of every loop in each repeat.")] = 4,
    repeats: Annotated[int, typer.Option(help="Repeats of all loops; the table has medians.")] = 3,
    workers: Annotated[list[int] | None, typer.Option(help="Ray Train workers; may be repeated.")] = None,
    memory_gb: Annotated[list[float] | None, typer.Option(help="Limits to try; may be repeated.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Prints the tables of throughput and memory."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, size, batch_size)
        workspace = _prepared(config)
        candidates = _candidates(workspace)
        console.print(
            f"{len(candidates)} candidates, {size} px, batches of {batch_size}, one thread per worker"
        )
        loops, teacher_share = _loops(workspace, candidates, steps, repeats)
        rates = dict(loops)
        for count in workers or [1, 2]:
            name = f"Ray Train, {count} worker{'s' * (count > 1)}"
            rates[name] = _through_ray(config, count, steps, teacher_share * len(candidates))
        peaks = {limit: _peak(config, limit, candidates) for limit in memory_gb or [0.1, 0.2, 0.4, 0.8]}
    by_hand = rates["by hand, one teacher's pass for all"]
    table = Table(title="candidate-steps per second", title_justify="left")
    for column in ("loop", "per second", "relative to the loop by hand"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / by_hand:.2f}")
    console.print(table)
    console.print(f"the teacher's passes take {100 * teacher_share:.1f} % of our step")
    memory = Table(title="peak memory of a worker, GiB", title_justify="left")
    for column in ("distill.memory_gb", "rounds", "planned", "taken, including the teacher's pass"):
        memory.add_column(column, justify="right")
    for limit, peak in peaks.items():
        memory.add_row(f"{limit:g}", str(peak["rounds"]), f"{peak['planned']:.2f}", f"{peak['taken']:.2f}")
    console.print(memory)
    if json_file:
        figures = {
            "rates": rates,
            "teacher_share": teacher_share,
            "memory": {str(k): v for k, v in peaks.items()},
        }
        json_file.write_text(json.dumps(figures, indent=1))


def _config(folder: str, size: int, batch_size: int, **changes: Any) -> Config:
    return load_config(
        {
            "run": {"dir": folder},
            "ray": {"address": "local"},
            "teacher": {"timm": "tf_efficientnet_lite0"},
            "data": {"source": "digits", "image_size": size},
            "pool": {"ops": list(OPS), "max_cost": None},
            "targets": [{"name": "here"}],
            "budgets": {"latency_ms": "50%"},
            "distill": {"batch_size": batch_size, "steps": 1, **changes},
        }
    )


def _prepared(config: Config) -> Workspace:
    """Returns a workspace whose teacher has random weights, which do not matter here."""
    workspace = Workspace(config)
    network = load_teacher(config.teacher, workspace.data.num_classes).network
    workspace.storage.write_tensors(layout.TEACHER, network.state_dict(), {FINGERPRINT_KEY: "random"})
    return workspace


def _candidates(workspace: Workspace) -> list[CandidateId]:
    """All that distillation trains."""
    return [one for ids in workspace.space.ids for one in ids if workspace.has_weights(one)]


def _loops(
    workspace: Workspace, candidates: list[CandidateId], steps: int, repeats: int
) -> tuple[dict[str, float], float]:
    """Returns candidate-steps per second of each loop in this process, and the teacher's share of ours."""
    torch.set_num_threads(1)
    loops: dict[str, Callable[[Iterator[Tensor], list[Trainee]], None]] = {
        "by hand, a teacher's pass for each": lambda images, trainees: _naive(workspace, images, trainees),
        "by hand, one teacher's pass for all": lambda images, trainees: _by_hand(workspace, images, trainees),
        "our step": lambda images, trainees: _ours(workspace, images, trainees),
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            trainees = _trainees(workspace, candidates)
            begin = time.perf_counter()
            loop(_images(workspace, steps), trainees)
            rates[name].append(len(candidates) * steps / (time.perf_counter() - begin))
    images = next(_images(workspace, 1))
    begin = time.perf_counter()
    for _ in range(repeats):
        observe(workspace.teacher, [layer.name for layer in workspace.layers], images)
    teacher_s = (time.perf_counter() - begin) / repeats
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return medians, teacher_s * medians["our step"] / len(candidates)


def _trainees(workspace: Workspace, candidates: list[CandidateId]) -> list[Trainee]:
    return [
        Trainee(
            layer=workspace.layers[i],
            op=one.op,
            module=workspace.space.candidate(i, j).train().to(memory_format=torch.channels_last),
        )
        for one in candidates
        for i, j in [workspace.space.place(one)]
    ]


def _images(workspace: Workspace, steps: int) -> Iterator[Tensor]:
    batches = workspace.data.endless("train", batch_size=workspace.config.distill.batch_size)
    return (images for images, _ in itertools.islice(batches, steps))


def _by_hand(workspace: Workspace, batches: Iterator[Tensor], trainees: list[Trainee]) -> None:
    optimizers = [torch.optim.Adam(t.module.parameters(), lr=1e-3) for t in trainees]
    names = [layer.name for layer in workspace.layers]
    for images in batches:
        seen = observe(workspace.teacher, names, images)
        for trainee, optimizer in zip(trainees, optimizers, strict=True):
            inputs, output = seen[trainee.layer.name]
            loss = (trainee.module(inputs) - output).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _naive(workspace: Workspace, batches: Iterator[Tensor], trainees: list[Trainee]) -> None:
    optimizers = [torch.optim.Adam(t.module.parameters(), lr=1e-3) for t in trainees]
    for images in batches:
        for trainee, optimizer in zip(trainees, optimizers, strict=True):
            seen: dict[str, tuple[Tensor, Tensor]] = {}
            handle = workspace.teacher.get_submodule(trainee.layer.name).register_forward_hook(
                lambda _, args, output, seen=seen: seen.update(layer=(args[0], output))
            )
            with torch.no_grad():
                workspace.teacher(images)
            handle.remove()
            inputs, output = seen["layer"]
            loss = (trainee.module(inputs) - output).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _ours(workspace: Workspace, batches: Iterator[Tensor], trainees: list[Trainee]) -> None:
    distiller = Distiller(workspace.teacher, trainees, Recipe(lr=1e-3, steps=1000))
    for images in batches:
        distiller.step(images)


def _through_ray(config: Config, workers: int, steps: int, overhead: float) -> float:
    """Returns candidate-steps per second without the start, from the difference between two runs.

    Args:
        overhead: number of candidates' steps that take as long as a teacher pass.
    """
    ends = []
    short, long = 2 * steps * workers, 8 * steps * workers
    with connect(config.ray):
        for count in (short, long):
            with tempfile.TemporaryDirectory() as folder:
                own = _config(folder, config.data.image_size, config.distill.batch_size, steps=count)
                ray_config = own.ray.model_copy(update={"workers": workers})
                begin = time.perf_counter()
                workspace = _prepared(own.model_copy(update={"ray": ray_config}))
                candidates = _candidates(workspace)
                train(workspace, dict.fromkeys(candidates, 1.0), overhead=overhead)
                ends.append(time.perf_counter() - begin)
    return len(candidates) * (long - short) / (ends[1] - ends[0])


def _peak(config: Config, limit_gb: float, candidates: list[CandidateId]) -> dict[str, float]:
    """Peak memory of a process that trains the largest round which the limit allows."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_here, (config, limit_gb, candidates))


def _peak_here(config: Config, limit_gb: float, candidates: list[CandidateId]) -> dict[str, float]:
    torch.set_num_threads(1)
    limited = config.distill.model_copy(update={"memory_gb": limit_gb, "steps": 3})
    workspace = Workspace(config.model_copy(update={"distill": limited}))
    demands = find_demands(workspace, candidates)
    size = limited.batch_size
    rounds = plan_rounds(
        dict.fromkeys(candidates, 1.0),
        lambda some: memory(some, demands, size) <= limit_gb * GIB,
        overhead=1.0,
        workers=1,
        most=len(candidates),
    )
    largest = max(rounds, key=lambda one: memory(one, demands, size))
    before = _rss("VmRSS")
    # Resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    distill_round(
        workspace,
        largest,
        demands=demands,
        device=torch.device("cpu"),
        on_steps=lambda _: None,
    )
    return {
        "rounds": len(rounds),
        "planned": memory(largest, demands, size) / GIB,
        "taken": (_rss("VmHWM") - before) / GIB,
    }


def _rss(line: str) -> int:
    """Returns the bytes that the process has in memory (``VmRSS``), or had at its peak (``VmHWM``)."""
    status = Path("/proc/self/status").read_text().split("\n")
    return next(int(text.split()[1]) * 1024 for text in status if text.startswith(line))


if __name__ == "__main__":
    typer.run(main)
