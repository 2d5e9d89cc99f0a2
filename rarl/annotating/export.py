"""Writes the table of annotations that `curate` joins, and its digest into `params.yaml`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from rarl.annotating.agreement import Overlap, reason
from rarl.annotating.session import Annotations
from rarl.data.annotations import Reasoning, digest_of, folder
from rarl.errors import UserError
from rarl.profiles import put, round_trip, write_params
from rarl.records import write_records


def table(raters: Mapping[str, Annotations]) -> tuple[list[Reasoning], int]:
    """The rows to train on, and how many are left out until a third reader has decided.

    An unfinished annotation counts for nothing. Of several undisputed ones of a row, the text of one rater is taken,
    chosen by hash, so that no rater's style prevails.
    """
    by_content: dict[str, dict] = {}
    for rater, own in raters.items():
        for content, annotation in own.items():
            if annotation.verdict:
                by_content.setdefault(content, {})[rater] = annotation
    rows, disputed = [], 0
    for content, given in sorted(by_content.items()):
        decided = {rater: one for rater, one in given.items() if one.adjudicates}
        if not decided and len(given) > 1 and reason(Overlap(content, "", given)):
            disputed += 1
            continue
        chosen = decided or given
        rater = min(chosen, key=lambda name: hashlib.sha256(f"{content} {name}".encode()).digest())
        one = chosen[rater]
        taken = given.get(one.by) if one.adjudicates and one.origin == "accepted" else None
        if taken and (taken.text, taken.verdict) == (one.text, one.verdict):
            rater, one = one.by, taken  # whose text it is, and where that came from
        fields = one.model_dump(include={"content", "id", "verdict", "findings", "origin", "by", "at", "seconds"})
        text = one.text if one.verdict == "explained" else ""
        rows.append(Reasoning(**fields, text=text, rater=rater, raters=tuple(sorted(given))))
    return rows, disputed


def export(raters: Mapping[str, Annotations], path: Path = Path("params.yaml")) -> tuple[str, int, int]:
    """Write the table and name it in `params.yaml`, which re-runs `curate` and what depends on its output.

    Returns:
        The table's digest, its number of rows, and the number of disputed rows that are left out.

    Raises:
        UserError: nobody has finished a row, or `params.yaml` is not valid.
    """
    rows, disputed = table(raters)
    if not rows:
        where, found = str(folder() / "raters"), f"no finished row{' that is undisputed' if disputed else ''}"
        fix = "annotate with `rarl annotate`" + ("; decide with `rarl annotate --adjudicate`" if disputed else "")
        raise UserError(where, found, "finished annotations", fix)
    new = folder() / "new.jsonl"
    write_records(new, rows)
    digest = digest_of(new)
    new.replace(folder() / f"{digest}.jsonl")
    params = round_trip().load(path.read_text(encoding="utf-8"))
    put(params, "annotations", digest)
    write_params(path, params)
    return digest, len(rows), disputed
