"""LAT(α) of measured latencies: what it says along a search is what the found cells really take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from lana_ray.latency import LatencyPredictor
from lana_ray.search.bilevel import Objective, SearchBatches, search
from lana_ray.search.settings import SearchSettings
from lana_ray.spaces import Architecture, NasBench201Space

from .toys import batches, output

CELLS = NasBench201Space()


class Idle(nn.Module):
    """A supernet without a task, so that cost alone moves it; it begins with convolutions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.space = CELLS
        self.alphas = nn.ParameterList(
            nn.Parameter(torch.randn(5, generator=generator) + torch.tensor([0.0, 0, 1, 3, 0]))
            for _ in range(6)
        )

    def logits(self) -> list[Tensor]:
        return [alpha.log_softmax(0) for alpha in self.alphas]

    def architecture_parameters(self) -> list[nn.Parameter]:
        return list(self.alphas)

    def weight_parameters(self) -> list[nn.Parameter]:
        return []

    def forward(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return 0 * torch.cat(list(weights)).sum()


@pytest.fixture(scope="module", params=["raspi4", "1080ti_256"])
def latency(request: pytest.FixtureRequest) -> dict[Architecture, float]:
    """Of every live cell on a device; an edge that is dead is not there."""
    shared = Path(os.environ.get("LANA_RAY_SHARED") or Path(__file__).parents[3] / "shared")
    folder = shared / "data/latency/nb201"
    if not folder.is_dir():
        pytest.skip(f"no latencies at {folder}; set LANA_RAY_SHARED")
    cells = [CELLS.parse(line) for line in (folder / "archs.txt").read_text().splitlines()]
    with np.load(folder / "latency_ms.npz", allow_pickle=False) as file:
        known = dict(zip(cells, file[request.param].astype(float).tolist(), strict=True))
    return {cell: known[cell] for cell in cells if CELLS.live(cell) == cell}


@pytest.mark.slow
def test_a_search_for_cost_alone_falls_in_true_latency(latency: dict[Architecture, float]) -> None:
    rng = np.random.default_rng(0)
    drawn = [CELLS.live(CELLS.random(rng)) for _ in range(900)]
    encodings = np.stack([CELLS.encode(cell) for cell in drawn])
    known = np.array([latency[cell] for cell in drawn])
    cost = LatencyPredictor(seed=0).fit(encodings, known).as_module()
    settings = SearchSettings(epochs=20, alpha_lr=0.1, multiplier=1.0)
    expected, true = [], []
    for seed in range(3):
        result = search(
            Idle(seed),
            Objective(cost=cost, reference=float(known.mean()), loss=output),
            SearchBatches(weights=batches, alphas=batches, steps=2),
            dataclasses.replace(settings, seed=seed),
        )
        expected += [point.expected_cost for point in result.trajectory]
        true += [latency[point.architecture] for point in result.trajectory]
        assert true[-1] < 0.6 * true[-20]
        assert true[-1] <= np.quantile(known, 0.1)
    assert spearmanr(expected, true).statistic > 0.8
