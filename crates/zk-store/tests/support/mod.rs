//! A device, an owner and an empty store.
// Each test uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod raw;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use p256::ecdsa::SigningKey;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Envelope, KeyState, Moment, OwnerKey, Sealer,
    StreamId, Timestamp, TrustedKey, pack,
};
use zk_store::{Options, Quarantined, Store, StoreError, StoreUri, StoredReading};
use zk_verify::{Context, DeviceRecord, principal_of, topic_of};

/// An empty store of its own: in a file, or, if `ZK_TEST_STORE` names one, in
/// tables of its own at that store (`dynamodb:REGION`, with
/// `AWS_ENDPOINT_URL_DYNAMODB` for a stand-in).
pub struct TestStore {
    store: Store,
    uri: StoreUri,
    options: Options,
    _directory: tempfile::TempDir,
}

impl TestStore {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(set: impl FnOnce(&mut Options)) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let directory = tempfile::tempdir().unwrap();
        let uri = match std::env::var("ZK_TEST_STORE") {
            Ok(uri) => uri.parse().unwrap(),
            Err(_) => StoreUri::File(directory.path().join("zk.db")),
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut options = Options {
            prefix: format!("zk-test-{}-{count}", std::process::id()),
            ..Options::default()
        };
        set(&mut options);
        let store = Store::create(&uri, options.clone()).await.unwrap();
        Self {
            store,
            uri,
            options,
            _directory: directory,
        }
    }

    /// Opens the same store once more.
    pub async fn again(&self) -> Store {
        Store::open(&self.uri, self.options.clone()).await.unwrap()
    }

    pub fn uri(&self) -> &StoreUri {
        &self.uri
    }

    pub fn options(&self) -> Options {
        self.options.clone()
    }

    pub fn path(&self) -> PathBuf {
        match &self.uri {
            StoreUri::File(path) => path.clone(),
            StoreUri::DynamoDb { .. } => panic!("for files only"),
        }
    }
}

impl std::ops::Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

pub struct Device {
    pub id: DeviceId,
    pub key: SigningKey,
    sealer: Sealer,
}

impl Device {
    pub fn new(name: &str, seed: u8) -> Self {
        let owner = OwnerKey::generate().unwrap();
        Self::of(name, seed, &owner)
    }

    pub fn of(name: &str, seed: u8, owner: &OwnerKey) -> Self {
        let id: DeviceId = name.parse().unwrap();
        let key = SigningKey::from_slice(&[seed; 32]).unwrap();
        let owners = [owner.public_key().clone()];
        let sealer =
            Sealer::new(id.clone(), StreamId([9; 16]), key.verifying_key(), &owners).unwrap();
        Self { id, key, sealer }
    }

    /// Made `sequence` seconds after [`START`].
    pub fn seal(&mut self, sequence: u64) -> Envelope {
        self.seal_at(sequence, after(sequence * 1000), READING)
    }

    pub fn seal_at(&mut self, sequence: u64, time: Timestamp, body: &[u8]) -> Envelope {
        let moment = Moment {
            boot: BootId([3; 16]),
            since_boot_ms: 5,
            time,
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "application/json",
            body,
        };
        self.sealer
            .seal(&self.key, &moment, sequence, content)
            .unwrap()
    }

    pub fn message(&mut self, sequence: u64) -> Vec<u8> {
        message(&[self.seal(sequence)])
    }

    /// Right in all but its signature.
    pub fn forged(&mut self, sequence: u64) -> Vec<u8> {
        let good = self.seal(sequence);
        message(&[Envelope::from_parts(good.encrypted_data().to_vec(), [7; 64]).unwrap()])
    }

    pub fn principal(&self) -> String {
        principal_of(self.id.as_str().as_bytes())
    }

    pub fn context(&self) -> Context {
        let received_at = after(86_400_000);
        Context {
            principal: self.principal(),
            topic: topic_of(&self.id),
            received_at,
        }
    }

    pub fn record(&self) -> DeviceRecord {
        DeviceRecord {
            device: self.id.clone(),
            certificate: KeyState::Active,
            keys: vec![TrustedKey {
                key: *self.key.verifying_key(),
                state: KeyState::Active,
            }],
            registered_at: after(0),
        }
    }

    pub async fn registered(name: &str, store: &Store) -> Self {
        let device = Self::new(name, 1);
        assert!(
            store
                .register(&device.principal(), &device.record())
                .await
                .unwrap()
        );
        device
    }
}

pub fn message(envelopes: &[Envelope]) -> Vec<u8> {
    let records: Vec<_> = envelopes.iter().map(Envelope::to_bytes).collect();
    let (message, taken) = pack(&records, usize::MAX).unwrap();
    assert_eq!(taken, records.len());
    message
}

/// Milliseconds after [`START`].
pub fn after(ms: u64) -> Timestamp {
    Timestamp::from_millis(START + ms).unwrap()
}

/// A store in a file of a certain name.
pub async fn create(path: &Path) -> Store {
    Store::create(&StoreUri::File(path.into()), Options::default())
        .await
        .unwrap()
}

pub async fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(&StoreUri::File(path.into()), Options::default()).await
}

pub async fn readings(store: &Store, device: &DeviceId) -> Vec<StoredReading> {
    let epoch = Timestamp::from_millis(0).unwrap();
    let mut readings = store.readings(device, epoch..=Timestamp::MAX);
    let mut all = Vec::new();
    while let Some(reading) = readings.next().await {
        all.push(reading.unwrap());
    }
    all
}

pub async fn quarantine(store: &Store) -> Vec<Quarantined> {
    let mut listing = store.quarantine();
    let mut all = Vec::new();
    while let Some(found) = listing.next().await {
        all.push(found.unwrap());
    }
    all
}

/// Runs one future for each number at the same time, on several threads.
pub async fn at_once<T, F>(count: u64, run: impl Fn(u64) -> F) -> Vec<Result<T, StoreError>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(count as usize));
    let tasks: Vec<_> = (0..count)
        .map(|n| {
            let (future, barrier) = (run(n), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                future.await
            })
        })
        .collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

/// 2026-11-18T11:06:40Z.
pub const START: u64 = 1_795_000_000_000;

pub const READING: &[u8] =
    br#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.123Z","celsius":21.437,"quality":"ok"}]}"#;
