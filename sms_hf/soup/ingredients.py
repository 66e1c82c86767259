"""Which candidates go into a soup."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .averaging import Weight, average_checkpoints
from .learned import learned_ingredients, learned_layer_ingredients
from .lottery_pools import lottery_pool_ingredients
from .model_stock import model_stock_ingredients
from .noise import gain_noise
from .pool import Choice, GreedyTrial, Pool


def greedy_ingredients(pool: Pool) -> Choice:
    """
    GreedySoup of Wortsman et al., "Model soups" (ICML 2022), with the tie rule of Sparse Model Soups.

    Candidates are tried best first (equal scores keep their order). One stays if the average with it scores at least as
    well as the average without it (`>=`; Wortsman et al. ask for `>`), or better by `min_gain` standard errors. So the result
    never scores below the best candidate.

    Returns:
        The ingredients that were chosen, in the order of choice, each with weight 1, and every trial (the first is the best
        candidate alone).
    """
    scores, sign = pool.scores, 1.0 if pool.greater_is_better else -1.0
    if not scores:
        raise ValueError("A greedy soup needs at least one scored candidate, got none.")
    order = sorted(scores, key=lambda name: (math.isnan(scores[name]), -sign * scores[name]))
    chosen, best = [order[0]], scores[order[0]]
    trials = [GreedyTrial(list(chosen), best, True)]
    for name in order[1:]:
        tried = dict.fromkeys([*chosen, name], 1.0)
        score = pool.evaluate(tried)
        samples = [pool.resampled(weights) for weights in (tried, dict.fromkeys(chosen, 1.0))]
        if samples[0] is None or samples[1] is None:
            # Where nobody knows the noise of a gain, it cannot be told from noise: asked for, it is not there.
            accepted, noise = pool.min_gain == 0 and sign * score >= sign * best, {}
        else:
            error, share = gain_noise(samples[0], samples[1], sign)
            needed = pool.min_gain * error
            accepted = sign * score >= sign * best if needed == 0 else sign * (score - best) >= needed
            noise = {"standard_error": error, "sure": share(needed) if accepted else 1 - share(needed)}
        trials.append(GreedyTrial([*chosen, name], score, accepted, **noise))
        if accepted:
            chosen, best = [*chosen, name], score
    return dict.fromkeys(chosen, 1.0), trials


def uniform_ingredients(pool: Pool) -> Choice:
    """UniformSoup: all candidates, in the order given, each with weight 1. Nothing is tried."""
    return dict.fromkeys(pool.scores, 1.0), []


SOUP_METHODS: dict[str, Callable[[Pool], Choice]] = {
    "greedy": greedy_ingredients,
    "uniform": uniform_ingredients,
    "learned": learned_ingredients,
    "learned-layers": learned_layer_ingredients,
    "model-stock": model_stock_ingredients,
    "lottery-pools": lottery_pool_ingredients,
}
"""
Method name -> [`Pool`] -> (ingredient -> weight, trials).

Weights are divided by their sum. A method of your own is one more row: a softmax over scores, all subsets, ...
"""


NEEDS_PARENT = frozenset({"model-stock"})
"""Methods that average the parent, too: it has to stay until the soup is made."""


def uniform_soup(folders: Sequence[str | Path], output: str | Path) -> Path:
    """
    Average all folders with equal weights: UniformSoup of Zimmer, Spiegel, Pokutta, "Sparse Model Soups" (ICLR 2024).

    Args:
        folders (`Sequence[str | Path]`): Model folders with one architecture and one mask.
        output (`str` or `Path`): The folder to write.

    Returns:
        `Path`: `output`, an ordinary model folder.

    Raises:
        CheckpointError, MaskError: As in [`average_checkpoints`].
    """
    return average_checkpoints(folders, output)


def greedy_soup(
    folders: Sequence[str | Path],
    score: Callable[[Path], float],
    output: str | Path,
    *,
    greater_is_better: bool = True,
) -> list[GreedyTrial]:
    """
    Average the folders that [`greedy_ingredients`] chooses.

    Args:
        folders (`Sequence[str | Path]`): Model folders with one architecture and one mask.
        score (`Callable[[Path], float]`): Model folder -> score on selection data (never the test set). Called once for
            every folder and at most `len(folders) - 1` times for trial soups.
        output (`str` or `Path`): The folder to write.
        greater_is_better (`bool`, *optional*, defaults to `True`): `False` for a loss.

    Returns:
        `list[GreedyTrial]`: Every trial with its score; the ingredients of the last accepted one are in the soup.

    Raises:
        CheckpointError, MaskError: As in [`average_checkpoints`].
    """
    paths = {str(folder): Path(folder) for folder in folders}
    trial = Path(output).with_name(Path(output).name + ".trial")

    def evaluate(weights: Mapping[str, Weight]) -> float:
        return score(average_checkpoints([paths[name] for name in weights], trial, list(weights.values())))

    try:
        scores = {name: score(path) for name, path in paths.items()}
        chosen, trials = greedy_ingredients(Pool(scores, evaluate, greater_is_better))
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    average_checkpoints([paths[name] for name in chosen], output, list(chosen.values()))
    return trials
