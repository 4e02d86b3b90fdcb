//! Bytes that are not what was written: flipped, cut off, zeroed, unreadable,
//! gone. Whatever cannot be delivered is named, and the rest is served.

use std::collections::BTreeMap;

use zk_spool::{
    Damage, End, Error, Full, Loss, Options, Reason, Spool, inspect,
    storage::{Cut, FaultStorage},
};

use crate::common::{Key, append, append_batch, drain, effort, key, names, open, peek_all, small};

/// A store and what should come out of it.
struct Store {
    options: Options,
    files: BTreeMap<String, Vec<u8>>,
    /// What waits, in order.
    waiting: Vec<(Key, Vec<u8>)>,
    /// What was delivered, and may be again if the cursor is damaged.
    delivered: Vec<(Key, Vec<u8>)>,
    losses: Vec<Loss>,
    /// The last group, of which a store that was not closed can't tell whether
    /// it was ever durable.
    last_group: u64,
    closed: bool,
}

fn store(options: Options, closed: bool) -> Store {
    let storage = FaultStorage::new();
    let spool = open(&storage, &options).unwrap();
    let size = options.segment_size.unwrap() as usize;
    append_batch(&spool, &[100; 4]).unwrap();
    append(&spool, 60).unwrap();
    let mut delivered = Vec::new();
    let take = |records: &[zk_spool::Record]| -> Vec<(Key, Vec<u8>)> {
        records
            .iter()
            .map(|r| (key(r), r.bytes().to_vec()))
            .collect()
    };
    let records = spool.peek(2, usize::MAX).unwrap();
    spool.ack(records[1].position()).unwrap();
    delivered.extend(take(&records));
    let third = spool.peek(1, 0).unwrap();
    spool.reject(third[0].position()).unwrap();
    delivered.extend(take(&third));
    let losses = spool.losses().unwrap();
    for _ in 0..3 {
        append_batch(&spool, &[size / 8; 3]).unwrap();
        append(&spool, size / 6).unwrap();
    }
    spool.close().unwrap();
    let spool = open(&storage, &options).unwrap();
    append(&spool, 40).unwrap();
    append_batch(&spool, &[50, 60]).unwrap();
    let waiting = take(&peek_all(&spool).unwrap());
    assert!(spool.stats().unwrap().segments >= 3);
    let storage = if closed {
        spool.close().unwrap();
        storage
    } else {
        storage.after_cut(Cut::All)
    };
    Store {
        options,
        files: storage.files(),
        waiting,
        delivered,
        losses,
        last_group: 2,
        closed,
    }
}

