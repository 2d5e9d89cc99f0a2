"""What splits share: the same picture, nearly the same picture, and questions answered in two ways."""

from collections import defaultdict
from itertools import combinations
from pathlib import Path

from stages.answers import normalise
from stages.records import Sample

#: Bits (of 64) in which both perceptual hashes of two pictures may differ and still be called near duplicates.
NEAR_DISTANCE = 4


def shared_images(first: list[Sample], second: list[Sample]) -> list[tuple[str, str]]:
    """(image in the first, image in the second) with the same bytes, one pair per picture."""
    ours, theirs = (
        {sample.image_sha256: sample.image for sample in samples} for samples in (first, second)
    )
    return [(ours[sha256], theirs[sha256]) for sha256 in sorted(ours.keys() & theirs.keys())]


def conflicting_answers(samples: list[Sample]) -> int:
    """Groups of one picture and one question whose rows give different answers."""
    groups = defaultdict(set)
    for sample in samples:
        # Commas separate a list: its order is no conflict.
        answer = frozenset(normalise(part) for part in sample.answers[0].split(","))
        groups[sample.image_sha256, normalise(sample.question)].add(answer)
    return sum(len(answers) > 1 for answers in groups.values())


def near_duplicates(root: Path, splits: dict[str, list[Sample]]) -> list[tuple[str, str]]:
    """Pairs of different pictures in two splits that look the same by both dHash and pHash.

    Reported, never acted upon: two scans of one patient look alike without being copies.
    """
    import imagehash
    import numpy as np
    from PIL import Image

    hashes = {}
    for split, samples in splits.items():
        pictures = {sample.image_sha256: sample.image for sample in samples}
        rows = []
        for image in pictures.values():
            with Image.open(Path(root) / image) as picture:
                grey = picture.convert("L")
                rows.append(
                    [hash_of(grey).hash.ravel() for hash_of in (imagehash.dhash, imagehash.phash)]
                )
        hashes[split] = (
            list(pictures),
            list(pictures.values()),
            np.array(rows).reshape(len(rows), 2, 64),
        )
    pairs = []
    for first, second in combinations(splits, 2):
        (ids_a, images_a, bits_a), (ids_b, images_b, bits_b) = hashes[first], hashes[second]
        for sha256, image, bits in zip(ids_a, images_a, bits_a):
            if not len(bits_b):
                continue
            distance = (bits_b != bits).sum(axis=2).max(axis=1)
            pairs += [
                (image, images_b[i])
                for i in np.flatnonzero(distance <= NEAR_DISTANCE)
                if ids_b[i] != sha256
            ]
    return pairs
