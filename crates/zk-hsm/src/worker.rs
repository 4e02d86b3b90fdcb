use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::backend::Opener;
use crate::counters::Counters;
use crate::error::{Class, Error, Operation};
use crate::hsm::{Info, Options, VerifyingKey};
use crate::library::Chip;
use crate::session::{Checker, Session};
use crate::uri::HsmUri;

/// How an HSM is, at the moment of asking.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// It is open. Calls may be waiting for it.
    Ready,
    /// It failed in a way that may pass. It is opened again by itself; calls
    /// whose time allows it wait for that.
    Reopening {
        /// Failures in a row.
        failures: u32,
        /// When it is tried next; in the past while it is being tried.
        retry_at: Instant,
        /// The latest failure.
        cause: Error,
    },
    /// One call has been stuck inside it for longer than the deadline: this
    /// handle's, or another's of this process that uses the same library. It
    /// becomes ready by itself if that call ever returns; no second
    /// connection is opened beside the stuck one. A service that stays in this
    /// state should save its work and let itself be restarted.
    Wedged {
        /// The call that is stuck.
        operation: Operation,
        /// When that call went in.
        since: Instant,
    },
    /// It is closed for good. Every call is answered with this error.
    Failed {
        /// Why.
        cause: Error,
    },
}

/// The callers' side of the thread that owns the backend. Dropping it closes
/// the backend and ends the thread as soon as the call inside returns, and
/// waits a little for that.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, and opens the backend there.
    pub(crate) fn start(
        uri: &HsmUri,
        opener: Opener,
        options: Options,
    ) -> Result<(Self, VerifyingKey, Info), Error> {
        let deadline = options.deadline.min(MAX_DEADLINE);
        let shared = Arc::new(Shared {
            desk: Mutex::new(Desk {
                queue: VecDeque::new(),
                limit: options.queue.max(1),
                deadline,
                next_id: 0,
                current: Some(Current::new(Operation::Open)),
                chip: None,
                health: Health::Open,
                closing: false,
                ended: false,
                counters: Counters::default(),
            }),
            bell: Condvar::new(),
            end: Condvar::new(),
        });
        let mut worker = Self {
            shared: Arc::clone(&shared),
            thread: None,
        };
        let (reply, opened) = mpsc::channel();
        let name = uri.to_string().into();
        let thread = std::thread::Builder::new()
            .name(format!("zk-hsm-{}", uri.backend()))
            .spawn(move || {
                // dropped last, whatever happens
                let _ended = Ended(Arc::clone(&shared));
                own(shared, opener, name, &reply);
            })
            .map_err(|source| Error::Thread {
                source: Arc::new(source),
            })?;
        worker.thread = Some(thread);
        match opened.recv_timeout(deadline) {
            Ok(Ok((public_key, info))) => Ok((worker, public_key, info)),
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Disconnected) => Err(Error::WorkerDied),
            Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
                operation: Operation::Open,
                after: deadline,
            }),
        }
    }

    /// Has `work` done on the thread, and waits for it. After a transient
    /// failure `work` is run a second time.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl FnMut(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.submit(operation, work)?.wait()
    }

    pub(crate) fn submit<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl FnMut(&mut Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<Ticket<T>, Error> {
        let (reply, answer) = mpsc::channel();
        let submitted = Instant::now();
        let mut desk = self.shared.lock();
        if let Health::Failed(cause) = &desk.health {
            return Err(cause.clone());
        }
        if let Some(error) = desk.wedged(submitted) {
            return Err(error);
        }
        let deadline = submitted + desk.deadline;
        if let Some(error) = desk.unreachable(submitted, deadline) {
            return Err(error);
        }
        if desk.queue.len() >= desk.limit {
            desk.counters.busy += 1;
            return Err(Error::Busy {
                waiting: desk.queue.len(),
            });
        }
        desk.next_id += 1;
        let id = desk.next_id;
        let task = Box::new(Typed {
            work,
            done: None,
            reply,
        });
        desk.queue.push_back(Job {
            id,
            operation,
            deadline,
            retried: false,
            task,
        });
        self.shared.bell.notify_one();
        drop(desk);
        let shared = Arc::clone(&self.shared);
        Ok(Ticket {
            shared,
            id,
            operation,
            submitted,
            deadline,
            answer,
        })
    }

    pub(crate) fn state(&self) -> State {
        let desk = self.shared.lock();
        let own = desk.stuck(Instant::now());
        let stuck = own
            .map(|current| (current.operation, current.since))
            .or_else(|| desk.chip.as_ref()?.stuck(desk.deadline));
        match (&desk.health, stuck) {
            (Health::Failed(cause), _) => State::Failed {
                cause: cause.clone(),
            },
            (_, Some((operation, since))) => State::Wedged { operation, since },
            (
                Health::Closed {
                    failures,
                    retry_at,
                    cause,
                },
                None,
            ) => {
                let (failures, retry_at, cause) = (*failures, *retry_at, cause.clone());
                State::Reopening {
                    failures,
                    retry_at,
                    cause,
                }
            }
            (Health::Open, None) => State::Ready,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.shared.lock().counters.clone()
    }

    /// Lets a test have time pass without waiting for it.
    #[cfg(test)]
    pub(crate) fn set_deadline(&self, deadline: Duration) {
        self.shared.lock().deadline = deadline;
    }
}

impl Drop for Worker {
    /// Without the wait a program that ends just now would leave the thread alone
    /// in a C library that is being torn down: SoftHSM2 crashes then.
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        let mut desk = self.shared.lock();
        desk.closing = true;
        self.shared.bell.notify_one();
        if desk.wedged(Instant::now()).is_some() {
            return;
        }
        let (desk, _) = self
            .shared
            .end
            .wait_timeout_while(desk, CLOSING, |desk| !desk.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let ended = desk.ended;
        drop(desk);
        if ended {
            // it has nothing left to do, and a panic there was answered already
            let _ = thread.join();
        }
    }
}

/// Tells that the thread has let go of all it had.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.end.notify_all();
    }
}

