"""A whole run of a small teacher, from weights to registry; what is kept, made again, and never believed."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lana_ray import UserError, accelerate
from lana_ray.commands.verify import verify
from lana_ray.config import load_config
from lana_ray.costs.samples import SampleStore
from lana_ray.pipeline import STAGES, fit_predictors
from lana_ray.registry import list_models, load
from lana_ray.registry._session import session
from lana_ray.run_dir.digest import DIGEST_KEY, seal, unseal
from lana_ray.run_dir.storage import Storage

from .runs import settings, summary_of, times

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("onnxruntime", reason="one of the targets runs ONNX")

CANARY = "c4nary"

run_of = functools.partial(
    settings,
    select={"count": 2, "rounds": 2},
    budgets={"latency_ms": ["1000%", "500ms"], "params": "100%"},
    finetune={"epochs": 4, "batch_size": 64, "lr": 0.01, "kd_weight": 0},  # its teacher knows nothing
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A run directory after a whole run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
        accelerate(run_of(folder))
    return folder


def registry_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def test_every_target_and_budget_has_a_result_within_its_budget(finished: Path) -> None:
    results = summary_of(finished)["results"]
    assert {(r["target"], r["budget"]) for r in results} == {
        (target, budget) for target in ("ort", "eager") for budget in ("1000%", "500ms")
    }
    for result in results:
        assert 0 < result["measured_ms"] <= result["budget_ms"]
        assert result["speedup"] == pytest.approx(result["teacher_ms"] / result["measured_ms"])
        assert 0 <= result["accuracy"] <= 1
        assert result["model_uri"].startswith("models:/")


def test_the_run_directory_holds_what_the_design_promises(finished: Path) -> None:
    for name in ("run.yaml", "scores.parquet", "selections.parquet", "summary.json", "report.html"):
        assert (finished / name).is_file(), name
    assert {p.name for p in (finished / "costs").iterdir()} == {"ort.parquet", "eager.parquet"}
    assert {p.name for p in (finished / "profiles").iterdir()} == {"ort.parquet", "eager.parquet"}
    trained = {p.name for p in (finished / "candidates").iterdir()}
    assert trained == {f"blocks.{i}--mbconv_e1_k3.safetensors" for i in range(3)}
    curves = pq.read_table(finished / "curves.parquet").to_pylist()
    assert [(row["layer"], row["op"]) for row in curves] == [(i, "mbconv_e1_k3") for i in range(3)]
    steps = load_config(run_of(finished)).distill.steps
    assert [len(row["error"]) for row in curves] == [steps] * 3
    costs = pq.read_table(finished / "costs" / "ort.parquet").to_pylist()
    assert {row["calibration"] for row in costs} >= {0, 1}
    costs = [row for row in costs if row["calibration"] == 0]
    # identity stands only where the layer keeps the shape
    assert [row["op"] for row in costs if row["layer"] == 1] == ["teacher", "mbconv_e1_k3"]
    assert all(row["cost"] == "latency_ms" and row["value"] >= 0 for row in costs)


def test_the_registry_has_one_model_per_target_with_tags_and_aliases(finished: Path) -> None:
    versions = list_models(registry_of(finished))
    assert {v.name for v in versions} == {"net-ort", "net-eager"}
    assert len(versions) == 4
    for version in versions:
        for tag in ("target", "budget", "latency_ms", "teacher_latency_ms", "speedup", "accuracy"):
            assert version.tags[tag]
    assert {v.name for v in versions if "champion" in v.aliases} == {"net-ort", "net-eager"}


def test_predicted_latencies_are_those_of_the_registered_tables(finished: Path) -> None:
    """By a version's tags and the file registered with it, and by the summary and the file in the run."""
    versions = list_models(registry_of(finished))
    assert {v.tags["target"] for v in versions} == {"ort", "eager"}
    registered = [pq.read_table(file).to_pylist() for file in finished.glob("mlartifacts/**/costs.parquet")]
    for version in versions:
        target, number = version.tags["target"], int(version.tags["calibration"])
        layers = dict(part.split("=") for part in version.tags["architecture"].split("|"))
        mine = [rows for rows in registered if rows[0]["target"] == target]
        assert len(mine) >= 2  # the version's and the target's in the pipeline's run
        for rows in (*mine, pq.read_table(finished / "costs" / f"{target}.parquet").to_pylist()):
            table = [row for row in rows if row["calibration"] == number]
            chosen = [row["value"] for row in table if layers[row["name"]] == row["op"]]
            assert len(chosen) == len(layers)
            predicted_ms = sum(chosen) + table[0]["rest"]
            assert float(version.tags["predicted_ms"]) == pytest.approx(predicted_ms, rel=1e-5)
            told = next(r for r in summary_of(finished)["results"] if r["model_uri"] == version.model_uri)
            assert (told["predicted_ms"], told["calibration"]) == (pytest.approx(predicted_ms), number)


