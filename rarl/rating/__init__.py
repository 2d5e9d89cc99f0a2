"""Human evaluation: a page on which people rate answers without knowing which model gave them.

| module | what it does |
|---|---|
| `worklist` | which answers a rater sees, in which order |
| `lines` | appends a record to a file: locked, whole or not at all |
| `session` | one rater's work: what is rated, saving |
| `progress` | what is finished, and what is next |
| `page` | the Gradio page (`page.html`, `page.css`, `page.js`) |
| `access` | who may open the page: hosts, token, and the paths that are served |
| `blinding` | random tokens instead of models' names |
| `export` | adds the ratings to the pipeline as judges |
| `console` | what `rarl rate` runs and prints |

What a rating is, and how ratings become verdicts: `rarl/judges/human.py`.
"""
