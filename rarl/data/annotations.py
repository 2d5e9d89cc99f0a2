"""Joins the physicians' annotations (`rarl annotate --export`) to the rows of the training source.

`data/annotations/<digest>.jsonl` is a table of `Reasoning`, named by its content: `annotations` in `params.yaml` names
the table in use, so that DVC sees every change, and an earlier table can be used again.

A row gets the reasoning of its content, not of its id: the image, the question and the answers that the physician saw.
Rows of which physicians say that the answer cannot be seen, or that the question is wrong, are not trained on.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from rarl.chat.journal import outside_copy
from rarl.data.release import Release, fold
from rarl.errors import UserError
from rarl.records import Record, Sample, read_records

#: Explained; or the answer cannot be seen in this image; or the question, or its answer, is wrong.
Verdict = Literal["explained", "not_visible", "wrong_question"]
#: Own words; a draft as it was, or edited; own words after the draft was rejected.
Origin = Literal["own", "accepted", "edited", "rejected"]
#: The verdicts after which a row is not trained on.
DOUBTS = ("not_visible", "wrong_question")
#: In the target of SFT these would end the think text (`rarl/answers/completion.py`).
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)


class Reasoning(Record):
    """The annotation of one row that training may use: finished by a physician, and undisputed or adjudicated."""

    content: str
    """`content_key` of the row."""
    id: str
    """The id of the row when it was annotated."""
    verdict: Verdict
    text: str
    """The reasoning as it was typed; empty unless the verdict is `explained`."""
    findings: tuple[str, ...] = ()
    origin: Origin
    by: str = ""
    """The model whose draft was shown, or the reader whose text the third reader has edited."""
    rater: str
    """Pseudonym of who wrote or approved the text."""
    raters: tuple[str, ...]
    """Everybody who annotated the row."""
    at: str
    seconds: float


def folder() -> Path:
    """The folder of the annotations: the repository's own, also in DVC's copies of it."""
    return outside_copy("data/annotations")


def left_out_file(split: str) -> Path:
    """The rows that `curate` has left out of a split because of their verdict; there is no file if there are none."""
    return Path(f"data/curated/{split}_left_out.jsonl")


def content_key(sample: Sample) -> str:
    """Key of what an annotator sees of a row."""
    seen = [sample.image_sha256, sample.question, sample.choices, sample.answers]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """The name of a table by its content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_table(digest: str) -> list[Reasoning]:
    """Read the table that `annotations` names.

    Raises:
        UserError: it is missing, or has other content than its name says.
    """
    path = folder() / f"{digest}.jsonl"
    found = digest_of(path) if path.is_file() else None
    if found != digest:
        raise UserError(
            f"params.yaml: annotations = {digest}",
            f"{path} with other content ({found})" if found else f"no file {path}",
            "the table that `rarl annotate --export` wrote",
            "restore it from your backup, export again, or set annotations to null",
        )
    return read_records(path, Reasoning)


def join(releases: Mapping[str, Release], digest: str) -> tuple[dict, dict[str, list[Sample]]]:
    """Give the rows their annotated reasoning, in place of the release's own, and take out those not to train on.

    Test rows stay whatever their verdict, so that scores stay comparable; they are counted.

    Returns:
        The counts, and split -> the rows that were taken out of it.

    Raises:
        UserError: the table is missing or has changed, or no training row is left.
    """
    table = {row.content: row for row in read_table(digest)}
    used, raters, sources, verdicts = set(), Counter(), Counter(), Counter()
    doubted, left_out = {split: Counter() for split in releases}, {split: [] for split in releases}
    for split, release in releases.items():
        kept = []
        for sample in release.samples:
            row = table.get(content_key(sample))
            if row:
                used.add(row.content)
                verdicts[row.verdict] += 1
            if row and row.verdict in DOUBTS:
                doubted[split][row.verdict] += 1
                if split != "test":
                    left_out[split].append(sample)
                    continue
            if row and row.verdict == "explained":
                sample = sample.model_copy(update={"reasoning": usable(row.text)})
                raters[row.rater] += 1
                sources[row.origin] += 1
            elif sample.reasoning is not None:
                sources["release"] += 1
            kept.append(sample)
        release.samples = kept
    if not releases["train"].samples:
        found = f"every training row as {' or '.join(DOUBTS)}"
        fix = "see the rows' verdicts in the table, or set annotations to null"
        raise UserError(f"params.yaml: annotations = {digest}", found, "rows to train on", fix)
    counts = {
        "table": digest,
        "rows_joined": sum(verdicts.values()),
        **{verdict: verdicts[verdict] for verdict in ("explained", *DOUBTS)},
        "without_a_row": len(table) - len(used),
        "by_rater": dict(sorted(raters.items())),
        "by_source": dict(sorted(sources.items())),
        **{
            f"{'kept_in' if split == 'test' else 'left_out_of'}_{split}": {doubt: found[doubt] for doubt in DOUBTS}
            for split, found in doubted.items()
        },
    }
    return counts, left_out


def usable(text: str) -> str | None:
    """A text as reasoning to train on: white space folded, without the tags of a completion.

    >>> usable("A spot.</think> <answer>no</answer>  It is round.")
    'A spot. no It is round.'
    """
    return fold(_TAG.sub(" ", text)) or None
