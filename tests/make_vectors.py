#!/usr/bin/env python3
"""Writes tests/vectors/: what every implementation of envelope format 1 must do, mostly what it must refuse.

    make_vectors.py [DIRECTORY]      writes the vectors, always the same bytes, for DIRECTORY (tests/vectors)
    make_vectors.py --judge          tells, as JSON, what envelope.py makes of each committed vector

A vector is one JSON file:

    about       what is special about it
    registered  the device the message came from and the names of its keys, or null: nobody knows the device
    owner       the name of the key it is to be opened with
    message     the message as text, or messageHex as hex; spaces: how many of them follow it
    expect      {"message": reason}: refused as a whole; or {"records": [...]}, for each record one of
                {"refused": reason}
                {"unopened": {"reason", "header"}}                     signed by the device, and cannot be opened
                {"opened": {"header", "contentType", "body"}}          body: as utf8, as hex, or its sha256

keys.json holds the keys. Whoever adds a case adds a function below; nothing of what
must happen is computed, except that this program refuses to write what envelope.py
disagrees with.
"""

import argparse
import dataclasses
import hashlib
import hmac
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import envelope as zk
from envelope import CURVE_ORDER, Header, encrypt, head_of, key_id, seal, sign, wrap

VECTORS = Path(__file__).parent / "vectors"
MALFORMED, SIGNER, SIGNATURE, COPIES = "malformed", "signer-mismatch", "bad-signature", "header-mismatch"
JSON = "application/json"


def seeded(label):
    """A stand-in for os.urandom that always gives the same: for tests only."""
    produced = 0

    def random(length):
        nonlocal produced
        produced += length
        return hashlib.shake_256(b"zk-envelope/1 vectors: " + label.encode()).digest(produced)[-length:]

    return random


def private(name):
    return zk.random_key(seeded(f"key {name}"))


def public(name):
    return private(name).public_key()


OWNERS = [f"owner-{number}" for number in range(1, 10)]
KEY_NAMES = ["device", "device-second", "other-device", *OWNERS]
TIME = zk.text_of_time(1_795_432_844_123)
READING = {"sensor": "28-0000000a0001", "at": TIME, "celsius": 21.437, "quality": "ok"}
BODY = json.dumps({"readings": [READING]}, separators=(",", ":")).encode()
LARGEST_BODY = b"x" * 64_463  # for six owners and a device id of five characters
HEADER = Header(
    kind=1,
    device="pi-01",
    stream=seeded("stream")(16),
    sequence=42,
    boot=seeded("boot")(16),
    monotonic_ms=3_600_000,
    time_ms=1_795_432_844_123,
    clock=2,
    signer=key_id(public("device")),
)

# ---- Building blocks


def sealed(label="one record", body=BODY, content_type=JSON, owners=OWNERS[:1], signer="device", **header):
    header = dataclasses.replace(HEADER, signer=key_id(public(signer)), **header)
    return seal(header, content_type, body, [public(owner) for owner in owners], private(signer), seeded(label))


ONE = sealed()
EIGHT = sealed("eight owners", owners=OWNERS[:8])


def fields(record):
    """The signed bytes field by field, in their order; of several recipients the first is apart."""
    lengths = {"magic": 4, "suite": 1, "kind": 1, "device_length": 1, "device": len(record.header.device), "stream": 16}
    lengths |= {"sequence": 8, "boot": 16, "monotonic": 8, "wall_clock": 8, "clock": 1, "signer": 32, "count": 1}
    lengths |= {"recipient_id": 8, "encapsulated_key": 65, "wrapped_key": 48}
    lengths |= {"more_recipients": 121 * (len(record.recipients) - 1)} if len(record.recipients) > 1 else {}
    lengths |= {"iv": 16, "ciphertext_length": 4, "ciphertext": len(record.ciphertext), "tag": 32}
    parts, rest = {}, record.encrypted_data
    for name, length in lengths.items():
        parts[name], rest = rest[:length], rest[length:]
    assert not rest
    return parts


def changed(record=ONE, **changes):
    """The signed bytes with some fields replaced."""
    parts = fields(record)
    assert changes.keys() <= parts.keys()
    return b"".join({**parts, **changes}.values())


def flip(value, bit=0):
    """One bit changed, counted from the end."""
    return (int.from_bytes(value, "big") ^ 1 << bit).to_bytes(len(value), "big")


def locked(label, plaintext=bytes([len(JSON)]) + JSON.encode() + BODY, padded=None, recipients=None, header=HEADER):
    """The signed bytes of what `seal` would not make. `recipients`: function of data key and ephemeral key."""
    random = seeded(label)
    data_key, iv, ephemeral = random(32), random(16), zk.random_key(random)
    if padded is None:
        padder = padding.PKCS7(128).padder()
        padded = padder.update(plaintext) + padder.finalize()
    wraps = recipients(data_key, ephemeral) if recipients else [wrap(header, public("owner-1"), data_key, ephemeral)]
    return encrypt(head_of(header, wraps), data_key, iv, padded)


def borrowed(label, **header):
    """A record with the data key and the wrap of the one that `locked` makes of this label."""
    encrypted_data = locked(
        label,
        recipients=lambda data_key, ephemeral: [wrap(HEADER, public("owner-1"), data_key, ephemeral)],
        header=dataclasses.replace(HEADER, **header),
    )
    return zk.parse_envelope(encrypted_data, sign(private("device"), encrypted_data))


