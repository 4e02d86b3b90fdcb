//! The spool, and what one might take instead, as queues of one kind: a group of
//! records is durable when `append` returns, and gone for good when `drain` does.
#![forbid(unsafe_code)]
#![cfg(feature = "rivals")]
#![allow(clippy::unwrap_used, reason = "a bench has nobody to report to")]

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use rusqlite::Connection;
use zk_bench::Bare;
use zk_spool::{Options, Spool};

/// A durable queue.
pub trait Queue {
    /// Appends a group. It is durable when this returns, as far as the engine goes.
    fn append(&mut self, group: &[&[u8]]);

    /// Reads the oldest `count` records of `size` bytes, and takes them away,
    /// durably.
    fn drain(&mut self, count: usize, size: usize);

    /// Whatever the engine has to give space back.
    fn maintain(&mut self) {}
}

/// An engine to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// What the others are held against.
    Bare,
    /// zk-spool, engine `log`.
    Log,
    /// zk-spool, engine `sled`: sled as below, made to keep what it acknowledges.
    Guarded,
    /// redb, each commit durable.
    Redb,
    /// fjall, each batch with fdatasync.
    Fjall,
    /// SQLite, WAL, `synchronous=FULL`.
    Sqlite,
    /// sled as published: `flush` after each batch, which syncs nothing on Linux.
    Sled,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Bare,
        Self::Log,
        Self::Guarded,
        Self::Redb,
        Self::Fjall,
        Self::Sqlite,
        Self::Sled,
    ];

    /// What it is called in rows and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => Bare::NAME,
            Self::Log => "zk-spool log",
            Self::Guarded => "zk-spool sled",
            Self::Redb => "redb",
            Self::Fjall => "fjall",
            Self::Sqlite => "SQLite",
            Self::Sled => "sled as published",
        }
    }

    /// Opens a queue in a directory, or makes it.
    #[must_use]
    pub fn open(self, dir: &Path) -> Box<dyn Queue> {
        match self {
            Self::Bare => Box::new(Bare::create(dir.to_owned()).unwrap()),
            Self::Log | Self::Guarded => {
                let engine = match self {
                    Self::Guarded => zk_spool::Engine::Sled,
                    _ => zk_spool::Engine::Log,
                };
                let options = Options {
                    engine,
                    cap: 2 << 30,
                    ..Options::default()
                };
                Box::new(Spool::open(dir, options).unwrap())
            }
            Self::Redb => Box::new(Redb::open(dir)),
            Self::Fjall => Box::new(Fjall::open(dir)),
            Self::Sqlite => Box::new(Sqlite::open(dir)),
            Self::Sled => Box::new(Sled::open(dir)),
        }
    }
}

impl Queue for Bare {
    fn append(&mut self, group: &[&[u8]]) {
        Self::append(self, group).unwrap();
    }

    fn drain(&mut self, count: usize, size: usize) {
        assert_eq!(Self::drain(self, count, size).unwrap().len(), count);
    }
}

impl Queue for Spool {
    fn append(&mut self, group: &[&[u8]]) {
        let seals = group
            .iter()
            .map(|record| |_| Ok::<_, Infallible>(record.to_vec()));
        assert!(
            self.append_batch_with(seals)
                .unwrap()
                .iter()
                .all(Result::is_ok)
        );
    }

    fn drain(&mut self, count: usize, size: usize) {
        let records = self.peek(count, count * (size + 64)).unwrap();
        assert_eq!(records.len(), count);
        self.ack(records[count - 1].position()).unwrap();
    }
}

/// Rising keys, as every store needs them.
#[derive(Default)]
struct Keys {
    next: u64,
    oldest: u64,
}

impl Keys {
    /// So many new ones.
    fn take(&mut self, count: usize) -> std::ops::Range<u64> {
        let first = self.next;
        self.next += count as u64;
        first..self.next
    }

    /// The oldest ones.
    fn drain(&mut self, count: usize) -> std::ops::Range<u64> {
        let first = self.oldest;
        self.oldest += count as u64;
        first..self.oldest
    }

