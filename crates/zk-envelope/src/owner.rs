//! Owners: whose records they are, and who can read them.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use p256::SecretKey;
use p256::ecdsa::VerifyingKey;
use pkcs8::{DecodePublicKey, EncodePublicKey, LineEnding};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::crypto::{self, DataKey};
use crate::envelope::Header;
use crate::id::{RecipientId, spki_der};
use crate::{Error, key_file};

/// An owner's public key: records are encrypted to it.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnerPublicKey(VerifyingKey);

impl OwnerPublicKey {
    /// The owner's identity in an envelope: first 8 bytes of SHA-256 of the
    /// SubjectPublicKeyInfo.
    #[must_use]
    pub fn id(&self) -> RecipientId {
        let digest = Sha256::digest(spki_der(&self.0));
        let mut id = RecipientId([0; 8]);
        id.0.copy_from_slice(&digest[..8]);
        id
    }

    /// Reads a SubjectPublicKeyInfo in PEM (`-----BEGIN PUBLIC KEY-----`).
    ///
    /// # Errors
    /// [`Error::Key`] if it is not that, or not a P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        VerifyingKey::from_public_key_pem(pem.trim_start())
            .map(Self)
            .map_err(|error| Error::Key {
                what: "owner's public key",
                detail: format!(
                    "{error}; a P-256 key in PEM is needed, as `zk-reader keygen` writes it"
                ),
            })
    }

    /// The SubjectPublicKeyInfo in PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        public_key_pem(&self.0)
    }

    pub(crate) fn key(&self) -> &VerifyingKey {
        &self.0
    }
}

impl fmt::Debug for OwnerPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerPublicKey({})", self.id())
    }
}

/// An owner's private key: it opens all records that were ever encrypted to
/// it, so it belongs on the owner's machine and in a backup, nowhere else.
///
/// On disk it is PKCS#8 in PEM, encrypted with a passphrase (RFC 8018 PBES2:
/// scrypt and AES-256-CBC), which OpenSSL reads too.
pub struct OwnerKey {
    secret: SecretKey,
    public: OwnerPublicKey,
    /// The data key opened last and what it was opened from: all records of an
    /// epoch share it, and a key agreement costs more than everything else.
    last: Mutex<Option<(Vec<u8>, DataKey)>>,
}

impl OwnerKey {
    /// A new key from the system's random source.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn generate() -> Result<Self, Error> {
        loop {
            let mut bytes = Zeroizing::new([0; 32]);
            getrandom::fill(&mut *bytes)?;
            // One try in 2^32 is no scalar of the curve.
            if let Ok(secret) = SecretKey::from_slice(&*bytes) {
                return Ok(Self::from_secret(secret));
            }
        }
    }

    /// The key that records are encrypted to.
    #[must_use]
    pub fn public_key(&self) -> &OwnerPublicKey {
        &self.public
    }

    /// The owner's identity in an envelope.
    #[must_use]
    pub fn id(&self) -> RecipientId {
        self.public.id()
    }

    /// Encrypted PKCS#8 in PEM: [`key_file::encrypt`].
    ///
    /// # Errors
    /// [`Error::Key`] if the passphrase is empty or the encryption fails;
    /// [`Error::Random`].
    pub fn to_encrypted_pem(&self, passphrase: &str) -> Result<Zeroizing<String>, Error> {
        key_file::encrypt(&self.secret, passphrase.as_bytes())
    }

    /// Reads encrypted PKCS#8 in PEM: [`key_file::decrypt`].
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn from_encrypted_pem(pem: &str, passphrase: &str) -> Result<Self, Error> {
        key_file::decrypt(pem, passphrase.as_bytes()).map(Self::from_secret)
    }

    /// Writes a new key file of mode 0600 and syncs it; never overwrites.
    ///
    /// # Errors
    /// [`Error::Io`] (among them: it exists), [`Error::Key`].
    pub fn write_new(&self, path: &Path, passphrase: &str) -> Result<(), Error> {
        let pem = self.to_encrypted_pem(passphrase)?;
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| Error::Io {
            path: path.into(),
            source,
        })
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`Error::Permissions`] if other users may read it, [`Error::Io`],
    /// [`Error::Key`], [`Error::TooLarge`].
    pub fn read(path: &Path, passphrase: &str) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.into(),
            source,
        };
        let file = fs::File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::Permissions {
                path: path.into(),
                mode,
            });
        }
        let mut pem = Zeroizing::new(String::with_capacity(MAX_KEY_FILE + 1));
        file.take(MAX_KEY_FILE as u64 + 1)
            .read_to_string(&mut pem)
            .map_err(io)?;
        if pem.len() > MAX_KEY_FILE {
            return Err(Error::TooLarge {
                what: "key file",
                size: pem.len(),
                limit: MAX_KEY_FILE,
            });
        }
        Self::from_encrypted_pem(&pem, passphrase)
    }

    fn from_secret(secret: SecretKey) -> Self {
        let public = OwnerPublicKey(secret.public_key().into());
        Self {
            secret,
            public,
            last: Mutex::new(None),
        }
    }

    pub(crate) fn unwrap_data_key(
        &self,
        header: &Header,
        enc: &[u8],
        wrapped: &[u8],
    ) -> Result<DataKey, Error> {
        let info = crypto::wrap_info(
            &header.device,
            header.stream,
            header.signer,
            self.public.key(),
        );
        let from = [&info, enc, wrapped].concat();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, data_key)) = &*last
            && *known == from
        {
            return Ok(data_key.clone());
        }
        let data_key =
            crypto::unwrap(&self.secret, &info, enc, wrapped).ok_or(Error::Undecryptable)?;
        *last = Some((from, data_key.clone()));
        Ok(data_key)
    }
}

/// Shows the public identity only.
impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerKey({})", self.id())
    }
}

/// SubjectPublicKeyInfo in PEM; encoding a key that exists does not fail.
pub(crate) fn public_key_pem(key: &VerifyingKey) -> String {
    key.to_public_key_pem(LineEnding::LF).unwrap_or_default()
}

/// An encrypted P-256 key in PEM has about 400 bytes.
const MAX_KEY_FILE: usize = 16 * 1024;
