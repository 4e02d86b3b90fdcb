use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use aes_gcm::aead::{Aead, AeadInOut, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key};
use ecdsa::SigningKey;
use hkdf::Hkdf;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use p256::{NistP256, SecretKey};
use rustix::fs::{Mode, OFlags};
use sha2::Sha256;
use signature::hazmat::PrehashSigner;
use zeroize::Zeroizing;

use super::Backend;
use crate::error::{Class, Error};
use crate::hsm::{Health, Info, KeyEntry, Signature, VerifyingKey};
use crate::uri::{BackendKind, HsmUri};

/// Makes a new P-256 key in a new file: PEM PKCS#8, not encrypted, mode 0600.
/// Returns the URI that opens it.
///
/// The file appears complete or not at all, and survives a power cut once this
/// returns. **Such a key is for development**: whoever reads the file has the
/// key.
///
/// # Errors
///
/// [`Error::KeyFileExists`] if there is anything at `path`, [`Error::KeyFileIo`]
/// if it can't be written, [`Error::Uri`] if the path isn't UTF-8,
/// [`Error::Random`].
pub fn create_soft_key(path: impl AsRef<Path>) -> Result<HsmUri, Error> {
    let path = path.as_ref();
    let failed = |action| {
        move |source| Error::KeyFileIo {
            path: path.to_owned(),
            action,
            source: Arc::new(source),
        }
    };
    let path = &std::path::absolute(path).map_err(failed("find"))?;
    let uri = HsmUri::soft(path)?;
    let secret = SecretKey::try_generate().map_err(|source| Error::Random { source })?;
    let pem = secret
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|e| x509_cert::builder::Error::from(x509_cert::spki::Error::from(e)))?;
    let dir = path.parent().unwrap_or(path);
    // of mode 0600 from the start, and not yet under its name
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed("create"))?;
    file.write_all(pem.as_bytes()).map_err(failed("write"))?;
    file.as_file().sync_all().map_err(failed("sync"))?;
    file.persist_noclobber(path)
        .map_err(|e| match e.error.kind() {
            ErrorKind::AlreadyExists => Error::KeyFileExists { path: path.clone() },
            _ => failed("name")(e.error),
        })?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync the directory of"))?;
    Ok(uri)
}

