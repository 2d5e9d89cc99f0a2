"""What the fast tier shares."""

import pytest


@pytest.fixture(autouse=True)
def own_image_notes(tmp_path_factory, monkeypatch):
    """What was seen of made-up images does not go into the working copy's cache."""
    from rarl.data import release

    monkeypatch.setattr(release, "KEPT", tmp_path_factory.mktemp("seen") / "pictures.jsonl")


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """One full run (all models, modes, judges and benchmarks), shared by the tests that only read it."""
    from test_report import make_run, score_and_report

    root = tmp_path_factory.mktemp("full")
    make_run(root)
    with pytest.MonkeyPatch.context() as patch:
        html, output = score_and_report(root, patch)
    return root, html, output
