"""Examples in the style of the paper's Tables 4 and 5, right and wrong, chosen by rule.

The rule: of all answers of a kind (such as "answer right, reasoning wrong"), the one whose question id has the
smallest SHA-256, which is a random choice that is the same in every run.
"""

import hashlib

from rarl.registry import METHODS
from rarl.reporting.inputs import Run
from rarl.reporting.tables import SETS

#: Kind of answer -> final and reasoning score of the own test, final score of the other sets.
OWN = {
    "Answer and reasoning right": (1, 1),
    "Reasoning right, answer wrong": (0, 1),
    "Answer right, reasoning wrong": (1, 0),
    "Answer and reasoning wrong": (0, 0),
}
UNSEEN = {"Answer right": 1, "Answer wrong": 0}


def shown_model(run: Run) -> str:
    """Return the model whose answers are shown: the last of the methods that the run has, else the first model."""
    return next((m for m in reversed(METHODS) if m in run.params.models), run.params.models[0])


def examples(run: Run) -> dict[str, list[dict]]:
    """Return `own`: reasoning and answer on the own test (Table 4); `unseen`: each benchmark (Table 5)."""
    model, mode, own = shown_model(run), run.main_mode, run.params.own_test
    annotated = any(score is not None for score in run.ratings(model, mode, own, score="reasoning"))
    found: dict[str, list[dict]] = {"own": [], "unseen": []}
    for name in run.params.sets_of(mode):
        kinds = OWN if name == own and annotated else {label: (score,) for label, score in UNSEEN.items()}
        rows = list(
            zip(run.samples[name], run.predictions[model, mode, name], run.verdicts[model, mode, name, run.main_judge])
        )
        for label, scores in kinds.items():
            same = [row for row in rows if (row[2].prediction_score, row[2].reasoning_score)[: len(scores)] == scores]
            if same:
                sample, prediction, verdict = min(same, key=lambda row: hashlib.sha256(row[0].id.encode()).hexdigest())
                entry = {"label": label, "count": len(same), "of": len(rows), "set": name, "set_label": SETS[name]}
                entry |= {"model": model, "model_label": run.labels[model], "sample": sample}
                found["own" if name == own else "unseen"].append(entry | {"said": prediction, "verdict": verdict})
    return found
