use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ecdsa::{SigningKey, der};
use p256::NistP256;
use sha2::{Digest, Sha256};
use signature::{Keypair, Signer};
use x509_cert::der::asn1::AnyRef;
use x509_cert::spki::{AlgorithmIdentifier, EncodePublicKey, SignatureAlgorithmIdentifier};
use zeroize::Zeroizing;

use crate::backend::{self, Opener};
use crate::certificate;
use crate::counters::Counters;
use crate::error::{Error, Hex, Operation};
use crate::subject::Subject;
use crate::uri::{BackendKind, HsmUri};
use crate::worker::{self, State, Worker};

/// A handle to one key in one HSM.
///
/// Clone it freely and use it from any thread: all clones lead to the one
/// thread that owns the HSM, and when the last one is dropped that thread
/// closes the HSM and ends; the drop waits for that, at most a second.
///
/// **Calls block** until the HSM has answered, at most for
/// [`Options::deadline`].
///
/// Behind the handle, in the order in which a call meets it:
///
/// 1. a bounded queue: when it is full the answer is [`Error::Busy`], at once;
/// 2. one call at a time in the HSM, and in its library, whatever other handles
///    this process has; while one is stuck there for longer than the deadline,
///    all others are answered [`Error::Wedged`], at once;
/// 3. every signature is verified under the public key that was read when the
///    HSM was opened; one that doesn't verify never leaves;
/// 4. after a [transient](crate::Class::Transient) failure the HSM is closed
///    and opened again, after a pause that doubles from 50 ms to 30 s while
///    failures go on; the failed call is made once more, if its time allows;
/// 5. an HSM that comes back with another key is closed for good, as after any
///    other [fatal](crate::Class::Fatal) failure, and each call is answered
///    with that same error.
///
/// ```
/// use signature::Verifier;
/// use zk_hsm::{Error, Hsm, Options, create_soft_key};
///
/// # let dir = tempfile::tempdir()?;
/// let uri = create_soft_key(dir.path().join("key.pem"))?;
/// let hsm = Hsm::open(&uri, Options::default())?;
///
/// let signature = hsm.sign(b"21.4 degrees")?;
/// hsm.public_key().verify(b"21.4 degrees", &signature)?;
///
/// let mut locked = hsm.lock(b"a secret")?;
/// assert_eq!(*hsm.unlock(&locked)?, b"a secret");
/// locked[20] ^= 1;
/// assert!(matches!(hsm.unlock(&locked), Err(Error::UnlockRefused)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Hsm(Arc<Inner>);

/// ECDSA on P-256: r and s. `to_bytes` gives r ‖ s, 32 bytes each, big-endian;
/// `to_der` gives the DER form of RFC 3279, which TLS and X.509 use.
pub type Signature = ecdsa::Signature<NistP256>;

/// The public half of the key.
pub type VerifyingKey = ecdsa::VerifyingKey<NistP256>;

struct Inner {
    uri: HsmUri,
    public_key: VerifyingKey,
    spki: Vec<u8>,
    worker: Worker,
}

