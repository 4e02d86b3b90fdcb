#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use jiff::SignedDuration;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Error as SignatureError, Signer};
use tempfile::TempDir;
use zk_envelope::{ClockQuality, Envelope, Kind, LossReason, OwnerKey, Report, Timestamp};
use zk_hsm::{Operation, create_soft_key};
use zk_sensors::{Quality, Reading, Readings, SensorId, SimulatedBus, W1Bus};

use super::inbox::Sweep;
use super::sealing::*;
use super::threads::*;
use super::*;
use crate::clock;
use crate::config::Sensors;

mod batching;
mod clocks;
mod evidence;

/// A real key behind a chip that may refuse.
struct Chip {
    key: Hsm,
    refuses: Box<dyn Fn() -> Option<zk_hsm::Error> + Send>,
}

impl Signer<Signature> for Chip {
    fn try_sign(&self, message: &[u8]) -> Result<Signature, SignatureError> {
        match (self.refuses)() {
            Some(error) => Err(SignatureError::from_source(error)),
            None => self.key.try_sign(message),
        }
    }
}

fn away() -> zk_hsm::Error {
    zk_hsm::Error::Unavailable {
        retry_in: Duration::from_secs(1),
        source: Box::new(zk_hsm::Error::Busy { waiting: 1 }),
    }
}

fn stuck(elapsed: Duration) -> zk_hsm::Error {
    zk_hsm::Error::Wedged {
        operation: Operation::Sign,
        elapsed,
    }
}

/// A device with a spool, two thermometers and an owner.
struct Device {
    dir: TempDir,
    key: Hsm,
    owner: OwnerKey,
    cap: u64,
    spool: Arc<Spool>,
    progress: Arc<Progress>,
    patience: Arc<OnceLock<Instant>>,
    _bus: SimulatedBus,
}

impl Device {
    fn new(options: zk_spool::Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = create_soft_key(dir.path().join("key.pem")).unwrap();
        let sensors = ["28-0000000a0001", "28-0000000a0002"];
        let sensors: Vec<SensorId> = sensors.iter().map(|id| id.parse().unwrap()).collect();
        Self {
            key: Hsm::open(&key, zk_hsm::Options::default()).unwrap(),
            owner: OwnerKey::generate().unwrap(),
            cap: options.cap,
            spool: Arc::new(Spool::open(dir.path().join("spool"), options).unwrap()),
            progress: Arc::default(),
            patience: Arc::default(),
            _bus: SimulatedBus::create(dir.path().join("sys"), &sensors).unwrap(),
            dir,
        }
    }

    fn sealing(
        &self,
        clock: Clock,
        refuses: impl Fn() -> Option<zk_hsm::Error> + Send + 'static,
    ) -> Sealing<Chip> {
        let owners = [self.owner.public_key().clone()];
        let stream = StreamId(self.spool.stream().0);
        let device = "pi-01".parse().unwrap();
        Sealing {
            sealer: Sealer::new(device, stream, self.key.public_key(), &owners).unwrap(),
            key: Chip {
                key: self.key.clone(),
                refuses: Box::new(refuses),
            },
            spool: Arc::clone(&self.spool),
            clock,
            progress: Arc::clone(&self.progress),
            patience: Arc::clone(&self.patience),
            heartbeat: Duration::from_secs(3600),
            started: None,
            anchored: None,
            receipts: Receipts::new(&self.spool, self.cap),
            receipts_wait: false,
            largest: MAX_BODY,
            counted: 0,
            recoveries: true,
            out_since: None,
            recovered: None,
            reminder: Reminder::new(Expires::new(SystemTime::now())),
        }
    }

    fn bus(&self) -> W1Bus {
        W1Bus::new(self.sensors().root)
    }

    /// One sweep after the other.
    fn sensors(&self) -> Sensors {
        Sensors {
            interval: SignedDuration::ZERO,
            root: self.dir.path().join("sys"),
            ..Sensors::default()
        }
    }

