"""Images and labels: Parquet, image folders, torchvision sets or digits → batches of tensors.

Read ``images.py`` first (batches), then ``splits.py``, ``open.py`` (from settings to sources), ``sources.py``
with ``folders.py`` and ``parquet.py`` (where images come from), and ``pixels.py`` (bytes to tensors).
"""

from lana_ray.data.images import Batch, ImageData, Preprocessing, load_data
from lana_ray.data.sources import MissingDataError
from lana_ray.data.splits import SPLITS

__all__ = ["SPLITS", "Batch", "ImageData", "MissingDataError", "Preprocessing", "load_data"]
