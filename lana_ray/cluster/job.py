"""The measurements to take on a target, the messages of its samplers, and the results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lana_ray.cluster.placement import Placement
from lana_ray.config import Target
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.timing import FAILED
from lana_ray.costs.work import Work


@dataclass
class Job:
    """The measurements to take on one target, and their results."""

    target: Target
    placement: Placement
    work: Sequence[Work]
    space: str
    """Name of the space of students to measure."""
    follow: Callable[[Mapping[str, Sample]], Sequence[Work]] | None = None
    """Callback that returns further work after all of ``work`` is done."""
    target_key: str = ""
    """Copied from an earlier job of this run, or set by the first sampler."""
    reused: int = 0
    samples: dict[str, Sample] = field(default_factory=dict)
    """Samples by key of the work; those of structures that were given up are not in the store."""
    references: dict[str, Sample] = field(default_factory=dict)
    """Samples of ``teacher``, and of ``floor`` if there is one."""

    @property
    def done(self) -> int:
        """Number of structures that have a sample."""
        return len(self.samples)

    def pending(self) -> list[Work]:
        """The work that has no sample yet."""
        return [work for work in self.work if work.key not in self.samples]

    def recall(self, store: SampleStore) -> None:
        """Reuses samples in the store that were measured on the same target."""
        wanted = {work.key for work in self.work}
        for sample in store.read(self.target_key):
            if sample.kind == "reference":
                if "teacher" not in self.references:  # the first stays the baseline of all drift
                    self.references[sample.key] = sample
            elif sample.key in wanted and sample.key not in self.samples:
                self.samples[sample.key] = sample
                self.reused += 1

    def go_on(self, store: SampleStore) -> bool:
        """Adds the work that ``follow`` returns, once; returns whether anything is left to measure."""
        if self.follow is not None:
            self.work, self.follow = [*self.work, *self.follow(self.samples)], None
            self.recall(store)
        return bool(self.pending())

    def unknown(self, work: Work, why: str) -> Sample:
        """The sample of a structure that could not be measured; it is valid for this run alone."""
        return dataclasses.replace(
            self.references["teacher"],
            kind=work.kind,
            key=work.key,
            what=work.what,
            **dataclasses.asdict(FAILED),
            error=why,
            time=time.time(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A sampler that has leased the cores it measures on."""

    target_key: str
    node_id: str
    """Ray's id of the sampler's node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A message of a sampler: its new samples, and the work that it begins."""

    samples: tuple[Sample, ...] = ()
    begins: str | None = None
    """Key of the work that begins; if the process ends before the next message, it was at this."""
