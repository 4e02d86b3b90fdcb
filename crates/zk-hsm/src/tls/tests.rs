#[path = "../../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use ::aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use ecdsa::{RecoveryId, SigningKey};
use p256::NistP256;
use p256::elliptic_curve::Generate;
use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::*;
use crate::backend::Backend;
use crate::error::Class;
use crate::fault::{self, Act, Chip};
use crate::hsm::{Health, Info, Signature, VerifyingKey};

#[test]
fn choosing_a_scheme_asks_nothing_of_the_chip() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Panic]);
    let key = hsm.signing_key();

    let signer = key
        .choose_scheme(&[SignatureScheme::ED25519, SCHEME])
        .unwrap();
    assert_eq!(signer.scheme(), SignatureScheme::ECDSA_NISTP256_SHA256);
    assert!(
        key.choose_scheme(&[SignatureScheme::RSA_PSS_SHA256])
            .is_none()
    );
    assert!(key.choose_scheme(&[]).is_none());
    assert_eq!(key.algorithm(), SignatureAlgorithm::ECDSA);
    assert_eq!(key.public_key().unwrap().as_ref(), hsm.spki());
}

#[test]
fn a_failure_reaches_rustls_as_what_it_is() {
    let (chip, _closed) = Chip::new();
    let hsm = chip.open();
    chip.on_calls([Act::Fail(Class::Fatal)]);
    let signer = hsm.signing_key().choose_scheme(&[SCHEME]).unwrap();

    let rustls::Error::Other(OtherError(error)) = signer.sign(b"m").unwrap_err() else {
        panic!("not an error of ours");
    };
    let error = error.downcast_ref::<Error>().unwrap();
    assert!(matches!(error, Error::Library { code: -1, .. }), "{error}");
}

#[test]
fn a_handshake_whose_signature_fails_says_why() {
    for version in [&TLS13, &TLS12] {
        let (chip, _closed) = Chip::new();
        let hsm = chip.open();
        let authority = support::Authority::new();
        let chain = vec![authority.issue(&hsm.csr("pi-01").unwrap())];
        let config = hsm.client_config(chain, authority.roots(), &[]).unwrap();
        let key = SigningKey::<NistP256>::generate();
        let server = authority.issue_server("localhost", &key);
        let server = support::server_config(version, &[], authority.roots(), server, &key);
        chip.on_calls([Act::Corrupt(7), Act::Corrupt(8)]);

        let error = support::connect(&config, &server).unwrap_err();

        let rustls::Error::Other(OtherError(error)) = error else {
            panic!("{error}")
        };
        let error = error.downcast_ref::<Error>().unwrap();
        assert!(matches!(error, Error::BadSignature { .. }), "{error}");
        // and the next one is well
        support::connect(&config, &server).unwrap();
    }
}

/// Every number of leading zero bytes, each with the first bytes between which
/// the encoding changes, for r and for s.
#[test]
fn signatures_for_tls_are_minimal_der() {
    let shapes: Vec<_> = (0..32)
        .flat_map(|zeros| [1, 0x7f, 0x80, 0xfe].map(|first| (zeros, first)))
        .collect();
    for (i, r) in shapes.iter().enumerate() {
        for offset in [0, 1, 42, 86] {
            let s = &shapes[(i + offset) % shapes.len()];
            check(number(*r, [0; 32]), number(*s, [0xa5; 32]));
        }
    }
}

proptest! {
    #[test]
    fn any_signature_for_tls_is_minimal_der(
        r in (0..32_usize, 1..=0xfe_u8),
        r_rest in any::<[u8; 32]>(),
        s in (0..32_usize, 1..=0xfe_u8),
        s_rest in any::<[u8; 32]>(),
    ) {
        check(number(r, r_rest), number(s, s_rest));
    }
}

/// Has rustls sign by a chip that answers `r ‖ s`. Any r that is the x of a
/// point and any s are a signature under some key, so the real path is taken,
/// verification included.
fn check(mut r: [u8; 32], s: [u8; 32]) {
    let message = b"handshake";
    let digest: [u8; 32] = Sha256::digest(message).into();
    let (key, raw) = loop {
        let signature = Signature::from_scalars(r, s).unwrap();
        let point = RecoveryId::new(false, false);
        match VerifyingKey::recover_from_prehash(&digest, &signature, point) {
            Ok(key) => break (key, signature.to_bytes().into()),
            Err(_) => r[31] = r[31].checked_add(1).unwrap_or(1),
        }
    };
    let uri = "zymkey:slot=0".parse().unwrap();
    let opener = Box::new(move || Ok(Box::new(Canned { key, raw }) as Box<dyn Backend>));
    let hsm = Hsm::with_opener(&uri, opener, fault::options()).unwrap();

    let der = hsm
        .signing_key()
        .choose_scheme(&[SCHEME])
        .unwrap()
        .sign(message)
        .unwrap();

    assert_eq!(der, expected(&r, &s));
    // AWS-LC refuses what isn't minimal
    let point = key.to_sec1_point(false);
    let judge = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point.as_bytes());
    judge.verify(message, &der).unwrap();
}

/// Strip, then pad: X.690, 8.3.2 and 10.1.
fn expected(r: &[u8; 32], s: &[u8; 32]) -> Vec<u8> {
    let mut content = Vec::new();
    for number in [r, s] {
        let zeros = number.iter().take_while(|&&byte| byte == 0).count();
        let digits = &number[zeros..];
        let sign = u8::from(digits[0] >= 0x80);
        content.extend([0x02, digits.len() as u8 + sign]);
        content.extend(std::iter::repeat_n(0, sign.into()));
        content.extend(digits);
    }
    [&[0x30, content.len() as u8], &content[..]].concat()
}

/// Leading zeros, a first byte, and the rest.
fn number((zeros, first): (usize, u8), rest: [u8; 32]) -> [u8; 32] {
    let mut number = rest;
    number[..zeros].fill(0);
    number[zeros] = first;
    number
}

/// A chip that knows one answer.
struct Canned {
    key: VerifyingKey,
    raw: [u8; 64],
}

impl Backend for Canned {
    fn info(&mut self) -> Result<Info, Error> {
        fault::info()
    }

    fn health(&mut self) -> Result<Health, Error> {
        Ok(Health::default())
    }

    fn public_key(&mut self) -> Result<VerifyingKey, Error> {
        Ok(self.key)
    }

    fn sign(&mut self, _digest: &[u8; 32]) -> Result<[u8; 64], Error> {
        Ok(self.raw)
    }

    fn random(&mut self, _n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        unreachable!()
    }

    fn lock(&mut self, _plain: &[u8]) -> Result<Vec<u8>, Error> {
        unreachable!()
    }

    fn unlock(&mut self, _locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        unreachable!()
    }
}
