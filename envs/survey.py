"""How well an environment can be played: at best, and by a player who knows the rules only; how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    answers. failed: causes of games, of twice `episodes`, that could not be judged: those are in no share.
    lengths: fewest actions -> episodes; None where an episode cannot be solved, whatever the turns.
    distinct_starts: different first messages.
    """

    episodes: int
    ceiling: float
    exact: bool
    solvable: float
    oracle: float
    oracle_of_solvable: float
    random: float
    failed: list[str]
    lengths: dict[int | None, int]
    distinct_starts: int
    example: str


def survey(env: TextEnv, episodes: int, first_seed: int = 0) -> Survey:
    """Play every episode from `first_seed` on twice, by oracle and at random. Raises BadEnvironment."""
    ceilings: list[float] = []
    oracle, chance, starts = Games(), Games(), set()
    lengths: Counter[int | None] = Counter()
    exact = True
    for seed in range(first_seed, first_seed + episodes):
        starts.add(env.reset(seed=seed)[0])
        ceilings.append(env.ceiling())
        exact &= env.ceiling_is_exact
        lengths[env.optimal_length()] += 1
        oracle.play(env, env.oracle)
        env.reset(seed=seed)
        chance.play(env, partial(env.random_answer, np.random.default_rng([seed, 2])))
    hopeful = [won for won, ceiling in zip(oracle.won, ceilings, strict=True) if ceiling > 0]
    return Survey(
        episodes=episodes,
        ceiling=float(np.mean(ceilings)),
        exact=exact,
        solvable=len(hopeful) / episodes,
        oracle=_share(oracle.won),
        oracle_of_solvable=_share(hopeful),
        random=_share(chance.won),
        failed=[*oracle.failed, *chance.failed],
        lengths=dict(sorted(lengths.items(), key=lambda item: (item[0] is None, item[0]))),
        distinct_starts=len(starts),
        example=example(env, first_seed),
    )


@dataclass
class Games:
    """What one player's games came to: solved or not, None where judging broke, and why it did."""

    won: list[bool | None] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def play(self, env: TextEnv, player: Callable[[], str | None]) -> None:
        """The episode `env` is in, to its end or until the player gives up by None."""
        verdict = Verdict.WRONG
        while (answer := player()) is not None:
            _, _, terminated, truncated, info = env.step(spoken(env.settings, "", answer))
            verdict = info["outcome"].verdict
            if verdict is Verdict.FAILED:
                self.failed.append(info["outcome"].cause)
            if terminated or truncated:
                break
        self.won.append(None if verdict is Verdict.FAILED else verdict is Verdict.SOLVED)


def _share(won: Sequence[bool | None]) -> float:
    """Of the games that could be judged; 0 without any."""
    judged = [game for game in won if game is not None]
    return sum(judged) / len(judged) if judged else 0.0


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
            *([f"failed    {len(found.failed)} games were not judged: {found.failed[0]}"] if found.failed else []),
            "fewest actions (by luck, where luck plays a part), episodes:",
            *histogram,
            "",
            found.example,
        ]
    )
