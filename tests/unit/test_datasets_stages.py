"""The stages `curate` and `benchmark`, run on a small made-up release in a temporary folder."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from stages.benchmark import main as benchmark
from stages.curate import main as curate
from stages.records import Sample, read_json, read_records

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and a SLAKE release of two pictures a split."""
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path)
    for index, split in enumerate(("train", "validate", "test")):
        rows = []
        for k in range(2):
            name = f"xmlab{2 * index + k}/source.jpg"
            draw(tmp_path / "releases/slake/imgs" / name, 2 * index + k)
            for qid, content in (
                (10 * index + 2 * k, "Abnormality"),
                (10 * index + 2 * k + 1, "Plane"),
            ):
                rows.append(
                    {"img_name": name, "question": "Is the crop healthy?", "answer": "Yes", "q_lang": "en",
                     "modality": ("MRI", "X-Ray")[k], "content_type": content, "qid": qid}
                )  # fmt: skip
        (tmp_path / f"releases/slake/{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def set_params(folder, missing="skip", root="releases"):
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\n  root: .*", f"\n  root: {root}", text)
    text = re.sub(r"\n  missing: .*", f"\n  missing: {missing}", text)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def draw(path, number):
    path.parent.mkdir(parents=True)
    picture = Image.new("L", (64, 64))
    for k in range(8):  # bars of different height: no two pictures look alike
        height = (number * 37 + k * k * (number + 3) * 11) % 64
        picture.paste(255, (8 * k, 0, 8 * k + 8, height))
    picture.save(path)


def run(command, *arguments):
    return CliRunner().invoke(command, arguments)


def test_curate_writes_splits_counts_and_audit(project):
    result = run(curate)
    assert result.exit_code == 0, result.output
    assert "0 of 2 train rows are annotated" in result.output and "idle" in result.output
    metrics = read_json("metrics/curate.json")
    for split in ("train", "dev", "test"):
        samples = read_records(f"data/curated/{split}.jsonl", Sample)
        assert len(samples) == metrics[split]["total"] == 2 and metrics[split]["yes_no"] == 2
        assert (metrics[split]["mri"], metrics[split]["xray"], metrics[split]["annotated"]) == (
            1,
            1,
            0,
        )
        assert {sample.category for sample in samples} == {"Abnormality"}
    assert metrics["audit"]["shared_images"] == 0
    assert metrics["audit"]["training_images_in_benchmarks"] == {"slake": {"images": 0, "rows": 0}}
    before = Path("data/curated/train.jsonl").read_bytes()
    assert run(curate).exit_code == 0
    assert Path("data/curated/train.jsonl").read_bytes() == before


def test_a_training_picture_in_the_test_split_stops_the_run(project):
    source = project / "releases/slake/imgs/xmlab0/source.jpg"
    (project / "releases/slake/imgs/xmlab4/source.jpg").write_bytes(source.read_bytes())
    result = run(curate)
    assert (
        result.exit_code != 0
        and "xmlab0/source.jpg = slake/imgs/xmlab4/source.jpg" in result.output
    )
    assert not Path("data/curated").exists() and not Path("data/curated.partial").exists()


def test_a_near_duplicate_is_reported_only(project):
    Image.open(project / "releases/slake/imgs/xmlab0/source.jpg").save(
        project / "releases/slake/imgs/xmlab4/source.jpg", quality=60
    )
    assert run(curate).exit_code == 0
    assert read_json("metrics/curate.json")["audit"]["near_duplicates"] == 1
    assert (
        "xmlab0/source.jpg,slake/imgs/xmlab4/source.jpg"
        in Path("data/curated/near_duplicates.csv").read_text()
    )


def test_a_training_picture_in_a_benchmark_is_counted(project):
    folder = project / "releases/vqa_rad"
    images = folder / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    (images / "a.jpg").write_bytes((project / "releases/slake/imgs/xmlab0/source.jpg").read_bytes())
    rows = [{"qid": k, "phrase_type": "test_para", "image_name": "a.jpg", "question": "Bent?", "answer": a}
            for k, a in enumerate(["yes", "no"])]  # fmt: skip
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows), encoding="utf-8")
    assert run(curate).exit_code == 0
    shared = read_json("metrics/curate.json")["audit"]["training_images_in_benchmarks"]
    assert shared["vqa_rad"] == {"images": 1, "rows": 2}


def test_missing_images_are_counted_or_stop_the_run(project):
    (project / "releases/slake/imgs/xmlab2/source.jpg").unlink()
    result = run(curate)
    assert result.exit_code == 0 and "1 of 2 rows left out" in result.output
    assert read_json("metrics/curate.json")["dev"]["missing_images"] == 1
    set_params(project, missing="stop")
    result = run(curate)
    assert result.exit_code != 0 and "xmlab2/source.jpg" in result.output


def test_a_missing_training_release_always_stops(project):
    set_params(project, root="nowhere")
    assert "nowhere" in run(curate).output
    Path("empty").mkdir()
    set_params(project, root="empty")
    result = run(curate)
    assert result.exit_code != 0 and "slake/" in result.output and "Traceback" not in result.output


def test_benchmark_reads_slake_and_says_how_much_of_it_is_the_own_test_set(project):
    result = run(benchmark, "--set", "slake")
    assert result.exit_code == 0, result.output
    metrics = read_json("metrics/benchmark/slake.json")
    assert (
        metrics["available"]
        and metrics["read"] == metrics["rows"] == 4
        and metrics["own_test_overlap"] == 2
    )
    assert len(read_records("data/benchmarks/slake.jsonl", Sample)) == 4


def test_a_missing_benchmark_is_said_and_skipped_or_stops(project):
    (project / "releases/cv_bench").mkdir()  # a folder without the annotations is no release either
    for name in ("path_vqa", "cv_bench"):
        result = run(benchmark, "--set", name)
        assert result.exit_code == 0 and "NOT AVAILABLE" in result.output
        assert read_json(f"metrics/benchmark/{name}.json")["available"] is False
        assert read_records(f"data/benchmarks/{name}.jsonl", Sample) == []
    set_params(project, missing="stop")
    result = run(benchmark, "--set", "path_vqa")
    assert result.exit_code != 0 and "path_vqa/" in result.output
