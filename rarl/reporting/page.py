"""The self-contained HTML page: what the template needs, and its rendering.

The template gets finished text and cells; it does no arithmetic. Whatever came out of a model or a
data set is escaped by Jinja. The page has no date, no commit, no path, no time and nothing else of the machine, so equal
runs give equal bytes. Its script shows these where `metrics/cost/cost.js` is beside it: commit, date and machine only if
that file is of this very page, by the digest in it.
"""

import hashlib
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd

from rarl.cache import hash_path
from rarl.cost import COSTS
from rarl.images import thumbnail
from rarl.params import Params
from rarl.records import Sample, image_file, read_json
from rarl.registry import JUDGE_KINDS, METHODS, MODELS, REWARDS
from rarl.reporting import cases, plots, tables
from rarl.reporting.claims import our_table2, overall, paper_table2, printed_as
from rarl.reporting.examples import examples, shown_model
from rarl.reporting.inputs import Run
from rarl.reporting.scoring import OVERLAPPING, WITHOUT_OWN_TEST

PHANTOM_ROOT = "data/phantom"
GALLERY = 12
#: Share of a model's replies that were cut off, from which on the summary says so.
CUT_OFF = 0.05
SCRIPT = Path(__file__).with_name("report.js")
NOT_CLINICAL = "Research only, not for clinical use."
#: Where `rarl compare` puts its tables, and where the semantic judge's threshold comes from.
STUDIES = Path("metrics/studies")
THRESHOLDS = STUDIES / "semantic_threshold.json"
#: Packages whose versions can move a number.
PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "bert-score", "scipy", "statsmodels", "scikit-learn",
    "pandas", "pillow", "dvc",
)  # fmt: skip
#: Those of them that the head of the page names.
MAIN_PACKAGES = {"torch": "torch", "transformers": "transformers", "trl": "TRL", "peft": "PEFT"}
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
    """The page's HTML; `frames` are the tables that the stage `report` makes, by name."""
    html = template("report.html").render(**context(run, frames))
    own = hashlib.sha256(html.encode()).hexdigest()[:16]
    return html.replace('<body data-page="">', f'<body data-page="{own}">', 1)


def digest(html: str) -> str:
    """The digest that a page carries of itself."""
    return re.search('<body data-page="([0-9a-f]+)">', html).group(1)


def render_cases(run: Run) -> str:
    """The HTML of the page of single cases."""
    return template("cases.html").render(phantom=is_phantom(run), **cases.context(run))


