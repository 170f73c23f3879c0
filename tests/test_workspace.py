"""What stages and workers share: the same networks and identities from the configuration alone."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from lana_ray.config import Config, load_config
from lana_ray.errors import UserError
from lana_ray.ids import CandidateId
from lana_ray.ops import registry
from lana_ray.preflight.teacher import check_teacher
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import FINGERPRINT_KEY, Storage
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.stages import score
from lana_ray.stages.teacher import load_checked
from lana_ray.workspace import Workspace, structural_space, workspace_in_worker

from .data.samples import write_folder
from .small_networks import net, tuple_net

NETWORKS = Path(__file__).parent / "small_networks.py"
MBCONV = CandidateId("blocks.0", "mbconv_e1_k3")
IMAGES = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def configuration(folder: Path, **changes: Any) -> Config:
    if not (folder / "images").exists():
        write_folder(folder / "images", 20)
    settings: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "teacher": {"factory": f"{NETWORKS}:net"},
        "data": {
            "folder": str(folder / "images"),
            "image_size": 16,
            "score_images": 4,
            "validation_images": 4,
        },
        "pool": {"ops": ["identity", "mbconv_e1_k3", "conv_pair_w0.25_k3"]},
        "targets": [{"name": "a"}, {"name": "b", "input_shape": [3, 16, 16]}],
        "budgets": {"latency_ms": "50%"},
    }
    return load_config(settings | changes)


def write_teacher(config: Config, key: str = "k", scale: float = 1.0) -> None:
    state = {name: value * scale for name, value in net(3).state_dict().items()}
    Storage(config.run.dir).write_tensors(layout.TEACHER, state, {FINGERPRINT_KEY: key})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    config = configuration(tmp_path)
    write_teacher(config)
    return Workspace(config)


def write_candidate(workspace: Workspace, layer: int, choice: int, value: float) -> None:
    state = workspace.space.candidate(layer, choice).state_dict()
    filled = {k: torch.full_like(v, value) if v.is_floating_point() else v for k, v in state.items()}
    candidate = workspace.space.ids[layer][choice]
    key = workspace.candidate_key(candidate)
    workspace.storage.write_tensors(layout.candidate(candidate), filled, {FINGERPRINT_KEY: key})


def test_the_teacher_comes_from_the_run_directory(workspace: Workspace) -> None:
    teacher = workspace.teacher
    assert torch.allclose(teacher(IMAGES), net(3).eval()(IMAGES), atol=1e-5)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert workspace.teacher_key == "k"
    assert [layer.name for layer in workspace.layers] == ["blocks.0", "blocks.1", "blocks.2"]


def test_targets_take_the_datas_shape(workspace: Workspace) -> None:
    assert [target.input_shape for target in workspace.targets] == [(3, 16, 16)] * 2


def test_a_node_without_weights_and_data_has_the_same_space(workspace: Workspace) -> None:
    space = structural_space(workspace.config, 3)
    assert space.fingerprint == workspace.space.fingerprint
    assert space.ops == workspace.space.ops


def test_a_process_constructs_the_space_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the teacher, before it is written, and every stage afterwards use the same one."""
    constructed: list[LayerwiseSpace] = []
    construct = LayerwiseSpace.__init__

    def counted(self: LayerwiseSpace, *arguments: Any, **options: Any) -> None:
        constructed.append(self)
        construct(self, *arguments, **options)

    monkeypatch.setattr(LayerwiseSpace, "__init__", counted)
    workspace = Workspace(configuration(tmp_path))
    load_checked(workspace)
    write_teacher(workspace.config, scale=0.5)
    space = workspace.space
    assert workspace.students("layers") is space
    assert constructed == [space]
    assert space.network is workspace.teacher
    weights = dict(net(3).named_parameters())
    assert all(torch.equal(value, 0.5 * weights[name]) for name, value in space.network.named_parameters())


def test_students_are_made_of_the_distilled_candidates(workspace: Workspace) -> None:
    write_candidate(workspace, 0, 2, 0.25)
    student = workspace.student((2, 0, 1))
    placed = student.get_submodule("blocks.0")
    assert all((parameter == 0.25).all() for parameter in placed.parameters())
    assert isinstance(student.get_submodule("blocks.2"), torch.nn.Identity)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in workspace.teacher.parameters())
    assert student(IMAGES).shape == (4, 3)


def test_a_candidate_of_other_settings_is_never_taken(workspace: Workspace) -> None:
    write_candidate(workspace, 0, 2, 0.25)
    other = Workspace(configuration(Path(workspace.storage.root).parent, distill={"steps": 3}))
    with pytest.raises(UserError, match=r"blocks\.0--mbconv_e1_k3\.safetensors: was made with"):
        other.student((2, 0, 0))


def test_only_candidates_with_weights_of_their_own_are_distilled(workspace: Workspace) -> None:
    assert [workspace.has_weights(one) for one in workspace.space.ids[0]] == [False, False, True, True]
    assert isinstance(workspace.candidate(CandidateId("blocks.0", "identity")), torch.nn.Identity)


