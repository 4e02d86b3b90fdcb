//! Each function, by its C prototype.

use std::ffi::{c_char, c_int};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::ptr;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{
    Chip, Context, EBADMSG, EFBIG, EINVAL, ENOENT, ENOSYS, EPERM, ETIMEDOUT, room, verifying_key,
};
use p256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use p256::elliptic_curve::scalar::IsHigh;
use p256::pkcs8::DecodePublicKey;
use sha2::{Digest, Sha256};
use signature::hazmat::PrehashVerifier;
use zk_hsm_sim::{Model, Settings, Unlock};

const MODELS: [Model; 3] = [Model::Zymkey4i, Model::Hsm4, Model::Hsm6];

/// What the vendor's client looks up: those without which it doesn't start, then
/// the others.
const FUNCTIONS: &str = "
    zkOpen zkClose zkLEDOn zkLEDOff zkLEDFlash zkGetRandBytes zkCreateRandDataFile zkLockDataF2F
    zkLockDataB2F zkLockDataF2B zkLockDataB2B zkUnlockDataF2F zkUnlockDataB2F zkUnlockDataF2B
    zkUnlockDataB2B zkGenECDSASigFromDigest zkGenECDSASigFromDigestWithRecID
    zkVerifyECDSASigFromDigest zkGetECDSAPubKey zkSaveECDSAPubKey2File zkSetI2CAddr
    zkSetTapSensitivity zkGetTime zkWaitForTap zkGetAccelerometerData zkWaitForPerimeterEvent
    zkGetPerimeterDetectInfo zkClearPerimeterDetectEvents zkSetPerimeterEventAction
    zkGetModelNumberString zkGetFirmwareVersionString zkGetSerialNumberString

    zkVerifyECDSASigFromDigestWithForeignKeySlot zkStoreForeignPubKey zkDisablePubKeyExport
    zkGenKeyPair zkGenEphemeralKeyPair zkRemoveKey zkInvalidateEphemeralKey zkDoRawECDH
    zkDoRawECDHWithIntPeerPubkey zkDoECDHAndKDF zkDoECDHAndKDFWithIntPeerPubkey
    zkGenWalletMasterSeedWithBIP39 zkGenWalletMasterSeedWithSLIP39 zkSetSLIP39GroupInfo
    zkAddSLIP39MemberPassword zkCancelSLIP39Session zkGenOversightWallet
    zkRestoreWalletMasterSeedFromBIP39Mnemonic zkAddRestoreSLIP39Mnemonic
    zkRestoreWalletMasterSeedFromSLIP39 zkGenWalletChildKey zkGetWalletNodeAddrFromKeySlot
    zkGetWalletKeySlotFromNodeAddr zkGetAllocSlotsList zkExportPubKey2File zkExportPubKey
    zkLockBinding zkGetCurrentBindingInfo zkGetCPUTemp zkGetAUXTemp zkGetRTCDrift
    zkGetBatteryVoltage zkSetDigitalPerimeterDetectLPPeriod zkSetDigitalPerimeterDetectLPMaxBits
    zkSetDigitalPerimeterDetectDelays zkSetBatteryVoltageAction zkSetBatteryVoltageThreshold
    zkSetCPUTempAction zkSetCPULowTempThreshold zkSetCPUHighTempThreshold
    zkSetSupervisedBootPolicy zkAddOrUpdateSupervisedBootFile zkRemoveSupervisedBootFile
    zkGetSupervisedBootFileManifest";