def template(name: str):
    """One of the HTML templates, with everything escaped that is put into it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["colours"] = {name: model.colour for name, model in MODELS.items()}
    environment.filters |= {
        "pct": percent,
        "signed": signed,
        "p": p_value,
        "as_text": as_text,
        "mark": mark,
        "kappa": kappa,
        "points": points,
    }
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals["case"] = case_link
    return environment.get_template(name)


def case_link(test_set: str, id: str = "", **state: str) -> str:
    """The address of one case, or of a filtered list of them, on the page of single cases."""
    return "cases.html#" + urlencode({"set": test_set, **({"id": id} if id else {}), **state})


def context(run: Run, frames: dict[str, pd.DataFrame]) -> dict:
    """Everything that the template shows."""
    params = run.params
    phantom = is_phantom(run)
    own, train = run.samples[run.params.own_test], run.train
    labels = {model: tables.MODELS[model] for model in params.models}
    script = SCRIPT.read_text(encoding="utf-8")
    return {
        "script": script,
        "script_hash": cases.script_hash(script),
        "costs": costs(params),
        "costs_file": (COSTS / "cost.js").as_posix(),
        "phantom": phantom,
        "data": Path(params.data.root).name,
        "run": "This run (phantom)" if phantom else "This run",
        "params": params,
        "labels": labels,
        "sets": tables.SETS,
        "baseline_labels": tables.BASELINES,
        "main_mode": run.main_mode,
        "main_judge": run.main_judge,
        "not_clinical": NOT_CLINICAL,
        "judges": {j: JUDGE_KINDS[params.judge[j].kind].how for j in run.judges},
        "idle_judges": run.idle_judges,
        "unscored": unscored(run),
        "paper": tables.paper(),
        "confidence": f"{100 * params.report.confidence:g}",
        "findings": findings(run, frames),
        "cards": cards(run, frames),
        "claims": claim_cards(run, frames["claims"]),
        "table2": table2(params.profile),
        "grid": study("grid", params.profile),
        "seeds": pivot([r for r in study("seeds", params.profile) if r["mode"] == run.main_mode], ["set"]),
        "detectable": records(frames["detectable"]),
        "grounding": records(frames["grounding"]),
        "breakdown": breakdown(frames["breakdown"]),
        "yes_no": by_set(frames["yes_no"], run.main_mode),
        "examples": pictured(run, examples(run)),
        "example_model": tables.MODELS[shown_model(run)],
        "thresholds": thresholds(run),
        "versions": versions(),
        "main_packages": MAIN_PACKAGES,
        "all_params": {k: v for k, v in leaves(params.model_dump()).items() if k != "data.root"},
        "paper_tables": [arrange(run, name, frames[name]) for name in ("table3", "table6")],
        "own_test": records(frames["own_test"]),
        "tests": families(frames["paired_tests"]),
        "agreement": pivot(records(frames["agreement"]), ["first", "second", "score"]),
        "matrix": matrix(run, frames["agreement"]),
        "disagreements": some_disagreements(frames["disagreements"]),
        "disagreement_count": len(frames["disagreements"]),
        "gaps": pivot(records(frames["reward_gap"]), ["set", "judge", "score"]),
        "truth_judge": run.truth_judge,
        "figures": figures(run, frames),
        "training": run.training,
        "rewards": REWARD_COLUMNS,
        "curation": run.curation,
        "explanations": run.curation.get("explanations", {}),
        "audit": audit_lines(run),
        "benchmarks": {
            name: {"rows": len(run.samples[name]), "details": flatten(run.benchmark_counts.get(name, {}))}
            for name in params.benchmarks
        },
        "own_n": len(own),
        "own_images": len({sample.image_sha256 for sample in own}),
        "train_n": len(train),
        "train_annotated": sum(sample.reasoning is not None for sample in train),
        "gallery": gallery(run),
        "differences": differences(run),
        "recipes": {method: getattr(params, method) for method in ("grpo", "rarl") if method in params.models},
    }


def claim_cards(run: Run, frame: pd.DataFrame) -> list[dict]:
    """One card a claim: what is claimed, both verdicts, and every comparison in points and as a ratio."""
    lines = records(frame)
    cards = []
    for claim in tables.paper()["claims"]:
        own = [line for line in lines if line["claim"] == claim["id"]]
        sides = {source: [line for line in own if line["source"] == source] for source in ("paper", "ours")}
        cards.append(
            {
                **claim,
                "lines": own,
                "verdicts": {s: overall([line["verdict"] for line in rows]) for s, rows in sides.items()},
                "ranges": {source: spans(rows) for source, rows in sides.items()},
                "figures": [
                    {"figure": figure, "found": printed_as(figure, own)} for figure in claim.get("printed", [])
                ],
            }
        )
    return cards


def spans(lines: list[dict]) -> dict[str, tuple[float, float]]:
    """Smallest and largest difference in points, ratio in percent and number of questions; empty without lines."""
    found = {}
    for key in ("difference", "ratio", "n") if lines else ():
        values = [line[key] for line in lines if line[key] is not None]
        if values:
            found[key] = (min(values), max(values))
    return found


def table2(profile: str) -> list[dict]:
    """The rows of Table 2, the paper's and ours, with our difference to the paper's row of the same method and size.

    Our Total is over all rows, and so is the paper's that it is compared with: printed for RL w/ LoRA is a plain mean.
    """
    columns = [*tables.paper()["tasks"], "Total"]
    printed = {(r["method"], r["samples"]): r for r in tables.paper()["table2"]["rows"]}
    n = sum(tables.paper()["tasks"].values())
    rows = [{"source": "paper", "n": n, "beyond": {}, "difference": {}, **row} for row in printed.values()]
    for row in records(our_table2(profile)):
        key = row["method"], row["samples"]
        theirs = printed.get(key) and printed[key] | {"Total": paper_table2()[key][0]}
        low, high = row.get("Total_low"), row.get("Total_high")
        rows.append(
            {
                **row,
                "difference": {c: row[c] - theirs[c] for c in columns if row.get(c) is not None} if theirs else {},
                "beyond": {"Total": low is not None and not low <= theirs["Total"] <= high} if theirs else {},
            }
        )
    return rows


def study(name: str, profile: str) -> list[dict]:
    """The rows of a study that was run; of this profile alone where the table says which each is of."""
    path = STUDIES / f"{name}.csv"
    rows = records(pd.read_csv(path)) if path.is_file() else []
    return [row for row in rows if row.get("profile", profile) == profile]


def breakdown(frame: pd.DataFrame) -> list[dict]:
    """One table for each test set and field: a row for each value, a cell for each model."""
    return [
        {"set": name, "label": tables.SETS[name], "by": by, "rows": pivot(records(part), ["value"])}
        for (name, by), part in frame.groupby(["set", "by"], sort=False)
    ]


def by_set(frame: pd.DataFrame, mode: str) -> dict[str, list[dict]]:
    """Test set -> its rows under one mode."""
    rows = frame[frame["mode"] == mode]
    return {str(name): records(part) for name, part in rows.groupby("set", sort=False)}


def matrix(run: Run, frame: pd.DataFrame) -> dict[str, dict]:
    """Score -> (judge, judge) -> agreement over all models; only scores that any pair of judges has."""
    found: dict[str, dict] = {}
    for row in records(frame[frame["model"] == "all"]):
        cells = found.setdefault(row["score"], {})
        cells[row["first"], row["second"]] = cells[row["second"], row["first"]] = row
    return found


def unscored(run: Run) -> dict[str, list[tuple[str, int]]]:
    """Judge -> why it left answers unscored, and how often: the most frequent reasons over all models, modes and sets."""
    reasons: dict[str, Counter] = {judge: Counter() for judge in run.judges}
    for (*_, judge), verdicts in run.verdicts.items():
        if judge in reasons:
            reasons[judge].update(v.unscored for v in verdicts if v.unscored is not None)
    return {judge: counts.most_common(5) for judge, counts in reasons.items() if counts}


def some_disagreements(frame: pd.DataFrame, count: int = 8) -> list[dict]:
    """Answers on which raters differ, spread evenly over all of them."""
    return records(frame.iloc[_spread(list(range(len(frame))), count)])


def pictured(run: Run, found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The examples with their pictures."""
    root = run.params.data.root
    return {
        place: [{**entry, "image": thumbnail(image_file(root, entry["sample"].image))} for entry in entries]
        for place, entries in found.items()
    }