    fn found(first: Option<u64>, last: Option<u64>) -> Self {
        Self {
            next: last.map_or(0, |last| last + 1),
            oldest: first.unwrap_or(0),
        }
    }
}

struct Redb {
    database: redb::Database,
    keys: Keys,
}

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

impl Redb {
    fn open(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let database = redb::Database::builder()
            .set_cache_size(CACHE)
            .create(dir.join("db"))
            .unwrap();
        sync_dir(dir);
        let write = database.begin_write().unwrap();
        write.open_table(RECORDS).unwrap();
        write.commit().unwrap();
        let read = database.begin_read().unwrap();
        let table = read.open_table(RECORDS).unwrap();
        let key =
            |entry: Option<(redb::AccessGuard<'_, u64>, _)>| entry.map(|(key, _)| key.value());
        let keys = Keys::found(key(table.first().unwrap()), key(table.last().unwrap()));
        drop(table);
        drop(read);
        Self { database, keys }
    }
}

impl Queue for Redb {
    fn append(&mut self, group: &[&[u8]]) {
        let write = self.database.begin_write().unwrap();
        let mut table = write.open_table(RECORDS).unwrap();
        for (key, record) in self.keys.take(group.len()).zip(group) {
            table.insert(key, *record).unwrap();
        }
        drop(table);
        write.commit().unwrap();
    }

    fn drain(&mut self, count: usize, size: usize) {
        let range = self.keys.drain(count);
        let read = self.database.begin_read().unwrap();
        let table = read.open_table(RECORDS).unwrap();
        let records: Vec<Vec<u8>> = table
            .range(range.clone())
            .unwrap()
            .map(|entry| entry.unwrap().1.value().to_vec())
            .collect();
        check(&records, count, size);
        drop(table);
        drop(read);
        let write = self.database.begin_write().unwrap();
        let mut table = write.open_table(RECORDS).unwrap();
        for key in range {
            table.remove(key).unwrap();
        }
        drop(table);
        write.commit().unwrap();
    }

    fn maintain(&mut self) {
        self.database.compact().unwrap();
    }
}

struct Fjall {
    database: Database,
    records: Keyspace,
    keys: Keys,
}

impl Fjall {
    fn open(dir: &Path) -> Self {
        let database = Database::builder(dir)
            .cache_size(CACHE as u64)
            .max_journaling_size(64 << 20)
            .open()
            .unwrap();
        let options = || KeyspaceCreateOptions::default().max_memtable_size(8 << 20);
        let records = database.keyspace("records", options).unwrap();
        let key = |entry: Option<fjall::Guard>| {
            entry.map(|entry| u64::from_be_bytes(entry.key().unwrap()[..].try_into().unwrap()))
        };
        let keys = Keys::found(
            key(records.first_key_value()),
            key(records.last_key_value()),
        );
        Self {
            database,
            records,
            keys,
        }
    }
}

impl Queue for Fjall {
    fn append(&mut self, group: &[&[u8]]) {
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (key, record) in self.keys.take(group.len()).zip(group) {
            batch.insert(&self.records, key.to_be_bytes(), *record);
        }
        batch.commit().unwrap();
    }

    fn drain(&mut self, count: usize, size: usize) {
        let range = self.keys.drain(count);
        let (first, end) = (range.start.to_be_bytes(), range.end.to_be_bytes());
        let records: Vec<Vec<u8>> = self
            .records
            .range(first..end)
            .map(|entry| entry.value().unwrap().to_vec())
            .collect();
        check(&records, count, size);
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for key in range {
            batch.remove(&self.records, key.to_be_bytes());
        }
        batch.commit().unwrap();
    }

