"""Compares sequences of dissimilar selections with other solvers', on problems of LANA's size or a run's own.

    python jobs/benchmark_selection.py --count 1 --count 10 --count 100 --json selection.json
    python jobs/benchmark_selection.py --run RUN_DIR

The other solvers state the complete program with a row for each earlier selection and solve it anew for the
next, each within ``--rivals-limit-s``: HiGHS by itself, and CBC and CP-SAT if the extra ``benchmark`` is
installed. Each makes its own sequence, which ends at a place without a solution. Scores are relative to ours.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from lana_ray.monitoring.progress import console
from lana_ray.report.artifacts import RunFiles
from lana_ray.run_dir.storage import Storage
from lana_ray.selection import Selection, select
from lana_ray.selection.highs import solve_binary
from lana_ray.selection.problem import Floats, Ints, Problem
from lana_ray.selection.program import Program, build_program

MAX_OVERLAP = 0.7
# Numbers of layers and candidates that brute force can handle.
SMALL = (5, 6)


@dataclass(frozen=True)
class Instance:
    """A selection problem with one cost and one budget."""

    name: str
    scores: list[Floats]
    costs: list[Floats]
    budget: float


@dataclass(frozen=True)
class Answer:
    """A rival's result for one place of its sequence."""

    columns: Ints | None
    proven: bool


Rival = Callable[[Program, float], Answer]


