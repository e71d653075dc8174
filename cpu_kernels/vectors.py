"""SIMD values for Numba: vector types, and the operations on them that every instruction set shares.

A `Vector` is an LLVM vector as a Numba value: it lives in registers, is passed by value and needs no array. Memory is
addressed by plain int64 byte addresses. Operations are lowered to target-independent LLVM; LLVM splits a vector that
is wider than the target's registers, so one kernel text serves 128-, 256- and 512-bit machines.

Import this module only where Numba is installed: it registers the types with Numba's type system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.types.containers import UniTuple
from numba.extending import intrinsic, models, register_model

Emit = Callable[..., Any]

_ELEMENTS = {
    "f32": ir.FloatType(),
    "f16": ir.HalfType(),
    "i32": ir.IntType(32),
    "i16": ir.IntType(16),
    "i8": ir.IntType(8),
}
_POINTER = ir.IntType(8).as_pointer()


class Vector(types.Type):
    """A vector of `lanes` elements "f32", "f16", "i32", "i16" or "i8" (the sign of integers lies in the operation)."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=f"{element}x{lanes}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENTS[self.element], self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


def define(name: str, arity: int, typer: Callable[..., tuple[Any, Emit]]) -> Any:
    """Make a Numba intrinsic of `arity` arguments.

    typer(*argument types) → (signature, emit); emit(builder, *LLVM values) → the LLVM value of the result or None.
    """

    def resolve(*argument_types: Any) -> Any:
        signature, emit = typer(*argument_types)

        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            result = emit(builder, *arguments)
            return context.get_dummy_value() if result is None else result

        return signature, generate

    # Numba reads the number of arguments from the function's own signature.
    wrappers: dict[int, Any] = {
        0: lambda typingctx: resolve(),
        1: lambda typingctx, a: resolve(a),
        2: lambda typingctx, a, b: resolve(a, b),
        3: lambda typingctx, a, b, c: resolve(a, b, c),
        4: lambda typingctx, a, b, c, d: resolve(a, b, c, d),
        5: lambda typingctx, a, b, c, d, e: resolve(a, b, c, d, e),
    }
    wrapper = wrappers[arity]
    wrapper.__name__ = wrapper.__qualname__ = name
    return intrinsic(wrapper)


def call(builder: ir.IRBuilder, name: str, result: Any, *arguments: Any) -> Any:
    """Call the LLVM intrinsic or external function `name` with the argument types that the values have."""
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments)


def _is_float(kind: Any) -> bool:
    return kind.element in ("f32", "f16") if isinstance(kind, Vector) else isinstance(kind, types.Float)


def llvm_of(kind: Any) -> Any:
    """LLVM type of a Vector or of a Numba number type."""
    if isinstance(kind, Vector):
        return kind.llvm
    return ir.FloatType() if kind == types.float32 else ir.IntType(kind.bitwidth)


def suffix_of(kind: Any) -> str:
    """How LLVM names a type inside an intrinsic's name: v8f32, f32."""
    if isinstance(kind, Vector):
        return f"v{kind.lanes}{kind.element}"
    return "f32" if kind == types.float32 else f"i{kind.bitwidth}"


def _kind(reference: Any) -> Any:
    return reference.instance_type


def _binary(name: str, integer: str, floating: str) -> Any:
    def typer(a: Any, b: Any) -> Any:
        operation = floating if _is_float(a) else integer
        return a(a, a), lambda builder, x, y: getattr(builder, operation)(x, y)

    return define(name, 2, typer)


add = _binary("add", "add", "fadd")
sub = _binary("sub", "sub", "fsub")
mul = _binary("mul", "mul", "fmul")
div = _binary("div", "sdiv", "fdiv")


