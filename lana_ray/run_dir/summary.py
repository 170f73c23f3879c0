"""Machine-readable results: ``summary.json`` of a run, and the smaller file of a search."""

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
    """Accuracy on the test split."""
    trained: str | None
    """Why the teacher was first trained on the data; null if it was not."""
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    classes: tuple[str, ...]
    sizes: dict[str, int]
    """Number of images by split."""
    skipped: int
    """Number of images that could not be decoded."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    name: str
    runtime: str
    threads: int
    batch_size: int
    processor: str
    teacher_ms: float
    error: float
    """Median relative error of the latency table by leave-one-out cross-validation."""
    error_isolated: float
    networks: int
    """Number of networks that the table was fitted to."""
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
    """Number of the cost table behind ``predicted_ms``."""
    measured_ms: float
    iqr_ms: float
    teacher_ms: float
    speedup: float
    costs: dict[str, float]
    """Measured costs that have a budget, each in its unit."""
    params: float
    macs: float
    accuracy: float
    """Test accuracy of the program that the target runs."""
    validation_accuracy: float
    accuracy_before: float | None
    """Test accuracy before fine-tuning."""
    teacher_accuracy: float
    architecture: str
    model_uri: str | None
    """Null if it was not registered, for the reason in ``problem``."""
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    teacher: TeacherFacts
    data: DataFacts
    targets: tuple[TargetFacts, ...]
    results: tuple[Result, ...]
    unmet: tuple[str, ...]
    """One reason for every budget without a student."""
    versions: dict[str, str]
    """Versions of installed packages."""
    seconds: dict[str, float]
    """Time of every stage in the last invocation."""

    def write(self, storage: Storage) -> None:
        storage.write_json(layout.SUMMARY, self.as_dict())

    @classmethod
    def read(cls, storage: Storage) -> Summary:
        """Raises UserError if the file is missing or damaged; names the command that writes it."""
        return _read(cls, storage, layout.SUMMARY, "lana-ray run CONFIG.yaml")

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return _as_dict(self)


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """The fully trained students of ``lana-ray search``."""

    teacher: str
    results: tuple[Result, ...]
    unmet: tuple[str, ...]

    def write(self, storage: Storage) -> None:
        storage.write_json(layout.SEARCH_SUMMARY, _as_dict(self))

    @classmethod
    def read(cls, storage: Storage) -> SearchSummary:
        """Raises UserError if the file is missing or damaged; names the command that writes it."""
        return _read(cls, storage, layout.SEARCH_SUMMARY, "lana-ray search CONFIG.yaml")


T = TypeVar("T")


def _as_dict(value: Any) -> dict[str, Any]:
    return dict(TypeAdapter(type(value)).dump_python(value, mode="json"))


def _read(kind: type[T], storage: Storage, file: str, command: str) -> T:
    if not storage.exists(file):
        raise UserError("not_run_yet", f"{storage.url(file)}: missing; run `{command}` first")
    try:
        return TypeAdapter(kind).validate_json(storage.read_bytes(file))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "JSON"
        raise UserError(
            "damaged_file",
            f"{storage.url(file)}: damaged or written by another version ({where}: {problem['msg']}); "
            f"rerun `{command}` to recreate it",
        ) from None
