"""Chooses one candidate per layer: the integer program of LANA 3.2, and the front over all budgets.

A score is a candidate's damage to the network, a cost its price on a target; both add up over the layers.
``select`` minimises the score within budgets, ``pareto`` lists all non-dominated trade-offs.
"""

from lana_ray.selection.ilp import select
from lana_ray.selection.pareto import pareto
from lana_ray.selection.problem import InfeasibleBudget, NoSelectionFound, Selection, TooFewOperations

__all__ = ["InfeasibleBudget", "NoSelectionFound", "Selection", "TooFewOperations", "pareto", "select"]
