"""What `score` and `report` read.

Files are found by enumerating the parameters, never by listing a folder: a model that was removed from `models` leaves
its files behind.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rarl.errors import UserError
from rarl.health import Finding, review
from rarl.params import Params
from rarl.records import (
    Prediction,
    R,
    Sample,
    Verdict,
    predictions_file,
    read_json,
    read_records,
    remake,
    verdicts_file,
)
from rarl.registry import JUDGE_KINDS, METHODS, MODELS, Model

CURATED = Path("data/curated")
#: Score -> the field of a verdict that holds it.
FIELDS = {"final": "prediction_score", "reasoning": "reasoning_score"}


def read_slim(path: Path, kind: type[R]) -> list[R]:
    """Read records that share one set of the fields that were given; their own sets take half of the memory."""
    records, fields = read_records(path, kind), frozenset(kind.model_fields)
    for record in records:
        object.__setattr__(record, "__pydantic_fields_set__", fields)
    return records


def in_order(path: Path, samples: list[Sample], kind: type[Prediction] | type[Verdict]) -> list:
    """Return the records of one file in the order of the samples, one for each.

    Raises:
        UserError: a record is missing, duplicated or of another sample. A missing row would otherwise raise the score
            unnoticed.
    """
    found = read_slim(path, kind)
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
    """One run of the pipeline: its parameters and its files, read on first use."""

    params: Params

    @property
    def main_judge(self) -> str:
        """The judge that the report compares models by."""
        return self.params.report.main_judge

    @property
    def confidence(self) -> float:
        """The confidence level of all intervals, such as 0.95."""
        return self.params.report.confidence

    @property
    def main_mode(self) -> str:
        """The mode under which models are compared with one another."""
        return self.params.main_mode

    @cached_property
    def models(self) -> dict[str, Model]:
        """Label and colour of every model that is listed, in this order."""
        known = self.params.all_models
        return {model: known[model] for model in self.params.models}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Label of every model that is listed."""
        return {slug: model.label for slug, model in self.models.items()}

    @property
    def own_models(self) -> list[str]:
        """The base and the trained models."""
        return [model for model in self.models if model in MODELS]

    @property
    def rivals(self) -> list[str]:
        """The listed models of others."""
        return [model for model in self.models if model not in MODELS]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Every (mode, test set) that is evaluated."""
        return [(mode, name) for mode in self.params.modes for name in self.params.sets_of(mode)]

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Every (model, mode under which it is asked)."""
        return [(model, mode) for model in self.models for mode in self.params.modes_of(model)]

    def places_of(self, model: str) -> list[tuple[str, str]]:
        """Return every (mode, test set) that a model is evaluated on."""
        return [(mode, name) for mode, name in self.places if mode in self.params.modes_of(model)]

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        """Test set -> its samples."""
        return {name: read_slim(self.params.samples_file(name), Sample) for name in self.params.test_sets}

    @cached_property
    def images(self) -> dict[str, list[str]]:
        """Test set -> the hash of each sample's image: questions about one image are a cluster."""
        return {name: [sample.image_sha256 for sample in samples] for name, samples in self.samples.items()}

    @cached_property
    def train(self) -> list[Sample]:
        """The training samples."""
        return read_slim(CURATED / "train.jsonl", Sample)

    @cached_property
    def scores(self) -> dict[str, dict]:
        """The `score` stage's metrics: model -> mode -> test set -> judge -> cell."""
        files = {model: Path("metrics/scores") / f"{model}.json" for model in self.params.models}
        for path in files.values():
            if not path.is_file():
                raise UserError(str(path), "no such file", "the model's scores", "run `dvc repro`")
        return {model: read_json(path) for model, path in files.items()}

    @cached_property
    def predictions(self) -> dict[tuple[str, str, str], list[Prediction]]:
        """(model, mode, test set) -> predictions."""
        return {
            (model, *place): in_order(predictions_file(model, *place), self.samples[place[1]], Prediction)
            for model in self.params.models
            for place in self.places_of(model)
        }

    @cached_property
    def verdicts(self) -> dict[tuple[str, str, str, str], list[Verdict]]:
        """(model, mode, test set, judge) -> verdicts."""
        return {
            (model, *place, judge): in_order(verdicts_file(model, judge, *place), self.samples[place[1]], Verdict)
            for model in self.params.models
            for place in self.places_of(model)
            for judge in self.params.judges
        }

    def ratings(
        self, model: str, mode: str, test_set: str, judge: str | None = None, score: str = "final"
    ) -> list[int | None]:
        """Return a judge's (default: the main judge's) 0/1 scores in the order of the samples; None where unscored."""
        verdicts = self.verdicts[model, mode, test_set, judge or self.main_judge]
        return [getattr(verdict, FIELDS[score]) for verdict in verdicts]

    @cached_property
    def idle_judges(self) -> list[str]:
        """Judges that scored nothing at all, such as the truth judge on real data."""
        working = {key[3] for key in self.verdicts if any(score is not None for score in self.ratings(*key))}
        return [judge for judge in self.params.judges if judge not in working]

    @cached_property
    def judges(self) -> list[str]:
        """The judges that are shown: the main one first, without those that scored nothing."""
        working = [judge for judge in self.params.judges if judge not in self.idle_judges]
        return sorted(working, key=lambda judge: judge != self.main_judge)

    @cached_property
    def truth_judge(self) -> str | None:
        """The judge that knows the findings of the phantom images; None on real data."""
        return next((j for j in self.judges if self.params.judge[j].kind == "truth"), None)

    @cached_property
    def form_blind_judge(self) -> str | None:
        """The first judge beside the main one that rates what an answer means, whatever its form; None without one."""
        kinds = {judge: JUDGE_KINDS[self.params.judge[judge].kind] for judge in self.judges}
        return next((judge for judge in self.judges if judge != self.main_judge and kinds[judge].form_blind), None)

    def _files(self, pattern: str, names: list[str]) -> dict[str, Path]:
        """Return name -> file for those of the names that have one."""
        files = {name: Path("metrics") / pattern.format(name) for name in names}
        return {name: path for name, path in files.items() if path.is_file()}

    @property
    def _methods(self) -> list[str]:
        return [method for method in METHODS if method in self.params.models]

    @cached_property
    def breakdown_files(self) -> dict[str, Path]:
        """Model -> the `score` stage's breakdown of its scores."""
        return self._files("breakdown/{}.csv", self.params.models)

    @cached_property
    def training(self) -> dict[str, dict]:
        """Method -> the training stage's metrics."""
        return {method: read_json(path) for method, path in self._files("train/{}.json", self._methods).items()}

    @cached_property
    def logs(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """Method -> column -> (step, value) of the training log; cells without a number are left out."""
        return {method: _read_log(path) for method, path in self._files("train/{}.csv", self._methods).items()}

    @cached_property
    def health(self) -> dict[str, list[Finding]]:
        """Method -> what the rules of `rarl/health.py` find in its log; methods without a finding are left out."""
        found = {}
        for method, log in self.logs.items():
            rows: dict[float, dict] = {}
            for name, points in log.items():
                for step, value in points:
                    rows.setdefault(step, {"step": step})[name] = value
            planned = self.training.get(method, {}).get("planned_steps", max(rows, default=0))
            found[method] = review([rows[step] for step in sorted(rows)], planned)
        return {method: findings for method, findings in found.items() if findings}

    @cached_property
    def benchmark_counts(self) -> dict[str, dict]:
        """Benchmark -> what the `benchmark` stage counted."""
        files = self._files("benchmark/{}.json", self.params.benchmarks)
        return {name: read_json(path) for name, path in files.items()}

    @cached_property
    def curation(self) -> dict:
        """What the `curate` stage counted; empty if it did not run."""
        path = Path("metrics/curate.json")
        return read_json(path) if path.is_file() else {}

    @cached_property
    def audit(self) -> dict[str, dict[str, dict[str, int]]]:
        """What the `audit` stage counted: set -> split -> name of a count -> value."""
        path = Path("metrics/audit.json")
        return read_json(path)["sets"] if path.is_file() else {}


def _read_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    import pandas as pd

    try:
        frame = pd.read_csv(path, float_precision="round_trip").apply(pd.to_numeric, errors="coerce")
    except pd.errors.EmptyDataError:
        return {}
    if "step" not in frame:
        return {}
    frame = frame.dropna(subset="step").set_index("step")
    columns = {column: series.dropna() for column, series in frame.items()}
    return {column: list(zip(series.index, series)) for column, series in columns.items() if len(series)}
