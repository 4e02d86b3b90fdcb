//! The bodies of kinds 2 to 5: what a device says of itself.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::envelope::{ClockQuality, Kind};
use crate::id::{StreamId, Timestamp};

/// What a device says of itself: a record of kind 2 to 5.
///
/// The body is one JSON object of content type `application/json`, with exactly
/// the members given here, in `camelCase`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// Kind 2.
    LossReceipt(LossReceipt),
    /// Kind 3.
    TimeAnchor(TimeAnchor),
    /// Kind 4.
    DeviceEvent(DeviceEvent),
    /// Kind 5.
    Heartbeat(Heartbeat),
}

/// Records that will never arrive, and why.
///
/// `{"reason":"dropped","records":17,"range":{"stream":"<hex>","first":41,"last":57},"noticedAt":"…Z"}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LossReceipt {
    /// Why.
    #[serde(deserialize_with = "name")]
    pub reason: LossReason,
    /// How many; 0 if that is not known, which can happen to `damaged` alone.
    pub records: u64,
    /// Which; `null` for `rejected`, whose readings never had a number, and for
    /// `several`. If the number is not known, `first` is where the doubt begins.
    #[serde(deserialize_with = "nullable_object")]
    pub range: Option<SequenceRange>,
    /// When the spool noticed.
    pub noticed_at: Timestamp,
}

/// Why records were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LossReason {
    /// The spool was full and its policy is to drop the oldest.
    Dropped,
    /// The storage medium lost or changed them.
    Damaged,
    /// The spool was full and its policy is to reject the newest.
    Rejected,
    /// The cloud refused them for good.
    Refused,
    /// So much was lost in so many places that only the number was kept.
    Several,
}

/// Consecutive numbers of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceRange {
    /// The stream.
    pub stream: StreamId,
    /// The first number, at least 1.
    pub first: u64,
    /// The last number, at least `first`.
    pub last: u64,
}

/// The wall clock was set, or is known to be right from here on: dates the other
/// records of the same boot.
///
/// The record's own header has boot, monotonic time, and the new wall clock.
/// A record of the same boot with monotonic time m was made at
/// header time - (header monotonic time - m), give or take the error and what
/// an undisciplined clock drifts in between ([`DRIFT_PPM`]).
///
/// `{"before":{"time":"1970-01-01T00:01:02.345Z","clock":"unknown"},"errorMs":16}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeAnchor {
    /// The clock before it was set; `null` in the first record of a program that
    /// has just started, which doesn't know, and in an anchor that takes the place of
    /// one that was lost.
    #[serde(deserialize_with = "nullable_object")]
    pub before: Option<ClockBefore>,
    /// The most by which the header's wall clock may be wrong, as the device's
    /// kernel has it, and by which the monotonic one was moved since the record
    /// before; `null` if nothing says so, as of a clock set by hand.
    #[serde(deserialize_with = "nullable")]
    pub error_ms: Option<u64>,
}

/// A wall clock as it was before it was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockBefore {
    /// What it would say now, had it not been set.
    pub time: Timestamp,
    /// What was known of it.
    #[serde(deserialize_with = "name")]
    pub clock: ClockQuality,
}

/// By how much monotonic time may be longer or shorter than true time, in parts
/// per million: more than this Linux doesn't correct in a clock either, but for one
/// that it moves to another time bit by bit.
pub const DRIFT_PPM: u64 = 500;

