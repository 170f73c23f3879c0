"""Whole runs of a small teacher, from weights to registry, and what happens when they are disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lana_ray import UserError, accelerate
from lana_ray.config import load_config
from lana_ray.latency import LatencyPredictor, predictor
from lana_ray.latency.store import SampleStore
from lana_ray.pipeline import fit_predictors
from lana_ray.registry import list_models, load
from lana_ray.report import write_fit_plots
from lana_ray.storage import Storage
from lana_ray.verify import verify
from lana_ray.workspace import Workspace

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("onnxruntime", reason="one of the targets runs ONNX")
NETWORKS = Path(__file__).parent / "networks.py"


def settings(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """A run of seconds; its budgets are wide, for a busy machine breaks tight ones of a small network."""
    measure = {"architectures": 8, "time_limit_s": 0.05}
    return {
        "run": {"dir": str(run_dir)},
        "ray": {"workers": 2},
        "teacher": {"factory": f"{NETWORKS}:net"},
        "data": {"source": "digits", "image_size": 16, "augment": "none"},
        "pool": {"ops": ["identity", "mbconv_e1_k3"]},
        "targets": [
            {"name": "ort", "runtime": "onnxruntime", "measure": measure},
            {"name": "eager", "runtime": "torch", "batch_size": 4, "measure": measure},
        ],
        "budgets": {"latency_ms": ["1000%", "500ms"]},
        "distill": {"steps": 8, "batch_size": 32, "group_size": 1},
        "score": {"images": 64, "batch_size": 32},
        "select": {"count": 2, "rounds": 1},
        "finetune": {"epochs": 0.5, "batch_size": 64},
    } | changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A run directory after a whole run."""
    folder = tmp_path_factory.mktemp("run")
    accelerate(settings(folder))
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def registry_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


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
    trained = {p.name for p in (finished / "candidates").iterdir()}
    assert trained == {f"blocks.{i}--mbconv_e1_k3.safetensors" for i in range(3)}
    costs = pq.read_table(finished / "costs" / "ort.parquet").to_pylist()
    # identity stands only where the layer keeps the shape
    assert [row["op"] for row in costs if row["layer"] == 1] == ["teacher", "mbconv_e1_k3"]
    assert all(row["latency_ms"] >= 0 for row in costs)


def test_the_registry_has_one_model_per_target_with_tags_and_aliases(finished: Path) -> None:
    versions = list_models(registry_of(finished))
    assert {v.name for v in versions} == {"net-ort", "net-eager"}
    assert len(versions) == 4
    for version in versions:
        for tag in ("target", "budget", "latency_ms", "teacher_latency_ms", "speedup", "accuracy"):
            assert version.tags[tag]
    assert {v.name for v in versions if "champion" in v.aliases} == {"net-ort", "net-eager"}


def test_a_registered_model_answers_as_the_student_does(finished: Path) -> None:
    network = load("models:/net-ort@champion", registry_of(finished))
    with torch.no_grad():
        assert network(torch.zeros(5, 3, 16, 16)).shape == (5, 10)


def test_a_registered_model_is_verified_from_the_registry_alone(finished: Path) -> None:
    verification = verify("models:/net-eager@champion", tracking_uri=registry_of(finished))
    assert verification.ok, verification.checks


def test_the_same_run_again_measures_and_trains_nothing(finished: Path) -> None:
    patterns = ("candidates/*", "students/*", "samples/*", "scores/*", "evaluations/*")
    before = {pattern: times(finished, pattern) for pattern in patterns}
    first = summary_of(finished)["results"]
    accelerate(settings(finished))
    assert {pattern: times(finished, pattern) for pattern in patterns} == before
    assert summary_of(finished)["results"] == first
    assert len(list_models(registry_of(finished))) == 4


def test_a_change_redoes_only_what_depends_on_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidates, students = times(finished, "candidates/*"), times(finished, "students/*")
    accelerate(settings(finished, finetune={"epochs": 0.6, "batch_size": 64}))
    assert times(finished, "candidates/*") == candidates
    assert set(times(finished, "students/*")) > set(students)
    assert "finetune.epochs 0.5 → 0.6" in capsys.readouterr().out


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


