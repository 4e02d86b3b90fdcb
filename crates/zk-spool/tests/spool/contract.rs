//! What each method promises, on a real directory.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use zk_spool::{
    AppendError, End, Engine, Error, Full, MAX_RECORD, Options, Predecessor, Reason, Spool,
    SyncPolicy,
};

use crate::{
    ENGINE,
    common::{append, append_batch, append_receipt, copy, defaults, drain, key, peek_all, small},
};

#[test]
fn records_come_out_as_they_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), defaults()).unwrap();
    assert_eq!(append(&spool, 100).unwrap(), 1);
    assert_eq!(append_batch(&spool, &[0, 1, 70_000]).unwrap(), [2, 3, 4]);
    let empty = spool
        .append_with(|sequence| Ok::<_, Error>(vec![0; sequence as usize - 5]))
        .unwrap();
    assert_eq!(empty, 5);

    let records = peek_all(&spool).unwrap();
    let lengths: Vec<usize> = records.iter().map(|record| record.bytes().len()).collect();
    assert_eq!(lengths[0], 100);
    assert_eq!(lengths[3..], [70_000, 0]);
    assert!(records.iter().map(zk_spool::Record::sequence).eq(1..=5));
    assert!(
        records
            .iter()
            .all(|record| record.stream() == spool.stream())
    );
}

#[test]
fn a_failed_closure_uses_no_sequence() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), defaults()).unwrap();
    let failed = spool.append_with(Err::<Vec<u8>, u64>);
    assert!(matches!(failed, Err(AppendError::Seal(1))));

    let results = spool
        .append_batch_with([0, 1, 2, 3].map(|n: u64| {
            move |sequence| {
                if n.is_multiple_of(2) {
                    Err((n, sequence))
                } else {
                    Ok(vec![sequence as u8])
                }
            }
        }))
        .unwrap();
    assert_eq!(results, [Err((0, 1)), Ok(1), Err((2, 2)), Ok(2)]);
    let none = spool
        .append_batch_with(std::iter::empty::<fn(u64) -> Result<Vec<u8>, ()>>())
        .unwrap();
    assert!(none.is_empty());
    assert_eq!(append(&spool, 10).unwrap(), 3);
    assert_eq!(peek_all(&spool).unwrap().len(), 3);
    assert_eq!(peek_all(&spool).unwrap()[0].bytes(), [1]);
}

#[test]
fn a_closure_that_panics_uses_no_sequence() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), defaults()).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        spool.append_with(|_| -> Result<Vec<u8>, ()> { panic!("in the closure") })
    }));
    assert!(panicked.is_err());
    assert_eq!(append(&spool, 10).unwrap(), 1);
}

#[test]
fn peek_takes_within_its_limits_and_leaves_all_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    for _ in 0..20 {
        append(&spool, 300).unwrap();
    }
    let sequences = |records: usize, bytes: usize| -> Vec<u64> {
        let records = spool.peek(records, bytes).unwrap();
        records.iter().map(zk_spool::Record::sequence).collect()
    };
    assert_eq!(sequences(0, 1000), []);
    assert_eq!(sequences(3, 100_000), [1, 2, 3]);
    assert_eq!(sequences(100, 900), [1, 2, 3]);
    assert_eq!(sequences(100, 899), [1, 2]);
    assert_eq!(sequences(100, 0), [1]);
    assert_eq!(sequences(100, 100_000).len(), 20);
}

#[test]
fn what_is_acknowledged_stays_so() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    append_batch(&spool, &[100; 10]).unwrap();
    let records = peek_all(&spool).unwrap();
    spool.ack(records[3].position()).unwrap();
    // Earlier ones, and the same again, change nothing.
    spool.ack(records[3].position()).unwrap();
    spool.ack(records[0].position()).unwrap();
    assert_eq!(spool.peek(1, 0).unwrap()[0].sequence(), 5);
    let stream = spool.stream();
    drop(spool);

    let spool = Spool::open(directory.path(), small()).unwrap();
    assert_eq!(spool.stream(), stream);
    assert_eq!(spool.predecessor(), None);
    assert_eq!(spool.peek(1, 0).unwrap()[0].sequence(), 5);
    assert_eq!(spool.stats().unwrap().acked, Some((stream, 4)));
    spool.ack(records[9].position()).unwrap();
    assert_eq!(peek_all(&spool).unwrap().len(), 0);
    assert_eq!(append(&spool, 10).unwrap(), 11);
    assert_eq!(peek_all(&spool).unwrap()[0].sequence(), 11);
}