impl Store {
    fn storage(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> FaultStorage {
        let mut files = self.files.clone();
        change(&mut files);
        let storage = FaultStorage::new();
        for (name, bytes) in files {
            storage.put(&name, bytes);
        }
        storage
    }

    fn segments(&self) -> Vec<String> {
        let segments = self.files.keys().filter(|name| name.ends_with(".seg"));
        segments.cloned().collect()
    }

    /// Opens and drains a damaged store, and returns how many records were
    /// lost.
    fn check(&self, storage: &FaultStorage, what: &str) -> usize {
        let spool = open(storage, &self.options).unwrap_or_else(|e| panic!("{what}: {e}"));
        spool.verify().unwrap();
        let early = spool.losses().unwrap();
        let records = drain(&spool);
        let losses = spool.losses().unwrap();
        assert!(
            losses.iter().map(|loss| loss.records).sum::<u64>()
                == early.iter().map(|loss| loss.records).sum::<u64>(),
            "{what}: `verify` finds all there is to find: {early:?} {losses:?}"
        );

        // Whatever comes out is right and in order.
        let all: Vec<_> = self.delivered.iter().chain(&self.waiting).collect();
        let mut places = Vec::new();
        for record in &records {
            let place = all.iter().position(|(known, _)| *known == key(record));
            let place = place.unwrap_or_else(|| panic!("{what}: {record:?} was never appended"));
            assert_eq!(record.bytes(), all[place].1, "{what}");
            places.push(place);
        }
        assert!(places.is_sorted_by(|a, b| a < b), "{what}: {places:?}");

        // Whatever doesn't is named, and nothing else.
        let forgotten = losses
            .iter()
            .any(|l| (l.reason, l.records) == (Reason::Several, 0));
        assert!(!forgotten || what.starts_with("state"), "{what}");
        for loss in &self.losses {
            assert!(
                forgotten || losses.contains(loss),
                "{what}: {loss:?} was forgotten"
            );
        }
        let named = |key: Key| {
            losses
                .iter()
                .filter(|loss| loss.reason == Reason::Damaged && names(loss, key))
                .count()
        };
        let mut lost = 0;
        let last = self.waiting.len() as u64 - self.last_group;
        for (index, (key, _)) in self.waiting.iter().enumerate() {
            let there = records
                .iter()
                .any(|record| crate::common::key(record) == *key);
            if there {
                assert_eq!(named(*key), 0, "{what}: {key:?} is there and named");
            } else if named(*key) == 0 && !self.closed && index as u64 >= last {
                // Nothing tells that it was durable; but its stream ends.
                let before = spool.predecessor().unwrap();
                assert_ne!(before.end, End::Window, "{what}");
                assert!(
                    before.stream == key.0 && before.last_sequence < key.1,
                    "{what}"
                );
            } else {
                assert_eq!(named(*key), 1, "{what}: {key:?} is neither there nor named");
                lost += 1;
            }
        }
        let damaged = losses.iter().filter(|loss| loss.reason == Reason::Damaged);
        let counted: u64 = damaged.map(|loss| loss.records).sum();
        assert_eq!(counted, lost as u64, "{what}");
        assert_eq!(spool.stats().unwrap().records, 0, "{what}");

        // It goes on, and has nothing more to say when it is opened again.
        append(&spool, 100).unwrap();
        let stream = spool.stream();
        drop(spool);
        let spool = open(storage, &self.options).unwrap();
        assert_eq!(spool.stream(), stream, "{what}");
        assert_eq!(spool.losses().unwrap(), losses, "{what}");
        let after = drain(&spool);
        assert_eq!(after.len(), 1, "{what}");
        assert!(
            !all.iter().any(|(known, _)| *known == key(&after[0])),
            "{what}: used twice"
        );
        lost
    }
}

/// How many bytes of the state file to pass over, where they are all the same.
fn stride() -> usize {
    if effort() > 1 { 1 } else { 97 }
}

fn stores() -> [Store; 2] {
    [store(small(), true), store(small(), false)]
}

#[test]
fn an_undamaged_store_has_nothing_to_say() {
    for store in stores() {
        let storage = store.storage(|_| {});
        let spool = open(&storage, &store.options).unwrap();
        let report = spool.verify().unwrap();
        assert_eq!(report.damage, []);
        assert_eq!(
            report.records,
            (store.waiting.len() + store.delivered.len()) as u64
        );
        assert_eq!(spool.predecessor(), None);
        drop(spool);
        assert_eq!(store.check(&storage, "nothing"), 0);
    }
}

#[test]
fn a_bit_flipped_at_every_byte() {
    for store in stores() {
        let mut most = 0;
        for (name, bytes) in &store.files {
            if name.contains('/') {
                continue;
            }
            for at in 0..bytes.len() {
                // Most of the state file is empty, and all of that the same.
                let empty = name == "state" && bytes[at..].iter().take(64).all(|b| *b == 0);
                if empty && at % stride() != 0 {
                    continue;
                }
                let storage = store.storage(|files| {
                    files.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
                });
                let lost = store.check(&storage, &format!("{name}, byte {at}"));
                let group = if name.ends_with(".seg") { 4 } else { 0 };
                assert!(lost <= group, "{name}, byte {at}: {lost} lost");
                most = most.max(lost);
            }
        }
        assert!(most >= 3);
    }
}

#[test]
fn no_damaged_slot_makes_a_loss_forgotten() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    append_batch(&spool, &[50; 3]).unwrap();
    let records = peek_all(&spool).unwrap();
    spool.ack(records[0].position()).unwrap();
    // The loss is the last that was written.
    spool.reject(records[1].position()).unwrap();
    let files = storage.after_cut(Cut::Synced).files();
    let losses = spool.losses().unwrap();
    for at in (0..200).chain(16 << 10..(16 << 10) + 200) {
        let storage = FaultStorage::new();
        for (name, bytes) in &files {
            storage.put(name, bytes.clone());
        }
        let mut state = files["state"].clone();
        state[at] ^= 0x10;
        storage.put("state", state);
        let spool = open(&storage, &small()).unwrap();
        assert_eq!(spool.losses().unwrap(), losses, "byte {at}");
        assert_eq!(spool.peek(1, 0).unwrap()[0].sequence(), 3, "byte {at}");
    }
}

/// With the newest slot damaged the cursor is an older one, and segments behind it
/// were drained since. They are not named as lost, however often it is opened.
#[test]
fn an_older_cursor_names_nothing_as_lost() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    for _ in 0..12 {
        append_batch(&spool, &[300; 3]).unwrap();
    }
    let records = peek_all(&spool).unwrap();
    for acked in [1, 7, 13, 19] {
        spool.ack(records[acked].position()).unwrap();
        let files = storage.files();
        for slot in [0, 16 << 10] {
            let storage = FaultStorage::new();
            for (name, bytes) in &files {
                storage.put(name, bytes.clone());
            }
            let mut state = files["state"].clone();
            state[slot + 30] ^= 1;
            storage.put("state", state);
            for opening in 0..3 {
                let spool = open(&storage, &small()).unwrap();
                assert_eq!(spool.losses().unwrap(), [], "{acked}, {slot}, {opening}");
            }
            let spool = open(&storage, &small()).unwrap();
            assert!(drain(&spool).len() >= records.len() - acked - 1);
            assert_eq!(spool.losses().unwrap(), []);
        }
    }
}

