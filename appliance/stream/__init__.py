"""The only package that speaks Redis: streams, the consumer group, leases, scripts and the ledger's counters."""
