"""The vendor's Python client, zku, with the C library that is named.

    zku.py LIBRARY CASE

A case takes JSON from standard input, and gives JSON; bytes are in hexadecimal.
"""

import hashlib
import json
import os
import sys
import tempfile
import types


def load(library):
    """zku knows one absolute path, in a module of its own that holds nothing else."""
    settings = types.ModuleType("zymkey.settings")
    settings.ZYMKEY_LIBRARY_PATH = library
    sys.modules["zymkey.settings"] = settings
    import zymkey

    return zymkey


def raises(kind, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind as error:
        return str(error)
    raise AssertionError(f"{call.__name__} didn't raise {kind.__name__}")


def fails(code, call, *arguments, **options):
    text = raises(AssertionError, call, *arguments, **options)
    assert text == f"bad return code {code}", text


def sha256(data):
    return hashlib.sha256(data)


def starts(zymkey, _):
    """The client opens a context while it is imported, or has none."""
    client = zymkey.client
    if client is None:
        assert zymkey.create_new_client() is None
        return None
    # The last function that it looks up in a try that passes over what is missing.
    assert hasattr(client, "_zkGetSupervisedBootFileManifest")
    other = zymkey.create_new_client()
    assert other.get_public_key() == client.get_public_key()
    return {
        "model": client.get_model_number(),
        "serial": client.get_serial_number(),
        "firmware": client.get_firmware_version(),
        "key": client.get_public_key().hex(),
    }


def signs(zymkey, given):
    """Signs `message` with each of `slots`."""
    client, message = zymkey.client, bytes.fromhex(given["message"])
    signed = []
    for slot in given["slots"]:
        signature, recovery_id = client.sign_digest(
            sha256(message), slot=slot, return_recid=True
        )
        assert client.verify_digest(sha256(message), signature, pubkey_slot=slot)
        changed = bytearray(signature)
        changed[17] ^= 1
        for wrong in (changed, signature[:63], bytearray(64)):
            raises(
                zymkey.VerificationError,
                client.verify_digest,
                sha256(message),
                wrong,
                pubkey_slot=slot,
            )
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "public.pem")
            client.create_ecdsa_public_key_file(path, slot)
            with open(path) as file:
                pem = file.read()
        assert client.get_ecdsa_public_key(slot) == client.get_public_key(slot)
        signed.append(
            {
                "key": client.get_public_key(slot).hex(),
                "pem": pem,
                "signature": signature.hex(),
                "recoveryId": recovery_id.value,
            }
        )
    fails(-22, client.sign_digest, sha256(message), slot=9999)
    fails(-22, client.get_public_key, 9999)
    # Text, by the client's own hash.
    signature = client.sign("text")
    assert client.verify_digest(sha256(b"text"), signature)
    return signed


def verifies(zymkey, given):
    """Whether each signature is by its key, which becomes one of the foreign ones."""
    client, verdicts = zymkey.client, []
    for case in given:
        key = bytearray.fromhex(case["key"])
        slot = client.store_foreign_public_key("secp256r1", key)
        assert client.get_public_key(slot, foreign=True) == key
        slots, pool = client.get_slot_alloc_list(foreign=True)
        assert slots == [slot] and pool == 128
        verdicts.append(
            client.verify_digest(
                sha256(bytes.fromhex(case["message"])),
                bytearray.fromhex(case["signature"]),
                raise_exception=False,
                pubkey_slot=slot,
                foreign=True,
            )
        )
        client.remove_key(slot, foreign=True)
    return verdicts


