"""Annotation: a page on which physicians write the reasoning that training learns from.

| module | what it does |
|---|---|
| `plan` | which rows are annotated, by whom and in which order, fixed in a file |
| `usefulness` | the parts of which the order `useful` is made |
| `session` | one rater's work: the annotation of each row, saving, drafts |
| `drafts` | drafts by a model, asked before the page opens |
| `sources` | the DICOM file that an image was made of |
| `page` | the page (`page.html`, `page.js`) and its server |
| `agreement` | agreement of the raters, and the rows on which they disagree |
| `export` | the table that `curate` joins, and its digest in `params.yaml` |
| `console` | what `rarl annotate` runs and prints |

Who may open the page, and how a line is appended to a file, is the rating page's code: `rarl/rating/access.py` and
`lines.py`. How the table is joined: `rarl/data/annotations.py`.
"""