#[test]
fn a_file_cut_off_at_every_byte() {
    for store in stores() {
        for (name, bytes) in &store.files {
            if name.contains('/') {
                continue;
            }
            for len in 0..bytes.len() {
                if name == "state" && len % stride() != 0 {
                    continue;
                }
                // Where a store that was not closed ends at the end of a frame,
                // it ends: nothing tells that there was more.
                let newest = store.segments().last() == Some(name);
                if newest && !store.closed {
                    continue;
                }
                let storage = store.storage(|files| files.get_mut(name).unwrap().truncate(len));
                store.check(&storage, &format!("{name}, cut to {len}"));
            }
        }
    }
}

#[test]
fn bytes_behind_the_end() {
    for store in stores() {
        for name in store.segments() {
            for garbage in [
                vec![0; 1],
                vec![0; 5000],
                vec![0xA5; 700],
                b"\xF5ZK\x1E".repeat(40),
            ] {
                let storage = store.storage(|files| {
                    files.get_mut(&name).unwrap().extend(&garbage);
                });
                let lost = store.check(&storage, &format!("{name}, {} more", garbage.len()));
                assert_eq!(lost, 0);
            }
        }
    }
}

#[test]
fn a_frame_inside_a_record_is_not_taken_for_one() {
    // A record that contains a whole segment of the same spool.
    let storage = FaultStorage::new();
    let options = Options {
        segment_size: Some(16 << 10),
        ..small()
    };
    let spool = open(&storage, &options).unwrap();
    append_batch(&spool, &[30; 5]).unwrap();
    let segment = storage.files()["00000000000000000001.seg"].clone();
    spool
        .append_with(|_| Ok::<_, Error>(segment.clone()))
        .unwrap();
    append(&spool, 10).unwrap();
    spool.close().unwrap();
    let mut files = storage.files();
    let bytes = files.get_mut("00000000000000000001.seg").unwrap();
    // The frame's own header is gone; those it contains are whole.
    bytes[segment.len()..segment.len() + 32].fill(0);
    for (name, bytes) in files {
        storage.put(&name, bytes);
    }
    let spool = open(&storage, &options).unwrap();
    let sequences: Vec<u64> = drain(&spool)
        .iter()
        .map(zk_spool::Record::sequence)
        .collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5, 7]);
    let losses = spool.losses().unwrap();
    assert_eq!((losses[0].first, losses[0].last), (6, 6));
}

#[test]
fn sectors_zeroed_or_unreadable() {
    let options = Options {
        segment_size: Some(8 << 10),
        cap: 128 << 10,
        ..small()
    };
    for closed in [true, false] {
        let mut store = store(options, closed);
        // A sector holds more than the last group.
        store.last_group = 4;
        for (name, bytes) in &store.files {
            if name.contains('/') {
                continue;
            }
            for size in [512, 1024, 4096] {
                for at in (0..bytes.len()).step_by(size) {
                    let end = bytes.len().min(at + size);
                    let zeroed = store.storage(|files| {
                        files.get_mut(name).unwrap()[at..end].fill(0);
                    });
                    store.check(&zeroed, &format!("{name}, {at}..{end} zeroed"));

                    let newest = store.segments().last() == Some(name);
                    if newest && !closed {
                        continue;
                    }
                    let storage = store.storage(|_| {});
                    storage.set_unreadable(name, at as u64..end as u64);
                    store.check(&storage, &format!("{name}, {at}..{end} unreadable"));
                }
            }
        }
    }
}

/// Where the end of a log can't be read, nobody knows what was there. That is
/// said.
#[test]
fn an_unreadable_end_is_named_without_a_number() {
    let store = store(small(), false);
    let newest = store.segments().pop().unwrap();
    let len = store.files[&newest].len() as u64;
    let storage = store.storage(|_| {});
    storage.set_unreadable(&newest, len - 20..len);
    for _ in 0..2 {
        let spool = open(&storage, &store.options).unwrap();
        let losses = spool.losses().unwrap();
        let damaged: Vec<&Loss> = losses
            .iter()
            .filter(|l| l.reason == Reason::Damaged)
            .collect();
        assert_eq!(damaged.len(), 1, "{losses:?}");
        assert_eq!(damaged[0].records, 0);
        // A sector is what can be read or not.
        let (stream, last) = store.waiting.last().unwrap().0;
        assert_eq!(damaged[0].stream, stream);
        assert!((last - 4..last).contains(&damaged[0].first));
        assert_eq!(spool.predecessor().unwrap().end, End::Damaged);
    }
}

