//! Finding and reading sensors that come, go, fail and multiply.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use common::{id, put, read, summary, sweep};
use zk_sensors::{
    Curve, HeldReading, MilliCelsius, Offset, Quality, SensorError, SensorId, SimulatedBus, W1Bus,
};

const A: &str = "28-0000000a0001";
const B: &str = "28-0000000a0002";
const C: &str = "28-0000000a0003";
const OLD: &str = "10-00080278d0e4";
const CHAIN: &str = "42-000000000001";

const GOOD: &[u8] =
    b"57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES\n57 01 4b 46 7f ff 09 10 c7 t=21437\n";

#[test]
fn a_sensor_is_found_lost_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let mut bus = W1Bus::new(dir.path());
    wires.set(id(A), MilliCelsius(-10_125)).unwrap();
    let both = [
        (A.to_owned(), Quality::Ok, Some(-10_125)),
        (B.to_owned(), Quality::Ok, Some(20_000)),
    ];
    assert_eq!(summary(&sweep(&mut bus)), both);

    wires.unplug(id(A)).unwrap();
    wires.unplug(id(A)).unwrap();
    let one = [
        (A.to_owned(), Quality::Unplugged, None),
        (B.to_owned(), Quality::Ok, Some(20_000)),
    ];
    for _ in 0..3 {
        assert_eq!(summary(&sweep(&mut bus)), one);
    }
    // whoever has not seen it does not miss it
    assert_eq!(read(dir.path()), one[1..]);

    wires.set(id(A), MilliCelsius(62)).unwrap();
    assert_eq!(summary(&sweep(&mut bus)), one);
    wires.replug(id(A)).unwrap();
    wires.replug(id(A)).unwrap();
    assert_eq!(summary(&sweep(&mut bus))[0].2, Some(62));

    wires.unplug(id(A)).unwrap();
    wires.unplug(id(B)).unwrap();
    let slaves = dir.path().join("devices/w1_bus_master1/w1_master_slaves");
    assert_eq!(fs::read(slaves).unwrap(), b"not found.\n");
    assert!(
        sweep(&mut bus)
            .iter()
            .all(|r| r.quality == Quality::Unplugged)
    );
}

#[test]
fn all_buses_are_read_in_one_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = SimulatedBus::create(dir.path(), &[id(B), id(OLD)]).unwrap();
    let mut bus = W1Bus::new(dir.path());
    assert_eq!(sweep(&mut bus).len(), 2);

    let mut second = SimulatedBus::create(dir.path(), &[id(C), id(A)]).unwrap();
    let _third = SimulatedBus::create(dir.path(), &[id(CHAIN)]).unwrap();
    let _without = SimulatedBus::create(dir.path(), &[]).unwrap();
    first.set(id(OLD), MilliCelsius(-500)).unwrap();
    second.set(id(A), MilliCelsius(62)).unwrap();
    let expected = [
        (OLD.to_owned(), Quality::Ok, Some(-500)),
        (A.to_owned(), Quality::Ok, Some(62)),
        (B.to_owned(), Quality::Ok, Some(20_000)),
        (C.to_owned(), Quality::Ok, Some(20_000)),
        (CHAIN.to_owned(), Quality::Ok, Some(20_000)),
    ];
    assert_eq!(summary(&sweep(&mut bus)), expected);
    assert!(dir.path().join("bus/w1/devices/w1_bus_master4").is_dir());

    // one conversion for each bus that gains by it and can do it
    assert_eq!(bulk(dir.path(), 1), "trigger\n");
    assert_eq!(bulk(dir.path(), 2), "trigger\n");
    assert!(!bulk_path(dir.path(), 3).exists());
    assert!(!bulk_path(dir.path(), 4).exists());
}

