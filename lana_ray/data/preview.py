"""A look at a few images before any work begins: whether they decode, and whether they show anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lana_ray.data.pixels import Pixels, UndecodableError
from lana_ray.data.sources import Decode, Source
from lana_ray.errors import UserError

_MANY = 0.25  # share of the images tried
_DARK, _BRIGHT = 31, 224  # of 255
_OBLONG = 3.0  # longer side to shorter side


def check_preview(sources: Sequence[Source], decode: Decode, max_undecodable: float) -> list[str]:
    """Decodes a few images of each source.

    Returns:
        What looks wrong about those that decode, one line each.

    Raises:
        UserError: more of them do not decode than ``max_undecodable`` of all images, or so large a share that
            no luck explains it.
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
                f"{source.name}: {len(damaged)} of {tried} images tried do not decode; first {damaged[0]}: "
                f"fix the files or raise data.max_undecodable {max_undecodable:g}"
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
            f"images hardly show anything: the {extreme} of 255; for grey images of more than 8 bits set "
            "data.value_range"
        )
    sides = [sorted(image.shape[:2]) for image in images]
    oblong = float(np.median([longer / shorter for shorter, longer in sides]))
    if oblong > _OBLONG:
        remarks.append(
            f"images are {oblong:.1f} times as long as wide, and only their centre square is used; cut or "
            "pad them to squares"
        )
    return remarks
