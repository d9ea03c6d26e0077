"""Eight bytes at once at any place of an array, for compiled loops: what numba has no word for.

Neither looks at bounds, as no compiled loop does: whoever calls has room for eight bytes at that place.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)
Array = Any
"""A NumPy array as a compiled loop takes it: element types are the compiler's affair."""


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]], source_etype=ir.IntType(8))


@intrinsic
def _load8(_typing: Any, array: Any, _at: Any) -> Any:
    """The eight bytes of a byte array from a place on, as a number in this machine's order."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_place(context, builder, signature, arguments), _WORD.as_pointer())
        return builder.load(place, align=1, typ=_WORD)

    return types.uint64(array, types.intp), code


@intrinsic
def _store8(_typing: Any, array: Any, _at: Any, _value: Any) -> Any:
    """Put eight bytes into a byte array from a place on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_place(context, builder, signature, arguments), _WORD.as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), code


load8: Any = _load8
"""Called with an array and a place; the compiler adds what stands in front of them above."""
store8: Any = _store8
"""Called with an array, a place and a number of 64 bits."""
