"""Human evaluation: the page on which people rate answers without knowing whose they are.

| module | what it does |
|---|---|
| `worklist` | which answers a rater sees, in which order |
| `desk` | one rater's work: what is rated, what is next, saving |
| `page` | the Gradio page (`page.css`, `page.js`) |
| `access` | who is let in: hosts, token, and the paths that are served |
| `blinding` | random tokens in the place of models' names |
| `export` | makes the ratings judges of the pipeline |

What a rating is, and how ratings become verdicts: `rarl/judges/human.py`.
"""
