//! SoftHSM2 with tokens of one test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use zk_hsm::HsmUri;

/// The directory of one test.
pub(crate) struct Tokens {
    directory: PathBuf,
}

/// Runs `test`, which is called `name`, in a process of its own: where SoftHSM2
/// has its tokens is known per process, from the environment.
pub(crate) fn alone(name: &str, test: impl FnOnce(&Tokens)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return test(&Tokens {
            directory: directory.into(),
        });
    }
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path();
    for name in ["tokens", "credentials"] {
        fs::create_dir(path.join(name)).unwrap();
    }
    let configuration = path.join("softhsm2.conf");
    let tokens = path.join("tokens");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(&configuration, text).unwrap();
    write_secret(&path.join("pin"), PIN);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--include-ignored", "--nocapture"])
        .env(DIRECTORY, path)
        .env("SOFTHSM2_CONF", &configuration)
        .env("CREDENTIALS_DIRECTORY", path.join("credentials"))
        .env("ZK_TEST_PIN", PIN)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Tokens {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new token.
    pub(crate) fn make(&self, label: &str) {
        softhsm2_util(&[
            "--init-token",
            "--free",
            "--label",
            label,
            "--so-pin",
            SO_PIN,
            "--pin",
            PIN,
        ]);
    }

    /// Puts a new key on a token. The id is in hexadecimal.
    pub(crate) fn import(&self, token: &str, label: &str, id: &str) -> SigningKey {
        let key = SigningKey::generate();
        self.import_pem(token, label, id, &key.to_pkcs8_pem(LineEnding::LF).unwrap());
        key
    }

    pub(crate) fn import_pem(&self, token: &str, label: &str, id: &str, pem: &str) {
        let path = self.path("import.pem");
        write_secret(&path, pem);
        let path = path.to_str().unwrap();
        softhsm2_util(&[
            "--import", path, "--force", "--token", token, "--label", label, "--id", id, "--pin",
            PIN,
        ]);
    }

    /// A URI with this path, and a PIN from a file.
    pub(crate) fn uri(&self, path: &str) -> HsmUri {
        let pin = self.path("pin");
        format!("pkcs11:{path}?pin-source=file:{}", pin.display())
            .parse()
            .unwrap()
    }
}

/// What softhsm2-util says. It fails the test if it fails.
pub(crate) fn softhsm2_util(arguments: &[&str]) -> String {
    let mut command = Command::new("softhsm2-util");
    let output = command
        .args(arguments)
        .output()
        .expect("this test needs SoftHSM2: apt-get install softhsm2");
    succeeded(&command, &output)
}

pub(crate) fn succeeded(command: &Command, output: &Output) -> String {
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn write_secret(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) const PIN: &str = "8317402";
pub(crate) const SO_PIN: &str = "5550199";

/// Tells a process that it is one of its own.
const DIRECTORY: &str = "ZK_TEST_TOKENS";
