"""Experiments as git and DVC keep them: parameters, metrics, predictions and verdicts of one revision.

DVC knows what depends on what: `dvc.yaml` says which stages a model's scores come from, and `dvc.lock` which
parameters, code and inputs each stage ran with, and the hashes of its outputs. A difference between two runs is
therefore traced through the pipeline, not guessed from the names of the parameters.
"""

import csv
import io
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, reduce
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError

from rarl.errors import UserError
from rarl.params import Params
from rarl.processes.cost import read_cost
from rarl.spreadsheet import restore

HERE = "(this commit)"
WORKSPACE = "workspace"
#: Git's references that a user names.
PLACES = ("refs/heads", "refs/tags", "refs/remotes")
#: Stages that no score comes from: the output of `check` is a constant, and `pretrain` is frozen.
ASIDE = {"check", "pretrain"}


@dataclass(eq=False)
class Experiment:
    """One finished experiment, or a commit."""

    name: str
    revision: str
    """A git reference or hash."""

    def text(self, path: str) -> str | None:
        """Return a file that git tracks; None if this revision has none."""
        found = subprocess.run(["git", "show", f"{self.revision}:{path}"], capture_output=True)
        return found.stdout.decode(errors="replace") if found.returncode == 0 else None

    @cached_property
    def params(self) -> dict:
        """The parameters.

        Raises:
            UserError: they are missing or not valid in this version.
        """
        where = f"params.yaml of {self.name}"
        try:
            params = YAML(typ="safe", pure=True).load(self.text("params.yaml") or "")
            Params.model_validate(params)
        except (YAMLError, ValidationError) as error:
            found = " ".join(str(error).split())[:200]
            fix = "compare runs of one version (without --all), or correct params.yaml"
            raise UserError(where, found, "parameters of this version of the project", fix) from None
        return params

    def json(self, path: str) -> dict:
        """Return a JSON file that git tracks; empty if this revision has none.

        Raises:
            UserError: it is not valid JSON.
        """
        try:
            return json.loads(self.text(path) or "{}")
        except ValueError as error:
            fix = "run `dvc repro`, then `git add` and `git commit` the file"
            raise UserError(f"{path} of {self.name}", str(error), "JSON, as its stage writes it", fix) from None

    def cost(self, stage: str) -> dict:
        """Return time and memory of a stage as this machine measured them (`read_cost`); empty if unknown.

        Those of the present commit are of the stage's last run in this folder, unless that was an experiment's.
        """
        if self.name == HERE:
            cost = read_cost(stage)
            return {} if "experiment" in cost else cost
        *_, start, end, name = self.revision.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>
        return read_cost(stage, (start + end, name))

    def breakdown(self, model: str, mode: str, test_set: str, by: str) -> list[dict]:
        """Return the main judge's scores by one field of the samples, as the `score` stage wrote them."""
        place = (mode, test_set, self.params["report"]["main_judge"], by)
        rows = csv.DictReader(io.StringIO(self.text(f"metrics/breakdown/{model}.csv") or ""))
        return [
            row | {"value": restore(row["value"])}
            for row in rows
            if (row["mode"], row["set"], row["judge"], row["by"]) == place
        ]

    @cached_property
    def files(self):
        """DVC's file system at this revision; None outside of a DVC repository."""
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException

        try:
            revision = git("rev-parse", f"{self.revision}^{{commit}}").strip() if self.revision else None
            return DVCFileSystem(rev=revision)
        except DvcException:
            return None

    def tracked(self, path: str) -> str | None:
        """Return a file that DVC tracks; None if it is neither in DVC's cache nor in a remote.

        Never the file on disk, which after `git checkout` may be another revision's.
        """
        from dvc.exceptions import DvcException
        from dvc_data.index import DataIndexDirError
        from dvc_objects.errors import ObjectFormatError

        try:
            return self.files.repo.datafs.read_text(path) if self.files else None
        except (OSError, ValueError, DvcException, DataIndexDirError, ObjectFormatError):
            return None

    @cached_property
    def stages(self) -> dict:
        """DVC's stages by name, with their entries of `dvc.lock`; empty outside of a DVC repository.

        Raises:
            UserError: DVC cannot read `dvc.yaml` or `dvc.lock`.
        """
        from dvc.exceptions import DvcException

        try:
            found = self.files.repo.index.stages if self.files else []
        except DvcException as error:
            where, cause = f"dvc.yaml or dvc.lock of {self.name}", " ".join(str(error).split())[:200]
            raise UserError(where, cause, "a pipeline that DVC can read", "see `dvc status`") from None
        return {stage.name: stage for stage in found if getattr(stage, "name", None)}

    @cached_property
    def made(self) -> dict[str, object]:
        """Path of an output -> its hash in `dvc.lock`."""
        return {out.def_path: out.hash_info for stage in self.stages.values() for out in stage.outs}

    def chain(self, model: str) -> dict:
        """Return the stages that a model's scores come from, by name; empty if DVC knows none."""
        import networkx

        if not (last := self.stages.get(f"score@{model}")):
            return {}
        found = {last} | networkx.descendants(self.files.repo.index.graph, last)
        return {stage.name: stage for stage in found if stage.name not in ASIDE}

    def out_of_date(self, model: str) -> list[str]:
        """Return the stages of the chain that have not run with this revision's parameters, code and inputs.

        After `dvc exp run sft` these are the stages after it: the scores are still those of the previous run.
        """
        return sorted(self.chain(model).keys() & self._old)

    @cached_property
    def _old(self) -> set[str]:
        from dvc.dependency.param import ParamsDependency

        present: dict[str, object] = {}  # Hashes of code that several stages depend on

        def old(dep) -> bool:
            if isinstance(dep, ParamsDependency):  # `dep.workspace_status()` parses params.yaml each time: 2 s in all
                used = dep.hash_info.value
                return used is None or any(
                    self._value(key) != used.get(key, KeyError) for key in dep.params or {*self.params, *used}
                )
            if dep.def_path in self.made:
                return dep.hash_info != self.made[dep.def_path]
            if not dep.def_path.startswith(("rarl/", "stages/")):
                return False
            if dep.def_path not in present:
                present[dep.def_path] = dep.get_hash() if dep.exists else None
            return dep.hash_info != present[dep.def_path]

        return {name for name, stage in self.stages.items() if any(map(old, stage.deps))}

    def _value(self, key: str) -> object:
        """Return the parameter with a dotted key; None if there is none."""
        return reduce(lambda at, name: at.get(name) if isinstance(at, dict) else None, key.split("."), self.params)

    def unexplained(self, first: "Experiment", model: str) -> list[str]:
        """Return the stages whose outputs differ from the first run's, with the same parameters, code and inputs.

        The cause is another machine, other packages or a GPU, not a parameter.
        """

        def hashes(entries) -> dict:
            return {entry.def_path: entry.hash_info.value for entry in entries}

        theirs = first.chain(model)
        return sorted(
            name
            for name, stage in self.chain(model).items()
            if name in theirs
            and hashes(stage.deps) == hashes(theirs[name].deps)
            and hashes(stage.outs) != hashes(theirs[name].outs)
        )


