//! The program as a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::{Device, PASSPHRASE, World, noon, uri};
use zk_verify::{Context, topic_of};

/// Runs the program in `dir` with nothing of this process's environment.
fn zk_reader(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zk-reader"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .env("HOME", dir)
        .output()
        .unwrap()
}

/// With the files of a world.
fn run(world: &World, arguments: &[&str]) -> Output {
    let dir = world.dir.path();
    fs::create_dir_all(dir.join(".config/zk")).unwrap();
    let config = format!(
        "store = \"{}\"\nkey = \"../../owner.pem\"\ntrust = \"../../trust.toml\"\npassphrase-file = \"passphrase\"\n",
        uri(dir)
    );
    fs::write(dir.join(".config/zk/reader.toml"), config).unwrap();
    secret(&dir.join(".config/zk/passphrase"), PASSPHRASE);
    world.trust.write(&dir.join("trust.toml")).unwrap();
    zk_reader(dir, arguments)
}

fn secret(path: &Path, text: &str) {
    fs::write(path, format!("{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[tokio::test]
async fn lists_shows_and_audits() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 3).await;

    let listed = run(&world, &["list"]);
    assert_eq!((code(&listed), err(&listed)), (0, ""));
    assert_eq!(out(&listed).lines().count(), 1 + 3 * 2);
    let listed = run(
        &world,
        &["list", "--limit", "1", "--device", "pi-01", "--json"],
    );
    let line: Value = serde_json::from_str(out(&listed)).unwrap();
    assert_eq!(line["header"]["sequence"], 3);
    let listed = run(&world, &["list", "--from", "2026-11-24"]);
    assert_eq!((code(&listed), out(&listed)), (0, ""));
    assert!(err(&listed).contains("no records"));

    let shown = run(&world, &["show", "pi-01", "2"]);
    assert_eq!((code(&shown), err(&shown)), (0, ""));
    assert!(
        out(&shown).contains("number       2 of that stream"),
        "{}",
        out(&shown)
    );
    let key = line["key"].as_str().unwrap();
    let shown = run(&world, &["show", "pi-01", key, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(out(&shown)).unwrap(), line);
    let shown = run(&world, &["show", "pi-01", "9"]);
    assert_eq!(code(&shown), 1);
    assert!(err(&shown).contains("pi-01 has no record 9"));
    let unknown = run(&world, &["list", "--device", "pi-10"]);
    assert_eq!(code(&unknown), 1);
    assert!(err(&unknown).contains("nobody knows a device pi-10; known are: pi-01"));

    let audited = run(&world, &["audit"]);
    assert_eq!((code(&audited), err(&audited)), (0, ""));
    assert!(out(&audited).starts_with("pi-01: complete up to 3, last heard at 2026-11-23T12"));

    device.sequence += 1;
    world.fill(&mut device, 1).await;
    let audited = run(&world, &["audit"]);
    assert_eq!(code(&audited), 3);
    assert!(
        out(&audited).starts_with("pi-01: 1 missing; last heard"),
        "{}",
        out(&audited)
    );
    assert!(
        out(&audited).contains("    MISSING: 4\n"),
        "{}",
        out(&audited)
    );
    let audited = run(&world, &["audit", "--json", "--from", "2026-11-23"]);
    assert_eq!(code(&audited), 3);
    let line: Value = serde_json::from_str(out(&audited)).unwrap();
    assert_eq!(line["streams"][0]["missing"][0]["first"], 4);
    let audited = run(&world, &["audit", "--to", "2026-11-22"]);
    assert_eq!(
        (code(&audited), out(&audited)),
        (3, "pi-01: nothing heard\n")
    );
}

#[tokio::test]
async fn says_what_does_not_verify_and_where_the_store_differs() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 2).await;
    world
        .trust
        .devices
        .get_mut(&device.id)
        .unwrap()
        .keys
        .clear();
    let listed = run(&world, &["list"]);
    assert_eq!(code(&listed), 3);
    assert_eq!(
        out(&listed)
            .matches("REFUSED       signer-mismatch")
            .count(),
        2
    );
    assert!(
        err(&listed).contains("of 2 records 2 are refused, 0 do not open"),
        "{}",
        err(&listed)
    );
    assert!(
        err(&listed).contains("ALARM: pi-01: the store takes what key"),
        "{}",
        err(&listed)
    );
    let shown = run(&world, &["show", "pi-01", "1"]);
    assert_eq!(code(&shown), 3);
    assert!(out(&shown).contains("what follows is only what it claims"));
    assert_eq!(code(&run(&world, &["audit"])), 3);
}

