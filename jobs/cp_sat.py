"""Runs CP-SAT for benchmark_selection.py, in its own process since it does not load together with HiGHS.

It reads the program as JSON from standard input and writes the answer as JSON to standard output; the
argument is the time limit in seconds. Coefficients become whole millionths, those of the rows rounded up.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from ortools.sat.python import cp_model


def solve(layer: list[int], objective: list[float], rows: list[Any], limit_s: float) -> dict[str, Any]:
    """Returns the best columns, None if none were found, and whether they are proven to be the best."""
    model = cp_model.CpModel()
    z = [model.new_bool_var("") for _ in layer]
    for i in range(max(layer) + 1):
        model.add_exactly_one(x for x, at in zip(z, layer, strict=True) if at == i)
    for index, value, upper in rows:
        terms = (math.ceil(v * 1e6) * z[i] for i, v in zip(index, value, strict=True))
        model.add(sum(terms) <= math.floor(upper * 1e6))
    model.minimize(sum(round(v * 1e6) * x for v, x in zip(objective, z, strict=True)))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = os.cpu_count() or 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return {"columns": None, "proven": False}
    columns = [i for i, x in enumerate(z) if solver.boolean_value(x)]
    return {"columns": columns, "proven": status == cp_model.OPTIMAL}


if __name__ == "__main__":
    print(json.dumps(solve(**json.load(sys.stdin), limit_s=float(sys.argv[1]))))
