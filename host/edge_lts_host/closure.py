"""Which modules a program may ever import, read from its sources: what a payload is made of.

An import counts wherever it stands, also in a function that imports when it is called; one for type checkers does not.
What is imported by a name that is put together at run time is not seen: `edge_lts` has none of those, and a test says
so. Nothing is imported here.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a package, by their dotted names."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if "__pycache__" not in path.parts:
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.lru_cache(maxsize=512)  # pure, and a process may look at the same sources more than once
def imports(source: bytes) -> tuple[tuple[str, bool], ...]:
    """(module, whether it is imported with the file) for every import; of `from a import b` both `a` and `a.b`."""

    def walk(body: Iterable[ast.AST], is_module_level: bool) -> Iterator[tuple[str, bool]]:
        for node in body:
            if isinstance(node, ast.Import):
                yield from ((alias.name, is_module_level) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield module, is_module_level
                yield from ((f"{module}.{alias.name}", is_module_level) for alias in node.names)
            inner = is_module_level and not isinstance(node, _FUNCTIONS)
            is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for name in ("orelse",) if is_for_types else ("body", "handlers", "orelse", "finalbody", "cases"):
                children = getattr(node, name, None)
                if isinstance(children, list):  # that of a lambda is an expression
                    yield from walk(children, inner)

    return tuple(walk([ast.parse(source)], True))


def closure(sources: Mapping[str, bytes], begin: str, *, without: Collection[str] = ()) -> set[str]:
    """Names of the modules of `sources` that importing `begin`, or anything it does later, can import.

    Of the rooms `without` nothing is followed that a function imports; what comes with a file must be there.
    """
    found: set[str] = set()
    left = [begin]
    while left:
        name = left.pop()
        if name in found or name not in sources:
            continue
        found.add(name)
        left += [name.rpartition(".")[0]]
        left += [module for module, is_now in imports(sources[name]) if is_now or not is_in(module, without)]
    return found


def is_in(module: str, rooms: Collection[str]) -> bool:
    """Whether it is one of the rooms or below one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)
