"""``summary.json``, the results of a run for programs, and its smaller sibling for searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from lana_ray.errors import UserError
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    name: str
    layers: int
    """Number of layers that can be replaced."""
    parameters: int
    macs: float
    accuracy: float
    """On the test split."""
    trained: str | None
    """Why the teacher was trained on the data first; null if it was not."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    classes: tuple[str, ...]
    sizes: dict[str, int]
    """Images by split."""
    skipped: int
    """Images that could not be decoded."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    name: str
    runtime: str
    threads: int
    batch_size: int
    processor: str
    teacher_ms: float
    error: float
    """Median relative error of the latency table, each network left out in turn."""
    error_isolated: float
    networks: int
    """Number of networks that the table rests on."""
    stand_in: bool
    """Whether the driver's machine stood in for the target."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A student of one budget on one target. Latencies are in milliseconds per batch."""

    target: str
    budget: str
    budget_ms: float
    predicted_ms: float | None
    calibration: int | None
    """Number of the cost table that predicted it."""
    measured_ms: float
    iqr_ms: float
    teacher_ms: float
    speedup: float
    costs: dict[str, float]
    """Every measured cost with a budget, each in its unit."""
    params: float
    macs: float
    accuracy: float
    """On the test split, as the target runs it."""
    validation_accuracy: float
    accuracy_before: float | None
    """On the test split, before fine-tuning."""
    teacher_accuracy: float
    architecture: str
    model_uri: str | None
    """Null if it was not registered; ``problem`` says why."""
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    teacher: TeacherFacts
    data: DataFacts
    targets: tuple[TargetFacts, ...]
    results: tuple[Result, ...]
    unmet: tuple[str, ...]
    """Why budgets have no student."""
    versions: dict[str, str]
    """Installed packages."""
    seconds: dict[str, float]
    """Time spent in every stage by the last invocation."""

    def write(self, storage: Storage) -> None:
        storage.write_json(layout.SUMMARY, self.as_dict())

    @classmethod
    def read(cls, storage: Storage) -> Summary:
        """Raises UserError without a readable file, naming the command that writes it."""
        return _read(cls, storage, layout.SUMMARY, "lana-ray run CONFIG.yaml")

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return _as_dict(self)


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """The students of ``lana-ray search`` that were trained in full."""

    teacher: str
    results: tuple[Result, ...]
    unmet: tuple[str, ...]

    def write(self, storage: Storage) -> None:
        storage.write_json(layout.SEARCH_SUMMARY, _as_dict(self))

    @classmethod
    def read(cls, storage: Storage) -> SearchSummary:
        """Raises UserError without a readable file, naming the command that writes it."""
        return _read(cls, storage, layout.SEARCH_SUMMARY, "lana-ray search CONFIG.yaml")


T = TypeVar("T")


def _as_dict(value: Any) -> dict[str, Any]:
    return dict(TypeAdapter(type(value)).dump_python(value, mode="json"))


def _read(kind: type[T], storage: Storage, file: str, command: str) -> T:
    if not storage.exists(file):
        raise UserError("not_run_yet", f"{storage.url(file)}: not there yet; `{command}` makes it")
    try:
        return TypeAdapter(kind).validate_json(storage.read_bytes(file))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "JSON"
        raise UserError(
            "damaged_file",
            f"{storage.url(file)}: damaged or of another version ({where}: {problem['msg']}); `{command}` "
            "makes it anew",
        ) from None
