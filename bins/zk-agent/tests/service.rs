//! The program under systemd, and the files that put it there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::channel;
use std::time::Duration;

use support::{Place, until};
use zk_hsm_sim::{Daemon, DaemonState, Device, Faults, Model};
use zk_sensors::SimulatedBus;

const FED: &str = "WATCHDOG=1\n";

/// The chip's daemon is away and so is the server: nothing that a new process would
/// mend, and all threads get on.
#[test]
fn a_dead_link_and_a_dead_chip_do_not_starve_the_watchdog() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::create(dir.path().join("chip"), Model::Zymkey4i).unwrap();
    let module = device.module_path();
    let uri = format!("zymkey:slot=0?module-path={}", module.display());
    let place = Place::with_key(dir, &uri.parse().unwrap());
    let (mut daemon, systemd) = place.start_as_service(Duration::from_secs(4));
    let address = daemon.address();
    assert_eq!(systemd.notified(), "READY=1\n");
    let away = Faults {
        daemon: Daemon {
            state: DaemonState::Down,
            ..Daemon::default()
        },
        ..Faults::default()
    };
    device.set_faults(&away).unwrap();
    until(address, |page| {
        page["hsm_state{state=\"reopening\"}"] == 1.0 && page["publisher_online"] == 0.0
    });
    // for longer than the watchdog waits
    for _ in 0..6 {
        systemd.until(|said| said == FED);
    }
    device.clear_faults().unwrap();
    let (_, status) = daemon.terminate();
    assert_eq!(systemd.until(|said| said != FED), "STOPPING=1\n");
    assert_eq!(status.code(), Some(0));
}

