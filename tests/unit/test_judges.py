"""The lexical and truth judges, and the stage; the semantic judge is in tests/tiny/test_bertscore.py."""

import json
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from rarl.answers.completion import read_completion
from rarl.answers.sentences import states
from rarl.judges import judge_of, semantic, truth
from rarl.judges.lexical import recalled
from rarl.judges.verdicts import paired
from rarl.params import Judge
from rarl.records import Prediction, Sample, Verdict, read_records, write_records
from stages.judge import main


def a_sample(answer="Nodule", kind="open", **fields) -> Sample:
    base = {
        "id": "x/test/1", "dataset": "x", "split": "test", "image": "1.png", "image_sha256": "ab",
        "question": "What is seen?", "answers": answer if isinstance(answer, list) else [answer],
    }  # fmt: skip
    return Sample(**{**base, "kind": kind, **fields})


def a_prediction(completion: str, **fields) -> Prediction:
    think, answer = read_completion(completion)
    return Prediction(**{"id": "x/test/1", "completion": completion, "think": think, "answer": answer, **fields})


def rate(kind: str, sample: Sample, prediction: Prediction, truth_file=None) -> Verdict:
    settings = Judge(kind=kind)
    [verdict] = judge_of(kind)([sample], [prediction], settings, encoder=None, truth_file=truth_file)
    assert verdict.id == sample.id and verdict.evaluation
    return verdict


# The lexical judge ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The picture shows pneumonia in the left lung.", "Pneumonia", True),
        ("Pulmonary mass", "Mass", True),
        ("mass", "Pulmonary Mass", False),
        ("There is a tumor and brain edema.", "Brain Edema, Tumor", True),
        ("brain tumor, tumor", "Tumor, Brain Tumor", True),
        ("No pneumonia", "Pneumonia", False),
        ("without pneumonia", "Pneumonia", False),
        ("The lung is not normal", "Normal", False),
        ("abnormal", "Normal", False),
        ("Brain non-enhancing tumor", "enhancing tumor", False),
        ("pneumonia or effusion", "Pneumonia", False),
        ("pneumonia, effusion, mass", "Pneumonia", False),
        ("pneumonia and effusion", "Pneumonia", False),
        ("It is not seen here", "Not seen", True),
        ("I was asked about this patient and would say today that it may be a mass", "Mass", False),
        ("", "Mass", False),
        ("mass", "", False),
    ],
)
def test_what_says_a_reference(answer, reference, right):
    assert states(answer, reference) is right


GOLD = [
    a_sample("Yes", "yes_no"),
    a_sample("no", "yes_no"),
    a_sample("(B)", "choice", choices=["Heart", "Lung"]),
    a_sample("Lung", "choice"),
    a_sample("3", "number"),
    a_sample("None"),
    a_sample("Brain Edema, Brain Tumor"),
    a_sample(["aml (angiomyolipoma)", "aml", "angiomyolipoma"]),
    a_sample("Nodule", reasoning="A small round spot in the left lung. No effusion is seen."),
]


@pytest.mark.parametrize("sample", GOLD, ids=lambda sample: sample.answers[0])
def test_lexical_gold_in_full_marks_out(sample):
    for answer in sample.answers:
        completion = f"<think>{sample.reasoning or 'So.'}</think> <answer>{answer}</answer>"
        verdict = rate("lexical", sample, a_prediction(completion))
        assert verdict.prediction_score == 1
        assert verdict.reasoning_score == (1 if sample.reasoning else None)
        assert verdict.unscored is None


@pytest.mark.parametrize("kind", ["lexical", "truth"])
def test_whose_fault_it_is(kind, tmp_path):
    sample = a_sample("Yes", "yes_no", reasoning="A spot.")
    truth_file = write_truth(tmp_path, sample, [], {"yes": True})
    whole = "<think>A spot.</think> <answer>Yes</answer>"
    assert rate(kind, sample, a_prediction(whole), truth_file).prediction_score == 1
    assert rate(kind, sample, a_prediction(""), truth_file).prediction_score == 0
    assert rate(kind, sample, a_prediction("<think>Hm"), truth_file).prediction_score == 0
    cut = rate(kind, sample, a_prediction(whole, truncated=True), truth_file)
    assert cut.prediction_score == 0 and cut.unscored is None
    lost = rate(kind, sample, a_prediction("", error="1.png: cannot be read"), truth_file)
    assert (lost.prediction_score, lost.reasoning_score) == (None, None)
    assert lost.unscored == "1.png: cannot be read"


