//! Stream behind stream, as crashes make them, and parts of them gone: each record is
//! delivered or named, once, and whoever looks from outside sees the same.

use std::{collections::BTreeMap, fs, ops::ControlFlow, time::Duration};

use zk_spool::{
    Loss, Options, Reason, Spool, StreamId, SyncPolicy, inspect,
    storage::{Cut, FaultStorage},
};

use crate::common::{Key, append, drain, key, names, open, peek_all, quick_directory, small};

type Files = BTreeMap<String, Vec<u8>>;

fn windowed() -> Options {
    Options {
        sync: SyncPolicy::Every(Duration::from_secs(1 << 20)),
        ..small()
    }
}

fn segment(number: usize) -> String {
    format!("{number:020}.seg")
}

fn storage(files: &Files) -> FaultStorage {
    let storage = FaultStorage::new();
    for (name, bytes) in files {
        storage.put(name, bytes.clone());
    }
    storage
}

/// Sessions that make so many records durable each, and then lose power. Each is a
/// stream, and a segment of its own.
fn sessions(records: &[u64]) -> (FaultStorage, Vec<StreamId>) {
    sessions_behind(FaultStorage::new(), records)
}

fn sessions_behind(mut storage: FaultStorage, records: &[u64]) -> (FaultStorage, Vec<StreamId>) {
    let mut streams = Vec::new();
    for records in records {
        let spool = open(&storage, &windowed()).unwrap();
        streams.push(spool.stream());
        for _ in 0..*records {
            append(&spool, 30).unwrap();
        }
        spool.sync().unwrap();
        // Nothing of this becomes durable but the segment that it makes.
        append(&spool, 30).unwrap();
        storage = storage.after_cut(Cut::Synced);
    }
    (storage, streams)
}

/// The losses by damage, in order.
fn damaged(spool: &Spool) -> Vec<(StreamId, u64, u64)> {
    let losses = spool.losses().unwrap();
    let damaged = losses.iter().filter(|l| l.reason == Reason::Damaged);
    damaged.map(|l| (l.stream, l.first, l.last)).collect()
}

/// What is seen from outside: the records that wait, and whether all is well.
fn look(files: &Files) -> (Vec<Key>, bool) {
    let directory = quick_directory();
    for (name, bytes) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let seen = inspect(directory.path()).unwrap().unwrap();
    let mut waiting = Vec::new();
    seen.visit(|record| {
        waiting.push(key(&record));
        ControlFlow::Continue(())
    })
    .unwrap();
    (waiting, seen.verify(|_| {}).unwrap().damage.is_empty())
}

/// Opens what is left of the files: each record of those that waited is delivered, or
/// named, and only once; a look from outside shows the former, and that there is
/// something wrong if there are any of the latter.
fn check(files: &Files, waiting: &[Key], what: &str) {
    let (seen, is_well) = look(files);
    let spool = open(&storage(files), &windowed()).unwrap();
    let there: Vec<Key> = drain(&spool).iter().map(key).collect();
    assert_eq!(seen, there, "{what}");
    let losses = spool.losses().unwrap();
    let known = |loss: &&Loss| loss.reason == Reason::Damaged && loss.records > 0;
    for waiting in waiting {
        let named = losses.iter().filter(known);
        let named = named.filter(|loss| names(loss, *waiting)).count();
        let there = there.iter().filter(|there| *there == waiting).count();
        assert_eq!(named + there, 1, "{what}: {waiting:?}: {losses:?}");
    }
    let counted: u64 = losses.iter().filter(known).map(|loss| loss.records).sum();
    assert_eq!(counted, (waiting.len() - there.len()) as u64, "{what}");
    assert!(!is_well || counted == 0, "{what}: nothing is seen of that");
}

