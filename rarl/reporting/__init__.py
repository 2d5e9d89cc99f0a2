"""Scores, statistics, tables, plots and the pages of the report.

| module | what it does |
|---|---|
| `inputs` | reads predictions, verdicts, logs and counts by enumerating the parameters |
| `scoring` | one model's scores by every judge, and their breakdown |
| `stats` | intervals, paired tests, baselines, agreement |
| `tables` | the paper's Tables 3 and 6 beside ours, the own test, the tests, the agreement, the gap to the truth |
| `claims` | what the paper claims, by its own tables and by this run |
| `examples` | single answers, drawn by rule |
| `plots` | the figures, as inline SVG |
| `page` | the self-contained HTML page (`report.html` is its template, `report.js` fills in times and memory) |
| `cases` | the page of single cases (`cases.html`, `cases.js`) |
| `markdown`, `console` | the same numbers as text |
| `side_by_side` | several experiments in one comparison (`rarl compare runs`) |

`paper.json` holds the figures that the paper prints, and its claims.
"""
