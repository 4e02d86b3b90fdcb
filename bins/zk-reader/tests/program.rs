//! The program as a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Device, PASSPHRASE, World, drop_readings, noon, tamper, uri};
use zk_envelope::{
    ClockBefore, ClockQuality, KeyState, LossReason, LossReceipt, PreviousStream, Report, StreamId,
    TimeAnchor,
};
use zk_store::{Options, Store};
use zk_verify::{Context, topic_of};

/// The program in `dir` with nothing of this process's environment, nor of the
/// signals that it ignores: as a shell starts a program in the foreground.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/env");
    command
        .args(["--default-signal", env!("CARGO_BIN_EXE_zk-reader")])
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .env("HOME", dir);
    command
}

fn zk_reader(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

/// With the files of a world.
fn run(world: &World, arguments: &[&str]) -> Output {
    write_files(world);
    zk_reader(world.dir.path(), arguments)
}

fn write_files(world: &World) {
    let dir = world.dir.path();
    fs::create_dir_all(dir.join(".config/zk")).unwrap();
    let config = format!(
        "store = \"{}\"\nkey = \"../../owner.pem\"\ntrust = \"../../trust.toml\"\npassphrase-file = \"passphrase\"\n",
        uri(dir)
    );
    fs::write(dir.join(".config/zk/reader.toml"), config).unwrap();
    secret(&dir.join(".config/zk/passphrase"), PASSPHRASE);
    world.trust.write(&dir.join("trust.toml")).unwrap();
}

/// The program while it runs.
struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    fn new(world: &World, arguments: &[&str]) -> Self {
        write_files(world);
        let mut child = command(world.dir.path(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
            let (to, lines) = mpsc::channel();
            thread::spawn(move || {
                for line in BufReader::new(from).lines() {
                    if to.send(line.unwrap()).is_err() {
                        break;
                    }
                }
            });
            lines
        }
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// The next record's stream and number.
    fn record(&self) -> (String, u64) {
        let line: Value = serde_json::from_str(&self.out.recv().unwrap()).unwrap();
        let header = line.get("header").or(line.get("claimed")).unwrap();
        let stream = header["stream"].as_str().unwrap();
        (stream[..2].into(), header["sequence"].as_u64().unwrap())
    }

    /// Waits for a line on standard error that has this in it.
    fn says(&self, what: &str) {
        while !self.err.recv().expect(what).contains(what) {}
    }

    /// Exit status, and what else it said on both.
    fn stop(mut self, signal: Signal) -> (i32, Vec<String>, Vec<String>) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let status = self.child.wait().unwrap();
        let (out, err) = (self.out.iter().collect(), self.err.iter().collect());
        (status.code().unwrap(), out, err)
    }
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
async fn follows_what_comes_in_late_and_a_store_that_comes_and_goes() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 2).await;
    let follow = [
        "follow",
        "--json",
        "--interval",
        "20ms",
        "--from",
        "2026-11-23",
    ];
    let running = Running::new(&world, &follow);
    let record = |stream: &str, number| (stream.to_owned(), number);
    assert_eq!(running.record(), record("07", 1));
    assert_eq!(running.record(), record("07", 2));

    // Another stream has newer records when the first one's come in.
    let owner = std::slice::from_ref(&world.owner);
    device.reseal(owner, StreamId([8; 16]));
    device.sequence = 0;
    let newer = device.reading(noon(3 * 3_600_000), 20_000);
    world.deliver(&device, &newer, noon(0)).await;
    assert_eq!(running.record(), record("08", 1));
    device.reseal(owner, StreamId([7; 16]));
    device.sequence = 2;
    world.fill(&mut device, 3).await;
    for number in [3, 4, 5] {
        assert_eq!(running.record(), record("07", number));
    }

    drop_readings(world.dir.path());
    running.says("; trying again");
    Store::create(&uri(world.dir.path()), Options::default())
        .await
        .unwrap();
    running.says("the store answers again");
    world.fill(&mut device, 1).await;
    assert_eq!(running.record(), record("07", 6));
    // A device that is new to all is followed too.
    let mut second = Device::new("pi-02", owner);
    second.reseal(owner, StreamId([9; 16]));
    let registered = second.record();
    world
        .store
        .register(&second.principal, &registered)
        .await
        .unwrap();
    world.fill(&mut second, 1).await;
    assert_eq!(running.record(), record("09", 1));
    running.says("ALARM: pi-02: the store knows this device");
    let (status, out, err) = running.stop(Signal::INT);
    assert_eq!((status, out), (3, vec![]), "{err:?}");
}

