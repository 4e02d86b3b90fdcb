//! What lies in the tables, seen from below: damage, the traces of a crash, sizes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use dynoxide::AttributeValue;
use sha2::{Digest, Sha256};
use support::raw::{Raw, s};
use support::{Device, READING, after, create, message, open, quarantine, readings};
use zk_envelope::{OwnerKey, Timestamp};
use zk_store::{Budget, Options, Store, StoreError, StoreUri};
use zk_verify::{Context, Reason};

#[tokio::test]
async fn what_is_damaged_is_told_and_the_rest_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let batch = message(&(1..=5).map(|n| device.seal(n)).collect::<Vec<_>>());
    store.ingest(&batch, &device.context()).await.unwrap();
    let there = readings(&store, &device.id).await;

    let raw = Raw::open(&path);
    // No signature; somebody else's place; not an envelope.
    raw.put(
        "zk-readings",
        &[("deviceId", s("pi-01")), ("timestamp", s(&there[0].key))],
    );
    let item = |n: usize, encrypted_data: &[u8]| {
        vec![
            ("deviceId", s("pi-01")),
            ("timestamp", s(&there[n].key)),
            ("e", AttributeValue::B(encrypted_data.to_vec())),
            ("s", AttributeValue::B(there[n].signature.to_vec())),
            ("r", AttributeValue::N("1795000000000".into())),
            ("p", s("somebody")),
        ]
    };
    raw.put("zk-readings", &item(1, &there[2].encrypted_data));
    raw.put("zk-readings", &item(3, b"nothing"));

    let mut listing = store.readings(
        &device.id,
        Timestamp::from_millis(0).unwrap()..=Timestamp::MAX,
    );
    let mut found = Vec::new();
    while let Some(reading) = listing.next().await {
        found.push(reading.and_then(|reading| reading.envelope()));
    }
    let good: Vec<_> = found.iter().map(Result::is_ok).collect();
    assert_eq!(good, [false, false, true, false, true]);
    assert!(
        found
            .iter()
            .flat_map(|r| r.as_ref().err())
            .all(|e| matches!(e, StoreError::Damaged { .. }))
    );

    // A registry that cannot be read is an error, and no verdict.
    raw.put(
        "zk-devices",
        &[
            ("principal", s(&device.principal())),
            ("state", s("active")),
        ],
    );
    let error = open(&path)
        .await
        .unwrap()
        .ingest(&batch, &device.context())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

/// Or the device would send it for ever, and nothing behind it.
#[tokio::test]
async fn a_record_whose_place_holds_a_damaged_item_goes_to_quarantine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let batch = message(&(1..=4).map(|n| device.seal(n)).collect::<Vec<_>>());
    store.ingest(&batch, &device.context()).await.unwrap();
    let there = readings(&store, &device.id).await;

    let raw = Raw::open(&path);
    let damage = |n: usize, more: &[(&str, AttributeValue)]| {
        let key = [("deviceId", s("pi-01")), ("timestamp", s(&there[n].key))];
        raw.put("zk-readings", &[&key, more].concat());
    };
    let bytes = ("e", AttributeValue::B(there[1].encrypted_data.clone()));
    damage(0, &[]);
    damage(1, &[bytes]);
    damage(2, &[("e", s("text"))]);

    for times in 1..=2 {
        let again = store.ingest(&batch, &device.context()).await.unwrap();
        assert_eq!((again.stored, again.duplicates), (0, 1));
        let reasons: Vec<_> = again.quarantined.iter().map(|held| held.reason).collect();
        assert_eq!(reasons, [Reason::Conflict; 3]);
        for held in again.quarantined {
            let held = store.quarantined(&held.id).await.unwrap().unwrap();
            assert!(held.authentic);
            assert_eq!(held.times, times);
        }
    }
}