fn digest(text: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn is_high(signature: &[u8]) -> bool {
    let signature = Signature::from_slice(signature).unwrap();
    signature.s().is_high().into()
}

#[test]
fn it_exports_the_vendors_functions_and_its_own_mark() {
    let room = room(Model::Zymkey4i);
    let module = room.load();
    let functions: Vec<_> = FUNCTIONS.split_whitespace().collect();
    assert_eq!(functions.len(), 76);
    for function in functions {
        assert!(module.has(function), "{function}");
    }
    assert!(!module.has("zkSelfDestruct"));
    let version = concat!("zk-hsm-sim ", env!("CARGO_PKG_VERSION"));
    assert_eq!(module.version(), version);
}

#[test]
fn functions_of_no_model_say_so_and_only_to_a_context() {
    let room = room(Model::Hsm6);
    let chip = room.chip();
    // All their other arguments are NULL and 0.
    type F = extern "C" fn(
        Context,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
    ) -> c_int;
    let unsupported = "zkGenEphemeralKeyPair zkInvalidateEphemeralKey zkDoRawECDH
        zkDoRawECDHWithIntPeerPubkey zkDoECDHAndKDF zkDoECDHAndKDFWithIntPeerPubkey
        zkGenWalletMasterSeedWithBIP39 zkGenWalletMasterSeedWithSLIP39 zkSetSLIP39GroupInfo
        zkAddSLIP39MemberPassword zkCancelSLIP39Session zkGenOversightWallet
        zkRestoreWalletMasterSeedFromBIP39Mnemonic zkAddRestoreSLIP39Mnemonic
        zkRestoreWalletMasterSeedFromSLIP39 zkGenWalletChildKey zkGetWalletNodeAddrFromKeySlot
        zkGetWalletKeySlotFromNodeAddr zkGetAUXTemp zkGetRTCDrift
        zkSetDigitalPerimeterDetectLPPeriod zkSetDigitalPerimeterDetectLPMaxBits
        zkSetDigitalPerimeterDetectDelays zkSetBatteryVoltageAction zkSetBatteryVoltageThreshold
        zkSetCPUTempAction zkSetCPULowTempThreshold zkSetCPUHighTempThreshold
        zkSetSupervisedBootPolicy zkAddOrUpdateSupervisedBootFile zkRemoveSupervisedBootFile
        zkGetSupervisedBootFileManifest";
    for name in unsupported.split_whitespace() {
        let function = chip.module.function::<F>(name);
        let call = |context| function(context, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        assert_eq!(call(chip.context()), ENOSYS, "{name}");
        assert_eq!(call(ptr::null_mut()), EINVAL, "{name}");
    }
}

#[test]
fn every_string_says_simulator() {
    for (model, name) in [
        (Model::Zymkey4i, "Zymkey 4i SIMULATOR (zk-hsm-sim)"),
        (Model::Hsm4, "HSM4 SIMULATOR (zk-hsm-sim)"),
        (Model::Hsm6, "HSM6 SIMULATOR (zk-hsm-sim)"),
    ] {
        let mut settings = Settings::from(model);
        settings.serial = Some("17".to_owned());
        let room = room(settings);
        let chip = room.chip();
        let text = |name| chip.text(name).unwrap().unwrap();
        assert_eq!(text("zkGetModelNumberString"), name);
        assert_eq!(text("zkGetSerialNumberString"), "SIMULATOR-17");
        assert!(text("zkGetFirmwareVersionString").starts_with("SIMULATOR-"));
    }
}

#[test]
fn what_a_slot_signs_its_public_key_verifies() {
    for model in MODELS {
        let room = room(model);
        let chip = room.chip();
        let last = i32::try_from(model.key_pairs()).unwrap() - 1;
        let digest = digest("a reading");
        for slot in [0, 1, last] {
            let key = chip.verifying_key(slot);
            let signature = chip.sign(&digest, slot).unwrap();
            let parsed = Signature::from_slice(&signature).unwrap();
            key.verify_prehash(&digest, &parsed).unwrap();

            assert_eq!(chip.verify(&digest, slot, &signature), Ok(1));
            assert_eq!(chip.verify(&digest, (slot + 1) % 3, &signature), Ok(0));
            assert_eq!(chip.verify(&[7; 32], slot, &signature), Ok(0));
            let mut changed = signature.clone();
            changed[40] ^= 4;
            assert_eq!(chip.verify(&digest, slot, &changed), Ok(0));
            // no signature at all
            assert_eq!(chip.verify(&digest, slot, &signature[1..]), Ok(0));
            assert_eq!(chip.verify(&digest, slot, &[]), Ok(0));
            assert_eq!(chip.verify(&digest, slot, &[0; 64]), Ok(0));
        }
        for slot in [last + 1, -1, i32::MIN, i32::MAX] {
            assert_eq!(chip.sign(&digest, slot), Err(EINVAL));
            assert_eq!(chip.sign_recoverable(&digest, slot), Err(EINVAL));
            assert_eq!(chip.public_key(slot), Err(EINVAL));
            assert_eq!(chip.export_public_key(slot, false), Err(EINVAL));
            assert_eq!(chip.verify(&digest, slot, &[1; 64]), Err(EINVAL));
        }
    }
}

#[test]
fn signatures_are_random_and_s_is_as_it_comes() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    let digest = digest("a reading");
    let mut signatures: Vec<_> = (0..64).map(|_| chip.sign(&digest, 0).unwrap()).collect();
    // Wrong once in 2^63 times.
    assert!(signatures.iter().any(|signature| is_high(signature)));
    assert!(!signatures.iter().all(|signature| is_high(signature)));
    signatures.sort();
    signatures.dedup();
    assert_eq!(signatures.len(), 64);
}

#[test]
fn the_recovery_id_recovers_the_key() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    let key = chip.verifying_key(2);
    let mut seen = [false; 2];
    for n in 0..64_u8 {
        let digest = digest([n]);
        let (signature, id) = chip.sign_recoverable(&digest, 2).unwrap();
        seen[usize::from(id)] = true;
        let signature = Signature::from_slice(&signature).unwrap();
        let id = RecoveryId::from_byte(id).unwrap();
        let recovered = VerifyingKey::recover_from_prehash(&digest, &signature, id).unwrap();
        assert_eq!(recovered, key);
    }
    assert_eq!(seen, [true; 2]);
}