def outer(encrypted_data, signature, device="pi-01", timestamp=TIME):
    """A message of one record, as a value."""
    data = {"encryptedData": encrypted_data.hex(), "signature": signature.hex()}
    return {"deviceId": device, "timestamp": timestamp, "data": data}


def text(value):
    return json.dumps(value, separators=(",", ":"))


def signed(encrypted_data, device="pi-01", timestamp=TIME, signer="device"):
    """A message of one record under a fresh signature."""
    return outer(encrypted_data, sign(private(signer), encrypted_data), device, timestamp)


def body_json(body):
    if len(body) > 1024:
        return {"sha256": hashlib.sha256(body).hexdigest()}
    try:
        return {"utf8": body.decode()}
    except UnicodeDecodeError:
        return {"hex": body.hex()}


def opened(record, body=BODY, content_type=JSON):
    return {"opened": {"header": zk.header_line(record.header), "contentType": content_type, "body": body_json(body)}}


def unopened(reason, **header):
    return {"unopened": {"reason": reason, "header": zk.header_line(dataclasses.replace(HEADER, **header))}}


def refused(reason):
    return {"refused": reason}


# ---- The set

vectors = {}


def vector(name, about, message, *records, whole=None, registered="pi-01", keys=("device",), owner="owner-1", spaces=0):
    """One file. `message`: bytes, text, a value, or records; `records`: what is expected of each;
    `whole`: why the message is refused as a whole."""
    assert name not in vectors and bool(records) != bool(whole)
    if isinstance(message, zk.Envelope):
        message = [message]
    if isinstance(message, list) and isinstance(message[0], zk.Envelope):
        message = zk.message_of(message).decode()
    if isinstance(message, bytes):
        given = {"messageHex": message.hex()}
    else:
        given = {"message": message if isinstance(message, str) else text(message)}
    vectors[name] = {
        "about": about,
        "registered": registered and {"device": registered, "keys": list(keys)},
        "owner": owner,
        **given,
        **({"spaces": spaces} if spaces else {}),
        "expect": {"message": whole} if whole else {"records": list(records)},
    }


def accepted_vectors():
    def good(name, about, record, body=BODY, content_type=JSON, **more):
        vector(name, about, record, opened(record, body, content_type), **more)
        return record, opened(record, body, content_type)

    batch = [good("one-record", "A reading for one owner. Most other vectors are this one, changed in one place.", ONE)]
    lost = {"stream": HEADER.stream.hex(), "first": 41, "last": 57}
    before = {"stream": seeded("stream before")(16).hex(), "last": 57}
    unset = {"time": "1970-01-01T00:03:25.500Z", "clock": "unknown"}
    for sequence, (name, kind, body) in enumerate(
        (
            ("2-loss-receipt", 2, {"reason": "dropped", "records": 17, "range": lost, "noticedAt": TIME}),
            ("2-loss-receipt-rejected", 2, {"reason": "rejected", "records": 3, "range": None, "noticedAt": TIME}),
            ("3-time-anchor", 3, {"before": unset, "errorMs": 16}),
            ("3-time-anchor-at-start", 3, {"before": None, "errorMs": None}),
            ("4-device-event", 4, {"event": "stream-started", "previous": before}),
            ("4-device-event-first", 4, {"event": "stream-started", "previous": None}),
            ("4-device-event-perimeter", 4, {"event": "perimeter-broken", "circuit": 0, "at": "2026-11-23T11:20:44.000Z"}),
            ("4-device-event-battery", 4, {"event": "battery-low", "millivolts": 2410}),
            ("4-device-event-binding", 4, {"event": "binding-changed", "bound": True, "locked": False}),
            ("4-device-event-recovered", 4, {"event": "module-recovered", "outageMs": 52_000}),
            ("5-heartbeat", 5, {"intervalMs": 300_000, "waiting": 0, "waitingBytes": 0, "sensors": 3}),
        ),
        start=43,
    ):
        body = text(body).encode()
        record = sealed(name, body=body, kind=kind, sequence=sequence)
        batch.append(good(f"kind-{name}", f"A record of kind {kind}.", record, body))
    records, expected = zip(*batch)
    vector("batch", "Twelve records of one device in one message.", list(records), *expected)
    about = "Makers send the oldest first; nobody refuses another order."
    vector("batch-newest-first", about, list(records[::-1]), *expected[::-1])
    about = "Repeats are for the store to notice, not for the verifier."
    vector("batch-with-a-repeated-record", about, [ONE, ONE], opened(ONE), opened(ONE))
    epoch = [borrowed("epoch"), borrowed("epoch", sequence=43), borrowed("epoch", sequence=44, monotonic_ms=3_600_001)]
    vector("batch-of-one-epoch", "Three records with the same data key.", epoch, *map(opened, epoch))
    vector("batch-of-one", "A batch may be of one.", zk.message_of([ONE], batch=True).decode(), opened(ONE))

    good("eight-owners", "As many as there may be; the last one opens it.", EIGHT, owner="owner-8")
    about = "The device has two registered keys; the signer says which one it is."
    good("second-of-two-keys", about, sealed("2nd key", signer="device-second"), keys=("device", "device-second"))
    for device in ("_", "AZaz09_-" * 8):
        record = sealed(f"device {device}", device=device)
        good(f"device-id-of-{len(device)}", "A device id of this length.", record, registered=device)
    most = {"sequence": 2**64 - 1, "monotonic_ms": 2**64 - 1, "time_ms": zk.MAX_TIME, "clock": 3}
    good("highest-numbers", "All numbers of the header as high as they get.", sealed("highest", **most))
    least = {"sequence": 1, "monotonic_ms": 0, "time_ms": 0, "clock": 0}
    good("lowest-numbers", "All numbers of the header as low as they get.", sealed("lowest", **least))

    printable = "".join(chr(0x20 + n % 95) for n in range(255))
    for name, about, body, content_type in (
        ("empty-body", "A content type and no body.", b"", JSON),
        ("body-that-is-not-text", "Any bytes may be a body.", bytes(range(256)), "application/octet-stream"),
        ("body-that-fills-its-block", "The plaintext has 48 bytes: a whole block of padding follows.", b"x" * 31, JSON),
        ("shortest-content-type", "The content type is one character, a space.", b"x", " "),
        ("longest-content-type", "The content type has 255 characters, each there is.", b"x", printable),
    ):
        good(name, about, sealed(name, body=body, content_type=content_type), body, content_type)
    largest = sealed("largest", body=LARGEST_BODY, owners=OWNERS[:6])
    assert len(largest.encrypted_data) == zk.MAX_ENCRYPTED_DATA
    good("largest-record", "65,376 signed bytes, as many as there may be.", largest, LARGEST_BODY)

    value = outer(ONE.encrypted_data, ONE.signature)
    plain, hexed, signature = text(value), ONE.encrypted_data.hex(), ONE.signature.hex()
    about = "Filled with white space to 131,072 bytes, as many as there may be."
    vector("largest-message", about, plain, opened(ONE), spaces=zk.MAX_MESSAGE - len(plain))
    data = f'{{ "signature":"{signature}",\n"encryptedData" :\r"{hexed}" }} '
    shuffled = f'\r\n{{\t"data" : {data},"timestamp":"{TIME}", "deviceId" : "pi-01" }}\n '
    vector("members-in-any-order", "The order of members and white space are free.", shuffled, opened(ONE))
    escaped = plain.replace("deviceId", "device\\u0049d").replace("pi-01", "p\\u0069-01").replace("data", "d\\u0061ta")
    vector("escapes-in-strings", "JSON lets any character be written as an escape.", escaped, opened(ONE))
    s = int.from_bytes(ONE.signature[32:], "big")
    for name, choose in {"low": min, "high": max}.items():
        either = ONE.signature[:32] + choose(s, CURVE_ORDER - s).to_bytes(32, "big")
        about = f"The {name} of the two values of s; both are right."
        vector(f"signature-with-{name}-s", about, outer(ONE.encrypted_data, either), opened(ONE))


