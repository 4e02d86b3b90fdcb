//! What the tests share: set-ups, certificate requests as devices make them,
//! and the openssl program.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use getrandom::SysRng;
use p256::SecretKey;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::elliptic_curve::Generate;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use x509_cert::builder::Builder;
use x509_cert::der::EncodePem;
use x509_cert::der::pem::LineEnding;
use x509_cert::request::RequestBuilder;
use zk_envelope::DeviceId;
use zk_provision::{Action, CertificateRequest, Gateway, LocalSetup, Passphrase, Step};

pub(crate) const PASSPHRASE: &str = "correct horse battery";

pub(crate) fn passphrase() -> Passphrase {
    Passphrase::new(PASSPHRASE.to_owned()).unwrap()
}

/// Monday, 2026-11-23 11:20:44 UTC.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_432_844)
}

pub(crate) fn years(count: u32) -> Duration {
    count * Duration::from_secs(365 * 24 * 60 * 60)
}

pub(crate) fn id(name: &str) -> DeviceId {
    DeviceId::try_from(name).unwrap()
}

pub(crate) fn names(names: &[&str]) -> Vec<ServerName<'static>> {
    names
        .iter()
        .map(|name| ServerName::try_from(name.to_string()).unwrap())
        .collect()
}

/// An operator's directory with both authorities. They are made once and copied
/// for each test, since locking a key takes its time.
pub(crate) fn authorities() -> (TempDir, LocalSetup) {
    static MADE: LazyLock<TempDir> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        LocalSetup::new(dir.path().join("zk"))
            .init_authorities(&passphrase(), now())
            .unwrap();
        dir
    });
    let dir = tempfile::tempdir().unwrap();
    let setup = LocalSetup::new(dir.path().join("zk"));
    for made in ["", "ca"] {
        DirBuilder::new()
            .mode(0o700)
            .create(setup.dir().join(made))
            .unwrap();
    }
    for file in fs::read_dir(MADE.path().join("zk/ca")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), setup.dir().join("ca").join(file.file_name())).unwrap();
    }
    (dir, setup)
}

/// And with a gateway and its store.
pub(crate) async fn gateway() -> (TempDir, LocalSetup) {
    let (dir, setup) = authorities();
    let gateway = Gateway {
        names: names(&["gateway.example", "192.0.2.7", "2001:db8::7"]),
        ..Gateway::default()
    };
    setup
        .init_gateway(&gateway, &passphrase(), now())
        .await
        .unwrap();
    (dir, setup)
}

pub(crate) fn key() -> SigningKey {
    SecretKey::try_generate_from_rng(&mut SysRng)
        .unwrap()
        .into()
}

pub(crate) fn request_pem(subject: &str, key: &SigningKey) -> String {
    let builder = RequestBuilder::new(subject.parse().unwrap()).unwrap();
    builder
        .build::<_, DerSignature>(key)
        .unwrap()
        .to_pem(LineEnding::LF)
        .unwrap()
}

pub(crate) fn request(device: &str, key: &SigningKey) -> CertificateRequest {
    let pem = request_pem(&format!("CN={device}"), key);
    CertificateRequest::from_pem(pem.as_bytes(), &id(device)).unwrap()
}

/// Runs openssl and returns what it said.
pub(crate) fn openssl(arguments: &[&str], input: &[u8]) -> Output {
    let spawned = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        panic!("the openssl program is missing; install it with: apt-get install openssl");
    };
    // openssl may end before it has read everything
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Runs openssl, which must succeed, and returns its standard output.
pub(crate) fn openssl_ok(arguments: &[&str], input: &[u8]) -> String {
    let output = openssl(arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs openssl, which must refuse for this reason.
pub(crate) fn openssl_refuses(arguments: &[&str], reason: &str) {
    let output = openssl(arguments, b"");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "openssl {arguments:?} accepted");
    assert!(said.contains(reason), "openssl {arguments:?}: {said}");
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn actions(steps: &[Step]) -> Vec<Action> {
    steps.iter().map(|step| step.action).collect()
}

/// All files below `dir` but the store's, with their bytes.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if !path.to_str().unwrap().contains("store.db") {
                found.insert(
                    path.strip_prefix(dir).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    found
}
