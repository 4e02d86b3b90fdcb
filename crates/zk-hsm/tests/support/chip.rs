//! Simulated chips, for the tests of `zymkey:`.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use signature::Verifier;
use tempfile::TempDir;
use zk_hsm::{Error, Hsm, HsmUri, Options, Signature};
use zk_hsm_sim::{Device, Rule, Settings};

/// A device of its own, which ends with the test.
pub(crate) struct Chip {
    pub(crate) device: Device,
    _directory: TempDir,
}

impl Chip {
    pub(crate) fn new(settings: impl Into<Settings>) -> Self {
        let directory = TempDir::new().unwrap();
        let device = Device::create(directory.path(), settings).unwrap();
        Self {
            device,
            _directory: directory,
        }
    }

    pub(crate) fn uri(&self, slot: u16) -> HsmUri {
        uri(&self.device.module_path(), slot)
    }

    pub(crate) fn open(&self) -> Hsm {
        Hsm::open(&self.uri(0), options()).unwrap()
    }

    /// From the next call on these go wrong, and nothing else.
    pub(crate) fn fail(&self, rules: impl IntoIterator<Item = Rule>) {
        let mut faults = self.device.faults().unwrap();
        faults.rules = rules.into_iter().collect();
        self.device.set_faults(&faults).unwrap();
    }

    pub(crate) fn restart_daemon(&self) {
        let mut faults = self.device.faults().unwrap();
        faults.daemon.restarts += 1;
        self.device.set_faults(&faults).unwrap();
    }
}

pub(crate) fn uri(library: &Path, slot: u16) -> HsmUri {
    let library = library.to_str().unwrap();
    format!("zymkey:slot={slot}?module-path={library}")
        .parse()
        .unwrap()
}

/// Signs, and sees with other code than the HSM's that it is a signature.
pub(crate) fn sign(hsm: &Hsm, message: &[u8]) -> Result<Signature, Error> {
    let signature = hsm.sign(message)?;
    p256::ecdsa::VerifyingKey::verify(hsm.public_key(), message, &signature)
        .expect("no wrong signature leaves");
    Ok(signature)
}

/// So patient that only a defect makes a test give up.
pub(crate) fn options() -> Options {
    patient(PATIENCE)
}

pub(crate) fn patient(deadline: Duration) -> Options {
    let mut options = Options::default();
    options.deadline = deadline;
    options
}

/// Returns when `holds` does.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::yield_now();
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
