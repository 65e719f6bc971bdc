"""Sokoban's boards, the search for fewest moves and the rooms drawn, against a plain search and hand-worked boards."""

from __future__ import annotations

import pickle
from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.sokoban import search as search_module
from envs.sokoban.grid import MOVES, NAMES, Board, Room, cells_of
from envs.sokoban.levels import parse
from envs.sokoban.rooms import Plan, carved, draw_board
from envs.sokoban.search import Found, Solver, living, pushes_left, search

PLANS = [Plan(6, 6, 1, 10), Plan(5, 4, 1, 6), Plan(6, 9, 2, 20), Plan(8, 8, 3, 40), Plan(16, 16, 1, 30)]
Cell = tuple[int, int]


def board_of(*rows: str) -> Board:
    return parse("\n".join(rows), "here")[0]


def after(board: Board, moves: tuple[str, ...] | list[str]) -> Board:
    for name in moves:
        board = board.moved(name)
    return board


def fewest(board: Board) -> int | None:
    """Breadth first over (player, boxes) on coordinates, one move at a time."""
    width = board.room.columns

    def cells(mask: int) -> frozenset[Cell]:
        return frozenset(divmod(i, width) for i in range(board.room.rows * width) if mask >> i & 1)

    floor, goal = cells(board.room.floor), cells(board.room.targets)
    start = divmod(board.player, width), cells(board.boxes)
    seen, frontier = {start: 0}, deque([start])
    while frontier:
        player, boxes = frontier.popleft()
        if boxes == goal:
            return seen[player, boxes]
        for down, right in MOVES.values():
            there = player[0] + down, player[1] + right
            moved = boxes
            if there in boxes:
                beyond = there[0] + down, there[1] + right
                if beyond not in floor or beyond in boxes:
                    continue
                moved = boxes - {there} | {beyond}
            if there in floor and (there, moved) not in seen:
                seen[there, moved] = seen[player, boxes] + 1
                frontier.append((there, moved))
    return None


@st.composite
def boards(draw: st.DrawFn) -> Board:
    """Any placement in any small room, solvable or not."""
    plan = Plan(draw(st.integers(4, 6)), draw(st.integers(5, 7)), draw(st.integers(1, 2)), 10)
    rng = Random(draw(st.integers(0, 2**32)))
    floor = carved(plan, rng)
    cells = cells_of(floor)
    targets, boxes = (sum(1 << cell for cell in rng.sample(cells, plan.boxes)) for _ in range(2))
    room = Room(plan.rows, plan.columns, floor, targets)
    return Board(room, rng.choice([cell for cell in cells if not boxes >> cell & 1]), boxes)


# --- boards -----------------------------------------------------------------------------------------------------------


def test_a_move_walks_pushes_or_does_nothing() -> None:
    board = board_of("#######", "#@$  .#", "#$ ####", "# .####", "#######")
    assert board.moved("Up") is board
    assert board.moved("Left") is board
    pushed = board.moved("Right")
    assert (pushed.player, cells_of(pushed.boxes)) == (9, [10, 15])
    assert after(board, ["Right", "Right", "Right"]).boxes_on_targets == 1
    assert after(board, ["Right"] * 9).player == 11
    down = board.moved("Down")
    assert cells_of(down.boxes) == [9, 22]
    assert down.moved("Down") is down


def test_a_box_does_not_move_a_box() -> None:
    board = board_of("#######", "#@$$..#", "#######")
    assert board.moved("Right") is board


def test_what_is_known_shrinks_on_its_way_and_is_lost_off_it() -> None:
    board = board_of("######", "#@ $.#", "#    #", "######")
    known = Board(board.room, board.player, board.boxes, ("Right", "Right"))
    assert known.moved("Right").known == ("Right",)
    assert known.moved("Up").known == ("Right", "Right")
    assert known.moved("Down").known == ()
    assert known == board
    assert hash(known) == hash(board)
    assert pickle.loads(pickle.dumps(known)).known == known.known