#[test]
fn a_position_of_another_spool_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Spool::open(directory.path().join("a"), small()).unwrap();
    let theirs = Spool::open(directory.path().join("b"), small()).unwrap();
    append(&ours, 10).unwrap();
    append(&theirs, 10).unwrap();
    let position = peek_all(&theirs).unwrap()[0].position();
    assert!(matches!(
        ours.ack(position),
        Err(Error::UnknownPosition { .. })
    ));
    assert!(matches!(
        ours.reject(position),
        Err(Error::NotOldest { .. })
    ));
    assert_eq!(peek_all(&ours).unwrap().len(), 1);
}

#[test]
fn drained_segments_are_unlinked_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    for _ in 0..60 {
        append(&spool, 200).unwrap();
    }
    let full = spool.stats().unwrap();
    assert!(full.segments > 10, "{full:?}");
    assert_eq!(full.records, 60);
    for record in peek_all(&spool).unwrap() {
        let before = spool.stats().unwrap().segments;
        spool.ack(record.position()).unwrap();
        let after = spool.stats().unwrap();
        assert_eq!(after.records, 60 - record.sequence());
        assert!(before - after.segments <= 1);
    }
    let drained = spool.stats().unwrap();
    assert_eq!((drained.segments, drained.bytes), (1, 0));
    let files = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files, 3, "marker, state and one segment");
}

#[test]
fn stats_count() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), defaults()).unwrap();
    let fresh = spool.stats().unwrap();
    assert_eq!(
        (fresh.records, fresh.next_sequence, fresh.segments),
        (0, 1, 0)
    );
    assert_eq!(
        (fresh.oldest, fresh.newest, fresh.acked),
        (None, None, None)
    );

    append_batch(&spool, &[1000; 10]).unwrap();
    let stats = spool.stats().unwrap();
    let stream = spool.stream();
    assert_eq!((stats.records, stats.unsynced, stats.appended), (10, 0, 10));
    assert_eq!(stats.oldest, Some((stream, 1)));
    assert_eq!(stats.newest, Some((stream, 10)));
    assert!((10_040..11_000).contains(&stats.bytes), "{stats:?}");
    assert!(stats.disk_bytes >= stats.bytes);
    // One for the segment, one for the group.
    assert_eq!(stats.syncs, 2);
}

#[test]
fn one_writer_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), defaults()).unwrap();
    assert!(matches!(
        Spool::open(directory.path(), defaults()),
        Err(Error::Locked { holder, .. }) if holder == Some(std::process::id())
    ));
    drop(spool);
    // The lock is not the file's existence.
    Spool::open(directory.path(), defaults()).unwrap();
}

#[test]
fn files_are_for_the_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("a/b");
    let spool = Spool::open(&directory, small()).unwrap();
    append(&spool, 10).unwrap();
    append(&spool, 10).unwrap();
    let first = peek_all(&spool).unwrap().remove(0);
    spool.reject(first.position()).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let mut pending = vec![parent.path().join("a")];
    let mut files = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            assert_eq!(mode(&path), 0o700, "{path:?}");
            pending.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(mode(&path), 0o600, "{path:?}");
            files += 1;
        }
    }
    // marker, state, a refused record, and what a segment consists of
    assert_eq!(files, 3 + if ENGINE == Engine::Log { 1 } else { 4 });
}

#[test]
fn a_refused_record_is_set_aside_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    append_batch(&spool, &[100; 4]).unwrap();
    let records = peek_all(&spool).unwrap();
    assert!(matches!(
        spool.reject(records[1].position()),
        Err(Error::NotOldest { sequence: 2, .. })
    ));
    spool.reject(records[0].position()).unwrap();
    spool.reject(records[1].position()).unwrap();
    assert_eq!(spool.peek(1, 0).unwrap()[0].sequence(), 3);

    let kept: Vec<_> = directory
        .path()
        .join("rejected")
        .read_dir()
        .unwrap()
        .collect();
    assert_eq!(kept.len(), 2);
    let kept = std::fs::read(kept.into_iter().next().unwrap().unwrap().path()).unwrap();
    assert!(records[..2].iter().any(|record| record.bytes() == kept));

    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), 1);
    let loss = losses[0];
    assert_eq!(
        (loss.reason, loss.stream),
        (Reason::Refused, spool.stream())
    );
    assert_eq!((loss.first, loss.last, loss.records), (1, 2, 2));
    assert!(loss.since_ms > 1_700_000_000_000 && loss.until_ms >= loss.since_ms);
}

