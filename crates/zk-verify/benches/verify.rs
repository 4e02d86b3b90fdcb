//! The verdict on one message, against nothing but the signature check.
#![allow(clippy::unwrap_used, missing_docs)]

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use zk_bench::{Bar, Row, compute};
use zk_envelope::{
    BootId, ClockQuality, Content, KeyState, Moment, OwnerKey, Sealer, StreamId, TrustedKey, pack,
};
use zk_verify::{Context, DeviceRecord, check, topic_of};

fn main() {
    let owner = OwnerKey::generate().unwrap();
    let key = SigningKey::generate();
    let device = "pi-01".parse().unwrap();
    let moment = Moment {
        boot: BootId([2; 16]),
        since_boot_ms: 81_000,
        time: "2026-11-23T11:20:44.123Z".parse().unwrap(),
        clock: ClockQuality::Synchronised,
    };
    let owners = [owner.public_key().clone()];
    let sealer = Sealer::new(device, StreamId([1; 16]), key.verifying_key(), &owners);
    let content = Content::Data {
        content_type: "application/json",
        body: READINGS,
    };
    let sealed = sealer.unwrap().seal(&key, &moment, 1, content).unwrap();
    let (message, _) = pack(&[sealed.to_bytes()], usize::MAX).unwrap();

    let device = "pi-01".parse().unwrap();
    let context = Context {
        principal: "3f2a".into(),
        topic: topic_of(&device),
        received_at: moment.time,
    };
    let record = DeviceRecord {
        device,
        certificate: KeyState::Active,
        keys: vec![TrustedKey {
            key: *key.verifying_key(),
            state: KeyState::Active,
        }],
        registered_at: moment.time,
    };
    let ours = || {
        let verdicts = check(&message, &context, Some(&record));
        assert!(verdicts[0].is_ok());
        verdicts
    };

    let point = key.verifying_key().to_sec1_point(false);
    let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_bytes()).unwrap();
    let (bytes, signature) = (sealed.encrypted_data(), sealed.signature());
    let rounds = compute(ours, || parsed.verify_sig(bytes, signature).unwrap());
    Row::compare(
        "verify: the verdict on a message",
        "aws-lc-rs, the bare signature check with a parsed key",
        "µs",
        Some(Bar::AtMost(1.5)),
        &rounds,
    )
    .print()
    .unwrap();

    let typed = Signature::from_slice(signature).unwrap();
    let pure = || key.verifying_key().verify(bytes, &typed).unwrap();
    Row::compare(
        "verify: the verdict on a message",
        "p256 (pure Rust), the bare signature check",
        "µs",
        None,
        &compute(ours, pure),
    )
    .print()
    .unwrap();
}

/// What an agent with two thermometers seals.
const READINGS: &[u8] = br#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.012Z","celsius":21.437,"quality":"ok"},{"sensor":"28-0000000a0002","at":"2026-11-23T11:20:44.101Z","celsius":4.125,"quality":"ok"}]}"#;
