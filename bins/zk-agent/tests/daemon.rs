//! The program as a service: what it tells monitoring, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use support::{Place, ask, get, metrics, started_with, until};

#[test]
fn a_service_tells_how_it_fares_and_ends_with_everything_on_disk() {
    let place = Place::new();
    let mut daemon = place.start();
    let address = daemon.address();

    let page = until(address, |page| {
        page["spool_records"] >= 5.0 && page["publish_retries_total"] >= 1.0
    });
    assert_eq!(page["sensors"], 1.0);
    assert_eq!(page["readings_given_up_total"], 0.0);
    assert_eq!(page["publisher_online"], 0.0);
    assert!(page["readings_sealed_total"] <= page["readings_sampled_total"]);
    assert!(page["hsm_signatures_total"] >= 5.0);
    assert_eq!(page["hsm_failures_total{class=\"fatal\"}"], 0.0);
    assert_eq!(page["hsm_state{state=\"ready\"}"], 1.0);
    assert_eq!(page["hsm_state{state=\"wedged\"}"], 0.0);
    for name in ["busy", "late_results", "retries", "reopens", "timeouts"] {
        assert_eq!(page[&format!("hsm_{name}_total")], 0.0, "{name}");
    }
    // a key file measures nothing
    assert!(!page.contains_key("hsm_measured_seconds"));
    // 2049-01-01T00:00:00Z
    assert_eq!(page["certificate_expires_seconds"], 2_493_072_000.0);
    let signed = page["hsm_sign_seconds_count"];
    assert!(signed >= 5.0);
    assert_eq!(page["hsm_sign_seconds_bucket{le=\"+Inf\"}"], signed);
    let buckets = page.iter().filter(|(name, _)| name.contains("_bucket"));
    assert!(buckets.clone().count() > 10);
    assert!(buckets.clone().all(|(_, below)| *below <= signed));
    // A link that is down needs nobody.
    assert_eq!(page["healthy"], 1.0);
    assert_eq!(get(address, "/healthz"), ("200".into(), "ok\n".into()));
    assert_eq!(get(address, "/").0, "404");
    // as some monitors ask
    let head = ask(address, "HEAD", "/healthz");
    assert_eq!(head, ("200".to_owned(), String::new()));

    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let waiting = stopped["waiting"].as_u64().unwrap();
    assert_eq!(stopped["sealed"], stopped["sampled"], "{stopped}");

    // Started again, it finds all of it, and goes on in the same stream.
    let mut daemon = place.start();
    let address = daemon.address();
    let page = until(address, |page| page["readings_sealed_total"] >= 1.0);
    assert!(page["spool_records"] > waiting as f64);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// The other engine, from the configuration to the disk; and the spool keeps it.
#[test]
fn records_wait_in_sled_where_that_is_the_engine() {
    let place = Place::new();
    place.reconfigure("[spool]\n", "[spool]\nengine = \"sled\"\n");
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["spool_records"] >= 5.0);
    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let waiting = stopped["waiting"].as_u64().unwrap();

    let options = zk_spool::Options {
        engine: zk_spool::Engine::Sled,
        ..zk_spool::Options::default()
    };
    let spool = zk_spool::Spool::open(place.path("spool"), options).unwrap();
    let records = spool.peek(usize::MAX, usize::MAX).unwrap();
    assert_eq!(records.len() as u64, waiting);
    drop(spool);

    place.reconfigure("\"sled\"", "\"log\"");
    let mut daemon = place.start();
    let said = daemon.rest();
    assert!(
        said.contains("a spool of the engine sled, not log"),
        "{said}"
    );
}

#[test]
fn health_names_what_needs_somebody() {
    let place = Place::new();
    place.certificate("pi-01", 2024);
    let mut daemon = place.start();
    let address = daemon.address();
    let (status, why) = get(address, "/healthz");
    assert_eq!(status, "503");
    assert!(why.contains("certificate has expired"), "{why}");
    assert_eq!(metrics(address)["healthy"], 0.0);
}

#[test]
fn a_certificate_that_expires_soon_is_told_of_while_all_is_well() {
    let place = Place::new();
    let soon = SystemTime::now() + Duration::from_secs(20 * 24 * 3600 + 3600);
    place.certificate_with("pi-01", |params| params.not_after = soon.into());
    let mut daemon = place.start();
    let said = "the device's certificate expires in 20 days: zk-setup device add makes a new one";
    let address = daemon.address();
    daemon.logged(said);
    let (status, page) = get(address, "/healthz");
    assert_eq!(status, "200");
    assert_eq!(page, format!("ok\n{said}\n"));
    assert_eq!(metrics(address)["healthy"], 1.0);
}

/// The second one says who has it, and that is no wrong configuration: systemd
/// may try it again.
#[test]
fn a_spool_has_one_agent() {
    let place = Place::new();
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["spool_records"] >= 1.0);
    let (code, said) = started_with(&place.path("agent.toml"), &[]);
    assert_eq!(code, Some(1), "{said}");
    let pid = format!("process {}", daemon.id());
    for part in ["spool: ", place.path("spool").to_str().unwrap(), &pid] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let sealed = metrics(address)["readings_sealed_total"];
    until(address, |page| page["readings_sealed_total"] > sealed);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

#[test]
fn sensors_that_cannot_be_read_do_not_fill_the_log() {
    let place = Place::new();
    fs::rename(place.path("sys"), place.path("unplugged")).unwrap();
    let mut daemon = place.start();
    let address = daemon.address();
    // Many sweeps later: they are 10 ms apart, attempts to publish far more.
    until(address, |page| page["publish_retries_total"] >= 2.0);
    assert_eq!(metrics(address)["readings_sampled_total"], 0.0);
    fs::rename(place.path("unplugged"), place.path("sys")).unwrap();
    let log = daemon.log_until("the sensors can be read again");
    let told = log.iter().filter(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("cannot read the sensors")
    });
    assert_eq!(told.count(), 1, "{log:#?}");
    until(address, |page| page["readings_sampled_total"] >= 1.0);
}

#[test]
fn records_that_wait_are_not_published_as_another_device() {
    let place = Place::new();
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["spool_records"] >= 1.0);
    assert_eq!(daemon.terminate().1.code(), Some(0));

    place.certificate("pi-02", 2049);
    let config = place.path("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"pi-01\"", "\"pi-02\"")).unwrap();
    let (code, _) = started_with(&config, &["--check-config"]);
    assert_eq!(code, Some(2));
    let (code, said) = started_with(&config, &[]);
    assert_eq!(code, Some(2), "{said}");
    for part in ["device pi-01", "device.id is pi-02", "spool.dir"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn metrics_stay_on_this_machine() {
    let place = Place::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let cases = [
        ("0.0.0.0:9465", 2, "loopback"),
        ("localhost", 2, "127.0.0.1:9465"),
        (taken.as_str(), 1, "give another metrics.listen"),
    ];
    for (address, code, said) in cases {
        let output = started_with(&place.path("agent.toml"), &["--metrics", address]);
        assert_eq!(output.0, Some(code), "{address}: {}", output.1);
        assert!(output.1.contains(said), "{address}: {}", output.1);
    }
}
