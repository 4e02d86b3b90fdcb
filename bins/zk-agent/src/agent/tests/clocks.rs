//! Clocks that are wrong, set, and right.

use std::sync::atomic::AtomicI64;

use super::*;

/// A clock whose hands and kernel the test sets, and a machine that may start
/// anew.
struct Hands {
    ahead: Arc<AtomicI64>,
    /// Milliseconds of error that the kernel states; below 0: it states none.
    error: Arc<AtomicI64>,
    begun: Instant,
}

impl Hands {
    fn new() -> Self {
        Self {
            ahead: Arc::new(AtomicI64::new(0)),
            error: Arc::new(AtomicI64::new(-1)),
            begun: Instant::now(),
        }
    }

    /// Runs from 1970 on, as fast as the monotonic clock.
    fn clock(&self) -> Clock {
        let (ahead, begun) = (Arc::clone(&self.ahead), self.begun);
        let wall = move || {
            let ms = ahead.load(Ordering::Relaxed).unsigned_abs();
            SystemTime::UNIX_EPOCH + Duration::from_millis(ms) + begun.elapsed()
        };
        let error = Arc::clone(&self.error);
        Clock::new(wall).unwrap().with_kernel(move || {
            let error = error.load(Ordering::Relaxed);
            Some(Duration::from_millis(error.try_into().ok()?))
        })
    }

    /// Sets it, to within so many milliseconds if anybody says so.
    fn set(&self, to: &str, error: Option<i64>) {
        let to = to.parse::<Timestamp>().unwrap().as_millis();
        self.ahead
            .store(i64::try_from(to).unwrap(), Ordering::Relaxed);
        self.error.store(error.unwrap_or(-1), Ordering::Relaxed);
    }

    /// As the sampler takes it.
    fn sweep(&self, device: &Device) -> Sweep {
        let time = || system(self.clock().now().time);
        Sweep {
            readings: device.bus().read_all(time).unwrap(),
            offset: self.offset(),
        }
    }

    /// What this clock says minus uptime.
    fn offset(&self) -> i64 {
        let now = self.clock().now();
        let now = [now.time.as_millis(), now.since_boot_ms];
        let [time, up] = now.map(|ms| i64::try_from(ms).unwrap());
        time - up
    }
}

fn system(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(time.as_millis())
}

fn anchors_of(records: &[zk_envelope::Opened]) -> Vec<(u64, zk_envelope::TimeAnchor)> {
    let anchor = |record: &zk_envelope::Opened| match record.report().unwrap() {
        Some(Report::TimeAnchor(anchor)) => Some((record.header().sequence, anchor)),
        _ => None,
    };
    records.iter().filter_map(anchor).collect()
}

#[test]
fn once_the_kernel_vouches_for_the_clock_an_anchor_states_its_error() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    let mut sealing = device.sealing(hands.clock(), || None);
    let readings = || sweep_of(&device).readings;
    sealing.readings(readings()).unwrap();
    // As timesyncd does at boot: a step, and the kernel is told.
    hands.set("2026-11-26T12:00:00.000Z", Some(16));
    sealing.readings(readings()).unwrap();
    // The kernel gives up on it, and its time source comes back. No step.
    hands.error.store(-1, Ordering::Relaxed);
    sealing.readings(readings()).unwrap();
    hands.error.store(3, Ordering::Relaxed);
    sealing.readings(readings()).unwrap();
    let records = device.records();
    let qualities: Vec<_> = records.iter().map(|record| record.header().clock).collect();
    use ClockQuality::{FreeRunning, Synchronised, Unknown};
    assert_eq!(
        qualities,
        [
            Unknown,
            Unknown,
            Synchronised,
            Synchronised,
            FreeRunning,
            Synchronised,
            Synchronised
        ]
    );
    let anchors = anchors_of(&records);
    let said: Vec<_> = anchors
        .iter()
        .map(|(at, anchor)| {
            (
                *at,
                anchor.before.map(|before| before.clock),
                anchor.error_ms,
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            (3, Some(Unknown), Some(16)),
            (6, Some(FreeRunning), Some(3))
        ]
    );
    // By them the owner knows when the first ones were made, to within what the
    // kernel said and what the clock may have drifted since.
    let mut dating = zk_verify::Dating::default();
    for (_, anchor) in &anchors {
        let at = |record: &&zk_envelope::Opened| {
            record.report().unwrap() == Some(Report::TimeAnchor(anchor.clone()))
        };
        dating.anchor(records.iter().find(at).unwrap().header(), anchor);
    }
    let set: Timestamp = "2026-11-26T12:00:00.000Z".parse().unwrap();
    for record in &records[..2] {
        let dated = dating.date(record.header()).unwrap();
        assert!(dated.error_ms.unwrap() >= 3, "{dated:?}");
        assert!(dated.time.as_millis().abs_diff(set.as_millis()) < 60_000);
    }
    assert_eq!(dating.date(records[2].header()), None);
}

