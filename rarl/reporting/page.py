"""The report as a self-contained HTML page.

The template gets finished text and cells; it does no arithmetic. Jinja escapes whatever comes out of a model or a data
set. The page has no date, commit, path, time or anything else of the machine, so equal runs give equal bytes. Its
script shows these if `metrics/cost/cost.js` is next to it; commit, date and machine only if that file is of this very
page, by the digest in it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd

from rarl.cache import hash_path
from rarl.images import thumbnail
from rarl.params import Params
from rarl.processes.cost import COSTS
from rarl.profiles import PROFILES, leaves
from rarl.records import image_file, read_json
from rarl.registry import JUDGE_KINDS, METHODS, MODELS, REWARDS, Model
from rarl.reporting import cases, formats, plots, study_plots, study_tables, tables
from rarl.reporting.claims import our_table2, paper_table2, printed_as, verdict_on
from rarl.reporting.examples import examples, shown_model
from rarl.reporting.findings import findings
from rarl.reporting.formats import grouped, pivot, records
from rarl.reporting.inputs import Run
from rarl.reporting.scoring import OVERLAPPING, WITHOUT_OWN_TEST

PHANTOM_ROOT = "data/phantom"
GALLERY = 12
SCRIPT = Path(__file__).with_name("report.js")
NOT_CLINICAL = "Research only, not for clinical use."
#: Where `rarl study threshold` writes the calibration of the semantic judge.
THRESHOLDS = study_tables.STUDIES / "semantic_threshold.json"
#: Packages of which another version can change a number; those with a name are shown at the head of the page.
PACKAGES = {"torch": "torch", "transformers": "transformers", "trl": "TRL", "peft": "PEFT"} | dict.fromkeys(
    ("accelerate", "bert-score", "scipy", "statsmodels", "scikit-learn", "pandas", "pillow", "dvc")
)
REWARD_COLUMNS = {f"reward_{name}": reward.label for name, reward in REWARDS.items()}
HEALTH = {
    "kl": "KL to the reference",
    "entropy": "Entropy of a token",
    "completion_length": "Completion, tokens",
    "zero_signal_share": "Groups without signal",
    "truncated_share": "Truncated, share",
    "clip_ratio": "Clipped tokens, share",
}


def render(run: Run, frames: dict[str, pd.DataFrame]) -> str:
    """Return the page's HTML; `frames` are the tables that the stage `report` makes, by name."""
    # The paper's rows have a colour even if their model is not listed.
    html = template("report.html").render(colours=colours(MODELS | run.models), **context(run, frames))
    own = hashlib.sha256(html.encode()).hexdigest()[:16]
    return html.replace('<body data-page="">', f'<body data-page="{own}">', 1)


def digest(html: str) -> str:
    """Return the digest of a page that is written in it."""
    return re.search('<body data-page="([0-9a-f]+)">', html).group(1)


def render_cases(run: Run) -> str:
    """Return the HTML of the page of single cases."""
    return template("cases.html").render(phantom=is_phantom(run), colours=colours(run.models), **cases.context(run))


def template(name: str, folder: Path = Path(__file__).parent):
    """Return a Jinja template of this folder or of another one; an HTML one escapes everything that is put into it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=lambda name: name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pct": formats.percent, "p": formats.p_value}
    named = ("form", "has", "signed", "as_text", "mark", "kappa", "points", "plain")
    environment.filters |= {name: getattr(formats, name) for name in named}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals |= {
        "case": case_link,
        "colours": colours(MODELS),
        "baselines": tables.BASELINES,
        "not_clinical": NOT_CLINICAL,
        "sets": tables.SETS,
    }
    return environment.get_template(name)


def colours(models: dict[str, Model]) -> dict[str, str]:
    """Return model -> its colour, for the page's style."""
    return {slug: model.colour for slug, model in models.items()}


def case_link(test_set: str, id: str = "", **state: str) -> str:
    """Return the address of one case, or of a filtered list of them, on the page of single cases."""
    return "cases.html#" + urlencode({"set": test_set, **({"id": id} if id else {}), **state})


