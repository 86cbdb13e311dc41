"""The signed-rank test over patients, and Holm's correction for several tests."""

from collections.abc import Sequence

import numpy as np

from lungseg.metrics.clusters import F64

MIN_PATIENTS = 6
"""With five, the smallest possible p of a signed-rank test is 0.0625."""
DECIMALS = 12
"""Of a mean difference: rounding errors below would break ties and zeros."""


def signed_rank(differences: F64) -> tuple[float | None, str]:
    """Return the two-sided p of Wilcoxon's signed-rank test over mean differences f64[P], one per patient, or why none.

    Patients without a difference are left out, as in Wilcoxon (SciPy's zero_method "wilcox"). p is exact for up to 50
    patients without ties and up to 13 with ties (all permutations), else a normal approximation.
    Source: Wilcoxon, Biometrics Bulletin 1(6), 1945.
    """
    from scipy import stats  # slow import, not needed by most users of this module

    rounded = np.round(differences, DECIMALS)
    nonzero = rounded[rounded != 0]
    if not nonzero.size:
        return 1.0, ""
    if nonzero.size < MIN_PATIENTS:
        return None, f"{nonzero.size} of {differences.size} patients differ, a test needs {MIN_PATIENTS}"
    return float(stats.wilcoxon(nonzero).pvalue), ""


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number; those without p are not counted. Source: Holm, Scand. J. Stat. 6(2), 1979."""
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[position] = largest
    return corrected
