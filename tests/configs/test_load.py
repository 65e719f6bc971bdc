"""Configuration files, overrides, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.load import ConfigError, load_config, to_yaml
from configs.samplers import SesaSettings
from configs.schema import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"
NO_RUNS = ("cluster", "compare")
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in NO_RUNS)
SAMPLERS = "'parallel', 'sequential', 'sesa', 'verbalized', 'tree', 'dde'"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes `x.yaml` in a folder of its own, which is the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("x.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(copy, []) == config


def test_an_empty_file_is_all_defaults(write: Write) -> None:
    assert load_config(write(""), []) == RunConfig()


def test_the_file_then_the_overrides_count(write: Write) -> None:
    path = write("rollout: {actors: 3}\nsampler: {name: sesa, sketches: 4}\n")
    overrides = [
        "rollout.actors=5",
        "optim.lr=1e-4",
        "grpo.importance.cap=null",
        "run.name=my-run",
        "sampler.sketches=6",
    ]
    config = load_config(path, overrides)
    assert config.rollout.actors == 5
    assert config.optim.lr == 1e-4
    assert config.grpo.importance.cap is None
    assert config.run.name == "my-run"
    assert isinstance(config.sampler, SesaSettings)
    assert config.sampler.sketches == 6


def test_the_last_override_of_a_path_counts_and_groups_can_be_set_whole(write: Write) -> None:
    config = load_config(write(""), ["run.seed=1", "run.seed=2", "sampler={name: sesa, sketches: 3}"])
    assert config.run.seed == 2
    assert config.sampler == SesaSettings(sketches=3)


def test_a_union_without_a_name_is_its_default_member(write: Write) -> None:
    assert load_config(write("sampler: {group_size: 4}"), []).sampler.name == "parallel"
    assert load_config(write(""), ["sampler.group_size=4"]).sampler.name == "parallel"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rollout: {actrs: 2}", "rollout.actrs: unknown key; did you mean 'actors'?"),
        ("rolout: {}", "rolout: unknown key; did you mean 'rollout'?"),
        ("actors: 2", "actors: unknown key; did you mean 'rollout.actors'?"),
        ("rollout.actors: 2", "rollout.actors: unknown key; in a file the key is 'actors' in the group 'rollout'"),
        (
            "sampler.sketches: 2",
            "sampler.sketches: unknown key; in a file the key is 'sketches' in the group 'sampler'",
        ),
        (".run: 2", ".run: unknown key; did you mean 'run'?"),
        ("sync: {xyzzy: 2}", "sync.xyzzy: unknown key"),
        ("model: {warmup: {layer: 2}}", "model.warmup.layer: unknown key; did you mean 'layers'?"),
        ("rollout: {actors: many}", 'rollout.actors: should be a valid integer, got "many"'),
        ('rollout: {actors: "8"}', 'rollout.actors: should be a valid integer, got "8"'),
        ("rollout: {actors: true}", "rollout.actors: should be a valid integer, got true"),
        ("rollout: {actors: 010}", 'rollout.actors: should be a valid integer, got "010"'),
        ("rollout: {actors: 0}", "rollout.actors: should be greater than 0, got 0"),
        ("optim: {lr: .inf}", 'optim.lr: should be a valid number, got ".inf"'),
        ("observe: {console: on}", 'observe.console: should be a valid boolean, got "on"'),
        ("optim: {lr:}", "optim.lr: should be a valid number, got null"),
        ("rollout: 3", "rollout: is a group of keys, got 3"),
        ("sampler: sesa", 'sampler: is a group of keys, got "sesa"'),
        (
            "sampler: {name: sessa}",
            f"sampler.name: should be one of {SAMPLERS}, got \"sessa\"; did you mean 'sesa'?",
        ),
        ("sampler: {name: sesa, sketchs: 2}", "sampler.sketchs: unknown key; did you mean 'sketches'?"),
        ("sampler: {name: sesa, sketches: 1}", "sampler.sketches: should be greater than or equal to 2, got 1"),
        (
            "sampler: {sketches: 2}",
            "sampler.sketches: unknown key for 'parallel'; it belongs to 'sesa', but sampler.name is 'parallel'",
        ),
        ("sync: {backend: mpi}", "sync.backend: should be 'auto', 'nccl' or 'gloo', got \"mpi\""),
        (
            "model: {warmup: {hidden: 130}}",
            "model.warmup: hidden (130) must be a multiple of 32 * heads (4): "
            "the engine's attention on CPUs takes heads of 32, 64, ... only",
        ),
        (
            "queue: {max_groups: 2}",
            "queue.max_groups (2) must be at least grpo.groups_per_update (16), or no batch ever fills",
        ),
        ("run: {1: 2}", "run.1: Keys should be strings, got 1"),
        ("- run", 'a mapping of groups is expected, got ["run"]'),
        ("run: {seed: 1, seed: 1}", "line 1: duplicate key 'seed', first on line 1"),
        ("run:\n  seed: 1\nmodel: {}\nrun: {}", "line 4: duplicate key 'run', first on line 1"),
        (
            "run:\n  seed: [1\nmodel: {}",
            "line 3, column 6: while parsing a flow sequence, expected ',' or ']', but got ':'",
        ),
        (
            "run: {seed: 1}\n---\nrun: {}",
            "line 2, column 1: expected a single document in the stream, but found another document",
        ),
        ("{[a]: 1}", "line 1, column 2: while constructing a mapping, found unhashable key"),
        ("run: \x07", "not YAML: unacceptable character #x0007: special characters are not allowed"),
        ("[" * 5000, "line 1, column 51: nested more than 50 deep"),
        ("run: &a {name: *a}", "run.name: should be a valid string, got {'name': {...}}"),
    ],
)
def test_a_problem_of_the_file_is_one_line_that_names_it(write: Write, text: str, expected: str) -> None:
    assert problems(write(text)) == [f"x.yaml: {expected}"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.actors", "expected key=value, such as rollout.actors=4"),
        ("=4", "expected key=value, such as rollout.actors=4"),
        ("actors=4", "actors: unknown key; did you mean 'rollout.actors'?"),
        ("rollout.actrs=4", "rollout.actrs: unknown key; did you mean 'rollout.actors'?"),
        ("rolout.actors=4", "rolout.actors: unknown key; did you mean 'rollout.actors'?"),
        ("sampler.sketchs=4", "sampler.sketchs: unknown key; did you mean 'sampler.sketches'?"),
        ("max_groups=4", "max_groups: unknown key; did you mean 'queue.max_groups'?"),
        ("bucket_mib=4", "bucket_mib: unknown key; did you mean 'deepspeed.bucket_mib' or 'sync.bucket_mib'?"),
        ("xyzzy=4", "xyzzy: unknown key"),
        ("run.seed.x=4", "run.seed.x: run.seed is a value, not a group of keys"),
        ("rollout=4", "rollout: is a group of keys, got 4; set one of them, such as rollout.actors"),
        ("rollout=null", "rollout: is a group of keys, got null"),
        ("rollout.actors=many", 'rollout.actors: should be a valid integer, got "many"'),
        ("rollout={actrs: 4}", "rollout.actrs: unknown key; did you mean 'rollout.actors'?"),
        ("rollout={actors: 4, actors: 5}", "rollout: line 1: duplicate key 'actors', first on line 1"),
        (
            "rollout.actors=[4",
            "rollout.actors: line 1, column 3: while parsing a flow sequence, expected ',' or ']', "
            "but got '<stream end>'",
        ),
        (
            "sampler.name=sessa",
            f"sampler.name: should be one of {SAMPLERS}, got \"sessa\"; did you mean 'sesa'?",
        ),
    ],
)
def test_a_problem_of_an_override_names_the_override(write: Write, override: str, expected: str) -> None:
    assert problems(write(""), override) == [f"override {override}: {expected}"]


def test_a_group_that_may_be_empty_is_emptied_by_null(write: Write) -> None:
    path = write("run: {stop: {metric: entropy, at_most: 0.1}}")
    assert load_config(path, ["run.stop=null"]).run.stop is None


def test_choosing_another_sampler_refuses_the_keys_the_file_set_for_the_first(write: Write) -> None:
    path = write("sampler: {name: sesa, sketches: 4}")
    assert problems(path, "sampler.name=parallel") == [
        "x.yaml: sampler.sketches: unknown key for 'parallel'; it belongs to 'sesa', "
        "but sampler.name is 'parallel' (by override sampler.name=parallel)"
    ]


def test_all_problems_come_at_once(write: Write) -> None:
    path = write("rollout: {actrs: 2, temperature: -1}\nrun: {seed: x, seed: y}\n")
    assert problems(path, "nonsense", "grpo.epochs=0") == [
        "x.yaml: line 2: duplicate key 'seed', first on line 2",
        "override nonsense: expected key=value, such as rollout.actors=4",
        'x.yaml: run.seed: should be a valid integer, got "y"',
        "x.yaml: rollout.temperature: should be greater than 0, got -1",
        "x.yaml: rollout.actrs: unknown key; did you mean 'actors'?",
        "override grpo.epochs=0: grpo.epochs: should be greater than 0, got 0",
    ]


def test_a_missing_file_is_named_with_its_nearest_neighbour_and_the_overrides_are_still_read(write: Write) -> None:
    write("")
    assert problems(Path("y.yaml"), "actors=3") == [
        "y.yaml: no such file; did you mean 'x.yaml'?",
        "override actors=3: actors: unknown key; did you mean 'rollout.actors'?",
    ]


def test_what_is_no_text_file_is_named(write: Write) -> None:
    path = write("")
    assert problems(path.parent)[0].startswith(".: cannot be read: ")
    path.write_bytes(b"\xff\xfe\x00")
    assert problems(path)[0].startswith("x.yaml: cannot be read: 'utf-8' codec")


def test_long_values_are_cut(write: Write) -> None:
    (line,) = problems(write(f"rollout: {{actors: {'a' * 500}}}"))
    assert len(line) < 130


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    name=st.none()
    | st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,6}\Z")
    | st.sampled_from(["1e4", "no", "010", "1e-4", "null"]),
    path=st.none() | st.text(max_size=8).filter(lambda text: text.isprintable()),
    lr=st.floats(1e-30, 1e30),
    cap=st.none() | st.floats(1e-8, 10),
    sketches=st.integers(2, 10**12),
)
def test_what_to_yaml_writes_loads_equal(
    write: Write, name: str | None, path: str | None, lr: float, cap: float | None, sketches: int
) -> None:
    config = RunConfig.model_validate(
        {
            "run": {"name": name},
            "model": {"path": path},
            "optim": {"lr": lr},
            "grpo": {"importance": {"cap": cap}},
            "sampler": {"name": "sesa", "sketches": sketches},
        }
    )
    assert load_config(write(to_yaml(config)), []) == config