def message_vectors():
    """Not the JSON of this format."""
    value = outer(ONE.encrypted_data, ONE.signature)
    record = {"timestamp": TIME, "data": value["data"]}
    batch = {"deviceId": "pi-01", "batch": [record, record]}
    plain, hexed, signature = text(value), ONE.encrypted_data.hex(), ONE.signature.hex()

    def bad(name, about, message):
        vector(name, about, message, whole=MALFORMED)

    def in_data(**members):
        return {**value, "data": {**value["data"], **members}}

    def in_batch(*second):
        return {"deviceId": "pi-01", "batch": [record, *second]}

    for where, place, wrap_up in (
        ("message", value, lambda changed: changed),
        ("batch", record, in_batch),
        ("data", value["data"], lambda changed: {**value, "data": changed}),
    ):
        bad(f"unknown-member-in-{where}", "A member that is not in the format.", wrap_up({**place, "note": "x"}))
        for name in place:
            without = {other: place[other] for other in place if other != name}
            bad(f"missing-{name}-in-{where}", f"There is no {name}.", wrap_up(without))
            bad(f"null-{name}-in-{where}", f"{name} is null.", wrap_up({**place, name: None}))
    bad("missing-device-id-in-message-of-batch", "There is no deviceId.", {"batch": [record]})
    bad("null-batch", "A message whose batch is null.", {"deviceId": "pi-01", "batch": None})
    bad("null-batch-beside-a-record", "A message of one record, with a batch of null.", {**value, "batch": None})
    bad("null-data-beside-a-batch", "A batch, with data of null.", {**batch, "data": None})
    bad("null-record-in-batch", "A null in the batch.", in_batch(None))
    bad("null-message", "The message is null.", "null")

    twice = plain.replace("{", '{"deviceId":"pi-01",', 1)
    bad("repeated-member-in-message", "deviceId twice, with the same value.", twice)
    twice = plain.replace("{", '{"device\\u0049d":"pi-02",', 1)
    bad("repeated-member-by-escape", "deviceId twice, once spelled with an escape.", twice)
    twice = text(batch).replace("[{", f'[{{"timestamp":"{TIME}",')
    bad("repeated-member-in-batch", "A record of the batch has its timestamp twice.", twice)
    twice = plain.replace('"data":{', f'"data":{{"signature":"{signature}",')
    bad("repeated-member-in-data", "The signature twice, with the same value.", twice)
    bad("repeated-batch", "Two batches.", text(batch).replace("{", '{"batch":[],', 1))

    about = "The members' values in an array in place of an object."
    bad("array-for-message", about, list(value.values()))
    bad("array-for-record-in-batch", about, in_batch(list(record.values())))
    bad("array-for-data", about, {**value, "data": list(value["data"].values())})
    bad("array-of-messages", "A message in an array.", [value])
    bad("array-for-encrypted-data", "Numbers in place of hex.", in_data(encryptedData=list(ONE.encrypted_data)))
    bad("object-for-batch", "One record where the list should be.", {**batch, "batch": record})
    bad("number-for-timestamp", "Milliseconds in place of text.", {**value, "timestamp": HEADER.time_ms})
    bad("number-for-device-id", "A number in place of text.", {**value, "deviceId": 1})
    bad("empty-batch", "A batch holds at least one record.", {**batch, "batch": []})
    bad("batch-and-data", "Both forms in one message.", {**value, **batch})
    bad("batch-and-timestamp", "A batch with a timestamp of its own.", {**batch, "timestamp": TIME})
    bad("member-names-in-lower-case", "Names of members are exact.", plain.replace("deviceId", "deviceid"))

    bad("upper-case-hex-in-encrypted-data", "Hex is lower-case.", in_data(encryptedData=hexed.upper()))
    bad("upper-case-hex-in-signature", "Hex is lower-case.", in_data(signature=signature.upper()))
    bad("hex-with-a-digit-missing", "Two digits a byte.", in_data(encryptedData=hexed[:-1]))
    bad("hex-with-prefix", "0x before the digits.", in_data(encryptedData="0x" + hexed))
    bad("hex-with-white-space", "A line feed after the digits.", in_data(encryptedData=hexed + "\n"))
    bad("hex-with-wide-digits", "Digits that are not ASCII.", in_data(signature=signature.replace("0", "\uff10")))
    second = {"timestamp": TIME, "data": {"encryptedData": "0g", "signature": signature}}
    bad("hex-wrong-in-the-second-of-two", "Hex is the message's: one bad digit refuses it all.", in_batch(second))
    bad("signature-of-63-bytes", "A signature has 64 bytes.", in_data(signature=signature[:-2]))
    bad("signature-of-65-bytes", "A signature has 64 bytes.", in_data(signature=signature + "00"))
    bad("signature-empty", "A signature has 64 bytes.", in_data(signature=""))
    der = zk.encode_dss_signature(int(signature[:64], 16), int(signature[64:], 16))
    bad("signature-in-der", "ASN.1 in place of two numbers.", in_data(signature=der.hex()))

    bad("message-then-x", "An x after the closing brace.", plain + "x")
    bad("message-then-nul", "A NUL after the closing brace.", plain + "\0")
    bad("message-then-message", "The same message again on the next line.", plain + "\n" + plain)
    bad("message-cut-off", "The closing brace is missing.", plain[:-1])
    bad("message-empty", "No bytes.", "")
    bad("message-of-white-space", "Nothing but spaces.", "  ")
    bad("message-not-json", "Text that is not JSON.", "hello")
    bad("message-with-a-comma-too-many", "A comma before the closing brace.", plain[:-1] + ",}")
    bad("message-with-a-comment", "JSON has no comments.", plain + "// done")
    bad("message-in-single-quotes", "JSON has no single quotes.", plain.replace('"', "'"))
    deep = plain.replace(f'"{TIME}"', "[" * 1000 + "]" * 1000)
    bad("message-nested-deeply", "A thousand arrays in each other.", deep)
    bad("message-with-byte-order-mark", "JSON in UTF-8 begins without one.", b"\xef\xbb\xbf" + plain.encode())
    bad("message-in-utf-16", "JSON is in UTF-8.", plain.encode("utf-16-le"))
    bad("message-not-utf-8", "A byte that is never part of UTF-8.", plain.replace("pi-01", "\xff").encode("latin-1"))
    half = plain.replace("pi-01", "\\ud800")
    bad("device-id-with-half-a-character", "An escape of half a surrogate pair is no Unicode text.", half)
    longer = "\u00e9" * 32 + "x"
    about = "65 bytes of UTF-8: one more than any signed device id has."
    bad("copied-device-of-65-bytes", about, {**value, "deviceId": longer})
    about = "A timestamp of 65 bytes."
    bad("copied-time-of-65-bytes", about, {**value, "timestamp": TIME.ljust(65)})
    second = {**record, "timestamp": TIME.ljust(65)}
    bad("copied-time-of-65-bytes-in-batch", "The second timestamp has 65 bytes.", in_batch(second))
    raw = plain.replace("pi-01", "pi-01\n")
    bad("device-id-with-raw-line-feed", "Control characters in JSON strings are escaped.", raw)

    about, spaces = "131,073 bytes, one too many; the last ones are spaces.", zk.MAX_MESSAGE + 1 - len(plain)
    vector("message-too-large", about, plain, whole="too-large", spaces=spaces)
    about = "The size comes first, nobody reads the rest."
    vector("message-too-large-and-malformed", about, "{", whole="too-large", spaces=zk.MAX_MESSAGE)


