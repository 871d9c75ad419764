"""The command line that every job shares: settings from a run's dataclass, one line for every mistake.

A job names its run type (`maskrcnn_core.*_config`) and an action; `run_job` does the rest: `--config FILE.yaml`,
every field as `--section.name`, `--help` with meaning, type and default of each, `--print_config`. It imports nothing
heavy, so that `--help` answers at once; the action imports what it needs.
"""

import re
import signal
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import accumulate, pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jobs.interrupts import Interrupts, interrupts
from maskrcnn_core.errors import ConfigError, UserError
from maskrcnn_core.printable import printable
from maskrcnn_core.weights.format_1 import renamed_setting

if TYPE_CHECKING:
    import yaml
    from jsonargparse import ArgumentParser

Run = TypeVar("Run")

EXIT_USER_ERROR = 2
EXIT_SIGNALLED = 128  # and the number of the signal

GOES_ON = "the same command goes on where it stopped"
_STARTS_AFRESH = "the same command starts afresh"
_GRACE_SECONDS = 10.0

# Settings are nested three deep; a parser that recurses takes seconds to find out that it cannot follow a thousand.
_DEEPEST = 50


def run_job(
    run_type: type[Run],
    action: Callable[[Run], int],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    interrupted: str = _STARTS_AFRESH,
    grace: float = _GRACE_SECONDS,
    closing: str | None = None,
) -> int:
    """Parse the command line into `run_type`, call `action` with it, and turn the user's mistakes into one line.

    Args:
        run_type: a frozen dataclass tree with attribute docstrings, such as `config.LabelRun`.
        action: does the work, prints its summary and returns the exit code.
        prog: the command in the usage text, such as `python -m jobs.label`.
        argv: arguments after the command; None = the process's own.
        interrupted: what to say of an interrupted job, where its `KeyboardInterrupt` says nothing better.
        grace: seconds that it may take to end after Ctrl-C or SIGTERM; a second signal ends it at once.
        closing: what `--help` says below the settings; None = nothing.

    Returns:
        The exit code: the action's; 0 after `--help` or `--print_config`; 2 after a mistake in a setting, a file or a
        folder (one line `error: ...` on stderr); 130 after Ctrl-C and 143 after SIGTERM (one line `interrupted ...`).
    """
    with interrupts(f"interrupted: {interrupted}", grace) as taken:
        try:
            return _finished(lambda: action(parse_run(run_type, prog=prog, argv=argv, closing=closing)), taken)
        except KeyboardInterrupt as error:
            return _end(taken, f"interrupted {error}" if str(error) else f"interrupted: {interrupted}")
        except BaseException:
            if taken is None or taken.number is None:
                raise
            return _end(taken, f"interrupted: {interrupted}")


def _finished(work: Callable[[], int], taken: Interrupts | None) -> int:
    """The exit code of work that ends by itself."""
    try:
        return work()
    except UserError as error:
        if taken is not None and taken.number is not None:
            raise
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except SystemExit as stop:  # argparse leaves this way after --help and --print_config
        if taken is not None and taken.number is not None:
            raise
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        if taken is not None:
            taken.disarm()


def _end(taken: Interrupts | None, line: str) -> int:
    """Says the one line of an interrupted job; returns its exit code."""
    line = _one_line(line)
    if taken is None or taken.number is None:  # raised by the job itself
        print(line, file=sys.stderr)
        return EXIT_SIGNALLED + signal.SIGINT
    taken.finish(line)
    return EXIT_SIGNALLED + taken.number


def parse_run(run_type: type[Run], *, prog: str, argv: Sequence[str] | None = None, closing: str | None = None) -> Run:
    """Command line and YAML files as one `run_type`; later arguments win over earlier ones. Arguments as `run_job`'s.

    Raises:
        ConfigError: a setting is unknown, missing, of the wrong type or out of range, or a file is not YAML settings.
        SystemExit: after `--help` and `--print_config`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    hints = _leaf_types(run_type)
    file_of = {key: path for path in _config_paths(arguments) for key in _read_keys(path, hints)}
    # An argument overrides the files, wherever it stands, only as far as the parser says so; for naming the culprit it
    # is enough to know whether the key was given as an argument at all.
    given = {argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")}
    file_of = {key: path for key, path in file_of.items() if key not in given}
    _require_flat(arguments)
    parser = _build_parser(run_type, prog, closing)
    try:
        parsed = parser.instantiate(parser.parse_args(arguments))
        run = run_type(**{field.name: parsed[field.name] for field in fields(run_type)})  # type: ignore[arg-type]
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), hints, file_of)) from error
    except ConfigError as error:
        raise ConfigError(_with_file(str(error), str(error).split(":")[0], file_of)) from error
    except (ValueError, OverflowError, RecursionError) as error:  # of the YAML and number parsers below
        raise ConfigError(f"a setting cannot be read: {_short(str(error)) or type(error).__name__}") from error
    for key, text in _texts(run):
        _require_path_text(key, text, file_of)
    return run


def _require_flat(arguments: Sequence[str]) -> None:
    for argument in arguments:
        depth = max(accumulate((text in "[{") - (text in "]}") for text in argument), default=0)
        if depth > _DEEPEST:
            raise ConfigError(f"{argument[:40]}...: lists within lists {depth} deep; expected a setting")


def _texts(run: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text among the settings, with its name."""
    for field in fields(run):
        value = getattr(run, field.name)
        if is_dataclass(value):
            yield from _texts(value, f"{prefix}{field.name}.")
        elif isinstance(value, str):
            yield f"{prefix}{field.name}", value


