//! From the disk to the reader: whatever is lost, and whenever the power fails in
//! between, the owner's audit names it, exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use zk_envelope::{StreamId, TrustedDevice};
use zk_spool::storage::{Cut, FaultStorage};
use zk_verify::Audit;

use super::*;

/// A record's stream and number.
type Place = (StreamId, u64);

/// What outlives the power.
struct Evidence {
    key: Hsm,
    owner: Arc<OwnerKey>,
    readings: Vec<Reading>,
    full: zk_spool::Full,
    /// What the store has.
    store: BTreeMap<Place, Vec<u8>>,
    /// What appends returned.
    given: Arc<Mutex<BTreeSet<Place>>>,
    /// How many readings and reports were not taken.
    given_up: Arc<AtomicU64>,
    /// What the cloud has refused once, which it takes at another time.
    refused: BTreeSet<u64>,
}

/// What happens in a life of the agent.
#[derive(Clone, Copy, Debug)]
enum Step {
    Seal,
    /// So much is taken by the cloud; of some numbers it refuses the first record
    /// that it is shown.
    Deliver(usize),
    /// No link for so long.
    Outage(usize),
    /// A bit of the oldest segment turns over.
    Damage,
}

/// Where it ended.
type Life = Result<(), Error>;

impl Evidence {
    fn new(full: zk_spool::Full) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = create_soft_key(dir.path().join("key.pem")).unwrap();
        let sensors: Vec<SensorId> = vec!["28-0000000a0001".parse().unwrap()];
        let _bus = SimulatedBus::create(dir.path().join("sys"), &sensors).unwrap();
        let mut bus = W1Bus::new(dir.path().join("sys"));
        Self {
            key: Hsm::open(&key, zk_hsm::Options::default()).unwrap(),
            owner: Arc::new(OwnerKey::generate().unwrap()),
            readings: bus.read_all(SystemTime::now).unwrap(),
            full,
            store: BTreeMap::new(),
            given: Arc::default(),
            given_up: Arc::default(),
            refused: BTreeSet::new(),
        }
    }

    /// The same device, of which nothing has happened yet.
    fn afresh(&self) -> Self {
        Self {
            key: self.key.clone(),
            owner: Arc::clone(&self.owner),
            readings: self.readings.clone(),
            full: self.full,
            store: BTreeMap::new(),
            given: Arc::default(),
            given_up: Arc::default(),
            refused: BTreeSet::new(),
        }
    }

    fn open(&self, storage: &FaultStorage) -> Result<(Arc<Spool>, Sealing<Hsm>), Error> {
        let cap = 16 << 10;
        let options = zk_spool::Options {
            cap,
            full: self.full,
            segment_size: Some(2 << 10),
            ..zk_spool::Options::default()
        };
        let spool = Arc::new(Spool::open_on(Arc::new(storage.clone()), options)?);
        let stream = StreamId(spool.stream().0);
        let owners = [self.owner.public_key().clone()];
        let device = "pi-01".parse().unwrap();
        let (given, given_up) = (Arc::clone(&self.given), Arc::clone(&self.given_up));
        let observer = Observer(Box::new(move |event| match event {
            Event::Sealed {
                stream, sequence, ..
            }
            | Event::Reported {
                stream, sequence, ..
            } => {
                let first = given.lock().unwrap().insert((stream, sequence));
                assert!(first, "{sequence} was given out twice");
            }
            Event::GivenUp(readings) => {
                given_up.fetch_add(readings.len().max(1) as u64, Ordering::Relaxed);
            }
            Event::Captured(_) => {}
        }));
        let mut sealing = Sealing {
            sealer: Sealer::new(device, stream, self.key.public_key(), &owners).unwrap(),
            key: self.key.clone(),
            spool: Arc::clone(&spool),
            clock: clock(),
            progress: Arc::new(Progress {
                observer,
                ..Progress::default()
            }),
            patience: Arc::default(),
            heartbeat: Duration::from_secs(3600),
            started: None,
            anchored: None,
            receipts: Receipts::new(&spool, cap),
            receipts_wait: false,
            largest: MAX_BODY,
            counted: 0,
            recoveries: true,
            out_since: None,
            recovered: None,
            reminder: Reminder::new(Expires::new(SystemTime::now())),
        };
        sealing.begin()?;
        sealing.receipts()?;
        Ok((spool, sealing))
    }

    fn live(&mut self, storage: &FaultStorage, steps: &[Step]) -> Life {
        let (spool, mut sealing) = self.open(storage)?;
        for step in steps {
            match *step {
                Step::Seal => self.seal(&mut sealing)?,
                Step::Deliver(records) => self.deliver(&spool, records)?,
                Step::Outage(sweeps) => {
                    for _ in 0..sweeps {
                        self.seal(&mut sealing)?;
                    }
                }
                Step::Damage => damage(storage),
            }
        }
        Ok(())
    }

    /// As the agent's thread does it for each sweep.
    fn seal(&self, sealing: &mut Sealing<Hsm>) -> Life {
        let before = self.given_up.load(Ordering::Relaxed);
        sealing.readings(self.readings.clone())?;
        sealing.receipts()?;
        if self.given_up.load(Ordering::Relaxed) > before {
            // Two counts of the same number and the same millisecond would look
            // like one that was stated twice.
            let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let then = now().unwrap().as_millis();
            while now().unwrap().as_millis() == then {}
        }
        Ok(())
    }

    /// As the publisher does it: the cloud has a record before it is acknowledged.
    fn deliver(&mut self, spool: &Spool, records: usize) -> Life {
        for _ in 0..records {
            let Some(record) = spool.peek(1, usize::MAX)?.pop() else {
                break;
            };
            let (stream, sequence) = (StreamId(record.stream().0), record.sequence());
            if sequence % 5 == 4 && self.refused.insert(sequence) {
                spool.reject(record.position())?;
                continue;
            }
            let before = self
                .store
                .insert((stream, sequence), record.bytes().to_vec());
            assert!(
                before.is_none_or(|before| before == record.bytes()),
                "a fork"
            );
            spool.ack(record.position())?;
        }
        Ok(())
    }

    /// Goes on without faults until nothing is left to deliver or to name.
    fn settle(&mut self, storage: &FaultStorage) {
        let (spool, mut sealing) = self.open(storage).unwrap();
        for _ in 0..200 {
            self.seal(&mut sealing).unwrap();
            self.deliver(&spool, usize::MAX).unwrap();
            sealing.receipts().unwrap();
            let stats = spool.stats().unwrap();
            if stats.records == 0 && spool.losses().unwrap().is_empty() {
                return;
            }
        }
        panic!("{:?}: {:?}", spool.stats(), spool.losses());
    }

    /// Fails unless the owner is told the truth. Returns how many records are lost.
    fn audit(&self, case: &str) -> usize {
        let device: zk_envelope::DeviceId = "pi-01".parse().unwrap();
        let trusted = TrustedDevice {
            owners: [self.owner.id()].into(),
            ..TrustedDevice::default()
        };
        let mut audit = Audit::new(device, &trusted, true);
        let mut named: BTreeSet<Place> = BTreeSet::new();
        let now = Timestamp::MAX;
        for bytes in self.store.values() {
            let envelope = Envelope::from_bytes(bytes).unwrap();
            let verified = envelope.verify(self.key.public_key()).unwrap();
            audit.record(&verified, now, 0);
            let opened = verified.open(&self.owner).unwrap();
            if let Some(report) = opened.report().unwrap() {
                audit.report(opened.header(), now, &report);
                if let Report::LossReceipt(receipt) = report {
                    assert_ne!(receipt.records, 0, "{case}");
                    let range = receipt.range.into_iter();
                    let numbers = |range: zk_envelope::SequenceRange| {
                        (range.first..=range.last).map(move |n| (range.stream, n))
                    };
                    named.extend(range.flat_map(numbers));
                }
            }
        }
        let findings = audit.finish();
        assert!(findings.is_clean(), "{case}: {findings:#?}");

        let places = |of: &dyn Fn(&zk_verify::StreamFindings) -> Vec<RangeInclusive<u64>>| {
            let streams = findings.streams.iter();
            streams
                .flat_map(|stream| of(stream).into_iter().flatten().map(|n| (stream.stream, n)))
                .collect::<BTreeSet<Place>>()
        };
        let missing = places(&|stream| {
            stream
                .missing
                .iter()
                .map(|gap| gap.first..=gap.last)
                .collect()
        });
        let arrived = places(&|stream| stream.arrived.clone());
        let given = self.given.lock().unwrap();
        // What was given out is there or missing, and what is missing is named.
        for place in &*given {
            let told = self.store.contains_key(place) != missing.contains(place);
            assert!(told, "{case}: {place:?} is neither there nor missing");
        }
        // Nothing is named that never was: the append that was cut off in each of
        // the two lives may have become durable.
        for place in &missing {
            let mut before = (place.1.saturating_sub(2)..=place.1).map(|n| (place.0, n));
            let was = place.1 <= 2 || before.any(|place| given.contains(&place));
            assert!(was && named.contains(place), "{case}: {place:?} never was");
        }
        // What is named, and there all the same, is told to be both.
        let both = named.iter().filter(|place| self.store.contains_key(place));
        assert_eq!(arrived, both.copied().collect(), "{case}");
        // What had no number is counted. Where a life was cut off, the spool may have
        // counted a refusal of which nobody was told; or it could not count one that
        // was told, nor the next, which are gone with what was in memory.
        let counted: u64 = findings.rejected.iter().map(|r| r.records).sum();
        let given_up = self.given_up.load(Ordering::Relaxed);
        let told = given_up.saturating_sub(4)..=given_up + 2;
        assert!(told.contains(&counted), "{case}: {counted} of {given_up}");
        missing.len() + findings.rejected.len()
    }
}

