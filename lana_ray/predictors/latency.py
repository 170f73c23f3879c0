"""Predicts an architecture's latency from its encoding: an ensemble of regressors (arXiv 2001.06392)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from lana_ray.errors import UserError, one_line
from lana_ray.run_dir.digest import seal, unseal

_MEMBERS = 5
_WIDTHS = (192, 192, 192)
_LR = 1e-2
_WEIGHT_DECAY = 0.15
_WARMUP = 0.1
_EPOCHS = 300
_FULL_EPOCHS_UP_TO = 5_000
"""Number of samples beyond which fewer epochs suffice."""
_MIN_EPOCHS = 30
_BATCHES = 14
"""Batches per epoch, within the bounds of a batch's size."""
_BATCH_SIZES = (8, 1024)
_FORMAT = "lana_ray.LatencyPredictor/1"

Floats = NDArray[np.float64]


def checked(encodings: ArrayLike, latency_ms: ArrayLike) -> tuple[Floats, Floats]:
    """Encodings [n, d] and latencies [n] as arrays; raises ValueError unless they match and are positive."""
    x, y = np.asarray(encodings, dtype=np.float64), np.asarray(latency_ms, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise ValueError(f"encodings {x.shape} and latencies {y.shape} must have shapes [n, d] and [n]")
    if not np.isfinite(x).all():
        raise ValueError(f"encoding {int(np.flatnonzero(~np.isfinite(x).all(1))[0])} is not finite")
    wrong = np.flatnonzero(~(np.isfinite(y) & (y > 0)))
    if len(wrong):
        raise ValueError(f"latency {int(wrong[0])} is {y[wrong[0]]:g} ms, not a positive number")
    return x, y


class LatencyModule(nn.Module):
    """The fitted ensemble as a differentiable function: encodings [..., d] → ``latency_ms`` [...].

    All members are computed at once, as batched matrix products.
    """

    mean: Tensor
    scale: Tensor
    log_mean: Tensor
    log_scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, *_WIDTHS, 1)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(_MEMBERS, i, o)) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(_MEMBERS, 1, o)) for o in sizes[1:])
        self.register_buffer("mean", torch.zeros(width))
        # Zero for entries that are equal in all training samples.
        self.register_buffer("scale", torch.zeros(width))
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("log_scale", torch.ones(()))

    def forward(self, encodings: Tensor) -> Tensor:
        flat = encodings.reshape(-1, encodings.shape[-1])
        return self.members(flat).mean(0).exp().reshape(encodings.shape[:-1])

    def members(self, encodings: Tensor) -> Tensor:
        """Returns the logarithm of each member's latency: [n, d] → [members, n]."""
        x = ((encodings - self.mean) * self.scale).expand(_MEMBERS, -1, -1)
        return self.standardised(x) * self.log_scale + self.log_mean

    def standardised(self, x: Tensor) -> Tensor:
        """Runs the networks themselves: standardised inputs [members, n, d] → standardised logarithms."""
        last = len(_WIDTHS)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = F.silu(x) if layer < last else x
        return x[..., 0]