#[test]
fn rejected_records_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        evidence: Some(2_000),
        ..small()
    };
    let spool = Spool::open(directory.path(), options).unwrap();
    for _ in 0..10 {
        append(&spool, 600).unwrap();
        let oldest = spool.peek(1, 0).unwrap().remove(0);
        spool.reject(oldest.position()).unwrap();
    }
    append(&spool, 2_001).unwrap();
    let large = spool.peek(1, 0).unwrap().remove(0);
    spool.reject(large.position()).unwrap();
    let mut kept: Vec<String> = directory
        .path()
        .join("rejected")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort_unstable();
    let sequences: Vec<&str> = kept.iter().map(|name| &name[39..41]).collect();
    assert_eq!(sequences, ["08", "09", "10"]);
    assert_eq!(spool.losses().unwrap()[0].records, 11);
}

#[test]
fn losses_are_offered_until_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    let reject_next = |spool: &Spool| {
        append(spool, 50).unwrap();
        let record = spool.peek(1, 0).unwrap().remove(0);
        spool.reject(record.position()).unwrap();
    };
    reject_next(&spool);
    let first = spool.losses().unwrap();
    // What was offered does not change; what comes later is another one.
    reject_next(&spool);
    let both = spool.losses().unwrap();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], first[0]);
    assert_eq!((both[1].first, both[1].last), (2, 2));
    drop(spool);

    let spool = Spool::open(directory.path(), small()).unwrap();
    assert_eq!(spool.losses().unwrap(), both);
    spool.confirm(first[0].id).unwrap();
    assert_eq!(spool.losses().unwrap(), both[1..]);
    assert_eq!(spool.stats().unwrap().losses, 1);
    // Nothing is confirmed that was not offered.
    append(&spool, 50).unwrap();
    reject_next(&spool);
    spool.confirm(u64::MAX).unwrap();
    let rest = spool.losses().unwrap();
    assert_eq!((rest.len(), rest[0].first), (1, 3));
    drop(spool);

    let spool = Spool::open(directory.path(), small()).unwrap();
    assert_eq!(spool.losses().unwrap(), rest);
    assert!(rest[0].id > both[1].id);
}

#[test]
fn within_a_window_peek_holds_back_what_is_not_durable() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        sync: SyncPolicy::Every(Duration::from_secs(1 << 20)),
        ..small()
    };
    let spool = Spool::open(directory.path(), options).unwrap();
    append_batch(&spool, &[50; 3]).unwrap();
    assert_eq!(peek_all(&spool).unwrap().len(), 0);
    assert!(!spool.wait(Duration::ZERO).unwrap());
    let stats = spool.stats().unwrap();
    assert_eq!((stats.records, stats.unsynced), (3, 3));
    let syncs = stats.syncs;
    spool.sync().unwrap();
    spool.sync().unwrap();
    assert_eq!(spool.stats().unwrap().syncs, syncs + 1);
    assert!(spool.wait(Duration::ZERO).unwrap());
    assert_eq!(peek_all(&spool).unwrap().len(), 3);
    assert_eq!(spool.stats().unwrap().unsynced, 0);
}

#[test]
fn the_window_ends_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        sync: SyncPolicy::Every(Duration::from_millis(5)),
        ..small()
    };
    let spool = Spool::open(directory.path(), options).unwrap();
    for sequence in 1..=3 {
        append(&spool, 50).unwrap();
        assert!(spool.wait(Duration::MAX).unwrap());
        let record = spool.peek(1, 0).unwrap().remove(0);
        assert_eq!(record.sequence(), sequence);
        spool.ack(record.position()).unwrap();
    }
}

