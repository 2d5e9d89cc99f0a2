"""Scores, statistics, tables, plots and the pages of the report.

| module | what it does |
|---|---|
| `inputs` | reads predictions, verdicts, logs and counts by enumerating the parameters |
| `scoring` | one model's scores by every judge, and their breakdown |
| `stats` | intervals, paired tests, baselines, agreement |
| `tables` | the paper's Tables 3 and 6 with ours, the own test, paired tests, agreement, the gap to the truth |
| `claims` | the paper's claims, tested against its own tables and against this run |
| `findings` | what the tests support, in sentences |
| `study_tables`, `study_plots` | studies over experiments: training noise over seeds, sweeps, figures |
| `examples` | single answers, chosen by rule |
| `plots` | the figures, as inline SVG |
| `formats` | how numbers are written |
| `page` | the self-contained HTML page (`report.html`; `report.js` fills in times and memory) |
| `cases` | the page of single cases (`cases.html`, `cases.js`) |
| `markdown`, `console` | the same numbers as text |

`paper.json` holds the paper's printed scores and its claims.
"""
