"""Private keys and certificates in PEM files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from stat import S_ISREG

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

__all__ = ["Pair", "read_certificates", "read_pair"]

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey

_MAX_FILE = 1024 * 1024  # bytes; a bundle of all public authorities has a quarter of that


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A private key, and the chain of certificates that begins with its own."""

    key: PrivateKey
    chain: Sequence[x509.Certificate]
    names: frozenset[str]  #: host names in lower case, ``*.`` before some, and IP addresses
    not_before: float  #: seconds since 1970
    not_after: float  #: seconds since 1970


def read_pair(key_file: str, certificate_files: Sequence[str]) -> Pair:
    """Read a key and its chain, which the files hold one after the other.

    Raises ValueError with a sentence that names the file.
    """
    data = _read(key_file)
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise ValueError(f"the private key in {key_file} is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{key_file} holds no private key in PEM form") from None
    if not isinstance(key, PrivateKey):
        raise ValueError(f"the private key in {key_file} is neither RSA, EC nor Ed25519")
    # A file that holds the whole chain, as certbot's fullchain.pem does, is used whole.
    chain = [each for file in certificate_files for each in read_certificates(file)]
    own = chain[0]
    try:
        belongs = own.public_key() == key.public_key()
        names = _names(own)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"the certificate in {certificate_files[0]} is malformed") from error
    if not belongs:
        raise ValueError(f"the certificate does not belong to the key in {key_file}")
    return Pair(
        key,
        chain,
        names,
        own.not_valid_before_utc.timestamp(),
        own.not_valid_after_utc.timestamp(),
    )


def read_certificates(path: str) -> list[x509.Certificate]:
    """Return the certificates in a file, one at least. Raises ValueError, as above."""
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError(f"{path} holds no certificate in PEM form") from None


def _names(certificate: x509.Certificate) -> frozenset[str]:
    """Return whom the certificate is for (RFC 6125: the subject does not count)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    hosts = extension.value.get_values_for_type(x509.DNSName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return frozenset([host.lower() for host in hosts] + [str(address) for address in addresses])


def _read(path: str) -> bytes:
    try:
        if not S_ISREG(os.stat(path).st_mode):  # a pipe would keep us waiting
            raise ValueError(f"{path} is not a file")
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise ValueError(f"{path} is larger than {_MAX_FILE} bytes")
    return data
