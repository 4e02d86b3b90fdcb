//! A store in a file: who may open it, and several who do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use dynoxide::Database;
use support::raw::{Raw, s};
use support::{Device, create, open, readings};
use zk_store::{Options, Store, StoreError, StoreUri};

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
    assert_eq!(
        files.len(),
        4,
        "the file, its log and two for locks: {files:?}"
    );
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }

    // What was opened up on purpose stays so.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    create(&path).await;
    assert_eq!(mode(&path), 0o660);
    assert_eq!(
        mode(&path.with_extension("db-lock")),
        0o660,
        "and who may write may lock"
    );
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

/// Nor one that everybody may put another in place of.
#[tokio::test]
async fn a_directory_that_everybody_may_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    drop(create(&path).await);
    let allow = |mode| {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(0o777);
    let error = open(&path).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Writable { path } if path == directory.path()),
        "{error:?}"
    );
    // as in /tmp, everybody only their own
    allow(0o1777);
    open(&path).await.unwrap();
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
async fn writes_that_wait_together_are_committed_together() {
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
    for _ in 0..1000 {
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
    // The first; all the others; at most one for each of the eight, to count it.
    let commits = commits(&path) - before;
    assert!((2..=10).contains(&commits), "{commits} commits");
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

#[tokio::test]
async fn writers_take_turns_and_readers_do_not_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let (record, context) = (device.message(1), device.context());
    let reader = Raw::open(&path);
    let turn = fs::File::open(path.with_extension("db-lock")).unwrap();
    turn.lock().unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move { store.ingest(&record, &context).await }
    });
    // In the time in which another store does the same fifty times.
    let other = create(&directory.path().join("other.db")).await;
    Device::registered("pi-01", &other).await;
    for n in 1..=50 {
        other
            .ingest(&device.message(n), &device.context())
            .await
            .unwrap();
    }
    assert!(!writer.is_finished());
    // Who only reads, and had the file open, goes on.
    let key = [("principal", s(&device.principal()))];
    assert!(reader.find("zk-devices", &key).is_some());
    assert!(!writer.is_finished());
    turn.unlock().unwrap();
    assert_eq!(writer.await.unwrap().unwrap().stored, 1);
}

#[tokio::test]
async fn whoever_keeps_the_lock_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    drop(create(&path).await);
    let lock = path.with_extension("db-lock");
    let turn = fs::File::open(&lock).unwrap();
    turn.lock().unwrap();
    let told = open(&path).await.unwrap_err().to_string();
    for part in [
        lock.to_str().unwrap(),
        &format!("process {} (", std::process::id()),
    ] {
        assert!(told.contains(part), "{part:?} is missing in {told}");
    }
    turn.unlock().unwrap();
    open(&path).await.unwrap();
}

/// A disk that was slow for a while is not made to do what nobody waits for.
#[tokio::test]
async fn what_its_caller_gave_up_before_its_turn_is_not_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zk.db");
    let store = create(&path).await;
    let mut device = Device::registered("pi-01", &store).await;
    let context = device.context();
    store.ingest(&device.message(1), &context).await.unwrap();
    let turn = fs::File::open(path.with_extension("db-lock")).unwrap();
    turn.lock().unwrap();
    let ingest = |record: Vec<u8>| {
        let (store, context) = (store.clone(), context.clone());
        tokio::spawn(async move { store.ingest(&record, &context).await })
    };
    // The engine waits for its turn with the first of them.
    let first = ingest(device.message(2));
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let given_up = ingest(device.message(3));
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    turn.unlock().unwrap();
    assert_eq!(first.await.unwrap().unwrap().stored, 1);
    store.ingest(&device.message(4), &context).await.unwrap();
    let sequences: Vec<_> = readings(&store, &device.id)
        .await
        .iter()
        .map(|reading| reading.envelope().unwrap().unverified_header().sequence)
        .collect();
    assert_eq!(sequences, [1, 2, 4]);
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
