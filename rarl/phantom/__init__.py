"""Drawn stand-ins for the releases: pictures with known findings, written in the real on-disk formats.

`medical` draws X-ray, MRI and CT phantoms, `microscopy` draws cells, `general` draws everyday
objects; `questions` asks about what was drawn; `releases` writes the files. `words` is the
vocabulary that the embedded base knows: nothing here says a word that is not in it.
"""
