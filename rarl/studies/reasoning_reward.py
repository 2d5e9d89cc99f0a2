"""The study of the reasoning reward: measures, sensitivity, guards, and the report (`rarl study reward`)."""

import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from rarl.params import Guards, Reward, Rewards
from rarl.phantom.words import ORGAN_OF
from rarl.reporting.page import template
from rarl.rewards import guards, reward_functions, terms
from rarl.rewards.reasoning import score_reasoning
from rarl.studies.ranking import RESAMPLES, interval, rate, score_cases
from rarl.studies.reasoning_texts import KINDS, REPEATED, RIGHT, SAME_STYLE, WRONG, Case

#: What `reward.reasoning` can name.
MEASURES = ("bertscore", "terms", "mix")
#: The same with another weight, and with a lexicon that knows half of the wordings.
VARIANTS = {
    "mix_25": "mix, terms 0.25",
    "mix_75": "mix, terms 0.75",
    "terms_half": "terms, half of the lexicon's other wordings taken away",
}


def study(cases: Sequence[Case], scorer, terms_share: float, seed: int) -> dict:
    """Return all numbers of the report, as plain JSON.

    `scorer` is a new BERTScorer, so that the time is that of texts not seen before. `terms_share` is the weight of the
    terms in `mix`; `seed` is for the bootstrap and for the thinned lexicon.
    """

    def scored(measure: str, share: float = 0.0):
        return score_cases(cases, lambda pairs: score_reasoning(pairs, scorer, measure, share))

    scores, seconds = {}, {}
    for measure in ("bertscore", "terms"):
        started = time.perf_counter()
        scores[measure] = scored(measure)
        seconds[measure] = time.perf_counter() - started
    seconds["mix"] = sum(seconds.values())
    for name, share in (("mix", terms_share), ("mix_25", 0.25), ("mix_75", 0.75)):
        scores[name] = scored("mix", share)
    with thinned_lexicon(seed):
        scores["terms_half"] = scored("terms")

    ratings = {name: rate(values, seed) for name, values in scores.items()}
    gains = {
        name: {key: ratings[name][key] - ratings["bertscore"][key] for key in ratings[name]} for name in MEASURES[1:]
    }
    report = {
        "cases": len(cases),
        "texts": {kind: sum(kind in case.texts for case in cases) for kind in KINDS},
        "terms_share": terms_share,
        **decision({name: ratings[name]["first"] for name in MEASURES}, gains),
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
        "known_words": known_words(cases),
    }
    report["guards"] = guard_table(cases, scorer, report["favoured"], terms_share)
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


def guard_table(cases: Sequence[Case], scorer, measure: str, terms_share: float) -> list[dict]:
    """Return what each exploit earns without and with its guard, and how often the guard stops a sound completion.

    The exploit of `many_answers` is tried on open questions only, where it pays.
    """

    def earned(name: str, guard: str, on: bool) -> float:
        asked = [case for case in cases if guard != "many_answers" or case.kind == "open"]
        settings = Reward(reasoning=measure, terms_share=terms_share, guards=Guards(**{guard: on}))
        functions, _ = reward_functions(Rewards(reasoning=1.0), lambda: scorer, settings)
        reward = next(function for function in functions if function.__name__ == name)
        rewards = reward(
            completions=[exploit(guard, case) for case in asked],
            answers=[[case.answer] for case in asked],
            kind=[case.kind for case in asked],
            reasoning=[case.annotation for case in asked],
        )
        return round(float(np.mean(rewards)), 3)

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
    text = template("reasoning_reward.md", Path(__file__).parent).render(
        report=report,
        command=command,
        encoder=encoder,
        resamples=RESAMPLES,
        repeated=REPEATED,
        measures=MEASURES,
        kinds=KINDS,
        first=[f"first/{style}" for style in RIGHT],
        auc=[f"auc/{kind}" for kind in wrong],
        within=[f"within/{kind}" for kind in wrong],
        same=[f"same/{kind}/{style}" for kind, style in SAME_STYLE],
        variants={"terms": "terms", "mix": f"mix, terms {report['terms_share']:g}", **VARIANTS},
        lowest={name: min(found[f"auc/{kind}"][0] for kind in WRONG) for name, found in measures.items()},
    )
    return text + "\n"
