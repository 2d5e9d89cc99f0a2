"""Whether an answer is right: for the accuracy reward, and more generously for the judges and scores."""

from collections.abc import Sequence

from rarl.answers.exact import equals, has_yes_or_no
from rarl.answers.sentences import polarity, states
from rarl.answers.spelling import normalise
from rarl.records import Kind


def matches(
    answer: str, references: Sequence[str], kind: Kind, choices: Sequence[str] = (), question: str = ""
) -> bool:
    """Return whether an answer `equals` a reference or, where that is "yes" or "no", answers the question so.

    >>> matches("There is no mass.", ["no"], "yes_no", question="Is there a mass?")
    True
    """
    if equals(answer, references, kind, choices):
        return True
    wanted = {normalise(reference) for reference in references} & {"yes", "no"}
    return bool(wanted) and not choices and not has_yes_or_no(answer) and polarity(answer, question) in wanted


def is_right(
    answer: str, references: Sequence[str], kind: Kind, choices: Sequence[str] = (), question: str = ""
) -> bool:
    """Return whether an answer `matches` a reference or, if it is open or a choice without options, `states` one.

    What only a sentence states earns no accuracy reward: a policy could say much, some of which is right.

    >>> is_right("The image shows pneumonia.", ["Pneumonia"], "open")
    True
    """
    if matches(answer, references, kind, choices, question):
        return True
    in_words = kind == "open" or (kind == "choice" and not choices)
    return in_words and any(states(answer, reference, question) for reference in references)
