"""Lottery Pools: greedy, with the best of several coefficients."""

import math

from .averaging import Weight
from .pool import Choice, GreedyTrial, Pool

COEFFICIENTS = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Share that the pool so far keeps when a candidate is taken in; each is an evaluation."""


def lottery_pool_ingredients(pool: Pool) -> Choice:
    """
    LTPs of Yin et al., "Lottery Pools" (AAAI 2023): candidates are taken in one after the other, best first, each with the
    coefficient that scores best, if that is better than the pool without it.

    The paper's code starts from the score on the test set, and chooses on it; here both is done on the selection data.
    """
    scores, sign = pool.scores, 1.0 if pool.greater_is_better else -1.0
    order = sorted(scores, key=lambda name: (math.isnan(scores[name]), -sign * scores[name]))
    weights: dict[str, float] = {order[0]: 1.0}
    best, trials = scores[order[0]], [GreedyTrial([order[0]], scores[order[0]], True)]
    for name in order[1:]:
        tried = [{**{k: share * w for k, w in weights.items()}, name: 1 - share} for share in COEFFICIENTS]
        found = [pool.evaluate(dict[str, Weight](mixture)) for mixture in tried]
        top = max(range(len(tried)), key=lambda i: (not math.isnan(found[i]), sign * found[i]))
        accepted = sign * found[top] > sign * best
        trials.append(GreedyTrial([*weights, name], found[top], accepted))
        if accepted:
            weights, best = tried[top], found[top]
    return dict[str, Weight](weights), trials
