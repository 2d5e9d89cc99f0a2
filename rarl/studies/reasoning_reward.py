"""The study of the reasoning reward: measures, sensitivity, guards, and the report (`rarl study reward`)."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from rarl.judges import truth
from rarl.params import Guards, Reward, Rewards
from rarl.phantom.words import ORGAN_OF
from rarl.records import Prediction, Sample, write_records
from rarl.reporting.page import template
from rarl.rewards import guards, reward_functions, terms
from rarl.rewards.reasoning import score_reasoning
from rarl.studies.ranking import RESAMPLES, interval, rate, score_cases
from rarl.studies.reasoning_texts import KINDS, REPEATED, RIGHT, SAME_STYLE, WRONG, Case

#: What `reward.reasoning` can name, without `judge`.
MEASURES = ("bertscore", "terms", "mix")
#: Score of a text on which a judge gave no usable verdict: neither right nor wrong.
UNGRADED = 0.5
#: The same with another weight, and with a lexicon that knows half of the wordings.
VARIANTS = {
    "mix_25": "mix, terms 0.25",
    "mix_75": "mix, terms 0.75",
    "terms_half": "terms, half of the lexicon's other wordings taken away",
}


def study(
    cases: Sequence[Case], scorer, terms_share: float, seed: int, grade: Callable | None = None, judge: str = ""
) -> dict:
    """Return all numbers of the report, as plain JSON.

    `scorer` is a new BERTScorer, so that the time is that of texts not seen before. `terms_share` is the weight of the
    terms in `mix`; `seed` is for the bootstrap and for the thinned lexicon. `grade` (a `rarl.training.judged.Grader`)
    adds the measure `judge`, which `judge` describes.
    """

    def scored(measure: str, share: float = 0.0):
        return score_cases(cases, lambda pairs: score_reasoning(pairs, scorer, measure, share))

    scores, seconds = {}, {}
    for measure in ("bertscore", "terms"):
        started = time.perf_counter()
        scores[measure] = scored(measure)
        seconds[measure] = time.perf_counter() - started
    seconds["mix"] = sum(seconds.values())
    told = [case for case in cases for _ in case.texts]  # in the order of `score_cases`

    def graded(pairs) -> list[float]:
        items = [(case.question, [case.answer], *reversed(pair)) for case, pair in zip(told, pairs, strict=True)]
        grades.extend(grade(items))
        return [UNGRADED if one is None else one for one in grades]

    measures, grades = MEASURES, []
    if grade is not None:
        started = time.perf_counter()
        scores["judge"] = score_cases(cases, graded)
        seconds["judge"] = time.perf_counter() - started
        measures = (*MEASURES, "judge")
    for name, share in (("mix", terms_share), ("mix_25", 0.25), ("mix_75", 0.75)):
        scores[name] = scored("mix", share)
    with thinned_lexicon(seed):
        scores["terms_half"] = scored("terms")

    ratings = {name: rate(values, seed) for name, values in scores.items()}
    gains = {
        name: {key: ratings[name][key] - ratings["bertscore"][key] for key in ratings[name]} for name in measures[1:]
    }
    rated = truth_ratings(cases)
    report = {
        "cases": len(cases),
        "texts": {kind: sum(kind in case.texts for case in cases) for kind in KINDS},
        "terms_share": terms_share,
        **decision({name: ratings[name]["first"] for name in measures}, gains),
        **(
            {"judge": {"is": judge, "texts": len(grades), "usable": len(grades) - grades.count(None)}} if grade else {}
        ),
        "measures": {
            name: {
                **{key: interval(values) for key, values in rating.items()},
                **{f"mean/{k}": round(float(np.nanmean(scores[name][k])), 3) for k in KINDS},
            }
            for name, rating in ratings.items()
        },
        "gain_over_bertscore": {
            name: {key: interval(values) for key, values in gain.items()} for name, gain in gains.items()
        },
        "truth": {"right": round(float(np.nanmean(rated)), 3)}
        | {name: agreement(np.concatenate([scores[name][k] for k in KINDS]), rated) for name in measures},
        "known_words": known_words(cases),
    }
    report["guards"] = guard_table(cases, scorer, report["favoured"], terms_share, grade)
    pairs = sum(len(case.texts) for case in cases)
    report["seconds_per_1000_pairs"] = {name: round(1000 * value / pairs, 2) for name, value in seconds.items()}
    return report


def decision(first: dict[str, np.ndarray], gains: dict[str, dict[str, np.ndarray]]) -> dict:
    """Return the favoured measure, and whether it is clearly better than BERTScore (`rarl study reward`).

    >>> low, high = np.array([0.1, 0.1, 0.1]), np.array([0.2, 0.2, 0.2])
    >>> gain = {"first": high} | {f"auc/{kind}": low for kind in WRONG}
    >>> decision({"bertscore": low, "terms": high}, {"terms": gain})
    {'favoured': 'terms', 'clearly_better': True, 'worse_on': []}
    >>> decision({"bertscore": low, "terms": high}, {"terms": gain | {"auc/vague": -low}})
    {'favoured': 'terms', 'clearly_better': False, 'worse_on': ['vague']}
    """
    favoured = max(first, key=lambda name: first[name][0])
    gain = gains.get(favoured)
    worse = [kind for kind in WRONG if gain and interval(gain[f"auc/{kind}"])[2] < 0]
    clearly = gain is not None and interval(gain["first"])[1] > 0 and not worse
    return {"favoured": favoured, "clearly_better": clearly, "worse_on": worse}


def truth_ratings(cases: Sequence[Case]) -> np.ndarray:
    """Return the truth judge's 0 or 1 for each text, by kind, then by case; NaN where a case lacks the kind.

    It rates a text by the findings of the phantom, not by the annotation, and reads neither sides nor places.
    """
    rated, at, samples, predictions, lines = np.full((len(KINDS), len(cases)), np.nan), [], [], [], []
    for row, case in enumerate(cases):
        image = {"dataset": "", "split": "train", "image": "", "image_sha256": str(row)}
        findings = [truth.Finding(name=finding.name, organ=finding.organ) for finding in case.findings]
        expect = {"yes": True}  # the answer is not looked at
        lines.append(truth.Truth(image_sha256=str(row), question=case.question, findings=findings, expect=expect))
        for number, kind in enumerate(KINDS):
            if kind in case.texts:
                asked = {"question": case.question, "answers": [case.answer], "kind": case.kind}
                at.append((number, row))
                samples.append(Sample(id=str(len(at)), **image, **asked, reasoning=case.annotation))
                completion = complete(case.texts[kind], case.answer)
                predictions.append(Prediction(id=str(len(at)), completion=completion, answer=case.answer))
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder) / "truth.jsonl", lines)
        verdicts = truth.judge(samples, predictions, None, truth_file=Path(folder) / "truth.jsonl")
    for place, verdict in zip(at, verdicts, strict=True):
        rated[place] = verdict.reasoning_score
    return rated.ravel()


def agreement(scores: np.ndarray, rated: np.ndarray) -> dict[str, float]:
    """Return how a measure's scores agree with 0/1 ratings of the same texts: AUC, and Spearman's rank correlation.

    >>> agreement(np.array([0.1, 0.9, np.nan, 0.4]), np.array([0, 1, np.nan, 0])) | {"spearman": 0}
    {'auc': 1.0, 'spearman': 0}
    >>> agreement(np.array([0.5, 0.5]), np.array([0, 1]))
    {'auc': 0.5, 'spearman': 0.0}
    """
    there = ~np.isnan(rated)
    scores, rated = scores[there], rated[there]
    same = len(set(scores)) == 1  # a constant, which has no ranks
    spearman = 0.0 if same else spearmanr(scores, rated).statistic
    return {"auc": round(float(roc_auc_score(rated, scores)), 3), "spearman": round(float(spearman), 3)}


def thinned_lexicon(seed: int):
    """Context manager under which a random half of the lexicon's other wordings is removed."""
    rng = np.random.default_rng(seed)
    kept = {
        wording: fact
        for wording, fact in terms.WORDINGS.items()
        if fact is None or " ".join(wording) == fact[0] or rng.random() < 0.5
    }
    # Without the cache, which holds what the whole lexicon read.
    return mock.patch.multiple(terms, WORDINGS=kept, facts=terms.facts.__wrapped__)


