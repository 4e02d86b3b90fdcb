//! C libraries with bad manners, made from `zymkey.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use zk_hsm::{Error, Hsm, HsmUri};

use crate::chip::{options, uri};

/// A library in a directory of its own.
pub(crate) struct Stub {
    pub(crate) path: PathBuf,
    _directory: TempDir,
}

impl Stub {
    /// Made with these definitions for the preprocessor.
    pub(crate) fn new(defines: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("libzk_app_utils.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/zymkey.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-w", "-o"])
            .arg(&path)
            .arg(source)
            .args(defines.iter().map(|define| format!("-D{define}")))
            .output()
            .expect("a C compiler: apt-get install gcc");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        Self {
            path,
            _directory: directory,
        }
    }

    pub(crate) fn uri(&self) -> HsmUri {
        uri(&self.path, 0)
    }

    pub(crate) fn open(&self) -> Hsm {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> Result<Hsm, Error> {
        Hsm::open(&self.uri(), options())
    }
}

/// The only message that a stub can sign.
pub(crate) const MESSAGE: &[u8] = b"hello world";
