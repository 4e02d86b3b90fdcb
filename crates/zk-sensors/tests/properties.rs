//! What must hold for all bytes, all temperatures and all numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::{id, judged, read, w1_slave};
use proptest::prelude::*;
use zk_sensors::{MilliCelsius, Quality, Readings, SensorId, SimulatedBus};

const FAMILIES: [&str; 5] = ["10", "22", "28", "3b", "42"];

/// Values of every chip at every resolution, set and read back through the
/// files, against arithmetic of its own. (All values, without the files, are
/// among the unit tests.)
#[test]
fn values_of_every_resolution_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let sensors: Vec<SensorId> = FAMILIES
        .iter()
        .flat_map(|family| (9..=12).map(move |bits| format!("{family}-0000000000{bits:02}")))
        .map(|name| id(&name))
        .collect();
    let mut wires = SimulatedBus::create(dir.path(), &sensors).unwrap();
    for sensor in &sensors {
        let name = sensor.to_string();
        if !name.starts_with("10") {
            let bits = name[13..].parse().unwrap();
            wires.set_resolution(*sensor, bits).unwrap();
        }
    }
    for sixteenths in (-55 * 16..=125 * 16).step_by(131).chain([1360, -1]) {
        let value = MilliCelsius(sixteenths * 1000 / 16);
        for sensor in &sensors {
            wires.set(*sensor, value).unwrap();
        }
        for (name, quality, read) in read(dir.path()) {
            let bits: u32 = match name.starts_with("10") {
                true => 12,
                false => name[13..].parse().unwrap(),
            };
            let step = 1 << (12 - bits);
            let expected = sixteenths.div_euclid(step) * step * 1000 / 16;
            // the driver cuts the DS18S20's fraction down and not towards zero
            let expected = match name.starts_with("10") {
                true => (sixteenths * 1000).div_euclid(16),
                false => expected,
            };
            let good = match (&name[..2], sixteenths) {
                ("10", 1360) => quality == Quality::PowerOn,
                // one end of the range is not reached from within
                (_, ..-872) => matches!(quality, Quality::Ok | Quality::OutOfRange),
                _ => quality == Quality::Ok,
            };
            assert!(good, "{name} {value}: {quality}");
            assert_eq!(read, Some(expected), "{name} {value}");
        }
    }
}

