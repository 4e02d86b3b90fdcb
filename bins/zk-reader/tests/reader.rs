//! The reader in process, over a store in a file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use serde_json::{Value, json};
use support::{PASSPHRASE, World, all, at, noon, tamper};
use zk_envelope::{
    ClockBefore, ClockQuality, KeyState, LossReason, LossReceipt, OwnerKey, PreviousStream, Report,
    SequenceRange, StreamId, TimeAnchor,
};
use zk_reader::{Difference, Record, State, Table, Wanted, all_times, describe};
use zk_verify::{AlarmKind, Reason};

fn refused(record: &Record) -> Reason {
    match &record.state {
        State::Refused { reason, .. } => *reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn json(record: &Record) -> Value {
    let line = record.to_json();
    assert!(
        line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{line}"
    );
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn records_are_verified_opened_and_shown() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let records = [
        device.started(noon(0), None),
        device.reading(noon(1), 21_437),
        device.heartbeat(noon(2)),
        device.text(noon(3), "text/plain", b"the cellar door is open"),
    ];
    for record in &records {
        world.deliver(&device, record, noon(5)).await;
    }
    world.deliver(&device, &records[1], noon(6)).await;

    let reader = world.reader();
    let found = all(reader.records(&device.id, all_times())).await;
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(Record::is_fine));
    let readings = found[1].readings().unwrap().readings;
    assert_eq!(readings[0].value.unwrap().to_string(), "21.437");
    let delivery = found[1].delivery.as_ref().unwrap();
    assert_eq!((delivery.received_at, delivery.again), (noon(5), 1));
    assert_eq!(delivery.principal, device.principal);

    let table = Table::new([&device.id]);
    let rows: Vec<_> = found.iter().flat_map(|record| table.rows(record)).collect();
    assert_eq!(
        format!("{}\n{}", table.heading(), rows.join("\n")),
        "\
TIME                      DEVICE   NUMBER  KIND          SENSOR                  VALUE  QUALITY
2026-11-23T12:00:00.000Z  pi-01         1  device-event  the device's first stream begins
2026-11-23T12:00:00.001Z  pi-01         2  data          28-0000000a0001     21.437 °C  ok
2026-11-23T12:00:00.001Z  pi-01         2  data          28-0000000a0002             -  empty
2026-11-23T12:00:00.002Z  pi-01         3  heartbeat     every 5 min 0 s; 4 records waiting (1612 bytes), 2 sensors
2026-11-23T12:00:00.003Z  pi-01         4  data          text/plain, 23 bytes: the cellar door is open"
    );

    let shown = json(&found[1]);
    assert_eq!(shown["state"], "open");
    assert_eq!(shown["header"]["sequence"], 2);
    assert_eq!(shown["again"], 1);
    assert_eq!(shown["json"]["readings"][0]["celsius"], 21.437);
    assert_eq!(json(&found[3])["text"], "the cellar door is open");

    let page = reader.page(&found[1]);
    for part in [
        "verified and opened",
        "data (the application's own)",
        "synchronised: kept by a time source",
        "81.000 s",
        "(active in the trust file)",
        &format!("{} (you)", world.owner.id()),
        "(4 ms after its time)",
        "2 times, stored once",
        "28-0000000a0001     21.437 °C  ok",
    ] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
}

#[tokio::test]
async fn the_trust_file_alone_decides() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 1).await;

    // The store's registry knows the key all the same.
    world
        .trust
        .devices
        .get_mut(&device.id)
        .unwrap()
        .keys
        .clear();
    let reader = world.reader();
    let found = all(reader.records(&device.id, all_times())).await;
    assert_eq!(refused(&found[0]), Reason::SignerMismatch);
    assert!(found[0].header().is_none() && found[0].readings().is_none());
    let shown = json(&found[0]);
    assert_eq!(shown["reason"], "signer-mismatch");
    assert_eq!(shown["claimed"]["sequence"], 1);
    assert!(shown.get("header").is_none() && shown.get("json").is_none());
    let rows = Table::new([&device.id]).rows(&found[0]);
    assert_eq!(rows.len(), 1);
    assert!(
        rows[0].contains("REFUSED       signer-mismatch: "),
        "{rows:?}"
    );
    assert!(
        !reader
            .audit(&device.id, all_times())
            .await
            .unwrap()
            .is_clean()
    );

    // The key is another device's.
    world.trust.devices.clear();
    let other = zk_envelope::TrustedDevice {
        owners: [world.owner.id()].into(),
        keys: device.record().keys,
    };
    world.trust.devices.insert("pi-02".parse().unwrap(), other);
    let found = all(world.reader().records(&device.id, all_times())).await;
    assert_eq!(refused(&found[0]), Reason::UnknownDevice);
}