#[test]
fn every_failure_is_a_reading() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(OLD)]).unwrap();
    type Break = fn(&mut SimulatedBus, SensorId) -> Result<(), SensorError>;
    let cases: [(Break, Quality, Option<i32>); 5] = [
        (SimulatedBus::power_on_value, Quality::PowerOn, Some(85_000)),
        (SimulatedBus::false_zero, Quality::FalseZero, None),
        (SimulatedBus::empty, Quality::Empty, None),
        (SimulatedBus::bad_crc, Quality::Crc, None),
        (|_, _| Ok(()), Quality::Ok, Some(20_000)),
    ];
    for (fail, quality, value) in cases {
        for sensor in [A, OLD] {
            wires.set(id(sensor), MilliCelsius(20_000)).unwrap();
            fail(&mut wires, id(sensor)).unwrap();
        }
        let expected = [OLD, A].map(|sensor| (sensor.to_owned(), quality, value));
        assert_eq!(read(dir.path()), expected);
    }
}

#[test]
fn what_is_no_thermometer_is_no_business_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "01-0000000a0001",
        "fe-0000000a0001",
        "00-400000000000",
        "29-0000000a0001",
        "28-0000000A0001",
        "28-0000000a001",
        "28-0000000a00011",
        "28_0000000a0001",
        "w1_bus_master1",
    ] {
        put(dir.path(), name, GOOD);
    }
    put(dir.path(), A, GOOD);
    assert_eq!(
        read(dir.path()),
        [(A.to_owned(), Quality::Ok, Some(21_437))]
    );
}

#[test]
fn a_sensor_that_vanishes_or_will_not_open_is_a_reading_too() {
    let dir = tempfile::tempdir().unwrap();
    let devices = dir.path().join("bus/w1/devices");
    let slave = |sensor: &str| devices.join(sensor).join("w1_slave");
    let sensors: Vec<_> = (1..=6).map(|n| format!("28-00000000000{n}")).collect();
    for sensor in &sensors {
        put(dir.path(), sensor, GOOD);
        fs::remove_file(slave(sensor)).unwrap();
    }
    let [gone, no_driver, no_file, no_bytes, endless, fifth] = &sensors[..] else {
        panic!();
    };
    // its link leads nowhere any more
    fs::remove_dir(devices.join(gone)).unwrap();
    symlink("../../../devices/w1_bus_master1/none", devices.join(gone)).unwrap();
    // a directory without w1_slave: left as it is
    fs::create_dir(slave(no_file)).unwrap();
    // reading this one at 0 fails with EIO
    symlink("/proc/self/mem", slave(no_bytes)).unwrap();
    // a file that never ends
    symlink("/dev/zero", slave(endless)).unwrap();
    fs::write(slave(fifth), GOOD).unwrap();
    let expected = [
        (gone.clone(), Quality::Unplugged, None),
        (no_driver.clone(), Quality::Unreadable, None),
        (no_file.clone(), Quality::Unreadable, None),
        (no_bytes.clone(), Quality::Empty, None),
        (endless.clone(), Quality::Garbled, None),
        (fifth.clone(), Quality::Ok, Some(21_437)),
    ];
    assert_eq!(read(dir.path()), expected);
}

#[test]
fn bulk_conversion_is_used_where_it_helps() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B), id(CHAIN)]).unwrap();
    assert_eq!(read(dir.path()).len(), 3);
    assert_eq!(bulk(dir.path(), 1), "trigger\n");

    // for one sensor there is nothing to gain, and a DS28EA00 does not count
    wires.unplug(id(B)).unwrap();
    fs::write(bulk_path(dir.path(), 1), "0\n").unwrap();
    assert_eq!(read(dir.path()).len(), 2);
    assert_eq!(bulk(dir.path(), 1), "0\n");

    // a sensor that has to be polled is not served by it
    wires.replug(id(B)).unwrap();
    fs::write(
        dir.path().join("bus/w1/devices").join(B).join("features"),
        "2\n",
    )
    .unwrap();
    assert_eq!(read(dir.path()).len(), 3);
    assert_eq!(bulk(dir.path(), 1), "0\n");
}

#[test]
fn without_bulk_conversion_each_sensor_is_read_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let _wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let expected = [A, B].map(|sensor| (sensor.to_owned(), Quality::Ok, Some(20_000)));
    let path = bulk_path(dir.path(), 1);

    fs::remove_file(&path).unwrap();
    assert_eq!(read(dir.path()), expected);
    fs::create_dir(&path).unwrap();
    assert_eq!(read(dir.path()), expected);
    fs::remove_dir(&path).unwrap();
    // opens, and takes nothing: ENOSPC
    symlink("/dev/full", &path).unwrap();
    assert_eq!(read(dir.path()), expected);
}

