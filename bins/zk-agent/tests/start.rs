//! What the agent says when it can't start, as a person meets it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use zk_hsm::create_soft_key;

const GOOD: &str = r#"
[device]
id = "pi-01"
hsm = "soft:DIR/key.pem"
certificate = "cert.pem"

[target]
endpoint = "localhost:8443"
roots = "roots.pem"

[owners]
files = ["owner.pub.pem"]

[sensors]
interval = "10s"
root = "sys"

[spool]
dir = "spool"
cap = "1MiB"
full = "reject"
sync = { every = "1s" }

[heartbeat]
interval = "5m"
"#;

fn agent(dir: &Path, text: &str) -> (Output, String) {
    let file = dir.join("agent.toml");
    fs::write(&file, text.replace("DIR", dir.to_str().unwrap())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
        .env("RUST_LOG", "off")
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (output, said)
}

#[test]
fn a_wrong_configuration_is_shown_with_its_place_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (
            "id = \"pi-01\"",
            "id = \"pi/01\"",
            vec!["line 3", "device id", "A-Z a-z 0-9 _ -"],
        ),
        (
            "[spool]",
            "[spool]\nsize = 3",
            vec!["line 19", "unknown field `size`", "`cap`"],
        ),
        ("\"10s\"", "10", vec!["line 15", "interval"]),
        (
            "\"10s\"",
            "\"1ms\"",
            vec!["sensors.interval", "at least 10ms"],
        ),
        (
            "\"reject\"",
            "\"panic\"",
            vec!["line 21", "`reject`", "`drop-oldest`"],
        ),
        (
            "{ every = \"1s\" }",
            "\"never\"",
            vec!["line 22", "`each`", "`every`"],
        ),
        ("\"1MiB\"", "\"lots\"", vec!["line 20"]),
        ("[\"owner.pub.pem\"]", "[]", vec!["owners.files", "1 to 8"]),
        (
            "[target]",
            "[goal]",
            vec!["unknown field `goal`", "`target`"],
        ),
        ("soft:DIR/key.pem", "yubikey:1", vec!["device.hsm"]),
    ];
    for (from, to, says) in cases {
        assert!(GOOD.contains(from), "{from}");
        let (output, said) = agent(dir.path(), &GOOD.replace(from, to));
        assert_eq!(output.status.code(), Some(2), "{to}: {said}");
        for part in says {
            assert!(said.contains(part), "{to}: no {part:?} in {said}");
        }
    }
}

#[test]
fn an_unreadable_key_is_shown_with_path_mode_and_cure() {
    let dir = tempfile::tempdir().unwrap();
    let (output, said) = agent(dir.path(), GOOD);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("key.pem"), "{said}");

    let key = dir.path().join("key.pem");
    create_soft_key(&key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (output, said) = agent(dir.path(), GOOD);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["key.pem", "644", "chmod 600"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn help_has_examples_and_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in ["Examples:", "Exit status:", "ZK_AGENT_CONFIG"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