#[tokio::test]
async fn follow_ends_with_what_it_saw() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.device("pi-02").await;
    world.fill(&mut device, 1).await;
    let follow = ["follow", "--interval", "20ms", "--from", "2026-11-23"];
    for signal in [Signal::INT, Signal::TERM] {
        let running = Running::new(&world, &follow);
        assert!(running.out.recv().unwrap().starts_with("TIME "));
        assert!(running.out.recv().unwrap().contains(" 21.437 °C  ok"));
        running.says("following 2 devices; Ctrl-C ends");
        let (status, out, err) = running.stop(signal);
        assert_eq!((status, out.len(), err), (0, 1, vec![]));
    }
    let other = [&follow[..], &["--json", "--device", "pi-02"]].concat();
    let other = Running::new(&world, &other);
    other.says("following 1 device;");
    // A key that is revoked from the start refuses its records.
    world.trust.devices.get_mut(&device.id).unwrap().keys[0].state =
        KeyState::Revoked { at: noon(0) };
    let all = [&follow[..], &["--json"]].concat();
    let running = Running::new(&world, &all);
    assert_eq!(running.record().1, 1);
    running.says("ALARM: pi-01: the store calls key");
    running.says("following 2 devices;");
    let (status, _, err) = running.stop(Signal::INT);
    assert_eq!(status, 3);
    let err = err.join("\n");
    assert!(err.contains("of 1 records 1 are refused"), "{err}");
    let (status, out, _) = other.stop(Signal::INT);
    assert_eq!((status, out), (0, vec![]));

    let unknown = run(&world, &["follow", "--device", "pi-10"]);
    assert_eq!(code(&unknown), 1);
    assert!(self::err(&unknown).contains("nobody knows a device pi-10"));
    for wrong in [
        &["follow", "--interval", "1ms"][..],
        &["follow", "--interval", "2"],
        &["follow", "--late", "yesterday"],
    ] {
        assert_eq!(code(&run(&world, wrong)), 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn exports_readings_and_records() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let started = device.started(noon(0), None);
    world.deliver(&device, &started, noon(0)).await;
    world.fill(&mut device, 3).await;
    let csv = ["export", "--format", "csv"];
    let exported = run(&world, &csv);
    assert_eq!(code(&exported), 0);
    assert_eq!(
        err(&exported),
        "zk-reader: 6 rows of 4 records; 1 have no sensor reading, --format jsonl has them\n"
    );
    let rows: Vec<_> = out(&exported).split_terminator("\r\n").collect();
    assert_eq!(rows.len(), 7);
    assert!(rows[0].starts_with("time,device,stream,sequence,sensor,celsius,quality,"));
    assert!(
        rows[1].contains(",pi-01,07070707070707070707070707070707,2,28-0000000a0001,21.437,ok,"),
        "{rows:?}"
    );
    let lines = run(
        &world,
        &["export", "--format", "jsonl", "--from", "2026-11-23"],
    );
    assert_eq!(code(&lines), 0);
    assert_eq!(out(&lines), out(&run(&world, &["list", "--json"])));

    // A file appears whole, and is not overwritten by chance.
    let to_file = [&csv[..], &["--out", "readings.csv"]].concat();
    let file = world.path("readings.csv");
    let written = run(&world, &to_file);
    assert_eq!((code(&written), out(&written)), (0, ""));
    assert!(err(&written).starts_with("zk-reader: readings.csv: 6 rows of 4 records"));
    assert_eq!(fs::read_to_string(&file).unwrap(), out(&exported));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&file, "mine").unwrap();
    let refused = run(&world, &to_file);
    assert_eq!(code(&refused), 1);
    assert!(
        err(&refused).contains("readings.csv: exists; --force replaces it"),
        "{}",
        err(&refused)
    );
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let failed = [&to_file[..], &["--force", "--key", "absent.pem"]].concat();
    assert_eq!(code(&run(&world, &failed)), 1);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let forced = [&to_file[..], &["--force"]].concat();
    assert_eq!(code(&run(&world, &forced)), 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), out(&exported));
    std::os::unix::fs::symlink("/dev/null", world.path("link")).unwrap();
    let link = [&csv[..], &["--out", "link", "--force"]].concat();
    assert_eq!(code(&run(&world, &link)), 1);
    let left = fs::read_dir(world.dir.path()).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        left.filter(|name| name.starts_with(".zk-reader")).count(),
        0
    );
    assert_eq!(code(&run(&world, &["export"])), 2);

    // What does not verify is left out unless it is asked for.
    let keys = run(&world, &["list", "--json"]);
    let keys: Vec<Value> = out(&keys)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let key = |n: usize| keys[n]["key"].as_str().unwrap();
    tamper(world.dir.path(), "pi-01", key(1), |item| {
        item["s"] = json!({"S": "x"});
    });
    tamper(world.dir.path(), "pi-01", key(2), |item| {
        item["s"] = json!({"B": format!("{}==", "A".repeat(86))});
    });
    let exported = run(&world, &csv);
    assert_eq!((code(&exported), out(&exported).lines().count()), (3, 3));
    assert!(
        err(&exported).contains("; left out: 1 refused, 0 sealed, 1 damaged\n"),
        "{}",
        err(&exported)
    );
    let all = run(&world, &[&csv[..], &["--include-refused"]].concat());
    assert_eq!((code(&all), out(&all).lines().count()), (3, 5));
    assert!(out(&all).contains(",refused,\"bad-signature: changed, or not signed by"));
    assert!(out(&all).contains(",damaged,"));
    let lines = ["export", "--format", "jsonl"];
    assert_eq!(out(&run(&world, &lines)).lines().count(), 2);
    let lines = [&lines[..], &["--include-refused", "--out", "all.jsonl"]].concat();
    assert_eq!(code(&run(&world, &lines)), 3);
    let lines = fs::read_to_string(world.path("all.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 4);
}

/// Whatever ends an export leaves no file behind, least of all one with
/// readings in clear.
#[tokio::test]
async fn an_export_that_is_ended_leaves_nothing() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 300).await;
    let begun = || {
        let names = fs::read_dir(world.dir.path()).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.any(|name| name.starts_with(".zk-reader") || name == "all.csv")
    };
    let export = ["export", "--format", "csv", "--out", "all.csv"];

    // While it asks for the passphrase.
    write_files(&world);
    let pipe = world.path("passphrases");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let asking = [&export[..], &["--passphrase-file", "passphrases"]].concat();
    let mut child = command(world.dir.path(), &asking).spawn().unwrap();
    // It can be opened to write once it is opened to read.
    let writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    drop(writer);
    assert!(!begun());

    // While it writes. It may be done before the signal comes: then again.
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        loop {
            let running = Running::new(&world, &export);
            while !begun() {
                thread::yield_now();
            }
            let (code, _, err) = running.stop(signal);
            if code == 0 {
                fs::remove_file(world.path("all.csv")).unwrap();
            }
            assert!(!begun());
            if code != 0 {
                assert_eq!(err, ["zk-reader: interrupted; nothing was written"]);
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_differs_is_an_alarm_everywhere() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 1).await;
    let change = |record: &mut zk_verify::DeviceRecord| {
        record.keys[0].state = KeyState::Retired;
    };
    world
        .store
        .update_device(&device.principal, change)
        .await
        .unwrap();
    for arguments in [
        &["list"][..],
        &["show", "pi-01", "1"],
        &["audit"],
        &["export", "--format", "csv"],
        &["export", "--format", "jsonl", "--device", "pi-01"],
    ] {
        let done = run(&world, arguments);
        assert_eq!(code(&done), 3, "{arguments:?}");
        assert!(!out(&done).is_empty());
        let alarm = "ALARM: pi-01: the store calls key";
        assert!(err(&done).contains(alarm), "{arguments:?}: {}", err(&done));
    }
    let running = Running::new(&world, &["follow", "--json", "--from", "2026-11-23"]);
    running.says("ALARM: pi-01: the store calls key");
    assert_eq!(running.record().1, 1);
    running.says("following 1 device;");
    assert_eq!(running.stop(Signal::INT).0, 3);

    // A good key helps nothing if its only certificate is revoked.
    let change = |record: &mut zk_verify::DeviceRecord| {
        record.keys[0].state = KeyState::Active;
        record.certificate = KeyState::Revoked { at: noon(0) };
    };
    let changed = world.store.update_device(&device.principal, change).await;
    changed.unwrap();
    let done = run(&world, &["list"]);
    assert_eq!(code(&done), 3);
    assert!(
        err(&done).contains("for no certificate that counts"),
        "{}",
        err(&done)
    );
}

