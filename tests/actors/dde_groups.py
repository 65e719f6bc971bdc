"""DDE's groups by scripted play: three parallel solutions, or any other root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.rollout import Rollout
from actors.samplers.build import build_sampler
from actors.samplers.dde import DdeSampler
from actors.samplers.recoverability import Recoverability
from configs.samplers import DdeSettings
from envs.codec import decode_group, encode_group
from envs.trajectory import Group
from tests.builders import Said, Scene, ScriptedEnv, ScriptedPolicy, plan

# 1 behind a depth of 0.6, or before it; and only where less than 0.25 lies before.
DEEP, SHALLOW, EARLY = (Recoverability(*given) for given in (((1e4,), -6e3), ((-1e4,), 6e3), ((-1e5,), 2.5e4)))
# Three turns of 10, 9 and 7 tokens, lost with 0.75; one that wins at once; one whose environment fails.
PLAYED: dict[str, Said] = {
    "solution/0/1": "win 1",
    "solution/1/1": "earn 0.25",
    "solution/1/3": "earn 0.5",
    "solution/1/5": "lose 0",
    "solution/2/1": "raise",
}
PARALLEL = {"name": "parallel", "group_size": 3}


def sampler_of(model: Recoverability | None = None, **settings: Any) -> DdeSampler:
    sampler = build_sampler(DdeSettings.model_validate({"root": PARALLEL, "branches": 3, **settings}))
    assert isinstance(sampler, DdeSampler)
    sampler.recoverability = model or sampler.recoverability
    return sampler


async def sample(
    scene: Scene,
    said: Mapping[str, Said],
    model: Recoverability | None = None,
    max_turns: int = 5,
    otherwise: Said = "lose 0",
    **settings: Any,
) -> tuple[Group, Rollout, ScriptedPolicy]:
    policy = ScriptedPolicy(lambda _: otherwise, plan(said))
    rollout = await scene.rollout(policy, lambda: ScriptedEnv(scene.released, max_turns))
    group = await sampler_of(model, **settings).sample_group(rollout)
    decode_group(encode_group(group))
    return group, rollout, policy