/// A call that was handed in.
pub(crate) struct Ticket<T> {
    shared: Arc<Shared>,
    id: u64,
    operation: Operation,
    submitted: Instant,
    deadline: Instant,
    answer: Receiver<Result<T, Error>>,
}

impl<T> Ticket<T> {
    /// Waits for the answer: until the deadline, or until the call in the HSM
    /// counts as stuck.
    pub(crate) fn wait(self) -> Result<T, Error> {
        // To be woken costs more than the answer of a fast backend takes.
        let start = Instant::now();
        while start.elapsed() < POLLING {
            if let Ok(result) = self.answer.try_recv() {
                return result;
            }
            std::thread::yield_now();
        }
        loop {
            let stuck_at = {
                let desk = self.shared.lock();
                desk.current
                    .as_ref()
                    .map(|current| current.since + desk.deadline)
            };
            let until = stuck_at.map_or(self.deadline, |at| at.min(self.deadline));
            match self
                .answer
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(Error::WorkerDied),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let mut desk = self.shared.lock();
            // the answer may have come just now, and none comes while we hold the desk
            if let Ok(result) = self.answer.try_recv() {
                return result;
            }
            let now = Instant::now();
            let wedged = desk.wedged(now);
            if now < self.deadline && wedged.is_none() {
                continue;
            }
            let error = self.give_up(&mut desk, now, wedged);
            drop(desk);
            if let Error::TimedOut { operation, after } = &error {
                tracing::error!(%operation, ?after, "no answer from the HSM");
            }
            return Err(error);
        }
    }