#[test]
fn public_keys_are_the_same_by_every_way() {
    for model in MODELS {
        let room = room(model);
        let chip = room.chip();
        let raw = chip.public_key(1).unwrap();
        assert_ne!(raw, chip.public_key(0).unwrap());
        assert_eq!(chip.export_public_key(1, false).unwrap(), raw);
        let path = room.dir.path().join("public.pem");
        chip.save_public_key(&path, 1).unwrap();
        let pem = fs::read_to_string(&path).unwrap();
        let key = VerifyingKey::from_public_key_pem(&pem).unwrap();
        assert_eq!(key, verifying_key(&raw));
        fs::remove_file(&path).unwrap();
        chip.export_public_key_to(&path, 1, false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), pem);
        assert_eq!(chip.save_public_key("public.pem".as_ref(), 1), Err(EINVAL));
        let nowhere = room.dir.path().join("nowhere/public.pem");
        assert_eq!(chip.save_public_key(&nowhere, 1), Err(ENOENT));
    }
}

#[test]
fn what_was_locked_is_unlocked_by_either_convention() {
    for (unlock, success, failure) in [
        (Unlock::Client, 1, Ok((None, 0))),
        (Unlock::Header, 0, Err(EBADMSG)),
    ] {
        let mut settings = Settings::from(Model::Zymkey4i);
        settings.unlock = unlock;
        let room = room(settings);
        let chip = room.chip();
        let big = vec![7; 128 * 1024];
        for data in [&b""[..], b"x", b"a passphrase", &big] {
            for shared in [false, true] {
                let locked = chip.lock(data, shared);
                assert_ne!(locked, chip.lock(data, shared), "never twice the same");
                let unlocked = chip.unlock(&locked, shared);
                assert_eq!(unlocked, Ok((Some(data.to_vec()), success)));
                assert_eq!(chip.unlock(&locked, !shared), failure);
            }
        }
        let locked = chip.lock(b"a passphrase", false);
        for bit in 0..locked.len() * 8 {
            let mut changed = locked.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(chip.unlock(&changed, false), failure, "{bit}");
            assert_eq!(chip.unlock(&changed, true), failure, "{bit}");
        }
        for length in 0..locked.len() {
            assert_eq!(chip.unlock(&locked[..length], false), failure, "{length}");
        }
        assert_eq!(chip.unlock(&[&locked[..], &[0]].concat(), false), failure);
    }
}

