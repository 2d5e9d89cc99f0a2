"""What a study runs: its combinations of parameters, what they can show, and about how long they take."""

import re
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

from rarl.errors import UserError
from rarl.experiments.revisions import Experiment, Workspace, experiments, git
from rarl.params import Data, Params, load_params, parse_params
from rarl.profiles import leaves

PARAMS = "params.yaml"
#: Study -> the parameters that it sets, as `dvc exp run -S` takes them. Other values may be given for these.
SETTINGS = {
    "seeds": (),
    "grid": ("rarl.rewards.reasoning=0.0,1.0", "rarl.prompts=[reasoning],[explanation,short,open]"),
    "table2": (
        "train.source=sat",
        "models=[base,sft,grpo]",
        "benchmarks=[cv_bench]",
        "modes=[reasoning]",
        "train.trainable=lora,full",
        "train.samples=500,1000,5000",
    ),
    "losses": ("rl.loss=grpo",),
    "annotation": (
        "models=[base,sft,rarl]",
        "phantom.annotated_share=1.0",
        "train.annotated_share=0,0.1,0.25,0.5,1",
        "rarl.rewards.reasoning=0.0,1.0",
    ),
    "sweep": (),
}
#: Study -> the last stage that it needs; the whole pipeline without one.
TARGETS = {"table2": "score", "losses": "score", "annotation": "score"}


@dataclass(frozen=True)
class Combination:
    """One experiment of a study."""

    name: str
    settings: tuple[str, ...]
    """What `dvc exp run` gets as `-S`."""
    values: tuple[tuple[str, str], ...]
    """Key and value, as text, of the parameters that differ within the study."""
    params: Params


class Design:
    """The combinations of a study on the present commit and the files on disk.

    Raises:
        UserError: a parameter is unknown, a value is not valid, or there is nothing to vary.
    """

    def __init__(self, study: str, settings: Sequence[str]):
        from dvc.utils.hydra import get_hydra_sweeps

        given = {key_of(setting): setting for setting in settings}
        chosen = {*given}
        own = [given.pop(key_of(setting), setting) for setting in SETTINGS[study]]
        settings = [*own, *given.values()]
        check_keys(settings)
        self.study = study
        found = [sweep[PARAMS] for sweep in get_hydra_sweeps({PARAMS: settings})]
        self.varied = [key_of(one) for one, *others in zip(*found) if any(other != one for other in others)]
        if study != "sweep" and (surplus := [key for key in self.varied if key in given and key != "seed"]):
            raise UserError(
                f"rarl study {study} -S {surplus[0]}",
                "several values",
                "one value, which all experiments of this study get",
                f"`rarl study sweep` with {' and '.join(f'-S {key}' for key in self.varied)}",
            )
        if not self.varied:
            raise UserError(
                f"rarl study {study}",
                f"one combination: {', '.join(settings) or 'no -S'}",
                "a parameter with several values",
                "separate them by commas, as in `-S lora.r=4,8,16`",
            )
        named = {*self.varied, *given}
        self.combinations: list[Combination] = []
        self.left_out: list[str] = []
        every = [with_settings(sweep) for sweep in found]
        weights = {params.rarl.rewards.reasoning for params in every}
        for sweep, params in zip(found, every):
            if study == "table2" and "train.samples" not in chosen and too_few_rows(params):
                self.left_out += [one for one in sweep if key_of(one) == "train.samples" and one not in self.left_out]
            elif study == "annotation" and trained_elsewhere(params, weights):
                continue
            elif params not in (one.params for one in self.combinations):
                name = name_of(study, [one for one in sweep if key_of(one) in named])
                values = tuple((key_of(one), one.split("=", 1)[1]) for one in sweep if key_of(one) in self.varied)
                self.combinations.append(Combination(name, tuple(sweep), values, params))
        if not self.combinations:
            raise UserError(
                f"rarl study {study}",
                f"fewer training rows (phantom.sat_rows) than {' or '.join(self.left_out)}",
                "a number of samples that the rows have",
                "give smaller ones, as in `-S train.samples=100,300`",
            )
        self.head = git("rev-parse", "HEAD").strip()

    @cached_property
    def workspace(self) -> Workspace:
        """The files on disk, from which DVC makes the experiments."""
        return Workspace()

    @cached_property
    def code(self) -> list[str]:
        """What the scores depend on and git tracks, parameters aside."""
        from dvc.dependency.param import ParamsDependency

        made = self.workspace.made
        deps = {
            dep.def_path
            for model in self.workspace.params["models"]
            for stage in self.workspace.chain(model).values()
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency) and dep.def_path not in made
        }
        return ["dvc.yaml", *sorted(path for path in deps if not path.startswith(("metrics/", "/", "..")))]

    def made_of(self, revision: str, combination: Combination) -> bool:
        """Return whether a revision has the combination's parameters, and the code on disk."""
        if params_of(revision) != combination.params:
            return False
        return (
            subprocess.run(["git", "diff", "--quiet", revision, "--", *self.code], capture_output=True).returncode == 0
        )

    def finished(self) -> dict[str, Experiment]:
        """Return name of a combination -> the oldest experiment with its parameters and this code, or the commit."""
        found = {}
        for run in experiments(head=self.head):
            for one in self.combinations:
                if one.name not in found and self.made_of(run.revision, one) and complete(run):
                    found[one.name] = run
        return found

    def result(self, name: str, combination: Combination) -> Experiment | None:
        """Return the experiment of a name if it has the combination's parameters and all scores."""
        found = {run.name: run for run in experiments(head=self.head)}.get(name)
        return found if found and params_of(found.revision) == combination.params and complete(found) else None

    @property
    def seeds(self) -> int:
        """The number of seeds of each setting that is compared."""
        return len({dict(one.values)["seed"] for one in self.combinations}) if "seed" in self.varied else 1


