//! Messages on the wire: strict to read, packed within a limit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{Device, moment};
use zk_envelope::{
    Content, Envelope, Error, MAX_ENCRYPTED_DATA, MAX_MESSAGE, Message, OwnerKey, pack,
};

fn records(count: usize) -> (Device, OwnerKey, Vec<Vec<u8>>) {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let records = (0..count)
        .map(|_| device.seal(&[b'x'; 107]).to_bytes())
        .collect();
    (device, owner, records)
}

#[test]
fn one_record_is_a_single_message() {
    let (_, _, records) = records(3);
    let (json, taken) = pack(&records[..1], MAX_MESSAGE).unwrap();
    assert_eq!(taken, 1);
    let text = String::from_utf8(json.clone()).unwrap();
    assert!(text.starts_with(
        r#"{"deviceId":"pi-01","timestamp":"2026-11-23T11:20:44.123Z","data":{"encryptedData":"5a4b453101"#
    ), "{text}");
    let message = Message::parse(&json).unwrap();
    assert_eq!(message.device_id, "pi-01");
    assert_eq!(
        message.entries[0].envelope().unwrap().to_bytes(),
        records[0]
    );
}

#[test]
fn a_batch_fills_the_limit_and_not_a_byte_more() {
    let (_, _, records) = records(12);
    let (all, taken) = pack(&records, MAX_MESSAGE).unwrap();
    assert_eq!(taken, 12);
    for limit in all.len() - 2000..=all.len() {
        let (json, taken) = pack(&records, limit).unwrap();
        assert!(json.len() <= limit);
        let message = Message::parse(&json).unwrap();
        assert_eq!(message.entries.len(), taken);
        for (entry, record) in message.entries.iter().zip(&records) {
            assert_eq!(entry.envelope().unwrap().to_bytes(), *record);
        }
        // One more would not have fitted.
        if taken < records.len() {
            let (more, _) = pack(&records[..=taken], MAX_MESSAGE).unwrap();
            assert!(
                more.len() > limit,
                "{taken} of {limit} bytes, {} would fit",
                more.len()
            );
        }
    }
    // A record larger than the limit goes alone: it must get out somehow.
    assert_eq!(pack(&records, 10).unwrap().1, 1);
}

#[test]
fn the_largest_record_makes_a_message_that_is_not_too_large() {
    let owners: Vec<OwnerKey> = (0..8).map(|_| OwnerKey::generate().unwrap()).collect();
    let name = "d".repeat(64);
    let mut device = Device::new(&name, &owners.iter().collect::<Vec<_>>());
    let frame = 149 + 64 + 8 * 121;
    let body = vec![0; (MAX_ENCRYPTED_DATA - frame) / 16 * 16 - 3];
    let content = Content::Data {
        content_type: "a",
        body: &body,
    };
    let envelope = device.seal_at(&moment(1), content);
    assert!(envelope.encrypted_data().len() > MAX_ENCRYPTED_DATA - 16);
    let (json, _) = pack(&[envelope.to_bytes()], 0).unwrap();
    assert!(json.len() <= MAX_MESSAGE, "{}", json.len());
    Message::parse(&json).unwrap();
}