#[test]
fn files_are_locked_and_unlocked_too() {
    for unlock in [Unlock::Client, Unlock::Header] {
        let mut settings = Settings::from(Model::Zymkey4i);
        settings.unlock = unlock;
        let room = room(settings);
        let chip = room.chip();
        let path = |name| room.dir.path().join(name);
        let (plain, locked, opened) = (path("plain"), path("locked"), path("opened"));
        fs::write(&plain, "a passphrase").unwrap();

        // Every way of locking with every way of unlocking.
        let lock: [&dyn Fn(); 3] = [
            &|| {
                let f2f = chip.f2f("zkLockDataF2F", &plain, &locked, false);
                assert_eq!(f2f, Ok(0));
            },
            &|| {
                let b2f = chip.b2f("zkLockDataB2F", b"a passphrase", &locked, false);
                assert_eq!(b2f, Ok(0));
            },
            &|| {
                let f2b = chip.f2b("zkLockDataF2B", &plain, false).unwrap();
                assert_eq!(f2b.1, 0);
                fs::write(&locked, f2b.0.unwrap()).unwrap();
            },
        ];
        for lock in lock {
            lock();
            let f2f = chip.f2f("zkUnlockDataF2F", &locked, &opened, false);
            assert_eq!(f2f, Ok(0));
            assert_eq!(fs::read(&opened).unwrap(), b"a passphrase");
            let mode = fs::metadata(&opened).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            fs::remove_file(&opened).unwrap();
            let content = fs::read(&locked).unwrap();
            let b2f = chip.b2f("zkUnlockDataB2F", &content, &opened, false);
            assert_eq!(b2f, Ok(0));
            assert_eq!(fs::read(&opened).unwrap(), b"a passphrase");
            fs::remove_file(&opened).unwrap();
            let f2b = chip.f2b("zkUnlockDataF2B", &locked, false);
            assert_eq!(f2b, Ok((Some(b"a passphrase".to_vec()), 0)));
        }
        // With the other key all fail, and leave no file.
        let f2f = chip.f2f("zkUnlockDataF2F", &locked, &opened, true);
        assert_eq!(f2f, Err(EBADMSG));
        let content = fs::read(&locked).unwrap();
        let b2f = chip.b2f("zkUnlockDataB2F", &content, &opened, true);
        assert_eq!(b2f, Err(EBADMSG));
        assert_eq!(chip.f2b("zkUnlockDataF2B", &locked, true), Err(EBADMSG));
        assert!(!opened.exists());

        assert_eq!(
            chip.f2b("zkLockDataF2B", &path("nothing"), false),
            Err(ENOENT)
        );
        let relative = "locked".as_ref();
        let f2f = chip.f2f("zkLockDataF2F", &plain, relative, false);
        assert_eq!(f2f, Err(EINVAL));
    }
}

#[test]
fn no_more_than_the_limit_is_taken() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    let long = vec![7; 16 * 1024 * 1024 + 1];
    for name in ["zkLockDataB2B", "zkUnlockDataB2B"] {
        assert_eq!(chip.b2b(name, &long, false).map(drop), Err(EFBIG), "{name}");
    }
    // which says that it has no bytes, as /dev/zero does
    let pipe = room.dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    thread::scope(|scope| {
        // it is closed before all is read
        scope.spawn(|| fs::write(&pipe, &long).unwrap_or_default());
        let locked = chip.f2b("zkLockDataF2B", &pipe, false).map(drop);
        assert_eq!(locked, Err(EFBIG));
    });
}

#[test]
fn random_bytes_are_as_many_as_were_asked_for() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    for n in [1, 32, 1000, 128 * 1024] {
        let (one, other) = (chip.random(n).unwrap(), chip.random(n).unwrap());
        assert_eq!(one.as_ref().unwrap().len(), usize::try_from(n).unwrap());
        assert!(n < 32 || one != other);
    }
    for n in [0, -1, i32::MIN, i32::MAX] {
        assert_eq!(chip.random(n), Err(EINVAL));
    }
    let path = room.dir.path().join("random");
    assert_eq!(chip.random_file(&path, 77), Ok(0));
    assert_eq!(fs::read(&path).unwrap().len(), 77);
    assert_eq!(chip.random_file(&path, 0), Err(EINVAL));
}

#[test]
fn an_hsm6_makes_keys_lists_and_removes_them() {
    let room = room(Model::Hsm6);
    let chip = room.chip();
    let own: Vec<_> = (0..12).collect();
    assert_eq!(chip.slots(false), Ok((512, own.clone())));
    assert_eq!(chip.number("zkGenKeyPair", 0), Ok(16));
    assert_eq!(chip.number("zkGenKeyPair", 0), Ok(17));
    let key = chip.public_key(16).unwrap();
    assert_eq!(chip.slots(false), Ok((512, [&own[..], &[16, 17]].concat())));
    let digest = digest("a reading");
    let signature = chip.sign(&digest, 16).unwrap();
    assert_eq!(chip.verify(&digest, 16, &signature), Ok(1));
    assert_eq!(chip.verify(&digest, 17, &signature), Ok(0));

    assert_eq!(chip.remove_key(16, false), Ok(0));
    assert_eq!(chip.remove_key(16, false), Err(ENOENT));
    assert_eq!(chip.sign(&digest, 16), Err(ENOENT));
    assert_eq!(chip.public_key(16), Err(ENOENT));
    // The lowest that is free, and never the same key.
    assert_eq!(chip.number("zkGenKeyPair", 0), Ok(16));
    assert_ne!(chip.public_key(16).unwrap(), key);
    // Its own keys stay.
    for slot in [0, 11, 15, 528, -1] {
        assert_eq!(chip.remove_key(slot, false), Err(EINVAL));
    }
    // Other curves: secp256k1, Ed25519, X25519, and what is none.
    for curve in [1, 2, 3] {
        assert_eq!(chip.number("zkGenKeyPair", curve), Err(ENOSYS));
    }
    assert_eq!(chip.number("zkGenKeyPair", 4), Err(EINVAL));
}

