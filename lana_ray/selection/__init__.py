"""Choosing one candidate per layer: the integer program of LANA 3.2, and the front over all budgets.

Scores say how much a candidate hurts, costs what it takes on a target; both add up over the layers.
``select`` minimises the score within budgets, ``pareto`` lists every sensible trade-off at once.
"""

from lana_ray.selection.ilp import select
from lana_ray.selection.pareto import pareto
from lana_ray.selection.problem import InfeasibleBudget, NoSelectionFound, Selection, TooFewOperations

__all__ = ["InfeasibleBudget", "NoSelectionFound", "Selection", "TooFewOperations", "pareto", "select"]
