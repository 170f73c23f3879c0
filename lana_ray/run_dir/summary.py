"""Machine-readable results: ``summary.json`` of a run, and the smaller file of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

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
class _Artifact:
    """Results in a JSON file of the run directory."""

    _file: ClassVar[str]
    _command: ClassVar[str]
    """The command that writes the file."""

    def write(self, storage: Storage) -> None:
        storage.write_json(self._file, self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return dict(TypeAdapter(type(self)).dump_python(self, mode="json"))

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """Raises UserError if the file is missing or damaged; names the command that writes it."""
        file = storage.url(cls._file)
        if not storage.exists(cls._file):
            raise UserError("not_run_yet", f"{file}: missing; run `{cls._command}` first")
        try:
            return TypeAdapter(cls).validate_json(storage.read_bytes(cls._file))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "JSON"
            raise UserError(
                "damaged_file",
                f"{file}: damaged or written by another version ({where}: {problem['msg']}); rerun "
                f"`{cls._command}` to recreate it",
            ) from None


@dataclass(frozen=True, kw_only=True)
class Summary(_Artifact):
    """The results of ``lana-ray run``."""

    _file = layout.SUMMARY
    _command = "lana-ray run CONFIG.yaml"

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


@dataclass(frozen=True, kw_only=True)
class SearchSummary(_Artifact):
    """The fully trained students of ``lana-ray search``."""

    _file = layout.SEARCH_SUMMARY
    _command = "lana-ray search CONFIG.yaml"

    teacher: str
    results: tuple[Result, ...]
    unmet: tuple[str, ...]
