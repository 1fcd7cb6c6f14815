"""Common advice on making training faster: what it says, and what trying it here came to."""

from stepmark.advice.catalogue import (
    ADVICE,
    FASTER,
    Advice,
    Claim,
    Quantity,
    claims_of,
    find,
    title_of,
)
from stepmark.advice.judgement import Judgement, Standing, judge
from stepmark.advice.record import Measured, MeasuredPair, Trial

__all__ = [
    "ADVICE",
    "FASTER",
    "Advice",
    "Claim",
    "Judgement",
    "Measured",
    "MeasuredPair",
    "Quantity",
    "Standing",
    "Trial",
    "claims_of",
    "find",
    "judge",
    "title_of",
]
