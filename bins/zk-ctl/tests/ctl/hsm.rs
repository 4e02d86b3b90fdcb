//! The key, used by hand. OpenSSL is the second opinion.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zk_hsm::{Hsm, Options};

use crate::world::{Run, World, ctl, finish, mode, program};

/// A key without a device.
pub(crate) struct Key {
    pub(crate) dir: TempDir,
    pub(crate) uri: String,
}

impl Key {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("soft:{}", dir.path().join("key.pem").display());
        let key = Self { dir, uri };
        let made = key.ctl(&["keys", "generate"], b"").ends(0);
        assert_eq!(made.text(), format!("{}\n", key.uri));
        made.says(&["for development", "device.hsm", "hsm csr"]);
        key
    }

    pub(crate) fn ctl(&self, arguments: &[&str], stdin: &[u8]) -> Run {
        let all = [&["hsm", "--hsm", &self.uri], arguments].concat();
        let mut command = program(self.dir.path());
        // where SoftHSM2 has its tokens; others don't look at it
        command.env("SOFTHSM2_CONF", self.dir.path().join("softhsm2.conf"));
        finish(command.args(all), stdin)
    }

    pub(crate) fn sh(&self, script: &str) -> Run {
        let mut command = Command::new("sh");
        finish(
            command.current_dir(self.dir.path()).args(["-ec", script]),
            b"",
        )
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
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
fn a_request_has_the_subject_and_names_that_were_asked_for() {
    let key = Key::new();
    let words = "--name pi-07 --organization A,B --organizational-unit Roof --state Bavaria \
                 --country DE --serial-number 1000 --dns pi-07.example --dns pi.example \
                 --ip 192.0.2.7 --ip 2001:db8::7 --uri urn:dev:mac:b827ebfffe123456";
    let words: Vec<_> = ["csr"]
        .into_iter()
        .chain(words.split(' ').filter(|w| !w.is_empty()))
        .collect();
    key.write("csr.pem", &key.ctl(&words, b"").ends(0).out);
    let script = "openssl req -in csr.pem -verify -noout -text -nameopt RFC2253 2>&1";
    let seen = key.sh(script).ends(0);
    for part in [
        "serialNumber=1000,CN=pi-07,OU=Roof,O=A\\,B,ST=Bavaria,C=DE",
        "DNS:pi-07.example, DNS:pi.example",
        "IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:7",
        "URI:urn:dev:mac:b827ebfffe123456",
        "TLS Web Client Authentication",
    ] {
        assert!(seen.text().contains(part), "no {part} in {}", seen.text());
    }
    for (flag, value, says) in [
        ("--country", "Germany", "two capital letters"),
        ("--dns", "*.example", "DNS name"),
        ("--uri", "no scheme", "URI"),
        ("--ip", "192.0.2.256", "--ip"),
        ("--organization", "", "organization"),
    ] {
        let words = ["csr", "--name", "pi-07", flag, value];
        let refused = key.ctl(&words, b"").ends(2);
        assert!(refused.out.is_empty());
        refused.says(&[says]);
    }
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

    // a key file measures nothing, and that is said
    assert!(text.text().contains("not told"), "{}", text.text());
    assert_eq!(info["notTold"].as_array().unwrap().len(), 5);
    assert!(info["health"]["batteryVolts"].is_null());

    let before = key.read("key.pem");
    key.ctl(&["keys", "generate"], b"")
        .ends(1)
        .says(&["never overwritten"]);
    assert_eq!(key.read("key.pem"), before);
    assert_eq!(mode(&key.dir.path().join("key.pem")), 0o600);
}

#[test]
fn keys_are_listed_with_what_opens_them() {
    let key = Key::new();
    let id = key.ctl(&["info", "--json"], b"").ends(0).json()["key"].clone();
    let list = key.ctl(&["keys", "list", "--json"], b"").ends(0).json();
    assert_eq!(list["keys"][0]["uri"], key.uri);
    assert_eq!(list["keys"][0]["key"], id);
    let text = key.ctl(&["keys", "list"], b"").ends(0);
    assert!(text.text().contains(id.as_str().unwrap()));
    assert!(text.text().contains(&key.uri));

    fs::remove_file(key.dir.path().join("key.pem")).unwrap();
    let none = key.ctl(&["keys", "list"], b"").ends(0);
    assert_eq!(none.text(), "no keys\n");
    none.says(&["keys generate"]);
}

#[test]
fn the_public_key_comes_in_the_forms_that_programs_take() {
    let key = Key::new();
    let json = key.ctl(&["public-key", "--json"], b"").ends(0).json();
    let hex = key.ctl(&["public-key", "--hex"], b"").ends(0);
    assert_eq!(hex.text().trim_end(), json["hex"]);
    assert_eq!(hex.text().trim_end().len(), 128);
    // the same point as openssl finds in the file
    let point = key
        .sh("openssl ec -in key.pem -pubout -outform DER 2>/dev/null | tail -c 64 | od -An -tx1 | tr -d ' \\n'")
        .ends(0);
    assert_eq!(hex.text().trim_end(), point.text());
}

/// In each form that a signature and a key can have, and with nothing that was
/// changed.
#[test]
fn what_was_signed_is_verified_and_nothing_else_is() {
    let key = Key::new();
    key.write("report", b"21.437\n");
    key.ctl(&["sign", "report", "--out", "report.sig"], b"")
        .ends(0);
    let json = key.ctl(&["sign", "report", "--json"], b"").ends(0).json();
    let (der, rs) = (
        json["signature"].as_str().unwrap(),
        json["rs"].as_str().unwrap(),
    );
    key.write("der.hex", format!("{}\n", der.to_uppercase()).as_bytes());
    key.write("rs.hex", rs.as_bytes());
    key.write("rs", &base16ct::lower::decode_vec(rs).unwrap());
    let piped = key.ctl(&["sign", "report", "--out", "-"], b"").ends(0);
    key.write("piped.sig", &piped.out);
    for (name, flag) in [("key.pub.pem", None), ("key.hex", Some("--hex"))] {
        let flags: Vec<_> = ["public-key"].into_iter().chain(flag).collect();
        key.write(name, &key.ctl(&flags, b"").ends(0).out);
    }
    // whoever verifies has no security module
    let verify = |more: &[&str], stdin: &[u8]| {
        let no_key = ["hsm", "verify", "--hsm", "soft:/nowhere"];
        ctl(key.dir.path(), &[&no_key, more].concat(), stdin)
    };
    let of = |signature, public| {
        let more = ["report", "--signature", signature, "--public-key", public];
        verify(&more, b"")
    };
    for signature in ["report.sig", "der.hex", "rs.hex", "rs", "piped.sig"] {
        for public in ["key.pub.pem", "key.hex"] {
            let run = of(signature, public).ends(0);
            assert!(run.text().starts_with("valid"), "{}", run.text());
        }
        // by the module's own key
        let own = key.ctl(&["verify", "report", "--signature", signature], b"");
        own.ends(0);
    }
    let json = [
        "--json",
        "-",
        "--signature",
        "rs",
        "--public-key",
        "key.hex",
    ];
    let json = verify(&json, b"21.437\n").ends(0).json();
    assert_eq!(json["valid"], true);
    verify(&["report", "--signature", "rs"], b"").ends(1);

    let mut changed = key.read("rs");
    changed[40] ^= 1;
    key.write("changed", &changed);
    let run = of("changed", "key.hex").ends(3);
    assert!(run.text().starts_with("INVALID"), "{}", run.text());
    key.write("no.sig", b"not a signature");
    let run = of("no.sig", "key.hex").ends(3);
    assert!(run.text().contains("holds no"), "{}", run.text());
    let other = Key::new().ctl(&["public-key", "--hex"], b"").ends(0);
    key.write("other.hex", &other.out);
    of("rs", "other.hex").ends(3);
    let run = key.ctl(&["verify", "-", "--signature", "rs"], b"21.438\n");
    run.ends(3);
    // a signature of the bare file, by the same key, is none of zk-ctl's
    key.sh("openssl dgst -sha256 -sign key.pem -out bare.sig report")
        .ends(0);
    of("bare.sig", "key.hex").ends(3);
}

/// Whoever looks over a shoulder sees no secret that nobody asked to see.
#[test]
fn a_secret_is_shown_on_a_terminal_only_when_that_was_asked_for() {
    let key = Key::new();
    key.ctl(&["lock", "-", "--out", "locked"], b"a secret")
        .ends(0);
    let terminal = |arguments: &str| {
        let program = env!("CARGO_BIN_EXE_zk-ctl");
        let uri = &key.uri;
        let command = format!("{program} hsm --hsm {uri} {arguments} 2>err");
        // of bsdutils, which every Debian has
        let mut script = Command::new("script");
        let script = script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        finish(script.current_dir(key.dir.path()), b"")
    };
    for arguments in ["unlock locked", "unlock locked --json"] {
        let run = terminal(arguments).ends(2);
        assert!(!run.text().contains("a secret") && !run.text().contains("612073656372"));
        let said = String::from_utf8(key.read("err")).unwrap();
        assert!(said.contains("--out -"), "{said}");
    }
    terminal("lock locked").ends(2);
    terminal("random 8 --raw").ends(2);
    let asked = terminal("unlock locked --out -").ends(0);
    assert_eq!(asked.text(), "a secret");
    terminal("random 8").ends(0);
}

#[test]
fn watch_looks_as_often_as_it_was_told() {
    let key = Key::new();
    let once = key.ctl(&["watch", "--once", "--json"], b"").ends(0).json();
    assert_eq!(once["state"], "ready");
    assert_eq!(once["counters"]["reopens"], 0);
    // what doesn't change is not told again
    let thrice = ["watch", "--count", "3", "--interval", "10ms"];
    let text = key.ctl(&thrice, b"").ends(0);
    assert_eq!(text.text().lines().count(), 1, "{}", text.text());
    assert!(text.text().contains("state ready"), "{}", text.text());
    fs::remove_file(key.dir.path().join("key.pem")).unwrap();
    key.ctl(&["watch", "--once"], b"").ends(1);
}

/// Until somebody ends it, and that is no failure.
#[test]
fn watch_goes_on_until_a_signal() {
    let key = Key::new();
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zk-ctl"))
            .args(["hsm", "watch", "--interval", "1h", "--hsm", &key.uri])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("state ready"), "{line}");
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
