//! Private keys: made, locked with a passphrase, unlocked.

use getrandom::SysRng;
use p256::SecretKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use zeroize::Zeroizing;
use zk_envelope::key_file;

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

/// [`zk_envelope::key_file`]: as owners' keys are kept.
pub(crate) fn to_encrypted_pem(
    key: &SecretKey,
    passphrase: &Passphrase,
) -> Result<Zeroizing<String>, Error> {
    Ok(key_file::encrypt(key, passphrase.as_bytes())?)
}

/// `None` if the passphrase is wrong or the file is damaged: nobody can tell
/// the two apart.
pub(crate) fn from_encrypted_pem(pem: &[u8], passphrase: &Passphrase) -> Option<SecretKey> {
    key_file::decrypt(str::from_utf8(pem).ok()?, passphrase.as_bytes()).ok()
}
