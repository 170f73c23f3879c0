"""What a run leaves is what it says: figures that can be recomputed, files that damage never passes for."""

from __future__ import annotations

import functools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lana_ray import accelerate
from lana_ray.registry import list_models
from lana_ray.run_dir.sealed import DIGEST_KEY, seal, unseal

from .runs import settings, summary_of

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("onnxruntime", reason="one of the targets runs ONNX")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A run directory after a whole run of two rounds."""
    folder = tmp_path_factory.mktemp("run")
    accelerate(_settings(folder))
    return folder


_settings = functools.partial(
    settings,
    select={"count": 2, "rounds": 2},
    budgets={"latency_ms": ["1000%"], "params": "100%"},
    finetune={"epochs": 4, "batch_size": 64, "lr": 0.01, "kd_weight": 0},  # its teacher knows nothing
)


def registry_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


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
            chosen = [row["latency_ms"] for row in table if layers[row["name"]] == row["op"]]
            assert len(chosen) == len(layers)
            predicted_ms = sum(chosen) + table[0]["rest_ms"]
            assert float(version.tags["predicted_ms"]) == pytest.approx(predicted_ms, rel=1e-5)
            told = next(r for r in summary_of(finished)["results"] if r["model_uri"] == version.model_uri)
            assert (told["predicted_ms"], told["calibration"]) == (pytest.approx(predicted_ms), number)


def test_the_summary_tells_of_the_last_table(finished: Path) -> None:
    for target in summary_of(finished)["targets"]:
        rows = pq.read_table(finished / "costs" / f"{target['name']}.parquet").to_pylist()
        assert rows[-1]["calibration"] >= 1
        assert (target["error"], target["networks"]) == (rows[-1]["table_error"], rows[-1]["networks"])


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
    before = [(r["target"], r["accuracy"]) for r in summary_of(finished)["results"]]
    files = sorted({path for pattern in DERIVED for path in finished.glob(pattern)})
    kinds = {file.parent.name for file in files}
    assert kinds >= {"candidates", "students", "samples", "scores", "costs", finished.name}
    for number, file in enumerate(files):
        damages = (flipped, emptied, halved) if file.suffix in CHECKED else (emptied, halved)
        file.write_bytes(damages[number % len(damages)](file.read_bytes()))
    capsys.readouterr()
    accelerate(_settings(finished))
    said = capsys.readouterr().out
    for name in ("teacher.safetensors", "candidates/", "students/", "samples/", "scores/"):
        assert any(name in line and "damaged" in line for line in said.splitlines()), name
    # samples are measured anew, so another student may be chosen; the teacher's weights are what they were
    assert [target for target, _ in before] == [r["target"] for r in summary_of(finished)["results"]]


def test_a_student_that_was_changed_is_never_told_with_its_old_accuracy(finished: Path) -> None:
    """Its digest fits the changed weights, and its key says that it is what was trained."""
    (accuracy,) = {r["accuracy"] for r in summary_of(finished)["results"]}
    known = {v.model_uri for v in list_models(registry_of(finished))}
    students = sorted(finished.glob("students/*.safetensors"), key=lambda path: path.stat().st_mtime)
    for file in students:
        tensors, metadata = unseal(file.read_bytes())
        tensors["head.bias"] = torch.arange(10.0) * 1e6  # always the last class
        file.write_bytes(seal(tensors, {k: v for k, v in metadata.items() if k != DIGEST_KEY}))
    accelerate(_settings(finished))
    versions = [v for v in list_models(registry_of(finished)) if v.model_uri not in known]
    ninths = 36 / 359
    assert accuracy > 2 * ninths
    registered = [float(v.tags["accuracy"]) for v in versions]
    assert registered == [pytest.approx(ninths, rel=0.1)] * len(versions)
    assert versions
    reported = [r["accuracy"] for r in summary_of(finished)["results"]]
    assert reported == [pytest.approx(ninths, rel=0.1)] * len(reported)
