"""Adds the ratings to `params.yaml` as judges, and counts those that still apply."""

from pathlib import Path

from rarl.judges.human import Ratings, digest, read_ratings
from rarl.params import Params
from rarl.profiles import put, round_trip, write_params
from rarl.rating.worklist import answers
from rarl.records import predictions_file
from rarl.reporting.inputs import Run

#: The majority of all raters; each rater by themselves is `human_<rater>`.
MAJORITY = "human"


def present_answers(params: Params) -> set[tuple[str, str]]:
    """Keys of all answers in `data/predictions`, of every model, mode and set in params.yaml."""
    return {
        item.key
        for model in params.models
        for mode, test_set in Run(params).places_of(model)
        if predictions_file(model, mode, test_set).is_file()
        for item in answers(params, [model], mode, test_set)
    }


def judges_of(raters: dict[str, Ratings]) -> dict[str, dict]:
    """Definitions of the judges: the majority and, if there are several raters, each of them."""
    found = {MAJORITY: {"kind": "human", "rater": None, "ratings": digest(raters)}}
    if len(raters) > 1:
        for rater, ratings in raters.items():
            found[f"{MAJORITY}_{rater}"] = {"kind": "human", "rater": rater, "ratings": digest({rater: ratings})}
    return found


def export(path: Path = Path("params.yaml")) -> list[str]:
    """Define the human judges in `params.yaml` with the digest of the present ratings, and list them.

    DVC compares a judge's settings: a changed digest re-runs that judge, and nothing else.

    Returns:
        The slugs of the human judges whose definition is new or has changed.

    Raises:
        UserError: the result would be no valid `params.yaml`, which is then left as it was.
    """
    params = round_trip().load(path.read_text(encoding="utf-8"))
    changed = []
    for slug, definition in judges_of(read_ratings()).items():
        if slug not in params["judge"]:
            # Not at the end, where the blank line before the next block belongs to the last judge.
            params["judge"].insert(0, slug, {})
        if put(params, f"judge.{slug}", definition) != definition:
            changed.append(slug)
        if slug not in params["judges"]:
            put(params, "judges", [*params["judges"], slug])
    write_params(path, params)
    return changed
