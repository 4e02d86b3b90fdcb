//! The program with a key in a chip that fails, tires and hangs: a simulated one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use support::{Place, get, is_whole, metrics, tally, until};
use zk_hsm_sim::{Daemon, DaemonState, Device, Fault, Faults, Model, Rule, Throttle};

fn place(model: Model) -> (Place, Device) {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::create(dir.path().join("chip"), model).unwrap();
    let uri = format!(
        "zymkey:slot=0?module-path={}",
        device.module_path().display()
    );
    (Place::with_key(dir, &uri.parse().unwrap()), device)
}

fn restarted(restarts: u64, rules: Vec<Rule>) -> Faults {
    Faults {
        daemon: Daemon {
            restarts,
            ..Daemon::default()
        },
        rules,
    }
}

/// Whatever the chip does that passes, sampling goes on, and each reading that
/// was taken is in the spool.
#[test]
fn readings_go_on_while_the_chip_fails_and_none_is_lost() {
    let (place, device) = place(Model::Hsm6);
    // what memory holds, 256 sweeps, is then longer than any pause
    place.reconfigure("\"10ms\"", "\"50ms\"");
    let mut daemon = place.start();
    let address = daemon.address();
    let page = until(address, |page| page["readings_sealed_total"] >= 5.0);
    assert_eq!(page["hsm_failures_total{class=\"transient\"}"], 0.0);

    // Errors in a row, of which each second one is met by the retry.
    let errors = Rule::new("sign", Fault::Code(-110)).count(5);
    device.set_faults(&restarted(0, vec![errors])).unwrap();
    let transient = "hsm_failures_total{class=\"transient\"}";
    let page = until(address, |page| page[transient] >= 5.0);
    assert!(page["hsm_reopens_total"] >= 1.0 && page["hsm_retries_total"] >= 1.0);

    // Its answers are wrong.
    let flips = ["r", "s"].map(|of| match of {
        "r" => Rule::new("sign", Fault::FlipR).count(1),
        _ => Rule::new("sign", Fault::FlipS).after(2).count(1),
    });
    device.set_faults(&restarted(0, flips.to_vec())).unwrap();
    until(address, |page| page["hsm_bad_signatures_total"] >= 2.0);

    // Its daemon is restarted, and is away for a while.
    let mut away = restarted(1, vec![]);
    away.daemon.state = DaemonState::Down;
    device.set_faults(&away).unwrap();
    let page = until(address, |page| {
        page["hsm_state{state=\"reopening\"}"] == 1.0
    });
    let sampled = page["readings_sampled_total"];
    until(address, |page| {
        page["readings_sampled_total"] >= sampled + 10.0
    });
    device.set_faults(&restarted(1, vec![])).unwrap();
    let page = until(address, |page| page["hsm_state{state=\"ready\"}"] == 1.0);
    let reopens = page["hsm_reopens_total"];
    device.set_faults(&restarted(2, vec![])).unwrap();
    let page = until(address, |page| page["hsm_reopens_total"] > reopens);

    // It gets tired.
    let throttle = Throttle {
        rested: 20,
        tired: 200,
        calls: 10,
        recovery: 1000,
    };
    let tired = Rule::new("sign", Fault::Throttle(throttle));
    device.set_faults(&restarted(2, vec![tired])).unwrap();
    let sealed = page["readings_sealed_total"];
    let page = until(address, |page| {
        page["readings_sealed_total"] >= sealed + 50.0
    });
    // several readings share a record while the chip is slow
    assert!(page["spool_appended_total"] < page["readings_sealed_total"] - 25.0);
    device.set_faults(&restarted(2, vec![])).unwrap();

    assert_eq!(metrics(address)["readings_given_up_total"], 0.0);
    assert_eq!(metrics(address)["hsm_failures_total{class=\"fatal\"}"], 0.0);
    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(stopped["sealed"], stopped["sampled"], "{stopped}");
    let records = place.records();
    assert!(is_whole(&records));
    assert_eq!(tally(&records), (stopped["sampled"].as_u64().unwrap(), 0));
}