/// A whole stream is gone, in front of a segment without a record. That is said once,
/// whatever of the rest is drained when.
#[test]
fn a_confirmed_loss_is_not_named_again() {
    for drained in 0..3 {
        let (whole, streams) = sessions(&[2, 3, 0, 0]);
        let mut files = whole.files();
        files.remove(&segment(2));
        let storage = storage(&files);
        let spool = open(&storage, &windowed()).unwrap();
        assert_eq!(damaged(&spool), [(streams[1], 1, 3)]);
        for record in peek_all(&spool).unwrap().iter().take(drained) {
            spool.ack(record.position()).unwrap();
        }
        let last = spool.losses().unwrap().last().unwrap().id;
        spool.confirm(last).unwrap();
        drop(spool);
        for _ in 0..2 {
            let spool = open(&storage, &windowed()).unwrap();
            assert_eq!(damaged(&spool), [], "{drained} drained");
            assert_eq!(peek_all(&spool).unwrap().len(), 2 - drained);
            spool.close().unwrap();
        }
        // It is forgotten when all that it stood between is done.
        let spool = open(&storage, &windowed()).unwrap();
        append(&spool, 30).unwrap();
        spool.sync().unwrap();
        drain(&spool);
        drop(spool);
        let spool = open(&storage, &windowed()).unwrap();
        assert_eq!(damaged(&spool), []);
    }
}

/// Only one slot can be read, and the segment that its cursor is in holds no record: a
/// power cut brought its name back.
#[test]
fn the_second_opening_names_no_more_than_the_first() {
    for slot in [0, 16 << 10] {
        let (empty, _) = sessions(&[0]);
        let first = empty.files().remove(&segment(1)).unwrap();
        let (whole, _) = sessions_behind(empty, &[3, 1]);
        let mut files = whole.files();
        files.insert(segment(1), first);
        files.remove(&segment(2)).unwrap();
        files.get_mut("state").unwrap()[slot + 20] ^= 1;
        let storage = storage(&files);
        let first = damaged(&open(&storage, &windowed()).unwrap());
        let second = damaged(&open(&storage, &windowed()).unwrap());
        assert_eq!(first, second, "slot at {slot}");
    }
}

/// Each segment gone, or cut off at each of its frames, with so many records done.
#[test]
fn where_streams_meet_what_is_gone_is_named_and_seen() {
    for records in [&[2, 3, 0, 2, 1][..], &[0, 2, 0, 0, 3, 1], &[3, 0, 1, 1]] {
        let (whole, _) = sessions(records);
        assert!(look(&whole.files()).1, "{records:?}: nothing is wrong");
        let total: u64 = records.iter().sum();
        for done in 0..total as usize {
            let storage = whole.after_cut(Cut::All);
            let spool = open(&storage, &windowed()).unwrap();
            let all = peek_all(&spool).unwrap();
            assert_eq!(all.len() as u64, total);
            if let Some(last) = done.checked_sub(1) {
                spool.ack(all[last].position()).unwrap();
            }
            let waiting: Vec<Key> = all[done..].iter().map(key).collect();
            drop(spool);
            let files = storage.files();
            // What the newest held is another matter.
            for number in 1..records.len() {
                let name = segment(number);
                let Some(bytes) = files.get(&name) else {
                    continue;
                };
                let what = format!("{records:?}, {done} done, {number}");
                let mut left = files.clone();
                left.remove(&name);
                check(&left, &waiting, &format!("{what} gone"));
                let mark = b"\xF5ZK\x1E";
                let frames = (1024..bytes.len()).filter(|at| bytes[*at..].starts_with(mark));
                for at in frames {
                    left.insert(name.clone(), bytes[..at].to_vec());
                    check(&left, &waiting, &format!("{what} cut to {at}"));
                }
            }
        }
    }
}

/// A segment is gone, and of the one before it there are no ends: of the streams that
/// only those held the headers behind them tell. The records in the latter are found.
#[test]
fn streams_that_no_segment_tells_of_are_named() {
    let (whole, streams) = sessions(&[1, 2, 0, 2, 1]);
    let waiting: Vec<Key> = [(0, 1), (1, 1), (1, 2), (3, 1), (3, 2), (4, 1)]
        .map(|(stream, sequence)| (streams[stream], sequence))
        .to_vec();
    for header_only in [true, false] {
        for first_is_gone in [true, false] {
            let mut files = whole.files();
            files.remove(&segment(4));
            if first_is_gone {
                files.remove(&segment(1));
            }
            let bytes = files.get_mut(&segment(2)).unwrap();
            let end = bytes.len();
            bytes[..1024].fill(0);
            bytes[end - 80..].fill(0);
            if !header_only {
                bytes.fill(0);
            }
            check(&files, &waiting, &format!("{header_only} {first_is_gone}"));
            let spool = open(&storage(&files), &windowed()).unwrap();
            let found = if header_only { 4 } else { 2 };
            let found = found - usize::from(first_is_gone);
            let there = drain(&spool).len();
            assert_eq!(there, found, "{header_only} {first_is_gone}");
        }
    }
}