/// The driver hands out the old value first, and then a new one.
#[test]
fn an_unread_conversion_of_another_program_is_read_past() {
    type Set = fn(&mut SimulatedBus, SensorId) -> Result<(), SensorError>;
    type End = fn(HeldReading<'_>) -> Result<(), SensorError>;
    let new: Set = |wires, sensor| wires.set(sensor, MilliCelsius(21_437));
    let old: End = |held| held.answer_with(MilliCelsius(20_000));
    let none: End = |held| held.fail();
    for (next, first, quality, value) in [
        (new, old, Quality::Ok, Some(21_437)),
        (
            SimulatedBus::empty,
            old,
            Quality::StaleSuspect,
            Some(20_000),
        ),
        (new, none, Quality::Ok, Some(21_437)),
        (SimulatedBus::empty, none, Quality::Empty, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut wires = SimulatedBus::create(dir.path(), &[id(A)]).unwrap();
        next(&mut wires, id(A)).unwrap();
        wires.leave_unread().unwrap();
        let held = wires.hold(id(A)).unwrap();
        let readings = thread::scope(|scope| {
            let reader = scope.spawn(|| read(dir.path()));
            first(held).unwrap();
            reader.join().unwrap()
        });
        assert_eq!(readings, [(A.to_owned(), quality, value)]);
    }
}

/// A DS28EA00 is in no bulk conversion, so that nothing of it can be old: it is read
/// once, and its value is under no suspicion.
#[test]
fn what_no_bulk_conversion_serves_is_not_stale() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(CHAIN)]).unwrap();
    wires.empty(id(CHAIN)).unwrap();
    wires.leave_unread().unwrap();
    let held = wires.hold(id(CHAIN)).unwrap();
    let readings = thread::scope(|scope| {
        let mut bus = W1Bus::new(dir.path()).without_bulk();
        let reader = scope.spawn(move || summary(&sweep(&mut bus)));
        held.answer_with(MilliCelsius(20_062)).unwrap();
        reader.join().unwrap()
    });
    let expected = (CHAIN.to_owned(), Quality::Ok, Some(20_062));
    assert_eq!(readings[1], expected);
}

#[test]
fn a_slow_sensor_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    wires.set(id(B), MilliCelsius(-62)).unwrap();
    let mut held = wires.hold(id(B)).unwrap();
    let readings = thread::scope(|scope| {
        let reader = scope.spawn(|| read(dir.path()));
        held.begun().unwrap();
        assert!(!reader.is_finished());
        held.answer().unwrap();
        reader.join().unwrap()
    });
    let expected = [
        (A.to_owned(), Quality::Ok, Some(20_000)),
        (B.to_owned(), Quality::Ok, Some(-62)),
    ];
    assert_eq!(readings, expected);
    assert_eq!(read(dir.path()), expected);

    // a value that it can't hold ends the reading too
    let held = wires.hold(id(B)).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(dir.path()));
        let refused = held.answer_with(MilliCelsius(i32::MAX)).unwrap_err();
        assert!(matches!(refused, SensorError::TooFar { .. }), "{refused}");
        assert_eq!(reader.join().unwrap()[1].1, Quality::Empty);
    });
    // so does forgetting it; and one that nobody has begun is an ordinary one
    let mut held = wires.hold(id(B)).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(dir.path()));
        held.begun().unwrap();
        drop(held);
        assert_eq!(reader.join().unwrap()[1].1, Quality::Empty);
    });
    drop(wires.hold(id(B)).unwrap());
    assert_eq!(read(dir.path()), expected);
    let held = wires.hold(id(B)).unwrap();
    thread::scope(|scope| {
        let (this, reader_is) = mpsc::channel();
        let root = dir.path();
        let reader = scope.spawn(move || {
            this.send(fs::read_link("/proc/thread-self").unwrap())
                .unwrap();
            read(root)
        });
        // asleep: it waits for the pipe's other end
        let state = Path::new("/proc").join(reader_is.recv().unwrap());
        let is_asleep = || {
            let stat = fs::read_to_string(state.join("stat")).unwrap();
            stat.rsplit(')').next().unwrap().starts_with(" S")
        };
        while !is_asleep() {
            thread::yield_now();
        }
        drop(held);
        let quality = reader.join().unwrap()[1].1;
        assert!(matches!(quality, Quality::Empty | Quality::Ok), "{quality}");
    });
    // one that is not there can't be held
    wires.unplug(id(B)).unwrap();
    for sensor in [B, C] {
        assert!(wires.hold(id(sensor)).is_err(), "{sensor}");
    }
}