/// Something happened to the device itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The first record of every stream: which stream it takes the place of.
    ///
    /// `{"event":"stream-started","previous":{"stream":"<hex>","last":57}}`, or
    /// `"previous":null` for a device's first stream.
    StreamStarted {
        /// The stream before it and the last number that was kept of it.
        #[serde(deserialize_with = "nullable_object")]
        previous: Option<PreviousStream>,
    },
    /// The security module found a perimeter circuit broken: somebody has opened
    /// the case, or cut its wire.
    ///
    /// `{"event":"perimeter-broken","circuit":0,"at":"…Z"}`
    PerimeterBroken {
        /// Which, from 0.
        circuit: u32,
        /// When, by the module's clock, in whole seconds.
        at: Timestamp,
    },
    /// A perimeter circuit is no longer told of as broken: somebody has cleared
    /// that in the module.
    ///
    /// `{"event":"perimeter-cleared","circuit":0}`
    PerimeterCleared {
        /// Which, from 0.
        circuit: u32,
    },
    /// The security module's battery is below the voltage that the device's
    /// configuration names.
    ///
    /// `{"event":"battery-low","millivolts":2410}`
    BatteryLow {
        /// Its voltage.
        millivolts: u32,
    },
    /// It no longer is.
    ///
    /// `{"event":"battery-restored","millivolts":3010}`
    BatteryRestored {
        /// Its voltage.
        millivolts: u32,
    },
    /// The security module's tie to its machine has changed.
    ///
    /// `{"event":"binding-changed","bound":true,"locked":false}`
    BindingChanged {
        /// It is in the machine that it is bound to.
        bound: bool,
        /// It is bound for good.
        locked: bool,
    },
    /// The security module signs again, after it had not for a while. Readings of
    /// that time waited in memory.
    ///
    /// `{"event":"module-recovered","outageMs":52000}`
    ModuleRecovered {
        /// From the first signature that failed to the next that was made.
        outage_ms: u64,
    },
}

/// The end of the stream before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviousStream {
    /// The stream.
    pub stream: StreamId,
    /// Its last number; 0 if nothing of it was kept.
    pub last: u64,
}

/// Alive: with its sequence number it says that there is nothing more so far.
///
/// `{"intervalMs":300000,"waiting":0,"waitingBytes":0,"sensors":3}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heartbeat {
    /// The next heartbeat comes after this many milliseconds.
    pub interval_ms: u64,
    /// Records that wait in the spool.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Sensors that answered when last asked.
    pub sensors: u64,
}

impl Report {
    /// The kind of record that carries it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::LossReceipt(_) => Kind::LossReceipt,
            Self::TimeAnchor(_) => Kind::TimeAnchor,
            Self::DeviceEvent(_) => Kind::DeviceEvent,
            Self::Heartbeat(_) => Kind::Heartbeat,
        }
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, Error> {
        self.check()?;
        Ok(match self {
            Self::LossReceipt(body) => serde_json::to_vec(body),
            Self::TimeAnchor(body) => serde_json::to_vec(body),
            Self::DeviceEvent(body) => serde_json::to_vec(body),
            Self::Heartbeat(body) => serde_json::to_vec(body),
        }?)
    }

    pub(crate) fn parse(kind: Kind, body: &[u8]) -> Result<Option<Self>, Error> {
        let report = match kind {
            Kind::Data => return Ok(None),
            Kind::LossReceipt => Self::LossReceipt(from_object(body)?),
            Kind::TimeAnchor => Self::TimeAnchor(from_object(body)?),
            Kind::DeviceEvent => Self::DeviceEvent(from_object(body)?),
            Kind::Heartbeat => Self::Heartbeat(from_object(body)?),
        };
        report.check()?;
        Ok(Some(report))
    }

    fn check(&self) -> Result<(), Error> {
        let Self::LossReceipt(receipt) = self else {
            return Ok(());
        };
        let unnumbered = matches!(receipt.reason, LossReason::Rejected | LossReason::Several);
        let right = match receipt.range {
            None => unnumbered && receipt.records > 0,
            Some(SequenceRange { first, last, .. }) => {
                let count = last.checked_sub(first).and_then(|more| more.checked_add(1));
                let unknown = receipt.records == 0 && receipt.reason == LossReason::Damaged;
                !unnumbered
                    && first >= 1
                    && count.is_some_and(|count| unknown || count == receipt.records)
            }
        };
        if right {
            Ok(())
        } else {
            Err(Error::malformed(
                "loss receipt",
                "records = last - first + 1; no range for rejected and several",
            ))
        }
    }
}

/// A JSON object, and nothing but an object: serde alone would take an array of
/// the members' values in order for it.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(std::marker::PhantomData))
    }
}