    fn give_up(&self, desk: &mut Desk, now: Instant, wedged: Option<Error>) -> Error {
        match &mut desk.current {
            Some(current) if current.id == self.id => {
                current.abandoned = true;
                desk.counters.timeouts += 1;
                let (operation, after) = (self.operation, now - self.submitted);
                return Error::TimedOut { operation, after };
            }
            _ => desk.queue.retain(|job| job.id != self.id),
        }
        wedged.or_else(|| desk.closed(now)).unwrap_or_else(|| {
            desk.counters.busy += 1;
            Error::Busy {
                waiting: desk.queue.len(),
            }
        })
    }
}

struct Shared {
    desk: Mutex<Desk>,
    /// Rung for the thread: a job has come, or the end.
    bell: Condvar,
    /// Rung when the thread has let go of the backend.
    end: Condvar,
}

impl Shared {
    /// Nothing panics while it holds the desk, so a poisoned one is in order.
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that callers and the thread share.
struct Desk {
    queue: VecDeque<Job>,
    limit: usize,
    deadline: Duration,
    next_id: u64,
    /// What is inside the backend now.
    current: Option<Current>,
    /// Where the backend's calls wait for those of other handles.
    chip: Option<Arc<Chip>>,
    health: Health,
    closing: bool,
    ended: bool,
    counters: Counters,
}

impl Desk {
    /// The call that has been inside for longer than the deadline.
    fn stuck(&self, now: Instant) -> Option<&Current> {
        self.current
            .as_ref()
            .filter(|current| now >= current.since + self.deadline)
    }

    fn wedged(&self, now: Instant) -> Option<Error> {
        let &Current {
            operation, since, ..
        } = self.stuck(now)?;
        Some(Error::Wedged {
            operation,
            elapsed: now - since,
        })
    }

    /// The backend is closed for now.
    fn closed(&self, now: Instant) -> Option<Error> {
        let Health::Closed {
            retry_at, cause, ..
        } = &self.health
        else {
            return None;
        };
        let retry_in = retry_at.saturating_duration_since(now);
        Some(Error::Unavailable {
            retry_in,
            source: Box::new(cause.clone()),
        })
    }

    /// The backend is closed, and isn't tried again before the deadline.
    fn unreachable(&self, now: Instant, deadline: Instant) -> Option<Error> {
        match &self.health {
            Health::Closed { retry_at, .. } if *retry_at > deadline => self.closed(now),
            _ => None,
        }
    }

    /// Closes for now, and turns away those who can't wait so long.
    fn close(&mut self, failures: u32, cause: Error) {
        let now = Instant::now();
        let retry_at = now + pause(failures);
        self.health = Health::Closed {
            failures,
            retry_at,
            cause,
        };
        let jobs = std::mem::take(&mut self.queue);
        for job in jobs {
            match self.unreachable(now, job.deadline) {
                Some(error) => job.task.answer(Err(error)),
                None => self.queue.push_back(job),
            }
        }
    }

    /// Closes for good, and turns everybody away.
    fn fail(&mut self, cause: &Error) {
        self.health = Health::Failed(cause.clone());
        for job in self.queue.drain(..) {
            job.task.answer(Err(cause.clone()));
        }
    }

    fn count(&mut self, error: &Error) {
        match error.class() {
            Class::Transient => self.counters.transient_failures += 1,
            Class::Fatal => self.counters.fatal_failures += 1,
            Class::Logic => self.counters.logic_failures += 1,
        }
        if matches!(error, Error::BadSignature { .. }) {
            self.counters.bad_signatures += 1;
        }
    }
}

struct Current {
    /// The job's, or 0.
    id: u64,
    operation: Operation,
    since: Instant,
    /// Its caller has given up.
    abandoned: bool,
}

impl Current {
    fn new(operation: Operation) -> Self {
        Self {
            id: 0,
            operation,
            since: Instant::now(),
            abandoned: false,
        }
    }
}

enum Health {
    Open,
    Closed {
        failures: u32,
        retry_at: Instant,
        cause: Error,
    },
    Failed(Error),
}

struct Job {
    id: u64,
    operation: Operation,
    deadline: Instant,
    retried: bool,
    task: Box<dyn Task>,
}

/// A job without its type.
trait Task: Send {
    /// Does the work and keeps what came out.
    fn run(&mut self, session: &mut Session) -> Result<(), Error>;