#[test]
fn a_sensor_that_is_pulled_while_it_is_read_is_empty_and_then_unplugged() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let mut bus = W1Bus::new(dir.path());
    let held = wires.hold(id(A)).unwrap();
    let during = thread::scope(|scope| {
        let reader = scope.spawn(|| summary(&sweep(&mut bus)));
        held.unplug().unwrap();
        reader.join().unwrap()
    });
    let other = (B.to_owned(), Quality::Ok, Some(20_000));
    assert_eq!(
        during,
        [(A.to_owned(), Quality::Empty, None), other.clone()]
    );
    assert_eq!(
        summary(&sweep(&mut bus)),
        [(A.to_owned(), Quality::Unplugged, None), other]
    );
}

/// None of the buses is done before all have begun.
#[test]
fn buses_are_read_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut buses = [A, B, C].map(|sensor| {
        let wires = SimulatedBus::create(dir.path(), &[id(sensor)]).unwrap();
        (id(sensor), wires)
    });
    let mut held: Vec<_> = buses
        .iter_mut()
        .map(|(sensor, wires)| wires.hold(*sensor).unwrap())
        .collect();
    let readings = thread::scope(|scope| {
        let reader = scope.spawn(|| read(dir.path()));
        for held in &mut held {
            held.begun().unwrap();
        }
        for held in held {
            held.answer().unwrap();
        }
        reader.join().unwrap()
    });
    assert_eq!(readings.len(), 3);
    assert!(readings.iter().all(|reading| reading.1 == Quality::Ok));
}

/// What is empty because of it is taken once more when it is over.
#[test]
fn another_programs_conversion_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A)]).unwrap();
    let file = |name: &str| {
        let sensor = dir.path().join("devices/w1_bus_master1").join(A);
        sensor.join(name)
    };
    // the longest that it can be set to take
    fs::write(file("conv_time"), "10000\n").unwrap();
    fs::write(bulk_path(dir.path(), 1), "-1\n").unwrap();
    thread::scope(|scope| {
        let held = wires.hold(id(A)).unwrap();
        let reader = scope.spawn(|| read(dir.path()));
        held.fail().unwrap();
        assert!(!reader.is_finished());
        wires.set(id(A), MilliCelsius(62)).unwrap();
        fs::write(bulk_path(dir.path(), 1), "0\n").unwrap();
        let expected = [(A.to_owned(), Quality::Ok, Some(62))];
        assert_eq!(reader.join().unwrap(), expected);
    });

    // one that does not end is not waited for any longer than one takes
    fs::write(file("conv_time"), "1\n").unwrap();
    fs::write(bulk_path(dir.path(), 1), "-1\n").unwrap();
    wires.empty(id(A)).unwrap();
    assert_eq!(read(dir.path())[0].1, Quality::Empty);
}

/// The other would be told of its end too early, and read the values before.
#[test]
fn another_programs_conversion_is_not_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let _wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let expected = [A, B].map(|sensor| (sensor.to_owned(), Quality::Ok, Some(20_000)));
    for (before, after) in [("-1\n", "-1\n"), ("0\n", "trigger\n"), ("1\n", "trigger\n")] {
        fs::write(bulk_path(dir.path(), 1), before).unwrap();
        assert_eq!(read(dir.path()), expected);
        assert_eq!(bulk(dir.path(), 1), after);
    }
}

#[test]
fn whoever_is_to_trigger_nothing_triggers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let _wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let mut bus = W1Bus::new(dir.path()).without_bulk();
    assert_eq!(sweep(&mut bus).len(), 2);
    assert_eq!(bulk(dir.path(), 1), "0\n");
    assert_eq!(sweep(&mut W1Bus::new(dir.path())).len(), 2);
    assert_eq!(bulk(dir.path(), 1), "trigger\n");
}

