//! A store in a file: who may open it, several at once, and what a crash leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use dynoxide::actions::put_item::PutItemRequest;
use dynoxide::{AttributeValue, Database};
use sha2::{Digest, Sha256};
use support::{Device, READING, after, message, quarantine, readings};
use zk_envelope::{OwnerKey, Timestamp};
use zk_store::{Budget, Options, Store, StoreError, StoreUri};
use zk_verify::Reason;

async fn create(path: &Path) -> Store {
    Store::create(&StoreUri::File(path.into()), Options::default())
        .await
        .unwrap()
}

async fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(&StoreUri::File(path.into()), Options::default()).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn what_it_makes_is_for_its_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/zk.db");
    let store = create(&path).await;
    Device::registered("pi-01", &store).await;
    assert_eq!(mode(&directory.path().join("a")), 0o700);
    assert_eq!(mode(&directory.path().join("a/b")), 0o700);
    let mut files: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 3, "the file, its log and its locks: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }

    // What was opened up on purpose stays so.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    create(&path).await;
    assert_eq!(mode(&path), 0o660);
}

#[tokio::test]
async fn a_file_that_everybody_may_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    drop(create(&path).await);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o662)).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Writable { .. }), "{error:?}");
    let error = Store::create(&StoreUri::File(path), Options::default())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Writable { .. }), "{error:?}");
}

#[tokio::test]
async fn opening_makes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("no/zk.db");
    for path in [&path, &directory.path().join("zk.db")] {
        let error = open(path).await.unwrap_err();
        assert!(matches!(error, StoreError::NoStore { .. }), "{error:?}");
    }
    let error = open(directory.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::File { .. }), "{error:?}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_that_is_something_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let content = b"dear diary, ".repeat(1000);
    fs::write(&path, &content).unwrap();
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Engine { .. }), "{error:?}");
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[tokio::test]
async fn tables_with_other_keys_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let db = Database::new(path.to_str().unwrap()).unwrap();
    let json = r#"{"TableName":"zk-readings","BillingMode":"PAY_PER_REQUEST",
        "KeySchema":[{"AttributeName":"id","KeyType":"HASH"}],
        "AttributeDefinitions":[{"AttributeName":"id","AttributeType":"S"}]}"#;
    db.create_table(serde_json::from_str(json).unwrap())
        .unwrap();
    let error = Store::create(&StoreUri::File(path), Options::default())
        .await
        .unwrap_err();
    assert!(matches!(&error, StoreError::WrongTable { table } if table == "zk-readings"));
}

#[tokio::test]
async fn a_path_is_taken_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "a b?mode=memory#c%20.db",
        ":memory:",
        "file:x.db",
        "ümlaut.db",
    ] {
        let path = directory.path().join(name);
        let uri: StoreUri = format!("file:{}", path.display()).parse().unwrap();
        let store = Store::create(&uri, Options::default()).await.unwrap();
        Device::registered("pi-01", &store).await;
        assert!(fs::metadata(&path).unwrap().is_file());
        assert_eq!(open(&path).await.unwrap().devices().await.unwrap().len(), 1);
    }
}

#[test]
fn uris_are_strict() {
    let round = |uri: &str| uri.parse::<StoreUri>().unwrap().to_string();
    assert_eq!(round("file:/var/lib/zk/zk.db"), "file:/var/lib/zk/zk.db");
    assert_eq!(round("file:zk.db"), "file:zk.db");
    assert_eq!(round("dynamodb:eu-central-1"), "dynamodb:eu-central-1");
    let bad = [
        "",
        "file",
        "file:",
        "zk.db",
        "dynamodb:",
        "dynamodb:EU",
        "dynamodb:a/b",
        "sqlite:x",
    ];
    for uri in bad {
        assert!(
            matches!(uri.parse::<StoreUri>(), Err(StoreError::Uri { .. })),
            "{uri}"
        );
    }
}

#[tokio::test]
async fn it_listens_on_no_port() {
    let directory = tempfile::tempdir().unwrap();
    let store = create(&directory.path().join("zk.db")).await;
    let mut device = Device::registered("pi-01", &store).await;
    store
        .ingest(&device.message(1), &device.context())
        .await
        .unwrap();
    let own: HashSet<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            Some(
                link.to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    for table in [
        "/proc/self/net/tcp",
        "/proc/self/net/tcp6",
        "/proc/self/net/udp",
    ] {
        for line in fs::read_to_string(table)
            .unwrap_or_default()
            .lines()
            .skip(1)
        {
            let inode = line.split_whitespace().nth(9).unwrap();
            assert!(!own.contains(inode), "{table}: {line}");
        }
    }
}

/// SQLite writes what was committed to its log, and syncs that before it
/// answers, if the log is on (a property of the file) and `synchronous` is FULL
/// (a property of the connection: the engine leaves what SQLite was built with).
#[tokio::test]
async fn commits_are_synced_before_they_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let _store = create(&path).await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    let pragma = |name: &str| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
            .unwrap()
    };
    assert_eq!(
        pragma("journal_mode"),
        rusqlite::types::Value::Text("wal".into())
    );
    assert_eq!(
        pragma("synchronous"),
        rusqlite::types::Value::Integer(2),
        "FULL"
    );
}

