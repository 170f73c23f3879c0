"""What training asks of the memory, against what torch really takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lana_ray.distill.demand import demand
from lana_ray.networks.layers import Layer
from lana_ray.ops import build_op, fits, parse_op
from lana_ray.testing.layers import RESIDUAL, WIDER

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