def record_vectors():
    """The signed bytes break a rule, under a good signature."""

    def bad(name, about, encrypted_data, reason=MALFORMED, device="pi-01"):
        vector(name, about, signed(encrypted_data, device), refused(reason), registered=device)

    position = 0
    for name, value in fields(ONE).items():
        spoken = name.replace("_", " ")
        bad(f"cut-before-{spoken}".replace(" ", "-"), f"Nothing from the {spoken} on.", ONE.encrypted_data[:position])
        position += len(value)
    bad("cut-inside-tag", "The last byte is missing.", ONE.encrypted_data[:-1])
    bad("bytes-after-the-tag", "One byte too many.", ONE.encrypted_data + b"\0")

    version = "unsupported-version"
    bad("magic-of-a-later-version", "ZKE2.", changed(magic=b"ZKE2"), version)
    bad("magic-of-something-else", "As gzip begins.", changed(magic=b"\x1f\x8b\x08\x00"), version)
    bad("magic-of-a-later-version-and-no-more", "Without a suite it is no version.", b"ZKE2")
    bad("suite-0", "There is no suite 0.", changed(suite=b"\0"), version)
    bad("suite-2", "Version 1 knows suite 1 only.", changed(suite=b"\2"), version)
    bad("suite-2-and-no-more", "What follows another suite is not ours to judge.", b"ZKE1\2", version)
    for kind in (0, 6, 255):
        bad(f"kind-{kind}", "Kinds are 1 to 5.", changed(kind=bytes([kind])))
    for clock in (4, 255):
        bad(f"clock-quality-{clock}", "Clock qualities are 0 to 3.", changed(clock=bytes([clock])))
    bad("sequence-0", "Sequence numbers begin at 1.", changed(sequence=bytes(8)))
    bad("wall-clock-one-too-high", "The year 10000.", changed(wall_clock=(zk.MAX_TIME + 1).to_bytes(8, "big")))
    bad("wall-clock-all-ones", "Far beyond the year 9999.", changed(wall_clock=b"\xff" * 8))
    for name, device in (
        ("empty", b""),
        ("of-65", b"p" * 65),
        ("of-255", b"p" * 255),
        ("with-dot", b"pi.01"),
        ("with-slash", b"pi/01"),
        ("with-space", b"pi 01"),
        ("with-nul", b"pi-01\0"),
        ("with-line-feed", b"pi-01\n"),
        ("not-ascii", "pí-01".encode()),
        ("not-utf-8", b"pi-\xff1"),
    ):
        about = "A device id has 1 to 64 of A-Z a-z 0-9 _ -."
        bad(f"device-id-{name}", about, changed(device_length=bytes([len(device)]), device=device))

    def recipients(name, about, owners):
        def wraps(data_key, ephemeral):
            others = (ephemeral, *(private(f"ephemeral {number}") for number in range(8)))
            return [wrap(HEADER, public(owner), data_key, each) for owner, each in zip(owners, others)]

        bad(f"recipients-{name}", about, locked(f"recipients {name}", recipients=wraps))

    recipients("none", "A record for nobody.", [])
    recipients("nine", "One more than there may be, all of them real.", OWNERS)
    recipients("doubled", "The same owner twice, with two wraps.", ["owner-1", "owner-1"])
    parts = fields(EIGHT)
    first = {name: parts[name] for name in ("recipient_id", "encapsulated_key", "wrapped_key")}
    rest = [parts["more_recipients"][at : at + 121] for at in range(0, 7 * 121, 121)]
    swapped = b"".join([*rest[:3], rest[4], rest[3], *rest[5:]])
    bad("recipients-unsorted", "Two neighbours have changed places.", changed(EIGHT, more_recipients=swapped))
    same = b"".join([*first.values(), *rest[:6]])
    bad("recipients-with-the-same-bytes", "The first one twice.", changed(EIGHT, more_recipients=same))
    bad("recipients-fewer-than-said", "Two are announced, one is there.", changed(count=b"\2"))
    bad("recipients-more-than-said", "Seven are announced, eight are there.", changed(EIGHT, count=b"\7"))

    for length in (0, 8, 120):
        about = "The ciphertext has a multiple of 16 bytes, at least 16."
        cut = {"ciphertext_length": length.to_bytes(4, "big"), "ciphertext": ONE.ciphertext[:length]}
        bad(f"ciphertext-of-{length}", about, changed(**cut))
    for name, length in (("too-long", 144), ("too-short", 112), ("near-4-gib", 2**32 - 16)):
        about = "The length does not fit what follows."
        bad(f"ciphertext-length-{name}", about, changed(ciphertext_length=length.to_bytes(4, "big")))

    header = dataclasses.replace(HEADER, device="pi-001")
    large = locked(
        "too large",
        plaintext=bytes([len(JSON)]) + JSON.encode() + LARGEST_BODY,
        recipients=lambda data_key, ephemeral: [wrap(header, public(o), data_key, ephemeral) for o in OWNERS[:6]],
        header=header,
    )
    assert len(large) == zk.MAX_ENCRYPTED_DATA + 1
    about = "65,377 signed bytes, one too many, in a message that is not too large."
    bad("record-too-large", about, large, "too-large", device="pi-001")


