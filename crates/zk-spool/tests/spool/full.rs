//! Caps, full disks and what is said about them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use zk_spool::{
    Error, Full, Loss, Options, Reason, Spool, SyncPolicy,
    storage::{Cut, FaultStorage, Lock, Storage, StorageFile},
};

use crate::common::{
    Place, append, append_batch, append_receipt, drain, key, names, open, peek_all, small,
};

fn fill(spool: &Spool) -> u64 {
    loop {
        match append(spool, 500) {
            Ok(_) => {}
            Err(Error::Full { .. }) => return spool.stats().unwrap().next_sequence - 1,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_spool_refuses_and_counts() {
    let place = Place::new();
    let spool = open(&place, &small()).unwrap();
    let last = fill(&spool);
    assert!(last > 30);
    assert!(spool.stats().unwrap().disk_bytes <= 64 << 10);
    for _ in 0..9 {
        assert!(matches!(append(&spool, 500), Err(Error::Full { .. })));
    }
    assert!(matches!(
        append_batch(&spool, &[500; 5]),
        Err(Error::Full { .. })
    ));

    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), 1);
    let Loss {
        reason,
        stream,
        first,
        last: until,
        records,
        ..
    } = losses[0];
    assert_eq!((reason, stream), (Reason::Full, spool.stream()));
    assert_eq!((first, until, records), (last, last, 15));

    // All that was taken is there, and there is room again once some is gone.
    let records = peek_all(&spool).unwrap();
    assert_eq!(records.len() as u64, last);
    spool.ack(records[10].position()).unwrap();
    assert_eq!(append(&spool, 500).unwrap(), last + 1);
}

#[test]
fn a_full_spool_does_not_call_the_closure() {
    let place = Place::new();
    let spool = open(&place, &small()).unwrap();
    fill(&spool);
    while append(&spool, 1).is_ok() {}
    let refused = spool.append_with(|_| -> Result<Vec<u8>, ()> { panic!("called") });
    assert!(refused.is_err());
}

#[test]
fn refusals_are_counted_when_they_return() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    fill(&spool);
    let counted = |cut| {
        let left = storage.after_cut(cut);
        open(&left, &small()).unwrap().losses().unwrap()[0].records
    };
    for refusals in 2..=300_u64 {
        let before = storage.operations();
        append(&spool, 500).unwrap_err();
        // A write and a sync, as for a record that is taken.
        assert_eq!(storage.operations(), before + 2);
        if refusals % 23 == 0 {
            assert_eq!(counted(Cut::Synced), refusals);
            assert_eq!(counted(Cut::Random(refusals)), refusals);
        }
    }
    // A damaged slot makes no loss forgotten.
    let left = storage.after_cut(Cut::Synced);
    let mut state = left.files()["state"].clone();
    for slot in [0, 16 << 10] {
        state[slot + 20] ^= 1;
        left.put("state", state.clone());
        state[slot + 20] ^= 1;
        let losses = open(&left.after_cut(Cut::All), &small())
            .unwrap()
            .losses()
            .unwrap();
        assert!((299..=300).contains(&losses[0].records), "{losses:?}");
    }
}

/// Where appends are made durable within a window, so are counts: a full spool is
/// no reason to write more often.
#[test]
fn refusals_within_a_window_are_written_down_as_they_double() {
    let storage = FaultStorage::new();
    let options = Options {
        sync: SyncPolicy::Every(Duration::from_secs(3600)),
        ..small()
    };
    let spool = open(&storage, &options).unwrap();
    fill(&spool);
    let mut writes = 0;
    for refusals in 2..=1000_u64 {
        let before = storage.operations();
        append(&spool, 500).unwrap_err();
        writes += u64::from(storage.operations() > before);
        if refusals % 97 == 0 {
            let left = storage.after_cut(Cut::Synced);
            let losses = open(&left, &small()).unwrap().losses().unwrap();
            let counted = losses
                .iter()
                .find(|loss| loss.reason == Reason::Full)
                .unwrap()
                .records;
            assert!(
                (refusals / 2..=refusals).contains(&counted),
                "{counted} of {refusals}"
            );
        }
    }
    assert!(writes < 12, "{writes} writes");
    assert_eq!(spool.losses().unwrap()[0].records, 1000);
}

