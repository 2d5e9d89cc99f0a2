"""Judges: what one rater says of each prediction, in the schema of the paper's appendix B.

| kind | rates | by |
|---|---|---|
| `lexical` | every sample | the shared answer handling, word by word; the same on every machine |
| `semantic` | every sample | sentence embeddings for open answers and reasoning |
| `truth` | phantoms only | what was drawn; shares no code with the rewards |
| `llm` | every sample | a language model at an OpenAI-compatible endpoint, asked as in appendix B |
| `local` | every sample | the same question to a chat model on this machine |

A judge is a function `judge(samples, predictions, settings, *, name, encoder, truth_file) ->
list[Verdict]`, one verdict for each prediction, in order. `settings` is its block under `judge:` in `params.yaml`.
Where the machinery failed (`Prediction.error`, no truth known) a verdict is unscored and says why;
where the model failed (no answer, cut off) the answer is wrong.

To add a judge: write `rarl/judges/<kind>.py` with such a function, add it to `JUDGES` and its kind
to `Judge.kind` in `rarl/params.py`, define it under `judge:` in `params.yaml` and list its name
under `judges:`. Import heavy packages inside functions: all judges are imported together.
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
#: Judges that keep each reply themselves (`journal`), and are best asked about everything at once.
ASKED = ("llm", "local")