#[test]
fn a_listing_has_what_answers_and_what_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let bus = W1Bus::new(dir.path());
    assert!(matches!(bus.list(), Err(SensorError::NoBus { .. })));
    let mut wires = SimulatedBus::create(dir.path(), &[]).unwrap();
    let listing = bus.list().unwrap();
    assert_eq!(listing.buses, ["w1_bus_master1"]);
    assert!(listing.thermometers.is_empty() && listing.others.is_empty());
    wires.leave_unread().unwrap();

    let mut wires = SimulatedBus::create(dir.path(), &[id(B), id(OLD)]).unwrap();
    wires.empty(id(B)).unwrap();
    for name in [
        "3a-0000000a0001",
        "00-400000000000",
        A,
        "w1_bus_master10",
        "w1_bus_master9",
        "w1_bus_master",
        "w1_bus_masterX",
        "01-0000000A0001",
        "01-\u{1b}[2J",
        ".hidden",
    ] {
        fs::create_dir(dir.path().join("bus/w1/devices").join(name)).unwrap();
    }
    // nor does one in a place that is no bus
    let strange = Path::new("../../../devices/\u{1b}[2J").join(C);
    symlink(strange, dir.path().join("bus/w1/devices").join(C)).unwrap();
    let listing = bus.list().unwrap();
    let buses = [1, 2, 9, 10].map(|number| format!("w1_bus_master{number}"));
    assert_eq!(listing.buses, buses);
    assert_eq!(listing.others, ["00-400000000000", "3a-0000000a0001"]);
    let found: Vec<_> = listing
        .thermometers
        .iter()
        .map(|thermometer| (thermometer.id(), thermometer.bus()))
        .collect();
    let second = Some("w1_bus_master2");
    // a plain directory does not tell its bus
    assert_eq!(
        found,
        [
            (id(OLD), second),
            (id(A), None),
            (id(B), second),
            (id(C), None)
        ]
    );
}

/// Root may do everything, so it runs this test again as another user.
#[test]
fn a_bulk_file_that_may_not_be_written_is_left_alone() {
    let name = "a_bulk_file_that_may_not_be_written_is_left_alone";
    let dir = tempfile::tempdir().unwrap();
    let probe = dir.path().join("probe");
    fs::write(&probe, "").unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o444)).unwrap();
    if fs::OpenOptions::new().write(true).open(&probe).is_ok() {
        let test = dir.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let output = Command::new(&test)
            .args(["--exact", name])
            .env("TMPDIR", dir.path())
            .current_dir(dir.path())
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        return;
    }

    let _wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let path = bulk_path(dir.path(), 1);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let expected = [A, B].map(|sensor| (sensor.to_owned(), Quality::Ok, Some(20_000)));
    assert_eq!(read(dir.path()), expected);
    assert_eq!(bulk(dir.path(), 1), "0\n");

    // a sensor that may not be read is no reason to fail either
    let slave = dir.path().join("bus/w1/devices").join(A).join("w1_slave");
    fs::set_permissions(&slave, fs::Permissions::from_mode(0o200)).unwrap();
    assert_eq!(
        read(dir.path())[0],
        (A.to_owned(), Quality::Unreadable, None)
    );
}

#[test]
fn a_machine_without_a_bus_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut bus = W1Bus::new(dir.path());
    let error = bus.read_all(SystemTime::now).unwrap_err();
    assert!(matches!(&error, SensorError::NoBus { path, source }
            if *path == dir.path().join("bus/w1/devices")
            && source.kind() == std::io::ErrorKind::NotFound));
    assert!(error.to_string().contains("dtoverlay=w1-gpio"));

    // what else keeps it from being listed is said, and no such advice is given
    fs::create_dir_all(dir.path().join("bus/w1")).unwrap();
    fs::write(dir.path().join("bus/w1/devices"), "").unwrap();
    let error = bus.read_all(SystemTime::now).unwrap_err().to_string();
    assert!(error.contains("Not a directory"), "{error}");
    assert!(!error.contains("dtoverlay"), "{error}");
    fs::remove_file(dir.path().join("bus/w1/devices")).unwrap();

    // a bus without sensors is none of that
    let mut wires = SimulatedBus::create(dir.path(), &[]).unwrap();
    assert_eq!(sweep(&mut bus), []);
    assert!(matches!(
        wires.set(id(A), MilliCelsius(0)).unwrap_err(),
        SensorError::UnknownSensor { sensor } if sensor == id(A)
    ));
}

