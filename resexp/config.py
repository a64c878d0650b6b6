"""The only module that knows Hydra: composes settings, checks them, runs the task once per job."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from resexp.launch.cluster import start_ray, work
from resexp.launch.session import Session
from resexp.settings import (
    Job,
    Settings,
    UsageError,
    as_dict,
    circumstances,
    complete,
    earlier,
)
from resexp.settings.choices import (
    OPTIONS,
    config_folder,
    full_key,
    groups,
    keys,
    nearest,
    options,
    ordered,
    own_options,
    values,
)

ConfigStore.instance().store(name="schema", node=Settings, provider="resexp")

# From a bare checkout (only PYTHONPATH set) Hydra would not find our plugins; a wheel and an
# editable install put them on the path themselves.
PLUGINS = Path(__file__).parent / "_plugins"
if PLUGINS.is_dir() and str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))

WHAT_TO_PRINT = ("job", "hydra", "all")
WHAT_TO_EXPLAIN = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")

#: Hydra's flags that make sense here, and the values each takes: none (), these, or any (None).
FLAGS: dict[str, tuple[str, ...] | None] = {
    "-m": (),
    "--multirun": (),
    "--cfg": WHAT_TO_PRINT,
    "-c": WHAT_TO_PRINT,
    "--resolve": (),
    "--package": None,
    "-p": None,
    "--info": WHAT_TO_EXPLAIN,
    "-i": WHAT_TO_EXPLAIN,
    "--config-dir": None,
    "-cd": None,
    "--config-name": None,
    "-cn": None,
    "--hydra-help": (),
}

SETTINGS_HINT = "All of them: resexp list settings."

#: Hydra's launchers that come with an extra of ours.
EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}

# A setting of ours as a launcher wants it: whole numbers as such, and another value for none or 0.
OmegaConf.register_new_resolver(
    "otherwise",
    lambda value, instead: (int(value) if value == int(value) else value) if value else instead,
    replace=True,
)
# A data set's name as that of a folder.
OmegaConf.register_new_resolver(
    "as_folder",
    lambda name: re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).lstrip(".+-") or "data",
    replace=True,
)
OmegaConf.register_new_resolver("home", lambda path: str(Path(path).expanduser()), replace=True)

#: Overrides that are no part of a run's name, or a part of their own, beside its circumstances.
UNNAMED = {"arch", "depth", "seed", "experiment", "launch"}

#: The session of this command; a process that some launcher started has none.
_session: Session | None = None


def task(config: DictConfig) -> None:
    """What Hydra calls once per job, in whatever process the launcher chose.

    Nothing is raised: Hydra would print lines of its own about it.
    """
    hydra_config = cast(DictConfig, HydraConfig.get())
    if _session is None:
        work(to_job(config, hydra_config), hydra_config.runtime.cwd, hydra_config.job.num)
        return
    try:
        _session.perform(to_job(config, hydra_config))
    except UsageError as error:
        _session.refusal = error


def plan(configs: list[DictConfig]) -> list[int]:
    """What the sweeper calls once, before the first job."""
    assert _session is not None
    launcher = configs[0].hydra.launcher
    kind = launcher._target_
    if kind.endswith(".SlurmLauncher") and not shutil.which("sbatch"):
        raise UsageError(
            "launch=slurm, but there is no sbatch here. Type it where the cluster takes jobs."
        )
    here = kind.startswith(("hydra._internal.", "hydra_plugins.resexp_"))
    if not here and PLUGINS.is_dir():  # the launcher's processes unpickle our plugins
        paths = [str(PLUGINS), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    chosen = _session.plan([to_job(config, config.hydra) for config in configs], here=here)
    if chosen and "ray" in launcher:
        ray = launcher.ray
        start_ray(*(OmegaConf.to_container(part, resolve=True) for part in (ray.init, ray.remote)))
    return chosen


def together(overrides: Sequence[Sequence[str]]) -> None:
    """What our own launcher calls in place of the task, once for all jobs: they are planned."""
    assert _session is not None
    try:
        _session.perform_all()
    except UsageError as error:
        _session.refusal = error


task.plan = plan  # type: ignore[attr-defined]
task.together = together  # type: ignore[attr-defined]


def launch(arguments: Sequence[str], dry_run: bool = False) -> Session:
    """Carry out ``resexp run ARGUMENTS``; the session knows what came of every job.

    Raises UsageError, with nothing trained or written, if any job cannot be run.
    """
    global _session
    flags, overrides = split(arguments)
    if not {"-m", "--multirun"} & set(flags) and (dry_run or (not flags and goes_away(overrides))):
        flags.append("-m")
    command = shlex.join(["resexp", "run", *flags, *overrides])
    _session = Session(dry_run=dry_run, command=command)
    run = hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")
    try:
        with _session.looking(), command_line([*flags, *overrides]), one_line_errors():
            run(task)()
        _session.settle(None)
        _session.raise_refusal()
        return _session
    except UsageError:
        raise
    except Exception as error:  # of a launcher: its workers may be at work still
        if not _session.planned:
            raise
        _session.settle(error)
        return _session
    finally:
        _session.close()
        _session = None


def goes_away(overrides: Sequence[str]) -> bool:
    """Whether a launcher was chosen for a job on its own: to Hydra it then is a sweep of one."""
    away = ("launch=", "hydra/launcher=")
    return any(
        word.startswith(away) and not word.endswith(("=local", "=basic")) for word in overrides
    )


def compose(overrides: Sequence[str]) -> Job:
    """The job that ``overrides`` describe, for use from Python. Raises UsageError."""
    flags, overrides = split(overrides)
    if flags:
        raise UsageError(f"{flags[0]} goes with resexp run alone. See resexp run --help.")
    folder = str(config_folder())
    with one_line_errors(), hydra.initialize_config_dir(folder, version_base="1.3"):
        whole = hydra.compose("config", list(overrides), return_hydra_config=True)
        return to_job(whole, whole.hydra)


def to_job(config: DictConfig, hydra_config: DictConfig) -> Job:
    """Leave Hydra: check a composed configuration and turn it into plain dataclasses.

    ``config`` is the caller's to give away: it loses its ``hydra``.
    """
    overrides = [word.removeprefix("++") for word in hydra_config.overrides.task]
    with open_dict(config), read_write(config):
        config.pop("hydra", None)
    if not config.data.name:
        config.data.name = root_name(config.data.root)
    try:
        settings = OmegaConf.to_object(config)
    except AttributeError as error:  # a key added with +: the dataclasses have slots
        leaf = str(error).rsplit("'", 2)[-2]
        typed = [override.lstrip("+").partition("=")[0] for override in overrides]
        key = next((key for key in typed if key.rpartition(".")[2] == leaf), leaf)
        raise UsageError(unknown(key)) from None
    assert isinstance(settings, Settings)
    if not hydra_config.runtime.choices.get("arch"):
        raise UsageError(f"a run needs an arch. Choose one of: {', '.join(options('arch'))}.")
    choices, sources = hydra_config.runtime.choices, hydra_config.runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    return Job(
        settings=settings,
        arch=choices.arch,
        extras=extras(overrides, settings, choices),
        overrides=overrides,
        flags=[word for path in own for word in ("--config-dir", path)],
        config=OmegaConf.to_yaml(config, resolve=True),
    )


def root_name(root: str) -> str:
    """A data set's name from its place: cifar10-jpeg of .../cifar10-jpeg.tar.xz."""
    return re.sub(r"(\.tar)?(\.\w{1,3})?$", "", Path(root).name) or "imagefolder"