def key_of(setting: str) -> str:
    """Return the key of a setting.

    >>> key_of("lora.r=4,8")
    'lora.r'
    """
    return setting.partition("=")[0].strip()


def too_few_rows(params: Params) -> bool:
    """Return whether the phantoms of SAT, the training source of Table 2, have fewer rows than `train.samples`."""
    return Path(params.data.root) == Path(Data().root) and params.phantom.sat_rows < (params.train.samples or 0)


def trained_elsewhere(params: Params, weights: Collection[float]) -> bool:
    """Return whether another cell of the annotation study trains the same models.

    Without annotations the reasoning reward has nothing to compare with. Without the reasoning reward RARL reads no
    annotation, unless it starts from the SFT adapter. `weights` are those of the reasoning reward in the study: with
    one of them there is no other cell.
    """
    if params.rarl.rewards.reasoning:
        return params.train.annotated_share == 0 and 0 in weights
    return params.train.annotated_share > 0 and params.train.start == "base" and len(weights) > 1


def name_of(study: str, settings: Sequence[str]) -> str:
    """Return the name of an experiment: a valid name of a git reference, the same for the same settings.

    >>> name_of("sweep", ["lora.r=4", "rl.beta=0.04"]), name_of("grid", ["rarl.prompts=[short,open]"])
    ('sweep-r_4-beta_0.04', 'grid-prompts_short_open')
    """
    parts = (f"{key_of(one).rpartition('.')[2]}_{one.partition('=')[2]}" for one in settings)
    name = "-".join([study, *(re.sub(r"[^A-Za-z0-9.-]+|\.\.+", "_", part).strip("_.") for part in parts)])
    return name if len(name) <= 80 else f"{name[:70]}-{sha256(name.encode()).hexdigest()[:8]}"


def check_keys(settings: Sequence[str]) -> None:
    """Refuse what is no `key=value` with a key of `params.yaml`.

    Raises:
        UserError: for the first such setting.
    """
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    known = {key for key, _ in leaves(load_params(PARAMS).model_dump())}
    known |= {key.rsplit(".", level)[0] for key in known for level in range(1, key.count(".") + 1)}
    for setting in settings:
        where = f"-S {setting}"
        try:
            (override,) = to_hydra_overrides([setting])
        except HydraException as error:
            fix = "give key=value, with commas between several values"
            raise UserError(where, " ".join(str(error).split())[:200], "key=value[,value ...]", fix) from None
        if override.is_add() or override.is_delete() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            raise UserError(where, "a key that is added or deleted, or a pattern", "key=value", "edit params.yaml")
        if (key := override.key_or_group) not in known:
            close = get_close_matches(key, known, n=1)
            fix = f"-S {close[0]}=... ?" if close else "rarl/params.py documents each key"
            raise UserError(where, f"{key}: unknown key", f"a key of {PARAMS}", fix)


def with_settings(settings: Sequence[str]) -> Params:
    """Return the parameters on disk with these settings.

    Raises:
        UserError: a value is not valid.
    """
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, PARAMS)
        file.write_bytes(Path(PARAMS).read_bytes())
        apply_overrides(file, list(settings))
        return parse_params(file.read_text(encoding="utf-8"), Path(f"-S {' -S '.join(settings)}"))


def params_of(revision: str) -> Params | None:
    """Return the parameters of a revision; None if they are not valid in this version."""
    try:
        return _parsed(git("show", f"{revision}:{PARAMS}", check=False))
    except UserError:
        return None


@cache
def _parsed(text: str) -> Params:
    return parse_params(text, Path(PARAMS))


def complete(run: Experiment) -> bool:
    """Return whether all scores of a run are those of its parameters and code."""
    return all(run.chain(model) and not run.out_of_date(model) for model in run.params["models"])
