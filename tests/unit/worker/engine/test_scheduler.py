"""Who is next: what is on the device first, and nobody passed over for ever."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefleet_worker.engine.scheduler import (
    MAX_PASSED_OVER,
    BatchScheduler,
    LoadedState,
    QueueEntry,
    SchedulingKey,
)

NORMAL, HIGH = 3, 0


def drawing(
    adapters: str, checkpoint: str = "a", *, size: int = 1, priority: int = NORMAL
) -> SchedulingKey:
    setup = (checkpoint, adapters)
    return SchedulingKey(
        batch_key=(setup, size),
        pixels=1,
        first_state=setup,
        last_state=setup,
        family="sd1",
        priority=priority,
    )


def upscale(priority: int = NORMAL) -> SchedulingKey:
    return SchedulingKey(
        batch_key=None, pixels=1, first_state=None, last_state=None, family=None, priority=priority
    )


def scheduler_of(*jobs: SchedulingKey) -> BatchScheduler[int]:
    scheduler: BatchScheduler[int] = BatchScheduler()
    for number, job in enumerate(jobs):
        scheduler.enqueue(number, job)
    return scheduler


def names(batch: Iterable[QueueEntry[int]]) -> list[int]:
    return [place.item for place in batch]


def alone(family: object) -> int:
    return 0


def pixels(most: int) -> Callable[[object], int]:
    return lambda _family: most


def served(scheduler: BatchScheduler[int]) -> list[int]:
    order: list[int] = []
    while len(scheduler):
        order += names(scheduler.next_batch(alone))
    return order


def test_at_first_jobs_go_in_the_order_in_which_they_came() -> None:
    assert names(scheduler_of(drawing("x"), drawing("y")).next_batch(alone)) == [0]


def test_jobs_for_what_is_on_now_go_first_then_those_of_its_checkpoint() -> None:
    scheduler = scheduler_of(
        drawing("x", "a"),
        drawing("x", "b"),
        drawing("y", "a"),
        drawing("x", "a"),
        drawing("y", "a"),
    )
    assert served(scheduler) == [0, 3, 2, 4, 1]


def test_what_a_hires_pass_left_on_counts_and_not_what_the_first_pass_drew_with() -> None:
    first, last = ("a", "x"), ("a", "y")
    hires = SchedulingKey(
        batch_key=0, pixels=1, first_state=first, last_state=last, family="sd1", priority=NORMAL
    )
    assert served(scheduler_of(hires, drawing("x"), drawing("y"))) == [0, 2, 1]


def test_after_a_batch_that_broke_off_jobs_go_by_age() -> None:
    scheduler = scheduler_of(drawing("x"), drawing("y"), drawing("x"))
    scheduler.next_batch(alone)
    scheduler.invalidate()
    assert served(scheduler) == [1, 2]


def test_an_upscale_leaves_on_what_is_on_and_takes_its_turn_by_age() -> None:
    scheduler = scheduler_of(drawing("x"), drawing("y"), upscale(), drawing("x"), upscale())
    assert served(scheduler) == [0, 2, 3, 1, 4], "0 and 3 share what is on; 2 is older than 3"


def test_upscales_never_pass_an_older_drawing_because_it_needs_a_switch() -> None:
    assert served(scheduler_of(drawing("x"), drawing("y"), upscale(), upscale())) == [0, 1, 2, 3]


def test_priority_counts_more_than_what_is_on() -> None:
    scheduler = scheduler_of(drawing("x"), drawing("x"), drawing("y", priority=HIGH), upscale(HIGH))
    assert served(scheduler) == [2, 3, 0, 1]


def test_a_low_priority_does_not_starve_either() -> None:
    scheduler, first = scheduler_of(drawing("x")), list[int]()
    for number in range(1, 100):
        scheduler.enqueue(number, drawing("y", priority=HIGH))
        first += names(scheduler.next_batch(alone))
    assert first.index(0) == MAX_PASSED_OVER


def test_those_alike_go_along_up_to_the_cap_first_by_priority_then_by_age() -> None:
    other = drawing("x", size=2)
    scheduler = scheduler_of(
        drawing("x"), other, drawing("x"), drawing("x"), drawing("x", priority=HIGH)
    )
    assert names(scheduler.next_batch(pixels(3))) == [4, 0, 2]


def test_a_job_that_is_too_large_runs_alone_and_lets_smaller_ones_by() -> None:
    large = SchedulingKey(
        batch_key="k", pixels=9, first_state=None, last_state=None, family=0, priority=NORMAL
    )
    small = SchedulingKey(
        batch_key="k", pixels=1, first_state=None, last_state=None, family=0, priority=NORMAL
    )
    scheduler = scheduler_of(small, large, small)
    assert names(scheduler.next_batch(pixels(4))) == [0, 2]
    assert names(scheduler.next_batch(pixels(4))) == [1]


def test_it_is_full_when_no_more_of_the_kind_fits() -> None:
    scheduler = scheduler_of(drawing("x"), drawing("x"))
    assert not scheduler.is_full(pixels(3))
    assert scheduler.is_full(pixels(2))
    assert scheduler_of(upscale()).is_full(pixels(99)), "nothing ever goes along"


priorities = st.sampled_from([0, 3, 6])


@st.composite
def drawings(draw: st.DrawFn) -> SchedulingKey:
    checkpoint, adapters = draw(st.sampled_from("ab")), draw(st.sampled_from("xyz"))
    return drawing(adapters, checkpoint, size=draw(st.integers(1, 2)), priority=draw(priorities))


jobs = st.one_of(drawings(), st.builds(upscale, priorities))


@dataclass
class Watched:
    """A line, and who was there before whom."""

    scheduler: BatchScheduler[int]
    waiting: dict[int, int] = field(default_factory=dict[int, int])
    """Of each job: batches led by later ones so far."""
    ahead: dict[int, int] = field(default_factory=dict[int, int])
    """Of each job: those there before it when it came."""
    batches: dict[int, int] = field(default_factory=dict[int, int])
    """Of each job: batches since it came."""
    done: list[int] = field(default_factory=list[int])

    def join(self, number: int, key: SchedulingKey) -> None:
        self.scheduler.enqueue(number, key)
        self.ahead[number] = len(self.waiting)
        self.waiting[number] = self.batches[number] = 0

    def take(self, most: int) -> None:
        batch = names(self.scheduler.next_batch(pixels(most)))
        for number in batch:
            del self.waiting[number]
        for number in self.waiting:
            self.batches[number] += 1
            self.waiting[number] += number < batch[0]
        self.done += batch


@given(
    arrivals=st.lists(st.lists(jobs, max_size=6), max_size=60),
    most=st.integers(0, 4),
    max_passed=st.integers(0, 4),
)
def test_whatever_comes_nobody_is_passed_over_more_often_than_stated_and_nobody_is_lost(
    arrivals: list[list[SchedulingKey]], most: int, max_passed: int
) -> None:
    """Before a job run at most `max_passed` batches, and one for each that was there before it."""
    watched, came = Watched(BatchScheduler(max_passed)), 0
    for together in [*arrivals, *([[]] * 400)]:
        for key in together:
            watched.join(came, key)
            came += 1
        if watched.waiting:
            watched.take(most)
            assert max(watched.waiting.values(), default=0) <= max_passed
            for number in watched.waiting:
                assert watched.batches[number] <= watched.ahead[number] + max_passed
    assert sorted(watched.done) == list(range(came)), "each once"


def test_a_stream_made_to_starve_a_job_holds_it_up_for_max_passed_batches_and_no_more() -> None:
    scheduler, first = scheduler_of(drawing("x"), drawing("victim")), list[int]()
    for number in range(2, 100):
        scheduler.enqueue(number, drawing("x"))
        first += names(scheduler.next_batch(alone))
    assert first.index(1) == 1 + MAX_PASSED_OVER, "one was there before it"


@dataclass(frozen=True)
class Day:
    """What became of a trace."""

    switches: int
    batches: int
    order: list[int]


def trace(seed: int, jobs: int = 400, sets: int = 20) -> list[SchedulingKey]:
    """Jobs for adapter sets of Zipf's popularity on two checkpoints, in three sizes."""
    dice = random.Random(seed)
    chosen = dice.choices(range(sets), [1 / (rank + 1) for rank in range(sets)], k=jobs)
    sizes = dice.choices(range(3), [6, 3, 2], k=jobs)
    return [
        drawing(str(one), str(one % 2), size=size) for one, size in zip(chosen, sizes, strict=True)
    ]