/// A driver that never answers holds up the thread that reads sensors, and the
/// watchdog is fed no more until it does.
#[test]
fn a_thread_that_is_stuck_starves_the_watchdog() {
    let place = Place::new();
    let sensor = place.path("sys/bus/w1/devices/28-0000000a0001/w1_slave");
    let answer = fs::read(&sensor).unwrap();
    fs::remove_file(&sensor).unwrap();
    let made = Command::new("mkfifo").arg(&sensor).status().unwrap();
    assert!(made.success());
    let (mut daemon, systemd) = place.start_as_service(Duration::from_millis(800));
    daemon.address();
    assert_eq!(systemd.notified(), "READY=1\n");
    let stuck = |said: &str| said.starts_with("STATUS=the sampler has been at one thing for ");
    systemd.until(stuck);
    let log = daemon.logged("a thread is stuck; systemd is told no more");
    assert_eq!(log["thread"], "sampler");
    for _ in 0..6 {
        let said = systemd.notified();
        assert!(stuck(&said), "{said}");
    }
    // It answers after all.
    fs::rename(&sensor, place.path("pipe")).unwrap();
    fs::write(&sensor, answer).unwrap();
    let pipe = OpenOptions::new().write(true).open(place.path("pipe"));
    drop(pipe.unwrap());
    systemd.until(|said| said == "STATUS=all threads get on again\n");
    systemd.until(|said| said == FED);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// A long wire: one thermometer after the other answers in time, all of them together
/// take longer than the watchdog waits.
#[test]
fn many_slow_sensors_do_not_starve_the_watchdog() {
    let place = Place::new();
    let sensors: Vec<_> = (0..7)
        .map(|n| format!("28-0000000b000{n}").parse().unwrap())
        .collect();
    SimulatedBus::create(place.path("wire"), &sensors).unwrap();
    fs::remove_file(place.path("wire/bus/w1/devices/w1_bus_master1/therm_bulk_read")).unwrap();
    let (read, reads) = channel();
    for sensor in sensors {
        let file = place.path(&format!("wire/bus/w1/devices/{sensor}/w1_slave"));
        let answer = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let made = Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(made.success());
        let read = read.clone();
        std::thread::spawn(move || {
            // when the agent reads it
            let pipe = OpenOptions::new().write(true).open(file).unwrap();
            read.send((pipe, answer)).unwrap();
        });
    }
    drop(read);
    place.reconfigure("\"10ms\"", "\"24h\"");
    place.reconfigure("root = \"sys\"", "root = \"wire\"");
    let (mut daemon, systemd) = place.start_as_service(Duration::from_secs(4));
    let address = daemon.address();
    assert_eq!(systemd.notified(), "READY=1\n");
    for (mut pipe, answer) in reads {
        assert_eq!(systemd.notified(), FED);
        pipe.write_all(&answer).unwrap();
    }
    until(address, |page| page["readings_sealed_total"] == 7.0);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// A file that goes with the program.
fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn systemd(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!(
            "{:?}: {error}; install it with: apt-get install systemd",
            command.get_program()
        ),
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn the_unit_is_hardened_and_right() {
    let unit = beside("debian/zk-agent.service");
    let output = systemd(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", "--threshold=25"])
            .arg(&unit),
    );
    assert!(output.status.success(), "{}", said(&output));

    // with a program that is there
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("zk-agent.service");
    let text = fs::read_to_string(&unit).unwrap();
    let text = text.replace("/usr/bin/zk-agent", env!("CARGO_BIN_EXE_zk-agent"));
    fs::write(&copy, text).unwrap();
    let output = systemd(Command::new("systemd-analyze").arg("verify").arg(&copy));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "");
}

/// What the service may still do, against what would be stricter.
#[test]
fn the_unit_permits_what_the_agent_needs() {
    let unit = fs::read_to_string(beside("debian/zk-agent.service")).unwrap();
    let has = |line: &str| unit.lines().any(|own| own == line);
    for line in [
        "Type=notify",
        "RestartPreventExitStatus=2",
        // the clock is read by a call that the kernel counts among those that set it
        "ProtectClock=no",
        "SystemCallFilter=adjtimex clock_adjtime @chown",
        // the boot's id
        "ProcSubset=all",
        // therm_bulk_read
        "ReadWritePaths=-/sys/devices",
        // the network's return, the chip's daemon
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX",
    ] {
        assert!(has(line), "no {line}");
    }
}

/// What the rule runs when the kernel has a new thermometer, on a tree of our own. Who
/// has no package has it from the document.
#[test]
fn the_udev_rule_lets_the_agents_group_begin_a_conversion() {
    let rules = fs::read_to_string(beside("debian/zk-agent.rules")).unwrap();
    let rule = rules.lines().find(|line| !line.starts_with('#')).unwrap();
    let document = fs::read_to_string(beside("../../docs/sensors.md")).unwrap();
    let shown = document.lines().filter(|line| line.contains("SUBSYSTEM=="));
    assert!(shown.eq([rule]), "docs/sensors.md has another rule");
    let program = rules.split("RUN+=\"/bin/sh -c '").nth(1).unwrap();
    let program = program.split("'\"").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("master/28-0000000a0001")).unwrap();
    let file = dir.path().join("master/therm_bulk_read");
    fs::write(&file, "0\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let device = dir.path().join("master/28-0000000a0001");
    let group = rustix::process::getgid().as_raw().to_string();
    let program = program
        .replace("/sys%p", device.to_str().unwrap())
        .replace("zk-agent", &group);
    let output = systemd(Command::new("/bin/sh").args(["-c", &program]));
    assert!(output.status.success(), "{}", said(&output));
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o664);
}

#[test]
fn the_users_are_made_as_the_unit_names_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    let mut root = std::ffi::OsString::from("--root=");
    root.push(dir.path());
    let output = systemd(
        Command::new("systemd-sysusers")
            .arg(root)
            .arg(beside("debian/zk-agent.sysusers")),
    );
    assert!(output.status.success(), "{}", said(&output));
    let users = fs::read_to_string(dir.path().join("etc/passwd")).unwrap();
    assert!(users.starts_with("zk-agent:"), "{users}");
    let groups = fs::read_to_string(dir.path().join("etc/group")).unwrap();
    let publishers = groups.lines().find(|line| line.starts_with("zk-publish:"));
    assert!(publishers.unwrap().ends_with(":zk-agent"), "{groups}");
    let unit = fs::read_to_string(beside("debian/zk-agent.service")).unwrap();
    assert!(unit.contains("\nUser=zk-agent\nGroup=zk-agent\n"));
}
