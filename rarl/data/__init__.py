"""Releases: reading them into one kind of record, fetching them, auditing them, and the data card."""