def test_the_summary_tells_of_the_last_table(finished: Path) -> None:
    for target in summary_of(finished)["targets"]:
        rows = pq.read_table(finished / "costs" / f"{target['name']}.parquet").to_pylist()
        assert rows[-1]["calibration"] >= 1
        assert (target["error"], target["networks"]) == (rows[-1]["table_error"], rows[-1]["networks"])


def _runs(folder: Path) -> dict[str, Any]:
    with session(registry_of(folder)) as client:
        (experiment,) = (e for e in client.search_experiments() if e.name == "net")
        return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_the_run_is_tracked_with_its_stages_targets_and_students(finished: Path) -> None:
    runs = _runs(finished)
    parent = runs.pop(finished.name)
    stages = {f"stage {name}" for name in STAGES}
    students = {f"{target} {budget}" for target in ("ort", "eager") for budget in ("1000%", "500ms")}
    assert runs.keys() == stages | {"target ort", "target eager"} | students
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    assert parent.data.params["distill.steps"] == "8"
    assert parent.inputs.dataset_inputs[0].dataset.name == "digits"
    assert runs["stage select"].data.metrics["seconds"] > 0
    assert {"table_error", "teacher_latency_ms", "networks"} <= runs["target ort"].data.metrics.keys()
    assert 0 <= runs["ort 500ms"].data.metrics["validation_accuracy"] <= 1
    kept = {path.name for path in (finished / "mlartifacts").glob(f"{parent.info.run_id}/artifacts/*")}
    assert kept == {"report.html", "summary.json"}
    target = runs["target ort"].info.run_id
    plots = {path.name for path in (finished / "mlartifacts").glob(f"{target}/artifacts/*")}
    assert plots >= {"accuracy-and-latency.svg", "costs.parquet"}
    assert {v.tags["run"] for v in list_models(registry_of(finished))} == {parent.info.run_id}


def test_no_secret_is_kept(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_a_registered_model_answers_as_the_student_does(finished: Path) -> None:
    network = load("models:/net-ort@champion", registry_of(finished))
    with torch.no_grad():
        assert network(torch.zeros(5, 3, 16, 16)).shape == (5, 10)


def test_a_registered_model_is_verified_from_the_registry_alone(finished: Path) -> None:
    verification = verify("models:/net-eager@champion", tracking_uri=registry_of(finished))
    assert verification.ok, verification.checks


def _tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: pq.read_table(path).to_pylist() for path in (folder / "costs").iterdir()}


def test_the_same_run_again_measures_and_trains_nothing(finished: Path) -> None:
    patterns = ("candidates/*", "students/*", "samples/*", "scores/*", "evaluations/*", "profiles/*")
    before = {pattern: times(finished, pattern) for pattern in patterns}
    assert len(before["samples/*"]) == 2  # blocks are merged, by target
    first, logged = summary_of(finished)["results"], {run.info.run_id for run in _runs(finished).values()}
    tables = _tables(finished)
    accelerate(run_of(finished))
    assert {pattern: times(finished, pattern) for pattern in patterns} == before
    assert _tables(finished) == tables
    assert summary_of(finished)["results"] == first
    assert len(list_models(registry_of(finished))) == 4
    assert {run.info.run_id for run in _runs(finished).values()} == logged


@dataclass(frozen=True)
class Rerun:
    """A run in a finished run's directory, with other settings."""

    said: str
    before: Mapping[str, Mapping[str, int]]
    """Times of the files that were there, by pattern."""
    results: Sequence[Mapping[str, Any]]


@pytest.fixture(scope="module")
def changed(finished: Path) -> Rerun:
    """With shorter fine-tuning, and one student for all targets."""
    before = {pattern: times(finished, pattern) for pattern in ("candidates/*", "students/*")}
    finetune, select = {"epochs": 0.6, "batch_size": 64}, {"count": 2, "rounds": 2, "joint": True}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        accelerate(run_of(finished, finetune=finetune, select=select))
    return Rerun(said.getvalue(), before, summary_of(finished)["results"])


