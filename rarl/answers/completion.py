"""The think text and the answer of a completion."""

import re

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"<think>((?:(?!</?think>).)*)</think>", re.DOTALL | re.IGNORECASE)
_OPEN_THINK = re.compile(r"<think>.*", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)


def read_completion(text: str) -> tuple[str | None, str]:
    """Split a completion into its think text (None without a closed pair of tags) and its answer.

    The answer is the text of the last complete `<answer>` pair. Without one it is the text outside `<think>`, with
    stray tags removed: the direct prompt asks for no tags. An unclosed `<think>` extends to the end.

    >>> read_completion("<think>An opacity.</think> <answer>Pneumonia</answer>")
    ('An opacity.', 'Pneumonia')
    >>> read_completion("Yes.")
    (None, 'Yes.')
    >>> read_completion("<think>I wonder")
    (None, '')
    """
    thought = _THINK.search(text)
    think = thought.group(1).strip() if thought else None
    pairs = _ANSWER.findall(text)
    if pairs:
        return think, pairs[-1].strip()
    outside = _OPEN_THINK.sub(" ", _THINK.sub(" ", text))
    return think, _TAG.sub(" ", outside).strip()