#[tokio::test]
async fn replays_the_quarantine_once_its_cause_is_mended() {
    let mut world = World::new().await;
    let owner = std::slice::from_ref(&world.owner);
    let mut early = Device::new("pi-02", owner);
    let mut ids = Vec::new();
    for n in 1..=2 {
        let record = early.reading(noon(n), 21_437);
        let result = world.deliver(&early, &record, noon(n)).await;
        ids.push(result.quarantined[0].id.clone());
    }
    let device = world.device("pi-01").await;
    let mut forger = Device::new("pi-01", std::slice::from_ref(&world.owner));
    forger.principal = device.principal.clone();
    let record = forger.reading(noon(3), 21_437);
    let forged = world.deliver(&forger, &record, noon(3)).await;
    ids.push(forged.quarantined[0].id.clone());

    // Filters: each finds those it should.
    let listed = |more: &[&str]| {
        let listed = run(&world, &[&["quarantine", "list", "--json"], more].concat());
        assert_eq!(code(&listed), 0, "{}", err(&listed));
        let ids = out(&listed).lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["id"].as_str().unwrap().to_owned()
        });
        ids.collect::<BTreeSet<_>>()
    };
    let set = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(listed(&[]), set(&ids));
    assert_eq!(listed(&["--device", "pi-01"]), set(&ids[2..]));
    assert_eq!(listed(&["--principal", &early.principal]), set(&ids[..2]));
    assert_eq!(listed(&["--reason", "signer-mismatch"]), set(&ids[2..]));
    assert_eq!(
        listed(&["--reason", "signer-mismatch", "--reason", "unknown-device"]),
        set(&ids)
    );
    assert_eq!(listed(&["--reason", "conflict"]), BTreeSet::new());
    assert_eq!(
        listed(&[
            "--from",
            "2026-11-23T12:00:00.002Z",
            "--to",
            "2026-11-23T12:00:00.002Z"
        ]),
        set(&ids[1..2])
    );

    // Nothing is mended yet.
    let replay = ["quarantine", "replay", "--all"];
    let still = run(&world, &replay);
    assert_eq!((code(&still), out(&still).lines().count()), (3, 3));
    assert!(out(&still).contains(&format!("{} would stay: unknown-device", ids[0])));
    assert!(
        err(&still).contains("0 of 3 would leave the quarantine, 3 stay, 0 failed"),
        "{}",
        err(&still)
    );

    world
        .store
        .register(&early.principal, &early.record())
        .await
        .unwrap();
    let rehearsed = run(&world, &replay);
    assert_eq!(code(&rehearsed), 3);
    assert!(out(&rehearsed).contains(&format!("{} would leave: 1 stored", ids[0])));
    assert!(err(&rehearsed).contains("nothing was changed, --apply does it"));
    assert_eq!(listed(&[]), set(&ids));
    let one = run(
        &world,
        &["quarantine", "replay", &ids[1], "--apply", "--json"],
    );
    assert_eq!(code(&one), 0);
    assert_eq!(
        serde_json::from_str::<Value>(out(&one)).unwrap(),
        json!({"id": ids[1], "applied": true, "leaves": true, "stored": 1, "duplicates": 0,
               "ahead": 0, "refused": []})
    );
    let again = run(&world, &["quarantine", "replay", &ids[1], "--apply"]);
    assert_eq!(code(&again), 1);
    assert!(err(&again).contains("`zk-reader quarantine list`"));
    let by_reason = [
        "quarantine",
        "replay",
        "--reason",
        "unknown-device",
        "--apply",
    ];
    let rest = run(&world, &by_reason);
    assert_eq!(code(&rest), 0);
    assert!(out(&rest).contains(" left: 1 stored"));
    let rest = run(&world, &[&replay[..], &["--apply", "--json"]].concat());
    assert_eq!(code(&rest), 3);
    let line: Value = serde_json::from_str(out(&rest)).unwrap();
    assert_eq!(line["refused"][0]["reason"], "signer-mismatch");
    assert_eq!(listed(&[]), set(&ids[2..]));
    let exported = run(&world, &["list", "--device", "pi-02", "--json"]);
    assert_eq!(out(&exported).lines().count(), 2);
    let line: Value = serde_json::from_str(out(&exported).lines().next().unwrap()).unwrap();
    assert_eq!(line["receivedAt"], noon(1).to_string(), "received then");

    for wrong in [
        &["quarantine", "replay"][..],
        &["quarantine", "replay", "--all", "00"],
        &["quarantine", "replay", "--all", "--reason", "conflict"],
        &["quarantine", "list", "--reason", "weather"],
    ] {
        assert_eq!(code(&run(&world, wrong)), 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn what_was_only_counted_can_not_be_replayed() {
    let world = World::new().await;
    let options = Options {
        unproven: zk_store::Budget {
            items: 1,
            bytes: 1 << 20,
        },
        ..Options::default()
    };
    let store = Store::open(&uri(world.dir.path()), options).await.unwrap();
    let context = Context {
        principal: "somebody".into(),
        topic: "Zymkey/pi-01".into(),
        received_at: noon(0),
    };
    let mut counted = String::new();
    for message in [b"one", b"two"] {
        let result = store.ingest(message, &context).await.unwrap();
        counted.clone_from(&result.quarantined[0].id);
    }
    let all = run(&world, &["quarantine", "replay", "--all"]);
    assert_eq!(code(&all), 3);
    assert!(
        err(&all).contains("1 messages of certificate somebody did not fit and were only counted"),
        "{}",
        err(&all)
    );
    for verb in ["replay", "show"] {
        let one = run(&world, &["quarantine", verb, &counted]);
        assert_eq!((code(&one), out(&one)), (1, ""));
        assert!(
            err(&one).contains("only the hash was kept"),
            "{}",
            err(&one)
        );
    }
}

#[tokio::test]
async fn shows_one_of_several_by_its_time() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 1).await;
    device.reseal(std::slice::from_ref(&world.owner), StreamId([8; 16]));
    device.sequence = 0;
    let record = device.reading(noon(86_400_000), 21_437);
    world.deliver(&device, &record, noon(86_400_000)).await;
    let both = run(&world, &["show", "pi-01", "1"]);
    assert_eq!(code(&both), 1);
    assert!(err(&both).contains("several records have this number"));
    let one = run(&world, &["show", "pi-01", "1", "--from", "2026-11-24"]);
    assert_eq!(code(&one), 0);
    assert!(out(&one).contains("stream       0808"));
    let none = run(&world, &["show", "pi-01", "1", "--to", "2026-11-22"]);
    assert_eq!(code(&none), 1);
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
    assert!(err(&shown).contains("`zk-reader quarantine list`"));
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
    let said = err(&refused);
    let start = "zk-reader: owner.pem: the key does not open with the passphrase in wrong\n";
    let said_path = said.replace(
        &format!("{}/.config/zk/../../", world.dir.path().display()),
        "",
    );
    assert!(said_path.starts_with(start), "{said}");
    assert!(said.contains("is the passphrase right"), "{said}");
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

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reader.md");
    fs::read_to_string(page).unwrap()
}

