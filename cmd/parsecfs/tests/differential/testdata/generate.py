"""Makes keys, certificates and requests with Python's cryptography: a JSON object a line."""
import base64
import datetime
import json
import warnings

warnings.simplefilter("ignore")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as s
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x448, x25519
from cryptography.x509.oid import NameOID


def put(name, kind, b):
    print(json.dumps({"name": "cryptography " + name, "kind": kind, "data": base64.b64encode(b).decode()}))


def word(value):
    return str(value).rsplit(".", 1)[-1].strip("'>")


keys = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "rsa-1024": rsa.generate_private_key(65537, 1024),
    "rsa-e3": rsa.generate_private_key(3, 2048),
    "dsa": dsa.generate_private_key(1024),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
    "x25519": x25519.X25519PrivateKey.generate(),
    "x448": x448.X448PrivateKey.generate(),
}
for curve in (ec.SECP192R1, ec.SECP224R1, ec.SECP256R1, ec.SECP384R1, ec.SECP521R1, ec.SECP256K1, ec.BrainpoolP256R1, ec.BrainpoolP384R1):
    keys[curve.name] = ec.generate_private_key(curve())
try:
    from cryptography.hazmat.primitives.asymmetric import mldsa, mlkem

    keys["ml-dsa-44"] = mldsa.MLDSA44PrivateKey.generate()
    keys["ml-dsa-65"] = mldsa.MLDSA65PrivateKey.generate()
    keys["ml-kem-768"] = mlkem.MLKEM768PrivateKey.generate()
except Exception:
    pass

for name, key in keys.items():
    for form in (s.PrivateFormat.PKCS8, s.PrivateFormat.TraditionalOpenSSL, s.PrivateFormat.OpenSSH):
        for encoding in (s.Encoding.PEM, s.Encoding.DER):
            try:
                put(f"{name} {word(form)} {word(encoding)}", "private", key.private_bytes(encoding, form, s.NoEncryption()))
            except Exception:
                pass
    try:
        put(f"{name} encrypted", "private", key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")))
    except Exception:
        pass
    for form in (s.PublicFormat.SubjectPublicKeyInfo, s.PublicFormat.PKCS1):
        for encoding in (s.Encoding.PEM, s.Encoding.DER):
            try:
                put(f"{name} {word(form)} {word(encoding)}", "public", key.public_key().public_bytes(encoding, form))
            except Exception:
                pass

now = datetime.datetime(2026, 1, 1)
for name in ("rsa", "secp256r1", "ed25519", "secp256k1"):
    key = keys[name]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "König"), x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=3650))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.RFC822Name("a@b.example")]), False)
    cert = builder.sign(key, None if name == "ed25519" else hashes.SHA256())
    put(f"{name} certificate PEM", "certificate", cert.public_bytes(s.Encoding.PEM))
