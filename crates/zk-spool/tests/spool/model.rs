//! Any sequence of calls, held against a queue in memory.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;
use zk_spool::{Engine, Error, Full, Options, Reason, Record, Spool, SyncPolicy, storage::Cut};

use crate::common::{Key, Place, append, append_batch, content, key, names, open, small};

#[derive(Clone, Debug)]
enum Call {
    Append(usize),
    Batch(Vec<usize>),
    Fail,
    Peek(usize, usize),
    Ack(usize),
    Reject,
    Sync,
    Confirm,
    Verify,
    Close,
    Kill,
    /// A power cut between two calls.
    Cut(Cut),
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => (0..1500_usize).prop_map(Call::Append),
        3 => prop::collection::vec(0..400_usize, 0..12).prop_map(Call::Batch),
        1 => Just(Call::Fail),
        3 => (0..30_usize, 0..9000_usize).prop_map(|(n, bytes)| Call::Peek(n, bytes)),
        4 => (0..25_usize).prop_map(Call::Ack),
        1 => Just(Call::Reject),
        1 => Just(Call::Sync),
        1 => Just(Call::Confirm),
        1 => Just(Call::Verify),
        1 => Just(Call::Close),
        1 => Just(Call::Kill),
        1 => cut().prop_map(Call::Cut),
    ]
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        Just(Cut::Synced),
        any::<u64>().prop_map(Cut::Torn),
        any::<u64>().prop_map(Cut::Random),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let hours = SyncPolicy::Every(Duration::from_secs(1 << 20));
    let sync = prop_oneof![Just(SyncPolicy::Each), Just(hours)];
    let full = prop_oneof![Just(Full::Reject), Just(Full::DropOldest)];
    (sync, full, 2..16_u64).prop_map(|(sync, full, kib)| Options {
        sync,
        full,
        segment_size: Some(kib << 10),
        ..small()
    })
}

/// The queue as it should be.
struct Model {
    place: Place,
    options: Options,
    spool: Option<Spool>,
    queue: VecDeque<(Key, Vec<u8>)>,
    /// How many at the end of the queue are not durable.
    unsynced: usize,
    /// Whether anything was appended since the spool was opened.
    begun: bool,
    next: u64,
    /// Losses that were confirmed.
    confirmed: Vec<zk_spool::Loss>,
    refused: u64,
    rejected: u64,
    dropped: u64,
}

impl Model {
    fn new(options: Options) -> Self {
        let mut model = Self {
            place: Place::new(),
            options,
            spool: None,
            queue: VecDeque::new(),
            unsynced: 0,
            begun: false,
            next: 1,
            confirmed: Vec::new(),
            refused: 0,
            rejected: 0,
            dropped: 0,
        };
        model.open();
        model
    }

