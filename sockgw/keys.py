"""Keys and certificates: load, name, sign, verify, generate.

An inner layer is known by its key alone. A certificate is accepted where a public key would be; of
what it says, the common name and the dates are used, and nobody's signature on it is asked for.

Both ends must sign the same way, so each type of key has one scheme, without options: Ed25519
(RFC 8032), RSASSA-PSS with SHA-256 and a salt of 32 bytes (RFC 8017, section 8.1), ECDSA with
SHA-256 and a DER signature (FIPS 186-5; RFC 3279, section 2.2.3).
"""

import os
import re
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from stat import S_IROTH, S_ISREG, S_IWOTH

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "KEY_TYPES",
    "MAX_IDENTIFIER",
    "PrivateKey",
    "PublicKey",
    "UnusableKey",
    "check_identifier",
    "decoy",
    "fingerprint_text",
    "generate",
    "load_private_key",
    "load_public_key",
]

KEY_TYPES = ("ed25519", "rsa", "ec")
"""What :func:`generate` can make: Ed25519, RSA with 4096 bits, EC on P-256."""

MAX_IDENTIFIER = 128
"""Characters in an identifier."""

_MAX_FILE = 64 * 1024  # bytes; a certificate of an RSA key of 16384 bits takes about 6 KiB
_MIN_RSA_BITS = 2048  # NIST SP 800-57, part 1: 112 bits of security
_MAX_RSA_BITS = 16384  # beyond it OpenSSL refuses to verify
_MAX_SIGNATURE = _MAX_RSA_BITS // 8  # bytes
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAX_VALIDITY = 36525  # days: a century

# A clock of the outer layer that is slow by less than this still accepts a new certificate.
_CLOCK_SKEW = timedelta(hours=1)

_PEM_LABEL = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----\s*$", re.MULTILINE)
_PUBLIC_LABELS = (b"PUBLIC KEY", b"RSA PUBLIC KEY")
_CERTIFICATE_LABELS = (b"CERTIFICATE", b"X509 CERTIFICATE")

_OTHER_TYPE = "is of another type than Ed25519, RSA and EC"

_PSS = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)

_Public = ed25519.Ed25519PublicKey | rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_Private = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class UnusableKey(ValueError):
    """A key or certificate cannot be used; the text says why and follows the name of its file."""


def check_identifier(text: str) -> str:
    """Return an identifier unchanged.

    Raises ValueError unless it has 1 to 128 printable characters, none of them white space, a comma
    or a slash: those separate identifiers in options, log lines and paths.
    """
    if not 0 < len(text) <= MAX_IDENTIFIER:
        raise ValueError(f"an identifier has 1 to {MAX_IDENTIFIER} characters")
    # The ASCII space is the only white space that counts as printable.
    if not text.isprintable() or any(separator in text for separator in " ,/"):
        raise ValueError("an identifier has no space, comma, slash or unprintable character")
    return text


