"""Random tokens instead of models' names, so that a ratings file does not reveal whose answers were rated.

`data/ratings/places.json` maps each token to its place. Only its owner can read it: whoever gives a rater their file
keeps this one back, and backs it up, because without it the ratings belong to nobody's answers.
"""

import json
import os
import secrets
from collections.abc import Iterable

from rarl.judges import human
from rarl.params import Params
from rarl.records import atomic_file
from rarl.reporting.inputs import Run


def tokens(places: Iterable[str]) -> dict[str, str]:
    """Map each place to its token; a place without one gets one."""
    from filelock import FileLock

    path = human.places_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", mode=0o600):
        known = human.read_places()
        found = {place: token for token, place in known.items()}
        new = {place: secrets.token_hex(human.TOKEN // 2) for place in places if place not in found}
        if new:
            # In the order of the tokens, which reveals nothing.
            known = dict(sorted((known | {token: place for place, token in new.items()}).items()))
            with atomic_file(path) as file:
                os.chmod(file.fileno(), 0o600)
                file.write(json.dumps(known, indent=2) + "\n")
    return found | new


def renew(params: Params) -> list[str]:
    """Replace tokens that anybody can compute by random ones, in every ratings file.

    A line with both kinds would reveal what the random one means, so old lines are rewritten before any is added.

    Returns:
        The names of the files that were rewritten.
    """
    places = ["/".join((model, *place)) for model in params.models for place in Run(params).places_of(model)]
    old = {human.old_token(place): place for place in places}
    changed = []
    for path in human.ratings_files():
        lines = human.read_lines(path)
        readable = {old[token] for line in lines for token in line.of if token in old}
        if not readable:
            continue
        new = tokens(readable)
        with atomic_file(path) as file:
            for line in lines:
                of = tuple(sorted({new[old[token]] if token in old else token for token in line.of}))
                file.write(line.model_copy(update={"of": of}).model_dump_json() + "\n")
        changed.append(path.name)
    return changed
