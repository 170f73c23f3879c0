import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.deploy import to_onnx

from ..errors import refuses
from ..small_networks import plain

ort = pytest.importorskip("onnxruntime")


def _run(program: bytes, images: Tensor) -> np.ndarray:
    session = ort.InferenceSession(program, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output"], {"input": images.numpy()})[0])


@pytest.mark.parametrize("batch", [1, 7])
def test_dynamic_batch_answers_as_the_network(batch: int) -> None:
    network = plain(5).eval()
    program = to_onnx(network, torch.randn(2, 3, 8, 8), dynamic_batch=True)
    images = torch.randn(batch, 3, 8, 8)
    np.testing.assert_allclose(_run(program, images), network(images).detach().numpy(), atol=1e-5)


class _Attention(nn.Module):
    """Has an argument that is never given, as the blocks of timm's ViT."""

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=is_causal)


def test_defaults_of_other_arguments_stay_what_they_are() -> None:
    x = torch.randn(2, 5, 8)
    program = to_onnx(_Attention(), x, dynamic_batch=True)
    np.testing.assert_allclose(_run(program, x), _Attention()(x).numpy(), atol=1e-5)


def test_fixed_batch_is_fixed() -> None:
    program = to_onnx(plain(5), torch.randn(2, 3, 8, 8), dynamic_batch=False)
    session = ort.InferenceSession(program, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3, 8, 8]


def test_modes_and_statistics_are_left_as_they_were() -> None:
    network = plain(5).train()
    network[1].eval()  # type: ignore[index]
    before = [module.training for module in network.modules()]
    mean = network[1].running_mean.clone()  # type: ignore[index]
    to_onnx(network, torch.randn(2, 3, 8, 8), dynamic_batch=True)
    assert [module.training for module in network.modules()] == before
    assert torch.equal(network[1].running_mean, mean)  # type: ignore[index]


class _Spectrum(nn.Module):
    """Only the newer exporter knows Fourier transforms."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.fft.rfft2(images).abs().mean((2, 3))


class _Bessel(nn.Module):
    """ONNX has no such function."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.i0(images).mean((2, 3))


@pytest.mark.slow
def test_newer_exporter_takes_what_tracing_cannot(capfd: pytest.CaptureFixture[str]) -> None:
    program = to_onnx(_Spectrum(), torch.randn(2, 3, 8, 8), dynamic_batch=True)
    images = torch.randn(7, 3, 8, 8)
    np.testing.assert_allclose(_run(program, images), _Spectrum()(images).numpy(), rtol=1e-4, atol=1e-4)
    assert __file__.encode() not in program
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_onnx_cannot_express_is_named() -> None:
    with refuses("refused", "_Bessel: ONNX", "aten::i0"):
        to_onnx(_Bessel(), torch.randn(2, 3, 8, 8), dynamic_batch=True)
