"""Training of whole networks: resumed to the bit, best epoch kept, the teacher listened to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lana_ray.config import FinetuneConfig, TrainConfig
from lana_ray.data import ImageData
from lana_ray.run_dir.resumable import Checkpoint, pack, unpack
from lana_ray.training import loop
from lana_ray.training.loop import Trained, Training, accuracy, steps_of, train_network
from lana_ray.training.micro import Rank

from ..data.samples import encoded, load, write_parquet
from ..small_networks import net

CPU = torch.device("cpu")


class Interrupted(Exception):
    pass


@dataclasses.dataclass
class Memory:
    """A checkpoint kept in memory."""

    state: bytes | None = None
    saves: int = 0

    def save(self, state: Any) -> None:
        self.state = pack(state)
        self.saves += 1

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(load=lambda: unpack(self.state) if self.state else None, save=self.save)


def coloured() -> list[bytes]:
    """60 noisy pictures, each bright in the channel of its class."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 200, (60, 12, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        pixels[:, :, number % 3] += 50
    return [encoded(Image.fromarray(pixels)) for pixels in noise]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("images") / "train.parquet", coloured())


@pytest.fixture(scope="module")
def data(images: Path) -> ImageData:
    """40 training images of three classes, 12 x 12."""
    return load(parquet=str(images), seed=1)


def train(
    data: ImageData,
    config: TrainConfig,
    *,
    network: nn.Module | None = None,
    teacher: nn.Module | None = None,
    memory: Memory | None = None,
    on_step: Callable[[], None] = lambda: None,
    rank: Rank = Rank(),  # noqa: B008 - frozen
    seed: int = 0,
    **extras: Any,
) -> tuple[Trained, nn.Module]:
    network = network or net(3)
    trained = train_network(
        network,
        data,
        Training(config=config, seed=seed, teacher=teacher, **extras),
        checkpoint=(memory or Memory()).checkpoint(),
        rank=rank,
        on_step=on_step,
    )
    return trained, network


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def interrupt_after(steps: int) -> Callable[[], None]:
    left = [steps]

    def on_step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted

    return on_step


def test_a_training_learns(data: ImageData) -> None:
    trained, network = train(data, TrainConfig(epochs=12, batch_size=16, lr=1e-2))
    assert [point["epoch"] for point in trained.curve] == list(range(1, 13))
    assert trained.curve[-1]["loss"] < 0.7 * trained.curve[0]["loss"]
    assert all(0 <= point["accuracy"] <= 1 for point in trained.curve)
    network.eval()
    assert accuracy(network, data.batches("train", batch_size=16), CPU) > 0.6


def test_the_same_training_twice_is_the_same(data: ImageData) -> None:
    config = TrainConfig(epochs=2, batch_size=16)
    first, second = train(data, config)[0], train(data, config)[0]
    assert_equal(first.state, second.state)
    assert first.curve == second.curve


def test_another_seed_sees_the_images_in_another_order(data: ImageData) -> None:
    config = TrainConfig(epochs=2, batch_size=16)
    states = [train(data, config, seed=seed)[0].state for seed in (0, 1)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("steps", "distilled"), [(2, False), (3, True), (5, False), (8, True)])
def test_a_killed_training_goes_on_to_the_same_weights(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, steps: int, distilled: bool
) -> None:
    """Eight steps, two per epoch; killed in the middle of epochs, at their ends, and twice."""
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1.0)
    kind = FinetuneConfig if distilled else TrainConfig
    config = kind(epochs=4, batch_size=20)
    teacher = net(3).eval() if distilled else None
    whole, final = train(data, config, teacher=teacher)
    memory, counted = Memory(), [0]
    for stop in (steps, steps):
        with pytest.raises(Interrupted):
            train(data, config, teacher=teacher, memory=memory, on_step=interrupt_after(stop))

    def count() -> None:
        counted[0] += 1

    resumed, network = train(data, config, teacher=teacher, memory=memory, on_step=count)
    assert_equal(dict(network.state_dict()), dict(final.state_dict()))
    assert_equal(resumed.state, whole.state)
    assert resumed.curve == whole.curve
    assert resumed.validation_accuracy == whole.validation_accuracy
    assert counted == [8]  # progress counts what was done before