class LatencyPredictor:
    """Predicts ``latency_ms`` from encodings; trains in seconds on thousands of samples.

    The members are multi-layer regressors of the same shape that differ in their initial weights and the
    order of their batches. They learn the logarithm of the latency under an absolute loss, so that the
    relative error counts; their mean is the prediction and their spread its uncertainty. A high learning
    rate and a strong decoupled weight decay matter most: with 900 samples of NAS-Bench-201 on an i7-7820X,
    learning rate 1e-3 and decay 0.01 put 75 % of the other cells within ±5 %, 1e-2 and 0.15 put 86 %.
    The one-cycle schedule ends at zero, so the last epoch is the best and no samples are held out for
    early stopping.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._module: LatencyModule | None = None

    def fit(self, encodings: ArrayLike, latency_ms: ArrayLike) -> Self:
        """Trains on encodings [n, d] and positive latencies [n] in ms; raises ValueError for other values."""
        x, y = checked(encodings, latency_ms)
        generator = torch.Generator().manual_seed(self.seed)
        module = LatencyModule(x.shape[1])
        spread = x.std(0)
        scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
        module.mean.copy_(torch.from_numpy(x.mean(0)))
        module.scale.copy_(torch.from_numpy(scale))
        logs = np.log(y)
        module.log_mean.fill_(float(logs.mean()))
        module.log_scale.fill_(max(float(logs.std()), 1e-6))
        for weight in module.weights:
            gain = 2.0 if weight.shape[2] > 1 else 1.0
            nn.init.normal_(weight, std=math.sqrt(gain / weight.shape[1]), generator=generator)
        inputs = (torch.from_numpy(x).float() - module.mean) * module.scale
        targets = (torch.from_numpy(logs).float() - module.log_mean) / module.log_scale
        with _single_thread() if len(inputs) <= _FULL_EPOCHS_UP_TO else nullcontext():
            _train(module, inputs, targets, generator)
        self._module = module.requires_grad_(False).eval()
        return self

    def predict(self, encodings: ArrayLike) -> Floats:
        """Returns ``latency_ms`` [n] of encodings [n, d]."""
        return np.exp(self._members(encodings).mean(0))

    def predict_std(self, encodings: ArrayLike) -> Floats:
        """Returns the standard deviation of the members' predictions in milliseconds, [n]."""
        return np.exp(self._members(encodings)).std(0)

    def choose(self, encodings: ArrayLike, count: int) -> NDArray[np.int64]:
        """Returns the indices [count] of the architectures to measure next.

        They are drawn without replacement in proportion to the members' disagreement, which is the standard
        deviation of their logarithms. Taking those of the largest disagreement instead would take many
        similar ones (stochastic batch acquisition, Kirsch et al., arXiv 2106.12059).

        Args:
            encodings: [n, d], of all architectures that could be measured, the more the better; ValueError
                for another width, and if ``count`` exceeds n.
        """
        spread = self._members(encodings).std(0)
        if not 0 <= count <= len(spread):
            raise ValueError(f"cannot choose {count} of {len(spread)} encodings")
        luck = np.random.default_rng(self.seed).gumbel(size=len(spread))
        return np.argsort(-(np.log(spread + 1e-12) + luck))[:count]

    def as_module(self) -> nn.Module:
        """Returns the prediction as a differentiable module: encodings [..., d] → ``latency_ms`` [...]."""
        return self._fitted()

    def to_bytes(self) -> bytes:
        """Returns the fitted predictor as the content of a safetensors file."""
        metadata = {"format": _FORMAT, "settings": json.dumps({"seed": self.seed})}
        return seal(self._fitted().state_dict(), metadata)

    def save(self, path: str | Path) -> None:
        """Writes the predictor to a safetensors file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> LatencyPredictor:
        """Reads a predictor from a file; raises UserError if it is missing, damaged or something else."""
        try:
            return cls.from_bytes(Path(path).read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError("missing_file", f"{path}: no such predictor; fit one first") from None
        except OSError as error:
            raise UserError(
                "invalid_file", f"{path}: cannot be read ({error.strerror}); use a readable file"
            ) from None

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> LatencyPredictor:
        """Reads a predictor from the content of the file ``path``; raises UserError if it is damaged."""
        try:
            state, metadata = unseal(data)
            if metadata.get("format") != _FORMAT:
                raise UserError(
                    "invalid_file", f"{path}: not a latency predictor of this lana-ray; fit it again"
                )
            predictor = cls(seed=int(json.loads(metadata["settings"])["seed"]))
            predictor._module = LatencyModule(len(state["mean"])).requires_grad_(False).eval()
            predictor._module.load_state_dict(state)
            return predictor
        except (ValueError, KeyError, TypeError, RuntimeError) as error:  # the last one for other tensors
            text = f"{path}: damaged predictor file ({type(error).__name__}: {one_line(error)}); fit it again"
            raise UserError("damaged_file", text) from None

    def _members(self, encodings: ArrayLike) -> Floats:
        module = self._fitted()
        x = np.asarray(encodings, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != len(module.mean):
            raise ValueError(f"encodings have shape {x.shape}, expected [n, {len(module.mean)}]")
        with torch.inference_mode():
            parts = [module.members(part) for part in torch.split(torch.from_numpy(x), 4096)]
        return torch.cat(parts, 1).double().numpy()

    def _fitted(self) -> LatencyModule:
        if self._module is None:
            raise ValueError("the predictor is not fitted; call fit first")
        return self._module


@contextmanager
def _single_thread() -> Iterator[None]:
    """Limits torch to one thread, since several threads wait for one another at every small operation.

    On a machine that others use as well, several threads took fourteen times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(module: LatencyModule, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> None:
    """Minimises every member's mean absolute error, each on its own shuffling of the samples."""
    count = len(inputs)
    batch = min(max(count // _BATCHES, _BATCH_SIZES[0]), _BATCH_SIZES[1], count)
    epochs = max(_MIN_EPOCHS, round(_EPOCHS * min(1.0, _FULL_EPOCHS_UP_TO / count)))
    groups = [
        {"params": list(module.weights), "weight_decay": _WEIGHT_DECAY},
        {"params": list(module.biases), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=_LR, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LR, total_steps=epochs * math.ceil(count / batch), pct_start=_WARMUP
    )
    for _ in range(epochs):
        orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(_MEMBERS)])
        for order in torch.split(orders, batch, dim=1):
            loss = (module.standardised(inputs[order]) - targets[order]).abs().mean(1).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