/// The one key of a key file, or none.
pub(crate) fn list(uri: &HsmUri, path: &Path) -> Result<Vec<KeyEntry>, Error> {
    match Soft::open(path) {
        Ok(mut key) => Ok(vec![KeyEntry {
            uri: uri.clone(),
            public_key: Some(key.public_key()?),
        }]),
        Err(Error::KeyFileIo { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// A private key in this process: for development.
pub(crate) struct Soft {
    secret: SigningKey<NistP256>,
    lock: Aes256Gcm,
}

impl Soft {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let pem = read(path)?;
        let format = |problem| Error::KeyFileFormat {
            path: path.to_owned(),
            problem,
        };
        let pem = std::str::from_utf8(&pem).map_err(|_| format(NOT_A_KEY))?;
        let secret = SigningKey::from_pkcs8_pem(pem).map_err(|_| {
            format(if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
                ENCRYPTED
            } else if pem.contains("-----BEGIN EC PRIVATE KEY-----") {
                SEC1
            } else {
                NOT_A_KEY
            })
        })?;
        let scalar = Zeroizing::new(secret.to_bytes());
        let mut key = Zeroizing::new(Key::<Aes256Gcm>::default());
        Hkdf::<Sha256>::new(None, &scalar[..])
            .expand(LOCK_LABEL, &mut key[..])
            .map_err(|_| failure("HKDF-Expand"))?;
        Ok(Self {
            secret,
            lock: Aes256Gcm::new(&key),
        })
    }
}

impl Backend for Soft {
    fn info(&mut self) -> Result<Info, Error> {
        Ok(Info {
            backend: BackendKind::Soft,
            model: Some("key file".to_owned()),
            serial: None,
            firmware: None,
            development: true,
        })
    }

    fn health(&mut self) -> Result<Health, Error> {
        Ok(Health::default())
    }

    fn public_key(&mut self) -> Result<VerifyingKey, Error> {
        Ok(*self.secret.verifying_key())
    }

    fn sign(&mut self, digest: &[u8; 32]) -> Result<[u8; 64], Error> {
        let signature: Signature = self
            .secret
            .sign_prehash(digest)
            .map_err(|_| failure("ECDSA sign"))?;
        Ok(signature.to_bytes().into())
    }

    fn random(&mut self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut bytes = Zeroizing::new(vec![0; n]);
        getrandom::fill(&mut bytes).map_err(|source| Error::Random { source })?;
        Ok(bytes)
    }

    fn lock(&mut self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|source| Error::Random { source })?;
        let payload = Payload {
            msg: plain,
            aad: LOCK_MAGIC,
        };
        let sealed = self
            .lock
            .encrypt(&nonce.into(), payload)
            .map_err(|_| failure("AES-GCM encrypt"))?;
        Ok([LOCK_MAGIC, &nonce, &sealed].concat())
    }

    fn unlock(&mut self, locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (nonce, sealed) = locked
            .strip_prefix(LOCK_MAGIC)
            .and_then(<[u8]>::split_first_chunk::<NONCE>)
            .ok_or(Error::UnlockRefused)?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        self.lock
            .decrypt_in_place(nonce.into(), LOCK_MAGIC, &mut *buffer)
            .map_err(|_| Error::UnlockRefused)?;
        Ok(buffer)
    }
}

/// The file's content, if nobody but its owner can have read it.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |action| {
        move |source| Error::KeyFileIo {
            path: path.to_owned(),
            action,
            source: Arc::new(source),
        }
    };
    // a named pipe would be waited for without NONBLOCK; files know no such thing
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| failed("open")(errno.into()))?;
    // of the file that is open, not of the one that has the name by then
    let metadata = file.metadata().map_err(failed("examine"))?;
    if !metadata.is_file() {
        let problem = "it is not a regular file";
        return Err(Error::KeyFileFormat {
            path: path.to_owned(),
            problem,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::KeyFilePermissions {
            path: path.to_owned(),
            mode,
        });
    }
    // the full capacity at once, so that growing leaves no copy behind; what is
    // longer is no key, and is cut
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE));
    file.take(MAX_FILE as u64)
        .read_to_end(&mut content)
        .map_err(failed("read"))?;
    Ok(content)
}

/// What can't happen with arguments of these sizes, as an error instead of a
/// panic.
fn failure(function: &'static str) -> Error {
    Error::Library {
        hsm: "soft".into(),
        function,
        code: 0,
        meaning: "a defect",
        class: Class::Fatal,
        next: "report it",
    }
}

/// Locked data: magic (4 bytes), nonce (12), AES-256-GCM ciphertext, tag (16);
/// the magic is authenticated, too. Its last byte is the version.
const LOCK_MAGIC: &[u8] = b"ZKS1";
const NONCE: usize = 12;

/// HKDF-SHA-256 info; no salt; the input key is the private scalar, 32 bytes.
const LOCK_LABEL: &[u8] = b"zk-hsm soft lock 1";

/// A PKCS#8 P-256 key in PEM has about 240 bytes.
const MAX_FILE: usize = 16 * 1024;

const ENCRYPTED: &str = "it is encrypted, and a service has nobody to ask for the password; write \
    it unencrypted with `openssl pkcs8 -in OLD -out NEW`, with mode 0600";
const NOT_A_KEY: &str = "it is not a PEM PKCS#8 private key on curve P-256; make one with `openssl \
    genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out NEW`, with mode 0600";
const SEC1: &str = "it is in SEC1 form; convert it with `openssl pkcs8 -topk8 -nocrypt -in OLD -out \
    NEW`, with mode 0600";
