"""Micro-batches: how a batch is cut, and that any number of workers makes the same network of them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from lana_ray.config import FinetuneConfig
from lana_ray.run_dir.resumable import Checkpoint
from lana_ray.training.loop import Training, train_network
from lana_ray.training.micro import Rank, StepTotal, micro_batches

from ..data.samples import encoded, load, write_parquet
from ..small_networks import net

ALONE = Rank()


@given(batch_size=st.integers(2, 512), at_least=st.integers(2, 64))
def test_a_batch_is_cut_into_as_many_equal_parts_as_are_large_enough(batch_size: int, at_least: int) -> None:
    count = micro_batches(batch_size, at_least)
    fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n >= at_least]
    assert count == max(fitting, default=1)


def test_the_gradient_is_that_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    network, images = nn.Linear(5, 3), torch.randn(12, 5)
    network(images).square().mean().backward()
    expected = network.weight.grad
    network.zero_grad()
    total = StepTotal(network)
    for part in images.chunk(4):
        total.restart()
        total.add(network(part).square().mean())
    loss = total.finish(4, ALONE)
    assert loss == pytest.approx(network(images).square().mean().item())
    torch.testing.assert_close(network.weight.grad, expected)


def test_statistics_are_the_mean_over_micro_batches_of_one_update() -> None:
    network, images = nn.BatchNorm1d(2), torch.randn(8, 2)
    total = StepTotal(network)
    for part in images.chunk(2):
        total.restart()
        total.add(network(part).sum())
    total.finish(2, ALONE)
    torch.testing.assert_close(network.running_mean, 0.1 * images.mean(0))
    assert network.num_batches_tracked == 1


def test_what_is_frozen_or_never_used_gets_no_gradient() -> None:
    network = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("used", "idle", "frozen")})
    network["frozen"].requires_grad_(False)
    total = StepTotal(network)
    total.add(network["frozen"](network["used"](torch.ones(2, 2))).sum())
    total.finish(1, ALONE)
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {
        "used.weight",
        "used.bias",
    }


def test_complex_weights_learn() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    network = nn.ParameterDict({"weight": weight})
    total = StepTotal(network)
    total.add((weight * torch.tensor([1j, 2.0, 3.0])).real.sum())
    total.finish(1, ALONE)
    assert weight.grad is not None
    assert weight.grad.tolist() == [-1j, 2, 3]


class Dropping(nn.Module):
    """A network with dropout, and with a part that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.idle = net(3), nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(nn.functional.dropout(images, 0.2, self.training))
        return answer


def _worker(rank: int, size: int, images: str, folder: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size
        )
    torch.manual_seed(0)
    trained = train_network(
        Dropping(),
        load(parquet=images, seed=1, augment="flip"),
        Training(
            config=FinetuneConfig(epochs=2, batch_size=24, micro_batch_size=6),
            seed=0,
            teacher=net(3).eval(),
        ),
        checkpoint=Checkpoint(load=lambda: None, save=lambda state: None),
        rank=Rank(index=rank, size=size),
    )
    kept = {"state": trained.state, "curve": torch.tensor([[*point.values()] for point in trained.curve])}
    torch.save(kept, f"{folder}/{size}-{rank}.pt")


def test_any_number_of_workers_makes_the_same_network(tmp_path: Path) -> None:
    """Four micro-batches a step, shared by one worker, three (unevenly) and five, one of them idle."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (60, 12, 12, 3), dtype=np.uint8)
    images = write_parquet(tmp_path / "train.parquet", [encoded(Image.fromarray(image)) for image in pixels])
    sizes, spawn = (1, 3, 5), multiprocessing.get_context("spawn")
    for size in sizes:
        workers = [
            spawn.Process(target=_worker, args=(rank, size, str(images), str(tmp_path)))
            for rank in range(size)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0] * size
    kept: dict[Any, dict[str, Any]] = {
        (size, rank): torch.load(tmp_path / f"{size}-{rank}.pt") for size in sizes for rank in range(size)
    }
    alone = kept[1, 0]
    for who, found in kept.items():
        assert torch.equal(found["curve"], alone["curve"]), who
        assert [n for n, x in alone["state"].items() if not torch.equal(found["state"][n], x)] == [], who