def test_a_predictor_is_fitted_to_what_was_sampled(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_EPOCHS", 20)  # how well it learns is tested elsewhere
    measure = {"architectures": 40, "active": 10, "time_limit_s": 0.02}
    target = {"name": "eager", "runtime": "torch", "measure": measure}
    config = load_config(settings(tmp_path, targets=[target], pool={"preset": "tiny"}))
    (fit,) = fit_predictors(config)
    # Of 41 with the teacher, 8 are for testing; 10 were chosen to be measured.
    assert [count for count, _ in fit.curve] == [8, 16, 33, 43]
    taken = SampleStore(Storage(str(tmp_path))).read()
    assert len({sample.key for sample in taken if sample.kind == "network"}) == 50
    (again,) = fit_predictors(config)
    assert again.quality == fit.quality
    assert len(SampleStore(Storage(str(tmp_path))).read()) == len(taken)
    assert fit.predicted_ms.shape == fit.measured_ms.shape == (8,)
    space = Workspace(config).space
    loaded = LatencyPredictor.load(tmp_path / fit.file)
    assert loaded.predict(space.encode(space.teacher)[None])[0] > 0
    (plot,) = write_fit_plots(Storage(str(tmp_path)), [fit])
    assert Path(plot).read_text().startswith("<?xml")


def test_too_few_networks_for_a_predictor_are_told(finished: Path) -> None:
    with pytest.raises(UserError, match=r"target 'ort': \d+ networks measured, a predictor needs 20; raise"):
        fit_predictors(load_config(settings(finished)))


def test_a_directory_of_another_teacher_or_data_is_refused(finished: Path) -> None:
    other = settings(finished, data={"source": "digits", "image_size": 24, "augment": "none"})
    with pytest.raises(UserError, match=r"data\.image_size 16, now it is 24; choose another run\.dir"):
        accelerate(other)


def test_a_budget_below_the_cheapest_is_told_before_training(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match=r"target 'ort': budget 0\.0001ms .* the cheapest student takes"):
        accelerate(settings(tmp_path, budgets={"latency_ms": ["0.0001ms"]}))
    assert not (tmp_path / "candidates").exists()


def test_a_teacher_whose_layers_do_not_fit_names_the_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layer blocks\.0 does not fit: it returns tuple, not a tensor"):
        accelerate(settings(tmp_path, teacher={"factory": f"{NETWORKS}:tuple_net"}))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    teacher = {"factory": f"{NETWORKS}:net", "weights": str(tmp_path / "weights.pt")}
    with pytest.raises(UserError, match=r"weights\.pt: not the weights of Net: lacks"):
        accelerate(settings(tmp_path / "run", teacher=teacher))


def test_a_target_whose_label_nobody_carries_is_named(tmp_path: Path, ray_cluster: None) -> None:
    targets = [{"name": "big", "runtime": "torch", "threads": 512}]
    with pytest.raises(UserError, match="target 'big': threads 512"):
        accelerate(settings(tmp_path, targets=targets))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"run\.dir .* cannot be written"):
        accelerate(settings(tmp_path / "run"))


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = settings(run_dir, ray={"address": "local", "workers": 1})
    config["distill"] = {"steps": 60, "batch_size": 64, "group_size": 1}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "lana_ray.cli", "run", str(file)]

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(1200):
            if list(run_dir.glob("candidates/*.safetensors")):
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.1)
        else:
            pytest.fail("no candidate was finished in two minutes")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    candidates, samples = times(run_dir, "candidates/*"), times(run_dir, "samples/*")
    assert not (run_dir / "summary.json").exists()

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    after = times(run_dir, "candidates/*")
    assert len(after) == 3
    assert {name: after[name] for name in candidates} == candidates
    assert samples.items() <= times(run_dir, "samples/*").items()
    assert len(summary_of(run_dir)["results"]) == 4
    assert load_config(run_dir / "run.yaml").finetune.epochs == 0.5
