"""What adaptation to one case led to."""

from __future__ import annotations

from dataclasses import dataclass

ACCEPTED = "entropy dropped"


@dataclass(frozen=True)
class Outcome:
    """The outcome of adapting to one case.

    Attributes:
        accepted: whether the adapted network or the changed image gives the prediction.
        reason: why, or why not.
        candidate: the change of the image that is used or was refused, such as `gamma 0.63`; with several channels
            their numbers too, as in `0: gamma 0.63; 2: spectrum`. Empty if only weights adapt.
        entropy_before: mean voxel entropy of the plain prediction on the reference windows, 0 to 1.
        entropy_after: the same after adaptation, also if it was refused; where it was not measured on all of these
            windows, that before.
        foreground_entropy_before: mean weighted by the probability of foreground, of the plain prediction.
        foreground_entropy_after: the same after adaptation.
        seconds: duration of measuring and adapting, without the prediction itself.
        windows: number of reference windows.
    """

    accepted: bool
    reason: str
    candidate: str = ""
    entropy_before: float = float("nan")
    entropy_after: float = float("nan")
    foreground_entropy_before: float = float("nan")
    foreground_entropy_after: float = float("nan")
    seconds: float = 0.0
    windows: int = 0


def joined(first: Outcome, second: Outcome) -> Outcome:
    """Join the outcomes of changing the image and of then adapting the weights to the result."""
    last = second if second.accepted or not first.accepted else first
    return Outcome(
        accepted=first.accepted or second.accepted,
        reason=f"input: {first.reason}; weights: {second.reason}",
        candidate=first.candidate,
        entropy_before=first.entropy_before,
        entropy_after=last.entropy_after,
        foreground_entropy_before=first.foreground_entropy_before,
        foreground_entropy_after=last.foreground_entropy_after,
        seconds=first.seconds + second.seconds,
        windows=second.windows,
    )
