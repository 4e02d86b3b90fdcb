//! The simulated tree against listings of a real kernel's, Linux 6.12 with
//! w1_therm: every name, mode, link and byte. And the reader against the same
//! bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use zk_sensors::{MilliCelsius, Quality, SensorId, SimulatedBus, W1Bus};

#[test]
fn every_temperature_has_the_bytes_of_the_real_chip() {
    let (dir, mut wires) = one_sensor();
    let mut seen = 0;
    for line in GOOD.lines().filter(|line| !line.is_empty()) {
        if let Some(setting) = line.strip_suffix(':') {
            wires
                .set(sensor(1), MilliCelsius(setting.parse().unwrap()))
                .unwrap();
        } else {
            let (path, bytes) = file(line).unwrap();
            assert_eq!(content(dir.path(), path), bytes, "{line}");
            if path.ends_with("w1_slave") {
                assert_eq!(
                    read(dir.path()),
                    (Quality::Ok, Some(driver_value(&bytes))),
                    "{line}"
                );
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 15);
}

#[test]
fn the_power_on_value_is_told_from_85_degrees() {
    let (dir, mut wires) = one_sensor();
    let mut expected = (Quality::Ok, Some(MilliCelsius(85_000)));
    let mut seen = Vec::new();
    for line in POWER_ON.lines().filter(|line| !line.is_empty()) {
        if line.starts_with("a real 85 C") {
            wires.set(sensor(1), MilliCelsius(85_000)).unwrap();
        } else if line.starts_with("brown-out") {
            wires.power_on_value(sensor(1)).unwrap();
            expected = (Quality::PowerOn, Some(MilliCelsius(85_000)));
        } else if line.starts_with("the same with features = 1") {
            wires.empty(sensor(1)).unwrap();
            expected = (Quality::Empty, None);
        } else if line.starts_with("sensor well again") {
            wires.set(sensor(1), MilliCelsius(20_000)).unwrap();
            expected = (Quality::Ok, Some(MilliCelsius(20_000)));
        } else if let Some((path, bytes)) = file(line) {
            assert_eq!(content(dir.path(), path), bytes, "{line}");
            if path.ends_with("w1_slave") {
                assert_eq!(read(dir.path()), expected, "{line}");
                seen.push(expected.0);
            }
        }
    }
    assert_eq!(
        seen,
        [Quality::Ok, Quality::PowerOn, Quality::Empty, Quality::Ok]
    );
}

#[test]
fn every_resolution_has_the_files_of_the_real_chip() {
    let (dir, mut wires) = one_sensor();
    wires.set(sensor(1), MilliCelsius(21_437)).unwrap();
    let mut seen = 0;
    for line in RESOLUTION.lines().filter(|line| !line.is_empty()) {
        if let Some(bits) = line.trim().strip_prefix("echo -n '") {
            let (bits, _) = bits.split_once('\'').unwrap();
            wires
                .set_resolution(sensor(1), bits.parse().unwrap())
                .unwrap();
        } else {
            let (path, bytes) = file(line).unwrap();
            assert_eq!(content(dir.path(), path), bytes, "{line}");
            if path.ends_with("w1_slave") {
                assert_eq!(
                    read(dir.path()),
                    (Quality::Ok, Some(driver_value(&bytes))),
                    "{line}"
                );
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 4);
}

#[test]
fn the_tree_has_the_names_modes_and_links_of_the_real_one() {
    let (dir, _wires) = three_sensors();
    let mut listed = 0;
    for block in TREE
        .split("\n\n")
        .filter(|block| block.trim_start().starts_with('/'))
    {
        let (path, entries) = block.trim_start().split_once(":\n").unwrap();
        let path = dir.path().join(path.strip_prefix("/sys/").unwrap());
        // the number depends on what else the machine has
        let path = match path.ends_with("hwmon1") {
            true => only_entry(path.parent().unwrap()),
            false => path,
        };
        let expected: BTreeMap<String, String> = entries
            .lines()
            .map(|entry| {
                let entry = entry.trim();
                let (mode, rest) = entry.split_once(' ').unwrap();
                match entry.as_bytes()[0] {
                    b'l' => {
                        let (name, target) = rest.split_once(" -> ").unwrap();
                        (name.to_owned(), format!("-> {target}"))
                    }
                    b'd' => (rest.trim_end_matches('/').to_owned(), "/".to_owned()),
                    _ => (rest.rsplit_once(' ').unwrap().1.to_owned(), mode.to_owned()),
                }
            })
            .collect();
        assert_eq!(listing(&path), expected, "{}", path.display());
        listed += 1;
    }
    assert_eq!(listed, 5);
}

#[test]
fn the_other_files_have_the_bytes_of_the_real_ones() {
    let (dir, _wires) = three_sensors();
    let mut seen = 0;
    let (_, files) = TREE.split_once("master files:\n").unwrap();
    let (master, slave) = files.split_once("slave files:\n").unwrap();
    for (place, lines) in [("", master), ("28-0000000a0001", slave)] {
        let place = dir.path().join("devices/w1_bus_master1").join(place);
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let (name, bytes) = file(line).unwrap();
            let found = fs::read(place.join(name)).unwrap();
            if name == "w1_master_pointer" {
                assert_eq!(found.len(), bytes.len(), "{line}");
            } else {
                assert_eq!(found, bytes, "{line}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 24);
}

#[test]
fn a_chip_whose_bytes_do_not_come_through_has_the_settings_of_the_real_one() {
    let (dir, mut wires) = one_sensor();
    wires.empty(sensor(1)).unwrap();
    for (name, expected) in [
        ("resolution", "-5\n"),
        ("alarms", "0 0\n"),
        ("conv_time", "750\n"),
        ("features", "0\n"),
    ] {
        let path = format!("28-0000000a0001/{name}");
        assert_eq!(content(dir.path(), &path), expected.as_bytes(), "{name}");
    }
}

fn sensor(number: u8) -> SensorId {
    format!("28-0000000a000{number}").parse().unwrap()
}

fn one_sensor() -> (tempfile::TempDir, SimulatedBus) {
    let dir = tempfile::tempdir().unwrap();
    let wires = SimulatedBus::create(dir.path(), &[sensor(1)]).unwrap();
    (dir, wires)
}

/// In the order of the real bus's `w1_master_slaves`.
fn three_sensors() -> (tempfile::TempDir, SimulatedBus) {
    let dir = tempfile::tempdir().unwrap();
    let wires = SimulatedBus::create(dir.path(), &[sensor(2), sensor(1), sensor(3)]).unwrap();
    (dir, wires)
}

fn content(root: &Path, path: &str) -> Vec<u8> {
    fs::read(root.join("bus/w1/devices").join(path)).unwrap()
}

fn read(root: &Path) -> (Quality, Option<MilliCelsius>) {
    let readings = W1Bus::new(root).read_all(SystemTime::now).unwrap();
    assert_eq!(readings.len(), 1);
    (readings[0].quality, readings[0].value)
}

/// `  28-…/name: 6 bytes b'20000\n'  [754 ms]`: the path, and the bytes as
/// Python writes them.
fn file(line: &str) -> Option<(&str, Vec<u8>)> {
    let (path, rest) = line.trim().split_once(": ")?;
    let (length, rest) = rest.split_once(" bytes b'")?;
    let (text, _) = rest.rsplit_once('\'')?;
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        bytes.push(match char {
            '\\' => match chars.next().unwrap() {
                'n' => b'\n',
                'x' => {
                    let hex: String = chars.by_ref().take(2).collect();
                    u8::from_str_radix(&hex, 16).unwrap()
                }
                other => panic!("{other} in {line}"),
            },
            char => u8::try_from(char).unwrap(),
        });
    }
    assert_eq!(bytes.len(), length.parse::<usize>().unwrap(), "{line}");
    Some((path, bytes))
}

fn driver_value(w1_slave: &[u8]) -> MilliCelsius {
    let text = std::str::from_utf8(w1_slave).unwrap().trim_end();
    MilliCelsius(text.rsplit_once("t=").unwrap().1.parse().unwrap())
}

fn only_entry(dir: &Path) -> std::path::PathBuf {
    let mut entries = fs::read_dir(dir).unwrap();
    let entry = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none());
    entry
}

/// Name to `-> target`, `/` or the mode.
fn listing(dir: &Path) -> BTreeMap<String, String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            let text = if kind.is_symlink() {
                format!("-> {}", fs::read_link(entry.path()).unwrap().display())
            } else if kind.is_dir() {
                "/".to_owned()
            } else {
                let mode = entry.metadata().unwrap().permissions().mode();
                let bit = |n: u32, char| if mode >> n & 1 == 1 { char } else { '-' };
                let bits = (0..9).rev().zip("rwxrwxrwx".chars());
                let bits: String = bits.map(|(n, char)| bit(n, char)).collect();
                format!("-{bits}")
            };
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect()
}

const TREE: &str = r#"
/sys/bus/w1:
  drwxr-xr-x devices/
  drwxr-xr-x drivers/
  -rw-r--r--  4096 drivers_autoprobe
  --w-------  4096 drivers_probe
  --w-------  4096 uevent

/sys/bus/w1/devices:
  lrwxrwxrwx 28-0000000a0001 -> ../../../devices/w1_bus_master1/28-0000000a0001
  lrwxrwxrwx 28-0000000a0002 -> ../../../devices/w1_bus_master1/28-0000000a0002
  lrwxrwxrwx 28-0000000a0003 -> ../../../devices/w1_bus_master1/28-0000000a0003
  lrwxrwxrwx w1_bus_master1 -> ../../../devices/w1_bus_master1

/sys/devices/w1_bus_master1:
  drwxr-xr-x 28-0000000a0001/
  drwxr-xr-x 28-0000000a0002/
  drwxr-xr-x 28-0000000a0003/
  lrwxrwxrwx driver -> ../../bus/w1/drivers/w1_master_driver
  drwxr-xr-x power/
  lrwxrwxrwx subsystem -> ../../bus/w1
  -rw-r--r--  4096 therm_bulk_read
  -rw-r--r--  4096 uevent
  -rw-rw-r--  4096 w1_master_add
  -r--r--r--  4096 w1_master_attempts
  -rw-rw-r--  4096 w1_master_max_slave_count
  -r--r--r--  4096 w1_master_name
  -r--r--r--  4096 w1_master_pointer
  -rw-rw-r--  4096 w1_master_pullup
  -rw-rw-r--  4096 w1_master_remove
  -rw-rw-r--  4096 w1_master_search
  -r--r--r--  4096 w1_master_slave_count
  -r--r--r--  4096 w1_master_slaves
  -r--r--r--  4096 w1_master_timeout
  -r--r--r--  4096 w1_master_timeout_us

/sys/devices/w1_bus_master1/28-0000000a0001:
  -rw-r--r--  4096 alarms
  -rw-r--r--  4096 conv_time
  lrwxrwxrwx driver -> ../../../bus/w1/drivers/w1_slave_driver
  --w-------  4096 eeprom_cmd
  -r--r--r--  4096 ext_power
  -rw-r--r--  4096 features
  drwxr-xr-x hwmon/
  -r--r--r--  4096 id
  -r--r--r--  4096 name
  drwxr-xr-x power/
  -rw-r--r--  4096 resolution
  lrwxrwxrwx subsystem -> ../../../bus/w1
  -r--r--r--  4096 temperature
  -rw-r--r--  4096 uevent
  -rw-r--r--  4096 w1_slave

/sys/devices/w1_bus_master1/28-0000000a0001/hwmon/hwmon1:
  lrwxrwxrwx device -> ../../../28-0000000a0001
  -r--r--r--  4096 name
  drwxr-xr-x power/
  lrwxrwxrwx subsystem -> ../../../../../class/hwmon
  -r--r--r--  4096 temp1_input
  -rw-r--r--  4096 uevent

master files:
  therm_bulk_read: 2 bytes b'0\n'  [1 ms]
  uevent: 24 bytes b'DRIVER=w1_master_driver\n'  [0 ms]
  w1_master_add: 45 bytes b'write device id xx-xxxxxxxxxxxx to add slave\n'  [0 ms]
  w1_master_attempts: 2 bytes b'1\n'  [0 ms]
  w1_master_max_slave_count: 3 bytes b'64\n'  [0 ms]
  w1_master_name: 15 bytes b'w1_bus_master1\n'  [0 ms]
  w1_master_pointer: 19 bytes b'0x00000000c7b8432b\n'  [0 ms]
  w1_master_pullup: 2 bytes b'1\n'  [0 ms]
  w1_master_remove: 48 bytes b'write device id xx-xxxxxxxxxxxx to remove slave\n'  [0 ms]
  w1_master_search: 3 bytes b'-1\n'  [0 ms]
  w1_master_slave_count: 2 bytes b'3\n'  [0 ms]
  w1_master_slaves: 48 bytes b'28-0000000a0002\n28-0000000a0001\n28-0000000a0003\n'  [0 ms]
  w1_master_timeout: 2 bytes b'2\n'  [0 ms]
  w1_master_timeout_us: 2 bytes b'0\n'  [0 ms]

slave files:
  alarms: 6 bytes b'70 75\n'  [0 ms]
  conv_time: 4 bytes b'750\n'  [0 ms]
  ext_power: 2 bytes b'1\n'  [0 ms]
  features: 2 bytes b'0\n'  [0 ms]
  id: 8 bytes b'(\x01\x00\n\x00\x00\x002'  [0 ms]
  name: 16 bytes b'28-0000000a0001\n'  [0 ms]
  resolution: 3 bytes b'12\n'  [0 ms]
  temperature: 6 bytes b'20000\n'  [756 ms]
  uevent: 70 bytes b'DRIVER=w1_slave_driver\nW1_FID=28\nW1_SLAVE_ID=0000000000000000000A0001\n'  [0 ms]
  w1_slave: 75 bytes b'40 01 4b 46 7f ff 10 10 1d : crc=1d YES\n40 01 4b 46 7f ff 10 10 1d t=20000\n'  [765 ms]
"#;

const GOOD: &str = r#"
20000:
  28-0000000a0001/temperature: 6 bytes b'20000\n'  [754 ms]
  28-0000000a0001/w1_slave: 75 bytes b'40 01 4b 46 7f ff 10 10 1d : crc=1d YES\n40 01 4b 46 7f ff 10 10 1d t=20000\n'  [768 ms]
21437:
  28-0000000a0001/temperature: 6 bytes b'21437\n'  [764 ms]
  28-0000000a0001/w1_slave: 75 bytes b'57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES\n57 01 4b 46 7f ff 09 10 c7 t=21437\n'  [767 ms]
25062:
  28-0000000a0001/temperature: 6 bytes b'25062\n'  [762 ms]
  28-0000000a0001/w1_slave: 75 bytes b'91 01 4b 46 7f ff 0f 10 25 : crc=25 YES\n91 01 4b 46 7f ff 0f 10 25 t=25062\n'  [767 ms]
62:
  28-0000000a0001/temperature: 3 bytes b'62\n'  [764 ms]
  28-0000000a0001/w1_slave: 72 bytes b'01 00 4b 46 7f ff 0f 10 de : crc=de YES\n01 00 4b 46 7f ff 0f 10 de t=62\n'  [767 ms]
0:
  28-0000000a0001/temperature: 2 bytes b'0\n'  [765 ms]
  28-0000000a0001/w1_slave: 71 bytes b'00 00 4b 46 7f ff 10 10 69 : crc=69 YES\n00 00 4b 46 7f ff 10 10 69 t=0\n'  [767 ms]
-62:
  28-0000000a0001/temperature: 4 bytes b'-62\n'  [764 ms]
  28-0000000a0001/w1_slave: 73 bytes b'ff ff 4b 46 7f ff 01 10 9a : crc=9a YES\nff ff 4b 46 7f ff 01 10 9a t=-62\n'  [766 ms]
-500:
  28-0000000a0001/temperature: 5 bytes b'-500\n'  [765 ms]
  28-0000000a0001/w1_slave: 74 bytes b'f8 ff 4b 46 7f ff 08 10 f8 : crc=f8 YES\nf8 ff 4b 46 7f ff 08 10 f8 t=-500\n'  [766 ms]
-1000:
  28-0000000a0001/temperature: 6 bytes b'-1000\n'  [765 ms]
  28-0000000a0001/w1_slave: 75 bytes b'f0 ff 4b 46 7f ff 10 10 48 : crc=48 YES\nf0 ff 4b 46 7f ff 10 10 48 t=-1000\n'  [766 ms]
-10125:
  28-0000000a0001/temperature: 7 bytes b'-10125\n'  [763 ms]
  28-0000000a0001/w1_slave: 76 bytes b'5e ff 4b 46 7f ff 02 10 b6 : crc=b6 YES\n5e ff 4b 46 7f ff 02 10 b6 t=-10125\n'  [766 ms]
-54938:
  28-0000000a0001/temperature: 7 bytes b'-54937\n'  [765 ms]
  28-0000000a0001/w1_slave: 76 bytes b'91 fc 4b 46 7f ff 0f 10 59 : crc=59 YES\n91 fc 4b 46 7f ff 0f 10 59 t=-54937\n'  [767 ms]
-55000:
  28-0000000a0001/temperature: 7 bytes b'-55000\n'  [765 ms]
  28-0000000a0001/w1_slave: 76 bytes b'90 fc 4b 46 7f ff 10 10 ee : crc=ee YES\n90 fc 4b 46 7f ff 10 10 ee t=-55000\n'  [767 ms]
85000:
  28-0000000a0001/temperature: 6 bytes b'85000\n'  [763 ms]
  28-0000000a0001/w1_slave: 75 bytes b'50 05 4b 46 7f ff 10 10 bd : crc=bd YES\n50 05 4b 46 7f ff 10 10 bd t=85000\n'  [767 ms]
99999:
  28-0000000a0001/temperature: 7 bytes b'100000\n'  [764 ms]
  28-0000000a0001/w1_slave: 76 bytes b'40 06 4b 46 7f ff 10 10 ae : crc=ae YES\n40 06 4b 46 7f ff 10 10 ae t=100000\n'  [767 ms]
124938:
  28-0000000a0001/temperature: 7 bytes b'124937\n'  [763 ms]
  28-0000000a0001/w1_slave: 76 bytes b'cf 07 4b 46 7f ff 01 10 d3 : crc=d3 YES\ncf 07 4b 46 7f ff 01 10 d3 t=124937\n'  [767 ms]
125000:
  28-0000000a0001/temperature: 7 bytes b'125000\n'  [764 ms]
  28-0000000a0001/w1_slave: 76 bytes b'd0 07 4b 46 7f ff 10 10 55 : crc=55 YES\nd0 07 4b 46 7f ff 10 10 55 t=125000\n'  [767 ms]
"#;

const POWER_ON: &str = r#"
a real 85 C (byte 6 is 10):
  28-0000000a0001/temperature: 6 bytes b'85000\n'  [762 ms]
  28-0000000a0001/w1_slave: 75 bytes b'50 05 4b 46 7f ff 10 10 bd : crc=bd YES\n50 05 4b 46 7f ff 10 10 bd t=85000\n'  [767 ms]
brown-out during every conversion (byte 6 is 0c), temperature really 20 C, features = 0:
  28-0000000a0001/features: 2 bytes b'0\n'  [0 ms]
  28-0000000a0001/temperature: 6 bytes b'85000\n'  [764 ms]
  28-0000000a0001/w1_slave: 75 bytes b'50 05 4b 46 7f ff 0c 10 1c : crc=1c YES\n50 05 4b 46 7f ff 0c 10 1c t=85000\n'  [767 ms]
the same with features = 1 (driver checks the result):
  echo -n '1' > 28-0000000a0001/features: wrote 1 of 1  [1 ms]
  28-0000000a0001/temperature: 0 bytes b''  [764 ms]
  28-0000000a0001/w1_slave: 0 bytes b''  [767 ms]
sensor well again, features still 1:
  28-0000000a0001/temperature: 6 bytes b'20000\n'  [765 ms]
  28-0000000a0001/w1_slave: 75 bytes b'40 01 4b 46 7f ff 10 10 1d : crc=1d YES\n40 01 4b 46 7f ff 10 10 1d t=20000\n'  [767 ms]
  echo -n '0' > 28-0000000a0001/features: wrote 1 of 1  [0 ms]
"#;

const RESOLUTION: &str = r#"
  echo -n '9' > 28-0000000a0001/resolution: wrote 1 of 1  [1 ms]
  28-0000000a0001/resolution: 2 bytes b'9\n'  [0 ms]
  28-0000000a0001/conv_time: 3 bytes b'95\n'  [0 ms]
  28-0000000a0001/temperature: 6 bytes b'21000\n'  [99 ms]
  28-0000000a0001/w1_slave: 75 bytes b'50 01 4b 46 1f ff 10 10 d9 : crc=d9 YES\n50 01 4b 46 1f ff 10 10 d9 t=21000\n'  [99 ms]
  echo -n '10' > 28-0000000a0001/resolution: wrote 2 of 2  [1 ms]
  28-0000000a0001/resolution: 3 bytes b'10\n'  [1 ms]
  28-0000000a0001/conv_time: 4 bytes b'190\n'  [0 ms]
  28-0000000a0001/temperature: 6 bytes b'21250\n'  [195 ms]
  28-0000000a0001/w1_slave: 75 bytes b'54 01 4b 46 3f ff 0c 10 1d : crc=1d YES\n54 01 4b 46 3f ff 0c 10 1d t=21250\n'  [195 ms]
  echo -n '11' > 28-0000000a0001/resolution: wrote 2 of 2  [0 ms]
  28-0000000a0001/resolution: 3 bytes b'11\n'  [0 ms]
  28-0000000a0001/conv_time: 4 bytes b'375\n'  [0 ms]
  28-0000000a0001/temperature: 6 bytes b'21375\n'  [396 ms]
  28-0000000a0001/w1_slave: 75 bytes b'56 01 4b 46 5f ff 0a 10 a1 : crc=a1 YES\n56 01 4b 46 5f ff 0a 10 a1 t=21375\n'  [383 ms]
  echo -n '12' > 28-0000000a0001/resolution: wrote 2 of 2  [0 ms]
  28-0000000a0001/resolution: 3 bytes b'12\n'  [0 ms]
  28-0000000a0001/conv_time: 4 bytes b'750\n'  [0 ms]
  28-0000000a0001/temperature: 6 bytes b'21437\n'  [764 ms]
  28-0000000a0001/w1_slave: 75 bytes b'57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES\n57 01 4b 46 7f ff 09 10 c7 t=21437\n'  [767 ms]
"#;
