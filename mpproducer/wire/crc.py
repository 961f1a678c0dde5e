"""CRC-32C, by the extension module of the package `crc32c` and nothing else of it.

The package itself looks up its own version when it is imported: importlib.metadata, email, zipfile
and argparse, a third of the time that a sender needs to start.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any

__all__ = ["crc32c"]

if TYPE_CHECKING:
    from crc32c import crc32c
else:

    def _extension() -> Any:
        package = find_spec("crc32c")
        places = package and package.submodule_search_locations
        found = places and PathFinder.find_spec("crc32c._crc32c", places)
        if not found:  # another version keeps it elsewhere
            import crc32c

            return crc32c
        module = module_from_spec(found)
        found.loader.exec_module(module)
        return module

    crc32c = _extension().crc32c
