"""Agreement of reviewers who judged the same labels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from scripts.solf.verdicts import KEY, consensus


def agreement(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Compare each pair of reviewers over the labels that both judged.

    Args:
        verdicts: of `scripts.solf.verdicts.read_verdicts`.

    Returns:
        A row per pair: `reviewer_1`, `reviewer_2`, `labels` that both judged, `agreed`, the number of equal verdicts,
        and `kappa`, NaN where it does not exist: without labels, or if both gave one and the same verdict to all.

    Source:
        Cohen. A coefficient of agreement for nominal scales. Educ Psychol Meas 1960: kappa = (p_o - p_e) / (1 - p_e).
    """
    judged = (verdicts.pivot(index=KEY, columns="reviewer", values="verdict") == "accept").to_numpy()
    known = verdicts.pivot(index=KEY, columns="reviewer", values="verdict").notna().to_numpy()
    names = sorted(verdicts["reviewer"].unique())
    rows = []
    for one, other in combinations(range(len(names)), 2):
        both = known[:, one] & known[:, other]
        pair = judged[both][:, [one, other]]
        counts = {"labels": len(pair), "agreed": int((pair[:, 0] == pair[:, 1]).sum())}
        rows.append({"reviewer_1": names[one], "reviewer_2": names[other], **counts, "kappa": cohens_kappa(*pair.T)})
    return pd.DataFrame(rows, columns=["reviewer_1", "reviewer_2", "labels", "agreed", "kappa"])


def cohens_kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Return Cohen's kappa of two (N,) arrays of yes and no; NaN if chance alone explains all agreement or N is 0.

    >>> round(cohens_kappa(np.array([True, True, False, False]), np.array([True, False, False, False])), 2)
    0.5
    """
    if not len(one):
        return np.nan
    observed = float((one == other).mean())
    by_chance = float(one.mean() * other.mean() + (1 - one.mean()) * (1 - other.mean()))
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else np.nan


def conflicts(verdicts: pd.DataFrame) -> pd.DataFrame:
    """List the labels about which reviewers differ.

    Args:
        verdicts: of `scripts.solf.verdicts.read_verdicts`.

    Returns:
        `case`, `label`, `organ`, `accept` and `reject`, the names of the reviewers, and `verdict`, that of the
        majority, "" for a tie.
    """
    names = verdicts.pivot_table(index=KEY, columns="verdict", values="reviewer", aggfunc=", ".join)
    names = names.reindex(columns=["accept", "reject"]).dropna().reset_index()
    return names.merge(consensus(verdicts)[[*KEY, "organ", "verdict"]], on=KEY)[
        [*KEY, "organ", "accept", "reject", "verdict"]
    ]
