use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use zeroize::Zeroizing;

use crate::backend::{Backend, Opener};
use crate::error::{Class, Error};
use crate::hsm::{Info, Signature, VerifyingKey, key_id, spki};

/// An open backend that holds the right key, and what checks its signatures.
pub(crate) struct Session {
    pub(crate) backend: Box<dyn Backend>,
    checker: Checker,
}

impl Session {
    /// A signature over a SHA-256 digest that the public key verifies.
    pub(crate) fn sign(&mut self, digest: &[u8; 32]) -> Result<Signature, Error> {
        let raw = self.backend.sign(digest)?;
        self.checker.check(digest, &raw)
    }

    /// As many random bytes as were asked for.
    pub(crate) fn random(&mut self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        let bytes = self.backend.random(n)?;
        if bytes.len() == n {
            return Ok(bytes);
        }
        Err(Error::Library {
            hsm: self.checker.hsm.clone(),
            function: "random",
            code: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            meaning: "bytes, which is not what was asked for",
            class: Class::Transient,
            next: "if this repeats, update the vendor's library",
        })
    }
}

/// The key that an HSM held when it was first opened.
#[derive(Clone)]
pub(crate) struct Checker {
    hsm: Box<str>,
    public_key: VerifyingKey,
    /// The same key: AWS-LC verifies four times as fast.
    parsed: ParsedPublicKey,
}

impl Checker {
    /// Opens a backend for the first time and takes its key as the right one.
    pub(crate) fn learn(
        opener: &mut Opener,
        hsm: Box<str>,
    ) -> Result<(Self, Session, Info), Error> {
        let mut backend = opener()?;
        let public_key = backend.public_key()?;
        let info = backend.info()?;
        let checker = Self::new(hsm, public_key)?;
        Ok((checker.clone(), Session { backend, checker }, info))
    }

    fn new(hsm: Box<str>, public_key: VerifyingKey) -> Result<Self, Error> {
        let point = public_key.to_sec1_point(false);
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point.as_bytes())
            .map_err(|_| Error::BadSignature { hsm: hsm.clone() })?;
        Ok(Self {
            hsm,
            public_key,
            parsed,
        })
    }

    pub(crate) fn public_key(&self) -> VerifyingKey {
        self.public_key
    }

    /// Opens a backend again; it must hold the same key.
    pub(crate) fn open(&self, opener: &mut Opener) -> Result<Session, Error> {
        let mut backend = opener()?;
        let found = backend.public_key()?;
        if found != self.public_key {
            return Err(Error::KeyChanged {
                hsm: self.hsm.clone(),
                expected: key_id(&spki(&self.public_key)?),
                found: key_id(&spki(&found)?),
            });
        }
        Ok(Session {
            backend,
            checker: self.clone(),
        })
    }

    /// r ‖ s as a signature, if it is one over this digest.
    fn check(&self, digest: &[u8; 32], raw: &[u8; 64]) -> Result<Signature, Error> {
        let bad = || Error::BadSignature {
            hsm: self.hsm.clone(),
        };
        let digest = Digest::import_less_safe(digest, &SHA256).map_err(|_| bad())?;
        self.parsed
            .verify_digest_sig(&digest, raw)
            .map_err(|_| bad())?;
        Signature::from_slice(raw).map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use ecdsa::SigningKey;
    use p256::elliptic_curve::Generate;
    use p256::pkcs8::EncodePublicKey;
    use sha2::Sha256;
    use signature::Verifier;
    use signature::hazmat::PrehashSigner;

    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        assert_eq!(text.len(), 2 * N);
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn no_flipped_bit_gets_through() {
        let key = SigningKey::generate();
        let checker = Checker::new("test".into(), *key.verifying_key()).unwrap();
        let digest = [9; 32];
        let signature: Signature = key.sign_prehash(&digest).unwrap();
        let raw: [u8; 64] = signature.to_bytes().into();
        assert_eq!(checker.check(&digest, &raw).unwrap(), signature);

        for bit in 0..512 {
            let mut flipped = raw;
            flipped[bit / 8] ^= 0x80 >> (bit % 8);
            let error = checker.check(&digest, &flipped).unwrap_err();
            assert!(
                matches!(error, Error::BadSignature { .. }),
                "bit {bit}: {error}"
            );
        }
        for bit in 0..256 {
            let mut other = digest;
            other[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(
                checker.check(&other, &raw).is_err(),
                "bit {bit} of the digest"
            );
        }
    }

    #[test]
    fn r_and_s_out_of_range_are_refused() {
        let key = SigningKey::generate();
        let checker = Checker::new("test".into(), *key.verifying_key()).unwrap();
        let order = hex::<32>("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
        for half in [[0; 32], order, [0xff; 32]] {
            for raw in [[half, [1; 32]].concat(), [[1; 32], half].concat()] {
                checker
                    .check(&[9; 32], &raw.try_into().unwrap())
                    .unwrap_err();
            }
        }
    }

    #[test]
    fn both_s_of_a_signature_are_legal() {
        let key = SigningKey::generate();
        let checker = Checker::new("test".into(), *key.verifying_key()).unwrap();
        let signature: Signature = key.sign_prehash(&[9; 32]).unwrap();
        let (r, s) = signature.split_scalars();
        let other = Signature::from_scalars(*r, -*s).unwrap();
        for signature in [signature, other] {
            let raw = signature.to_bytes().into();
            assert_eq!(checker.check(&[9; 32], &raw).unwrap(), signature);
        }
    }

    /// A real Zymkey's answer, from the vendor's page on verifying signatures;
    /// its s is high.
    #[test]
    fn a_zymkey_signature_checks() {
        let xy = hex::<64>(
            "6cd0b8b14963f6712877eb50a3f5afa9c0e39483e560f58eb795e634df53f399\
             ba370dbceb71ea87cba5e2fca4f23ef73b8e683a9946758829f76521e7a19e5a",
        );
        let raw = hex::<64>(
            "28953e99dcc7f7ebf2771acae9e996e45997a212f7deba04a5974d1db6651fc8\
             c50f11a5e5ad24ef25bdf0dafbdb736513f618184505f469f126c7dd4557cade",
        );
        let digest = <Sha256 as sha2::Digest>::digest(b"hello world").into();
        let key = VerifyingKey::from_sec1_bytes(&[&[4], &xy[..]].concat()).unwrap();

        let signature = Checker::new("test".into(), key)
            .unwrap()
            .check(&digest, &raw)
            .unwrap();

        key.verify(b"hello world", &signature).unwrap();
        assert!(
            signature.normalize_s() != signature,
            "the sample's s is high"
        );
        // id-ecPublicKey, prime256v1, the uncompressed point (RFC 5480)
        let header = hex::<27>("3059301306072a8648ce3d020106082a8648ce3d03010703420004");
        assert_eq!(spki(&key).unwrap(), [&header[..], &xy].concat());
        assert_eq!(
            key.to_public_key_der().unwrap().as_bytes(),
            spki(&key).unwrap()
        );
        // s begins with c5, so it has a zero byte before it; r begins with 28 and has none
        let der = [
            &[0x30, 0x45, 0x02, 0x20],
            &raw[..32],
            &[0x02, 0x21, 0x00],
            &raw[32..],
        ];
        assert_eq!(signature.to_der().as_bytes(), der.concat());
    }
}
