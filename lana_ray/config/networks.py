"""What is given: the teacher, its data, the pool of operations, and how networks are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from lana_ray.config.section import Fraction, Section, Share, location

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of pixels in 0..1, by channel: what most pretrained networks expect."""


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
    """Decoupled weight decay of AdamW; biases and scales are not decayed."""
    label_smoothing: Fraction = 0.0
    """Share of each label that is spread over all classes."""


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
    """Weights file: safetensors, or the checkpoint of a training script. The tensors that fit the network
    are used, a moving average (EMA) before the weights of the last step. No code in the file runs."""
    layers: tuple[str, ...] | None = None
    """Glob patterns of the modules to replace; by default the blocks of the network are found."""
    adapt: TrainConfig = TrainConfig()
    """Training of the teacher on the data; used only if its head does not fit the classes or its weights are
    random."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if (self.timm is None) == (self.factory is None):
            raise ValueError("give exactly one of timm and factory")
        if self.pretrained and (self.weights or self.factory):
            raise ValueError("pretrained goes with timm and without weights")
        return self


class DataConfig(Section):
    """Labelled images: give one of ``source``, ``parquet``, ``folder`` and ``torchvision``."""

    source: Literal["digits"] | None = None
    """Data set that an installed package contains."""
    parquet: str | None = location(default=None)
    """Parquet file, or folder of Parquet files, with encoded images in one column and their classes in
    another."""
    image_column: str | None = None
    """Parquet column with the images; defaults to ``image`` or ``img``."""
    label_column: str | None = None
    """Parquet column with the classes, as numbers from 0 or as names; defaults to ``label``."""
    folder: str | None = location(default=None)
    """Folder with one subfolder of images per class, or with such a folder per split."""
    torchvision: str | None = None
    """Name of a torchvision data set that has a train and a test split, e.g. ``CIFAR10``."""
    test: str | None = location(default=None)
    """Test images in the same form. By default the files or folders named ``test`` (else ``validation``);
    without them, a share of the training images is set aside."""
    root: str = location(default="data")
    """Folder for the files of a torchvision data set."""
    download: bool = False
    """Let torchvision download missing files."""
    image_size: int = Field(default=224, ge=8)
    """Height and width in pixels to which images are resized and cropped."""
    mean: tuple[float, float, float] | None = None
    """Mean of the pixels (red, green, blue, from 0 to 1) that the teacher was trained with; needs ``std``
    beside it. By default as timm's configuration of the network says, else ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Standard deviation of the same pixels; needs ``mean`` beside it."""
    score_images: int | None = Field(default=None, ge=2)
    """Number of training images set aside to score candidates and choose students; defaults to an eighth of
    them, at most 1024."""
    validation_images: int | None = Field(default=None, ge=2)
    """Number of training images set aside to pick the best epoch of a training; defaults to an eighth of
    them, at most 1024."""
    test_fraction: Annotated[Share, Field(gt=0, lt=1)] = 0.2
    """Share of the images set aside for the final accuracy if the data has no test images."""
    limit: int | None = Field(default=None, ge=2)
    """Maximum number of training images."""
    max_undecodable: Fraction = 0.01
    """Largest share of images that may fail to decode."""
    value_range: tuple[float, float] | None = None
    """Values of black and white in grey images of more than 8 bits, e.g. [0, 4095] for 12 bits. Defaults to
    [0, 65535] for 16 bits; floating-point and 32-bit images need it."""
    augment: Literal["none", "crop", "flip"] = "flip"
    """Augmentation in training: ``crop`` pads and crops at random, ``flip`` also flips horizontally."""

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
    """The operations that may replace a layer."""

    preset: Literal["tiny", "small", "lana"] = "tiny"
    """Named list of operations: about 8, about 24, or all of the LANA paper."""
    ops: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of operations to use instead of a preset. The layer itself is always a candidate."""
    modules: tuple[str, ...] = location(default=())
    """Python files that register your own operations. Their code runs on every node, and already when
    ``lana-ray plan`` reads them."""
    max_cost: Share | None = Field(default=1.0, gt=0)
    """Candidates that take more than this share of their layer's time on every target are dropped before
    distillation; ``null`` keeps all."""
