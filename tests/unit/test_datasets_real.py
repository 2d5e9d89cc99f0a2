"""The complete question files of the real releases, where RARL_DATA_ROOT names their folder.

Pictures that are not there are stood in for by small ones, so that every row of a release is read.
"""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from stages.datasets import path_vqa, silvar_med, slake, vqa_med, vqa_rad
from stages.datasets.release import find_release

ROOT = Path(os.environ.get("RARL_DATA_ROOT", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("RARL_DATA_ROOT"), reason="RARL_DATA_ROOT is not set"
)


def complete(adapter, split, tmp_path):
    """Read a copy of the release whose missing pictures are filled in."""
    folder = find_release(ROOT, adapter.FOLDERS)
    if folder is None:
        pytest.skip(f"no {adapter.FOLDERS[0]} release below RARL_DATA_ROOT")
    ignore = shutil.ignore_patterns("*.jpg")
    shutil.copytree(folder, tmp_path / folder.name, ignore=ignore)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    missing = adapter.read(tmp_path, split).missing_images
    for number, image in enumerate(sorted({image for _, image in missing})):
        path = tmp_path / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(path, "BMP")
    release = adapter.read(tmp_path, split)
    assert not release.missing_images
    assert len(release.samples) + len(release.refused) == release.rows
    assert len({sample.id for sample in release.samples}) == len(release.samples)
    return release


@pytest.mark.parametrize(
    ("split", "rows", "modalities", "yes_no", "images"),
    [
        ("train", 716, (162, 122, 432), 467, 304),
        ("validate", 132, (29, 17, 86), 88, 61),
        ("test", 150, (32, 21, 97), 98, 67),
    ],
)
def test_the_papers_training_set_is_rebuilt_from_slake(split, rows, modalities, yes_no, images):
    release = silvar_med.read(ROOT, split)
    assert release.rows == rows == len(release.samples) + len(release.missing_images)
    if not release.missing_images:
        found = [sample.modality for sample in release.samples]
        assert tuple(found.count(name) for name in ("mri", "ct", "xray")) == modalities
        assert sum(sample.kind == "yes_no" for sample in release.samples) == yes_no
        assert len({sample.image_sha256 for sample in release.samples}) == images


@pytest.mark.parametrize(
    ("split", "rows", "refused"),
    [("train", 4919, None), ("validate", 1053, None), ("test", 1061, 0)],
)
def test_slake_english_rows(split, rows, refused):
    release = slake.read(ROOT, split)
    assert release.rows == rows
    assert len(release.samples) + len(release.refused) + len(release.missing_images) == rows
    if refused is not None:
        assert len(release.refused) == refused


def test_vqa_rad(tmp_path):
    release = complete(vqa_rad, "test", tmp_path)
    assert release.rows == 451 and not release.refused
    assert vqa_rad.read(tmp_path, "train").rows == 1797


def test_vqa_med(tmp_path):
    release = complete(vqa_med, "test", tmp_path)
    assert release.rows == 500 and not release.refused
    assert release.notes["several_answers"] == 12 and release.notes["optional_parts"] == 20
    assert sum(sample.kind == "yes_no" for sample in release.samples) == 64
    assert {sample.category for sample in release.samples} == {
        "modality",
        "plane",
        "organ",
        "abnormality",
    }
    assert (
        vqa_med.read(tmp_path, "train").rows == 12792
        and vqa_med.read(tmp_path, "validate").rows == 2000
    )


def test_path_vqa(tmp_path):
    release = complete(path_vqa, "test", tmp_path)
    assert release.rows == 6761 and not release.refused
    # The hub form leaves out 42 of these rows, and has 951 rows in these groups.
    assert release.notes["rows_with_conflicting_answers"] == 952
    assert release.notes["groups_with_conflicting_answers"] == 236
    assert release.notes["groups_with_yes_and_no"] == 3
