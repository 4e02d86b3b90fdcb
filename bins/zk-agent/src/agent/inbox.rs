//! Where readings and events wait for the sealer.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zk_envelope::DeviceEvent;
use zk_sensors::Reading;

use crate::socket::Data;

/// What the sampler, and whoever watches the key's module, have for the sealer:
/// none of them ever waits for it.
///
/// Bounded by the number of readings, however many there are in a sweep.
#[derive(Debug)]
pub(super) struct Inbox {
    most: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    sweeps: VecDeque<Sweep>,
    /// In all of them.
    readings: usize,
    events: VecDeque<DeviceEvent>,
    data: VecDeque<Data>,
    /// Data was taken last, so that sweeps are next.
    data_was_last: bool,
    /// A heartbeat's new interval.
    heartbeat: Option<Duration>,
    closed: bool,
}

/// The readings of one sweep.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) readings: Vec<Reading>,
    /// How far the clock that they are dated by was ahead of the uptime, in
    /// milliseconds.
    pub(super) offset: i64,
}

/// Why a sweep is not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// So many readings wait already.
    Full(Sweep),
    /// Nobody takes them any more.
    Closed,
}

/// What there is to seal now.
#[derive(Debug)]
pub(super) enum Taken {
    Sweeps(Vec<Sweep>),
    Event(DeviceEvent),
    Data(Data),
    /// From one heartbeat to the next.
    Heartbeat(Duration),
    /// Nothing came in time.
    Nothing,
    /// Nothing is left, and nothing more comes.
    Closed,
}