#[test]
fn a_file_that_is_gone() {
    for store in stores() {
        let segments = store.segments();
        for name in store.files.keys() {
            let newest = segments.last() == Some(name);
            let storage = FaultStorage::new();
            for (file, bytes) in &store.files {
                if file != name {
                    storage.put(file, bytes.clone());
                }
            }
            if !newest && name != "state" {
                store.check(&storage, &format!("{name} gone"));
                continue;
            }
            let spool = open(&storage, &store.options).unwrap();
            let records = drain(&spool);
            if name == "state" {
                // Delivered once more, and nothing else.
                assert_eq!(records.len(), store.delivered.len() + store.waiting.len());
                let [loss] = spool.losses().unwrap()[..] else {
                    panic!("one loss");
                };
                assert_eq!((loss.reason, loss.records), (Reason::Several, 0));
            } else if store.closed {
                let loss = *spool.losses().unwrap().last().unwrap();
                assert_eq!((loss.reason, loss.records), (Reason::Damaged, 0));
                let last = records.last().unwrap();
                assert_eq!(
                    (loss.stream, loss.first),
                    (last.stream(), last.sequence() + 1)
                );
                assert_eq!(spool.predecessor().unwrap().end, End::Damaged);
                assert_ne!(spool.stream(), last.stream());
            }
        }
    }
}

/// Opening reads the newest segment. What is damaged in it and was delivered is not
/// lost; and what was lost, passed and confirmed is not lost again.
#[test]
fn damage_behind_the_cursor_is_not_named() {
    let storage = FaultStorage::new();
    let options = Options {
        segment_size: Some(16 << 10),
        ..small()
    };
    let spool = open(&storage, &options).unwrap();
    for _ in 0..4 {
        append(&spool, 100).unwrap();
    }
    let records = peek_all(&spool).unwrap();
    spool.ack(records[0].position()).unwrap();
    spool.close().unwrap();
    let name = "00000000000000000001.seg";
    let mut bytes = storage.files()[name].clone();
    for record in &records[..2] {
        let at = bytes
            .windows(record.bytes().len())
            .position(|part| part == record.bytes());
        bytes[at.unwrap()] ^= 1;
    }
    storage.put(name, bytes);
    let spool = open(&storage, &options).unwrap();
    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!((losses[0].first, losses[0].last), (2, 2));
    spool.confirm(losses[0].id).unwrap();
    assert_eq!(drain(&spool).len(), 2);
    for _ in 0..2 {
        let spool = open(&storage.after_cut(Cut::All), &options).unwrap();
        assert_eq!(spool.losses().unwrap(), []);
    }
}

/// That the newest segment is gone is known until another one is there, whatever is
/// acknowledged meanwhile: the numbers in it are not given out again.
#[test]
fn a_newest_segment_that_is_gone_stays_known() {
    let store = store(small(), true);
    let newest = store.segments().pop().unwrap();
    let storage = store.storage(|files| drop(files.remove(&newest)));
    let (stream, _) = store.waiting[0].0;
    for _ in 0..3 {
        let spool = open(&storage, &store.options).unwrap();
        assert_ne!(spool.stream(), stream);
        assert_eq!(spool.predecessor().unwrap().stream, stream);
        let records = spool.peek(1, 0).unwrap();
        spool.ack(records[0].position()).unwrap();
        spool.close().unwrap();
    }
    let spool = open(&storage, &store.options).unwrap();
    assert_eq!(append(&spool, 10).unwrap(), 1);
    let after = spool.stream();
    assert_ne!(after, stream);
    spool.close().unwrap();
    let spool = open(&storage, &store.options).unwrap();
    assert_eq!(spool.stream(), after);
    let losses = spool.losses().unwrap();
    let doubts = losses.iter().filter(|loss| loss.records == 0);
    assert_eq!(doubts.count(), 1, "{losses:?}");
}

#[test]
fn damage_is_found_when_reading_comes_to_it() {
    let store = store(small(), true);
    let second = &store.segments()[1];
    let storage = store.storage(|files| files.get_mut(second).unwrap()[1200] ^= 1);
    let spool = open(&storage, &store.options).unwrap();
    // A sealed segment is not read at open.
    assert_eq!(spool.losses().unwrap(), store.losses);
    assert_eq!(spool.predecessor(), None);
    let mut delivered = 0;
    let found = loop {
        let records = spool.peek(1, 0).unwrap();
        let losses = spool.losses().unwrap();
        if losses.len() > store.losses.len() {
            break losses;
        }
        delivered += records.len();
        spool.ack(records[0].position()).unwrap();
    };
    assert!(delivered > 0);
    // The segment is kept, and is so when the rest of it is drained.
    drain(&spool);
    assert!(!storage.files().contains_key(second));
    assert!(storage.files().contains_key(&format!("damaged/{second}")));
    assert_eq!(spool.losses().unwrap(), found);
}

