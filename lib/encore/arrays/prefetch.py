"""Requests to the processor to load memory that a compiled loop reads soon, which numba has no function for.

Import only in modules of compiled loops: numba is slow to import.
"""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_BYTES = 64
"""Bytes of a cache line, on x86 and on most ARM processors."""


@intrinsic
def prefetch(typing_context, values, at, n):  # type: ignore[no-untyped-def]
    """prefetch(values, at, n): prefetch n cache lines from values[at] on, for reading."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        array = signature.args[0]
        data = context.make_array(array)(context, builder, args[0]).data
        step = ir.Constant(ir.IntType(64), LINE_BYTES * 8 // array.dtype.bitwidth)
        i8, i32 = ir.IntType(8), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [i8.as_pointer(), i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [i8.as_pointer()], kind)
        with cgutils.for_range(builder, args[2]) as loop:
            at = builder.add(args[1], builder.mul(loop.index, step))
            address = builder.bitcast(builder.gep(data, [at]), i8.as_pointer())
            # read access, into all cache levels, data
            builder.call(function, [address, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.none(values, types.int64, types.int64), generate