#[tokio::test]
async fn what_was_changed_in_the_store_shows() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 5).await;
    let reader = world.reader();
    let keys: Vec<_> = all(reader.records(&device.id, all_times())).await;
    let keys: Vec<_> = keys.into_iter().map(|record| record.key).collect();

    let dir = world.dir.path();
    // One bit of the tag.
    tamper(dir, "pi-01", &keys[0], |item| {
        let mut data = item["e"]["B"].as_str().unwrap().to_owned();
        let place = data.len() - 10;
        let other = if &data[place..=place] == "A" {
            "B"
        } else {
            "A"
        };
        data.replace_range(place..=place, other);
        item["e"]["B"] = data.into();
    });
    // Another record's bytes under this key.
    tamper(dir, "pi-01", &keys[1], |item| {
        item["timestamp"] = json!({"S": keys[2]});
    });
    tamper(dir, "pi-01", &keys[3], |item| {
        item["s"] = json!({"S": "\u{1b}[2Jno signature"});
    });

    let found = all(reader.records(&device.id, all_times())).await;
    assert_eq!(found.len(), 5);
    assert_eq!(refused(&found[0]), Reason::BadSignature);
    assert!(found[1].is_fine());
    assert!(matches!(found[2].state, State::Damaged { .. }));
    assert!(matches!(found[3].state, State::Damaged { .. }));
    assert!(found[3].delivery.is_none());
    assert!(found[4].is_fine());
    assert_eq!(json(&found[3])["state"], "damaged");

    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    assert!(!findings.is_clean());
    let words = describe(&findings, noon(0));
    assert!(words.contains("DAMAGED"), "{words}");
    assert!(words.contains("MISSING: 3 to 4 (2 records)"), "{words}");
}

#[tokio::test]
async fn a_forged_signature_is_refused() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 2).await;
    let reader = world.reader();
    let keys = all(reader.records(&device.id, all_times())).await;
    let mut other = Value::Null;
    let dir = world.dir.path();
    tamper(dir, "pi-01", &keys[1].key, |item| other = item["s"].clone());
    tamper(dir, "pi-01", &keys[0].key, |item| item["s"] = other);

    let found = all(reader.records(&device.id, all_times())).await;
    assert_eq!(refused(&found[0]), Reason::BadSignature);
    assert!(found[1].is_fine());
    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    assert!(matches!(
        findings.alarms[0].kind,
        AlarmKind::Refused {
            reason: Reason::BadSignature,
            ..
        }
    ));
}

#[tokio::test]
async fn a_revoked_key_counts_for_what_came_before() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 2).await;
    let revoked = KeyState::Revoked { at: noon(1000) };
    world.trust.devices.get_mut(&device.id).unwrap().keys[0].state = revoked;
    let found = all(world.reader().records(&device.id, all_times())).await;
    assert!(found[0].is_fine());
    assert_eq!(refused(&found[1]), Reason::RevokedDevice);
}

#[tokio::test]
async fn other_recipients_are_alarms() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let stranger = OwnerKey::generate().unwrap();
    let stranger = stranger.public_key();

    device.reseal(&[world.owner.clone(), stranger.clone()], device.stream);
    let record = device.reading(noon(1), 21_437);
    world.deliver(&device, &record, noon(1)).await;
    device.reseal(std::slice::from_ref(stranger), device.stream);
    let record = device.reading(noon(2), 21_437);
    world.deliver(&device, &record, noon(2)).await;

    let reader = world.reader();
    let found = all(reader.records(&device.id, all_times())).await;
    assert_eq!(
        found[0].alarms,
        [AlarmKind::UnexpectedRecipient(stranger.id())]
    );
    assert!(found[0].readings().is_some() && !found[0].is_fine());
    let rows = Table::new([&device.id]).rows(&found[0]);
    assert!(
        rows.last()
            .unwrap()
            .contains(&format!("ALARM: encrypted also for {}", stranger.id()))
    );
    assert!(
        reader
            .page(&found[0])
            .contains("NOT an owner in the trust file")
    );

    assert!(matches!(found[1].state, State::Sealed { .. }));
    assert_eq!(
        found[1].alarms,
        [
            AlarmKind::UnexpectedRecipient(stranger.id()),
            AlarmKind::OwnerLeftOut(world.owner.id())
        ]
    );
    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    assert_eq!(findings.alarms.len(), 2);
    assert_eq!(findings.damaged.len(), 1);
}

