"""How well an environment can be played: at best, and by a player who knows the rules only; how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from envs.base import TextEnv
from envs.protocol import spoken
from envs.trajectory import Verdict


@dataclass(frozen=True, slots=True)
class Survey:
    """Of `episodes` episodes. Shares are of all episodes, unless said.

    ceiling: mean of the best possible chance to solve an episode within its turns and actions. oracle: share the
    oracle did solve; oracle_of_solvable: of those with a ceiling above 0. random: share solved by random legal
    answers. lengths: fewest actions -> episodes; None where an episode cannot be solved, whatever the turns.
    distinct_starts: different first messages.
    """

    episodes: int
    ceiling: float
    exact: bool
    solvable: float
    oracle: float
    oracle_of_solvable: float
    random: float
    lengths: dict[int | None, int]
    distinct_starts: int
    example: str


def survey(env: TextEnv, episodes: int, first_seed: int = 0) -> Survey:
    """Play every episode from `first_seed` on twice, by oracle and at random. Raises BadEnvironment."""
    ceilings, oracle_wins, random_wins, starts = [], [], [], set()
    lengths: Counter[int | None] = Counter()
    exact = True
    for seed in range(first_seed, first_seed + episodes):
        starts.add(env.reset(seed=seed)[0])
        ceilings.append(env.ceiling())
        lengths[env.optimal_length()] += 1
        exact &= env.ceiling_is_exact
        oracle_wins.append(_wins(env, env.oracle))
        env.reset(seed=seed)
        random_wins.append(_wins(env, partial(env.random_answer, np.random.default_rng([seed, 2]))))
    hopeful = [won for won, ceiling in zip(oracle_wins, ceilings, strict=True) if ceiling > 0]
    return Survey(
        episodes=episodes,
        ceiling=float(np.mean(ceilings)),
        exact=exact,
        solvable=len(hopeful) / episodes,
        oracle=float(np.mean(oracle_wins)),
        oracle_of_solvable=float(np.mean(hopeful)) if hopeful else 0.0,
        random=float(np.mean(random_wins)),
        lengths=dict(sorted(lengths.items(), key=lambda item: (item[0] is None, item[0]))),
        distinct_starts=len(starts),
        example=example(env, first_seed),
    )


def example(env: TextEnv, seed: int) -> str:
    """An episode as the policy sees it, played by the oracle."""
    first, _ = env.reset(seed=seed)
    lines = [f"system: {env.rules}", f"user: {first}"]
    while (answer := env.oracle()) is not None:
        said = spoken(env.settings, "...", answer)
        message, reward, terminated, truncated, _ = env.step(said)
        lines += [f"assistant: {said}", f"user: {message}  [reward {reward:g}]"]
        if terminated or truncated:
            break
    return "\n".join(lines)


def report(name: str, found: Survey) -> str:
    """The survey in words."""
    kind = "exact" if found.exact else "at least, where search gave up"
    most = max(found.lengths.values())
    histogram = [
        f"  {'never' if length is None else length:>5}  {count:6}  {'#' * max(1, round(40 * count / most))}"
        for length, count in found.lengths.items()
    ]
    return "\n".join(
        [
            f"{name}: {found.episodes} episodes, {found.distinct_starts} different first messages",
            f"ceiling   {found.ceiling:.4f}  best possible success within the limits ({kind})",
            f"oracle    {found.oracle:.4f}  of all episodes, {found.oracle_of_solvable:.4f} of the solvable ones",
            f"solvable  {found.solvable:.4f}",
            f"random    {found.random:.4f}  legal answers drawn at random",
            "fewest actions (by luck, where luck plays a part), episodes:",
            *histogram,
            "",
            found.example,
        ]
    )


def _wins(env: TextEnv, player: Callable[[], str | None]) -> bool:
    """Whether the player solves the episode that `env` is in; it gives up by None."""
    while (answer := player()) is not None:
        _, _, terminated, truncated, info = env.step(spoken(env.settings, "", answer))
        if terminated or truncated:
            return bool(info["outcome"].verdict is Verdict.SOLVED)
    return False
