//! Threads whose end does not go unnoticed.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::Error;

/// One of the agent's threads. Its end is an alarm, however it comes.
#[derive(Debug)]
pub(super) struct Thread<T> {
    handle: JoinHandle<T>,
    /// Disconnected at its end.
    ended: Receiver<()>,
}

impl<T: Send + 'static> Thread<T> {
    pub(super) fn spawn(
        name: &str,
        alarm: &Arc<Alarm>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, Error> {
        let (end, ended) = channel();
        let bell = Bell(Arc::clone(alarm));
        let handle = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let _at_the_end = (bell, end);
                work()
            })
            .map_err(Error::Thread)?;
        Ok(Self { handle, ended })
    }

    pub(super) fn wake(&self) {
        self.handle.thread().unpark();
    }

    /// What it came to; `None` if it has not ended by then, and is left alone.
    pub(super) fn join_by(self, deadline: Instant) -> Result<Option<T>, Error> {
        let wait = deadline.saturating_duration_since(Instant::now());
        match self.ended.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => Ok(None),
            _ => self.handle.join().map(Some).map_err(|_| Error::ThreadEnded),
        }
    }
}

/// Called once, when a thread ends that should not.
pub(super) struct Alarm(pub(super) Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Alarm {
    pub(super) fn disarm(&self) -> Option<Box<dyn FnOnce() + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarm")
    }
}

/// Gives the alarm when it is dropped: at the end of a thread, also by a panic.
pub(super) struct Bell(pub(super) Arc<Alarm>);

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(failed) = self.0.disarm() {
            failed();
        }
    }
}