def context(run: Run, frames: dict[str, pd.DataFrame]) -> dict:
    """Return what the template shows."""
    params, phantom = run.params, is_phantom(run)
    script = SCRIPT.read_text(encoding="utf-8")
    names = ("annotation", "grid", "seeds", "sweep")
    annotation, grid, seeds, sweep = (study_tables.study(name, params.profile) for name in names)
    seeds = [row for row in seeds if row["mode"] == run.main_mode]
    totals, noise = table2(params.profile), study_tables.training_noise(run, frames["own_test"])
    return {
        "run": run,
        "params": params,
        "script": script,
        "script_hash": cases.script_hash(script),
        "costs": costs(params),
        "costs_file": (COSTS / "cost.js").as_posix(),
        "phantom": phantom,
        "data": Path(params.data.root).name,
        "ours": "This run (phantom)" if phantom else "This run",
        "labels": run.labels,
        "judges": {judge: JUDGE_KINDS[params.judge[judge].kind].how for judge in run.judges},
        "unscored": unscored(run),
        "paper": tables.paper(),
        "confidence": f"{100 * run.confidence:g}",
        "findings": findings(run, frames),
        "cards": cards(run, frames, noise),
        "claims": claim_cards(frames["claims"]),
        "table2": totals,
        "studies": {
            "annotation": annotation,
            "grid": grid,
            "seeds": pivot(seeds, ["set"]),
            "sweep": study_tables.sweep_blocks(sweep),
        },
        "annotation_notes": study_tables.annotation_notes(annotation),
        "study_figures": {
            "table2": study_plots.table2(totals),
            "annotation": study_plots.annotation(annotation),
            "grid": study_plots.grid(grid),
            "seeds": study_plots.seeds(seeds, run.models),
            "sweep": study_plots.sweep(sweep, run.models),
        },
        **{name: records(frames[name]) for name in ("own_test", "detectable", "grounding")},
        "breakdown": breakdown(frames["breakdown"]),
        "yes_no": grouped(frames["yes_no"].query("mode == @run.main_mode"), "set"),
        "examples": examples(run),
        "image": lambda sample: thumbnail(image_file(params.data.root, sample.image)),
        "example_model": run.labels[shown_model(run)],
        "thresholds": thresholds(run),
        "versions": versions(),
        "main_packages": {name: label for name, label in PACKAGES.items() if label},
        "all_params": {key: value for key, value in leaves(listed(params)) if key != "data.root"},
        "paper_tables": [arrange(run, name, frames[name]) for name in ("table3", "table6")],
        "tests": grouped(frames["paired_tests"], "family"),
        "agreement": pivot(records(frames["agreement"]), ["first", "second", "score"]),
        "matrix": matrix(frames["agreement"]),
        "disagreements": records(frames["disagreements"].iloc[spread(range(len(frames["disagreements"])), 8)]),
        "disagreement_count": len(frames["disagreements"]),
        "gaps": pivot(records(frames["reward_gap"]), ["set", "judge", "score"]),
        "figures": {"summary": summary_figures(run, frames["own_test"], noise), "training": training_figures(run)},
        "rewards": REWARD_COLUMNS,
        "audit": audit_lines(run),
        "benchmarks": {
            name: {"rows": len(run.samples[name]), "details": flatten(run.benchmark_counts.get(name, {}))}
            for name in params.benchmarks
        },
        "gallery": gallery(run),
        "differences": differences(run),
    }


def claim_cards(frame: pd.DataFrame) -> list[dict]:
    """Return one card per claim: both verdicts, the ranges in points and as a ratio, and every comparison."""
    lines = records(frame)
    cards = []
    for claim in tables.paper()["claims"]:
        own = [line for line in lines if line["claim"] == claim["id"]]
        card = {"lines": own, "verdicts": {}, "ranges": {}}
        for source in ("paper", "ours"):
            card["verdicts"][source] = verdict_on(claim["id"], source, own)
            card["ranges"][source] = spans([line for line in own if line["source"] == source])
        figures = [{"figure": figure, "found": printed_as(figure, own)} for figure in claim.get("printed", [])]
        cards.append({**claim, **card, "figures": figures})
    return cards


def spans(lines: list[dict]) -> dict[str, tuple[float, float]]:
    """Return smallest and largest difference in points, ratio in percent and number of questions; {} without lines."""
    values = {key: [x[key] for x in lines if x[key] is not None] for key in ("difference", "ratio", "n")}
    return {key: (min(found), max(found)) for key, found in values.items() if found}