#[test]
fn an_hsm6_verifies_by_others_keys_such_as_the_vendors_sample() {
    let hex = |text: &str| base16ct::lower::decode_vec(text).unwrap();
    let key = hex(
        "6cd0b8b14963f6712877eb50a3f5afa9c0e39483e560f58eb795e634df53f399\
         ba370dbceb71ea87cba5e2fca4f23ef73b8e683a9946758829f76521e7a19e5a",
    );
    let signature = hex(
        "28953e99dcc7f7ebf2771acae9e996e45997a212f7deba04a5974d1db6651fc8\
         c50f11a5e5ad24ef25bdf0dafbdb736513f618184505f469f126c7dd4557cade",
    );
    let digest = digest("hello world");
    assert!(is_high(&signature));
    let room = room(Model::Hsm6);
    let chip = room.chip();
    assert_eq!(chip.verify_foreign(&digest, 1, &signature), Err(ENOENT));
    assert_eq!(chip.store_foreign(0, &key), Ok(1));
    assert_eq!(chip.verify_foreign(&digest, 1, &signature), Ok(1));
    assert_eq!(chip.verify_foreign(&[1; 32], 1, &signature), Ok(0));
    assert_eq!(chip.export_public_key(1, true).unwrap(), key);
    assert_eq!(chip.slots(true), Ok((128, vec![1])));
    let path = room.dir.path().join("foreign.pem");
    assert_eq!(chip.export_public_key_to(&path, 1, true), Ok(0));
    let pem = fs::read_to_string(path).unwrap();
    let exported = VerifyingKey::from_public_key_pem(&pem).unwrap();
    assert_eq!(exported, verifying_key(&key));
    assert_eq!(chip.remove_key(1, true), Ok(0));
    assert_eq!(chip.remove_key(1, true), Err(ENOENT));
    assert_eq!(chip.slots(true), Ok((128, vec![])));
    for slot in [0, 129, -1] {
        assert_eq!(chip.remove_key(slot, true), Err(EINVAL));
        assert_eq!(chip.export_public_key(slot, true), Err(EINVAL));
    }
    // Not on the curve, too short, another curve.
    assert_eq!(chip.store_foreign(0, &[1; 64]), Err(EINVAL));
    assert_eq!(chip.store_foreign(0, &key[1..]), Err(EINVAL));
    assert_eq!(chip.store_foreign(1, &key), Err(ENOSYS));
}

#[test]
fn smaller_models_lack_what_the_vendor_says_they_lack() {
    for model in [Model::Zymkey4i, Model::Hsm4] {
        let room = room(model);
        let chip = room.chip();
        assert_eq!(chip.number("zkGenKeyPair", 0), Err(ENOSYS));
        assert_eq!(chip.remove_key(0, false), Err(ENOSYS));
        assert_eq!(chip.slots(false), Err(ENOSYS));
        assert_eq!(chip.store_foreign(0, &[1; 64]), Err(ENOSYS));
        assert_eq!(chip.export_public_key(0, true), Err(ENOSYS));
        assert_eq!(chip.verify_foreign(&[1; 32], 0, &[1; 64]), Err(ENOSYS));
        assert_eq!(chip.float("zkGetBatteryVoltage"), Err(ENOSYS));
        assert_eq!(chip.float("zkGetCPUTemp"), Err(ENOSYS));
    }
    assert_eq!(room(Model::Zymkey4i).chip().binding(), Err(ENOSYS));
    assert_eq!(room(Model::Hsm4).chip().binding(), Ok((false, true)));
    let room = room(Model::Hsm6);
    let hsm6 = room.chip();
    assert_eq!(hsm6.binding(), Ok((false, true)));
    assert!((2.5..3.5).contains(&hsm6.float("zkGetBatteryVoltage").unwrap()));
    assert!((0.0..90.0).contains(&hsm6.float("zkGetCPUTemp").unwrap()));
    room.device.set_battery(2410).unwrap();
    room.device.set_bound(false).unwrap();
    assert_eq!(hsm6.float("zkGetBatteryVoltage"), Ok(2.41));
    assert_eq!(hsm6.binding(), Ok((false, false)));
    room.device.set_bound(true).unwrap();
    assert_eq!(hsm6.binding(), Ok((false, true)));
}

