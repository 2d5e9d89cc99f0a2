"""Judges: one rater's verdict on each prediction, in the schema of the paper's appendix B.

| kind | rates | by |
|---|---|---|
| `lexical` | every sample | the shared answer handling, word by word; the same on every machine |
| `semantic` | every sample | sentence embeddings for open answers and reasoning |
| `truth` | phantoms only | the phantom's findings; shares no code with the rewards |
| `llm` | every sample | a language model at an OpenAI-compatible endpoint, prompted as in appendix B |
| `local` | every sample | a chat model on this machine, with the same prompt |
| `human` | rated samples | people's ratings (`rarl rate`) |

A judge is a function `judge(samples, predictions, settings, *, name, encoder, truth_file) -> list[Verdict]` that takes
samples and predictions one for one, and returns one verdict for each, in order. `settings` is its block under `judge:`
in `params.yaml`. If the infrastructure failed (`Prediction.error`, no truth known), a verdict is unscored and has the
reason; if the model failed (no answer, cut off), the answer is wrong.

To add a judge: write `rarl/judges/<kind>.py` with such a function, add it to `JUDGES` and its kind to `Judge.kind` in
`rarl/params.py`, define it under `judge:` in `params.yaml` and list its name under `judges:`. Import heavy packages
inside functions: all judges are imported together.
"""

from rarl.judges import human, lexical, llm, local, semantic, truth

JUDGES = {
    "lexical": lexical.judge,
    "semantic": semantic.judge,
    "truth": truth.judge,
    "llm": llm.judge,
    "local": local.judge,
    "human": human.judge,
}
#: Judges that keep every response themselves (`journal`), and are asked about everything at once.
ASKED = ("llm", "local")
