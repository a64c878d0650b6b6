"""The only module that knows Hydra: composes settings, checks them, makes jobs of them.

A command goes ``launch`` -> Hydra's multirun -> the sweeper and the launcher of
``hydra_plugins.resexp_sweeps`` -> ``Session``, be it one run or many.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from resexp.launch.cluster import start_ray, work
from resexp.launch.session import Instead, Session
from resexp.settings import Job, Settings, UsageError
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
from resexp.settings.job import as_dict, circumstances, complete, earlier

ConfigStore.instance().store(name="schema", node=Settings, provider="resexp")

# From a bare checkout (only PYTHONPATH set) Hydra would not find our plugins; a wheel and an
# editable install put them on the path themselves.
PLUGINS = Path(__file__).parent / "_plugins"
if PLUGINS.is_dir() and str(PLUGINS) not in sys.path:
    sys.path.append(str(PLUGINS))

#: Hydra's flags that make sense here, and the values each takes: none (), these, or any (None).
FLAGS: dict[str, tuple[str, ...] | None] = {
    "-m": (),
    "--cfg": ("job", "hydra", "all"),
    "--resolve": (),
    "--package": None,
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--config-dir": None,
    "--config-name": None,
    "--hydra-help": (),
}
#: Their other names.
ALIASES = {"--multirun": "-m", "-c": "--cfg", "-p": "--package", "-i": "--info"}
ALIASES |= {"-cd": "--config-dir", "-cn": "--config-name"}

#: Those that ask, and train nothing; and those of which Hydra takes one.
QUESTIONS, EXCLUSIVE = {"--cfg", "--info", "--hydra-help"}, {"-m", "--cfg", "--info"}

#: Settings of Hydra's that say where it would write.
FOLDERS = {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.chdir"}

#: What Hydra says of a file with a fault: the option, the kind of error, the fault and the setting.
IN_A_FILE = re.compile(r"In '(.+)': (\w+) raised while composing config:\n(.*)\n +full_key: (\S+)")

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
session: Session | None = None


def task(config: DictConfig) -> None:
    """What Hydra's own launchers call once per job, in a process of theirs."""
    hydra_config = cast(DictConfig, HydraConfig.get())
    job = to_job(config, hydra_config, hydra_config.overrides.task)
    work(job, hydra_config.runtime.cwd, hydra_config.job.num)


def launch(arguments: Sequence[str], instead: Instead | None = None) -> Session:
    """Carry out ``resexp run ARGUMENTS``; the session knows what came of every job.

    Or do something else with its jobs ``instead``, such as showing them.

    Raises UsageError, with nothing trained or written, if any job cannot be run.
    """
    global session
    flags, overrides = split(arguments)
    several = "-m" in flags
    command = shlex.join(["resexp", "run", *flags, *overrides])
    if not several and not QUESTIONS & set(flags):  # a run is a sweep of one
        flags.append("-m")
    run = hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")
    session = done = Session(instead=instead, command=command)
    try:
        with command_line([*flags, *overrides]), one_line_errors():
            check(flags, overrides, several)
            run(task)()
        done.raise_refusal()
    except Exception as error:
        if all(error is not one for _, one in done.failures) or isinstance(error, UsageError):
            raise  # it is not that Hydra's own sweeper says of a job what the session knows
    finally:
        done.close()
        session = None
    return done