    /// What the owner finds in the spool: each record opened.
    fn records(&self) -> Vec<zk_envelope::Opened> {
        let records = self.spool.peek(usize::MAX, usize::MAX).unwrap();
        let open = |record: &zk_spool::Record| {
            let envelope = Envelope::from_bytes(record.bytes()).unwrap();
            let verified = envelope.verify(self.key.public_key()).unwrap();
            verified.open(&self.owner).unwrap()
        };
        records.iter().map(open).collect()
    }

    fn count(&self, counter: impl Fn(&Progress) -> &AtomicU64) -> u64 {
        counter(&self.progress).load(Ordering::Relaxed)
    }
}

fn sweep_of(device: &Device) -> Sweep {
    let offset = clock::system_offset();
    let readings = device.bus().read_all(|| clock::time_of(offset)).unwrap();
    Sweep { readings, offset }
}

/// Readings in these records, and readings that their receipts name.
fn tally(records: &[zk_envelope::Opened]) -> (u64, u64) {
    let (mut kept, mut named) = (0, 0);
    for record in records {
        match record.report().unwrap() {
            Some(Report::LossReceipt(receipt)) => named += receipt.records,
            Some(_) => {}
            None => {
                let batch: Readings = serde_json::from_slice(record.body()).unwrap();
                kept += batch.readings.len() as u64;
            }
        }
    }
    (kept, named)
}

/// This machine's, whoever keeps it.
fn clock() -> Clock {
    Clock::new(SystemTime::now).unwrap().with_kernel(|| None)
}

#[test]
fn a_key_that_does_not_sign_costs_readings_that_are_named_afterwards() {
    let device = Device::new(zk_spool::Options::default());
    let progress = Arc::clone(&device.progress);
    // Signs again when so much waited that readings had to be given up.
    let refuses = move || (progress.given_up.load(Ordering::Relaxed) < 10).then(away);
    let sealing = device.sealing(clock(), refuses);
    let inbox = Inbox::new(500);
    let (stop, stopped) = channel();
    std::thread::scope(|scope| {
        let sealer = scope.spawn(|| sealing.run_to_the_end(&inbox));
        let (inbox, progress) = (&inbox, &device.progress);
        let sensors = device.sensors();
        let sampler = scope.spawn(move || sample(&sensors, &stopped, inbox, progress));
        while progress.sealed.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        drop(stop);
        sampler.join().unwrap();
        sealer.join().unwrap().unwrap();
    });
    let sampled = device.count(|progress| &progress.sampled);
    let given_up = device.count(|progress| &progress.given_up);
    assert!(given_up >= 10);
    assert_eq!(tally(&device.records()), (sampled - given_up, given_up));
}

#[test]
fn what_a_full_spool_does_not_take_is_named_when_it_has_room() {
    let device = Device::new(zk_spool::Options {
        cap: 16 << 10,
        ..zk_spool::Options::default()
    });
    let mut sealing = device.sealing(clock(), || None);
    let sweep = || device.bus().read_all(SystemTime::now).unwrap();
    let mut sampled = 0;
    let mut offer = |sealing: &mut Sealing<Chip>| {
        let readings = sweep();
        sampled += readings.len() as u64;
        sealing.readings(readings).unwrap();
        sealing.receipts().unwrap();
    };
    // Until there is no room for receipts either, and on.
    while !sealing.receipts_wait {
        offer(&mut sealing);
    }
    for _ in 0..20 {
        offer(&mut sealing);
    }
    let before = device.records();
    let newest = device.spool.peek(usize::MAX, usize::MAX).unwrap();
    device.spool.ack(newest.last().unwrap().position()).unwrap();
    for _ in 0..3 {
        offer(&mut sealing);
    }
    let (kept, named) = tally(&before);
    let (kept_after, named_after) = tally(&device.records());
    let lost = sampled - kept - kept_after;
    let given_up = device.count(|progress| &progress.given_up);
    assert!(lost > 40);
    assert_eq!(given_up, lost);
    // One more: the receipt that found no room is counted by the spool too.
    assert_eq!(named + named_after, lost + 1);
}

/// A device whose full spool drops the oldest records, in an outage so long
/// that nothing is left of the first ones and of the receipts for them.
fn after_an_outage() -> (Device, Sealing<Chip>) {
    let device = Device::new(zk_spool::Options {
        cap: 16 << 10,
        full: zk_spool::Full::DropOldest,
        ..zk_spool::Options::default()
    });
    let mut sealing = device.sealing(clock(), || None);
    for _ in 0..60 {
        let sweep = device.bus().read_all(SystemTime::now).unwrap();
        sealing.readings(sweep).unwrap();
        sealing.receipts().unwrap();
    }
    (device, sealing)
}