@settings(max_examples=100)
@given(board=boards(), data=st.data())
def test_a_walk_is_shortest_and_pushes_nothing(board: Board, data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(cells_of(board.room.floor)))
    moves = board.walk(end)
    distances = {board.player: 0}
    frontier = deque([board.player])
    while frontier:
        here = frontier.popleft()
        for name in NAMES:
            there = here + board.room.step(name)
            if board.free >> there & 1 and there not in distances:
                distances[there] = distances[here] + 1
                frontier.append(there)
    assert (None if moves is None else len(moves)) == distances.get(end)
    if moves is not None:
        assert (after(board, moves).player, after(board, moves).boxes) == (end, board.boxes)


def test_pushes_become_moves_only_where_each_can_be_made() -> None:
    board = board_of("#######", "#@ $ .#", "#     #", "#######")
    assert board.moves_of([]) == []
    assert board.moves_of([(10, "Right"), (11, "Right")]) == ["Right", "Right", "Right"]
    assert board.moves_of([(10, "Left")]) == ["Down", "Right", "Right", "Right", "Up", "Left"]
    assert board.moves_of([(11, "Right")]) is None
    assert board.moves_of([(10, "Up")]) is None
    assert board.moves_of([(10, "Down")]) is None


# --- search -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(board=boards(), slack=st.integers(-3, 3))
def test_the_search_finds_the_fewest_moves_or_proves_there_are_none(board: Board, slack: int) -> None:
    best, found = fewest(board), search(board)
    assert found.proven
    assert (None if found.moves is None else len(found.moves)) == best
    if found.moves is not None:
        assert found.least == best
        assert after(board, found.moves).solved
    most = (best or 5) + slack
    within = search(board, most)
    assert within.proven
    assert (within.moves is not None) == (best is not None and best <= most)
    if within.moves is not None:
        assert len(within.moves) == best
    elif best is not None:
        assert within.least <= best


@pytest.mark.parametrize(
    ("rows", "moves"),
    [
        (("#####", "#@$.#", "#####"), ("Right",)),
        (("######", "#.$ @#", "######"), ("Left", "Left")),
        (("#####", "#  .#", "#@$ #", "#   #", "#####"), ("Right", "Down", "Right", "Up")),
        (("#####", "#$ .#", "#  @#", "#####"), None),
        (("######", "#.#$@#", "#    #", "######"), None),
        (("########", "#.$@$ .#", "########"), ("Left", "Right", "Right", "Right")),
    ],
)
def test_boards_worked_by_hand(rows: tuple[str, ...], moves: tuple[str, ...] | None) -> None:
    assert search(board_of(*rows)) == Found(moves, True, 0 if moves is None else len(moves))


def test_cells_no_box_comes_back_from_are_dead() -> None:
    room = board_of("######", "#@   #", "#  $ #", "#   .#", "######").room
    assert cells_of(living(room)) == [14, 15, 16, 20, 21, 22]
    assert [pushes_left(room)[cell] for cell in cells_of(living(room))] == [3, 2, 1, 2, 1, 0]


def test_a_search_that_gives_up_says_so_and_keeps_to_what_is_known() -> None:
    board = draw_board(Plan(8, 8, 3, 40), Random(3))
    assert board is not None
    best = search(board)
    assert best.moves is not None
    for nodes in (0, 1, 5):
        found = search(board, None, nodes)
        assert not found.proven
        assert found.moves == board.known
        assert found.least <= len(best.moves) <= len(board.known)
        stranger = Board(board.room, board.player, board.boxes)
        assert search(stranger, None, nodes).moves is None
        assert search(board, len(board.known) - 1, nodes).moves in (None, best.moves)


