"""setuptools, and mypy for it where SOCKGW_COMPILED asks for a compiled build (setup.py)."""

import os
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

MYPY = "mypy>=2.1,<3"


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what pip shall install before it builds."""
    required = build_meta.get_requires_for_build_wheel(config_settings)
    if os.environ.get("SOCKGW_COMPILED", "0") in ("", "0"):
        return required
    return [*required, MYPY]
