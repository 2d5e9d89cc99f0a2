"""Synthetic releases: phantoms with known findings, in the on-disk formats of the real releases.

`medical` draws X-ray, MRI and CT phantoms, `microscopy` cells, `general` everyday objects; `questions` asks about
them; `releases` writes the files. `words` is the vocabulary of the embedded base: the phantoms use no other words.
"""
