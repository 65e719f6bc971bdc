"""What an episode of each environment is: one class an environment, chosen by `env.name`.

What several keys allow together is checked here as far as it can be known without drawing an episode.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs.base import Settings

MAX_TURNS = "answers of the policy an episode has room for"
ACTIONS_PER_TURN = "actions an answer may hold"
MAX_ACTIONS = "actions an episode has room for"
TAG = r"^[A-Za-z_][A-Za-z0-9_-]{0,31}$"


class TurnSettings(Settings):
    """What every text environment shares."""

    max_turns: PositiveInt = Field(6, description=MAX_TURNS)
    actions_per_turn: int = Field(1, ge=1, le=128, description=ACTIONS_PER_TURN)
    max_actions: PositiveInt = Field(6, description=MAX_ACTIONS)
    format_penalty: float = Field(
        -0.1, le=0, description="reward of an answer that cannot be read or holds an illegal action"
    )
    think_tag: str | None = Field("think", pattern=TAG, description="tag around thoughts; empty: none are asked for")
    answer_tag: str = Field("answer", pattern=TAG, description="tag around the actions")

    @model_validator(mode="after")
    def _turns_fit_together(self) -> TurnSettings:
        if self.think_tag == self.answer_tag:
            raise ValueError(f"think_tag and answer_tag are both {self.answer_tag}: they must differ")
        if self.actions_per_turn > self.max_actions:
            raise ValueError(
                f"actions_per_turn ({self.actions_per_turn}) must not exceed max_actions ({self.max_actions})"
            )
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Paths (or data set ids) whose contents episodes depend on."""
        return ()

    @property
    def action_limit(self) -> int:
        """Most actions an episode has room for."""
        return min(self.max_actions, self.max_turns * self.actions_per_turn)


class GuessSettings(TurnSettings):
    """A task whose actions are whole attempts: one, unless more are asked for."""

    max_turns: PositiveInt = Field(1, description=MAX_TURNS)
    max_actions: PositiveInt = Field(1, description=MAX_ACTIONS)

    @model_validator(mode="after")
    def _turns_are_attempts(self) -> GuessSettings:
        if self.max_turns > self.max_actions:
            raise ValueError(
                f"max_turns ({self.max_turns}) must not exceed max_actions ({self.max_actions}): a turn is an attempt"
            )
        return self


class PathExplorationSettings(GuessSettings):
    """Guess paths through named levels; some are hidden targets. The group's coverage of them is the metric."""

    name: Literal["path_exploration"] = "path_exploration"
    depth: int = Field(3, ge=1, le=6, description="levels of a path")
    branching: int = Field(8, ge=2, le=64, description="names to choose from at each level")
    targets: int = Field(20, ge=1, le=100_000, description="hidden paths that count as found")
    maps: PositiveInt = Field(1, description="different sets of hidden targets, told apart by number in the prompt")
    names: str | None = Field(
        None,
        min_length=1,
        description="JSON file of names, instead of invented ones and of depth and branching: a list of lists (one a "
        "level, any combination is a path) or nested objects that end in lists",
    )

    @model_validator(mode="after")
    def _targets_exist(self) -> PathExplorationSettings:
        paths = self.branching**self.depth
        if self.names is None and self.targets > paths:
            raise ValueError(
                f"targets ({self.targets}) are more than the {paths} paths that branching ({self.branching}) and "
                f"depth ({self.depth}) make"
            )
        return self

    @property
    def files(self) -> tuple[str, ...]:
        return (self.names,) if self.names else ()


class FrozenLakeSettings(TurnSettings):
    """Walk over the ice to the goal."""

    name: Literal["frozen_lake"] = "frozen_lake"
    size: int = Field(4, ge=2, le=16, description="rows and columns")
    hole_share: float = Field(0.2, ge=0, lt=1, description="chance that a cell is a hole")
    slip: float = Field(
        0.0, ge=0, lt=1, description="chance that a move goes sideways instead (gymnasium's slippery lake: 2/3)"
    )
    random_ends: bool = Field(True, description="start and goal anywhere; off: top left and bottom right")


class SokobanSettings(TurnSettings):
    """Push every box onto a target. Rewards follow the common scale of this task (per move, per box, all boxes)."""

    name: Literal["sokoban"] = "sokoban"
    max_turns: PositiveInt = Field(5, description=MAX_TURNS)
    actions_per_turn: PositiveInt = Field(5, description=ACTIONS_PER_TURN)
    max_actions: PositiveInt = Field(10, description=MAX_ACTIONS)
    # As much as a whole turn of moves costs: talking nonsense must not be cheaper than playing.
    format_penalty: float = Field(-0.5, le=0, description="reward of an answer that cannot be read or made in full")
    rows: int = Field(6, ge=4, le=16, description="with the walls around")
    columns: int = Field(6, ge=4, le=16, description="with the walls around")
    boxes: int = Field(1, ge=1, le=3, description="boxes, and targets")
    levels: str | None = Field(
        None,
        min_length=1,
        description="text file of levels in the common format (# wall, @ player, $ box, . target, * box on target, "
        "+ player on target), or a folder of such files; instead of rows, columns and boxes",
    )
    show_board: bool = Field(
        True, description="every message shows the board; off: only the first, later ones tell the places"
    )
    move_reward: float = Field(-0.1, le=0, description="for every move")
    box_reward: float = Field(1.0, ge=0, description="for a box moved onto a target; taken back when it leaves it")
    solved_reward: float = Field(10.0, ge=0, description="once all boxes are on targets")

    @model_validator(mode="after")
    def _room_holds_boxes(self) -> SokobanSettings:
        cells = (self.rows - 2) * (self.columns - 2)
        if self.levels is None and max(self.rows, self.columns) < 5:
            raise ValueError(
                f"rows ({self.rows}) and columns ({self.columns}) leave no three cells in a line, which a push takes: "
                "one of them must be at least 5"
            )
        if self.levels is None and 2 * self.boxes + 1 > cells:
            raise ValueError(
                f"boxes ({self.boxes}), their targets and the player do not fit into the {cells} cells that rows "
                f"({self.rows}) and columns ({self.columns}) leave"
            )
        return self

    @property
    def files(self) -> tuple[str, ...]:
        return (self.levels,) if self.levels else ()


