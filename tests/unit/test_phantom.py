"""The drawn releases: counts, truth, texts, and whether the findings can be seen."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from rarl.data.adapters import load_adapter, silvar_med
from rarl.data.release import Images, read
from rarl.params import Phantom
from rarl.phantom import medical
from rarl.phantom.questions import abnormality_questions, reasoning
from rarl.phantom.releases import SPLITS, write_releases
from rarl.phantom.words import DISEASES
from rarl.registry import BENCHMARKS

DRAWN = [name for name in BENCHMARKS if name != "own"]
PARAMS = Phantom(benchmark_rows=60, image_size=56)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    return root, write_releases(root, PARAMS)


@pytest.fixture(scope="module")
def own(drawn):
    releases = silvar_med.training(drawn[0], None, Images(drawn[0]))
    return {release.split: release for release in releases.values()}


def all_samples(root, own):
    samples = [sample for release in own.values() for sample in release.samples]
    for name in DRAWN:
        release = read(load_adapter(name), root, "test")
        assert not release.refused and not release.missing_images
        samples += release.samples
    return samples


def test_the_own_set_has_the_papers_counts(own):
    seen = []
    for split, plan in SPLITS.items():
        samples = own[split].samples
        modality = Counter(sample.modality for sample in samples)
        assert modality == {name: rows for name, (_, rows) in plan.items()}
        images = {sample.image_sha256 for sample in samples}
        assert len(images) == sum(images for images, _ in plan.values())
        assert not any(images & others for others in seen)
        seen.append(images)
        per_image = Counter(sample.image for sample in samples)
        assert max(per_image.values()) <= 5
        assert len({(sample.image, sample.question) for sample in samples}) == len(samples)
    annotated = {split: sum(s.reasoning is not None for s in own[split].samples) for split in SPLITS}
    assert annotated == {"train": 358, "validate": 132, "test": 150}


def test_the_mix_is_slakes_and_the_wording_gives_little_away(own):
    samples = own["train"].samples
    closed = [sample for sample in samples if sample.kind == "yes_no"]
    assert 0.6 < len(closed) / len(samples) < 0.72
    assert 0.5 < sum(sample.answers[0] == "Yes" for sample in closed) / len(closed) < 0.64
    by_question = defaultdict(list)
    for sample in closed:
        by_question[sample.question].append(sample.answers[0] == "Yes")
    for question, answers in by_question.items():
        if len(answers) >= 40:
            assert 0.25 < np.mean(answers) < 0.78, question


def test_benchmarks_have_the_rows_that_were_asked_for(drawn):
    for name in DRAWN:
        release = read(load_adapter(name), drawn[0], "test")
        assert release.rows == len(release.samples) == PARAMS.benchmark_rows + (150 if name == "slake" else 0)
    assert read(load_adapter("slake"), drawn[0], "test").notes["other_language_rows"] > 0
    assert read(load_adapter("vqa_rad"), drawn[0], "train").rows > 0
    notes = read(load_adapter("path_vqa"), drawn[0], "test").notes
    assert notes["rows_with_conflicting_answers"] > 0


def test_every_row_has_a_truth_and_its_answer_agrees(drawn, own):
    root, written = drawn
    truth = {(line["image_sha256"], line["question"]): line for line in written.truth}
    assert len(truth) == len(written.truth)
    for sample in all_samples(root, own):
        line = truth[sample.image_sha256, sample.question]
        expect, answer = line["expect"], sample.answers[0].lower()
        if "yes" in expect:
            assert answer == ("yes" if expect["yes"] else "no"), sample
        elif "all_of" in expect:
            named = set() if answer == "none" else set(answer.split(", "))
            assert named == {name.lower() for name in expect["all_of"]}, sample
        else:
            assert answer in [text.lower() for text in expect["any_of"]], sample
        assert line["modality"] == sample.modality or sample.modality == "unknown"


def test_truth_follows_the_findings(drawn):
    for line in drawn[1].truth:
        names = {finding["name"] for finding in line["findings"]}
        if line["question"] == "What diseases are included in the picture?":
            assert set(line["expect"]["all_of"]) == names
        elif line["question"] == "Are there abnormalities in this image?":
            assert line["expect"]["yes"] is bool(names)
        elif line["question"] == "Is the lung healthy?":
            assert line["expect"]["yes"] is not any(f["organ"] == "lung" for f in line["findings"])
        elif line["question"].startswith("Can "):
            words = line["question"].split()
            place = {(f["name"].lower(), f["level"], f["side"]) for f in line["findings"]}
            assert line["expect"]["yes"] is ((words[1], words[6], words[7]) in place)


@pytest.mark.parametrize("modality", list(DISEASES))
def test_reasoning_names_what_was_drawn_and_nothing_else(modality):
    rng = np.random.default_rng(5)
    for number in range(60):
        findings = medical.choose_findings(rng, modality) if number % 2 else []
        scene = medical.draw(rng, modality, findings, medical.Style(56, 56))
        for asked in abnormality_questions(rng, scene, 3):
            text = reasoning(rng, scene, asked)
            assert 12 <= len(text.split()) <= 42, text
            assert text.endswith(".") and "  " not in text
            # The last clause may deny the disease that was asked about.
            said = {name for name in DISEASES[modality] if name.lower() in text.lower().replace(asked.conclusion, "")}
            drawn_names = {finding.name for finding in findings}
            assert drawn_names <= said or not findings
            if not asked.text.startswith(("Can ", "Does the patient")):
                assert said == drawn_names, text


def test_equal_seeds_draw_equal_bytes():
    style = medical.Style()
    for modality in DISEASES:
        first, second, other = (
            medical.draw(rng, modality, medical.choose_findings(rng, modality), style)
            for rng in map(np.random.default_rng, (3, 3, 4))
        )
        assert first.findings == second.findings
        assert np.array_equal(first.pixels, second.pixels) and not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("modality", list(DISEASES))
def test_findings_can_be_seen(modality):
    """A linear classifier on 28 x 28 pixels tells normal from abnormal in fresh drawings."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def images(seed, count):
        rng = np.random.default_rng(seed)
        pixels, labels = [], []
        for number in range(count):
            findings = medical.choose_findings(rng, modality) if number % 2 else []
            scene = medical.draw(rng, modality, findings, medical.Style())
            small = Image.fromarray(scene.pixels).resize((28, 28), Image.BOX)
            pixels.append(np.asarray(small, float).ravel() / 255)
            labels.append(bool(findings))
        return np.array(pixels), labels

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    assert probe.fit(*images(1, 150)).score(*images(2, 100)) > 0.8


def test_the_stage_writes_both_outputs_and_a_table(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from stages.phantom import main

    monkeypatch.chdir(tmp_path)
    blocks = "phantom:\n  image_size: 56\n  benchmark_rows: 12\n  annotated_share: 0.0\n"
    needed = (
        "grpo:\n  prompts:\n  - open\n  rewards: {}\nrarl:\n  prompts:\n  - open\n  rewards: {}\nmodels:\n- base\n"
        "modes:\n- direct\nmode:\n  direct:\n    prompt: direct\njudges:\n- lexical\n"
        "judge:\n  lexical:\n    kind: lexical\n"
    )
    (tmp_path / "params.yaml").write_text(blocks + needed, encoding="utf-8")
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    assert "train: Abnormality rows" in result.output and "716" in result.output
    lines = (tmp_path / "data/phantom_truth.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(
        {"image_sha256", "question", "modality", "findings", "expect"} == set(json.loads(line)) for line in lines
    )
    root = tmp_path / "data/phantom"
    assert all(sample.reasoning is None for sample in silvar_med.training(root, None, Images(root))["train"].samples)
    assert not (tmp_path / "data/phantom.partial").exists()
