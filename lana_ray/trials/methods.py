"""The search methods, by the names of ``search.methods``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lana_ray.costs.table import CostTable
from lana_ray.registries import Registry
from lana_ray.run_dir.resumable import checkpoint_in
from lana_ray.search.bilevel import Objective, SearchBatches, SearchResult, search
from lana_ray.search.settings import SearchSettings
from lana_ray.selection import select
from lana_ray.trials.problem import EPOCHS, Problem


@dataclass(frozen=True, kw_only=True)
class SearchMethod:
    """A way to find an architecture for a price or a budget."""

    name: str
    title: str
    """As tables and plots call it."""
    needs_table: bool
    """Whether it needs costs and scores that add up, as those of layers do."""
    takes_price: bool
    """Whether it can be given λ; a budget can be given to all."""
    find: Callable[[Problem, str], SearchResult]
    """Callback ``(problem, file)``; the file of the run directory keeps its state, to resume."""


def _differentiable(problem: Problem, file: str) -> SearchResult:
    """LA-DNAS: gradient steps on ``L + λ·LAT(α)``."""
    setup, config = problem.setup, problem.setup.config.search
    settings = SearchSettings(
        epochs=EPOCHS,
        alpha_lr=config.lr,
        mixture=config.mixture,
        multiplier=problem.settings.get("lambda", 0.0),
        target=problem.settings.get("budget"),
        seed=problem.seed,
        **problem.search_settings(),
    )
    return search(
        problem.supernet(),
        Objective(
            cost=setup.differentiable().to(problem.device), reference=setup.reference, loss=problem.loss()
        ),
        SearchBatches(weights=problem.batches("train"), alphas=problem.batches("score"), steps=problem.steps),
        settings,
        checkpoint=checkpoint_in(problem.workspace.storage, file),
    )


def _program(problem: Problem, file: str) -> SearchResult:
    """LANA: the best student within a budget, by scores and table."""
    setup, table = problem.setup, problem.setup.model
    assert isinstance(table, CostTable)
    limit = problem.settings["budget"] - table.rest
    (selection,) = select(setup.scores, {"cost": table.costs}, {"cost": limit})
    return SearchResult(architecture=selection.choices, cost=table.predict(selection.choices))


METHODS = Registry(
    "search method",
    (
        SearchMethod(
            name="differentiable",
            title="differentiable search",
            needs_table=False,
            takes_price=True,
            find=_differentiable,
        ),
        SearchMethod(
            name="program", title="integer program", needs_table=True, takes_price=False, find=_program
        ),
    ),
)
"""Every search method, by name."""