#[test]
fn a_bus_that_is_taken_away_leaves_its_sensors_unplugged() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), A, GOOD);
    let mut bus = W1Bus::new(dir.path());
    assert_eq!(sweep(&mut bus)[0].quality, Quality::Ok);
    fs::remove_dir_all(dir.path().join("bus")).unwrap();
    assert_eq!(
        summary(&sweep(&mut bus)),
        [(A.to_owned(), Quality::Unplugged, None)]
    );
    // not if it can't be told whether it is there
    fs::create_dir_all(dir.path().join("bus/w1")).unwrap();
    fs::write(dir.path().join("bus/w1/devices"), "").unwrap();
    assert_eq!(
        summary(&sweep(&mut bus)),
        [(A.to_owned(), Quality::Unreadable, None)]
    );
}

#[test]
fn the_longest_gone_of_very_many_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..300).map(|n| format!("28-{n:012x}")).collect();
    let remove = |name: &String| {
        fs::remove_dir_all(dir.path().join("bus/w1/devices").join(name)).unwrap();
    };
    for name in &names {
        put(dir.path(), name, GOOD);
    }
    let mut bus = W1Bus::new(dir.path());
    assert_eq!(sweep(&mut bus).len(), 300);
    // the last 100 go first
    names[200..].iter().for_each(remove);
    assert_eq!(sweep(&mut bus).len(), 300);
    names[..200].iter().for_each(remove);
    let left: Vec<_> = sweep(&mut bus)
        .iter()
        .map(|r| r.sensor.to_string())
        .collect();
    let kept: Vec<_> = names[..200].iter().chain(&names[244..]).cloned().collect();
    assert_eq!(left, kept);
}

#[test]
fn the_time_is_the_callers_in_whole_milliseconds() {
    let dir = tempfile::tempdir().unwrap();
    let _wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let mut bus = W1Bus::new(dir.path());
    for (time, expected) in [
        (
            SystemTime::UNIX_EPOCH + Duration::from_nanos(1_795_432_844_123_999_999),
            "2026-11-23T11:20:44.123Z",
        ),
        (SystemTime::UNIX_EPOCH, "1970-01-01T00:00:00Z"),
        (
            SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 40),
            "1970-01-01T00:00:00Z",
        ),
        (
            SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40),
            "9999-12-30T22:00:00.999999999Z",
        ),
    ] {
        let readings = bus.read_all(|| time).unwrap();
        assert_eq!(readings[0].at.to_string(), expected);
    }
}

/// The clock stands until the test moves it; a held reading keeps a sweep in the
/// middle.
#[test]
fn a_reading_has_the_time_at_which_its_conversion_was_over() {
    let times = |held: &str, trigger: bool| {
        let dir = tempfile::tempdir().unwrap();
        let sensors = [id(A), id(B), id(CHAIN)];
        let mut wires = SimulatedBus::create(dir.path(), &sensors).unwrap();
        // its own failure is known when it is read
        wires.empty(id(A)).unwrap();
        let mut bus = W1Bus::new(dir.path());
        if !trigger {
            bus = bus.without_bulk();
        }
        let clock = AtomicU64::new(1);
        let now = || SystemTime::UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::SeqCst));
        let mut held = wires.hold(id(held)).unwrap();
        let readings = thread::scope(|scope| {
            let reader = scope.spawn(|| bus.read_all(now).unwrap());
            held.begun().unwrap();
            clock.store(2, Ordering::SeqCst);
            held.answer().unwrap();
            reader.join().unwrap()
        });
        let times = |sensor: &str| {
            let reading = readings.iter().find(|reading| reading.sensor == id(sensor));
            reading.unwrap().at.as_second()
        };
        [A, B, CHAIN].map(times)
    };
    // B is of the bulk conversion, however long its reading takes; a DS28EA00
    // converts when it is read
    assert_eq!(times(B, true)[1], 1);
    assert_eq!(times(CHAIN, true)[1..], [1, 2]);
    assert_eq!(times(A, true)[..2], [2, 1]);
    // without one each converts when it is read
    assert_eq!(times(B, false)[1], 2);
    assert_eq!(times(CHAIN, false)[2], 2);
}