def test_a_resumed_training_starts_where_it_stopped(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1.0)
    memory, config = Memory(), TrainConfig(epochs=1, batch_size=8)
    with pytest.raises(Interrupted):
        train(data, config, memory=memory, on_step=interrupt_after(4))
    forwards: list[int] = []
    network = net(3)
    network.register_forward_hook(lambda module, args, out: forwards.append(1) if module.training else None)
    train(data, config, network=network, memory=memory)
    assert len(forwards) == 2  # of five steps, three were saved


def test_dropout_goes_on_as_if_the_training_had_not_been_killed(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1.0)
    config = TrainConfig(epochs=2, batch_size=20)

    def dropping() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), net(3))

    whole, _ = train(data, config, network=dropping())
    memory = Memory()
    with pytest.raises(Interrupted):
        train(data, config, network=dropping(), memory=memory, on_step=interrupt_after(2))
    torch.manual_seed(99)  # another process draws from elsewhere
    resumed, _ = train(data, config, network=dropping(), memory=memory)
    assert_equal(resumed.state, whole.state)


class Assisted(nn.Module):
    """A network with a second classifier, which answers in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.second = net(3), nn.Linear(3 * 12 * 12, 3)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        answer: Tensor = self.network(images)
        return (answer, self.second(images.flatten(1))) if self.training else answer


@pytest.mark.parametrize("distilled", [False, True])
def test_a_second_classifier_learns_by_its_weight_in_the_loss(data: ImageData, distilled: bool) -> None:
    config = (FinetuneConfig if distilled else TrainConfig)(epochs=1, batch_size=20, weight_decay=0.0)
    teacher = net(3).eval() if distilled else None
    states = {}
    for weight in (0.0, 0.4):
        torch.manual_seed(0)
        network = Assisted()
        begin = network.second.weight.detach().clone()
        trained, _ = train(data, config, network=network, teacher=teacher, auxiliary_weight=weight)
        states[weight] = trained.state
        assert torch.equal(trained.state["second.weight"], begin) == (weight == 0)
    # It shares nothing with the first one here, whose training it must therefore not change.
    own = [name for name in states[0.0] if name.startswith("network.")]
    assert_equal({n: states[0.0][n] for n in own}, {n: states[0.4][n] for n in own})


def test_an_epoch_begins_with_the_share_that_is_done(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1.0)
    config, shares, memory = TrainConfig(epochs=4, batch_size=20), list[float](), Memory()
    with pytest.raises(Interrupted):
        train(data, config, memory=memory, on_step=interrupt_after(4), on_epoch=shares.append)
    assert shares == [0, 0.25]
    train(data, config, memory=memory, on_epoch=shares.append)
    assert shares == [0, 0.25, 0.25, 0.5, 0.75]  # the epoch that was begun is told again


def test_the_state_is_saved_now_and_then_and_by_the_first_rank_only(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(epochs=1, batch_size=8)
    seldom, often, other = Memory(), Memory(), Memory()
    train(data, config, memory=seldom)
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1.0)
    train(data, config, memory=often)
    monkeypatch.setattr(loop, "all_reduce", lambda counts, rank: counts.add_(1))  # there is no other process
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, lambda *args, **options: None)
    train(data, config, memory=other, rank=Rank(index=1, size=2))
    assert (seldom.saves, other.saves) == (0, 0)
    assert often.saves == 4  # the end of the epoch ends the training


def test_the_best_epoch_is_kept(data: ImageData) -> None:
    """The network is spoilt before its last epoch ends: an earlier one must be the result."""
    network = net(3)
    config, steps = TrainConfig(epochs=8, batch_size=20, lr=1e-2), [0]

    def spoil() -> None:
        steps[0] += 1
        if steps[0] == 16:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.fill_(float("nan"))

    labels = [label for _, batch in data.batches("validation", batch_size=64) for label in batch.tolist()]
    trained, _ = train(data, config, network=network, on_step=spoil)
    accuracies = [point["accuracy"] for point in trained.curve]
    assert trained.validation_accuracy == max(accuracies)
    assert accuracies[-1] == pytest.approx(labels.count(0) / len(labels))  # the argmax of NaN is 0
    assert max(accuracies) > accuracies[-1]
    assert all(value.isfinite().all() for value in trained.state.values())
    best = net(3)
    best.load_state_dict(trained.state)
    assert accuracy(best.eval(), data.batches("validation", batch_size=64), CPU) == max(accuracies)


@pytest.mark.parametrize("kd_weight", [0.0, 0.5, 1.0])
def test_labels_count_as_much_as_they_should(images: Path, data: ImageData, kd_weight: float) -> None:
    shifted = write_parquet(
        images.parent / f"{kd_weight}.parquet", coloured(), [(k + 1) % 3 for k in range(60)]
    )
    relabelled = load(parquet=str(shifted), seed=1)
    config = FinetuneConfig(epochs=1, batch_size=20, kd_weight=kd_weight)
    torch.manual_seed(4)
    teacher = net(3).eval()
    networks = [train(d, config, teacher=teacher)[1].state_dict() for d in (data, relabelled)]
    equal = all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert equal == (kd_weight == 1.0)


def test_without_weight_the_teacher_does_not_count(data: ImageData) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 20, "weight_decay": 0.0}
    plain = train(data, TrainConfig(**settings))[0]
    deaf = train(data, FinetuneConfig(**settings, kd_weight=0.0), teacher=net(3).eval())[0]
    assert_equal(plain.state, deaf.state)


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(data: ImageData) -> None:
    class Constant(nn.Module):
        """A head alone, so that training and evaluation mode answer alike."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    torch.manual_seed(0)
    student = Constant()
    teacher = Constant()
    teacher.load_state_dict(student.state_dict())
    config = FinetuneConfig(epochs=1, batch_size=20, kd_weight=1.0, weight_decay=0.0)
    trained, _ = train(data, config, network=student, teacher=teacher)
    assert trained.curve[0]["loss"] == pytest.approx(0.0, abs=1e-5)


