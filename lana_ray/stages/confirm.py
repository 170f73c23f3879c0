"""The best student of a budget keeps it, and does so again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from lana_ray.costs.work import network_work
from lana_ray.spaces.space import Architecture
from lana_ray.stages.choice import Choice, keeps
from lana_ray.stages.evaluate import losses
from lana_ray.stages.sample import SESSIONS, Judged, TargetCosts, judge
from lana_ray.workspace import Workspace

_SESSIONS = 5
"""More than at first: what is wrong here is found out after fine-tuning."""
_AT_ONCE = 2  # students measured again together: starting a sampler takes longer than one of them


def run(
    workspace: Workspace,
    choices: Sequence[Choice],
    costs: Mapping[str, TargetCosts],
    which: Callable[[Choice], object] = lambda choice: True,
    time: int = 0,
) -> list[Choice]:
    """Chooses the student with the lowest loss that keeps its budget in further sessions as well.

    The best of many students within a limit is likely to be one whose measurement erred to its favour (the
    winner's curse); fine-tuning is too dear to find that out afterwards. A choice without any such student is
    left unfinished.

    Args:
        which: of the choices this is done for; each has a student within its limits.
        time: how often this was done before; each time has sessions of its own.

    Returns:
        All choices, in their order; those given are left as they are.
    """
    copies = copy.deepcopy(list(choices))
    asked_for = [choice for choice in copies if which(choice)]
    for choice in asked_for:
        choice.loss |= losses(workspace, choice.within())
        choice.architecture = choice.candidates()[0]
    again: dict[tuple[str, Architecture], Judged] = {}
    while unsure := [c for c in asked_for if c.architecture and c.architecture not in c.confirmed]:
        asked = {}
        for name in dict.fromkeys(name for choice in unsure for name in choice.limits):
            best = dict.fromkeys(a for c in unsure if name in c.limits for a in c.candidates()[:_AT_ONCE])
            asked[name] = {a: network_work(workspace.space, a) for a in best}
        again |= judge(workspace, asked, costs, sessions(time), "confirm")
        for choice in unsure:
            _accept(choice, again)
    return copies


def sessions(time: int) -> range:
    """Those that students are measured in for the ``time``-th time after they were chosen."""
    start = len(SESSIONS) + time * _SESSIONS
    return range(start, start + _SESSIONS)


def _accept(choice: Choice, again: Mapping[tuple[str, Architecture], Judged]) -> None:
    """Takes the best student that did it again, or the best that was not measured again yet."""
    while choice.architecture:
        found = {name: again.get((name, choice.architecture)) for name in choice.limits}
        samples = {name: judged.sample for name, judged in found.items() if judged}
        if len(samples) < len(found):
            return
        if all(keeps(samples[name], limit.confirmed_ms) for name, limit in choice.limits.items()):
            choice.confirmed.add(choice.architecture)
            return
        if not choice.replace():
            choice.given_up.add(choice.architecture)
            choice.architecture, choice.finished = None, False
