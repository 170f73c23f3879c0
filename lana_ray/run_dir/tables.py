"""The tables of a run directory: their rows, and how they are written and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from lana_ray.errors import UserError, one_line
from lana_ray.ids import CandidateId
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage

_COLUMNS: dict[Any, pa.DataType] = {
    float: pa.float64(),
    int: pa.int64(),
    bool: pa.bool_(),
    str: pa.string(),
    bytes: pa.binary(),
    tuple[float, ...]: pa.list_(pa.float64()),
    tuple[int, ...]: pa.list_(pa.int64()),
}


def schema_of(record: type[Any]) -> pa.Schema:
    """The columns of a dataclass; raises TypeError for other field types. ``X | None`` is X with nulls."""
    types = get_type_hints(record)
    fields = []
    for name in (field.name for field in dataclasses.fields(record)):
        is_union = get_origin(types[name]) in (Union, UnionType)
        options = get_args(types[name]) if is_union else (types[name],)
        kinds = [kind for kind in options if kind is not NoneType]
        if len(kinds) != 1 or kinds[0] not in _COLUMNS:
            raise TypeError(f"{record.__name__}.{name}: no column holds {types[name]}")
        fields.append(pa.field(name, _COLUMNS[kinds[0]], nullable=is_union))
    return pa.schema(fields)


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """The first columns of a row about one candidate."""

    layer: int
    """Index of the layer."""
    name: str
    """Name of the layer."""
    choice: int
    """Index of the candidate at that layer."""
    op: str

    @property
    def candidate(self) -> CandidateId:
        return CandidateId(self.name, self.op)


@dataclass(frozen=True, kw_only=True)
class CostRow(CandidateRow):
    """A candidate in one of a target's cost tables; all values are in the unit of ``cost``.

    A table predicts the cost of a network as the sum of its candidates' ``value`` plus ``rest``, which is the
    same in all rows of the table.
    """

    target: str
    cost: str
    calibration: int
    """Number of the table: 0 for the first one, then one more after every calibration."""
    value: float
    """Cost in the network; infinite for a candidate that does not run on the target."""
    rest: float
    table_error: float
    """Median relative error on measured networks by leave-one-out cross-validation."""
    table_error_isolated: float
    """Median relative error of the sum of ``isolated`` costs."""
    networks: int
    """Number of networks that the table was fitted to."""
    isolated: float
    """Cost of the candidate measured alone."""
    considered: bool
    """Whether it is distilled."""
    iqr: float | None
    repeats: int | None
    settled: bool | None
    error: str | None
    """Why it does not run on the target."""


@dataclass(frozen=True, kw_only=True)
class CurveRow(CandidateRow):
    """The learning curve of a candidate's distillation."""

    stopped: str | None
    """Why it ended early; null if it did not."""
    error: tuple[float, ...]
    """Normalised error ‖t − s‖² / ‖t‖² of every step."""


@dataclass(frozen=True, kw_only=True)
class LayerScoreRow(CandidateRow):
    """The scores of a candidate; null if it was not scored."""

    loss: float | None = None
    """Change of the loss, in nats."""
    loss_se: float | None = None
    """Standard error of ``loss``."""
    kl: float | None = None
    """Kullback-Leibler divergence from the teacher, in nats."""
    kl_se: float | None = None
    distill_error: float | None = None
    """Normalised error at the end of the distillation."""
    left_out: str | None = None
    """Why it was not scored: ``slow``, ``fails``, or the reason why its distillation ended."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow(LayerScoreRow):
    """The scores of a candidate, and the one that selection uses."""

    score: float | None
    """The column named by ``score.by``."""


@dataclass(frozen=True, kw_only=True)
class ProxyRow:
    """A random student, which tests how well scores add up."""

    architecture: str
    choices: tuple[int, ...]
    score: float
    """Sum of its candidates' scores, in nats."""
    loss: float
    """Loss on the score split, in nats."""


@dataclass(frozen=True, kw_only=True)
class SelectionRow:
    """A student proposed for a budget; one row for every cost that the budget limits."""

    target: str
    budget: str
    cost: str
    """The limited cost; ``limit``, ``predicted``, ``measured`` and ``iqr`` are in its unit."""
    limit: float
    """The budget, without the margin."""
    round: int
    calibration: int
    """Number of the cost table behind ``predicted``."""
    rank: int
    architecture: str
    choices: tuple[int, ...]
    score: float
    gap: float
    predicted: float
    measured: float | None
    """Null for a student that does not run."""
    iqr: float | None
    loss: float | None
    """Loss on the score split, in nats; null for a student over a limit."""
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial of ``lana-ray search``; costs are in the unit of ``cost``."""

    target: str
    space: str
    method: str
    key: str
    architecture: str
    choices: tuple[int, ...]
    cost: str
    multiplier: float | None
    """λ; null for a trial with a budget."""
    budget: float | None
    seed: int | None
    collapsed: bool
    teacher_cost: float
    predicted_cost: float
    measured_cost: float
    teacher_ms: float
    predicted_ms: float | None
    measured_ms: float
    iqr_ms: float
    accuracy: float
    """Accuracy on the validation split."""
    loss: float | None
    search_s: float
    begun: float
    """Seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """What a layer takes in a network on a target, as its runtime's profile says."""

    network: str
    """``teacher``, or the budget of a student."""
    layer: str
    """Name of the layer; empty for what is outside of all."""
    op: str
    ms: float
    """Milliseconds per batch, scaled so that the rows of a network add up to its measured latency."""


R = TypeVar("R", bound="Any")


@dataclass(frozen=True)
class Table(Generic[R]):
    """A kind of Parquet file whose rows are instances of a dataclass."""

    record: type[R]

    def write(
        self,
        storage: Storage,
        file: str,
        rows: Sequence[R],
        key: str,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a file atomically.

        Args:
            key: fingerprint of the inputs that the rows were made from.
            facts: facts about all rows, kept in the file's metadata.
        """
        plain = [dataclasses.asdict(row) for row in rows]
        table = pa.Table.from_pylist(plain, schema=schema_of(self.record))
        storage.write_table(file, table.replace_schema_metadata(dict(facts or {})), key)

    def read(self, storage: Storage, file: str) -> list[R]:
        """The rows of a file; raises UserError if it is damaged or written by another version."""
        table = storage.read_table(file)
        try:
            rows = table.cast(schema_of(self.record)).to_pylist()
        except (ValueError, pa.ArrowException) as error:
            raise UserError(
                "damaged_file",
                f"{storage.url(file)}: written by another version of lana_ray ({one_line(error)}); rerun "
                "`lana-ray run` or `lana-ray search`, whichever made it",
            ) from None
        return [self.record(**_as_tuples(row)) for row in rows]

    def read_if_there(self, storage: Storage, file: str) -> list[R] | None:
        """The rows of a file; None if it does not exist."""
        return self.read(storage, file) if storage.exists(file) else None


def _as_tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


COSTS = Table(CostRow)
PROFILES = Table(ProfileRow)
CURVES = Table(CurveRow)
LAYER_SCORES = Table(LayerScoreRow)
SCORES = Table(ScoreRow)
PROXY = Table(ProxyRow)
SELECTIONS = Table(SelectionRow)
TRIALS = Table(TrialRow)


def layer_scores(storage: Storage, layer: str, key: str) -> list[LayerScoreRow] | None:
    """The scores of a layer's candidates; None if there are none with this key."""
    file = layout.scores(layer)
    return LAYER_SCORES.read(storage, file) if storage.table_fingerprint(file) == key else None