#[test]
fn an_offset_is_added_to_what_was_measured_and_to_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let mut bus = W1Bus::new(dir.path());
    let offset = |sensor: &str, thousandths: i32| Offset {
        sensor: id(sensor),
        celsius: MilliCelsius(thousandths),
    };
    bus.set_offsets(&[offset(C, 500), offset(A, -312)]).unwrap();
    let offsets = [A, B, C].map(|sensor| bus.offset(id(sensor)).0);
    assert_eq!(offsets, [-312, 0, 500]);
    let first = |wires: &mut SimulatedBus, bus: &mut W1Bus, value: i32| {
        wires.set(id(A), MilliCelsius(value)).unwrap();
        let readings = summary(&sweep(bus));
        assert_eq!(readings[1], (B.to_owned(), Quality::Ok, Some(20_000)));
        let health = &bus.health()[&id(A)];
        assert_eq!(health.last.value.map(|value| value.0), readings[0].2);
        // what the chip said is at hand
        assert_eq!(health.measured, Some(MilliCelsius(value)));
        (readings[0].1, readings[0].2)
    };
    assert_eq!(
        first(&mut wires, &mut bus, 21_437),
        (Quality::Ok, Some(21_125))
    );
    // the quality is that of what the chip said
    assert_eq!(
        first(&mut wires, &mut bus, -55_000),
        (Quality::Ok, Some(-55_312))
    );
    assert_eq!(
        first(&mut wires, &mut bus, 125_062),
        (Quality::OutOfRange, Some(124_750))
    );
    // and counts as it was given out
    let health = &bus.health()[&id(A)];
    let last_good = health.last_good.unwrap().value;
    assert_eq!(last_good, Some(MilliCelsius(-55_312)));
    wires.power_on_value(id(A)).unwrap();
    assert_eq!(sweep(&mut bus)[0].value, Some(MilliCelsius(85_000)));
    let measured = bus.health()[&id(A)].measured;
    assert_eq!(measured, Some(MilliCelsius(85_000)));
    wires.empty(id(A)).unwrap();
    assert_eq!(sweep(&mut bus)[0].value, None);
    assert_eq!(bus.health()[&id(A)].measured, None);

    // others take their place, all at once or not at all
    bus.set_offsets(&[offset(B, -10_000)]).unwrap();
    for far in [10_001, -10_001, i32::MAX, i32::MIN] {
        let wrong = offset(A, far);
        let error = bus.set_offsets(&[offset(A, 1), wrong]).unwrap_err();
        assert!(
            matches!(error, SensorError::OffsetTooLarge { offset } if offset == wrong),
            "{error}"
        );
    }
    let twice = [offset(A, 1), offset(C, 1), offset(A, 1)];
    let error = bus.set_offsets(&twice).unwrap_err();
    assert!(
        matches!(error, SensorError::OffsetTwice { sensor } if sensor == id(A)),
        "{error}"
    );
    let offsets = [A, B, C].map(|sensor| bus.offset(id(sensor)).0);
    assert_eq!(offsets, [0, -10_000, 0]);
    wires.set(id(A), MilliCelsius(20_000)).unwrap();
    let values: Vec<_> = sweep(&mut bus)
        .iter()
        .map(|reading| reading.value)
        .collect();
    let expected = [20_000, 10_000].map(|value| Some(MilliCelsius(value)));
    assert_eq!(values, expected);
    bus.set_offsets(&[]).unwrap();
    assert_eq!(bus.offset(id(B)), MilliCelsius(0));
}

