"""FBNet's space: its size, its encoding, and the networks it builds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.spaces import FBNetSpace
from lana_ray.spaces.fbnet import BLOCKS

SPACE = FBNetSpace(classes=7)
ARCHITECTURES = st.tuples(*[st.integers(0, len(BLOCKS) - 1)] * 22)


def test_it_has_the_papers_size() -> None:
    assert (len(SPACE.sizes), SPACE.size, SPACE.dimension) == (22, 9**22, 198)


@given(ARCHITECTURES)
def test_encoding_and_decoding_are_inverse(architecture: tuple[int, ...]) -> None:
    encoding = SPACE.encode(architecture)
    assert encoding.shape == (SPACE.dimension,)
    assert encoding.sum() == len(SPACE.sizes)
    assert SPACE.decode(encoding) == architecture
    assert SPACE.decode(0.9 * encoding + 0.1 / 9) == architecture  # a relaxed one goes to the nearest


@pytest.mark.parametrize("wrong", [(0,) * 21, (9,) + (0,) * 21, (-1,) + (0,) * 21])
def test_what_is_no_architecture_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"is not 22 choices among \(9, 9"):
        SPACE.encode(wrong)


def test_random_architectures_are_reproducible_and_of_the_space() -> None:
    drawn = [SPACE.random(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(SPACE.decode(SPACE.encode(a)) == a for a in drawn)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_every_block_builds_a_network(block: int) -> None:
    network = SPACE.build((block,) * len(SPACE.sizes)).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_parameters_are_those_of_the_definition() -> None:
    """Of k3_e6 throughout: stem, blocks, head and classifier added up by hand."""
    widths = [16, *[24] * 4, *[32] * 4, *[64] * 4, *[112] * 4, *[184] * 4, 352]
    expected, channels = 3 * 16 * 9 + 2 * 16, 16
    for width in widths:
        middle = 6 * channels
        expected += channels * middle + 9 * middle + middle * width + 2 * (2 * middle + width)
        channels = width
    expected += 352 * 1984 + 2 * 1984 + 1985 * 7
    network = SPACE.build((BLOCKS.index("k3_e6"),) * len(SPACE.sizes))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
