"""Certificates for tests of the server's side, as PEM, in the layouts of ACME clients."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

__all__ = ["Maker"]


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name):
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pem(thing):
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(Encoding.PEM)
    return thing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Maker:
    """An authority, with an intermediate one by which everything is signed."""

    def __init__(self):
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._sign(
            "root", self.root_key, self.root_key, _name("root"), ca=True, identified=False
        )
        self.middle_key = ec.generate_private_key(ec.SECP256R1())
        self.middle = self._sign("middle", self.middle_key, self.root_key, self.root.subject, True)

    def issue(self, *names, days=90.0, age=1.0, key=None):
        """Return key, chain (PEM, two certificates); valid since ``age`` days for ``days``."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        leaf = self._sign(
            "leaf", key, self.middle_key, self.middle.subject, False, names, days=days, age=age
        )
        return pem(key), pem(leaf) + pem(self.middle)

    def _sign(
        self, subject, key, by, issuer, ca=False, names=(), *, days=90.0, age=1.0, identified=True
    ):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=age))
            .not_valid_after(now - timedelta(days=age) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        if ca:
            usage = dict.fromkeys(
                (
                    *("digital_signature", "content_commitment", "key_encipherment"),
                    *("data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
                ),
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True
            )
        if identified:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False
            )
        if names:
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
            builder = builder.add_extension(alternatives, False)
        return builder.sign(by, SHA256())

    # ------------------------------------------------------------------ as ACME clients write

    def certbot(self, directory: Path, name: str, *names, issued=None, number=1):
        """``directory`` is /etc/letsencrypt; returns the live directory."""
        key, chain = issued or self.issue(*(names or (name,)))
        archive, live = directory / "archive" / name, directory / "live" / name
        for each in (archive, live):
            each.mkdir(parents=True, exist_ok=True)
        (directory / "live" / "README").write_text("This directory contains your keys\n")
        leaf, end = chain.partition(b"-----END CERTIFICATE-----\n")[:2]
        content = {
            "cert": leaf + end,
            "privkey": key,
            "chain": pem(self.middle),
            "fullchain": chain,
        }
        (live / "README").write_text("This directory contains your keys and certificates.\n")
        for stem, data in content.items():
            (archive / f"{stem}{number}.pem").write_bytes(data)
            link = live / f"{stem}.pem"
            # As certbot does it: for a moment it is not there.
            link.unlink(missing_ok=True)
            link.symlink_to(f"../../archive/{name}/{stem}{number}.pem")
        return live

    def lego(self, directory: Path, name: str, *names, issued=None):
        """``directory`` is .lego/certificates."""
        key, chain = issued or self.issue(*(names or (name,)))
        directory.mkdir(parents=True, exist_ok=True)
        stem = name.replace("*", "_")
        (directory / f"{stem}.crt").write_bytes(chain)
        (directory / f"{stem}.issuer.crt").write_bytes(pem(self.middle))
        (directory / f"{stem}.json").write_text("{}")
        (directory / f"{stem}.key").write_bytes(key)

    def acme_sh(self, directory: Path, name: str, *names, issued=None, ending="_ecc"):
        """``directory`` is ~/.acme.sh."""
        key, chain = issued or self.issue(*(names or (name,)))
        own = directory / f"{name}{ending}"
        own.mkdir(parents=True, exist_ok=True)
        (own / f"{name}.cer").write_bytes(chain.partition(b"\n-----BEGIN CERT")[0] + b"\n")
        (own / "fullchain.cer").write_bytes(chain)
        (own / "ca.cer").write_bytes(pem(self.middle))
        (own / f"{name}.key").write_bytes(key)
        (own / f"{name}.conf").write_text(f"Le_Domain='{name}'\n")
        (own / f"{name}.csr").write_text("\n")
        (directory / "dnsapi").mkdir(exist_ok=True)
        (directory / "account.conf").write_text("\n")
        (directory / "acme.sh").write_text("#!/usr/bin/env sh\n")
