"""Sixteen dot products at once in vector registers, which numba does not generate from ordinary loops.

In an ordinary loop the sums of sixteen items live in an array. The compiler must assume that this array aliases the
memory being read, so it stores each addition before the next load: measured at 160 ns for sixteen items of twelve
dimensions, against 10 ns here. Such sums are nine tenths of a search, so the loop is written in LLVM IR. `sums_loop`
computes the same sums in plain Python.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

LANES = 16
"""Items scored at once: two AVX2 registers, or one AVX-512 register."""

_I64 = ir.IntType(64)
_SUMS = ir.VectorType(ir.FloatType(), LANES)
_FUSED = ("contract",)


@intrinsic
def reached(typing_context, columns, at, rows, row_at, n):  # type: ignore[no-untyped-def]
    """reached(columns, at, rows, row_at, n) -> int64: bit j is set if sum j is at least 0, j < 16.

    Sum j is the sum of columns[at + 16 c + j] * rows[row_at + c] over c < n: float32, with fused multiply-add where the
    CPU has it, in two partial sums. n is even and at least 2. Arrays are contiguous, one-dimensional float32; their
    bounds are not checked.
    """

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        columns, rows = _data(context, builder, signature, args, (0, 2))
        column, row = builder.gep(columns, [args[1]]), builder.gep(rows, [args[3]])
        (total,) = _sums(builder, column, [row], args[4], scaled=False)
        return _mask(builder, total, ir.Constant(ir.FloatType(), 0.0))

    return types.int64(columns, types.int64, rows, types.int64, types.int64), generate


@intrinsic
def dots(typing_context, columns, at, rows, row_at, n, sums, sums_at):  # type: ignore[no-untyped-def]
    """dots(columns, at, rows, row_at, n, sums, sums_at): sums[sums_at + j] = sum j as in `reached`, j < 16."""
    return _stored(columns, rows, sums, scaled=False)


@intrinsic
def scores(typing_context, columns, at, rows, row_at, n, sums, sums_at):  # type: ignore[no-untyped-def]
    """scores(columns, at, rows, row_at, n, sums, sums_at): like `dots`, with sum j times columns[at + 16 n + j]."""
    return _stored(columns, rows, sums, scaled=True)


@intrinsic
def hits_of_two(typing_context, columns, at, rows, first, second, n, least, most):  # type: ignore[no-untyped-def]
    """hits_of_two(columns, at, rows, first, second, n, low_first, low_second) -> int64

    The sums of `scores` for two rows at once, so that columns are loaded once: bit j is set if sum j of the row at
    `first` is NaN or at least low_first, bit 16 + j likewise for the row at `second` and low_second.
    """

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        columns, rows = _data(context, builder, signature, args, (0, 2))
        column = builder.gep(columns, [args[1]])
        both = [builder.gep(rows, [args[3]]), builder.gep(rows, [args[4]])]
        totals = _sums(builder, column, both, args[5], scaled=True)
        first, second = (_mask(builder, total, low) for total, low in zip(totals, args[6:], strict=True))
        return builder.or_(first, builder.shl(second, _I64(LANES)))

    i64, f32 = types.int64, types.float32
    return i64(columns, i64, rows, i64, i64, i64, f32, f32), generate


@intrinsic
def lowest(typing_context, mask):  # type: ignore[no-untyped-def]
    """lowest(mask: int64, not 0) -> int64: the index of its lowest set bit."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


def _stored(columns: Any, rows: Any, sums: Any, *, scaled: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns, rows, sums = _data(context, builder, signature, args, (0, 2, 5))
        column, row = builder.gep(columns, [args[1]]), builder.gep(rows, [args[3]])
        (total,) = _sums(builder, column, [row], args[4], scaled=scaled)
        builder.store(total, builder.bitcast(builder.gep(sums, [args[6]]), _SUMS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(columns, types.int64, rows, types.int64, types.int64, sums, types.int64), generate


def _data(context: Any, builder: Any, signature: Any, args: Any, indices: tuple[int, ...]) -> list[Any]:
    """Pointers to the data of the array arguments with these indices."""
    return [context.make_array(signature.args[i])(context, builder, args[i]).data for i in indices]


def _sums(builder: Any, column: Any, rows: list[Any], n: Any, *, scaled: bool) -> list[Any]:
    """A vector of sixteen sums for each row."""
    start = builder.block
    loop, end = builder.append_basic_block("dimensions"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    c = builder.phi(_I64)
    c.add_incoming(_I64(0), start)
    # two sums per row, over even and odd dimensions: two independent dependency chains
    before = [[builder.phi(_SUMS) for _ in rows] for _ in range(2)]
    after = []
    for odd, sums in enumerate(before):
        here = builder.add(c, _I64(odd))
        lanes = _load(builder, column, builder.mul(here, _I64(LANES)))
        for row, total in zip(rows, sums, strict=True):
            factor = _in_all_lanes(builder, builder.load(builder.gep(row, [here]), align=4))
            after.append(builder.fadd(builder.fmul(lanes, factor, flags=_FUSED), total, flags=_FUSED))
            total.add_incoming(ir.Constant(_SUMS, [0.0] * LANES), start)
            total.add_incoming(after[-1], loop)
    following = builder.add(c, _I64(2))
    c.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, n), loop, end)
    builder.position_at_end(end)
    totals = [builder.fadd(even, odd) for even, odd in zip(after[: len(rows)], after[len(rows) :], strict=True)]
    if not scaled:
        return totals
    factors = _load(builder, column, builder.mul(n, _I64(LANES)))
    return [builder.fmul(total, factors) for total in totals]


def _mask(builder: Any, sums: Any, low: Any) -> Any:
    # eight at a time: for sixteen, LLVM packs the comparisons in several steps where AVX2 needs one instruction
    limit, halves = _in_all_lanes(builder, low), []
    for first in (0, LANES // 2):
        half = ir.Constant(ir.VectorType(ir.IntType(32), LANES // 2), list(range(first, first + LANES // 2)))
        both = [builder.shuffle_vector(value, value, half) for value in (sums, limit)]
        mask = builder.bitcast(builder.fcmp_unordered(">=", *both), ir.IntType(LANES // 2))
        halves.append(builder.zext(mask, _I64))
    return builder.or_(halves[0], builder.shl(halves[1], _I64(LANES // 2)))


def _load(builder: Any, start: Any, at: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(start, [at]), _SUMS.as_pointer()), align=4)


def _in_all_lanes(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_SUMS, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
