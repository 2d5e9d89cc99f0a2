"""Measure how well each measure of the reasoning reward separates right from wrong reasoning (no pipeline stage).

The paper names a reasoning reward without a formula. Here texts about phantoms, whose findings are known, are scored
by each measure that `reward.reasoning` can name. The rule was set before the first run: the study favours the measure
whose right texts most often score above every wrong text of their question. It is clearly better than BERTScore, which
the paper profile uses, if the 95 % interval of the gain over the same questions is above 0, and if it separates no
kind of wrong text less well (AUC, with an interval of the gain below 0).

With --judge, a judge of kind llm or local grades the texts too, as `reward.reasoning: judge` does in a training. It is
asked about each of them, about 15 for a question; what is sent, and the cost, is printed first.

Writes `metrics/studies/reasoning_reward.json` and `.md`, in a minute or two on two cores.
"""

from pathlib import Path

import click

from rarl.errors import UserError
from rarl.params import Params, load_params
from rarl.records import write_json
from rarl.registry import JUDGE_KINDS
from rarl.running.entry import stage_main

OUTPUT = Path("metrics/studies/reasoning_reward.json")


@click.command(help=__doc__)
@click.option(
    "--cases", "count", default=600, show_default=True, type=click.IntRange(20), help="Questions about phantoms."
)
@click.option("--seed", default=20, show_default=True, help="Seed of the questions and the bootstrap.")
@click.option("--judge", "slug", help="Slug under `judge:` of params.yaml: a fourth measure.  [default: none]")
@click.option("--output", default=OUTPUT, show_default=True, type=click.Path(path_type=Path))
@stage_main
def main(count: int, seed: int, slug: str | None, output: Path) -> None:
    """Write the study's numbers and its page."""
    from rarl.rewards.bertscore import BertScorer
    from rarl.studies.reasoning_reward import as_markdown, study
    from rarl.studies.reasoning_texts import make_cases

    params = load_params()
    if seed in (params.phantom.seed, params.phantom.test_seed):
        found = f"{seed}, the seed of the pipeline's own phantoms"
        raise UserError("--seed", found, "a seed that only the study uses", "choose another number")
    scorer = BertScorer(params.encoder.source, params.encoder.num_layers, device="cpu")
    grade, judge = (None, "") if slug is None else by_judge(slug, params)
    report = study(make_cases(seed, count), scorer, params.reward.terms_share, seed, grade, judge)
    seconds = report.pop("seconds_per_1000_pairs")  # of this machine: not for a file in git
    write_json(output, report)
    command = f"rarl study reward --cases {count} --seed {seed}" + (f" --judge {slug}" if slug else "")
    text = as_markdown(report, command, params.encoder.source)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    times = ", ".join(f"{name} {value:g} s" for name, value in seconds.items())
    click.echo(f"reward_study: 1,000 pairs take {times}")
    click.echo(f"reward_study: favours {report['favoured']} ({output.with_suffix('.md')})")


def by_judge(slug: str, params: Params) -> tuple:
    """The grader of a judge, and a description of it; a UserError if it is none that grades reasoning."""
    from rarl.training.judged import Grader

    able = [name for name, judge in params.judge.items() if JUDGE_KINDS[judge.kind].asks]
    if slug not in able:
        expected, fix = "a judge of kind llm or local", "define it under `judge:` in params.yaml"
        raise UserError(f"--judge {slug}", f"none of {', '.join(able)}", expected, fix)
    settings = params.judge[slug]
    return Grader(slug, settings, in_training=False), f"`{slug}` (kind {settings.kind}, model {settings.model})"