/// Whoever reserved room for a message and stopped before it was put is
/// followed by the one who tries again.
#[tokio::test]
async fn a_reservation_that_a_crash_left_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let budget = Budget {
        items: 1,
        bytes: 1 << 20,
    };
    let options = Options {
        unproven: budget,
        ..Options::default()
    };
    let store = Store::create(&StoreUri::File(path.clone()), options)
        .await
        .unwrap();
    let mut device = Device::registered("pi-01", &store).await;
    let (forged, context) = (device.forged(1), device.context());
    let id = {
        let mut hash = Sha256::new();
        for part in [
            context.principal.as_bytes(),
            context.topic.as_bytes(),
            &forged,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex(&hash.finalize())
    };
    let account = format!(
        "budget#unproven#{}",
        hex(&Sha256::digest(&context.principal))
    );
    let number = |n: usize| AttributeValue::N(n.to_string());
    Raw::open(&path).put(
        "zk-quarantine",
        &[
            ("id", s(&account)),
            ("principal", s(&context.principal)),
            ("serial", number(8)),
            ("items", number(1)),
            ("bytes", number(forged.len())),
            (&id, number(7)),
        ],
    );
    // Nothing else finds room.
    let other = store.ingest(&device.forged(2), &context).await.unwrap();
    assert!(!other.quarantined[0].kept);
    let result = store.ingest(&forged, &context).await.unwrap();
    assert_eq!(
        (
            result.quarantined[0].id.as_str(),
            result.quarantined[0].kept
        ),
        (&*id, true)
    );
    let left = Raw::open(&path).get("zk-quarantine", &[("id", s(&account))]);
    assert!(!left.contains_key(&id), "the reservation has ended");
    let there = Raw::open(&path).get("zk-quarantine", &[("id", s(&id))]);
    assert_eq!(
        there["reservation"],
        number(7),
        "it was taken over, not made anew"
    );
    // It was counted once: once it is gone, there is room for one.
    assert!(store.discard(&id).await.unwrap());
    let kept = async |device: &mut Device, n| {
        store
            .ingest(&device.forged(n), &context)
            .await
            .unwrap()
            .quarantined[0]
            .kept
    };
    assert!(kept(&mut device, 3).await);
    assert!(!kept(&mut device, 4).await);
    assert_eq!(quarantine(&store).await[0].reason, Reason::BadSignature);
}

/// Two with the same message at once: the first reserves room, the second uses
/// it, and the first finds the message there. It must not give that room back.
#[test]
fn a_reservation_that_another_one_used_is_not_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let store = first.block_on(create(&path));
    let mut device = first.block_on(Device::registered("pi-01", &store));
    let (forged, context) = (device.forged(1), device.context());
    let account = format!(
        "budget#unproven#{}",
        hex(&Sha256::digest(&context.principal))
    );
    let raw = Raw::open(&path);
    let read = || {
        raw.find("zk-quarantine", &[("id", s(&account))])
            .unwrap_or_default()
    };
    let reservations = || {
        read()
            .into_keys()
            .filter(|name| name.len() == 64)
            .collect::<Vec<_>>()
    };
    let ingest = |store: Store| {
        let (forged, context) = (forged.clone(), context.clone());
        async move {
            store
                .ingest(&forged, &context)
                .await
                .unwrap()
                .quarantined
                .remove(0)
        }
    };

    // Each goes on by a step at a time, until what it did shows in the file.
    let one = first.spawn(ingest(store));
    while reservations().is_empty() {
        first.block_on(tokio::task::yield_now());
    }
    let id = reservations().remove(0);
    let two = second.spawn(ingest(second.block_on(open(&path)).unwrap()));
    while raw.find("zk-quarantine", &[("id", s(&id))]).is_none() {
        second.block_on(tokio::task::yield_now());
    }
    assert!(first.block_on(one).unwrap().kept);
    assert!(second.block_on(two).unwrap().kept);
    assert_eq!(read()["items"], AttributeValue::N("1".into()));
    assert_eq!(reservations(), [""; 0]);
    let there = raw.get("zk-quarantine", &[("id", s(&id))]);
    assert_eq!(there["times"], AttributeValue::N("2".into()));
}

/// And who put a message and stopped before the reservation was ended, by the
/// one who discards the message.
#[tokio::test]
async fn a_reservation_that_was_never_ended_goes_with_its_message() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    let mut ids = Vec::new();
    for n in 1..=3 {
        let result = store.ingest(&device.forged(n), &context).await.unwrap();
        ids.push(result.quarantined[0].id.clone());
    }
    let account = format!(
        "budget#unproven#{}",
        hex(&Sha256::digest(&context.principal))
    );
    let raw = Raw::open(&path);
    let read = || raw.get("zk-quarantine", &[("id", s(&account))]);
    let mut left = read();
    let first = raw.get("zk-quarantine", &[("id", s(&ids[0]))]);
    left.insert(ids[0].clone(), first["reservation"].clone());
    let left: Vec<_> = left
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    raw.put("zk-quarantine", &left);

    for (id, items) in ids.iter().zip(["2", "1", "0"]) {
        assert!(store.discard(id).await.unwrap());
        let account = read();
        assert_eq!(account["items"], AttributeValue::N(items.into()));
        assert!(ids.iter().all(|id| !account.contains_key(id)));
    }
    assert_eq!(read()["bytes"], AttributeValue::N("0".into()));
}

