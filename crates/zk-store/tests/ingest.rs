//! Messages on their way in: stored once, or put aside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::time::Duration;

use support::{Device, TestStore, after, at_once, message, quarantine, readings};
use zk_envelope::{Envelope, KeyState, Timestamp};
use zk_store::{Ingested, Store, StoreError};
use zk_verify::{Context, Reason};

fn stored(count: u64) -> Ingested {
    Ingested {
        stored: count,
        ..Ingested::default()
    }
}

fn duplicates(count: u64) -> Ingested {
    Ingested {
        duplicates: count,
        ..Ingested::default()
    }
}

#[tokio::test]
async fn a_good_record_is_stored_as_it_came() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let envelope = device.seal(1);
    let result = store
        .ingest(&message(std::slice::from_ref(&envelope)), &device.context())
        .await
        .unwrap();
    assert_eq!(result, stored(1));

    let there = readings(&store, &device.id).await;
    assert_eq!(there.len(), 1);
    let there = &there[0];
    assert_eq!(there.encrypted_data, envelope.encrypted_data());
    assert_eq!(&there.signature, envelope.signature());
    assert_eq!(there.received_at, device.context().received_at);
    assert_eq!(there.principal, device.principal());
    assert_eq!((there.ahead, there.again), (false, 0));
    let header = envelope.unverified_header();
    assert_eq!(
        there.key,
        format!("{}#{}#00000000000000000001", header.time, header.stream)
    );
    assert_eq!(there.envelope().unwrap().unverified_header(), header);
    assert!(
        there
            .envelope()
            .unwrap()
            .verify(device.key.verifying_key())
            .is_ok()
    );
}

#[tokio::test]
async fn what_comes_again_is_stored_once_and_counted() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let first = device.message(1);
    assert_eq!(
        store.ingest(&first, &device.context()).await.unwrap(),
        stored(1)
    );
    for _ in 0..3 {
        let later = Context {
            received_at: after(90_000_000),
            ..device.context()
        };
        assert_eq!(store.ingest(&first, &later).await.unwrap(), duplicates(1));
    }
    let there = readings(&store, &device.id).await;
    assert_eq!((there.len(), there[0].again), (1, 3));
    assert_eq!(
        there[0].received_at,
        device.context().received_at,
        "the first stays"
    );
    assert_eq!(quarantine(&store).await, []);
}

#[tokio::test]
async fn the_same_bytes_with_another_signature_are_a_duplicate() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let one = device.seal(1);
    // (r, s) and (r, -s) are both signatures of the same bytes.
    let signature = p256::ecdsa::Signature::from_slice(one.signature()).unwrap();
    let (r, s) = signature.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
    let two = Envelope::from_parts(one.encrypted_data().to_vec(), other.to_bytes().into()).unwrap();
    assert_ne!(one.signature(), two.signature());
    assert_eq!(
        store
            .ingest(&message(&[one]), &device.context())
            .await
            .unwrap(),
        stored(1)
    );
    assert_eq!(
        store
            .ingest(&message(&[two]), &device.context())
            .await
            .unwrap(),
        duplicates(1)
    );
}

