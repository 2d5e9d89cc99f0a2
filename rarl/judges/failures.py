"""What every judge decides before it looks at an answer: whether there is one, and if not, why.

If the infrastructure failed, the verdict is unscored; if the model failed, the answer is wrong.
"""

from rarl.records import Prediction, Verdict


def infrastructure_failure(prediction: Prediction) -> Verdict | None:
    """An unscored verdict if the model could not be asked, else None."""
    if prediction.error is None:
        return None
    why = "Not scored, because the model could not be asked."
    return Verdict(id=prediction.id, evaluation=why, unscored=prediction.error)


def model_failure(prediction: Prediction, answer: str) -> str | None:
    """Why there is no answer to rate, as half a sentence, or None if there is one."""
    if prediction.truncated:
        return "the completion was cut off at the token limit"
    if not answer.strip():
        return "the completion holds no answer"
    return None
