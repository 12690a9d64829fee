"""Memory of graphs is told apart from that of batches."""

from imagefleet_worker.device.graph_memory import GraphMemory


class Owner:
    """Of graphs."""


def test_a_pool_counts_while_its_owner_lives() -> None:
    memory, one, other = GraphMemory(), Owner(), Owner()
    memory.keep(one, 100)
    memory.keep(other, 20)
    memory.keep(one, 300)
    assert memory.kept_bytes == 320
    del one
    assert memory.kept_bytes == 20


def test_a_batch_hides_memory_where_it_replays_what_an_earlier_one_recorded() -> None:
    """One of replays alone seemed to take next to nothing, and the next was far too large."""
    memory = GraphMemory()
    memory.begin()
    recorded_in = memory.batch
    memory.replayed(recorded_in)
    assert not memory.hidden
    memory.begin()
    memory.replayed(memory.batch)
    assert not memory.hidden
    memory.replayed(recorded_in)
    memory.replayed(memory.batch)
    assert memory.hidden
    memory.begin()
    assert not memory.hidden
