//! Runs every example as a user would, and reads what it prints.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

/// A test for each example, and the list of them.
macro_rules! examples {
    ($($name:ident($said:ident) $check:block)*) => {
        $(
            #[test]
            fn $name() {
                let $said = run(env!(concat!("CARGO_BIN_EXE_", stringify!($name))), &[]);
                $check
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

examples! {
    read_sensors(said) {
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines, [
            "all is well",
            "10-00080278d0e4    20.000  ok            fixed",
            "28-0000000a0001    11.062  ok            12 bits",
            "28-0000000a0002    61.100  ok            12 bits",
            "",
            "a supply that fails, and a shorted wire",
            "10-00080278d0e4    20.000  ok            fixed",
            "28-0000000a0001    85.000  power-on      12 bits  11.062 before 1 bad",
            "28-0000000a0002         -  false-zero    9 bits  61.100 before 1 bad",
            "",
            "one is gone, and one is well again",
            "10-00080278d0e4    20.000  ok            fixed",
            "28-0000000a0001         -  unplugged     not listed  11.062 before 2 bad",
            "28-0000000a0002    60.600  ok            12 bits",
        ]);
    }

    sign_with_hsm(said) {
        assert_in_order(&said, &[
            "opened     soft:",
            "a key for development",
            "signed     64 bytes",
            "verified   by the public key alone",
            "refused    the same signature under another message",
            "unlocked   10 of ",
            "refused    to unlock it with one bit changed",
            "random     32 bytes",
            "counted    1 signature\n",
        ]);
    }

    mtls_with_hsm_key(said) {
        assert_in_order(&said, &[
            "Full handshake, signatures: 1, server saw TLSv1_3, certificate ",
            "Resumed handshake, signatures: 0, server saw TLSv1_3, certificate ",
        ]);
        // The server knows who it is, resumed or not.
        let principals: Vec<&str> = said.lines().filter_map(|line| line.split("certificate ").nth(1)).collect();
        assert_eq!(principals.len(), 2);
        assert_eq!(principals[0], principals[1]);
    }

    seal_and_open(said) {
        assert_in_order(&said, &[
            "verified: 1 of pi-01, 2",
            "alice reads: application/json {\"celsius\":21.437}\n",
            "bob reads: application/json {\"celsius\":21.437}\n",
            "a stranger reads nothing: not encrypted for owner ",
        ]);
        let json = said.lines().next().unwrap().strip_prefix("sent: ").unwrap();
        let message = zk_envelope::Message::parse(json.as_bytes()).unwrap();
        let envelope = message.entries[0].envelope().unwrap();
        assert_eq!(envelope.unverified_header().recipients.len(), 2);
        assert!(!json.contains("celsius"));
    }

    tampered_record(said) {
        let verdicts: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(verdicts, [
            "accepted",
            "bad-signature",
            "header-mismatch",
            "signer-mismatch",
            "principal-mismatch",
            "unknown-device",
            "revoked-device",
            "malformed",
        ]);
    }

    spool_outage(said) {
        assert_in_order(&said, &[
            "killed after it reported 7 as appended\n",
            "everything that was reported waits\n",
            "  deliver 1: 21.437 degrees\n",
            "  deliver 2: 21.437 degrees\n",
            "  deliver 3: 21.437 degrees\n",
            "  deliver 4: 21.437 degrees\n",
            "  deliver 5: 21.437 degrees\n",
            "  deliver 6: 21.437 degrees\n",
            "  deliver 7: 21.437 degrees\n",
            "nothing waits, nothing was lost\n",
        ]);
    }

    custom_publisher(said) {
        assert_in_order(&said, &[
            "receiver: 21.4 stored\n",
            "receiver: 21.5 stored\n",
            "publisher: 2 again, because there was no answer\n",
            "receiver: 21.5 stored before\n",
            "receiver: 21.6 stored\n",
            "receiver: nonsense refused\n",
            "receiver: 21.7 stored\n",
            "not delivered: 4, Refused\n",
        ]);
        assert_eq!(said.matches(" stored\n").count(), 4);
    }
}

#[test]
fn a_key_that_exists_is_opened_by_its_uri() {
    let directory = tempfile::tempdir().unwrap();
    let uri = zk_hsm::create_soft_key(directory.path().join("mine.pem")).unwrap();
    let said = run(env!("CARGO_BIN_EXE_sign_with_hsm"), &[&uri.to_string()]);
    assert!(said.starts_with(&format!("opened     {uri}\n")), "{said}");
}

#[test]
fn the_sensors_of_another_tree_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let sensor = "28-0000000a0007".parse().unwrap();
    zk_sensors::SimulatedBus::create(directory.path(), &[sensor]).unwrap();
    let root = directory.path().to_str().unwrap();
    let said = run(env!("CARGO_BIN_EXE_read_sensors"), &[root]);
    assert_eq!(said, "28-0000000a0007    20.000  ok            12 bits\n");
}

#[test]
fn every_example_is_tested_and_in_the_readme() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<String> = fs::read_dir(here)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    let mut tested = TESTED.to_vec();
    files.sort();
    tested.sort_unstable();
    assert_eq!(tested, files, "each example has an entry in this file");

    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    for name in files {
        let command = format!("cargo run -p zk-examples --bin {name}");
        let source = fs::read_to_string(here.join(&name).with_extension("rs")).unwrap();
        assert!(
            source.contains(&format!("//! {command}")),
            "{name}.rs lacks its command"
        );
        assert!(
            readme.contains(&format!("\n{command}\n")),
            "README.md lacks: {command}"
        );
        assert!(
            readme.contains(&format!("| [`{name}`]({name}.rs) | ")),
            "README.md lacks a row for {name}"
        );
    }
}

/// Runs an example to its end; gives what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{said}\n{complaint}",
        output.status
    );
    assert_eq!(complaint, "");
    said
}

/// Each of these is in the text, one after the other.
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("{part:?} is not, or not there, in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}
