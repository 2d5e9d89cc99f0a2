"""What `make` deletes."""

import shutil
import subprocess
from pathlib import Path


def test_clean_cache_keeps_what_was_paid_for_and_what_cannot_be_made_again(tmp_path, repository):
    shutil.copy(repository / "Makefile", tmp_path / "Makefile")
    for name in ("llm", "cost", "training", "verdicts", ".hidden"):
        (tmp_path / ".cache" / name).mkdir(parents=True)
        (tmp_path / ".cache" / name / "file").write_text("kept?", encoding="utf-8")
    subprocess.run(["make", "--silent", "clean-cache"], cwd=tmp_path, check=True)
    assert {path.name for path in Path(tmp_path / ".cache").iterdir()} == {"llm", "cost"}
