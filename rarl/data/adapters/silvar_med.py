"""Silvar-Med, the training set: SLAKE's English Abnormality rows, with physicians' explanations if available.

The paper's 716 training and 150 test rows are the English rows of SLAKE's `train.json` and `test.json` whose
`content_type` is `Abnormality`; the 132 of `validate.json` are the development rows. Silvar-Med adds the explanations.
They may be anywhere below `silvar_med/`, in any of three forms (made-up values):

    *.json     {"img_name": "xmlab900_2.jpg", "question": "Is the gizzard healthy?",
                "answer": "The gizzard is evenly bright. No lesion is seen, so it is healthy."}
               the authors' own: a list of such rows
    *.parquet  or a `datasets` folder, with the same columns; or `image` instead of `img_name`, if its
               path contains the name
    *.jsonl    {"image": "xmlab900/source.jpg", "question": "Is the gizzard healthy?",
                "reasoning": "The gizzard is evenly bright ..."}
               from elsewhere, one a line; the image as SLAKE's `img_name` or as `xmlab900`

`xmlabN.jpg` is the authors' copy of an image for its first question, `xmlabN_k.jpg` for its k-th further one. The
copies are not needed: explanations are joined to rows by the image's number and the question's text. The releases'
notes count the joined explanations, and `unmatched` lists the others.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rarl.answers.spelling import normalise
from rarl.data import hub
from rarl.data.adapters import slake
from rarl.data.release import Images, Release, find_release, fold, load_lines, load_rows, published, read
from rarl.errors import UserError
from rarl.params import Params

NAME = "silvar_med"
FOLDERS = ("silvar_med", "silvar-med", "Silvar-Med")
#: Our splits and SLAKE's: `validate.json` is not used by the paper and picks checkpoints here.
SPLITS = {"train": "train", "dev": "validate", "test": "test"}
DECLARED = published("silvar_med")
#: JSON files that `save_to_disk` and `rarl download` write; those of the hub's client are in `.cache/`.
_OF_TOOLS = ("dataset_dict.json", "dataset_info.json", "state.json", "download.json")
_COPY = re.compile(r"(.+?)(?:_\d+)?$")


@dataclass(frozen=True)
class Explanation:
    """One explanation, and its source."""

    file: str
    """Path below the release's folder."""
    row: int
    """Line or row in the file, from 1."""
    image: str
    question: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """The image and question that it is joined by."""
        return _key(self.image, self.question)


def training(root: Path, params: Params, images: Images) -> dict[str, Release]:
    """Return the train, development and test rows, each with its explanation if it has one.

    Each release's notes count `explanations_matched` (its rows that have one) and `rows_with_differing_explanations`
    (the first is used); those of `train` count, for all three, `explanations_read`, `explanations_empty` and
    `explanations_without_a_row`.

    Raises:
        MissingRelease: SLAKE is missing.
        UserError: A file of SLAKE or of the explanations is malformed.
    """
    releases = {
        ours: read(slake, root, theirs, dataset=NAME, images=images, content_type="Abnormality")
        for ours, theirs in SPLITS.items()
    }
    found = list(explanations(root))
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for explanation in found:
        if explanation.text and explanation.text not in texts[explanation.key]:
            texts[explanation.key].append(explanation.text)
    for release in releases.values():
        joined = [texts.get(_key(row.image, row.question), []) for row in release.seen]
        release.notes["explanations_matched"] += sum(map(bool, joined))
        release.notes["rows_with_differing_explanations"] += sum(len(of) > 1 for of in joined)
        release.samples = [
            sample.model_copy(update={"reasoning": next(iter(of), None)})
            for sample in release.samples
            for of in [texts.get(_key(sample.image, sample.question), [])]
        ]
    notes = releases["train"].notes
    notes["explanations_read"] += len(found)
    notes["explanations_empty"] += sum(not explanation.text for explanation in found)
    notes["explanations_without_a_row"] += len(unmatched(found, releases.values()))
    return releases


def unmatched(found: Iterable[Explanation], releases: Iterable[Release]) -> list[Explanation]:
    """List the explanations without a row in any of the releases (`training(...).values()`)."""
    keys = {_key(row.image, row.question) for release in releases for row in release.seen}
    return [explanation for explanation in found if explanation.key not in keys]


def explanations(root: Path) -> Iterator[Explanation]:
    """Yield every explanation below the release's folder, including empty ones; none if there is no such folder.

    Raises:
        UserError: A file is not in one of the documented forms.
    """
    folder = find_release(root, FOLDERS)
    if folder is None:
        return
    for path in sorted(folder.rglob("*.json")):
        if path.name not in _OF_TOOLS and ".cache" not in path.relative_to(folder).parts:
            for number, row in enumerate(load_rows(path), 1):
                yield _explanation(folder, path, number, row, ("img_name", "question", "answer"))
    for path in sorted(folder.rglob("*.jsonl")):
        for number, row in load_lines(path):
            yield _explanation(folder, path, number, row, ("image", "question", "reasoning"))
    if table := hub.table(folder, None, ("question", "answer"), ("img_name", "image")):
        for path in table.files:
            rows = hub.Table([path], table.wanted)
            for number, row in enumerate(rows, 1):
                image = row["image"]
                named = row["img_name"] or (image.get("path") if isinstance(image, dict) else image)
                row["img_name"] = named if isinstance(named, str) else ""
                yield _explanation(folder, path, number, row, ("img_name", "question", "answer"))


def _explanation(folder: Path, path: Path, number: int, row: dict, keys: tuple[str, str, str]) -> Explanation:
    wrong = [key for key in keys if not isinstance(row.get(key), str | None) or key not in row]
    if wrong:
        raise UserError(
            f"{path}, row {number}",
            f"no text under {', '.join(wrong)}",
            f"rows with {', '.join(keys)}",
            "convert the file to the form described in rarl/data/adapters/silvar_med.py, or move it out of the folder",
        )
    image, question, text = (fold(row[key]) for key in keys)
    return Explanation(path.relative_to(folder).as_posix(), number, image, question, text)


def _key(image: str, question: str) -> tuple[str, str]:
    """Return the image's name without its copy's number, and the normalized question."""
    path = Path(image.replace("\\", "/"))
    copy = _COPY.match(path.stem)
    name = path.parent.name if path.stem == "source" else copy.group(1) if copy else ""
    return name, normalise(question)
