"""The build that runs is the one that was asked for, and who cannot compile is told why."""

import os
import runpy
import sys
import types
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from sockgw.build import BUILD

ROOT = Path(__file__).parent.parent
COMPILED = os.environ.get("SOCKGW_COMPILED") == "1"


def module(name, **content):
    made = types.ModuleType(name)
    vars(made).update(content)
    return made


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """Run setup.py for a command, where there is all that it takes; return what it compiles."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CC", f"{sys.executable} -O2")
    monkeypatch.setitem(
        sys.modules, "mypyc.build", module("mypyc.build", mypycify=lambda given, **how: given)
    )

    def run(command, asked="1"):
        given = {}
        tools = module("setuptools", setup=lambda **values: given.update(values))
        monkeypatch.setitem(sys.modules, "setuptools", tools)
        monkeypatch.setenv("SOCKGW_COMPILED", asked)
        monkeypatch.setattr(sys, "argv", ["setup.py", command])
        runpy.run_path(str(ROOT / "setup.py"))
        return [name for name in given["ext_modules"] if not name.startswith("-")]

    return run


def test_it_is_the_build_that_was_asked_for(setup):
    build = "compiled" if COMPILED else "pure Python"
    assert build == BUILD
    files = setup("bdist_wheel")
    assert files == sorted(files)
    for name in files:
        assert (ROOT / name).exists()
        file = import_module(name.removesuffix(".py").replace("/", ".")).__file__
        assert file.endswith(tuple(EXTENSION_SUFFIXES) if COMPILED else ".py"), file


@pytest.mark.parametrize("asked", ["", "0"])
def test_who_does_not_ask_needs_no_compiler(setup, monkeypatch, asked):
    monkeypatch.setitem(sys.modules, "mypyc.build", None)
    monkeypatch.setenv("PATH", "")
    assert setup("bdist_wheel", asked) == []
    assert setup("editable_wheel", asked) == []


@pytest.mark.parametrize("command", ["egg_info", "dist_info", "sdist"])
def test_it_is_compiled_once(setup, monkeypatch, command):
    """pip calls for all of these, and when it does for the first, mypy is not there yet."""
    monkeypatch.setitem(sys.modules, "mypyc.build", None)
    assert setup(command) == []


def refused(setup, command="bdist_wheel"):
    with pytest.raises(SystemExit) as raised:
        setup(command)
    assert raised.value.code.startswith("SOCKGW_COMPILED is set, but ")
    assert raised.value.code.endswith(". Without it nothing is compiled.")
    return raised.value.code


def test_who_cannot_compile_is_told_why(setup, monkeypatch):
    assert "install without --editable" in refused(setup, "editable_wheel")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nonexistent")
    assert "the headers of Python are missing" in refused(setup)
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert "no C compiler here (no-such-compiler)" in refused(setup)
    monkeypatch.setitem(sys.modules, "mypyc.build", None)
    assert "mypy is missing" in refused(setup)


@pytest.mark.parametrize(("asked", "more"), [("", 0), ("0", 0), ("1", 1)])
def test_what_pip_installs_for_it(monkeypatch, asked, more):
    meta = module("setuptools.build_meta", get_requires_for_build_wheel=lambda settings: ["wheel"])
    monkeypatch.setitem(sys.modules, "setuptools", module("setuptools", build_meta=meta))
    monkeypatch.setitem(sys.modules, "setuptools.build_meta", meta)
    monkeypatch.setenv("SOCKGW_COMPILED", asked)
    backend = runpy.run_path(str(ROOT / "build_backend.py"))
    required = backend["get_requires_for_build_wheel"]()
    assert required[0] == "wheel"
    assert [each[:4] for each in required[1:]] == ["mypy"] * more