    /// Sends the caller what came out, or the error.
    fn answer(self: Box<Self>, result: Result<(), Error>);
}

struct Typed<T, F> {
    work: F,
    done: Option<T>,
    reply: Sender<Result<T, Error>>,
}

impl<T: Send, F: FnMut(&mut Session) -> Result<T, Error> + Send> Task for Typed<T, F> {
    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        self.done = Some((self.work)(session)?);
        Ok(())
    }

    fn answer(self: Box<Self>, result: Result<(), Error>) {
        let answer = match result {
            Ok(()) => self.done.ok_or(Error::WorkerDied),
            Err(error) => Err(error),
        };
        // a caller that has given up has no receiver: the answer is dropped here
        let _ = self.reply.send(answer);
    }
}

/// The thread: opens, reports, then serves until the end.
fn own(
    shared: Arc<Shared>,
    mut opener: Opener,
    name: Box<str>,
    reply: &Sender<Result<(VerifyingKey, Info), Error>>,
) {
    let (checker, session, info) = match Checker::learn(&mut opener, name) {
        Ok(opened) => opened,
        Err(error) => {
            let _ = reply.send(Err(error));
            return;
        }
    };
    let public_key = checker.public_key();
    let chip = session.backend.chip();
    let mut owner = Owner {
        shared,
        opener,
        checker,
        session: Some(session),
        failures: 0,
    };
    {
        let mut desk = owner.shared.lock();
        desk.current = None;
        desk.chip = chip;
    }
    // one who has given up has said so on the desk
    let _ = reply.send(Ok((public_key, info)));
    loop {
        match owner.next() {
            Next::Job(job) => owner.serve(job),
            Next::Reopen => owner.reopen(),
            Next::End => return,
        }
    }
}

/// Does `work` once, on a thread of its own, so that nobody waits for it longer
/// than `deadline`.
pub(crate) fn once<T: Send + 'static>(
    uri: &HsmUri,
    operation: Operation,
    deadline: Duration,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let deadline = deadline.min(MAX_DEADLINE);
    let (reply, answer) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(format!("zk-hsm-{}", uri.backend()))
        .spawn(move || {
            // a caller that has given up has no receiver
            let _ = reply.send(work());
        })
        .map_err(|source| Error::Thread {
            source: Arc::new(source),
        })?;
    match answer.recv_timeout(deadline) {
        Ok(result) => {
            // its work is done; it isn't left alone in a library when the program ends
            let _ = thread.join();
            result
        }
        Err(RecvTimeoutError::Disconnected) => Err(Error::WorkerDied),
        Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
            operation,
            after: deadline,
        }),
    }
}

/// The one who holds the backend.
struct Owner {
    shared: Arc<Shared>,
    opener: Opener,
    checker: Checker,
    session: Option<Session>,
    /// In a row, without a success between them.
    failures: u32,
}

enum Next {
    Job(Job),
    Reopen,
    End,
}