#[test]
fn a_receipt_fits_into_a_full_spool() {
    let place = Place::new();
    let spool = open(&place, &small()).unwrap();
    fill(&spool);
    while append(&spool, 1).is_ok() {}
    let losses = spool.losses().unwrap();
    append_receipt(&spool, 1000).unwrap();
    spool.confirm(losses[0].id).unwrap();
    assert!(spool.losses().unwrap().is_empty());
    // The reserve is bounded, too.
    while append_receipt(&spool, 500).is_ok() {}
    assert!(spool.stats().unwrap().disk_bytes <= 64 << 10);
    drain(&spool);
    append(&spool, 500).unwrap();
}

#[test]
fn the_oldest_segments_go_and_are_named() {
    let place = Place::new();
    let options = Options {
        full: Full::DropOldest,
        ..small()
    };
    let spool = open(&place, &options).unwrap();
    let mut named = Vec::new();
    for sequence in 1..=1000 {
        assert_eq!(append(&spool, 500).unwrap(), sequence);
        assert!(spool.stats().unwrap().disk_bytes <= 64 << 10);
        if sequence % 250 == 0 {
            let losses = spool.losses().unwrap();
            spool.confirm(losses.last().unwrap().id).unwrap();
            named.extend(losses);
        }
    }
    named.extend(spool.losses().unwrap());
    let there: Vec<_> = peek_all(&spool).unwrap().iter().map(key).collect();
    let stream = spool.stream();
    for sequence in 1..spool.stats().unwrap().next_sequence {
        let lost = named
            .iter()
            .filter(|loss| names(loss, (stream, sequence)))
            .count();
        let there = there.iter().filter(|key| key.1 == sequence).count();
        assert_eq!(lost + there, 1, "{sequence}");
    }
    assert!(named.iter().all(|loss| loss.reason == Reason::Dropped));
    let records: u64 = named.iter().map(|loss| loss.records).sum();
    assert_eq!(records, there[0].1 - 1);
}

#[test]
fn dropping_leaves_out_what_was_acknowledged() {
    let place = Place::new();
    let options = Options {
        full: Full::DropOldest,
        ..small()
    };
    let spool = open(&place, &options).unwrap();
    append_batch(&spool, &[100; 8]).unwrap();
    let fifth = peek_all(&spool).unwrap().remove(4);
    spool.ack(fifth.position()).unwrap();
    while spool.losses().unwrap().is_empty() {
        append(&spool, 500).unwrap();
    }
    let loss = spool.losses().unwrap().remove(0);
    assert_eq!((loss.first, loss.last, loss.records), (6, 8, 3));
    // A position in what was dropped is behind us.
    spool.ack(fifth.position()).unwrap();
    assert_eq!(spool.peek(1, 0).unwrap()[0].sequence(), 9);
}

/// More losses than the table holds, none of them confirmed.
#[test]
fn a_long_outage_is_named_exactly() {
    let place = Place::new();
    let options = Options {
        full: Full::DropOldest,
        ..small()
    };
    let spool = open(&place, &options).unwrap();
    let mut offered = 0;
    while offered < 500 {
        append(&spool, 2000).unwrap();
        offered = spool.losses().unwrap().last().map_or(0, |loss| loss.id);
    }
    let oldest = spool.peek(1, 0).unwrap()[0].sequence();
    let mut losses = spool.losses().unwrap();
    assert!(losses.len() < 250, "{}", losses.len());
    losses.sort_unstable_by_key(|loss| loss.first);
    let mut next = 1;
    for loss in losses {
        assert_eq!((loss.reason, loss.first), (Reason::Dropped, next));
        assert_eq!(loss.records, loss.last - loss.first + 1);
        next = loss.last + 1;
    }
    assert_eq!(next, oldest);
}