#[test]
fn a_reader_beside_the_writer_sees_whole_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(B)]).unwrap();
    let values: Vec<_> = (0..60).map(|n| MilliCelsius(n * 625)).collect();
    let done = AtomicBool::new(false);
    let read = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bus = W1Bus::new(dir.path());
            let mut read = Vec::new();
            loop {
                let last = done.load(Ordering::Acquire);
                read.extend(sweep(&mut bus));
                if last {
                    return read;
                }
            }
        });
        for value in &values {
            wires.set(id(A), *value).unwrap();
            wires.unplug(id(B)).unwrap();
            wires.replug(id(B)).unwrap();
        }
        done.store(true, Ordering::Release);
        reader.join().unwrap()
    });
    for reading in read {
        if reading.sensor == id(A) {
            assert_eq!(reading.quality, Quality::Ok);
        } else {
            assert!(
                matches!(reading.quality, Quality::Ok | Quality::Unplugged),
                "{reading:?}"
            );
        }
    }
}

#[test]
fn a_sensor_is_on_one_simulated_bus_only() {
    let dir = tempfile::tempdir().unwrap();
    let _wires = SimulatedBus::create(dir.path(), &[id(A)]).unwrap();
    for sensors in [&[id(B), id(A)][..], &[id(B), id(B)]] {
        let error = SimulatedBus::create(dir.path(), sensors).unwrap_err();
        assert!(matches!(error, SensorError::Simulation { .. }), "{error}");
        assert!(error.to_string().contains("empty directory"), "{error}");
    }
    assert!(!dir.path().join("devices/w1_bus_master2").exists());
    assert_eq!(read(dir.path()).len(), 1);
}

#[test]
fn simulated_sensors_refuse_what_they_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id(A), id(OLD)]).unwrap();
    for (sensor, value, fits) in [
        (A, 2_047_968, true),
        (A, 2_047_969, false),
        (A, -2_048_031, true),
        (A, -2_048_032, false),
        (A, i32::MAX, false),
        (A, i32::MIN, false),
        (OLD, 127_718, true),
        (OLD, 127_719, false),
        (OLD, -128_281, true),
        (OLD, -128_282, false),
        (OLD, i32::MAX, false),
        (OLD, i32::MIN, false),
    ] {
        let result = wires.set(id(sensor), MilliCelsius(value));
        assert_eq!(result.is_ok(), fits, "{sensor} {value}");
        if let Err(error) = result {
            assert!(matches!(error, SensorError::TooFar { .. }), "{error}");
        }
    }
    let qualities: Vec<_> = read(dir.path()).iter().map(|r| r.1).collect();
    assert_eq!(qualities, [Quality::OutOfRange, Quality::OutOfRange]);
    for (sensor, bits) in [(A, 8), (A, 13), (A, 0), (A, 255), (OLD, 12)] {
        assert!(
            matches!(
                wires.set_resolution(id(sensor), bits),
                Err(SensorError::BadResolution { .. })
            ),
            "{sensor} {bits}"
        );
    }
}

#[test]
fn curves_are_smooth_repeatable_and_their_own() {
    for seed in (0..20).chain([u64::MAX - 1, u64::MAX]) {
        let curve = Curve::new(seed);
        let values: Vec<_> = (0..=19 * Curve::DAY).map(|step| curve.at(step).0).collect();
        assert_eq!(values.first(), values.last());
        assert!(values.iter().all(|value| (9_000..=31_000).contains(value)));
        assert!(values.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 50));
        let (low, high) = (values.iter().min().unwrap(), values.iter().max().unwrap());
        assert!(high - low > 4_000, "{seed}: {low} to {high}");
        assert_ne!(curve.at(0), Curve::new(seed.wrapping_add(1)).at(0));
    }
    // the same on every machine
    let first: Vec<_> = (0..5).map(|step| Curve::new(7).at(step).0).collect();
    assert_eq!(first, [15_386, 15_398, 15_412, 15_425, 15_439]);
    Curve::new(u64::MAX).at(u64::MAX);
}

fn bulk_path(root: &Path, master: u8) -> PathBuf {
    root.join(format!("devices/w1_bus_master{master}/therm_bulk_read"))
}

fn bulk(root: &Path, master: u8) -> String {
    fs::read_to_string(bulk_path(root, master)).unwrap()
}
