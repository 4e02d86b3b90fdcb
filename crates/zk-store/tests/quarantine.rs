//! The quarantine: once each, within a budget, and out again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use support::{Device, TestStore, after, at_once, message, quarantine, readings};
use zk_store::{Budget, Ingested, Options, Replayed, Store, StoreError};
use zk_verify::{Context, Reason};

const MANY: u64 = 1 << 30;

fn unproven(items: u64, bytes: u64) -> impl FnOnce(&mut Options) {
    move |options| options.unproven = Budget { items, bytes }
}

fn evidence(items: u64) -> impl FnOnce(&mut Options) {
    move |options| options.evidence = Budget { items, bytes: MANY }
}

/// Signed by the device, and on a topic that is not its own.
fn misplaced(device: &Device) -> Context {
    Context {
        topic: "Zymkey/elsewhere".into(),
        ..device.context()
    }
}

async fn kept(store: &Store, message: &[u8], context: &Context) -> bool {
    let mut result = store.ingest(message, context).await.unwrap();
    assert_eq!(
        (result.stored, result.duplicates, result.quarantined.len()),
        (0, 0, 1)
    );
    result.quarantined.remove(0).kept
}

#[tokio::test]
async fn keeps_who_sent_what_where_and_when() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let forged = device.forged(1);
    let result = store.ingest(&forged, &device.context()).await.unwrap();
    let held = &result.quarantined[0];
    assert_eq!((held.reason, held.kept), (Reason::BadSignature, true));

    let listed = quarantine(&store).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].message, b"", "a listing is without the bytes");
    let found = store.quarantined(&held.id).await.unwrap().unwrap();
    assert_eq!(found.message, forged);
    assert_eq!(found.context, device.context());
    assert_eq!(
        (found.reason, found.authentic, found.times),
        (Reason::BadSignature, false, 1)
    );
    assert_eq!(found.last_received_at, device.context().received_at);
    assert_eq!(store.quarantined("nothing").await.unwrap(), None);
}

#[tokio::test]
async fn ids_are_a_hash_of_principal_topic_and_message() {
    let store = TestStore::new().await;
    let context = Context {
        principal: "p".into(),
        topic: "tt".into(),
        received_at: after(0),
    };
    let result = store.ingest(b"mmm", &context).await.unwrap();
    // printf '\0\0\0\0\0\0\0\1p\0\0\0\0\0\0\0\2tt\0\0\0\0\0\0\0\3mmm' | sha256sum
    let id = "a037dccfdeb5a5c3d82fba9eea7ba081a4871dad4e9356558d11ded462a08907";
    assert_eq!(result.quarantined[0].id, id);
}