def test_a_lexical_verdict_on_a_wrong_answer_says_why():
    verdict = rate("lexical", a_sample("Nodule"), a_prediction("<answer>Mass</answer>"))
    assert verdict.prediction_score == 0
    assert "'Mass' is not the reference 'Nodule'" in verdict.evaluation


def test_reasoning_recall_minds_negation_and_side():
    reference = "There is a dark spot in the left lung, so a nodule is seen."
    assert recalled(reference, "The left lung has dark spots. This is a nodule.") == 1.0
    assert recalled(reference, "The left lung has a dark spot. This is not a nodule.") == 0.8
    assert recalled(reference, "The right lung has a dark spot. This is a nodule.") == 0.8
    assert recalled(reference, "") == 0.0
    assert recalled("This is an image.", "This is an image.") == 0.0


# The truth judge ------------------------------------------------------------------------------------

NODULE = {"name": "Nodule", "organ": "lung", "side": "left", "level": "upper"}
TUMOR = {"name": "Brain Tumor", "organ": "brain", "side": "left", "level": "upper"}
EDEMA = {"name": "Brain Edema", "organ": "brain", "side": "left", "level": "upper"}
LIVER = {"name": "Liver Cancer", "organ": "liver", "side": "left", "level": "upper"}
KIDNEY = {"name": "Kidney Cancer", "organ": "kidney", "side": "left", "level": ""}
DISEASES = {
    "Nodule": "lung", "Pneumonia": "lung", "Cardiomegaly": "heart", "Brain Tumor": "brain",
    "Brain Edema": "brain", "Liver Cancer": "liver", "Kidney Cancer": "kidney",
}  # fmt: skip


def write_truth(folder, sample, findings, expect):
    """A truth file with the line for one sample, and one for each other disease that may be drawn."""
    path = folder / "truth.jsonl"
    others = [{"name": n, "organ": o, "side": "", "level": ""} for n, o in DISEASES.items()]
    lines = [
        {"image_sha256": "other", "question": "?", "modality": "xray", "findings": others,
         "expect": {"yes": True}},
        {"image_sha256": sample.image_sha256, "question": sample.question, "modality": "xray",
         "findings": findings, "expect": expect},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("answer", "findings", "expect", "right"),
    [
        ("Yes", [], {"yes": True}, 1),
        ("yes it is", [], {"yes": True}, 1),
        ("No, it is not.", [], {"yes": False}, 1),
        ("The answer is no.", [], {"yes": False}, 1),
        ("yes and no", [], {"yes": True}, 0),
        ("Yes, no", [], {"yes": True}, 0),
        ("No abnormality", [], {"yes": False}, 0),
        ("normal", [], {"yes": False}, 0),
        ("None", [], {"yes": False}, 0),
        ("Lung", [NODULE], {"any_of": ["Lung"]}, 1),
        ("the lung is abnormal", [NODULE], {"any_of": ["Lung"]}, 1),
        ("heart and lung", [NODULE], {"any_of": ["Lung"]}, 0),
        ("not the lung", [NODULE], {"any_of": ["Lung"]}, 0),
        ("(B) 3", [], {"any_of": ["3", "(B)", "B", "(B) 3"]}, 1),
        ("(A) 3", [], {"any_of": ["3", "(B)", "B", "(B) 3"]}, 0),
        ("B", [], {"any_of": ["3", "(B)", "B", "(B) 3"]}, 1),
        ("A. 3", [], {"any_of": ["3", "(B)", "B", "(B) 3"]}, 0),
        ("13", [], {"any_of": ["3"]}, 0),
        ("X-ray.", [], {"any_of": ["X-ray", "Xray"]}, 1),
        ("Nodule", [NODULE], {"all_of": ["Nodule"]}, 1),
        ("The picture shows nodules in the lung.", [NODULE], {"all_of": ["Nodule"]}, 1),
        ("No nodule", [NODULE], {"all_of": ["Nodule"]}, 0),
        ("Nodule, pneumonia", [NODULE], {"all_of": ["Nodule"]}, 0),
        ("pneumonia", [NODULE], {"all_of": ["Nodule"]}, 0),
        ("brain edema and brain tumor", [TUMOR, EDEMA], {"all_of": ["Brain Tumor", "Brain Edema"]}, 1),
        ("edema", [TUMOR, EDEMA], {"all_of": ["Brain Tumor", "Brain Edema"]}, 0),
        ("cancer of the liver", [LIVER], {"all_of": ["Liver Cancer"]}, 1),
        ("cancer", [LIVER], {"all_of": ["Liver Cancer"]}, 0),
        ("kidney cancer", [LIVER], {"all_of": ["Liver Cancer"]}, 0),
        ("an enlarged heart", [], {"all_of": ["Cardiomegaly"]}, 1),
        ("None", [], {"all_of": []}, 1),
        ("There is no disease.", [], {"all_of": []}, 1),
        ("The image is normal", [], {"all_of": []}, 1),
        ("The image is not normal", [], {"all_of": []}, 0),
        ("Nodule", [], {"all_of": []}, 0),
        ("potato", [], {"all_of": []}, 0),
    ],
)  # fmt: skip
def test_truth_of_answers(answer, findings, expect, right, tmp_path):
    sample = a_sample("irrelevant to this judge")
    truth_file = write_truth(tmp_path, sample, findings, expect)
    completion = f"<think>Hm.</think>\n<answer>{answer}</answer>"
    assert rate("truth", sample, a_prediction(completion), truth_file).prediction_score == right