def signature_vectors():
    """The registered key did not make this signature over these bytes."""
    data, r, s = ONE.encrypted_data, ONE.signature[:32], ONE.signature[32:]
    second = key_id(public("device-second"))

    def bad(name, about, data, signature=ONE.signature, reason=SIGNATURE, registered="pi-01", timestamp=TIME, **more):
        message = outer(data, signature, registered, timestamp)
        vector(name, about, message, refused(reason), registered=registered, **more)

    for name, value, more in (
        ("kind", b"\5", {}),
        ("device", b"pi-02", {"registered": "pi-02"}),
        ("stream", flip(HEADER.stream), {}),
        ("sequence", (43).to_bytes(8, "big"), {}),
        ("boot", flip(HEADER.boot), {}),
        ("monotonic", bytes(8), {}),
        ("wall_clock", bytes(8), {"timestamp": zk.text_of_time(0)}),
        ("clock", b"\3", {}),
        ("signer", second, {"keys": ("device", "device-second")}),
        ("recipient_id", key_id(public("owner-2"))[:8], {}),
        ("encapsulated_key", zk.point(public("owner-2")), {}),
        ("wrapped_key", flip(fields(ONE)["wrapped_key"]), {}),
        ("iv", flip(ONE.iv), {}),
        ("ciphertext", flip(ONE.ciphertext, 400), {}),
        ("tag", flip(ONE.tag), {}),
    ):
        spoken = name.replace("_", " ")
        about = f"The {spoken} changed after signing."
        bad(f"changed-{spoken}".replace(" ", "-"), about, changed(**{name: value}), **more)
    about = "The device id changed after signing, and is not the sender's."
    bad("changed-device-not-the-sender", about, changed(device=b"pi-02"), reason="principal-mismatch")

    bad("signature-r-changed", "One bit of r.", data, flip(r) + s)
    bad("signature-s-changed", "One bit of s.", data, r + flip(s))
    bad("signature-halves-swapped", "s before r.", data, s + r)
    zero, order, ones = bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"\xff" * 32
    for name, signature in (
        ("r-is-0", zero + s),
        ("s-is-0", r + zero),
        ("r-is-the-order", order + s),
        ("s-is-the-order", r + order),
        ("r-is-above-the-order", ones + s),
        ("s-is-above-the-order", r + ones),
        ("all-zeros", zero + zero),
        ("all-ones", ones + ones),
    ):
        bad(f"signature-{name}", "r and s are 1 to n - 1.", data, signature)
    about = "A good signature of the same key, over another record."
    bad("signature-of-another-record", about, data, sealed("another", sequence=43).signature)
    about = "Another key signed the same bytes, which name the registered one."
    bad("signature-of-another-device", about, data, sign(private("other-device"), data))
    about = "The signature is over the bytes, not over their hex."
    bad("signature-over-the-hex", about, data, sign(private("device"), data.hex().encode()))
    about = "The bytes are hashed once, not twice."
    bad("signature-over-the-digest", about, data, sign(private("device"), hashlib.sha256(data).digest()))

    other = sealed("other device", signer="other-device")
    about = "Sealed and signed by another key, all right but for the registry."
    bad("signer-not-registered", about, other.encrypted_data, other.signature, SIGNER)
    about = "The signer changed after signing, to a key that is not registered."
    bad("signer-changed", about, changed(signer=second), reason=SIGNER)
    retold = changed(signer=key_id(public("other-device")))
    about = "The registered key signed a record that names another one."
    bad("signer-of-another-device", about, retold, sign(private("device"), retold), SIGNER)
    vector("sender-unknown", "Nobody has registered the sender.", ONE, whole="unknown-device", registered=None)
    about = "A good record, sent by another registered device."
    vector("sender-another", about, ONE, refused("principal-mismatch"), registered="pi-02", keys=("other-device",))


