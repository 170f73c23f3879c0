"""What is given: the teacher, its data, the pool of operations, and how networks are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from lana_ray.config.section import Fraction, Section, Share, location


class TrainConfig(Section):
    """Training of a whole network: the teacher's adaptation and the students' fine-tuning."""

    epochs: float = Field(default=2, gt=0)
    """Passes over the training split; a fraction is allowed."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step over all workers together."""
    micro_batch_size: int = Field(default=32, ge=2)
    """Least number of images in a micro-batch. Each step cuts its batch into as many equal micro-batches as
    this allows, and adds up their gradients. Workers share the micro-batches; more workers than micro-batches
    are not started. A batch-norm uses the statistics of one micro-batch, so the result does not depend on the
    number of workers."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW's one-cycle schedule."""
    weight_decay: float = Field(default=0.01, ge=0)
    label_smoothing: Fraction = 0.0


class TeacherConfig(Section):
    timm: str | None = None
    """The name of a timm network."""
    factory: str | None = location(default=None)
    """``package.module:function`` or ``file.py:function``, called with ``num_classes``, or without arguments
    if it takes none."""
    pretrained: bool = False
    """Take timm's pretrained weights (from an installed weights package if there is one, else the hub)."""
    weights: str | None = location(default=None)
    """Safetensors or what a training script saved: the set of tensors in it that fits the network is taken, a
    moving average (EMA) before the last step's. No code in the file runs."""
    layers: tuple[str, ...] | None = None
    """Glob patterns of module names, in place of the block structure found by itself."""
    adapt: TrainConfig = TrainConfig()
    """How the teacher is trained on the data, where its head does not fit or its weights are random."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if (self.timm is None) == (self.factory is None):
            raise ValueError("give exactly one of timm and factory")
        if self.pretrained and (self.weights or self.factory):
            raise ValueError("pretrained goes with timm and without weights")
        return self


class DataConfig(Section):
    source: Literal["digits"] | None = None
    """A data set that an installed package carries."""
    parquet: str | None = location(default=None)
    """A Parquet file or a folder of them: encoded images in one column, their classes in another."""
    image_column: str | None = None
    """Parquet column of the images; ``image`` or ``img`` by default."""
    label_column: str | None = None
    """Parquet column of the classes, as numbers from 0 or as names; ``label`` by default."""
    folder: str | None = location(default=None)
    """A folder with one folder of images per class, or with such a folder for each split."""
    torchvision: str | None = None
    """The name of a torchvision data set with a train/test split, for example ``CIFAR10``."""
    test: str | None = location(default=None)
    """The test images in the same form. By default those that files or folders named ``test`` (else
    ``validation``) hold; without them a share of the training images is set aside."""
    root: str = location(default="data")
    """Where torchvision keeps its files."""
    download: bool = False
    """Let torchvision download what is missing."""
    image_size: int = Field(default=224, ge=8)
    mean: tuple[float, float, float] | None = None
    """Mean of the pixels (red, green, blue, from 0 to 1) that the teacher was trained with; needs ``std``
    beside it. By default as timm's configuration of the network says, else ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Standard deviation of the same pixels; needs ``mean`` beside it."""
    score_images: int | None = Field(default=None, ge=2)
    """Training images set aside to score candidates and to choose among students; by default an eighth of
    them, at most 1024."""
    validation_images: int | None = Field(default=None, ge=2)
    """Training images set aside to follow a training and to pick its best epoch; the same by default."""
    test_fraction: Annotated[Share, Field(gt=0, lt=1)] = 0.2
    """Share set aside for the report where the data has no test images of its own."""
    limit: int | None = Field(default=None, ge=2)
    """Use at most so many training images."""
    max_undecodable: Fraction = 0.01
    """Refuse the data when more than this share of the images does not decode."""
    value_range: tuple[float, float] | None = None
    """Values that are black and white in grey images of more than 8 bits, e.g. [0, 4095] for 12 bits; by
    default 0 and 65535 for 16 bits. Floating-point and 32-bit images need it."""
    augment: Literal["none", "crop", "flip"] = "flip"
    """Training-time augmentation: random crops after padding, the same and a horizontal flip, or none."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if sum(x is not None for x in (self.source, self.parquet, self.folder, self.torchvision)) != 1:
            raise ValueError("give exactly one of source, parquet, folder and torchvision")
        if (self.image_column or self.label_column) and not self.parquet:
            raise ValueError("image_column and label_column go with parquet")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} must go from black up to white")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        return self


class PoolConfig(Section):
    preset: Literal["tiny", "small", "lana"] = "tiny"
    ops: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of operations, in place of a preset's; teacher is always a candidate."""
    modules: tuple[str, ...] = location(default=())
    """Python files that register operations of your own; they are run on every node (``ops.registry``)."""
    max_cost: Share | None = Field(default=1.0, gt=0)
    """Leave candidates out that alone take more than this share of their layer's time on every target: they
    would be trained and never chosen. ``null`` keeps all."""
