#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::SystemTime;

use zk_sensors::{MilliCelsius, Quality, Reading, SensorId, W1Bus};

pub(crate) fn id(text: &str) -> SensorId {
    text.parse().unwrap()
}

/// Puts a sensor with this `w1_slave` into a tree, as a plain directory. The
/// file is new each time, which file systems make less of than of a changed one.
pub(crate) fn put(root: &Path, sensor: &str, w1_slave: &[u8]) {
    let dir = root.join("bus/w1/devices").join(sensor);
    fs::create_dir_all(&dir).unwrap();
    let _ = fs::remove_file(dir.join("w1_slave"));
    fs::write(dir.join("w1_slave"), w1_slave).unwrap();
}

pub(crate) fn sweep(bus: &mut W1Bus) -> Vec<Reading> {
    bus.read_all(SystemTime::now).unwrap()
}

/// Reads the tree anew: each sensor's name, quality and value.
pub(crate) fn read(root: &Path) -> Vec<(String, Quality, Option<i32>)> {
    summary(&sweep(&mut W1Bus::new(root)))
}

pub(crate) fn summary(readings: &[Reading]) -> Vec<(String, Quality, Option<i32>)> {
    let value = |value: MilliCelsius| value.0;
    readings
        .iter()
        .map(|r| (r.sensor.to_string(), r.quality, r.value.map(value)))
        .collect()
}

/// What a sound driver prints for eight bytes.
pub(crate) fn w1_slave(data: [u8; 8], t: i32) -> String {
    let crc = crc(&data);
    let mut hex = String::new();
    for byte in data.iter().chain([&crc]) {
        write!(hex, "{byte:02x} ").unwrap();
    }
    format!("{hex}: crc={crc:02x} YES\n{hex}t={t}\n")
}

/// The CRC by long division, highest power first: another way than the
/// crate's.
pub(crate) fn crc(data: &[u8]) -> u8 {
    let mut rest = 0_u16;
    for byte in data.iter().chain([&0]) {
        for bit in 0..8 {
            rest = rest << 1 | u16::from(byte >> bit & 1);
            if rest & 0x100 != 0 {
                rest ^= 0x131;
            }
        }
    }
    (rest as u8).reverse_bits()
}

/// What this `w1_slave` of a sensor of a family is read as.
pub(crate) fn judged(family: &str, w1_slave: &[u8]) -> (Quality, Option<i32>) {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    DIR.with(|dir| {
        let root = dir.path().join(family);
        put(&root, &format!("{family}-0000000a0001"), w1_slave);
        match &read(&root)[..] {
            [(_, quality, value)] => (*quality, *value),
            other => panic!("{other:?}"),
        }
    })
}

/// Waits until this process has so many descriptors of a file.
pub(crate) fn wait_for_open_files(path: &Path, count: usize) {
    let path = path.canonicalize().unwrap();
    let open = || {
        fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
            .filter(|file| *file == path)
            .count()
    };
    while open() != count {
        thread::yield_now();
    }
}
