"""`rarl bench scale` on few rows: every stage runs, its figures are written, and the near duplicates are found."""

from click.testing import CliRunner

from rarl.cli.bench import main
from rarl.measuring import scale
from rarl.records import read_json


def test_every_stage_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scale, "NEAR_EVERY", 10)
    monkeypatch.setattr(scale, "SIDE", 64)
    kept = {}
    monkeypatch.setattr(
        scale, "pages", lambda folder: kept.update(audit=read_json(folder / "metrics/audit.json")) or {}
    )
    result = CliRunner().invoke(main, ["scale", "--size", "200", "20"])
    assert result.exit_code == 0, result.output
    found = read_json("metrics/bench/scale.json")["results"]
    assert [one["stage"] for one in found[0]["stages"]] == [
        "curate", "audit", "benchmark_own", "score_base", "score_rarl", "report",
    ]  # fmt: skip
    assert all(one["seconds"] > 0 and one["peak_memory_mb"] > 10 for one in found[0]["stages"])
    assert "| report |" in (tmp_path / "metrics/bench/scale.md").read_text(encoding="utf-8")
    sets = kept["audit"]["sets"]["own"]
    assert sum(split["rows"] for split in sets.values()) == 200
    assert not any((tmp_path / ".cache").glob("scale-*")), "the folder is removed"
