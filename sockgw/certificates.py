"""Private keys and certificates in PEM files."""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

__all__ = ["Pair", "read_certificates", "read_pair"]

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A private key, and the chain of certificates that begins with its own."""

    key: PrivateKey
    chain: Sequence[x509.Certificate]


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
    if chain[0].public_key() != key.public_key():
        raise ValueError(f"the certificate does not belong to the key in {key_file}")
    return Pair(key, chain)


def read_certificates(path: str) -> list[x509.Certificate]:
    """Return the certificates in a file, one at least. Raises ValueError, as above."""
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError(f"{path} holds no certificate in PEM form") from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