def test_what_a_board_is_known_to_be_solved_by_is_not_said_of_an_equal_one() -> None:
    board = draw_board(Plan(8, 8, 3, 40), Random(3))
    assert board is not None
    stranger = Board(board.room, board.player, board.boxes)
    assert stranger == board
    for first, second in ((board, stranger), (stranger, board)):
        solver = Solver(most_nodes=0)
        for most in (None, len(board.known), len(board.known) - 1):
            for asked in (first, second, first):
                found = solver.solve(asked, most)
                known = asked.known if most is None or len(asked.known) <= most else ()
                assert (found.moves, found.proven) == (known or None, False)


def test_a_board_is_searched_once_for_each_limit_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int | None] = []

    def counted(board: Board, most: int | None, nodes: int) -> Found:
        searches.append(most)
        return search(board, most, nodes)

    monkeypatch.setattr(search_module, "search", counted)
    board, solver = board_of("######", "#@   #", "# $  #", "#   .#", "#    #", "######"), Solver(most_nodes=1)
    for most in (10, None, 10, None):
        assert not solver.solve(board, most).proven
    assert searches == [10, None]


def test_large_boards_get_fewer_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(search_module._Search, "run", lambda self, nodes: looked.append(nodes))
    for size in (6, 16, 48):
        search(Board(Room(size, size, 0, 0), 0, 0b111), None, 900)
    assert looked == [900, 900, 100]


def test_to_follow_a_solution_is_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[Board] = []

    def counted(board: Board, most: int | None, nodes: int) -> Found:
        searches.append(board)
        return search(board, most, nodes)

    monkeypatch.setattr(search_module, "search", counted)
    board = draw_board(Plan(6, 6, 1, 10), Random(2))
    assert board is not None
    solver = Solver()
    moves = solver.solve(board, 10).moves
    assert moves is not None
    for done in range(len(moves) + 1):
        here = after(board, moves[:done])
        left = len(moves) - done
        assert solver.solve(here, left) == solver.solve(here) == Found(moves[done:], True, left)
        assert left == 0 or solver.solve(here, left - 1) == Found(None, True, left)
    assert searches == [board]
    assert solver.solve(board.moved("Left").moved("Up"), 0).moves is None
    assert solver.solve(board, 10).moves == moves


# --- rooms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_room_is_solved_by_how_it_was_made(plan: Plan) -> None:
    rooms = set()
    for seed in range(60):
        board = draw_board(plan, Random(seed))
        assert board is not None
        assert board == draw_board(plan, Random(seed))
        rooms.add(board)
        assert 2 <= len(board.known) <= plan.most_moves
        assert after(board, board.known).solved
        assert board.boxes.bit_count() == board.room.targets.bit_count() == plan.boxes
        assert board.boxes_on_targets == 0
        assert board.free >> board.player & 1
        assert not any(board.moved(name).solved for name in NAMES)
        for cell in cells_of(board.room.floor):
            row, column = divmod(cell, plan.columns)
            assert 0 < row < plan.rows - 1
            assert 0 < column < plan.columns - 1
        empty = Board(board.room, board.player, 0)
        assert all(empty.walk(cell) is not None for cell in cells_of(board.room.floor))
    assert len(rooms) > 20


def test_moves_too_few_to_lift_every_box_leave_some_on_their_targets() -> None:
    for seed in range(30):
        board = draw_board(Plan(7, 7, 3, 1), Random(seed))
        assert board is not None
        assert len(board.known) == 1
        assert board.boxes_on_targets == 2


def test_rooms_that_cannot_be_are_none() -> None:
    assert draw_board(Plan(4, 4, 1, 10), Random(0)) is None


def test_rooms_of_the_usual_size_are_as_hard_as_elsewhere() -> None:
    """There: median of the fewest moves 4, three quarters at most 5; here rather more."""
    lengths = []
    for seed in range(300):
        board = draw_board(Plan(6, 6, 1, 10), Random(seed))
        assert board is not None
        lengths.append(search(board).least)
    lengths.sort()
    assert (lengths[0], lengths[-1]) == (2, 10)
    assert 4 <= lengths[150] <= 7
    assert 5 <= lengths[225] <= 9
