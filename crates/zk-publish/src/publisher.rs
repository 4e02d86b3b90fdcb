use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, error, info, warn};
use zk_spool::{Record, Spool};

use crate::backoff::Backoff;
use crate::client::{Client, Delivered, LONGEST, Timeouts};
use crate::error::{Phase, PublishError};
use crate::link;
use crate::status::{Board, State, Status};
use crate::target::Target;

/// A thread that publishes what is in a [`Spool`], oldest first, and
/// acknowledges it when it is delivered.
///
/// Records are taken from the spool, packed into a message, published, and
/// acknowledged only then; if the process ends in between, or an answer is
/// lost, they are published again. Nothing is ever sent out of order, except
/// that a record which the server refuses for good is put aside by the spool
/// so that it blocks nothing.
///
/// | the server, or the network | what happens |
/// | --- | --- |
/// | 2xx | acknowledged |
/// | no connection can be made | tried again within [`Options::unreachable`] |
/// | 408, 429, 5xx, a broken connection, no answer | tried again within [`Options::failing`], or after `Retry-After` |
/// | 400 or 413 for several records | each of them is sent alone |
/// | 400 or 413 for one record | it goes to the spool's `rejected/` |
/// | another server, or one whose certificate is not accepted | **alarm**; everything is kept and tried again within [`Options::untrusted`], without a signature |
/// | 401, 403, certificate refused | **alarm**; everything is kept and tried again within [`Options::forbidden`] |
/// | many records refused in a row | **alarm**; one at a time within [`Options::forbidden`], for it is likely that the topic is wrong |
/// | the spool's disk is full | tried again within [`Options::failing`]; what was delivered and could not be acknowledged is delivered again |
///
/// The thread has a runtime of its own, since a TLS key in a chip blocks the
/// thread that uses it. Dropping the publisher ends it as
/// [`stop`](Self::stop) without grace does.
pub struct Publisher {
    board: Arc<Board>,
    link: watch::Sender<()>,
    tls: watch::Sender<Arc<ClientConfig>>,
    stop: watch::Sender<Option<Instant>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// Starts to publish from `spool` to `target`.
    ///
    /// `tls` is as for [`Client::new`]. `pack` makes a message of the oldest of
    /// the records it is given, of at most so many bytes but of one record at
    /// least, and says how many it took; an error is about the first record,
    /// which is then put aside. With zk-envelope it is
    /// `|records, limit| zk_envelope::pack(records, limit)`.
    ///
    /// # Errors
    ///
    /// The system's, if it has no room for a thread or its runtime.
    pub fn spawn<P, E>(
        spool: Arc<Spool>,
        target: Target,
        tls: Arc<ClientConfig>,
        options: Options,
        pack: P,
    ) -> io::Result<Self>
    where
        P: FnMut(&[&[u8]], usize) -> Result<(Vec<u8>, usize), E> + Send + 'static,
        E: StdError,
    {
        let board = Arc::new(Board::new());
        let (link, link_returned) = watch::channel(());
        let (tls, tls_changed) = watch::channel(tls);
        let (stop, stopping) = watch::channel(None);
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(LOOKUPS)
            .build()?;
        let watched = options.watch_link.then(|| link.clone());
        let drain = Drain {
            client: Client::new(target, Arc::clone(&tls.borrow()), options.timeouts),
            spool,
            pack,
            options,
            board: Arc::clone(&board),
            link: link_returned,
            watched,
            tls: tls_changed,
            stop: stopping,
            singly: 0,
            refused: 0,
            failing: None,
        };
        let thread = thread::Builder::new()
            .name("zk-publish".to_owned())
            .spawn(move || drain.run_to_the_end(runtime))?;
        Ok(Self {
            board,
            link,
            tls,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Says that the network may be back: a pause ends now, the next message
    /// goes over a new connection, and a request that has no answer within a
    /// second from now is given up and made again, since its connection may
    /// belong to the network that went away.
    pub fn link_returned(&self) {
        self.link.send_replace(());
    }

    /// Makes connections with another TLS configuration from now on: another
    /// certificate of the device, other roots. The message under way, if there is
    /// one, is the last on the present connection; a pause ends now, since what was
    /// refused may be taken.
    pub fn set_tls(&self, tls: Arc<ClientConfig>) {
        self.tls.send_replace(tls);
    }

    /// How it fares.
    pub fn status(&self) -> Status {
        self.board.read()
    }

    /// Waits until the status is as wanted; `None` when `patience` runs out.
    pub fn wait_for(
        &self,
        patience: Duration,
        wanted: impl FnMut(&Status) -> bool,
    ) -> Option<Status> {
        self.board.wait_for(patience, wanted)
    }

    /// Publishes what is left, for as long as `grace` lasts and nothing fails,
    /// then ends the thread and waits for its end.
    ///
    /// What could not be published stays in the spool. A call into the chip is
    /// waited for, beyond `grace` if it must be, since it cannot be broken off;
    /// a name lookup that hangs is left behind.
    pub fn stop(&self, grace: Duration) -> Status {
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now + LONGEST);
        self.stop.send_replace(Some(deadline));
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // a panic is on the board already
            let _ = thread.join();
        }
        self.status()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// How a [`Publisher`] goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes in a message of several records. Default 5120, AWS IoT's metering
    /// unit. A message that holds one record can be longer.
    pub batch_bytes: usize,
    /// Per step of each attempt.
    pub timeouts: Timeouts,
    /// Pauses while no TCP connection can be made. Default 250 ms to 1 s: such
    /// an attempt costs next to nothing, and publishing goes on within a second
    /// of the link's return.
    pub unreachable: Backoff,
    /// Pauses while the server has trouble or connections break. Default 1 s
    /// to 60 s.
    pub failing: Backoff,
    /// Pauses while the server does not want what we have. Default 30 s to
    /// 10 min.
    pub forbidden: Backoff,
    /// Pauses while whatever answers is not the server. Default 1 s to 10 s: no
    /// signature is spent on it.
    pub untrusted: Backoff,
    /// Whether to have the kernel tell when the network may be back, as
    /// [`Publisher::link_returned`] says it. Default true; on Linux, by rtnetlink.
    pub watch_link: bool,
}

impl Default for Options {
    fn default() -> Self {
        let backoff = |first, most| Backoff {
            first: Duration::from_millis(first),
            most: Duration::from_millis(most),
        };
        Self {
            batch_bytes: 5120,
            timeouts: Timeouts::default(),
            unreachable: backoff(250, 1_000),
            failing: backoff(1_000, 60_000),
            forbidden: backoff(30_000, 600_000),
            untrusted: backoff(1_000, 10_000),
            watch_link: true,
        }
    }
}

/// What the thread owns.
struct Drain<P> {
    client: Client,
    spool: Arc<Spool>,
    pack: P,
    options: Options,
    board: Arc<Board>,
    link: watch::Receiver<()>,
    /// To be told of what the kernel tells.
    watched: Option<watch::Sender<()>>,
    tls: watch::Receiver<Arc<ClientConfig>>,
    stop: watch::Receiver<Option<Instant>>,
    /// Records to send alone, because together they were refused.
    singly: usize,
    /// Records refused since the last delivery.
    refused: u32,
    /// The kind of failure, and how often in a row.
    failing: Option<(Pace, u32)>,
}

/// Which of the backoffs goes with a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Unreachable,
    Failing,
    Forbidden,
    Untrusted,
}

impl<P, E> Drain<P>
where
    P: FnMut(&[&[u8]], usize) -> Result<(Vec<u8>, usize), E>,
    E: StdError,
{
    fn run_to_the_end(mut self, runtime: Runtime) {
        let end = catch_unwind(AssertUnwindSafe(|| runtime.block_on(self.run())));
        // dropping it would wait for a name lookup, which can take minutes
        runtime.shutdown_background();
        let failure = match end {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("the spool failed: {}", told(&error))),
            Err(_) => Some("the publishing thread panicked, which is a defect".to_owned()),
        };
        if let Some(why) = &failure {
            error!(error = %why, "publishing has ended");
        }
        self.board.busy(false);
        self.board.change(|status| {
            if failure.is_some() {
                status.state = State::Failed;
                status.last_error = failure;
            } else {
                status.state = State::Stopped;
            }
        });
    }