def test_a_change_redoes_only_what_depends_on_it(finished: Path, changed: Rerun) -> None:
    assert times(finished, "candidates/*") == changed.before["candidates/*"]
    assert set(times(finished, "students/*")) > set(changed.before["students/*"])
    assert "finetune.epochs 4.0 → 0.6" in changed.said


def test_a_joint_student_is_registered_for_every_target(changed: Rerun) -> None:
    results = changed.results
    for budget in ("1000% on all", "500ms on all"):
        mine = {r["target"]: r for r in results if r["budget"] == budget}
        assert mine.keys() == {"ort", "eager"}
        assert mine["ort"]["architecture"] == mine["eager"]["architecture"]
        assert all(r["measured_ms"] <= r["budget_ms"] for r in mine.values())
        assert mine["ort"]["model_uri"] != mine["eager"]["model_uri"]
    assert len(results) == 8


def test_samples_of_a_truncated_file_are_named_and_left_out(finished: Path) -> None:
    storage = Storage(str(finished))
    victim = finished / "samples" / "ort-broken.parquet"
    whole = next((finished / "samples").glob("ort-*.parquet")).read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    store = SampleStore(storage)
    assert store.read()
    assert len(store.damaged) == 1
    assert "ort-broken.parquet" in store.damaged[0]
    victim.unlink()


def test_too_few_networks_for_a_predictor_are_told(finished: Path) -> None:
    with pytest.raises(
        UserError, match=r"target 'ort': \d+ networks measured, but a predictor needs 20; raise"
    ):
        fit_predictors(load_config(run_of(finished)))


def test_a_directory_of_another_teacher_or_data_is_refused(finished: Path) -> None:
    other = run_of(finished, data={"source": "digits", "image_size": 24, "augment": "none"})
    with pytest.raises(UserError, match=r"data\.image_size 16, now it is 24; choose another run\.dir"):
        accelerate(other)


def emptied(data: bytes) -> bytes:
    return b""


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """A bit in the middle, where a file's content is."""
    changed = bytearray(data)
    changed[len(data) // 2] ^= 4
    return bytes(changed)


DERIVED = ("*.parquet", "*/*.parquet", "*.safetensors", "*/*.safetensors", "*/*.json", "run.yaml")
CHECKED = (".parquet", ".safetensors")
"""Files that notice a flipped bit."""


def test_whatever_is_damaged_is_named_and_made_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file in one of three ways, in turn."""
    files = sorted({path for pattern in DERIVED for path in finished.glob(pattern)})
    kinds = {file.parent.name for file in files}
    assert kinds >= {"candidates", "students", "samples", "scores", "costs", "profiles", finished.name}
    for number, file in enumerate(files):
        damages = (flipped, emptied, halved) if file.suffix in CHECKED else (emptied, halved)
        file.write_bytes(damages[number % len(damages)](file.read_bytes()))
    capsys.readouterr()
    accelerate(run_of(finished))
    said = capsys.readouterr().out
    for name in ("teacher.safetensors", "candidates/", "students/", "samples/", "scores/"):
        assert any(name in line and "damaged" in line for line in said.splitlines()), name
    # samples are measured anew, so another student may be chosen
    assert sorted((r["target"], r["budget"]) for r in summary_of(finished)["results"]) == [
        (target, budget) for target in ("eager", "ort") for budget in ("1000%", "500ms")
    ]


def test_a_student_that_was_changed_is_never_told_with_its_old_accuracy(finished: Path) -> None:
    """Its digest fits the changed weights, and its key says that it is what was trained."""
    accuracy = min(r["accuracy"] for r in summary_of(finished)["results"])
    known = {v.model_uri for v in list_models(registry_of(finished))}
    for file in finished.glob("students/*.safetensors"):
        try:
            tensors, metadata = unseal(file.read_bytes())
        except ValueError:  # one of other settings, damaged by the test before
            continue
        tensors["head.bias"] = torch.arange(10.0) * 1e6  # always the last class
        file.write_bytes(seal(tensors, {k: v for k, v in metadata.items() if k != DIGEST_KEY}))
    accelerate(run_of(finished))
    versions = [v for v in list_models(registry_of(finished)) if v.model_uri not in known]
    ninths = 36 / 359
    assert accuracy > 2 * ninths
    registered = [float(v.tags["accuracy"]) for v in versions]
    assert registered == [pytest.approx(ninths, rel=0.1)] * len(versions)
    assert versions
    reported = [r["accuracy"] for r in summary_of(finished)["results"]]
    assert reported == [pytest.approx(ninths, rel=0.1)] * len(reported)
