//! A chip that takes its time: what comes in meanwhile shares the next record.

use zk_sensors::MilliCelsius;

use super::*;

/// A chip that signs when it is told to, and tells when it is asked.
struct Gate {
    asked: Receiver<()>,
    sign: Sender<()>,
}

impl Gate {
    /// And what its key refuses: nothing.
    fn new() -> (Self, impl Fn() -> Option<zk_hsm::Error> + Send + 'static) {
        let (asks, asked) = channel();
        let (sign, told) = channel();
        let wait = move || {
            asks.send(()).unwrap();
            told.recv().unwrap();
            None
        };
        (Self { asked, sign }, wait)
    }

    /// Lets one signature be made, and `meanwhile` happen while the chip is at it.
    fn one(&self, meanwhile: impl FnOnce()) {
        self.asked.recv().unwrap();
        meanwhile();
        self.sign.send(()).unwrap();
    }
}

/// A reading that can be told from others by its time.
fn reading(number: u64) -> Reading {
    Reading {
        sensor: "28-0000000a0001".parse().unwrap(),
        at: jiff::Timestamp::from_millisecond(number.try_into().unwrap()).unwrap(),
        value: Some(MilliCelsius(-10_062)),
        quality: Quality::Ok,
    }
}

/// As the sampler has them now, by the system's clock.
fn offer(inbox: &Inbox, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let readings = vec![reading(number)];
        let offset = clock::system_offset();
        inbox.offer(Sweep { readings, offset }).unwrap();
    }
}

/// The readings in each record that has some.
fn batches(device: &Device) -> Vec<(u64, usize, Vec<u64>)> {
    let records = device.records();
    let of_readings = records
        .iter()
        .filter(|record| record.report().unwrap().is_none());
    of_readings
        .map(|record| {
            let batch: Readings = serde_json::from_slice(record.body()).unwrap();
            let number = |reading: &Reading| reading.at.as_millisecond().unsigned_abs();
            let numbers = batch.readings.iter().map(number).collect();
            (record.header().sequence, record.body().len(), numbers)
        })
        .collect()
}

/// 100 readings a second and a chip that takes 80 ms for a signature are 8 readings
/// for each. A reading waits for the signature during which it was taken, and is in
/// the one after it: it is sealed within 160 ms, and with a heartbeat, a receipt,
/// an anchor and an event between the two within 480 ms.
#[test]
fn each_reading_is_in_the_record_after_the_signature_that_it_met() {
    const SIGNATURES: u64 = 60;
    let device = Device::new(zk_spool::Options::default());
    let inbox = Inbox::new(16);
    let (gate, wait) = Gate::new();
    let sealing = device.sealing(clock(), wait);
    std::thread::scope(|scope| {
        let sealer = scope.spawn(|| sealing.run_to_the_end(&inbox));
        for signature in 0..SIGNATURES {
            // of the stream's beginning, the heartbeat, then of readings
            gate.one(|| offer(&inbox, signature * 8..signature * 8 + 8));
            assert!(inbox.readings() <= 16);
        }
        inbox.close();
        gate.one(|| {});
        sealer.join().unwrap().unwrap();
    });
    let batches = batches(&device);
    let all: Vec<_> = batches
        .iter()
        .flat_map(|(.., numbers)| numbers)
        .copied()
        .collect();
    assert_eq!(all, (0..SIGNATURES * 8).collect::<Vec<_>>());
    for (sequence, _, numbers) in batches {
        // Record n is the nth signature, counted from 1.
        for number in numbers {
            let met = number / 8 + 1;
            assert!(
                met == sequence - 1 || (met, sequence) == (1, 3),
                "{number} in {sequence}"
            );
        }
    }
}

/// The chip throttles: what gathers goes out in as few records as there can be,
/// of up to 48 KiB.
#[test]
fn what_gathers_behind_a_slow_signature_fills_records_and_nothing_is_lost() {
    const READINGS: u64 = 5000;
    let device = Device::new(zk_spool::Options::default());
    let inbox = Inbox::new(READINGS_WAITING);
    let (gate, wait) = Gate::new();
    let sealing = device.sealing(clock(), wait);
    std::thread::scope(|scope| {
        let sealer = scope.spawn(|| sealing.run_to_the_end(&inbox));
        gate.one(|| {});
        gate.one(|| offer(&inbox, 0..READINGS));
        inbox.close();
        while !sealer.is_finished() {
            match gate.asked.recv() {
                Ok(()) => gate.sign.send(()).unwrap(),
                // It has ended in between.
                Err(_) => break,
            }
        }
        sealer.join().unwrap().unwrap();
    });
    let batches = batches(&device);
    let all: Vec<_> = batches
        .iter()
        .flat_map(|(.., numbers)| numbers)
        .copied()
        .collect();
    assert_eq!(all, (0..READINGS).collect::<Vec<_>>());
    assert_eq!(device.count(|progress| &progress.given_up), 0);
    let (last, full) = batches.split_last().unwrap();
    assert!(last.1 <= MAX_BODY);
    for (sequence, bytes, _) in full {
        assert!(
            (MAX_BODY - 2048..=MAX_BODY).contains(bytes),
            "{bytes} in {sequence}"
        );
    }
}

