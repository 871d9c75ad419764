"""The command line that every job shares: settings from a run's dataclass, one line for every mistake.

A job names its run type (`maskrcnn_core.*_config`) and an action; `run_job` does the rest: `--config FILE.yaml`,
every field as `--section.name`, `--help` with meaning, type and default of each, `--print_config`. It imports nothing
heavy, so that `--help` answers at once; the action imports what it needs.
"""

import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from maskrcnn_core.errors import ConfigError, UserError
from maskrcnn_core.printable import printable

Run = TypeVar("Run")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_job(run_type: type[Run], action: Callable[[Run], int], *, prog: str, argv: Sequence[str] | None = None) -> int:
    """Parse the command line into `run_type`, call `action` with it, and turn the user's mistakes into one line.

    Args:
        run_type: a frozen dataclass tree with attribute docstrings, such as `config.LabelRun`.
        action: does the work, prints its summary and returns the exit code.
        prog: the command in the usage text, such as `python -m jobs.label`.
        argv: arguments after the command; None = the process's own.

    Returns:
        The exit code: the action's; 0 after `--help` or `--print_config`; 2 after a mistake in a setting, a file or a
        folder (one line `error: ...` on stderr); 130 after Ctrl-C.
    """
    try:
        return action(parse_run(run_type, prog=prog, argv=argv))
    except UserError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # argparse leaves this way after --help and --print_config
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def parse_run(run_type: type[Run], *, prog: str, argv: Sequence[str] | None = None) -> Run:
    """Command line and YAML files as one `run_type`; later arguments win over earlier ones.

    Raises:
        ConfigError: a setting is unknown, missing, of the wrong type or out of range, or a file is not YAML settings.
        SystemExit: after `--help` and `--print_config`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    hints = _leaf_types(run_type)
    sources = {key: path for path in _config_paths(arguments) for key in _read_keys(path, hints)}
    # An argument overrides the files, wherever it stands, only as far as the parser says so; for naming the culprit it
    # is enough to know whether the key was given as an argument at all.
    given = {argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")}
    sources = {key: path for key, path in sources.items() if key not in given}
    parser = _build_parser(run_type, prog)
    try:
        parsed = parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), hints, sources)) from error
    except ConfigError as error:
        raise ConfigError(_with_source(str(error), str(error).split(":")[0], sources)) from error
    return run_type(**{field.name: parsed[field.name] for field in fields(run_type)})  # type: ignore[arg-type]


def _build_parser(run_type: type[Any], prog: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=(run_type.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file with settings; may be given more than once.")
    parser.add_class_arguments(run_type)
    return parser


def _leaf_types(run_type: type[Any], prefix: str = "") -> dict[str, Any]:
    """Every setting's dotted name and type, in order."""
    leaves: dict[str, Any] = {}
    for name, hint in get_type_hints(run_type).items():
        nested = isinstance(hint, type) and is_dataclass(hint)
        leaves.update(_leaf_types(hint, f"{prefix}{name}.") if nested else {f"{prefix}{name}": hint})
    return leaves


def _config_paths(arguments: Sequence[str]) -> list[str]:
    following = [value for flag, value in pairwise(arguments) if flag == "--config"]
    return following + [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--config=")]


def _read_keys(path: str, hints: dict[str, Any]) -> list[str]:
    """Dotted names of the settings in a YAML file, all of them known.

    The parser would read the file as well, but names neither the file nor the whole key, and takes the last of two
    equal keys without a word.
    """
    try:
        document = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: the file of --config cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}: not YAML: line {line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, yaml.MappingNode):
        raise ConfigError(f"{path}: holds no settings; expected YAML such as `output: runs/first`")
    return _mapping_keys(document, "", path, hints)


def _mapping_keys(mapping: yaml.MappingNode, prefix: str, path: str, hints: dict[str, Any]) -> list[str]:
    keys: list[str] = []
    seen: set[str] = set()
    for key_node, value_node in mapping.value:
        key = f"{prefix}{key_node.value}"
        if key in seen:
            raise ConfigError(f"{path}: {key} stands twice (again in line {key_node.start_mark.line + 1}); keep one")
        seen.add(key)
        is_section = any(name.startswith(f"{key}.") for name in hints)
        if not is_section and key not in hints:
            raise ConfigError(f"{path}: {key} is not a setting{_suggestion(key, hints)}")
        if is_section and not isinstance(value_node, yaml.MappingNode):
            got = repr(value_node.value) if isinstance(value_node, yaml.ScalarNode) else "a list"
            raise ConfigError(f"{path}: {key}: got {got}, expected settings such as {_example(key, hints)}")
        keys += _mapping_keys(value_node, f"{key}.", path, hints) if is_section else [key]
    return keys


def _example(section: str, hints: dict[str, Any]) -> str:
    return next(name for name in hints if name.startswith(f"{section}."))


def _suggestion(name: str, known: dict[str, Any], flag: str = "") -> str:
    """`; did you mean ...?` for the nearest known setting, or nothing."""
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    same_ending = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = get_close_matches(name, [*known, *sorted(sections)], n=1, cutoff=0.75) or same_ending[:1]
    return f"; did you mean {flag}{near[0]}?" if near else ""


def _explain(message: str, hints: dict[str, Any], sources: dict[str, str]) -> str:
    """The parser's message as: which key, got, expected."""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name = found[1].split("=")[0]
        meant = _suggestion(name.removeprefix("--"), hints, "--") if name.startswith("--") else ""
        return f"{name} is not an option{meant}" + ("" if meant else "; see --help")
    if found := re.search(r"arguments are required: (.+)", message):
        return f"missing {', '.join('--' + name.strip() for name in found[1].split(','))}; see --help"
    if found := re.search(r"Parser key \"([^\"]+)\":\s*Unable to load config '([^']*)'", message):
        return (
            f"--{found[1]}: {found[2]} is not a YAML file of settings; single ones go as --{_example(found[1], hints)}"
        )
    found = re.search(r'Parser key "([^"]+)"', message)
    if not found or found[1] not in hints:
        return _one_line(message)
    got = re.search(r"(?:Got|Given) value: (.*)", message, flags=re.DOTALL)
    text = f"{found[1]}: got {got[1].strip()}, expected {_expected(hints[found[1]])}" if got else _one_line(message)
    return _with_source(text, found[1], sources)


def _with_source(message: str, key: str, sources: dict[str, str]) -> str:
    return f"{sources[key]}: {message}" if key in sources else message


def _expected(hint: Any) -> str:
    """A type in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    arguments = get_args(hint)
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_expected(argument) for argument in arguments)
    if get_origin(hint) is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_expected(arguments[0])}"
    if get_origin(hint) is tuple:
        return f"a list of {len(arguments)}, each {_expected(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()))