#[tokio::test]
async fn points_at_records_of_an_unset_clock() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let record = device.reading(support::at("1970-01-01T00:00:07.000Z"), 21_437);
    world.deliver(&device, &record, noon(0)).await;
    world.fill(&mut device, 1).await;
    let listed = run(&world, &["list"]);
    assert_eq!((out(&listed).lines().count(), err(&listed)), (5, ""));
    let listed = run(&world, &["list", "--from", "2026-11-23"]);
    assert_eq!((code(&listed), out(&listed).lines().count()), (0, 3));
    assert!(
        err(&listed).contains("also has records of 1970"),
        "{}",
        err(&listed)
    );
}

#[tokio::test]
async fn looks_into_the_quarantine() {
    let mut world = World::new().await;
    let mut forger = Device::new("pi-01", std::slice::from_ref(&world.owner));
    let device = world.device("pi-01").await;
    forger.principal = device.principal.clone();
    let record = forger.reading(noon(0), 21_437);
    let result = world.deliver(&forger, &record, noon(0)).await;
    let forged = result.quarantined[0].id.clone();
    let context = Context {
        principal: "nobody\u{1b}[2J".into(),
        topic: topic_of(&device.id),
        received_at: noon(1),
    };
    let evil = b"\x1b]0;owned\x07 \xff no message";
    let result = world.store.ingest(evil, &context).await.unwrap();
    let evil = result.quarantined[0].id.clone();

    let listed = run(&world, &["quarantine", "list"]);
    assert_eq!((code(&listed), err(&listed)), (0, ""));
    let lines: Vec<_> = out(&listed).lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[1].contains("signer-mismatch") && lines[1].ends_with(&forged),
        "{lines:?}"
    );
    assert!(
        lines[2].contains("unknown-device") && lines[2].ends_with(&evil),
        "{lines:?}"
    );
    let listed = run(&world, &["quarantine", "list", "--json"]);
    assert_eq!(out(&listed).lines().count(), 2);

    let shown = run(&world, &["quarantine", "show", &forged]);
    assert_eq!(code(&shown), 0);
    assert!(
        out(&shown).contains("to be 1 record of device pi-01"),
        "{}",
        out(&shown)
    );
    assert!(out(&shown).contains("data of device pi-01, number 1 of stream 0707"));
    let shown = run(&world, &["quarantine", "show", &evil]);
    assert!(
        out(&shown).chars().all(|c| c == '\n' || !c.is_control()),
        "{:?}",
        out(&shown)
    );
    assert!(out(&shown).contains("nobody\\u{1b}[2J") && out(&shown).contains("1b 5d 30 3b"));
    let shown = run(&world, &["quarantine", "show", &evil, "--json"]);
    let line: Value = serde_json::from_str(out(&shown)).unwrap();
    assert_eq!(
        line["message"],
        "1b5d303b6f776e656407 20ff206e6f206d657373616765".replace(' ', "")
    );
    let shown = run(&world, &["quarantine", "show", "00"]);
    assert_eq!(code(&shown), 1);
    assert!(err(&shown).contains("nothing under 00"));
}

