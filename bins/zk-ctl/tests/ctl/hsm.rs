//! The key, used by hand. OpenSSL is the second opinion.

use std::fs;
use std::process::Command;

use tempfile::TempDir;
use zk_hsm::{Hsm, Options};

use crate::world::{Run, World, ctl, finish, mode};

/// A key without a device.
struct Key {
    dir: TempDir,
    uri: String,
}

impl Key {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("soft:{}", dir.path().join("key.pem").display());
        let key = Self { dir, uri };
        let made = key.ctl(&["create"], b"").ends(0);
        assert!(made.text().contains("key.pem"));
        made.says(&["for development"]);
        key
    }

    fn ctl(&self, arguments: &[&str], stdin: &[u8]) -> Run {
        let all = [&["hsm", "--hsm", &self.uri], arguments].concat();
        ctl(self.dir.path(), &all, stdin)
    }

    fn sh(&self, script: &str) -> Run {
        let mut command = Command::new("sh");
        finish(
            command.current_dir(self.dir.path()).args(["-ec", script]),
            b"",
        )
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(name), bytes).unwrap();
    }
}

#[test]
fn openssl_verifies_a_signature_as_the_help_says() {
    let key = Key::new();
    let pem = key.ctl(&["public-key"], b"").ends(0);
    key.write("KEY.pem", &pem.out);
    key.write("my report", b"21.437\n");
    let signed = key
        .ctl(&["sign", "my report", "--out", "report.sig"], b"")
        .ends(0);
    assert_eq!(mode(&key.dir.path().join("report.sig")), 0o600);
    // the very command that it printed
    let command = signed.err.lines().find(|line| line.contains("openssl"));
    key.sh(command.unwrap()).ends(0);
    // and as documented: not without the label, not of other data
    let bare = "openssl dgst -sha256 -verify KEY.pem -signature report.sig 'my report'";
    assert_ne!(key.sh(bare).code, 0);
    key.write("my report", b"21.438\n");
    assert_ne!(key.sh(command.unwrap()).code, 0);

    // the same over standard input and output, for scripts
    let text = key.ctl(&["sign", "-"], b"21.437\n").ends(0);
    assert!(text.text().starts_with("30"), "{}", text.text());
    let json = key.ctl(&["sign", "--json"], b"21.437\n").ends(0).json();
    assert_eq!(json["label"], "zk-ctl/1 signature");
    assert_eq!(json["rs"].as_str().unwrap().len(), 128);
}

/// What it signs is never what anything else of the key signs.
#[test]
fn a_signed_file_is_no_record_handshake_or_request() {
    let key = Key::new();
    let hsm = Hsm::open(&key.uri.parse().unwrap(), Options::default()).unwrap();
    for foreign in [
        b"ZKE1 and the rest".as_slice(),
        &[0x20; 64],
        &[0x30, 0x82],
        &[1, 0],
    ] {
        let json = key.ctl(&["sign", "--json"], foreign).ends(0).json();
        let rs = base16ct::lower::decode_vec(json["rs"].as_str().unwrap()).unwrap();
        let signature = zk_hsm::Signature::from_slice(&rs).unwrap();
        use p256::ecdsa::signature::Verifier;
        assert!(hsm.public_key().verify(foreign, &signature).is_err());
        let labelled = [b"zk-ctl/1 signature\0", foreign].concat();
        hsm.public_key().verify(&labelled, &signature).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_that_openssl_takes() {
    let world = World::new().await;
    let key = Key::new();
    let printed = key.ctl(&["csr", "--name", "pi-07"], b"").ends(0);
    assert!(
        printed
            .text()
            .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
    );
    // the name of the configuration, into a file
    let written = world.ctl(&["hsm", "csr", "--out", "pi-01.csr.pem"]).ends(0);
    written.says(&["zk-setup device add pi-01 --csr pi-01.csr.pem"]);
    fs::copy(world.path("pi-01.csr.pem"), key.dir.path().join("csr.pem")).unwrap();
    let seen = key
        .sh("openssl req -in csr.pem -verify -noout -subject 2>&1")
        .ends(0);
    assert!(seen.text().contains("pi-01"), "{}", seen.text());
}

#[test]
fn what_is_locked_is_unlocked_and_nothing_else_is() {
    let key = Key::new();
    key.write("secret", b"a secret\n");
    key.ctl(&["lock", "secret", "--out", "locked"], b"").ends(0);
    let locked = key.read("locked");
    assert!(!locked.windows(8).any(|bytes| bytes == b"a secret"));
    key.ctl(&["unlock", "locked", "--out", "again"], b"")
        .ends(0);
    assert_eq!(key.read("again"), b"a secret\n");
    assert_eq!(mode(&key.dir.path().join("again")), 0o600);
    // nothing is overwritten
    let twice = key
        .ctl(&["unlock", "locked", "--out", "again"], b"")
        .ends(2);
    twice.says(&["again exists"]);

    // through pipes, byte by byte
    let binary: Vec<u8> = (0..=255).collect();
    let piped = key.ctl(&["lock"], &binary).ends(0);
    assert_eq!(key.ctl(&["unlock"], &piped.out).ends(0).out, binary);
    let json = key.ctl(&["unlock", "locked", "--json"], b"").ends(0).json();
    assert_eq!(json["data"], "6120736563726574".to_owned() + "0a");

    for at in [0, 5, 20, locked.len() - 1] {
        let mut tampered = locked.clone();
        tampered[at] ^= 1;
        let refused = key.ctl(&["unlock", "--out", "never"], &tampered).ends(1);
        refused.says(&["was not locked by this HSM, or was changed"]);
    }
    Key::new().ctl(&["unlock"], &locked).ends(1);
    assert!(!key.dir.path().join("never").exists());
}

#[test]
fn random_bytes_come_as_text_or_as_they_are() {
    let key = Key::new();
    let one = key.ctl(&["random", "32"], b"").ends(0);
    let two = key.ctl(&["random", "32"], b"").ends(0);
    let digits = one.text().trim_end();
    assert_eq!(digits.len(), 64);
    assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_ne!(one.out, two.out);
    assert_eq!(
        key.ctl(&["random", "33", "--raw"], b"").ends(0).out.len(),
        33
    );
}

#[test]
fn it_says_what_it_is_and_makes_no_key_twice() {
    let key = Key::new();
    let info = key.ctl(&["info", "--json"], b"").ends(0).json();
    assert_eq!(info["backend"], "soft");
    assert_eq!(info["development"], true);
    assert_eq!(info["key"].as_str().unwrap().len(), 64);
    let text = key.ctl(&["info"], b"").ends(0);
    assert!(text.text().contains(&key.uri), "{}", text.text());
    assert!(text.text().contains("for development"), "{}", text.text());

    let before = key.read("key.pem");
    key.ctl(&["create"], b"")
        .ends(1)
        .says(&["never overwritten"]);
    assert_eq!(key.read("key.pem"), before);
    assert_eq!(mode(&key.dir.path().join("key.pem")), 0o600);
    let hardware = ctl(
        key.dir.path(),
        &["hsm", "create", "--hsm", "zymkey:slot=0"],
        b"",
    );
    hardware.ends(2).says(&["only a key file", "soft:"]);
}
