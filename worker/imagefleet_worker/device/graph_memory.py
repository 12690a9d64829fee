"""Tracks the device memory of CUDA graphs, which the allocator's counters do not show."""

from weakref import WeakKeyDictionary


class GraphMemory:
    """Memory of all CUDA graphs of this process; for the engine's thread.

    A graph is replayed in memory allocated at capture: a replay hardly raises the counters, and
    between replays they show that memory as unused, though nothing else can use it.
    """

    def __init__(self) -> None:
        self._pools: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self.batch = 0
        """Number of the running batch."""
        self.replayed_earlier_graph = False
        """Whether this batch replayed a graph captured in an earlier batch."""

    @property
    def pool_bytes(self) -> int:
        """Total size of the memory pools of all graphs."""
        return sum(self._pools.values())

    def begin_batch(self) -> None:
        """Start a new batch."""
        self.batch += 1
        self.replayed_earlier_graph = False

    def set_pool_bytes(self, owner: object, size_bytes: int) -> None:
        """Set the size of the pool of an owner's graphs; it counts as long as the owner lives."""
        self._pools[owner] = size_bytes

    def mark_replayed(self, captured_in: int) -> None:
        """Note the replay of a graph that was captured in the given batch."""
        self.replayed_earlier_graph |= captured_in != self.batch


GRAPH_MEMORY = GraphMemory()
