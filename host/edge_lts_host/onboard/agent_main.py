"""`__main__.py` of the payload: imports `edge_lts` from the one member that holds all of its sources, and runs it.

One compressed member instead of one for each module: what modules have in common is stored once, a quarter less in all.
A module gets the `__file__` that zipimport would have given it, and a traceback finds its lines. An archive that is
named by its hash and has another one is not run: a bad SD card changes bytes, and zipimport looks at no checksum.
"""

import hashlib
import json
import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any


class Sources:
    """Finder and loader of the modules in `sources`, which maps names within `archive` to their text."""

    def __init__(self, archive: str, sources: dict[str, str]) -> None:
        self._archive, self._sources = archive, sources

    def _name(self, module: str) -> str:
        path = module.replace(".", "/")
        return f"{path}/__init__.py" if f"{path}/__init__.py" in self._sources else f"{path}.py"

    def find_spec(self, module: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        name = self._name(module)
        if name not in self._sources:
            if module.startswith("edge_lts."):
                raise ImportError(f"{module} is not in {self._archive}, which is the smaller one of two agents")
            return None
        loader: Any = self
        is_package = name.endswith("/__init__.py")
        spec = spec_from_loader(module, loader, origin=f"{self._archive}/{name}", is_package=is_package)
        assert spec is not None
        spec.has_location = True  # so that modules have a __file__
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """None: the import system makes it."""

    def exec_module(self, module: ModuleType) -> None:
        name = self._name(module.__name__)
        code = compile(self._sources[name], f"{self._archive}/{name}", "exec", dont_inherit=True)
        exec(code, module.__dict__)

    def get_source(self, module: str) -> str:
        return self._sources[self._name(module)]


def check(archive: str) -> None:
    """End the process unless what is named by its hash has it."""
    name, suffix = os.path.splitext(os.path.basename(archive))
    if suffix != ".pyz" or len(name) != 12:
        return
    with open(archive, "rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found[:12] != name:
        sys.exit(f"{archive} is damaged: its SHA-256 begins with {found[:12]}")


if __name__ == "__main__":
    loader: Any = __loader__  # type: ignore[name-defined]
    check(loader.archive)
    try:
        import lzma
    except ImportError:
        sys.exit(f"the Python at {sys.executable} was built without lzma, in which the agent is packed; use another")
    finder: Any = Sources(loader.archive, json.loads(lzma.decompress(loader.get_data("edge_lts.json.xz"))))
    sys.meta_path.insert(0, finder)
    from edge_lts.__main__ import main

    sys.exit(main(sys.argv[1:]))
