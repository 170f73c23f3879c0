"""The suite that every search space must pass, on random architectures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lana_ray.ids import Architecture
from lana_ray.spaces.space import Space, StudentSpace

_DRAWN = 20


class SpaceSuite:
    """Tests of a space: override ``space``; two networks are built for images of ``image_size`` pixels."""

    image_size = 32

    def space(self) -> Space:
        """Returns the space to test."""
        raise NotImplementedError

    def drawn(self, space: Space, seed: int = 0) -> Sequence[Architecture]:
        rng = np.random.default_rng(seed)
        return [space.random(rng) for _ in range(_DRAWN)]

    def test_sizes_agree(self) -> None:
        space = self.space()
        assert space.dimension == sum(space.sizes)
        assert 1 <= space.size <= np.prod([float(size) for size in space.sizes])

    def test_what_is_drawn_is_of_the_space_and_depends_on_the_seed_alone(self) -> None:
        space = self.space()
        assert self.drawn(space) == self.drawn(space)
        assert self.drawn(space) != self.drawn(space, seed=1)
        for architecture in self.drawn(space):
            assert all(0 <= choice < size for choice, size in zip(architecture, space.sizes, strict=True))

    def test_encodings_are_one_hot_and_decode_to_the_same_encoding(self) -> None:
        space = self.space()
        for architecture in self.drawn(space):
            code = space.encode(architecture)
            assert code.shape == (space.dimension,)
            assert code.dtype == np.float32
            parts = np.split(code, np.cumsum(space.sizes)[:-1])
            assert all(sorted(part)[:-1] == [0] * (len(part) - 1) and part.max() == 1 for part in parts)
            np.testing.assert_array_equal(space.encode(space.decode(code)), code)

    def test_networks_answer_images(self) -> None:
        space = self.space()
        for architecture in self.drawn(space)[:2]:
            with torch.no_grad():
                answer = space.build(architecture).eval()(torch.zeros(2, 3, self.image_size, self.image_size))
            assert answer.shape[0] == 2
            assert answer.isfinite().all()

    def test_students_are_told_apart_by_label_and_structure(self) -> None:
        space = self.space()
        if isinstance(space, StudentSpace):
            for architecture in self.drawn(space):
                again = space.parse(space.label(architecture))
                assert space.network_structure(again) == space.network_structure(architecture)
                assert space.label(again) == space.label(architecture)
