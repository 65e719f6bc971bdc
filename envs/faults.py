"""What a group may not hold: lengths that disagree, indices that point nowhere, numbers that are none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from envs.trajectory import Group, Row, Segment, Trajectory, Verdict


def group_faults(group: Group) -> Iterator[str]:
    """Where lengths disagree or an index points outside what it indexes."""
    for t, trajectory in enumerate(group.trajectories):
        for s, segment in enumerate(trajectory.segments):
            yield from (f"trajectory {t}, segment {s}: {fault}" for fault in _segment_faults(segment))
        yield from (f"trajectory {t}: {fault}" for fault in _lineage_faults(group, trajectory))
    for r, row in enumerate(group.rows):
        yield from (f"row {r}: {fault}" for fault in _row_faults(group, row))
    for p, trial in enumerate(group.pivots):
        if not (0 <= trial.parent < len(group.trajectories) and 0 <= trial.solved <= trial.branches):
            yield f"pivot trial {p}: {trial.solved} of {trial.branches} branches of trajectory {trial.parent} solved"


def _segment_faults(segment: Segment) -> Iterator[str]:
    n, logprobs, versions = len(segment.token_ids), len(segment.behaviour_logprobs), len(segment.policy_versions)
    expected = n if segment.sampled else 0
    if (logprobs, versions) != (expected, expected):
        yield (
            f"{n} {segment.role} tokens with {logprobs} log-probs and {versions} policy versions, "
            f"expected {expected} of each"
        )
    if n and segment.token_ids.min() < 0:
        yield f"token id {segment.token_ids.min()}"
    if versions and segment.policy_versions.min() < 0:
        yield f"policy version {segment.policy_versions.min()}"
    if not np.isfinite(segment.behaviour_logprobs).all():
        yield "a log-prob that is no finite number"


def _lineage_faults(group: Group, trajectory: Trajectory) -> Iterator[str]:
    if trajectory.sketch is not None and trajectory.sketch < 0:
        yield f"sketch {trajectory.sketch}"
    if trajectory.parent is None:
        if trajectory.pivot is not None:
            yield f"pivot {trajectory.pivot} without a parent"
        return
    if not 0 <= trajectory.parent < len(group.trajectories):
        yield f"parent {trajectory.parent} of {len(group.trajectories)} trajectories"
    elif trajectory.pivot is not None:
        segments = min(len(t.segments) for t in (trajectory, group.trajectories[trajectory.parent]))
        if not 0 <= trajectory.pivot <= segments:
            yield f"pivot {trajectory.pivot}, it and its parent share at most {segments} segments"


def _row_faults(group: Group, row: Row) -> Iterator[str]:
    if not 0 <= row.trajectory < len(group.trajectories):
        yield f"trajectory {row.trajectory} of {len(group.trajectories)}"
        return
    trajectory = group.trajectories[row.trajectory]
    segments = len(trajectory.segments)
    if trajectory.verdict is Verdict.FAILED:
        yield f"trajectory {row.trajectory} failed and is no training data"
    if not 0 <= row.first < segments:
        yield f"first segment {row.first} of {segments}"
    for credit in row.credits:
        if not row.first <= credit.first < credit.last <= segments:
            yield f"a credit for segments [{credit.first}, {credit.last}) of the targets [{row.first}, {segments})"
