"""The batch scheduler: jobs for the loaded state go first, and no job starves."""

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


def generate(
    adapters: str, checkpoint: str = "a", *, size: int = 1, priority: int = NORMAL
) -> SchedulingKey:
    state = (checkpoint, adapters)
    return SchedulingKey(
        batch_key=(state, size),
        pixels=1,
        first_state=state,
        last_state=state,
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


def items(batch: Iterable[QueueEntry[int]]) -> list[int]:
    return [entry.item for entry in batch]


def no_batching(family: object) -> int:
    return 0


def max_pixels(limit: int) -> Callable[[object], int]:
    return lambda _family: limit


def run_order(scheduler: BatchScheduler[int]) -> list[int]:
    order: list[int] = []
    while len(scheduler):
        order += items(scheduler.next_batch(no_batching))
    return order


def test_with_an_unknown_loaded_state_jobs_go_by_age() -> None:
    assert items(scheduler_of(generate("x"), generate("y")).next_batch(no_batching)) == [0]


def test_jobs_for_the_loaded_state_go_first_then_those_of_its_checkpoint() -> None:
    scheduler = scheduler_of(
        generate("x", "a"),
        generate("x", "b"),
        generate("y", "a"),
        generate("x", "a"),
        generate("y", "a"),
    )
    assert run_order(scheduler) == [0, 3, 2, 4, 1]


def test_the_loaded_state_is_that_of_the_last_pass() -> None:
    first, last = ("a", "x"), ("a", "y")
    hires = SchedulingKey(
        batch_key=0, pixels=1, first_state=first, last_state=last, family="sd1", priority=NORMAL
    )
    assert run_order(scheduler_of(hires, generate("x"), generate("y"))) == [0, 2, 1]


def test_after_an_interrupted_batch_jobs_go_by_age() -> None:
    scheduler = scheduler_of(generate("x"), generate("y"), generate("x"))
    scheduler.next_batch(no_batching)
    scheduler.invalidate()
    assert run_order(scheduler) == [1, 2]


def test_an_upscale_changes_no_state_and_goes_by_age() -> None:
    scheduler = scheduler_of(generate("x"), generate("y"), upscale(), generate("x"), upscale())
    assert run_order(scheduler) == [0, 2, 3, 1, 4], "0 and 3 share a state; 2 is older than 3"


def test_upscales_never_overtake_an_older_job_because_it_needs_a_switch() -> None:
    assert run_order(scheduler_of(generate("x"), generate("y"), upscale(), upscale())) == [
        0,
        1,
        2,
        3,
    ]


def test_priority_comes_before_the_loaded_state() -> None:
    scheduler = scheduler_of(
        generate("x"), generate("x"), generate("y", priority=HIGH), upscale(HIGH)
    )
    assert run_order(scheduler) == [2, 3, 0, 1]


def test_a_job_of_low_priority_does_not_starve() -> None:
    scheduler, first = scheduler_of(generate("x")), list[int]()
    for number in range(1, 100):
        scheduler.enqueue(number, generate("y", priority=HIGH))
        first += items(scheduler.next_batch(no_batching))
    assert first.index(0) == MAX_PASSED_OVER


def test_jobs_of_equal_key_are_batched_up_to_the_limit_by_priority_then_age() -> None:
    other = generate("x", size=2)
    scheduler = scheduler_of(
        generate("x"), other, generate("x"), generate("x"), generate("x", priority=HIGH)
    )
    assert items(scheduler.next_batch(max_pixels(3))) == [4, 0, 2]


def test_a_job_above_the_limit_runs_alone_and_smaller_ones_overtake_it() -> None:
    large = SchedulingKey(
        batch_key="k", pixels=9, first_state=None, last_state=None, family=0, priority=NORMAL
    )
    small = SchedulingKey(
        batch_key="k", pixels=1, first_state=None, last_state=None, family=0, priority=NORMAL
    )
    scheduler = scheduler_of(small, large, small)
    assert items(scheduler.next_batch(max_pixels(4))) == [0, 2]
    assert items(scheduler.next_batch(max_pixels(4))) == [1]


def test_a_batch_is_full_when_no_more_jobs_of_its_key_fit() -> None:
    scheduler = scheduler_of(generate("x"), generate("x"))
    assert not scheduler.is_full(max_pixels(3))
    assert scheduler.is_full(max_pixels(2))
    assert scheduler_of(upscale()).is_full(max_pixels(99)), "it is never batched"


priorities = st.sampled_from([0, 3, 6])


@st.composite
def generate_keys(draw: st.DrawFn) -> SchedulingKey:
    checkpoint, adapters = draw(st.sampled_from("ab")), draw(st.sampled_from("xyz"))
    return generate(adapters, checkpoint, size=draw(st.integers(1, 2)), priority=draw(priorities))


jobs = st.one_of(generate_keys(), st.builds(upscale, priorities))


@dataclass
class TrackedScheduler:
    """A scheduler, with counters of the batches that each job has waited for."""

    scheduler: BatchScheduler[int]
    waiting: dict[int, int] = field(default_factory=dict[int, int])
    """Per queued job: batches led by later jobs so far."""
    ahead: dict[int, int] = field(default_factory=dict[int, int])
    """Per job: jobs queued before it when it was enqueued."""
    batches: dict[int, int] = field(default_factory=dict[int, int])
    """Per job: batches since it was enqueued."""
    done: list[int] = field(default_factory=list[int])

    def enqueue(self, number: int, key: SchedulingKey) -> None:
        self.scheduler.enqueue(number, key)
        self.ahead[number] = len(self.waiting)
        self.waiting[number] = self.batches[number] = 0

    def run_batch(self, limit: int) -> None:
        batch = items(self.scheduler.next_batch(max_pixels(limit)))
        for number in batch:
            del self.waiting[number]
        for number in self.waiting:
            self.batches[number] += 1
            self.waiting[number] += number < batch[0]
        self.done += batch


@given(
    arrivals=st.lists(st.lists(jobs, max_size=6), max_size=60),
    limit=st.integers(0, 4),
    max_passed_over=st.integers(0, 4),
)
def test_no_job_is_passed_over_more_often_than_allowed_and_none_is_lost(
    arrivals: list[list[SchedulingKey]], limit: int, max_passed_over: int
) -> None:
    """At most `max_passed_over` batches run before a job, and one for each job queued before it."""
    tracked, arrived = TrackedScheduler(BatchScheduler(max_passed_over)), 0
    for together in [*arrivals, *([[]] * 400)]:
        for key in together:
            tracked.enqueue(arrived, key)
            arrived += 1
        if tracked.waiting:
            tracked.run_batch(limit)
            assert max(tracked.waiting.values(), default=0) <= max_passed_over
            for number in tracked.waiting:
                assert tracked.batches[number] <= tracked.ahead[number] + max_passed_over
    assert sorted(tracked.done) == list(range(arrived)), "each once"


def test_a_stream_of_jobs_for_the_loaded_state_delays_another_only_by_the_bound() -> None:
    scheduler, first = scheduler_of(generate("x"), generate("victim")), list[int]()
    for number in range(2, 100):
        scheduler.enqueue(number, generate("x"))
        first += items(scheduler.next_batch(no_batching))
    assert first.index(1) == 1 + MAX_PASSED_OVER, "one was queued before it"


@dataclass(frozen=True)
class TraceResult:
    """Statistics of a simulated trace."""

    switches: int
    batches: int
    order: list[int]


def trace(seed: int, jobs: int = 400, sets: int = 20) -> list[SchedulingKey]:
    """Jobs for adapter sets of Zipf's popularity on two checkpoints, in three sizes."""
    rng = random.Random(seed)
    chosen = rng.choices(range(sets), [1 / (rank + 1) for rank in range(sets)], k=jobs)
    sizes = rng.choices(range(3), [6, 3, 2], k=jobs)
    return [
        generate(str(adapters), str(adapters % 2), size=size)
        for adapters, size in zip(chosen, sizes, strict=True)
    ]


def simulate(
    jobs: list[SchedulingKey], queued: int, max_passed_over: int, limit: int = 8
) -> TraceResult:
    """Run a trace on a worker whose queue always has `queued` jobs, as long as there are any."""
    scheduler: BatchScheduler[int] = BatchScheduler(max_passed_over)
    loaded: LoadedState | None = None
    switches, batches, arrived, order = 0, 0, 0, list[int]()
    while len(order) < len(jobs):
        while arrived < len(jobs) and len(scheduler) < queued:
            scheduler.enqueue(arrived, jobs[arrived])
            arrived += 1
        batch = scheduler.next_batch(max_pixels(limit))
        switches += batch[0].key.first_state != loaded
        loaded, batches = batch[0].key.last_state, batches + 1
        order += items(batch)
    return TraceResult(switches, batches, order)


@pytest.mark.parametrize(("queued", "factor"), [(8, 1.25), (16, 1.4), (32, 1.5)])
def test_on_a_trace_of_twenty_sets_it_switches_far_less_often_than_in_arrival_order(
    queued: int, factor: float
) -> None:
    """Arrival order is batched too: this is what the scheduling alone saves."""
    jobs = trace(seed=7)
    ours, by_arrival, unbounded = (
        simulate(jobs, queued, bound) for bound in (MAX_PASSED_OVER, 0, 10**9)
    )
    assert sorted(ours.order) == list(range(len(jobs)))
    assert by_arrival.switches >= factor * ours.switches
    saved = by_arrival.switches - ours.switches
    assert saved >= 0.85 * (by_arrival.switches - unbounded.switches), "the bound costs little"


def test_two_hundred_jobs_at_once_switch_about_once_for_each_set() -> None:
    jobs = trace(seed=3, jobs=200)
    sets = len({job.first_state for job in jobs})
    assert simulate(jobs, 200, 10**9).switches == sets
    assert simulate(jobs, 200, MAX_PASSED_OVER).switches <= 2.5 * sets


@pytest.mark.parametrize("load", [0.5, 1.0, 4.0])
def test_jobs_with_random_arrivals_all_run_within_the_bound(load: float) -> None:
    """Poisson arrivals, also at a higher rate than the worker can serve."""
    rng, tracked, clock, arrived = random.Random(11), TrackedScheduler(BatchScheduler()), 0.0, 0
    jobs = trace(seed=5)
    arrivals: list[float] = []
    for _ in jobs:
        clock += rng.expovariate(load)
        arrivals.append(clock)
    clock = 0.0
    while len(tracked.done) < len(jobs):
        while arrived < len(jobs) and arrivals[arrived] <= clock:
            tracked.enqueue(arrived, jobs[arrived])
            arrived += 1
        if tracked.waiting:
            tracked.run_batch(8)
            assert max(tracked.waiting.values(), default=0) <= MAX_PASSED_OVER
        clock += 1
    assert sorted(tracked.done) == list(range(len(jobs)))
