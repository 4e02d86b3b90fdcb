//! The nine bytes a thermometer sends, and the text the driver makes of them.

use std::fmt::Write;

use crate::id::Family;
use crate::reading::{MilliCelsius, Quality};

/// The chip's memory as it is read: eight bytes and their CRC.
///
/// | byte | DS18B20, DS1822, DS1825, DS28EA00 | DS18S20 | MAX31850 |
/// | --- | --- | --- | --- |
/// | 0, 1 | temperature, 1/16 °C, low byte first | 1/2 °C | 1/16 °C; bit 0 fault, bit 1 reserved |
/// | 2, 3 | alarms, high and low | alarms | temperature of the cold junction |
/// | 4 | `0 R1 R0 …`: resolution 9 to 12 | `ff` | `f0` and the address pins |
/// | 5 | reserved, `ff` | reserved | reserved |
/// | 6 | reserved: 10h less the low four bits of byte 0; `0c` at power-on | count remain | reserved |
/// | 7 | reserved, `10` | count per °C | reserved |
/// | 8 | CRC of 0 to 7 | | |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scratchpad(pub(crate) [u8; 9]);

/// What a reading amounts to, before it has a sensor and a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) quality: Quality,
    pub(crate) value: Option<MilliCelsius>,
}

impl Scratchpad {
    /// Eight bytes with the CRC that belongs to them.
    pub(crate) fn sealed(data: [u8; 8]) -> Self {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = data;
        Self([b0, b1, b2, b3, b4, b5, b6, b7, crc8(&data)])
    }

    /// What a sound chip holds after it has measured `value`, or `None` where
    /// that does not fit its registers. `bits` is the resolution.
    pub(crate) fn measured(family: Family, value: MilliCelsius, bits: u8) -> Option<Self> {
        // to the nearest sixteenth; no thousandth is half-way between two
        let sixteenths = (i64::from(value.0) * 16 + 500).div_euclid(1000);
        if family == Family::Ds18s20 {
            // the register counts halves, and T = whole − 1/4 + (16 − remain) / 16
            let (whole, rest) = ((sixteenths + 4).div_euclid(16), (sixteenths + 4) & 15);
            let halves = whole * 2 + rest / 8;
            if !(-256..=255).contains(&halves) {
                return None;
            }
            let [high, low] = i16::try_from(halves).ok()?.to_be_bytes();
            let remain = u8::try_from(16 - rest).ok()?;
            return Some(Self::sealed([
                low, high, TH, TL, 0xff, 0xff, remain, PER_DEGREE,
            ]));
        }
        let undefined = undefined_bits(config(bits));
        let register = i16::try_from(sixteenths).ok()? & !undefined;
        let [high, low] = register.to_be_bytes();
        Some(Self::sealed([
            low,
            high,
            TH,
            TL,
            config(bits),
            0xff,
            PER_DEGREE - (low & 15),
            PER_DEGREE,
        ]))
    }

    /// What a chip holds between power-on and its first conversion.
    pub(crate) fn power_on(family: Family, bits: u8) -> Self {
        match family {
            Family::Ds18s20 => {
                Self::sealed([0xaa, 0x00, TH, TL, 0xff, 0xff, POWER_ON_MARK, PER_DEGREE])
            }
            _ => Self::sealed([
                0x50,
                0x05,
                TH,
                TL,
                config(bits),
                0xff,
                POWER_ON_MARK,
                PER_DEGREE,
            ]),
        }
    }

    pub(crate) fn is_intact(&self) -> bool {
        let [data @ .., crc] = &self.0;
        crc8(data) == *crc
    }

    /// The driver's `t=` for these bytes: thousandths of a degree, cut towards
    /// zero, undefined bits and all.
    pub(crate) fn driver_value(&self, family: Family) -> i32 {
        let [b0, b1, _, _, config, _, remain, per_degree, _] = self.0;
        let register = i16::from_be_bytes([b1, b0]);
        match family {
            Family::Ds18s20 if per_degree == 0 => 0,
            Family::Ds18s20 => {
                // a high byte other than 00 means a negative temperature
                let halves = i32::from(b0) - if b1 == 0 { 0 } else { 256 };
                let (remain, per_degree) = (i32::from(remain), i32::from(per_degree));
                (halves >> 1) * 1000 - 250 + 1000 * (per_degree - remain) / per_degree
            }
            // MAX31850: bit 0 is the fault flag, bit 1 is reserved
            Family::Ds1825 if config & EXTENDED != 0 => i32::from(register & !3) * 1000 / 16,
            // GX20MH01, a 14-bit cousin: two more bits of temperature in byte 4
            Family::Ds18b20 | Family::Ds1822 | Family::Ds28ea00 if config & EXTENDED != 0 => {
                let fine = (register << 2) | i16::from(config & 3);
                i32::from(fine) * 1000 / 64
            }
            _ => plain_value(register),
        }
    }

