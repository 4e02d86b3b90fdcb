//! A store in a file, an owner, and devices that fill it.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use tempfile::TempDir;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceEvent, DeviceId, Heartbeat, KeyState, Moment, OwnerKey,
    OwnerPublicKey, PreviousStream, Report, Sealer, StreamId, Timestamp, TrustFile, TrustedDevice,
    TrustedKey, pack,
};
use zk_reader::{Reader, Record, Records};
use zk_store::{Ingested, Options, Store, StoreUri};
use zk_verify::{Context, DeviceRecord, principal_of, topic_of};

pub const PASSPHRASE: &str = "correct horse battery staple";

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Milliseconds after noon of a day in 2026.
pub fn noon(ms: u64) -> Timestamp {
    Timestamp::from_millis(at("2026-11-23T12:00:00.000Z").as_millis() + ms).unwrap()
}

pub struct World {
    pub dir: TempDir,
    pub store: Store,
    pub owner: OwnerPublicKey,
    pub trust: TrustFile,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&uri(dir.path()), Options::default())
            .await
            .unwrap();
        let key = OwnerKey::generate().unwrap();
        key.write_new(&dir.path().join("owner.pem"), PASSPHRASE)
            .unwrap();
        let owner = key.public_key().clone();
        let trust = TrustFile {
            owners: [(owner.id(), owner.clone())].into(),
            ..TrustFile::default()
        };
        Self {
            dir,
            store,
            owner,
            trust,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Registered in the store and in the trust file.
    pub async fn device(&mut self, name: &str) -> Device {
        let device = Device::new(name, std::slice::from_ref(&self.owner));
        self.store
            .register(&device.principal, &device.record())
            .await
            .unwrap();
        let trusted = TrustedDevice {
            owners: [self.owner.id()].into(),
            keys: device.record().keys,
        };
        self.trust.devices.insert(device.id.clone(), trusted);
        device
    }

    /// The reader of the trust file as it is now.
    pub fn reader(&self) -> Reader {
        let owner = OwnerKey::read(&self.path("owner.pem"), PASSPHRASE).unwrap();
        Reader::new(self.store.clone(), self.trust.clone(), owner)
    }

    pub async fn deliver(
        &self,
        device: &Device,
        record: &[u8],
        received_at: Timestamp,
    ) -> Ingested {
        let (message, _) = pack(&[record], usize::MAX).unwrap();
        let context = Context {
            principal: device.principal.clone(),
            topic: topic_of(&device.id),
            received_at,
        };
        self.store.ingest(&message, &context).await.unwrap()
    }

    /// Seals and delivers: each record a second after the one before.
    pub async fn fill(&self, device: &mut Device, records: u64) {
        for _ in 0..records {
            let time = noon(1000 * device.sequence);
            let record = device.reading(time, 21_437);
            assert_eq!(self.deliver(device, &record, time).await.stored, 1);
        }
    }
}

pub fn uri(dir: &Path) -> StoreUri {
    StoreUri::File(dir.join("zk.db"))
}

pub struct Device {
    pub id: DeviceId,
    pub key: SigningKey,
    pub principal: String,
    pub stream: StreamId,
    pub clock: ClockQuality,
    pub since_boot_ms: u64,
    /// The last number that was given.
    pub sequence: u64,
    sealer: Sealer,
}

impl Device {
    pub fn new(name: &str, owners: &[OwnerPublicKey]) -> Self {
        let key = SigningKey::generate();
        let (id, stream) = (DeviceId::try_from(name).unwrap(), StreamId([7; 16]));
        let sealer = Sealer::new(id.clone(), stream, key.verifying_key(), owners).unwrap();
        Self {
            id,
            key,
            principal: principal_of(format!("certificate of {name}").as_bytes()),
            stream,
            clock: ClockQuality::Synchronised,
            since_boot_ms: 81_000,
            sequence: 0,
            sealer,
        }
    }

