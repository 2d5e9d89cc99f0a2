"""SAT, the general-domain training source of the paper's Table 2: spatial questions about rendered rooms.

`sat/SAT_train.parquet`, `SAT_val.parquet`, `SAT_test.parquet` and `SAT_static.parquet`, the part of training
in which nothing moves. A row in the real format, with made-up values:

    {"image_bytes": [<PNG>], "question": "Is the gizzard left of the antenna?",
     "answers": ["left", "right"], "question_type": "obj_rel", "correct_answer": "left"}

Quirks: rows about a movement have two images, and are refused: a sample has one. Options keep their order and follow
the question as in CV-Bench, which this source trains for.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rarl.data import hub
from rarl.data.adapters.cv_bench import LETTERS, multiple_choice, with_options
from rarl.data.release import Images, MissingRelease, Refused, Release, Row, fold, published, read, require_split
from rarl.params import Params

FOLDERS = ("sat", "SAT", "array___sat")
FILES = {"train": "SAT_train", "static": "SAT_static", "validate": "SAT_val", "test": "SAT_test"}
DECLARED = published("sat")
COLUMNS = ("image_bytes", "question", "answers", "correct_answer")


def training(root: Path, params: Params, images: Images) -> dict[str, Release]:
    """Return the train, development and test rows: SAT's own train, validation and test splits.

    Of the 172,384 rows of `train`, only `train.samples` are read, chosen by `seed`.
    """
    this = sys.modules[__name__]
    chosen = {"limit": params.train.samples, "seed": params.seed}
    return {
        "train": read(this, root, "train", images=images, **chosen),
        "dev": read(this, root, "validate", images=images),
        "test": read(this, root, "test", images=images),
    }


def rows(folder: Path, split: str, notes: Counter, limit: int | None = None, seed: int = 0) -> Iterator[Row | Refused]:
    """Yield the rows of one split.

    Args:
        folder: The release's folder.
        split: One of `FILES`.
        notes: Counts of quirks.
        limit: At most n rows, chosen by `seed` among those with one image, in the table's order. Needs another pass
            over the table, in which no image is copied or decoded.
        seed: Seed of the choice.
    """
    import pyarrow

    file = require_split(split, FILES, "SAT")
    table = hub.table(folder, split, COLUMNS, ("question_type",))
    if table is None:
        raise MissingRelease(
            str(folder), f"no {file}.parquet in it", f"SAT's {split} split", "get it with `rarl download sat`"
        )
    chosen = None
    if limit is not None:
        usable = [number for number, images in enumerate(_images(table), 1) if images == 1]
        notes["rows_with_one_image"] += len(usable)
        if limit < len(usable):
            # The first of a shuffle, so that a larger choice holds the smaller ones.
            chosen = set(random.Random(seed).sample(usable, len(usable))[:limit])
    number = 0
    for path, batch in table.batches():
        rows_here = batch.num_rows
        places = [k for k in range(rows_here) if chosen is None or number + k + 1 in chosen]
        notes["rows_not_chosen"] += rows_here - len(places)
        if len(places) < rows_here:
            batch = batch.take(pyarrow.array(places, pyarrow.int64()))
        for place, cells in zip(places, table.rows_of(path, batch)):
            yield _row(cells, f"row{number + place + 1}")
        number += rows_here


def _images(table: hub.Table) -> Iterator[int | None]:
    """Yield the number of images of each row."""
    import pyarrow.compute

    for _, batch in table.batches():
        try:
            yield from pyarrow.compute.list_value_length(batch.column("image_bytes")).to_pylist()
        except pyarrow.ArrowException:
            # Another build of the table has one image a row.
            yield from (1 for _ in range(batch.num_rows))


def _row(cells: dict, source_id: str) -> Row | Refused:
    images, options, gold = cells["image_bytes"], cells["answers"], cells["correct_answer"]
    if isinstance(images, list):
        if len(images) != 1:
            return Refused(source_id, f"{len(images)} images, not one", hub.FORM)
        images = images[0]
    if not isinstance(options, list):
        return Refused(source_id, "no list of answers to choose from", hub.FORM)
    plain = [fold(option) for option in options]
    index = plain.index(fold(gold)) if fold(gold) in plain else len(LETTERS)
    question = fold(cells["question"])
    return multiple_choice(
        source_id,
        hub.image_of(images),
        with_options(question, options) if question else "",
        options,
        f"({LETTERS[index]})" if index < len(LETTERS) else gold,
        category=fold(cells["question_type"]),
        form=hub.FORM,
    )
