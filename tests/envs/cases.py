"""What every environment is tested with: settings of each kind, and texts no parser may trip over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.environments import EnvSettings
from envs.base import TextEnv
from envs.registry import ENTRIES, make_env

# name of the case -> environment and fields
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "path_exploration": ("path_exploration", {}),
    "path_exploration-guesses": (
        "path_exploration",
        {"max_turns": 4, "max_actions": 4, "maps": 3, "depth": 2, "targets": 5},
    ),
    "frozen_lake": ("frozen_lake", {}),
    "frozen_lake-slippery": ("frozen_lake", {"slip": 0.2, "actions_per_turn": 2, "size": 5}),
    "sokoban": ("sokoban", {}),
    "sokoban-two-boxes": ("sokoban", {"rows": 7, "columns": 7, "boxes": 2, "max_turns": 8, "max_actions": 20}),
    "countdown": ("countdown", {}),
    "countdown-tries": ("countdown", {"least_numbers": 3, "most_numbers": 3, "max_turns": 4, "max_actions": 4}),
    "sudoku": ("sudoku", {}),
    "sudoku-9": ("sudoku", {"size": 9, "blanks": 30, "difficulty": "easy", "partial_credit": 0.5}),
    "sudoku-seen": ("sudoku", {"show_seen": True, "max_turns": 4, "actions_per_turn": 8, "max_actions": 16}),
    "math": ("math", {}),
}
QUESTIONS = [(f"What is {a} + {b} / 2?", f"\\frac{{{2 * a + b}}}{{2}}") for a in range(1, 9) for b in range(1, 6)]

MONSTERS = [
    "",
    "<answer>",
    "</answer><answer>",
    "<answer></answer>",
    "<answer>||</answer>",
    "<answer>" + "(" * 9000 + "1" + ")" * 9000 + "</answer>",
    "<answer>" + "[{" * 5000 + "</answer>",
    "<answer>" + "9" * 16000 + "</answer>",
    "<answer>" + "7" * 10**6 + "</answer>",
    "<answer>9**9**9**9**9</answer>",
    "<answer>" + "-" * 8000 + "1</answer>",
    "<answer>1" + "+1" * 8000 + "</answer>",
    "<answer>__import__('os').system('false')</answer>",
    "<answer>().__class__.__bases__[0].__subclasses__()</answer>",
    "<answer>r999999999999c1=1 || r1c1=99999999999999</answer>",
    "<answer>\u0663 + \u0664 = \uff17, \u2460\u2461, \u00bd</answer>",
    "<answer>\u202e\u0000\ud7ff\U0010ffff</answer>",
    "<answer>" + "Left || " * 5000 + "</answer>",
    "<answer>" * 3000 + "</answer>" * 3000,
    "<think>" * 4000,
    "\\boxed{" * 4000 + "1" + "}" * 4000,
    "$" * 9001,
    "\\frac{" * 3000,
    "r1c" * 4000,
]


def settings_of(case: str, folder: Path) -> EnvSettings:
    """Settings of a case; `folder` takes the data file a case may need."""
    name, fields = CASES[case]
    if name == "math":
        data = folder / "questions.jsonl"
        if not data.exists():
            lines = [json.dumps({"question": q, "answer": a}) for q, a in QUESTIONS]
            data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        fields = {**fields, "data": str(data)}
    made: EnvSettings = ENTRIES[name].settings.model_validate(fields)  # type: ignore[assignment]
    return made


def env_of(case: str, folder: Path) -> TextEnv:
    return make_env(settings_of(case, folder))
