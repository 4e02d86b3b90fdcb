//! The JSON of a message, as it stands and with each of its records signed by the
//! device: what is parsed, written, packed and decided.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use zk_envelope::{
    Envelope, KeyState, MAX_MESSAGE, Message, Signature, Timestamp, TrustedKey, pack,
};
use zk_verify::{Context, DeviceRecord, Reason, check};

fuzz_target!(|json: &[u8]| {
    decide(json);
    let Ok(mut message) = Message::parse(json) else {
        return;
    };
    let again = message.to_json().unwrap();
    assert_eq!(Message::parse(&again).unwrap(), message);

    let records: Vec<Vec<u8>> = message
        .entries
        .iter()
        .filter_map(|entry| entry.envelope().ok())
        .map(|envelope| envelope.to_bytes())
        .collect();
    if !records.is_empty() {
        let (packed, taken) = pack(&records, json.len()).unwrap();
        assert!((1..=records.len()).contains(&taken) && packed.len() <= MAX_MESSAGE);
        let packed = Message::parse(&packed).unwrap();
        let kept: Vec<Vec<u8>> = packed
            .entries
            .iter()
            .map(|entry| entry.envelope().unwrap().to_bytes())
            .collect();
        assert_eq!(kept, records[..taken]);
    }

    for entry in &mut message.entries {
        let signature: Signature = WORLD.key.sign(&entry.encrypted_data);
        entry.signature = signature.to_bytes().into();
    }
    let signed = message.to_json().unwrap();
    if signed.len() <= MAX_MESSAGE {
        for reason in decide(&signed).into_iter().flatten() {
            // The key is the one that the device has.
            assert!(reason != Reason::BadSignature, "{reason}");
        }
    }
});

/// The verdicts on a message; evidence gets the same again.
fn decide(json: &[u8]) -> Vec<Option<Reason>> {
    let World {
        context,
        device,
        revoked,
        ..
    } = &*WORLD;
    let verdicts = check(json, context, Some(device));
    match Message::parse(json) {
        Ok(message) => assert_eq!(verdicts.len(), message.entries.len()),
        Err(_) => assert!(matches!(&verdicts[..], [Err(_)])),
    }
    for verdict in &verdicts {
        match verdict {
            Ok(accepted) => {
                assert_eq!(accepted.envelope.header().device, device.device);
                let record = [
                    accepted.envelope.encrypted_data(),
                    accepted.envelope.signature(),
                ]
                .concat();
                Envelope::from_bytes(&record)
                    .unwrap()
                    .verify(&device.keys[0].key)
                    .unwrap();
            }
            Err(evidence) => {
                let again = check(&evidence.message, context, Some(device));
                assert_eq!(again.len(), 1);
                let again = again[0].as_ref().unwrap_err();
                assert_eq!(
                    (again.reason, again.authentic),
                    (evidence.reason, evidence.authentic)
                );
            }
        }
    }
    for (device, expected) in [
        (None, Reason::UnknownDevice),
        (Some(revoked), Reason::RevokedDevice),
    ] {
        let verdicts = check(json, context, device);
        let expected = if json.len() > MAX_MESSAGE {
            Reason::TooLarge
        } else {
            expected
        };
        assert!(matches!(&verdicts[..], [Err(evidence)] if evidence.reason == expected));
    }
    verdicts
        .into_iter()
        .map(|verdict| verdict.err().map(|evidence| evidence.reason))
        .collect()
}

struct World {
    key: SigningKey,
    context: Context,
    device: DeviceRecord,
    revoked: DeviceRecord,
}

/// The device of the test vectors, and what is registered of it.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let file: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/keys.json")).unwrap();
    let hex = file["keys"]["device"]["private"].as_str().unwrap();
    let key = SigningKey::from_slice(&base16ct::lower::decode_vec(hex).unwrap()).unwrap();
    let at = Timestamp::from_millis(1_795_432_844_123).unwrap();
    let device = DeviceRecord {
        device: "pi-01".parse().unwrap(),
        certificate: KeyState::Active,
        keys: vec![TrustedKey {
            key: *key.verifying_key(),
            state: KeyState::Active,
        }],
        registered_at: at,
    };
    let revoked = DeviceRecord {
        certificate: KeyState::Revoked { at },
        ..device.clone()
    };
    let context = Context {
        principal: "a certificate".into(),
        topic: "Zymkey/pi-01".into(),
        received_at: at,
    };
    World {
        key,
        context,
        device,
        revoked,
    }
});