    /// What intact bytes amount to.
    fn judge(&self, family: Family) -> Sample {
        let [b0, b1, _, _, config, _, mark, per_degree, _] = self.0;
        if self.0 == [0; 9] {
            return Sample::without_value(Quality::FalseZero);
        }
        let thermocouple = family == Family::Ds1825 && config & EXTENDED != 0;
        let value = match family {
            // the driver would make a number of these, but the chip cannot mean it
            Family::Ds18s20
                if !matches!(b1, 0x00 | 0xff) || per_degree == 0 || mark > per_degree =>
            {
                return Sample::without_value(Quality::Garbled);
            }
            Family::Ds18s20 => self.driver_value(family),
            _ if thermocouple && b0 & 1 != 0 => {
                return Sample::without_value(Quality::Fault);
            }
            _ if config & EXTENDED != 0 => self.driver_value(family),
            _ => plain_value(i16::from_be_bytes([b1, b0]) & !undefined_bits(config)),
        };
        let power_on = mark == POWER_ON_MARK
            && match family {
                Family::Ds18s20 => (b1, b0) == (0x00, 0xaa),
                _ => !thermocouple && matches!((b1, b0), (0x05, 0x50) | (0x07, 0xff)),
            };
        let range = if thermocouple {
            -270_000..=1_768_000
        } else {
            -55_000..=125_000
        };
        let quality = if power_on {
            Quality::PowerOn
        } else if range.contains(&value) {
            Quality::Ok
        } else {
            Quality::OutOfRange
        };
        Sample {
            quality,
            value: Some(MilliCelsius(value)),
        }
    }
}

impl Sample {
    pub(crate) fn without_value(quality: Quality) -> Self {
        Self {
            quality,
            value: None,
        }
    }

    /// What the text of a `w1_slave` file amounts to. Any bytes will do.
    pub(crate) fn from_w1_slave(family: Family, text: &[u8]) -> Self {
        if text.is_empty() {
            return Self::without_value(Quality::Empty);
        }
        let Some(file) = SlaveFile::parse(text) else {
            return Self::without_value(Quality::Garbled);
        };
        let Scratchpad([.., crc]) = file.bytes;
        if !file.verdict || !file.bytes.is_intact() {
            return Self::without_value(Quality::Crc);
        }
        let said = file.bytes.driver_value(family);
        let [b0, b1, ..] = file.bytes.0;
        // older drivers know neither MAX31850 nor GX20MH01
        let said_before =
            (family != Family::Ds18s20).then(|| plain_value(i16::from_be_bytes([b1, b0])));
        let consistent = file.crc == crc
            && file.kept == file.bytes
            && (file.value == said || Some(file.value) == said_before);
        if !consistent {
            return Self::without_value(Quality::Garbled);
        }
        file.bytes.judge(family)
    }
}

/// The content of `w1_slave`: two lines.
///
/// ```text
/// 57 01 4b 46 7f ff 09 10 c7 : crc=c7 YES
/// 57 01 4b 46 7f ff 09 10 c7 t=21437
/// ```
pub(crate) struct SlaveFile {
    /// The bytes that were read.
    pub(crate) bytes: Scratchpad,
    /// The driver's own CRC of the first eight.
    pub(crate) crc: u8,
    /// `YES` if that is the ninth.
    pub(crate) verdict: bool,
    /// The last bytes that had a `YES`: in the same file, the same bytes.
    pub(crate) kept: Scratchpad,
    /// Thousandths of a degree.
    pub(crate) value: i32,
}