class Workspace(Experiment):
    """The files on disk, committed or not, with the outputs that `dvc.lock` on disk names."""

    def __init__(self):
        super().__init__(WORKSPACE, "")

    def text(self, path: str) -> str | None:
        """Return a file on disk; None if there is none."""
        file = Path(path)
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def find(name: str) -> Experiment:
    """Return the experiment, or the commit, of a git revision or of an experiment's name.

    As in DVC, a git revision precedes an experiment of the same name. Of experiments with one name on several commits
    it is that of the present commit.

    Raises:
        UserError: there is none, several experiments have that name, or it has not finished.
    """
    if git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False):
        return Experiment(name, name)
    finished = [*experiments()[1:], *experiments(everywhere=True)[1:]]
    for run in finished:
        if name == run.name:
            return run
    several = [run.name for run in finished if run.revision.endswith(f"/{name}")]
    if several:
        found, fix = f"experiments of several commits: {', '.join(several)}", f"name one of them, as '{several[0]}'"
        raise UserError(name, found, "one experiment", fix)
    expected = "a git revision, branch, tag or the name of a finished experiment"
    for task in tasks():
        if name in (task["name"], task["rev"], task["rev"][:7]):
            fix = {"Queued": "dvc queue start", "Failed": f"dvc queue logs {name}"}
            found = f"an experiment with the status {task['status'].lower()}"
            raise UserError(name, found, expected, f"`{fix.get(task['status'], 'dvc queue status')}`")
    known = {run.name for run in finished} | {*git("for-each-ref", "--format=%(refname:short)", *PLACES).split()}
    close = get_close_matches(name, sorted(known), 3, 0.5)
    fix = "`dvc exp list -A` lists experiments; `git fetch` and `dvc exp pull` get those of a remote"
    raise UserError(name, "no such name", expected, f"{' or '.join(close)}? {fix}" if close else fix)


def experiments(everywhere: bool = False, head: str | None = None) -> list[Experiment]:
    """Return a commit (by default the present one), then the experiments run on it (or on any), oldest first."""
    head = head or git("rev-parse", "HEAD").strip()
    below = "refs/exps" if everywhere else f"refs/exps/{head[:2]}/{head[2:]}"
    refs = git("for-each-ref", "--sort=creatordate", "--format=%(refname)", below).split()
    refs = [ref for ref in refs if len(ref.split("/")) == 5]  # others are of DVC's queue and of what runs now
    names = Counter(ref.rsplit("/", 1)[1] for ref in refs)

    def name(ref: str) -> str:
        *_, start, end, name = ref.split("/")
        return name if names[name] == 1 else f"{name} ({start}{end[:5]})"

    return [Experiment(HERE, head)] + [Experiment(name(ref), ref) for ref in refs]


def unfinished() -> dict[str, int]:
    """Return the number of experiments in DVC's queue by state (queued, running, failed); empty if unreadable."""
    return dict(Counter(task["status"].lower() for task in tasks()))


def tasks() -> list[dict]:
    """Return the `name`, `rev` and `status` of what DVC's queue has not finished; empty if unreadable."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        found = Repo().experiments.celery_queue.status()
    except DvcException:
        return []
    return [task for task in found if task["status"] != "Success"]


def git(*arguments: str, check: bool = True) -> str:
    """Return the output of a git command; empty if it failed, without `check`.

    Raises:
        UserError: git failed, as outside of a repository.
    """
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise UserError("git", done.stderr.strip(), "a git repository", "run this in the clone")
    return done.stdout