def table2(profile: str) -> list[dict]:
    """Return the rows of Table 2, the paper's and ours, with our difference to the paper's row of the same kind.

    Our Total is over all rows, and so is the paper's that it is compared with: printed for RL w/ LoRA is a plain mean.
    """
    columns = [*tables.paper()["tasks"], "Total"]
    printed = {(r["method"], r["samples"]): r for r in tables.paper()["table2"]["rows"]}
    n = sum(tables.paper()["tasks"].values())
    rows = [{"source": "paper", "n": n, "beyond": {}, "difference": {}, **row} for row in printed.values()]
    for row in records(our_table2(profile)):
        rows.append(row | {"beyond": {}, "difference": {}})
        key = row["method"], row["samples"]
        if key in printed:
            theirs = printed[key] | {"Total": paper_table2()[key][0]}
            low, high = row.get("Total_low"), row.get("Total_high")
            rows[-1]["difference"] = {c: row[c] - theirs[c] for c in columns if row.get(c) is not None}
            rows[-1]["beyond"] = {"Total": low is not None and not low <= theirs["Total"] <= high}
    return rows


def breakdown(frame: pd.DataFrame) -> list[dict]:
    """Return one table per test set and field: a row for each value, a cell for each model."""
    return [
        {
            "label": tables.SETS[name],
            "by": {"kind": "kind of answer"}.get(by, by),
            "rows": pivot(records(part), ["value"]),
        }
        for (name, by), part in frame.groupby(["set", "by"], sort=False)
    ]


def matrix(frame: pd.DataFrame) -> dict[str, dict]:
    """Return score -> (judge, judge) -> agreement over all models; only scores that any pair of judges has."""
    found: dict[str, dict] = {}
    for row in records(frame[frame["model"] == "all"]):
        cells = found.setdefault(row["score"], {})
        cells[row["first"], row["second"]] = cells[row["second"], row["first"]] = row
    return found


def unscored(run: Run) -> dict[str, list[tuple[str, int]]]:
    """Return judge -> the most frequent reasons for unscored answers over all models, modes and sets, with counts."""
    reasons: dict[str, Counter] = {judge: Counter() for judge in run.judges}
    for (*_, judge), verdicts in run.verdicts.items():
        if judge in reasons:
            reasons[judge].update(v.unscored for v in verdicts if v.unscored is not None)
    return {judge: counts.most_common(5) for judge, counts in reasons.items() if counts}


def thresholds(run: Run) -> dict | None:
    """Return the calibration of the semantic judge with its curves; None if there is none, or no such judge."""
    judge = next((j for j in run.judges if run.params.judge[j].kind == "semantic"), None)
    if judge is None or not THRESHOLDS.is_file():
        return None
    study, settings = read_json(THRESHOLDS), run.params.judge[judge]
    used = {"answers": settings.threshold, "reasoning": settings.reasoning_threshold}
    dev = Path("data/curated/dev.jsonl")
    return {
        "parts": {part: found | {"used": used[part]} for part, found in study["parts"].items()},
        "same_rows": dev.is_file() and hash_path(dev) == study["rows_sha256"],
        "figures": [plots.threshold(part, found, used[part]) for part, found in study["parts"].items()],
    }


def listed(params: Params) -> dict:
    """Return the parameters without the definitions of rivals that are not listed."""
    return params.model_dump(exclude={"rival": params.rival.keys() - {*params.models}})