/// The numbers that are there, and those that receipts name.
fn numbers(records: &[zk_envelope::Opened]) -> (Vec<u64>, Vec<u64>) {
    let there = records.iter().map(|record| record.header().sequence);
    let mut named: Vec<u64> = reports(records)
        .filter_map(|report| match report {
            Report::LossReceipt(receipt) => receipt.range,
            _ => None,
        })
        .flat_map(|range| range.first..=range.last)
        .collect();
    named.sort_unstable();
    named.dedup();
    (there.collect(), named)
}

fn reports(records: &[zk_envelope::Opened]) -> impl Iterator<Item = Report> {
    records.iter().filter_map(|record| record.report().unwrap())
}

#[test]
fn what_a_dropped_receipt_named_is_named_again() {
    let (device, _sealing) = after_an_outage();
    let (there, named) = numbers(&device.records());
    let (first, last) = (there[0], there[there.len() - 1]);
    assert!(first > 30, "{there:?}");
    assert_eq!(there, (first..=last).collect::<Vec<_>>());
    assert_eq!(named, (1..first).collect::<Vec<_>>());
}

#[test]
fn a_loss_is_confirmed_when_its_receipt_is_delivered() {
    let (device, _sealing) = after_an_outage();
    let before = numbers(&device.records()).0;
    // A process that starts does not know of the receipts, and names all.
    let mut sealing = device.sealing(clock(), || None);
    sealing.receipts().unwrap();
    let mut records = device.records();
    records.retain(|record| !before.contains(&record.header().sequence));
    let (_, named) = numbers(&records);
    assert_eq!(named[..10], (1..=10).collect::<Vec<_>>());

    // These receipts have driven out others, whose losses are named in a
    // further turn.
    for _ in 0..2 {
        if let Some(newest) = device.spool.peek(usize::MAX, usize::MAX).unwrap().last() {
            assert_ne!(device.spool.losses().unwrap(), []);
            device.spool.ack(newest.position()).unwrap();
        }
        sealing.receipts().unwrap();
    }
    assert_eq!(device.spool.losses().unwrap(), []);
    assert_eq!(device.records().len(), 0, "nothing is left to name");
}

/// So many losses apart from each other that their receipts do not fit into
/// the spool at once.
#[test]
fn receipts_leave_room_for_readings_and_come_in_turns() {
    let device = Device::new(zk_spool::Options {
        cap: 16 << 10,
        full: zk_spool::Full::DropOldest,
        ..zk_spool::Options::default()
    });
    let sweep = || device.bus().read_all(SystemTime::now).unwrap();
    let oldest = || device.spool.peek(1, usize::MAX).unwrap()[0].position();
    let mut sealing = device.sealing(clock(), || None);
    sealing.readings(sweep()).unwrap();
    device.spool.ack(oldest()).unwrap();
    for _ in 0..60 {
        device.spool.reject(oldest()).unwrap();
        sealing.readings([sweep(), sweep()].concat()).unwrap();
        device.spool.ack(oldest()).unwrap();
        sealing.readings(sweep()).unwrap();
    }
    let losses = device.spool.losses().unwrap();
    assert_eq!(losses.len(), 60);

    // No link: the spool is full of what is newest.
    for _ in 0..40 {
        sealing.readings(sweep()).unwrap();
        sealing.receipts().unwrap();
    }
    let records = device.records();
    let (all, receipts) = (records.len(), reports(&records).count());
    assert!(0 < receipts && receipts + 1 < all, "{receipts} of {all}");

    // A link again: each of them is named, and that comes to an end.
    let mut named = Vec::new();
    let mut turns = 0;
    while !device.spool.losses().unwrap().is_empty() {
        turns += 1;
        assert!(turns <= 60, "{:?}", device.spool.losses());
        named.extend(numbers(&device.records()).1);
        if let Some(newest) = device.spool.peek(usize::MAX, usize::MAX).unwrap().last() {
            device.spool.ack(newest.position()).unwrap();
        }
        sealing.receipts().unwrap();
    }
    for loss in losses {
        assert!(named.contains(&loss.first), "{loss:?} in {named:?}");
    }
}

