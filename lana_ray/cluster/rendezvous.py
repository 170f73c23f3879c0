"""Process groups for distributed training, on loopback only if the cluster is a local one."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _setup_torch_process_group, _TorchBackend

from lana_ray.cluster.connection import is_on_loopback

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def torch_config(backend: str) -> TorchConfig:
    """Returns a process group over the cluster's network, or over loopback only on a local cluster."""
    return _LoopbackConfig(backend=backend) if is_on_loopback() else TorchConfig(backend=backend)


@dataclass
class _LoopbackConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_LoopbackBackend]:
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    """Connects processes of one machine through a file: torch's TCP store listens on every interface."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        count = len(worker_group)
        file = f"{tempfile.gettempdir()}/lana_ray-{uuid.uuid4().hex}"
        group = {
            "backend": backend_config.backend,
            "world_size": count,
            "init_method": f"file://{file}",
            "timeout_s": backend_config.timeout_s,
        }
        joining = [
            worker_group.execute_single_async(rank, _join, world_rank=rank, **group) for rank in range(count)
        ]
        ray.get(joining)


def _join(**group: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK
    _setup_torch_process_group(**group)