@pytest.mark.parametrize(
    ("think", "findings", "sound"),
    [
        ("A small round spot in the left lung: this is a nodule.", [NODULE], 1),
        ("This is a nodule, so pneumonia is not seen.", [NODULE], 1),
        ("No nodule is seen.", [NODULE], 0),
        ("This is a nodule and pneumonia.", [NODULE], 0),
        ("There is a bright spot.", [NODULE], 0),
        ("The patient has a brain tumor. There is also edema.", [TUMOR, EDEMA], 1),
        ("The patient has a brain tumor.", [TUMOR, EDEMA], 0),
        ("A dark spot means liver cancer.", [KIDNEY], 0),
        ("There is no spot, and the heart is not large.", [], 1),
        ("The lung is clear.", [], 1),
        ("There is no nodule.", [], 0),
        ("No spot, but the lung is not normal.", [], 0),
        ("The lung is clear. This is pneumonia.", [], 0),
        ("", [], 0),
    ],
)  # fmt: skip
def test_truth_of_reasoning(think, findings, sound, tmp_path):
    sample = a_sample("Yes", "yes_no", reasoning="Somebody wrote this.")
    truth_file = write_truth(tmp_path, sample, findings, {"yes": True})
    prediction = a_prediction(f"<think>{think}</think> <answer>Yes</answer>")
    assert rate("truth", sample, prediction, truth_file).reasoning_score == sound


def test_truth_gold_in_full_marks_out_on_drawn_questions(tmp_path):
    """Each question that the phantoms can ask, with its own answer and reasoning."""
    np = pytest.importorskip("numpy")
    from rarl.phantom import medical, questions

    rng = np.random.default_rng(3)
    samples, predictions, lines = [], [], []
    for number in range(90):
        modality = ("xray", "mri", "ct")[number % 3]
        findings = medical.choose_findings(rng, modality) if number % 2 else []
        scene = medical.Scene(None, modality, findings)
        for asked in questions.abnormality_questions(rng, scene, 2):
            identity = f"x/test/{len(samples)}"
            text = questions.reasoning(rng, scene, asked)
            sample = a_sample(asked.answer, id=identity, image_sha256=str(number), question=asked.text, reasoning=text)
            samples.append(sample)
            completion = f"<think>{text}</think> <answer>{asked.answer}</answer>"
            predictions.append(a_prediction(completion, id=identity))
            lines.append(
                {"image_sha256": str(number), "question": asked.text, "modality": modality,
                 "findings": [vars(finding) for finding in findings], "expect": asked.expect}
            )  # fmt: skip
    path = tmp_path / "truth.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for verdict in truth.judge(samples, predictions, None, truth_file=path):
        assert (verdict.prediction_score, verdict.reasoning_score) == (1, 1), verdict