#[test]
fn nothing_is_done_for_good() {
    for model in MODELS {
        let room = room(model);
        let chip = room.chip();
        assert_eq!(chip.plain("zkLockBinding"), Err(EPERM));
        assert_eq!(chip.plain("zkLockBinding"), Err(EPERM));
        for channel in [0, 1] {
            // with and without the flag to notify
            assert_eq!(chip.perimeter_action(channel, 2), Err(EPERM));
            assert_eq!(chip.perimeter_action(channel, 3), Err(EPERM));
        }
        type F = extern "C" fn(Context, c_int, bool) -> c_int;
        let disable = chip.module.function::<F>("zkDisablePubKeyExport");
        let expected = if model == Model::Hsm6 { EPERM } else { ENOSYS };
        assert_eq!(disable(chip.context(), 0, false), expected);
        chip.public_key(0).unwrap();
    }
}

#[test]
fn a_broken_perimeter_stays_broken_until_cleared() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    let wait = || chip.wait("zkWaitForPerimeterEvent", 1);
    assert_eq!(chip.perimeter(), Ok(vec![0, 0]));
    room.device.breach(1, 1_795_432_844).unwrap();
    assert_eq!(chip.perimeter(), Ok(vec![0, 1_795_432_844]));
    // Nobody asked to be told.
    assert_eq!(wait(), Err(ETIMEDOUT));
    assert_eq!(chip.perimeter_action(1, 1), Ok(0));
    assert_eq!(wait(), Ok(0));
    // This is another program's, or another copy's.
    assert_eq!(chip.plain("zkClearPerimeterDetectEvents"), Ok(0));
    assert_eq!(chip.perimeter(), Ok(vec![0, 0]));
    assert_eq!(wait(), Err(ETIMEDOUT));
    room.device.breach(0, 8).unwrap();
    room.device.clear_breaches().unwrap();
    assert_eq!(chip.perimeter(), Ok(vec![0, 0]));
    // One that comes while somebody waits.
    let waits = thread::spawn(move || chip.wait("zkWaitForPerimeterEvent", u32::MAX));
    room.device.breach(1, 7).unwrap();
    assert_eq!(waits.join().unwrap(), Ok(0));

    assert_eq!(chip.perimeter_action(2, 1), Err(EINVAL));
    assert_eq!(chip.perimeter_action(-1, 1), Err(EINVAL));
    assert_eq!(chip.perimeter_action(0, 4), Err(EINVAL));
    assert!(room.device.breach(2, 7).is_err());
}

#[test]
fn time_is_the_systems_and_taps_never_come() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now().as_secs();
    let time = u64::from(chip.time(false).unwrap());
    assert!((before..=now().as_secs()).contains(&time));
    let before = now().as_secs();
    let precise = u64::from(chip.time(true).unwrap());
    assert!((before + 1..=now().as_secs()).contains(&precise));
    assert_eq!(chip.wait("zkWaitForTap", 0), Err(ETIMEDOUT));
    assert_eq!(chip.wait("zkWaitForTap", 1), Err(ETIMEDOUT));
    assert_eq!(chip.wait("zkWaitForPerimeterEvent", 0), Err(ETIMEDOUT));
}

#[test]
fn lamp_address_and_accelerometer_are_there() {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    assert_eq!(chip.plain("zkLEDOn"), Ok(0));
    assert_eq!(chip.plain("zkLEDOff"), Ok(0));
    type Flash = extern "C" fn(Context, u32, u32, u32) -> c_int;
    let flash = chip.module.function::<Flash>("zkLEDFlash");
    assert_eq!(flash(chip.context(), 100, 100, 0), 0);
    assert_eq!(chip.number("zkSetI2CAddr", 0x30), Ok(0));
    assert_eq!(chip.number("zkSetI2CAddr", 0x20), Err(EINVAL));
    type Tap = extern "C" fn(Context, c_int, f32) -> c_int;
    let tap = chip.module.function::<Tap>("zkSetTapSensitivity");
    assert_eq!(tap(chip.context(), 3, 50.0), 0);
    assert_eq!(tap(chip.context(), 4, 50.0), EINVAL);
    assert_eq!(tap(chip.context(), 0, f32::NAN), EINVAL);
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Axis {
        g: f64,
        tap: c_int,
    }
    type Axes = extern "C" fn(Context, *mut Axis, *mut Axis, *mut Axis) -> c_int;
    let axes = chip.module.function::<Axes>("zkGetAccelerometerData");
    let mut all = [Axis { g: 9.0, tap: 9 }; 3];
    let [x, y, z] = &mut all;
    assert_eq!(axes(chip.context(), x, y, z), 0);
    assert_eq!(all.map(|axis| axis.g), [0.0, 0.0, 1.0]);
    assert_eq!(all.map(|axis| axis.tap), [0; 3]);
}