/// Each of the 72 bits of each good scratchpad, tipped over in a file that
/// says YES, and in one whose driver noticed.
#[test]
fn no_single_bit_gets_past_the_crc() {
    let dir = tempfile::tempdir().unwrap();
    let mut wires = SimulatedBus::create(dir.path(), &[id("28-000000000001")]).unwrap();
    let path = dir.path().join("bus/w1/devices/28-000000000001/w1_slave");
    for value in [-55_000, -62, 0, 62, 20_000, 21_437, 85_000, 125_000] {
        wires
            .set(id("28-000000000001"), MilliCelsius(value))
            .unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for bit in 0..72 {
            let mut bytes = bytes(&good);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
            let (old_hex, _) = good.split_once(':').unwrap();
            let bad = good.replace(old_hex, &hex);
            assert_ne!(bad, good);
            fs::write(&path, &bad).unwrap();
            assert_eq!(only(dir.path()), (Quality::Crc, None), "{bad}");
            fs::write(&path, bad.replace("YES", "NO")).unwrap();
            assert_eq!(only(dir.path()), (Quality::Crc, None), "{bad}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_reading(family in 0..5_usize, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (quality, value) = judged(FAMILIES[family], &bytes);
        prop_assert_eq!(value, None);
        let expected = if bytes.is_empty() { Quality::Empty } else { Quality::Garbled };
        prop_assert_eq!(quality, expected);
    }

    #[test]
    fn text_like_the_drivers_is_a_reading(
        family in 0..5_usize,
        text in "([0-9a-f]{2} ){8,10}: crc=[0-9a-f]{2} (YES|NO)\n([0-9a-f]{2} ){8,10}t=-?[0-9]{1,11}\n",
    ) {
        let (quality, value) = judged(FAMILIES[family], text.as_bytes());
        prop_assert_eq!(quality.has_value(), value.is_some());
        prop_assert!(matches!(quality, Quality::Garbled | Quality::Crc), "{}", quality);
    }

    #[test]
    fn any_intact_bytes_are_a_reading(family in 0..5_usize, data: [u8; 8], t: i16) {
        let (quality, value) = judged(FAMILIES[family], w1_slave(data, t.into()).as_bytes());
        prop_assert_eq!(quality.has_value(), value.is_some());
        prop_assert!(quality != Quality::Crc && quality != Quality::Empty);
    }

    #[test]
    fn intact_bytes_with_the_drivers_value_are_believed(low: u8, high: u8, resolution in 0..4_u8, mark: u8) {
        let register = i32::from(i16::from_be_bytes([high, low]));
        let data = [low, high, 0x4b, 0x46, resolution << 5 | 0x1f, 0xff, mark, 0x10];
        let text = w1_slave(data, register * 1000 / 16);
        let (quality, value) = judged("28", text.as_bytes());
        let step = 8 >> resolution;
        let expected = register.div_euclid(step) * step * 1000 / 16;
        prop_assert_eq!(value, Some(expected));
        let power_on = mark == 0x0c && [0x550, 0x7ff].contains(&register);
        prop_assert_eq!(quality, match expected {
            _ if power_on => Quality::PowerOn,
            -55_000..=125_000 => Quality::Ok,
            _ => Quality::OutOfRange,
        });
    }

    #[test]
    fn a_tipped_bit_anywhere_in_the_file_changes_no_value(value in -55_000..125_000_i32, bit in 0..600_usize) {
        let register = (value * 16).div_euclid(1000) as i16;
        let [high, low] = register.to_be_bytes();
        let t = i32::from(register) * 1000 / 16;
        let mut text = w1_slave([low, high, 0x4b, 0x46, 0x7f, 0xff, 0x10, 0x10], t).into_bytes();
        let bit = bit % (text.len() * 8);
        text[bit / 8] ^= 1 << (bit % 8);
        let (quality, value) = judged("28", &text);
        prop_assert_eq!(value, None);
        prop_assert!(matches!(quality, Quality::Garbled | Quality::Crc), "{}", quality);
    }

    #[test]
    fn every_thousandth_survives_json(value: i32) {
        let text = serde_json::to_string(&MilliCelsius(value)).unwrap();
        prop_assert_eq!(serde_json::from_str::<MilliCelsius>(&text).unwrap(), MilliCelsius(value));
        prop_assert_eq!(as_written(value), text);
    }

    #[test]
    fn any_text_for_a_body_is_refused_or_comes_back(text in r#"[\[\]{}",:a-z0-9 .-]{0,60}"#) {
        if let Ok(readings) = serde_json::from_str::<Readings>(&text) {
            let again = serde_json::to_string(&readings).unwrap();
            prop_assert_eq!(serde_json::from_str::<Readings>(&again).unwrap(), readings);
        }
    }
}

#[test]
fn every_thousandth_of_the_range_is_written_as_it_is() {
    for value in -55_000..=125_000 {
        let text = serde_json::to_string(&MilliCelsius(value)).unwrap();
        assert_eq!(text, as_written(value));
        assert_eq!(
            serde_json::from_str::<MilliCelsius>(&text).unwrap(),
            MilliCelsius(value)
        );
    }
}

/// Without floating point: no needless zero, and at least one decimal.
fn as_written(value: i32) -> String {
    let text = MilliCelsius(value).to_string();
    let short = text.trim_end_matches('0');
    match short.ends_with('.') {
        true => format!("{short}0"),
        false => short.to_owned(),
    }
}

fn bytes(w1_slave: &str) -> [u8; 9] {
    let (hex, _) = w1_slave.split_once(" :").unwrap();
    let bytes: Vec<u8> = hex
        .split(' ')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

fn only(root: &Path) -> (Quality, Option<i32>) {
    let readings = read(root);
    assert_eq!(readings.len(), 1);
    (readings[0].1, readings[0].2)
}
