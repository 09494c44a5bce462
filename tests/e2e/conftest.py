"""The gateway that most tests share, and what it stands between."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Gateway, Keys
from origins import Nginx
from watching import (  # noqa: F401
    inner_layer_keys,
    no_process_left,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway"), keys) as gateway:
        yield gateway


@pytest.fixture
def gateway(_shared: Gateway) -> Iterator[Gateway]:
    """A gateway with default settings; whatever a test did, no stream may stay behind."""
    yield _shared
    _shared.assert_idle()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What nginx serves: ``hello`` (6 bytes), ``large`` (64 MiB; 1 GiB with SOCKGW_FULL=1)."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "hello").write_bytes(b"hello\n")
    block = os.urandom(1024 * 1024)
    with open(directory / "large", "wb") as file:
        for number in range(1024 if os.environ.get("SOCKGW_FULL") == "1" else 64):
            # No two blocks are equal: one that is lost, or comes twice, must change the sum.
            file.write(number.to_bytes(8, "big") + block[8:])
    yield directory
    (directory / "large").unlink()  # pytest keeps directories for a while


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Nginx]:
    """nginx with ``files``."""
    with Nginx(tmp_path_factory.mktemp("nginx"), files) as server:
        yield server


@pytest.fixture(scope="session")
def nginx_port(nginx: Nginx) -> int:
    return nginx.port


@pytest.fixture(scope="session")
def nginx_host(_shared: Gateway, nginx: Nginx) -> str:
    """The host name under which the shared gateway has nginx."""
    return _shared.route(nginx, host="nginx.test")
