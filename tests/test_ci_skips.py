"""In CI a skipped test is a failed one, which names what was missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_skipped():
    pytest.skip("nginx is not installed")

@pytest.mark.skip(reason="curl is not installed")
def test_marked():
    raise AssertionError

@pytest.mark.xfail
def test_expected():
    raise AssertionError

def test_fine():
    pass
"""
MODULE = "import pytest\npytest.skip('openssl is not installed', allow_module_level=True)\n"


def run(directory: Path, ci: str, *, with_module: bool) -> tuple[int, str]:
    """Run the tests above with our conftest.py; return status and output."""
    shutil.copy(Path(__file__).with_name("conftest.py"), directory)
    (directory / "test_some.py").write_text(TESTS)
    if with_module:
        (directory / "test_module.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"],
        cwd=directory,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_skips_are_skips(tmp_path: Path) -> None:
    status, output = run(tmp_path, "", with_module=True)
    assert status == 0, output
    assert "1 passed, 3 skipped, 1 xfailed" in output
    assert "nginx is not installed" in output


@pytest.mark.parametrize("ci", ["true", "1"])
def test_skips_fail_in_ci(tmp_path: Path, ci: str) -> None:
    status, output = run(tmp_path, ci, with_module=False)
    assert status == 1, output
    # What is marked is skipped, and so fails, before it is called.
    assert "1 failed, 1 passed, 1 xfailed, 1 error" in output
    assert "In CI nothing is skipped, but this was: nginx is not installed" in output
    assert "In CI nothing is skipped, but this was: curl is not installed" in output


def test_skipped_module_fails_in_ci(tmp_path: Path) -> None:
    status, output = run(tmp_path, "true", with_module=True)
    assert status == 2, output
    assert "In CI nothing is skipped, but this was: openssl is not installed" in output
