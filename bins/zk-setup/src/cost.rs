//! `cost`: what a device's readings cost in AWS.

use std::time::SystemTime;

use clap::Args;
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use serde_json::{Value, json};
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Envelope, Heartbeat, Moment, OwnerKey, Report, Sealer,
    StreamId,
};
use zk_sensors::{MilliCelsius, Quality, Reading, Readings};

use crate::Outcome;

#[derive(Clone, Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Cost {
    /// How often each sensor is read in an hour; all of them go into one record
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=360_000))]
    readings_per_hour: u32,

    /// How many sensors the device has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=480))]
    sensors: u16,

    /// How many owners the readings are encrypted for: each makes a record longer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    owners: u8,

    /// Heartbeats in an hour; they are messages like any other
    #[arg(long, value_name = "N", default_value_t = HEARTBEATS, value_parser = clap::value_parser!(u32).range(0..=360_000))]
    heartbeats_per_hour: u32,
}

const HELP: &str = "\
Examples:
  zk-setup cost --readings-per-hour 360 --sensors 4      every 10 s, as by default
  zk-setup cost --readings-per-hour 12 --sensors 1 --json |
    jq .alone.dollarsPerMonth.withResponse";

/// The agent's default is one in five minutes.
const HEARTBEATS: u32 = 12;

/// A price in dollars for a million of its units.
struct Price {
    what: &'static str,
    dollars: f64,
    unit: &'static str,
}

/// List prices, without the free tier.
const PRICES_AS_OF: &str = "2026-11-23";
const REGION: &str = "us-east-1";

const MESSAGING: Price = Price {
    what: "IoT Core messaging",
    dollars: 1.0,
    unit: "5 KB of a message, or part of it; the first 1000 million in a month",
};
const RULE: Price = Price {
    what: "IoT rule, triggered",
    dollars: 0.15,
    unit: "5 KB of a message, or part of it",
};
const ACTION: Price = Price {
    what: "IoT rule, action",
    dollars: 0.15,
    unit: "5 KB of a message, or part of it",
};
const REQUEST: Price = Price {
    what: "Lambda, request",
    dollars: 0.2,
    unit: "messages",
};
const COMPUTE: Price = Price {
    what: "Lambda, arm64",
    dollars: 13.3334,
    unit: "GB and second",
};
const WRITE: Price = Price {
    what: "DynamoDB, write on demand",
    dollars: 0.625,
    unit: "1 KB of an item, or part of it",
};
const PRICES: [&Price; 6] = [&MESSAGING, &RULE, &ACTION, &REQUEST, &COMPUTE, &WRITE];

/// What AWS meters messages by, in bytes.
const METERED: usize = 5 * 1024;
/// What DynamoDB meters writes by, in bytes.
const WRITE_UNIT: usize = 1024;
/// An assumption: what the Lambda has, and how long it takes for a message.
const LAMBDA_GB: f64 = 0.125;
const LAMBDA_SECONDS: f64 = 0.005;
/// As AWS's own calculator counts.
const HOURS_PER_MONTH: f64 = 730.0;

/// A message on its way: published, ruled upon, verified and stored.
#[derive(Clone, Copy)]
struct Message {
    bytes: usize,
    /// Of all its items.
    write_units: usize,
}

/// What something costs, in dollars, by what is paid for.
#[derive(Clone, Copy, Default)]
struct Terms {
    /// The request to publish.
    messaging: f64,
    /// The answer's body: by the price list it is a message, too.
    response: f64,
    rule: f64,
    lambda: f64,
    dynamodb: f64,
}

impl Message {
    fn cost(self) -> Terms {
        let blocks = self.bytes.div_ceil(METERED) as f64;
        let millions = Terms {
            messaging: MESSAGING.dollars * blocks,
            response: MESSAGING.dollars,
            rule: (RULE.dollars + ACTION.dollars) * blocks,
            lambda: REQUEST.dollars + COMPUTE.dollars * LAMBDA_GB * LAMBDA_SECONDS,
            dynamodb: WRITE.dollars * self.write_units as f64,
        };
        millions.times(1e-6)
    }
}

impl Terms {
    fn times(self, factor: f64) -> Self {
        Self {
            messaging: self.messaging * factor,
            response: self.response * factor,
            rule: self.rule * factor,
            lambda: self.lambda * factor,
            dynamodb: self.dynamodb * factor,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            messaging: self.messaging + other.messaging,
            response: self.response + other.response,
            rule: self.rule + other.rule,
            lambda: self.lambda + other.lambda,
            dynamodb: self.dynamodb + other.dynamodb,
        }
    }

    fn without_response(self) -> f64 {
        self.messaging + self.rule + self.lambda + self.dynamodb
    }

