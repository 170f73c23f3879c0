"""A run directory as the stages leave it, made up in a second: the report reads nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from lana_ray.config import load_config
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.ops.presets import PRESETS
from lana_ray.run_dir.hours import Invocation, Spent
from lana_ray.run_dir.storage import Storage

Row = dict[str, Any]

OPS = PRESETS["tiny"][:8]
TARGETS = {"ort-1t": 1.0, "torch-2t": 1.9}  # name to how slow it is
DIVERGED = (2, "bottleneck_w0.25_k3")
SLOW = (0, "mbconv_e3_k3")
"""The layer and operation of the two candidates without a score."""
BUDGETS = {"70%": 0.7, "50%": 0.5}
PROCESSOR = "Example CPU @ 2.10GHz"
STAGES = ("teacher", "sample", "distill", "score", "select", "finetune", "register")
_SHARES = {"teacher": 1.0, "identity": 0.0, "mbconv_e3_k3": 0.6, "mbconv_e2_k3": 0.45, "mbconv_e1_k3": 0.3}
_UNSCORED = dict.fromkeys(("score", "score_se", "kl", "kl_se", "distill_error"))
_REST = 0.2  # of the teacher's latency, outside its layers


def make_run(root: str, layers: int = 16, targets: tuple[str, ...] = tuple(TARGETS)) -> Storage:
    """A finished run of a teacher with so many layers on some of ``TARGETS`` with two budgets each."""
    return _Run(Storage(root), layers, targets).write()


def _spent(of_stages: list[dict[str, float]]) -> dict[str, Spent]:
    return {name: Spent(**spent) for name, spent in zip(STAGES, of_stages, strict=False)}


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
        self.storage.write_table("scores.parquet", pa.Table.from_pylist(self._scores()), "key")
        self.storage.write_table("curves.parquet", pa.Table.from_pylist(self._curves()), "key")
        self.storage.write_table("proxy.parquet", pa.Table.from_pylist(self._proxy()), "key")
        selections, results = [], []
        for target, slow in self.targets.items():
            self._costs(target, slow)
            SampleStore(self.storage).append(self._samples(target, slow))
            for budget, share in BUDGETS.items():
                rows = self._students(target, budget, share * slow, slow)
                selections += rows
                results.append(self._result(next(row for row in rows if row["chosen"]), slow))
        results[-1] |= {"model_uri": None, "problem": "measured 0.961 ms, over the budget of 0.950 ms"}
        self.storage.write_table("selections.parquet", pa.Table.from_pylist(selections), "key")
        self.storage.write_json("summary.json", self._summary(results))
        self.storage.write_text("run.yaml", load_config(self._settings()).to_yaml())
        self._hours()
        return self.storage

    def _settings(self) -> Row:
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
            self.storage.write_json(f"hours/{n}.json", asdict(invocation))

    def _scores(self) -> list[Row]:
        left_out = {DIVERGED: "diverged", SLOW: "slow"}
        return [
            {
                "layer": i,
                "name": self.layers[i],
                "choice": j,
                "op": op,
                "score": float(self.scores[i][j]),
                "score_se": 0.01,
                "kl": float(self.scores[i][j]),
                "kl_se": 0.01,
                "distill_error": 0.0 if op in ("teacher", "identity") else 0.1 + float(self.scores[i][j]),
                "left_out": None,
            }
            | ({**_UNSCORED, "left_out": left_out[i, op]} if (i, op) in left_out else {})
            for i, ops in enumerate(self.ops)
            for j, op in enumerate(ops)
        ]

    def _curves(self) -> list[Row]:
        trained = [row for row in self._scores() if row["op"] not in ("teacher", "identity")]
        return [
            {
                "name": row["name"],
                "op": row["op"],
                "stopped": row["left_out"],
                "error": [(row["distill_error"] or 2.0) * (1 + 4 / (1 + step)) for step in range(length)],
            }
            for row in trained
            if row["left_out"] != "slow"
            for length in [12 if row["left_out"] else 60]
        ]

    def _proxy(self) -> list[Row]:
        rng = np.random.default_rng(1)
        return [{"score": s, "loss": 0.5 + s + rng.normal(0, 0.1)} for s in rng.uniform(0, 2, 30).tolist()]

    def _latency(self, choices: list[int], slow: float) -> float:
        per_layer = (1 - _REST) / len(self.layers)
        chosen = sum(s[j] for s, j in zip(self.shares, choices, strict=True))
        return float(slow * (_REST + per_layer * chosen))

    def _costs(self, target: str, slow: float) -> None:
        per_layer = slow * (1 - _REST) / len(self.layers)
        rows = [
            {
                "target": target,
                "calibration": number,
                "layer": i,
                "name": self.layers[i],
                "choice": j,
                "op": op,
                "latency_ms": float(self.shares[i][j] * per_layer) * (1 if number else 1.2),
                "rest_ms": _REST * slow,
                "table_error": 0.021,
                "table_error_isolated": 0.24,
                "networks": 40 + number,
                "isolated_ms": float(self.shares[i][j] * per_layer * 1.3),
                "iqr_ms": 0.001,
                "repeats": 400,
                "settled": True,
                "error": None,
            }
            for number in range(2)
            for i, ops in enumerate(self.ops)
            for j, op in enumerate(ops)
        ]
        rows[len(rows) // 2 + 5] |= {"latency_ms": float("inf"), "error": "RuntimeError: no such kernel"}
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"teacher_ms": str(slow)})
        self.storage.write_table(f"costs/{target}.parquet", table, "key")

    def _samples(self, target: str, slow: float) -> list[Sample]:
        return [
            Sample(
                target=target,
                target_key="key",
                kind="reference" if n == 0 else "candidate",
                key=f"{target}-{n}",
                what="teacher" if n == 0 else f"candidate {n}",
                median_ms=slow,
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
                time=float(n),
            )
            for n in range(40)
        ]

    def _students(self, target: str, budget: str, budget_ms: float, slow: float) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < 10:
            choices = [int(self.rng.integers(1, len(ops))) for ops in self.ops]
            choices = [j if np.isfinite(self.scores[i][j]) else 0 for i, j in enumerate(choices)]
            for i in self.rng.permutation(len(choices)):  # nearer to the teacher while the budget lasts
                nearer = [*choices[:i], 0, *choices[i + 1 :]]
                choices = nearer if self._latency(nearer, slow) < budget_ms else choices
            predicted = self._latency(choices, slow)
            measured = predicted * float(self.rng.normal(0.99, 0.015))
            score = float(sum(s[j] for s, j in zip(self.scores, choices, strict=True)))
            within = measured <= budget_ms
            rows.append(
                {
                    "target": target,
                    "budget": budget,
                    "budget_ms": budget_ms,
                    "round": 0,
                    "rank": len(rows),
                    "architecture": "|".join(
                        f"{self.layers[i]}={self.ops[i][j]}" for i, j in enumerate(choices)
                    ),
                    "choices": choices,
                    "score": score,
                    "gap": 0.0,
                    "predicted_ms": predicted,
                    "measured_ms": measured,
                    "iqr_ms": 0.01,
                    "loss": 0.3 + score if within else None,
                    "within": within,
                    "chosen": False,
                }
            )
        min((row for row in rows if row["within"]), key=lambda row: row["loss"])["chosen"] = True
        return rows

    def _result(self, row: Row, slow: float) -> Row:
        accuracy = 0.93 - 0.03 * row["score"]
        return {
            "target": row["target"],
            "budget": row["budget"],
            "budget_ms": row["budget_ms"],
            "predicted_ms": row["predicted_ms"],
            "measured_ms": row["measured_ms"],
            "iqr_ms": row["iqr_ms"],
            "teacher_ms": slow,
            "speedup": slow / row["measured_ms"],
            "params": 2.1e6,
            "macs": 1.6e7,
            "accuracy": accuracy,
            "accuracy_before": accuracy - 0.2,
            "teacher_accuracy": 0.931,
            "architecture": row["architecture"],
            "model_uri": f"models:/efficientnet_lite0-{row['target']}/{len(row['budget'])}",
            "problem": None,
        }

    def _summary(self, results: list[Row]) -> Row:
        return {
            "teacher": {
                "name": "efficientnet_lite0",
                "layers": len(self.layers),
                "parameters": 3387160,
                "macs": 3.2e7,
                "accuracy": 0.931,
                "trained": "its head has 1000 classes and the data 10",
                "fingerprint": "0123456789abcdef",
            },
            "data": {
                "classes": [str(n) for n in range(10)],
                "sizes": {"train": 1078, "score": 180, "validation": 179, "test": 360},
                "skipped": 3,
            },
            "targets": [
                {
                    "name": name,
                    "runtime": "onnxruntime" if name == "ort-1t" else "torch",
                    "threads": 1,
                    "batch_size": 1,
                    "processor": PROCESSOR,
                    "teacher_ms": slow,
                    "error": 0.021,
                    "error_isolated": 0.24,
                    "networks": 49,
                    "stand_in": name == "ort-1t",
                }
                for name, slow in self.targets.items()
            ],
            "results": results,
            "unmet": [],
            "versions": {"lana-ray": "0.1.0", "torch": "2.9.0"},
            "seconds": {stage: 12.5 * (n + 1) for n, stage in enumerate(STAGES)},
        }