#[tokio::test]
async fn the_newest_and_single_records_are_found() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 7).await;
    let reader = world.reader();

    let numbers = async |count, times| {
        let records = reader.newest(&device.id, times, count).await.unwrap();
        let numbers = all(records).await;
        numbers
            .iter()
            .map(|record| record.header().unwrap().sequence)
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers(3, all_times()).await, [5, 6, 7]);
    assert_eq!(numbers(100, all_times()).await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(numbers(2, noon(1000)..=noon(4000)).await, [4, 5]);
    assert!(numbers(2, noon(50_000)..=noon(60_000)).await.is_empty());

    let found = reader
        .find(&device.id, all_times(), &Wanted::Sequence(4))
        .await
        .unwrap();
    assert_eq!(found.len(), 1);
    let by_key = reader
        .find(&device.id, all_times(), &Wanted::Key(found[0].key.clone()))
        .await
        .unwrap();
    assert_eq!(by_key[0].header(), found[0].header());
    for wanted in [Wanted::Sequence(8), Wanted::Key("nothing".into())] {
        let found = reader.find(&device.id, all_times(), &wanted).await;
        assert!(found.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_audit_of_everything() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let reader = world.reader();
    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    assert_eq!(describe(&findings, noon(0)), "pi-01: nothing heard\n");

    let started = device.started(noon(0), None);
    world.deliver(&device, &started, noon(0)).await;
    world.fill(&mut device, 4).await;
    let beat = device.heartbeat(noon(6000));
    world.deliver(&device, &beat, noon(6000)).await;
    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    assert!(findings.is_clean());
    assert_eq!(
        describe(&findings, noon(66_000)),
        "\
pi-01: complete up to 6, last heard at 2026-11-23T12:00:06.000Z (1 min 0 s ago)
  stream 07070707070707070707070707070707: 6 records, 1 to 6, the device's first
  a heartbeat every 5 min 0 s, the last one 1 min 0 s ago
"
    );

    // 7 is lost without, 8 to 9 with a receipt.
    device.sequence = 9;
    let receipt = Report::LossReceipt(LossReceipt {
        reason: LossReason::Dropped,
        records: 2,
        range: Some(SequenceRange {
            stream: device.stream,
            first: 8,
            last: 9,
        }),
        noticed_at: noon(7000),
    });
    let record = device.report(noon(10_000), &receipt);
    world.deliver(&device, &record, noon(10_000)).await;
    let anchor = Report::TimeAnchor(TimeAnchor {
        before: Some(ClockBefore {
            time: at("1970-01-01T00:01:02.345Z"),
            clock: ClockQuality::Unknown,
        }),
        error_ms: Some(16),
    });
    let record = device.report(noon(11_000), &anchor);
    world.deliver(&device, &record, noon(11_000)).await;
    let previous = PreviousStream {
        stream: device.stream,
        last: 11,
    };
    device.reseal(std::slice::from_ref(&world.owner), StreamId([8; 16]));
    device.sequence = 0;
    let record = device.started(noon(12_000), Some(previous));
    world.deliver(&device, &record, noon(12_000)).await;

    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    assert!(!findings.is_clean());
    assert_eq!(
        describe(&findings, noon(12_500)),
        "\
pi-01: 1 missing; last heard at 2026-11-23T12:00:12.000Z (500 ms ago)
  stream 07070707070707070707070707070707: 8 records, 1 to 11, the device's first
    MISSING: 7
    stated as lost: 8 to 9 (2 records), dropped: the spool was full
  stream 08080808080808080808080808080808: 1 record, 1 to 1, after 07070707070707070707070707070707 which ended at 11
  clock set to 2026-11-23T12:00:11.000Z at number 11, to within 16 ms; before, it said 1970-01-01T00:01:02.345Z (unknown)
  a heartbeat every 5 min 0 s, the last one 6.500 s ago
"
    );
    let line = zk_reader::findings_json(&findings, &[]);
    let shown: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(shown["clean"], false);
    assert_eq!(
        shown["streams"][0]["missing"],
        json!([
            {"first": 7, "last": 7, "receipt": null},
            {"first": 8, "last": 9, "receipt": "dropped"},
        ])
    );
    assert_eq!(shown["streams"][1]["previous"]["last"], 11);

    // 6 was put aside by the device, and sent again by hand.
    let receipt = Report::LossReceipt(LossReceipt {
        reason: LossReason::Refused,
        records: 1,
        range: Some(SequenceRange {
            stream: previous.stream,
            first: 6,
            last: 6,
        }),
        noticed_at: noon(12_100),
    });
    let record = device.report(noon(12_200), &receipt);
    world.deliver(&device, &record, noon(12_200)).await;
    let findings = reader.audit(&device.id, all_times()).await.unwrap();
    let text = describe(&findings, noon(12_500));
    let told = "    arrived after all, though stated as lost: 6\n";
    assert!(text.contains(told), "{text}");
    assert!(text.starts_with("pi-01: 1 missing;"), "{text}");
    let shown: Value = serde_json::from_str(&zk_reader::findings_json(&findings, &[])).unwrap();
    let arrived = &shown["streams"][0]["arrived"];
    assert_eq!(arrived, &json!([{"first": 6, "last": 6}]));
}

#[tokio::test]
async fn an_audit_tells_what_is_not_known() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let started = device.started(noon(0), None);
    world.deliver(&device, &started, noon(0)).await;
    world.fill(&mut device, 2).await;
    // Its storage could not be read from 3 on, and nobody knows how much was there.
    let receipt = Report::LossReceipt(LossReceipt {
        reason: LossReason::Damaged,
        records: 0,
        range: Some(SequenceRange {
            stream: device.stream,
            first: 4,
            last: 4,
        }),
        noticed_at: noon(7000),
    });
    // Of the next stream the first record is not there.
    device.reseal(std::slice::from_ref(&world.owner), StreamId([8; 16]));
    device.sequence = 1;
    let record = device.report(noon(10_000), &receipt);
    world.deliver(&device, &record, noon(10_000)).await;

    let findings = world.reader().audit(&device.id, all_times()).await.unwrap();
    assert!(!findings.is_clean());
    let words = describe(&findings, noon(10_500));
    let first = words.lines().next().unwrap();
    assert_eq!(
        first,
        "pi-01: 1 missing, 1 stream with a loss of unknown extent, 1 stream of unknown beginning; \
         last heard at 2026-11-23T12:00:10.000Z (500 ms ago)"
    );
    for line in [
        "    LOST: from 4 on the device's storage could not be read; how much was there is not known\n",
        "  UNLINKED: the record that tells what stream 08080808080808080808080808080808 came after is \
         not there, so where the streams before it ended is not known\n",
        "    MISSING: 1\n",
    ] {
        assert!(words.contains(line), "{line:?} is not in\n{words}");
    }
    let shown: Value = serde_json::from_str(&zk_reader::findings_json(&findings, &[])).unwrap();
    assert_eq!(shown["clean"], false);
    assert_eq!(shown["unlinked"], json!(["08".repeat(16)]));
    assert_eq!(shown["streams"][0]["doubtFrom"], 4);
    assert_eq!(shown["streams"][1]["doubtFrom"], Value::Null);
    assert_eq!(shown["withoutPredecessor"], json!(["07".repeat(16)]));
}

#[tokio::test]
async fn several_first_streams_are_noted_and_no_finding() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    for stream in [7, 8] {
        device.reseal(std::slice::from_ref(&world.owner), StreamId([stream; 16]));
        device.sequence = 0;
        let started = device.started(noon(0), None);
        world.deliver(&device, &started, noon(0)).await;
        let findings = world.reader().audit(&device.id, all_times()).await.unwrap();
        assert!(findings.is_clean());
        let words = describe(&findings, noon(0));
        let noted = words.contains("  note: 2 streams without a predecessor: ");
        assert_eq!(noted, stream == 8, "{words}");
    }
    let findings = world.reader().audit(&device.id, all_times()).await.unwrap();
    let shown: Value = serde_json::from_str(&zk_reader::findings_json(&findings, &[])).unwrap();
    assert_eq!(shown["clean"], true);
    assert_eq!(
        shown["withoutPredecessor"],
        json!(["07".repeat(16), "08".repeat(16)])
    );
}