/// Writers at once share commits, and with them the waits for the disk.
#[tokio::test]
async fn puts_that_wait_together_are_committed_together() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    let records: Vec<_> = (1..=64).map(|n| device.message(n)).collect();
    // Eight of them are there already.
    for record in records.iter().step_by(8) {
        store.ingest(record, &context).await.unwrap();
    }
    let before = commits(&path);

    // The engine waits for this one's lock with the first of them, and the
    // others gather behind it.
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let tasks: Vec<_> = records
        .into_iter()
        .map(|record| {
            let (store, context) = (store.clone(), context.clone());
            tokio::spawn(async move { store.ingest(&record, &context).await })
        })
        .collect();
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    connection.execute_batch("ROLLBACK").unwrap();
    let mut stored = 0;
    for task in tasks {
        let result = task.await.unwrap().unwrap();
        assert_eq!(result.stored + result.duplicates, 1);
        stored += result.stored;
    }
    assert_eq!(stored, 56);
    assert_eq!(readings(&store, &device.id).await.len(), 64);
    // The first, all the others, and one for each of the eight to count it.
    let commits = commits(&path) - before;
    assert!((9..=12).contains(&commits), "{commits} commits");
}

/// Commits in SQLite's write-ahead log: after a header of 32 bytes, frames of 24
/// bytes and a page, of which the last of each commit states the size of the
/// database, not 0, in its bytes 4 to 7.
fn commits(path: &Path) -> usize {
    let log = fs::read(path.with_extension("db-wal")).unwrap();
    let page = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    log[32..]
        .chunks_exact(24 + page)
        .filter(|frame| frame[4..8] != [0; 4])
        .count()
}

/// SQLite's locks on a file belong to the process: any descriptor of the file
/// that is closed takes them along.
#[tokio::test]
async fn to_create_what_is_open_leaves_its_locks_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let _store = create(&path).await;
    let inode = format!(":{}", fs::metadata(&path).unwrap().ino());
    let locked = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks
            .lines()
            .any(|line| line.split_whitespace().any(|field| field.ends_with(&inode)))
    };
    assert!(locked());
    drop(create(&path).await);
    drop(open(&path).await.unwrap());
    assert!(locked());
}

/// Not a test of its own: the other process of the next one.
#[tokio::test]
async fn the_other_process() {
    let Ok(path) = std::env::var("ZK_TEST_OTHER_PROCESS") else {
        return;
    };
    let store = open(Path::new(&path)).await.unwrap();
    let mut device = other_device();
    store
        .register(&device.principal(), &device.record())
        .await
        .unwrap();
    for n in 1..=RECORDS {
        let result = store
            .ingest(&device.message(n), &device.context())
            .await
            .unwrap();
        assert_eq!(result.stored, 1);
    }
}

fn other_device() -> Device {
    Device::new("pi-02", 2)
}

const RECORDS: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_and_two_handles_write_and_read_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let first = create(&path).await;
    let second = create(&path).await;
    let mut device = Device::registered("pi-01", &first).await;
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture"])
        .env("ZK_TEST_OTHER_PROCESS", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut done = 0;
    // At least as many, and for as long as the other process writes.
    while done < RECORDS || other.try_wait().unwrap().is_none() {
        done += 1;
        let writer = if done % 2 == 0 { &first } else { &second };
        let result = writer
            .ingest(&device.message(done), &device.context())
            .await
            .unwrap();
        assert_eq!(result.stored, 1);
        // Handles come and go beside them.
        if done % 25 == 0 {
            let reader = open(&path).await.unwrap();
            assert_eq!(readings(&reader, &device.id).await.len() as u64, done);
        }
    }
    assert!(other.wait().unwrap().success());
    for store in [&first, &second, &open(&path).await.unwrap()] {
        assert_eq!(readings(store, &device.id).await.len() as u64, done);
        assert_eq!(
            readings(store, &other_device().id).await.len() as u64,
            RECORDS
        );
    }
    let connection = rusqlite::Connection::open(&path).unwrap();
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}

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

/// The engine's own view of the file.
struct Raw(Database);

impl Raw {
    fn open(path: &Path) -> Self {
        Self(Database::new(path.to_str().unwrap()).unwrap())
    }

    fn put(&self, table: &str, item: &[(&str, AttributeValue)]) {
        let request = PutItemRequest {
            table_name: table.into(),
            item: attributes(item),
            ..PutItemRequest::default()
        };
        self.0.put_item(request).unwrap();
    }

    fn get(&self, table: &str, key: &[(&str, AttributeValue)]) -> HashMap<String, AttributeValue> {
        let request = dynoxide::actions::get_item::GetItemRequest {
            table_name: table.into(),
            key: attributes(key),
            ..Default::default()
        };
        self.0.get_item(request).unwrap().item.unwrap()
    }
}

fn attributes(item: &[(&str, AttributeValue)]) -> HashMap<String, AttributeValue> {
    item.iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
