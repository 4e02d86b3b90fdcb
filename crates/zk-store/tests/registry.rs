//! The registry, as those who set devices up use it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::time::Duration;

use support::{Device, TestStore, after, at_once};
use zk_envelope::{KeyState, TrustedKey};
use zk_store::{Store, StoreError};

#[tokio::test]
async fn registers_once() {
    let store = TestStore::new().await;
    let device = Device::new("pi-01", 1);
    let (principal, record) = (device.principal(), device.record());
    assert_eq!(store.device(&principal).await.unwrap(), None);
    assert!(store.register(&principal, &record).await.unwrap());
    assert!(
        !store.register(&principal, &record).await.unwrap(),
        "the very same"
    );
    assert_eq!(
        store.device(&principal).await.unwrap(),
        Some(record.clone())
    );

    let mut other = record.clone();
    other.device = "pi-02".parse().unwrap();
    let error = store.register(&principal, &other).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyRegistered { .. }));
    assert_eq!(store.device(&principal).await.unwrap(), Some(record));
}

#[tokio::test]
async fn keeps_every_state_of_keys_and_certificates() {
    let store = TestStore::new().await;
    let device = Device::new("pi-01", 1);
    let states = [
        KeyState::Active,
        KeyState::Retired,
        KeyState::Revoked { at: after(5) },
    ];
    for (n, certificate) in states.into_iter().enumerate() {
        let mut record = device.record();
        record.certificate = certificate;
        record.keys = states
            .into_iter()
            .map(|state| TrustedKey {
                key: *device.key.verifying_key(),
                state,
            })
            .collect();
        let principal = format!("{n}");
        store.register(&principal, &record).await.unwrap();
        assert_eq!(store.device(&principal).await.unwrap(), Some(record));
    }
}

#[tokio::test]
async fn lists_and_removes() {
    // What it remembers, it would believe for ever.
    let store = TestStore::with(|options| options.registry_refresh = Duration::MAX).await;
    let devices: Vec<_> = ["pi-03", "pi-01", "pi-02"]
        .into_iter()
        .map(|name| Device::new(name, 1))
        .collect();
    for device in &devices {
        store
            .register(&device.principal(), &device.record())
            .await
            .unwrap();
    }
    let names: Vec<_> = store
        .devices()
        .await
        .unwrap()
        .into_iter()
        .map(|(_, r)| r.device.to_string())
        .collect();
    assert_eq!(names, ["pi-01", "pi-02", "pi-03"]);
    let received = after(0);
    let known = store.registered(&devices[0].principal(), received).await;
    assert!(known.unwrap().is_some());
    assert!(store.remove_device(&devices[0].principal()).await.unwrap());
    assert!(!store.remove_device(&devices[0].principal()).await.unwrap());
    assert_eq!(store.devices().await.unwrap().len(), 2);
    assert!(
        store
            .registered(&devices[0].principal(), received)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        store
            .registered(&devices[1].principal(), received)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn an_update_needs_a_record() {
    let store = TestStore::new().await;
    let error = store.update_device("nobody", |_| {}).await.unwrap_err();
    assert!(matches!(error, StoreError::NotRegistered { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_update_is_lost_among_others() {
    let store = TestStore::new().await;
    let device = Device::registered("pi-01", &store).await;
    let (principal, key) = (device.principal(), *device.key.verifying_key());
    let run = |n: u64| {
        let (store, principal) = (Store::clone(&store), principal.clone());
        let state = KeyState::Revoked { at: after(n) };
        async move {
            store
                .update_device(&principal, |record| {
                    record.keys.push(TrustedKey { key, state });
                })
                .await
        }
    };
    let done = at_once(5, run)
        .await
        .into_iter()
        .filter(|result| match result {
            Ok(_) => true,
            Err(StoreError::Contended { .. }) => false,
            Err(error) => panic!("{error:?}"),
        });
    let done = done.count();
    assert!(done >= 1);
    let record = store.device(&principal).await.unwrap().unwrap();
    assert_eq!(record.keys.len(), 1 + done);
}