#[test]
fn losses_that_continue_each_other_share_a_receipt() {
    let device = Device::new(zk_spool::Options::default());
    let mut sealing = device.sealing(clock(), || None);
    for _ in 0..3 {
        let sweep = device.bus().read_all(SystemTime::now).unwrap();
        sealing.readings(sweep).unwrap();
    }
    for record in device.spool.peek(3, usize::MAX).unwrap() {
        device.spool.reject(record.position()).unwrap();
        device.spool.losses().unwrap();
    }
    assert_eq!(device.spool.losses().unwrap().len(), 3);
    sealing.receipts().unwrap();
    let records = device.records();
    let receipts: Vec<_> = reports(&records)
        .filter_map(|report| match report {
            Report::LossReceipt(receipt) => receipt.range,
            _ => None,
        })
        .map(|range| (range.first, range.last))
        .collect();
    assert_eq!(receipts, [(1, 3)]);
}

/// A receipt that the cloud refuses has not arrived: another one is made, but
/// not while the cloud refuses all.
#[test]
fn what_a_refused_receipt_named_is_named_again_when_something_is_taken() {
    let device = Device::new(zk_spool::Options::default());
    let mut sealing = device.sealing(clock(), || None);
    let sweep = || device.bus().read_all(SystemTime::now).unwrap();
    let oldest = || device.spool.peek(1, usize::MAX).unwrap()[0].position();
    sealing.readings(sweep()).unwrap();
    let refuse = |sealing: &mut Sealing<Chip>| {
        while device.spool.stats().unwrap().records > 0 {
            device.spool.reject(oldest()).unwrap();
        }
        sealing.receipts().unwrap();
        device.spool.stats().unwrap().records
    };
    // The stream's beginning, and the readings; then the receipt, and the stream's
    // beginning again.
    assert_eq!(refuse(&mut sealing), 2);
    for _ in 0..20 {
        sealing.readings(sweep()).unwrap();
        assert_eq!(refuse(&mut sealing), 0);
    }
    // Something is taken.
    sealing.readings(sweep()).unwrap();
    device.spool.ack(oldest()).unwrap();
    sealing.receipts().unwrap();
    let records = device.records();
    let last = device.spool.stats().unwrap().acked.unwrap().1;
    assert_eq!(numbers(&records).1, (1..last).collect::<Vec<_>>());

    // The next refusals make it wait for more and more.
    let mut receipts = 0;
    for round in 0..40 {
        sealing.readings(sweep()).unwrap();
        for record in device.spool.peek(usize::MAX, usize::MAX).unwrap() {
            let envelope = Envelope::from_bytes(record.bytes()).unwrap();
            if envelope.unverified_header().kind == Kind::LossReceipt {
                receipts += 1;
                device.spool.reject(record.position()).unwrap();
            } else {
                device.spool.ack(record.position()).unwrap();
            }
        }
        sealing.receipts().unwrap();
        assert!(
            receipts <= 2 + (round + 1_u32).ilog2(),
            "{receipts} in {round}"
        );
    }
    assert!((4..8).contains(&receipts), "{receipts}");
    assert_ne!(device.spool.losses().unwrap(), []);

    // All of it arrives in the end, and is forgotten.
    let mut named = Vec::new();
    for _ in 0..100 {
        named.extend(numbers(&device.records()).1);
        if device.spool.stats().unwrap().records > 0 {
            let newest = device.spool.peek(usize::MAX, usize::MAX).unwrap();
            device.spool.ack(newest.last().unwrap().position()).unwrap();
        }
        sealing.readings(sweep()).unwrap();
        sealing.receipts().unwrap();
    }
    assert_eq!(device.spool.losses().unwrap(), []);
    assert!((1..last).all(|number| named.contains(&number)), "{named:?}");
}