pub(crate) fn from_object<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, Error> {
    Ok(serde_json::from_slice::<Object<T>>(json)?.0)
}

/// A name, and nothing but a string: serde_json alone would take
/// `{"dropped":null}` for `"dropped"`.
fn name<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// A member that may be null, but not left out.
fn nullable<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer)
}

fn nullable_object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A sealer makes no such bodies; whoever has the device's key can.
    #[test]
    fn only_the_form_of_the_format_page_is_a_report() {
        const ANCHOR: &str =
            r#"{"before":{"time":"1970-01-01T00:01:02.345Z","clock":"unknown"},"errorMs":16}"#;
        const RECEIPT: &str = r#"{"reason":"rejected","records":3,"range":null,"noticedAt":"2026-11-23T11:20:44.123Z"}"#;
        const EVENT: &str = r#"{"event":"stream-started","previous":null}"#;
        const BROKEN: &str =
            r#"{"event":"perimeter-broken","circuit":0,"at":"2026-11-23T11:20:44.000Z"}"#;
        let cases = [
            (
                Kind::TimeAnchor,
                ANCHOR,
                r#""unknown""#,
                r#"{"unknown":null}"#,
            ),
            (Kind::TimeAnchor, ANCHOR, r#""unknown""#, "0"),
            (Kind::TimeAnchor, ANCHOR, "},", r#","clock":"unknown"},"#),
            (
                Kind::TimeAnchor,
                ANCHOR,
                "},",
                r#","cloc\u006b":"unknown"},"#,
            ),
            (Kind::TimeAnchor, ANCHOR, r#","errorMs":16"#, ""),
            (Kind::TimeAnchor, ANCHOR, "16", "-1"),
            (
                Kind::TimeAnchor,
                ANCHOR,
                r#"{"time":"1970-01-01T00:01:02.345Z","clock":"unknown"}"#,
                r#"["1970-01-01T00:01:02.345Z","unknown"]"#,
            ),
            (Kind::TimeAnchor, ANCHOR, "345Z", "3450Z"),
            (
                Kind::LossReceipt,
                RECEIPT,
                r#""rejected""#,
                r#"{"rejected":null}"#,
            ),
            (Kind::LossReceipt, RECEIPT, ":3,", ":3.0,"),
            (Kind::LossReceipt, RECEIPT, ":3,", ":3e0,"),
            (Kind::LossReceipt, RECEIPT, ":3,", ":-3,"),
            (Kind::LossReceipt, RECEIPT, ":3,", ":18446744073709551616,"),
            (Kind::LossReceipt, RECEIPT, r#""range":null,"#, ""),
            (
                Kind::DeviceEvent,
                EVENT,
                r#""stream-started""#,
                r#"{"stream-started":null}"#,
            ),
            (Kind::DeviceEvent, EVENT, r#""stream-started""#, "0"),
            (Kind::DeviceEvent, EVENT, r#","previous":null"#, ""),
            (
                Kind::DeviceEvent,
                EVENT,
                "null",
                r#"["09090909090909090909090909090909",1]"#,
            ),
            (Kind::DeviceEvent, EVENT, "null", r#"null,"previous":null"#),
            (
                Kind::DeviceEvent,
                EVENT,
                "null",
                r#"null,"event":"stream-started""#,
            ),
            (Kind::DeviceEvent, EVENT, "null", r#"null,"more":1"#),
            (Kind::DeviceEvent, BROKEN, "0", r#""0""#),
            (Kind::DeviceEvent, BROKEN, "0", "4294967296"),
            (Kind::DeviceEvent, BROKEN, r#""circuit":0,"#, ""),
            (Kind::DeviceEvent, BROKEN, "broken", "cleared"),
            (Kind::DeviceEvent, BROKEN, "broken", "bent"),
        ];
        for (kind, good, from, to) in cases {
            Report::parse(kind, good.as_bytes()).unwrap();
            assert!(good.contains(from), "{from} in {good}");
            let body = good.replacen(from, to, 1);
            let parsed = Report::parse(kind, body.as_bytes());
            assert!(parsed.is_err(), "{body}: {parsed:?}");
        }
    }
}
