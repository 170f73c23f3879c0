"""Text about which candidates the pool has for each kind of layer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from lana_ray.networks.layers import Layer
from lana_ray.networks.layouts import Layout
from lana_ray.ops import Op
from lana_ray.ops.registry import TEACHER, is_image_layer
from lana_ray.spaces.layerwise import LayerwiseSpace


def offers(space: LayerwiseSpace) -> list[str]:
    """Returns one line for each kind of layer with the same candidates, then warnings.

    A warning names layers whose only replacement is identity, and gives the reason.
    """
    kinds: dict[tuple[str, tuple[Op, ...]], list[Layer]] = defaultdict(list)
    bare: dict[str, list[str]] = defaultdict(list)
    for layer, ops in zip(space.layers, space.ops, strict=True):
        kinds[_kind(layer), ops].append(layer)
        if all(op.family in (TEACHER, "identity") for op in ops):
            bare[_reason(layer)].append(layer.name)
    return [f"{_layers(of_kind)}, {kind}: {_candidates(ops)}" for (kind, ops), of_kind in kinds.items()] + [
        f"warning: no candidate but the layer itself and identity for {', '.join(names)}: {reason}"
        for reason, names in bare.items()
    ]


def _layers(layers: Sequence[Layer]) -> str:
    first, last = layers[0].name, layers[-1].name
    return first if len(layers) == 1 else f"{len(layers)} layers from {first} to {last}"


def _kind(layer: Layer) -> str:
    residual = "residual" if layer.residual else "not residual"
    if layer.is_image:
        return f"images with {layer.layout}, stride {layer.stride}, {residual}"
    if layer.is_tokens:
        return f"{'tokens' if layer.layout is Layout.CHANNELS_LAST else 'sequences'}, {residual}"
    return f"{list(layer.input_shape)} to {list(layer.output_shape)}, {residual}"


def _candidates(ops: Sequence[Op]) -> str:
    counts = Counter(op.family for op in ops)
    families = (family if count == 1 else f"{count} {family}" for family, count in counts.items())
    return f"{len(ops)} candidate{'s'[: len(ops) > 1]}: {', '.join(families)}"


def _reason(layer: Layer) -> str:
    shapes = f"{list(layer.input_shape)} to {list(layer.output_shape)}"
    if layer.layout is Layout.UNKNOWN:
        return f"they map {shapes}, and the axis of the channels is unknown"
    if layer.is_image and not is_image_layer(layer):
        return f"they map {shapes}, which is not a whole stride"
    return f"the pool has no other operation for {shapes}"