/// Bytes count, and not readings: what is longer makes shorter batches.
#[test]
fn no_record_of_readings_is_longer_than_it_may_be() {
    let device = Device::new(zk_spool::Options::default());
    let mut sealing = device.sealing(clock(), || None);
    let short = Reading {
        value: Some(MilliCelsius(1)),
        ..reading(1)
    };
    for one in [reading(1), short] {
        sealing.readings(vec![one; 3000]).unwrap();
    }
    let batches = batches(&device);
    let counts: Vec<_> = batches.iter().map(|(.., numbers)| numbers.len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 6000);
    assert_ne!(counts[0], counts[counts.len() / 2 + 1]);
    for (sequence, bytes, _) in batches {
        assert!(bytes <= MAX_BODY, "{bytes} in {sequence}");
    }
}

/// A spool that takes no record of that length gets shorter ones.
#[test]
fn a_small_spool_gets_small_records() {
    let device = Device::new(zk_spool::Options {
        cap: 16 * 1024,
        full: zk_spool::Full::DropOldest,
        ..zk_spool::Options::default()
    });
    let mut sealing = device.sealing(clock(), || None);
    sealing.readings(vec![reading(1); 2000]).unwrap();
    assert_eq!(device.count(|progress| &progress.sealed), 2000);
    assert_eq!(device.count(|progress| &progress.given_up), 0);
}

/// Nothing waits for a sealer that does not take anything: what is too much is
/// given up, and counted.
#[test]
fn sampling_never_waits_for_the_chip() {
    let device = Device::new(zk_spool::Options::default());
    let inbox = Inbox::new(10);
    let (stop, stopped) = channel();
    std::thread::scope(|scope| {
        let (inbox, progress) = (&inbox, &device.progress);
        let sensors = device.sensors();
        let sampler = scope.spawn(move || sample(&sensors, &stopped, inbox, progress));
        while progress.given_up.load(Ordering::Relaxed) < 50 {
            std::thread::yield_now();
        }
        drop(stop);
        sampler.join().unwrap();
    });
    let sampled = device.count(|progress| &progress.sampled);
    let given_up = device.count(|progress| &progress.given_up);
    assert_eq!(sampled - given_up, 10);
    assert_eq!(inbox.readings(), 10);
}

/// What happens to the device is not lost for want of room.
#[test]
fn a_full_spool_has_room_for_an_event() {
    let device = Device::new(zk_spool::Options {
        cap: 16 << 10,
        ..zk_spool::Options::default()
    });
    let mut sealing = device.sealing(clock(), || None);
    while device.count(|progress| &progress.given_up) == 0 {
        sealing.readings(vec![reading(1)]).unwrap();
    }
    let inbox = Inbox::new(10);
    inbox.report(zk_envelope::DeviceEvent::PerimeterCleared { circuit: 1 });
    inbox.close();
    sealing.run(&inbox).unwrap();
    let records = device.records();
    let event = reports(&records).find_map(|report| match report {
        Report::DeviceEvent(zk_envelope::DeviceEvent::PerimeterCleared { circuit }) => {
            Some(circuit)
        }
        _ => None,
    });
    assert_eq!(event, Some(1));
}

/// How long the key was out is sealed when it is back, by who opted for it.
#[test]
fn an_outage_of_the_key_is_told_when_it_is_over() {
    let outage = |wanted| {
        let device = Device::new(zk_spool::Options::default());
        let left = AtomicU64::new(3);
        let refuses = move || {
            let refused = left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            refused.is_ok().then(away)
        };
        let mut sealing = device.sealing(clock(), refuses);
        sealing.recoveries = wanted;
        let inbox = Inbox::new(10);
        offer(&inbox, 0..1);
        inbox.close();
        sealing.run(&inbox).unwrap();
        let records = device.records();
        reports(&records).find_map(|report| match report {
            Report::DeviceEvent(zk_envelope::DeviceEvent::ModuleRecovered { outage_ms }) => {
                Some(outage_ms)
            }
            _ => None,
        })
    };
    // Three pauses: of 50, 100 and 200 ms.
    assert!(outage(true).unwrap() >= 350);
    assert_eq!(outage(false), None);
}