def copy_vectors():
    """The routing copies are not the signed values; and batches with one bad record."""
    for name, about, device in (
        ("another", "deviceId is not the signed one.", "pi-02"),
        ("in-upper-case", "deviceId is the signed one but for its case.", "PI-01"),
        ("with-space", "deviceId has a space too many.", "pi-01 "),
        ("empty", "deviceId is empty.", ""),
        ("not-ascii", "deviceId is no device id at all.", "pi-01\u00e9"),
        ("of-64-bytes", "As long as the parser takes, in UTF-8.", "\u00e9" * 32),
    ):
        message = outer(ONE.encrypted_data, ONE.signature, device=device)
        vector(f"copied-device-{name}", about, message, refused(COPIES))
    even = sealed("time of whole seconds", time_ms=HEADER.time_ms // 1000 * 1000)
    for name, about, timestamp, record in (
        ("another", "timestamp is not the signed one.", zk.text_of_time(HEADER.time_ms + 1), ONE),
        ("without-fraction", "The same instant, without milliseconds.", "2026-11-23T11:20:44Z", even),
        ("with-two-digits", "The same instant, with too few digits.", "2026-11-23T11:20:44.00Z", even),
        ("with-microseconds", "The same instant, with too many digits.", "2026-11-23T11:20:44.123000Z", ONE),
        ("with-offset", "The same instant, with an offset in place of Z.", "2026-11-23T11:20:44.123+00:00", ONE),
        ("of-another-zone", "The same instant, an hour east.", "2026-11-23T12:20:44.123+01:00", ONE),
        ("in-lower-case", "The same instant, with t and z.", "2026-11-23t11:20:44.123z", ONE),
        ("with-space", "The same instant, with a space in place of T.", "2026-11-23 11:20:44.123Z", ONE),
        ("in-milliseconds", "The same instant, as a number in a string.", "1795432844123", ONE),
        ("empty", "No time at all.", "", ONE),
        ("of-64-bytes", "As long as the parser takes.", TIME.ljust(64), ONE),
    ):
        message = outer(record.encrypted_data, record.signature, timestamp=timestamp)
        vector(f"copied-time-{name}", about, message, refused(COPIES))

    two, fine = sealed("another", sequence=43), opened(ONE)
    broken = dataclasses.replace(two, signature=ONE.signature)
    about = "One bad record does not spoil its batch."
    vector("batch-with-one-bad-signature", about, [ONE, broken, ONE], fine, refused(SIGNATURE), fine)
    foreign, about = sealed("foreign", device="pi-02"), "A batch is of one device."
    vector("batch-of-two-devices", about, [ONE, foreign], fine, refused("principal-mismatch"))
    cut = dataclasses.replace(two, encrypted_data=two.encrypted_data[:-1])
    newer = dataclasses.replace(two, encrypted_data=b"ZKE2" + two.encrypted_data[4:])
    about, expected = (
        "The signed bytes are judged one by one.",
        (fine, refused(MALFORMED), refused("unsupported-version")),
    )
    vector("batch-with-malformed-signed-bytes", about, [ONE, cut, newer], *expected)
    batch = json.loads(zk.message_of([ONE, two]))
    batch["batch"][1]["timestamp"] = zk.text_of_time(0)
    vector("batch-with-one-wrong-time", "Copies are judged one by one.", batch, fine, refused(COPIES))


def unopened_vectors():
    """Signed by the registered device, so accepted and stored, but not to be opened."""
    other_signer = key_id(public("device-second"))

    def closed(name, about, encrypted_data, by="device", **header):
        """`header`: how it differs from the usual one."""
        expected = dataclasses.replace(HEADER, **header)
        message = signed(encrypted_data, expected.device, zk.text_of_time(expected.time_ms), by)
        keys = dict.fromkeys(["device", by])
        vector(name, about, message, unopened("undecryptable", **header), registered=expected.device, keys=keys)

    for name, record in {"one": ONE, "eight": EIGHT}.items():
        about = "Opened with a key it is not for."
        vector(f"owner-not-among-{name}", about, record, unopened("not-a-recipient"), owner="owner-9")

    for name, field, value, header in (
        ("kind", "kind", b"\5", {"kind": 5}),
        ("device", "device", b"pi-02", {"device": "pi-02"}),
        ("stream", "stream", flip(HEADER.stream), {"stream": flip(HEADER.stream)}),
        ("sequence", "sequence", (43).to_bytes(8, "big"), {"sequence": 43}),
        ("boot", "boot", flip(HEADER.boot), {"boot": flip(HEADER.boot)}),
        ("monotonic", "monotonic", bytes(8), {"monotonic_ms": 0}),
        ("wall-clock", "wall_clock", bytes(8), {"time_ms": 0}),
        ("clock", "clock", b"\3", {"clock": 3}),
        ("encapsulated-key", "encapsulated_key", zk.point(public("owner-2")), {}),
        ("wrapped-key", "wrapped_key", flip(fields(ONE)["wrapped_key"], 200), {}),
        ("wrapped-key-tag", "wrapped_key", flip(fields(ONE)["wrapped_key"]), {}),
        ("iv", "iv", flip(ONE.iv), {}),
        ("ciphertext", "ciphertext", flip(ONE.ciphertext, 1000), {}),
        ("last-block", "ciphertext", flip(ONE.ciphertext, 128), {}),
        ("tag", "tag", flip(ONE.tag), {}),
    ):
        about = f"The {name.replace('-', ' ')} changed and signed again, by who has the key to sign but no other."
        closed(f"signed-again-{name}", about, changed(**{field: value}), **header)
    about = "The device's second key signs what was sealed for the first, and names itself."
    closed("signed-again-signer", about, changed(signer=other_signer), by="device-second", signer=other_signer)
    fewer = changed(EIGHT, count=b"\7", more_recipients=fields(EIGHT)["more_recipients"][:-121])
    closed("signed-again-recipients", "The last of eight recipients left out, and signed again.", fewer)
    shorter = changed(ciphertext_length=(112).to_bytes(4, "big"), ciphertext=ONE.ciphertext[:112])
    closed("signed-again-ciphertext-length", "The last block left out, and signed again.", shorter)

    owner, other = public("owner-1"), public("owner-2")

    def wrapped(name, about, make):
        """Everything fits but what the wrap was made for."""

        def recipients(data_key, ephemeral):
            return [key_id(owner)[:8] + make(data_key, ephemeral)[-113:]]

        closed(f"wrap-{name}", about, locked(f"wrap {name}", recipients=recipients))

    for name, header in (
        ("device", {"device": "pi-02"}),
        ("stream", {"stream": flip(HEADER.stream)}),
        ("signer", {"signer": key_id(public("other-device"))}),
    ):
        header = dataclasses.replace(HEADER, **header)
        about = f"The data key is wrapped for another {name}."
        wrapped(f"for-another-{name}", about, lambda *keys, header=header: wrap(header, owner, *keys))
    about = "The data key is wrapped for another owner, under this one's id."
    wrapped("for-another-owner", about, lambda *keys: wrap(HEADER, other, *keys))
    about = "The tag of the wrap itself is wrong; the key in it is right."
    wrapped("with-another-tag", about, lambda *keys: flip(wrap(HEADER, owner, *keys)))
    info = zk.wrap_info(HEADER, key_id(owner))
    for name, about, told in (
        ("told-another-owner", "The info names another owner; the key is right.", info[:-32] + key_id(other)),
        ("told-another-suite", "The info names another suite.", info.replace(b"\0\1", b"\0\2", 1)),
        ("told-nothing", "The info is empty.", b""),
    ):
        wrapped(name, about, lambda data_key, each, told=told: zk.hpke_seal(owner, told, data_key, each))

    first, second = borrowed("borrowed"), borrowed("borrowed", stream=flip(HEADER.stream))
    about = "The second has the data key and the wrap of the first, which is of another stream."
    expected = opened(first), unopened("undecryptable", stream=flip(HEADER.stream))
    vector("batch-with-a-borrowed-wrap", about, [first, second], *expected)

    encapsulated = fields(ONE)["encapsulated_key"]
    for name, about, value in (
        ("not-on-the-curve", "is no point of P-256", b"\4" + bytes(31) + b"\1" + bytes(31) + b"\1"),
        ("not-reduced", "has coordinates above the prime", b"\4" + b"\xff" * 64),
        ("compressed", "begins like a compressed point", b"\2" + encapsulated[1:]),
        ("hybrid", "begins like a hybrid point", bytes([6 + encapsulated[-1] % 2]) + encapsulated[1:]),
        ("zero", "is nothing but zeros", bytes(65)),
    ):
        about = f"The encapsulated key {about}. Others' may be right, so the record is not refused."
        closed(f"encapsulated-key-{name}", about, changed(encapsulated_key=value))

    for name, padded in (
        ("of-0", b"\1xbody" + bytes(10)),
        ("of-17", b"\1x" + b"y" * 13 + b"\x11" * 17),
        ("of-32", b"\x20" * 16),
        ("of-255", b"\1x" + b"y" * 13 + b"\xff"),
        ("uneven", b"\1xbody" + b"\x0a" * 8 + b"\x0b\x0a"),
    ):
        closed(f"padding-{name}", "The tag fits, the padding does not.", locked(f"padding {name}", padded=padded))
    for name, plaintext in (
        ("length-0", b"\0" + BODY),
        ("length-beyond-the-end", b"\x11" + JSON.encode()),
        ("length-and-no-more", b"\5"),
        ("no-length", b""),
        ("with-tab", b"\3a\tbbody"),
        ("with-del", b"\3a\x7fbbody"),
        ("with-line-feed", b"\3ab\nbody"),
        ("not-ascii", b"\3a\xc3\xa9body"),
    ):
        about = "The tag fits, the content type is none."
        closed(f"content-type-{name}", about, locked(f"content type {name}", plaintext=plaintext))

    random = seeded("tag without the head")
    data_key, iv = random(32), random(16)
    head = head_of(HEADER, [wrap(HEADER, owner, data_key, zk.random_key(random))])
    tagged = encrypt(head, data_key, iv, b"\1xyz" + b"\x0c" * 12)[:-32]
    tag = hmac.digest(zk.message_keys(data_key, head)[1], tagged[len(head) :], "sha256")
    closed("tag-without-the-head", "The tag is over IV, length and ciphertext only.", tagged + tag)


def keys_json():
    keys = {
        name: {"private": f"{private(name).private_numbers().private_value:064x}", "spki": zk.spki(public(name)).hex()}
        for name in KEY_NAMES
    }
    about = "TEST KEYS, published: never use them for anything else. P-256; the scalar, and the SPKI in DER, in hex."
    return {"about": about, "keys": keys}


def outcome(given, keys):
    """What envelope.py makes of a vector, in the shape of `expect`."""
    message = bytes.fromhex(given["messageHex"]) if "messageHex" in given else given["message"].encode()
    message += b" " * given.get("spaces", 0)
    registered = given["registered"]
    if registered is None:
        return {"message": "unknown-device"}
    device_keys = [serialization.load_der_public_key(bytes.fromhex(keys[name]["spki"])) for name in registered["keys"]]
    owner = ec.derive_private_key(int(keys[given["owner"]]["private"], 16), zk.CURVE)
    try:
        envelopes = zk.judge(message, registered["device"], device_keys)
    except zk.Refused as refusal:
        return {"message": refusal.reason}
    records = []
    for each in envelopes:
        if isinstance(each, zk.Refused):
            records.append({"refused": each.reason})
            continue
        try:
            content_type, body = zk.open_envelope(each, owner)
        except zk.Refused as refusal:
            records.append({"unopened": {"reason": refusal.reason, "header": zk.header_line(each.header)}})
        else:
            records.append(opened(each, body, content_type))
    return {"records": records}


def write(directory):
    accepted_vectors()
    message_vectors()
    record_vectors()
    signature_vectors()
    copy_vectors()
    unopened_vectors()
    keys = keys_json()
    directory.mkdir(parents=True, exist_ok=True)
    status = 0
    for name, value in {"keys": keys, **vectors}.items():
        if name != "keys" and (found := outcome(value, keys["keys"])) != value["expect"]:
            print(f"{name}: expected {text(value['expect'])}, envelope.py says {text(found)}", file=sys.stderr)
            status = 1
            continue
        (directory / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    return status


def judge():
    keys = json.loads((VECTORS / "keys.json").read_text())["keys"]
    files = [path for path in sorted(VECTORS.glob("*.json")) if path.name != "keys.json"]
    print(json.dumps({path.stem: outcome(json.loads(path.read_text()), keys) for path in files}, indent=1))
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=VECTORS)
    parser.add_argument("--judge", action="store_true", help="judge the committed vectors instead")
    options = parser.parse_args()
    return judge() if options.judge else write(options.directory)


if __name__ == "__main__":
    sys.exit(main())