#[test]
fn damage_that_was_confirmed_is_not_reported_again() {
    let store = store(small(), true);
    let second = &store.segments()[1];
    let storage = store.storage(|files| files.get_mut(second).unwrap()[1200] ^= 1);
    let spool = open(&storage, &store.options).unwrap();
    assert_eq!(spool.verify().unwrap().damage.len(), 1);
    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), store.losses.len() + 1);
    spool.confirm(losses.last().unwrap().id).unwrap();
    drop(spool);
    let spool = open(&storage, &store.options).unwrap();
    spool.verify().unwrap();
    drain(&spool);
    assert_eq!(spool.losses().unwrap(), []);
}

#[test]
fn damage_next_to_confirmed_damage_is_reported() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    for _ in 0..3 {
        append_batch(&spool, &[100; 2]).unwrap();
    }
    spool.close().unwrap();
    let name = "00000000000000000001.seg";
    let flip = |at: usize| {
        let mut bytes = storage.files()[name].clone();
        bytes[at] ^= 1;
        storage.put(name, bytes);
    };
    // 1024 + 40, then frames of 32 + 2 * 104.
    for (at, first) in [(1304, 3), (1544, 5), (1064, 1)] {
        flip(at + 50);
        let spool = open(&storage, &small()).unwrap();
        spool.verify().unwrap();
        let [loss] = spool.losses().unwrap()[..] else {
            panic!("one new loss");
        };
        assert_eq!((loss.first, loss.last), (first, first + 1));
        spool.confirm(loss.id).unwrap();
    }
    let spool = open(&storage, &small()).unwrap();
    assert!(drain(&spool).is_empty());
    assert!(spool.losses().unwrap().is_empty());
}

#[test]
fn damaged_segments_kept_are_bounded() {
    for (evidence, kept) in [(None, 4), (Some(0), 0), (Some(3 << 10), 1)] {
        let options = Options {
            evidence,
            ..small()
        };
        let store = store(options, true);
        let storage = store.storage(|files| {
            for (name, bytes) in files {
                if name.ends_with(".seg") {
                    bytes[1100] ^= 1;
                }
            }
        });
        let spool = open(&storage, &store.options).unwrap();
        spool.verify().unwrap();
        drain(&spool);
        let damaged = |name: &&String| name.starts_with("damaged/");
        assert_eq!(storage.files().keys().filter(damaged).count(), kept);
    }
}

/// What is set aside is as durable as the loss that tells of it.
#[test]
fn what_is_set_aside_stays() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    for _ in 0..4 {
        append_batch(&spool, &[300; 3]).unwrap();
    }
    let refused = spool.peek(1, 0).unwrap().remove(0);
    spool.reject(refused.position()).unwrap();
    let second = "00000000000000000002.seg";
    storage.set_unreadable(second, 1600..1601);
    drain(&spool);
    for cut in [Cut::Synced, Cut::Torn(1), Cut::Random(2), Cut::Random(3)] {
        let left = storage.after_cut(cut).files();
        let mut rejected = left
            .iter()
            .filter(|(name, _)| name.starts_with("rejected/"));
        let (_, bytes) = rejected.next().expect("it is kept");
        assert_eq!(bytes, refused.bytes(), "{cut:?}");
        assert!(left.contains_key(&format!("damaged/{second}")), "{cut:?}");
    }
}

#[test]
fn a_bad_sector_in_a_running_spool_is_passed() {
    let directory = FaultStorage::new();
    let spool: Spool = open(&directory, &small()).unwrap();
    for _ in 0..3 {
        append_batch(&spool, &[300; 3]).unwrap();
    }
    directory.set_unreadable("00000000000000000002.seg", 1600..1601);
    let sequences: Vec<u64> = drain(&spool)
        .iter()
        .map(zk_spool::Record::sequence)
        .collect();
    assert_eq!(sequences, [1, 2, 3, 7, 8, 9]);
    let losses = spool.losses().unwrap();
    let Loss {
        reason,
        first,
        last,
        ..
    } = losses[0];
    assert_eq!((reason, first, last), (Reason::Damaged, 4, 6));
    // A medium that is gone altogether is another thing.
    append(&spool, 50).unwrap();
    directory.cut_at(directory.operations() + 1);
    assert!(matches!(append(&spool, 50), Err(Error::Io { .. })));
}

/// A sector that can't be read counts as zeros, and a record may have ended with those: it
/// is there, and what the medium refuses to give does not keep the spool from being opened.
#[test]
fn zeros_that_can_not_be_read() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    append(&spool, 50).unwrap();
    spool
        .append_with(|_| Ok::<_, Error>(vec![0; 3000]))
        .unwrap();
    let storage = storage.after_cut(Cut::Synced);
    let newest = "00000000000000000002.seg";
    let len = storage.files()[newest].len() as u64;
    storage.set_unreadable(newest, len - 1..len);
    let spool = open(&storage, &small()).unwrap();
    let there = drain(&spool);
    assert_eq!(there.len(), 2);
    assert_eq!(there[1].bytes(), [0; 3000]);
    assert_eq!(spool.losses().unwrap(), []);
}

