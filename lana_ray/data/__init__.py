"""Images and labels: Parquet, image folders, torchvision sets or digits → batches of tensors.

Read ``images.py`` first (splits and batches), then ``sources.py`` (where images come from), ``parquet.py``
and ``pixels.py`` (bytes to tensors).
"""

from lana_ray.data.images import SPLITS, Batch, ImageData, Preprocessing, load_data

__all__ = ["SPLITS", "Batch", "ImageData", "Preprocessing", "load_data"]