/// An earlier process of this boot may have made records that nothing dates.
#[test]
fn a_process_that_starts_under_a_right_clock_says_so_first() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    hands.set("2026-11-26T12:00:00.000Z", Some(16));
    let mut sealing = device.sealing(hands.clock(), || None);
    sealing.readings(sweep_of(&device).readings).unwrap();
    sealing.readings(sweep_of(&device).readings).unwrap();
    let anchors = anchors_of(&device.records());
    let anchor = zk_envelope::TimeAnchor {
        before: None,
        error_ms: Some(16),
    };
    assert_eq!(anchors, [(2, anchor)]);
}

/// What lies before an anchor that never arrives would be dated by nothing.
#[test]
fn an_anchor_that_is_lost_is_made_again() {
    let device = Device::new(zk_spool::Options {
        cap: 16 << 10,
        full: zk_spool::Full::DropOldest,
        ..zk_spool::Options::default()
    });
    let hands = Hands::new();
    hands.set("2026-11-26T12:00:00.000Z", Some(16));
    let mut sealing = device.sealing(hands.clock(), || None);
    let go_on = |sealing: &mut Sealing<Chip>| {
        sealing.readings(sweep_of(&device).readings).unwrap();
        sealing.receipts().unwrap();
        anchors_of(&device.records())
    };
    let first = go_on(&mut sealing);
    assert_eq!(first.len(), 1);
    let again = (0..60).map(|_| go_on(&mut sealing)).last().unwrap();
    assert!(again[0].0 > first[0].0, "{again:?}");
    // As in the first record of a process: no clock was set.
    assert_eq!(again[0].1, first[0].1);

    // The cloud does not take it.
    for record in device.spool.peek(usize::MAX, usize::MAX).unwrap() {
        let envelope = Envelope::from_bytes(record.bytes()).unwrap();
        match envelope.unverified_header().kind {
            Kind::TimeAnchor => device.spool.reject(record.position()).unwrap(),
            _ => device.spool.ack(record.position()).unwrap(),
        }
    }
    sealing.receipts().unwrap();
    assert_eq!(go_on(&mut sealing).len(), 1);
    // It has arrived: that is enough.
    let newest = device.spool.peek(usize::MAX, usize::MAX).unwrap();
    device.spool.ack(newest.last().unwrap().position()).unwrap();
    assert_eq!(go_on(&mut sealing), []);
}

/// Set and called right between one look at it and the next, it would vouch for a
/// wrong time, and its anchor would date the whole boot by that.
#[test]
fn a_clock_that_is_set_while_it_is_read_is_not_called_right() {
    let hands = Hands::new();
    hands.set("2026-11-20T00:00:00.000Z", None);
    let error = Arc::clone(&hands.error);
    let (ahead, begun) = (Arc::clone(&hands.ahead), hands.begun);
    let wall = move || {
        let before = ahead.load(Ordering::Relaxed).unsigned_abs();
        error.store(16, Ordering::Relaxed);
        SystemTime::UNIX_EPOCH + Duration::from_millis(before) + begun.elapsed()
    };
    let error = Arc::clone(&hands.error);
    let clock = Clock::new(wall).unwrap().with_kernel(move || {
        let error = error.load(Ordering::Relaxed);
        Some(Duration::from_millis(error.try_into().ok()?))
    });
    assert_eq!(clock.now().clock, ClockQuality::FreeRunning);
}

