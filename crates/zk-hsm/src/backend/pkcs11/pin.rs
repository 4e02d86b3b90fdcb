//! PINs: where they come from, and which ones a token has refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cryptoki::types::RawAuthPin;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::uri::PinSource;

/// A PIN. It is zeroed when it is dropped.
pub(super) struct Pin(Zeroizing<Vec<u8>>);

impl Pin {
    /// The PIN from where `source` says, without the line's end.
    pub(super) fn read(source: &PinSource) -> Result<Self, Error> {
        let refused = |problem| Error::Pin {
            pin_source: source.to_string().into(),
            problem,
        };
        let mut pin = match source {
            PinSource::File(path) => file(path, 0o077),
            PinSource::Credential(name) => std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or(NO_CREDENTIALS)
                // systemd gives the service's user access by group or by an access
                // list, which shows as the group's
                .and_then(|directory| file(&Path::new(&directory).join(name), 0o037)),
            PinSource::Env(name) => {
                tracing::warn!(
                    variable = name,
                    "the PIN comes from the environment, which other programs of this user can \
                     read; prefer pin-source=credential:NAME or a file of mode 0600"
                );
                std::env::var_os(name)
                    .map(|value| Zeroizing::new(value.into_vec()))
                    .ok_or("there is no such variable in the environment")
            }
        }
        .map_err(refused)?;
        if pin.ends_with(b"\n") {
            pin.pop();
            if pin.ends_with(b"\r") {
                pin.pop();
            }
        }
        if pin.is_empty() {
            return Err(refused("it is empty; put the PIN there"));
        }
        if pin.len() > MAX_PIN {
            return Err(refused(
                "it holds more than 255 bytes, so it is no PIN; put the PIN there, and nothing else",
            ));
        }
        Ok(Self(pin))
    }

    /// For cryptoki, which zeroes its copy, too.
    pub(super) fn raw(&self) -> RawAuthPin {
        RawAuthPin::new(Box::new(self.0.to_vec()))
    }

    /// The PIN as `refused` keeps it: nothing can be made of it outside of this
    /// process.
    fn fingerprint(&self, salt: &[u8; 32]) -> [u8; 32] {
        Sha256::new()
            .chain_update(salt)
            .chain_update(&*self.0)
            .finalize()
            .into()
    }
}

/// The PINs that were refused in this process. A token counts wrong ones and
/// locks itself after a few, so none is tried twice; another one may be.
pub(super) struct Refusals {
    salt: [u8; 32],
    /// By library and token.
    last: HashMap<(PathBuf, String), [u8; 32]>,
}

impl Refusals {
    /// Does something with those of this process.
    pub(super) fn with<T>(work: impl FnOnce(&mut Self) -> T) -> Result<T, Error> {
        static REFUSALS: Mutex<Option<Refusals>> = Mutex::new(None);
        let mut refusals = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = match &mut *refusals {
            Some(refusals) => refusals,
            none => {
                let mut salt = [0; 32];
                getrandom::fill(&mut salt).map_err(|source| Error::Random { source })?;
                none.insert(Self {
                    salt,
                    last: HashMap::new(),
                })
            }
        };
        Ok(work(refusals))
    }

    pub(super) fn contain(&self, library: &Path, token: &str, pin: &Pin) -> bool {
        let key = (library.to_owned(), token.to_owned());
        self.last.get(&key) == Some(&pin.fingerprint(&self.salt))
    }

    pub(super) fn add(&mut self, library: &Path, token: &str, pin: &Pin) {
        let key = (library.to_owned(), token.to_owned());
        self.last.insert(key, pin.fingerprint(&self.salt));
    }
}

/// What is in a file that only this user or root can have read and written.
fn file(path: &Path, others: u32) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let failed = |kind| match kind {
        ErrorKind::NotFound => "there is no such file",
        ErrorKind::PermissionDenied => {
            "this user may not read it; give it to the user that runs this program"
        }
        _ => "it can't be read",
    };
    // a named pipe would be waited for without NONBLOCK
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| failed(errno.kind()))?;
    // of the file that is open, not of the one that has the name by then
    let metadata = file.metadata().map_err(|e| failed(e.kind()))?;
    if !metadata.is_file() {
        return Err("it is not a regular file");
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
        return Err("it belongs to another user; give it to the user that runs this program");
    }
    if metadata.mode() & others != 0 {
        return Err(
            "others than its owner have access to it; run `chmod 600` on it, and if somebody may \
             have read it, set another PIN",
        );
    }
    // the full capacity at once, so that growing leaves no copy behind
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE));
    file.take(MAX_FILE as u64)
        .read_to_end(&mut content)
        .map_err(|e| failed(e.kind()))?;
    Ok(content)
}

/// PKCS#11 libraries take no more.
const MAX_PIN: usize = 255;
const MAX_FILE: usize = 512;

const NO_CREDENTIALS: &str = "this program was given no credentials; start it by systemd, with \
    LoadCredential= or LoadCredentialEncrypted= in the unit";