    fn with_response(self) -> f64 {
        self.without_response() + self.response
    }

    fn json(self) -> Value {
        json!({
            "messaging": self.messaging,
            "response": self.response,
            "rule": self.rule,
            "lambda": self.lambda,
            "dynamodb": self.dynamodb,
            "withResponse": self.with_response(),
            "withoutResponse": self.without_response(),
        })
    }
}

/// One way in which records travel.
struct Way {
    records: usize,
    message: Message,
    /// Heartbeats included, which travel alone.
    messages_per_month: f64,
    month: Terms,
}

pub(crate) fn run(given: &Cost) -> anyhow::Result<Outcome> {
    let sample = Sample::new(given.owners)?;
    let record = sample.readings(given.sensors)?;
    let heartbeat = message(&[sample.heartbeat(given.sensors)?])?.0;

    let sweeps = f64::from(given.readings_per_hour) * HOURS_PER_MONTH;
    let heartbeats = f64::from(given.heartbeats_per_hour) * HOURS_PER_MONTH;
    let readings = sweeps * f64::from(given.sensors);
    let way = |copies: usize| {
        let (message, records) = message(&vec![record.clone(); copies])?;
        let month = message.cost().times(sweeps / records as f64);
        anyhow::Ok(Way {
            records,
            message,
            messages_per_month: sweeps / records as f64 + heartbeats,
            month: month.plus(heartbeat.cost().times(heartbeats)),
        })
    };
    let (alone, packed) = (&way(1)?, &way(PACKED)?);

    let mut text = vec![
        format!(
            "A record of {} takes {} bytes as a message, {} in the table.",
            count(given.sensors.into(), "reading"),
            alone.message.bytes,
            count(alone.message.write_units, "write unit"),
        ),
        format!(
            "{} readings in a month of {HOURS_PER_MONTH} hours, in {sweeps} records; {heartbeats} \
             heartbeats of {} bytes.",
            readings, heartbeat.bytes
        ),
        String::new(),
    ];
    let row =
        |name: &str, cells: [String; 2]| format!("{name:<34}{:>16}{:>16}", cells[0], cells[1]);
    let dollars = |name: &str, of: &dyn Fn(&Way) -> f64| {
        row(name, [alone, packed].map(|way| format!("{:.4}", of(way))))
    };
    text.push(row(
        "dollars in a month",
        [
            "each alone".to_owned(),
            format!("packed, {}", packed.records),
        ],
    ));
    text.extend([
        row(
            "  messages",
            [alone, packed].map(|way| format!("{:.0}", way.messages_per_month)),
        ),
        dollars("  IoT messaging, the request", &|way| way.month.messaging),
        dollars("  IoT messaging, the answer (?)", &|way| way.month.response),
        dollars("  IoT rule and action", &|way| way.month.rule),
        dollars("  Lambda", &|way| way.month.lambda),
        dollars("  DynamoDB writes", &|way| way.month.dynamodb),
        dollars("  in all, the answer billed", &|way| {
            way.month.with_response()
        }),
        dollars("  in all, the answer free", &|way| {
            way.month.without_response()
        }),
        String::new(),
        "dollars for a million readings".to_owned(),
        dollars("  the answer billed", &|way| {
            way.month.with_response() * 1e6 / readings
        }),
        dollars("  the answer free", &|way| {
            way.month.without_response() * 1e6 / readings
        }),
        String::new(),
        "each alone: while the link is up and the device keeps up, a record is sent at once".into(),
        "packed: after an outage, or under load, as many records as 5 KB hold go in a message"
            .into(),
        String::new(),
        format!("List prices in dollars for a million, {REGION}, {PRICES_AS_OF}, no free tier"),
    ]);
    text.extend(
        PRICES
            .iter()
            .map(|price| format!("  {:<28}{:>8}  {}", price.what, price.dollars, price.unit)),
    );
    text.push(String::new());
    text.extend(
        UNCERTAIN
            .iter()
            .chain(&LEFT_OUT)
            .map(|&line| line.to_owned()),
    );

    let prices = PRICES.iter().map(|price| {
        json!({ "what": price.what, "dollarsPerMillion": price.dollars, "unit": price.unit })
    });
    let object = |way: &Way| {
        json!({
            "recordsPerMessage": way.records,
            "messageBytes": way.message.bytes,
            "writeUnitsPerMessage": way.message.write_units,
            "messagesPerMonth": way.messages_per_month,
            "dollarsPerMonth": way.month.json(),
            "dollarsPerMillionReadings": way.month.times(1e6 / readings).json(),
        })
    };
    Ok(Outcome {
        text: text.join("\n"),
        json: json!({
            "readingsPerMonth": readings,
            "recordsPerMonth": sweeps,
            "heartbeatsPerMonth": heartbeats,
            "heartbeatBytes": heartbeat.bytes,
            "alone": object(alone),
            "packed": object(packed),
            "region": REGION,
            "pricesAsOf": PRICES_AS_OF,
            "prices": prices.collect::<Vec<_>>(),
            "lambda": { "gigabytes": LAMBDA_GB, "secondsPerMessage": LAMBDA_SECONDS },
            "uncertain": UNCERTAIN,
            "leftOut": LEFT_OUT,
        }),
        hints: Vec::new(),
        findings: false,
    })
}