/// Streams that were durable, newest first, each with its last sequence and its last
/// segment; of one that left no trace nothing.
#[test]
fn a_header_lists_the_streams_before_its_own() {
    for (records, kept) in [(&[2, 0, 3, 1][..], 2), (&[1; 17], 13)] {
        let (storage, streams) = sessions(records);
        let files = storage.files();
        let header = &files[&segment(records.len())][..512];
        let mut before: Vec<_> = records.iter().zip(&streams).zip(1_u64..).collect();
        before.pop();
        before.retain(|((records, _), _)| **records > 0);
        let mut list = Vec::new();
        for ((records, stream), segment) in before.into_iter().rev().take(kept) {
            list.extend(stream.0);
            list.extend(records.to_be_bytes());
            list.extend(segment.to_be_bytes());
        }
        assert_eq!(list.len(), 32 * kept);
        assert_eq!(header[48..72], list[..24], "the predecessor");
        list.resize(512 - 80, 0);
        assert_eq!(header[80..], list);
    }
}

/// The cursor stands before the first record of a stream, and all of that is gone, with
/// the next one: both are named, and not what was delivered before them.
#[test]
fn streams_from_the_cursor_on_are_named() {
    for (there, is_back) in [(true, false), (false, false), (false, true)] {
        let (storage, old) = sessions(&[2]);
        let first = storage.files().remove(&segment(1)).unwrap();
        let spool = open(&storage, &windowed()).unwrap();
        append(&spool, 30).unwrap();
        spool.sync().unwrap();
        assert_eq!(drain(&spool).len(), 3);
        let storage = storage.after_cut(Cut::All);
        drop(spool);
        // One whose cursor is set to where its only segment begins.
        let (storage, streams) = sessions_behind(storage, &[2]);
        let mut files = storage.files();
        files.remove(&segment(2));
        files.remove("state");
        let storage = self::storage(&files);
        drop(open(&storage, &windowed()).unwrap());
        let (storage, behind) = sessions_behind(storage, &[3, 1]);
        let mut files = storage.files();
        let waiting = [
            (streams[0], 1),
            (streams[0], 2),
            (behind[0], 1),
            (behind[0], 2),
        ];
        let mut waiting = waiting.to_vec();
        waiting.extend([(behind[0], 3), (behind[1], 1)]);
        if !there {
            files.remove(&segment(3)).unwrap();
            files.remove(&segment(4)).unwrap();
        }
        if is_back {
            // It was unlinked, and the power cut.
            files.insert(segment(1), first);
        }
        check(&files, &waiting, &format!("{there} {is_back}"));
        let spool = open(&self::storage(&files), &windowed()).unwrap();
        assert!(damaged(&spool).iter().all(|(stream, ..)| *stream != old[0]));
    }
}

/// One that is not the newest lost its end, and a record in it that no later frame knows
/// to have been durable: the next segment knows, of this stream or of another.
#[test]
fn a_segment_without_its_end_is_seen_as_far_as_it_is_delivered() {
    let whole = FaultStorage::new();
    let spool = open(&whole, &windowed()).unwrap();
    for _ in 0..20 {
        append(&spool, 200).unwrap();
    }
    spool.close().unwrap();
    let (streams, _) = sessions(&[5, 5, 1]);
    for storage in [whole, streams] {
        let spool = open(&storage.after_cut(Cut::All), &windowed()).unwrap();
        let waiting: Vec<Key> = peek_all(&spool).unwrap().iter().map(key).collect();
        assert!(spool.stats().unwrap().segments > 2);
        for number in 1..3 {
            let mut files = storage.files();
            let bytes = files.get_mut(&segment(number)).unwrap();
            let end = bytes.len();
            bytes[end - 40..].fill(0);
            // In the first record.
            bytes[1120] ^= 1;
            check(&files, &waiting, &format!("segment {number}"));
            let spool = open(&self::storage(&files), &windowed()).unwrap();
            assert_eq!(drain(&spool).len(), waiting.len() - 1);
        }
    }
}