#[tokio::test]
async fn what_comes_again_is_kept_once() {
    let store = TestStore::with(unproven(1, MANY)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let forged = device.forged(1);
    for n in 1..=3 {
        let context = Context {
            received_at: after(n),
            ..device.context()
        };
        assert!(
            kept(&store, &forged, &context).await,
            "it does not use up the budget again"
        );
    }
    let listed = quarantine(&store).await;
    assert_eq!((listed.len(), listed[0].times), (1, 3));
    assert_eq!(
        (listed[0].context.received_at, listed[0].last_received_at),
        (after(1), after(3))
    );
    // Another topic or principal is another message.
    let other = Context {
        topic: "x".into(),
        ..device.context()
    };
    assert!(
        !kept(&store, &forged, &other).await,
        "the budget of this principal is used up"
    );
    let mut stranger = Device::new("pi-02", 2);
    assert!(
        kept(&store, &forged, &stranger.context()).await,
        "each has a budget of its own"
    );
    assert!(!kept(&store, &stranger.message(1), &stranger.context()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_message_64_times_at_once_is_kept_once() {
    let store = TestStore::with(unproven(2, MANY)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let (forged, context) = (device.forged(1), device.context());
    let run = |_| {
        let (store, forged, context) = (Store::clone(&store), forged.clone(), context.clone());
        async move { store.ingest(&forged, &context).await }
    };
    for result in at_once(64, run).await {
        assert!(result.unwrap().quarantined[0].kept);
    }
    let listed = quarantine(&store).await;
    assert_eq!((listed.len(), listed[0].times), (1, 64));
    // It used up room for one: there is room for one more, and no other.
    assert!(kept(&store, &device.forged(2), &context).await);
    assert!(!kept(&store, &device.forged(3), &context).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_budget_is_kept_by_64_at_once() {
    let store = TestStore::with(unproven(10, MANY)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    let messages: Vec<_> = (1..=64).map(|n| device.forged(n)).collect();
    let run = |n: u64| {
        let (store, context) = (Store::clone(&store), context.clone());
        let message = messages[n as usize].clone();
        async move { store.ingest(&message, &context).await }
    };
    let results = at_once(64, run).await;
    let kept = results
        .into_iter()
        .filter(|r| r.as_ref().unwrap().quarantined[0].kept)
        .count();
    assert_eq!(kept, 10);
    assert_eq!(quarantine(&store).await.len(), 10);
    assert_eq!(store.overflow().await.unwrap()[0].messages, 54);
}

#[tokio::test]
async fn past_the_budget_messages_are_counted_and_nothing_is_pushed_out() {
    let store = TestStore::with(unproven(2, MANY)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let first = device.forged(1);
    assert!(kept(&store, &first, &device.context()).await);
    assert!(kept(&store, &device.forged(2), &device.context()).await);
    assert_eq!(store.overflow().await.unwrap(), []);
    let mut last_id = String::new();
    for n in 3..=7 {
        let context = Context {
            received_at: after(n),
            ..device.context()
        };
        let result = store.ingest(&device.forged(n), &context).await.unwrap();
        assert!(!result.quarantined[0].kept);
        last_id.clone_from(&result.quarantined[0].id);
        assert_eq!(store.quarantined(&last_id).await.unwrap(), None);
    }
    assert_eq!(quarantine(&store).await.len(), 2);
    assert!(
        kept(&store, &first, &device.context()).await,
        "what is there still counts"
    );

    let overflow = store.overflow().await.unwrap();
    assert_eq!(overflow.len(), 1);
    assert_eq!(overflow[0].principal, device.principal());
    assert_eq!(
        (overflow[0].messages, overflow[0].last_received_at),
        (5, after(7))
    );
    assert_eq!(overflow[0].last_id, last_id);
}

#[tokio::test]
async fn bytes_have_a_budget_too() {
    let store = TestStore::with(unproven(MANY, 2500)).await;
    let device = Device::registered("pi-01", &store).await;
    let context = device.context();
    assert!(kept(&store, &[b'x'; 1500], &context).await);
    assert!(!kept(&store, &[b'y'; 1001], &context).await);
    assert!(kept(&store, &[b'z'; 1000], &context).await);
    assert!(!kept(&store, b"a", &context).await);
    // Larger than the budget as such.
    let mut stranger = Device::new("pi-02", 2);
    assert!(!kept(&store, &[b'x'; 2501], &stranger.context()).await);
    let none = TestStore::with(unproven(0, MANY)).await;
    assert!(!kept(&none, &stranger.message(1), &stranger.context()).await);
}

#[tokio::test]
async fn signed_evidence_is_never_dropped() {
    let store = TestStore::with(evidence(2)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = misplaced(&device);
    // What anybody could have sent takes none of its room.
    for n in 1..=5 {
        assert!(kept(&store, &device.forged(n), &context).await);
    }
    let messages: Vec<_> = (1..=3).map(|n| device.message(n)).collect();
    assert!(kept(&store, &messages[0], &context).await);
    assert!(kept(&store, &messages[1], &context).await);
    let error = store.ingest(&messages[2], &context).await.unwrap_err();
    assert!(
        matches!(error, StoreError::EvidenceFull { .. }),
        "{error:?}"
    );
    assert!(
        kept(&store, &messages[0], &context).await,
        "what is there still counts"
    );

    // A batch with one such record is to be sent again, and the rest of it is
    // stored nonetheless.
    store
        .ingest(&device.message(30), &device.context())
        .await
        .unwrap();
    let batch = message(&[device.seal(20), device.seal(30), device.seal(22)]);
    let error = store.ingest(&batch, &device.context()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::EvidenceFull { .. }),
        "{error:?}"
    );
    assert_eq!(readings(&store, &device.id).await.len(), 3);
    assert_eq!(store.overflow().await.unwrap(), []);

    // Room again.
    let first = quarantine(&store)
        .await
        .into_iter()
        .find(|found| found.authentic)
        .unwrap();
    assert!(store.discard(&first.id).await.unwrap());
    let result = store.ingest(&batch, &device.context()).await.unwrap();
    assert_eq!(
        (result.duplicates, result.quarantined[0].reason),
        (2, Reason::Conflict)
    );
}

#[tokio::test]
async fn discarding_frees_its_room_once() {
    let store = TestStore::with(unproven(1, MANY)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    assert!(kept(&store, &device.forged(1), &context).await);
    assert!(!kept(&store, &device.forged(2), &context).await);
    let id = quarantine(&store).await[0].id.clone();
    assert!(store.discard(&id).await.unwrap());
    assert!(!store.discard(&id).await.unwrap());
    assert_eq!(quarantine(&store).await, []);
    assert!(kept(&store, &device.forged(3), &context).await);
    assert!(!kept(&store, &device.forged(4), &context).await);
}

#[tokio::test]
async fn the_accounts_are_no_messages() {
    let store = TestStore::with(unproven(1, MANY)).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    assert!(kept(&store, &device.forged(1), &context).await);
    use sha2::Digest;
    let digest = sha2::Sha256::digest(context.principal.as_bytes());
    let account = format!(
        "budget#unproven#{}",
        digest
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    );
    assert_eq!(store.quarantined(&account).await.unwrap(), None);
    assert!(!store.discard(&account).await.unwrap());
    assert!(!kept(&store, &device.forged(2), &context).await);
}

#[tokio::test]
async fn what_was_refused_for_the_registry_replays_once_that_is_mended() {
    let store = TestStore::with(unproven(1, MANY)).await;
    let mut device = Device::new("pi-01", 1);
    let context = device.context();
    let batch = message(&[device.seal(1), device.seal(2)]);
    let result = store.ingest(&batch, &context).await.unwrap();
    assert_eq!(result.quarantined[0].reason, Reason::UnknownDevice);
    let id = &result.quarantined[0].id;

    let still = store.replay(id).await.unwrap();
    assert!(!still.leaves);
    assert_eq!(still.ingested.quarantined[0].id, *id);
    assert!(store.quarantined(id).await.unwrap().is_some());

    store
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    let expected = store.rehearse(id).await.unwrap();
    assert_eq!(readings(&store, &device.id).await.len(), 0);
    assert!(store.quarantined(id).await.unwrap().is_some());
    let replayed = store.replay(id).await.unwrap();
    assert_eq!(replayed, expected);
    let ingested = Ingested {
        stored: 2,
        ..Ingested::default()
    };
    assert_eq!(
        replayed,
        Replayed {
            ingested,
            leaves: true
        }
    );
    assert_eq!(quarantine(&store).await, []);
    let there = readings(&store, &device.id).await;
    assert_eq!(there.len(), 2);
    assert!(
        there.iter().all(|r| r.received_at == context.received_at),
        "received then, not now"
    );
    assert!(
        kept(&store, &device.forged(3), &context).await,
        "its room is free"
    );
    let error = store.replay(id).await.unwrap_err();
    assert!(matches!(error, StoreError::NotQuarantined { .. }));
}

#[tokio::test]
async fn a_replay_that_fails_tells_the_reason_of_now() {
    let store = TestStore::new().await;
    let mut device = Device::new("pi-01", 1);
    let context = device.context();
    let message = device.message(1);
    let id = store
        .ingest(&message, &context)
        .await
        .unwrap()
        .quarantined
        .remove(0)
        .id;
    let stranger = Device::new("pi-01", 2);
    store
        .register(&device.principal(), &stranger.record())
        .await
        .unwrap();
    let before = store.quarantined(&id).await.unwrap().unwrap();
    let expected = store.rehearse(&id).await.unwrap();
    assert_eq!(store.quarantined(&id).await.unwrap().unwrap(), before);
    let replayed = store.replay(&id).await.unwrap();
    assert_eq!(replayed, expected);
    let refused = &replayed.ingested.quarantined;
    assert_eq!(refused[0].reason, Reason::SignerMismatch);
    // Nothing came in.
    let there = store.quarantined(&id).await.unwrap().unwrap();
    assert_eq!((there.reason, there.times), (Reason::SignerMismatch, 1));
    assert_eq!(there.last_received_at, before.last_received_at);
}

#[tokio::test]
async fn a_replay_that_was_cut_short_is_done_again() {
    let store = TestStore::new().await;
    let mut device = Device::new("pi-01", 1);
    let context = device.context();
    let message = message(&[device.seal(1), device.seal(2)]);
    let result = store.ingest(&message, &context).await.unwrap();
    let id = &result.quarantined[0].id;
    store
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    // What a replay does first; then it ends.
    let first = store.ingest(&message, &context).await.unwrap();
    assert_eq!(first.stored, 2);
    assert!(store.quarantined(id).await.unwrap().is_some());

    let again = store.replay(id).await.unwrap();
    assert!(again.leaves);
    assert_eq!((again.ingested.stored, again.ingested.duplicates), (0, 2));
    assert_eq!(readings(&store, &device.id).await.len(), 2);
    assert_eq!(quarantine(&store).await, []);
}

#[tokio::test]
async fn a_conflict_replays_to_a_conflict() {
    let store = TestStore::new().await;
    let mut device = Device::registered("pi-01", &store).await;
    let (first, second) = (device.message(1), device.message(1));
    let context = device.context();
    assert_eq!(store.ingest(&first, &context).await.unwrap().stored, 1);
    let held = store.ingest(&second, &context).await.unwrap();
    let held = &held.quarantined[0];
    assert_eq!(held.reason, Reason::Conflict);
    let before = store.quarantined(&held.id).await.unwrap().unwrap();
    let replayed = store.replay(&held.id).await.unwrap();
    assert!(!replayed.leaves);
    assert_eq!(replayed.ingested.quarantined, std::slice::from_ref(held));
    assert_eq!(store.quarantined(&held.id).await.unwrap().unwrap(), before);
}

#[tokio::test]
async fn a_batch_stays_while_there_is_no_room_for_what_is_bad_of_it() {
    let store = TestStore::with(unproven(1, MANY)).await;
    let mut device = Device::new("pi-01", 1);
    let mut stranger = Device::new("pi-01", 2);
    let context = device.context();
    let batch = message(&[device.seal(1), stranger.seal(2)]);
    let result = store.ingest(&batch, &context).await.unwrap();
    let id = &result.quarantined[0].id;
    store
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    for stored in [1, 0] {
        let replayed = store.replay(id).await.unwrap();
        assert!(!replayed.leaves && !replayed.ingested.quarantined[0].kept);
        assert_eq!(replayed.ingested.stored, stored);
        let left = store.quarantined(id).await.unwrap().unwrap();
        assert_eq!(left.message, batch);
    }
    assert_eq!(readings(&store, &device.id).await.len(), 1);
}

#[tokio::test]
async fn a_message_of_which_a_part_is_still_bad_replays_into_its_parts() {
    let store = TestStore::new().await;
    let mut device = Device::new("pi-01", 1);
    let mut stranger = Device::new("pi-01", 2);
    let context = device.context();
    let batch = message(&[device.seal(1), stranger.seal(2)]);
    let id = store
        .ingest(&batch, &context)
        .await
        .unwrap()
        .quarantined
        .remove(0)
        .id;
    store
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    let replayed = store.replay(&id).await.unwrap();
    let Replayed { ingested, leaves } = replayed;
    assert!(leaves);
    assert_eq!((ingested.stored, ingested.quarantined.len()), (1, 1));
    let left = quarantine(&store).await;
    assert_eq!(left.len(), 1);
    assert_eq!(
        (left[0].reason, left[0].id != id),
        (Reason::SignerMismatch, true)
    );
}

#[tokio::test]
async fn the_largest_message_is_kept_whole() {
    let store = TestStore::new().await;
    let device = Device::registered("pi-01", &store).await;
    let large = vec![b'x'; zk_envelope::MAX_MESSAGE];
    assert!(kept(&store, &large, &device.context()).await);
    let id = quarantine(&store).await[0].id.clone();
    assert_eq!(
        store.quarantined(&id).await.unwrap().unwrap().message,
        large
    );
}

#[tokio::test]
async fn a_long_listing_comes_page_by_page() {
    let store = TestStore::new().await;
    let device = Device::registered("pi-01", &store).await;
    for n in 0..12_u8 {
        assert!(kept(&store, &vec![n; 120_000], &device.context()).await);
    }
    assert_eq!(quarantine(&store).await.len(), 12);
}
