//! What the agent says when it can't start, as a person meets it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::convert::Infallible;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use zk_agent::{Agent, Config};
use zk_envelope::OwnerKey;
use zk_hsm::create_soft_key;
use zk_spool::Spool;

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
    agent_with(dir, text, &[])
}

fn agent_with(dir: &Path, text: &str, flags: &[&str]) -> (Output, String) {
    let file = dir.join("agent.toml");
    fs::write(&file, text.replace("DIR", dir.to_str().unwrap())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
        .env("RUST_LOG", "off")
        .arg("--config")
        .arg(&file)
        .args(flags)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (output, said)
}

/// Key, certificate and owner: all that a start needs, but for sensors.
fn provision(dir: &Path, common_name: &str) {
    create_soft_key(dir.join("key.pem")).unwrap();
    let owner = OwnerKey::generate().unwrap();
    fs::write(dir.join("owner.pub.pem"), owner.public_key().to_pem()).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-new", "-key", "key.pem", "-days", "30"])
        .args(["-subj", &format!("/CN={common_name}"), "-out", "cert.pem"])
        .current_dir(dir)
        .output();
    let Ok(made) = made else {
        panic!("the openssl program is missing; install it with: apt-get install openssl");
    };
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    fs::copy(dir.join("cert.pem"), dir.join("roots.pem")).unwrap();
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
            vec!["agent.toml:15: sensors.interval", "at least 10ms"],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = [\"28-000005e2fdc3=-0,25\"]",
            vec![
                "line 17",
                "28-000005e2fdc3=-0,25",
                "SENSOR=CELSIUS",
                "3 decimals",
            ],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = [\n\"28-000005e2fdc3=1\",\n\"28-000005e2fdc3=2.5000\"]",
            vec!["line 19", "28-000005e2fdc3=2.5000", "3 decimals"],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = [\"01-000005e2fdc3=-0.25\"]",
            vec!["line 17", "01-000005e2fdc3", "family 10, 22, 28, 3b or 42"],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = [\"28-000005e2fdc3=-10.001\"]",
            vec!["line 17", "28-000005e2fdc3", "-10.001", "at most 10"],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = [\"28-000005e2fdc3=1\", \"28-000005e2fdc3=1\"]",
            vec![
                "agent.toml:17: sensors.offsets",
                "28-000005e2fdc3",
                "leave one",
            ],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = { 28-000005e2fdc3 = 1.0 }",
            vec!["line 17", "offsets", "sequence"],
        ),
        (
            "root = \"sys\"",
            "root = \"sys\"\noffsets = [0.25]",
            vec!["line 17", "an offset such as 28-0000000a0001=-0.25"],
        ),
        (
            "\"5m\"",
            "\"25h\"",
            vec!["agent.toml:25: heartbeat.interval", "at most 24h"],
        ),
        (
            "[heartbeat]",
            "[events]\nbattery = 2500.0\n[heartbeat]",
            vec!["events.battery", "in volts"],
        ),
        (
            "\"1s\"",
            "\"9000000000h\"",
            vec!["agent.toml:22: spool.sync.every", "at most 24h"],
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
        (
            "[\"owner.pub.pem\"]",
            "[]",
            vec!["agent.toml:12: owners.files", "1 to 8"],
        ),
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
fn flags_have_the_same_bounds_as_the_file() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-01");
    for (flags, says) in [
        (["--interval", "0s"], "at least 10ms"),
        (["--interval=-5s", "--spool=spool"], "at least 10ms"),
        (["--interval", "9000000000h"], "at most 24h"),
        (["--endpoint", "https://localhost"], "host:port"),
        (["--hsm", "soft:key.pem"], "absolute path"),
        (["--offset", "28-000005e2fdc3=11"], "at most 10"),
        (["--offset", "28-000005e2fdc3=0,25"], "25"),
        (
            ["--offset", "28-000005e2fdc3=1,28-000005e2fdc3=1"],
            "sensors.offsets",
        ),
    ] {
        let (output, said) = agent_with(dir.path(), GOOD, &flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(says), "{flags:?}: {said}");
    }
}

#[test]
fn the_certificate_of_another_device_or_key_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-02");
    let (output, said) = agent(dir.path(), GOOD);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["cert.pem", "pi-01", "pi-02", "device.id"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    fs::remove_file(dir.path().join("key.pem")).unwrap();
    create_soft_key(dir.path().join("key.pem")).unwrap();
    let (output, said) = agent(dir.path(), &GOOD.replace("pi-01", "pi-02"));
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "holds key",
        "use the certificate that was issued for this key",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

/// All that is wrong at once, each with its line and a cure; and nothing is made.
#[test]
fn a_configuration_is_checked_without_a_start() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-01");
    fs::create_dir_all(dir.path().join("sys/bus/w1/devices")).unwrap();
    // its certificate is for 30 days
    let (output, said) = agent_with(dir.path(), GOOD, &["--check-config"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines[0].contains("agent.toml:5: warning: device.certificate:"),
        "{text}"
    );
    assert!(lines[0].contains("expires at"), "{text}");
    assert!(lines[1].contains("next: zk-setup device add"), "{text}");
    assert!(
        lines[2].ends_with("agent.toml: the agent starts with it"),
        "{text}"
    );
    assert!(!dir.path().join("spool").exists());
    let here = dir.path().join("sys/bus/w1/devices/28-0000000a0001");
    fs::create_dir(here).unwrap();
    let offsets = "root = \"sys\"\noffsets = [\"28-0000000a0001=1\", \"28-0000000a0002=1\"]";
    let text = GOOD.replace("root = \"sys\"", offsets);
    let (output, said) = agent_with(dir.path(), &text, &["--check-config"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = "agent.toml:17: warning: sensors.offsets: 28-0000000a0002=1.000";
    assert!(text.contains(line) && !text.contains("a0001"), "{text}");

    let found = |text: &str, flags: &[&str]| {
        let flags = [&["--check-config", "--json"], flags].concat();
        let (output, said) = agent_with(dir.path(), text, &flags);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect(&said);
        assert_eq!(output.status.code(), Some(2), "{json}");
        assert_eq!(json["starts"], false);
        let findings = json["findings"].as_array().unwrap().clone();
        let wrong = findings
            .into_iter()
            .filter(|finding| finding["starts"] == false);
        let told = |finding: serde_json::Value| {
            let key = finding["key"].as_str().unwrap_or_default().to_owned();
            let what = finding["what"].as_str().unwrap().to_owned();
            (key, finding["line"].as_u64(), what)
        };
        wrong.map(told).collect::<Vec<_>>()
    };
    let wrong = GOOD
        .replace("localhost:8443", "https://localhost")
        .replace("roots.pem", "no-roots.pem")
        .replace(
            "[\"owner.pub.pem\"]",
            "[\"owner.pub.pem\", \"owner.pub.pem\"]",
        );
    let all = found(&wrong, &["--socket", "a.sock", "--socket-group", "no-such"]);
    let keys: Vec<_> = all
        .iter()
        .map(|(key, line, _)| (key.as_str(), *line))
        .collect();
    assert_eq!(
        keys,
        [
            ("target.endpoint", Some(8)),
            ("owners.files", Some(12)),
            ("target.roots", Some(9)),
            ("socket.group", None),
        ]
    );
    // one that does not parse has its line in words
    let all = found(&GOOD.replace("[spool]", "[spool]\nsize = 3"), &[]);
    assert!(
        all[0].2.contains("line 19") && all[0].2.contains("`size`"),
        "{all:?}"
    );

    // another key than the certificate's, and one that isn't there
    fs::remove_file(dir.path().join("key.pem")).unwrap();
    create_soft_key(dir.path().join("key.pem")).unwrap();
    let all = found(GOOD, &[]);
    assert_eq!(
        (all[0].0.as_str(), all[0].1),
        ("device.certificate", Some(5))
    );
    assert!(all[0].2.contains("holds key"), "{all:?}");
    fs::remove_file(dir.path().join("key.pem")).unwrap();
    let all = found(GOOD, &[]);
    assert_eq!((all[0].0.as_str(), all[0].1), ("device.hsm", Some(4)));
    assert_eq!(all.len(), 1, "{all:?}");
    fs::write(dir.path().join("spool"), "a file").unwrap();
    let all = found(GOOD, &[]);
    assert_eq!((all[1].0.as_str(), all[1].1), ("spool.dir", Some(19)));
}

/// As it is while the agent runs that has them.
#[test]
fn what_is_in_use_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-01");
    let _socket = UnixListener::bind(dir.path().join("a.sock")).unwrap();
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = metrics
        .local_addr()
        .map(|address| (metrics, address))
        .unwrap();
    let more = format!(
        "[metrics]\nlisten = \"{}\"\n[socket]\nlisten = \"a.sock\"\n",
        metrics.1
    );
    let (output, said) = agent_with(dir.path(), &(GOOD.to_owned() + &more), &["--check-config"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    for key in ["metrics.listen", "socket.listen"] {
        let part = format!("warning: {key}: somebody listens at");
        assert!(text.contains(&part), "{text}");
    }
}

/// The records that wait are of the other engine.
#[test]
fn a_spool_of_another_engine_is_seen_by_the_check() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-01");
    for (has, engine) in [
        ("log", zk_spool::Engine::Log),
        ("sled", zk_spool::Engine::Sled),
    ] {
        let options = zk_spool::Options {
            engine,
            ..zk_spool::Options::default()
        };
        let spool = Spool::open(dir.path().join(has), options).unwrap();
        spool
            .append_with(|_| Ok::<_, Infallible>(b"x".to_vec()))
            .unwrap();
        spool.close().unwrap();
        for asked in ["log", "sled"] {
            let text = GOOD.replace("\"spool\"", &format!("\"{has}\"\nengine = \"{asked}\""));
            let (output, said) = agent_with(dir.path(), &text, &["--check-config"]);
            let text = String::from_utf8(output.stdout).unwrap();
            let expected = if has == asked { 0 } else { 2 };
            assert_eq!(output.status.code(), Some(expected), "{text}{said}");
            let told = text.contains("agent.toml:20: spool.engine: ");
            assert_eq!(told, has != asked, "{text}");
        }
    }
}

/// What a start would meet the check meets, too, at the same place; and the other way
/// round.
#[test]
fn what_the_check_says_is_what_a_start_does() {
    let socket = |path: &str| format!("[socket]\nlisten = \"{path}\"\n[heartbeat]");
    let long = socket(&format!("{}.sock", "s".repeat(200)));
    let cases: [(&str, &str, &[&str], &str, i32); 13] = [
        ("\"1MiB\"", "\"1KiB\"", &[], "agent.toml:20: spool.cap", 2),
        ("\"1MiB\"", "-1", &[], "agent.toml:20: ", 2),
        ("\"spool\"", "\"\"", &[], "agent.toml:19: spool.dir", 2),
        (
            "\"spool\"",
            "\"key.pem/spool\"",
            &[],
            "agent.toml:19: spool.dir",
            1,
        ),
        (
            "\"roots.pem\"",
            "\"no.pem\"",
            &[],
            "agent.toml:9: target.roots",
            2,
        ),
        (
            "\"cert.pem\"",
            "\"half.pem\"",
            &[],
            "agent.toml:5: device.certificate",
            2,
        ),
        (
            "[\"owner.pub.pem\"]",
            "[\"owner.pub.pem\", \"owner.pub.pem\"]",
            &[],
            "agent.toml:12: owners.files",
            2,
        ),
        ("[heartbeat]", &long, &[], "agent.toml:25: socket.listen", 1),
        (
            "[heartbeat]",
            &socket("no/a.sock"),
            &[],
            "agent.toml:25: socket.listen",
            1,
        ),
        (
            "[heartbeat]",
            &socket("sys"),
            &[],
            "agent.toml:25: socket.listen",
            1,
        ),
        (
            "",
            "",
            &["--interval", "1ms"],
            "--interval: sensors.interval",
            2,
        ),
        ("", "", &["--owner", "/no.pem"], "--owner: owners.files", 2),
        ("", "", &["--hsm", "soft:/no.pem"], "--hsm: device.hsm", 1),
    ];
    for (from, to, flags, place, status) in cases {
        let dir = tempfile::tempdir().unwrap();
        provision(dir.path(), "pi-01");
        fs::create_dir_all(dir.path().join("sys/bus/w1/devices")).unwrap();
        let whole = fs::read_to_string(dir.path().join("cert.pem")).unwrap();
        fs::write(dir.path().join("half.pem"), &whole[..200]).unwrap();
        let text = GOOD.replacen(from, to, 1);
        let checked = agent_with(dir.path(), &text, &[&["--check-config"], flags].concat());
        let output = String::from_utf8(checked.0.stdout).unwrap() + &checked.1;
        assert_eq!(checked.0.status.code(), Some(2), "{place}: {output}");
        assert!(output.contains(place), "no {place:?} in {output}");
        let (output, said) = agent_with(dir.path(), &text, flags);
        assert_eq!(output.status.code(), Some(status), "{place}: {said}");
        assert!(said.contains(place), "no {place:?} in {said}");
    }
}

#[test]
fn a_value_of_a_variable_is_shown_as_the_variables() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-01");
    let file = dir.path().join("agent.toml");
    fs::write(&file, GOOD.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    for (variable, value, status) in [
        ("ZK_AGENT_INTERVAL", "often", 2),
        ("ZK_AGENT_SPOOL_FULL", "panic", 2),
        ("ZK_AGENT_INTERVAL", "1ms", 2),
        ("ZK_AGENT_ENDPOINT", "a:0", 2),
        ("RUST_LOG", "zk=loud", 2),
        ("ZK_AGENT_HSM", "soft:/no.pem", 1),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
            .env(variable, value)
            .arg("--config")
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(variable), "no {variable} in {said}");
        assert!(!said.contains("agent.toml:"), "{said}");
    }
}

/// A sensor whose file never answers: the thread that reads it is stuck.
#[test]
fn it_stops_though_a_sensor_hangs() {
    let dir = tempfile::tempdir().unwrap();
    provision(dir.path(), "pi-01");
    let sensor = dir.path().join("sys/bus/w1/devices/28-0000000a0001");
    fs::create_dir_all(&sensor).unwrap();
    let pipe = sensor.join("w1_slave");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let file = dir.path().join("agent.toml");
    fs::write(&file, GOOD.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    let agent = Agent::start(&Config::read(&file).unwrap(), || {}).unwrap();
    // Opens when the reader waits for it.
    let _end = loop {
        let mut writing = fs::OpenOptions::new();
        match writing.write(true).custom_flags(O_NONBLOCK).open(&pipe) {
            Ok(end) => break end,
            Err(_) => std::thread::yield_now(),
        }
    };
    let status = agent.stop(Duration::from_millis(100)).unwrap();
    assert_eq!(status.sampled, 0);
}

/// On every Linux but MIPS, SPARC and Alpha.
const O_NONBLOCK: i32 = 0o4000;

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