#[test]
fn what_the_caller_gives_up_is_counted_and_survives() {
    let place = Place::new();
    let spool = open(&place, &small()).unwrap();
    append(&spool, 100).unwrap();
    spool.refuse(7).unwrap();
    spool.refuse(3).unwrap();
    drop(spool);
    let spool = open(&place, &small()).unwrap();
    let losses = spool.losses().unwrap();
    let counted: Vec<_> = losses.iter().map(|l| (l.reason, l.records)).collect();
    assert_eq!(counted, [(Reason::Full, 10)]);
}

#[test]
fn a_drained_segment_does_not_keep_a_spool_full() {
    for full in [Full::Reject, Full::DropOldest] {
        let place = Place::new();
        let options = Options {
            full,
            segment_size: Some(16 << 10),
            ..small()
        };
        let spool = open(&place, &options).unwrap();
        for _ in 0..20 {
            append(&spool, 50_000).unwrap();
            assert_eq!(drain(&spool).len(), 1);
        }
        assert!(spool.losses().unwrap().is_empty());
    }
}

#[test]
fn a_full_disk_loses_nothing_and_drains() {
    for full in [Full::Reject, Full::DropOldest] {
        let storage = FaultStorage::new();
        let options = Options {
            full,
            cap: 1 << 20,
            segment_size: Some(4 << 10),
            ..Options::default()
        };
        let spool = open(&storage, &options).unwrap();
        storage.set_capacity(Some(storage.used() + 20_000));
        let mut appended = 0;
        let error = loop {
            match append(&spool, 700) {
                Ok(sequence) => appended = sequence,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert!(appended > 15);
        // Not poisoned: reading, counting and saying what is lost go on.
        storage.set_capacity(Some(storage.used()));
        let refused = spool.losses().unwrap().remove(0);
        assert_eq!((refused.reason, refused.records), (Reason::Full, 1));
        assert_eq!(peek_all(&spool).unwrap().len() as u64, appended);
        drop(spool);

        // It can be opened, and drained, and then takes more.
        let spool = open(&storage, &options).unwrap();
        assert!(matches!(append(&spool, 700), Err(Error::DiskFull { .. })));
        let stream = spool.stream();
        let records = peek_all(&spool).unwrap();
        assert_eq!(records.len() as u64, appended);
        spool.reject(records[0].position()).unwrap();
        spool
            .ack(records[appended as usize / 2].position())
            .unwrap();
        assert_eq!(append(&spool, 700).unwrap(), appended + 1);
        assert_eq!(spool.stream(), stream);
        drain(&spool);
        let losses = spool.losses().unwrap();
        spool.confirm(losses.last().unwrap().id).unwrap();
        assert!(spool.losses().unwrap().is_empty());
    }
}

#[test]
fn a_disk_too_full_for_a_new_spool() {
    for capacity in (0..32_000).step_by(1_000).chain(1..40) {
        let storage = FaultStorage::new();
        storage.set_capacity(Some(capacity));
        assert!(matches!(
            open(&storage, &small()),
            Err(Error::DiskFull { .. })
        ));
        storage.set_capacity(None);
        let spool = open(&storage, &small()).unwrap();
        assert_eq!(append(&spool, 10).unwrap(), 1);
        assert!(spool.losses().unwrap().is_empty());
    }
}

#[test]
fn every_size_of_disk() {
    // The end of the disk falls on every place of the log.
    for capacity in (33_000..45_000).step_by(41) {
        let storage = FaultStorage::new();
        storage.set_capacity(Some(capacity));
        let spool = open(&storage, &small()).unwrap();
        let mut appended = Vec::new();
        let mut refused = 0;
        for len in [300, 100, 900, 10, 700, 300, 50, 2000, 10, 10, 400, 900, 10] {
            match append(&spool, len) {
                Ok(sequence) => appended.push(sequence),
                Err(Error::DiskFull { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(appended.iter().copied().eq(1..=appended.len() as u64));
        let records = peek_all(&spool).unwrap();
        assert!(
            records
                .iter()
                .map(zk_spool::Record::sequence)
                .eq(1..=appended.len() as u64)
        );
        let losses = spool.losses().unwrap();
        assert_eq!(losses.iter().map(|loss| loss.records).sum::<u64>(), refused);
        drop(spool);
        let spool = open(&storage, &small()).unwrap();
        assert_eq!(peek_all(&spool).unwrap().len(), appended.len());
        storage.set_capacity(None);
        append(&spool, 100).unwrap();
        assert_eq!(drain(&spool).len(), appended.len() + 1);
    }
}

#[test]
fn more_losses_than_the_table_holds_are_still_counted() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    for _ in 0..300 {
        append_batch(&spool, &[1, 1]).unwrap();
        let records = peek_all(&spool).unwrap();
        spool.reject(records[0].position()).unwrap();
        spool.ack(records[1].position()).unwrap();
    }
    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), 226);
    assert_eq!(losses.iter().map(|loss| loss.records).sum::<u64>(), 300);
    assert!(losses.is_sorted_by_key(|loss| loss.id));
    let several: Vec<&Loss> = losses
        .iter()
        .filter(|loss| loss.reason == Reason::Several)
        .collect();
    assert_eq!(several.len(), 1);
    assert_eq!(several[0].records, 75);
    spool.confirm(losses.last().unwrap().id).unwrap();
    assert!(spool.losses().unwrap().is_empty());
}

/// A file system on which overwriting needs room, as copy-on-write ones have
/// it: a write to the state file of the given number finds the disk full.
#[derive(Debug, Clone)]
struct CopyOnWrite {
    storage: FaultStorage,
    writes: Arc<AtomicU64>,
    full_at: Arc<AtomicU64>,
}

impl Storage for CopyOnWrite {
    fn name(&self) -> String {
        self.storage.name()
    }
    fn lock(&self, file: &str) -> io::Result<Option<Lock>> {
        self.storage.lock(file)
    }
    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>> {
        self.storage.list(subdirectory)
    }
    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        let opened = self.storage.open(file)?;
        Ok(match file {
            "state" => Arc::new(StateFile(opened, self.clone())),
            _ => opened,
        })
    }
    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.storage.create(file)
    }
    fn create_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.storage.create_dir(subdirectory)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.storage.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.storage.link(from, to)
    }
    fn remove(&self, file: &str) -> io::Result<()> {
        self.storage.remove(file)
    }
    fn sync_dir(&self, subdirectory: &str) -> io::Result<()> {
        self.storage.sync_dir(subdirectory)
    }
}