impl SlaveFile {
    /// The file of a sensor whose bytes came through.
    pub(crate) fn of(family: Family, bytes: Scratchpad) -> Self {
        let [data @ .., _] = &bytes.0;
        let crc = crc8(data);
        Self {
            bytes,
            crc,
            verdict: bytes.is_intact(),
            kept: bytes,
            value: bytes.driver_value(family),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
        let (first, second) = text.split_once('\n')?;
        let (bytes, verdict) = first.split_once(" : crc=")?;
        let (crc, verdict) = verdict.split_once(' ')?;
        let (kept, value) = second.split_once(" t=")?;
        Some(Self {
            bytes: hex_bytes(bytes)?,
            crc: hex_byte(crc)?,
            verdict: match verdict {
                "YES" => true,
                "NO" => false,
                _ => return None,
            },
            kept: hex_bytes(kept)?,
            value: value
                .parse()
                .ok()
                .filter(|number: &i32| number.to_string() == value)?,
        })
    }

    /// The text, to the byte as the driver prints it.
    pub(crate) fn print(&self) -> String {
        let mut text = String::new();
        let hex = |text: &mut String, bytes: &Scratchpad| {
            for byte in bytes.0 {
                let _ = write!(text, "{byte:02x} ");
            }
        };
        hex(&mut text, &self.bytes);
        let verdict = if self.verdict { "YES" } else { "NO" };
        let _ = writeln!(text, ": crc={:02x} {verdict}", self.crc);
        hex(&mut text, &self.kept);
        let _ = writeln!(text, "t={}", self.value);
        text
    }
}

/// The CRC of 1-Wire (x⁸ + x⁵ + x⁴ + 1, lowest bit first, from 0), as in Maxim
/// application note 27.
pub(crate) fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x8c } else { 0 }
        })
    })
}

/// Sixteenths to thousandths, cut towards zero.
fn plain_value(register: i16) -> i32 {
    i32::from(register) * 1000 / 16
}

/// The low bits of the temperature that mean nothing at the resolution of this
/// configuration byte: three at 9 bits, none at 12.
fn undefined_bits(config: u8) -> i16 {
    (1 << (3 - (config >> 5 & 3))) - 1
}

/// The configuration byte for 9 to 12 bits.
fn config(bits: u8) -> u8 {
    (bits.saturating_sub(9) & 3) << 5 | 0x1f
}

fn hex_bytes(text: &str) -> Option<Scratchpad> {
    let mut parts = text.split(' ');
    let mut bytes = [0; 9];
    for byte in &mut bytes {
        *byte = hex_byte(parts.next()?)?;
    }
    parts.next().is_none().then_some(Scratchpad(bytes))
}

fn hex_byte(text: &str) -> Option<u8> {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == 2 && text.bytes().all(hex) {
        u8::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

/// Set in byte 4 by chips with more than 12 bits; 0 in every other.
const EXTENDED: u8 = 0x80;

/// Byte 6 before the first conversion.
const POWER_ON_MARK: u8 = 0x0c;

/// Byte 7 of every chip but a MAX31850.
const PER_DEGREE: u8 = 0x10;

/// Alarms of a new chip, 75 and 70 °C.
const TH: u8 = 0x4b;
const TL: u8 = 0x46;

#[cfg(test)]
mod tests {
    use super::*;

    /// Through the text and back, for each sixteenth of a degree that the
    /// registers hold. Without files, because there are so many.
    #[test]
    fn every_value_of_every_resolution_comes_back() {
        for (family, bits) in [
            (Family::Ds18b20, 9),
            (Family::Ds18b20, 10),
            (Family::Ds18b20, 11),
            (Family::Ds18b20, 12),
            (Family::Ds1822, 12),
            (Family::Ds1825, 12),
            (Family::Ds28ea00, 12),
        ] {
            let step = 1 << (12 - bits);
            for sixteenths in i32::from(i16::MIN)..=i32::from(i16::MAX) {
                let value = sixteenths.div_euclid(step) * step * 1000 / 16;
                let quality = match value {
                    -55_000..=125_000 => Quality::Ok,
                    _ => Quality::OutOfRange,
                };
                assert_eq!(
                    there_and_back(family, sixteenths, bits),
                    (quality, Some(MilliCelsius(value))),
                    "{family:?} {sixteenths}/16 {bits}"
                );
            }
        }
        for sixteenths in -128 * 16..=127 * 16 {
            // cut to thousandths from below, as the driver does it
            let value = (sixteenths * 1000_i32).div_euclid(16);
            let quality = match value {
                85_000 => Quality::PowerOn,
                -55_000..=125_000 => Quality::Ok,
                _ => Quality::OutOfRange,
            };
            assert_eq!(
                there_and_back(Family::Ds18s20, sixteenths, 12),
                (quality, Some(MilliCelsius(value))),
                "{sixteenths}/16"
            );
        }
    }

    fn there_and_back(
        family: Family,
        sixteenths: i32,
        bits: u8,
    ) -> (Quality, Option<MilliCelsius>) {
        let value = MilliCelsius(sixteenths * 1000 / 16);
        let bytes = Scratchpad::measured(family, value, bits).unwrap();
        let text = SlaveFile::of(family, bytes).print();
        let sample = Sample::from_w1_slave(family, text.as_bytes());
        (sample.quality, sample.value)
    }
}