/// The end of an older segment tells of no record, and is found to be damaged all the
/// same: it may be what the next damage would have been told by.
#[test]
fn a_lost_end_of_an_older_segment_is_reported() {
    for store in stores() {
        let segments = store.segments();
        for name in &segments[..segments.len() - 1] {
            let end = store.files[name].len();
            for (cut, place) in [(None, 80), (None, 1), (Some(80), 0), (Some(1), 79)] {
                let storage = store.storage(|files| {
                    let bytes = files.get_mut(name).unwrap();
                    match cut {
                        None => bytes[end - place] ^= 1,
                        Some(cut) => bytes.truncate(end - cut),
                    }
                });
                let spool = open(&storage, &store.options).unwrap();
                let [damage] = &spool.verify().unwrap().damage[..] else {
                    panic!("{name}: one place");
                };
                let bytes = cut.map_or(80, |cut| 80 - cut as u64);
                let expected = (name, end as u64 - 80, bytes, None);
                let Damage {
                    file,
                    offset,
                    bytes,
                    lost,
                    ..
                } = damage;
                assert_eq!((file, *offset, *bytes, *lost), expected);
                assert_eq!(spool.losses().unwrap(), store.losses);
            }
        }
    }
}

/// Where a segment begins is not known when its start is gone. What it held
/// there is named all the same.
#[test]
fn the_lost_start_of_a_segment_is_named() {
    for drained in 1..8 {
        let storage = FaultStorage::new();
        let options = Options {
            segment_size: Some(16 << 10),
            ..small()
        };
        let spool = open(&storage, &options).unwrap();
        for _ in 0..20 {
            append(&spool, 500).unwrap();
        }
        let records = peek_all(&spool).unwrap();
        spool.ack(records[drained - 1].position()).unwrap();
        spool.close().unwrap();
        let name = "00000000000000000001.seg";
        let mut bytes = storage.files()[name].clone();
        bytes[..4096].fill(0);
        storage.put(name, bytes);

        let spool = open(&storage, &options).unwrap();
        let there: Vec<u64> = drain(&spool)
            .iter()
            .map(zk_spool::Record::sequence)
            .collect();
        let losses = spool.losses().unwrap();
        for sequence in drained as u64 + 1..=20 {
            let key = (records[0].stream(), sequence);
            let named = losses.iter().filter(|loss| names(loss, key)).count();
            let there = there.iter().filter(|there| **there == sequence).count();
            assert_eq!(named + there, 1, "{sequence} of {drained}: {losses:?}");
        }
        assert!(there.contains(&20));
    }
}

/// The same where nothing of its stream was drained yet.
#[test]
fn the_lost_start_of_a_stream_is_named() {
    let storage = FaultStorage::new();
    let options = Options {
        segment_size: Some(8 << 10),
        ..small()
    };
    let spool = open(&storage, &options).unwrap();
    let stream = spool.stream();
    for _ in 0..30 {
        append(&spool, 500).unwrap();
    }
    spool.close().unwrap();
    let name = "00000000000000000001.seg";
    let mut bytes = storage.files()[name].clone();
    let end = bytes.len();
    bytes[..4096].fill(0);
    bytes[end - 40..].fill(0);
    storage.put(name, bytes);
    let spool = open(&storage, &options).unwrap();
    let there = drain(&spool);
    let losses = spool.losses().unwrap();
    let first = there[0].sequence();
    assert!(first > 1);
    assert_eq!(losses.len(), 1);
    assert_eq!((losses[0].first, losses[0].last), (1, first - 1));
    assert_eq!(losses[0].stream, stream);
}

/// The same where nothing at all was drained, and the only segment has lost its
/// first page.
#[test]
fn the_lost_start_of_the_only_segment_is_named() {
    for closed in [true, false] {
        let storage = FaultStorage::new();
        let options = Options {
            segment_size: Some(16 << 10),
            ..small()
        };
        let spool = open(&storage, &options).unwrap();
        let stream = spool.stream();
        for _ in 0..20 {
            append(&spool, 500).unwrap();
        }
        let storage = if closed {
            spool.close().unwrap();
            storage
        } else {
            storage.after_cut(Cut::Synced)
        };
        let name = "00000000000000000001.seg";
        let mut bytes = storage.files()[name].clone();
        bytes[..4096].fill(0);
        storage.put(name, bytes);
        let spool = open(&storage, &options).unwrap();
        let there = drain(&spool);
        let losses = spool.losses().unwrap();
        let first = there[0].sequence();
        assert_eq!(there.len() as u64, 21 - first);
        assert!(there.iter().all(|record| record.stream() == stream));
        assert_eq!(losses.len(), 1, "{losses:?}");
        assert_eq!(losses[0].stream, stream);
        assert_eq!((losses[0].first, losses[0].last), (1, first - 1));
    }
}