def test_truth_is_unscored_where_nothing_is_known(tmp_path):
    truth_file = write_truth(tmp_path, a_sample(), [], {"yes": True})
    verdict = rate("truth", a_sample(image_sha256="real"), a_prediction("Yes"), truth_file)
    assert verdict.unscored == "no phantom known for this image and question"
    assert (verdict.prediction_score, verdict.reasoning_score) == (None, None)


def test_truth_names_a_broken_line(tmp_path):
    path = write_truth(tmp_path, a_sample(), [], {"maybe": True})
    with pytest.raises(Exception, match="line 2"):
        rate("truth", a_sample(), a_prediction("Yes"), path)
    with pytest.raises(Exception, match="no such file"):
        rate("truth", a_sample(), a_prediction("Yes"), tmp_path / "none.jsonl")


def test_the_two_readers_of_completions_agree():
    """`truth` reads completions by itself; on random heaps of tags both must find the same answer."""
    rng = random.Random(5)
    parts = ["<think>", "</think>", "<answer>", "</answer>", " yes ", " no ", " a spot "]
    differing = []
    for _ in range(3000):
        completion = "".join(rng.choices(parts, k=rng.randint(0, 7)))
        ours = " ".join(read_completion(completion)[1].split())
        theirs = " ".join(truth.split_completion(completion)[1].split())
        if ours != theirs and "<think>" not in completion:
            differing.append((completion, ours, theirs))
    assert not differing


# The stage ------------------------------------------------------------------------------------------

PARAMS = """
data:
  root: data
grpo:
  prompts: [reasoning]
  rewards: {format: 1.0}
rarl:
  prompts: [reasoning]
  rewards: {format: 1.0}
models: [base]
benchmarks: [BENCHMARKS]
modes: [reasoning, blank]
mode:
  reasoning: {prompt: reasoning}
  blank: {prompt: reasoning, image: blank, own_test_only: true}
judges: [lexical]
judge:
  lexical: {kind: lexical}
"""


def a_project(folder, sets=("silvar_med", "slake", "vqa_rad")):
    (folder / "params.yaml").write_text(PARAMS.replace("BENCHMARKS", ", ".join(sets[1:])), encoding="utf-8")
    for test_set in sets:
        samples = [a_sample("Yes", "yes_no", id=f"{test_set}/test/{i}") for i in range(3)]
        own = test_set == "silvar_med"
        name = "curated/test.jsonl" if own else f"benchmarks/{test_set}.jsonl"
        write_records(folder / "data" / name, samples)
        for mode in ("reasoning", "blank") if own else ("reasoning",):
            answers = ("Yes", "No", "") if mode == "reasoning" else ("No", "No", "No")
            predictions = [
                a_prediction(f"<answer>{answer}</answer>", id=sample.id) for sample, answer in zip(samples, answers)
            ]
            write_records(folder / f"data/predictions/base/{mode}/{test_set}.jsonl", predictions)


def run(*arguments):
    return CliRunner().invoke(main, ["--model", "base", *arguments])


