"""The rule by which the original project's Lambda function took a message: one
verification, by python-ecdsa, of the signature over the bytes of encryptedData.

    lambda_rule.py DEVICE-CERTIFICATE < MESSAGES

Messages of one record, one a line. Says "good" or "bad" of each, a line each.
"""

import hashlib
import json
import sys

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from ecdsa import NIST256p, BadSignatureError, VerifyingKey


def key_of(certificate):
    """The one thing for which python-ecdsa needs help."""
    public = x509.load_pem_x509_certificate(certificate).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return VerifyingKey.from_string(point, curve=NIST256p)


def main():
    with open(sys.argv[1], "rb") as file:
        key = key_of(file.read())
    for line in sys.stdin:
        data = json.loads(line)["data"]
        encrypted_data, signature = (bytes.fromhex(data[name]) for name in ("encryptedData", "signature"))
        try:
            key.verify(signature, encrypted_data, hashfunc=hashlib.sha256)
            print("good")
        except BadSignatureError:
            print("bad")


if __name__ == "__main__":
    main()
