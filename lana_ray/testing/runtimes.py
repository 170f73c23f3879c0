"""The suite that every runtime must pass, on a small network."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.deploy.runtimes.runtime import Runtime, Session
from lana_ray.testing.meters import small_network

TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Largest error relative to the largest output; a GPU convolves in TF32, which has as many bits as fp16."""


def first(output: object) -> Tensor:
    """Returns the one output of ``run``, which is an array of the runtime's own kind or a list of one."""
    return torch.as_tensor(output[0] if isinstance(output, list) else output).float().cpu()


def assert_answers(output: Tensor, module: nn.Module, images: Tensor, target: Target) -> None:
    """Asserts that ``output`` is the module's output, to the target's precision."""
    with torch.no_grad():
        expected = module(images)
    assert output.dtype == torch.float32
    assert output.shape == expected.shape
    tf32 = target.device.startswith("cuda") and target.precision == "fp32"
    tolerance = TOLERANCE["fp16" if tf32 else target.precision]
    assert float((output - expected).abs().max() / expected.abs().max()) <= tolerance


class RuntimeSuite:
    """Tests of a runtime: set ``runtime``, and ``device`` for another device than the CPU."""

    runtime: ClassVar[Runtime]
    device: ClassVar[str] = "cpu"

    @property
    def target(self) -> Target:
        """A target that passes every runtime's checks: the tests do not read its ``runtime``.

        Override it for a runtime that needs settings of its own.
        """
        return Target(name="here", device=self.device, batch_size=4, input_shape=(3, 16, 16))

    @property
    def images(self) -> Tensor:
        return torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))

    def loaded(self, module: nn.Module, images: Tensor) -> Session:
        """Loads a network as for deployment, with a batch bound; skips if the runtime is not installed."""
        if (missing := self.runtime.missing) is not None:
            pytest.skip(missing)
        return self.runtime.load(self.runtime.program(module, images, self.target), images, self.target)

    def test_it_says_what_it_is(self) -> None:
        assert self.runtime.name
        assert self.runtime.title
        assert "fp32" in self.runtime.precisions[self.device]
        if self.runtime.identity is not None:
            assert self.runtime.identity(self.target).isprintable()

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
        ran = session.run()
        if self.runtime.is_remote:
            assert isinstance(ran, list)
            assert ran
            assert all(math.isfinite(took_ms) and took_ms > 0 for took_ms in ran)
        else:
            assert_answers(first(ran), module, images, self.target)
        # The next call must not overwrite predictions.
        assert torch.equal(kept, again)

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