#[tokio::test]
async fn tables_fit_the_terminal() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let records = [
        device.started(noon(0), None),
        device.reading(noon(1), 21_437),
        device.text(noon(2), "text/plain", "grüße ".repeat(20).as_bytes()),
    ];
    for record in &records {
        world.deliver(&device, record, noon(5)).await;
    }
    let found = all(world.reader().records(&device.id, all_times())).await;
    let table = Table::new([&device.id]).fit(79);
    let rows: Vec<_> = found.iter().flat_map(|record| table.rows(record)).collect();
    assert_eq!(
        format!("{}\n{}", table.heading(), rows.join("\n")),
        "\
TIME                      DEVICE NUMBER KIND SENSOR               VALUE QUALITY
2026-11-23T12:00:00.000Z  pi-01       1 device-event the device's first stream…
2026-11-23T12:00:00.001Z  pi-01       2 data 28-0000000a0001  21.437 °C ok
2026-11-23T12:00:00.001Z  pi-01       2 data 28-0000000a0002          - empty
2026-11-23T12:00:00.002Z  pi-01       3 data text/plain, 160 bytes: grüße grüß…"
    );
    let wide = Table::new([&device.id]);
    for columns in 0..200 {
        let fit = wide.fit(columns);
        for record in &found {
            let rows = fit.rows(record);
            if columns >= 101 {
                assert_eq!(rows, wide.rows(record));
            } else {
                assert!(rows.iter().all(|row| row.chars().count() <= columns.max(1)));
            }
        }
    }
}

