"""What the fast tier shares."""

import pytest


@pytest.fixture(autouse=True)
def own_picture_notes(tmp_path_factory, monkeypatch):
    """What was seen of made-up pictures does not go into the working copy's cache."""
    from rarl.data import release

    monkeypatch.setattr(release, "KEPT", tmp_path_factory.mktemp("seen") / "pictures.jsonl")