/// Where more is lost than the table holds, damage that reading will come upon
/// again keeps its place, so that it is counted once.
#[test]
fn damage_ahead_is_not_counted_twice() {
    let options = Options {
        segment_size: Some(128 << 10),
        cap: 1 << 20,
        ..small()
    };
    let storage = FaultStorage::new();
    let spool = open(&storage, &options).unwrap();
    for _ in 0..500 {
        append(&spool, 100).unwrap();
    }
    spool.close().unwrap();
    let name = "00000000000000000001.seg";
    let mut bytes = storage.files()[name].clone();
    for record in (200..500).step_by(2) {
        bytes[1064 + 136 * record + 60] ^= 1;
    }
    storage.put(name, bytes);
    let spool = open(&storage, &options).unwrap();
    assert_eq!(spool.losses().unwrap().len(), 150);
    for _ in 0..100 {
        let records = spool.peek(2, usize::MAX).unwrap();
        spool.reject(records[0].position()).unwrap();
        spool.ack(records[1].position()).unwrap();
    }
    assert_eq!(drain(&spool).len(), 150);
    let losses = spool.losses().unwrap();
    let count = |reason| -> u64 {
        let of_it = losses.iter().filter(|loss| loss.reason == reason);
        of_it.map(|loss| loss.records).sum()
    };
    assert_eq!(count(Reason::Damaged), 150);
    assert_eq!(count(Reason::Refused) + count(Reason::Several), 100);
}

/// A file system that knows its damage does not even open a file.
#[test]
fn a_file_that_can_not_be_opened() {
    for store in stores() {
        let segments = store.segments();
        for name in &segments[..segments.len() - 1] {
            let storage = store.storage(|_| {});
            storage.set_unreadable(name, 0..u64::MAX);
            store.check(&storage, &format!("{name} can't be opened"));

            // It happens while the spool is open.
            let storage = store.storage(|_| {});
            let spool = open(&storage, &store.options).unwrap();
            storage.set_unreadable(name, 0..u64::MAX);
            let there = drain(&spool);
            assert!(there.len() < store.waiting.len());
            let losses = spool.losses().unwrap();
            for (key, _) in &store.waiting {
                let there = there
                    .iter()
                    .filter(|r| crate::common::key(r) == *key)
                    .count();
                let damaged = losses.iter().filter(|l| l.reason == Reason::Damaged);
                let named = damaged.filter(|loss| names(loss, *key)).count();
                assert_eq!(there + named, 1, "{name}: {key:?}");
            }
        }
        // What the newest held can't be known, but that it is gone is said.
        let newest = segments.last().unwrap();
        let storage = store.storage(|_| {});
        storage.set_unreadable(newest, 0..u64::MAX);
        let spool = open(&storage, &store.options).unwrap();
        drain(&spool);
        assert_eq!(spool.predecessor().unwrap().end, End::Damaged);
        let losses = spool.losses().unwrap();
        assert!(losses.iter().any(|loss| loss.reason == Reason::Damaged));
    }
}

/// Of a segment that nothing can be read of, the state file may know the stream
/// and what was done.
#[test]
fn a_segment_gone_to_zeros_is_named_by_what_the_state_file_knows() {
    for len in [0, 700, 8000] {
        let storage = FaultStorage::new();
        let options = Options {
            segment_size: Some(16 << 10),
            ..small()
        };
        let spool = open(&storage, &options).unwrap();
        let stream = spool.stream();
        for _ in 0..10 {
            append(&spool, 300).unwrap();
        }
        let records = peek_all(&spool).unwrap();
        spool.ack(records[3].position()).unwrap();
        spool.close().unwrap();
        storage.put("00000000000000000001.seg", vec![0; len]);

        for _ in 0..2 {
            let spool = open(&storage, &options).unwrap();
            assert!(peek_all(&spool).unwrap().is_empty());
            let losses = spool.losses().unwrap();
            assert!(
                losses.iter().all(|loss| loss.stream == stream),
                "{losses:?}"
            );
            let counted: u64 = losses.iter().map(|loss| loss.records).sum();
            assert_eq!(counted, 6, "{losses:?}");
            assert_eq!((losses[0].first, losses[0].last), (5, 10));
            let before = spool.predecessor().unwrap();
            assert_eq!((before.stream, before.last_sequence), (stream, 10));
            assert_eq!(spool.stats().unwrap().acked.unwrap().0, stream);
        }
    }
}

