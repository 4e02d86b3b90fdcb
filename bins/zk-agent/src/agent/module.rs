//! The key's module: what it measures, what time it is there, and what happens
//! to it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use zk_envelope::{DeviceEvent, Timestamp};
use zk_hsm::{Binding, Health, Hsm};

use super::inbox::Inbox;
use crate::clock::ModuleClock;
use crate::config::Events;

/// What the key's module measured last, and when.
pub(super) type Measured = Mutex<Option<(SystemTime, Health)>>;

/// Who asks the key's module now and then what it measures.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) hsm: Hsm,
    pub(super) interval: Duration,
    pub(super) measured: Arc<Measured>,
    /// For a machine that doesn't know what time it is.
    pub(super) clock: ModuleClock,
    /// Which events are sealed.
    pub(super) events: Events,
    pub(super) inbox: Arc<Inbox>,
}

impl Module {
    /// What time it is there. Most modules don't tell, and one that fails at it is
    /// asked again later.
    pub(super) fn ask_for_the_time(&self) {
        match self.hsm.health() {
            Ok(health) => self.tell_the_time(&health),
            Err(error) => tracing::warn!(%error, "the key's module does not tell the time"),
        }
    }

    /// Asks at each interval until told to stop.
    ///
    /// A module that measures nothing is asked once. One that fails at it is asked
    /// less and less often, or, if no events are sought, no more after some times:
    /// each failure closes and opens it, for which signatures have to wait.
    pub(super) fn watch(self, stopped: &Receiver<()>) {
        let seeks = self.events.are_wanted();
        let mut changes = Changes::new(self.events);
        let mut failures = 0;
        // What happened while the device was off is told at once.
        let mut pause = if seeks { Duration::ZERO } else { self.interval };
        while matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
            pause = self.interval;
            let error = match self.hsm.health() {
                Ok(health) if health == Health::default() => {
                    if seeks {
                        tracing::warn!("the key's module measures nothing: it has no [events]");
                    }
                    return;
                }
                Ok(health) => {
                    failures = 0;
                    self.tell_the_time(&health);
                    for event in changes.of(&health) {
                        tracing::warn!(?event, "the key's module has changed");
                        self.inbox.report(event);
                    }
                    self.keep(Some((SystemTime::now(), health)));
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            tracing::warn!(%error, failures, "the key's module does not tell what it measures");
            if failures < IN_VAIN {
                continue;
            }
            self.keep(None);
            if !seeks {
                tracing::warn!("the key's module is not asked any more what it measures");
                return;
            }
            let doubled = 1 << (failures - IN_VAIN).min(16);
            pause = pause.saturating_mul(doubled).min(LONGEST_PAUSE.max(pause));
        }
    }

    fn tell_the_time(&self, health: &Health) {
        if let Some(time) = health.time {
            self.clock.set(time);
        }
    }

    fn keep(&self, measured: Option<(SystemTime, Health)>) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    }
}

/// What is different from the last time.
#[derive(Debug)]
struct Changes {
    wanted: Events,
    /// When each perimeter circuit was broken, as last told.
    perimeter: Vec<Option<SystemTime>>,
    battery_low: bool,
    binding: Option<Binding>,
}

impl Changes {
    /// Since a module that is whole and charged.
    fn new(wanted: Events) -> Self {
        Self {
            wanted,
            perimeter: Vec::new(),
            battery_low: false,
            binding: None,
        }
    }