def fingerprint_text(fingerprint: bytes) -> str:
    """Return a fingerprint as people compare it: ``SHA256:`` and base64 without padding."""
    return "SHA256:" + b64encode(fingerprint).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, and what its certificate said if it came in one.

    ``fingerprint`` is the SHA-256 of the DER SubjectPublicKeyInfo (RFC 5280, section 4.1), 32
    bytes: the same for a key and for every certificate of it.
    """

    key: _Public = field(repr=False)
    fingerprint: bytes
    common_name: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None

    def __str__(self) -> str:
        return fingerprint_text(self.fingerprint)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is this key's for the message; junk is simply not."""
        if len(signature) > _MAX_SIGNATURE:
            return False
        key = self.key
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, message, _PSS, SHA256())
            else:
                key.verify(signature, message, ec.ECDSA(SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True

    def problem_at(self, now: datetime) -> str | None:
        """Return why the certificate's dates forbid its use at that time, or None.

        The text follows the name of the file, as that of UnusableKey does.
        """
        if self.not_before is not None and now < self.not_before:
            return (
                f"is a certificate that is not valid before {self.not_before:%Y-%m-%d %H:%M:%S} UTC"
            )
        if self.not_after is not None and now > self.not_after:
            return f"is a certificate that expired at {self.not_after:%Y-%m-%d %H:%M:%S} UTC"
        return None


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key. ``exposed``: its file may be read or written by everybody on the machine."""

    key: _Private = field(repr=False)
    public_key: PublicKey
    exposed: bool = False

    def sign(self, message: bytes) -> bytes:
        """Return the signature that :meth:`PublicKey.verify` accepts."""
        key = self.key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(message, _PSS, SHA256())
        return key.sign(message, ec.ECDSA(SHA256()))


def load_private_key(path: str | os.PathLike[str]) -> PrivateKey:
    """Read a PEM file with an unencrypted private key.

    Raises UnusableKey where it is missing, encrypted, too weak or of another type.
    """
    data, mode = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:  # this is how cryptography asks for a password
        raise UnusableKey(
            "is encrypted; write it without a passphrase: openssl pkey -in FILE -out NEWFILE"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableKey("holds no private key in PEM format") from None
    if not isinstance(key, _Private):
        raise UnusableKey(_OTHER_TYPE)
    return PrivateKey(key, _public_key(key.public_key()), bool(mode & (S_IROTH | S_IWOTH)))


def load_public_key(source: str | os.PathLike[str] | bytes) -> PublicKey:
    """Read a PEM public key or X.509 certificate, from a file or from bytes.

    Raises UnusableKey where there is none or more than one, where it is too weak or of another
    type, and where there is a private key: that one has no business here.
    """
    data = source if isinstance(source, bytes) else _read(source)[0]
    labels: list[bytes] = _PEM_LABEL.findall(data)
    if any(label.endswith(b"PRIVATE KEY") for label in labels):
        raise UnusableKey("holds a private key, which belongs to the inner layer alone")
    if len(labels) > 1:
        raise UnusableKey("holds several keys or certificates; one is expected")
    try:
        if labels and labels[0] in _PUBLIC_LABELS:
            return _public_key(load_pem_public_key(data))
        if labels and labels[0] in _CERTIFICATE_LABELS:
            return _from_certificate(x509.load_pem_x509_certificate(data))
    except UnusableKey:
        raise
    except Exception as error:  # noqa: BLE001 - a broken file raises what it likes in the parser
        raise UnusableKey(f"is broken ({type(error).__name__})") from None
    raise UnusableKey("holds no public key and no certificate in PEM format")


def _read(path: str | os.PathLike[str]) -> tuple[bytes, int]:
    """Return what a regular file holds and its mode; never block on a pipe, never read much."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_FILE + 1) if S_ISREG(mode) else b""
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise UnusableKey(f"cannot be read: {getattr(error, 'strerror', error)}") from None
    if not S_ISREG(mode):
        raise UnusableKey("is not a regular file")
    if len(data) > _MAX_FILE:
        raise UnusableKey(f"is larger than {_MAX_FILE} bytes")
    return data, mode


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _public_key(
    key: object,
    common_name: str | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
            raise UnusableKey(f"is an RSA key of {key.key_size} bits; {_MIN_RSA_BITS} are needed")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise UnusableKey(f"is on the curve {key.curve.name}; P-256, P-384 or P-521 is needed")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise UnusableKey(_OTHER_TYPE)
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key, sha256(der).digest(), common_name, not_before, not_after)


def _from_certificate(certificate: x509.Certificate) -> PublicKey:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    common_name = str(names[0].value) if names else None
    return _public_key(
        certificate.public_key(),
        common_name,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def decoy() -> PublicKey:
    """Return a key that nobody has, to verify against where the right answer is no."""
    return _public_key(ed25519.Ed25519PrivateKey.generate().public_key())


def generate(
    private_key_path: str | os.PathLike[str],
    certificate_path: str | os.PathLike[str],
    *,
    common_name: str = "innerLayer",
    validity_days: int = 365,
    key_type: str = "ed25519",
) -> str:
    """Write a new private key and a self-signed certificate; return the fingerprint's text.

    Both files are new: FileExistsError if one is there already. After any error neither is left.
    Raises ValueError for a common name that is no identifier (or is longer than the 64 characters
    that X.520 allows), an unknown type or a validity out of range, OSError where a file cannot be
    written.
    """
    check_identifier(common_name)
    if not 1 <= validity_days <= _MAX_VALIDITY:
        raise ValueError(f"a certificate is valid for 1 to {_MAX_VALIDITY} days")
    key = _new_private_key(key_type)
    certificate = _self_signed(key, common_name, validity_days)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(
        (certificate_path, 0o644, certificate.public_bytes(Encoding.PEM)),
        (private_key_path, 0o600, pem),
    )
    return str(_public_key(key.public_key()))


def _new_private_key(key_type: str) -> _Private:
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if key_type == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=4096)
    if key_type == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    raise ValueError(f"{key_type!r} is no type of key; expected one of {', '.join(KEY_TYPES)}")


def _self_signed(key: _Private, common_name: str, validity_days: int) -> x509.Certificate:
    """Return a certificate fit for what it is used for: a TLS client that signs (RFC 5280, 4.2)."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC).replace(microsecond=0)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=validity_days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256())


def _write_new(*files: tuple[str | os.PathLike[str], int, bytes]) -> None:
    """Create all of the files (path, mode, content), or none."""
    created: list[str | os.PathLike[str]] = []
    try:
        for path, mode, content in files:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            created.append(path)
            with open(descriptor, "wb") as file:
                file.write(content)
    except BaseException:
        for path in created:
            os.unlink(path)
        raise
