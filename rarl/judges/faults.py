"""Whose fault it is: what every judge decides before it looks at the answer."""

from rarl.records import Prediction, Verdict


def machinery_fault(prediction: Prediction) -> Verdict | None:
    """An unscored verdict where the model could not even be asked; None where it was."""
    if prediction.error is None:
        return None
    return Verdict(
        id=prediction.id, evaluation="Not scored, because the model could not be asked.", unscored=prediction.error
    )


def model_fault(prediction: Prediction, answer: str) -> str | None:
    """Why there is no answer to rate, as the half of a sentence; None where there is one."""
    if prediction.truncated:
        return "the completion was cut off at the token limit"
    if not answer.strip():
        return "the completion holds no answer"
    return None