    fn of(&mut self, health: &Health) -> Vec<DeviceEvent> {
        let mut events = Vec::new();
        if let Some(circuits) = &health.perimeter
            && self.wanted.perimeter
        {
            self.perimeter.resize(circuits.len(), None);
            for (circuit, (before, now)) in (0..).zip(self.perimeter.iter_mut().zip(circuits)) {
                if before != now {
                    events.push(match now {
                        Some(at) => DeviceEvent::PerimeterBroken {
                            circuit,
                            at: Timestamp::from(*at),
                        },
                        None => DeviceEvent::PerimeterCleared { circuit },
                    });
                    *before = *now;
                }
            }
        }
        if let Some((volts, least)) = health.battery_volts.zip(self.wanted.battery) {
            // Saturates, and takes what is no number for 0.
            let millivolts = (volts * 1000.0).round() as u32;
            if volts < least && !self.battery_low {
                self.battery_low = true;
                events.push(DeviceEvent::BatteryLow { millivolts });
            } else if volts >= least + WAVER && self.battery_low {
                self.battery_low = false;
                events.push(DeviceEvent::BatteryRestored { millivolts });
            }
        }
        if let Some(binding) = health.binding
            && self.wanted.module
        {
            if self.binding.is_some_and(|before| before != binding) {
                let Binding { bound, locked } = binding;
                events.push(DeviceEvent::BindingChanged { bound, locked });
            }
            self.binding = Some(binding);
        }
        events
    }
}

/// Failures in a row after which the module is asked less often, or no more.
const IN_VAIN: u32 = 3;
/// How long the module is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Volts by which a battery wavers without meaning.
const WAVER: f32 = 0.05;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ALL: Events = Events {
        perimeter: true,
        battery: Some(2.5),
        module: true,
        interval: jiff::SignedDuration::from_secs(60),
    };

    fn health(change: impl FnOnce(&mut Health)) -> Health {
        let mut health = Health::default();
        health.battery_volts = Some(3.05);
        health.perimeter = Some(vec![None, None]);
        health.binding = Some(Binding {
            locked: false,
            bound: true,
        });
        change(&mut health);
        health
    }

    #[test]
    fn what_stays_as_it_is_is_told_once() {
        let mut changes = Changes::new(ALL);
        assert_eq!(changes.of(&health(|_| {})), []);
        let at = "2026-11-26T12:00:00.000Z".parse::<Timestamp>().unwrap();
        let broken = SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis());
        let broken = health(|health| health.perimeter = Some(vec![None, Some(broken)]));
        let event = DeviceEvent::PerimeterBroken { circuit: 1, at };
        assert_eq!(changes.of(&broken), std::slice::from_ref(&event));
        assert_eq!(changes.of(&broken), []);
        let cleared = DeviceEvent::PerimeterCleared { circuit: 1 };
        assert_eq!(changes.of(&health(|_| {})), [cleared]);
        // Whoever starts doesn't know what was told.
        assert_eq!(Changes::new(ALL).of(&broken), [event]);
    }

    #[test]
    fn a_battery_that_wavers_about_its_threshold_is_low_once() {
        let mut changes = Changes::new(ALL);
        let mut of = |volts| changes.of(&health(|health| health.battery_volts = Some(volts)));
        assert_eq!(of(2.5), []);
        assert_eq!(of(2.41), [DeviceEvent::BatteryLow { millivolts: 2410 }]);
        assert_eq!(of(2.52), []);
        assert_eq!(of(2.49), []);
        let restored = DeviceEvent::BatteryRestored { millivolts: 3000 };
        assert_eq!(of(3.0), [restored]);
        let low = DeviceEvent::BatteryLow { millivolts: 0 };
        assert_eq!(of(-1.0), [low]);
    }

    #[test]
    fn a_binding_is_told_when_it_changes() {
        let mut changes = Changes::new(ALL);
        let other = Binding {
            locked: false,
            bound: false,
        };
        let elsewhere = health(|health| health.binding = Some(other));
        assert_eq!(changes.of(&health(|_| {})), []);
        let changed = DeviceEvent::BindingChanged {
            bound: false,
            locked: false,
        };
        assert_eq!(changes.of(&elsewhere), [changed]);
        assert_eq!(changes.of(&elsewhere), []);
    }

    #[test]
    fn nothing_is_told_that_nobody_opted_for() {
        let mut changes = Changes::new(Events::default());
        changes.of(&health(|_| {}));
        let worst = health(|health| {
            health.perimeter = Some(vec![Some(SystemTime::UNIX_EPOCH)]);
            health.battery_volts = Some(0.1);
            health.binding = None;
        });
        assert_eq!(changes.of(&worst), []);
    }
}