def thresholds(run: Run) -> dict | None:
    """The calibration of the semantic judge with its curves; None where it was not made or nobody is judged so."""
    judge = next((j for j in run.judges if run.params.judge[j].kind == "semantic"), None)
    if judge is None or not THRESHOLDS.is_file():
        return None
    study, settings = read_json(THRESHOLDS), run.params.judge[judge]
    used = {"answers": settings.threshold, "reasoning": settings.reasoning_threshold}
    dev = Path("data/curated/dev.jsonl")
    return {
        "judge": judge,
        "parts": {part: found | {"used": used[part]} for part, found in study["parts"].items()},
        "same_rows": dev.is_file() and hash_path(dev) == study["rows_sha256"],
        "figures": [plots.threshold(part, found, used[part]) for part, found in study["parts"].items()],
    }


def costs(params: Params) -> list[dict]:
    """The rows of the table of times and memory, in the order of the pipeline.

    They come from the parameters, not from the files in `metrics/cost/`: the page stays the same on every machine, and
    files of stages that were run with other parameters are not shown.

    Returns:
        For each row the `stage`, the `item` that it is for ("" for a stage without items) and the `names` of its cost
        files (`rarl/cost.py`); a row over several runs shows the sum of their times and the largest memory.
    """
    rows = [(stage, "", [stage]) for stage in ("check", "phantom", "curate")]
    rows.append(("benchmark", "", [f"benchmark_{name}" for name in params.benchmarks]))
    rows += [(stage, "", [stage]) for stage in ("audit", "truth", "base")]
    rows.append(("encode", "", ["encode_training"]))
    rows.append(("encode_benchmarks", "", ["encode_benchmarks"]))
    rows += [(method, "", [method]) for method in METHODS]
    rows += [("infer", model, [f"infer_{model}"]) for model in params.models]
    rows += [("judge", judge, [f"judge_{judge}_{model}" for model in params.models]) for judge in params.judges]
    rows.append(("score", "", [f"score_{model}" for model in params.models]))
    rows.append(("report", "", ["report"]))
    return [{"stage": stage, "item": item, "names": names} for stage, item, names in rows if names]


