"""What the processes of a Ray Train job import first: the standard library and nothing else.

Ray Train's controller imports what it is given before it starts a worker, and the board runs beside both.
The worker's function therefore travels as bytes, which only the workers read: torch and timm take seconds to
import, and the controller needs neither.
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any


class Board:
    """Hands out rounds of work, and counts the steps that are done.

    A worker gives its name or, where a group trains one network, that of the network, behind its group's.
    """

    def __init__(self, rounds: Iterable[Any] = ()) -> None:
        self._waiting = deque(rounds)
        self._held: dict[str, Any] = {}
        self._steps: Counter[str] = Counter()
        """Of what every worker has in hand."""
        self._done: Counter[str] = Counter()
        """By group."""
        self._most: Counter[str] = Counter()
        self._lost: list[str] = []
        self._states: dict[str, str] = {}
        self._controllers: dict[str, Any] = {}
        self._places: dict[str, Any] = {}
        self._mistake: BaseException | None = None

    def join(self, worker: str) -> Any:
        """The round that the worker had in hand when it died, to be done again; None where it had none."""
        work = self._held.get(worker)
        if work is not None:
            self.begin(worker)
            self._lost.append(worker)
        return work

    def begin(self, worker: str) -> None:
        """Takes back the steps of what begins again; those that were saved are counted anew."""
        self._done[_group(worker)] -= self._steps.pop(worker, 0)

    def take(self, worker: str) -> Any:
        """Another round, the one in hand being finished; None when no more is left."""
        self._held.pop(worker, None)
        if not self._waiting:
            return None
        self._steps.pop(worker, None)
        self._held[worker] = self._waiting.popleft()
        return self._held[worker]

    def add(self, steps: int, worker: str) -> None:
        """Counts steps that a worker has done."""
        group = _group(worker)
        self._steps[worker] += steps
        self._done[group] += steps
        self._most[group] = max(self._most[group], self._done[group])

    def news(self) -> tuple[int, list[str]]:
        """Steps done, and the workers that died with a round in hand since this was last asked."""
        lost, self._lost = self._lost, []
        return self._done.total(), lost

    def furthest(self, group: str) -> int:
        """The most steps that a group had ever done: unlike the steps done, it never falls."""
        return self._most[group]

    def controlled(self, group: str, controller: Any) -> None:
        """Notes the actor of Ray Train that controls a group."""
        self._controllers[group] = controller

    def state(self, group: str, state: str) -> None:
        """Notes the state that a group's controller has reached, as Ray Train names it."""
        self._states[group] = state

    def refuse(self, mistake: BaseException) -> None:
        """Notes a mistake of the user: to try again would be of no use."""
        self._mistake = self._mistake or mistake

    def groups(self) -> tuple[dict[str, str], BaseException | None]:
        """The state of every group, and the mistake of the user if there is one."""
        return self._states, self._mistake

    def placed(self, group: str, placement_group: Any) -> None:
        """Notes what a group's workers have claimed."""
        self._places[group] = placement_group

    def held(self) -> tuple[dict[str, Any], list[Any]]:
        """The actor that controls each group, and the placement groups of their workers."""
        return self._controllers, list(self._places.values())


def _group(worker: str) -> str:
    return worker.rpartition(" ")[0]


def run_worker(setting: dict[str, Any]) -> None:
    """Calls the function with its setting, if this process agrees with the driver (``agreement``).

    All three are in ``setting["call"]`` as ``pickle.dumps`` made them.

    PyTorch gets ``config.ray.cpus_per_worker`` threads, or fewer if this machine has fewer CPUs than its node
    says.
    """
    worker, own, agreement = pickle.loads(setting["call"])
    import ray  # by now the bytes have imported all this
    import torch

    from lana_ray.cluster.claims import threads, with_cpus
    from lana_ray.errors import UserError

    config = own["config"]
    cpus = threads(config.ray.cpus_per_worker)
    torch.set_num_threads(cpus)
    board = setting["board"]
    try:
        agreement.check()
        worker({**own, "config": with_cpus(config, cpus), "board": board})
    except UserError as mistake:
        ray.get(board.refuse.remote(mistake))
        raise
