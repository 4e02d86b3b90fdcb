//! The agent on a simulated bus, with a simulated chip that is slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use zk_agent::{Agent, Config, Event};
use zk_bench::{Bar, Row, directory};
use zk_hsm_sim::{Device, Fault, Latency, Model, Rule, Throttle};

#[path = "../tests/support/mod.rs"]
mod support;

use support::Place;

fn main() {
    let parent = directory(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&parent).unwrap();
    tempfile::env::override_temp_dir(Box::leak(parent.into_boxed_path())).unwrap();
    let steady = Fault::Latency(Latency::Fixed(80));
    slow_chip("a chip of 80 ms", &steady, Some(Bar::AtMost(1000.0)));
    // as secure elements do that count what might be an attack
    let throttle = Fault::Throttle(Throttle::default());
    slow_chip("a chip that throttles from 76 to 520 ms", &throttle, None);
}

/// 100 readings a second. A round is an agent of its own.
fn slow_chip(name: &str, fault: &Fault, bar: Option<Bar>) {
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| round(fault)).collect();
    let of = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let row = |what: &str, unit: &str, bar, figures: &[f64]| {
        Row::alone(&format!("agent, {name}: {what}"), unit, bar, figures)
            .print()
            .unwrap();
    };
    row("readings sealed", "1/s", None, &of(|round| round.sealed));
    row(
        "readings given up",
        "",
        Some(Bar::AtMost(0.0)),
        &of(|round| round.given_up),
    );
    let median = of(|round| zk_bench::median(&round.latencies));
    row("from capture to sealed, the median", "ms", None, &median);
    let latest = of(|round| round.latencies.iter().copied().fold(0.0, f64::max));
    row("from capture to sealed, the latest", "ms", bar, &latest);
    row("readings in a record", "", None, &of(|round| round.batch));
}

struct Round {
    /// A second.
    sealed: f64,
    given_up: f64,
    /// From capture to sealed and synced, in milliseconds.
    latencies: Vec<f64>,
    /// Readings in a record, on average.
    batch: f64,
}

#[derive(Default)]
struct Journal {
    /// When each reading was in hand, by its time.
    captured: HashMap<i64, Instant>,
    latencies: Vec<f64>,
    records: u32,
}

fn round(fault: &Fault) -> Round {
    let dir = tempfile::tempdir().unwrap();
    let chip = Device::create(dir.path().join("chip"), Model::Hsm6).unwrap();
    let uri = format!("zymkey:slot=0?module-path={}", chip.module_path().display());
    // one thermometer, every 10 ms
    let place = Place::with_key(dir, &uri.parse().unwrap());
    chip.set_faults(&Rule::new("sign", fault.clone()).into())
        .unwrap();
    let config = Config::read(&place.path("agent.toml")).unwrap();
    let journal: Arc<Mutex<Journal>> = Arc::default();
    let observer = {
        let journal = Arc::clone(&journal);
        move |event: Event<'_>| {
            let now = Instant::now();
            let mut journal = journal.lock().unwrap();
            match event {
                Event::Captured(readings) => {
                    let at = readings.iter().map(|reading| reading.at.as_millisecond());
                    journal.captured.extend(at.map(|at| (at, now)));
                }
                Event::Sealed { readings, .. } => {
                    journal.records += 1;
                    for reading in readings {
                        let captured = journal.captured.remove(&reading.at.as_millisecond());
                        let waited = captured.map(|captured| now - captured);
                        let waited = waited.map(|waited| waited.as_secs_f64() * 1000.0);
                        journal.latencies.extend(waited);
                    }
                }
                _ => {}
            }
        }
    };
    let agent = Agent::start_observed(&config, observer, || {}).unwrap();
    thread::sleep(ROUND);
    let status = agent.status().unwrap();
    let journal = std::mem::take(&mut *journal.lock().unwrap());
    agent.stop(Duration::from_secs(10)).unwrap();
    Round {
        sealed: status.sealed as f64 / status.uptime.as_secs_f64(),
        given_up: status.given_up as f64,
        batch: journal.latencies.len() as f64 / f64::from(journal.records),
        latencies: journal.latencies,
    }
}

const ROUNDS: usize = 5;
/// Long enough for a chip that throttles to be at its slowest.
const ROUND: Duration = Duration::from_secs(20);