def versions() -> dict[str, str]:
    """The versions of the packages that can move a number.

    Left out is what may differ between two machines with the same `constraints.txt`: Python, and the build of a package
    (`+cpu` in `2.13.0+cpu`); both are in `metrics/cost/`. Left out is the code, too: DVC re-runs this stage only for the
    code that it depends on, so a hash of all of it would be that of an older commit. `dvc.lock` has the hashes.
    """
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def audit_lines(run: Run) -> list[dict]:
    """One line for each split that is trained on or evaluated, with what the audit counted."""
    return [
        {"label": "Own rows" if name == run.params.own_test else tables.SETS[name], "split": split, **counts}
        for name, splits in run.audit.items()
        for split, counts in splits.items()
        if name == run.params.own_test or split == "test"
    ]


def is_phantom(run: Run) -> bool:
    return Path(run.params.data.root) == Path(PHANTOM_ROOT)


def findings(run: Run, frames: dict[str, pd.DataFrame]) -> list[str]:
    """What can be said of the own test, in sentences: only what the tests bear out."""
    own, tests = frames["own_test"], frames["paired_tests"]
    labels = tables.MODELS
    main = own[(own["mode"] == run.main_mode) & own["final"].notna()]
    if main.empty:
        return [f"The {run.main_judge} judge scored nothing on the own test set, so nothing can be said."]
    best = main.sort_values("final", ascending=False, kind="stable").iloc[0]
    sentences = [
        f"Highest on the own test under the {run.main_mode} prompt: {labels[best['model']]} with "
        f"{percent(best['final'])} % [{percent(best['final_low'])}, {percent(best['final_high'])}]."
    ]
    cut = [
        f"{labels[row.model]} {row.truncated:.0f} of {row.n:.0f}"
        for row in main.itertuples()
        if row.truncated > CUT_OFF * row.n
    ]
    if cut:
        sentences.append(
            f"Cut off at {run.params.decoding.max_new_tokens} tokens (decoding.max_new_tokens), and wrong where the answer "
            f"was still to come: {', '.join(cut)}."
        )
    between = tests[tests["family"] == "between models"]
    if len(between):
        shown = [
            f"{labels[t.second]} over {labels[t.first]} by {percent(t.difference)} points"
            if t.difference > 0
            else f"{labels[t.first]} over {labels[t.second]} by {percent(-t.difference)} points"
            for t in between[between["differs"]].itertuples()
        ]
        count = f"{len(shown)} of {len(between)} comparisons between models {'is' if len(shown) == 1 else 'are'}"
        sentences.append(f"{count} outside the noise" + (f": {'; '.join(shown)}." if shown else "."))
    low = own[own["model"] == "most_frequent_by_kind"]
    if len(low):
        floor = low.iloc[0]["final"]
        above = [labels[row.model] for row in main.itertuples() if row.final_low > floor]
        sentences.append(
            f"Never looking, and always giving the most frequent training answer of the question's kind, scores "
            f"{percent(floor)} %. Above that with the whole interval: {', '.join(above) if above else 'no model'}."
        )
    for mode in run.params.modes:
        if (image := run.params.mode[mode].image) != "shown":
            blank = tests[tests["family"] == tables.family_of(mode, run.main_mode)]
            lost = [f"{labels[t.second.split(',')[0]]} {signed(-t.difference)}" for t in blank.itertuples()]
            if lost:
                instead = {"blank": "a grey picture", "shuffled": "another question's picture of the same modality"}[
                    image
                ]
                sentences.append(
                    f"With {instead} in the image's place, the scores move by (points): {', '.join(lost)}."
                )
    return sentences


def cards(run: Run, frames: dict[str, pd.DataFrame]) -> list[dict]:
    """One card a model: own test by the main judge, and the paired difference to the base."""
    own, tests = frames["own_test"], frames["paired_tests"]
    between = tests[tests["family"] == "between models"]
    result = []
    for row in records(own[own["mode"] == run.main_mode]):
        to_base = records(between[(between["first"] == "base") & (between["second"] == row["model"])])
        result.append({**row, "label": tables.MODELS[row["model"]], "to_base": to_base[0] if to_base else None})
    return result


