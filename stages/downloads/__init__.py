"""Getting the releases: where they are published, how they are fetched, and how archives are unpacked.

Apart from `stages/datasets`, on which stages depend: a changed address must not run anything again.
"""
