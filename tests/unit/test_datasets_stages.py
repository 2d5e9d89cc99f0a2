"""The stages `curate` and `benchmark`, run on a small made-up release in a temporary folder."""

import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from sample_images import draw_bars

from rarl.records import Sample, image_file, read_json, read_records
from stages.benchmark import main as benchmark
from stages.curate import main as curate

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and a SLAKE release of two images a split."""
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path)
    for index, split in enumerate(("train", "validate", "test")):
        rows = []
        for k in range(2):
            name = f"xmlab{2 * index + k}/source.jpg"
            draw_bars(tmp_path / "releases/slake/imgs" / name, 2 * index + k)
            for qid, content in ((10 * index + 2 * k, "Abnormality"), (10 * index + 2 * k + 1, "Plane")):
                rows.append(
                    {"img_name": name, "question": "Is the crop healthy?", "answer": "Yes", "q_lang": "en",
                     "modality": ("MRI", "X-Ray")[k], "content_type": content, "qid": qid}
                )  # fmt: skip
        (tmp_path / f"releases/slake/{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    three = ("train", "validate", "test")
    declare(
        tmp_path,
        slake={split: {"rows": 4, "images": 2} for split in three},
        silvar_med={split: {"rows": 2, "mri": 1, "xray": 1} for split in three},
        vqa_rad={},
    )
    return tmp_path


def set_params(folder, missing="skip", root="releases", **changes):
    """The shipped params.yaml with other data parameters; `train__source` stands for `train.source`."""
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    for key, value in {"data__root": root, "data__missing": missing, **changes}.items():
        block, name = key.split("__")
        text, count = re.subn(rf"(\n{block}:\n(?:  .*\n)*?  {name}: )[^\n#]*", rf"\g<1>{value} ", text)
        assert count == 1, key
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def declare(folder, **sets):
    """What is said of the made-up releases; without it, the published counts are expected."""
    (folder / "releases/declared.json").write_text(json.dumps(sets), encoding="utf-8")


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
        assert (metrics[split]["mri"], metrics[split]["xray"], metrics[split]["annotated"]) == (1, 1, 0)
        assert {sample.category for sample in samples} == {"Abnormality"}
    assert metrics["explanations"]["read"] == 0
    before = Path("data/curated/train.jsonl").read_bytes()
    assert run(curate).exit_code == 0
    assert Path("data/curated/train.jsonl").read_bytes() == before


def test_a_training_image_in_the_test_split_stops_the_run(project):
    source = project / "releases/slake/imgs/xmlab0/source.jpg"
    (project / "releases/slake/imgs/xmlab4/source.jpg").write_bytes(source.read_bytes())
    result = run(curate)
    assert result.exit_code != 0 and "first that of silvar_med/train/0 and silvar_med/test/20" in result.output
    assert not Path("data/curated").exists() and not Path("data/curated.partial").exists()


def test_explanations_are_joined_and_those_without_a_row_are_listed(project):
    rows = [
        {"img_name": name, "question": "Is the crop healthy?", "answer": f"The crop of {name} shines."}
        for name in ("xmlab0.jpg", "xmlab99.jpg")
    ]  # fmt: skip
    (project / "releases/silvar_med").mkdir()
    (project / "releases/silvar_med/rows.json").write_text(json.dumps(rows), encoding="utf-8")
    result = run(curate)
    assert result.exit_code == 0 and "1 explanations have no row" in result.output
    metrics = read_json("metrics/curate.json")
    assert metrics["train"]["annotated"] == 1
    assert metrics["explanations"]["matched_rows"] == metrics["explanations"]["without_a_row"] == 1
    listed = Path("data/curated/unmatched_explanations.csv").read_text(encoding="utf-8")
    assert listed.splitlines()[1] == "rows.json,2,xmlab99.jpg,Is the crop healthy?"


def test_a_release_that_is_not_as_declared_stops_the_run_unless_it_is_to_be_reported(project):
    declare(project, silvar_med={"train": {"rows": 3, "mri": 1}}, slake={"test": {"rows": 5}})
    for command in ((curate,), (benchmark, "--set", "slake")):
        result = run(*command)
        assert result.exit_code != 0 and "rows, declared" in result.output
        assert "declared.json" in result.output and "Traceback" not in result.output
    assert not Path("data/curated").exists() and not Path("data/benchmarks/slake.jsonl").exists()
    set_params(project, data__deviation="report")
    assert "WARNING: not as declared: silvar_med train: 2 rows, declared 3" in run(curate).output
    assert run(benchmark, "--set", "slake").exit_code == 0
    assert read_json("metrics/benchmark/slake.json")["as_declared"] is False


def test_the_published_counts_are_expected_where_nothing_else_is_declared(project):
    (project / "releases/declared.json").unlink()
    result = run(curate)
    assert result.exit_code != 0 and "silvar_med train: 2 rows, declared 716" in result.output


def test_missing_images_are_no_deviation(project):
    (project / "releases/slake/imgs/xmlab2/source.jpg").unlink()
    assert run(curate).exit_code == 0


def put_table(path, images):
    """The hub's form of a release, a row for each image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": {"bytes": data, "path": None}, "question": "Is it bent?", "answer": "no"} for data in images]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_images_in_a_table_become_files_of_the_benchmark_and_old_ones_go(project):
    folder = project / "releases/vqa_rad/data"
    drawn = [(project / f"releases/slake/imgs/xmlab{k}/source.jpg").read_bytes() for k in range(3)]
    put_table(folder / "test-00000-of-00001.parquet", drawn[:2])
    assert run(benchmark, "--set", "vqa_rad").exit_code == 0
    put_table(folder / "test-00000-of-00001.parquet", drawn[1:])
    result = run(benchmark, "--set", "vqa_rad")
    assert result.exit_code == 0, result.output
    samples = read_records("data/benchmarks/vqa_rad.jsonl", Sample)
    files = [image_file("releases", sample.image) for sample in samples]
    assert [file.read_bytes() for file in files] == drawn[1:]
    assert sorted(Path("data/benchmarks/pictures/vqa_rad").glob("*.jpg")) == sorted(files)


