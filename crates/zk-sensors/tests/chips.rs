//! What the bytes of each chip mean, from data sheets and the driver's source.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{judged, w1_slave};
use zk_sensors::Quality::{Crc, Empty, FalseZero, Fault, Garbled, Ok, OutOfRange, PowerOn};

#[test]
fn application_note_27_has_this_crc() {
    assert_eq!(common::crc(&[0x02, 0x1c, 0xb8, 0x01, 0, 0, 0]), 0xa2);
}

#[test]
fn intact_bytes_mean_this() {
    let bytes = |b0, b1, b4, b6| [b0, b1, 0x4b, 0x46, b4, 0xff, b6, 0x10];
    let old = |b0, b1, remain, per| [b0, b1, 0x4b, 0x46, 0xff, 0xff, remain, per];
    let probe = |b0, b1| [b0, b1, 0x90, 0x19, 0xf3, 0xff, 0xff, 0xff];
    for (family, data, t, quality, value) in [
        // DS18B20: 85 °C measured, and shown at power-on with either mark
        (
            "28",
            bytes(0x50, 0x05, 0x7f, 0x10),
            85_000,
            Ok,
            Some(85_000),
        ),
        (
            "28",
            bytes(0x50, 0x05, 0x7f, 0x0c),
            85_000,
            PowerOn,
            Some(85_000),
        ),
        (
            "28",
            bytes(0xff, 0x07, 0x7f, 0x0c),
            127_937,
            PowerOn,
            Some(127_937),
        ),
        (
            "28",
            bytes(0xff, 0x07, 0x7f, 0x01),
            127_937,
            OutOfRange,
            Some(127_937),
        ),
        // another value with that byte 6 is nothing special
        (
            "28",
            bytes(0x54, 0x01, 0x3f, 0x0c),
            21_250,
            Ok,
            Some(21_250),
        ),
        // the ends of the range, and one step beyond
        (
            "28",
            bytes(0xd0, 0x07, 0x7f, 0x10),
            125_000,
            Ok,
            Some(125_000),
        ),
        (
            "28",
            bytes(0xd1, 0x07, 0x7f, 0x0f),
            125_062,
            OutOfRange,
            Some(125_062),
        ),
        (
            "28",
            bytes(0x90, 0xfc, 0x7f, 0x10),
            -55_000,
            Ok,
            Some(-55_000),
        ),
        (
            "28",
            bytes(0x8f, 0xfc, 0x7f, 0x01),
            -55_062,
            OutOfRange,
            Some(-55_062),
        ),
        // below 12 bits the lowest bits mean nothing; the driver counts them
        (
            "28",
            bytes(0x57, 0x01, 0x1f, 0x09),
            21_437,
            Ok,
            Some(21_000),
        ),
        (
            "28",
            bytes(0x57, 0x01, 0x3f, 0x09),
            21_437,
            Ok,
            Some(21_250),
        ),
        (
            "28",
            bytes(0x57, 0x01, 0x5f, 0x09),
            21_437,
            Ok,
            Some(21_375),
        ),
        ("28", bytes(0xff, 0xff, 0x1f, 0x01), -62, Ok, Some(-500)),
        // no degrees, and no chip
        ("28", bytes(0x00, 0x00, 0x7f, 0x10), 0, Ok, Some(0)),
        ("28", [0; 8], 0, FalseZero, None),
        ("10", [0; 8], 0, FalseZero, None),
        ("3b", [0; 8], 0, FalseZero, None),
        // the others of the same make
        (
            "22",
            bytes(0x91, 0x01, 0x7f, 0x0f),
            25_062,
            Ok,
            Some(25_062),
        ),
        (
            "3b",
            bytes(0x91, 0x01, 0x7f, 0x0f),
            25_062,
            Ok,
            Some(25_062),
        ),
        (
            "42",
            bytes(0x91, 0x01, 0x7f, 0x0c),
            25_062,
            Ok,
            Some(25_062),
        ),
        (
            "42",
            bytes(0x50, 0x05, 0x7f, 0x0c),
            85_000,
            PowerOn,
            Some(85_000),
        ),
        // GX20MH01: two more bits in byte 4, to drivers that know of them
        (
            "28",
            bytes(0x57, 0x01, 0xff, 0x09),
            21_484,
            Ok,
            Some(21_484),
        ),
        (
            "28",
            bytes(0x57, 0x01, 0xff, 0x09),
            21_437,
            Ok,
            Some(21_484),
        ),
        ("28", bytes(0xff, 0xff, 0xff, 0x01), -15, Ok, Some(-15)),
        // DS18S20: halves of a degree, refined by count remain
        (
            "10",
            old(0xaa, 0x00, 0x0c, 0x10),
            85_000,
            PowerOn,
            Some(85_000),
        ),
        ("10", old(0xaa, 0x00, 0x0b, 0x10), 85_062, Ok, Some(85_062)),
        ("10", old(0x32, 0x00, 0x0c, 0x10), 25_000, Ok, Some(25_000)),
        ("10", old(0x01, 0x00, 0x04, 0x10), 500, Ok, Some(500)),
        ("10", old(0xff, 0xff, 0x04, 0x10), -500, Ok, Some(-500)),
        (
            "10",
            old(0xce, 0xff, 0x0c, 0x10),
            -25_000,
            Ok,
            Some(-25_000),
        ),
        (
            "10",
            old(0x92, 0xff, 0x0c, 0x10),
            -55_000,
            Ok,
            Some(-55_000),
        ),
        (
            "10",
            old(0xfa, 0x00, 0x0b, 0x10),
            125_062,
            OutOfRange,
            Some(125_062),
        ),
        // registers that it cannot have
        ("10", old(0x32, 0x00, 0x0c, 0x00), 0, Garbled, None),
        ("10", old(0x32, 0x00, 0x00, 0x00), 0, Garbled, None),
        ("10", old(0x32, 0x00, 0x11, 0x10), 24_688, Garbled, None),
        ("10", old(0x32, 0x01, 0x0c, 0x10), -103_000, Garbled, None),
        // MAX31850: a thermocouple in quarters, a fault flag and a reserved bit
        ("3b", probe(0x4c, 0x06), 100_750, Ok, Some(100_750)),
        ("3b", probe(0x4e, 0x06), 100_750, Ok, Some(100_750)),
        ("3b", probe(0x4e, 0x06), 100_875, Ok, Some(100_750)),
        ("3b", probe(0x4d, 0x06), 100_750, Fault, None),
        ("3b", probe(0x00, 0x64), 1_600_000, Ok, Some(1_600_000)),
        ("3b", probe(0x60, 0xf0), -250_000, Ok, Some(-250_000)),
        (
            "3b",
            probe(0x84, 0x6e),
            1_768_250,
            OutOfRange,
            Some(1_768_250),
        ),
        (
            "3b",
            probe(0x1c, 0xef),
            -270_250,
            OutOfRange,
            Some(-270_250),
        ),
        (
            "3b",
            [0x50, 0x05, 0x90, 0x19, 0xf3, 0xff, 0x0c, 0xff],
            85_000,
            Ok,
            Some(85_000),
        ),
    ] {
        assert_eq!(
            judged(family, w1_slave(data, t).as_bytes()),
            (quality, value),
            "{family} {data:02x?} t={t}"
        );
        // a driver that says another temperature than the chip is not believed
        if value.is_some() {
            let wrong = w1_slave(data, t + 1);
            assert_eq!(judged(family, wrong.as_bytes()), (Garbled, None), "{wrong}");
        }
    }
}

