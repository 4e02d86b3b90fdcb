use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a [`Publisher`](crate::Publisher) fares: counts since it was started,
/// for metrics, and what an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// Since when it has been at one message, or at a look into the spool. `None`
    /// while it waits for the next, and when it has ended. Each step of a message
    /// has a time limit; so this gets old only if the spool's disk does not answer.
    pub busy_since: Option<Instant>,
    /// Messages that the server took.
    pub messages: u64,
    /// Records in them. A record whose answer was lost counts when it is taken
    /// again.
    pub records: u64,
    /// Bytes of those messages.
    pub bytes: u64,
    /// Attempts that failed and are made again.
    pub retries: u64,
    /// Records that were put aside because the server refused them for good.
    pub rejected: u64,
    /// TLS connections made, each of which cost the chip one signature unless
    /// its session was resumed.
    pub connections: u64,
    /// When the server last took a message.
    pub last_delivery: Option<Instant>,
    /// The server's id for that message.
    pub last_trace_id: Option<String>,
    /// What went wrong since then, and what to do about it. `None` while all
    /// is well.
    pub last_error: Option<String>,
}

/// What a [`Publisher`](crate::Publisher) is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// **Alarm.** The publisher has ended, because the spool failed, which has
    /// to be opened again, or by a defect.
    Failed,
    /// **Alarm.** The server does not let this device publish. Everything is
    /// kept and tried again, slowly.
    Forbidden,
    /// The last attempt failed; another follows.
    Offline,
    /// The last message was delivered.
    Online,
    /// **Alarm.** The server has refused many records in a row and taken none
    /// between them: more likely the topic or the endpoint is wrong than all
    /// of the records. They are still tried, slowly.
    Refusing,
    /// Nothing was sent yet.
    Starting,
    /// It was told to stop.
    Stopped,
}

impl State {
    /// A stable name for logs and metrics, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Forbidden => "forbidden",
            Self::Offline => "offline",
            Self::Online => "online",
            Self::Refusing => "refusing",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
        }
    }
}

/// A [`Status`] that one thread changes and others read and wait for.
#[derive(Debug)]
pub(crate) struct Board {
    status: Mutex<Status>,
    changed: Condvar,
}

impl Board {
    pub(crate) fn new() -> Self {
        let status = Status {
            state: State::Starting,
            since: Instant::now(),
            busy_since: None,
            messages: 0,
            records: 0,
            bytes: 0,
            retries: 0,
            rejected: 0,
            connections: 0,
            last_delivery: None,
            last_trace_id: None,
            last_error: None,
        };
        Self {
            status: Mutex::new(status),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn read(&self) -> Status {
        self.lock().clone()
    }

    /// Changes the status; a new state starts now. Returns the state before.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Status)) -> State {
        let mut status = self.lock();
        let before = status.state;
        change(&mut status);
        if status.state != before {
            status.since = Instant::now();
        }
        self.changed.notify_all();
        before
    }

    /// Whether it is at work from now on. Nobody waits for that.
    pub(crate) fn busy(&self, busy: bool) {
        self.lock().busy_since = busy.then(Instant::now);
    }

    pub(crate) fn wait_for(
        &self,
        patience: Duration,
        mut is: impl FnMut(&Status) -> bool,
    ) -> Option<Status> {
        let (status, waited) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |status| !is(status))
            .unwrap_or_else(PoisonError::into_inner);
        (!waited.timed_out()).then(|| status.clone())
    }

    // No code that holds the lock can leave the status half changed.
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