const UNCERTAIN: [&str; 3] = [
    "Uncertain (?): AWS meters an HTTPS answer by its body, and that of a publish has 65 bytes; \
     no bill has been read to see it charged.",
    "Uncertain: that HTTPS connections cost nothing, as the price list names only MQTT's.",
    "Assumed: 5 ms of a Lambda with 128 MB for each message.",
];

const LEFT_OUT: [&str; 1] = [
    "Not in it: storage and its backups, the log, look-ups of devices, reading back, quarantine, \
     retries, taxes.",
];

/// More records than a message of the agent's holds.
const PACKED: usize = 64;

fn count(n: usize, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {what}{s}")
}

/// A message as the agent packs it, and how many of the records are in it.
fn message(records: &[Envelope]) -> anyhow::Result<(Message, usize)> {
    let bytes: Vec<_> = records.iter().map(Envelope::to_bytes).collect();
    let limit = zk_publish::Options::default().batch_bytes;
    let (message, taken) = zk_envelope::pack(&bytes, limit)?;
    let units = |record: &Envelope| item_len(record).div_ceil(WRITE_UNIT);
    Ok((
        Message {
            bytes: message.len(),
            write_units: records[..taken].iter().map(units).sum(),
        },
        taken,
    ))
}

/// The bytes of an item of the table of readings, as DynamoDB counts: names and
/// values, and for a number half a byte a digit and one more.
fn item_len(record: &Envelope) -> usize {
    let header = record.unverified_header();
    // deviceId, timestamp (time, stream, sequence), e, s, r, p
    let device = 8 + header.device.as_str().len();
    let key = 9 + 24 + 1 + 32 + 1 + 20;
    let data = 1 + record.encrypted_data().len();
    let signature = 1 + record.signature().len();
    let received_at = 1 + 7 + 1;
    let principal = 1 + 32;
    device + key + data + signature + received_at + principal
}

/// Makes records as a device does, with keys that nobody keeps.
struct Sample {
    key: SigningKey,
    owners: Vec<zk_envelope::OwnerPublicKey>,
    moment: Moment,
}

impl Sample {
    fn new(owners: u8) -> anyhow::Result<Self> {
        let owner = |_| Ok(OwnerKey::generate()?.public_key().clone());
        Ok(Self {
            key: SigningKey::try_generate()?,
            owners: (0..owners).map(owner).collect::<anyhow::Result<_>>()?,
            moment: Moment {
                boot: BootId([0; 16]),
                since_boot_ms: 0,
                time: SystemTime::now().into(),
                clock: ClockQuality::Synchronised,
            },
        })
    }

    fn readings(&self, sensors: u16) -> anyhow::Result<Envelope> {
        let reading = |sensor: u16| {
            anyhow::Ok(Reading {
                sensor: format!("28-{sensor:012x}").parse()?,
                at: jiff::Timestamp::now(),
                value: Some(MilliCelsius(21_437)),
                quality: Quality::Ok,
            })
        };
        let readings = (1..=sensors).map(reading).collect::<anyhow::Result<_>>()?;
        let body = serde_json::to_vec(&Readings { readings })?;
        self.seal(Content::Data {
            content_type: "application/json",
            body: &body,
        })
    }

    fn heartbeat(&self, sensors: u16) -> anyhow::Result<Envelope> {
        let report = Report::Heartbeat(Heartbeat {
            interval_ms: 300_000,
            waiting: 0,
            waiting_bytes: 0,
            sensors: sensors.into(),
        });
        self.seal(Content::Report(&report))
    }