#[derive(Debug)]
struct StateFile(Arc<dyn StorageFile>, CopyOnWrite);

impl StorageFile for StateFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let number = self.1.writes.fetch_add(1, Ordering::Relaxed) + 1;
        if number == self.1.full_at.load(Ordering::Relaxed) {
            self.0.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_at(bytes, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[test]
fn a_state_file_that_finds_the_disk_full_loses_nothing() {
    // The first write of the new state, and its copy.
    for nth in 1..=2 {
        let storage = FaultStorage::new();
        drop(open(&storage, &small()).unwrap());
        let cow = CopyOnWrite {
            storage: storage.clone(),
            writes: Arc::default(),
            full_at: Arc::default(),
        };
        let spool = Spool::open_on(Arc::new(cow.clone()), small()).unwrap();
        for _ in 0..3 {
            append(&spool, 100).unwrap();
        }
        let first = spool.peek(1, 0).unwrap().remove(0);
        let next = cow.writes.load(Ordering::Relaxed) + nth;
        cow.full_at.store(next, Ordering::Relaxed);
        let refused = spool.reject(first.position());
        assert!(matches!(refused, Err(Error::DiskFull { .. })));
        // What it then says of itself agrees with what it then does.
        let oldest = spool.stats().unwrap().oldest.unwrap();
        let read = spool.peek(1, 0).unwrap().remove(0);
        assert_eq!(key(&read), oldest, "{nth}");
        assert_eq!(oldest.1, nth);
        let damaged = |name: &String| name.starts_with("damaged/");
        assert!(!storage.files().keys().any(damaged), "{nth}");
        let losses = spool.losses().unwrap();
        assert_eq!(losses.len() as u64, nth - 1);
        assert!(losses.iter().all(|loss| loss.reason == Reason::Refused));
        assert_eq!(drain(&spool).len() as u64, 4 - nth);
    }
}