def keys(config: Config) -> tuple[str, str]:
    workspace = Workspace(config)
    return workspace.candidate_key(MBCONV), workspace.student_key((2, 0, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"distill": {"steps": 3}},
        {"distill": {"lr": 0.1}},
        {"distill": {"memory_gb": 1.0}},
        {"run": {"seed": 1}},
        {"teacher key": 0},
    ],
)
def test_what_changes_a_candidate_changes_its_identity(tmp_path: Path, change: dict[str, Any]) -> None:
    config = configuration(tmp_path)
    write_teacher(config)
    before = keys(config)
    if "run" in change:
        change = {"run": {"dir": config.run.dir, **change["run"]}}
    if "teacher key" in change:
        write_teacher(config, key="another")
        change = {}
    after = keys(configuration(tmp_path, **change))
    assert all(a != b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"distill": {"group_size": 1}},
        {"pool": {"ops": ["identity", "mbconv_e1_k3"]}},
        {"targets": [{"name": "c"}]},
        {"budgets": {"latency_ms": "10%"}},
        {"finetune": {"epochs": 9}},
    ],
)
def test_what_leaves_a_candidate_as_it_is_leaves_its_identity(tmp_path: Path, change: dict[str, Any]) -> None:
    config = configuration(tmp_path)
    write_teacher(config)
    assert keys(configuration(tmp_path, **change)) == keys(config)


def test_identities_tell_candidates_and_students_apart(workspace: Workspace) -> None:
    candidates = [workspace.candidate_key(one) for of_layer in workspace.space.ids for one in of_layer]
    assert len(set(candidates)) == len(candidates)
    assert workspace.student_key((2, 0, 0)) != workspace.student_key((0, 0, 2))


def test_a_worker_keeps_its_workspace_until_the_teacher_changes(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    write_teacher(config)
    first = workspace_in_worker(config)
    answer = first.teacher(IMAGES)
    assert workspace_in_worker(configuration(tmp_path)) is first
    write_teacher(config, key="retrained", scale=0.5)
    second = workspace_in_worker(config)
    assert second is not first
    assert not torch.equal(second.teacher(IMAGES), answer)
    assert workspace_in_worker(configuration(tmp_path, finetune={"epochs": 9})) is not second


def test_the_teacher_must_fit_data_and_pool(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    check_teacher(config, net(3).eval(), 3)
    with pytest.raises(UserError, match=r"\[2, 3\], but the data has 4 classes"):
        check_teacher(config, net(3).eval(), 4)
    with pytest.raises(UserError, match=r"layer blocks\.0 does not fit: it returns tuple"):
        check_teacher(config, tuple_net(3).eval(), 3)
    wrong = configuration(tmp_path, teacher={"factory": f"{NETWORKS}:net", "layers": ["stages.*"]})
    with pytest.raises(UserError, match="no module matches 'stages"):
        check_teacher(wrong, net(3).eval(), 3)


def test_operations_of_the_users_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", copy(registry.FAMILIES))
    monkeypatch.setattr(registry, "_FILES", set())
    (tmp_path / "my_ops.py").write_text(
        "from torch import nn\n"
        "from lana_ray.ops import register\n\n"
        "@register('conv')\n"
        "def conv(layer, *, act):\n"
        "    return nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = {"modules": ["my_ops.py"], "ops": ["conv", "mbconv_e1_k3"]}
    config = configuration(tmp_path, pool=pool)
    assert config.pool.modules == (str(tmp_path / "my_ops.py"),)
    write_teacher(config)
    workspace = Workspace(config)
    assert [op.name for op in workspace.space.ops[1]] == ["teacher", "conv", "mbconv_e1_k3"]
    assert structural_space(config, 3).build((1, 1, 1))(IMAGES).shape == (4, 3)
    conv = CandidateId("blocks.0", "conv")
    assert workspace.candidate_key(conv) != workspace.candidate_key(MBCONV)
    gone = configuration(tmp_path, pool={"modules": ["gone.py"]})
    with pytest.raises(UserError, match=r"pool\.modules: .*/gone\.py: .*No such file"):
        check_teacher(gone, net(3).eval(), 3)


def test_scores_kept_by_number_are_not_those_of_another_order(tmp_path: Path) -> None:
    orders = (["identity", "mbconv_e1_k3"], ["mbconv_e1_k3", "identity"])
    workspaces = [Workspace(configuration(tmp_path, pool={"ops": ops})) for ops in orders]
    write_teacher(workspaces[0].config)
    names = [[op.name for op in workspace.space.ops[0]] for workspace in workspaces]
    assert names[0] != names[1]
    first, second = (score._key(workspace, 0, (0, 1, 2)) for workspace in workspaces)
    assert first != second
    assert first == score._key(workspaces[0], 0, (0, 1, 2))


def test_the_layers_are_looked_for_where_the_network_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has moved the teacher to its GPU asks for its layers afterwards."""

    class Asked(Exception):
        pass

    def find_layers(network: torch.nn.Module, example: torch.Tensor, patterns: Any) -> None:
        raise Asked(example.device.type)

    monkeypatch.setattr("lana_ray.workspace.find_layers", find_layers)
    workspace = Workspace(configuration(tmp_path))
    write_teacher(workspace.config)
    workspace.teacher.to("meta")
    with pytest.raises(Asked, match="meta"):
        _ = workspace.space