    fn seal(&self, content: Content<'_>) -> anyhow::Result<Envelope> {
        let device = DeviceId::try_from("pi-01")?;
        let signer = self.key.verifying_key();
        let mut sealer = Sealer::new(device, StreamId([0; 16]), signer, &self.owners)?;
        Ok(sealer.seal(&self.key, &self.moment, 1, content)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::slice;

    use dynoxide::AttributeValue;
    use zk_envelope::{KeyState, TrustedKey};
    use zk_store::{Options, Store, StoreUri};
    use zk_verify::{Context, DeviceRecord};

    use super::*;

    /// What a million records of 600 bytes cost, by a table that was worked out
    /// by hand: in messages of 1, 8 and 80, each record in an item of its own, or
    /// all of a message in one.
    #[test]
    fn the_formula_is_that_of_the_worked_table() {
        for (records, bytes, write_units, expected) in [
            (1, 600, 1, [2.0, 0.300, 0.208, 0.625, 3.13, 1.13]),
            (8, 4_800, 8, [0.25, 0.038, 0.026, 0.625, 0.94, 0.69]),
            (8, 4_800, 5, [0.25, 0.038, 0.026, 0.391, 0.70, 0.45]),
            (80, 48_000, 80, [0.138, 0.038, 0.003, 0.625, 0.80, 0.67]),
            (80, 48_000, 48, [0.138, 0.038, 0.003, 0.375, 0.55, 0.42]),
        ] {
            let message = Message { bytes, write_units };
            let cost = message.cost().times(1e6 / f64::from(records));
            let messaging = cost.messaging + cost.response;
            let found = [
                (messaging, 1e-3),
                (cost.rule, 1e-3),
                (cost.lambda, 1e-3),
                (cost.dynamodb, 1e-3),
                (cost.with_response(), 1e-2),
                (cost.with_response() - messaging, 1e-2),
            ];
            for ((found, unit), expected) in found.into_iter().zip(expected) {
                let off = (found - expected).abs();
                assert!(off < 0.501 * unit, "{records}: {found} for {expected}");
            }
        }
    }

    /// The store's own item, counted by DynamoDB's rules, is as long as is said.
    #[tokio::test]
    async fn an_item_is_as_long_as_the_store_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let uri = StoreUri::File(path.clone());
        let store = Store::create(&uri, Options::default()).await.unwrap();
        let sample = Sample::new(1).unwrap();
        let record = sample.readings(3).unwrap();
        let header = record.unverified_header();
        let context = Context {
            principal: "ab".repeat(32),
            topic: format!("Zymkey/{}", header.device),
            received_at: header.time,
        };
        let registered = DeviceRecord {
            device: header.device.clone(),
            certificate: KeyState::Active,
            keys: vec![TrustedKey {
                key: *sample.key.verifying_key(),
                state: KeyState::Active,
            }],
            registered_at: header.time,
        };
        let principal = &context.principal;
        store.register(principal, &registered).await.unwrap();
        let (bytes, _) = zk_envelope::pack(&[record.to_bytes()], METERED).unwrap();
        store.ingest(&bytes, &context).await.unwrap();
        let stored = store.latest(&header.device).await.unwrap().unwrap();
        store.close().await;

        let text = |text: &str| AttributeValue::S(text.to_owned());
        let device = ("deviceId".to_owned(), text(header.device.as_str()));
        let key = ("timestamp".to_owned(), text(&stored.key));
        let engine = dynoxide::Database::new(path.to_str().unwrap()).unwrap();
        let request = dynoxide::actions::get_item::GetItemRequest {
            table_name: "zk-readings".to_owned(),
            key: [device, key].into(),
            ..Default::default()
        };
        let item = engine.get_item(request).unwrap().item.unwrap();
        let len = |value: &AttributeValue| match value {
            AttributeValue::S(text) => text.len(),
            AttributeValue::B(bytes) => bytes.len(),
            AttributeValue::N(digits) => digits.len().div_ceil(2) + 1,
            other => panic!("{other:?}"),
        };
        let found: usize = item
            .iter()
            .map(|(name, value)| name.len() + len(value))
            .sum();
        assert_eq!(item_len(&record), found);
    }

    #[test]
    fn records_are_measured() {
        let sample = Sample::new(1).unwrap();
        let one = sample.readings(1).unwrap();
        let (alone, taken) = message(slice::from_ref(&one)).unwrap();
        assert_eq!((taken, alone.write_units), (1, 1));
        let (packed, taken) = message(&vec![one; PACKED]).unwrap();
        assert!(taken > 1 && taken < PACKED, "{taken}");
        assert!(packed.bytes <= METERED && packed.write_units == taken);
        // another would not have fitted in
        assert!(packed.bytes + alone.bytes > METERED);

        let (many, _) = message(&[sample.readings(480).unwrap()]).unwrap();
        assert!(many.bytes > 10 * METERED && many.write_units > 10);
        let heartbeat = message(&[sample.heartbeat(1).unwrap()]).unwrap().0;
        assert!(heartbeat.bytes < METERED && heartbeat.write_units == 1);
        let for_two = Sample::new(2).unwrap().readings(1).unwrap();
        let longer = message(&[for_two]).unwrap().0.bytes;
        assert_eq!(longer, alone.bytes + 2 * 121);
    }
}