#[test]
fn what_the_driver_does_not_write_is_garbled() {
    let good = "57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES\n57 01 4b 46 7f ff 09 10 c7 t=21437\n";
    assert_eq!(judged("28", good.as_bytes()), (Ok, Some(21_437)));
    assert_eq!(judged("28", b""), (Empty, None));
    for length in 1..good.len() {
        let cut = &good[..length];
        assert_eq!(judged("28", cut.as_bytes()), (Garbled, None), "{cut}");
    }
    for bad in [
        "\n".to_owned(),
        "\n\n".to_owned(),
        "21437\n".to_owned(),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{good}{good}"),
        good.replace('\n', "\r\n"),
        good.replace("YES", "yes"),
        good.replace("YES", "YES "),
        good.replace("57 01", "57  01"),
        good.replace("57 01", "57 1"),
        good.replace("57 01", "0x57 01"),
        good.replace("57 01", "+7 01"),
        good.replace("c7", "C7"),
        good.replace("crc=c7", "crc=c8"),
        good.replace(" c7 :", " c7 00 :"),
        good.replace(" c7 t", " c8 t"),
        good.replace(
            "57 01 4b 46 7f ff 09 10 c7 t",
            "40 01 4b 46 7f ff 10 10 1d t",
        ),
        good.replace("t=21437", "t=+21437"),
        good.replace("t=21437", "t=021437"),
        good.replace("t=21437", "t=21437.0"),
        good.replace("t=21437", "t=99999999999"),
        good.replace("t=21437", "t="),
        "\u{fffd}".repeat(20),
        "x".repeat(100_000),
    ] {
        assert_eq!(judged("28", bad.as_bytes()), (Garbled, None), "{bad:?}");
    }
    assert_eq!(judged("28", &[0xff; 75]), (Garbled, None));
}

#[test]
fn bytes_that_do_not_match_their_crc_are_no_temperature_whatever_the_driver_says() {
    // an older kernel: the first line is what came, the second what came before
    let no = "77 01 4b 46 7f ff 09 10 c7 : crc=36 NO\n57 01 4b 46 7f ff 09 10 c7 t=23437\n";
    assert_eq!(judged("28", no.as_bytes()), (Crc, None));
    // its NO counts even over bytes that look right
    let no = "57 01 4b 46 7f ff 09 10 c7 : crc=c7 NO\n57 01 4b 46 7f ff 09 10 c7 t=21437\n";
    assert_eq!(judged("28", no.as_bytes()), (Crc, None));
    // and its YES does not count over bytes that are wrong
    let yes = "58 01 4b 46 7f ff 09 10 c7 : crc=c7 YES\n58 01 4b 46 7f ff 09 10 c7 t=21500\n";
    assert_eq!(judged("28", yes.as_bytes()), (Crc, None));
}
