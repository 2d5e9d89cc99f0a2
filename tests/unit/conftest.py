"""What the fast tier shares."""

import pytest


@pytest.fixture(autouse=True)
def own_image_notes(tmp_path_factory, monkeypatch):
    """What was seen of made-up images does not go into the working copy's cache."""
    from rarl.data import release

    monkeypatch.setattr(release, "KEPT", tmp_path_factory.mktemp("seen") / "pictures.jsonl")
