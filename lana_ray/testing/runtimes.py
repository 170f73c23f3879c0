"""What every runtime must hold to, on a small network."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes.runtime import Runtime, Session
from lana_ray.testing.meters import small_network

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Of the largest output; a GPU convolves in TF32, of as many bits as fp16."""


def first(output: object) -> Tensor:
    """The one output of ``run``, which is the runtime's own kind of array or a list of one."""
    return torch.as_tensor(output[0] if isinstance(output, list) else output).float().cpu()


def assert_answers(found: Tensor, module: nn.Module, images: Tensor, target: Target) -> None:
    """``found`` is what the module answers, as exactly as the target computes."""
    with torch.no_grad():
        expected = module(images)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    tf32 = target.device.startswith("cuda") and target.precision == "fp32"
    tolerance = TOLERANCE["fp16" if tf32 else target.precision]
    assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


class RuntimeSuite:
    """Set ``runtime``, and ``device`` where it is not the CPU."""

    runtime: ClassVar[Runtime]
    device: ClassVar[str] = "cpu"

    @property
    def target(self) -> Target:
        """One that any runtime's checks let pass: what is tried here does not read ``runtime`` of it."""
        return Target(name="here", device=self.device, batch_size=4, input_shape=(3, 16, 16))

    @property
    def images(self) -> Tensor:
        return torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))

    def loaded(self, module: nn.Module, images: Tensor) -> Session:
        """A network as it is deployed, with a batch bound; skips where the runtime is not installed."""
        if (mend := self.runtime.missing) is not None:
            pytest.skip(mend)
        return self.runtime.load(self.runtime.program(module, images, self.target), images, self.target)

    def test_it_says_what_it_is(self) -> None:
        assert self.runtime.name
        assert self.runtime.title
        assert "fp32" in self.runtime.precisions[self.device]

    def test_its_program_is_made_without_it(self) -> None:
        made: Any = self.runtime.program(small_network().eval(), self.images, self.target)
        assert isinstance(made, bytes) == self.runtime.loads_onnx

    def test_predictions_are_those_of_the_module(self) -> None:
        module, images = small_network().eval(), self.images
        session = self.loaded(module, images)
        for batch in (images, images.flip(0), images.contiguous(memory_format=torch.channels_last)):
            assert_answers(session.predict(batch), module, batch, self.target)

    @pytest.mark.parametrize("size", [1, 3])
    def test_a_run_is_one_inference_of_the_bound_batch(self, size: int) -> None:
        module, images = small_network().eval(), self.images[:size]
        session = self.loaded(module, images)
        kept = session.predict(images.flip(1))
        again = kept.clone()
        assert_answers(first(session.run()), module, images, self.target)
        assert torch.equal(kept, again)  # predictions are not overwritten by the next call

    def test_a_module_in_training_mode_is_run_in_evaluation_and_left_alone(self) -> None:
        module, evaluated = small_network().train(), small_network().eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        session = self.loaded(module, self.images)
        assert_answers(session.predict(self.images), evaluated, self.images, self.target)
        assert all(part.training for part in module.modules())
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        assert_answers(session.predict(self.images), evaluated, self.images, self.target)