def costs(params: Params) -> list[dict]:
    """Return the rows of the table of times and memory, in the order of the pipeline.

    They come from the parameters, not from the files in `metrics/cost/`, so that the page is the same on every
    machine. A row has the `names` of its cost files (`rarl/processes/cost.py`): the sum of their times and the largest
    memory.
    """
    rows = [(stage, "", [stage]) for stage in ("tidy", "check", "phantom", "curate")]
    rows.append(("benchmark", "", [f"benchmark_{name}" for name in params.benchmarks]))
    rows += [(stage, "", [stage]) for stage in ("audit", "truth", "base")]
    rows += [("encode", "", ["encode_training"]), ("encode_benchmarks", "", ["encode_benchmarks"])]
    rows += [(method, "", [method]) for method in METHODS]
    rows += [("rival", model, [f"rival_{model}"]) for model in params.models if model in params.rival]
    rows += [("infer", model, [f"infer_{model}"]) for model in params.models]
    rows += [(stage, "", [f"{stage}_{model}" for model in params.models]) for stage in ("judge", "score")]
    rows += [("report", "", ["report"])]
    return [{"stage": stage, "item": item, "names": names} for stage, item, names in rows if names]


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a number.

    Python and the build of a package (`+cpu` in `2.13.0+cpu`) are left out, because they may differ between machines
    with the same `constraints.txt`; both are in `metrics/cost/`. A hash of the code is left out because DVC re-runs
    this stage only for the code that it depends on; `dvc.lock` has the hashes.
    """
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def audit_lines(run: Run) -> list[dict]:
    """Return one line per split that is trained on or evaluated, with what the audit counted."""
    return [
        {"label": "Own rows" if name == run.params.own_test else tables.SETS[name], "split": split, **counts}
        for name, splits in run.audit.items()
        for split, counts in splits.items()
        if name == run.params.own_test or split == "test"
    ]


def is_phantom(run: Run) -> bool:
    """Whether the run is on the phantoms."""
    return Path(run.params.data.root) == Path(PHANTOM_ROOT)


def cards(run: Run, frames: dict[str, pd.DataFrame], noise: dict[str, dict]) -> list[dict]:
    """Return one card per model: own test by the main judge, training noise, and the paired difference to the base."""
    families = grouped(frames["paired_tests"], "family")
    between = [test for end in ("", tables.RIVALS) for test in families.get(f"between models{end}", [])]
    to_base = {test["second"]: test for test in between if test["first"] == "base"}
    main = grouped(frames["own_test"], "mode").get(run.main_mode, [])
    return [
        {**row, "label": run.labels[m], "to_base": to_base.get(m), "trained": m in METHODS}
        | {"noise": noise.get(m) if m in METHODS else None}
        for row in main
        for m in [row["model"]]
    ]


def arrange(run: Run, name: str, frame: pd.DataFrame) -> dict:
    """Return one of the paper's tables as blocks of rows, with a line for each test set and score."""
    judges = tables.paper()["judges"]
    cells = {(r["row"], r["set"], r["source"], r["judge"]): r for r in records(frame)}
    blocks = []
    for row in tables.rows_of(name):
        lines = []
        for test_set, label in tables.SETS.items():
            ours = [cells.get((row["label"], test_set, "ours", judge)) for judge in run.judges]
            theirs = [cells.get((row["label"], test_set, "paper", judge)) for judge in judges]
            if not any(ours) and not any(theirs):
                continue
            counts = next((cell for cell in ours if cell), None)
            gone = counts and not run.samples[OVERLAPPING if test_set == WITHOUT_OWN_TEST else test_set]
            line = {"label": label, "ours": ours, "paper": theirs, "gone": bool(gone), "counts": counts}
            scores = ("final", "reasoning") if test_set == run.params.own_test else ("final",)
            lines += [line | {"score": score} for score in scores]
        ran = any(key[0] == row["label"] and key[2] == "ours" for key in cells)
        blocks.append({"label": row["label"], "model": row["model"], "ran": ran, "lines": lines})
    return tables.paper()[name] | {"blocks": blocks}


def summary_figures(run: Run, own: pd.DataFrame, noise: dict[str, dict]) -> list[tuple[str, str]]:
    """Return the figures of the final scores: SVG and caption."""
    rows = records(own[own["model"].isin(run.params.models) & own["final"].notna()])
    for row in rows:
        row["faint"] = row["mode"] != run.main_mode
        row["colour"] = run.models[row["model"]].colour
        row["label"] = run.labels[row["model"]] + (f", {row['mode']}" if row["faint"] else "")
        row["noise"] = noise.get(row["model"]) if row["model"] in METHODS and not row["faint"] else None
    floors = own.set_index("model")["final"]
    lines = {label: floors[name] for name, label in tables.BASELINES.items() if name in floors}
    dots: dict[str, dict] = {}
    for test_set in run.params.sets_of(run.main_mode):
        for model in run.params.models:
            cell = run.scores[model][run.main_mode][test_set][run.main_judge]
            if cell["final"] is not None:
                row = dots.setdefault(f"{tables.SETS[test_set]}, n {len(run.samples[test_set])}", {})
                row[model] = (cell["final"], cell["final_low"], cell["final_high"])
    caption = f"By the {run.main_judge} judge, with {100 * run.confidence:g} % intervals"
    n = len(run.samples[run.params.own_test])
    seeds = " Thick line below an interval: range over seeds." if noise else " One training each, without other seeds."
    found = [
        (plots.bars(rows, lines, "Own test set"), f"{caption} over questions, n {n}. Faint: the other modes.{seeds}"),
        (plots.dots(dots, run.models, f"All test sets, {run.main_mode} prompt"), f"{caption}."),
    ]
    return [(svg, text) for svg, text in found if svg]


