//! Looking at a spool from outside: right beside a live one, and without a
//! trace.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    ops::ControlFlow,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use tempfile::TempDir;
use zk_spool::{Error, Inspection, Options, Reason, Record, Spool, inspect};

use crate::common::{Random, append, append_batch, content, key, peek_all, small};

fn place() -> (TempDir, std::path::PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("spool");
    (parent, dir)
}

/// All there is to see of a directory's files.
fn files(dir: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime, u32)> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            let seen = (
                fs::read(entry.path()).unwrap(),
                metadata.modified().unwrap(),
                metadata.permissions().mode(),
            );
            (entry.file_name().into_string().unwrap(), seen)
        })
        .collect()
}

fn look(dir: &Path) -> Inspection {
    inspect(dir).unwrap().expect("there is a spool")
}

/// All that waits.
fn waiting(seen: &Inspection) -> Vec<Record> {
    let mut records = Vec::new();
    seen.visit(|record| {
        records.push(record);
        ControlFlow::Continue(())
    })
    .unwrap();
    records
}

fn all(records: &[Record]) -> Vec<(zk_spool::StreamId, u64, Vec<u8>)> {
    let all = |record: &Record| (record.stream(), record.sequence(), record.bytes().to_vec());
    records.iter().map(all).collect()
}

#[test]
fn it_sees_what_the_owner_sees_and_leaves_no_trace() {
    let (_parent, dir) = place();
    let spool = Spool::open(&dir, small()).unwrap();
    let mut random = Random(7);
    for round in 0..120 {
        match random.below(3) {
            0 => drop(append(&spool, 20 + random.below(700) as usize).unwrap()),
            1 => drop(append_batch(&spool, &[30, 40, 500]).unwrap()),
            _ => {
                if let Some(record) = spool.peek(3, 9999).unwrap().pop() {
                    spool.ack(record.position()).unwrap();
                }
            }
        }
        let before = files(&dir);
        let seen = look(&dir);
        let peeked = waiting(&seen);
        assert_eq!(files(&dir), before, "round {round}");

        let stats = spool.stats().unwrap();
        assert_eq!(seen.oldest, stats.oldest, "round {round}");
        assert_eq!(seen.records, stats.records);
        assert_eq!(seen.bytes, stats.bytes);
        assert_eq!(seen.disk_bytes, stats.disk_bytes);
        assert_eq!(seen.segments, stats.segments);
        assert_eq!(seen.acked, stats.acked);
        if stats.next_sequence > 1 {
            assert_eq!(seen.newest, Some((stats.stream, stats.next_sequence - 1)));
        }
        assert_eq!(all(&peeked), all(&peek_all(&spool).unwrap()));
    }
    // closed, it is the same
    let before = look(&dir);
    spool.close().unwrap();
    let after = look(&dir);
    assert_eq!(
        (after.records, after.newest),
        (before.records, before.newest)
    );
}

#[test]
fn it_goes_on_until_told_to_stop() {
    let (_parent, dir) = place();
    let spool = Spool::open(&dir, small()).unwrap();
    for _ in 0..6 {
        append_batch(&spool, &[400, 400]).unwrap();
    }
    let mut shown = Vec::new();
    let stop_at_five = |record: Record| {
        shown.push(record.sequence());
        if shown.len() < 5 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    look(&dir).visit(stop_at_five).unwrap();
    assert_eq!(shown, [1, 2, 3, 4, 5]);
}

#[test]
fn it_can_be_done_while_others_append_and_drain() {
    let (_parent, dir) = place();
    let spool = Spool::open(&dir, small()).unwrap();
    let stream = spool.stream();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // one after the other, in as many segments as there is time for
            while !end.load(Ordering::Relaxed) {
                append(&spool, 300).unwrap();
                let records = spool.peek(2, 9999).unwrap();
                if records.len() > 1 {
                    spool.ack(records[0].position()).unwrap();
                }
            }
        });
        let (mut newest, mut acked) = (0, 0);
        for _ in 0..300 {
            let seen = look(&dir);
            for record in waiting(&seen) {
                let (stream_seen, sequence) = key(&record);
                assert_eq!(stream_seen, stream);
                assert_eq!(record.bytes(), content(stream, sequence, 300));
            }
            assert!(seen.losses.is_empty());
            if let Some((_, last)) = seen.newest {
                assert!(last >= newest, "{last} after {newest}");
                newest = last;
            }
            // The state file, too, is written meanwhile.
            let (_, last) = seen.acked.unwrap_or((stream, 0));
            assert!(last >= acked, "{last} after {acked}");
            acked = last;
        }
        end.store(true, Ordering::Relaxed);
    });
}

