"""The study of the reasoning reward: measures, sensitivity, guards, and the report (`rarl/cli/reward_study.py`)."""

import time
from collections.abc import Sequence
from unittest import mock

import numpy as np

from rarl.params import Guards, Reward, Rewards
from rarl.phantom.words import ORGAN_OF
from rarl.rewards import guards, reward_functions, terms
from rarl.rewards.reasoning import score_reasoning
from rarl.studies.ranking import RESAMPLES, interval, rate, score_cases
from rarl.studies.retelling import KINDS, REPEATED, RIGHT, SAME_STYLE, WRONG, Case

#: What `reward.reasoning` can name.
MEASURES = ("bertscore", "terms", "mix")
#: The same with another weight, and with a lexicon that knows half of the wordings.
VARIANTS = {
    "mix_25": "mix, terms 0.25",
    "mix_75": "mix, terms 0.75",
    "terms_half": "terms, half of the lexicon's other wordings taken away",
}


def study(cases: Sequence[Case], scorer, terms_share: float, seed: int) -> dict:
    """All numbers of the report, as plain JSON.

    Args:
        scorer: a fresh BERTScorer, so that the time is that of texts not seen before.
        terms_share: weight of the terms in `mix`.
        seed: of the bootstrap and of the thinned lexicon.
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
    """The favoured measure, and whether it is clearly better than BERTScore, by the rule of the entry script.

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
    """Inside, half of the lexicon's other wordings are gone, by lot: what if it did not know these texts?"""
    rng = np.random.default_rng(seed)
    kept = {
        wording: fact
        for wording, fact in terms.WORDINGS.items()
        if fact is None or " ".join(wording) == fact[0] or rng.random() < 0.5
    }
    # Without the cache of texts: it holds what the whole lexicon read.
    return mock.patch.multiple(terms, WORDINGS=kept, facts=terms.facts.__wrapped__)


def known_words(cases: Sequence[Case]) -> dict[str, float]:
    """Share of the content words of each right style that the lexicon has, alone or in a wording."""
    known = {word for wording in terms.WORDINGS for word in wording}
    shares = {}
    for style in RIGHT:
        words = [terms.content_words(case.texts[style]) for case in cases]
        shares[style] = round(sum(len(w & known) for w in words) / sum(len(w) for w in words), 3)
    return shares


def guard_table(cases: Sequence[Case], scorer, measure: str, terms_share: float) -> list[dict]:
    """What each exploit earns without and with its guard, and how often the guard stops a sound completion.

    Many answers are given to open questions, where they pay.
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
    table = []
    for name, reward in (
        ("empty_answer", "format"),
        ("text_after_answer", "accuracy"),
        ("repetition", "reasoning"),
        ("many_answers", "accuracy"),
    ):
        stopped = [getattr(guards, name)(text, answers=[case.answer], kind=case.kind) for case, text in sound]
        table.append(
            {
                "guard": name,
                "reward": reward,
                "earns": earned(reward, name, False),
                "guarded": earned(reward, name, True),
                "sound_stopped": round(float(np.mean(stopped)), 3),
            }
        )
    return table


def complete(think: str, answer: str) -> str:
    """A completion in the exact form.

    >>> complete("A spot.", "Yes")
    '<think>A spot.</think> <answer>Yes</answer>'
    """
    return f"<think>{think}</think> <answer>{answer}</answer>"


def exploit(guard: str, case: Case) -> str:
    """A completion that does what the guard is for, otherwise sound."""
    if guard == "empty_answer":
        return complete(case.annotation, " . ")
    if guard == "text_after_answer":
        return complete(case.annotation, case.answer) + " Or not."
    if guard == "repetition":
        return complete(case.texts[REPEATED], case.answer)
    return complete(case.annotation, ", ".join(ORGAN_OF))  # every disease that is drawn


# The report -----------------------------------------------------------------------------------------


def as_markdown(report: dict, command: str, encoder: str) -> str:
    """The report for people; `command` makes it again."""
    found, gains = report["measures"], report["gain_over_bertscore"]

    def rows(keys: Sequence[str], label=lambda key: key.rpartition("/")[2]) -> list[list[str]]:
        return [[label(key), *(_number(found[name][key]) for name in MEASURES)] for key in keys]

    head = ["", *(f"`{name}`" for name in MEASURES)]
    wrong = (*WRONG, REPEATED)
    first = rows(["first"], lambda _: "all right texts") + rows([f"first/{s}" for s in RIGHT])
    first.append(["gain over BERTScore", "", *(_number(gains[name]["first"]) for name in MEASURES[1:])])
    same = rows([f"same/{kind}/{style}" for kind, style in SAME_STYLE], lambda key: ", ".join(key.split("/")[1:]))
    names = {"terms": "terms", "mix": f"mix, terms {report['terms_share']:g}", **VARIANTS}
    variants = [
        [text, _number(found[name]["first"]), f"{min(found[name][f'auc/{k}'][0] for k in WRONG):.2f}"]
        for name, text in names.items()
    ]  # fmt: skip
    guard_rows = [
        [f"`{row['guard']}`", row["reward"], row["earns"], row["guarded"], row["sound_stopped"]]
        for row in report["guards"]
    ]
    known = ", ".join(f"{style} {share:.0%}" for style, share in report["known_words"].items())
    return f"""# The reasoning reward, measured

