//! SIGHUP: what changes in a running agent, and what doesn't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::{Place, metrics, until};
use zk_envelope::OwnerKey;
use zk_sensors::Readings;

const TAKEN_UP: &str = "the configuration holds as it is now";

#[test]
fn certificate_intervals_and_filter_change_in_a_running_agent() {
    let place = Place::new();
    place.reconfigure("\"10ms\"", "\"24h\"");
    let (mut daemon, systemd) = place.start_as_service(Duration::from_secs(100));
    let address = daemon.address();
    assert_eq!(systemd.notified(), "READY=1\n");
    let page = until(address, |page| page["readings_sealed_total"] == 1.0);
    assert_eq!(page["certificate_expires_seconds"], 2_493_072_000.0);

    place.certificate("pi-01", 2048);
    place.reconfigure("\"24h\"", "\"10ms\"");
    place.reconfigure("[spool]", "[heartbeat]\ninterval = \"10ms\"\n[spool]");
    daemon.signal(Signal::HUP);
    daemon.logged(TAKEN_UP);
    let reloading = systemd.notified();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(systemd.notified(), "READY=1\n");
    // 2048-01-01T00:00:00Z
    assert_eq!(
        metrics(address)["certificate_expires_seconds"],
        2_461_449_600.0
    );
    // after 24 h, else
    let page = until(address, |page| page["readings_sealed_total"] >= 5.0);
    let appended = page["spool_appended_total"];
    place.reconfigure("interval = \"10ms\"\nroot", "interval = \"24h\"\nroot");
    daemon.signal(Signal::HUP);
    daemon.logged(TAKEN_UP);
    systemd.until(|said| said == "READY=1\n");
    // heartbeats alone
    until(address, |page| {
        page["spool_appended_total"] >= appended + 20.0
    });

    // nothing is told any more, and so not that either
    place.reconfigure("[spool]", "[log]\nfilter = \"off\"\n[spool]");
    daemon.signal(Signal::HUP);
    systemd.until(|said| said == "READY=1\n");
    place.reconfigure("\"off\"", "\"info\"");
    daemon.signal(Signal::HUP);
    let log = daemon.log_until(TAKEN_UP);
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

#[test]
fn what_cannot_change_is_named_and_what_is_wrong_changes_nothing() {
    let place = Place::new();
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["readings_sealed_total"] >= 1.0);

    place.reconfigure("dir = \"spool\"", "dir = \"elsewhere\"\ncap = \"1MiB\"");
    place.reconfigure("id = \"pi-01\"", "id = \"pi-02\"");
    // each time that somebody asks
    for _ in 0..2 {
        daemon.signal(Signal::HUP);
        let log = daemon.log_until(TAKEN_UP);
        let named: Vec<_> = log
            .iter()
            .filter(|line| {
                line["message"]
                    .as_str()
                    .unwrap()
                    .starts_with("this changes when")
            })
            .filter_map(|line| line["key"].as_str())
            .collect();
        assert_eq!(named, ["device.id", "spool.cap", "spool.dir"]);
    }
    assert!(!place.path("elsewhere").exists());
    place.reconfigure("id = \"pi-02\"", "id = \"pi-01\"");

    let good = fs::read_to_string(place.path("agent.toml")).unwrap();
    let certificate = fs::read_to_string(place.path("cert.pem")).unwrap();
    let refused = |daemon: &mut support::Daemon, parts: &[&str]| {
        daemon.signal(Signal::HUP);
        let log = daemon.logged("going on with the configuration as it was");
        let error = log["error"].as_str().unwrap();
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    };
    place.reconfigure("\"10ms\"", "\"1ms\"");
    refused(
        &mut daemon,
        &["agent.toml", "agent.toml:11: sensors.interval", "10ms"],
    );
    fs::write(place.path("agent.toml"), "[device").unwrap();
    refused(&mut daemon, &["agent.toml", "line 1"]);
    fs::write(place.path("agent.toml"), &good).unwrap();
    // what the next start would stumble over
    place.reconfigure("endpoint = \"", "endpoint = \"https://");
    refused(&mut daemon, &["agent.toml:6: target.endpoint", "host:port"]);
    fs::write(place.path("agent.toml"), &good).unwrap();
    let owner = fs::read_to_string(place.path("owner.pem")).unwrap();
    fs::write(place.path("owner.pem"), &owner[..60]).unwrap();
    refused(&mut daemon, &["agent.toml:9: owners.files", "owner.pem"]);
    // another owner in the same file
    let other = OwnerKey::generate().unwrap().public_key().to_pem();
    fs::write(place.path("owner.pem"), other).unwrap();
    daemon.signal(Signal::HUP);
    let log = daemon.log_until(TAKEN_UP);
    let named = log.iter().filter_map(|line| line["key"].as_str());
    assert!(
        named.eq(["spool.cap", "spool.dir", "owners.files"]),
        "{log:?}"
    );
    fs::write(place.path("owner.pem"), owner).unwrap();
    // another device's certificate, with or without its name, and one of another key
    place.certificate("pi-02", 2049);
    refused(&mut daemon, &["cert.pem", "pi-02"]);
    place.reconfigure("id = \"pi-01\"", "id = \"pi-02\"");
    refused(
        &mut daemon,
        &["agent.toml:2: device.id", "pi-02", "pi-01", "anew"],
    );
    fs::write(place.path("agent.toml"), &good).unwrap();
    let stranger = Place::new();
    stranger.certificate("pi-01", 2030);
    fs::copy(stranger.path("cert.pem"), place.path("cert.pem")).unwrap();
    refused(&mut daemon, &["holds key"]);
    fs::write(place.path("cert.pem"), "nothing").unwrap();
    refused(&mut daemon, &["cert.pem", "certificate"]);
    assert_eq!(
        metrics(address)["certificate_expires_seconds"],
        2_493_072_000.0
    );

    fs::write(place.path("cert.pem"), certificate).unwrap();
    daemon.signal(Signal::HUP);
    daemon.logged(TAKEN_UP);
    let sealed = metrics(address)["readings_sealed_total"];
    until(address, |page| page["readings_sealed_total"] > sealed);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// The values are those that were measured, and what a calibration has found.
#[test]
fn readings_have_the_offsets_that_held_in_their_values() {
    let place = Place::new();
    place.reconfigure(
        "root = \"sys\"",
        "root = \"sys\"\noffsets = [\"28-0000000a0001=-0.25\", \"28-0000000a0009=1\"]",
    );
    let mut daemon = place.start();
    let address = daemon.address();
    let told = daemon.logged(OFFSETS);
    assert_eq!(
        told["offsets"],
        "28-0000000a0001=-0.250 28-0000000a0009=1.000"
    );
    until(address, |page| page["readings_sealed_total"] >= 1.0);
    let mut reload = |from: &str, to: &str| {
        place.reconfigure(from, to);
        daemon.signal(Signal::HUP);
        let log = daemon.log_until(TAKEN_UP);
        let restart = |line: &serde_json::Value| {
            let said = line["message"].as_str().unwrap();
            said.starts_with("this changes when")
        };
        assert!(!log.iter().any(restart), "{log:?}");
        let sealed = metrics(address)["readings_sealed_total"];
        until(address, |page| {
            page["readings_sealed_total"] >= sealed + 5.0
        });
    };
    reload("=-0.25\"", "=+0.125\"");
    reload(
        "offsets = [\"28-0000000a0001=+0.125\", \"28-0000000a0009=1\"]",
        "",
    );
    assert_eq!(daemon.terminate().1.code(), Some(0));
    // a flag goes before a variable, that before the file
    let run = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zk-agent"));
        command.env("ZK_AGENT_OFFSETS", "28-0000000a0009=1,28-0000000a0001=2");
        let mut daemon = place.start_with(command.args(flags));
        let address = daemon.address();
        until(address, |page| page["readings_sealed_total"] >= 1.0);
        assert_eq!(daemon.terminate().1.code(), Some(0));
    };
    run(&[]);
    run(&["--offset", "28-0000000a0001=-3.5"]);

    let mut values = Vec::new();
    for record in place.records() {
        if record.report().unwrap().is_none() {
            let body: Readings = serde_json::from_slice(record.body()).unwrap();
            values.extend(body.readings.iter().map(|reading| reading.value.unwrap().0));
        }
    }
    values.dedup();
    assert_eq!(values, [19_750, 20_125, 20_000, 22_000, 16_500]);
}

const OFFSETS: &str = "degrees that are added to what is measured";