#[test]
fn losses_are_told_and_not_confirmed() {
    let (_parent, dir) = place();
    let spool = Spool::open(&dir, small()).unwrap();
    append(&spool, 30).unwrap();
    let oldest = spool.peek(1, 0).unwrap().pop().unwrap();
    spool.reject(oldest.position()).unwrap();
    for _ in 0..2 {
        let losses = look(&dir).losses;
        assert_eq!(losses.len(), 1);
        assert_eq!((losses[0].reason, losses[0].first), (Reason::Refused, 1));
    }
    assert_eq!(spool.losses().unwrap().len(), 1);
}

#[test]
fn a_torn_end_and_a_ruined_segment_are_no_obstacle() {
    let (_parent, dir) = place();
    let spool = Spool::open(&dir, small()).unwrap();
    for _ in 0..12 {
        append(&spool, 600).unwrap();
    }
    let stream = spool.stream();
    drop(spool);
    let mut segments: Vec<_> = files(&dir).into_keys().collect();
    segments.retain(|name| name.ends_with(".seg"));
    assert!(segments.len() > 3, "{segments:?}");

    // half a frame at the end, as a writer leaves it that is just writing
    let newest = dir.join(segments.last().unwrap());
    let mut bytes = fs::read(&newest).unwrap();
    bytes.extend_from_slice(b"\xF5\x5A\x4B\x1E and nothing more that makes sense");
    fs::write(&newest, bytes).unwrap();
    let seen = look(&dir);
    assert_eq!((seen.records, seen.newest), (12, Some((stream, 12))));

    // one in the middle that is nothing but zeros
    let ruined = dir.join(&segments[1]);
    let len = fs::metadata(&ruined).unwrap().len();
    fs::write(&ruined, vec![0; len as usize]).unwrap();
    let seen = look(&dir);
    assert_eq!(seen.unreadable, 1);
    let peeked = waiting(&seen);
    assert!(peeked.len() < 12 && !peeked.is_empty());
    assert_eq!(peeked.last().map(key), Some((stream, 12)));
    // one flipped bit in a record leaves out that frame
    let damaged = dir.join(&segments[2]);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[1024 + 40 + 32 + 100] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let again = waiting(&look(&dir));
    assert_eq!(again.len(), peeked.len() - 1);
}

#[test]
fn what_is_no_spool_is_none_and_what_is_newer_is_refused() {
    let (parent, dir) = place();
    assert!(inspect(&dir).unwrap().is_none());
    assert!(!dir.exists());
    fs::write(parent.path().join("zk-spool"), "something else altogether").unwrap();
    assert!(inspect(parent.path()).unwrap().is_none());
    let file = parent.path().join("zk-spool");
    assert!(matches!(inspect(&file), Err(Error::Io { .. })));

    let spool = Spool::open(&dir, Options::default()).unwrap();
    let seen = look(&dir);
    assert_eq!((seen.records, seen.newest, seen.oldest), (0, None, None));
    spool.append_with(|_| Ok::<_, Infallible>(vec![1])).unwrap();
    drop(spool);
    // the version of the marker, under a checksum that is right
    let mut marker = fs::read(dir.join("zk-spool")).unwrap();
    marker[11] = 2;
    let crc = crc32c(&marker[..12]).to_be_bytes();
    marker[12..16].copy_from_slice(&crc);
    fs::write(dir.join("zk-spool"), marker).unwrap();
    assert!(matches!(
        inspect(&dir),
        Err(Error::UnsupportedFormat { found: 2, .. })
    ));
}

/// Bit by bit, as the document has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (0_u32.wrapping_sub(crc & 1)))
        })
    })
}
