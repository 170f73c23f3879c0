"""Compares the speed of our data loader with Ray Data's, on the same Parquet file.

    python jobs/benchmark_data.py PATH/train.parquet --size 64 --size 224

Both decode, crop, resize and normalise with the same functions and return tensors of the same shape. Ours
reads at random in the training process, in one background thread; Ray Data streams blocks through its own
tasks and shuffles within a buffer. Memory is the peak of the training process.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer
from rich.table import Table
from torch import Tensor

from lana_ray.cluster.connection import connect
from lana_ray.config import DataConfig, RayConfig
from lana_ray.config.data import IMAGENET_MEAN, IMAGENET_STD
from lana_ray.data import load_data, pixels
from lana_ray.monitoring.progress import console

_WARM = 2


def main(
    file: Path,
    size: Annotated[list[int] | None, typer.Option(help="Height and width; may be repeated.")] = None,
    batch_size: int = 64,
    batches: int = 100,
) -> None:
    """Prints a table of images per second."""
    torch.set_num_threads(1)
    table = Table(title="images per second", title_justify="left")
    for column in ("px", "ours", "Ray Data", "ours to Ray Data"):
        table.add_column(column, justify="right")
    with connect(RayConfig(address="local")):
        for px in size or [64, 224]:
            ours = _rate(_ours(file, px, batch_size), batches)
            rays = _rate(_ray_data(file, px, batch_size), batches)
            table.add_row(str(px), f"{ours:.0f}", f"{rays:.0f}", f"{ours / rays:.2f}")
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"peak memory of this process: {peak:.2f} GiB")


def _rate(images: Iterator[Tensor], batches: int) -> float:
    # The first batches open the file and start the workers.
    for _ in range(_WARM):
        next(images)
    begin, count = time.perf_counter(), 0
    for _ in range(batches):
        count += len(next(images))
    return count / (time.perf_counter() - begin)


def _ours(file: Path, size: int, batch_size: int) -> Iterator[Tensor]:
    data = load_data(DataConfig(parquet=str(file), image_size=size, augment="none"))
    while True:
        for images, _ in data.shuffled("train", batch_size=batch_size):
            yield images


def _ray_data(file: Path, size: int, batch_size: int) -> Iterator[Tensor]:
    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        decoded = [pixels.decode(image["bytes"]) for image in batch["img"]]
        fitted = pixels.fit(decoded, size)
        return {"images": pixels.normalise(fitted, IMAGENET_MEAN, IMAGENET_STD).contiguous().numpy()}

    while True:
        data = ray.data.read_parquet(str(file), columns=["img"]).map_batches(prepare, batch_size=batch_size)
        for batch in data.iter_torch_batches(
            batch_size=batch_size, drop_last=True, local_shuffle_buffer_size=8 * batch_size
        ):
            yield batch["images"]


if __name__ == "__main__":
    typer.run(main)