#[test]
fn closing_makes_everything_durable_and_keeps_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        sync: SyncPolicy::Every(Duration::from_secs(1 << 20)),
        ..small()
    };
    let mut stream = None;
    for session in 1..=5 {
        let spool = Spool::open(directory.path(), options).unwrap();
        assert_eq!(*stream.get_or_insert(spool.stream()), spool.stream());
        assert_eq!(append(&spool, 50).unwrap(), session);
        spool.close().unwrap();
    }
    let spool = Spool::open(directory.path(), options).unwrap();
    assert_eq!(peek_all(&spool).unwrap().len(), 5);
    assert_eq!(spool.stats().unwrap().segments, 1);
}

/// Leaves a spool behind as a killed process does.
fn kill(spool: Spool, directory: &std::path::Path, into: &std::path::Path) {
    copy(directory, into);
    drop(spool);
}

#[test]
fn a_new_stream_begins_where_a_window_was_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let options = Options {
        sync: SyncPolicy::Every(Duration::from_secs(1 << 20)),
        ..small()
    };
    let one = Spool::open(path("a"), options).unwrap();
    let first = one.stream();
    append_batch(&one, &[50; 30]).unwrap();
    if ENGINE != Engine::Log {
        // What others keep in memory until then goes with the process.
        one.sync().unwrap();
    }
    kill(one, &path("a"), &path("b"));

    // A session that ends without a record durable leaves no trace.
    let two = Spool::open(path("b"), options).unwrap();
    let failed = two.append_with(Err::<Vec<u8>, u64>);
    assert!(matches!(failed, Err(AppendError::Seal(1))));
    assert_ne!(two.stream(), first);
    kill(two, &path("b"), &path("c"));

    let three = Spool::open(path("c"), options).unwrap();
    let second = three.stream();
    let before = Predecessor {
        stream: first,
        last_sequence: 30,
        end: End::Window,
    };
    assert_eq!(three.predecessor(), Some(before));
    assert_eq!(append(&three, 50).unwrap(), 1);
    assert_eq!(append(&three, 50).unwrap(), 2);
    three.close().unwrap();

    // Closed in good order: the stream goes on, and still knows what was
    // before.
    let four = Spool::open(path("c"), options).unwrap();
    assert_eq!((four.stream(), four.predecessor()), (second, Some(before)));
    assert_eq!(append(&four, 50).unwrap(), 3);
    four.sync().unwrap();
    let records = drain(&four);
    let old = records[..30].iter().map(key);
    assert!(old.eq((1..=30).map(|sequence| (first, sequence))));
    let new = records[30..].iter().map(key);
    assert!(new.eq((1..=3).map(|sequence| (second, sequence))));
    assert_eq!(four.predecessor(), Some(before));
}

#[test]
fn a_stream_goes_on_where_each_append_was_durable() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let one = Spool::open(path("a"), small()).unwrap();
    let stream = one.stream();
    append_batch(&one, &[50; 30]).unwrap();
    kill(one, &path("a"), &path("b"));
    let two = Spool::open(path("b"), small()).unwrap();
    assert_eq!((two.stream(), two.predecessor()), (stream, None));
    assert_eq!(append(&two, 50).unwrap(), 31);
}

#[test]
fn sizes_have_limits() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path().join("a"), defaults()).unwrap();
    let large = |len: usize| crate::common::only_spool(spool.append_with(|_| Ok(vec![7; len])));
    assert_eq!(large(MAX_RECORD).unwrap(), 1);
    match large(MAX_RECORD + 1).unwrap_err() {
        Error::TooLarge { bytes, limit } => {
            assert_eq!((bytes, limit), (MAX_RECORD as u64 + 1, MAX_RECORD as u64));
        }
        error => panic!("{error}"),
    }
    assert_eq!(large(1).unwrap(), 2);
    assert!(spool.losses().unwrap().is_empty());
    let lengths: Vec<usize> = drain(&spool).iter().map(|r| r.bytes().len()).collect();
    assert_eq!(lengths, [MAX_RECORD, 1]);

    // A group larger than a frame, and larger than a segment.
    let sizes = [600_000; 16];
    assert_eq!(append_batch(&spool, &sizes).unwrap().len(), 16);
    let records = drain(&spool);
    assert!(records.iter().all(|record| record.bytes().len() == 600_000));
    assert!(records.iter().map(key).map(|key| key.1).eq(3..=18));

    for full in [Full::Reject, Full::DropOldest] {
        let options = Options { full, ..small() };
        let spool = Spool::open(directory.path().join("b"), options).unwrap();
        assert!(matches!(
            append(&spool, 64 << 10),
            Err(Error::TooLarge { .. })
        ));
        let Err(Error::TooLarge { limit, .. }) = append(&spool, 100_000) else {
            panic!("it can't fit");
        };
        append(&spool, limit as usize - 36).unwrap();
        assert_eq!(drain(&spool).len(), 1);
        append(&spool, limit as usize - 36).unwrap();
        append_receipt(&spool, 1000).unwrap();
        assert_eq!(drain(&spool).len(), 2);
    }
}

