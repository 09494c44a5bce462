"""Which build this is: the sources as they are, or compiled ones (``setup.py``)."""

from importlib.machinery import EXTENSION_SUFFIXES

from sockgw import __version__
from sockgw.protocol import session

__all__ = ["BUILD", "VERSION"]

BUILD = "compiled" if session.__file__.endswith(tuple(EXTENSION_SUFFIXES)) else "pure Python"
VERSION = f"sockgw {__version__} ({BUILD})"