def test_weight_decay_spares_biases_and_norms(data: ImageData) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(3)
            self.norm = nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            idle = sum(parameter.sum() for part in (self.norm, self.conv) for parameter in part.parameters())
            out: Tensor = self.net(x) + 0 * idle
            return out

    network = Unused()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(data, TrainConfig(epochs=1, batch_size=20, weight_decay=0.5), network=network)
    after = network.state_dict()
    assert torch.equal(after["norm.weight"], before["norm.weight"])
    assert torch.equal(after["conv.bias"], before["conv.bias"])
    assert (after["conv.weight"].abs() < before["conv.weight"].abs()).all()


@pytest.mark.parametrize(("epochs", "steps"), [(2, 4), (0.5, 1), (1.5, 3), (0.01, 1)])
def test_fractions_of_an_epoch(data: ImageData, epochs: float, steps: int) -> None:
    config = TrainConfig(epochs=epochs, batch_size=20)
    done = [0]

    def count() -> None:
        done[0] += 1

    trained, _ = train(data, config, on_step=count)
    assert done == [steps]
    assert steps_of(config, 40) == steps
    assert trained.curve[-1]["epoch"] == steps / 2


def test_fewer_images_than_a_batch_are_one_batch(data: ImageData) -> None:
    done = [0]

    def count() -> None:
        done[0] += 1

    config = TrainConfig(epochs=3, batch_size=64)
    trained, _ = train(data, config, on_step=count)
    assert done == [3]
    assert steps_of(config, data.sizes["train"]) == 3
    assert len(trained.curve) == 3


def test_accuracy_is_a_share_of_all_images() -> None:
    class Brightest(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    images = torch.eye(3)[torch.tensor([0, 1, 2, 2, 1])][:, :, None, None]
    labels = torch.tensor([0, 1, 2, 0, 0])
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]  # the last one is smaller
    assert accuracy(Brightest(), batches, CPU) == pytest.approx(3 / 5)


def test_accuracy_is_taken_in_the_mode_the_network_is_in() -> None:
    modes: list[bool] = []

    class Watched(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            modes.append(self.training)
            return images.mean((2, 3))

    for training in (True, False):
        accuracy(Watched().train(training), [(torch.zeros(1, 3, 2, 2), torch.tensor([0]))], CPU)
    assert modes == [True, False]
