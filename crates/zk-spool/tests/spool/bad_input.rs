//! Directories that are not what they should be: a typed error or a report, and
//! never a good record lost.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use zk_spool::{
    Error, Options, Reason, Spool, inspect,
    storage::{FaultStorage, Storage as _},
};

use crate::{
    common::{append, append_batch, drain, key, names, open, peek_all, small},
    kill::{Journal, Worker},
};

/// All that is in a directory, by name.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort_unstable();
    files
}

#[test]
fn whoever_has_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::default();
    let worker = Worker::start(directory.path(), 1, &mut journal);
    let locked = Spool::open(directory.path(), small()).unwrap_err();
    assert!(matches!(locked, Error::Locked { holder, .. } if holder == Some(worker.id())));
    let process = format!("process {};", worker.id());
    assert!(locked.to_string().contains(&process), "{locked}");
    // Looking needs no lock.
    assert!(inspect(directory.path()).unwrap().is_some());
    worker.kill(&mut journal);

    let _spool = Spool::open(directory.path(), small()).unwrap();
    let locked = Spool::open(directory.path(), small()).unwrap_err();
    assert!(matches!(locked, Error::Locked { holder, .. } if holder == Some(std::process::id())));
}

#[test]
fn a_state_file_of_somebody_else_is_not_overwritten() {
    for len in [1, 30, 5000, 40_000] {
        let storage = FaultStorage::new();
        storage.put("state", vec![b'x'; len]);
        for _ in 0..2 {
            match open(&storage, &small()).unwrap_err() {
                Error::NotASpool { file } => assert_eq!(file, "state"),
                error => panic!("{error}"),
            }
        }
        assert_eq!(storage.files()["state"], vec![b'x'; len]);
    }
    // But one that a spool has made, in a directory whose marker is gone, is its own.
    let storage = FaultStorage::new();
    drop(open(&storage, &small()).unwrap());
    let state = storage.files()["state"].clone();
    for state in [state, vec![0; 32 << 10], Vec::new()] {
        let storage = FaultStorage::new();
        storage.put("state", state);
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 10).unwrap();
        assert_eq!(spool.losses().unwrap(), []);
    }
}

#[test]
fn other_files_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let precious = elsewhere.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let put = || {
        for name in [
            "README",
            "db",
            "conf",
            "1.seg",
            "00000000000000000000.seg",
            "00000000000000000001.seg.bak",
            "0000000000000000000x.tmp",
            "99999999999999999999.seg",
        ] {
            fs::write(path.join(name), name).unwrap();
        }
        fs::create_dir(path.join("blobs")).unwrap();
        fs::create_dir(path.join("00000000000000000900.seg")).unwrap();
        symlink(&precious, path.join("00000000000000000901.seg")).unwrap();
        let pipe = path.join("00000000000000000902.seg");
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    };
    put();
    let foreign = files(path);
    let spool = Spool::open(path, small()).unwrap();
    for _ in 0..40 {
        append(&spool, 300).unwrap();
    }
    assert_eq!(spool.verify().unwrap().damage, []);
    drop(spool);
    let seen = inspect(path).unwrap().unwrap();
    assert_eq!((seen.records, seen.unreadable), (40, 0));
    let spool = Spool::open(path, small()).unwrap();
    assert_eq!(drain(&spool).len(), 40);
    assert_eq!(spool.losses().unwrap(), []);
    let now = files(path);
    assert!(foreign.iter().all(|file| now.contains(file)));
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(path.join("00000000000000000900.seg").is_dir());
}

/// Those of others may come and go meanwhile.
#[test]
fn other_files_may_vanish() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(Spool::open(path, small()).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for number in 0..500 {
                    fs::write(path.join(format!("{number}")), "").unwrap();
                }
                for number in 0..500 {
                    fs::remove_file(path.join(format!("{number}"))).unwrap();
                }
            }
        });
        let opened: Vec<_> = (0..150)
            .map(|_| Spool::open(path, small()).and_then(Spool::close))
            .collect();
        done.store(true, Ordering::Relaxed);
        for opened in opened {
            opened.unwrap();
        }
    });
}

