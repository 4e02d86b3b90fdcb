//! The files of a 1-Wire bus, of any content, and the body of a record.
//!
//! The input is cut at NUL bytes into: the sensor's name or its offset, its `w1_slave`, its
//! `features`, its `conv_time`, the bus's `therm_bulk_read`, the sensor's
//! `resolution`, its `ext_power`, and a body.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use zk_sensors::{Offset, Power, Quality, Readings, SensorId, W1Bus};

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(8, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (name, files) = (next(), [next(), next(), next(), next()]);
    let (settings, body) = ([next(), next()], next());
    if let Some(offset) = str::from_utf8(name).ok().and_then(|text| text.parse().ok()) {
        let offset: Offset = offset;
        assert!((-10_000..=10_000).contains(&offset.celsius.0));
        assert_eq!(offset.to_string().parse::<Offset>().unwrap(), offset);
    }
    if let Some(sensor) = str::from_utf8(name).ok().and_then(parsed) {
        sweep(sensor, files);
        set(sensor, settings);
        // and as the driver would have it, if it had read these eight bytes
        if let Some(mended) = mended(files[0]) {
            sweep(sensor, [&mended, files[1], files[2], files[3]]);
        }
    }
    if let Ok(readings) = serde_json::from_slice::<Readings>(body) {
        let again = serde_json::to_vec(&readings).unwrap();
        assert_eq!(
            serde_json::from_slice::<Readings>(&again).unwrap(),
            readings
        );
    }
});

/// A name that is one is written as it was read.
fn parsed(name: &str) -> Option<SensorId> {
    let sensor: SensorId = name.parse().ok()?;
    assert_eq!(sensor.to_string(), name);
    Some(sensor)
}

/// The first eight bytes of a `w1_slave`, under the right checksum, and its value.
fn mended(w1_slave: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(w1_slave).ok()?;
    let (hex, rest) = text.split_at_checked(24)?;
    let (_, value) = rest.rsplit_once("t=")?;
    let bytes: Vec<u8> = hex
        .split_terminator(' ')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect::<Option<_>>()?;
    let crc = bytes.iter().fold(0_u8, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| (crc >> 1) ^ (0x8c * (crc & 1)))
    });
    Some(format!("{hex}{crc:02x} : crc={crc:02x} YES\n{hex}{crc:02x} t={value}").into_bytes())
}

/// Each sensor has one reading, which its quality describes, and which
/// survives a record.
fn sweep(sensor: SensorId, [w1_slave, features, conv_time, bulk]: [&[u8]; 4]) {
    BUS.with_borrow_mut(|tree| {
        tree.plug(sensor);
        tree.write(&sensor.to_string(), "w1_slave", w1_slave);
        tree.write(&sensor.to_string(), "features", features);
        tree.write(&sensor.to_string(), "conv_time", conv_time);
        // nobody converts for as long as the sensor is said to take
        let bulk = if number(bulk) == Some(-1) && w1_slave.is_empty() {
            b"0"
        } else {
            bulk
        };
        tree.write("", "therm_bulk_read", bulk);
        let now = || SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_432_844_123);
        let readings = W1Bus::new(tree.directory.path()).read_all(now).unwrap();
        assert_eq!(readings.len(), if sensor == well() { 1 } else { 2 });
        for reading in &readings {
            assert_eq!(reading.quality.has_value(), reading.value.is_some());
            // The driver's file takes one of a few forms, none of them long.
            assert!(reading.sensor != sensor || w1_slave.len() < 256 || reading.value.is_none());
        }
        let other = readings.iter().find(|reading| reading.sensor == well());
        assert!(sensor == well() || other.unwrap().quality == Quality::Ok);
        let body = serde_json::to_vec(&Readings {
            readings: readings.clone(),
        })
        .unwrap();
        let back: Readings = serde_json::from_slice(&body).unwrap();
        assert_eq!(back.readings, readings);
    });
}

/// A setting is one that there is, or an error; and what is set is there after
/// that.
fn set(sensor: SensorId, [resolution, ext_power]: [&[u8]; 2]) {
    BUS.with_borrow_mut(|tree| {
        tree.write(&sensor.to_string(), "resolution", resolution);
        tree.write(&sensor.to_string(), "ext_power", ext_power);
        let listing = W1Bus::new(tree.directory.path()).list().unwrap();
        let mut found = listing.thermometers.iter();
        let found = found.find(|found| found.id() == sensor).unwrap();
        assert_eq!(found.bus(), Some("w1_bus_master1"));
        let has_choice = !sensor.to_string().starts_with("10-");
        match found.resolution() {
            Ok(Some(bits)) => assert!(has_choice && number(resolution) == Some(bits.into())),
            Ok(None) => assert!(!has_choice),
            Err(error) => assert!(error.to_string().len() < 1000),
        }
        if let Ok(power) = found.power() {
            let external = number(ext_power) == Some(1);
            assert_eq!(power == Power::External, external);
        }
        // of any content, from the sweep before
        let _ = (found.conversion_time(), found.features());
        if !resolution.is_empty() && has_choice {
            found.set_resolution(10).unwrap();
            assert_eq!(found.resolution().unwrap(), Some(10));
        }
    });
}

fn number(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.trim_end().parse().ok()
}

thread_local! {
    static BUS: RefCell<Tree> = RefCell::new(Tree::new());
}

/// A bus of two sensors, of which one is always well: then a conversion for both
/// is worth its while.
struct Tree {
    directory: TempDir,
    plugged: Option<SensorId>,
}

impl Tree {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir_all(directory.path().join("bus/w1/devices")).unwrap();
        fs::create_dir_all(directory.path().join("devices/w1_bus_master1")).unwrap();
        let tree = Self {
            directory,
            plugged: None,
        };
        symlink(tree.master(), tree.devices().join("w1_bus_master1")).unwrap();
        tree.add(well());
        tree.write(&well().to_string(), "w1_slave", WELL.as_bytes());
        tree
    }

    fn plug(&mut self, sensor: SensorId) {
        if self.plugged == Some(sensor) {
            return;
        }
        if let Some(before) = self.plugged.replace(sensor) {
            fs::remove_file(self.devices().join(before.to_string())).unwrap();
            fs::remove_dir_all(self.master().join(before.to_string())).unwrap();
            if before == well() {
                self.add(well());
                self.write(&well().to_string(), "w1_slave", WELL.as_bytes());
            }
        }
        if sensor != well() {
            self.add(sensor);
        }
    }

    fn add(&self, sensor: SensorId) {
        let name = sensor.to_string();
        fs::create_dir(self.master().join(&name)).unwrap();
        let link = Path::new("../../../devices/w1_bus_master1").join(&name);
        symlink(link, self.devices().join(&name)).unwrap();
    }

    /// Empty is missing, except for the answer of a sensor.
    fn write(&self, directory: &str, file: &str, bytes: &[u8]) {
        let path = self.master().join(directory).join(file);
        // a new file each time, which a file system makes less of than of a change
        let _ = fs::remove_file(&path);
        if !bytes.is_empty() || file == "w1_slave" {
            fs::write(path, bytes).unwrap();
        }
    }

    fn master(&self) -> PathBuf {
        self.directory.path().join("devices/w1_bus_master1")
    }

    fn devices(&self) -> PathBuf {
        self.directory.path().join("bus/w1/devices")
    }
}

fn well() -> SensorId {
    "28-0000000a0001".parse().unwrap()
}

const WELL: &str = "\
57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES
57 01 4b 46 7f ff 09 10 c7 t=21437
";
