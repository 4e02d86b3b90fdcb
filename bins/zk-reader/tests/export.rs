//! CSV: what is written is what a reader of RFC 4180 reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;
use support::{Device, noon};
use zk_envelope::{Envelope, OwnerKey};
use zk_reader::{Csv, Delivery, Record, State};

static OWNER: LazyLock<OwnerKey> = LazyLock::new(|| OwnerKey::generate().unwrap());

fn csv(records: &[Record]) -> String {
    let mut out = Vec::new();
    let mut csv = Csv::new(&mut out).unwrap();
    for record in records {
        csv.record(record).unwrap();
    }
    csv.finish().unwrap();
    String::from_utf8(out).unwrap()
}

/// Each row by the names of the columns.
fn read(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.deserialize().map(Result::unwrap).collect()
}

fn open(device: &mut Device, time: u64, body: &serde_json::Value) -> Record {
    let body = body.to_string();
    let sealed = device.text(noon(time), "application/json", body.as_bytes());
    let (data, signature) = sealed.split_at(sealed.len() - 64);
    let envelope = Envelope::from_parts(data.to_vec(), signature.try_into().unwrap()).unwrap();
    let record = envelope.verify(device.key.verifying_key()).unwrap();
    let content = record.open(&OWNER).unwrap();
    Record {
        device: device.id.clone(),
        key: "key".into(),
        delivery: Some(Delivery {
            received_at: noon(time + 5),
            principal: device.principal.clone(),
            again: 0,
        }),
        state: State::Open { record, content },
        alarms: Vec::new(),
        dated: None,
    }
}

fn damaged(device: &str, key: &str, detail: &str) -> Record {
    Record {
        device: device.parse().unwrap(),
        key: key.into(),
        delivery: None,
        state: State::Damaged {
            detail: detail.into(),
        },
        alarms: Vec::new(),
        dated: None,
    }
}

#[test]
fn a_row_for_each_reading() {
    let mut device = Device::new("pi-01", std::slice::from_ref(OWNER.public_key()));
    let body = json!({"readings": [
        {"sensor": "28-0000000a0001", "at": noon(1).to_string(), "celsius": -0.062, "quality": "ok"},
        {"sensor": "28-0000000a0002", "at": noon(2).to_string(), "celsius": null, "quality": "empty"},
    ]});
    let records = [
        open(&mut device, 3, &body),
        open(&mut device, 4, &json!({"not": "readings"})),
        damaged("-1", "k,\"1\"\r\n", "=cmd|' /C calc'!A0"),
    ];
    let stream = "07".repeat(16);
    assert_eq!(
        csv(&records),
        format!(
            "time,device,stream,sequence,sensor,celsius,quality,clock,signed_time,received_at,state,detail,alarms,dated,dated_error_ms\r\n\
             2026-11-23T12:00:00.001Z,pi-01,{stream},1,28-0000000a0001,-0.062,ok,synchronised,\
             2026-11-23T12:00:00.003Z,2026-11-23T12:00:00.008Z,open,,,,\r\n\
             2026-11-23T12:00:00.002Z,pi-01,{stream},1,28-0000000a0002,,empty,synchronised,\
             2026-11-23T12:00:00.003Z,2026-11-23T12:00:00.008Z,open,,,,\r\n\
             ,'-1,,,,,,,,,damaged,\"'=cmd|' /C calc'!A0 at k,\"\"1\"\"\\r\\n\",,,\r\n"
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn readings_come_back_as_they_were(
        values in prop::collection::vec((0..0xffff_ffff_u64, -55_000..125_000_i32, 0..86_400_000_u64), 0..20),
        name in "[A-Za-z0-9_-]{1,64}",
    ) {
        let mut device = Device::new(&name, std::slice::from_ref(OWNER.public_key()));
        let readings: Vec<_> = values.iter().map(|(serial, milli, time)| json!({
            "sensor": format!("28-{serial:012x}"),
            "at": noon(*time).to_string(),
            "celsius": f64::from(*milli) / 1000.0,
            "quality": "ok",
        })).collect();
        let record = open(&mut device, 0, &json!({"readings": readings}));
        let rows = read(&csv(&[record]));
        prop_assert_eq!(rows.len(), values.len());
        for (row, (serial, milli, time)) in rows.iter().zip(&values) {
            prop_assert_eq!(&row["sensor"], &format!("28-{serial:012x}"));
            prop_assert_eq!(row["celsius"].parse::<f64>().unwrap(), f64::from(*milli) / 1000.0);
            prop_assert_eq!(&row["time"], &noon(*time).to_string());
            let shown = &row["device"];
            prop_assert_eq!(shown.strip_prefix('\'').unwrap_or(shown), name.as_str());
            prop_assert!(!shown.starts_with('-'));
        }
    }

    #[test]
    fn texts_come_back_and_are_no_formulas(detail in any::<String>(), key in any::<String>()) {
        let text = csv(&[damaged("pi-01", &key, &detail)]);
        prop_assert!(text.chars().all(|c| !c.is_control() || c == '\r' || c == '\n'));
        let rows = read(&text);
        prop_assert_eq!(rows.len(), 1);
        let shown = &rows[0]["detail"];
        prop_assert!(!shown.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠', '\t', '\r']));
        let escaped: String = format!("{detail} at {key}").chars().map(|c| match c {
            '"' | '\'' | '\\' => c.to_string(),
            _ => c.escape_debug().to_string(),
        }).collect();
        prop_assert_eq!(shown.strip_prefix('\'').unwrap_or(shown), escaped.as_str());
    }
}
