"""Where certificates and their keys are, in a directory as ACME clients and people arrange it.

::

    example.org/fullchain.pem    example.org/privkey.pem        certbot's live/
    example.org/fullchain.cer    example.org/example.org.key    acme.sh; example.org_ecc/ as well
    example.org.crt              example.org.key                lego's certificates/
    example.org.pem              with the key in it, or with example.org.key beside it
    example.org/tls.crt          example.org/tls.key            any of the last two, one level down

The directory may also be one of those below it, such as ``live/example.org``. Names of files say
which belong together; for whom a certificate is stands in it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sockgw.files import Signature, signature

__all__ = ["Source", "find", "tree_signature"]

MAX_SOURCES = 4096
"""Certificates in a directory; each takes some 50 KB, and is looked at every two seconds."""


@dataclass(frozen=True, slots=True)
class Source:
    """A key file and the files of its chain, of which one may be missing at the moment."""

    name: str  #: the chain's first file, as problems and metrics call it
    key_file: str
    certificate_files: Sequence[str]


def find(directory: str) -> list[Source]:
    """Return the certificates that the directory seems to hold, in the order of their names.

    Raises ValueError with a sentence where it cannot be read, or holds too many.
    """
    found = list(_in_one(directory, _entries(directory)))
    for path in _below(directory):
        try:
            found += _in_one(path, _entries(path))
        except ValueError:
            continue  # not for us
    if len(found) > MAX_SOURCES:
        raise ValueError(f"{directory} holds more than {MAX_SOURCES} certificates")
    return sorted(found, key=lambda source: source.name)


def tree_signature(directory: str) -> Signature:
    """Return the signature of the directory and of those below it; see :mod:`sockgw.files`."""
    return signature(directory), *map(signature, _below(directory))


def _below(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.path for entry in entries if entry.name[0] != "." and entry.is_dir()
            )
    except OSError:
        return []


def _entries(directory: str) -> set[str]:
    try:
        return {name for name in os.listdir(directory) if not name.startswith(".")}
    except OSError as error:
        raise ValueError(f"cannot read {directory}: {error.strerror}") from None


def _in_one(directory: str, names: set[str]) -> Iterable[Source]:
    """Find what is directly in the directory."""

    def source(certificate: str, key: str) -> Source:
        path = os.path.join(directory, certificate)
        return Source(path, os.path.join(directory, key), (path,))

    # Beside these stand the same certificates without their chain.
    if names & {"fullchain.pem", "privkey.pem"}:
        yield source("fullchain.pem", "privkey.pem")
        return
    if "fullchain.cer" in names:
        base = os.path.basename(os.path.normpath(directory)).removesuffix("_ecc")
        keys = sorted(name for name in names if name.endswith(".key"))
        own = f"{base}.key"
        yield source("fullchain.cer", own if own in names or not keys else keys[0])
        return
    taken = set()
    for name in sorted(names):
        stem, ending = os.path.splitext(name)
        key = f"{stem}.key"
        if ending in (".crt", ".cer"):
            if stem.endswith(".issuer"):  # lego
                continue
            if stem not in taken:
                yield source(name, key)
        elif ending == ".pem":
            # lego writes the same once more as one file, where it is told to.
            if stem not in taken and not ({f"{stem}.crt", f"{stem}.cer"} & names and key in names):
                yield source(name, key if key in names else name)
        elif ending == ".key":
            # Alone: its certificate may be about to be written anew.
            if not {f"{stem}.crt", f"{stem}.cer", f"{stem}.pem"} & names:
                yield source(f"{stem}.crt", name)
            continue
        else:
            continue
        taken.add(stem)
