"""The paper's prompts, one text file each, word for word (spelling included).

`reasoning` and `direct` are the two inference prompts of section 3.3; `explanation`, `short` and
`open` are the three training prompts of appendix A. `{question}` is where the question goes. Section
3.3 prints no place for the question: "User: ... Assistant:" follows appendix A there.
"""

from functools import cache
from pathlib import Path


@cache
def template(name: str) -> str:
    """Return the text of one prompt file."""
    return (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")


def render(name: str, question: str) -> str:
    """Return the text of the user turn for one question."""
    return template(name).replace("{question}", question)
