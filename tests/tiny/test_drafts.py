"""Drafts for annotation by a local model: asked once, kept by the content of the row."""

from rarl.annotating import drafts
from rarl.data.annotations import content_key
from rarl.records import Sample, read_records


def test_a_model_drafts_once_and_again_only_after_a_change(project, params, monkeypatch):
    rows = read_records("data/curated/train.jsonl", Sample)[:4]
    made = drafts.ask("base", params, rows[:3])
    assert made.keys() == {content_key(row) for row in rows[:3]} and all(one.tokens for one in made.values())
    assert len(drafts.ask("base", params, rows)) == 4, "the fourth is added"
    monkeypatch.setattr("rarl.sharing.model_folder.open_model", None)
    renamed = [row.model_copy(update={"id": f"renamed/{row.id}"}) for row in rows]
    assert drafts.ask("base", params, renamed).items() >= made.items()
    assert sum(map(len, drafts.answered_by(params, rows).values())) == 4