/// The first cells of the rows of the table below a heading.
fn cells<'a>(page: &'a str, heading: &str) -> BTreeSet<&'a str> {
    let section = page.split(&format!("\n{heading}\n")).nth(1).unwrap();
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("| ---"));
    let rows = rows.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').nth(1).unwrap().trim().trim_matches('`'))
        .collect()
}

#[tokio::test]
async fn reader_toml_is_documented_as_it_is_parsed() {
    let world = World::new().await;
    let config = world.path("other.toml");
    let arguments = ["quarantine", "list", "--config", "other.toml"];
    fs::write(&config, "store = \"file:zk.db\"\nno-such-key = 1\n").unwrap();
    let refused = run(&world, &arguments);
    assert_eq!(code(&refused), 1);
    let (_, expected) = err(&refused).rsplit_once("expected ").unwrap();
    let allowed: BTreeSet<_> = expected.split('`').skip(1).step_by(2).collect();
    let page = page();
    assert_eq!(cells(&page, "### top"), allowed);
    // And each is a string, with the flag and variable that the page names.
    for key in allowed {
        fs::write(&config, format!("{key} = 1\n")).unwrap();
        let refused = run(&world, &arguments);
        assert_eq!(code(&refused), 1, "{key}");
        assert!(err(&refused).contains("expected"), "{}", err(&refused));
        let help = run(&world, &["list", "--help"]);
        assert!(out(&help).contains(&format!("--{key} <")), "{key}");
        assert!(page.contains(&format!("flag `--{key}`")), "{key}");
        let variable = format!("ZK_READER_{}", key.to_uppercase());
        let has = out(&help).contains(&variable);
        assert_eq!(
            has,
            page.contains(&format!("variable `{variable}`")),
            "{key}"
        );
    }
}

