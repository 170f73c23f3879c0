"""Defines the ``teacher`` block: the network to accelerate."""

from __future__ import annotations

from pydantic import model_validator

from lana_ray.config.finetune import TrainConfig
from lana_ray.config.section import Section, location


class TeacherConfig(Section):
    """The trained network to accelerate: give either ``timm`` or ``factory``."""

    timm: str | None = None
    """Name of a timm network."""
    factory: str | None = location(default=None)
    """Python function that builds the network: ``package.module:function`` or ``file.py:function``. It is
    called with ``num_classes``, or without arguments if it takes none. Its code runs on every node, and
    already when ``lana-ray plan`` reads it."""
    pretrained: bool = False
    """Use timm's pretrained weights, from an installed weights package if there is one, else from the hub."""
    weights: str | None = location(default=None)
    """Weights file: safetensors, or the checkpoint of a training script. The tensors that match the network
    are used; a moving average (EMA) has precedence over the last weights. No code in the file runs."""
    layers: tuple[str, ...] | None = None
    """Glob patterns of the modules to replace; defaults to the blocks that are found in the network."""
    adapt: TrainConfig = TrainConfig()
    """Training of the teacher on the data; used only if its head does not match the classes or its weights
    are random."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if (self.timm is None) == (self.factory is None):
            raise ValueError("give exactly one of timm and factory")
        if self.pretrained and (self.weights or self.factory):
            raise ValueError("pretrained goes with timm and without weights; remove one of them")
        return self