def test_the_stage_judges_each_mode_and_set_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path, ("silvar_med", "slake"))
    first = run()
    assert first.exit_code == 0, first.output
    assert "reasoning: 6 verdicts in 2 sets (0 from the cache), 2 right, 4 wrong" in first.output
    assert "blank: 3 verdicts in 1 sets (0 from the cache), 0 right, 3 wrong" in first.output
    path = tmp_path / "data/verdicts/base/lexical/reasoning/silvar_med.jsonl"
    assert [v.prediction_score for v in read_records(path, Verdict)] == [1, 0, 0]
    before = path.read_bytes()

    a_project(tmp_path)  # one more benchmark
    second = run()
    assert "reasoning: 9 verdicts in 3 sets (2 from the cache)" in second.output
    assert "blank: 3 verdicts in 1 sets (1 from the cache)" in second.output
    assert path.read_bytes() == before

    settings = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    settings = settings.replace("{kind: lexical}", "{kind: lexical, reasoning_threshold: 0.5}")
    (tmp_path / "params.yaml").write_text(settings, encoding="utf-8")
    assert "3 sets (0 from the cache)" in run().output

    changed = tmp_path / "data/predictions/base/reasoning/slake.jsonl"
    predictions = read_records(changed, Prediction)
    write_records(changed, [a_prediction("No", id=p.id) for p in predictions])
    assert "3 sets (2 from the cache)" in run().output

    monkeypatch.setattr("rarl.judges.verdicts.code", lambda: {"rarl/answers/sentences.py": "changed"})
    assert "3 sets (0 from the cache)" in run().output


def test_a_changed_judge_leaves_the_verdicts_of_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path)
    settings = tmp_path / "params.yaml"
    text = settings.read_text(encoding="utf-8").replace("judges: [lexical]", "judges: [lexical, other]")
    settings.write_text(f"{text}  other: {{kind: lexical, reasoning_threshold: 0.5}}\n", encoding="utf-8")
    assert run().output.count("(0 from the cache)") == 4
    settings.write_text(settings.read_text(encoding="utf-8").replace("0.5}", "0.6}"), encoding="utf-8")
    lexical, other = run().output.split("judge other", 1)
    assert "(3 from the cache)" in lexical and "(1 from the cache)" in lexical
    assert other.count("(0 from the cache)") == 2


def test_one_stage_of_the_semantic_judge_judges_all_models_that_have_predictions(tmp_path, monkeypatch):
    """The encoder is loaded once; what another model lacks is its own stage's error."""
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path)
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8").replace("[base]", "[base, sft, grpo, rarl]")
    text = text.replace("lexical", "semantic")
    text = text.replace("{kind: semantic}", "{kind: semantic, threshold: 0.6, reasoning_threshold: 0.8}")
    text += "report: {main_judge: semantic}\n"
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    for model in ("sft", "grpo"):
        shutil.copytree("data/predictions/base", f"data/predictions/{model}")
    changed = Path("data/predictions/sft/reasoning/slake.jsonl")
    write_records(changed, [a_prediction("No", id=p.id) for p in read_records(changed, Prediction)])
    cut = Path("data/predictions/grpo/reasoning/slake.jsonl")
    write_records(cut, read_records(cut, Prediction)[1:])
    loaded = []
    monkeypatch.setattr(semantic, "load_encoder", loaded.append)

    def run(model):
        return CliRunner().invoke(main, ["--model", model])

    assert "3 sets (0 from the cache), 3 right" in run("base").output and loaded == ["embedded"]
    assert "3 sets (3 from the cache), 2 right" in run("sft").output and loaded == ["embedded"]
    assert "grpo/reasoning/slake.jsonl" in run("grpo").output
    assert "rarl/reasoning/silvar_med.jsonl" in run("rarl").output
    assert not Path("data/verdicts/grpo/semantic/reasoning/slake.jsonl").exists()


def test_the_stage_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_project(tmp_path)
    (tmp_path / "data/predictions/base/reasoning/slake.jsonl").unlink()
    gone = run()
    assert gone.exit_code == 1 and "slake.jsonl" in gone.output and "Traceback" not in gone.output


def test_samples_and_predictions_must_pair_up():
    samples = [a_sample(id=i) for i in "abc"]
    predictions = [a_prediction("Yes", id=i) for i in "cab"]
    assert [sample.id for sample in paired(samples, predictions, "s", "p")] == ["c", "a", "b"]
    with pytest.raises(Exception, match=r"1 missing \(b\)"):
        paired(samples, [predictions[0], predictions[1]], "s", "p")
    with pytest.raises(Exception, match=r"1 twice \(c\)"):
        paired(samples, [*predictions, predictions[0]], "s", "p")
    with pytest.raises(Exception, match=r"1 without a sample \(d\)"):
        paired(samples, [*predictions, a_prediction("Yes", id="d")], "s", "p")