def training_figures(run: Run) -> list[tuple[str, str]]:
    """Return the figures of the training logs: SVG and caption."""
    labels = run.labels
    step = plots.window(max((len(s) for log in run.logs.values() for s in log.values()), default=0))
    mean = f"Thin: each step. Bold: mean of {step} steps." if step > 1 else ""
    rl = {method: log for method, log in run.logs.items() if method != "sft"}
    sft = {method: log for method, log in run.logs.items() if method == "sft"}
    found = [
        (
            plots.curves(rl, "reward", "Weighted sum of the rewards", labels),
            f"The sums of two methods with different rewards cannot be compared. {mean}",
        ),
        (plots.panels(rl, REWARD_COLUMNS, "rewards", labels), f"Each reward without its weight. {mean}"),
        (
            plots.curves(run.logs, "dev_score", "Development split, percent right", labels, smooth=False),
            "The checkpoint with the highest value is the one that is evaluated.",
        ),
        (plots.curves(sft, "loss", "SFT loss", labels), mean),
        (
            plots.panels(rl, HEALTH, "health", labels),
            "Shares are of the groups, completions or tokens. A group without signal has equal rewards for all its "
            f"completions, so nothing is learned from it. {mean}",
        ),
    ]
    return [(svg, text.strip()) for svg, text in found if svg]


def flatten(counts: dict) -> dict[str, object]:
    """Return nested counts with dotted keys; a list is shown by its first entries."""
    flat = dict(leaves(counts))
    for key, item in flat.items():
        if isinstance(item, list):
            more = f", … ({len(item)} in all)" if len(item) > 5 else ""
            flat[key] = ", ".join(map(str, item[:5])) + more or "none"
    return flat


def choose(run: Run, count: int = GALLERY) -> list[int]:
    """Return positions of the own test's gallery samples.

    Half where the models differ, a quarter each where all are right and all are wrong, spread evenly over the file. If
    one of these groups is too small, the others fill its places.
    """
    scores = [run.ratings(model, run.main_mode, run.params.own_test) for model in run.params.models]
    right = [set(of_models) for of_models in zip(*scores)]
    groups = (
        [i for i, found in enumerate(right) if len(found) > 1],
        [i for i, found in enumerate(right) if found == {1}],
        [i for i, found in enumerate(right) if found == {0}],
    )
    chosen = [i for group, share in zip(groups, (2, 4, 4)) for i in spread(group, count // share)]
    rest = [i for i in range(len(right)) if i not in chosen]
    return sorted(chosen + spread(rest, count - len(chosen)))


def spread(items: Sequence[int], count: int) -> list[int]:
    """Return `count` of the items, or all of them, evenly spread.

    >>> spread(range(10), 4)
    [0, 2, 5, 7]
    """
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def gallery(run: Run) -> list[dict]:
    """Return samples of the own test with each model's answer: (name, prediction, score)."""
    own, mode, models = run.params.own_test, run.main_mode, run.params.models
    scores = {model: run.ratings(model, mode, own) for model in models}
    return [
        {
            "sample": run.samples[own][i],
            "answers": [(model, run.predictions[model, mode, own][i], scores[model][i]) for model in models],
        }
        for i in choose(run)
    ]


def differences(run: Run) -> list[tuple[str, object, object]]:
    """Return the parameters whose value is not the profile's: key, value here, value in the profile.

    The profile is its file over the defaults of `rarl/params.py`. `data.root` is left out: the page names the folder,
    and a path says more about a machine than a reader of the page needs to know.
    """
    from ruamel.yaml import YAML

    profile = YAML(typ="safe", pure=True).load(PROFILES / f"{run.params.profile}.yaml")
    fields = {name: field.get_default() for name, field in Params.model_fields.items() if not field.is_required()}
    defaults = {name: value.model_dump() if hasattr(value, "model_dump") else value for name, value in fields.items()}
    here = dict(leaves(run.params.model_dump()))
    expected = {**dict(leaves(defaults)), **dict(leaves(profile))}
    expected.pop("data.root", None)
    return [(key, here.get(key), given) for key, given in expected.items() if here.get(key) != given]
