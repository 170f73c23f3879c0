"""Rounds of candidates for the workers, and the memory that they need, against what torch really takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lana_ray.distill.rounds import Demand, demand, memory, parts, plan_rounds
from lana_ray.ids import CandidateId
from lana_ray.networks.layers import Layer
from lana_ray.ops import build_op, fits, parse_op
from lana_ray.testing.layers import RESIDUAL, WIDER


def candidate(layer: int, choice: int) -> CandidateId:
    return CandidateId(f"blocks.{layer}", f"op{choice}")


_CANDIDATES = st.dictionaries(
    st.builds(candidate, st.integers(0, 20), st.integers(1, 20)),
    st.tuples(
        st.floats(0.001, 1000.0),
        st.builds(
            Demand,
            kept=st.integers(0, 1000),
            per_image=st.integers(1, 1000),
            observed=st.integers(1, 100),
        ),
    ),
    max_size=60,
)
_SAME = Demand(kept=10, per_image=5, observed=1)


@settings(deadline=None)
@given(
    _CANDIDATES,
    st.floats(0, 100),
    st.integers(1, 9),
    st.integers(2, 8),
    st.floats(1, 1e5),
    st.integers(1, 20),
)
def test_every_candidate_once_in_order_and_within_the_limits(
    known: dict[CandidateId, tuple[float, Demand]],
    overhead: float,
    workers: int,
    batch_size: int,
    limit: float,
    most: int,
) -> None:
    costs = {c: cost for c, (cost, _) in known.items()}
    demands = {c: demand for c, (_, demand) in known.items()}
    rounds = plan_rounds(
        costs,
        lambda some: memory(some, demands, batch_size) <= limit,
        overhead=overhead,
        workers=workers,
        most=most,
    )
    assert [c for one in rounds for c in one] == list(costs)
    left = sum(costs.values())
    for one in rounds:
        assert 1 <= len(one) <= most
        assert len(one) == 1 or memory(one, demands, batch_size) <= limit
        took = sum(costs[c] for c in one)
        share = max(left / (2 * workers), min(10 * overhead, sum(costs.values()) / workers))
        share = left if workers == 1 else share + 10 * overhead
        assert len(one) == 1 or took <= share * (1 + 1e-6)
        left -= took


def even(layers: int = 8, each: int = 8) -> dict[CandidateId, float]:
    return {candidate(layer, choice): 1.0 for layer in range(layers) for choice in range(each)}


def plan(
    costs: dict[CandidateId, float], workers: int, overhead: float, most: int = 1000
) -> list[list[CandidateId]]:
    demands = dict.fromkeys(costs, _SAME)
    return plan_rounds(
        costs,
        lambda some: memory(some, demands, 4) <= 1e9,
        overhead=overhead,
        workers=workers,
        most=most,
    )


def test_rounds_become_smaller_so_that_workers_end_together() -> None:
    sizes = [len(one) for one in plan(even(), workers=2, overhead=0.2)]
    assert sizes == [16, 12, 9, 6, 5, 4, 3, 2, 2, 2, 3]
    ends = [0, 0]
    for size in sizes:  # each to whoever is idle first, the second worker three times as fast
        idle = ends.index(min(ends))
        ends[idle] += size * (3, 1)[idle]
    assert max(ends) - min(ends) <= 6


def test_no_round_is_so_small_that_the_teacher_would_cost_more() -> None:
    assert [len(one) for one in plan(even(), workers=2, overhead=2.0)] == [20, 20, 24]
    assert [len(one) for one in plan(even(), workers=2, overhead=100.0)] == [32, 32]
    assert [len(one) for one in plan(even(), workers=4, overhead=100.0)] == [16, 16, 16, 16]


def test_one_worker_takes_all_at_once_as_far_as_it_may() -> None:
    assert [len(one) for one in plan(even(), workers=1, overhead=0.0)] == [64]
    assert [len(one) for one in plan(even(), workers=1, overhead=0.0, most=24)] == [24, 24, 16]


def test_memory_counts_a_layers_activations_once_and_the_largest_step() -> None:
    demands = {
        candidate(0, 1): Demand(kept=10, per_image=5, observed=3),
        candidate(0, 2): Demand(kept=20, per_image=7, observed=3),
        candidate(1, 1): Demand(kept=30, per_image=6, observed=4),
    }
    assert memory(list(demands), demands, 2) == 60 + 2 * (3 + 4 + 7)


@given(st.integers(2, 300), st.integers(0, 10**6), st.integers(1, 10**5), st.floats(1, 1e7))
def test_parts_keep_the_limit_as_far_as_two_images_do(
    batch_size: int, kept: int, per_image: int, limit: float
) -> None:
    one = Demand(kept=kept, per_image=per_image, observed=1)
    count = parts(one, batch_size, limit)
    sizes = [len(range(k, batch_size, count)) for k in range(count)]
    assert sum(sizes) == batch_size
    assert min(sizes) >= 2 or count == 1
    if min(sizes) > 3:
        assert kept + batch_size + max(sizes) * per_image <= limit or count == 1
    if memory([candidate(0, 1)], {candidate(0, 1): one}, batch_size) <= limit:
        assert count == 1


LAYER = Layer(name="x", input_shape=(8, 6, 6), output_shape=(8, 6, 6), residual=False)
SIZE = 8 * 6 * 6 * 4


class _Known(nn.Module):
    """Saves its input, which is the teacher's, and the first product for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.a) * self.b


def test_what_a_known_module_saves_is_counted_once() -> None:
    found = demand(_Known(), LAYER)
    assert found.kept == 4 * 4 * 2
    assert found.per_image == SIZE + 3 * SIZE
    assert found.observed == 2 * SIZE


@pytest.mark.parametrize("layer", [RESIDUAL, WIDER])
@pytest.mark.parametrize("op", ["mbconv_e6_k5", "conv_pair_w1_k3", "bottleneck_w0.25_k3", "bot_w0.5"])
def test_what_is_saved_grows_with_the_images_as_foreseen(op: str, layer: Layer) -> None:
    """The graph of a large batch holds as much as two images say."""
    assert fits(parse_op(op), layer)
    module = build_op(parse_op(op), layer, seed=0).train()
    foreseen = demand(module, layer)
    saved: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in module.state_dict(keep_vars=True).values()}
    images = torch.randn(32, *layer.input_shape)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() != images.data_ptr():
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = module(images)  # keeps all that is saved alive
    least = sum(saved.values())
    largest = max(output.nbytes, *saved.values())
    assert least <= 32 * foreseen.per_image <= 1.1 * (least + 3 * largest)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    demand(nn.Dropout(0.5), LAYER)
    assert torch.equal(torch.rand(2), expected)
