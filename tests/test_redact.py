"""No secret of a setting is written or said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from lana_ray import cli
from lana_ray.config import load_config
from lana_ray.errors import UserError
from lana_ray.redact import without_passwords
from lana_ray.run_dir.settings import claim
from lana_ray.run_dir.storage import Storage

from .runs import settings

CANARY = "c4nary"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{CANARY}@host:5000/x", "http://***@host:5000/x"),
        (f"at 'postgresql://me:a/{CANARY}@b@host/db'.", "at 'postgresql://***@host/db'."),
        (f"postgresql://me:two {CANARY}@host/db", "postgresql://***@host/db"),
        (f"https://{CANARY}@host and http://:{CANARY}@b", "https://***@host and http://***@b"),
        (
            f"postgresql://host/db?password={CANARY}&sslmode=on",
            "postgresql://host/db?password=***&sslmode=on",
        ),
        (f"https://a.net/c?sv=1&sig={CANARY}%3D: gone", "https://a.net/c?sv=***&sig=*** gone"),
        (f"https://b/k?X-Amz-Security-Token={CANARY}", "https://b/k?X-Amz-Security-Token=***"),
        (f"https://b/k?X-Goog-Signature={CANARY}", "https://b/k?X-Goog-Signature=***"),
        (f"https://b/k?region=eu#access_token={CANARY}", "https://b/k?region=eu#access_token=***"),
        (f"simplecache::https://me:{CANARY}@b/k?auth={CANARY}", "simplecache::https://***@b/k?auth=***"),
        (f"abfs://data:{CANARY}@a.net/x", "abfs://***@a.net/x"),
        (f"AccountName=a;AccountKey={CANARY};x", "AccountName=a;AccountKey=***;x"),
        (f"host=h password={CANARY} user=me", "host=h password=*** user=me"),
        (f"Authorization: Bearer {CANARY}", "Authorization: Bearer ***"),
        (f"aws_secret_access_key = {CANARY}", "aws_secret_access_key = ***"),
        (f"/here/https:/me:{CANARY}@host/net.py: none", "/here/https://***@host/net.py: none"),
        (f"images are x.parquet?se=1&sig={CANARY}", "images are x.parquet?se=***&sig=***"),
        ("models:/net-ort@champion: no such model", None),
        ("s3://bucket/a@b sqlite:////data/x@y.db http://host:5000", None),
        ("http://host:5000: no server; ask me@example.com", None),
        ("abfs://data@account.dfs.core.windows.net/train", None),
        ("steps=5, features.1=conv_k3, passes=2; did you mean x?", None),
    ],
)
def test_secrets_are_left_out_and_nothing_else(text: str, shown: str | None) -> None:
    assert without_passwords(text) == (text if shown is None else shown)


def test_neither_run_yaml_nor_the_log_holds_a_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        uri = f"http://me:{CANARY}{number}@host{number}:5000"
        config = load_config(settings(tmp_path, registry={"tracking_uri": uri}))
        claim(Storage(str(tmp_path)), config)
        written = (tmp_path / "run.yaml").read_text()
        assert f"tracking_uri: http://host{number}:5000" in written
        assert CANARY not in written
    said = capsys.readouterr().out
    assert "registry.tracking_uri 'http://host1:5000' → 'http://host2:5000'" in said
    assert CANARY not in said


def test_an_error_of_the_user_holds_no_password() -> None:
    assert str(UserError("unreachable", f"http://me:{CANARY}@host: gone")) == "http://***@host: gone"


NOWHERE = f"me:{CANARY}@127.0.0.1:9"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--set", f"run.dir=ftp://{NOWHERE}/run?token={CANARY}"],
        ["run", "--set", f"run.dir=nonsense://{NOWHERE}/run"],
        ["report", "--set", f"run.dir=ftp://{NOWHERE}/run"],
        ["plan", "--set", f"run.dir=s3://{NOWHERE}/run?X-Amz-Signature={CANARY}"],
        ["plan", "--set", f"data={{parquet: 'http://{NOWHERE}/x.parquet?sig={CANARY}'}}"],
        ["plan", "--set", f"data={{folder: 'http://{NOWHERE}/images?sig={CANARY}'}}"],
        ["plan", "--set", f"data.test=http://{NOWHERE}/x.parquet"],
        ["plan", "--set", f"teacher.weights=https://{NOWHERE}/w.safetensors?sig={CANARY}"],
        ["plan", "--set", f"teacher.factory=https://{NOWHERE}/net.py:net"],
        ["plan", "--set", f"pool.modules=[https://{NOWHERE}/ops.py]"],
        ["plan", "--set", f"ray.address=http://{NOWHERE}/?token={CANARY}"],
        ["plan", "--set", f"registry.tracking_url=http://{NOWHERE}/{'x' * 80}"],
        ["plan", "--set", f"data.root=http://{'x' * 60}:{CANARY}@{'y' * 90}"],
        ["plan", "--set", f"distill.steps=http://{'x' * 60}:{CANARY}@{'y' * 90}"],
        ["models", "--registry", f"http://{NOWHERE}"],
        ["models", "--registry", f"nonsense://{NOWHERE}"],
        ["verify", "models:/x@champion", "--registry", f"postgresql://{NOWHERE}/db?password={CANARY}"],
        ["doctor", "--address", f"ray://{NOWHERE}"],
    ],
    ids=lambda command: f"{command[0]} {command[-1].partition(':')[0]}",
)
def test_no_command_says_a_password(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if "--set" in command:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(tmp_path / "run")))
        command = [command[0], str(tmp_path / "run.yaml"), *command[1:]]
    monkeypatch.setattr(sys, "argv", ["lana-ray", *command])
    monkeypatch.setattr(cli, "end_as_exceptions_do", lambda: None)
    with pytest.raises(SystemExit):
        cli.main()
    said = "".join(capfd.readouterr())
    assert said
    assert CANARY not in said


def test_a_bug_s_traceback_says_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError(f"http://me:{CANARY}@host")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "end_as_exceptions_do", lambda: None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert "RuntimeError: http://***@host" in said
    assert CANARY not in said
