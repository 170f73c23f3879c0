"""What every runtime must do; a new one is tested by being known to the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.errors import UserError
from lana_ray.export import to_onnx
from lana_ray.latency import runtimes
from lana_ray.latency.runtimes import load, loads_onnx, missing, onnx, prepare, version

from ..networks import net

pytestmark = pytest.mark.usefixtures("own_process")
RUNTIMES = get_args(Target.model_fields["runtime"].annotation)
EXAMPLE = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=RUNTIMES)
def target(request: pytest.FixtureRequest) -> Target:
    if missing(request.param):
        pytest.skip(f"{missing(request.param)}")
    return Target(name="here", runtime=request.param, batch_size=4, input_shape=(3, 16, 16))


def network() -> nn.Module:
    """Batch-norms with statistics and factors of their own, as trained networks have."""
    trained = net(5).train()
    with torch.no_grad():
        for module in trained.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
        for _ in range(3):
            trained(2 * torch.randn(8, 3, 16, 16) + 1)
    return trained.eval()


def first(output: object) -> Tensor:
    """The one output of ``run``, which is the runtime's own kind of array or a list of one."""
    return torch.as_tensor(output[0] if isinstance(output, list) else output)


def test_predictions_are_those_of_the_module(target: Target) -> None:
    torch.manual_seed(0)
    module = network()
    session = prepare(module, EXAMPLE, target)
    with torch.no_grad():
        for images in (EXAMPLE, OTHERS, EXAMPLE.contiguous(memory_format=torch.channels_last)):
            predicted = session.predict(images)
            assert predicted.dtype == torch.float32
            assert torch.allclose(predicted, module(images), rtol=1e-3, atol=1e-4)


def test_a_run_is_one_inference_of_the_bound_batch(target: Target) -> None:
    torch.manual_seed(0)
    module = network()
    session = prepare(module, EXAMPLE, target)
    kept = session.predict(OTHERS)
    again = kept.clone()
    output = first(session.run())
    assert output.shape == (4, 5)
    with torch.no_grad():
        assert torch.allclose(output, module(EXAMPLE), rtol=1e-3, atol=1e-4)
    assert torch.equal(kept, again)  # predictions are not overwritten by the next call


def test_a_module_in_training_mode_is_measured_in_evaluation_and_left_alone(target: Target) -> None:
    torch.manual_seed(0)
    module = network()
    with torch.no_grad():
        expected = module(EXAMPLE)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    session = prepare(module, EXAMPLE, target)
    assert torch.allclose(session.predict(EXAMPLE), expected, rtol=1e-3, atol=1e-4)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.allclose(session.predict(EXAMPLE), expected, rtol=1e-3, atol=1e-4)


def test_sequences_of_tokens_run_too(target: Target) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8)).eval()
    tokens = torch.randn(4, 10, 6)
    session = prepare(module, tokens, target)
    with torch.no_grad():
        assert torch.allclose(session.predict(tokens), module(tokens), atol=1e-4)


def test_what_is_deployed_loads(target: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = network()
    if loads_onnx(target.runtime):
        session = load(to_onnx(module, EXAMPLE, dynamic_batch=True), EXAMPLE, target)
    else:
        file = tmp_path / "network.pt2"
        torch.export.save(torch.export.export(module, (EXAMPLE,)), file)
        session = load(torch.export.load(file).module(), EXAMPLE, target)
    with torch.no_grad():
        assert torch.allclose(session.predict(OTHERS), module(OTHERS), rtol=1e-3, atol=1e-4)
    assert first(session.run()).shape == (4, 5)


def test_versions_are_those_installed(target: Target) -> None:
    found = version(target.runtime)
    assert found is not None
    assert found[0].isdigit()


def test_torch_takes_the_targets_threads() -> None:
    prepare(net(5), EXAMPLE, Target(name="here", threads=3))
    assert torch.get_num_threads() == 3


def test_a_runtime_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "PACKAGE", "no-such-package")
    assert runtimes.version("onnxruntime") is None
    assert runtimes.missing("onnxruntime") == "pip install 'lana-ray[onnx]'"
    with pytest.raises(UserError, match=r"target 'here': runtime onnxruntime is not installed; pip install"):
        prepare(net(5), EXAMPLE, Target(name="here", runtime="onnxruntime"))


def test_a_damaged_program_names_the_target() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="target 'here': ONNX Runtime refuses the network"):
        load(b"no program", EXAMPLE, Target(name="here", runtime="onnxruntime"))


def test_an_onnx_program_of_a_fixed_batch_answers_any_number_of_images() -> None:
    pytest.importorskip("onnxruntime", reason="the runtime is an optional extra")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    ).eval()
    images = torch.randn((5, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    target = Target(name="two", runtime="onnxruntime", batch_size=2, input_shape=(3, 8, 8))
    session = runtimes.prepare(network, images[:2], target)
    with torch.no_grad():
        torch.testing.assert_close(session.predict(images), network(images), rtol=1e-4, atol=1e-5)
