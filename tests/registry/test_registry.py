import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lana_ray import registry
from lana_ray.config import RegistryConfig
from lana_ray.deploy import to_onnx
from lana_ray.registry import Version
from lana_ray.run_dir.storage import Storage

from ..errors import refuses
from .students import CLASSES, SHAPE, model, network, promote, register, student


@dataclass(frozen=True)
class Registered:
    uri: str
    version: Version
    onnx: bytes

    @property
    def artifacts(self) -> Path:
        return Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """A registry with one student, for tests that only read."""
    folder = tmp_path_factory.mktemp("registered")
    costs = folder / "measured.parquet"
    costs.write_bytes(b"rows")
    onnx = to_onnx(network(), torch.randn(2, *SHAPE), dynamic_batch=True)
    uri = f"sqlite:///{folder}/mlflow.db"
    (version,) = register(uri, student("a", model=model(onnx=onnx), artifacts={"costs/table.parquet": costs}))
    return Registered(uri, version, onnx)


def _program(uri: str, version: Version) -> Path:
    """The version's file; its teacher's has the same name."""
    programs = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").rglob("model.pt2")
    (own,) = (file for file in programs if version.tags["teacher_model"] not in file.parts)
    return own


def _aliases(uri: str) -> dict[str, int]:
    return {alias: v.version for v in registry.list_models(uri) for alias in v.aliases}


def test_version_has_tags_and_aliases(registered: Registered) -> None:
    version, uri = registered.version, registered.uri
    assert version.model_uri == "models:/tiny-net-ort-1t/1"
    assert version.aliases == ("budget-50pct", "champion")
    assert version.tags["target"] == "ort 1t"
    assert version.tags["latency_ms"] == "0.5"
    assert registry.find("models:/tiny-net-ort-1t@champion", uri) == version
    assert registry.list_models(uri) == registry.list_models(uri, "ort 1t") == [version]
    with refuses("unknown_name", "target 'another'", "ort 1t"):
        registry.list_models(uri, "another")


def test_version_has_files(registered: Registered, tmp_path: Path) -> None:
    names = ("preprocessing.json", "labels.json", "model.onnx")
    files = [
        registry.download(registered.version.model_uri, name, tmp_path, registered.uri) for name in names
    ]
    assert json.loads(files[0].read_text()) == {"mean": [0.5, 0.5, 0.5]}
    assert json.loads(files[1].read_text()) == list(CLASSES)
    assert files[2].read_bytes() == registered.onnx
    assert [path.read_bytes() for path in registered.artifacts.rglob("costs/table.parquet")] == [b"rows"]


def test_nothing_registered_names_the_machine(registered: Registered) -> None:
    import mlflow

    models = list(registered.artifacts.rglob("MLmodel"))
    assert len(models) == 2  # the student's and the teacher's
    roots = [sys.prefix, torch.__path__[0], str(Path.cwd()), str(registered.artifacts)]
    for metadata in models:
        for file in metadata.parent.rglob("*"):
            assert not file.is_file() or not any(root.encode() in file.read_bytes() for root in roots), file
        signature = mlflow.models.Model.load(str(metadata)).signature
        assert [spec.shape for spec in signature.inputs.inputs] == [(-1, *SHAPE)]
    (run,) = mlflow.MlflowClient(tracking_uri=registered.uri).search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["latency_ms"] == 0.5
    assert not any("/" in value for value in {**run.data.tags, **run.data.params}.values())


_READ_BACK = """
import sys
sys.modules["lana_ray"] = None
import mlflow, mlflow.pytorch, torch
mlflow.set_tracking_uri(sys.argv[1])
network = mlflow.pytorch.load_model(sys.argv[2])
torch.save([network(images) for images in torch.load(sys.argv[3])], sys.argv[4])
"""