/// Neither is what refused records and damaged segments are put into.
#[test]
fn links_to_directories_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    for _ in 0..8 {
        append_batch(&spool, &[300; 3]).unwrap();
    }
    for name in ["rejected", "damaged"] {
        symlink(elsewhere.path(), directory.path().join(name)).unwrap();
    }
    let first = spool.peek(1, 0).unwrap().pop().unwrap();
    let name = format!("{:020}-{:020}-{}.rec", 1, 1, first.stream());
    let precious = elsewhere.path().join(name);
    fs::write(&precious, "precious").unwrap();
    spool.reject(first.position()).unwrap();
    let segment = directory.path().join("00000000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let len = bytes.len();
    bytes[len - 200] ^= 1;
    fs::write(&segment, bytes).unwrap();
    drain(&spool);
    let reasons: Vec<_> = spool.losses().unwrap().iter().map(|l| l.reason).collect();
    assert_eq!(reasons, [Reason::Refused, Reason::Damaged]);
    let seen = inspect(directory.path()).unwrap().unwrap();
    assert_eq!(seen.rejected, 0);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(files(elsewhere.path()).len(), 1);
}

/// Pipes by the names of the spool's own files neither block nor pass.
#[test]
fn pipes_are_no_files() {
    for name in ["zk-spool", "state", "00000000000000000001.seg"] {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join(name);
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let opened = Spool::open(directory.path(), small()).and_then(|spool| append(&spool, 10));
        if name.ends_with(".seg") {
            // Renamed over, as any file by a name of the spool's own.
            assert_eq!(opened.unwrap(), 1);
        } else {
            assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
        }
        drop(inspect(directory.path()));
    }
}

#[test]
fn segments_that_were_removed_by_hand_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    for _ in 0..8 {
        append_batch(&spool, &[300; 3]).unwrap();
    }
    let segments = |path: &Path| -> Vec<String> {
        let names = files(path).into_iter().map(|(name, _)| name);
        names.filter(|name| name.ends_with(".seg")).collect()
    };
    let all = segments(directory.path());
    assert!(all.len() > 4);
    let waiting: Vec<_> = peek_all(&spool).unwrap().iter().map(key).collect();
    // While it is open: the oldest and one in the middle.
    for gone in [&all[0], &all[2]] {
        fs::remove_file(directory.path().join(gone)).unwrap();
    }
    let report = spool.verify().unwrap();
    assert_eq!(report.segments, all.len() - 2);
    let there: Vec<_> = drain(&spool).iter().map(key).collect();
    let losses = spool.losses().unwrap();
    assert!(there.len() < waiting.len());
    for key in &waiting {
        let named = losses.iter().filter(|loss| names(loss, *key)).count();
        let there = there.iter().filter(|there| *there == key).count();
        assert_eq!(named + there, 1, "{key:?}");
    }

    // All of them, the one in use among them.
    append_batch(&spool, &[300; 3]).unwrap();
    let stream = spool.stream();
    let newest = spool.stats().unwrap().next_sequence - 1;
    for gone in segments(directory.path()) {
        fs::remove_file(directory.path().join(gone)).unwrap();
    }
    drop(spool);
    let spool = Spool::open(directory.path(), small()).unwrap();
    assert_eq!(drain(&spool).len(), 0);
    assert_ne!(spool.stream(), stream);
    let now = spool.losses().unwrap();
    let damaged = now.last().unwrap();
    assert_eq!((damaged.reason, damaged.stream), (Reason::Damaged, stream));
    assert!(damaged.first <= newest);
    append(&spool, 10).unwrap();
    assert_eq!(drain(&spool).len(), 1);
}

/// The directory, or the medium, is gone: calls fail, and say so.
#[test]
fn a_disk_that_vanishes() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("spool");
    let spool = Spool::open(&directory, small()).unwrap();
    append(&spool, 300).unwrap();
    fs::remove_dir_all(&directory).unwrap();
    let error = loop {
        match append(&spool, 300) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(matches!(append(&spool, 1), Err(Error::Poisoned { .. })));
    assert!(spool.close().is_err());

    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    append(&spool, 300).unwrap();
    drop(spool);
    storage.cut_at(storage.operations() + 1);
    assert!(storage.create("something").is_err());
    for _ in 0..2 {
        let opened = open(&storage, &small());
        assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
    }
    storage.restart();
    assert_eq!(drain(&open(&storage, &small()).unwrap()).len(), 1);
}

/// A file in the place of the directory, and one above it.
#[test]
fn a_file_is_no_directory() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "text").unwrap();
    for path in [file.clone(), file.join("below")] {
        let opened = Spool::open(path, Options::default());
        assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"text");
}