def known_words(cases: Sequence[Case]) -> dict[str, float]:
    """Return the share of the content words of each right style that the lexicon has, alone or in a wording."""
    known = {word for wording in terms.WORDINGS for word in wording}
    shares = {}
    for style in RIGHT:
        words = [terms.content_words(case.texts[style]) for case in cases]
        shares[style] = round(sum(len(w & known) for w in words) / sum(len(w) for w in words), 3)
    return shares


def guard_table(cases: Sequence[Case], scorer, measure: str, terms_share: float, grade=None) -> list[dict]:
    """Return what each exploit earns without and with its guard, and how often the guard stops a sound completion.

    The exploit of `many_answers` is tried on open questions only, where it pays.
    """

    def earned(name: str, guard: str, on: bool) -> float:
        asked = [case for case in cases if guard != "many_answers" or case.kind == "open"]
        settings = Reward(reasoning=measure, terms_share=terms_share, guards=Guards(**{guard: on}))
        functions, _ = reward_functions(Rewards(reasoning=1.0), lambda: scorer, settings, grade)
        reward = next(function for function in functions if function.__name__ == name)
        rewards = reward(
            question=[case.question for case in asked],
            completions=[exploit(guard, case) for case in asked],
            answers=[[case.answer] for case in asked],
            kind=[case.kind for case in asked],
            reasoning=[case.annotation for case in asked],
        )
        return round(float(np.nanmean(np.array(rewards, float))), 3)

    sound = [
        (case, complete(text, case.answer))
        for case in cases
        for text in (case.annotation, *(case.texts[style] for style in RIGHT))
    ]
    rewards = {
        "empty_answer": "format",
        "text_after_answer": "accuracy",
        "repetition": "reasoning",
        "many_answers": "accuracy",
    }
    table = []
    for name, reward in rewards.items():
        stopped = [getattr(guards, name)(text, answers=[case.answer], kind=case.kind) for case, text in sound]
        line = {
            "guard": name,
            "reward": reward,
            "earns": earned(reward, name, False),
            "guarded": earned(reward, name, True),
        }
        table.append(line | {"sound_stopped": round(float(np.mean(stopped)), 3)})
    return table