#[test]
fn a_context_is_good_until_it_is_closed() {
    let room = room(Model::Zymkey4i);
    let module = room.load();
    let (one, other) = (module.open().unwrap(), module.open().unwrap());
    assert_ne!(one.context(), other.context());
    assert_eq!(one.public_key(0), other.public_key(0));
    assert_eq!(one.close(), Ok(0));
    assert_eq!(one.close(), Err(EINVAL));
    assert_eq!(one.public_key(0), Err(EINVAL));
    assert_eq!(one.plain("zkLEDOn"), Err(EINVAL));
    other.public_key(0).unwrap();

    let close = module.function::<extern "C" fn(Context) -> c_int>("zkClose");
    // The vendor's client does this when opening failed.
    assert_eq!(close(ptr::null_mut()), 0);
    for made_up in [1, 8, 0xdead_beef, usize::MAX] {
        assert_eq!(close(ptr::without_provenance_mut(made_up)), EINVAL);
    }
    // Before anything was opened.
    let fresh = another_room().load();
    let led = fresh.function::<extern "C" fn(Context) -> c_int>("zkLEDOn");
    assert_eq!(led(ptr::without_provenance_mut(0x1000)), EINVAL);
}

fn another_room() -> crate::support::Room {
    room(Model::Zymkey4i)
}

