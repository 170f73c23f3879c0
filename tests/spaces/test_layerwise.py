"""The layer-wise space: architectures drawn, encoded and built."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lana_ray.networks.layers import find_layers
from lana_ray.ops import parse_op
from lana_ray.spaces import Architecture, LayerwiseSpace
from lana_ray.spaces.layerwise import activation

from ..errors import refuses
from ..small_networks import net

IMAGES = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))


@cache
def small() -> LayerwiseSpace:
    """Three layers with 8, 7 and 8 candidates: the middle one has no identity."""
    network = net(5).eval()
    return LayerwiseSpace(network, find_layers(network, IMAGES), "tiny", seed=3)


def architectures() -> st.SearchStrategy[Architecture]:
    return st.tuples(*(st.integers(0, len(ops) - 1) for ops in small().ops))


def storages(network: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}


def test_sizes() -> None:
    space = small()
    assert [len(ops) for ops in space.ops] == [7, 7, 8]
    assert space.size == 7 * 7 * 8
    assert space.dimension == 22
    assert space.teacher == (0, 0, 0)
    assert [ops[0].name for ops in space.ops] == ["teacher"] * 3


@settings(deadline=None)
@given(architectures())
def test_encodings_are_one_hot_and_round_trip(architecture: Architecture) -> None:
    space = small()
    code = space.encode(architecture)
    assert code.shape == (space.dimension,)
    assert code.sum() == len(architecture)
    assert set(code.tolist()) <= {0.0, 1.0}
    assert space.decode(code) == architecture


@settings(deadline=None)
@given(architectures(), st.integers(0, 2**32 - 1))
def test_decoding_takes_the_strongest_choice(architecture: Architecture, seed: int) -> None:
    space = small()
    soft = space.encode(architecture) + np.random.default_rng(seed).uniform(0, 0.9, space.dimension)
    assert space.decode(soft) == architecture


def test_different_architectures_have_different_codes() -> None:
    space = small()
    everything = list(np.ndindex(*(len(ops) for ops in space.ops)))
    assert len({space.encode(a).tobytes() for a in everything}) == space.size


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_architectures_are_in_the_space(seed: int) -> None:
    space = small()
    architecture = space.random(np.random.default_rng(seed))
    assert architecture == space.random(np.random.default_rng(seed))
    assert all(0 <= choice < len(ops) for choice, ops in zip(architecture, space.ops, strict=True))
    assert all(type(choice) is int for choice in architecture)


def test_random_architectures_reach_every_candidate() -> None:
    space, rng = small(), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(300)]
    assert [len(set(column)) for column in zip(*drawn, strict=True)] == [7, 7, 8]


def test_random_architectures_of_some_candidates_use_no_others() -> None:
    space, rng, among = small(), np.random.default_rng(0), ((0, 3), (2,), (0, 1, 5))
    drawn = [space.random(rng, among) for _ in range(60)]
    assert [set(column) for column in zip(*drawn, strict=True)] == [set(choices) for choices in among]
    assert all(type(choice) is int for choice in space.random(rng, among))


def test_every_student_keeps_the_output_shape() -> None:
    space = small()
    for architecture in [tuple(choice % len(ops) for ops in space.ops) for choice in range(8)]:
        student = space.build(architecture).eval()
        assert student(IMAGES).shape == (4, 5)
        assert student(IMAGES).isfinite().all()


def test_the_teachers_architecture_is_the_teacher() -> None:
    space = small()
    student = space.build(space.teacher).eval()
    assert torch.equal(student(IMAGES), space.network(IMAGES))
    assert student is not space.network


def test_students_are_the_same_at_every_build() -> None:
    space = small()
    torch.manual_seed(1)
    first = space.build((2, 3, 6)).eval()
    torch.manual_seed(2)
    assert torch.equal(space.build((2, 3, 6)).eval()(IMAGES), first(IMAGES))
    other = LayerwiseSpace(space.network, space.layers, "tiny", seed=4).build((2, 3, 6)).eval()
    assert not torch.equal(other(IMAGES), first(IMAGES))


def test_trained_candidates_are_copied_into_place() -> None:
    space = small()
    trained = {(0, 2): space.candidate(0, 2), (2, 0): nn.Identity(), (1, 5): nn.Identity()}
    with torch.no_grad():
        for parameter in trained[0, 2].parameters():
            parameter.fill_(0.5)
    student = space.build((2, 4, 0), trained).eval()
    placed = student.get_submodule("blocks.0")
    assert all((parameter == 0.5).all() for parameter in placed.parameters())
    assert type(student.get_submodule("blocks.2")) is type(space.network.get_submodule("blocks.2"))
    assert storages(student).isdisjoint(storages(trained[0, 2]))
    assert storages(student).isdisjoint(storages(space.network))


def test_identities_follow_what_a_candidate_is_made_for() -> None:
    """What was measured of a candidate that reads other pixels is not taken for it."""
    space = small()
    first, strided, last = space.layers
    for other in (
        replace(strided, offset=(1.0, 1.0)),
        replace(strided, residual=True),
    ):
        changed = LayerwiseSpace(space.network, (first, other, last), "tiny", seed=3)
        assert changed.fingerprint != space.fingerprint
        choice = space.ops[1].index(parse_op("mbconv_e3_k3"))
        assert changed.structure(1, choice) != space.structure(1, choice)
        assert changed.structure(0, 2) == space.structure(0, 2)


def test_building_and_training_a_student_leaves_the_teacher_alone() -> None:
    space = small()
    before = space.network(IMAGES)
    student = space.build((1, 2, 0)).train().requires_grad_(True)
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    student(IMAGES).square().mean().backward()
    optimizer.step()
    assert torch.equal(space.network(IMAGES), before)


def test_architectures_are_described_for_people() -> None:
    space = small()
    assert {one.layer: one.op for one in space.chosen((0, 1, 1))} == {
        "blocks.0": "teacher",
        "blocks.1": "pruned_w0.5",
        "blocks.2": "identity",
    }
    assert space.label((0, 1, 1)) == "blocks.0=teacher|blocks.1=pruned_w0.5|blocks.2=identity"


def test_an_architecture_of_another_length_is_refused() -> None:
    for use in (small().build, small().chosen, small().encode):
        with pytest.raises(ValueError, match=r"argument|is not 3 choices"):
            use((0, 0))


def test_pools_by_name_and_their_mistakes() -> None:
    space = small()
    chosen = LayerwiseSpace(space.network, space.layers, ["identity", "mbconv_e1_k3"])
    assert [len(ops) for ops in chosen.ops] == [3, 2, 3]
    with refuses("unknown_name", "mbcomv_e1_k3", "mbconv"):
        LayerwiseSpace(space.network, space.layers, ["mbcomv_e1_k3"])


def test_the_fingerprint_follows_the_structure_and_not_the_weights() -> None:
    space = small()
    torch.manual_seed(9)
    retrained = net(5).eval()
    with torch.no_grad():
        for parameter in retrained.parameters():
            parameter.normal_()
    assert LayerwiseSpace(retrained, space.layers, "tiny").fingerprint == space.fingerprint
    wider = net(6).eval()
    assert LayerwiseSpace(wider, space.layers, "tiny").fingerprint != space.fingerprint


def test_networks_that_only_pad_or_activate_differently_have_other_fingerprints() -> None:
    """They cost differently: samples of one are none of the other."""
    images = torch.randn(2, 3, 32, 32)
    networks = [
        timm.create_model("efficientnet_lite0").eval(),
        timm.create_model("tf_efficientnet_lite0").eval(),
        timm.create_model("efficientnet_lite0", act_layer=nn.SiLU).eval(),
    ]
    spaces = [LayerwiseSpace(network, find_layers(network, images), "tiny") for network in networks]
    assert len({space.fingerprint for space in spaces}) == 3


def test_the_layer_itself_is_narrowed_where_it_has_channels_to_spare() -> None:
    space = small()
    narrowed = LayerwiseSpace(space.network, space.layers, ["pruned_w0.5", "conv_pair_w0.5_k3"])
    assert [[op.name for op in ops] for ops in narrowed.ops] == [
        ["teacher", "conv_pair_w0.5_k3"],
        ["teacher", "pruned_w0.5", "conv_pair_w0.5_k3"],
        ["teacher", "pruned_w0.5", "conv_pair_w0.5_k3"],
    ]
    hidden, _ = (part for part in narrowed.candidate(2, 1).modules() if isinstance(part, nn.Conv2d))
    assert hidden.out_channels == 8
    assert narrowed.build((0, 1, 1)).eval()(IMAGES).shape == (4, 5)
    assert len({narrowed.structure(layer, choice) for layer in (1, 2) for choice in (0, 1, 2)}) == 6


def test_a_narrowed_layer_has_the_structure_of_any_weights() -> None:
    space = small()
    retrained = copy.deepcopy(space.network)
    with torch.no_grad():
        for parameter in retrained.parameters():
            parameter.normal_()
    one, other = (LayerwiseSpace(x, space.layers, ["pruned_w0.5"]) for x in (space.network, retrained))
    assert one.ops == other.ops
    assert one.structure(1, 1) == other.structure(1, 1)
    one.candidate(1, 1).load_state_dict(other.candidate(1, 1).state_dict())


def test_candidates_act_as_the_teacher_does() -> None:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    assert activation(network) is nn.ReLU6
    assert activation(nn.Sequential(nn.SiLU(), nn.ReLU(), nn.SiLU())) is nn.SiLU
    assert activation(nn.Sequential(nn.Linear(1, 1))) is nn.ReLU
    assert activation(timm.create_model("convnext_atto")) is nn.GELU  # of a class of timm's
    space = LayerwiseSpace(network, find_layers(network, torch.randn(2, 3, 32, 32)), "tiny")
    assert any(isinstance(module, nn.ReLU6) for module in space.candidate(1, 1).modules())
