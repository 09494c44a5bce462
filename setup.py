"""What is built stands in setup.cfg. With SOCKGW_COMPILED=1 the hot path is compiled, by mypyc.

Compiled modules take the place of the sources in the package that is installed, never in this tree:
there they would hide what is edited.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup

# What each request walks through, and is free of classes that others made: of Twisted's protocols
# and zope's interfaces. Beyond these nothing more was to be gained (docs/performance.rst).
COMPILED = [
    "sockgw/http/exchange.py",
    "sockgw/http/forwarded.py",
    "sockgw/http/framing.py",
    "sockgw/http/headers.py",
    "sockgw/http/networks.py",
    "sockgw/http/originexchange.py",
    "sockgw/http/outgoing.py",
    "sockgw/http/reader.py",
    "sockgw/http/shapes.py",
    "sockgw/inner/forwarder.py",
    "sockgw/outer/dispatch.py",
    "sockgw/outer/gateway.py",
    "sockgw/outer/journal.py",
    "sockgw/outer/paths.py",
    "sockgw/outer/policy.py",
    "sockgw/outer/relay.py",
    "sockgw/outer/routes.py",
    "sockgw/protocol/errors.py",
    "sockgw/protocol/flight.py",
    "sockgw/protocol/frames.py",
    "sockgw/protocol/heads.py",
    "sockgw/protocol/holding.py",
    "sockgw/protocol/memory.py",
    "sockgw/protocol/outbox.py",
    "sockgw/protocol/payloads.py",
    "sockgw/protocol/session.py",
    "sockgw/protocol/streams.py",
    "sockgw/protocol/turns.py",
    "sockgw/protocol/windows.py",
    "sockgw/tunnel/tunnel.py",
]

# All that is not compiled counts as of any type: so the outcome does not depend on what else is
# installed, and nothing but mypy is needed for it.
_MYPY = ["--config-file=", "--follow-imports=skip", "--ignore-missing-imports"]


def extensions() -> list[Any]:
    """Return what is to be compiled: nothing, unless that was asked for and is being built now."""
    if os.environ.get("SOCKGW_COMPILED", "0") in ("", "0"):
        return []
    if "editable_wheel" in sys.argv or "develop" in sys.argv:
        _stop("what is compiled would hide the sources that are edited: install without --editable")
    if "bdist_wheel" not in sys.argv and "build_ext" not in sys.argv:
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        _stop("mypy is missing, which pip would have installed but for --no-build-isolation")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        _stop(f"there is no C compiler here ({compiler}); on Debian: apt install gcc libc6-dev")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        _stop("the headers of Python are missing; on Debian: apt install python3-dev")
    return mypycify([*_MYPY, *COMPILED], group_name="sockgw")


def _stop(reason: str) -> None:
    sys.exit(f"SOCKGW_COMPILED is set, but {reason}. Without it nothing is compiled.")


setup(ext_modules=extensions())
