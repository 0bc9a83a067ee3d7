"""Compile the loops that the scorer calls into an extension module, so that its container needs no numba.

    python deploy/image/compile_loops.py OUT CPU

OUT is the package folder `encore` of the image; CPU is one of CPUS. The modules of loops in it are replaced by ones
that call the extension module. They have the same functions, for the types of arguments that the warm-up of the loops
uses, and the same numbers; results are the same to the last bit, since both come from the same compiler and code.
(Only sums that are marked as reassociable depend on the type of CPU; the scorer has none whose rounding shows.)

numba.pycc, which numba has kept although it is deprecated, links the machine code; two things that it leaves out are
added: the compiler options of each function, and releasing the interpreter lock.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from unittest import mock

LOOPS: Final = {
    "encore.recommenders.ials_loops": "encore.recommenders.ials",
    "encore.recommenders.loops": "encore.recommenders.interactions",
    "encore.recommenders.ranker_loops": "encore.recommenders.ranker_trees",
    "encore.recommenders.seed_exclusion_loops": "encore.recommenders.seed_exclusion",
    "encore.recommenders.union_loops": "encore.recommenders.union",
    "encore.search.inner_loops": "encore.search.inner",
    "encore.search.loops": "encore.search.tree",
}
"""Modules of loops, and the module with the function `load_loops` that imports each and calls its functions."""

CPUS: Final = {
    # every x86-64 server since 2015 (Intel) or 2017 (AMD), so all that Fargate may choose
    "x86-64-v3": "+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe",
    # with 8-bit products in 512-bit registers: Intel since 2019, AMD since 2022
    "cascadelake": "+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,"
    "+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,+avx512vnni",
    # AWS Graviton2 and later
    "neoverse-n1": "+neon,+fullfp16,+dotprod",
}
"""Types of CPU in LLVM's terms, and their instructions."""

EXTENSION: Final = "compiled_loops"
COMMON: Final = "compiled_functions.py"
"""In the folder of this file: the module that checks arguments. It is copied into the image beside the extension."""


@dataclass
class Loop:
    """A compiled function that Python calls: argument types and result type of each of its versions."""

    dispatcher: Any
    versions: dict[tuple[Any, ...], Any] = field(default_factory=dict)