#[tokio::test]
async fn is_told_where_everything_is() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 1).await;
    let dir = world.dir.path();
    let config = dir.join("other.toml");
    assert_eq!(code(&run(&world, &["list"])), 0);
    // Arguments before the file.
    let absent = run(&world, &["list", "--store", "file:absent.db"]);
    assert_eq!(code(&absent), 1);
    assert!(
        err(&absent).contains("absent.db: there is no store here"),
        "{}",
        err(&absent)
    );

    fs::write(&config, "store = \"file:zk.db\"\nkeys = \"owner.pem\"\n").unwrap();
    let unknown = run(&world, &["list", "--config", "other.toml"]);
    assert_eq!(code(&unknown), 1);
    let said = err(&unknown);
    assert!(
        said.contains("other.toml") && said.contains("line 2"),
        "{said}"
    );
    assert!(
        said.contains("unknown field `keys`") && said.contains("`passphrase-file`"),
        "{said}"
    );
    fs::write(&config, "store = \"s3:zk\"\n").unwrap();
    let wrong = run(&world, &["list", "--config", "other.toml"]);
    assert_eq!(code(&wrong), 1);
    assert!(err(&wrong).contains("line 1"), "{}", err(&wrong));
    assert!(
        err(&wrong).contains("a store is file:PATH or dynamodb:REGION"),
        "{}",
        err(&wrong)
    );

    fs::write(&config, "store = \"file:zk.db\"\n").unwrap();
    let missing = run(&world, &["list", "--config", "other.toml"]);
    assert_eq!(code(&missing), 2);
    assert!(
        err(&missing).contains("no key: give --key"),
        "{}",
        err(&missing)
    );
    let missing = run(&world, &["quarantine", "list", "--config", "other.toml"]);
    assert_eq!(code(&missing), 0);
    for wrong in [
        &["list", "--from", "sometime"][..],
        &["list", "--from", "1h", "--to", "2h"],
        &["list", "--limit", "0"],
        &["list", "--store", "s3:zk"],
        &["lists"],
        &[],
    ] {
        assert_eq!(code(&run(&world, wrong)), 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn refuses_wrong_passphrases_and_open_keys() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 1).await;
    assert_eq!(code(&run(&world, &["list"])), 0);
    let wrong = world.path("wrong");
    secret(&wrong, "not the passphrase");
    let refused = run(&world, &["list", "--passphrase-file", "wrong"]);
    assert_eq!((code(&refused), out(&refused)), (1, ""));
    assert!(
        err(&refused).contains("is the passphrase right"),
        "{}",
        err(&refused)
    );
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = run(&world, &["list", "--passphrase-file", "wrong"]);
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("chmod 600"), "{}", err(&refused));

    fs::set_permissions(world.path("owner.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    let refused = run(&world, &["list"]);
    assert_eq!(code(&refused), 1);
    assert!(err(&refused).contains("chmod 600"), "{}", err(&refused));
}

#[test]
fn makes_keys_and_insists_on_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let stick = tempfile::tempdir().unwrap();
    let stick = stick.path().to_str().unwrap();
    secret(&dir.path().join("pass"), PASSPHRASE);
    let keygen = |more: &[&str]| {
        let arguments = [&["keygen", "--passphrase-file", "pass"], more].concat();
        zk_reader(dir.path(), &arguments)
    };

    let refused = keygen(&[]);
    assert_eq!(code(&refused), 2);
    assert!(
        err(&refused).contains("can never read anything again"),
        "{}",
        err(&refused)
    );
    assert!(err(&refused).contains("--backup PATH"), "{}", err(&refused));
    assert_eq!(code(&keygen(&["--backup", stick, "--no-backup"])), 2);
    assert!(!dir.path().join("owner.pem").exists());

    let made = keygen(&["--backup", stick]);
    assert_eq!((code(&made), err(&made)), (0, ""));
    assert!(out(&made).contains("can never read anything again"));
    let key = fs::read_to_string(dir.path().join("owner.pem")).unwrap();
    assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert!(Path::new(stick).join("owner.pem").exists());
    let again = keygen(&["--no-backup"]);
    assert_eq!(code(&again), 1);
    assert!(err(&again).contains("never overwritten"), "{}", err(&again));
    assert_eq!(
        fs::read_to_string(dir.path().join("owner.pem")).unwrap(),
        key
    );
    let alone = keygen(&["--no-backup", "--out", "second.pem"]);
    assert_eq!(code(&alone), 0);
    assert!(out(&alone).contains("backup      NONE"));

    let from_environment = Command::new(env!("CARGO_BIN_EXE_zk-reader"))
        .args(["keygen", "--no-backup", "--out", "third.pem"])
        .current_dir(dir.path())
        .env("ZK_OWNER_PASSPHRASE", PASSPHRASE)
        .output()
        .unwrap();
    assert_eq!(code(&from_environment), 0);
    assert!(
        err(&from_environment).contains("warning"),
        "{}",
        err(&from_environment)
    );
}
