"""The contract between apps and workers: requests, results, errors, the ledger and the object store."""