impl Hsm {
    /// Opens the key that `uri` names, and reads its public key.
    ///
    /// A key for development is announced with a warning (through `tracing`).
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] if opening takes longer than
    /// the deadline; [`Error::Wedged`] if a call of another handle is stuck in
    /// the same library; otherwise what the backend reports: for `soft:` one of
    /// the `KeyFile…` variants, for a library [`Error::LibraryUnloadable`],
    /// [`Error::LibraryUntrusted`], [`Error::KeyMissing`] or
    /// [`Error::Library`]; for `pkcs11:` also [`Error::Pin`],
    /// [`Error::PinRefused`], [`Error::TokenMissing`], [`Error::Ambiguous`],
    /// [`Error::Unsupported`]. Opening isn't tried twice.
    pub fn open(uri: &HsmUri, options: Options) -> Result<Self, Error> {
        Self::with_opener(uri, backend::opener(uri, options.deadline), options)
    }

    pub(crate) fn with_opener(
        uri: &HsmUri,
        opener: Opener,
        options: Options,
    ) -> Result<Self, Error> {
        let (worker, public_key, info) = Worker::start(uri, opener, options)?;
        let spki = spki(&public_key)?;
        let (model, serial) = (info.model.as_deref(), info.serial.as_deref());
        if info.development {
            tracing::warn!(
                %uri, model, serial, key = %Hex(&key_id(&spki)),
                "DEVELOPMENT KEY: this key is not protected by hardware; never use it in the field"
            );
        } else {
            tracing::info!(%uri, model, serial, key = %Hex(&key_id(&spki)), "HSM opened");
        }
        Ok(Self(Arc::new(Inner {
            uri: uri.clone(),
            public_key,
            spki,
            worker,
        })))
    }

    /// What was opened.
    #[must_use]
    pub fn uri(&self) -> &HsmUri {
        &self.0.uri
    }

    /// The public key, as read when the HSM was opened. Costs nothing.
    #[must_use]
    pub fn public_key(&self) -> &VerifyingKey {
        &self.0.public_key
    }

    /// Signs a message: ECDSA on P-256 over its SHA-256, computed here. The
    /// signature has been verified; its s may be high.
    ///
    /// There is no way to sign a bare digest, so nobody can have this key sign
    /// a message that wasn't shown to it.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`], [`Error::TimedOut`], [`Error::Wedged`],
    /// [`Error::Unavailable`], [`Error::BadSignature`], [`Error::KeyChanged`],
    /// or what the backend reports.
    pub fn sign(&self, message: &[u8]) -> Result<Signature, Error> {
        let digest = Sha256::digest(message).into();
        self.0
            .worker
            .call(Operation::Sign, move |session| session.sign(&digest))
    }

    /// `n` random bytes, 1 to [`MAX_RANDOM`], from the HSM's own generator.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], or as for [`sign`](Self::sign).
    pub fn random(&self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        length("random bytes", n, 1, MAX_RANDOM)?;
        self.0
            .worker
            .call(Operation::Random, move |session| session.random(n))
    }

    /// Encrypts and authenticates up to [`MAX_LOCK`] bytes so that only this
    /// HSM can [`unlock`](Self::unlock) them. What comes out has a form of the
    /// backend's own and is somewhat longer.
    ///
    /// - A `soft:` key locks with AES-256-GCM under a key derived from the
    ///   private key: as good as the key file is kept, so for development.
    /// - A `pkcs11:` key locks with AES-256-GCM under a key on the token that
    ///   never leaves it. It has the private key's label and ` lock`, and is made
    ///   when the first data is locked.
    /// - What a Zymkey has locked was unlocked again once, before it is returned.
    ///
    /// ```
    /// use std::fs;
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// # fs::write(dir.join("secret"), "s3cr3t")?;
    /// # let uri = zk_hsm::create_soft_key(dir.join("key.pem"))?;
    /// # let hsm = zk_hsm::Hsm::open(&uri, zk_hsm::Options::default())?;
    ///
    /// // a file that is of use on this device only
    /// fs::write(dir.join("secret.locked"), hsm.lock(&fs::read(dir.join("secret"))?)?)?;
    /// fs::remove_file(dir.join("secret"))?;
    ///
    /// let secret = hsm.unlock(&fs::read(dir.join("secret.locked"))?)?;
    /// assert_eq!(*secret, b"s3cr3t");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Length`]; [`Error::UnlockUntrusted`] if it could never be
    /// unlocked; or as for [`sign`](Self::sign).
    pub fn lock(&self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        length("data to lock", plain.len(), 1, MAX_LOCK)?;
        let plain = Zeroizing::new(plain.to_vec());
        self.0
            .worker
            .call(Operation::Lock, move |session| session.backend.lock(&plain))
    }

    /// Gives back what was locked by this HSM. The buffer is zeroed when it is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`Error::UnlockRefused`] if the data is from elsewhere or was changed;
    /// [`Error::UnlockUntrusted`] if the HSM doesn't tell such data from good;
    /// [`Error::Length`], or as for [`sign`](Self::sign).
    pub fn unlock(&self, locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        length("locked data", locked.len(), 1, MAX_LOCK + MAX_LOCK_OVERHEAD)?;
        let locked = locked.to_vec();
        self.0.worker.call(Operation::Unlock, move |session| {
            session.backend.unlock(&locked)
        })
    }

    /// What the HSM says of itself.
    ///
    /// # Errors
    ///
    /// As for [`sign`](Self::sign).
    pub fn info(&self) -> Result<Info, Error> {
        self.0
            .worker
            .call(Operation::Info, |session| session.backend.info())
    }

    /// What the HSM measures, and whether somebody has opened its case.
    ///
    /// # Errors
    ///
    /// As for [`sign`](Self::sign). What the model can't tell is no error, but
    /// `None` in the answer.
    pub fn health(&self) -> Result<Health, Error> {
        self.0
            .worker
            .call(Operation::Health, |session| session.backend.health())
    }

    /// How the HSM is at this moment. Asks nothing of it.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.worker.state()
    }

    /// What has happened since it was opened. Asks nothing of it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.worker.counters()
    }

    /// A request for a TLS client certificate for this key: PKCS#10 (RFC 2986)
    /// in PEM, asking for key usage digitalSignature and extended key usage
    /// clientAuth. A text is the common name; [`Subject`] has more. Costs one
    /// signature.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let uri = zk_hsm::create_soft_key(dir.path().join("key.pem"))?;
    /// # let hsm = zk_hsm::Hsm::open(&uri, zk_hsm::Options::default())?;
    /// let pem = hsm.csr("pi-01")?;
    /// assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Subject`], [`Error::Encoding`], or as for
    /// [`sign`](Self::sign).
    pub fn csr(&self, subject: impl Into<Subject>) -> Result<String, Error> {
        certificate::request(self, &subject.into())
    }

    /// A TLS client certificate for this key that the key itself signs: X.509
    /// version 3 in PEM. Costs one signature.
    ///
    /// It vouches for nothing but itself: servers accept it only where it, or
    /// its hash, is registered, as by AWS IoT's `register-certificate-without-ca`,
    /// or pinned as a trust anchor. It is CA:FALSE, for digitalSignature and
    /// clientAuth, with a random serial number of 126 bits; it is valid from an
    /// hour before now (for servers whose clock is behind) until `lifetime`
    /// from now, a second to 100 years.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use rustls::RootCertStore;
    /// use rustls::pki_types::CertificateDer;
    /// use rustls::pki_types::pem::PemObject;
    /// # let dir = tempfile::tempdir()?;
    /// # let uri = zk_hsm::create_soft_key(dir.path().join("key.pem"))?;
    /// # let hsm = zk_hsm::Hsm::open(&uri, zk_hsm::Options::default())?;
    ///
    /// let pem = hsm.self_signed("pi-01", Duration::from_secs(365 * 24 * 60 * 60))?;
    ///
    /// // once it is registered, it is the whole chain
    /// let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes())?];
    /// let config = hsm.client_config(chain, RootCertStore::empty(), &[])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Subject`]; [`Error::Validity`], also if the clock of this
    /// machine isn't set; [`Error::Encoding`], [`Error::Random`], or as for
    /// [`sign`](Self::sign).
    pub fn self_signed(
        &self,
        subject: impl Into<Subject>,
        lifetime: Duration,
    ) -> Result<String, Error> {
        certificate::self_signed(self, &subject.into(), lifetime, SystemTime::now())
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    #[cfg(test)]
    pub(crate) fn worker(&self) -> &Worker {
        &self.0.worker
    }
}

