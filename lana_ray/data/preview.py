"""Checks on a few images, before any work begins, that they decode and show something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lana_ray.data.pixels import Pixels, UndecodableError
from lana_ray.data.sources import Decode, Source
from lana_ray.errors import UserError

_MANY = 0.25
"""Share of undecodable images among those tried that cannot be chance."""
_DARK, _BRIGHT = 31, 224
"""Highest and lowest values, of 255, of images that are all dark or all bright."""
_OBLONG = 3.0
"""Longer to shorter side from which images count as oblong."""


def check_preview(sources: Sequence[Source], decode: Decode, max_undecodable: float) -> list[str]:
    """Decodes a few images of each source; returns a line for each thing that looks wrong about them.

    Raises:
        UserError: more of them do not decode than ``max_undecodable`` allows for all images, or a share of
            them that cannot be chance.
    """
    total = sum(map(len, sources))
    remarks = []
    for source in sources:
        images: list[Pixels] = []
        damaged: list[str] = []
        for where, data in source.preview():
            try:
                images.append(decode(data))
            except UndecodableError as error:
                damaged.append(f"{where} ({error})")
        tried = len(images) + len(damaged)
        if len(damaged) > min(max_undecodable * total, max(10 * max_undecodable, _MANY) * tried):
            raise UserError(
                "invalid_data",
                f"{source.name}: {len(damaged)} of {tried} images tried do not decode, the first one "
                f"{damaged[0]}; fix the files or raise data.max_undecodable {max_undecodable:g}",
            )
        remarks += [f"{source.name}: {remark}" for remark in _remarks(images)]
    return remarks


def _remarks(images: Sequence[Pixels]) -> list[str]:
    if not images:
        return []
    remarks = []
    darkest, brightest = min(int(image.min()) for image in images), max(int(image.max()) for image in images)
    if brightest <= _DARK or darkest >= _BRIGHT:
        extreme = f"brightest value is {brightest}" if brightest <= _DARK else f"darkest value is {darkest}"
        remarks.append(
            f"images hardly show anything: the {extreme} of 255; set data.value_range if they are grey "
            "images of more than 8 bits"
        )
    sides = [sorted(image.shape[:2]) for image in images]
    oblong = float(np.median([longer / shorter for shorter, longer in sides]))
    if oblong > _OBLONG:
        remarks.append(
            f"images are {oblong:.1f} times as long as wide, and only their centre square is used; crop or "
            "pad them to squares"
        )
    return remarks