def before_launch(launcher: DictConfig) -> None:
    """What Hydra's launchers need before they are given jobs. Raises UsageError."""
    if launcher._target_.endswith(".SlurmLauncher") and not shutil.which("sbatch"):
        raise UsageError(
            "launch=slurm, but there is no sbatch here. Type it where the cluster takes jobs."
        )
    if PLUGINS.is_dir():  # its processes unpickle our plugins
        paths = [str(PLUGINS), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if "ray" in launcher:
        ray = launcher.ray
        start_ray(*(OmegaConf.to_container(part, resolve=True) for part in (ray.init, ray.remote)))


def composed(
    loader: ConfigLoader, whole: DictConfig, sweep: Sequence[Sequence[str]]
) -> Iterator[tuple[DictConfig, DictConfig]]:
    """Every job's configuration and, shared by jobs with the same options, its ``hydra`` node.

    ``whole`` is the configuration that Hydra composed for all.
    Composing takes Hydra 100 ms, so it does that once for each choice of options, such as arch;
    values, such as depth, are then set in copies, by the same function of Hydra's.
    """
    parser = OverridesParser.create(config_loader=loader)
    known = {word: parser.parse_override(word) for word in {*chain.from_iterable(sweep)}}

    def chosen(parsed: list[Override]) -> tuple[str, ...]:
        # What is added or taken away may be what another sets: then Hydra does it all.
        new = any(one.is_add() or one.is_force_add() or one.is_delete() for one in parsed)
        return tuple(str(one.input_line) for one in parsed if new or not sets_value(one, whole))

    def apart(base: DictConfig) -> tuple[bytes, DictConfig]:
        with open_dict(base), read_write(base):
            hydra_config = cast(DictConfig, base.pop("hydra"))
        return pickle.dumps(base), hydra_config  # for copies: deepcopy takes five times as long

    # What was typed for all jobs, options among it, is composed already.
    typed = chosen([parser.parse_override(word) for word in whole.hydra.overrides.task])
    bases = {typed: apart(copy.deepcopy(whole))}
    for words in sweep:
        parsed = [known[word] for word in words]
        choice = chosen(parsed)
        if choice not in bases:
            bases[choice] = apart(loader.load_sweep_config(whole, list(choice)))
        base, hydra_config = bases[choice]
        config = pickle.loads(base)
        rest = [one for one in parsed if one.input_line not in choice]
        ConfigLoaderImpl._apply_overrides_to_config(rest, config)
        yield config, hydra_config


def sets_value(override: Override, whole: DictConfig) -> bool:
    """Whether an override gives a setting that all jobs have a value, and chooses no option."""
    key = override.key_or_group
    if override.package is not None or override.is_hydra_override() or "/" in key:
        return False
    if key in whole.hydra.runtime.choices:
        return False
    return not isinstance(OmegaConf.select(whole, key), DictConfig)


def compose(overrides: Sequence[str]) -> Job:
    """The job that ``overrides`` describe, for use from Python. Raises UsageError."""
    flags, overrides = split(overrides)
    if flags:
        raise UsageError(f"{flags[0]} goes with resexp run alone. See resexp run --help.")
    folder = str(config_folder())
    with one_line_errors(), hydra.initialize_config_dir(folder, version_base="1.3"):
        check([], overrides, several=False)
        whole = hydra.compose("config", list(overrides), return_hydra_config=True)
        return to_job(whole, whole.hydra, overrides)


def to_job(config: DictConfig, hydra_config: DictConfig, words: Sequence[str]) -> Job:
    """Leave Hydra: check a configuration composed of ``words``, turn it into plain dataclasses.

    ``config`` is the caller's to give away: it loses its ``hydra``.
    """
    overrides = [word.removeprefix("++") for word in words]
    with open_dict(config), read_write(config):
        config.pop("hydra", None)
    if not config.data.name:
        # From its place: cifar10-jpeg of .../cifar10-jpeg.tar.xz.
        stem = re.sub(r"(\.tar)?(\.\w{1,3})?$", "", Path(config.data.root).name)
        config.data.name = stem or "imagefolder"
    settings = OmegaConf.to_object(config)
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
    )


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
    """Flags by one name each, with their values, and overrides: Hydra's parser does not mix them.

    Raises UsageError for a flag that is none of Hydra's, or that lacks its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(readable(word))
            continue
        typed, equals, value = word.partition("=")
        flag = ALIASES.get(typed, typed)
        if flag not in FLAGS:
            hint = nearest(typed, [*FLAGS, *ALIASES, "--dry-run"])
            raise UsageError(f"unknown flag {typed}.{hint} See resexp run --help.")
        flags.append(flag)
        known = FLAGS[flag]
        if known == ():
            continue
        value = value if equals else next(rest, "")
        if not value or (known and value not in known):
            what = f"{typed} takes no {value}" if value else f"{typed} needs a value"
            choice = f": one of {', '.join(known)}" if known else ""
            raise UsageError(f"{what}{choice}. See resexp run --help.")
        flags.append(value)
    asked = [flag for flag in dict.fromkeys(flags) if flag in EXCLUSIVE]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} do not go together. Give one of them.")
    if any(word.startswith("arch.merge=") for word in overrides):  # then of any arch's options
        overrides = ["++" * word.startswith(OPTIONS) + word for word in overrides]
    return flags, overrides


def readable(override: str) -> str:
    """The override with its full key; refused where Hydra would explain a fault in riddles."""
    key, _, value = override.lstrip("+~").partition("=")
    if not key:
        raise UsageError(f"cannot read the override {override!r}. Write key=value.")
    if re.search(r"\d{400}", value):  # more than any type of number has
        raise UsageError(f"{key} has a number of {len(value):,} digits. See resexp list settings.")
    if override.startswith("~"):
        value = next(iter(values(key)), "...")
        raise UsageError(f"{override}: no setting can be left out. Write {key}={value}.")
    if value == "null" and key in groups():
        raise UsageError(f"{override}: a run needs one. Choose one of: {', '.join(options(key))}.")
    if override.startswith("+") and key in groups():
        raise UsageError(f"{override}: leave the + away, as in {key}={value}.")
    return full_key(key) + override[len(key) :] if override.startswith(key) else override


def check(flags: Sequence[str], overrides: Sequence[str], several: bool) -> None:
    """Refuse keys and options that there are not, and several values unless they are wanted."""
    own, known = own_folders(flags), keys()
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    chosen = {one.key_or_group: one.value() for one in parsed}
    sweeper, launcher = chosen.get("hydra/sweeper", "checked"), chosen.get("launch")
    if sweeper != "checked" and launcher in EXTRAS.values():
        raise UsageError(
            f"hydra/sweeper={sweeper} needs the numbers of its runs, which launch={launcher} does "
            "not hand back. Use launch=processes, or leave hydra/sweeper away."
        )
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override() and not several:
            word = override.input_line
            raise UsageError(f"{word} has several values. Add -m to run each, or give one.")
        if key in FOLDERS:
            raise UsageError(f"{key} is not read: runs lie in results/name. Set results= or name=.")
        if isinstance(value, dict):
            raise UsageError(f"{key}={{...}}: give each setting by itself, as in data.size=32.")
        if key.endswith("_target_"):
            raise UsageError(f"{key} names code: choose with hydra/launcher=... or launch=...")
        if override.is_hydra_override() or key.startswith("arch.options."):
            continue
        group = [folder / key for folder in (config_folder(), *own) if (folder / key).is_dir()]
        if not group and key not in known:
            raise UsageError(unknown(key))
        for one in value.list if isinstance(value, ChoiceSweep) else [value]:
            option = getattr(one, "text", one)
            if not group or any((folder / f"{option}.yaml").is_file() for folder in group):
                continue
            if not override.is_sweep_override() or isinstance(value, ChoiceSweep):
                there = ordered({path.stem for folder in group for path in folder.glob("*.yaml")})
                said = override.get_value_element_as_str() if one is value else str(option)
                raise UsageError(no_option(key, said, there))


def own_folders(words: Sequence[str]) -> list[Path]:
    """The folders of one's own configs that a command line names."""
    return [Path(value) for flag, value in pairwise(words) if flag == "--config-dir"]


