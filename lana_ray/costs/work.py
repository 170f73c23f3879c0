"""Orders for samplers, by name: a sampler builds each structure itself, on its own node."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    """A structure to measure: a candidate of a layer, or a network."""

    kind: str
    structure: str
    """Identity of the structure without its weights; of a student with them."""
    what: str
    """A readable description; for a network, text that the space's ``parse`` reads."""
    layer: str | None = None
    """Name of a candidate's layer; None for a network."""
    op: str | None = None
    """Name of the candidate; None for an empty program of the layer's input shape."""
    network: str | None = None
    """Identity of a student's structure without its weights."""
    weights: str | None = None
    """File in the run directory with a finished student's weights."""
    session: int | None = None
    """Number of the session, for students that are measured in several; each is in a process of its own."""

    @property
    def key(self) -> str:
        """Identity of the measurement."""
        return self.structure if self.session is None else fingerprint(self.structure, self.session)


def in_sessions(work: Sequence[Work], sessions: Sequence[int]) -> list[Work]:
    """Every structure in every session, ordered so that the sessions of a structure lie apart in time."""
    return [dataclasses.replace(item, session=session) for session in sessions for item in work]


def candidate_work(space: LayerwiseSpace, layer: int, choice: int) -> Work:
    """A candidate measured alone; equal structures at different layers share a key."""
    name, op = space.layers[layer].name, space.ops[layer][choice].name
    return Work(
        kind="candidate",
        structure=space.structure(layer, choice),
        what=f"{name}={op}",
        layer=name,
        op=op,
    )


def network_work(space: StudentSpace, architecture: Architecture) -> Work:
    """A network, independent of its weights."""
    return Work(
        kind="network",
        structure=space.network_structure(architecture),
        what=space.label(architecture),
    )


def student_work(space: StudentSpace, architecture: Architecture, weights: str, identity: str) -> Work:
    """A finished student with its final weights.

    Args:
        weights: file in the run directory.
        identity: fingerprint of the weights.
    """
    return Work(
        kind="student",
        structure=fingerprint("student", space.fingerprint, identity),
        what=space.label(architecture),
        network=space.network_structure(architecture),
        weights=weights,
    )


def empty_work(space: LayerwiseSpace, layer: int) -> Work:
    """A graph that returns its input, whose latency is the cost of a call."""
    at = space.layers[layer]
    return Work(kind="empty", structure=empty_structure(at), what=f"empty {at.input_shape}", layer=at.name)


def empty_structure(layer: Layer) -> str:
    """Identity of the graph of ``empty_work``."""
    return fingerprint("empty", layer.input_shape)


class OtherStructure(UserError):
    """A sampler's node would build another structure than the ordered one."""
