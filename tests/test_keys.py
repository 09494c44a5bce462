"""Keys: ours and openssl's, what is refused, signatures, and what ``generate`` writes."""

import os
import re
import shutil
import stat
import subprocess
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sockgw.keys import (
    PrivateKey,
    PublicKey,
    UnusableKey,
    check_identifier,
    decoy,
    fingerprint_text,
    generate,
    load_private_key,
    load_public_key,
)

MAKERS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
}
KEYS = {name: make() for name, make in MAKERS.items()}
OTHERS = {name: make() for name, make in MAKERS.items()}


def private_pem(key, passphrase: bytes = b"", form=PrivateFormat.PKCS8) -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def loaded(tmp_path: Path, key) -> PrivateKey:
    path = tmp_path / "loaded.key"
    path.write_bytes(private_pem(key))
    path.chmod(0o600)
    return load_private_key(path)


def refused_private(tmp_path: Path, pem: bytes) -> str:
    path = tmp_path / "refused.key"
    path.write_bytes(pem)
    with pytest.raises(UnusableKey) as caught:
        load_private_key(path)
    return str(caught.value)


def refused_public(source: bytes | str | Path) -> str:
    with pytest.raises(UnusableKey) as caught:
        load_public_key(source)
    return str(caught.value)


# --- loading


@pytest.mark.parametrize("kind", KEYS)
def test_both_halves_agree(tmp_path: Path, kind: str) -> None:
    private, public = loaded(tmp_path, KEYS[kind]), load_public_key(public_pem(KEYS[kind]))
    assert private.public_key.fingerprint == public.fingerprint
    signature = private.sign(b"message")
    assert public.verify(b"message", signature)
    assert not public.verify(b"massage", signature)
    assert not public.verify(b"", signature)
    assert not load_public_key(public_pem(OTHERS[kind])).verify(b"message", signature)


@pytest.mark.parametrize("kind", KEYS)
def test_fingerprint(kind: str) -> None:
    public = load_public_key(public_pem(KEYS[kind]))
    der = KEYS[kind].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = sha256(der).digest()
    assert public.fingerprint == digest
    assert str(public) == fingerprint_text(digest) == "SHA256:" + b64encode(digest).decode()[:-1]


def test_nothing_of_the_key_in_repr(tmp_path: Path) -> None:
    private = loaded(tmp_path, KEYS["ed25519"])
    assert repr(private) == f"PrivateKey(public_key={private.public_key!r}, exposed=False)"
    assert "key=" not in repr(private.public_key)


def test_encrypted_keys(tmp_path: Path) -> None:
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        pem = private_pem(KEYS["rsa"], b"passphrase", form)
        assert refused_private(tmp_path, pem).startswith("is encrypted; ")


def test_traditional_forms(tmp_path: Path) -> None:
    for kind in ("rsa", "p256"):
        path = tmp_path / f"{kind}.key"
        path.write_bytes(private_pem(KEYS[kind], form=PrivateFormat.TraditionalOpenSSL))
        assert load_private_key(path).sign(b"")
    pkcs1 = KEYS["rsa"].public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    assert load_public_key(pkcs1) == load_public_key(public_pem(KEYS["rsa"]))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (rsa.generate_private_key(public_exponent=65537, key_size=1024), "RSA key of 1024 bits"),
        (ec.generate_private_key(ec.SECP256K1()), "on the curve secp256k1"),
        (ed448.Ed448PrivateKey.generate(), "of another type than Ed25519, RSA and EC"),
    ],
    ids=["rsa1024", "secp256k1", "ed448"],
)
def test_weak_and_other_keys(tmp_path: Path, key, problem: str) -> None:
    assert problem in refused_private(tmp_path, private_pem(key))
    assert problem in refused_public(public_pem(key))