#[test]
fn commands_and_exit_codes_are_documented() {
    let dir = tempfile::tempdir().unwrap();
    let page = page();
    let help = |arguments: &[&str]| {
        let shown = zk_reader(dir.path(), &[arguments, &["--help"]].concat());
        assert_eq!(code(&shown), 0, "{arguments:?}");
        String::from_utf8(shown.stdout).unwrap()
    };
    let top = help(&[]);
    let codes = top.split("Exit status:\n").nth(1).unwrap();
    let codes = codes.lines().take_while(|line| !line.is_empty());
    let codes = codes.filter_map(|line| line.split_whitespace().next());
    let codes = codes.filter(|word| word.parse::<u8>().is_ok()).collect();
    assert_eq!(cells(&page, "## Exit status"), codes);

    let commands = |help: &str| {
        let list = help.split("Commands:\n").nth(1).unwrap().to_owned();
        let list = list.lines().take_while(|line| !line.is_empty());
        let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next());
        names
            .filter(|name| *name != "help")
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut paths: Vec<Vec<String>> = Vec::new();
    for name in commands(&top) {
        if name == "quarantine" {
            let inner = commands(&help(&["quarantine"])).into_iter();
            paths.extend(inner.map(|inner| vec![name.clone(), inner]));
        } else {
            paths.push(vec![name]);
        }
    }
    assert!(paths.len() >= 9, "{paths:?}");
    for path in paths {
        let name = path.join(" ");
        let mut rows = page
            .lines()
            .filter(|line| line.starts_with(&format!("| `{name}")));
        let row = rows.next().unwrap_or_else(|| panic!("no row of {name}"));
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        let help = help(&path);
        let (own, _) = help.split_once("\nSettings:").unwrap();
        let options = own
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("--"));
        let options = options.map(|line| line.split([' ', '.']).next().unwrap());
        for option in options {
            // Replay has those of list, and says so.
            let filter = ["device", "principal", "reason", "from", "to"].contains(&option);
            if name != "quarantine replay" || !filter {
                assert!(row.contains(&format!("`--{option}`")), "{name} --{option}");
            }
        }
    }
}

