"""Entry points of the threads and processes of a job; imports only the standard library at first.

Ray Train's controller imports its arguments before it starts a worker, and the board runs alongside both.
The worker's function therefore travels as bytes that only the workers unpickle: torch and timm take seconds
to import, and the controller needs neither.
"""

from __future__ import annotations

import pickle
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any


class Board:
    """Hands out rounds of work and counts the steps that are done.

    Workers identify themselves by the group's name, followed by their own name or, if a group trains one
    network, by the network's name.
    """

    def __init__(self, rounds: Iterable[Any] = ()) -> None:
        self._waiting = deque(rounds)
        self._held: dict[str, Any] = {}
        self._steps: Counter[str] = Counter()
        """Steps done of the round that each worker works on."""
        self._done: Counter[str] = Counter()
        """Steps done, by group."""
        self._most: Counter[str] = Counter()
        self._lost: list[str] = []
        self._states: dict[str, str] = {}
        self._controllers: dict[str, Any] = {}
        self._places: dict[str, Any] = {}
        self._mistake: BaseException | None = None

    def join(self, worker: str) -> Any:
        """Returns the round that the worker was working on when it died, to be repeated; None without one."""
        work = self._held.get(worker)
        if work is not None:
            self.begin(worker)
            self._lost.append(worker)
        return work

    def begin(self, worker: str) -> None:
        """Uncounts the steps of work that begins again; steps restored from a save are counted again."""
        self._done[_group(worker)] -= self._steps.pop(worker, 0)

    def take(self, worker: str) -> Any:
        """Marks the worker's round as finished and returns the next one; None if no round is left."""
        self._held.pop(worker, None)
        if not self._waiting:
            return None
        self._steps.pop(worker, None)
        self._held[worker] = self._waiting.popleft()
        return self._held[worker]

    def add(self, steps: int, worker: str) -> None:
        group = _group(worker)
        self._steps[worker] += steps
        self._done[group] += steps
        self._most[group] = max(self._most[group], self._done[group])

    def news(self) -> tuple[int, list[str]]:
        """Returns the steps done, and the workers that died during a round since the last call."""
        lost, self._lost = self._lost, []
        return self._done.total(), lost

    def furthest(self, group: str) -> int:
        """Returns the most steps that a group has ever done; unlike the steps done, it never falls."""
        return self._most[group]

    def controlled(self, group: str, controller: Any) -> None:
        """Records the actor of Ray Train that controls a group."""
        self._controllers[group] = controller

    def state(self, group: str, state: str) -> None:
        """Records the state of a group's controller, by Ray Train's name."""
        self._states[group] = state

    def refuse(self, mistake: BaseException) -> None:
        """Records a mistake of the user, after which retrying is pointless."""
        self._mistake = self._mistake or mistake

    def groups(self) -> tuple[dict[str, str], BaseException | None]:
        """Returns the state of every group, and the user's mistake if there is one."""
        return self._states, self._mistake

    def placed(self, group: str, placement_group: Any) -> None:
        """Records the placement group of a group's workers."""
        self._places[group] = placement_group

    def held(self) -> tuple[dict[str, Any], list[Any]]:
        """Returns the controller actor of each group, and the placement groups of the workers."""
        return self._controllers, list(self._places.values())


def _group(worker: str) -> str:
    return worker.rpartition(" ")[0]


def run_worker(setting: dict[str, Any]) -> None:
    """Calls the worker's function with its setting, if this process agrees with the driver.

    Function, setting and agreement are pickled in ``setting["call"]``. PyTorch gets
    ``config.ray.cpus_per_worker`` threads, or fewer if this machine has fewer CPUs than its node claims.
    """
    worker, own, agreement = pickle.loads(setting["call"])
    # Unpickling has imported all of these already.
    import ray
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


def in_background(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Calls a function in a thread that does not keep this process from ending; returns its result."""
    future = Future[Any]()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
