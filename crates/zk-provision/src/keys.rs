//! Private keys: made, locked with a passphrase, unlocked.

use getrandom::SysRng;
use getrandom::rand_core::TryRng;
use p256::SecretKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfoRef, KeyError, PrivateKeyInfoRef};
use x509_cert::der::pem::PemLabel;
use zeroize::Zeroizing;

use crate::{Error, Passphrase};

pub(crate) fn generate() -> Result<SecretKey, Error> {
    Ok(SecretKey::try_generate_from_rng(&mut SysRng)?)
}

/// PKCS#8 in PEM, not encrypted: for a service that starts without a person.
pub(crate) fn to_pem(key: &SecretKey) -> Result<Zeroizing<String>, Error> {
    key.to_pkcs8_pem(LineEnding::LF).map_err(Error::KeyEncoding)
}

pub(crate) fn from_pem(pem: &[u8]) -> Option<SecretKey> {
    SecretKey::from_pkcs8_pem(str::from_utf8(pem).ok()?).ok()
}

/// PKCS#8 in PEM (RFC 5958), encrypted with AES-256-CBC under scrypt with N
/// 2^14, r 8, p 5: the work that OWASP asks for, within the memory that
/// OpenSSL 3 allows.
pub(crate) fn to_encrypted_pem(
    key: &SecretKey,
    passphrase: &Passphrase,
) -> Result<Zeroizing<String>, Error> {
    let mut salt = [0; 16];
    let mut iv = [0; 16];
    SysRng.try_fill_bytes(&mut salt)?;
    SysRng.try_fill_bytes(&mut iv)?;
    let encrypt = || {
        let cost = scrypt::Params::new(14, 8, 5).map_err(|_| KeyError::Invalid)?;
        let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv)?;
        let plain = key.to_pkcs8_der()?;
        let document = PrivateKeyInfoRef::try_from(plain.as_bytes())?
            .encrypt_with_params(parameters, passphrase.as_bytes())?;
        Ok(document.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)?)
    };
    encrypt().map_err(Error::KeyEncoding)
}

/// `None` if the passphrase is wrong or the file is damaged: nobody can tell
/// the two apart.
pub(crate) fn from_encrypted_pem(pem: &[u8], passphrase: &Passphrase) -> Option<SecretKey> {
    let pem = str::from_utf8(pem).ok()?;
    SecretKey::from_pkcs8_encrypted_pem(pem, passphrase.as_bytes()).ok()
}