/// The thread may be put to sleep between one clock and the other.
#[test]
fn what_passes_between_the_clocks_is_part_of_an_anchors_error() {
    let device = Device::new(zk_spool::Options::default());
    let wall = || {
        std::thread::sleep(Duration::from_millis(30));
        SystemTime::now()
    };
    let clock = Clock::new(wall).unwrap();
    let clock = clock.with_kernel(|| Some(Duration::from_millis(16)));
    let mut sealing = device.sealing(clock, || None);
    sealing.readings(sweep_of(&device).readings).unwrap();
    let anchors = anchors_of(&device.records());
    assert!(anchors[0].1.error_ms >= Some(16 + 30), "{anchors:?}");
}

/// A time source that lets a clock run faster until it is right does the same to the
/// one by which an anchor dates what was before.
#[test]
fn what_the_kernel_has_slewed_is_part_of_an_anchors_error() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    hands.set("2026-11-26T12:00:00.000Z", None);
    let slewed = Arc::new(AtomicI64::new(0));
    let told = Arc::clone(&slewed);
    let clock = hands
        .clock()
        .with_slew(move || told.load(Ordering::Relaxed));
    let mut sealing = device.sealing(clock, || None);
    let readings = || sweep_of(&device).readings;
    sealing.readings(readings()).unwrap();
    slewed.store(-900, Ordering::Relaxed);
    hands.error.store(3, Ordering::Relaxed);
    sealing.readings(readings()).unwrap();
    let anchors = anchors_of(&device.records());
    let error = anchors[0].1.error_ms.unwrap();
    // 500 ppm are for whoever dates by it; here less than a minute has passed
    assert!((903 - 30..=903).contains(&error), "{error}");
}

/// As two programs have it that both keep the clock, while a signature takes its time.
#[test]
fn a_clock_that_is_set_all_the_time_keeps_no_reading_out() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    hands.set("2026-11-26T12:00:00.000Z", None);
    let (signed, ahead) = (AtomicI64::new(0), Arc::clone(&hands.ahead));
    let mut sealing = device.sealing(hands.clock(), move || {
        ahead.fetch_add(10_000, Ordering::Relaxed);
        (signed.fetch_add(1, Ordering::Relaxed) > 20).then(|| stuck(Duration::from_secs(3600)))
    });
    for _ in 0..3 {
        sealing.sweeps(vec![hands.sweep(&device)]).unwrap();
    }
    let records = device.records();
    let kinds: Vec<_> = records.iter().map(|record| record.header().kind).collect();
    use Kind::{Data, DeviceEvent, TimeAnchor};
    assert_eq!(
        kinds,
        [DeviceEvent, Data, TimeAnchor, Data, TimeAnchor, Data]
    );
    // Each reading by the clock of its record, as an anchor tells of it.
    for record in records.iter().filter(|record| record.header().kind == Data) {
        let batch: Readings = serde_json::from_slice(record.body()).unwrap();
        let made = record.header().time.as_millis();
        let at = u64::try_from(batch.readings[0].at.as_millisecond()).unwrap();
        assert!(made.abs_diff(at) < 5_000, "{made} {batch:?}");
    }
}

/// A step that is too small for an anchor: timesyncd makes them from 0.4 s on.
#[test]
fn a_reading_follows_a_small_step_of_its_clock_too() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    hands.set("2026-11-26T12:00:00.000Z", None);
    let mut sealing = device.sealing(hands.clock(), || None);
    let sweep = hands.sweep(&device);
    let taken = sweep.readings[0].at;
    hands.set("2026-11-26T12:00:00.600Z", Some(16));
    sealing.sweeps(vec![sweep]).unwrap();
    let records = device.records();
    let batch: Readings = serde_json::from_slice(records.last().unwrap().body()).unwrap();
    let forward = batch.readings[0].at.duration_since(taken).as_millis();
    assert!((550..650).contains(&forward), "{forward}");
}

