"""What a sampler is asked to measure, by name: it builds each structure itself, on its own node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lana_ray.errors import UserError
from lana_ray.run_dir.fingerprint import fingerprint

if TYPE_CHECKING:
    from lana_ray.ids import Architecture
    from lana_ray.networks.layers import Layer
    from lana_ray.spaces.layerwise import LayerwiseSpace
    from lana_ray.spaces.space import StudentSpace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One structure to measure: a candidate of a layer, or a whole network."""

    kind: str
    structure: str
    """Its identity, whatever its weights; a student's is that of its weights."""
    what: str
    """For people; of a network, what the space's ``parse`` reads."""
    layer: str | None = None
    """The name of a candidate's layer; None for a network."""
    op: str | None = None
    """The name of the candidate there; None for an empty program of the layer's shape."""
    network: str | None = None
    """Identity of the structure of a student."""
    weights: str | None = None
    """File of the run directory with the network's weights, where it is a finished student."""
    session: int | None = None
    """Which one this is, where a structure is judged by a budget and measured in several."""

    @property
    def key(self) -> str:
        """Identity of the measurement."""
        return self.structure if self.session is None else fingerprint(self.structure, self.session)


def in_sessions(work: Sequence[Work], sessions: Iterable[int]) -> list[Work]:
    """Every structure in every session, in turn, so that the sessions of one lie apart in time."""
    return [dataclasses.replace(item, session=session) for session in sessions for item in work]


def candidate_work(space: LayerwiseSpace, layer: int, choice: int) -> Work:
    """One candidate alone; equal structures at different layers have the same key."""
    name, op = space.layers[layer].name, space.ops[layer][choice].name
    return Work(
        kind="candidate",
        structure=space.structure(layer, choice),
        what=f"{name}={op}",
        layer=name,
        op=op,
    )


def network_work(space: StudentSpace, architecture: Architecture) -> Work:
    """A whole network, whatever its weights."""
    return Work(
        kind="network",
        structure=space.network_structure(architecture),
        what=space.label(architecture),
    )


def student_work(space: StudentSpace, architecture: Architecture, weights: str, identity: str) -> Work:
    """A finished student with its own weights.

    Args:
        weights: file of the run directory.
        identity: the fingerprint of the weights.
    """
    return Work(
        kind="student",
        structure=fingerprint("student", space.fingerprint, identity),
        what=space.label(architecture),
        network=space.network_structure(architecture),
        weights=weights,
    )


def empty_work(space: LayerwiseSpace, layer: int) -> Work:
    """A graph that hands a layer's input on: what a call costs by itself."""
    at = space.layers[layer]
    return Work(kind="empty", structure=empty_structure(at), what=f"empty {at.input_shape}", layer=at.name)


def empty_structure(layer: Layer) -> str:
    """Identity of that graph."""
    return fingerprint("empty", layer.input_shape)


class OtherStructure(UserError):
    """A sampler would build something else than it was asked to measure."""