impl Owner {
    /// Waits for something to do, and marks it as being done.
    fn next(&self) -> Next {
        let mut desk = self.shared.lock();
        loop {
            let now = Instant::now();
            let mut wait = None;
            match &desk.health {
                _ if desk.closing => return Next::End,
                Health::Failed(_) => return Next::End,
                Health::Closed { retry_at, .. } if *retry_at <= now => {
                    desk.current = Some(Current::new(Operation::Open));
                    return Next::Reopen;
                }
                Health::Closed { retry_at, .. } => wait = Some(*retry_at - now),
                Health::Open => {
                    if let Some(job) = desk.queue.pop_front() {
                        let id = job.id;
                        desk.current = Some(Current {
                            id,
                            ..Current::new(job.operation)
                        });
                        return Next::Job(job);
                    }
                }
            }
            let bell = &self.shared.bell;
            desk = match wait {
                None => bell.wait(desk).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    bell.wait_timeout(desk, time)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn serve(&mut self, mut job: Job) {
        // there is one whenever the health is `Open`, and else no job is handed out
        let Some(session) = &mut self.session else {
            return;
        };
        let operation = job.operation;
        let started = Instant::now();
        let result = job.task.run(session);
        let took = started.elapsed();
        match &result {
            Ok(()) => self.failures = 0,
            Err(Error::Busy { .. } | Error::Wedged { .. }) => {}
            Err(error) => self.note(operation, error),
        }
        let mut desk = self.shared.lock();
        let abandoned = desk.current.take().is_some_and(|current| current.abandoned);
        if abandoned {
            desk.counters.late_results += 1;
        }
        let Err(error) = result else {
            if operation == Operation::Sign {
                desk.counters.signatures += 1;
                desk.counters.sign_latency.record(took);
            }
            return job.task.answer(Ok(()));
        };
        desk.count(&error);
        match error.class() {
            // it wasn't reached: another handle of this process was inside
            _ if matches!(error, Error::Busy { .. } | Error::Wedged { .. }) => {
                job.task.answer(Err(error));
            }
            Class::Logic => job.task.answer(Err(error)),
            Class::Fatal => {
                desk.fail(&error);
                job.task.answer(Err(error));
            }
            Class::Transient => {
                desk.close(self.failures, error.clone());
                let reachable = desk.unreachable(Instant::now(), job.deadline).is_none();
                if reachable && !job.retried && !abandoned {
                    job.retried = true;
                    desk.counters.retries += 1;
                    desk.queue.push_front(job);
                } else {
                    job.task.answer(Err(error));
                }
                // closing can get stuck, too
                desk.current = Some(Current::new(Operation::Close));
                drop(desk);
                self.session = None;
                self.shared.lock().current = None;
            }
        }
    }

    fn reopen(&mut self) {
        let result = self.checker.open(&mut self.opener);
        match &result {
            Ok(_) => tracing::info!("the HSM is open again"),
            Err(error) => self.note(Operation::Open, error),
        }
        let mut desk = self.shared.lock();
        desk.current = None;
        match result {
            Ok(session) => {
                self.session = Some(session);
                desk.health = Health::Open;
                desk.counters.reopens += 1;
            }
            Err(error) => {
                desk.count(&error);
                match error.class() {
                    Class::Transient => desk.close(self.failures, error),
                    Class::Fatal | Class::Logic => desk.fail(&error),
                }
            }
        }
    }

    /// Counts transient failures in a row, and tells the log: before the desk
    /// is taken, so that a slow log holds up nobody.
    fn note(&mut self, operation: Operation, error: &Error) {
        let class = error.class();
        let error: &dyn std::error::Error = error;
        match class {
            Class::Logic if operation != Operation::Open => {}
            Class::Transient => {
                self.failures = self.failures.saturating_add(1);
                let (failures, pause) = (self.failures, pause(self.failures));
                tracing::warn!(%operation, error, failures, ?pause, "the HSM failed; it is opened again");
            }
            Class::Fatal | Class::Logic => {
                tracing::error!(%operation, error, "the HSM is closed for good");
            }
        }
    }
}

impl Drop for Owner {
    /// The thread ends: nobody may wait for it, whatever the reason.
    fn drop(&mut self) {
        let mut desk = self.shared.lock();
        desk.current = None;
        if !matches!(desk.health, Health::Failed(_)) {
            desk.fail(&Error::WorkerDied);
        }
    }
}

/// The time between a failure and the next attempt to open.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LAST_PAUSE)
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// How long the last handle waits for the backend to close.
const CLOSING: Duration = Duration::from_secs(1);

/// For how long a caller looks for its answer before it sleeps: nothing beside a
/// chip's time, and more than software needs.
const POLLING: Duration = Duration::from_micros(400);

/// So that a deadline can always be added to a moment.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests;