    async fn run(&mut self) -> Result<(), zk_spool::Error> {
        if let Some(returned) = self.watched.take() {
            tokio::spawn(async move {
                if let Err(error) = link::watch(returned).await {
                    warn!(%error, "the kernel does not tell when the link returns; trying on");
                }
            });
        }
        loop {
            self.board.busy(true);
            let pause = match self.turn().await {
                Ok(ControlFlow::Continue(None)) => continue,
                Ok(ControlFlow::Continue(Some(pause))) => pause,
                Ok(ControlFlow::Break(())) => return Ok(()),
                // nothing that is stored was touched, and delivering makes room
                Err(error @ zk_spool::Error::DiskFull { .. }) => {
                    self.hold(Pace::Failing, State::Offline, &told(&error))
                }
                Err(error) => return Err(error),
            };
            self.board.busy(false);
            if !self.pause(pause).await {
                return Ok(());
            }
        }
    }

    /// What there is to do now, and how long to pause after it; `Break` when it
    /// is time to stop.
    ///
    /// The spool's calls block, which disturbs nobody: this thread has nothing
    /// else to do.
    async fn turn(&mut self) -> Result<ControlFlow<(), Option<Duration>>, zk_spool::Error> {
        // hex doubles the size, so more than this would not fit
        let records = self.spool.peek(MAX_RECORDS, self.options.batch_bytes / 2)?;
        if records.is_empty() && self.stop.borrow().is_some() {
            return Ok(ControlFlow::Break(()));
        }
        if records.is_empty() {
            self.spool.wait(IDLE)?;
            // lets the connection see that the server has closed it
            tokio::task::yield_now().await;
            return Ok(ControlFlow::Continue(None));
        }
        if self.tls.has_changed().unwrap_or(false) {
            let tls = Arc::clone(&self.tls.borrow_and_update());
            self.client.set_tls(tls);
        }
        if self.link.has_changed().unwrap_or(false) {
            self.link.mark_unchanged();
            self.client.disconnect();
        }
        self.step(&records).await.map(ControlFlow::Continue)
    }