/// A table of readings has the time that the device said, and the one that its
/// anchor says; whoever wants neither scan nor correction says so.
#[tokio::test]
async fn an_export_dates_what_an_unset_clock_has_signed() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    device.clock = ClockQuality::Unknown;
    device.since_boot_ms = 30_000;
    let unset = "1970-01-01T00:00:30.000Z".parse().unwrap();
    let before = device.reading(unset, 21_437);
    device.clock = ClockQuality::Synchronised;
    device.since_boot_ms = 90_000;
    let anchor = Report::TimeAnchor(TimeAnchor {
        before: None,
        error_ms: Some(16),
    });
    let anchor = device.report(noon(60_000), &anchor);
    for record in [&before, &anchor] {
        world.deliver(&device, record, noon(60_000)).await;
    }
    let csv = run(&world, &["export", "--format", "csv"]);
    let row = |csv: &Output| {
        let row = out(csv).lines().nth(1).unwrap().to_owned();
        let cells: Vec<_> = row.split(',').map(str::to_owned).collect();
        [cells[0].clone(), cells[13].clone(), cells[14].clone()]
    };
    assert_eq!(
        row(&csv),
        ["1970-01-01T00:00:30.000Z", "2026-11-23T12:00:00.000Z", "46"]
    );
    let csv = run(&world, &["export", "--format", "csv", "--as-signed"]);
    assert_eq!(row(&csv), ["1970-01-01T00:00:30.000Z", "", ""]);
    let list = run(&world, &["list"]);
    assert!(
        out(&list).contains("2026-11-23T12:00:00.000Z~"),
        "{}",
        out(&list)
    );
    let signed = "1970-01-01T00:00:30.000Z?";
    let limited = run(&world, &["list", "--limit", "2"]);
    assert!(out(&limited).contains(signed), "{}", out(&limited));
    let show = |more: &[&str]| run(&world, &[&["show", "pi-01", "1"], more].concat());
    assert!(out(&show(&[])).contains("made at      2026-11-23T12:00:00.000Z"));
    assert!(!out(&show(&["--as-signed"])).contains("made at"));
    let list = run(&world, &["list", "--as-signed"]);
    assert!(
        out(&list).contains("1970-01-01T00:00:30.000Z?"),
        "{}",
        out(&list)
    );
}