/// What was taken before the clock was set is dated by the clock of its record.
#[test]
fn readings_that_waited_while_the_clock_was_set_are_dated_by_the_new_one() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    let mut sealing = device.sealing(hands.clock(), || None);
    let unset = hands.sweep(&device);
    assert_eq!(unset.readings[0].at.strftime("%Y").to_string(), "1970");
    hands.set("2026-11-26T12:00:00.000Z", Some(16));
    let right = hands.sweep(&device);
    let as_taken = right.readings.clone();
    sealing.sweeps(vec![unset, right]).unwrap();
    let records = device.records();
    let record = records.last().unwrap();
    let batch: Readings = serde_json::from_slice(record.body()).unwrap();
    for reading in &batch.readings {
        let made = record.header().time.as_millis();
        let at = u64::try_from(reading.at.as_millisecond()).unwrap();
        assert!(made.abs_diff(at) < 60_000, "{reading:?}");
    }
    // Where no clock was set nothing is touched.
    assert_eq!(batch.readings[2..], as_taken);
}

/// Nor does a clock that is set while the record waits for its key part the two.
#[test]
fn a_record_that_waits_for_its_key_stays_by_the_clock_of_its_readings() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    let (calls, ahead) = (AtomicI64::new(0), Arc::clone(&hands.ahead));
    let set: Timestamp = "2026-11-26T12:00:00.000Z".parse().unwrap();
    // the first is the record that begins the stream
    let mut sealing = device.sealing(hands.clock(), move || {
        (calls.fetch_add(1, Ordering::Relaxed) == 1).then(|| {
            ahead.store(set.as_millis().try_into().unwrap(), Ordering::Relaxed);
            away()
        })
    });
    for _ in 0..2 {
        sealing.sweeps(vec![hands.sweep(&device)]).unwrap();
    }
    let records = device.records();
    let kinds: Vec<_> = records.iter().map(|record| record.header().kind).collect();
    use Kind::{Data, DeviceEvent};
    assert_eq!(kinds, [DeviceEvent, Data, Kind::TimeAnchor, Data]);
    for record in records.iter().filter(|record| record.header().kind == Data) {
        let batch: Readings = serde_json::from_slice(record.body()).unwrap();
        for reading in &batch.readings {
            let made = record.header().time.as_millis();
            let at = u64::try_from(reading.at.as_millisecond()).unwrap();
            assert!(made.abs_diff(at) < 60_000, "{made} {reading:?}");
        }
    }
}

