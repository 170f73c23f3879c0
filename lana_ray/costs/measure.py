"""Measures the latency of one network on one target, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.remote_timing import time_session
from lana_ray.costs.timing import Measurement, Reference, Timing
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import prepare


def measure(
    module: nn.Module,
    target: Target,
    *,
    example: Tensor | None = None,
    rel_error: float | None = None,
    time_limit_s: float | None = None,
    references: Sequence[Reference] = (),
) -> Measurement:
    """Returns the latency of ``module`` on ``target`` in milliseconds per batch.

    Args:
        module: left unchanged; measured in evaluation mode, with convolution and batch-norm folded if the
            runtime does so in deployment.
        example: the input batch; by default random numbers of shape [batch_size, *input_shape].
        rel_error: see ``time_calls``; defaults to ``target.measure``, like ``time_limit_s``.
        references: prepared networks that are timed alternately, to correct the machine's drift.

    Raises:
        UserError: as ``runtimes.prepare`` and ``time_session``.
    """
    session = prepare(module, example_input(target) if example is None else example, target)
    timing = Timing(
        rel_error=rel_error or target.measure.rel_error,
        time_limit_s=time_limit_s or target.measure.time_limit_s,
        calls=target.measure.calls,
    )
    return time_session(session, target, timing, references)
