//! One record sealed with a key in a file, against the operations that it is
//! made of.
#![allow(clippy::unwrap_used, missing_docs)]

use aws_lc_rs::cipher::{AES_256, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use aws_lc_rs::{hkdf, hmac};
use zk_bench::{Row, compute};
use zk_envelope::{
    BootId, ClockQuality, Content, Moment, OwnerKey, Sealer, StreamId, VerifyingKey,
};
use zk_hsm::{Hsm, Options, create_soft_key};

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let uri = create_soft_key(dir.path().join("key.pem")).unwrap();
    let hsm = Hsm::open(&uri, Options::default()).unwrap();
    let key: &VerifyingKey = hsm.public_key();
    let owner = OwnerKey::generate().unwrap();
    let moment = Moment {
        boot: BootId([2; 16]),
        since_boot_ms: 81_000,
        time: "2026-11-23T11:20:44.123Z".parse().unwrap(),
        clock: ClockQuality::Synchronised,
    };
    let content = Content::Data {
        content_type: "application/json",
        body: READINGS,
    };
    let owners = [owner.public_key().clone()];
    let device = "pi-01".parse().unwrap();
    let mut sealer = Sealer::new(device, StreamId([1; 16]), key, &owners).unwrap();
    let mut sequence = 0;
    let mut seal = || {
        sequence += 1;
        sealer.seal(&hsm, &moment, sequence, content).unwrap()
    };
    let size = seal().encrypted_data().len();

    // The same work on as many bytes: two keys by HKDF, AES, HMAC, ECDSA with
    // its SHA-256. No layout, no second look at the signature.
    let signer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let random = SystemRandom::new();
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &[7; 32]);
    let bare = || {
        let mut sealed = vec![0x5a; size];
        let plaintext = sealed.len() - READINGS.len();
        let mut keys = [0; 64];
        let okm = prk.expand(&[b"head"], Twice).unwrap();
        okm.fill(&mut keys).unwrap();
        let aes = UnboundCipherKey::new(&AES_256, &keys[..32]).unwrap();
        let aes = PaddedBlockEncryptingKey::cbc_pkcs7(aes).unwrap();
        let mut ciphertext = sealed.split_off(plaintext);
        let _iv = aes.encrypt(&mut ciphertext).unwrap();
        sealed.extend_from_slice(&ciphertext);
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &keys[32..]);
        let tag = hmac::sign(&mac, &sealed);
        (tag, signer.sign(&random, &sealed).unwrap())
    };
    Row::compare(
        "seal: a record, with a soft: key",
        "aws-lc-rs, the bare operations: HKDF, AES-CBC, HMAC, ECDSA",
        "µs",
        None,
        &compute(seal, bare),
    )
    .print()
    .unwrap();

    // What of it is the key's part, which a chip does for itself.
    let record = vec![0x5a; size];
    Row::compare(
        "seal: the signature alone, from a soft: key",
        "aws-lc-rs, the bare ECDSA signature",
        "µs",
        None,
        &compute(
            || hsm.sign(&record).unwrap(),
            || signer.sign(&random, &record).unwrap(),
        ),
    )
    .print()
    .unwrap();
}

/// 64 bytes of key.
struct Twice;

impl hkdf::KeyType for Twice {
    fn len(&self) -> usize {
        64
    }
}

/// What an agent with two thermometers seals.
const READINGS: &[u8] = br#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.012Z","celsius":21.437,"quality":"ok"},{"sensor":"28-0000000a0002","at":"2026-11-23T11:20:44.101Z","celsius":4.125,"quality":"ok"}]}"#;