def arrange(run: Run, name: str, frame: pd.DataFrame) -> dict:
    """One of the paper's tables: blocks of rows, a line for each test set and score."""
    table, judges = tables.paper()[name], tables.paper()["judges"]
    cells = {(r["row"], r["set"], r["source"], r["judge"]): r for r in records(frame)}
    blocks = []
    for row in tables.rows_of(name):
        lines = []
        for test_set, label in tables.SETS.items():
            ours = [cells.get((row["label"], test_set, "ours", judge)) for judge in run.judges]
            theirs = [cells.get((row["label"], test_set, "paper", judge)) for judge in judges]
            name_of_set = OVERLAPPING if test_set == WITHOUT_OWN_TEST else test_set
            gone = any(ours) and not run.samples[name_of_set]
            if any(ours) or any(theirs):
                for score in ("final", "reasoning") if test_set == run.params.own_test else ("final",):
                    lines.append(
                        {
                            "label": label,
                            "score": score,
                            "ours": ours,
                            "paper": theirs,
                            "gone": gone,
                            "counts": next((cell for cell in ours if cell), None),
                        }
                    )
        ran = any(key[0] == row["label"] and key[2] == "ours" for key in cells)
        blocks.append({"label": row["label"], "model": row["model"], "ran": ran, "lines": lines})
    return {
        "name": name,
        "source": table["source"],
        "title": table["title"],
        "blocks": blocks,
        "paper_judges": list(judges.values()),
    }


def figures(run: Run, frames: dict[str, pd.DataFrame]) -> dict[str, list[tuple[str, str]]]:
    """Section -> SVG and caption."""
    own, labels = frames["own_test"], tables.MODELS
    models = own[own["model"].isin(run.params.models) & own["final"].notna()]
    rows = [
        {
            "label": labels[r["model"]] + ("" if r["mode"] == run.main_mode else f", {r['mode']}"),
            "model": r["model"],
            "final": r["final"],
            "low": r["final_low"],
            "high": r["final_high"],
            "faint": r["mode"] != run.main_mode,
        }
        for r in records(models)
    ]
    lines = {
        text: own.loc[own["model"] == key, "final"].iloc[0]
        for key, text in tables.BASELINES.items()
        if (own["model"] == key).any()
    }
    dots: dict[str, dict] = {}
    for test_set in (
        run.params.test_sets if not run.params.mode[run.main_mode].own_test_only else [run.params.own_test]
    ):
        row = dots.setdefault(f"{tables.SETS[test_set]}, n {len(run.samples[test_set])}", {})
        for model in run.params.models:
            cell = run.scores[model][run.main_mode][test_set][run.main_judge]
            if cell["final"] is not None:
                row[model] = (cell["final"], cell["final_low"], cell["final_high"])
    dots = {label: row for label, row in dots.items() if row}
    step = plots.window(max((len(s) for log in run.logs.values() for s in log.values()), default=0))
    mean = f"Thin: each step. Bold: mean of {step} steps." if step > 1 else ""
    rl = {method: log for method, log in run.logs.items() if method != "sft"}
    found = {
        "summary": [
            (
                plots.bars(rows, lines, "Own test set"),
                f"By the {run.main_judge} judge, with {_confidence(run)} intervals, "
                f"n {len(run.samples[run.params.own_test])}. Faint: the other modes.",
            ),
            (
                plots.dots(dots, labels, f"All test sets, {run.main_mode} prompt"),
                f"By the {run.main_judge} judge, with {_confidence(run)} intervals.",
            ),
        ],
        "training": [
            (
                plots.curves(rl, "reward", "Weighted sum of the rewards", labels),
                f"The sums of two methods with other rewards cannot be compared. {mean}",
            ),
            (plots.panels(rl, REWARD_COLUMNS, "rewards", labels), f"Each reward without its weight. {mean}"),
            (
                plots.curves(run.logs, "dev_score", "Development split, percent right", labels, smooth=False),
                "The checkpoint with the highest value is the one that is evaluated.",
            ),
            (plots.curves({m: v for m, v in run.logs.items() if m == "sft"}, "loss", "SFT loss", labels), mean),
            (
                plots.panels(rl, HEALTH, "health", labels),
                f"Shares are of the groups, completions or tokens. A group without signal has equal rewards for all its completions, so nothing is learnt from it. {mean}",
            ),
        ],
    }
    return {section: [(svg, text.strip()) for svg, text in items if svg] for section, items in found.items()}


def _confidence(run: Run) -> str:
    return f"{100 * run.params.report.confidence:g} %"


def families(tests: pd.DataFrame) -> dict[str, list[dict]]:
    """Family of tests -> its rows, in the order in which they were made."""
    return {str(family): records(group) for family, group in tests.groupby("family", sort=False)}


def pivot(lines: list[dict], keys: list[str]) -> list[dict]:
    """Long-form lines as one row per key, with the models' cells under `models`."""
    rows: dict[tuple, dict] = {}
    for record in lines:
        key = tuple(record[k] for k in keys)
        rows.setdefault(key, {**{k: record[k] for k in keys}, "models": {}})["models"][record["model"]] = record
    return list(rows.values())