def extras(overrides: Sequence[str], settings: Settings, choices: DictConfig) -> dict[str, Any]:
    """The typed overrides that name a run beside arch, depth and seed, with their values."""
    flat = complete(as_dict(settings))
    unnamed = UNNAMED | circumstances(flat)
    named: dict[str, Any] = {}
    for override in overrides:
        key = earlier(override.partition("=")[0].lstrip("+~").partition("@")[0])
        if key in unnamed or key.startswith("hydra") or override == "twin=none":
            continue
        named[key] = choices[key] if key in choices else flat[key]
    return named


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags (with their values) and overrides: people mix them, Hydra's parser cannot.

    Raises UsageError for a flag that is none of Hydra's, or that lacks its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(readable(word))
            continue
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            hint = nearest(flag, [*FLAGS, "--dry-run"])
            raise UsageError(f"unknown flag {flag}.{hint} See resexp run --help.")
        flags.append(flag)
        known = FLAGS[flag]
        if known == ():
            continue
        value = value if equals else next(rest, "")
        if not value or (known and value not in known):
            what = f"{flag} takes no {value}" if value else f"{flag} needs a value"
            choice = f": one of {', '.join(known)}" if known else ""
            raise UsageError(f"{what}{choice}. See resexp run --help.")
        flags.append(value)
    if any(word.startswith("arch.merge=") for word in overrides):  # then of any arch's options
        overrides = ["++" * word.startswith(OPTIONS) + word for word in overrides]
    return flags, overrides