class CountdownSettings(GuessSettings):
    """Reach a target with a formula that uses each number once."""

    name: Literal["countdown"] = "countdown"
    least_numbers: int = Field(3, ge=3, le=6, description="an episode has this many numbers or more")
    most_numbers: int = Field(4, ge=3, le=6, description="an episode has this many numbers or fewer")
    largest_number: int = Field(99, ge=2, le=999, description="numbers are 1 to this")
    largest_target: int = Field(100, ge=1, le=9999, description="targets are 1 to this")
    right_numbers_reward: float = Field(
        0.1, ge=0, lt=1, description="for a formula of the right numbers with a wrong value"
    )

    @model_validator(mode="after")
    def _numbers_are_a_range(self) -> CountdownSettings:
        if self.least_numbers > self.most_numbers:
            raise ValueError(f"least_numbers ({self.least_numbers}) must not exceed most_numbers ({self.most_numbers})")
        return self


class SudokuSettings(TurnSettings):
    """Fill a grid that has exactly one solution."""

    name: Literal["sudoku"] = "sudoku"
    max_turns: PositiveInt = Field(5, description=MAX_TURNS)
    actions_per_turn: PositiveInt = Field(16, description=ACTIONS_PER_TURN)
    max_actions: PositiveInt = Field(32, description=MAX_ACTIONS)
    size: Literal[4, 9] = Field(4, description="rows, columns and digits")
    blanks: int = Field(8, ge=1, le=64, description="empty cells at the start")
    difficulty: Literal["any", "easy", "medium", "hard"] = Field(
        "any",
        description="easy: at every step some cell has one candidate; medium: or some digit one place in a row, column "
        "or box; hard: needs a guess or more. Of size 4 all are easy",
    )
    show_seen: bool = Field(
        False,
        description="tell of each empty cell which digits its row, column and box hold, after the first message "
        "instead of the grid; for small policies",
    )
    partial_credit: float = Field(
        0.0, ge=0, lt=1, description="reward, at the end of an unsolved game, times the share of blanks filled rightly"
    )

    @model_validator(mode="after")
    def _blanks_can_be_filled(self) -> SudokuSettings:
        # A 4x4 grid needs 4 givens and a 9x9 grid 17 to have one solution (McGuire et al., arXiv 1201.0749).
        most = 12 if self.size == 4 else 64
        if self.blanks > most:
            raise ValueError(f"blanks ({self.blanks}) must be at most {most} with size {self.size}: one solution")
        if self.blanks > self.action_limit:
            raise ValueError(
                f"blanks ({self.blanks}) are more than an episode can fill: max_actions ({self.max_actions}), "
                f"max_turns ({self.max_turns}) times actions_per_turn ({self.actions_per_turn})"
            )
        return self


class MathSettings(GuessSettings):
    """Answer questions of a data set; a maths-equivalence library grades."""

    name: Literal["math"] = "math"
    data: str = Field(
        min_length=1, description="JSONL or parquet file, folder of such files, or data set id (owner/name)"
    )
    held_out_data: str | None = Field(
        None, min_length=1, description="the same for evaluation; empty: every tenth distinct question of `data`"
    )
    subset: str | None = Field(None, min_length=1, description="configuration of a data set id that has several")
    split: str = Field("train", min_length=1, description="split of a data set id in `data`")
    held_out_split: str = Field("test", min_length=1, description="split of a data set id in `held_out_data`")
    question_column: str | None = Field(None, min_length=1, description="empty: question or problem")
    answer_column: str | None = Field(
        None, min_length=1, description="empty: answer or solution; the final answer is cut out (#### or boxed)"
    )
    grade_timeout_s: PositiveFloat = Field(4.0, description="grading one answer; later it is a failure, not a wrong")
    grade_memory_mib: int = Field(1024, ge=256, description="memory of each of an actor's two grading processes")

    @property
    def files(self) -> tuple[str, ...]:
        return (self.data, self.held_out_data) if self.held_out_data else (self.data,)


EnvSettings = Annotated[
    PathExplorationSettings | FrozenLakeSettings | SokobanSettings | CountdownSettings | SudokuSettings | MathSettings,
    Field(discriminator="name"),
]