def _require_path_text(key: str, text: str, file_of: dict[str, str]) -> None:
    """No file system and no library here takes others."""
    if "\0" in text:
        raise ConfigError(_with_file(f"{key}: got {text!r}, expected text without the character NUL", key, file_of))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            _with_file(f"{key}: got {text!r}, expected UTF-8 text; rename the file or folder", key, file_of)
        ) from None


def _build_parser(run_type: type[Any], prog: str, closing: str | None) -> "ArgumentParser":
    # Imported here, so that as little as possible has to be loaded before a signal finds a job that can answer it.
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # A shortened name would mean another setting on the day that one with the same beginning is added.
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        allow_abbrev=False,
        description=(run_type.__doc__ or "").split("\n")[0],
        epilog=closing,
    )
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
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        _require_shallow(path, text)
        document = yaml.compose(text, Loader=yaml.SafeLoader)
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


def _require_shallow(path: str, text: str) -> None:
    """Events come one by one, without recursion."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise ConfigError(f"{path}: line {line}: more than {_DEEPEST} lists or sections within each other")


def _mapping_keys(mapping: "yaml.MappingNode", prefix: str, path: str, hints: dict[str, Any]) -> list[str]:
    import yaml

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
    name = renamed_setting(name)
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    same_ending = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    longer = [key for key in known if key.startswith(name)]  # a shortened one
    near = get_close_matches(name, [*known, *sorted(sections)], n=1, cutoff=0.75) or same_ending[:1] or longer[:1]
    return f"; did you mean {flag}{near[0]}?" if near else ""


def _explain(message: str, hints: dict[str, Any], file_of: dict[str, str]) -> str:
    """The parser's message as: which key, got, expected."""
    if match := re.search(r"unrecognized arguments: (\S+)", message):
        name = match[1].split("=")[0]
        known = {**hints, "config": str, "print_config": str}
        meant = _suggestion(name.removeprefix("--"), known, "--") if name.startswith("--") else ""
        return f"{name} is not an option{meant}" + ("" if meant else "; see --help")
    if (match := re.search(r"argument (--\S+): expected one argument", message)) and match[1][2:] in hints:
        return f"{match[1]}: no value given, expected {_expected(hints[match[1][2:]])}"
    if match := re.search(r"arguments are required: (.+)", message):
        return f"missing {', '.join('--' + name.strip() for name in match[1].split(','))}; see --help"
    if match := re.search(r"Parser key \"([^\"]+)\":\s*Unable to load config '([^']*)'", message):
        return (
            f"--{match[1]}: {match[2]} is not a YAML file of settings; single ones go as --{_example(match[1], hints)}"
        )
    match = re.search(r'Parser key "([^"]+)"', message)
    if not match or match[1] not in hints:
        return _one_line(message)
    got = re.search(r"(?:Got|Given) value: (.*)", message, flags=re.DOTALL)
    text = f"{match[1]}: got {_short(got[1].strip())}, expected {_expected(hints[match[1]])}" if got else message
    return _with_file(text, match[1], file_of)


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def _with_file(message: str, key: str, file_of: dict[str, str]) -> str:
    return f"{file_of[key]}: {message}" if key in file_of else message


def _expected(hint: Any) -> str:
    """A type in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    arguments = get_args(hint)
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_expected(argument) for argument in arguments)
    if get_origin(hint) is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_expected(arguments[0])}"
    if get_origin(hint) is tuple:
        return f"a list of {len(arguments)}, each {_expected(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def _one_line(message: str) -> str:
    return printable(" ".join(message.split()))
