"""What is to be measured on a target, what its samplers say, and what came of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lana_ray.cluster.placement import Placement
from lana_ray.config import Target
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.work import Work


@dataclass
class Job:
    """What is to be measured on one target, and what came of it."""

    target: Target
    placement: Placement
    work: Sequence[Work]
    space: str
    """Name of the students' space that the work is of."""
    follow: Callable[[Mapping[str, Sample]], Sequence[Work]] | None = None
    """Says, once all of ``work`` is done, what is to be measured in the light of it."""
    target_key: str = ""
    """Known from an earlier job of this run, or set by the first sampler."""
    reused: int = 0
    samples: dict[str, Sample] = field(default_factory=dict)
    """By the key of the work. Those of structures that were left out are not in the store."""
    references: dict[str, Sample] = field(default_factory=dict)
    """``teacher``, and ``floor`` where there is one."""

    @property
    def done(self) -> int:
        """Pieces of work that have a sample."""
        return len(self.samples)

    def pending(self) -> list[Work]:
        """What has no sample yet."""
        return [work for work in self.work if work.key not in self.samples]

    def recall(self, store: SampleStore) -> None:
        """Takes what the store has for this very target."""
        wanted = {work.key for work in self.work}
        for sample in store.read(self.target_key):
            if sample.kind == "reference":
                if "teacher" not in self.references:  # the first stays the baseline of all drift
                    self.references[sample.key] = sample
            elif sample.key in wanted and sample.key not in self.samples:
                self.samples[sample.key] = sample
                self.reused += 1

    def go_on(self, store: SampleStore) -> bool:
        """Takes up what follows from the samples, once; whether there is anything left to measure."""
        if self.follow is not None:
            self.work, self.follow = [*self.work, *self.follow(self.samples)], None
            self.recall(store)
        return bool(self.pending())

    def unknown(self, work: Work, why: str) -> Sample:
        """The sample of a structure that could not be measured, for this run alone."""
        nan = float("nan")
        return dataclasses.replace(
            self.references["teacher"],
            kind=work.kind,
            key=work.key,
            what=work.what,
            median_ms=nan,
            iqr_ms=nan,
            raw_ms=nan,
            drift=nan,
            repeats=0,
            seconds=0.0,
            settled=False,
            error=why,
            time=time.time(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A sampler that has leased the cores it measures on."""

    target_key: str
    node_id: str
    """Ray's, of the node that it runs on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A sampler's message: what it has measured since the last one, and what it goes on with."""

    samples: tuple[Sample, ...] = ()
    begins: str | None = None
    """The key of the work that it begins: if its process ends before the next message, it was at this."""