def records(frame: pd.DataFrame) -> list[dict]:
    """The rows as dicts, with None for what pandas marks as missing."""
    return [{k: None if pd.isna(v) else v for k, v in row.items()} for row in frame.to_dict("records")]


def flatten(value: dict, prefix: str = "") -> dict[str, object]:
    """Nested counts as dotted keys; a list is shown by its first entries."""
    flat: dict[str, object] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            flat |= flatten(item, f"{name}.")
        elif isinstance(item, list):
            shown = ", ".join(str(entry) for entry in item[:5])
            flat[name] = (shown + f", … ({len(item)} in all)") if len(item) > 5 else (shown or "none")
        else:
            flat[name] = item
    return flat


def choose(run: Run, count: int = GALLERY) -> list[int]:
    """Positions of the own test's gallery samples: half where the models differ, a quarter each where
    all are right and all are wrong, spread evenly over the file; what a group lacks, the others fill."""
    own = range(len(run.samples[run.params.own_test]))
    right = [
        [
            run.verdicts[model, run.main_mode, run.params.own_test, run.main_judge][i].prediction_score
            for model in run.params.models
        ]
        for i in own
    ]
    groups = [
        [i for i in own if len(set(right[i])) > 1],
        [i for i in own if set(right[i]) == {1}],
        [i for i in own if set(right[i]) == {0}],
    ]
    chosen: list[int] = []
    for group, share in zip(groups, (count // 2, count // 4, count // 4)):
        chosen += _spread(group, share)
    rest = [i for i in own if i not in chosen]
    return sorted(chosen + _spread(rest, count - len(chosen)))


def _spread(items: list[int], count: int) -> list[int]:
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


def gallery(run: Run) -> list[dict]:
    """Sample predictions: image, question, reference and what each model said."""
    shown = []
    for i in choose(run):
        sample: Sample = run.samples[run.params.own_test][i]
        answers = []
        for model in run.params.models:
            prediction = run.predictions[model, run.main_mode, run.params.own_test][i]
            verdict = run.verdicts[model, run.main_mode, run.params.own_test, run.main_judge][i]
            answers.append(
                {
                    "model": model,
                    "label": tables.MODELS[model],
                    "answer": prediction.answer,
                    "think": prediction.think,
                    "error": prediction.error,
                    "truncated": prediction.truncated,
                    "score": verdict.prediction_score,
                }
            )
        image = thumbnail(image_file(run.params.data.root, sample.image))
        shown.append({"sample": sample, "image": image, "answers": answers})
    return shown


def differences(run: Run) -> list[tuple[str, object, object]]:
    """Parameters whose value is not the profile's: key, value here, value in the profile.

    The profile is its file over the defaults of `rarl/params.py`. `data.root` is left out: the page
    names the folder, and a path says more about a machine than a reader of the page needs to know.
    """
    from ruamel.yaml import YAML

    from rarl.profiles import PROFILES

    file = PROFILES / f"{run.params.profile}.yaml"
    profile = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    defaults = {
        name: field.get_default().model_dump() if hasattr(field.get_default(), "model_dump") else field.get_default()
        for name, field in Params.model_fields.items()
        if not field.is_required()
    }
    expected = leaves(defaults) | leaves(profile)
    here = leaves(run.params.model_dump())
    return [
        (key, here.get(key), given) for key, given in expected.items() if here.get(key) != given and key != "data.root"
    ]


def leaves(value: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= leaves(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def percent(number: float | None) -> str:
    return "–" if number is None else f"{number:.1f}"


def points(span: tuple[float, float], unit: str = "") -> str:
    """A range of differences, or one where both ends are the same."""
    low, high = (signed(end) + unit for end in span)
    return low if low == high else f"{low} to {high}"


def signed(number: float) -> str:
    """A difference in points, with a true minus sign."""
    text = f"{number:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def p_value(number: float) -> str:
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def as_text(item: object) -> str:
    """A parameter or a count as text."""
    if isinstance(item, bool) or item is None:
        return {True: "yes", False: "no", None: "none"}[item]
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, int):
        return f"{item:,}"
    return ", ".join(map(str, item)) if isinstance(item, list) else str(item)


def kappa(number: float) -> str:
    return f"{number:.2f}".replace("-", "\N{MINUS SIGN}")


def mark(score: int | None) -> str:
    return {1: "✓", 0: "✗", None: "?"}[score]