def test_images_of_a_benchmark_without_a_table_stay_where_they_are(project):
    run(benchmark, "--set", "slake")
    (note,) = Path("data/benchmarks/pictures/slake").iterdir()
    assert note.read_text().startswith("0 pictures")


def put_own(project, count=12):
    """Your own data: an image and a question for each of `count` patients."""
    folder = project / "releases/own"
    lines = ["image,question,answer,patient"]
    for k in range(count):
        draw_bars(folder / f"scans/{k}/a.png", 40 + k)
        lines.append(f"scans/{k}/a.png,Is the gizzard bent?,{('yes', 'no')[k % 2]},case {k}")
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")


def test_own_rows_are_a_training_source_and_a_benchmark(project):
    put_own(project)
    set_params(project, train__source="own")
    result = run(curate)
    assert result.exit_code == 0, result.output
    metrics = read_json("metrics/curate.json")
    assert sum(metrics[split]["total"] for split in ("train", "dev", "test")) == 12
    assert "explanations" not in metrics
    result = run(benchmark, "--set", "own")
    assert result.exit_code == 0, result.output
    assert len(read_records("data/benchmarks/own.jsonl", Sample)) == 12
    text = "".join(path.read_text() for path in Path("data").rglob("*.jsonl"))
    assert "case 3" not in text and "gizzard" in text


def test_unpacked_images_outlive_a_second_run_and_others_go(project):
    """`curate` replaces its folder as a whole, with the images that its rows name in it."""
    drawn = [(project / f"releases/slake/imgs/xmlab{k}/source.jpg").read_bytes() for k in range(6)]
    for split, images in zip(("train", "val", "test"), (drawn[:2], drawn[2:4], drawn[4:])):
        rows = [
            {"image_bytes": [data], "question": "Is it left or right?", "answers": ["left", "right"],
             "question_type": "obj_rel", "correct_answer": "left"} for data in images
        ]  # fmt: skip
        path = project / f"releases/sat/SAT_{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    declare(project, sat={})
    set_params(project, train__source="sat")
    for _ in range(2):
        result = run(curate)
        assert result.exit_code == 0, result.output
        named = {
            sample.image
            for split in ("train", "dev", "test")
            for sample in read_records(f"data/curated/{split}.jsonl", Sample)
        }
        assert len(named) == 6
        assert named == {path.as_posix() for path in Path("data/curated/pictures").iterdir()}
        Path("data/curated/pictures/left_over.png").touch()
    declare(project, sat={"train": {"rows": 2}})
    for wanted, total in ((1, 1), (5, 2)):
        set_params(project, train__source="sat", train__samples=wanted)
        result = run(curate)
        assert result.exit_code == 0, result.output
        assert read_json("metrics/curate.json")["train"]["total"] == total
        assert ("but there are only 2 train rows" in result.output) == (wanted == 5)


def test_missing_images_are_counted_or_stop_the_run(project):
    (project / "releases/slake/imgs/xmlab2/source.jpg").unlink()
    result = run(curate)
    assert result.exit_code == 0 and "1 of 2 rows left out" in result.output
    assert read_json("metrics/curate.json")["dev"]["missing_images"] == 1
    set_params(project, missing="stop")
    result = run(curate)
    assert result.exit_code != 0 and "1 of 2 rows without their image (first " in result.output


def test_a_missing_training_release_always_stops(project):
    set_params(project, root="nowhere")
    assert "nowhere" in run(curate).output
    Path("empty").mkdir()
    set_params(project, root="empty")
    result = run(curate)
    assert result.exit_code != 0 and "slake/" in result.output and "Traceback" not in result.output


def test_benchmark_reads_slake(project):
    result = run(benchmark, "--set", "slake")
    assert result.exit_code == 0, result.output
    metrics = read_json("metrics/benchmark/slake.json")
    assert metrics["available"] and metrics["as_declared"] and metrics["read"] == metrics["rows"] == 4
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