def no_option(group: str, option: str, there: list[str]) -> str:
    """That a group lacks an option, and which it has."""
    what = f"{group} has no option {option}." if group else f"there is no config {option}."
    return f"{what}{nearest(option, there)} Choose one of: {', '.join(there)}."


def unknown(key: str) -> str:
    """That there is no such setting, and the nearest that there is; or whose it is."""
    if archs := own_options().get(key):
        return f"{key} is for arch={' or '.join(archs)}."
    return f"unknown setting {key}.{nearest(key, keys())} All of them: resexp list settings."


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
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        assert mark is not None
        raise UsageError(f"{mark.name}, line {mark.line + 1}: no YAML: {error.problem}.") from error


def explain(error: Exception) -> str:
    """What was wrong with an override, and the nearest right one."""
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override!r}. Write key=value, and quote brackets for "
            "the shell: 'milestones=[0.5,0.75]'."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and option in EXTRAS:
            extra = EXTRAS[option]
            return f"launch={extra} needs more packages: pip install '.[{extra}]' in the clone"
        if (group, option) == ("hydra/sweeper", "optuna"):
            return f"{group}={option} needs a package: pip install hydra-optuna-sweeper"
        return no_option(group, option, ordered(error.options or options(group)))
    if found := IN_A_FILE.match(str(error)):
        return in_a_file(*found.groups())
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and key:
        return unknown(key)
    said = str(cause if key else error).splitlines()[0]
    return misfit(key, said) if key else said


def misfit(key: str, said: str) -> str:
    """That a setting cannot have a value, of which OmegaConf ``said`` something."""
    if "ListConfig" in said:
        usual = json.dumps(complete({}).get(key)).replace(" ", "")
        return f"{key} must be a list, such as '{key}={usual}'. See resexp list settings."
    return f"{key}: {said.rstrip('.')}. See resexp list settings."


def in_a_file(option: str, kind: str, said: str, key: str) -> str:
    """What is wrong with the file of an option, and in which line."""
    folders = (*own_folders(sys.argv), config_folder())
    path = next(path for folder in folders if (path := folder / f"{option}.yaml").is_file())
    lines = path.read_text().splitlines()
    if key == option.partition("/")[0]:
        return f"{path} must begin with the line: # @package _global_"
    word = re.compile(rf" *{re.escape(key.rpartition('.')[2])} *:")
    number = next((n for n, line in enumerate(lines, 1) if word.match(line)), 1)
    return f"{path}, line {number}: {unknown(key) if 'Key' in kind else misfit(key, said)}"
