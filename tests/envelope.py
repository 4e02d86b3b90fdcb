#!/usr/bin/env python3
"""Telemetry envelopes, format version 1: verify, open and make them.

Written from docs/envelope-format.md alone, with the standard library and the
package `cryptography` (pip install cryptography); the section numbers below are
those of that page. Copy what you need.

    import envelope
    for outcome in envelope.judge(message, "pi-01", [device_public_key]):
        if isinstance(outcome, envelope.Refused):
            print(outcome.reason)
        else:
            content_type, body = envelope.open_envelope(outcome, owner_private_key)

What it does not do: keep track of sequence numbers, so it does not notice
replays or gaps; and keep a data key for an epoch, so each record sealed here has
one of its own.
"""

import argparse
import hashlib
import hmac
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256

MAGIC, SUITE = b"ZKE1", 1
MAX_MESSAGE, MAX_ENCRYPTED_DATA, MAX_TIME = 131_072, 65_376, 253_402_300_799_999
KINDS = {1: "data", 2: "loss-receipt", 3: "time-anchor", 4: "device-event", 5: "heartbeat"}
CLOCKS = {0: "unknown", 1: "free-running", 2: "synchronised", 3: "hardware-clock"}
CURVE, CURVE_ORDER = ec.SECP256R1(), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Refused(Exception):
    """A message, a record or an opening is refused: `reason` is for programs, `detail` for people."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Entry:
    """One record of a message, before its signed bytes are parsed."""

    timestamp: str
    encrypted_data: bytes
    signature: bytes


@dataclass(frozen=True)
class Header:
    """What everybody can read of a record, all of it signed."""

    kind: int
    device: str
    stream: bytes
    sequence: int
    boot: bytes
    monotonic_ms: int
    time_ms: int
    clock: int
    signer: bytes


@dataclass(frozen=True)
class Envelope:
    """The parsed signed bytes. Nothing of it is proven before `verify`."""

    header: Header
    recipients: dict  # recipient id -> (encapsulated key, wrapped data key)
    head: bytes
    iv: bytes
    ciphertext: bytes
    tag: bytes
    encrypted_data: bytes
    signature: bytes


# ---- 1. The message


def parse_message(message):
    """Bytes of JSON -> (device id, [Entry]). Refuses with `too-large` or `malformed`."""
    if len(message) > MAX_MESSAGE:
        raise Refused("too-large", f"the message has {len(message)} bytes, {MAX_MESSAGE} are allowed")
    try:
        value = json.loads(message.decode("utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise Refused("malformed", f"not JSON in UTF-8: {error}") from None
    if isinstance(value, dict) and "batch" in value:
        device, batch = _members(value, "deviceId", "batch")
        if not isinstance(batch, list) or not batch:
            raise Refused("malformed", "batch is not a list of at least one record")
        records = [_members(record, "timestamp", "data") for record in batch]
    else:
        device, *record = _members(value, "deviceId", "timestamp", "data")
        records = [record]
    entries = []
    for timestamp, data in records:
        encrypted_data, signature = _members(data, "encryptedData", "signature")
        entries.append(Entry(_text(timestamp), _bytes_of_hex(encrypted_data), _bytes_of_hex(signature)))
        if len(entries[-1].signature) != 64:
            raise Refused("malformed", "a signature has 128 digits of hex")
    return _text(device), entries


def _without_repetition(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused("malformed", "a member occurs twice")
    return members


def _members(value, *names):
    if not isinstance(value, dict) or set(value) != set(names):
        raise Refused("malformed", f"not an object with exactly the members {', '.join(names)}")
    return [value[name] for name in names]


def _text(value):
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise Refused("malformed", "deviceId and timestamp are Unicode text")
    if len(value.encode()) > 64:
        raise Refused("malformed", "deviceId and timestamp have at most 64 bytes")
    return value


def _bytes_of_hex(value):
    if not isinstance(value, str) or not re.fullmatch(r"([0-9a-f]{2})*", value):
        raise Refused("malformed", "encryptedData and signature are lower-case hex")
    return bytes.fromhex(value)


def message_of(envelopes, batch=None):
    """The JSON message of sealed records; `batch` defaults to whether there are several."""
    records = [
        {
            "timestamp": text_of_time(e.header.time_ms),
            "data": {"encryptedData": e.encrypted_data.hex(), "signature": e.signature.hex()},
        }
        for e in envelopes
    ]
    rest = {"batch": records} if (len(records) > 1 if batch is None else batch) else records[0]
    return json.dumps({"deviceId": envelopes[0].header.device, **rest}, separators=(",", ":")).encode()


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def text_of_time(milliseconds):
    """Milliseconds since 1970 -> `YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    return (EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- 2. The signed bytes


def parse_envelope(encrypted_data, signature):
    """The signed bytes -> Envelope. Refuses with `too-large`, `unsupported-version` or `malformed`."""
    rest = encrypted_data

    def take(length, what):
        nonlocal rest
        if len(rest) < length:
            raise Refused("malformed", f"cut off in the {what}")
        taken, rest = rest[:length], rest[length:]
        return taken

    def number(length, what, allowed):
        value = int.from_bytes(take(length, what), "big")
        if value not in allowed:
            raise Refused("malformed", f"the {what} is {value}")
        return value

    if len(encrypted_data) > MAX_ENCRYPTED_DATA:
        raise Refused("too-large", f"the record has {len(encrypted_data)} bytes, {MAX_ENCRYPTED_DATA} are allowed")
    if (take(4, "magic"), take(1, "suite")) != (MAGIC, bytes([SUITE])):
        raise Refused("unsupported-version", "another magic or suite than that of version 1")
    kind = number(1, "kind", KINDS)
    device = take(number(1, "length of the device id", range(1, 65)), "device id")
    if not re.fullmatch(rb"[A-Za-z0-9_-]+", device):
        raise Refused("malformed", "the device id has other characters than A-Z a-z 0-9 _ -")
    header = Header(
        kind=kind,
        device=device.decode(),
        stream=take(16, "stream id"),
        sequence=number(8, "sequence number", range(1, 2**64)),
        boot=take(16, "boot id"),
        monotonic_ms=number(8, "monotonic time", range(2**64)),
        time_ms=number(8, "wall clock", range(MAX_TIME + 1)),
        clock=number(1, "clock quality", CLOCKS),
        signer=take(32, "signer"),
    )
    count = number(1, "number of recipients", range(1, 9))
    entries = [(take(8, "recipient id"), (take(65, "encapsulated key"), take(48, "wrapped key"))) for _ in range(count)]
    ids = [recipient for recipient, _ in entries]
    if any(a >= b for a, b in zip(ids, ids[1:])):
        raise Refused("malformed", "the recipients are not in ascending order")
    head = encrypted_data[: len(encrypted_data) - len(rest)]
    iv = take(16, "IV")
    length = number(4, "length of the ciphertext", range(16, 2**32, 16))
    ciphertext, tag = take(length, "ciphertext"), take(32, "tag")
    if rest:
        raise Refused("malformed", "bytes after the tag")
    return Envelope(header, dict(entries), head, iv, ciphertext, tag, encrypted_data, signature)


def spki(public_key):
    """SubjectPublicKeyInfo of a key, in DER."""
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(public_key):
    """SHA-256 of the SPKI: names a signer; its first 8 bytes name a recipient."""
    return hashlib.sha256(spki(public_key)).digest()


# ---- 5. Order of work


def verify(envelope, device_key):
    """Returns if `device_key` signed it. Refuses with `signer-mismatch` or `bad-signature`."""
    if key_id(device_key) != envelope.header.signer:
        raise Refused("signer-mismatch", "the record names another key")
    r, s = (int.from_bytes(half, "big") for half in (envelope.signature[:32], envelope.signature[32:]))
    try:
        device_key.verify(encode_dss_signature(r, s), envelope.encrypted_data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise Refused("bad-signature", "this key did not make this signature over these bytes") from None


def judge(message, device, device_keys):
    """A message from the registered `device` -> for each record a verified Envelope, or the Refused.

    Raises Refused if the message is refused as a whole. `device` may be None: any that has one of these keys.
    """
    outer_device, entries = parse_message(message)
    keys = {key_id(key): key for key in device_keys}
    outcomes = []
    for entry in entries:
        try:
            envelope = parse_envelope(entry.encrypted_data, entry.signature)
            header = envelope.header
            if device not in (None, header.device):
                raise Refused("principal-mismatch", f"a record of {header.device}, sent by {device}")
            if header.signer not in keys:
                raise Refused("signer-mismatch", "the record does not name a registered key")
            verify(envelope, keys[header.signer])
            if (outer_device, entry.timestamp) != (header.device, text_of_time(header.time_ms)):
                raise Refused("header-mismatch", "deviceId or timestamp is not the signed one")
            outcomes.append(envelope)
        except Refused as refusal:
            outcomes.append(refusal)
    return outcomes


def open_envelope(envelope, owner_key):
    """A verified Envelope -> (content type, body). Refuses with `not-a-recipient` or `undecryptable`."""
    owner_id = key_id(owner_key.public_key())
    if owner_id[:8] not in envelope.recipients:
        raise Refused("not-a-recipient", "the record is not for this owner")
    enc, wrapped = envelope.recipients[owner_id[:8]]
    info = wrap_info(envelope.header, owner_id)
    try:
        data_key = hpke_open(enc, owner_key, info, wrapped)
        k_enc, k_mac = message_keys(data_key, envelope.head)
        if not hmac.compare_digest(envelope.tag, hmac.digest(k_mac, envelope.encrypted_data[:-32], "sha256")):
            raise ValueError
        decryptor = Cipher(algorithms.AES256(k_enc), modes.CBC(envelope.iv)).decryptor()
        unpadder = padding.PKCS7(128).unpadder()
        padded = decryptor.update(envelope.ciphertext) + decryptor.finalize()
        plaintext = unpadder.update(padded) + unpadder.finalize()
        content_type, body = plaintext[1 : 1 + plaintext[0]], plaintext[1 + plaintext[0] :]
        if len(content_type) != plaintext[0] or not re.fullmatch(rb"[ -~]+", content_type):
            raise ValueError
    except (ValueError, IndexError, InvalidTag):
        raise Refused("undecryptable", "not made for this owner's key, or changed") from None
    return content_type.decode(), body


# ---- 4. Keys, encryption, tag


def wrap_info(header, owner_id):
    device = header.device.encode()
    label = b"zk-envelope/1 data key\0" + bytes([SUITE, len(device)])
    return label + device + header.stream + header.signer + owner_id


def message_keys(data_key, head):
    prk = hkdf_extract(b"zk-envelope/1 message", data_key)
    okm = hkdf_expand(prk, head, 64)
    return okm[:32], okm[32:]


def hkdf_extract(salt, ikm):
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def hkdf_expand(prk, info, length):
    okm, block = b"", b""
    while len(okm) < length:
        block = hmac.digest(prk, block + info + bytes([len(okm) // 32 + 1]), "sha256")
        okm += block
    return okm[:length]


# ---- HPKE base mode, single shot, empty aad (RFC 9180): DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM


def hpke_seal(owner_public, info, plaintext, ephemeral):
    """-> encapsulated key (65) ‖ ciphertext ‖ GCM tag (16). `ephemeral`: a new private key for each call."""
    enc = point(ephemeral.public_key())
    key, nonce = _hpke_context(ephemeral.exchange(ec.ECDH(), owner_public), enc, point(owner_public), info)
    return enc + AESGCM(key).encrypt(nonce, plaintext, None)


def hpke_open(enc, owner_private, info, ciphertext):
    """Raises ValueError if `enc` is no point of the curve, InvalidTag if anything else is wrong."""
    shared = owner_private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(CURVE, enc))
    key, nonce = _hpke_context(shared, enc, point(owner_private.public_key()), info)
    return AESGCM(key).decrypt(nonce, ciphertext, None)


def point(public_key):
    """A public key as an uncompressed point: 04 ‖ X ‖ Y."""
    return public_key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def _hpke_context(shared, enc, recipient, info):
    kem, suite = b"KEM" + bytes.fromhex("0010"), b"HPKE" + bytes.fromhex("0010 0001 0002")

    def extract(suite_id, salt, label, ikm):
        return hkdf_extract(salt, b"HPKE-v1" + suite_id + label + ikm)

    def expand(suite_id, prk, label, info, length):
        return hkdf_expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info, length)

    # section 4.1, ExtractAndExpand; section 5.1, KeySchedule in mode 0 without psk
    shared_secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", enc + recipient, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared_secret, b"secret", b"")
    return expand(suite, secret, b"key", context, 32), expand(suite, secret, b"base_nonce", context, 12)


# ---- Making


def seal(header, content_type, body, owners, device_key, random=os.urandom):
    """Encrypts for 1 to 8 public keys, then signs with `device_key`; gives the Envelope back as parsed.

    `header.signer` must be the key_id of `device_key`. `random(n)` gives n secret bytes.
    """
    if not re.fullmatch(r"[ -~]{1,255}", content_type):
        raise ValueError("a content type has 1 to 255 characters of printable ASCII")
    data_key, iv = random(32), random(16)
    head = head_of(header, [wrap(header, owner, data_key, random_key(random)) for owner in owners])
    padder = padding.PKCS7(128).padder()
    padded = padder.update(bytes([len(content_type)]) + content_type.encode() + body) + padder.finalize()
    encrypted_data = encrypt(head, data_key, iv, padded)
    sealed = parse_envelope(encrypted_data, sign(device_key, encrypted_data))
    verify(sealed, device_key.public_key())
    return sealed


def wrap(header, owner, data_key, ephemeral):
    """-> one recipient of the head."""
    owner_id = key_id(owner)
    return owner_id[:8] + hpke_seal(owner, wrap_info(header, owner_id), data_key, ephemeral)


def head_of(header, recipients):
    device = header.device.encode("ascii")
    fields = [
        MAGIC + bytes([SUITE, header.kind, len(device)]) + device,
        header.stream + header.sequence.to_bytes(8, "big"),
        header.boot + header.monotonic_ms.to_bytes(8, "big"),
        header.time_ms.to_bytes(8, "big") + bytes([header.clock]),
        header.signer + bytes([len(recipients)]),
        *sorted(recipients),
    ]
    return b"".join(fields)


def encrypt(head, data_key, iv, padded):
    """-> the signed bytes."""
    k_enc, k_mac = message_keys(data_key, head)
    encryptor = Cipher(algorithms.AES256(k_enc), modes.CBC(iv)).encryptor()
    ciphertext = encryptor.update(padded) + encryptor.finalize()
    tagged = head + iv + len(ciphertext).to_bytes(4, "big") + ciphertext
    return tagged + hmac.digest(k_mac, tagged, "sha256")


def sign(device_key, encrypted_data):
    """-> r (32) ‖ s (32)."""
    der = device_key.sign(encrypted_data, ec.ECDSA(SHA256(), deterministic_signing=True))
    return b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(der))


def random_key(random):
    scalar = 0
    while not 1 <= scalar < CURVE_ORDER:
        scalar = int.from_bytes(random(32), "big")
    return ec.derive_private_key(scalar, CURVE)


# ---- Command line


def main(arguments=None):
    options = command_line().parse_args(arguments)
    try:
        return options.run(options)
    except (Refused, OSError, ValueError, OverflowError) as error:
        print(error, file=sys.stderr)
        return 1


def open_command(options):
    devices = [public_key(path) for path in options.device_key]
    owner = private_key(options.owner_key, options.passphrase_file)
    message = sys.stdin.buffer.read(MAX_MESSAGE + 1)
    status = 0
    for place, outcome in enumerate(judge(message, options.device, devices), 1):
        try:
            if isinstance(outcome, Refused):
                raise outcome
            content_type, body = open_envelope(outcome, owner)
        except Refused as refusal:
            print(f"record {place}: {refusal}", file=sys.stderr)
            status = 1
            continue
        print(json.dumps({**header_line(outcome.header), "contentType": content_type, **body_line(body)}))
    return status


def header_line(header):
    return {
        "kind": KINDS[header.kind],
        "deviceId": header.device,
        "stream": header.stream.hex(),
        "sequence": header.sequence,
        "boot": header.boot.hex(),
        "monotonicMs": header.monotonic_ms,
        "timestamp": text_of_time(header.time_ms),
        "clock": CLOCKS[header.clock],
        "signer": header.signer.hex(),
    }


def body_line(body):
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"bodyHex": body.hex()}


def seal_command(options):
    signing_key = private_key(options.signing_key, options.passphrase_file)
    header = Header(
        kind={name: number for number, name in KINDS.items()}[options.kind],
        device=options.device,
        stream=options.stream,
        sequence=options.sequence,
        boot=options.boot,
        monotonic_ms=options.monotonic_ms,
        time_ms=options.time_ms,
        clock={name: number for number, name in CLOCKS.items()}[options.clock],
        signer=key_id(signing_key.public_key()),
    )
    owners = [public_key(path) for path in options.owner]
    sealed = seal(header, options.content_type, sys.stdin.buffer.read(), owners, signing_key)
    print(message_of([sealed]).decode())
    return 0


def public_key(path):
    return p256_key(path, serialization.load_pem_public_key)


def private_key(path, passphrase_file):
    passphrase = None
    if passphrase_file:
        with open(passphrase_file, "rb") as file:
            passphrase = file.readline().rstrip(b"\r\n")
    return p256_key(path, serialization.load_pem_private_key, passphrase)


def p256_key(path, load, *passphrase):
    with open(path, "rb") as file:
        pem = file.read()
    try:
        key = load(pem, *passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: passphrase missing, or needless
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(getattr(key, "curve", None), ec.SECP256R1):
        raise ValueError(f"{path}: not a P-256 key")
    return key


def command_line():
    parser = argparse.ArgumentParser(
        description="Open and make telemetry envelopes, format version 1.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
examples:
  openssl ecparam -name prime256v1 -genkey -noout -out device.pem
  openssl ec -in device.pem -pubout -out device.pub.pem
  openssl ecparam -name prime256v1 -genkey -noout -out owner.pem
  openssl ec -in owner.pem -pubout -out owner.pub.pem

  echo '{"readings":[]}' | envelope.py seal --device pi-01 --signing-key device.pem \\
      --owner owner.pub.pem > message.json
  envelope.py open --device-key device.pub.pem --owner-key owner.pem < message.json

The exit status is 0 if everything was sealed or opened, 1 if something was
refused; standard error then says what and why, a line each.
""",
    )
    commands = parser.add_subparsers(required=True, metavar="open|seal")

    opener = commands.add_parser("open", help="verify and open a message, one line of JSON per record")
    opener.set_defaults(run=open_command)
    opener.add_argument("--device", help="the device it must be from (default: any that has this key)")
    opener.add_argument(
        "--device-key", metavar="PEM", required=True, action="append", help="its public key; repeatable"
    )
    opener.add_argument("--owner-key", metavar="PEM", required=True, help="the owner's private key")
    opener.add_argument("--passphrase-file", metavar="FILE", help="its first line is the passphrase of the owner's key")

    sealer = commands.add_parser("seal", help="seal standard input into a message of one record")
    sealer.set_defaults(run=seal_command)
    sealer.add_argument("--device", required=True, help="the device id")
    sealer.add_argument("--signing-key", metavar="PEM", required=True, help="the device's private key")
    sealer.add_argument("--passphrase-file", metavar="FILE", help="its first line is the passphrase of the signing key")
    sealer.add_argument(
        "--owner", metavar="PEM", required=True, action="append", help="public key; repeatable, up to 8"
    )
    sealer.add_argument("--kind", choices=KINDS.values(), default="data")
    sealer.add_argument("--content-type", default="application/json")
    sealer.add_argument("--stream", metavar="HEX", type=_sixteen_bytes, default=os.urandom(16), help="default: random")
    sealer.add_argument("--sequence", metavar="N", type=int, default=1)
    sealer.add_argument("--boot", metavar="HEX", type=_sixteen_bytes, default=os.urandom(16), help="default: random")
    sealer.add_argument("--monotonic-ms", metavar="N", type=int, default=time.monotonic_ns() // 1_000_000)
    sealer.add_argument("--time-ms", metavar="N", type=int, default=time.time_ns() // 1_000_000, help="default: now")
    sealer.add_argument("--clock", choices=CLOCKS.values(), default="unknown")
    return parser


def _sixteen_bytes(text):
    value = bytes.fromhex(text)
    if len(value) != 16:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main())