/// Told to end while the chip is away, it cannot seal what waits, but it counts it: the
/// next start names how much that was.
#[test]
fn what_is_left_when_the_chip_is_away_at_the_end_is_named_at_the_next_start() {
    let (place, device) = place(Model::Hsm6);
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["readings_sealed_total"] >= 4.0);
    let mut away = restarted(1, vec![]);
    away.daemon.state = DaemonState::Down;
    device.set_faults(&away).unwrap();
    let page = until(address, |page| {
        page["readings_sampled_total"] >= page["readings_sealed_total"] + 20.0
    });
    let sampled = page["readings_sampled_total"] as u64;
    daemon.signal(rustix::process::Signal::TERM);
    let (said, status) = daemon.ends();
    assert_eq!(status.code(), Some(1), "{said}");

    device.set_faults(&restarted(1, vec![])).unwrap();
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["readings_sealed_total"] >= 4.0);
    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let sampled_then = stopped["sampled"].as_u64().unwrap();
    let (kept, named) = tally(&place.records());
    assert!(
        kept + named >= sampled + sampled_then,
        "{sampled} {sampled_then}: {kept} {named}"
    );
}

#[test]
fn what_the_chip_measures_is_among_the_metrics() {
    let (place, device) = place(Model::Hsm6);
    place.reconfigure("[spool]", "[heartbeat]\ninterval = \"50ms\"\n[spool]");
    let mut daemon = place.start();
    let address = daemon.address();
    let page = until(address, |page| page.contains_key("hsm_measured_seconds"));
    assert!(page["hsm_battery_volts"] > 0.0);
    assert_eq!(page["hsm_bound"], 1.0);
    assert!(page["hsm_clock_ahead_seconds"].abs() < 5.0);
    let circuit = "hsm_perimeter_broken_seconds{circuit=\"1\"}";
    assert_eq!(page[circuit], 0.0);
    device.breach(1, 1_577_836_800).unwrap();
    until(address, |page| page[circuit] == 1_577_836_800.0);
    // in a module that can't, it is not sought again and again
    let broken = Rule::new("zkGetTime", Fault::Code(-5));
    device.set_faults(&broken.into()).unwrap();
    until(address, |page| !page.contains_key("hsm_measured_seconds"));
    let failures = |page: &std::collections::BTreeMap<String, f64>| page["hsm_failures_total{class=\"transient\"}"];
    let before = failures(&metrics(address));
    let page = until(address, |page| page["readings_sealed_total"] >= 100.0);
    assert_eq!(failures(&page), before);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// What happens to the module is sealed, once each, by whoever opts for it.
#[test]
fn what_happens_to_the_chip_is_sealed_for_who_opts_for_it() {
    use zk_envelope::{DeviceEvent, Report};

    let (place, device) = place(Model::Hsm6);
    device.breach(0, 1_577_836_800).unwrap();
    place.reconfigure(
        "[spool]",
        "[events]\nperimeter = true\nbattery = 2.5\nmodule = true\ninterval = \"10ms\"\n[spool]",
    );
    let mut daemon = place.start();
    let address = daemon.address();
    let warned = |daemon: &mut support::Daemon| {
        let line = daemon.logged("the key's module has changed");
        line["event"].as_str().unwrap().to_owned()
    };
    let broken = warned(&mut daemon);
    assert!(broken.starts_with("PerimeterBroken"), "{broken}");
    device.set_battery(2410).unwrap();
    warned(&mut daemon);
    device.clear_breaches().unwrap();
    warned(&mut daemon);
    device.set_battery(3010).unwrap();
    warned(&mut daemon);
    device.set_bound(false).unwrap();
    warned(&mut daemon);
    // It is away, and comes back.
    let mut away = restarted(1, vec![]);
    away.daemon.state = DaemonState::Down;
    device.set_faults(&away).unwrap();
    until(address, |page| {
        page["hsm_state{state=\"reopening\"}"] == 1.0 && page["healthy"] == 0.0
    });
    device.set_faults(&restarted(1, vec![])).unwrap();
    let page = until(address, |page| page["healthy"] == 1.0);
    let sealed = page["readings_sealed_total"];
    until(address, |page| {
        page["readings_sealed_total"] >= sealed + 5.0
    });
    assert_eq!(daemon.terminate().1.code(), Some(0));
    let records = place.records();
    assert!(is_whole(&records));
    let mut events: Vec<_> = records
        .iter()
        .filter_map(|record| match record.report().unwrap() {
            Some(Report::DeviceEvent(event)) => Some(event),
            _ => None,
        })
        .collect();
    let at = "2020-01-01T00:00:00.000Z".parse().unwrap();
    let recovered = events.pop().unwrap();
    assert!(
        matches!(recovered, DeviceEvent::ModuleRecovered { .. }),
        "{recovered:?}"
    );
    // before it was away a signature may have failed, too
    events.retain(|event| !matches!(event, DeviceEvent::ModuleRecovered { .. }));
    assert_eq!(
        events,
        [
            DeviceEvent::StreamStarted { previous: None },
            DeviceEvent::PerimeterBroken { circuit: 0, at },
            DeviceEvent::BatteryLow { millivolts: 2410 },
            DeviceEvent::PerimeterCleared { circuit: 0 },
            DeviceEvent::BatteryRestored { millivolts: 3010 },
            DeviceEvent::BindingChanged {
                bound: false,
                locked: false
            },
        ]
    );
}

/// Names are a promise: what the page has is in the document, and the other way round.
#[test]
fn the_document_names_each_metric_of_the_page() {
    let (place, _device) = place(Model::Hsm6);
    place.reconfigure("[spool]", "[heartbeat]\ninterval = \"50ms\"\n[spool]");
    let mut daemon = place.start();
    let address = daemon.address();
    let page = until(address, |page| {
        page.contains_key("hsm_measured_seconds") && page["readings_sealed_total"] >= 1.0
    });
    let mut served: Vec<&str> = page
        .keys()
        .map(|sample| {
            let name = sample.split('{').next().unwrap();
            let parts = ["_bucket", "_count", "_sum"];
            parts
                .iter()
                .find_map(|part| name.strip_suffix(part))
                .unwrap_or(name)
        })
        .collect();
    // nothing is delivered here
    served.push("last_delivery_seconds");
    served.sort_unstable();
    served.dedup();
    let document = include_str!("../../../docs/agent.md");
    let rows = document
        .lines()
        .filter(|line| line.starts_with("| `zk_agent_"));
    let mut named: Vec<&str> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap().split(", "))
        .map(|name| {
            name.trim()
                .trim_matches('`')
                .strip_prefix("zk_agent_")
                .unwrap()
        })
        .collect();
    named.sort_unstable();
    assert_eq!(named, served);
    assert!(page["readings_total{quality=\"ok\"}"] >= page["readings_sampled_total"]);
    assert_eq!(page["readings_total{quality=\"power-on\"}"], 0.0);
    assert_eq!(page["lost_total{reason=\"dropped\"}"], 0.0);
    // records wait, and have waited for a moment that is not an hour
    assert!(page["spool_oldest_age_seconds"] < 3600.0);
    let clocks = page
        .iter()
        .filter(|(name, _)| name.starts_with("clock_quality"));
    assert_eq!(clocks.map(|(_, is)| *is).sum::<f64>(), 1.0);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// Only another process can open it again: so the agent ends, with all that it
/// could save on disk, and says in the next one what it could not.
#[test]
#[ignore = "takes more than a minute: that is how long a chip that hangs is waited for"]
fn a_chip_that_hangs_for_a_minute_ends_the_agent_with_everything_on_disk() {
    let (place, device) = place(Model::Zymkey4i);
    place.reconfigure("\"10ms\"", "\"1s\"");
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["readings_sealed_total"] >= 2.0);
    device
        .set_faults(&Rule::new("sign", Fault::Hang).into())
        .unwrap();
    // a call counts as stuck by the clock, and as timed out once its caller woke up
    let page = until(address, |page| {
        page["hsm_state{state=\"wedged\"}"] == 1.0 && page["hsm_timeouts_total"] >= 1.0
    });
    assert_eq!(page["hsm_timeouts_total"], 1.0);
    let sealed = page["readings_sealed_total"];
    let (status, why) = get(address, "/healthz");
    assert_eq!(status, "503");
    assert!(why.contains("sign has been in it for"), "{why}");

    // Asked for nothing, it ends, though a thread of it is still in the chip.
    let (said, status) = daemon.ends();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("the HSM is stuck: sign has been in it for"),
        "{said}"
    );
    let lost = said
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["fields"]["readings_lost"].as_u64());
    let lost = lost.unwrap();
    // they went on being taken
    assert!(lost >= 30, "{lost}");
    let before = place.records();
    assert!(is_whole(&before));
    assert_eq!(tally(&before), (sealed as u64, 0));

    // Started again, as systemd does, it goes on in the same stream.
    device.clear_faults().unwrap();
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["readings_sealed_total"] >= 2.0);
    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let after = place.records();
    assert!(is_whole(&after));
    let sampled = stopped["sampled"].as_u64().unwrap();
    assert_eq!(tally(&after), (sealed as u64 + sampled, lost));
}