def day(jobs: list[SchedulingKey], held: int, max_passed: int, most: int = 8) -> Day:
    """Run a trace through a worker that always holds so many jobs of it, as long as there are."""
    scheduler: BatchScheduler[int] = BatchScheduler(max_passed)
    on: LoadedState | None = None
    switches, batches, came, order = 0, 0, 0, list[int]()
    while len(order) < len(jobs):
        while came < len(jobs) and len(scheduler) < held:
            scheduler.enqueue(came, jobs[came])
            came += 1
        batch = scheduler.next_batch(pixels(most))
        switches += batch[0].key.first_state != on
        on, batches = batch[0].key.last_state, batches + 1
        order += names(batch)
    return Day(switches, batches, order)


@pytest.mark.parametrize(("held", "factor"), [(8, 1.25), (16, 1.4), (32, 1.5)])
def test_on_a_trace_of_twenty_sets_it_switches_far_less_often_than_in_arrival_order(
    held: int, factor: float
) -> None:
    """Arrival order batches too: this is what the order alone saves."""
    jobs = trace(seed=7)
    ours, by_arrival, unbounded = (day(jobs, held, bound) for bound in (MAX_PASSED_OVER, 0, 10**9))
    assert sorted(ours.order) == list(range(len(jobs)))
    assert by_arrival.switches >= factor * ours.switches
    saved = by_arrival.switches - ours.switches
    assert saved >= 0.85 * (by_arrival.switches - unbounded.switches), "the bound costs little"


def test_two_hundred_jobs_at_once_switch_about_once_for_each_set() -> None:
    jobs = trace(seed=3, jobs=200)
    sets = len({job.first_state for job in jobs})
    assert day(jobs, 200, 10**9).switches == sets
    assert day(jobs, 200, MAX_PASSED_OVER).switches <= 2.5 * sets


@pytest.mark.parametrize("load", [0.5, 1.0, 4.0])
def test_jobs_that_come_by_chance_all_go_through_within_the_bound(load: float) -> None:
    """Poisson arrivals, also more than the worker can do for as long as they last."""
    dice, watched, clock, came = random.Random(11), Watched(BatchScheduler()), 0.0, 0
    jobs = trace(seed=5)
    arrivals: list[float] = []
    for _ in jobs:
        clock += dice.expovariate(load)
        arrivals.append(clock)
    clock = 0.0
    while len(watched.done) < len(jobs):
        while came < len(jobs) and arrivals[came] <= clock:
            watched.join(came, jobs[came])
            came += 1
        if watched.waiting:
            watched.take(8)
            assert max(watched.waiting.values(), default=0) <= MAX_PASSED_OVER
        clock += 1
    assert sorted(watched.done) == list(range(len(jobs)))
