"""The files of the core, for harnesses that build it without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import mpproducer._core

CORE: Final = Path(mpproducer._core.__file__).parent
PLAIN: Final = tuple(
    path for path in sorted(CORE.glob("*.c")) if not path.stem.startswith(("py_", "module"))
)
