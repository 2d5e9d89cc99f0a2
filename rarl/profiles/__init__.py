"""Profiles: the paper's settings, and the embedded default for a CPU; how `params.yaml` is switched to one."""

import io
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from rarl.params import load_params, parse_params
from rarl.records import atomic_file

PROFILES = Path(__file__).parent


def round_trip() -> YAML:
    """YAML that keeps comments, quotes, the spelling of numbers, and `null`."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def leaves(block: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of everything in a block that is no block itself."""
    for key, value in block.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def put(params: dict, dotted: str, value: object) -> object:
    """Set one key in place and return the old value (None if there was none)."""
    *blocks, key = dotted.split(".")
    for block in blocks:
        params = params.setdefault(block, {})
    before = params.get(key)
    if isinstance(value, list) and isinstance(before, CommentedSeq):
        old = list(before)
        # The blank line after a list hangs on its last item.
        tail = before.ca.items.pop(len(before) - 1, None)
        before[:] = value
        if tail and value:
            before.ca.items[len(value) - 1] = tail
        return old
    params[key] = value
    return before


def apply(path: Path, name: str, root: str | None = None) -> dict[str, tuple[object, object]]:
    """Rewrite a `params.yaml` to the profile `name`, and return key → (value before, value after) of what changed.

    With `root`, the folder of the user's releases, judges of kind `truth` go, which know the pipeline's phantoms only.

    Raises:
        UserError: the file is missing or is not valid, or would not be afterwards. It is not changed.
    """
    kinds = {slug: judge.kind for slug, judge in load_params(path).judge.items()}
    yaml = round_trip()
    params = yaml.load(path.read_text(encoding="utf-8"))
    profile = dict(leaves(yaml.load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))))
    if root is not None:
        profile["data.root"] = root
        profile["judges"] = [slug for slug in profile["judges"] if kinds.get(slug) != "truth"]

    changed = {}
    for key, value in profile.items():
        before = put(params, key, value)
        if before != value:
            changed[key] = (before, value)
    write_params(path, params)
    return changed


def write_params(path: Path, params: dict) -> None:
    """Write what `round_trip` read and the caller changed; a UserError, and no file, if that is not valid."""
    text = io.StringIO()
    round_trip().dump(params, text)
    parse_params(text.getvalue(), path)
    with atomic_file(path) as file:
        file.write(text.getvalue())
