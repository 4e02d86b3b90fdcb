//! A sealed record: as it stands; signed by the device whatever is in it; and
//! encrypted and signed for an owner, with its ciphertext taken for the plaintext.
//!
//! So both what stands before the signature and what stands behind it are reached.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::sync::LazyLock;

use aes::Aes256;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeS, Serializable};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use p256::pkcs8::EncodePublicKey;
use pkcs8::EncodePrivateKey;
use rand_core::UnwrapErr;
use sha2::{Digest, Sha256};
use zk_envelope::{Envelope, Error, KeyId, Kind, OwnerKey, Signature, pack};

fuzz_target!(|record: &[u8]| {
    let Ok(envelope) = Envelope::from_bytes(record) else {
        return;
    };
    assert_eq!(envelope.to_bytes(), record);
    let (message, taken) = pack(&[record], usize::MAX).unwrap();
    assert_eq!(taken, 1);
    let packed = zk_envelope::Message::parse(&message).unwrap();
    assert_eq!(packed.entries[0].envelope().unwrap().to_bytes(), record);

    let keys = &*KEYS;
    if let Ok(verified) = envelope.clone().verify(keys.device.verifying_key()) {
        let _ = verified.open(&keys.owner);
    }

    let layout = Layout::of(&envelope);
    let mut bytes = envelope.encrypted_data().to_vec();
    let signer = KeyId::of(keys.device.verifying_key());
    bytes[layout.recipients - 33..layout.recipients - 1].copy_from_slice(&signer.0);
    let _ = open(&signed(bytes.clone()));

    if envelope.unverified_header().recipients.len() == 1 {
        let plaintext = layout.encrypt(&mut bytes);
        let opened = open(&signed(bytes));
        // Padding, then a content type of printable ASCII, make a plaintext.
        let whole = unpadded(&plaintext).filter(|whole| {
            whole.split_first().is_some_and(|(len, rest)| {
                let content_type = rest.get(..usize::from(*len)).unwrap_or_default();
                !content_type.is_empty() && content_type.iter().all(|b| (b' '..=b'~').contains(b))
            })
        });
        match (opened, whole) {
            (Ok(opened), Some(whole)) => {
                let content_type = opened.content_type();
                assert_eq!(usize::from(whole[0]), content_type.len());
                assert_eq!(
                    whole[1..],
                    [content_type.as_bytes(), opened.body()].concat()
                );
                if let Ok(report) = opened.report() {
                    let kind = opened.header().kind;
                    assert_eq!(report.map_or(Kind::Data, |report| report.kind()), kind);
                }
            }
            (Err(Error::Undecryptable), None) => {}
            (opened, whole) => panic!("{opened:?} {whole:?}"),
        }
    }
});

/// What its own device has signed is parsed and verified, whatever it is.
fn signed(bytes: Vec<u8>) -> Envelope {
    let signature: Signature = KEYS.device.sign(&bytes);
    Envelope::from_parts(bytes, signature.to_bytes().into()).unwrap()
}

fn open(envelope: &Envelope) -> Result<zk_envelope::Opened, Error> {
    let verified = envelope
        .clone()
        .verify(KEYS.device.verifying_key())
        .unwrap();
    verified.open(&KEYS.owner)
}

/// PKCS #7.
fn unpadded(plaintext: &[u8]) -> Option<&[u8]> {
    let padding = *plaintext.last()?;
    let (whole, tail) = plaintext.split_at(plaintext.len().checked_sub(padding.into())?);
    ((1..=16).contains(&padding) && tail.iter().all(|b| *b == padding)).then_some(whole)
}

/// Where things stand, as the format page has it.
struct Layout {
    device: usize,
    stream: usize,
    recipients: usize,
    iv: usize,
}

impl Layout {
    fn of(envelope: &Envelope) -> Self {
        let header = envelope.unverified_header();
        let stream = 7 + header.device.as_str().len();
        let recipients = stream + 16 + 8 + 16 + 8 + 8 + 1 + 32 + 1;
        let iv = recipients + 121 * header.recipients.len();
        Self {
            device: 7,
            stream,
            recipients,
            iv,
        }
    }

