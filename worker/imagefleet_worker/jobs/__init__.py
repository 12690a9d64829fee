"""Jobs in a worker: prefetched, leased, executed; images stored, results published."""
