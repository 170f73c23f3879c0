"""Training state comes back as it was, and damage is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lana_ray.run_dir.resumable import pack, unpack

scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text()
states = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(0, 9), inner)
    ),
)


@given(states)
def test_what_is_packed_comes_back(state: Any) -> None:
    found = unpack(pack(state))
    assert found == state
    assert type(found) is type(state)


def test_an_optimiser_goes_on_from_its_state() -> None:
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [torch.optim.AdamW(layer.parameters(), lr=0.1) for layer in layers]

    def step(k: int) -> None:
        layers[k](torch.ones(1, 3)).sum().backward()
        optimizers[k].step()

    step(0)
    layers[1].load_state_dict(unpack(pack(layers[0].state_dict())))
    optimizers[1].load_state_dict(unpack(pack(optimizers[0].state_dict())))
    layers[0].zero_grad()
    step(0)
    step(1)
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_tensors_that_share_memory_are_kept_apart() -> None:
    shared = torch.arange(6.0)
    first, second = unpack(pack([shared[:3], shared.view(2, 3).T]))
    assert first.tolist() == [0, 1, 2]
    assert second.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match="function"):
        pack({"hook": lambda: None})


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_damaged_bytes_are_noticed(cut: int) -> None:
    with pytest.raises(ValueError, match="not a complete weights file"):
        unpack(pack({"step": 3, "weight": torch.ones(4)})[:cut])
