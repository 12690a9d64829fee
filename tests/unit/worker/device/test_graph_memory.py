"""Memory of CUDA graphs is tracked separately from that of batches."""

from imagefleet_worker.device.graph_memory import GraphMemory


class Owner:
    """Owner of graphs."""


def test_a_pool_counts_while_its_owner_lives() -> None:
    memory, one, other = GraphMemory(), Owner(), Owner()
    memory.set_pool_bytes(one, 100)
    memory.set_pool_bytes(other, 20)
    memory.set_pool_bytes(one, 300)
    assert memory.pool_bytes == 320
    del one
    assert memory.pool_bytes == 20


def test_replays_of_graphs_of_earlier_batches_are_noted() -> None:
    """Such a batch seemed to need almost no memory, and the next batch was far too large."""
    memory = GraphMemory()
    memory.begin_batch()
    captured_in = memory.batch
    memory.mark_replayed(captured_in)
    assert not memory.replayed_earlier_graph
    memory.begin_batch()
    memory.mark_replayed(memory.batch)
    assert not memory.replayed_earlier_graph
    memory.mark_replayed(captured_in)
    memory.mark_replayed(memory.batch)
    assert memory.replayed_earlier_graph
    memory.begin_batch()
    assert not memory.replayed_earlier_graph