    fn maintain(&mut self) {
        self.records.rotate_memtable_and_wait().unwrap();
        self.records.major_compact().unwrap();
    }
}

struct Sqlite {
    connection: Connection,
    keys: Keys,
}

impl Sqlite {
    fn open(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let connection = Connection::open(dir.join("db")).unwrap();
        let pragmas = "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;
            PRAGMA synchronous = FULL; PRAGMA cache_size = -4096;
            CREATE TABLE IF NOT EXISTS records (key INTEGER PRIMARY KEY, record BLOB NOT NULL)";
        connection.execute_batch(pragmas).unwrap();
        sync_dir(dir);
        let edges = "SELECT (SELECT min(key) FROM records), (SELECT max(key) FROM records)";
        let keys = connection
            .query_row(edges, [], |row| {
                let (first, last): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
                Ok(Keys::found(
                    first.map(|key| key as u64),
                    last.map(|key| key as u64),
                ))
            })
            .unwrap();
        Self { connection, keys }
    }
}

impl Queue for Sqlite {
    fn append(&mut self, group: &[&[u8]]) {
        let keys = self.keys.take(group.len());
        let transaction = self.connection.transaction().unwrap();
        let mut insert = transaction
            .prepare_cached("INSERT INTO records VALUES (?1, ?2)")
            .unwrap();
        for (key, record) in keys.zip(group) {
            insert.execute((key as i64, record)).unwrap();
        }
        drop(insert);
        transaction.commit().unwrap();
    }

    fn drain(&mut self, count: usize, size: usize) {
        let range = self.keys.drain(count);
        let bounds = [range.start as i64, range.end as i64];
        let mut select = self
            .connection
            .prepare_cached("SELECT record FROM records WHERE key >= ?1 AND key < ?2 ORDER BY key")
            .unwrap();
        let records: Vec<Vec<u8>> = select
            .query_map(bounds, |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        check(&records, count, size);
        self.connection
            .prepare_cached("DELETE FROM records WHERE key >= ?1 AND key < ?2")
            .unwrap()
            .execute(bounds)
            .unwrap();
    }

    fn maintain(&mut self) {
        // one step frees one page
        let mut vacuum = self
            .connection
            .prepare("PRAGMA incremental_vacuum")
            .unwrap();
        let mut rows = vacuum.query([]).unwrap();
        while rows.next().unwrap().is_some() {}
        drop(rows);
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        self.connection
            .query_row(checkpoint, [], |_| Ok(()))
            .unwrap();
    }
}

struct Sled {
    database: sled::Db,
    keys: Keys,
}

impl Sled {
    fn open(dir: &Path) -> Self {
        let database = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE as u64)
            .flush_every_ms(None)
            .open()
            .unwrap();
        let key = |entry: sled::Result<Option<(sled::IVec, sled::IVec)>>| {
            let entry = entry.unwrap();
            entry.map(|(key, _)| u64::from_be_bytes(key[..].try_into().unwrap()))
        };
        let keys = Keys::found(key(database.first()), key(database.last()));
        Self { database, keys }
    }
}

impl Queue for Sled {
    fn append(&mut self, group: &[&[u8]]) {
        let mut batch = sled::Batch::default();
        for (key, record) in self.keys.take(group.len()).zip(group) {
            batch.insert(&key.to_be_bytes(), *record);
        }
        self.database.apply_batch(batch).unwrap();
        self.database.flush().unwrap();
    }

    fn drain(&mut self, count: usize, size: usize) {
        let range = self.keys.drain(count);
        let (first, end) = (range.start.to_be_bytes(), range.end.to_be_bytes());
        let records: Vec<Vec<u8>> = self
            .database
            .range(first..end)
            .map(|entry| entry.unwrap().1.to_vec())
            .collect();
        check(&records, count, size);
        let mut batch = sled::Batch::default();
        for key in range {
            batch.remove(&key.to_be_bytes());
        }
        self.database.apply_batch(batch).unwrap();
        self.database.flush().unwrap();
    }
}

fn check(records: &[Vec<u8>], count: usize, size: usize) {
    assert_eq!(records.len(), count);
    assert!(records.iter().all(|record| record.len() == size));
}

fn sync_dir(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

/// Bytes that the files below a directory take on the disk.
#[must_use]
pub fn disk(dir: &Path) -> u64 {
    files(dir)
        .iter()
        .map(|file| {
            // a file may go while this looks
            fs::metadata(file).map_or(0, |metadata| {
                512 * std::os::unix::fs::MetadataExt::blocks(&metadata)
            })
        })
        .sum()
}

/// All files below a directory.
#[must_use]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Bytes of an engine's cache, where it has one to set.
const CACHE: usize = 16 << 20;
