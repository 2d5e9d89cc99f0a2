"""The complete question files of the real releases, where RARL_DATA_ROOT names their folder.

Most of their images may be absent: every row is a sample, refused, or missing its image.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rarl.answers.matching import matches
from rarl.data import release
from rarl.data.adapters import cv_bench, path_vqa, silvar_med, slake, vqa_med, vqa_rad
from rarl.data.release import Images, find_release

ROOT = Path(os.environ.get("RARL_DATA_ROOT", ""))
pytestmark = pytest.mark.skipif(not os.environ.get("RARL_DATA_ROOT"), reason="RARL_DATA_ROOT is not set")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    kept = release.KEPT
    release.KEPT = tmp_path_factory.mktemp("kept") / "pictures.jsonl"
    yield Images(ROOT)
    release.KEPT = kept


def read(adapter, split, images):
    """Read a split, with every row accounted for, as many as published, and every reference accepted."""
    if find_release(ROOT, adapter.FOLDERS) is None:
        pytest.skip(f"no {adapter.FOLDERS[0]} release below RARL_DATA_ROOT")
    try:
        found = release.read(adapter, ROOT, split, images=images)
    except release.MissingRelease:
        pytest.skip(f"no {split} split of {adapter.FOLDERS[0]} below RARL_DATA_ROOT")
    accounted(found, adapter.DECLARED)
    return found


def accounted(found, declared):
    expected = declared.counts[found.form][found.split]
    assert len(found.samples) + len(found.refused) + len(found.missing_images) == found.rows
    assert found.rows == expected["rows"]
    measured = {
        "images": len({row.image for row in found.seen}),
        "yes_no": sum(row.kind == "yes_no" for row in found.seen),
        **Counter(row.modality for row in found.seen),
    }
    for name in expected.keys() & measured.keys():
        assert measured[name] == expected[name], name
    assert len({sample.id for sample in found.samples}) == len(found.samples)
    choices = {sample.source_id: sample.choices for sample in found.samples}
    for row in found.seen:
        for answer in row.answers:
            assert matches(answer, row.answers, row.kind, choices.get(row.source_id, [])), row


def test_the_papers_training_set_is_rebuilt_from_slake(images):
    if find_release(ROOT, slake.FOLDERS) is None:
        pytest.skip("no slake release below RARL_DATA_ROOT")
    releases = silvar_med.training(ROOT, None, images)
    for found in releases.values():
        accounted(found, silvar_med.DECLARED)
        assert not found.refused and {row.category for row in found.seen} == {"Abnormality"}
    train, dev, test = ({row.image for row in found.seen} for found in releases.values())
    assert not train & dev | train & test | dev & test


@pytest.mark.parametrize(
    ("split", "rows", "english", "refused"),
    [("train", 9835, 4919, ["1622"]), ("validate", 2099, 1053, []), ("test", 2094, 1061, [])],
)
def test_slake(split, rows, english, refused, images):
    found = read(slake, split, images)
    assert found.rows == english and found.rows + found.notes["other_language_rows"] == rows
    assert [row for row, _ in found.refused] == refused


@pytest.mark.parametrize(("split", "rows", "named"), [("train", 1797, 313), ("test", 451, 203)])
def test_vqa_rad(split, rows, named, images):
    found = read(vqa_rad, split, images)
    assert found.rows == rows and not found.refused and len({r.image for r in found.seen}) == named
    assert found.notes["answers_not_text"] == (5 if split == "train" else 0)


def test_vqa_rads_published_split_leaks(images):
    train = {row.image for row in read(vqa_rad, "train", images).seen}
    test = read(vqa_rad, "test", images).seen
    assert len({row.image for row in test if row.image in train}) == 202
    assert sum(row.image in train for row in test) == 446


@pytest.mark.parametrize(("split", "rows"), [("train", 12792), ("validate", 2000), ("test", 500)])
def test_vqa_med(split, rows, images):
    found = read(vqa_med, split, images)
    assert found.rows == rows and not found.refused
    if split == "test":
        assert found.notes["several_answers"] == 12 and found.notes["optional_parts"] == 20
        categories = Counter(row.category for row in found.seen)
        assert categories == dict.fromkeys(("modality", "plane", "organ", "abnormality"), 125)


def test_path_vqa(images):
    found = read(path_vqa, "test", images)
    assert found.rows == 6761 and not found.refused
    # The hub form leaves out 42 of these rows, and has 951 rows in these groups.
    assert found.notes["rows_with_conflicting_answers"] == 952
    assert found.notes["groups_with_conflicting_answers"] == 236
    assert found.notes["groups_with_yes_and_no"] == 3


def test_cv_benchs_export(images):
    found = read(cv_bench, "test", images)
    if found.form != cv_bench.EXPORT:
        pytest.skip("the data set's own files are there")
    assert found.rows == 122 and not found.refused
    tasks = {"Count": 88, "Relation": 8, "Depth": 15, "Distance": 11}
    assert Counter(row.category for row in found.seen) == tasks
    path = next(find_release(ROOT, cv_bench.FOLDERS).glob("*.json"))
    golds = [row["answer"] for row in json.loads(path.read_text(encoding="utf-8"))]
    assert [row.answers[1] for row in found.seen] == golds
    assert all(row.question.splitlines()[-1].startswith("(") for row in found.seen)