/// 90 days after it came in, and with its budget, which then begins anew: what of
/// an older one is discarded then gives nothing back to it.
#[tokio::test]
async fn what_nobody_has_signed_expires_and_evidence_does_not() {
    const DAYS: u64 = 24 * 60 * 60 * 1000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let raw = Raw::open(&path);
    let hold = async |message: &[u8], received_at, topic: &str| {
        let context = Context {
            received_at,
            topic: topic.into(),
            ..Device::new("pi-01", 1).context()
        };
        let result = store.ingest(message, &context).await.unwrap();
        assert!(result.quarantined[0].kept);
        result.quarantined[0].id.clone()
    };
    let read = |id: &str| raw.get("zk-quarantine", &[("id", s(id))]);
    let expiry = |received_at: Timestamp| {
        let seconds = received_at.as_millis() / 1000 + 90 * DAYS / 1000;
        AttributeValue::N(seconds.to_string())
    };
    let digest = hex(&Sha256::digest(device.principal()));
    let budget = format!("budget#unproven#{digest}");

    let first = hold(&device.forged(1), after(0), "Zymkey/pi-01").await;
    let second = hold(&device.forged(2), after(DAYS), "Zymkey/pi-01").await;
    assert_eq!(read(&first)["expiresAt"], expiry(after(0)));
    assert_eq!(read(&second)["expiresAt"], expiry(after(DAYS)));
    assert_eq!(read(&budget)["expiresAt"], expiry(after(0)));
    assert_eq!(read(&budget)["items"], AttributeValue::N("2".into()));
    let signed = hold(&device.message(3), after(0), "Zymkey/elsewhere").await;
    assert!(!read(&signed).contains_key("expiresAt"));
    assert!(!read(&format!("budget#evidence#{digest}")).contains_key("expiresAt"));

    // DynamoDB takes the budget, and has not come to the messages yet.
    raw.delete("zk-quarantine", &[("id", s(&budget))]);
    assert!(store.discard(&first).await.unwrap());
    assert!(raw.find("zk-quarantine", &[("id", s(&budget))]).is_none());
    let third = hold(&device.forged(4), after(91 * DAYS), "Zymkey/pi-01").await;
    assert_eq!(read(&budget)["expiresAt"], expiry(after(91 * DAYS)));
    assert!(store.discard(&second).await.unwrap());
    assert_eq!(read(&budget)["items"], AttributeValue::N("1".into()));
    assert!(store.discard(&third).await.unwrap());
    assert_eq!(read(&budget)["items"], AttributeValue::N("0".into()));
}

/// The rules: names and values count, strings and binaries with their bytes, a
/// number with half a byte per significant digit and one more, a boolean with
/// one. One write unit is 1 KB.
#[tokio::test]
async fn one_reading_for_one_owner_fits_a_write_unit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::of(&"d".repeat(64), 1, &owner);
    store
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    let record = device.seal_at(u64::MAX, after(100_000_000), READING);
    let again = message(&[record]);
    for _ in 0..2 {
        store.ingest(&again, &device.context()).await.unwrap();
    }
    let mut listing = store.readings(&device.id, after(0)..=Timestamp::MAX);
    let reading = listing.next().await.unwrap().unwrap();
    assert!(
        reading.ahead && reading.again == 1,
        "with every attribute there is"
    );

    let item = Raw::open(&path).get(
        "zk-readings",
        &[
            ("deviceId", s(device.id.as_str())),
            ("timestamp", s(&reading.key)),
        ],
    );
    let size: usize = item
        .iter()
        .map(|(name, value)| {
            name.len()
                + match value {
                    AttributeValue::S(text) => text.len(),
                    AttributeValue::B(bytes) => bytes.len(),
                    AttributeValue::N(digits) => digits.len().div_ceil(2) + 1,
                    AttributeValue::BOOL(_) => 1,
                    other => panic!("{other:?}"),
                }
        })
        .sum();
    assert!(size <= 800, "{size} bytes");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