#[tokio::test]
async fn other_bytes_in_the_same_place_are_a_conflict() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let (one, two) = (device.seal(1), device.seal(1));
    assert_ne!(one.encrypted_data(), two.encrypted_data());
    store
        .ingest(&message(std::slice::from_ref(&one)), &device.context())
        .await
        .unwrap();
    let result = store
        .ingest(&message(std::slice::from_ref(&two)), &device.context())
        .await
        .unwrap();
    assert_eq!((result.stored, result.duplicates), (0, 0));
    assert_eq!(result.quarantined[0].reason, Reason::Conflict);

    let there = readings(&store, &device.id).await;
    assert_eq!(
        there[0].encrypted_data,
        one.encrypted_data(),
        "the first stays"
    );
    let evidence = store
        .quarantined(&result.quarantined[0].id)
        .await
        .unwrap()
        .unwrap();
    assert!(evidence.authentic);
    assert_eq!(evidence.message, message(&[two]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_who_write_the_same_record_one_stores_it() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let (record, context) = (device.message(1), device.context());
    let run = |_| {
        let (store, record, context) = (Store::clone(&store), record.clone(), context.clone());
        async move { store.ingest(&record, &context).await }
    };
    let mut sum = Ingested::default();
    for result in at_once(64, run).await {
        let result = result.unwrap();
        sum.stored += result.stored;
        sum.duplicates += result.duplicates;
        assert_eq!(result.quarantined, []);
    }
    assert_eq!((sum.stored, sum.duplicates), (1, 63));
    let there = readings(&store, &device.id).await;
    assert_eq!((there.len(), there[0].again), (1, 63));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_who_write_different_records_in_one_place_one_stores_it() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    let records: Vec<_> = (0..64).map(|_| device.message(1)).collect();
    let run = |n: u64| {
        let (store, context) = (Store::clone(&store), context.clone());
        let record = records[n as usize].clone();
        async move { store.ingest(&record, &context).await }
    };
    let mut winners = 0;
    for result in at_once(64, run).await {
        let result = result.unwrap();
        winners += result.stored;
        assert_eq!(result.stored + result.quarantined.len() as u64, 1);
        assert!(
            result
                .quarantined
                .iter()
                .all(|held| held.reason == Reason::Conflict)
        );
    }
    assert_eq!(winners, 1);
    assert_eq!(readings(&store, &device.id).await.len(), 1);
    assert_eq!(quarantine(&store).await.len(), 63);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_at_once_all_get_their_own_answer() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    // Half of them are there already.
    let records: Vec<_> = (0..64).map(|n| device.message(n + 1)).collect();
    for record in records.iter().step_by(2) {
        store.ingest(record, &context).await.unwrap();
    }
    let run = |n: u64| {
        let (store, context) = (Store::clone(&store), context.clone());
        let record = records[n as usize].clone();
        async move { store.ingest(&record, &context).await }
    };
    for (n, result) in at_once(64, run).await.into_iter().enumerate() {
        let expected = if n % 2 == 0 { duplicates(1) } else { stored(1) };
        assert_eq!(result.unwrap(), expected, "record {n}");
    }
    assert_eq!(readings(&store, &device.id).await.len(), 64);
}

#[tokio::test]
async fn a_batch_is_taken_in_envelope_by_envelope() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let mut stranger = Device::new("pi-01", 2);
    store
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap();
    let mut envelopes: Vec<_> = (2..=60).map(|n| device.seal(n)).collect();
    envelopes.insert(20, stranger.seal(99));
    envelopes.insert(10, stranger.seal(98));
    let batch = message(&envelopes);
    let result = store.ingest(&batch, &device.context()).await.unwrap();
    assert_eq!((result.stored, result.duplicates), (59, 0));
    let reasons: Vec<_> = result.quarantined.iter().map(|held| held.reason).collect();
    assert_eq!(reasons, [Reason::SignerMismatch; 2]);
    // In the order of the message: 98 came before 99.
    for (held, sequence) in result.quarantined.iter().zip([98, 99]) {
        let evidence = store.quarantined(&held.id).await.unwrap().unwrap();
        let parsed = zk_envelope::Message::parse(&evidence.message).unwrap();
        let envelope = parsed.entries[0].envelope().unwrap();
        assert_eq!(envelope.unverified_header().sequence, sequence);
    }
    assert_eq!(readings(&store, &device.id).await.len(), 60);

    let again = store.ingest(&batch, &device.context()).await.unwrap();
    assert_eq!((again.stored, again.duplicates), (0, 59));
    assert_eq!(again.quarantined, result.quarantined);
}

#[tokio::test]
async fn the_same_record_twice_in_a_batch_is_stored_once() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let envelope = device.seal(1);
    let batch = message(&[envelope.clone(), envelope]);
    let result = store.ingest(&batch, &device.context()).await.unwrap();
    assert_eq!((result.stored, result.duplicates), (1, 1));
}

#[tokio::test]
async fn a_time_ahead_of_receipt_is_flagged() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let late = device.seal_at(1, after(86_400_000 + 3_600_001), b"x");
    let result = store
        .ingest(&message(&[late]), &device.context())
        .await
        .unwrap();
    assert_eq!((result.stored, result.ahead), (1, 1));
    assert!(readings(&store, &device.id).await[0].ahead);
}

