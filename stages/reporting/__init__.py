"""Scores, statistics, tables, plots and the page of the report.

| module | what it does |
|---|---|
| `inputs` | reads predictions, verdicts, logs and counts by enumerating the parameters |
| `scoring` | one model's scores by every judge |
| `statistics` | intervals, paired tests, baselines, agreement |
| `tables` | the paper's Tables 3 and 6 beside ours, the own test, the tests, the agreement |
| `plots` | the figures, as inline SVG |
| `page` | the self-contained HTML page (`report.html` is its template) |

`paper.json` holds the figures that the paper prints.
"""