def test_junk(tmp_path: Path) -> None:
    assert refused_private(tmp_path, b"") == "holds no private key in PEM format"
    assert refused_private(tmp_path, b"\0" * 100) == "holds no private key in PEM format"
    public = public_pem(KEYS["p256"])
    assert refused_private(tmp_path, public) == "holds no private key in PEM format"
    for junk in (b"", b"\0\xff", b"ssh-ed25519 AAAA", b"-----BEGIN X509 CRL-----"):
        assert refused_public(junk) == "holds no public key and no certificate in PEM format"
    assert refused_public(public[:-40]).startswith("is broken")
    assert refused_public(public.replace(b"PUBLIC KEY", b"CERTIFICATE")).startswith("is broken")
    private = private_pem(KEYS["p256"])
    assert "holds a private key" in refused_public(private)
    assert "holds a private key" in refused_public(public + private)
    assert "holds several" in refused_public(public + public)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(public_pem(KEYS["p256"]) + b"\n" * 65536)
    for path, problem in {
        tmp_path / "missing": "cannot be read: No such file or directory",
        tmp_path: "cannot be read: Is a directory",
        pipe: "is not a regular file",
        large: "is larger than 65536 bytes",
        Path("a\0b"): "cannot be read: embedded null byte",
    }.items():
        assert refused_public(path) == problem
        with pytest.raises(UnusableKey, match=re.escape(problem)):
            load_private_key(path)


@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)]
)
def test_exposed(tmp_path: Path, mode: int, exposed: bool) -> None:
    path = tmp_path / "mode.key"
    path.write_bytes(private_pem(KEYS["ed25519"]))
    path.chmod(mode)
    assert load_private_key(path).exposed is exposed


# --- signatures


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=30, deadline=None)
@given(signature=st.binary(max_size=600), flip=st.integers(0, 511))
def test_junk_is_no_signature(kind: str, signature: bytes, flip: int) -> None:
    public = load_public_key(public_pem(KEYS[kind]))
    assert public.verify(b"message", signature) is False
    good = bytearray(PrivateKey(KEYS[kind], public).sign(b"message"))
    good[flip // 8 % len(good)] ^= 1 << flip % 8
    assert public.verify(b"message", bytes(good)) is False


def test_another_length_is_no_signature(tmp_path: Path) -> None:
    for kind in KEYS:
        private = loaded(tmp_path, KEYS[kind])
        signature = private.sign(b"")
        for wrong in (signature + b"\0", signature[:-1], b"", b"\0" * 2048):
            assert not private.public_key.verify(b"", wrong)


def test_an_oversized_signature_is_not_looked_at() -> None:
    class Key:
        def verify(self, *arguments: object) -> None:
            raise AssertionError

    public = PublicKey(Key(), b"")
    assert public.verify(b"", b"\0" * 2049) is False
    with pytest.raises(AssertionError):
        public.verify(b"", b"\0" * 2048)


def test_one_scheme_for_rsa() -> None:
    key, public = KEYS["rsa"], load_public_key(public_pem(KEYS["rsa"]))
    schemes = {
        "ours": (padding.PSS(padding.MGF1(SHA256()), 32), SHA256()),
        "salt": (padding.PSS(padding.MGF1(SHA256()), 20), SHA256()),
        "hash": (padding.PSS(padding.MGF1(SHA512()), 64), SHA512()),
        "PKCS1": (padding.PKCS1v15(), SHA256()),
    }
    accepted = [
        name
        for name, (scheme, algorithm) in schemes.items()
        if public.verify(b"message", key.sign(b"message", scheme, algorithm))
    ]
    assert accepted == ["ours"]


def test_decoy() -> None:
    assert isinstance(decoy(), PublicKey)
    assert decoy().fingerprint != decoy().fingerprint
    assert decoy().verify(b"message", b"\0" * 64) is False


# --- identifiers


@pytest.mark.parametrize("text", ["a", "office", "büro-2", "A.b_c:d@e", "x" * 128, "a=b"])
def test_identifiers(text: str) -> None:
    assert check_identifier(text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 129, "a b", "a,b", "a/b", "a\tb", "a\n", "\0", "\u200b", "\u00a0", "\udc80"]
)
def test_what_is_no_identifier(text: str) -> None:
    with pytest.raises(ValueError, match="an identifier has"):
        check_identifier(text)


# --- certificates