#[test]
fn null_and_hostile_lengths_are_refused() {
    let room = room(Model::Hsm6);
    let chip: Chip = room.chip();
    let (module, context) = (chip.module, chip.context());
    let (null, no_size) = (ptr::null_mut::<*mut u8>(), ptr::null_mut::<c_int>());
    let digest = [1; 32];
    let (mut buffer, mut size, mut byte) = (ptr::null_mut::<u8>(), 0, 0_u8);
    let (out, length) = (&raw mut buffer, &raw mut size);

    type Open = extern "C" fn(*mut Context) -> c_int;
    assert_eq!(module.function::<Open>("zkOpen")(ptr::null_mut()), EINVAL);

    type Sign = extern "C" fn(Context, *const u8, c_int, *mut *mut u8, *mut c_int) -> c_int;
    let sign = module.function::<Sign>("zkGenECDSASigFromDigest");
    assert_eq!(sign(context, ptr::null(), 0, out, length), EINVAL);
    assert_eq!(sign(context, digest.as_ptr(), 0, null, length), EINVAL);
    assert_eq!(sign(context, digest.as_ptr(), 0, out, no_size), EINVAL);
    assert_eq!(
        sign(ptr::null_mut(), digest.as_ptr(), 0, out, length),
        EINVAL
    );

    type SignId =
        extern "C" fn(Context, *const u8, c_int, *mut *mut u8, *mut c_int, *mut u8) -> c_int;
    let sign = module.function::<SignId>("zkGenECDSASigFromDigestWithRecID");
    let no_id = ptr::null_mut();
    assert_eq!(
        sign(context, digest.as_ptr(), 0, out, length, no_id),
        EINVAL
    );
    let id = &raw mut byte;
    assert_eq!(sign(context, ptr::null(), 0, out, length, id), EINVAL);

    type Verify = extern "C" fn(Context, *const u8, c_int, *const u8, c_int) -> c_int;
    for name in [
        "zkVerifyECDSASigFromDigest",
        "zkVerifyECDSASigFromDigestWithForeignKeySlot",
    ] {
        let verify = module.function::<Verify>(name);
        assert_eq!(verify(context, ptr::null(), 0, digest.as_ptr(), 32), EINVAL);
        assert_eq!(verify(context, digest.as_ptr(), 0, ptr::null(), 64), EINVAL);
        assert_eq!(
            verify(context, digest.as_ptr(), 0, digest.as_ptr(), -1),
            EINVAL
        );
    }

    type Data = extern "C" fn(Context, *const u8, c_int, *mut *mut u8, *mut c_int, bool) -> c_int;
    for name in ["zkLockDataB2B", "zkUnlockDataB2B"] {
        let call = module.function::<Data>(name);
        assert_eq!(call(context, ptr::null(), 5, out, length, false), EINVAL);
        assert_eq!(
            call(context, digest.as_ptr(), -1, out, length, false),
            EINVAL
        );
        let least = c_int::MIN;
        assert_eq!(
            call(context, digest.as_ptr(), least, out, length, false),
            EINVAL
        );
        assert_eq!(
            call(context, digest.as_ptr(), 32, null, length, false),
            EINVAL
        );
        assert_eq!(
            call(context, digest.as_ptr(), 32, out, no_size, false),
            EINVAL
        );
    }

    type Files = extern "C" fn(Context, *const c_char, *const c_char, bool) -> c_int;
    for name in ["zkLockDataF2F", "zkUnlockDataF2F"] {
        let call = module.function::<Files>(name);
        assert_eq!(
            call(context, ptr::null(), c"/tmp/x".as_ptr(), false),
            EINVAL
        );
        assert_eq!(
            call(context, c"/etc/hostname".as_ptr(), ptr::null(), false),
            EINVAL
        );
    }
    type ToFile = extern "C" fn(Context, *const u8, c_int, *const c_char, bool) -> c_int;
    for name in ["zkLockDataB2F", "zkUnlockDataB2F"] {
        let call = module.function::<ToFile>(name);
        assert_eq!(
            call(context, digest.as_ptr(), 32, ptr::null(), false),
            EINVAL
        );
        assert_eq!(
            call(context, ptr::null(), 32, c"/tmp/x".as_ptr(), false),
            EINVAL
        );
    }
    type FromFile = extern "C" fn(Context, *const c_char, *mut *mut u8, *mut c_int, bool) -> c_int;
    for name in ["zkLockDataF2B", "zkUnlockDataF2B"] {
        let call = module.function::<FromFile>(name);
        assert_eq!(call(context, ptr::null(), out, length, false), EINVAL);
        assert_eq!(
            call(context, c"/etc/hostname".as_ptr(), null, length, false),
            EINVAL
        );
    }

    type Key = extern "C" fn(Context, *mut *mut u8, *mut c_int, c_int, bool) -> c_int;
    for name in ["zkGetECDSAPubKey", "zkExportPubKey"] {
        let key = module.function::<Key>(name);
        assert_eq!(key(context, null, length, 0, false), EINVAL);
        assert_eq!(key(context, out, no_size, 0, false), EINVAL);
    }
    type Path = extern "C" fn(Context, *const c_char, c_int, bool) -> c_int;
    for name in [
        "zkSaveECDSAPubKey2File",
        "zkExportPubKey2File",
        "zkCreateRandDataFile",
    ] {
        let call = module.function::<Path>(name);
        assert_eq!(call(context, ptr::null(), 1, false), EINVAL);
    }
    type Random = extern "C" fn(Context, *mut *mut u8, c_int) -> c_int;
    assert_eq!(
        module.function::<Random>("zkGetRandBytes")(context, null, 8),
        EINVAL
    );

    // Everything whose arguments are all places for results.
    type Outs = extern "C" fn(Context, usize, usize, usize) -> c_int;
    for name in [
        "zkGetTime",
        "zkGetModelNumberString",
        "zkGetFirmwareVersionString",
        "zkGetSerialNumberString",
        "zkGetCurrentBindingInfo",
        "zkGetBatteryVoltage",
        "zkGetCPUTemp",
        "zkGetPerimeterDetectInfo",
        "zkGetAccelerometerData",
    ] {
        assert_eq!(
            module.function::<Outs>(name)(context, 0, 0, 0),
            EINVAL,
            "{name}"
        );
    }
    type Slots = extern "C" fn(Context, bool, *mut c_int, *mut *mut u8, *mut c_int) -> c_int;
    let slots = module.function::<Slots>("zkGetAllocSlotsList");
    assert_eq!(slots(context, false, no_size, out, length), EINVAL);
    assert_eq!(slots(context, false, length, null, length), EINVAL);
    assert_eq!(slots(context, false, length, out, no_size), EINVAL);
    type Store = extern "C" fn(Context, c_int, *const u8, c_int) -> c_int;
    let store = module.function::<Store>("zkStoreForeignPubKey");
    assert_eq!(store(context, 0, ptr::null(), 64), EINVAL);
    assert_eq!(store(context, 0, digest.as_ptr(), -64), EINVAL);
    // Nothing was put out.
    assert!(buffer.is_null());
    assert_eq!((size, byte), (0, 0));
}