#[tokio::test]
async fn json_members_and_columns_are_documented() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let other = StreamId([9; 16]);
    let rejected = Report::LossReceipt(LossReceipt {
        reason: LossReason::Rejected,
        records: 3,
        range: None,
        noticed_at: noon(0),
    });
    let anchor = Report::TimeAnchor(TimeAnchor {
        before: Some(ClockBefore {
            time: noon(0),
            clock: ClockQuality::Unknown,
        }),
        error_ms: Some(16),
    });
    let previous = PreviousStream {
        stream: other,
        last: 3,
    };
    device.clock = ClockQuality::FreeRunning;
    let started = device.started(noon(0), Some(previous));
    device.clock = ClockQuality::Synchronised;
    let records = [
        started,
        device.heartbeat(noon(1)),
        device.report(noon(2), &rejected),
        device.report(noon(3), &anchor),
        device.text(noon(4), "text/plain", b"text"),
        device.text(noon(5), "application/octet-stream", b"\xff"),
    ];
    for record in &records {
        world.deliver(&device, record, noon(0)).await;
    }
    world.fill(&mut device, 3).await;
    // A fork, a record for others, one that is refused, and a damaged one.
    device.sequence -= 1;
    let fork = device.reading(noon(20_000), 1);
    world.deliver(&device, &fork, noon(0)).await;
    let stranger = zk_envelope::OwnerKey::generate().unwrap();
    device.reseal(&[stranger.public_key().clone()], device.stream);
    let sealed = device.reading(noon(21_000), 1);
    world.deliver(&device, &sealed, noon(0)).await;
    let keys = run(&world, &["list", "--json"]);
    let key = |n: usize| {
        let line = out(&keys).lines().nth(n).unwrap();
        serde_json::from_str::<Value>(line).unwrap()["key"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    tamper(world.dir.path(), "pi-01", &key(6), |item| {
        item["s"] = json!({"S": "x"});
    });
    tamper(world.dir.path(), "pi-01", &key(7), |item| {
        item["s"] = json!({"B": format!("{}==", "A".repeat(86))});
    });
    let mut unknown = Device::new("pi-02", std::slice::from_ref(&world.owner));
    let record = unknown.reading(noon(0), 1);
    let id = world.deliver(&unknown, &record, noon(0)).await.quarantined[0]
        .id
        .clone();

    let mut members = BTreeSet::new();
    for arguments in [
        &["list", "--json"][..],
        &["audit", "--json"],
        &["quarantine", "list", "--json"],
        &["quarantine", "show", &id, "--json"],
        &["quarantine", "replay", &id, "--json"],
        &[
            "keygen",
            "--json",
            "--no-backup",
            "--out",
            "second.pem",
            "--passphrase-file",
            ".config/zk/passphrase",
        ],
    ] {
        let done = run(&world, arguments);
        assert!(
            [0, 3].contains(&code(&done)),
            "{arguments:?}: {}",
            err(&done)
        );
        for line in out(&done).lines() {
            let mut value: Value = serde_json::from_str(line).unwrap();
            // What a body holds is the format's, or the application's.
            if let Some(members) = value.as_object_mut()
                && let Some(body) = members.get_mut("json")
                && body.get("readings").is_none()
            {
                *body = Value::Null;
            }
            collect(&value, &mut members);
        }
    }
    let page = page();
    for member in &members {
        assert!(
            page.contains(&format!("`{member}`")),
            "docs/reader.md lacks {member}"
        );
    }
    for member in [
        "text",
        "hex",
        "json",
        "claimed",
        "detail",
        "rejected",
        "previous",
        "beyondEnd",
    ] {
        assert!(members.contains(member), "{member} was not tested");
    }
    let csv = run(&world, &["export", "--format", "csv"]);
    let columns = out(&csv).lines().next().unwrap();
    assert_eq!(
        cells(
            &page,
            "records that are none have no row, and their number is told. Columns:"
        ),
        columns.split(',').collect()
    );
}

fn collect(value: &Value, members: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            members.extend(object.keys().cloned());
            object.values().for_each(|value| collect(value, members));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, members)),
        _ => {}
    }
}
