//! Suite 1: HPKE wraps the data key, HKDF makes the message keys, AES-256-CBC
//! encrypts, HMAC-SHA-256 authenticates.

use aes::Aes256;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::DhP256HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use p256::ecdsa::VerifyingKey;
use rand_core::UnwrapErr;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::Error;
use crate::envelope::SUITE;
use crate::id::{DeviceId, KeyId, StreamId, spki_der};

/// 32 random bytes, wrapped for each owner; all of an epoch's message keys come
/// from it.
pub(crate) type DataKey = Zeroizing<[u8; 32]>;

/// The keys of one message.
pub(crate) struct MessageKeys {
    encrypt: Zeroizing<[u8; 32]>,
    mac: Zeroizing<[u8; 32]>,
}

impl MessageKeys {
    /// K_enc ‖ K_mac = HKDF-Expand(PRK, head, 64), where head is everything
    /// from the magic to the last recipient.
    pub(crate) fn derive(prk: &Zeroizing<[u8; 32]>, head: &[u8]) -> Option<Self> {
        let mut okm = Zeroizing::new([0; 64]);
        Hkdf::<Sha256>::from_prk(&**prk)
            .ok()?
            .expand(head, &mut *okm)
            .ok()?;
        let mut keys = Self {
            encrypt: Zeroizing::new([0; 32]),
            mac: Zeroizing::new([0; 32]),
        };
        keys.encrypt.copy_from_slice(&okm[..32]);
        keys.mac.copy_from_slice(&okm[32..]);
        Some(keys)
    }

    pub(crate) fn encrypt(&self, iv: &[u8; 16], plaintext: &[u8]) -> Vec<u8> {
        cbc::Encryptor::<Aes256>::new((&*self.encrypt).into(), iv.into())
            .encrypt_padded_vec::<Pkcs7>(plaintext)
    }

    pub(crate) fn decrypt(&self, iv: &[u8; 16], ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        cbc::Decryptor::<Aes256>::new((&*self.encrypt).into(), iv.into())
            .decrypt_padded_vec::<Pkcs7>(ciphertext)
            .ok()
            .map(Zeroizing::new)
    }

    pub(crate) fn tag(&self, bytes: &[u8]) -> Option<[u8; 32]> {
        Some(self.hmac(bytes)?.finalize().into_bytes().into())
    }

    /// In constant time.
    pub(crate) fn tag_fits(&self, bytes: &[u8], tag: &[u8]) -> bool {
        self.hmac(bytes)
            .is_some_and(|mac| mac.verify_slice(tag).is_ok())
    }

    fn hmac(&self, bytes: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.mac).ok()?;
        mac.update(bytes);
        Some(mac)
    }
}

/// PRK = HKDF-Extract(salt, data key).
pub(crate) fn extract(data_key: &DataKey) -> Zeroizing<[u8; 32]> {
    let (prk, _) = Hkdf::<Sha256>::extract(Some(b"zk-envelope/1 message"), &**data_key);
    Zeroizing::new(prk.into())
}

/// Wraps the data key for one owner: HPKE encapsulated key ‖ wrapped key.
pub(crate) fn wrap(
    data_key: &DataKey,
    owner: &VerifyingKey,
    info: &[u8],
) -> Result<[u8; 65 + 48], Error> {
    let refused = || Error::malformed("owner key", "a point on P-256");
    let owner =
        <DhP256HkdfSha256 as Kem>::PublicKey::from_bytes(owner.to_sec1_point(false).as_bytes())
            .map_err(|_| refused())?;
    // A system without randomness was found out when the data key was drawn.
    let (enc, wrapped) =
        hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
            &OpModeS::Base,
            &owner,
            info,
            &**data_key,
            b"",
            &mut UnwrapErr(getrandom::SysRng),
        )
        .map_err(|_| refused())?;
    let mut out = [0; 65 + 48];
    out[..65].copy_from_slice(&enc.to_bytes());
    out[65..].copy_from_slice(&wrapped);
    Ok(out)
}

/// Opens what [`wrap`] made; `None` if it was not made for this key and info.
pub(crate) fn unwrap(
    owner: &p256::SecretKey,
    info: &[u8],
    enc: &[u8],
    wrapped: &[u8],
) -> Option<DataKey> {
    let scalar = Zeroizing::new(owner.to_bytes());
    let owner = <DhP256HkdfSha256 as Kem>::PrivateKey::from_bytes(&scalar).ok()?;
    let enc = <DhP256HkdfSha256 as Kem>::EncappedKey::from_bytes(enc).ok()?;
    let opened = hpke::single_shot_open::<AesGcm256, HkdfSha256, DhP256HkdfSha256>(
        &OpModeR::Base,
        &owner,
        &enc,
        info,
        wrapped,
        b"",
    )
    .ok()
    .map(Zeroizing::new)?;
    let mut data_key = Zeroizing::new([0; 32]);
    if opened.len() != data_key.len() {
        return None;
    }
    data_key.copy_from_slice(&opened);
    Some(data_key)
}

/// HPKE's info: what a wrapped data key is bound to.
pub(crate) fn wrap_info(
    device: &DeviceId,
    stream: StreamId,
    signer: KeyId,
    owner: &VerifyingKey,
) -> Vec<u8> {
    let device = device.as_str().as_bytes();
    let mut info = b"zk-envelope/1 data key\0".to_vec();
    // A device id has at most 64 bytes.
    info.extend_from_slice(&[SUITE, device.len() as u8]);
    info.extend_from_slice(device);
    info.extend_from_slice(&stream.0);
    info.extend_from_slice(&signer.0);
    info.extend_from_slice(&Sha256::digest(spki_der(owner)));
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HMAC and HKDF keep their key as the state of a hash, so the hash is what
    /// has to wipe it. A feature of each of the crates decides.
    #[test]
    fn what_holds_a_key_is_wiped_when_it_is_dropped() {
        fn is_wiped<T: zeroize::ZeroizeOnDrop>() {}
        is_wiped::<DataKey>();
        is_wiped::<Sha256>();
        is_wiped::<Aes256>();
        is_wiped::<cbc::Encryptor<Aes256>>();
        is_wiped::<cbc::Decryptor<Aes256>>();
        is_wiped::<p256::SecretKey>();
    }
}