impl Inbox {
    /// For so many readings.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn offer(&self, sweep: Sweep) -> Result<(), Refused> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Refused::Closed);
        }
        let readings = waiting.readings.saturating_add(sweep.readings.len());
        if readings > self.most {
            return Err(Refused::Full(sweep));
        }
        waiting.readings = readings;
        waiting.sweeps.push_back(sweep);
        self.changed.notify_all();
        Ok(())
    }

    /// Events are few, and each says what is so now: of too many the oldest go.
    pub(super) fn report(&self, event: DeviceEvent) {
        let mut waiting = self.lock();
        if waiting.events.len() == EVENTS {
            waiting.events.pop_front();
        }
        waiting.events.push_back(event);
        self.changed.notify_all();
    }

    /// False: so much waits already that it is not taken. If nobody takes it any
    /// more it is dropped, which who waits for the answer sees.
    pub(super) fn hand_over(&self, data: Data) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return true;
        }
        if waiting.data.len() == DATA {
            return false;
        }
        waiting.data.push_back(data);
        self.changed.notify_all();
        true
    }

    pub(super) fn set_heartbeat(&self, interval: Duration) {
        self.lock().heartbeat = Some(interval);
        self.changed.notify_all();
    }

    /// Nothing more comes, or nobody takes it. What is there can be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits for something, until then at most. Events go first; of sweeps, all
    /// that wait go together, up to the one with the last of so many readings; data
    /// and sweeps go in turns, so that neither keeps the other waiting.
    pub(super) fn take(&self, until: Instant, readings: usize) -> Taken {
        let patience = until.saturating_duration_since(Instant::now());
        let (mut waiting, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |waiting| {
                waiting.sweeps.is_empty()
                    && waiting.events.is_empty()
                    && waiting.data.is_empty()
                    && waiting.heartbeat.is_none()
                    && !waiting.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = waiting.events.pop_front() {
            return Taken::Event(event);
        }
        if let Some(interval) = waiting.heartbeat.take() {
            return Taken::Heartbeat(interval);
        }
        let datas_turn = waiting.sweeps.is_empty() || !waiting.data_was_last;
        waiting.data_was_last = false;
        if datas_turn && let Some(data) = waiting.data.pop_front() {
            waiting.data_was_last = true;
            return Taken::Data(data);
        }
        let (mut sweeps, mut taken) = (Vec::new(), 0);
        while taken < readings
            && let Some(sweep) = waiting.sweeps.pop_front()
        {
            taken += sweep.readings.len();
            sweeps.push(sweep);
        }
        waiting.readings -= taken;
        match waiting.closed {
            _ if !sweeps.is_empty() => Taken::Sweeps(sweeps),
            true => Taken::Closed,
            false => Taken::Nothing,
        }
    }

    /// How many readings wait.
    #[cfg(test)]
    pub(super) fn readings(&self) -> usize {
        self.lock().readings
    }

    // No code that holds the lock can leave it half changed.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes an inbox at the end of the thread that has it, however that comes.
pub(super) struct Closing<'a>(pub(super) &'a Inbox);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Events that may wait.
const EVENTS: usize = 64;
/// Records of data that may: 1 MiB at most.
const DATA: usize = 16;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use zk_sensors::Quality;

    use super::*;
    use crate::socket::Answer;

    fn sweep(readings: usize, offset: i64) -> Sweep {
        let reading = Reading {
            sensor: "28-0000000a0001".parse().unwrap(),
            at: jiff::Timestamp::UNIX_EPOCH,
            value: None,
            quality: Quality::Empty,
        };
        Sweep {
            readings: vec![reading; readings],
            offset,
        }
    }

    fn offsets(taken: Taken) -> Vec<i64> {
        match taken {
            Taken::Sweeps(sweeps) => sweeps.iter().map(|sweep| sweep.offset).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_full_by_readings_and_has_room_again_when_they_are_taken() {
        let inbox = Inbox::new(10);
        inbox.offer(sweep(6, 1)).unwrap();
        inbox.offer(sweep(4, 2)).unwrap();
        let refused = inbox.offer(sweep(1, 3));
        assert!(matches!(refused, Err(Refused::Full(sweep)) if sweep.offset == 3));
        assert_eq!(inbox.readings(), 10);
        assert_eq!(offsets(inbox.take(Instant::now(), 1)), [1]);
        inbox.offer(sweep(6, 4)).unwrap();
        // the second one brings it past five
        assert_eq!(offsets(inbox.take(Instant::now(), 5)), [2, 4]);
        assert!(matches!(inbox.take(Instant::now(), 5), Taken::Nothing));
    }

    #[test]
    fn what_is_in_it_when_it_is_closed_can_be_taken() {
        let inbox = Inbox::new(10);
        inbox.offer(sweep(1, 1)).unwrap();
        inbox.report(DeviceEvent::PerimeterCleared { circuit: 1 });
        drop(Closing(&inbox));
        assert!(matches!(inbox.offer(sweep(1, 2)), Err(Refused::Closed)));
        let taken = inbox.take(Instant::now(), 5);
        assert!(matches!(taken, Taken::Event(_)), "{taken:?}");
        assert_eq!(offsets(inbox.take(Instant::now(), 5)), [1]);
        assert!(matches!(inbox.take(Instant::now(), 5), Taken::Closed));
    }

    fn data() -> (Data, tokio::sync::oneshot::Receiver<Answer>) {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let data = Data {
            content_type: "text/plain".to_owned(),
            body: (&b"x"[..]).into(),
            answer,
        };
        (data, answered)
    }

    #[test]
    fn data_and_sweeps_go_in_turns() {
        let inbox = Inbox::new(10);
        let _answers: Vec<_> = (0..DATA)
            .map(|_| {
                let (data, answered) = data();
                assert!(inbox.hand_over(data));
                answered
            })
            .collect();
        assert!(!inbox.hand_over(data().0));
        for offset in [1, 2] {
            inbox.offer(sweep(1, offset)).unwrap();
        }
        assert!(matches!(inbox.take(Instant::now(), 1), Taken::Data(_)));
        assert_eq!(offsets(inbox.take(Instant::now(), 1)), [1]);
        // there is room again
        assert!(inbox.hand_over(data().0));
        assert!(matches!(inbox.take(Instant::now(), 1), Taken::Data(_)));
        assert_eq!(offsets(inbox.take(Instant::now(), 1)), [2]);
        for _ in 1..DATA {
            assert!(matches!(inbox.take(Instant::now(), 1), Taken::Data(_)));
        }
        assert!(matches!(inbox.take(Instant::now(), 1), Taken::Nothing));
        // who hands it over too late sees that nobody takes it
        inbox.close();
        let (data, mut answered) = data();
        assert!(inbox.hand_over(data));
        answered.try_recv().unwrap_err();
    }
}