/// A length that a damaged file system made up is not read byte by byte: this
/// would take hours.
#[test]
fn a_hole_of_terabytes() {
    let directory = tempfile::tempdir().unwrap();
    for full in [Full::Reject, Full::DropOldest] {
        let path = directory.path().join(format!("{full:?}"));
        let options = Options { full, ..small() };
        let spool = Spool::open(&path, options).unwrap();
        append_batch(&spool, &[100; 3]).unwrap();
        spool.close().unwrap();
        let segment = path.join("00000000000000000001.seg");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(segment)
            .unwrap();
        file.set_len(8 << 40).unwrap();
        let spool = Spool::open(&path, options).unwrap();
        assert_eq!(drain(&spool).len(), 3);
        assert_eq!(append(&spool, 100).unwrap(), 1);
        assert_eq!(spool.stats().unwrap().segments, 1);
        assert!(spool.stats().unwrap().disk_bytes < 64 << 10);
    }
}

/// What is not known when the state file is gone, the next opening does not know
/// either: records that may have been delivered are not named as lost then. And what
/// can be known is said at once.
#[test]
fn what_one_opening_could_not_tell_the_next_one_does_not_make_up() {
    for (zeroed, exact) in [(0..1, false), (0..2, false), (1..2, true)] {
        let store = store(small(), true);
        let segments = store.segments();
        assert!(segments.len() > zeroed.end);
        let storage = store.storage(|files| {
            files.remove("state");
            for segment in &segments[zeroed.clone()] {
                files.insert(segment.clone(), vec![0; 2000]);
            }
        });
        let look = || {
            let spool = open(&storage, &store.options).unwrap();
            let losses = spool.losses().unwrap();
            let waiting: Vec<Key> = peek_all(&spool).unwrap().iter().map(key).collect();
            (losses, waiting)
        };
        let first = look();
        let counted: u64 = first.0.iter().map(|loss| loss.records).sum();
        assert_eq!(counted > 0, exact, "{first:?}");
        assert_eq!(look(), first);
    }
}

/// As long as a file can be, each of them: together they are longer than can be
/// counted, and nothing can be written behind their ends.
#[test]
fn lengths_that_no_file_has() {
    for full in [Full::Reject, Full::DropOldest] {
        // On a tmpfs, a file may be.
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = Options { full, ..small() };
        let spool = Spool::open(directory.path(), options).unwrap();
        for _ in 0..30 {
            append(&spool, 100).unwrap();
        }
        let segments = spool.stats().unwrap().segments as u64;
        assert!(segments > 3);
        spool.close().unwrap();
        for number in 1..=segments {
            let segment = directory.path().join(format!("{number:020}.seg"));
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(segment)
                .unwrap();
            file.set_len(i64::MAX as u64).unwrap();
            let kept = directory.path().join(format!("damaged/{number:020}.seg"));
            std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
            let kept = std::fs::File::create(kept).unwrap();
            kept.set_len(i64::MAX as u64).unwrap();
        }
        let seen = inspect(directory.path()).unwrap().unwrap();
        assert_ne!(seen.verify(|_| {}).unwrap().damage, []);
        let spool = Spool::open(directory.path(), options).unwrap();
        assert_eq!(spool.stats().unwrap().disk_bytes, u64::MAX);
        spool.verify().unwrap();
        if full == Full::Reject {
            assert!(matches!(append(&spool, 100), Err(Error::Full { .. })));
        }
        assert_eq!(drain(&spool).len(), 30);
        assert_eq!(append(&spool, 100).unwrap(), 1);
        assert!(spool.stats().unwrap().disk_bytes < 64 << 10);
    }
}

/// A segment that was drained and unlinked, and whose name a power cut brings back, with
/// whatever in it: what was delivered is not lost.
#[test]
fn what_comes_back_ruined_was_done() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    for _ in 0..40 {
        append(&spool, 100).unwrap();
    }
    let before = storage.files();
    let segments = spool.stats().unwrap().segments;
    // Into the second but one, so that the cursor is behind the first.
    while spool.stats().unwrap().segments > segments - 2 {
        let oldest = spool.peek(1, 0).unwrap().pop().unwrap();
        spool.ack(oldest.position()).unwrap();
    }
    let waiting: Vec<_> = peek_all(&spool).unwrap().iter().map(key).collect();
    drop(spool);
    let after = storage.files();
    let first = before.keys().find(|name| name.ends_with(".seg")).unwrap();
    assert!(!after.contains_key(first));
    let len = before[first].len();
    for ruined in [vec![], vec![0; 700], vec![0; len], vec![0xA5; len]] {
        let storage = FaultStorage::new();
        for (name, bytes) in &after {
            storage.put(name, bytes.clone());
        }
        storage.put(first, ruined);
        let spool = open(&storage, &small()).unwrap();
        assert_eq!(spool.losses().unwrap(), []);
        let there: Vec<_> = drain(&spool).iter().map(key).collect();
        assert_eq!(there, waiting);
        assert!(!storage.files().contains_key(first));
    }
}