def _emit_load(kind: Any) -> Any:
    def emit(builder: ir.IRBuilder, _kind: Any, address: Any) -> Any:
        pointer = builder.inttoptr(address, llvm_of(kind).as_pointer())
        return builder.load(pointer, align=1 if isinstance(kind, Vector) else kind.bitwidth // 8)

    return emit


def _emit_store(kind: Any) -> Any:
    def emit(builder: ir.IRBuilder, address: Any, value: Any) -> None:
        pointer = builder.inttoptr(address, llvm_of(kind).as_pointer())
        builder.store(value, pointer, align=1 if isinstance(kind, Vector) else kind.bitwidth // 8)

    return emit


# load(kind, address) → value of that kind. Vectors need no alignment.
load = define("load", 2, lambda kind, _: (_kind(kind)(kind, types.int64), _emit_load(_kind(kind))))
# store(address, value)
store = define("store", 2, lambda _, value: (types.void(types.int64, value), _emit_store(value)))


def splat_value(builder: ir.IRBuilder, vector: Any, scalar: Any) -> Any:
    """LLVM vector whose lanes all hold `scalar`."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)


def _type_splat(kind: Any, _scalar: Any) -> Any:
    vector = _kind(kind)
    scalar = {"f32": types.float32, "i32": types.int32, "i16": types.int16, "i8": types.int8}[vector.element]
    return vector(kind, scalar), lambda builder, _, value: splat_value(builder, vector.llvm, value)


# splat(kind, scalar)
splat = define("splat", 2, _type_splat)
# zero(kind)
zero = define("zero", 1, lambda kind: (_kind(kind)(kind), lambda builder, _: ir.Constant(_kind(kind).llvm, None)))


def _type_fma(a: Any, _b: Any, _c: Any) -> Any:
    def emit(builder: ir.IRBuilder, x: Any, y: Any, z: Any) -> Any:
        return call(builder, f"llvm.fma.{suffix_of(a)}", x.type, x, y, z)

    return a(a, a, a), emit


# fma(a, b, c) = a * b + c, rounded once
fma = define("fma", 3, _type_fma)


def _unary_float(name: str, llvm_name: str) -> Any:
    def typer(a: Any) -> Any:
        return a(a), lambda builder, x: call(builder, f"llvm.{llvm_name}.{suffix_of(a)}", x.type, x)

    return define(name, 1, typer)


round_even = _unary_float("round_even", "roundeven")
negate = define("negate", 1, lambda a: (a(a), lambda builder, x: builder.fneg(x)))
absolute = _unary_float("absolute", "fabs")
square_root = _unary_float("square_root", "sqrt")


def _emit_minmax(llvm_name: str, predicate: str) -> Any:
    def typer(a: Any, _b: Any) -> Any:
        # compare + select, as x86's max does: NaN in the first operand gives the second
        return a(a, a), lambda builder, x, y: builder.select(builder.fcmp_ordered(predicate, x, y), x, y)

    return define(llvm_name, 2, typer)


maximum = _emit_minmax("maximum", ">")
minimum = _emit_minmax("minimum", "<")


def _reduce(name: str) -> Any:
    """Halve the vector until one lane is left: a fixed order of operations, the same on every machine."""

    def typer(a: Any) -> Any:
        scalar = {"f32": types.float32, "i32": types.int32}[a.element]

        def combine(builder: ir.IRBuilder, x: Any, y: Any) -> Any:
            if name == "reduce_max":
                return builder.select(builder.fcmp_ordered(">", x, y), x, y)
            return builder.fadd(x, y) if a.element == "f32" else builder.add(x, y)

        def emit(builder: ir.IRBuilder, value: Any) -> Any:
            lanes = a.lanes
            i32 = ir.IntType(32)
            while lanes > 1:
                lanes //= 2
                undefined = ir.Constant(value.type, ir.Undefined)
                index = ir.VectorType(i32, lanes)
                low = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(lanes))))
                high = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(lanes, 2 * lanes))))
                value = combine(builder, low, high)
            return builder.extract_element(value, i32(0))

        return scalar(a), emit

    return define(name, 1, typer)


reduce_add = _reduce("reduce_add")
reduce_max = _reduce("reduce_max")


def _type_convert(kind: Any, source: Any) -> Any:
    """Numeric conversion between vectors of equal length; integers are signed."""
    target = _kind(kind)

    def emit(builder: ir.IRBuilder, _: Any, value: Any) -> Any:
        if target == source:
            return value
        if _is_float(target) and _is_float(source):
            widen = target.element == "f32"
            return (builder.fpext if widen else builder.fptrunc)(value, target.llvm)
        if _is_float(target):
            return builder.sitofp(value, target.llvm)
        if _is_float(source):
            return builder.fptosi(value, target.llvm)
        if _ELEMENTS[target.element].width < _ELEMENTS[source.element].width:
            return builder.trunc(value, target.llvm)
        return builder.sext(value, target.llvm)

    return target(kind, source), emit


convert = define("convert", 2, _type_convert)
# widen_unsigned(kind, vector): integers to wider integers without sign
widen_unsigned = define(
    "widen_unsigned",
    2,
    lambda kind, source: (_kind(kind)(kind, source), lambda builder, _, value: builder.zext(value, _kind(kind).llvm)),
)
# reinterpret(kind, vector): the same bits as another vector type
reinterpret = define(
    "reinterpret",
    2,
    lambda kind, source: (
        _kind(kind)(kind, source),
        lambda builder, _, value: builder.bitcast(value, _kind(kind).llvm),
    ),
)


def _shuffle_words(kind: Any, count: int, order: list[int]) -> Emit:
    """Two vectors' 32-bit words, one after the other, in another order; as two vectors again."""
    words = ir.VectorType(ir.IntType(32), count)

    def emit(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
        first, second = builder.bitcast(a, words), builder.bitcast(b, words)
        halves = []
        for part in (order[:count], order[count:]):
            mask = ir.Constant(ir.VectorType(ir.IntType(32), count), part)
            halves.append(builder.bitcast(builder.shuffle_vector(first, second, mask), kind.llvm))
        return cgutils.pack_array(builder, halves)

    return emit


def _type_interleave(a: Any, _b: Any) -> Any:
    count = a.llvm.count * a.llvm.element.width // 32
    order = [word + half for word in range(count) for half in (0, count)]
    return UniTuple(a, 2)(a, a), _shuffle_words(a, count, order)


def _type_separate(a: Any, _b: Any) -> Any:
    count = a.llvm.count * a.llvm.element.width // 32
    order = [*range(0, 2 * count, 2), *range(1, 2 * count, 2)]
    return UniTuple(a, 2)(a, a), _shuffle_words(a, count, order)


# interleave_words(a, b): a0 b0 a1 b1 …, as two vectors; separate_words(a, b): its inverse, a0 a2 … b0 b2 … and the rest
interleave_words = define("interleave_words", 2, _type_interleave)
separate_words = define("separate_words", 2, _type_separate)


def _constant_like(value: Any, number: int) -> Any:
    return ir.Constant(value.type, [number] * value.type.count)


# low_nibbles / high_nibbles of bytes: `and 15` and `shift right by 4`
low_nibbles = define("low_nibbles", 1, lambda a: (a(a), lambda builder, x: builder.and_(x, _constant_like(x, 15))))
high_nibbles = define("high_nibbles", 1, lambda a: (a(a), lambda builder, x: builder.lshr(x, _constant_like(x, 4))))


def _type_bits(a: Any, _shift: Any, _mask: Any) -> Any:
    def emit(builder: ir.IRBuilder, x: Any, shift: Any, mask: Any) -> Any:
        shifted = builder.lshr(x, splat_value(builder, x.type, builder.trunc(shift, x.type.element)))
        return builder.and_(shifted, splat_value(builder, x.type, builder.trunc(mask, x.type.element)))

    return a(a, types.int64, types.int64), emit


# bit_field(vector, shift, mask) = (vector >> shift) & mask, lane by lane
bit_field = define("bit_field", 3, _type_bits)


def _type_shift_left(a: Any, _shift: Any) -> Any:
    def emit(builder: ir.IRBuilder, x: Any, shift: Any) -> Any:
        return builder.shl(x, splat_value(builder, x.type, builder.trunc(shift, x.type.element)))

    return a(a, types.int64), emit


shift_left = define("shift_left", 2, _type_shift_left)


def _type_nibbles_of_words(kind: Any, _address: Any) -> Any:
    """lanes / 2 bytes at `address` → one 4-bit value per lane, as i32 (lane 0 = low nibble of byte 0)."""
    vector = _kind(kind)

    def emit(builder: ir.IRBuilder, _: Any, address: Any) -> Any:
        i32 = ir.IntType(32)
        word_type = ir.IntType(4 * vector.lanes)
        word = builder.load(builder.inttoptr(address, word_type.as_pointer()), align=1)
        lanes = []
        for start in range(0, vector.lanes, 8):
            part = builder.trunc(builder.lshr(word, word_type(4 * start)), i32)
            eight = splat_value(builder, ir.VectorType(i32, 8), part)
            lanes.append(builder.lshr(eight, ir.Constant(eight.type, [4 * lane for lane in range(8)])))
        joined = lanes[0]
        if len(lanes) == 2:
            order = ir.Constant(ir.VectorType(i32, 16), list(range(16)))
            joined = builder.shuffle_vector(lanes[0], lanes[1], order)
        return builder.and_(joined, _constant_like(joined, 15))

    return vector(kind, types.int64), emit


# load_nibbles(i32 kind, address)
load_nibbles = define("load_nibbles", 2, _type_nibbles_of_words)


def _emit_float_bits(builder: ir.IRBuilder, value: Any) -> Any:
    return builder.bitcast(value, ir.FloatType())


# float_of_bits(int32) → float32
float_of_bits = define("float_of_bits", 1, lambda _: (types.float32(types.int32), _emit_float_bits))


def _emit_store_half(builder: ir.IRBuilder, address: Any, value: Any) -> None:
    half = builder.fptrunc(value, ir.HalfType())
    builder.store(half, builder.inttoptr(address, ir.HalfType().as_pointer()), align=2)


# store_half(address, float32)
store_half = define("store_half", 2, lambda _a, _v: (types.void(types.int64, types.float32), _emit_store_half))


def _emit_store_byte(builder: ir.IRBuilder, address: Any, value: Any) -> None:
    rounded = call(builder, "llvm.roundeven.f32", ir.FloatType(), value)
    number = builder.trunc(builder.fptosi(rounded, ir.IntType(32)), ir.IntType(8))
    builder.store(number, builder.inttoptr(address, ir.IntType(8).as_pointer()), align=1)


# store_byte(address, float32): rounded to the nearest signed byte; the value must lie in -128 … 127
store_byte = define("store_byte", 2, lambda _a, _v: (types.void(types.int64, types.float32), _emit_store_byte))


def _emit_prefetch(builder: ir.IRBuilder, address: Any) -> None:
    i32 = ir.IntType(32)
    pointer = builder.inttoptr(address, _POINTER)
    function_type = ir.FunctionType(ir.VoidType(), [_POINTER, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
    builder.call(function, [pointer, i32(0), i32(3), i32(1)])


# prefetch(address): the cache line will be read soon; an address without memory behind it does no harm
prefetch = define("prefetch", 1, lambda _: (types.void(types.int64), _emit_prefetch))
