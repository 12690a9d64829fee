"""The contract between apps and workers: requests, results, errors, ledger, object store."""
