"""A run directory as the stages leave it, made up in a second: the report reads nothing else."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lana_ray.config import load_config
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.ids import Architecture, CandidateId, write_label
from lana_ray.ops.presets import PRESETS
from lana_ray.run_dir import layout
from lana_ray.run_dir.hours import Invocation, StageTime
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import DataFacts, Result, Summary, TargetFacts, TeacherFacts
from lana_ray.run_dir.tables import (
    COSTS,
    CURVES,
    PROFILES,
    PROXY,
    SCORES,
    SELECTIONS,
    CostRow,
    CurveRow,
    ProfileRow,
    ProxyRow,
    ScoreRow,
    SelectionRow,
    TrialRow,
)

OPS = PRESETS["tiny"][:8]
TARGETS = {"ort-1t": 1.0, "torch-2t": 1.9}  # name to how slow it is
DIVERGED = (2, "bottleneck_w0.25_k3")
SLOW = (0, "mbconv_e3_k3")
"""The layer and operation of the two candidates without a score."""
BUDGETS = {"70%": 0.7, "50%": 0.5}
PROCESSOR = "Example CPU @ 2.10GHz"
STAGES = ("teacher", "sample", "distill", "score", "select", "finetune", "register")
_SHARES = {"teacher": 1.0, "identity": 0.0, "mbconv_e3_k3": 0.6, "mbconv_e2_k3": 0.45, "mbconv_e1_k3": 0.3}
_REST = 0.2  # of the teacher's latency, outside its layers


def make_run(root: str, layers: int = 16, targets: tuple[str, ...] = tuple(TARGETS)) -> Storage:
    """A finished run of a teacher with so many layers on some of ``TARGETS`` with two budgets each."""
    return _Run(Storage(root), layers, targets).write()


def trial(
    method: str,
    ms: float,
    accuracy: float,
    *,
    multiplier: float | None = None,
    budget: float | None = None,
    **others: Any,
) -> TrialRow:
    """A trial of a search on ``ort-1t``, whose teacher takes 2 ms."""
    row = TrialRow(
        target="ort-1t",
        space="layers",
        method=method,
        key="t1",
        architecture="blocks.0.0=identity",
        choices=(1,),
        cost="latency_ms",
        multiplier=multiplier,
        budget=budget,
        seed=None,
        collapsed=False,
        teacher_cost=2.0,
        predicted_cost=ms,
        measured_cost=ms,
        teacher_ms=2.0,
        predicted_ms=ms,
        measured_ms=ms,
        iqr_ms=0.01,
        accuracy=accuracy,
        loss=0.5,
        search_s=3.0,
        begun=0.0,
    )
    return replace(row, **others)


def _spent(of_stages: list[dict[str, float]]) -> dict[str, StageTime]:
    return {name: StageTime(**spent) for name, spent in zip(STAGES, of_stages, strict=False)}


class _Run:
    def __init__(self, storage: Storage, layers: int, targets: tuple[str, ...]) -> None:
        self.storage = storage
        self.targets = {name: TARGETS[name] for name in targets}
        self.rng = np.random.default_rng(0)
        self.layers = [f"blocks.{i // 3}.{i % 3}" for i in range(layers)]
        # As in a network: the first layer of a stage changes the shape, so it has no identity.
        self.ops = [[op for op in OPS if op != "identity" or i % 3] for i in range(layers)]
        shares = [np.array([_SHARES.get(op, 0.25) for op in ops]) for ops in self.ops]
        self.shares = [s * self.rng.uniform(0.9, 1.1, len(s)) for s in shares]
        self.scores = [0.25 * (1 - s) ** 2 * self.rng.lognormal(-1, 0.9, len(s)) for s in shares]
        for ops, scores in zip(self.ops, self.scores, strict=True):
            scores[ops.index("teacher")] = 0.0
        for layer, op in (DIVERGED, SLOW):
            self.scores[layer][self.ops[layer].index(op)] = np.inf

    def write(self) -> Storage:
        SCORES.write(self.storage, layout.SCORES, self._scores(), "key")
        CURVES.write(self.storage, layout.CURVES, self._curves(), "key")
        PROXY.write(self.storage, layout.PROXY, self._proxy(), "key")
        selections: list[SelectionRow] = []
        results: list[Result] = []
        for target, slow in self.targets.items():
            facts = {"teacher_ms": str(slow)}
            COSTS.write(self.storage, layout.costs(target), self._costs(target, slow), "key", facts)
            PROFILES.write(self.storage, layout.profile(target), self._profile(slow), "key")
            SampleStore(self.storage).append(self._samples(target, slow))
            for budget, share in BUDGETS.items():
                rows = self._students(target, budget, share * slow, slow)
                selections += rows
                results.append(self._result(next(row for row in rows if row.chosen), slow))
        problem = "measured 0.961 ms, over the budget of 0.950 ms"
        results[-1] = replace(results[-1], model_uri=None, problem=problem)
        SELECTIONS.write(self.storage, layout.SELECTIONS, selections, "key")
        self._summary(results).write(self.storage)
        self.storage.write_text(layout.SETTINGS, load_config(self._settings()).to_yaml())
        self._hours()
        return self.storage

    def _settings(self) -> dict[str, Any]:
        return {
            "run": {"dir": self.storage.root},
            "teacher": {"timm": "efficientnet_lite0", "weights": "s3://user:c4nary@bucket/net.safetensors"},
            "data": {"source": "digits", "image_size": 64},
            "targets": [
                {"name": name, "runtime": "onnxruntime" if name == "ort-1t" else "torch"}
                for name in self.targets
            ],
            "budgets": {"latency_ms": list(BUDGETS), "params": "2.5M"},
            "pool": {"max_cost": None},
            "distill": {"steps": 60},
        }

    def _hours(self) -> None:
        """Killed in its third stage, and gone on with on another node."""
        known = [{"seconds": 720.0 * (n + 1), "node_seconds": 1440.0 * (n + 1)} for n in range(len(STAGES))]
        killed = Invocation(stages=_spent(known[:3]), running="distill")
        reused = [{"seconds": 2.0, "node_seconds": 2.0}] * 2
        resumed = Invocation(stages=_spent(reused + known[2:]), running=None)
        for n, invocation in enumerate((killed, resumed)):
            self.storage.write_json(f"{layout.HOURS}/{n}.json", asdict(invocation))

    def _scores(self) -> list[ScoreRow]:
        left_out = {DIVERGED: "diverged", SLOW: "slow"}
        rows = []
        for i, ops in enumerate(self.ops):
            for j, op in enumerate(ops):
                where: dict[str, Any] = {"layer": i, "name": self.layers[i], "choice": j, "op": op}
                score = float(self.scores[i][j])
                if (i, op) in left_out:
                    rows.append(ScoreRow(**where, score=None, left_out=left_out[i, op]))
                    continue
                rows.append(
                    ScoreRow(
                        **where,
                        score=score,
                        loss=score,
                        loss_se=0.04,
                        kl=score,
                        kl_se=0.01,
                        distill_error=0.0 if op in ("teacher", "identity") else 0.1 + score,
                    )
                )
        return rows

    def _curves(self) -> list[CurveRow]:
        return [
            CurveRow(
                layer=row.layer,
                name=row.name,
                choice=row.choice,
                op=row.op,
                stopped=row.left_out,
                error=tuple((row.distill_error or 2.0) * (1 + 4 / (1 + step)) for step in range(length)),
            )
            for row in self._scores()
            if row.op not in ("teacher", "identity") and row.left_out != "slow"
            for length in [12 if row.left_out else 60]
        ]

    def _proxy(self) -> list[ProxyRow]:
        rng = np.random.default_rng(1)
        students = [tuple(n % len(ops) for ops in self.ops) for n in range(30)]
        scores = rng.uniform(0, 2, len(students)).tolist()
        return [
            ProxyRow(
                architecture=self._label(choices),
                choices=choices,
                score=score,
                loss=0.5 + score + float(rng.normal(0, 0.1)),
            )
            for choices, score in zip(students, scores, strict=True)
        ]

    def _label(self, choices: Architecture) -> str:
        return write_label(tuple(CandidateId(self.layers[i], self.ops[i][j]) for i, j in enumerate(choices)))

    def _latency(self, choices: Architecture, slow: float) -> float:
        per_layer = (1 - _REST) / len(self.layers)
        chosen = sum(s[j] for s, j in zip(self.shares, choices, strict=True))
        return float(slow * (_REST + per_layer * chosen))

    def _costs(self, target: str, slow: float) -> list[CostRow]:
        per_layer = slow * (1 - _REST) / len(self.layers)
        rows = [
            CostRow(
                target=target,
                cost="latency_ms",
                calibration=number,
                layer=i,
                name=self.layers[i],
                choice=j,
                op=op,
                value=float(self.shares[i][j] * per_layer) * (1 if number else 1.2),
                rest=_REST * slow,
                table_error=0.021,
                table_error_isolated=0.24,
                networks=40 + number,
                isolated=float(self.shares[i][j] * per_layer * 1.3),
                considered=(i, op) != SLOW,
                iqr=0.001,
                repeats=400,
                settled=True,
                error=None,
            )
            for number in range(2)
            for i, ops in enumerate(self.ops)
            for j, op in enumerate(ops)
        ]
        fails = len(rows) // 2 + 5
        rows[fails] = replace(rows[fails], value=float("inf"), error="RuntimeError: no such kernel")
        return rows

    def _profile(self, slow: float) -> list[ProfileRow]:
        teacher = dict.fromkeys(self.layers, slow * (1 - _REST) / len(self.layers)) | {"": slow * _REST}
        return [
            ProfileRow(network=network, layer=layer, op="", ms=ms * share)
            for network, share in {"teacher": 1.0, **BUDGETS}.items()
            for layer, ms in teacher.items()
        ]

    def _samples(self, target: str, slow: float) -> list[Sample]:
        return [
            Sample(
                target=target,
                target_key="key",
                kind="reference" if n == 0 else "candidate",
                key=f"{target}-{n}",
                what="teacher" if n == 0 else f"candidate {n}",
                median_ms=slow,
                p90_ms=slow,
                p99_ms=slow,
                iqr_ms=0.01,
                raw_ms=slow,
                drift=1.0 if n == 0 else 0.97 + 0.15 * n / 40,
                repeats=100,
                seconds=0.2,
                settled=n % 13 != 5,
                error=None,
                node="node",
                processor=PROCESSOR,
                runtime="onnxruntime 1.20",
                threads=1,
                cpus="0",
                process=1,
                time=float(n),
            )
            for n in range(40)
        ]

    def _students(self, target: str, budget: str, budget_ms: float, slow: float) -> list[SelectionRow]:
        rows: list[SelectionRow] = []
        while len(rows) < 10:
            drawn = [int(self.rng.integers(1, len(ops))) for ops in self.ops]
            choices = tuple(j if np.isfinite(self.scores[i][j]) else 0 for i, j in enumerate(drawn))
            for i in self.rng.permutation(len(choices)):  # nearer to the teacher while the budget lasts
                nearer = (*choices[:i], 0, *choices[i + 1 :])
                choices = nearer if self._latency(nearer, slow) < budget_ms else choices
            predicted = self._latency(choices, slow)
            measured = predicted * float(self.rng.normal(0.99, 0.015))
            score = float(sum(s[j] for s, j in zip(self.scores, choices, strict=True)))
            rows.append(
                SelectionRow(
                    target=target,
                    budget=budget,
                    cost="latency_ms",
                    limit=budget_ms,
                    round=0,
                    calibration=0,
                    rank=len(rows),
                    architecture=self._label(choices),
                    choices=choices,
                    score=score,
                    gap=0.0,
                    predicted=predicted,
                    measured=measured,
                    iqr=0.01,
                    loss=0.3 + score if measured <= budget_ms else None,
                    chosen=False,
                )
            )
        losses = {row.rank: row.loss for row in rows if row.loss is not None}
        best = min(losses, key=lambda rank: losses[rank])
        rows[best] = replace(rows[best], chosen=True)
        return rows

    def _result(self, row: SelectionRow, slow: float) -> Result:
        assert row.measured is not None
        assert row.iqr is not None
        accuracy = 0.93 - 0.03 * row.score
        return Result(
            target=row.target,
            budget=row.budget,
            budget_ms=row.limit,
            predicted_ms=row.predicted,
            calibration=row.calibration,
            measured_ms=row.measured,
            iqr_ms=row.iqr,
            teacher_ms=slow,
            speedup=slow / row.measured,
            costs={"latency_ms": row.measured},
            params=2.1e6,
            macs=1.6e7,
            accuracy=accuracy,
            validation_accuracy=accuracy + 0.01,
            accuracy_before=accuracy - 0.2,
            teacher_accuracy=0.931,
            architecture=row.architecture,
            model_uri=f"models:/efficientnet_lite0-{row.target}/{len(row.budget)}",
            problem=None,
        )

    def _summary(self, results: list[Result]) -> Summary:
        return Summary(
            teacher=TeacherFacts(
                name="efficientnet_lite0",
                layers=len(self.layers),
                parameters=3387160,
                macs=3.2e7,
                accuracy=0.931,
                trained="its head has 1000 classes and the data 10",
                fingerprint="0123456789abcdef",
            ),
            data=DataFacts(
                classes=tuple(str(n) for n in range(10)),
                sizes={"train": 1078, "score": 180, "validation": 179, "test": 360},
                skipped=3,
            ),
            targets=tuple(
                TargetFacts(
                    name=name,
                    runtime="onnxruntime" if name == "ort-1t" else "torch",
                    threads=1,
                    batch_size=1,
                    processor=PROCESSOR,
                    teacher_ms=slow,
                    error=0.021,
                    error_isolated=0.24,
                    networks=49,
                    stand_in=name == "ort-1t",
                )
                for name, slow in self.targets.items()
            ),
            results=tuple(results),
            unmet=(),
            versions={"lana-ray": "0.1.0", "torch": "2.9.0"},
            seconds={stage: 12.5 * (n + 1) for n, stage in enumerate(STAGES)},
        )