def uniform(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Draws scores and costs that are independent of each other."""
    scores, costs = rng.random((2, layers, candidates))
    return Instance("uniform", list(scores), list(costs), float(costs.min(axis=1).sum()) + 0.12 * layers)


def realistic(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Draws candidates that hurt more the cheaper they are, with exceptions; budget: half the teacher."""
    teacher = rng.uniform(0.2, 2.0, layers)
    relative = rng.lognormal(-0.7, 0.7, (layers, candidates))
    scores = np.maximum(1 - relative, 0.03) ** 2 * rng.lognormal(0, 1, (layers, candidates))
    relative[:, 0], scores[:, 0] = 1, 0
    return Instance("realistic", list(scores), list(teacher[:, None] * relative), float(teacher.sum()) / 2)


def ties(rng: np.random.Generator, layers: int, candidates: int) -> Instance:
    """Draws whole numbers, with four copies of every candidate."""
    kinds = -(-candidates // 4)
    costs = rng.integers(1, 30, (layers, kinds)).astype(float)
    scores = np.round(900 / (costs + rng.integers(0, 8, (layers, kinds))))
    copies = [np.tile(table, 4)[:, :candidates] for table in (scores, costs)]
    return Instance("ties", list(copies[0]), list(copies[1]), float(costs.min(axis=1).sum()) + 11 * layers)


FAMILIES = (uniform, realistic, ties)


def main(
    count: Annotated[list[int] | None, typer.Option(help="Number of selections; may be repeated.")] = None,
    layers: int = 46,
    candidates: int = 197,
    seeds: Annotated[int, typer.Option(min=1, help="Problems of each family.")] = 1,
    time_limit_s: Annotated[float, typer.Option(help="Time limit of one call of select.")] = 60.0,
    rivals_count: Annotated[int, typer.Option(help="Length of the rivals' sequences; 0: none.")] = 10,
    rivals_limit_s: Annotated[float, typer.Option(help="Time limit of a rival for a selection.")] = 20.0,
    run: Annotated[
        Path | None, typer.Option(help="A run directory to use instead of made-up problems.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Budget in a run, as a share of its teacher's cost.")] = 0.5,
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints the results of select, its distance from brute force, and the other solvers' results."""
    if run:
        problems = _of_run(run, budget)
    else:
        problems = [f(np.random.default_rng(s), layers, candidates) for f in FAMILIES for s in range(seeds)]
    ours = [_ours(problem, k, time_limit_s) for problem in problems for k in count or [1, 10, 100]]
    _show("select", ours)
    small = [
        _against_brute_force(f(np.random.default_rng(s), *SMALL)) for f in FAMILIES for s in range(seeds)
    ]
    _show(f"select and brute force, {SMALL[0]} layers of {SMALL[1]} candidates", small)
    rivals = [
        _beside(problem, name, rival, rivals_count, rivals_limit_s, time_limit_s)
        for problem in (problems if rivals_count else [])
        for name, rival in _rivals().items()
    ]
    if rivals:
        _show(f"other solvers, at most {rivals_limit_s:g} s for each selection", rivals)
    if to:
        to.write_text(json.dumps({"select": ours, "brute_force": small, "others": rivals}, indent=1))


def _show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name in ("problem", "solver") else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def _of_run(folder: Path, share: float) -> list[Instance]:
    """The problem of each target of a run: its table of latencies, its scores."""
    run, problems = RunFiles.read(Storage(str(folder))), []
    known = {row.candidate: row.score for row in run.scores or []}
    for of, labelled in run.tables.items():
        if of.cost == "latency_ms":
            costs = list(labelled.table.costs)
            scores = [np.array([_or_inf(known.get(one)) for one in ids]) for ids in labelled.ids]
            teacher = math.fsum(float(of_layer[0]) for of_layer in costs)
            problems.append(Instance(str(of.target), scores, costs, share * teacher))
    return problems


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _select(problem: Instance, count: int, time_limit_s: float) -> list[Selection]:
    return select(
        problem.scores,
        {"cost": problem.costs},
        {"cost": problem.budget},
        count=count,
        max_overlap=MAX_OVERLAP,
        time_limit_s=time_limit_s,
    )


def _ours(problem: Instance, count: int, time_limit_s: float) -> dict[str, Any]:
    began, cpu = time.perf_counter(), _cpu_s()
    selections = _select(problem, count, time_limit_s)
    seconds, cpu = time.perf_counter() - began, _cpu_s() - cpu
    _check(problem, [selection.choices for selection in selections])
    gaps = [selection.gap for selection in selections]
    return {
        "problem": problem.name,
        "wanted": count,
        "found": len(selections),
        "proven": gaps.count(0),
        "seconds": seconds,
        "cpu_s": cpu,
        "first_score": selections[0].score,
        "mean_score": float(np.mean([selection.score for selection in selections])),
        "worst_gap_%_of_ten": 100 * max(gaps[:10]),
        "mean_gap_%": 100 * float(np.mean(gaps)),
        "worst_gap_%": 100 * max(gaps),
    }


def _cpu_s() -> float:
    """Returns the CPU seconds of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _may_agree(layers: int) -> int:
    return min(math.floor(MAX_OVERLAP * layers + 1e-9), layers - 1)


def _check(problem: Instance, selections: Sequence[Sequence[int]]) -> None:
    for k, choices in enumerate(selections):
        cost = math.fsum(costs[j] for costs, j in zip(problem.costs, choices, strict=True))
        # Other solvers keep budgets to this tolerance.
        assert cost <= problem.budget * (1 + 1e-6)
        for other in selections[:k]:
            assert sum(a == b for a, b in zip(choices, other, strict=True)) <= _may_agree(len(choices))


def _against_brute_force(problem: Instance) -> dict[str, Any]:
    """Compares each of ten selections with the best of all that are dissimilar to those before it."""
    selections = _select(problem, 10, 60.0)
    every = np.array(list(itertools.product(*(range(len(scores)) for scores in problem.scores))))
    scores, costs = (
        np.sum([table[i][every[:, i]] for i in range(every.shape[1])], axis=0)
        for table in (problem.scores, problem.costs)
    )
    possible, excess = costs <= problem.budget + 1e-9, []
    for selection in selections:
        excess.append(selection.score - scores[possible].min())
        agreeing = (every == np.array(selection.choices)).sum(axis=1)
        possible &= agreeing <= _may_agree(every.shape[1])
    return {
        "problem": problem.name,
        "found": len(selections),
        "more_possible": int(possible.sum()) if len(selections) < 10 else "",
        "worst_excess": float(max(excess)),
    }


def _rivals() -> dict[str, Rival]:
    rivals: dict[str, Rival] = {"HiGHS": _highs}
    if importlib.util.find_spec("pulp"):
        rivals["PuLP/CBC"] = _cbc
    if importlib.util.find_spec("ortools"):
        rivals["CP-SAT"] = _cp_sat
    return rivals


def _beside(
    problem: Instance, name: str, rival: Rival, count: int, limit_s: float, time_limit_s: float
) -> dict[str, Any]:
    ours = [selection.score for selection in _select(problem, count, time_limit_s)]
    checked = Problem.check(problem.scores, {"cost": problem.costs})
    program = build_program(checked, {"cost": problem.budget})
    scores, slowest, proven, choices = [], 0.0, 0, []
    began, cpu = time.perf_counter(), _cpu_s()
    for _ in range(count):
        start = time.perf_counter()
        answer = rival(program, limit_s)
        slowest = max(slowest, time.perf_counter() - start)
        if answer.columns is None:
            break
        proven += answer.proven
        choices.append(program.choices(answer.columns))
        scores.append(checked.selection(choices[-1]).score)
        program = program.unlike(answer.columns, _may_agree(program.layers))
    seconds, cpu = time.perf_counter() - began, _cpu_s() - cpu
    _check(problem, choices)
    return {
        "problem": problem.name,
        "solver": name,
        "wanted": count,
        "found": len(scores),
        "proven": proven,
        "seconds": seconds,
        "cpu_s": cpu,
        "slowest_s": slowest,
        "mean_to_ours": sum(scores) / sum(ours[: len(scores)]) if scores else math.nan,
        "worst_of_ours_to_it": max(
            (o / s if s else 1.0 for o, s in zip(ours, scores, strict=False)), default=math.nan
        ),
    }


def _highs(program: Program, limit_s: float) -> Answer:
    solution = solve_binary(program, np.arange(len(program.layer)), None, limit_s)
    return Answer(solution.columns, solution.proven)


def _cbc(program: Program, limit_s: float) -> Answer:
    import pulp

    model = pulp.LpProblem("select", pulp.LpMinimize)
    z = [pulp.LpVariable(f"z{i}", cat="Binary") for i in range(len(program.layer))]
    model += pulp.LpAffineExpression(zip(z, program.objective.tolist(), strict=True))
    for layer in range(program.layers):
        model += pulp.lpSum(z[i] for i in np.flatnonzero(program.layer == layer)) == 1
    for row in program.rows:
        terms = zip((z[i] for i in row.index), row.value.tolist(), strict=True)
        model += pulp.LpAffineExpression(terms) <= row.upper
    model.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=limit_s, gapRel=0, threads=os.cpu_count()))
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Answer(None, False)
    columns = np.flatnonzero([variable.value() > 0.5 for variable in z])
    return Answer(columns, model.sol_status == pulp.LpSolutionOptimal)


def _cp_sat(program: Program, limit_s: float) -> Answer:
    rows = [(row.index.tolist(), row.value.tolist(), row.upper) for row in program.rows]
    stated = {"layer": program.layer.tolist(), "objective": program.objective.tolist(), "rows": rows}
    command = [sys.executable, str(Path(__file__).with_name("cp_sat.py")), f"{limit_s}"]
    done = subprocess.run(command, input=json.dumps(stated), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    return Answer(None if answer["columns"] is None else np.array(answer["columns"]), answer["proven"])


if __name__ == "__main__":
    typer.run(main)
