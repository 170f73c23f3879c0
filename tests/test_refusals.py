"""Runs that cannot be, and what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lana_ray import UserError, accelerate, pipeline

from .runs import NETWORKS, settings

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("onnxruntime", reason="one of the targets runs ONNX")


def test_a_budget_below_the_cheapest_is_told_before_training(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match=r"target 'ort': budget 0\.0001ms .* the cheapest student takes"):
        accelerate(settings(tmp_path, budgets={"latency_ms": ["0.0001ms"]}))
    assert not (tmp_path / "candidates").exists()


def test_a_teacher_whose_layers_do_not_fit_names_the_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layer blocks\.0 does not fit: it returns tuple, not a tensor"):
        accelerate(settings(tmp_path, teacher={"factory": f"{NETWORKS}:tuple_net"}))


def test_a_mistake_in_the_teacher_is_mended_in_the_same_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layer blocks\.0 does not fit"):
        accelerate(settings(tmp_path, teacher={"factory": f"{NETWORKS}:tuple_net"}))
    assert (tmp_path / "run.yaml").exists()
    with pytest.raises(UserError, match=r"layer blocks\.0 does not fit"):  # it is looked at: not refused
        accelerate(
            settings(tmp_path, teacher={"factory": f"{NETWORKS}:tuple_net"}, data={"source": "digits"})
        )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    teacher = {"factory": f"{NETWORKS}:net", "weights": str(tmp_path / "weights.pt")}
    with pytest.raises(UserError, match=r"weights\.pt: not the weights of Net: lacks"):
        accelerate(settings(tmp_path / "run", teacher=teacher))


def test_a_target_whose_label_nobody_carries_is_named(tmp_path: Path, ray_cluster: None) -> None:
    targets = [{"name": "big", "runtime": "torch", "threads": 512}]
    with pytest.raises(UserError, match="target 'big': threads 512"):
        accelerate(settings(tmp_path, targets=targets))


def test_a_bucket_without_a_tracking_server_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(pipeline, "connect", lambda ray: pytest.fail("a cluster was asked for"))
    with pytest.raises(UserError, match=r"MLflow's database needs a local path; set registry\.tracking_uri"):
        accelerate(settings(tmp_path, run={"dir": "memory://bucket/run"}))


@pytest.mark.usefixtures("file_modes_bind")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"run\.dir .* cannot be written"):
        accelerate(settings(tmp_path / "run"))