Made by `{command}`; the same numbers stand in `reasoning_reward.json`. BERTScore's encoder: {encoder}.

**{_verdict(report)}**

{report["cases"]} questions about phantoms whose findings are known. Each text is scored against the annotation of its
question. In brackets: 95 % bootstrap intervals over questions ({RESAMPLES} resamples).

## The texts

{_table(["kind", "what it is", "texts"], [[k, w, report["texts"][k]] for k, w in KINDS.items()])}

`reordered`, `plain` and `report` are right. `{REPEATED}` is right by its words, and not what a policy should write. The
others are wrong; those about findings are written by the annotation's own grammar, as close in wording as can be.

## How often a right text scores above every wrong text of its question

{_table(head, first)}

## Right against wrong texts over all questions (AUC; 0.5 is chance)

{_table(head, rows([f"auc/{kind}" for kind in wrong]))}

## The same within a question, which is what a GRPO group compares

{_table(head, rows([f"within/{kind}" for kind in wrong]))}

## Within a question, right and wrong told in the same style

Added after the first run: above, wrong texts share the annotation's wording and most right ones do not. Here both do
(`reordered`), or neither does. It is not part of the rule.

{_table(head, same)}

## Mean score

{_table(head, [[k, *(f"{found[name][f'mean/{k}']:.2f}" for name in MEASURES)] for k in KINDS])}

## Variants, for information (the lowest AUC is over the wrong kinds)

{_table(["", "right text first", "lowest AUC"], variants)}

## The guards

What a completion that does what a guard is for earns on average, without the guard and with it, and the share of sound
completions that the guard stops: the annotation and the three right texts, each with the right answer. Reasoning is
scored by `{report["favoured"]}`. The sound answers are short: a right answer in a sentence with commas would be stopped
by `many_answers`. All are off in both profiles: the formula stays the paper's, and whether a trained policy does what
they are for this study cannot say.

{_table(["guard", "reward", "exploit earns", "with the guard", "sound ones stopped"], guard_rows)}

## What this does and does not show

- One author wrote the lexicon and the texts. The lexicon came first and was not changed after the texts were written.
  Of the right texts' content words it knows: {known}.
  What it does not know lowers the scores of `terms`. The variants show what is left with half of its other wordings
  taken away by lot.
- Denial, sides and diseases are what `terms` was made to read, and what the wrong texts get wrong.
- The annotations are two or three sentences of one grammar. Physicians' explanations are longer, hedge, and name what
  the lexicon lacks; no measure was tried on them, as Silvar-Med's explanations are not in this repository. Of SLAKE's
  English open Abnormality answers (`train.json`) the lexicon knows 91 % (most others are "None" and misspellings), of
  VQA-Med 2019's abnormality answers (test) 42 %.
- Of a text said three times BERTScore takes off a little, `terms` nothing; the rule leaves `{REPEATED}` out, as no
  measure here is made for it. The guard `repetition` is.
- A text that strings the right terms together without a sentence scores as high by `terms` as a good explanation.
- A better ranking is not yet a better policy: that is for training to show.
"""


def _verdict(report: dict) -> str:
    favoured = report["favoured"]
    if favoured == "bertscore":
        return "The study favours `bertscore`."
    if report["clearly_better"]:
        return f"The study favours `{favoured}`, clearly better than `bertscore` by the rule that was set before."
    worse = ", ".join(report["worse_on"])
    why = f"it tells apart less well: {worse}" if worse else "the interval of the gain includes 0"
    return f"The study favours `{favoured}`, but not clearly over `bertscore`: {why}."


def _number(value: list[float]) -> str:
    return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"


def _table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
