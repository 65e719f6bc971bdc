"""Which policy a run starts from: the one `model.path` names, or a small one warmed up on this machine and kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from configs.files import json_object
from configs.schema import RunConfig
from configs.seeds import FIRST_DEMONSTRATION_SEED
from configs.shown import safe
from envs.base import Failure
from envs.demonstrations import demonstrate
from envs.protocol import tags
from envs.registry import make_env, make_script, source_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights as pickles, of which loading one can run anything; and other forms that are not loaded here.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MOST_SETTINGS_BYTES = 2**24  # of a model's JSON files
# Files of a policy's folder that say what it is: configuration, tokenizer, chat template, weights.
LOADED = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")
SOURCES = Path(__file__).resolve().parent.parent
# What makes a demonstration besides the environment's own folder.
SHARED_SOURCES = ("envs/base.py", "envs/protocol.py", "envs/demonstrations.py", "learner/warmup.py")


class PolicyError(ValueError):
    """The policy cannot be had; one line that names the setting at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(safe(message))


def ensure_policy(config: RunConfig, say: Callable[[str], None]) -> Path:
    """Folder (or hub id) of the policy to start from; makes the small one if it is not there yet (about 90 s).

    `say` gets a line before anything slow. Raises PolicyError, for a reference policy that is not there too.
    """
    if config.grpo.kl.reference is not None:
        _model_folder("grpo.kl.reference", config.grpo.kl.reference)
    if config.model.path is not None:
        folder = _model_folder("model.path", config.model.path)
        if folder.is_dir() and not _has_chat_template(folder):
            raise PolicyError(f"model.path: the tokenizer in {folder} has no chat template")
        return folder
    folder = _small_policy(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _warm_up(config, folder, say)
    return folder


def present_policy(config: RunConfig) -> Path:
    """As `ensure_policy`, of what is there already. Raises PolicyError where the small policy was not made here."""
    if config.model.path is not None:
        return _model_folder("model.path", config.model.path)
    folder = _small_policy(config)
    if not folder.is_dir():
        raise PolicyError(f"model.warmup.cache: {folder} is not there: the small policy was made elsewhere or removed")
    return folder


def policy_digest(policy: Path) -> str:
    """Equal for the same policy: the bytes of all that is loaded from its folder; of a hub id only the id is known."""
    if not policy.is_dir():
        return f"id:{policy}"
    digest = hashlib.sha256()
    for file in sorted(path for path in policy.iterdir() if path.suffix in LOADED):
        digest.update(file.name.encode() + b"\0" + str(file.stat().st_size).encode() + b"\0" + _contents(file))
    return f"sha256:{digest.hexdigest()}"


def _small_policy(config: RunConfig) -> Path:
    """Where the small policy of these settings is kept, made or not."""
    return Path(config.model.warmup.cache).expanduser() / f"policy-{_key(config)}"


def _model_folder(key: str, path: str) -> Path:
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:  # nobody has the home that `~name` stands for
        raise PolicyError(f"{key}: {path}: {error}") from error
    if not folder.is_dir():
        if HUB_ID.fullmatch(path):
            return Path(path)
        raise PolicyError(f"{key}: {path} is not a folder, nor a hub id (owner/name)")
    if not (folder / "config.json").is_file():
        raise PolicyError(f"{key}: {path} holds no model in Hugging Face format (no config.json)")
    _check_weights(key, folder)
    _check_code(key, folder)
    return folder


def _check_weights(key: str, folder: Path) -> None:
    """Raises PolicyError unless there are weights as safetensors. What else there is is never loaded."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise PolicyError(f"{key}: {folder} cannot be read: {error.strerror}") from error
    if any(file.suffix == ".safetensors" for file in files):
        return
    pickled = [file.name for file in files if file.suffix in PICKLED]
    if pickled:
        raise PolicyError(
            f"{key}: {folder} holds its weights as {pickled[0]}, a pickle, which can run code when it is loaded: only "
            "*.safetensors are read: convert it where you trust it, with save_pretrained of transformers"
        )
    raise PolicyError(f"{key}: {folder} holds no weights (*.safetensors)")


def _check_code(key: str, folder: Path) -> None:
    """Raises PolicyError for a model of a type that only code of its own knows."""
    settings = _settings_in(key, folder / "config.json")
    if "auto_map" not in settings:
        return
    # Imported here: it takes a second.
    from transformers import CONFIG_MAPPING

    if str(settings.get("model_type")) not in CONFIG_MAPPING:
        raise PolicyError(
            f"{key}: {folder} brings code of its own (auto_map in config.json), which is never run, and transformers "
            f"does not know its type {settings.get('model_type')!r:.60}: use a model it knows"
        )


def _settings_in(key: str, path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises PolicyError."""
    try:
        return json_object(path, _MOST_SETTINGS_BYTES)
    except ValueError as error:
        raise PolicyError(f"{key}: {error}") from error


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(_settings_in("model.path", settings).get("chat_template"))


def _key(config: RunConfig) -> str:
    """Equal for runs that would make the same policy: the settings and the sources that shape it."""
    digest = hashlib.sha256()
    facts = {
        "env": config.env.model_dump(),
        "warmup": config.model.warmup.model_dump(exclude={"cache"}),
        "max_model_len": config.model.max_model_len,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for path in config.env.files:
        digest.update(_contents(Path(path).expanduser()))
    own = source_folder(config.env)
    for source in [*sorted(own.glob("*.py")), *(SOURCES / name for name in SHARED_SOURCES)]:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _contents(path: Path) -> bytes:
    """A digest of what a file, or all files of a folder, hold; of an id that is no path nothing is known."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.digest()


def _warm_up(config: RunConfig, folder: Path, say: Callable[[str], None]) -> None:
    # Imported here: torch and transformers take seconds, and a run with a policy at hand needs neither.
    from learner.warmup import make_policy

    settings = config.model.warmup
    env, script = make_env(config.env), make_script(config.env)
    say(f"warming up a small policy, once for these settings: {settings.demonstrations} demonstrations")
    seeds = range(FIRST_DEMONSTRATION_SEED, FIRST_DEMONSTRATION_SEED + settings.demonstrations)
    try:
        conversations = [
            demonstrate(env, script, seed, settings.skill, settings.list_share, settings.list_length) for seed in seeds
        ]
        report = make_policy(conversations, settings, tags(config.env), config.model.max_model_len, folder)
    except (ValueError, Failure) as error:
        raise PolicyError(f"model.warmup: {error}") from error
    say(
        f"made {folder} in {report.seconds:.0f} s: {report.parameters / 1e6:.2f} M parameters, "
        f"{report.tokens / 1e6:.2f} M tokens, loss {report.loss:.3f}"
    )