#[test]
fn how_a_stream_began_is_said_again_when_it_is_dropped() {
    let (device, _sealing) = after_an_outage();
    let started = |report: &Report| matches!(report, Report::DeviceEvent(_));
    let records = device.records();
    assert!(numbers(&records).0[0] > 1);
    assert_eq!(reports(&records).filter(started).count(), 1);
}

/// The spool's table of losses is gone: how many stood in it, nobody knows.
#[test]
fn losses_of_unknown_number_are_named_as_such() {
    let (device, sealing) = after_an_outage();
    drop(sealing);
    let Device {
        dir,
        key,
        owner,
        cap,
        ..
    } = device;
    let place = dir.path().join("spool");
    drop(device.spool);
    fs::write(place.join("state"), [0; 64]).unwrap();
    let device = Device {
        spool: Arc::new(Spool::open(&place, zk_spool::Options::default()).unwrap()),
        dir,
        key,
        owner,
        cap,
        progress: Arc::default(),
        patience: Arc::default(),
        _bus: device._bus,
    };
    device.sealing(clock(), || None).receipts().unwrap();
    let records = device.records();
    let unknown = reports(&records).find_map(|report| match report {
        Report::LossReceipt(receipt) if receipt.records == 0 => Some(receipt),
        _ => None,
    });
    let unknown = unknown.unwrap();
    assert_eq!(unknown.reason, LossReason::Damaged);
    let stream = StreamId(device.spool.stream().0);
    let range = unknown.range.map(|range| (range.stream, range.first));
    assert_eq!(range, Some((stream, 1)));
}

#[test]
fn a_sweep_of_many_sensors_makes_several_records() {
    let device = Device::new(zk_spool::Options::default());
    let mut sealing = device.sealing(clock(), || None);
    let sweep = device.bus().read_all(SystemTime::now).unwrap();
    let readings: Vec<_> = sweep.into_iter().cycle().take(5000).collect();
    sealing.readings(readings).unwrap();
    assert_eq!(tally(&device.records()), (5000, 0));
}

#[test]
fn a_key_that_stays_stuck_ends_the_agent() {
    let device = Device::new(zk_spool::Options::default());
    let elapsed = AtomicU64::new(58);
    let refuses = move || {
        let seconds = elapsed.fetch_add(1, Ordering::Relaxed);
        Some(stuck(Duration::from_secs(seconds)))
    };
    let sealing = device.sealing(clock(), refuses);
    let error = sealing.run_to_the_end(&Inbox::new(1)).unwrap_err();
    assert!(may_pass(&zk_envelope::Error::Sign(
        SignatureError::from_source(stuck(Duration::ZERO))
    )));
    assert!(matches!(error, Error::Envelope(_)), "{error}");
}

#[test]
fn told_to_stop_it_does_not_wait_for_a_key_that_does_not_sign() {
    let device = Device::new(zk_spool::Options::default());
    let sealing = device.sealing(clock(), || Some(away()));
    let inbox = Inbox::new(10);
    inbox.report(zk_envelope::DeviceEvent::PerimeterCleared { circuit: 0 });
    inbox.offer(sweep_of(&device)).unwrap();
    device.patience.set(Instant::now()).unwrap();
    let error = sealing.run_to_the_end(&inbox).unwrap_err();
    assert!(matches!(error, Error::Envelope(_)), "{error}");
    assert_eq!(device.count(|progress| &progress.given_up), 2);
}

#[test]
fn a_thread_that_panics_is_an_alarm() {
    let (rung, rings) = channel();
    let alarm = Arc::new(Alarm(Mutex::new(Some(Box::new(move || {
        rung.send(()).unwrap();
    })))));
    let thread = Thread::<()>::spawn("test", &alarm, || panic!("as the test wants it"));
    rings.recv().unwrap();
    let ended = thread.unwrap().join_by(Instant::now() + FOREVER);
    assert!(matches!(ended, Err(Error::ThreadEnded)), "{ended:?}");
}

#[test]
fn a_thread_that_hangs_is_left_behind() {
    let alarm = Arc::new(Alarm(Mutex::new(None)));
    let (_hold, held) = channel::<()>();
    let thread = Thread::spawn("test", &alarm, move || held.recv());
    assert!(thread.unwrap().join_by(Instant::now()).unwrap().is_none());
}

