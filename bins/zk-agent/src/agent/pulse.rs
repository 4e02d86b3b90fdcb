//! Whether a thread gets on: what the watchdog is fed by.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Since when a thread has been at one piece of work; nothing while it waits for
/// the next.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Option<Instant>>);

impl Pulse {
    /// It begins a piece of work, and is done with the one before.
    pub(super) fn works(&self) {
        self.set(Some(Instant::now()));
    }

    /// It has nothing to do.
    pub(super) fn waits(&self) {
        self.set(None);
    }

    /// For how long it has been at what it does.
    pub(super) fn at_it(&self) -> Option<Duration> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    fn set(&self, to: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}