    /// One message: packed, published, and dealt with. Returns how long to
    /// pause before the next.
    async fn step(&mut self, records: &[Record]) -> Result<Option<Duration>, zk_spool::Error> {
        let most = if self.singly > 0 { 1 } else { records.len() };
        let bytes: Vec<&[u8]> = records[..most].iter().map(Record::bytes).collect();
        let (message, taken) = match (self.pack)(&bytes, self.options.batch_bytes) {
            Ok((message, taken)) if (1..=most).contains(&taken) => (message, taken),
            Ok((_, taken)) => {
                return self.reject(
                    &records[0],
                    format!("{taken} of {most} records were packed"),
                );
            }
            Err(error) => return self.reject(&records[0], told(&error)),
        };
        let size = message.len();
        let outcome = self.publish(message).await;
        self.board
            .change(|status| status.connections = self.client.connections());
        let Some(outcome) = outcome else {
            debug!("a request without an answer was given up");
            self.board.change(|status| status.retries += 1);
            return Ok(Some(Duration::ZERO));
        };
        match outcome {
            Ok(delivered) => {
                self.acknowledge(&records[taken - 1])?;
                self.singly = self.singly.saturating_sub(taken);
                self.delivered(delivered, taken, size);
                Ok(None)
            }
            Err(error @ PublishError::Refused { .. }) if taken > 1 => {
                debug!(records = taken, error = %told(&error), "refused together; sending each alone");
                self.singly = taken;
                Ok(None)
            }
            Err(error @ PublishError::Refused { .. }) => {
                self.singly = self.singly.saturating_sub(1);
                self.reject(&records[0], told(&error))
            }
            Err(error) => Ok(Some(self.failed(&error))),
        }
    }

    /// `None`: broken off, since the link returned or it is time to stop.
    async fn publish(&mut self, message: Vec<u8>) -> Option<Result<Delivered, PublishError>> {
        let mut publishing = pin!(self.client.publish(message));
        let mut stop = self.stop.clone();
        let mut stopped = pin!(async {
            let deadline = stop
                .wait_for(Option::is_some)
                .await
                .map(|deadline| *deadline);
            if let Ok(Some(deadline)) = deadline {
                sleep_until(deadline.into()).await;
            }
        });
        tokio::select! {
            biased;
            outcome = &mut publishing => return Some(outcome),
            () = &mut stopped => return None,
            _ = self.link.changed() => {}
        }
        tokio::select! {
            biased;
            outcome = publishing => match outcome {
                // of the network that went away, so it says nothing of this one
                Err(
                    PublishError::Closed { .. }
                    | PublishError::TimedOut { .. }
                    | PublishError::Unreachable { .. },
                ) => None,
                outcome => Some(outcome),
            },
            () = stopped => None,
            () = sleep(AFTER_LINK) => None,
        }
    }

