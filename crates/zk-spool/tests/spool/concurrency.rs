//! Reading does not wait for who makes a record.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use zk_spool::{Options, Spool, SyncPolicy};

use crate::common::{append, append_batch, defaults, drain, peek_all, small};

#[test]
fn nothing_but_appends_waits_for_a_closure() {
    for sync in [
        SyncPolicy::Each,
        SyncPolicy::Every(Duration::from_millis(1)),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { sync, ..small() };
        let spool = Arc::new(Spool::open(directory.path(), options).unwrap());
        append_batch(&spool, &[100; 30]).unwrap();

        let (entered, is_in) = mpsc::channel();
        let (let_go, wait) = mpsc::channel();
        let appending = thread::spawn({
            let spool = Arc::clone(&spool);
            move || {
                spool.append_with(|sequence| {
                    entered.send(sequence).unwrap();
                    wait.recv().map(|()| vec![1, 2, 3])
                })
            }
        });
        assert_eq!(is_in.recv().unwrap(), 31);

        // All of this while the closure runs, or the test hangs. In a window,
        // what was appended before becomes durable meanwhile.
        assert!(spool.wait(Duration::MAX).unwrap());
        spool.sync().unwrap();
        let records = peek_all(&spool).unwrap();
        assert_eq!(records.len(), 30);
        spool.ack(records[9].position()).unwrap();
        spool.reject(records[10].position()).unwrap();
        assert_eq!(spool.stats().unwrap().records, 19);
        assert_eq!(spool.stats().unwrap().next_sequence, 31);
        let losses = spool.losses().unwrap();
        spool.confirm(losses[0].id).unwrap();
        assert!(spool.verify().unwrap().damage.is_empty());
        assert_eq!(drain(&spool).len(), 19);

        let_go.send(()).unwrap();
        assert_eq!(appending.join().unwrap().unwrap(), 31);
        assert!(spool.wait(Duration::MAX).unwrap());
        assert_eq!(peek_all(&spool).unwrap()[0].sequence(), 31);
    }
}

#[test]
fn appending_and_draining_at_once() {
    for sync in [
        SyncPolicy::Each,
        SyncPolicy::Every(Duration::from_millis(1)),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            sync,
            cap: 1 << 20,
            segment_size: Some(4 << 10),
            ..defaults()
        };
        let spool = Arc::new(Spool::open(directory.path(), options).unwrap());
        const RECORDS: u64 = 300;
        let appending = thread::spawn({
            let spool = Arc::clone(&spool);
            move || {
                for n in 0..RECORDS {
                    append(&spool, n as usize).unwrap();
                }
            }
        });
        let mut expected = 1;
        while expected <= RECORDS {
            assert!(spool.wait(Duration::MAX).unwrap());
            let records = spool.peek(7, usize::MAX).unwrap();
            for record in &records {
                assert_eq!(record.sequence(), expected);
                expected += 1;
            }
            spool.ack(records.last().unwrap().position()).unwrap();
        }
        appending.join().unwrap();
        assert_eq!(spool.stats().unwrap().records, 0);
    }
}

/// A process that is just being started has a copy of all that its parent has open,
/// for a moment. That must not keep the lock of a spool that was closed meanwhile.
#[test]
fn a_process_that_starts_does_not_keep_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
        }
        let locked = (0..300).find_map(|_| Spool::open(directory.path(), small()).err());
        end.store(true, Ordering::Relaxed);
        assert!(locked.is_none(), "{locked:?}");
    });
}
