"""Getting the releases: where they are published, how they are fetched, and how archives are unpacked.

No stage depends on this folder: a changed address must not run anything again.
"""