impl fmt::Debug for Hsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hsm")
            .field("uri", &format_args!("{}", self.0.uri))
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Keypair for Hsm {
    type VerifyingKey = VerifyingKey;

    fn verifying_key(&self) -> VerifyingKey {
        self.0.public_key
    }
}

impl SignatureAlgorithmIdentifier for Hsm {
    type Params = AnyRef<'static>;

    const SIGNATURE_ALGORITHM_IDENTIFIER: AlgorithmIdentifier<AnyRef<'static>> =
        SigningKey::<NistP256>::SIGNATURE_ALGORITHM_IDENTIFIER;
}

/// The error's `source` is an [`Error`] of this crate. Prefer `try_sign`: the
/// trait's `sign` panics when signing fails, and an HSM's signing can fail.
impl Signer<Signature> for Hsm {
    fn try_sign(&self, message: &[u8]) -> Result<Signature, signature::Error> {
        Self::sign(self, message).map_err(signature::Error::from_source)
    }
}

/// What the builders of `x509-cert` want: an [`Hsm`] can sign certificates.
impl Signer<der::Signature<NistP256>> for Hsm {
    fn try_sign(&self, message: &[u8]) -> Result<der::Signature<NistP256>, signature::Error> {
        Self::sign(self, message)
            .map(Into::into)
            .map_err(signature::Error::from_source)
    }
}

