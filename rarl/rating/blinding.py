"""Random tokens in the place of models' names, so that a ratings file tells nobody whose answers were rated.

`data/ratings/places.json` says what each token stands for. Only its owner can read it: who hands a rater their file keeps
this one back, and backs it up, because without it the ratings are of nobody's answers.
"""

import json
import os
import secrets
from collections.abc import Iterable

from rarl.judges import human
from rarl.params import Params
from rarl.records import atomic_file


def tokens(places: Iterable[str]) -> dict[str, str]:
    """place -> its token; a place that has none yet gets one."""
    from filelock import FileLock

    path = human.places_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", mode=0o600):
        known = human.read_places()
        found = {place: token for token, place in known.items()}
        new = {place: secrets.token_hex(human.TOKEN // 2) for place in places if place not in found}
        if new:
            # In the order of the tokens, which says nothing.
            known = dict(sorted((known | {token: place for place, token in new.items()}).items()))
            with atomic_file(path) as file:
                os.chmod(file.fileno(), 0o600)
                file.write(json.dumps(known, indent=2) + "\n")
    return found | new


def renew(params: Params) -> list[str]:
    """Put random tokens in the place of those that anybody can compute, in every ratings file.

    A line with both kinds would tell what the random one stands for, so old lines are rewritten before any is added.

    Returns:
        the names of the files that were rewritten.
    """
    places = [
        f"{model}/{mode}/{test_set}"
        for mode in params.modes
        for test_set in params.sets_of(mode)
        for model in params.models
    ]
    old = {human.old_token(place): place for place in places}
    changed = []
    for path in human.ratings_files():
        rows = human.rows(path)
        readable = {old[token] for row in rows for token in row.of if token in old}
        if not readable:
            continue
        new = tokens(readable)
        with atomic_file(path) as file:
            for row in rows:
                of = tuple(sorted({new[old[token]] if token in old else token for token in row.of}))
                file.write(row.model_copy(update={"of": of}).model_dump_json() + "\n")
        changed.append(path.name)
    return changed
