"""Vector instructions for Numba's functions: sixteen neighbouring channels of a map at a time.

LLVM turns loops over channels into vector instructions only where it can prove that arrays don't overlap, which with
dozens of addresses it does not try. Here the instructions are named one by one; LLVM places them in registers, on
processors with narrower ones in several.

Numba keeps compiled functions beside the file of the function and looks at that file's date alone: after a change here,
delete `kernels/cpu/__pycache__`.
"""

from llvmlite import ir

LANES = 16

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
_ADDRESS = ir.IntType(64)
_TABLE = _ADDRESS.as_pointer()
# A product and the sum it goes into may be rounded together; nothing else is changed about the arithmetic.
_FLAGS = ("contract",)


class Lanes:
    """Makes instructions on vectors of `LANES` numbers.

    Args:
        builder: of the function that they become part of.
        half: maps in memory are bfloat16; registers always hold float32.
    """

    def __init__(self, builder: ir.IRBuilder, *, half: bool = False) -> None:
        self._builder, self._half = builder, half

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a + b."""
        return self._builder.fadd(a, b, flags=_FLAGS)

    def subtract(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a - b."""
        return self._builder.fsub(a, b, flags=_FLAGS)

    def scale(self, a: ir.Value, factor: float) -> ir.Value:
        """A times a constant."""
        return self._builder.fmul(a, ir.Constant(_VECTOR, [factor] * LANES), flags=_FLAGS)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """a * b."""
        return self._builder.fmul(a, b, flags=_FLAGS)

    def at_least(self, a: ir.Value, low: ir.Value) -> ir.Value:
        """The larger of the two; NaN stays."""
        return self._builder.select(self._builder.fcmp_ordered("<", a, low), low, a)

    def spread(self, number: ir.Value) -> ir.Value:
        """A float32 in every lane."""
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        one = self._builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        return self._builder.shuffle_vector(one, nothing, ir.Constant(_INTEGERS, [0] * LANES))

    def zero(self) -> ir.Value:
        """0 in every lane."""
        return ir.Constant(_VECTOR, [0.0] * LANES)

    def at(self, address: ir.Value, *steps: tuple[ir.Value, int]) -> ir.Value:
        """The address, moved by some multiples of strides in bytes."""
        for stride, times in steps:
            if times:
                address = self._builder.add(address, self._builder.mul(stride, ir.Constant(_ADDRESS, times)))
        return address

    def entry(self, table: ir.Value, index: int | ir.Value) -> ir.Value:
        """An address out of a table of addresses (int64)."""
        offset = ir.Constant(_ADDRESS, index) if isinstance(index, int) else index
        return self._builder.load(self._builder.gep(self._builder.inttoptr(table, _TABLE), [offset]))

    def number(self, array: ir.Value, index: ir.Value) -> ir.Value:
        """A float32 out of an array of them."""
        return self._builder.load(self._builder.gep(self._builder.inttoptr(array, _FLOAT.as_pointer()), [index]))

    def load_float(self, address: ir.Value) -> ir.Value:
        """Numbers of an array that is float32 whatever the maps are."""
        return self._builder.load(self._builder.inttoptr(address, _VECTOR.as_pointer()), align=4)

    def store_float(self, values: ir.Value, address: ir.Value) -> None:
        """Write to an array that is float32 whatever the maps are."""
        self._builder.store(values, self._builder.inttoptr(address, _VECTOR.as_pointer()), align=4)

    def load(self, address: ir.Value) -> ir.Value:
        """Numbers of a map."""
        if not self._half:
            return self.load_float(address)
        bits = self._builder.load(self._builder.inttoptr(address, _HALVES.as_pointer()), align=2)
        return self._builder.bitcast(self._builder.shl(self._builder.zext(bits, _INTEGERS), _whole(16)), _VECTOR)

    def store(self, values: ir.Value, address: ir.Value) -> None:
        """Write to a map; bfloat16 rounded to the nearest, ties to even, NaN stays NaN."""
        if not self._half:
            self.store_float(values, address)
            return
        builder = self._builder
        bits = builder.bitcast(values, _INTEGERS)
        last = builder.and_(builder.lshr(bits, _whole(16)), _whole(1))
        rounded = builder.lshr(builder.add(builder.add(bits, last), _whole(0x7FFF)), _whole(16))
        rounded = builder.select(builder.fcmp_unordered("uno", values, values), _whole(0x7FC0), rounded)
        builder.store(builder.trunc(rounded, _HALVES), builder.inttoptr(address, _HALVES.as_pointer()), align=2)


def _whole(number: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, [number] * LANES)