/// A machine that does not know what time it is asks its security module.
#[test]
fn the_modules_clock_stands_in_for_one_that_was_never_set() {
    let device = Device::new(zk_spool::Options::default());
    let hands = Hands::new();
    let clock = hands.clock();
    let module = clock.module();
    let mut sealing = device.sealing(clock, || None);
    let sweep = || hands.sweep(&device);
    // One that was never set either is no better.
    module.set(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
    sealing.sweeps(vec![sweep()]).unwrap();
    let told: Timestamp = "2026-11-26T12:00:00.000Z".parse().unwrap();
    module.set(system(told));
    sealing.sweeps(vec![sweep()]).unwrap();
    // It is read in whole seconds: another reading moves nothing.
    module.set(system(told) + Duration::from_secs(30));
    sealing.sweeps(vec![sweep()]).unwrap();
    hands.set("2026-11-26T12:00:40.000Z", None);
    sealing.sweeps(vec![sweep()]).unwrap();

    let records = device.records();
    let said: Vec<_> = records
        .iter()
        .map(|record| (record.header().kind, record.header().clock))
        .collect();
    use ClockQuality::{FreeRunning, HardwareClock, Unknown};
    assert_eq!(
        said,
        [
            (Kind::DeviceEvent, Unknown),
            (Kind::Data, Unknown),
            (Kind::TimeAnchor, HardwareClock),
            (Kind::Data, HardwareClock),
            (Kind::Data, HardwareClock),
            (Kind::TimeAnchor, FreeRunning),
            (Kind::Data, FreeRunning),
        ]
    );
    for record in &records[2..5] {
        let ms = record.header().time.as_millis();
        assert!(ms.abs_diff(told.as_millis()) < 20_000, "{record:?}");
    }
    let batch: Readings = serde_json::from_slice(records[3].body()).unwrap();
    let at = u64::try_from(batch.readings[0].at.as_millisecond()).unwrap();
    assert!(at.abs_diff(told.as_millis()) < 20_000);
    // Nobody states how exactly a module's clock goes.
    assert_eq!(anchors_of(&records)[0].1.error_ms, None);
}

/// As at the start of the agent: the simulated module tells the time that it is.
#[test]
fn the_module_is_asked_what_time_it_is() {
    use crate::config::Events;

    let dir = tempfile::tempdir().unwrap();
    let chip = zk_hsm_sim::Device::create(dir.path().join("chip"), zk_hsm_sim::Model::Hsm6);
    let uri = format!(
        "zymkey:slot=0?module-path={}",
        chip.unwrap().module_path().display()
    );
    let clock = Hands::new().clock();
    assert_eq!(clock.now().clock, ClockQuality::Unknown);
    let module = Module {
        hsm: Hsm::open(&uri.parse().unwrap(), zk_hsm::Options::default()).unwrap(),
        interval: Duration::from_secs(60),
        measured: Arc::default(),
        clock: clock.module(),
        events: Events::default(),
        inbox: Arc::new(Inbox::new(1)),
    };
    module.ask_for_the_time();
    let now = clock.now();
    assert_eq!(now.clock, ClockQuality::HardwareClock);
    let apart = now
        .time
        .as_millis()
        .abs_diff(Timestamp::from(SystemTime::now()).as_millis());
    assert!(apart < 60_000, "{apart} ms");
}

/// 1970 at boot, jumps both ways, another boot: the audit finds every number, and
/// order is by number alone.
#[test]
fn whatever_the_clock_does_a_stream_is_complete() {
    let device = Device::new(zk_spool::Options::default());
    let readings = || sweep_of(&device).readings;
    let hands = Hands::new();
    let mut sealing = device.sealing(hands.clock(), || None);
    sealing.begin().unwrap();
    for time in [
        "1970-01-01T00:00:30.000Z",
        "2026-11-26T12:00:00.000Z",
        "2031-01-01T00:00:00.000Z",
        "2026-11-26T12:00:10.000Z",
        "1970-01-01T00:00:00.000Z",
        "2026-11-26T12:00:20.000Z",
    ] {
        hands.set(time, time.starts_with("2026").then_some(16));
        sealing.readings(readings()).unwrap();
    }
    let hands = Hands::new();
    let second_boot = hands.clock().with_boot(zk_envelope::BootId([2; 16]));
    let mut sealing = device.sealing(second_boot, || None);
    sealing.begin().unwrap();
    sealing.readings(readings()).unwrap();
    hands.set("2026-11-26T12:05:00.000Z", Some(16));
    sealing.readings(readings()).unwrap();

    let trusted = zk_envelope::TrustedDevice {
        owners: [device.owner.id()].into(),
        keys: vec![],
    };
    let mut audit = zk_verify::Audit::new("pi-01".parse().unwrap(), &trusted, true);
    let records = device.spool.peek(usize::MAX, usize::MAX).unwrap();
    let mut in_the_store: Vec<_> = records
        .iter()
        .map(|record| {
            let envelope = Envelope::from_bytes(record.bytes()).unwrap();
            envelope.verify(device.key.public_key()).unwrap()
        })
        .collect();
    in_the_store.sort_by_key(|record| record.header().time);
    let numbers: Vec<_> = in_the_store
        .iter()
        .map(|record| record.header().sequence)
        .collect();
    assert!(!numbers.is_sorted(), "by time alone it is out of order");
    for record in &in_the_store {
        audit.record(record, record.header().time, 0);
        let opened = record.clone().open(&device.owner).unwrap();
        if let Some(report) = opened.report().unwrap() {
            audit.report(opened.header(), record.header().time, &report);
        }
    }
    let findings = audit.finish();
    assert!(findings.is_clean(), "{findings:?}");
    assert_eq!(findings.streams.len(), 1);
    assert_eq!(findings.streams[0].complete_to, records.len() as u64);
    let repaired: Vec<_> = findings
        .repairs
        .iter()
        .map(|repair| (repair.error_ms, repair.clock_before))
        .collect();
    use ClockQuality::{FreeRunning, Synchronised, Unknown};
    assert_eq!(
        repaired,
        [
            (Some(16), Unknown),
            (None, Synchronised),
            (Some(16), FreeRunning),
            (None, Synchronised),
            (Some(16), Unknown),
            (Some(16), Unknown),
        ]
    );
    let boots: Vec<_> = findings.repairs.iter().map(|repair| repair.boot).collect();
    assert_ne!(boots[4], boots[5]);
}