/// How calls are bounded.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How long a caller waits for an answer, its time in the queue included;
    /// how long opening may take; and after how long one call inside the HSM
    /// counts as stuck. 10 s by default, at most a day.
    pub deadline: Duration,
    /// How many calls may wait while one is in the HSM. 32 by default, at
    /// least 1.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            queue: 32,
        }
    }
}

/// What an HSM says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// Through what it is reached.
    pub backend: BackendKind,
    /// The model's name.
    pub model: Option<String>,
    /// The serial number.
    pub serial: Option<String>,
    /// The version of the firmware.
    pub firmware: Option<String>,
    /// No hardware protects this key: it is in a file, or the HSM is simulated.
    pub development: bool,
}

/// What an HSM measures. `None` is what this model, or this version of its
/// library, can't tell.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Health {
    /// Whether the HSM belongs to this machine.
    pub binding: Option<Binding>,
    /// The voltage of its battery.
    pub battery_volts: Option<f32>,
    /// The temperature of its processor, in degrees Celsius.
    pub cpu_celsius: Option<f32>,
    /// Its clock, in whole seconds.
    pub time: Option<SystemTime>,
    /// For each perimeter circuit, when it was last found broken.
    pub perimeter: Option<Vec<Option<SystemTime>>>,
}

/// Whether an HSM belongs to one machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Binding {
    /// It works in this machine only, for good.
    pub locked: bool,
    /// It is in the machine that it is bound to.
    pub bound: bool,
}

/// A key in an HSM.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyEntry {
    /// What opens it.
    pub uri: HsmUri,
    /// Its public key; `None` if the HSM doesn't give that out.
    pub public_key: Option<VerifyingKey>,
}

/// The P-256 keys of the HSM that `uri` names; which of its keys `uri` names,
/// and whether there is such a key, doesn't matter.
///
/// # Errors
///
/// [`Error::Unsupported`], [`Error::TimedOut`] after `deadline`, or what the
/// backend reports.
pub fn list_keys(uri: &HsmUri, deadline: Duration) -> Result<Vec<KeyEntry>, Error> {
    let target = uri.clone();
    worker::once(uri, Operation::List, deadline, move || {
        backend::list(&target, deadline)
    })
}

/// Makes a new P-256 key in the HSM that `uri` names, and returns the URI that
/// opens it.
///
/// - `soft:`: the file is created, as by [`create_soft_key`](crate::create_soft_key);
/// - `pkcs11:`: the key gets the label and id of the URI. It can't leave the
///   token. Without an id it gets a random one. If there is a private key of
///   that label or that id already, that is [`Error::KeyExists`];
/// - `zymkey:`: the HSM chooses a free slot, whatever slot `uri` has. Models
///   with no room for keys of the user's answer [`Error::Unsupported`].
///
/// It is not tried twice. After [`Error::TimedOut`] there may be a new key:
/// [`list_keys`] tells.
///
/// # Errors
///
/// [`Error::Unsupported`], [`Error::TimedOut`] after `deadline`, or what the
/// backend reports.
pub fn generate_key(uri: &HsmUri, deadline: Duration) -> Result<HsmUri, Error> {
    let target = uri.clone();
    worker::once(uri, Operation::Generate, deadline, move || {
        backend::generate(&target, deadline)
    })
}

/// SubjectPublicKeyInfo, DER.
pub(crate) fn spki(key: &VerifyingKey) -> Result<Vec<u8>, Error> {
    let document = key
        .to_public_key_der()
        .map_err(x509_cert::builder::Error::from)?;
    Ok(document.into_vec())
}

/// What a key is called in messages: SHA-256 of its SubjectPublicKeyInfo DER.
pub(crate) fn key_id(spki: &[u8]) -> [u8; 32] {
    Sha256::digest(spki).into()
}

fn length(what: &'static str, len: usize, min: usize, max: usize) -> Result<(), Error> {
    if (min..=max).contains(&len) {
        Ok(())
    } else {
        Err(Error::Length {
            what,
            len,
            min,
            max,
        })
    }
}

/// The most bytes that [`Hsm::lock`] takes at once: 128 KiB.
pub const MAX_LOCK: usize = 128 * 1024;

/// The most bytes that [`Hsm::random`] gives at once: 64 KiB.
pub const MAX_RANDOM: usize = 64 * 1024;

/// The most bytes by which a backend makes locked data longer.
pub(crate) const MAX_LOCK_OVERHEAD: usize = 4096;