#[tokio::test]
async fn a_wrong_clock_makes_no_gap() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    world.fill(&mut device, 3).await;
    // 4 is of 1970, 5 is missing, 6 says so, but only a day later.
    device.clock = ClockQuality::Unknown;
    let record = device.reading(at("1970-01-01T00:00:10.000Z"), 20_000);
    world.deliver(&device, &record, noon(4000)).await;
    device.clock = ClockQuality::Synchronised;
    device.sequence = 5;
    world.fill(&mut device, 2).await;
    let range = SequenceRange {
        stream: device.stream,
        first: 5,
        last: 5,
    };
    let receipt = Report::LossReceipt(LossReceipt {
        reason: LossReason::Damaged,
        records: 1,
        range: Some(range),
        noticed_at: noon(9000),
    });

    let reader = world.reader();
    let times = noon(1000)..=noon(9000);
    let findings = reader.audit(&device.id, times.clone()).await.unwrap();
    let gap = findings.streams[0].missing[0];
    assert_eq!((gap.first, gap.last, gap.receipt), (5, 5, None));
    assert_eq!(findings.streams[0].seen, Some(2..=7));

    let record = device.report(noon(86_400_000), &receipt);
    world.deliver(&device, &record, noon(86_400_000)).await;
    let findings = reader.audit(&device.id, times).await.unwrap();
    assert!(findings.is_clean(), "{findings:?}");
    let words = describe(&findings, noon(9000));
    let head = "pi-01: complete from 2 to 7 but for 1 that the device states as lost, last heard";
    assert!(words.starts_with(head), "{words}");
    // Without the number 4 in that time there is nothing to complete.
    let findings = reader
        .audit(&device.id, noon(0)..=noon(2000))
        .await
        .unwrap();
    assert_eq!(findings.streams[0].records, 3);
}

#[tokio::test]
async fn differences_between_registry_and_trust_file_are_told() {
    let mut world = World::new().await;
    let device = world.device("pi-01").await;
    let stranger = support::Device::new("pi-99", std::slice::from_ref(&world.owner));
    assert_eq!(world.reader().registry().await.unwrap().differences, []);

    world
        .store
        .register(&stranger.principal, &stranger.record())
        .await
        .unwrap();
    let change = |record: &mut zk_verify::DeviceRecord| {
        record.keys[0].state = KeyState::Revoked { at: noon(0) };
        record.keys.extend(stranger.record().keys);
    };
    world
        .store
        .update_device(&device.principal, change)
        .await
        .unwrap();
    let absent = support::Device::new("pi-02", std::slice::from_ref(&world.owner));
    let trusted = zk_envelope::TrustedDevice {
        owners: Default::default(),
        keys: absent.record().keys,
    };
    world.trust.devices.insert(absent.id.clone(), trusted);

    let registry = world.reader().registry().await.unwrap();
    let names: Vec<_> = registry.devices.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["pi-01", "pi-02", "pi-99"]);
    let found = &registry.differences;
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(
        found.iter().any(
            |d| matches!(d, Difference::KeyState { device, .. } if device.as_str() == "pi-01")
        )
    );
    assert!(
        found.iter().any(
            |d| matches!(d, Difference::UnknownKey { device, .. } if device.as_str() == "pi-01")
        )
    );
    assert!(found.iter().any(
        |d| matches!(d, Difference::NotRegistered { device, .. } if device.as_str() == "pi-02")
    ));
    assert!(found.iter().any(
        |d| matches!(d, Difference::UnknownDevice { device, .. } if device.as_str() == "pi-99")
    ));
}

