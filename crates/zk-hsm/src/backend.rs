pub(crate) mod soft;

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::error::Error;
use crate::hsm::{Info, VerifyingKey};
use crate::uri::{HsmUri, Target};

/// One open connection to one key. It lives and dies on the worker's thread,
/// so it need not be `Send`; dropping it closes it.
///
/// Every call may be made twice in a row: after a transient failure the worker
/// opens a new backend and repeats the call there.
pub(crate) trait Backend {
    fn info(&mut self) -> Result<Info, Error>;

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

pub(crate) fn opener(uri: &HsmUri) -> Result<Opener, Error> {
    match uri.target() {
        Target::Soft { path } => {
            let path = PathBuf::from(path);
            Ok(Box::new(move || Ok(Box::new(soft::Soft::open(&path)?))))
        }
        Target::Pkcs11(_) | Target::Zymkey { .. } => Err(Error::NoBackend {
            backend: uri.backend(),
        }),
    }
}
