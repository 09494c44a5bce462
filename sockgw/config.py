"""Settings: each stands once, as a field of a role's class, and may come from four places.

A role's configuration is a frozen dataclass, and each field carries its :func:`setting`: help,
default, and how its text is read (:mod:`sockgw.values`). From the class follow the command line's
options with their help (:mod:`sockgw.options`), the environment variables and the keys of the YAML
file (:func:`load`). Flags win over the environment, that over the file, that over defaults.

Of a setting that may be given several times, an environment variable separates the values by white
space, and the file has a list. Some (``commas``) may be separated by commas too, anywhere.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from sockgw.yamlfile import MAX_SIZE, ConfigError, YamlNode, load_yaml

__all__ = [
    "Config",
    "ConfigError",
    "Missing",
    "Setting",
    "load",
    "read_text",
    "setting",
    "settings_of",
    "variable",
]

_KEY = "sockgw.setting"  # in a field's metadata
_PREFIX = "SOCKGW_"


@dataclass(frozen=True, slots=True)
class Setting:
    """How one setting is given. Texts are what an operator writes; ``parse`` makes the value."""

    help: str
    parse: Callable[[str], Any]
    metavar: str = "VALUE"
    default: str | tuple[str, ...] | None = None  # None: required
    repeatable: bool = False  # the value is a tuple
    flag: bool = False  # takes no value on the command line; yes or no elsewhere
    pairs: bool = False  # NAME=VALUE, repeatable: the value is a dict, in the file a mapping
    commas: bool = False  # repeatable, and a comma separates as well
    aliases: tuple[str, ...] = ()
    secret: bool = False  # never shown: not in errors, not in repr()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Base of a role's configuration.

    A subclass checks in ``__post_init__`` what concerns several settings, and raises ConfigError
    with the setting's bare name as ``option``; :func:`load` adds where that one was given.
    """

    @classmethod
    def complete(cls, values: dict[str, Any], environ: Mapping[str, str]) -> None:
        """Add to ``values`` (by field) defaults that follow from others or the environment."""


class Missing(ConfigError):
    """Settings without a default were not given; everything that was given is right."""

    def __init__(self, names: Sequence[str], metavar: str) -> None:
        name = names[0]
        super().__init__(
            f"is missing, also as {variable(name)} and as '{name}' in a --config file",
            option=f"--{name}",
            expected=metavar,
        )
        self.names = tuple(names)