def build(out: Path, cpu: str) -> None:
    """Compile for a type of CPU, in a process of its own, since numba reads the type once.

    Raises CalledProcessError if that fails.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": CPUS[cpu],
            "NUMBA_CACHE_DIR": cache,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "lib"),
            "PYTHONHASHSEED": "0",
        }
        subprocess.run([sys.executable, __file__, str(out), cpu], env=environment, check=True)


def main() -> None:
    """Compile in this process."""
    out, cpu = Path(sys.argv[1]), sys.argv[2]
    modules = {name: found(name) for name in LOOPS}
    compile_all(modules, out, cpu)
    shutil.copy(Path(__file__).with_name(COMMON), out / COMMON)
    for name, loops in modules.items():
        path = out.joinpath(*name.split(".")[1:]).with_suffix(".py")
        path.write_text(shim(name, importlib.import_module(name), loops))


def found(name: str) -> dict[str, Loop]:
    """The functions of a module of loops that are called from Python, with the types that the warm-up uses."""
    loader = importlib.import_module(LOOPS[name])
    loader.load_loops()
    module = importlib.import_module(name)
    called: dict[str, Loop] = {}
    dispatchers = dispatchers_of(module)
    recorders: dict[str, Any] = {key: _recorder(key, value, called) for key, value in dispatchers.items()}
    with mock.patch.multiple(module, **recorders):
        loader.load_loops.cache_clear()
        loader.load_loops()
    for key, dispatcher in dispatchers.items():
        # those that declare their types are compiled when they are imported, and the warm-up need not call them
        if not dispatcher._can_compile:
            versions = {args: dispatcher.overloads[args].signature.return_type for args in dispatcher.overloads}
            called[key] = Loop(dispatcher, versions)
    return called


def dispatchers_of(module: ModuleType) -> dict[str, Any]:
    """The compiled functions of a module, which are untyped for their private attributes."""
    from numba.core.dispatcher import Dispatcher

    return {key: value for key, value in vars(module).items() if isinstance(value, Dispatcher)}


def _recorder(name: str, dispatcher: Any, called: dict[str, Loop]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = dispatcher(*args)
        types = tuple(dispatcher.typeof_pyval(arg) for arg in args)
        loop = called.setdefault(name, Loop(dispatcher))
        loop.versions[types] = dispatcher.overloads[types].signature.return_type
        return result

    return call


def compile_all(modules: dict[str, dict[str, Loop]], out: Path, cpu: str) -> None:
    """Link all functions into one extension module in a folder."""
    from numba.core.caching import NullCache
    from numba.core.errors import NumbaPendingDeprecationWarning

    warnings.filterwarnings("ignore", category=NumbaPendingDeprecationWarning)
    from numba.pycc.cc import CC

    # machine code that was compiled for this process, or read from the cache, cannot be linked
    for name in list(sys.modules):
        if name.startswith("encore."):
            for value in dispatchers_of(sys.modules[name]).values():
                value._cache = NullCache()
                value._can_compile = True
                value._reset_overloads()
    compiler = CC(EXTENSION)
    compiler.output_dir, compiler.target_cpu = str(out), cpu
    options: dict[Any, Any] = {}
    for name, loops in modules.items():
        for key, loop in loops.items():
            for number, (args, result) in enumerate(loop.versions.items()):
                compiler.export(symbol(name, key, number), result(*args))(loop.dispatcher.py_func)
            options[loop.dispatcher.py_func] = loop.dispatcher
    with _options_of(options):
        compiler.compile()


@contextmanager
def _options_of(dispatchers: dict[Any, Any]) -> Iterator[None]:
    """Compile functions with the options of their decorators."""
    from numba.core.compiler import compile_extra
    from numba.pycc import compiler

    def with_options(typing: Any, target: Any, function: Any, args: Any, result: Any, flags: Any, **more: Any) -> Any:
        dispatcher = dispatchers[function]
        dispatcher.targetdescr.options.parse_as_flags(flags, dispatcher.targetoptions)
        flags.enable_pyobject = False
        flags.no_compile = True
        return compile_extra(typing, target, function, args, result, flags, **more)

    with mock.patch.object(compiler, "compile_extra", with_options):
        yield


def symbol(module: str, function: str, number: int) -> str:
    """The name of a version of a function in the extension module."""
    return f"{module.removeprefix('encore.').replace('.', '_')}__{function}__{number}"


def shim(name: str, module: ModuleType, loops: dict[str, Loop]) -> str:
    """The code of the module that stands for a module of loops: its numbers, and functions that call the extension."""
    lines = [f'"""Generated from {name}: its functions, compiled when the image was built."""', ""]
    lines += [
        f"from encore import {EXTENSION} as _compiled",
        f"from encore.{COMMON.removesuffix('.py')} import Function",
    ]
    lines.append("")
    for key, value in vars(module).items():
        if not key.startswith("_") and isinstance(value, int | float):
            lines.append(f"{key} = {value!r}")
    for key, loop in sorted(loops.items()):
        versions = [
            f"    (_compiled.{symbol(name, key, number)}, {[described(arg) for arg in args]!r}),"
            for number, args in enumerate(loop.versions)
        ]
        lines += [f"{key} = Function(", f"    {json.dumps(key)},", *versions, ")"]
    return "\n".join(lines) + "\n"


def described(type_: Any) -> Any:
    """An argument type as `compiled_functions` checks it: an array's dtype and dimensions, a list of the types in a
    tuple, or None for a number, which is converted."""
    from numba import types

    if isinstance(type_, types.Array):
        if type_.layout != "C":
            raise ValueError(f"expected arrays in C order, found {type_}")
        return (str(type_.dtype), type_.ndim)
    if isinstance(type_, types.BaseTuple):
        return [described(part) for part in type_]  # type: ignore[attr-defined]
    if isinstance(type_, types.Number | types.Boolean):
        return None
    raise ValueError(f"cannot describe arguments of type {type_}")


if __name__ == "__main__":
    main()