def test_loads_back_without_this_package(registered: Registered, tmp_path: Path) -> None:
    images = [torch.randn(batch, *SHAPE) for batch in (1, 7)]
    torch.save(images, tmp_path / "images.pt")
    arguments = (
        registered.uri,
        registered.version.model_uri,
        str(tmp_path / "images.pt"),
        str(tmp_path / "logits.pt"),
    )
    command = [sys.executable, "-c", _READ_BACK, *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    loaded = registry.load(registered.version.model_uri, registered.uri)
    for batch, logits in zip(images, torch.load(tmp_path / "logits.pt"), strict=True):
        torch.testing.assert_close(logits, network()(batch), rtol=0, atol=1e-5)
        torch.testing.assert_close(loaded(batch), network()(batch), rtol=0, atol=1e-5)


def test_onnx_file_runs_with_any_batch(registered: Registered, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    file = registry.download(registered.version.model_uri, "model.onnx", tmp_path, registered.uri)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        images = torch.randn(batch, *SHAPE)
        (logits,) = session.run(None, {"input": images.numpy()})
        np.testing.assert_allclose(logits, network()(images).detach().numpy(), atol=1e-5)


def test_registering_again_adds_nothing(uri: str) -> None:
    first = register(uri, student("a"), student("b", budget="12.5ms"))
    again = register(uri, student("a"), student("b", budget="12.5ms"))
    assert first == again == registry.list_models(uri)
    assert _aliases(uri) == {"champion": 2, "budget-50pct": 1, "budget-12_5ms": 2}


def test_teacher_is_kept_once_and_not_registered(uri: str, tmp_path: Path) -> None:
    import mlflow

    first, second = register(uri, student("a"), student("b", budget="70%"))
    (third,) = register(uri, student("c", teacher="t1"))
    assert first.teacher_uri == second.teacher_uri != third.teacher_uri
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(registry.load(first.teacher_uri, uri)(images), network()(images))
    labels = registry.download(first.teacher_uri, "labels.json", tmp_path, uri)
    assert json.loads(labels.read_text()) == list(CLASSES)
    client = mlflow.MlflowClient(tracking_uri=uri)
    logged = client.search_logged_models(["1"], "name = 'teacher'")
    assert sorted(model.model_uri for model in logged) == sorted([first.teacher_uri, third.teacher_uri])
    assert [model.name for model in client.search_registered_models()] == ["tiny-net-ort-1t"]
    with refuses("invalid_setting", first.teacher_uri, "models:/NAME/VERSION"):
        registry.find(first.teacher_uri, uri)


def test_what_was_killed_while_uploading_is_ended(uri: str) -> None:
    """That of another run directory may still be going on."""
    import mlflow

    (version,) = register(uri, student("a"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny/net").experiment_id

    def left_by(directory: str) -> tuple[str, str]:
        tags = {"student_fingerprint": "a", "run_directory": directory}
        run = client.create_run(experiment, tags=tags).info.run_id
        return run, client.create_logged_model(experiment, source_run_id=run, tags=tags).model_id

    (killed, half), (running, open_) = left_by("d0"), left_by("d1")
    assert registry.end_abandoned("d0", tracking_uri=uri, prefix="tiny/net") == 2
    assert client.get_run(killed).info.status == "KILLED"
    assert client.get_run(running).info.status == "RUNNING"
    models = {model.model_id: str(model.status) for model in client.search_logged_models([experiment])}
    assert half not in models
    assert models.pop(open_) == "PENDING"
    assert set(models.values()) == {"READY"}
    assert registry.end_abandoned("d0", tracking_uri=uri, prefix="tiny/net") == 0
    assert registry.list_models(uri) == [version]


def test_champion_is_the_most_accurate_within_the_default_budget(uri: str) -> None:
    register(uri, student("a", accuracy=0.9))
    slow = {**student("c", accuracy=0.99).tags, "latency_ms": "0.8", "sustained_latency_ms": "0.8"}
    register(uri, student("b", accuracy=0.8), student("c", budget="70%", tags=slow))
    assert _aliases(uri) == {"champion": 1, "budget-50pct": 1, "budget-70pct": 3}
    register(uri, student("d", accuracy=0.9))
    assert _aliases(uri)["champion"] == 4
    register(uri, student("e", accuracy=0.91, budget="70%"))  # quicker than it had to be
    assert _aliases(uri) == {"champion": 5, "budget-50pct": 4, "budget-70pct": 3}
    (version,) = register(uri, student("a", accuracy=0.9), default_budget="0.9ms")
    assert _aliases(uri)["champion"] == 3
    promote(uri, version, default_budget="0.1ms")  # none is so quick
    assert _aliases(uri)["champion"] == 3


def test_champion_is_chosen_by_the_validation_images(uri: str) -> None:
    lucky = {**student("b", accuracy=0.99).tags, "validation_accuracy": "0.85"}
    register(uri, student("a", accuracy=0.9), student("b", tags=lucky))
    assert _aliases(uri) == {"champion": 1, "budget-50pct": 1}


@pytest.mark.parametrize("tag", ["processor", "runtime", "target_settings"])
def test_versions_of_other_hardware_do_not_compete(uri: str, tag: str) -> None:
    """The newest's counts; when its hardware is back, so are all of it."""
    other = {**student("b", accuracy=0.5).tags, tag: "another"}
    register(uri, student("a", accuracy=0.9), student("b", tags=other))
    assert _aliases(uri) == {"champion": 2, "budget-50pct": 2}
    register(uri, student("c", accuracy=0.4))
    assert _aliases(uri) == {"champion": 1, "budget-50pct": 1}


def test_what_was_not_verified_gets_no_alias_and_a_worse_model_none_either(uri: str) -> None:
    teachers = {"ort 1t": model()}
    (best,) = registry.register([student("a")], teachers, parent="p0", tracking_uri=uri, prefix="tiny/net")
    assert not best.is_verified
    assert _aliases(uri) == {}
    (failed,) = promote(uri, best, problem="accuracy: 10 %")
    assert failed.tags["verified"] == "failed: accuracy: 10 %"
    register(uri, student("b", accuracy=0.5))
    assert _aliases(uri) == {"champion": 2, "budget-50pct": 2}
    (mended,) = promote(uri, failed)
    assert mended.is_verified
    assert mended.aliases == ("budget-50pct", "champion")
    register(uri, student("c", accuracy=0.4))
    assert _aliases(uri) == {"champion": 1, "budget-50pct": 1}


def test_a_version_that_fails_later_loses_its_aliases(uri: str) -> None:
    import mlflow

    (version,) = register(uri, student("a"))
    mlflow.MlflowClient(tracking_uri=uri).set_registered_model_alias(version.name, "mine", "1")
    promote(uri, version, problem="damaged")
    assert _aliases(uri) == {"mine": 1}


def test_another_teacher_starts_afresh(uri: str) -> None:
    register(uri, student("a", accuracy=0.9))
    register(uri, student("b", accuracy=0.5, teacher="t1", budget="70%"))
    assert _aliases(uri) == {"champion": 2, "budget-50pct": 1, "budget-70pct": 2}
    register(uri, student("a", accuracy=0.9))
    assert _aliases(uri)["champion"] == 2


class _OneBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)).reshape(2, 1).expand(2, len(CLASSES))


def test_network_that_cannot_be_exported_leaves_no_version(uri: str) -> None:
    import mlflow

    with refuses("refused", "_OneBatch: torch.export"):
        register(uri, student("a", model=model(_OneBatch())))
    assert registry.list_models(uri) == []
    (run,) = mlflow.MlflowClient(tracking_uri=uri).search_runs(["1"])
    assert run.info.status == "FAILED"
    (version,) = register(uri, student("a"))
    assert version.version == 1


def test_registration_is_silent_and_leaves_no_trace_in_the_process(
    uri: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    trained = network().train()
    register(uri, student("a", model=model(trained)))
    assert capfd.readouterr() == ("", "")
    assert trained.training
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mine.db"
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(
    ("model_uri", "code", "fix"),
    [
        ("models:/tiny-net-ort-1t/9", "unknown_name", "lana-ray models"),
        ("models:/nobody/1", "unknown_name", "lana-ray models"),
        ("models:/tiny-net-ort-1t@best", "unknown_name", "lana-ray models"),
        ("tiny-net-ort-1t", "invalid_setting", "models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("../../etc", "invalid_setting", "models:/NAME/VERSION or models:/NAME@ALIAS"),
    ],
)
def test_unknown_model_uri(registered: Registered, model_uri: str, code: str, fix: str) -> None:
    with refuses(code, model_uri, fix):
        registry.load(model_uri, registered.uri)


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_missing_and_damaged_files_are_named(uri: str, tmp_path: Path) -> None:
    (version,) = register(uri, student("a"))
    with refuses("missing_file", version.model_uri, "model.onnx", "labels.json, prep"):
        registry.download(version.model_uri, "model.onnx", tmp_path, uri)
    program = _program(uri, version)
    program.write_bytes(program.read_bytes()[:5000])
    with refuses("damaged_file", "model.pt2"):
        registry.load(version.model_uri, uri)


def test_code_in_a_model_s_folder_is_never_run(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle beside the program, a module to read it with, and the folder where that module is."""
    (version,) = register(uri, student("a"))
    program, mark = _program(uri, version), tmp_path / "sprung"
    expected = registry.load(version.model_uri, uri)
    folder = program.parents[1]
    (folder / "code").mkdir()
    (folder / "code" / "planted.py").write_text(f"__import__('os').mkdir({str(mark)!r})")
    described = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(described.replace("pytorch:", "pytorch:\n    code: code", 1))
    torch.save(_Trap(str(mark)), program.with_name("model.pth"))
    program.with_name("pickle_module_info.txt").write_text("planted")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    images = torch.randn(2, *SHAPE)
    assert torch.equal(registry.load(version.model_uri, uri)(images), expected(images))
    program.unlink()
    with refuses("unreachable", "model.pt2"):
        registry.load(version.model_uri, uri)
    assert not mark.exists()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "true"


def test_database_of_another_mlflow(uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
    connection.close()
    with refuses("invalid_file", uri, "mlflow db upgrade"):
        registry.list_models(uri)


def test_unreachable_or_unfit_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with refuses("unreachable", "http://***@127.0.0.1:9", "registry.tracking_uri"):
        registry.list_models("http://me:secret@127.0.0.1:9")
    with refuses("missing_file", f"{tmp_path}/none.db"):
        registry.list_models(f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "text.db").write_text("this is no database at all")
    with refuses("invalid_file", f"{tmp_path}/text.db", "registry.tracking_uri"):
        register(f"sqlite:///{tmp_path}/text.db")
    with refuses("unreachable", f"registry {tmp_path}/mlruns"):
        register(str(tmp_path / "mlruns"))


def test_default_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, remote = Storage(str(tmp_path)), Storage("memory://run")
    assert registry.default_tracking_uri(RegistryConfig(), run) == f"sqlite:///{tmp_path}/mlflow.db"
    with refuses("invalid_setting", "memory://run", "registry.tracking_uri"):
        registry.default_tracking_uri(RegistryConfig(), remote)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team")
    assert registry.default_tracking_uri(RegistryConfig(), remote) == "http://team"
    assert registry.default_tracking_uri(RegistryConfig(tracking_uri="http://own"), remote) == "http://own"


def test_student_needs_its_tags() -> None:
    with pytest.raises(ValueError, match="tags without latency_ms"):
        student("a", tags={"accuracy": "1"})
