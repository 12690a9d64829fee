"""What CUDA graphs keep of the device's memory, which its allocator's counters do not tell."""

from weakref import WeakKeyDictionary


class GraphMemory:
    """Memory of all graphs of this process; for the engine's thread.

    A graph is replayed in memory that it took when it was recorded: the counters then show next to
    nothing taken, and between replays they show that memory unused, though nobody else can have it.
    """

    def __init__(self) -> None:
        self._pools: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self.batch = 0
        """Number of the batch that runs now."""
        self.hidden = False
        """Whether it replayed what was recorded in an earlier one."""

    @property
    def kept_bytes(self) -> int:
        """Of all pools of graphs."""
        return sum(self._pools.values())

    def begin(self) -> None:
        """A batch begins."""
        self.batch += 1
        self.hidden = False

    def keep(self, owner: object, pool_bytes: int) -> None:
        """Count the pool of an owner's graphs, for as long as the owner lives."""
        self._pools[owner] = pool_bytes

    def replayed(self, recorded_in: int) -> None:
        """A graph was replayed that was recorded in that batch."""
        self.hidden |= recorded_in != self.batch


GRAPH_MEMORY = GraphMemory()