def readable(override: str) -> str:
    """The override with its full key; refused where Hydra would explain a fault in riddles."""
    key, _, value = override.lstrip("+~").partition("=")
    if not key:
        raise UsageError(f"cannot read the override {override!r}. Write key=value.")
    if override.startswith("~"):
        value = next(iter(values(key)), "...")
        raise UsageError(f"{override}: no setting can be left out. Write {key}={value}.")
    if value == "null" and key in groups():
        raise UsageError(f"{override}: a run needs one. Choose one of: {', '.join(options(key))}.")
    if override.startswith("+") and key in groups():
        raise UsageError(f"{override}: leave the + away, as in {key}={value}.")
    return full_key(key) + override[len(key) :] if override.startswith(key) else override


@contextmanager
def command_line(words: list[str]) -> Iterator[None]:
    """Let Hydra see ``words`` as its command line and raise errors instead of printing them."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["resexp run", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into one sentence that says what to type."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error)) from error


def explain(error: Exception) -> str:
    """What was wrong with an override, and the nearest right one."""
    cause = error.__cause__ or error
    text = str(error).splitlines()[0]
    key = getattr(cause, "full_key", None) or ""
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override!r}. Write key=value, and quote brackets for "
            "the shell: 'milestones=[0.5,0.75]'."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and option in EXTRAS:
            extra = EXTRAS[option]
            return f"launch={extra} needs more packages: pip install 'resexp[{extra}]'"
        known = ordered(error.options or options(group))
        what = f"{group} has no option {option}." if group else f"there is no config {option}."
        return f"{what}{nearest(option, known)} Choose one of: {', '.join(known)}."
    if several := re.match(r"Ambiguous value for argument '(.+?)'", text):
        return f"{several[1]} has several values. Add -m to run each, or give one."
    if sweep := re.search(r"[Ss]weep parameters '(.+?)'", text):
        return f"{sweep[1]} has several values. Add -m to run each, or give one."
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError") and key:
        return unknown(key)
    if refused := re.match(r"Could not override '(.+?)'", text):
        return unknown(refused[1].partition("@")[0])
    if key:
        return f"{key}: {str(cause).splitlines()[0].rstrip('.')}. See resexp list settings."
    return text


def unknown(key: str) -> str:
    """That there is no such setting, and the nearest that there is; or whose it is."""
    if archs := own_options().get(key):
        return f"{key} is for arch={' or '.join(archs)}."
    return f"unknown setting {key}.{nearest(key, keys())} {SETTINGS_HINT}"


__all__ = ["Job", "compose", "groups", "launch"]