    /// Waits. Returns false when it is time to stop.
    async fn pause(&mut self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            _ = self.stop.wait_for(Option::is_some) => false,
            _ = self.link.changed() => {
                self.client.disconnect();
                true
            }
            changed = self.tls.changed() => {
                // taken up before the next message
                if changed.is_ok() {
                    self.tls.mark_changed();
                }
                true
            }
            () = sleep(pause) => true,
        }
    }

    fn acknowledge(&self, record: &Record) -> Result<(), zk_spool::Error> {
        gone_is_fine(self.spool.ack(record.position()))
    }

    fn delivered(&mut self, delivered: Delivered, records: usize, size: usize) {
        self.refused = 0;
        self.failing = None;
        let before = self.board.change(|status| {
            status.state = State::Online;
            status.messages += 1;
            status.records += records as u64;
            status.bytes += size as u64;
            status.last_delivery = Some(Instant::now());
            status.last_trace_id = delivered.trace_id;
            status.last_error = None;
        });
        if before != State::Online {
            info!(before = before.as_str(), "publishing");
        }
    }

    /// Puts a record aside that the server refused, or that cannot be packed.
    fn reject(
        &mut self,
        record: &Record,
        why: String,
    ) -> Result<Option<Duration>, zk_spool::Error> {
        gone_is_fine(self.spool.reject(record.position()))?;
        warn!(
            stream = %record.stream(), sequence = record.sequence(), error = %why,
            "put aside a record that cannot be delivered"
        );
        self.refused = self.refused.saturating_add(1);
        let suspicious = self.refused >= MANY;
        let before = self.board.change(|status| {
            status.rejected += 1;
            status.last_error = Some(why);
            if suspicious {
                status.state = State::Refusing;
            }
        });
        if !suspicious {
            return Ok(None);
        }
        if before != State::Refusing {
            error!(
                records = self.refused,
                "the server refuses everything; check topic and endpoint. Going on slowly"
            );
        }
        Ok(Some(self.next_pause(Pace::Forbidden)))
    }

    /// Notes a failure that is not the message's. Returns how long to pause.
    fn failed(&mut self, error: &PublishError) -> Duration {
        let (pace, state) = match error {
            PublishError::Unreachable { .. }
            | PublishError::TimedOut {
                phase: Phase::Connect,
                ..
            } => (Pace::Unreachable, State::Offline),
            PublishError::Forbidden { .. } | PublishError::CertificateRefused { .. } => {
                (Pace::Forbidden, State::Forbidden)
            }
            PublishError::Untrusted { .. } => (Pace::Untrusted, State::Untrusted),
            _ => (Pace::Failing, State::Offline),
        };
        let pause = self.hold(pace, state, &told(error));
        match error {
            PublishError::Busy {
                retry_after: Some(asked),
                ..
            } => pause.max(*asked).min(self.options.forbidden.most),
            _ => pause,
        }
    }

    /// Keeps everything for now. Returns how long to pause.
    fn hold(&mut self, pace: Pace, state: State, why: &str) -> Duration {
        let before = self.board.change(|status| {
            status.state = state;
            status.retries += 1;
            status.last_error = Some(why.to_owned());
        });
        // once per outage, or a day without a link fills the log
        match state {
            _ if before == state => debug!(error = %why, "still not published"),
            State::Forbidden => {
                error!(error = %why, "publishing is not allowed; keeping everything");
            }
            State::Untrusted => {
                error!(error = %why, "nothing is sent there; keeping everything");
            }
            _ => warn!(error = %why, "publishing failed; keeping everything and trying again"),
        }
        self.next_pause(pace)
    }

    fn next_pause(&mut self, pace: Pace) -> Duration {
        let failures = match self.failing {
            Some((before, failures)) if before == pace => failures.saturating_add(1),
            _ => 1,
        };
        self.failing = Some((pace, failures));
        let backoff = match pace {
            Pace::Unreachable => self.options.unreachable,
            Pace::Failing => self.options.failing,
            Pace::Forbidden => self.options.forbidden,
            Pace::Untrusted => self.options.untrusted,
        };
        // without randomness the longest pause is right too
        backoff.pause(failures, getrandom::u32().unwrap_or(u32::MAX))
    }
}

/// A record that the spool let go of in the meantime, because it was full, is
/// no longer ours to acknowledge.
fn gone_is_fine(outcome: Result<(), zk_spool::Error>) -> Result<(), zk_spool::Error> {
    match outcome {
        Err(zk_spool::Error::NotOldest { .. } | zk_spool::Error::UnknownPosition { .. }) => Ok(()),
        other => other,
    }
}

/// An error with all of its causes, for a log line.
fn told(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // many errors repeat their cause's text
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Records looked at for one message.
const MAX_RECORDS: usize = 512;

/// How long the spool is waited on at a time, and so how long a stop can take
/// to be noticed.
const IDLE: Duration = Duration::from_millis(200);

/// What a request still has when the link has returned.
const AFTER_LINK: Duration = Duration::from_secs(1);

/// Names looked up at a time, each in a thread of its own. One that no server answers
/// takes half a minute, far longer than it is waited for.
const LOOKUPS: usize = 8;

/// Refusals in a row that make the target suspicious rather than the records.
const MANY: u32 = 10;
