"""The prompts are the paper's, word for word: section 3.3 (`reasoning`, `direct`) and appendix A (the others)."""

import hashlib

from rarl.prompts import render, template

#: SHA-256 of the texts, which were compared with the paper's.
PAPER = {
    "direct": "01a05899b559d7b9",
    "explanation": "08dcc3692979cd31",
    "open": "acc51853ec9ec12c",
    "reasoning": "502b10825f65eaf1",
    "short": "7c3bd17cbdcfe59f",
}


def test_prompts_are_the_papers():
    found = {name: hashlib.sha256(template(name).encode()).hexdigest()[:16] for name in PAPER}
    assert found == PAPER


def test_the_question_stands_in_each():
    for name in PAPER:
        assert render(name, "Is it {wide}?").count("User: Is it {wide}?") == 1