    /// From now on it encrypts for these, in this stream.
    pub fn reseal(&mut self, owners: &[OwnerPublicKey], stream: StreamId) {
        self.stream = stream;
        self.sealer =
            Sealer::new(self.id.clone(), stream, self.key.verifying_key(), owners).unwrap();
    }

    pub fn record(&self) -> DeviceRecord {
        DeviceRecord {
            device: self.id.clone(),
            certificate: KeyState::Active,
            keys: vec![TrustedKey {
                key: *self.key.verifying_key(),
                state: KeyState::Active,
            }],
            registered_at: at("2026-11-01T00:00:00.000Z"),
        }
    }

    pub fn seal(&mut self, time: Timestamp, content: Content<'_>) -> Vec<u8> {
        self.sequence += 1;
        let moment = Moment {
            boot: BootId([3; 16]),
            since_boot_ms: self.since_boot_ms,
            time,
            clock: self.clock,
        };
        let sealed = self.sealer.seal(&self.key, &moment, self.sequence, content);
        sealed.unwrap().to_bytes()
    }

    pub fn reading(&mut self, time: Timestamp, celsius: i32) -> Vec<u8> {
        let body = format!(
            r#"{{"readings":[{{"sensor":"28-0000000a0001","at":"{time}","celsius":{}.{:03},"quality":"ok"}},{{"sensor":"28-0000000a0002","at":"{time}","celsius":null,"quality":"empty"}}]}}"#,
            celsius / 1000,
            celsius % 1000
        );
        let content = Content::Data {
            content_type: "application/json",
            body: body.as_bytes(),
        };
        self.seal(time, content)
    }

    pub fn text(&mut self, time: Timestamp, content_type: &str, body: &[u8]) -> Vec<u8> {
        self.seal(time, Content::Data { content_type, body })
    }

    pub fn report(&mut self, time: Timestamp, report: &Report) -> Vec<u8> {
        self.seal(time, Content::Report(report))
    }

    pub fn started(&mut self, time: Timestamp, previous: Option<PreviousStream>) -> Vec<u8> {
        let event = DeviceEvent::StreamStarted { previous };
        self.report(time, &Report::DeviceEvent(event))
    }

    pub fn heartbeat(&mut self, time: Timestamp) -> Vec<u8> {
        let beat = Heartbeat {
            interval_ms: 300_000,
            waiting: 4,
            waiting_bytes: 1612,
            sensors: 2,
        };
        self.report(time, &Report::Heartbeat(beat))
    }
}

pub async fn all(mut records: Records<'_>) -> Vec<Record> {
    let mut all = Vec::new();
    while let Some(record) = records.next().await {
        all.push(record.unwrap());
    }
    all
}

/// Takes the table of readings away, with what is in it.
pub fn drop_readings(dir: &Path) {
    let engine = dynoxide::Database::new(dir.join("zk.db").to_str().unwrap()).unwrap();
    let unprotect = serde_json::json!({
        "TableName": "zk-readings", "DeletionProtectionEnabled": false,
    });
    engine
        .update_table(serde_json::from_value(unprotect).unwrap())
        .unwrap();
    let table = serde_json::json!({"TableName": "zk-readings"});
    engine
        .delete_table(serde_json::from_value(table).unwrap())
        .unwrap();
}

/// Changes an item of the readings behind everybody's back: `change` sees it in
/// DynamoDB's JSON.
pub fn tamper(dir: &Path, device: &str, key: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let engine = dynoxide::Database::new(dir.join("zk.db").to_str().unwrap()).unwrap();
    let place = serde_json::json!({"deviceId": {"S": device}, "timestamp": {"S": key}});
    let request = serde_json::json!({"TableName": "zk-readings", "Key": place});
    let found = engine
        .get_item(serde_json::from_value(request).unwrap())
        .unwrap();
    let mut item = serde_json::to_value(found.item.unwrap()).unwrap();
    change(&mut item);
    let request = serde_json::json!({"TableName": "zk-readings", "Item": item});
    engine
        .put_item(serde_json::from_value(request).unwrap())
        .unwrap();
}