/// Turns a bit over in the oldest segment, in its records.
fn damage(storage: &FaultStorage) {
    let files = storage.files();
    let mut segments = files.iter().filter(|(name, _)| name.ends_with(".seg"));
    if let Some((name, bytes)) = segments.next() {
        let mut bytes = bytes.clone();
        let at = 1024 + (bytes.len() - 1024) / 2;
        bytes[at] ^= 4;
        storage.put(name, bytes);
    }
}

/// Every change of a life in which records are delivered, refused, damaged and
/// dropped, so that the power fails between any two of: loss recorded, receipt
/// sealed, receipt durable, delivered, confirmed.
#[test]
fn whenever_the_power_fails_the_audit_names_what_is_lost() {
    let (cuts, losing) = cut_everywhere(zk_spool::Full::DropOldest, 1);
    println!("{cuts} cuts, {losing} with records lost; none unnamed");
    assert!(losing > 50);
}

/// The same where a full spool does not take what is new.
#[test]
fn whenever_the_power_fails_the_audit_counts_what_was_not_taken() {
    let (cuts, losing) = cut_everywhere(zk_spool::Full::Reject, 3);
    println!("{cuts} cuts, {losing} with readings lost; none uncounted");
    assert!(losing > 50);
}

/// Cuts at each change, or at each of so many. Returns how many that were, and
/// after how many something was lost.
fn cut_everywhere(full: zk_spool::Full, step: usize) -> (usize, usize) {
    use Step::{Damage, Deliver, Outage, Seal};
    let script = [
        Seal,
        Seal,
        Deliver(3),
        Seal,
        Seal,
        Seal,
        Deliver(2),
        Seal,
        Damage,
        Deliver(4),
        Seal,
        Deliver(3),
        Outage(14),
        Deliver(3),
        Seal,
        Deliver(6),
        Seal,
        Deliver(20),
        Seal,
        Deliver(3),
    ];
    // All of it happens when the power stays.
    let storage = FaultStorage::new();
    let mut whole = Evidence::new(full);
    whole.live(&storage, &script).unwrap();
    let operations = storage.operations();
    whole.settle(&storage);
    let lost = whole.audit("no cut");
    let named = whole.given_up.load(Ordering::Relaxed);
    assert!(
        lost > 5 && (named > 5) == (full == zk_spool::Full::Reject),
        "{lost}, {named}"
    );

    let (mut cuts, mut losing) = (0, 0);
    for operation in (1..=operations).step_by(step) {
        let cut = match operation % 4 {
            0 => Cut::Synced,
            1 => Cut::All,
            2 => Cut::Torn(operation),
            _ => Cut::Random(operation),
        };
        let case = format!("{cut:?} at {operation} of {operations}");
        let storage = FaultStorage::new();
        storage.cut_at(operation);
        let mut evidence = whole.afresh();
        // It may be the closing of the spool that is cut, of which nobody hears.
        let _ = evidence.live(&storage, &script);
        let storage = storage.after_cut(cut);
        // The second life is cut as well, soon after its beginning.
        storage.cut_at(operation % 13 + 1);
        let _ = evidence.live(&storage, &script[..3]);
        let storage = storage.after_cut(cut);
        evidence.settle(&storage);
        cuts += 1;
        losing += usize::from(evidence.audit(&case) > 0);
    }
    (cuts, losing)
}
