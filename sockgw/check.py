"""Checking configuration files without starting anything: ``sockgw check``."""

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from sockgw.config import Config, ConfigError, Missing, load, read_text, settings_of
from sockgw.inner.config import InnerConfig
from sockgw.inner.tls import client_context
from sockgw.keys import UnusableKey, load_private_key
from sockgw.outer.config import OuterConfig
from sockgw.outer.keyring import Keyring
from sockgw.outer.targetsfile import parse_targets
from sockgw.yamlfile import load_yaml

__all__ = ["ROLES", "check_file"]

ROLES = {
    "outer": "outer layer's configuration",
    "inner": "inner layer's configuration",
    "targets": "targets",
}
"""What a file may be, and how to call it."""


def check_file(path: str, role: str | None = None) -> str:
    """Return what the file is, all of which is fine; files that it names are checked too.

    ``role`` is one of :data:`ROLES`; without it the content decides. Raises ConfigError.
    """
    content = read_text(path)
    role = role or _role_of(content, path)
    what = ROLES[role]
    if role == "targets":
        parse_targets(content, path)
        return what
    try:
        if role == "outer":
            _check_outer(load(OuterConfig, {"config": [path]}, {}))
        else:
            _check_inner(load(InnerConfig, {"config": [path]}, {}))
    except Missing as missing:  # before ConfigError, of which it is one
        # What a unit file or a container adds by option or variable is not known here.
        names = ", ".join(f"--{name}" for name in missing.names)
        return f"{what}; still to be given: {names}"
    except ConfigError as error:
        if error.source:
            raise
        raise ConfigError(
            error.problem,
            option=error.option.removeprefix("--"),
            value=error.value,
            expected=error.expected,
            source=path,
        ) from None
    return what


def _role_of(content: str, path: str) -> str:
    root = load_yaml(content, path)
    keys = root.value if isinstance(root.value, dict) else {}
    if "targets" in keys and not isinstance(keys["targets"].value, str):
        return "targets"
    outer, inner = _known(OuterConfig, keys), _known(InnerConfig, keys)
    if outer == inner:
        raise root.error("cannot tell what this file is", "--role outer, inner or targets")
    return "outer" if outer > inner else "inner"


def _known(config_class: type[Config], keys: dict[str, Any]) -> int:
    """Return how many of the keys are settings of the class."""
    return sum(
        name in keys or any(alias in keys for alias in item.aliases)
        for name, item in settings_of(config_class).items()
    )


def _check_outer(config: OuterConfig) -> None:
    parse_targets(read_text(config.targets, "targets"), config.targets)
    Keyring(config.public_key, Clock())


def _check_inner(config: InnerConfig) -> None:
    _named("private-key", config.private_key, load_private_key)
    authorities = [("outer-layer-ca", config.outer_layer_ca)] if config.outer_layer_ca else []
    authorities += [("target-ca", file) for file in config.target_ca]
    for option, file in authorities:
        _named(option, file, lambda file: client_context([file], system_roots=False))
    if config.certificate:
        _named("certificate", config.certificate, lambda file: _client_context(config))


def _client_context(config: InnerConfig) -> object:
    return client_context(
        system_roots=False, certificate=config.certificate, private_key=config.private_key
    )


def _named(option: str, file: str, read: Callable[[str], object]) -> None:
    try:
        read(file)
    except UnusableKey as error:
        raise ConfigError(str(error), option=option, value=file) from None
    except ValueError as error:  # begins with the file's name
        raise ConfigError(str(error), option=option) from None
