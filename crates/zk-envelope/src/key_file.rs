//! Private keys at rest: PKCS#8 (RFC 5958), encrypted under a passphrase with
//! PBES2 (RFC 8018), in PEM. OpenSSL reads what is written here, and the other
//! way round.

use p256::SecretKey;
use pkcs8::der::pem::PemLabel as _;
use pkcs8::pkcs5::{self, pbes2, scrypt};
use pkcs8::{
    DecodePrivateKey, EncodePrivateKey, EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef,
    SecretDocument,
};
use zeroize::Zeroizing;

use crate::Error;

/// Encrypts a key with AES-256-CBC under scrypt with N 2^14, r 8, p 5: the work
/// that OWASP asks for, within the memory that OpenSSL 3 allows.
///
/// # Errors
/// [`Error::Key`] if the passphrase is empty or the encryption fails;
/// [`Error::Random`].
pub fn encrypt(key: &SecretKey, passphrase: &[u8]) -> Result<Zeroizing<String>, Error> {
    if passphrase.is_empty() {
        return Err(refused("an empty passphrase protects nothing; choose one"));
    }
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    getrandom::fill(&mut salt)?;
    getrandom::fill(&mut iv)?;
    let encrypt = || -> pkcs8::Result<Zeroizing<String>> {
        let cost = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P)
            .map_err(|_| pkcs8::Error::ParametersMalformed)?;
        let how = pbes2::Parameters::generate_scrypt_aes256cbc(cost, &salt, iv)?;
        let der = key.to_pkcs8_der()?;
        let encrypted =
            PrivateKeyInfoRef::try_from(der.as_bytes())?.encrypt_with_params(how, passphrase)?;
        Ok(encrypted.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)?)
    };
    encrypt().map_err(|error| refused(error.to_string()))
}

/// Decrypts a key.
///
/// # Errors
/// [`Error::Key`]: wrong passphrase, no P-256 key, not encrypted, or encrypted
/// at a cost that no key file needs (scrypt of more than 1 GiB or fifty times
/// the work of [`encrypt`]'s, PBKDF2 of more than 10,000,000 rounds).
pub fn decrypt(pem: &str, passphrase: &[u8]) -> Result<SecretKey, Error> {
    let wrong = |error: pkcs8::Error| {
        refused(format!(
            "{error}; is the passphrase right, and is it an encrypted PKCS#8 P-256 key in PEM?"
        ))
    };
    let (label, document) = SecretDocument::from_pem(pem).map_err(|error| wrong(error.into()))?;
    EncryptedPrivateKeyInfoRef::validate_pem_label(label).map_err(|error| wrong(error.into()))?;
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(wrong)?;
    if !is_affordable(&encrypted.encryption_algorithm) {
        return Err(refused(
            "it takes more memory or time to decrypt than any key file needs; encrypt it anew, \
             for example with `openssl pkcs8 -topk8 -scrypt`",
        ));
    }
    let decrypted = encrypted.decrypt(passphrase).map_err(wrong)?;
    SecretKey::from_pkcs8_der(decrypted.as_bytes()).map_err(wrong)
}

fn refused(detail: impl Into<String>) -> Error {
    Error::Key {
        what: "encrypted key",
        detail: detail.into(),
    }
}

/// Whether the cost of a passphrase's guess, which the file states, is one to
/// pay. pkcs5 allows scrypt any size of memory, and panics on N = 0.
fn is_affordable(encryption: &pkcs5::EncryptionScheme) -> bool {
    let Some(parameters) = encryption.pbes2() else {
        // Not supported, which the decryption says.
        return true;
    };
    match &parameters.kdf {
        pbes2::Kdf::Scrypt(scrypt) => {
            let blocks = u128::from(scrypt.cost_parameter) * u128::from(scrypt.block_size);
            scrypt.cost_parameter.is_power_of_two()
                && 128 * blocks <= MAX_SCRYPT_MEMORY
                && blocks * u128::from(scrypt.parallelization) <= MAX_SCRYPT_BLOCKS
        }
        pbes2::Kdf::Pbkdf2(pbkdf2) => pbkdf2.iteration_count <= MAX_PBKDF2_ROUNDS,
        _ => true,
    }
}

/// 16 MiB of memory, five passes: as much as OpenSSL reads without being asked.
const SCRYPT_LOG_N: u8 = 14;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 5;
/// N = 2^20 with r = 8.
const MAX_SCRYPT_MEMORY: u128 = 1 << 30;
/// N r p of 51 times what this crate writes.
const MAX_SCRYPT_BLOCKS: u128 = 1 << 25;
/// What RFC 8018 names for "very powerful systems".
const MAX_PBKDF2_ROUNDS: u32 = 10_000_000;
