//! SoftHSM2 with tokens of one test's own, and a library that passes its calls
//! on to it, but fails on command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use zk_hsm::{Error, Hsm, HsmUri, Options};

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
        #[rustfmt::skip]
        softhsm2_util(&[
            "--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN,
        ]);
    }

    /// Puts a new key on a token. The id is in hexadecimal.
    pub(crate) fn import(&self, token: &str, label: &str, id: &str) -> SigningKey {
        let key = SigningKey::generate();
        let path = self.path("import.pem");
        write_secret(&path, &key.to_pkcs8_pem(LineEnding::LF).unwrap());
        let path = path.to_str().unwrap();
        #[rustfmt::skip]
        softhsm2_util(&[
            "--import", path, "--force", "--token", token, "--label", label, "--id", id, "--pin",
            PIN,
        ]);
        key
    }

    /// A URI with this path, and a PIN from a file.
    pub(crate) fn uri(&self, path: &str) -> HsmUri {
        let pin = self.path("pin");
        parse(&format!("pkcs11:{path}?pin-source=file:{}", pin.display()))
    }

    /// The same through the library that fails on command.
    pub(crate) fn shim_uri(&self, path: &str) -> HsmUri {
        let (shim, uri) = (self.path("shim.so"), self.uri(path));
        if !shim.exists() {
            self.compile_shim(&shim);
        }
        parse(&format!("{uri}&module-path={}", shim.display()))
    }

    fn compile_shim(&self, shim: &Path) {
        let mut command = Command::new("cc");
        command
            .args(["-shared", "-fPIC", "-o"])
            .arg(shim)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pkcs11/shim.c"))
            .arg(format!("-DLIBRARY=\"{}\"", softhsm2()))
            .arg(format!("-DDIRECTORY=\"{}\"", self.directory.display()));
        run(&mut command, "gcc");
    }

    /// Has the next calls of a function return a code.
    pub(crate) fn fail(&self, function: &str, code: u32, times: usize) {
        // at once, as it may be called meanwhile
        let draft = self.path("draft");
        fs::write(&draft, format!("{code:#x} {times} ")).unwrap();
        fs::rename(draft, self.path(function)).unwrap();
    }

    /// Has all tokens have these flags, and not those.
    pub(crate) fn flags(&self, set: u32, clear: u32) {
        fs::write(self.path("flags"), format!("{set:#x} {clear:#x} ")).unwrap();
    }

    /// How often a function was called through the shim.
    pub(crate) fn calls(&self, function: &str) -> usize {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().filter(|line| *line == function).count()
    }

    /// Puts objects on a token, as no tool makes them. Before anything is opened
    /// here: the library is finalized at the end.
    pub(crate) fn create(&self, token: &str, objects: &[Vec<Attribute>]) {
        let context = Pkcs11::new(softhsm2()).unwrap();
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        context.initialize(arguments).unwrap();
        let slots = context.get_slots_with_token().unwrap();
        let label = |slot: &Slot| context.get_token_info(*slot).unwrap().label() == token;
        let slot = slots.into_iter().find(label).unwrap();
        let session = context.open_rw_session(slot).unwrap();
        session
            .login(UserType::User, Some(&AuthPin::new(PIN.into())))
            .unwrap();
        for object in objects {
            session.create_object(object).unwrap();
        }
        session.close().unwrap();
        context.finalize().unwrap();
    }

    /// What pkcs11-tool says, logged in to a token. It fails the test if it
    /// fails.
    pub(crate) fn pkcs11_tool(&self, token: &str, arguments: &[&str]) -> String {
        let mut command = Command::new("pkcs11-tool");
        command
            .args(["--module", softhsm2(), "--token-label", token])
            .args(["--login", "--pin", PIN])
            .args(arguments);
        run(&mut command, "opensc")
    }
}

/// A P-256 private key on a token.
pub(crate) fn private_key(key: &SigningKey, label: &str, id: u8) -> Vec<Attribute> {
    let mut object = named(ObjectClass::PRIVATE_KEY, label, id);
    object.push(Attribute::Value(key.to_bytes().to_vec()));
    object
}

/// Its public key.
pub(crate) fn public_key(key: &SigningKey, label: &str, id: u8) -> Vec<Attribute> {
    let point = key.verifying_key().to_sec1_point(false);
    let mut object = named(ObjectClass::PUBLIC_KEY, label, id);
    // an OCTET STRING of 65 bytes
    object.push(Attribute::EcPoint(
        [&[0x04, 0x41], point.as_bytes()].concat(),
    ));
    object
}

/// An AES-256 key that doesn't leave its token.
pub(crate) fn lock_key(label: &str, key: [u8; 32]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Label(label.into()),
        Attribute::Value(key.to_vec()),
    ]
}

fn named(class: ObjectClass, label: &str, id: u8) -> Vec<Attribute> {
    vec![
        Attribute::Class(class),
        Attribute::KeyType(KeyType::EC),
        // the object identifier of P-256
        Attribute::EcParams(vec![6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]),
        Attribute::Token(true),
        Attribute::Label(label.into()),
        Attribute::Id(vec![id]),
    ]
}

/// Where Debian has SoftHSM2's library.
pub(crate) fn softhsm2() -> &'static str {
    let path = "/usr/lib/softhsm/libsofthsm2.so";
    assert!(
        Path::new(path).exists(),
        "this test needs SoftHSM2: apt-get install softhsm2"
    );
    path
}

pub(crate) fn parse(uri: &str) -> HsmUri {
    uri.parse().unwrap_or_else(|e| panic!("{uri}: {e}"))
}

pub(crate) fn open(uri: &HsmUri) -> Hsm {
    Hsm::open(uri, patient()).unwrap()
}

pub(crate) fn refused(uri: &HsmUri) -> Error {
    Hsm::open(uri, patient()).unwrap_err()
}

/// So patient that only a defect makes a test give up.
pub(crate) fn patient() -> Options {
    let mut options = Options::default();
    options.deadline = Duration::from_secs(60);
    options
}

/// What softhsm2-util says. It fails the test if it fails.
pub(crate) fn softhsm2_util(arguments: &[&str]) -> String {
    run(Command::new("softhsm2-util").args(arguments), "softhsm2")
}

/// What a program says, which is in `package`.
pub(crate) fn run(command: &mut Command, package: &str) -> String {
    let output: Output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}; run: apt-get install {package}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn write_secret(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) const PIN: &str = "8317402";
pub(crate) const SO_PIN: &str = "5550199";

/// Tells a process that it is one of its own.
const DIRECTORY: &str = "ZK_TEST_TOKENS";
