"""Defines the ``ray`` block: the cluster, and the workers that train on it."""

from __future__ import annotations

from pydantic import Field

from lana_ray.config.section import Seconds, Section


class RayConfig(Section):
    """The cluster, and how many workers train on it."""

    address: str = "auto"
    """``auto`` uses a running cluster or starts a local one, ``local`` always starts a local one; or the
    address of a cluster."""
    workers: int | None = Field(default=None, ge=1)
    """Maximum number of training workers; defaults to as many as fit on the training nodes. A network is
    trained by at most one worker per micro-batch, and distillation uses at most one worker per
    candidate."""
    min_workers: int = Field(default=1, ge=1)
    """Minimum number of training workers. Between the minimum and the maximum, the number follows the
    cluster as nodes come and go."""
    cpu_workers: int = Field(default=0, ge=0)
    """Additional workers without a GPU for distillation; used only if ``gpus_per_worker`` is set."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """CPUs of a worker or task, which is also its number of threads; by default the workers of a node share
    all its CPUs."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of a worker; 0 trains on CPUs."""
    label_wait_s: Seconds = Field(default=0, ge=0)
    """Time limit in seconds for an autoscaler to add a missing node for a target or for training."""
    node_price_per_hour: float | None = Field(default=None, ge=0)
    """Mean price of a node per hour, in any currency. The report multiplies it by the node hours of the
    run."""
