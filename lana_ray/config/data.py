"""Defines the ``data`` block: the images, and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from lana_ray.config.section import Fraction, Section, Share, location

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation per channel of pixels in 0..1 that most pretrained networks expect."""


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
    """Test images in the same form. Defaults to the files or folders named ``test`` (else ``validation``);
    without them, a share of the training images is set aside."""
    root: str = location(default="data")
    """Folder for the files of a torchvision data set."""
    download: bool = False
    """Let torchvision download missing files."""
    image_size: int = Field(default=224, ge=8)
    """Height and width in pixels to which images are resized and cropped."""
    mean: tuple[float, float, float] | None = None
    """Mean of the pixels (red, green, blue, from 0 to 1) that the teacher was trained with; needs ``std``
    too. Defaults to timm's configuration of the network, else to ImageNet's mean."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Standard deviation of the same pixels; needs ``mean`` too."""
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
            raise ValueError("image_column and label_column go with parquet; remove them or set parquet")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} must increase, from black to white")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together; set both or none")
        return self
