r"""The forms in which models give their answers: `<answer>` tags, `\boxed{}`, or plain text."""

import re

from rarl.answers.completion import read_completion

#: Form -> what marks the answer in a completion; None if nothing does.
MARKS = {
    "tags": re.compile("<answer>.*?</answer>", re.DOTALL | re.IGNORECASE),
    "boxed": re.compile(r"\\boxed\s*\{"),
    "plain": None,
}
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def read(completion: str, form: str) -> tuple[str | None, str]:
    r"""Split a completion into its reasoning, None without one, and its answer.

    `boxed`: the answer is the content of the last `\boxed{}`, and the reasoning the `<think>` text or, without one,
    the text before the box. Without a box the completion is read as one with tags. `plain`: the answer is the whole
    completion after its reasoning. In both forms the reasoning may lack its opening tag, as the completions of models
    whose chat template ends with it.

    >>> read("<think>An opacity.</think> <answer>Pneumonia</answer>", "tags")
    ('An opacity.', 'Pneumonia')
    >>> read(r"An opacity, so \boxed{\text{Pneumonia}}.", "boxed")
    ('An opacity, so', 'Pneumonia')
    >>> read("Pneumonia.", "plain"), read("An opacity.</think> Pneumonia.", "plain")
    ((None, 'Pneumonia.'), ('An opacity.', 'Pneumonia.'))
    """
    if form != "tags" and "</think>" in completion and "<think>" not in completion:
        completion = f"<think>{completion}"
    think, answer = read_completion(completion)
    if form == "plain":
        return think, completion.rpartition("</think>")[2].partition("<think>")[0].strip()
    boxes = [*MARKS["boxed"].finditer(completion)] if form == "boxed" else []
    if not boxes:
        return think, answer
    content = _to_closing_brace(completion[boxes[-1].end() :])
    return think or completion[: boxes[-1].start()].strip() or None, _TEXT.sub(r"\1", content).strip()


def _to_closing_brace(text: str) -> str:
    """Return the text before the brace that closes the one in front of it; all of it if none does."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:place]
    return text