#[tokio::test]
async fn readings_come_in_the_order_of_their_time_page_by_page() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let mut other = Device::new("pi-02", 2);
    store
        .register(&other.principal(), &other.record())
        .await
        .unwrap();
    store
        .ingest(&other.message(1), &other.context())
        .await
        .unwrap();
    // More than a page of 1 MB, in no order.
    let body = vec![b'x'; 40_000];
    for n in (1..=40).rev().map(|n| (n * 7) % 41) {
        let envelope = device.seal_at(n, after(n * 1000), &body);
        store
            .ingest(&message(&[envelope]), &device.context())
            .await
            .unwrap();
    }
    // A clock that was not set.
    let unset = device.seal_at(41, Timestamp::from_millis(63_000).unwrap(), &body);
    store
        .ingest(&message(&[unset]), &device.context())
        .await
        .unwrap();

    let sequences = async |times: std::ops::RangeInclusive<Timestamp>| {
        let mut found = store.readings(&device.id, times);
        let mut sequences = Vec::new();
        while let Some(reading) = found.next().await {
            let envelope = reading.unwrap().envelope().unwrap();
            sequences.push(envelope.unverified_header().sequence);
        }
        sequences
    };
    let epoch = Timestamp::from_millis(0).unwrap();
    assert_eq!(
        sequences(after(0)..=Timestamp::MAX).await,
        (1..=40).collect::<Vec<_>>()
    );
    assert_eq!(sequences(after(7000)..=after(9000)).await, [7, 8, 9]);
    assert_eq!(sequences(after(7001)..=after(8999)).await, [8]);
    assert_eq!(sequences(epoch..=after(0)).await, [41]);
    assert_eq!(sequences(after(9000)..=after(7000)).await, [] as [u64; 0]);
    let keys = async |mut keys: zk_store::ReadingKeys| {
        let mut all = Vec::new();
        while let Some(key) = keys.next().await {
            all.push(key.unwrap());
        }
        all
    };
    let times = epoch..=after(20_000);
    let ascending = keys(store.reading_keys(&device.id, times.clone())).await;
    assert_eq!(ascending.len(), 21);
    let stored = readings(&store, &device.id).await;
    assert!(stored.iter().map(|r| &r.key).take(21).eq(&ascending));
    for count in [0, 1, 5, 21, 1000] {
        let newest = keys(store.newest_keys(&device.id, times.clone(), count)).await;
        let expected = ascending.iter().rev().take(count as usize);
        assert!(newest.iter().eq(expected), "{count}: {newest:?}");
    }
    let latest = store.latest(&device.id).await.unwrap().unwrap();
    assert_eq!(latest.envelope().unwrap().unverified_header().sequence, 40);
    assert_eq!(store.latest(&"pi-03".parse().unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn a_revocation_counts_once_the_remembered_record_is_old() {
    let old = TestStore::with(|options| options.registry_age = Duration::ZERO).await;
    let mut device = Device::registered("pi-01", &old).await;
    let context = device.context();
    let operator = old.again().await;
    assert_eq!(
        old.ingest(&device.message(1), &context).await.unwrap(),
        stored(1)
    );
    assert!(
        old.registered(&device.principal(), context.received_at)
            .await
            .unwrap()
            .is_some()
    );
    let revoke = |record: &mut zk_verify::DeviceRecord| {
        record.certificate = KeyState::Revoked {
            at: context.received_at,
        };
    };
    operator
        .update_device(&device.principal(), revoke)
        .await
        .unwrap();
    let result = old.ingest(&device.message(2), &context).await.unwrap();
    assert_eq!(result.quarantined[0].reason, Reason::RevokedDevice);
    assert!(
        old.registered(&device.principal(), context.received_at)
            .await
            .unwrap()
            .is_none()
    );
    // What was received before still counts, whenever it is looked at.
    let before = Context {
        received_at: after(1),
        ..context.clone()
    };
    assert_eq!(
        old.ingest(&device.message(3), &before).await.unwrap(),
        stored(1)
    );
}

#[tokio::test]
async fn what_is_remembered_saves_a_look_at_the_registry() {
    let store = TestStore::with(|options| options.registry_refresh = Duration::MAX).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    assert_eq!(
        store.ingest(&device.message(1), &context).await.unwrap(),
        stored(1)
    );
    // Behind its back.
    store
        .again()
        .await
        .remove_device(&device.principal())
        .await
        .unwrap();
    assert_eq!(
        store.ingest(&device.message(2), &context).await.unwrap(),
        stored(1)
    );
    assert!(
        store
            .registered(&device.principal(), context.received_at)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn nothing_is_refused_by_an_old_memory() {
    let store = TestStore::with(|options| {
        options.registry_age = Duration::MAX;
        options.registry_refresh = Duration::ZERO;
    })
    .await;
    let operator = store.again().await;
    let mut device = Device::new("pi-01", 1);
    let (principal, context) = (device.principal(), device.context());

    // Unknown, then registered elsewhere.
    let result = store.ingest(&device.message(1), &context).await.unwrap();
    assert_eq!(result.quarantined[0].reason, Reason::UnknownDevice);
    assert!(
        store
            .registered(&principal, context.received_at)
            .await
            .unwrap()
            .is_none()
    );
    operator
        .register(&principal, &device.record())
        .await
        .unwrap();
    assert_eq!(
        store.ingest(&device.message(1), &context).await.unwrap(),
        stored(1)
    );
    assert!(
        store
            .registered(&principal, context.received_at)
            .await
            .unwrap()
            .is_some()
    );

    // Another key, then added elsewhere.
    let mut rotated = Device::new("pi-01", 2);
    let result = store.ingest(&rotated.message(2), &context).await.unwrap();
    assert_eq!(result.quarantined[0].reason, Reason::SignerMismatch);
    let new_key = rotated.record().keys[0].clone();
    operator
        .update_device(&principal, |record| record.keys.push(new_key.clone()))
        .await
        .unwrap();
    assert_eq!(
        store.ingest(&rotated.message(3), &context).await.unwrap(),
        stored(1)
    );
}

#[tokio::test]
async fn a_flood_of_unknown_senders_is_answered_from_memory() {
    let store = TestStore::with(|options| options.registry_refresh = Duration::MAX).await;
    let mut device = Device::new("pi-01", 1);
    store
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap();
    store
        .again()
        .await
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    let result = store
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap();
    assert_eq!(result.quarantined[0].reason, Reason::UnknownDevice);
}

#[tokio::test]
async fn a_store_without_tables_is_an_error_and_no_verdict() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    store.delete_tables().await.unwrap();
    store.delete_tables().await.unwrap();
    let fresh = store.again().await;
    let error = fresh
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NoTable { .. }), "{error:?}");
    assert!(
        error.to_string().contains("-devices does not exist"),
        "{error}"
    );
}

#[tokio::test]
async fn creating_twice_changes_nothing() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    store
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap();
    let again = Store::create(store.uri(), store.options()).await.unwrap();
    assert_eq!(
        again.devices().await.unwrap(),
        [(device.principal(), device.record())]
    );
    assert_eq!(readings(&again, &device.id).await.len(), 1);
}

#[tokio::test]
async fn prefixes_keep_stores_apart() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    store
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap();
    let mut options = store.options();
    options.prefix.push_str("-b");
    let other = Store::create(store.uri(), options.clone()).await.unwrap();
    assert_eq!(other.devices().await.unwrap(), []);
    assert_eq!(readings(&other, &device.id).await, []);
    for bad in ["", "a/b", "zk devices", &"x".repeat(201)] {
        options.prefix = bad.into();
        let error = Store::open(store.uri(), options.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Uri { .. }), "{bad}");
    }
}

#[tokio::test]
async fn principals_that_are_no_keys_are_unknown() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    for principal in ["", "AROAEXAMPLE:session", &"x".repeat(3000)] {
        let context = Context {
            principal: principal.into(),
            ..device.context()
        };
        let result = store.ingest(&device.message(1), &context).await.unwrap();
        assert_eq!(result.quarantined[0].reason, Reason::UnknownDevice);
        let kept = store
            .quarantined(&result.quarantined[0].id)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(kept.context, context);
        assert!(
            store
                .registered(principal, context.received_at)
                .await
                .unwrap()
                .is_none()
        );
    }
}