#[test]
fn a_batch_ends_before_another_device_and_before_a_damaged_record() {
    let (_, _, mut of_one) = records(2);
    let owner = OwnerKey::generate().unwrap();
    of_one.push(Device::new("pi-02", &[&owner]).seal(b"{}").to_bytes());
    assert_eq!(pack(&of_one, MAX_MESSAGE).unwrap().1, 2);
    of_one[1][0] = 0;
    assert_eq!(pack(&of_one, MAX_MESSAGE).unwrap().1, 1);
    of_one[0][0] = 0;
    assert!(matches!(
        pack(&of_one, MAX_MESSAGE),
        Err(Error::UnsupportedVersion { .. })
    ));
    assert!(matches!(
        pack(&[] as &[Vec<u8>], MAX_MESSAGE),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn order_and_white_space_are_free() {
    let (_, _, records) = records(1);
    let envelope = Envelope::from_bytes(&records[0]).unwrap();
    let json = format!(
        " {{ \"data\" : {{ \"signature\": \"{}\",\n\"encryptedData\":\"{}\" }},\t\"timestamp\":\"x\", \"deviceId\":\"y\" }} \n",
        hex(envelope.signature()),
        hex(envelope.encrypted_data()),
    );
    let message = Message::parse(json.as_bytes()).unwrap();
    assert_eq!(
        (
            message.device_id.as_str(),
            message.entries[0].timestamp.as_str()
        ),
        ("y", "x")
    );
}

#[test]
fn every_other_form_is_refused() {
    let (_, _, records) = records(1);
    let (good, _) = pack(&records, MAX_MESSAGE).unwrap();
    let good = String::from_utf8(good).unwrap();
    Message::parse(good.as_bytes()).unwrap();
    let entry = good
        .strip_prefix(r#"{"deviceId":"pi-01","#)
        .unwrap()
        .strip_suffix('}')
        .unwrap();
    let data = entry.split_once(r#""data":"#).unwrap().1;
    let in_batch = format!(r#"{{"deviceId":"pi-01","batch":[{{{entry}}}]}}"#);
    Message::parse(in_batch.as_bytes()).unwrap();
    let longest = good.replace(r#""pi-01""#, &format!(r#""{}""#, "p".repeat(64)));
    Message::parse(longest.as_bytes()).unwrap();
    let hex_digits = data.split('"').nth(3).unwrap();
    let bad = [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        format!("{good}x"),
        format!("{good}{good}"),
        good.replacen('{', r#"{"extra":1,"#, 1),
        good.replacen('{', r#"{"deviceId":"pi-01","#, 1),
        good.replace(r#""data":{"#, r#""data":{"extra":1,"#),
        good.replace(
            r#""data":{"#,
            &format!(r#""data":{{"encryptedData":"{hex_digits}","#),
        ),
        good.replace(r#"{"deviceId":"pi-01","#, "{"),
        good.replace(r#""pi-01""#, "null"),
        good.replace(r#""pi-01""#, "1"),
        good.replace(r#""timestamp":"2026-11-23T11:20:44.123Z","#, ""),
        good.replace(r#""2026-11-23T11:20:44.123Z""#, "null"),
        good.replace("5a4b4531", "5A4B4531"),
        good.replace("5a4b4531", "5a4b453"),
        good.replace("5a4b4531", " 5a4b4531"),
        good.replacen(r#""signature":""#, r#""signature":"00"#, 1),
        // serde takes an array for a struct if it is not stopped
        format!(r#"["pi-01","2026-11-23T11:20:44.123Z",{data}]"#),
        format!(
            r#"{{"deviceId":"pi-01","timestamp":"x","data":["{hex_digits}","{}"]}}"#,
            "0".repeat(128)
        ),
        format!(r#"{{"deviceId":"pi-01","batch":[["x",{data}]]}}"#),
        // one byte more than any signed device id, and any time, has
        good.replace(r#""pi-01""#, &format!(r#""{}""#, "p".repeat(65))),
        good.replace(r#"44.123Z""#, &format!(r#"44.123Z{}""#, " ".repeat(41))),
        in_batch.replace(r#"44.123Z""#, &format!(r#"44.123Z{}""#, " ".repeat(41))),
        r#"{"deviceId":"pi-01","batch":[]}"#.into(),
        r#"{"deviceId":"pi-01","batch":null}"#.into(),
        r#"{"deviceId":"pi-01","batch":{}}"#.into(),
        format!(r#"{{"deviceId":"pi-01",{entry},"batch":[{{{entry}}}]}}"#),
        format!(r#"{{"deviceId":"pi-01",{entry},"batch":null}}"#),
        in_batch.replace("[{", r#"[{"deviceId":"pi-01","#),
        in_batch.replace("[{", "[null,{"),
    ];
    for json in bad {
        let parsed = Message::parse(json.as_bytes());
        assert!(
            matches!(parsed, Err(Error::Json(_) | Error::Malformed { .. })),
            "accepted: {}",
            &json[..json.len().min(200)]
        );
    }
    assert!(matches!(Message::parse(b"\xff\xfe"), Err(Error::Json(_))));
    let large = format!("{good}{}", " ".repeat(MAX_MESSAGE));
    assert!(matches!(
        Message::parse(large.as_bytes()),
        Err(Error::TooLarge { .. })
    ));
    let deep = "[".repeat(100_000);
    assert!(matches!(
        Message::parse(deep.as_bytes()),
        Err(Error::Json(_))
    ));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
