//! What is remembered of each sensor, and of how many.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::time::{Duration, SystemTime};

use common::{id, put, sweep};
use zk_sensors::{MilliCelsius, Quality, SensorError, SensorHealth, SensorId, SimulatedBus, W1Bus};

const A: &str = "28-0000000a0001";
const B: &str = "28-0000000a0002";

type Fault = fn(&mut SimulatedBus, SensorId) -> Result<(), SensorError>;

#[test]
fn a_sensor_has_its_counters_and_its_last_good_value() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let mut bus = W1Bus::new(dir.path());
    assert!(bus.health().is_empty());

    let well: Fault = |wires, sensor| wires.set(sensor, MilliCelsius(21_437));
    let story: [(Fault, Quality); 8] = [
        (SimulatedBus::empty, Quality::Empty),
        (well, Quality::Ok),
        (SimulatedBus::power_on_value, Quality::PowerOn),
        (SimulatedBus::empty, Quality::Empty),
        (SimulatedBus::empty, Quality::Empty),
        (SimulatedBus::unplug, Quality::Unplugged),
        (SimulatedBus::replug, Quality::Empty),
        (SimulatedBus::false_zero, Quality::FalseZero),
    ];
    let mut seen = Vec::new();
    for (second, (fault, quality)) in (1..).zip(story) {
        fault(&mut wires, id(A)).unwrap();
        bus.read_all(|| SystemTime::UNIX_EPOCH + Duration::from_secs(second))
            .unwrap();
        let health = &bus.health()[&id(A)];
        assert_eq!(health.last.quality, quality);
        assert_eq!(health.last.at.as_second(), second as i64);
        assert_eq!(health.first_seen.as_second(), 1);
        let good = health
            .last_good
            .map(|good| (good.at.as_second(), good.value));
        seen.push((health.failures, health.since.as_second(), good));
    }
    let good = Some((2, Some(MilliCelsius(21_437))));
    assert_eq!(
        seen,
        [
            (1, 1, None),
            (0, 2, good),
            (1, 3, good),
            (2, 4, good),
            (3, 4, good),
            (4, 6, good),
            (5, 7, good),
            (6, 8, good),
        ]
    );
    let counts = |health: &SensorHealth| -> Vec<_> {
        let counts = health.counts().filter(|(_, count)| *count > 0);
        counts
            .map(|(quality, count)| format!("{quality} {count}"))
            .collect()
    };
    let health = &bus.health()[&id(A)];
    assert_eq!(
        counts(health),
        [
            "empty 4",
            "false-zero 1",
            "ok 1",
            "power-on 1",
            "unplugged 1"
        ]
    );
    assert_eq!(health.counts().map(|(_, count)| count).sum::<u64>(), 8);
    assert_eq!(health.counts().count(), Quality::ALL.len());
    assert_eq!(health.count(Quality::Empty), 4);
    assert_eq!(health.count(Quality::Garbled), 0);
    // each for itself
    assert_eq!(counts(&bus.health()[&id(B)]), ["ok 8"]);
    assert_eq!(bus.health()[&id(B)].failures, 0);
}

#[test]
fn what_is_remembered_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = b"57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES\n57 01 4b 46 7f ff 09 10 c7 t=21437\n";
    let mut bus = W1Bus::new(dir.path());
    for round in 0..3 {
        for n in 0..200 {
            put(dir.path(), &format!("28-{round:06x}{n:06x}"), bytes);
        }
        assert_eq!(sweep(&mut bus).len(), bus.health().len());
        fs::remove_dir_all(dir.path().join("bus/w1/devices")).unwrap();
        fs::create_dir_all(dir.path().join("bus/w1/devices")).unwrap();
    }
    sweep(&mut bus);
    assert_eq!(bus.health().len(), 256);
    // the last to go are the ones that are known, and one that comes back after
    // it was forgotten begins anew
    assert!(bus.health().contains_key(&id("28-000002000000")));
    assert!(!bus.health().contains_key(&id(A)));
    put(dir.path(), "28-000000000000", bytes);
    sweep(&mut bus);
    let health = &bus.health()[&id("28-000000000000")];
    assert_eq!((health.count(Quality::Ok), health.failures), (1, 0));
    assert_eq!(bus.health().len(), 257);
}
