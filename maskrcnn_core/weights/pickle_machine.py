"""Pickles read by an interpreter of our own, which makes plain values and descriptions and calls nothing.

A pickle is a program: it names functions and calls them. Here a name stays a name, a call of one becomes the object
that `known` describes it by, or an `Unbuilt` object that only says what it would have been. What a file asks for is
paid from its `Budget`, so that a small file takes little time and memory, whatever it says.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from maskrcnn_core.weights.budget import Budget, FileFault

_SHORT = 1 << 16


@dataclass(frozen=True)
class Named:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Unhashed:
    """Stands for a key that is no text: a key is never compared, and its hash is never computed."""

    __slots__ = ()


@dataclass(eq=False)
class Unbuilt:
    """An object that was not built.

    Attributes:
        class_name: dotted name of its class, or of the function that would have made it.
        entries: what was set in it by key, where it is a mapping.
        state: what its attributes would have become; usually a dictionary.
    """

    class_name: str
    entries: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


Maker = Callable[[tuple[Any, ...]], Any]


class Reader:
    """A file from which no more is read than it has: a length that lies costs nothing."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, number: int) -> bytes:
        """The next bytes, fewer at the end."""
        if number <= _SHORT:
            return self._file.read(number)
        return self._file.read(max(0, min(number, self._size - self._file.tell())))

    def readline(self) -> bytes:
        """The next bytes with the line end behind them."""
        return self._file.readline()


def run_pickle(
    file: Reader,
    known: Mapping[tuple[str, str], Maker],
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """What one pickle describes; the file is left behind its end.

    Args:
        file: at the pickle's beginning.
        known: what a call of the function (module, name) with these arguments stands for.
        budget: shared by all that is read from one file.
        persistent: what references to something outside of the pickle stand for; None = there are none.

    Raises:
        FileFault: it is damaged, or asks for too much.
    """
    return _Machine(known, budget, persistent).run(file)


class _Machine:
    def __init__(
        self, known: Mapping[tuple[str, str], Maker], budget: Budget, persistent: Callable[[Any], Any] | None
    ) -> None:
        self._known, self._budget, self._persistent = known, budget, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Reader) -> Any:
        while True:
            self._budget.spend_step()
            code = file.read(1)
            if not code:
                raise FileFault("it ends in the middle")
            if code == b".":
                return self.pop()
            instruction = _OPCODES.get(code)
            if instruction is None:
                raise FileFault(f"it has an unknown instruction {code!r}")
            read, follow = instruction
            follow(self, None if read is None else read(file))

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise FileFault("it takes a value where there is none")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self.marked:
            raise FileFault("it goes back to a mark where there is none")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def discard(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def discard_marked(self, _: Any) -> None:
        self.pop_to_mark()

    def put(self, index: Any) -> None:
        self.memo[int(index)] = self.top()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def get(self, index: Any) -> None:
        if index not in self.memo:
            raise FileFault("it refers to a value that it has not made")
        self.push(self.memo[index])

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.push(Named(module, name))

    def name_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FileFault("it names a class by something that is no text")
        self.push(Named(module, name))

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.push(self.made(function, arguments))

    def call_with_keywords(self, _: Any) -> None:
        _, arguments, function = self.pop(), self.pop(), self.pop()
        self.push(self.made(function, arguments))

    def call_of_mark(self, argument: str | None) -> None:
        arguments = self.pop_to_mark()
        if argument is not None:
            module, _, name = argument.partition(" ")
            function: Any = Named(module, name)
        else:
            function = arguments.pop(0) if arguments else None
        self.push(self.made(function, tuple(arguments)))

    def made(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            return Unbuilt(function.class_name if isinstance(function, Unbuilt) else "unnamed")
        maker = self._known.get((function.module, function.name))
        if maker is None:
            return Unbuilt(str(function))
        try:
            return maker(arguments)
        except (TypeError, ValueError, IndexError, AttributeError):  # not the arguments that it is known by
            return Unbuilt(str(function))

    def set_state(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Unbuilt):
            target.state = state
        elif hasattr(target, "take_state"):
            target.take_state(state)

    def extend(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Unbuilt):
            raise FileFault("it appends to something that is no list")

    def update(self, target: Any, values: list[Any]) -> None:
        if not isinstance(target, dict | Unbuilt) or len(values) % 2:
            raise FileFault("it sets entries of something that is no dictionary")
        entries = target.entries if isinstance(target, Unbuilt) else target
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[key if isinstance(key, str) else _Unhashed()] = value

    def append(self, _: Any) -> None:
        value = self.pop()
        self.extend(self.top(), [value])

    def append_marked(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.extend(self.top(), values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.update(self.top(), [key, value])

    def set_marked_items(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.update(self.top(), values)

    def dict_of_mark(self, _: Any) -> None:
        entries: dict[Any, Any] = {}
        self.update(entries, self.pop_to_mark())
        self.push(entries)

    def tuple_of(self, number: int) -> None:
        values = [self.pop() for _ in range(number)]
        self.push(tuple(reversed(values)))

    def refer(self, pid: Any) -> None:
        if self._persistent is None:
            raise FileFault("it refers to something outside of it")
        self.push(self._persistent(pid))

    def refuse(self, _: Any) -> None:
        raise FileFault("it uses an instruction that no checkpoint needs")


Follow = Callable[[_Machine, Any], None]


def _constant(value: Any) -> Follow:
    return lambda machine, _: machine.push(value)


_FOLLOW: dict[str, Follow] = {
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        _Machine.push,
    ),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    # Sets are lists here: nothing is looked up in them.
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine.push([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.pop_to_mark())),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": _Machine.dict_of_mark,
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.append_marked),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_marked_items,
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": _Machine.discard_marked,
    "DUP": lambda machine, _: machine.push(machine.top()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.call_with_keywords,
    **dict.fromkeys(("INST", "OBJ"), _Machine.call_of_mark),
    "BUILD": _Machine.set_state,
    "PERSID": _Machine.refer,
    "BINPERSID": lambda machine, _: machine.refer(machine.pop()),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
}


def _python_2_text(file: Any) -> str:
    """A quoted text of protocol 0; pickletools' own reader takes ASCII only, arrays are written as any bytes."""
    line: bytes = file.readline()
    text = line.strip()
    if not line.endswith(b"\n") or len(text) < 2 or text[:1] != text[-1:] or text[:1] not in b"'\"":
        raise FileFault("it has a text without quotes")
    return text[1:-1].decode("unicode_escape" if b"\\" in text else "latin-1")


def _opcode(info: pickletools.OpcodeInfo) -> tuple[Callable[[Any], Any] | None, Follow]:
    read = None if info.arg is None else info.arg.reader
    return _python_2_text if info.name == "STRING" else read, _FOLLOW.get(info.name, _Machine.refuse)


_OPCODES = {info.code.encode("latin-1"): _opcode(info) for info in pickletools.opcodes}