    /// Wraps the data key for the owner, encrypts what stands for the
    /// ciphertext, and makes the tag.
    fn encrypt(&self, bytes: &mut [u8]) -> Vec<u8> {
        let device = &bytes[self.device..self.stream];
        let mut info = b"zk-envelope/1 data key\0\x01".to_vec();
        info.push(device.len() as u8);
        info.extend(device);
        info.extend(&bytes[self.stream..self.stream + 16]);
        info.extend(&bytes[self.recipients - 33..self.recipients - 1]);
        info.extend(Sha256::digest(&KEYS.owner_spki));
        let block = &mut bytes[self.recipients..self.iv];
        block[..8].copy_from_slice(&KEYS.owner.id().0);
        block[8..].copy_from_slice(&wrapped(info));

        let (prk, _) = Hkdf::<Sha256>::extract(Some(b"zk-envelope/1 message"), &DATA_KEY);
        let mut keys = [0; 64];
        Hkdf::<Sha256>::from_prk(&prk)
            .unwrap()
            .expand(&bytes[..self.iv], &mut keys)
            .unwrap();
        let (encrypt, mac) = keys.split_at(32);
        let iv: [u8; 16] = bytes[self.iv..self.iv + 16].try_into().unwrap();
        let tag = bytes.len() - 32;
        let place = self.iv + 20..tag;
        let plaintext = bytes[place.clone()].to_vec();
        let encrypt: [u8; 32] = encrypt.try_into().unwrap();
        let ciphertext = cbc::Encryptor::<Aes256>::new(&encrypt.into(), &iv.into())
            .encrypt_padded_vec::<NoPadding>(&plaintext);
        bytes[place].copy_from_slice(&ciphertext);
        let mut hmac = Hmac::<Sha256>::new_from_slice(mac).unwrap();
        hmac.update(&bytes[..tag]);
        bytes[tag..].copy_from_slice(&hmac.finalize().into_bytes());
        plaintext
    }
}

/// HPKE's encapsulated key and the wrapped data key; the last one is kept, for
/// this takes longer than all else.
fn wrapped(info: Vec<u8>) -> Vec<u8> {
    thread_local! {
        static LAST: RefCell<(Vec<u8>, Vec<u8>)> = RefCell::default();
    }
    LAST.with_borrow_mut(|(known, wrap)| {
        if *known != info {
            let point = &KEYS.owner_spki[26..];
            let owner = <DhP256HkdfSha256 as Kem>::PublicKey::from_bytes(point).unwrap();
            let (enc, key) =
                hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
                    &OpModeS::Base,
                    &owner,
                    &info,
                    &DATA_KEY,
                    b"",
                    &mut UnwrapErr(getrandom::SysRng),
                )
                .unwrap();
            *wrap = [&enc.to_bytes()[..], &key].concat();
            *known = info;
        }
        wrap.clone()
    })
}

struct Keys {
    device: SigningKey,
    owner: OwnerKey,
    owner_spki: Vec<u8>,
}

/// Those of the test vectors.
static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let file: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/keys.json")).unwrap();
    let scalar = |name: &str| {
        let hex = file["keys"][name]["private"].as_str().unwrap();
        base16ct::lower::decode_vec(hex).unwrap()
    };
    let owner = p256::SecretKey::from_slice(&scalar("owner-1")).unwrap();
    let spki = owner.public_key().to_public_key_der().unwrap().into_vec();
    let cheap =
        pkcs8::pkcs5::pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(1, b"saltsalt", [0; 16]);
    let der = owner.to_pkcs8_der().unwrap();
    let encrypted = pkcs8::PrivateKeyInfoRef::try_from(der.as_bytes())
        .unwrap()
        .encrypt_with_params(cheap.unwrap(), "owner")
        .unwrap();
    let pem = encrypted
        .to_pem("ENCRYPTED PRIVATE KEY", pkcs8::LineEnding::LF)
        .unwrap();
    Keys {
        device: SigningKey::from_slice(&scalar("device")).unwrap(),
        owner: OwnerKey::from_encrypted_pem(&pem, "owner").unwrap(),
        owner_spki: spki,
    }
});

const DATA_KEY: [u8; 32] = [7; 32];