/// Kinds, and the clocks, of what a device makes while its clock is set
/// from one moment to another between two sweeps.
fn anchors(steps_ms: &[i64]) -> Vec<zk_envelope::Opened> {
    let device = Device::new(zk_spool::Options::default());
    let start = i64::try_from(Y2020_MS).unwrap() - 60_000;
    let wall = Arc::new(AtomicI64::new(start));
    let hand = Arc::clone(&wall);
    let begun = Instant::now();
    // Runs as fast as the monotonic clock.
    let clock = Clock::new(move || {
        let ms = hand.load(Ordering::Relaxed).unsigned_abs();
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms) + begun.elapsed()
    });
    let clock = clock.unwrap().with_kernel(|| None);
    let mut sealing = device.sealing(clock, || None);
    for step in steps_ms {
        wall.fetch_add(*step, Ordering::Relaxed);
        let sweep = device.bus().read_all(SystemTime::now).unwrap();
        sealing.readings(sweep).unwrap();
    }
    device.records()
}

#[test]
fn when_the_clock_is_set_an_anchor_says_what_it_said_before() {
    let kinds = |records: &[zk_envelope::Opened]| -> Vec<Kind> {
        records.iter().map(|record| record.header().kind).collect()
    };
    let start = Kind::DeviceEvent;
    // Forward over 2020, and back again; a wobble is none.
    let hour = 3_600_000;
    let records = anchors(&[0, hour, 500, -500, -hour]);
    assert_eq!(
        kinds(&records),
        [
            start,
            Kind::Data,
            Kind::TimeAnchor,
            Kind::Data,
            Kind::Data,
            Kind::Data,
            Kind::TimeAnchor,
            Kind::Data
        ]
    );
    let anchor = |at: usize| match records[at].report().unwrap() {
        Some(Report::TimeAnchor(anchor)) => (anchor, records[at].header().time),
        other => panic!("{other:?}"),
    };
    let apart = |a: Timestamp, b: Timestamp| a.as_millis().abs_diff(b.as_millis());
    let (set, now) = anchor(2);
    // Set by hand: nobody says how exactly.
    assert_eq!(set.error_ms, None);
    let set = set.before.unwrap();
    assert_eq!(set.clock, ClockQuality::Unknown);
    // The old clock goes on to this very moment, so the step is all between.
    assert!(apart(now, set.time).abs_diff(3_600_000) < 1000);
    assert!(set.time < now);
    assert_ne!(records[2].header().clock, ClockQuality::Unknown);
    let (back, now) = anchor(6);
    let back = back.before.unwrap();
    assert_ne!(back.clock, ClockQuality::Unknown);
    assert!(back.time > now);
    assert_eq!(records[6].header().clock, ClockQuality::Unknown);
    // What a slewed clock gains in small steps is no step.
    let slewed = anchors(&[0, 900, 900, 900, 900]);
    assert!(!kinds(&slewed).contains(&Kind::TimeAnchor));
}

/// The step is not forgotten with the anchor that found no room.
#[test]
fn an_anchor_that_a_full_spool_does_not_take_comes_later() {
    let device = Device::new(zk_spool::Options {
        cap: 16 << 10,
        ..zk_spool::Options::default()
    });
    let ahead = Arc::new(AtomicU64::new(0));
    let hand = Arc::clone(&ahead);
    let clock =
        Clock::new(move || SystemTime::now() + Duration::from_secs(hand.load(Ordering::Relaxed)));
    let clock = clock.unwrap().with_kernel(|| None);
    let mut sealing = device.sealing(clock, || None);
    let sweep = || device.bus().read_all(SystemTime::now).unwrap();
    while device.count(|progress| &progress.given_up) == 0 {
        sealing.readings(sweep()).unwrap();
    }
    ahead.store(3600, Ordering::Relaxed);
    sealing.readings(sweep()).unwrap();
    let newest = device.spool.peek(usize::MAX, usize::MAX).unwrap();
    device.spool.ack(newest.last().unwrap().position()).unwrap();
    sealing.readings(sweep()).unwrap();
    let kinds: Vec<_> = device.records().iter().map(|r| r.header().kind).collect();
    assert_eq!(kinds, [Kind::TimeAnchor, Kind::Data]);
}