def complete(think: str, answer: str) -> str:
    """Return a completion in the exact format.

    >>> complete("A spot.", "Yes")
    '<think>A spot.</think> <answer>Yes</answer>'
    """
    return f"<think>{think}</think> <answer>{answer}</answer>"


def exploit(guard: str, case: Case) -> str:
    """Return a completion that does what the guard is for, and is otherwise sound."""
    if guard == "empty_answer":
        return complete(case.annotation, " . ")
    if guard == "text_after_answer":
        return complete(case.annotation, case.answer) + " Or not."
    if guard == "repetition":
        return complete(case.texts[REPEATED], case.answer)
    return complete(case.annotation, ", ".join(ORGAN_OF))  # every disease of the phantoms


def as_markdown(report: dict, command: str, encoder: str) -> str:
    """Return the report for people (`reasoning_reward.md`); `command` makes it again."""
    wrong = (*WRONG, REPEATED)
    measures = report["measures"]
    judge = {"judge": f"judge, {report['judge']['is']}"} if "judge" in report else {}
    text = template("reasoning_reward.md", Path(__file__).parent).render(
        report=report,
        command=command,
        encoder=encoder,
        resamples=RESAMPLES,
        repeated=REPEATED,
        measures=[*MEASURES, *judge],
        kinds=KINDS,
        first=[f"first/{style}" for style in RIGHT],
        auc=[f"auc/{kind}" for kind in wrong],
        within=[f"within/{kind}" for kind in wrong],
        same=[f"same/{kind}/{style}" for kind, style in SAME_STYLE],
        variants={"terms": "terms", "mix": f"mix, terms {report['terms_share']:g}", **VARIANTS, **judge},
        lowest={name: min(found[f"auc/{kind}"][0] for kind in WRONG) for name, found in measures.items()},
    )
    return text + "\n"
