"""Everything that scores and report read, found by enumerating the parameters and never by looking
what lies in a folder: a model that was taken off the list leaves its files behind."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rarl.errors import UserError
from rarl.params import Params
from rarl.records import Prediction, Sample, Verdict, predictions_file, read_json, read_records, remake, verdicts_file
from rarl.registry import METHODS

CURATED = Path("data/curated")


def in_order(path: Path, samples: list[Sample], kind: type[Prediction] | type[Verdict]) -> list:
    """The records of one file in the order of the samples, one for each.

    Raises:
        UserError: the file has a record too few, too many or of another sample. A row that is
            missing would otherwise raise the score without a trace.
    """
    found = read_records(path, kind)
    by_id = {record.id: record for record in found}
    missing = [sample.id for sample in samples if sample.id not in by_id]
    if missing or len(found) != len(samples):
        detail = f", none for {missing[0]}" if missing else ""
        raise UserError(
            str(path),
            f"{len(found)} records ({len(by_id)} different ids){detail}",
            f"one {kind.__name__} record for each of the {len(samples)} questions",
            remake(path),
        )
    return [by_id[sample.id] for sample in samples]


@dataclass
class Run:
    """One run of the pipeline: its parameters and, read when asked for, what it left on disk."""

    params: Params

    @property
    def main_judge(self) -> str:
        return self.params.report.main_judge

    @cached_property
    def main_mode(self) -> str:
        """The first mode that shows the image: models are compared with one another under it."""
        shown = [mode for mode in self.params.modes if self.params.mode[mode].image == "shown"]
        return (shown or self.params.modes)[0]

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        return {name: read_records(self.params.samples_file(name), Sample) for name in self.params.test_sets}

    @cached_property
    def train(self) -> list[Sample]:
        return read_records(CURATED / "train.jsonl", Sample)

    @cached_property
    def scores(self) -> dict[str, dict]:
        """model -> mode -> test set -> judge -> cell, as the `score` stage wrote it."""
        files = {model: Path("metrics/scores") / f"{model}.json" for model in self.params.models}
        for path in files.values():
            if not path.is_file():
                raise UserError(str(path), "no such file", "the model's scores", "run `dvc repro`")
        return {model: read_json(path) for model, path in files.items()}

    @cached_property
    def predictions(self) -> dict[tuple[str, str, str], list[Prediction]]:
        """(model, mode, test set) -> predictions."""
        return {
            (model, mode, name): in_order(predictions_file(model, mode, name), self.samples[name], Prediction)
            for model in self.params.models
            for mode in self.params.modes
            for name in self.params.sets_of(mode)
        }

    @cached_property
    def breakdown_files(self) -> dict[str, Path]:
        files = {m: Path("metrics/breakdown") / f"{m}.csv" for m in self.params.models}
        return {model: path for model, path in files.items() if path.is_file()}

    @cached_property
    def verdicts(self) -> dict[tuple[str, str, str, str], list[Verdict]]:
        """(model, mode, test set, judge) -> verdicts."""
        return {
            (model, mode, name, judge): in_order(verdicts_file(model, judge, mode, name), self.samples[name], Verdict)
            for model in self.params.models
            for mode in self.params.modes
            for name in self.params.sets_of(mode)
            for judge in self.params.judges
        }

    @cached_property
    def idle_judges(self) -> list[str]:
        """Judges that scored nothing at all, such as the truth judge on real data."""
        return [
            judge
            for judge in self.params.judges
            if not any(
                v.prediction_score is not None
                for key, verdicts in self.verdicts.items()
                if key[3] == judge
                for v in verdicts
            )
        ]

    @cached_property
    def judges(self) -> list[str]:
        """The judges that are shown: the main one first, without those that scored nothing."""
        working = [judge for judge in self.params.judges if judge not in self.idle_judges]
        return sorted(working, key=lambda judge: judge != self.main_judge)

    @cached_property
    def truth_judge(self) -> str | None:
        return next((j for j in self.judges if self.params.judge[j].kind == "truth"), None)

    @cached_property
    def training(self) -> dict[str, dict]:
        """method -> the training stage's metrics, for the methods among the models."""
        files = {m: Path("metrics/train") / f"{m}.json" for m in METHODS if m in self.params.models}
        return {method: read_json(path) for method, path in files.items() if path.is_file()}

    @cached_property
    def logs(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """method -> column -> (step, value) of the training log; cells without a number are left out."""
        files = {m: Path("metrics/train") / f"{m}.csv" for m in METHODS if m in self.params.models}
        return {method: _read_log(path) for method, path in files.items() if path.is_file()}

    @cached_property
    def curation(self) -> dict:
        path = Path("metrics/curate.json")
        return read_json(path) if path.is_file() else {}

    @cached_property
    def audit(self) -> dict[str, dict[str, dict[str, int]]]:
        """set -> split -> name of a count -> value, as the `audit` stage measured it."""
        path = Path("metrics/audit.json")
        return read_json(path)["sets"] if path.is_file() else {}

    @cached_property
    def benchmark_counts(self) -> dict[str, dict]:
        files = {name: Path("metrics/benchmark") / f"{name}.json" for name in self.params.benchmarks}
        return {name: read_json(path) for name, path in files.items() if path.is_file()}


def _read_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    columns: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            for column, text in row.items():
                value = _number(text)
                if column and column != "step" and step is not None and value is not None:
                    columns.setdefault(column, []).append((step, value))
    return columns


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value == value else None  # NaN is no number to plot
