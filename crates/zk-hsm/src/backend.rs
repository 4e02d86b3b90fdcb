mod pkcs11;
pub(crate) mod soft;
mod zymkey;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::Error;
use crate::hsm::{Health, Info, KeyEntry, VerifyingKey};
use crate::library::Chip;
use crate::uri::{HsmUri, Target};

/// One open connection to one key. It lives and dies on the worker's thread,
/// so it need not be `Send`; dropping it closes it.
///
/// Every call may be made twice in a row: after a transient failure the worker
/// opens a new backend and repeats the call there.
pub(crate) trait Backend {
    /// At whose door its calls wait, if it is one of a library's.
    fn chip(&self) -> Option<Arc<Chip>> {
        None
    }

    fn info(&mut self) -> Result<Info, Error>;

    /// What the HSM can't tell is `None` there; an error is a failure.
    fn health(&mut self) -> Result<Health, Error>;

    fn public_key(&mut self) -> Result<VerifyingKey, Error>;

    /// ECDSA over a SHA-256 digest: r ‖ s, 32 bytes each, big-endian. High s is
    /// allowed. The worker checks it.
    fn sign(&mut self, digest: &[u8; 32]) -> Result<[u8; 64], Error>;

    /// Exactly `n` bytes, 1 to [`MAX_RANDOM`](crate::MAX_RANDOM).
    fn random(&mut self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error>;

    fn lock(&mut self, plain: &[u8]) -> Result<Vec<u8>, Error>;

    /// [`Error::UnlockRefused`] when the data isn't from this HSM or was changed.
    fn unlock(&mut self, locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error>;
}

/// Opens the same key again and again, on the worker's thread.
pub(crate) type Opener = Box<dyn FnMut() -> Result<Box<dyn Backend>, Error> + Send>;

/// `deadline` is for how long it may wait for others of this process who use
/// the same library.
pub(crate) fn opener(uri: &HsmUri, deadline: Duration) -> Opener {
    match uri.target() {
        Target::Soft { path } => {
            let path = PathBuf::from(path);
            Box::new(move || Ok(Box::new(soft::Soft::open(&path)?)))
        }
        Target::Pkcs11(key) => pkcs11::opener(uri, key, deadline),
        Target::Zymkey { slot, module } => zymkey::opener(uri, *slot, module.as_deref(), deadline),
    }
}

/// What a library says, without what could mislead on a terminal or in a log.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// All P-256 keys of the HSM that `uri` names; which of its keys it names
/// doesn't matter. On a thread of its own, as is [`generate`].
pub(crate) fn list(uri: &HsmUri, deadline: Duration) -> Result<Vec<KeyEntry>, Error> {
    match uri.target() {
        Target::Soft { path } => soft::list(uri, path.as_ref()),
        Target::Pkcs11(key) => pkcs11::list(uri, key, deadline),
        Target::Zymkey { module, .. } => zymkey::list(uri, module.as_deref(), deadline),
    }
}

/// Makes a new P-256 key in the HSM that `uri` names.
pub(crate) fn generate(uri: &HsmUri, deadline: Duration) -> Result<HsmUri, Error> {
    match uri.target() {
        Target::Soft { path } => soft::create_soft_key(path),
        Target::Pkcs11(key) => pkcs11::generate(uri, key, deadline),
        Target::Zymkey { module, .. } => zymkey::generate(uri, module.as_deref(), deadline),
    }
}