def locks(zymkey, _):
    """Locks and unlocks between memory and files; returns what it locked."""
    client, data = zymkey.client, bytes(range(256))
    with tempfile.TemporaryDirectory() as directory:
        plain, locked, opened = (
            os.path.join(directory, name) for name in ("plain", "locked", "opened")
        )
        with open(plain, "wb") as file:
            file.write(data)

        def content(path):
            with open(path, "rb") as file:
                return file.read()

        for key, other in (("zymkey", "cloud"), ("cloud", "zymkey")):
            blob = client.lock(data, encryption_key=key)
            assert data not in blob
            assert client.unlock(blob, encryption_key=key) == data
            refused = zymkey.VerificationError
            raises(refused, client.unlock, blob, encryption_key=other)
            assert client.unlock(blob, None, other, raise_exception=False) is None
            blob[len(blob) // 2] ^= 1
            raises(refused, client.unlock, blob, encryption_key=key)

            client.lock(plain, locked, encryption_key=key)
            client.unlock(locked, opened, encryption_key=key)
            assert content(opened) == data
            assert client.unlock(locked, encryption_key=key) == data
            client.lock(data, locked, encryption_key=key)
            assert client.unlock(content(locked), encryption_key=key) == data
            blob = client.lock(plain, encryption_key=key)
            client.unlock(blob, opened, encryption_key=key)
            assert content(opened) == data
            fails(-74, client.unlock, locked, opened, encryption_key=other)
        assert client.unlock(client.lock(b"")) == b""
    return client.lock(data).hex()


def locked(zymkey, given):
    """Locks."""
    return zymkey.client.lock(bytes.fromhex(given)).hex()


def unlocks(zymkey, given):
    """The data, or the kind of error."""
    try:
        return zymkey.client.unlock(bytes.fromhex(given)).hex()
    except Exception as error:
        return type(error).__name__


def minor(zymkey, _):
    """What every model has besides."""
    client = zymkey.client
    assert len(client.get_random(1000)) == 1000
    assert client.get_random(32) != client.get_random(32)
    fails(-22, client.get_random, 0)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "random")
        client.create_random_file(path, 77)
        assert os.path.getsize(path) == 77
    client.led_on()
    client.led_flash(100, 100, 3)
    client.led_off()
    client.set_tap_sensitivity(axis="z", pct=75.0)
    client.set_i2c_address(0x30)
    assert [axis.g_force for axis in client.get_accelerometer_data()] == [0, 0, 1]
    raises(zymkey.ZymkeyTimeoutError, client.wait_for_tap, 1)
    raises(zymkey.ZymkeyTimeoutError, client.wait_for_perimeter_event, 1)
    fails(-1, client.lock_binding)
    fails(-1, client.set_perimeter_event_actions, 0, True, True)
    client.set_perimeter_event_actions(0, True, False)
    if any(client.get_perimeter_detect_info()):
        client.wait_for_perimeter_event()
    info = client.get_perimeter_detect_info()
    client.clear_perimeter_detect_info()
    assert client.get_perimeter_detect_info() == [0, 0]
    return {"time": client.get_time(), "precise": client.get_time(True), "perimeter": info}


def slots(zymkey, _):
    """Keys that come and go on the larger models."""
    client = zymkey.client
    own = list(range(12))
    assert client.get_slot_alloc_list() == (own, 512)
    slot = client.gen_key_pair("nistp256")
    assert slot == 16
    assert client.get_slot_alloc_list() == (own + [16], 512)
    signature = client.sign_digest(sha256(b"x"), slot=16)
    assert client.verify_digest(sha256(b"x"), signature, pubkey_slot=16)
    client.remove_key(16)
    assert client.get_slot_alloc_list() == (own, 512)
    fails(-2, client.sign_digest, sha256(b"x"), slot=16)
    fails(-38, client.gen_key_pair, "secp256k1")
    fails(-38, client.gen_ephemeral_key_pair, "nistp256")
    fails(-1, client.disable_public_key_export, 0)
    locked, bound = client.get_current_binding_info()
    assert (bool(locked), bool(bound)) == (False, True)
    return [client.get_batt_volt(), client.get_cpu_temp()]


def lacks(zymkey, _):
    """What the smaller models don't have."""
    client = zymkey.client
    fails(-38, client.get_slot_alloc_list)
    fails(-38, client.gen_key_pair, "nistp256")
    fails(-38, client.remove_key, 0)
    fails(-38, client.get_batt_volt)
    fails(-38, client.get_cpu_temp)
    fails(-38, client.get_public_key, 0, foreign=True)


def sign_codes(zymkey, given):
    """What a number of signatures in a row come to: 0, or what the client raises."""
    codes = []
    for _ in range(given):
        try:
            zymkey.client.sign_digest(sha256(b"x"))
            codes.append(0)
        except AssertionError as error:
            codes.append(int(str(error).rsplit(" ", 1)[1]))
    return codes


def main():
    library, case = sys.argv[1:]
    given = json.load(sys.stdin)
    zymkey = load(library)
    json.dump(globals()[case](zymkey, given), sys.stdout)


main()