def setting(
    help: str,
    parse: Callable[[str], Any],
    *,
    metavar: str = "VALUE",
    default: str | tuple[str, ...] | None = None,
    repeatable: bool = False,
    flag: bool = False,
    pairs: bool = False,
    commas: bool = False,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """Return the dataclass field of a setting; ``default`` is text, and read as such.

    Several defaults are a tuple; a setting without any is required.
    """
    described = Setting(
        help, parse, metavar, default, repeatable, flag, pairs, commas, aliases, secret
    )
    metadata = {_KEY: described}
    if default is None:
        return field(repr=not secret, metadata=metadata)
    if pairs:
        return field(default_factory=dict, repr=not secret, metadata=metadata)
    value: Any
    if isinstance(default, tuple):
        value = tuple(parse(item) for item in default)
    else:
        value = parse(default) if default else ""
    return field(default=value, repr=not secret, metadata=metadata)


def settings_of(config_class: type[Config]) -> dict[str, Setting]:
    """Return a class's settings by name, as an operator spells it, in their order."""
    return {_name(item): item.metadata[_KEY] for item in fields(config_class)}


def _name(item: "Field[Any]") -> str:
    return item.name.replace("_", "-")


def variable(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return _PREFIX + name.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class _Given:
    """One text, and where it was given."""

    text: str
    option: str  # as it is called there: --timeout, SOCKGW_TIMEOUT, timeout
    source: str = ""
    line: int | None = None
    column: int | None = None

    def error(self, error: ConfigError, value: object, *, secret: bool) -> ConfigError:
        """Return ``error`` with this place."""
        # Where a URL has a user part, that may be a password.
        secret = secret or (isinstance(value, str) and "@" in value and "://" in value)
        return ConfigError(
            f"the value {error.problem}" if secret else error.problem,
            option=self.option,
            value=None if secret else value,
            expected=error.expected,
            source=self.source,
            line=self.line,
            column=self.column,
        )


_Config = TypeVar("_Config", bound=Config)


def load(
    config_class: type[_Config], options: Mapping[str, Sequence[str]], environ: Mapping[str, str]
) -> _Config:
    """Return the configuration that flags, environment and file make together.

    ``options`` has the texts of each option given, by name, as those of :func:`make_options` do;
    ``config`` in it (or ``SOCKGW_CONFIG``) names the file. An empty variable counts as not set, and
    so does a key of the file without a value. Raises ConfigError, and Missing only where nothing
    else is wrong.
    """
    settings = settings_of(config_class)
    file = _file_values(settings, options, environ)
    given: dict[str, list[_Given]] = {}
    values: dict[str, Any] = {}
    for item in fields(config_class):
        name = _name(item)
        texts = _from_options(name, options) or _from_environ(name, settings[name], environ)
        texts = texts or file.get(name, [])
        if texts:
            given[name] = texts
            values[item.name] = _parsed(settings[name], texts)
    missing = [
        _name(item)
        for item in fields(config_class)
        if item.name not in values and settings[_name(item)].default is None
    ]
    if missing:
        raise Missing(missing, settings[missing[0]].metavar)
    config_class.complete(values, environ)
    try:
        return config_class(**values)
    except ConfigError as error:
        if error.option not in settings:
            raise
        place = given.get(error.option, [_Given("", f"--{error.option}")])[-1]
        value = place.text or None if error.value is None else error.value
        raise place.error(error, value, secret=settings[error.option].secret) from None


def _from_options(name: str, options: Mapping[str, Sequence[str]]) -> list[_Given]:
    return [_Given(item, f"--{name}") for item in options.get(name, ())]


def _from_environ(name: str, described: Setting, environ: Mapping[str, str]) -> list[_Given]:
    for key in (name, *described.aliases):
        value = environ.get(variable(key), "")
        if value:
            several = described.repeatable or described.pairs
            return [_Given(one, variable(key)) for one in (value.split() if several else [value])]
    return []


def _file_values(
    settings: dict[str, Setting], options: Mapping[str, Sequence[str]], environ: Mapping[str, str]
) -> dict[str, list[_Given]]:
    """Return what the configuration file gives, by name; whatever is unknown is an error."""
    named = _from_options("config", options)[-1:]
    if not named and environ.get(variable("config")):
        named = [_Given(environ[variable("config")], variable("config"))]
    if not named:
        return {}
    source = named[0].text
    root = load_yaml(read_text(source, named[0].option), source)
    if root.value is None:
        return {}
    if not isinstance(root.value, dict):
        raise root.error("not a configuration", "lines such as 'timeout: 60000'")
    names = {key: name for name, item in settings.items() for key in (name, *item.aliases)}
    result: dict[str, list[_Given]] = {}
    for key, node in root.value.items():
        if key not in names:
            close = difflib.get_close_matches(key.replace("_", "-"), names, 1)
            hint = f"did you mean '{close[0]}'?" if close else "see --help for what there is"
            raise node.error(f"there is no such setting; {hint}", at_key=True)
        name = names[key]
        if name in result:
            raise node.error(f"stands twice, also as '{result[name][0].option}'", at_key=True)
        texts = list(_from_node(node, settings[name], key))
        if texts:
            result[name] = texts
    return result


def _from_node(node: YamlNode, described: Setting, key: str) -> Iterator[_Given]:
    value = node.value
    several = described.repeatable or described.pairs
    if isinstance(value, list) and several:
        for item in value:
            yield _scalar(item, item.text, key, described)
    elif isinstance(value, dict) and described.pairs:
        for name, item in value.items():
            yield _scalar(item, f"{name}={item.text}", key, described)
    elif value is not None:
        yield _scalar(node, node.text, key, described)


def _scalar(node: YamlNode, spelled: str, key: str, described: Setting) -> _Given:
    if isinstance(node.value, dict | list) or node.value is None:
        raise node.error("not a single value", described.metavar)
    return _Given(spelled, key, node.source, node.line, node.column)


def _parsed(described: Setting, texts: list[_Given]) -> Any:
    several = described.repeatable or described.pairs
    result: list[Any] = []
    names: set[str] = set()
    for given in texts if several else texts[-1:]:
        parts = [given.text]
        if described.commas:
            parts = [part.strip() for part in given.text.split(",") if part.strip()]
        for part in parts:
            try:
                value = described.parse(part)
                if described.pairs and value[0] in names:
                    raise ConfigError("names what another one names")
            except ConfigError as error:
                raise given.error(error, part, secret=described.secret) from None
            if described.pairs:
                names.add(value[0])
            result.append(value)
    if described.pairs:
        return dict(result)
    return tuple(result) if several else result[0]


def read_text(file_path: str, option: str = "") -> str:
    """Return a text file's content. Raises ConfigError where it cannot be read, or is no UTF-8."""
    try:
        with open(file_path, encoding="utf-8-sig") as file:
            return file.read(MAX_SIZE + 1)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except ValueError:  # a NUL in the path
        problem = "is not a path"
    raise ConfigError(problem, option=option, value=file_path) from None
