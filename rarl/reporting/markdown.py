"""The report's numbers as Markdown, for pull requests, issues and plain-text readers."""

import pandas as pd

from rarl.reporting import page, tables
from rarl.reporting.findings import findings
from rarl.reporting.formats import records
from rarl.reporting.inputs import Run
from rarl.reporting.study_tables import study


def report(run: Run, frames: dict[str, pd.DataFrame]) -> str:
    """Return the whole report as text (`report.md`); `frames` as for `page.render`."""
    lines = {name: records(frame) for name, frame in frames.items()}
    text = page.template("report.md").render(
        run=run,
        phantom=page.is_phantom(run),
        confidence=f"{100 * run.confidence:g}",
        findings=findings(run, frames),
        claims=page.claim_cards(frames["claims"]),
        paper=tables.paper(),
        table2=page.table2(run.params.profile),
        frames=lines,
        # The paper's cells, by which ours are found
        printed={
            name: {(c["row"], c["set"], c["judge"]): c for c in lines[name] if c["source"] == "paper"}
            for name in ("table3", "table6")
        },
        labels=run.labels | tables.BASELINES,
        annotation=study("annotation", run.params.profile),
        grid=study("grid", run.params.profile),
        seeds=study("seeds", run.params.profile),
        sweep=study("sweep", run.params.profile),
    )
    return text.rstrip() + "\n"