#[test]
fn options_must_fit() {
    let directory = tempfile::tempdir().unwrap();
    for options in [
        Options {
            cap: (16 << 10) - 1,
            ..defaults()
        },
        Options {
            segment_size: Some(2047),
            ..defaults()
        },
        Options {
            segment_size: Some((64 << 20) + 1),
            ..defaults()
        },
    ] {
        let opened = Spool::open(directory.path().join("spool"), options);
        assert!(matches!(opened, Err(Error::InvalidOptions { .. })));
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    append(&spool, 10).unwrap();
    drop(spool);
    let files = || -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = directory
            .path()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        files.sort_unstable();
        files
    };
    let original = files();
    // A checksum that is right, as the newer program would write it.
    let newer = |bytes: &mut [u8], rest: std::ops::Range<usize>| {
        bytes[8..12].copy_from_slice(&2_u32.to_be_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[rest]);
        bytes[12..16].copy_from_slice(&crc.to_be_bytes());
    };
    for name in ["zk-spool", "00000000000000000001.seg", "state"] {
        if ENGINE != Engine::Log && name.ends_with(".seg") {
            continue;
        }
        let path = directory.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        match name {
            "zk-spool" => newer(&mut bytes, 0..0),
            "state" => newer(&mut bytes[16 << 10..], 16..96),
            _ => newer(&mut bytes[..512], 16..512),
        }
        std::fs::write(&path, bytes).unwrap();
        std::fs::write(directory.path().join("00000000000000000002.tmp"), "x").unwrap();
        let changed = files();
        match Spool::open(directory.path(), small()).unwrap_err() {
            Error::UnsupportedFormat {
                file,
                found,
                supported,
            } => assert_eq!((file.as_str(), found, supported), (name, 2, 1)),
            error => panic!("{error}"),
        }
        assert_eq!(files(), changed);
        std::fs::remove_file(directory.path().join("00000000000000000002.tmp")).unwrap();
        for (path, bytes) in &original {
            std::fs::write(path, bytes).unwrap();
        }
    }
    let spool = Spool::open(directory.path(), small()).unwrap();
    assert_eq!(peek_all(&spool).unwrap().len(), 1);
}

#[test]
fn a_foreign_file_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let marker = directory.path().join("zk-spool");
    std::fs::write(&marker, "somebody's notes about spools").unwrap();
    assert!(matches!(
        Spool::open(directory.path(), small()),
        Err(Error::NotASpool { .. })
    ));
    assert_eq!(
        std::fs::read(&marker).unwrap(),
        b"somebody's notes about spools"
    );
}

#[test]
fn errors_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Spool::open(&file, small()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(std::error::Error::source(&error).is_some());
    let _kept = Spool::open(directory.path().join("a"), small()).unwrap();
    let error = Spool::open(directory.path().join("a"), small()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
}

/// Whoever hands over a spool can't make it write elsewhere.
#[test]
fn links_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let victim = directory.path().join("victim");
    for name in ["zk-spool", "state", "00000000000000000001.tmp"] {
        if ENGINE != Engine::Log && name.ends_with(".tmp") {
            continue;
        }
        std::fs::write(&victim, "precious").unwrap();
        let spool = directory.path().join(format!("spool-{name}"));
        std::fs::create_dir(&spool).unwrap();
        std::os::unix::fs::symlink(&victim, spool.join(name)).unwrap();
        let result = Spool::open(&spool, small()).and_then(|spool| append(&spool, 10));
        assert!(
            matches!(result, Err(Error::Io { .. })),
            "{name}: {result:?}"
        );
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious", "{name}");
    }
}