def test_generate_writes_what_it_says(tmp_path: Path) -> None:
    key, crt = tmp_path / "inner.key", tmp_path / "inner.crt"
    old = os.umask(0)
    try:
        before = datetime.now(UTC).replace(microsecond=0)
        text = generate(key, crt, common_name="büro-2", validity_days=7)
    finally:
        os.umask(old)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(crt.stat().st_mode) == 0o644
    private, public = load_private_key(key), load_public_key(str(crt))
    assert not private.exposed
    assert text == str(public) == str(private.public_key)
    assert public.common_name == "büro-2"
    assert public.verify(b"message", private.sign(b"message"))
    assert public.not_before is not None
    assert public.not_after is not None
    # An hour back, for a clock of the outer layer that is slow.
    assert before - timedelta(minutes=60) <= public.not_before < before - timedelta(minutes=59)
    assert before + timedelta(days=7) <= public.not_after < before + timedelta(days=7, minutes=1)

    certificate = x509.load_pem_x509_certificate(crt.read_bytes())
    assert certificate.version is x509.Version.v3
    extensions = certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=False, path_length=None)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert list(extended.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate.verify_directly_issued_by(certificate)


def test_generate_ec(tmp_path: Path) -> None:
    generate(tmp_path / "k", tmp_path / "c", key_type="ec")
    private = load_private_key(tmp_path / "k")
    assert isinstance(private.key, ec.EllipticCurvePrivateKey)
    assert isinstance(private.key.curve, ec.SECP256R1)
    assert load_public_key(tmp_path / "c").common_name == "innerLayer"


def test_generate_rsa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def quick(*, public_exponent: int, key_size: int) -> rsa.RSAPrivateKey:
        asked.append(key_size)
        return KEYS["rsa"]

    monkeypatch.setattr(rsa, "generate_private_key", quick)
    text = generate(tmp_path / "k", tmp_path / "c", key_type="rsa")
    assert asked == [4096]
    assert text == str(load_public_key(tmp_path / "c"))


@pytest.mark.parametrize("there", ["inner.key", "inner.crt"])
def test_generate_never_overwrites(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(FileExistsError) as caught:
        generate(tmp_path / "inner.key", tmp_path / "inner.crt")
    assert caught.value.filename == str(tmp_path / there)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"


def test_generate_does_not_follow_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "inner.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        generate(tmp_path / "inner.key", tmp_path / "inner.crt")
    assert not (tmp_path / "elsewhere").exists()


def test_generate_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        generate(tmp_path / "no" / "inner.key", tmp_path / "inner.crt")
    with pytest.raises(FileExistsError):
        generate(tmp_path / "same", tmp_path / "same")
    for wrong in (
        {"common_name": "with space"},
        {"common_name": "x" * 65},
        {"validity_days": 0},
        {"validity_days": 10**9},
        {"key_type": "dsa"},
    ):
        with pytest.raises(ValueError, match=r"identifier|length|valid|'dsa'"):
            generate(tmp_path / "inner.key", tmp_path / "inner.crt", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_generate_cleans_up_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, descriptor: int, mode: str) -> None:
            os.close(descriptor)

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *failure: object) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sockgw.keys.open", Full, raising=False)
    with pytest.raises(OSError, match="No space"):
        generate(tmp_path / "inner.key", tmp_path / "inner.crt")
    assert list(tmp_path.iterdir()) == []


def certificate_of(key, *, before: datetime, after: datetime, names: list[str]) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in names])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(before)
        .not_valid_after(after)
        .sign(key, None)
        .public_bytes(Encoding.PEM)
    )