    fn open(&mut self) {
        self.spool = Some(open(&self.place, &self.options).unwrap());
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    fn windowed(&self) -> bool {
        self.options.sync != SyncPolicy::Each
    }

    fn appended(&mut self, result: Result<Vec<u64>, Error>, lens: &[usize]) {
        let stream = self.spool().stream();
        match result {
            Ok(sequences) => {
                assert!(
                    sequences
                        .iter()
                        .copied()
                        .eq(self.next..self.next + lens.len() as u64)
                );
                for (sequence, len) in sequences.into_iter().zip(lens) {
                    let bytes = content(stream, sequence, *len);
                    self.queue.push_back(((stream, sequence), bytes));
                }
                self.next += lens.len() as u64;
                self.begun = true;
                if self.windowed() {
                    // A new segment syncs the one before.
                    let unsynced = self.spool().stats().unwrap().unsynced as usize;
                    assert!(unsynced <= self.unsynced + lens.len());
                    self.unsynced = unsynced;
                }
            }
            Err(Error::Full { .. }) => {
                assert_eq!(self.options.full, Full::Reject);
                self.refused += lens.len() as u64;
                self.begun |= self.spool().stats().unwrap().syncs > 0;
                self.unsynced = self.spool().stats().unwrap().unsynced as usize;
            }
            Err(error) => panic!("{error}"),
        }
        // What was dropped is named.
        let oldest = self.spool().stats().unwrap().oldest;
        let losses = self.spool().losses().unwrap();
        while let Some((key, _)) = self.queue.front()
            && Some(*key) != oldest
        {
            assert_eq!(self.options.full, Full::DropOldest);
            let naming = losses.iter().chain(&self.confirmed);
            let naming: Vec<_> = naming.filter(|loss| names(loss, *key)).collect();
            assert_eq!(naming.len(), 1, "{key:?}");
            assert_eq!(naming[0].reason, Reason::Dropped);
            self.dropped += 1;
            self.queue.pop_front();
        }
    }

    fn peek(&self, records: usize, bytes: usize) -> Vec<Record> {
        let peeked = self.spool().peek(records, bytes).unwrap();
        let durable = self.queue.len() - self.unsynced;
        let mut expected = Vec::new();
        let mut total = 0;
        for (key, content) in self.queue.iter().take(durable.min(records)) {
            total += content.len();
            if total > bytes && !expected.is_empty() {
                break;
            }
            expected.push((*key, content.as_slice()));
        }
        let found: Vec<_> = peeked
            .iter()
            .map(|record| (key(record), record.bytes()))
            .collect();
        assert_eq!(found, expected);
        peeked
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Append(len) => {
                let result = append(self.spool(), len).map(|sequence| vec![sequence]);
                self.appended(result, &[len]);
            }
            Call::Batch(lens) => {
                let result = append_batch(self.spool(), &lens);
                let before = self.refused;
                let full = matches!(result, Err(Error::Full { .. }));
                self.appended(result, &lens);
                assert!(full || before == self.refused);
            }
            Call::Fail => {
                let next = self.next;
                let failed = self.spool().append_with(|sequence| {
                    assert_eq!(sequence, next);
                    Err::<Vec<u8>, ()>(())
                });
                let called = matches!(failed, Err(zk_spool::AppendError::Seal(())));
                self.begun |= called;
                self.refused += u64::from(!called);
            }
            Call::Peek(records, bytes) => drop(self.peek(records, bytes)),
            Call::Ack(records) => {
                if let Some(last) = self.peek(records, usize::MAX).last() {
                    self.spool().ack(last.position()).unwrap();
                    while self.queue.pop_front().unwrap().0 != key(last) {}
                }
            }
            Call::Reject => {
                if let Some(oldest) = self.peek(1, 0).first() {
                    self.spool().reject(oldest.position()).unwrap();
                    self.queue.pop_front();
                    self.rejected += 1;
                }
            }
            Call::Sync => {
                self.spool().sync().unwrap();
                self.unsynced = 0;
            }
            Call::Confirm => {
                let losses = self.spool().losses().unwrap();
                if let Some(last) = losses.last() {
                    self.spool().confirm(last.id).unwrap();
                }
                self.confirmed.extend(losses);
            }
            Call::Verify => assert!(self.spool().verify().unwrap().damage.is_empty()),
            Call::Close => {
                let stream = self.spool().stream();
                self.spool.take().unwrap().close().unwrap();
                self.open();
                if self.begun || self.next > 1 {
                    assert_eq!(self.spool().stream(), stream);
                }
                self.begun = false;
                self.unsynced = 0;
            }
            Call::Kill => {
                // A killed process leaves what it wrote. Refusals that were
                // counted in memory only are lost with it.
                let losses = self.spool().losses().unwrap();
                let stream = self.spool().stream();
                let left = self.place.killed();
                if let Place::Directory(_) = left {
                    // Where it wrote to memory only, that is gone too.
                    let durable = self.queue.len() - self.unsynced;
                    self.queue.truncate(durable);
                }
                self.spool = Some(open(&left, &self.options).unwrap());
                self.place = left;
                assert_eq!(self.spool().losses().unwrap(), losses);
                if self.begun && self.windowed() {
                    assert_ne!(self.spool().stream(), stream);
                    self.next = 1;
                } else if self.begun || self.next > 1 {
                    assert_eq!(self.spool().stream(), stream);
                }
                self.begun = false;
                self.unsynced = 0;
            }
            Call::Cut(cut) => {
                let losses = self.spool().losses().unwrap();
                let stream = self.spool().stream();
                let left = self.place.cut(cut);
                self.spool = Some(open(&left, &self.options).unwrap());
                self.place = left;
                assert_eq!(self.spool().losses().unwrap(), losses);
                if self.begun && self.windowed() {
                    assert_ne!(self.spool().stream(), stream);
                    self.next = 1;
                } else if self.begun || self.next > 1 {
                    assert_eq!(self.spool().stream(), stream);
                }
                // Of what was not durable a part from its beginning may be there.
                let left = self.spool().stats().unwrap().records as usize;
                let durable = self.queue.len() - self.unsynced;
                assert!((durable..=self.queue.len()).contains(&left));
                self.queue.truncate(left);
                self.begun = false;
                self.unsynced = 0;
            }
        }
        self.check();
    }

    fn check(&self) {
        let stats = self.spool().stats().unwrap();
        assert_eq!(stats.records, self.queue.len() as u64);
        assert_eq!(stats.unsynced, self.unsynced as u64);
        assert_eq!(stats.next_sequence, self.next);
        assert_eq!(stats.oldest, self.queue.front().map(|(key, _)| *key));
        assert_eq!(stats.newest, self.queue.back().map(|(key, _)| *key));
        assert!(stats.disk_bytes <= self.options.cap, "{stats:?}");
        match &self.place {
            Place::Memory(storage) => {
                let files = storage.files();
                let segments = files.iter().filter(|(name, _)| name.ends_with(".seg"));
                let on_disk: usize = segments.map(|(_, bytes)| bytes.len()).sum();
                assert_eq!(stats.disk_bytes, on_disk as u64);
            }
            Place::Directory(directory) => {
                let entries = directory.path().read_dir().unwrap().map(Result::unwrap);
                let segments = entries.filter(|entry| entry.file_name().len() > 20);
                assert_eq!(stats.segments, segments.count());
            }
        }

        let losses = self.spool().losses().unwrap();
        let count = |reason| -> u64 {
            let all = losses.iter().chain(&self.confirmed);
            all.filter(|loss| loss.reason == reason)
                .map(|loss| loss.records)
                .sum()
        };
        assert_eq!(count(Reason::Full), self.refused);
        assert_eq!(count(Reason::Refused), self.rejected);
        assert_eq!(count(Reason::Dropped), self.dropped);
        assert_eq!(count(Reason::Damaged) + count(Reason::Several), 0);
        assert_eq!(stats.losses, losses.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::common::effort() as u32 * if crate::ENGINE == Engine::Log { 150 } else { 15 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn behaves_as_a_queue(options in options(), calls in prop::collection::vec(call(), 1..150)) {
        let mut model = Model::new(options);
        for call in calls {
            model.call(call);
        }
    }
}