#[tokio::test]
async fn nothing_that_others_chose_reaches_the_terminal_as_it_is() {
    let mut world = World::new().await;
    let mut device = world.device("pi-01").await;
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\r\nzk-reader: all is well \u{202e}live";
    let bodies: [(&str, &[u8]); 3] = [
        ("text/plain", evil.as_bytes()),
        (
            "application/json",
            &serde_json::to_vec(&json!({ "note": evil })).unwrap(),
        ),
        ("application/octet-stream", b"\x1b[31m\xff\xfe"),
    ];
    for (content_type, body) in bodies {
        let record = device.text(noon(device.sequence), content_type, body);
        world.deliver(&device, &record, noon(0)).await;
    }
    let reader = world.reader();
    let table = Table::new([&device.id]);
    for record in all(reader.records(&device.id, all_times())).await {
        assert!(record.is_fine());
        let rows = table.rows(&record);
        assert_eq!(rows.len(), 1);
        let page = reader.page(&record);
        let lines = rows.iter().map(String::as_str).chain(page.lines());
        for line in lines {
            assert!(!line.starts_with("zk-reader"), "{line:?}");
            let harmless = |c: char| !c.is_control() && c != '\u{202e}';
            assert!(line.chars().all(harmless), "{line:?}");
        }
        json(&record);
    }
}

#[tokio::test]
async fn keys_are_made_with_a_backup_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let out = dir.path().join("owner.pem");
    let keygen = |out: &std::path::Path, backup: Option<&std::path::Path>, passphrase: &str| {
        zk_reader::keygen(out, backup, passphrase)
    };

    let short = keygen(&out, None, "seven77");
    assert!(matches!(
        short,
        Err(zk_reader::Error::PassphraseTooShort { .. })
    ));
    let beside = dir.path().join("backup.pem");
    let beside = keygen(&out, Some(&beside), PASSPHRASE);
    assert!(matches!(
        beside,
        Err(zk_reader::Error::BackupBesideKey { .. })
    ));
    let nowhere = elsewhere.path().join("not/there.pem");
    assert!(keygen(&out, Some(&nowhere), PASSPHRASE).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let files = keygen(&out, Some(elsewhere.path()), PASSPHRASE).unwrap();
    let backup = files.backup.unwrap();
    assert_eq!(backup, elsewhere.path().join("owner.pem"));
    for path in [&files.key, &backup] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            OwnerKey::read(path, PASSPHRASE).unwrap().id(),
            files.owner.id()
        );
        assert!(OwnerKey::read(path, "another passphrase").is_err());
    }
    let public = std::fs::read_to_string(dir.path().join("owner.pub.pem")).unwrap();
    assert_eq!(
        zk_envelope::OwnerPublicKey::from_pem(&public).unwrap(),
        files.owner
    );

    // Never again in the same place; and the backup that was made for it goes.
    let before = std::fs::read(&out).unwrap();
    let third = tempfile::tempdir().unwrap();
    let again = keygen(&out, Some(third.path()), PASSPHRASE);
    assert!(matches!(again, Err(zk_reader::Error::Exists { .. })));
    assert_eq!(std::fs::read(&out).unwrap(), before);
    assert_eq!(std::fs::read_dir(third.path()).unwrap().count(), 0);
    // A public key in the way leaves no private one behind.
    let taken = dir.path().join("second.pub.pem");
    std::fs::write(&taken, "mine").unwrap();
    let second = dir.path().join("second.pem");
    assert!(keygen(&second, None, PASSPHRASE).is_err());
    assert!(!second.exists());
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
}