def test_dates() -> None:
    before, after = datetime(2030, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
    pem = certificate_of(KEYS["ed25519"], before=before, after=after, names=["a"])
    public = load_public_key(pem)
    second = timedelta(seconds=1)
    assert public.problem_at(before - second) == (
        "is a certificate that is not valid before 2030-01-01 00:00:00 UTC"
    )
    assert public.problem_at(before) is None
    assert public.problem_at(after) is None
    assert public.problem_at(after + second) == (
        "is a certificate that expired at 2031-01-01 00:00:00 UTC"
    )
    assert load_public_key(public_pem(KEYS["ed25519"])).problem_at(before) is None


def test_certificates_without_common_name() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    pem = certificate_of(KEYS["ed25519"], before=now, after=now, names=[])
    assert load_public_key(pem).common_name is None
    assert "several" in refused_public(pem + pem)
    assert "several" in refused_public(pem + public_pem(KEYS["ed25519"]))
    assert load_public_key(b"Certificate:\n  Data: as x509 -text writes it\r\n" + pem)


def test_certificate_of_a_dsa_key(tmp_path: Path) -> None:
    key = dsa.generate_private_key(1024)
    assert "another type" in refused_private(tmp_path, private_pem(key))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_certificates_raise_nothing_else(data: st.DataObject) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    pem = certificate_of(KEYS["ed25519"], before=now, after=now, names=["office"])
    der = bytearray(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    body = b64encode(bytes(der))
    broken = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % body
    with suppress(UnusableKey):
        load_public_key(broken)


# --- openssl's files


def openssl(directory: Path, *arguments: str, given: bytes = b"") -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("openssl")
    process = subprocess.run(
        ["openssl", *arguments], cwd=directory, input=given, capture_output=True, check=True
    )
    return process.stdout


@pytest.mark.parametrize(
    "make",
    [
        ("genpkey", "-algorithm", "ed25519"),
        ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"),
        ("ecparam", "-name", "prime256v1", "-genkey"),
        ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    ],
    ids=["ed25519", "rsa4096", "ecparam", "p384"],
)
def test_keys_and_certificates_by_openssl(tmp_path: Path, make: tuple[str, ...]) -> None:
    openssl(tmp_path, make[0], "-out", "their.key", *make[1:])
    openssl(tmp_path, "pkey", "-in", "their.key", "-pubout", "-out", "their.pub")
    openssl(
        tmp_path,
        *("req", "-x509", "-new", "-key", "their.key", "-subj", "/O=Example/CN=office"),
        *("-days", "3", "-out", "their.crt"),
    )
    private = load_private_key(tmp_path / "their.key")
    public = load_public_key(tmp_path / "their.pub")
    certificate = load_public_key(tmp_path / "their.crt")
    assert public.common_name is None
    assert certificate.common_name == "office"
    assert certificate.problem_at(datetime.now(UTC) + timedelta(minutes=1)) is None
    assert certificate.problem_at(datetime.now(UTC) + timedelta(days=4)) is not None
    assert private.public_key.fingerprint == public.fingerprint == certificate.fingerprint
    assert certificate.verify(b"message", private.sign(b"message"))
    # What README and docs tell people to compare.
    der = openssl(tmp_path, "pkey", "-pubin", "-in", "their.pub", "-outform", "DER")
    assert sha256(der).digest() == public.fingerprint
    assert load_der_public_key(der)


def test_openssl_takes_ours(tmp_path: Path) -> None:
    generate(tmp_path / "our.key", tmp_path / "our.crt", common_name="office")
    text = openssl(tmp_path, "x509", "-in", "our.crt", "-noout", "-text").decode()
    for expected in ("CN = office", "CA:FALSE", "TLS Web Client Authentication", "ED25519"):
        assert expected in text
    openssl(tmp_path, "verify", "-CAfile", "our.crt", "-purpose", "sslclient", "our.crt")
    openssl(tmp_path, "pkey", "-in", "our.key", "-noout")


def test_openssl_verifies_our_signatures(tmp_path: Path) -> None:
    """The scheme is the one that the documentation names, not only the same at both ends."""
    generate(tmp_path / "our.key", tmp_path / "our.crt", key_type="ec")
    private = load_private_key(tmp_path / "our.key")
    (tmp_path / "rsa.pub").write_bytes(public_pem(KEYS["rsa"]))
    (tmp_path / "rsa.sig").write_bytes(loaded(tmp_path, KEYS["rsa"]).sign(b"message"))
    (tmp_path / "ec.sig").write_bytes(private.sign(b"message"))
    openssl(tmp_path, "pkey", "-in", "our.key", "-pubout", "-out", "ec.pub")
    assert b"OK" in openssl(
        tmp_path,
        *("dgst", "-sha256", "-verify", "ec.pub", "-signature", "ec.sig"),
        given=b"message",
    )
    assert b"OK" in openssl(
        tmp_path,
        *("dgst", "-sha256", "-verify", "rsa.pub", "-signature", "rsa.sig"),
        *("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"),
        given=b"message",
    )
