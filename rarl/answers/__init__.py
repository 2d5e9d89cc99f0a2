"""Parse answers from completions, and compare them with the references.

The accuracy reward, the lexical and semantic judges and the development score all use these functions, so that
training and evaluation agree on what a right answer is. (The `truth` judge has its own parser on purpose: it checks
this one.) Nothing here scores by similarity.

| module | |
|---|---|
| `completion` | the think text and the answer of a completion |
| `spelling` | one spelling for each text, number and list |
| `exact` | equal after normalisation |
| `sentences` | what a sentence states: negation, hedges, yes or no |
| `matching` | `matches` for the accuracy reward; `is_right` for judges and scores, which also takes a sentence |

Import from the modules: a stage that only parses completions then depends on no way to read sentences.
"""
