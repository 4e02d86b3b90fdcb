//! The way of a reading on the device: sampled, sealed, spooled, published.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use zk_envelope::{ClockQuality, Envelope, Report, Sealer, StreamId, Timestamp};
use zk_hsm::{Hsm, HsmUri};
use zk_publish::{Publisher, State};
use zk_sensors::{Quality, Reading, W1Bus};
use zk_spool::{Spool, SyncPolicy};

use self::inbox::{Closing, Inbox, Refused, Sweep};
use self::module::{Measured, Module};
use self::pulse::Pulse;
use self::sealing::{MAX_BODY, Receipts, Sealing};
use self::threads::{Alarm, Bell, Thread};
use crate::Error;
use crate::clock::{self, Clock, Y2020_MS};
use crate::config::{self, Config, Full, unsigned};
use crate::files::{Expires, Reminder, certificates, check_certificate, expiry, owner, roots};
use crate::socket::Socket;

mod inbox;
mod module;
mod pulse;
mod sealing;
#[cfg(test)]
mod tests;
mod threads;

pub use self::sealing::receipt_of;

/// A running agent.
///
/// Three threads: one reads the sensors at each interval, one seals what was
/// read and appends it to the spool, one (the publisher's) takes the oldest
/// records from the spool to the target. They meet only in a bounded inbox
/// and in the spool. Besides, one asks the key's module now and then what it
/// measures.
#[derive(Debug)]
pub struct Agent {
    /// Takes another interval for the sampler; dropped to stop it.
    stop: Sender<Duration>,
    /// Dropped to stop whoever asks the key's module what it measures.
    _asked: Sender<()>,
    inbox: Arc<Inbox>,
    socket: Option<Socket>,
    /// What holds now.
    config: Mutex<Config>,
    sampler: Thread<()>,
    sealer: Thread<Result<Receipts, Error>>,
    /// Until when the sealer may try, once the agent is to stop.
    patience: Arc<OnceLock<Instant>>,
    alarm: Arc<Alarm>,
    watch: Watch,
}

/// A view of an agent, for as long as somebody looks: clones are the same view.
///
/// It keeps the spool open: drop it when the agent has stopped.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    started: Instant,
    publisher: Publisher,
    spool: Arc<Spool>,
    hsm: Hsm,
    progress: Arc<Progress>,
    measured: Arc<Measured>,
    certificate_expires: Expires,
}

/// What an agent has done since it started.
#[derive(Debug)]
#[non_exhaustive]
pub struct Status {
    /// For how long it has been running.
    pub uptime: Duration,
    /// Readings taken from sensors, of any quality.
    pub sampled: u64,
    /// Readings that now lie in sealed records.
    pub sealed: u64,
    /// Readings that were given up because neither key nor spool took them.
    pub given_up: u64,
    /// Records of data that other programs handed over, and that are on disk.
    pub data_taken: u64,
    /// Those that the spool did not take.
    pub data_refused: u64,
    /// Thermometers that gave a good value in the last sweep.
    pub sensors: u64,
    /// Readings by the name of their quality.
    pub qualities: BTreeMap<&'static str, u64>,
    /// What was found lost since the start, by reason: records and readings that
    /// receipts name. What an earlier process found, and no receipt that has arrived
    /// named, is among it.
    pub lost: BTreeMap<&'static str, u64>,
    /// How far the last record's clock is to be believed. None before the first one.
    pub clock: Option<ClockQuality>,
    /// For how long the oldest record that waits has waited: by the clock that is
    /// never set, if it is of this boot.
    pub oldest_age: Option<Duration>,
    /// When the device's certificate expires.
    pub certificate_expires: SystemTime,
    /// The spool.
    pub spool: zk_spool::Stats,
    /// The publisher.
    pub publisher: zk_publish::Status,
    /// The device's key.
    pub hsm: zk_hsm::Counters,
    /// How its module is.
    pub hsm_state: zk_hsm::State,
    /// What its module measured last, and when. None before it was first asked,
    /// which is after a heartbeat's interval, and if it measures nothing.
    pub hsm_health: Option<(SystemTime, zk_hsm::Health)>,
}

/// What happens to readings on their way, as [`Agent::start_observed`] tells it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Taken from the sensors: so far they are in memory alone.
    Captured(&'a [Reading]),
    /// A record of these readings is in the spool.
    Sealed {
        /// The record's stream.
        stream: StreamId,
        /// The record's number there.
        sequence: u64,
        /// What is in it, in order. If the clock was set since they were captured,
        /// their times are by the new one.
        readings: &'a [Reading],
    },
    /// A report of the agent's own is in the spool.
    Reported {
        /// The record's stream.
        stream: StreamId,
        /// The record's number there.
        sequence: u64,
        /// What it says.
        report: &'a Report,
    },
    /// Neither key nor spool took them: a loss receipt will say how many. None
    /// of them: it was a report of the agent's own, and counts as one.
    GivenUp(&'a [Reading]),
}

/// Whom events are told to.
///
/// A function and no log: a subscriber would write readings to a disk in clear
/// that nobody but their owner is to see. Who takes them here has asked for them.
struct Observer(Box<dyn Fn(Event<'_>) + Send + Sync>);

impl Default for Observer {
    fn default() -> Self {
        Self(Box::new(|_| {}))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

#[derive(Debug, Default)]
struct Progress {
    observer: Observer,
    sampled: AtomicU64,
    sealed: AtomicU64,
    /// Given up, and not yet counted by the spool.
    uncounted: AtomicU64,
    given_up: AtomicU64,
    sensors: AtomicU64,
    /// Nothing is sealed any more.
    ended: AtomicBool,
    /// The key did not sign at the last attempt, which is made again.
    waits_for_key: AtomicBool,
    /// Of the threads that sample and seal.
    sampler: Pulse,
    sealer: Pulse,
    /// Records of data of other programs.
    data_taken: AtomicU64,
    data_refused: AtomicU64,
    /// Readings by quality.
    qualities: Tally,
    /// What was found lost, by reason.
    lost: Tally,
    /// What the last record says of its clock.
    clock: Mutex<Option<ClockQuality>>,
}

/// Counts by name.
#[derive(Debug, Default)]
struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    fn add(&self, name: &'static str, count: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(name).or_default() += count;
    }

    /// All of `names`, and whatever else there was.
    fn read(&self, names: &[&'static str]) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<_, _> = names.iter().map(|name| (*name, 0)).collect();
        counts.extend(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter());
        counts
    }
}

impl Agent {
    /// Checks everything that can be checked, then starts to sample.
    ///
    /// `failed` is called once, from another thread, if one of the agent's
    /// threads has ended, so that it cannot go on: call [`Agent::stop`] then,
    /// which returns the error.
    ///
    /// # Errors
    /// Whatever keeps the agent from starting: settings, key, certificate (also
    /// one that does not fit key or device), owners, spool, target.
    pub fn start(config: &Config, failed: impl FnOnce() + Send + 'static) -> Result<Self, Error> {
        Self::start_observed(config, |_| {}, failed)
    }

    /// As [`start`](Self::start), and tells `observer` of each reading and each
    /// record: for a program that shows what is measured where it is measured,
    /// or keeps a journal to hold against what arrives.
    ///
    /// It is called by the threads that sample and seal, which wait for it; what
    /// it is told is in clear.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_observed(
        config: &Config,
        observer: impl Fn(Event<'_>) + Send + Sync + 'static,
        failed: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        // Flags may have changed what was read.
        config
            .check()
            .map_err(|(key, detail)| Error::Setting(format!("{key} {detail}")))?;
        let uri: HsmUri = config.device.hsm.parse()?;
        let hsm_error = |source: zk_hsm::Error| Error::Hsm {
            uri: config.device.hsm.clone(),
            source: Box::new(source),
        };
        let hsm = Hsm::open(&uri, zk_hsm::Options::default()).map_err(hsm_error)?;
        let chain = certificates(&config.device.certificate)?;
        let certificate_expires = Expires::new(check_certificate(
            &config.device.certificate,
            &chain,
            &config.device.id,
        )?);
        let roots = roots(&config.target.roots)?;
        let tls = hsm.client_config(chain, roots, &[]).map_err(hsm_error)?;
        let topic = format!("Zymkey/{}", config.device.id);
        let target = zk_publish::Target::new(&config.target.endpoint, &topic)?;

        let spool = Arc::new(Spool::open(&config.spool.dir, spool_options(config)?)?);
        check_owner_of(&spool, config)?;
        let owners = config
            .owners
            .files
            .iter()
            .map(|f| owner(f))
            .collect::<Result<Vec<_>, _>>()?;
        let stream = StreamId(spool.stream().0);
        let sealer = Sealer::new(config.device.id.clone(), stream, hsm.public_key(), &owners)?;
        let clock = Clock::new(SystemTime::now)?;
        let inbox = Arc::new(Inbox::new(READINGS_WAITING));
        let measured = Arc::new(Measured::default());
        let heartbeat = unsigned(config.heartbeat.interval);
        let module = Module {
            hsm: hsm.clone(),
            interval: match config.events.are_wanted() {
                true => heartbeat.min(unsigned(config.events.interval)),
                false => heartbeat,
            },
            measured: Arc::clone(&measured),
            clock: clock.module(),
            events: config.events,
            inbox: Arc::clone(&inbox),
        };
        if clock.now().clock == ClockQuality::Unknown {
            module.ask_for_the_time();
        }
        if Timestamp::from(SystemTime::now()).as_millis() < Y2020_MS {
            tracing::warn!(
                now = %clock.now().time, clock = %clock.now().clock,
                "the system's clock was never set: records wait in the spool until it is, because \
                 no certificate is valid yet; is time synchronisation running?"
            );
        }

        let alarm = Arc::new(Alarm(Mutex::new(Some(Box::new(failed)))));
        // Lives as long as the publisher's thread.
        let bell = Bell(Arc::clone(&alarm));
        let publisher = Publisher::spawn(
            Arc::clone(&spool),
            target,
            tls,
            zk_publish::Options::default(),
            move |records: &[&[u8]], limit| {
                let _ = &bell;
                zk_envelope::pack(records, limit)
            },
        )
        .map_err(Error::Thread)?;

        let progress = Arc::new(Progress {
            observer: Observer(Box::new(observer)),
            ..Progress::default()
        });
        let (stop, stopped) = channel();
        let interval = unsigned(config.sensors.interval);
        let bus = W1Bus::new(&config.sensors.root);
        let sampler = {
            let (inbox, progress) = (Arc::clone(&inbox), Arc::clone(&progress));
            Thread::spawn("sampler", &alarm, move || {
                sample(bus, interval, &stopped, &inbox, &progress);
            })?
        };
        let (asked, not_asked) = channel();
        std::thread::Builder::new()
            .name("measure".into())
            .spawn(move || module.watch(&not_asked))
            .map_err(Error::Thread)?;
        let patience = Arc::new(OnceLock::new());
        let sealing = Sealing {
            sealer,
            key: hsm.clone(),
            spool: Arc::clone(&spool),
            clock,
            progress: Arc::clone(&progress),
            patience: Arc::clone(&patience),
            heartbeat,
            started: None,
            receipts: Receipts::new(&spool, config.spool.cap.as_u64()),
            receipts_wait: false,
            largest: MAX_BODY,
            counted: 0,
            recoveries: config.events.module,
            out_since: None,
            recovered: None,
            reminder: Reminder::new(certificate_expires.clone()),
        };
        let socket = {
            let inbox = Arc::clone(&inbox);
            config.socket.serve(move |data| inbox.hand_over(data))?
        };
        let sealer = {
            let inbox = Arc::clone(&inbox);
            Thread::spawn("sealer", &alarm, move || sealing.run_to_the_end(&inbox))?
        };
        tracing::info!(
            device = %config.device.id, key = %uri, %stream, endpoint = %config.target.endpoint,
            "started"
        );
        Ok(Self {
            stop,
            _asked: asked,
            inbox,
            socket,
            config: Mutex::new(config.clone()),
            sampler,
            sealer,
            patience,
            alarm,
            watch: Watch(Arc::new(Parts {
                started: Instant::now(),
                publisher,
                spool,
                hsm,
                progress,
                measured,
                certificate_expires,
            })),
        })
    }

    /// A view that outlives this handle, for metrics and health.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// [`Error::Spool`] if the spool has failed.
    pub fn status(&self) -> Result<Status, Error> {
        self.watch.status()
    }

    /// Takes up another configuration, as far as that can be done in a running agent:
    /// certificate and roots, which are read anew in any case, and the intervals of
    /// sensors and heartbeat. Returns the keys that have changed otherwise: for them
    /// it has to be started anew.
    ///
    /// # Errors
    /// As [`start`](Self::start), for what is read here. Everything stays as it is
    /// then.
    pub fn reload(&self, config: &Config) -> Result<Vec<String>, Error> {
        config
            .check()
            .map_err(|(key, detail)| Error::Setting(format!("{key} {detail}")))?;
        let parts = &*self.watch.0;
        let mut held = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let chain = certificates(&config.device.certificate)?;
        // Its own name is that of this process's device, whatever the file says now.
        let expires = check_certificate(&config.device.certificate, &chain, &held.device.id)?;
        let roots = roots(&config.target.roots)?;
        let tls = parts.hsm.client_config(chain, roots, &[]);
        let tls = tls.map_err(|source| Error::Hsm {
            uri: held.device.hsm.clone(),
            source: Box::new(source),
        })?;
        parts.publisher.set_tls(tls);
        parts.certificate_expires.set(expires);
        // The sampler may be stuck, but it has not ended, or somebody was told.
        let _ = self.stop.send(unsigned(config.sensors.interval));
        self.inbox
            .set_heartbeat(unsigned(config.heartbeat.interval));

        held.device
            .certificate
            .clone_from(&config.device.certificate);
        held.target.roots.clone_from(&config.target.roots);
        held.sensors.interval = config.sensors.interval;
        held.heartbeat = config.heartbeat.clone();
        held.log.filter.clone_from(&config.log.filter);
        held.changed(config)
    }

    /// Tells the publisher that the link is back, so that it does not wait for
    /// the end of its backoff.
    pub fn link_returned(&self) {
        self.watch.0.publisher.link_returned();
    }

    /// Stops sampling, seals what was read, goes on publishing, all within
    /// `grace`, and leaves the spool synced.
    ///
    /// A thread that is stuck in a sensor or in the key by then is left behind:
    /// the process should end. (A call into the key for a TLS handshake is
    /// waited for, which takes as long as the key's deadline at most.)
    ///
    /// # Errors
    /// What made the agent fail, if it had; [`Error::Unsealed`] if the key did
    /// not sign what was read last.
    pub fn stop(self, grace: Duration) -> Result<Status, Error> {
        let now = Instant::now();
        let deadline = now.checked_add(grace).unwrap_or(now + FOREVER);
        self.alarm.disarm();
        drop(self.stop);
        let sampler = self.sampler.join_by(deadline);
        // Nobody sets it but this, which runs once.
        let _ = self.patience.set(deadline);
        self.sealer.wake();
        let sealer = self.sealer.join_by(deadline);
        let grace = deadline.saturating_duration_since(Instant::now());
        self.watch.0.publisher.stop(grace);
        // Who waited for what became of data has heard it.
        drop(self.socket);
        self.watch.0.spool.sync()?;
        sampler?;
        if let Some(outcome) = sealer? {
            // What the publisher has delivered since need not be named again.
            outcome?.unnamed()?;
        }
        let status = self.watch.status()?;
        // A thread that was left behind may count on while these are read.
        let done = status.sealed.saturating_add(status.given_up);
        match status.sampled.saturating_sub(done) {
            0 => Ok(status),
            readings => Err(Error::Unsealed { readings }),
        }
    }
}

impl Watch {
    /// What the agent has done so far.
    ///
    /// # Errors
    /// [`Error::Spool`] if the spool has failed.
    pub fn status(&self) -> Result<Status, Error> {
        let Parts {
            started,
            publisher,
            spool,
            hsm,
            progress,
            measured,
            certificate_expires,
        } = &*self.0;
        Ok(Status {
            uptime: started.elapsed(),
            sampled: progress.sampled.load(Ordering::Relaxed),
            sealed: progress.sealed.load(Ordering::Relaxed),
            given_up: progress.given_up.load(Ordering::Relaxed),
            data_taken: progress.data_taken.load(Ordering::Relaxed),
            data_refused: progress.data_refused.load(Ordering::Relaxed),
            sensors: progress.sensors.load(Ordering::Relaxed),
            qualities: progress.qualities.read(QUALITIES),
            lost: progress.lost.read(REASONS),
            clock: *progress
                .clock
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            oldest_age: oldest_age(spool),
            certificate_expires: certificate_expires.get(),
            spool: spool.stats()?,
            publisher: publisher.status(),
            hsm: hsm.counters(),
            hsm_state: hsm.state(),
            hsm_health: measured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }

    /// The threads, of those that sample, seal and publish, that have been at one
    /// piece of work for longer than `limit`, and for how long. Empty while all of
    /// them get on, or wait for something to do.
    ///
    /// A link that is down and a key's module that is slow, fails or has to be
    /// opened again hold up none of them for long: each attempt has an end of its
    /// own, and the next one counts as another piece of work. What does is a driver
    /// or a disk that does not answer, and a defect.
    #[must_use]
    pub fn stuck(&self, limit: Duration) -> Vec<(&'static str, Duration)> {
        let Parts {
            publisher,
            progress,
            ..
        } = &*self.0;
        let busy = publisher.status().busy_since;
        let at_it = [
            ("sampler", progress.sampler.at_it()),
            ("sealer", progress.sealer.at_it()),
            ("publisher", busy.map(|since| since.elapsed())),
        ];
        let at_it = at_it.into_iter().filter_map(|(name, at)| Some((name, at?)));
        at_it.filter(|(_, at)| *at > limit).collect()
    }

    /// What somebody has to look after, a sentence each; empty if nothing has.
    ///
    /// A link that is down is not among it: records wait for it. Nor is a full
    /// spool: what it does then was chosen, and loss receipts name what is lost.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let parts = &*self.0;
        let mut troubles = Vec::new();
        if parts.progress.ended.load(Ordering::Relaxed) {
            troubles.push("nothing is sealed any more; the log says why".to_owned());
        } else if parts.progress.waits_for_key.load(Ordering::Relaxed) {
            let state = match parts.hsm.state() {
                zk_hsm::State::Reopening {
                    failures, cause, ..
                } => format!("opened again in vain {failures} times: {cause}"),
                zk_hsm::State::Wedged { operation, since } => {
                    format!("{operation} has been in it for {:?}", since.elapsed())
                }
                zk_hsm::State::Failed { cause } => cause.to_string(),
                _ => "the next attempt is under way".to_owned(),
            };
            troubles.push(format!(
                "the key does not sign ({state}); readings wait in memory"
            ));
        }
        if let Err(error) = parts.spool.stats() {
            troubles.push(format!("spool: {error}"));
        }
        let publisher = parts.publisher.status();
        if matches!(
            publisher.state,
            State::Failed | State::Forbidden | State::Refusing | State::Untrusted
        ) {
            let why = publisher.last_error.unwrap_or_default();
            troubles.push(format!("publisher {}: {why}", publisher.state.as_str()));
        }
        if parts.certificate_expires.get() <= SystemTime::now() {
            troubles.push("the device's certificate has expired; it needs a new one".to_owned());
        }
        troubles
    }

    /// What somebody will have to look after, a sentence each, though nothing is
    /// wrong yet: a certificate that expires within 30 days.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let now = SystemTime::now();
        let expires = self.0.certificate_expires.get();
        let soon = expiry(expires, now).filter(|_| now < expires);
        soon.into_iter().collect()
    }
}

/// Reads all sensors at each interval until told to stop.
fn sample(
    mut bus: W1Bus,
    mut interval: Duration,
    stopped: &Receiver<Duration>,
    inbox: &Inbox,
    progress: &Progress,
) {
    let _at_the_end = Closing(inbox);
    let mut next = Instant::now();
    // What keeps the sensors from being read, and when that was last said.
    let mut trouble: Option<(String, Instant)> = None;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        progress.sampler.waits();
        match stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(other) => {
                interval = other;
                next = next.min(Instant::now() + interval);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        progress.sampler.works();
        // A sweep that takes longer than the interval delays the next one; it
        // does not make up for it afterwards by two of the same moment.
        next = (next + interval).max(Instant::now() + interval / 2);
        // One clock for all of it, whatever is set meanwhile.
        let offset = clock::system_offset();
        let readings = match bus.read_all(|| clock::time_of(offset)) {
            Ok(readings) => readings,
            Err(error) => {
                let error = error.to_string();
                let said = trouble
                    .as_ref()
                    .is_some_and(|(before, at)| *before == error && at.elapsed() < SAID_AGAIN);
                if !said {
                    tracing::warn!(error, "cannot read the sensors; trying every {interval:?}");
                    trouble = Some((error, Instant::now()));
                }
                continue;
            }
        };
        if trouble.take().is_some() {
            tracing::info!("the sensors can be read again");
        }
        progress.tell(Event::Captured(&readings));
        let count = readings.len() as u64;
        let well = readings
            .iter()
            .filter(|reading| reading.quality == Quality::Ok)
            .count();
        for reading in &readings {
            progress.qualities.add(reading.quality.as_str(), 1);
        }
        progress.sensors.store(well as u64, Ordering::Relaxed);
        progress.sampled.fetch_add(count, Ordering::Relaxed);
        if readings.is_empty() {
            continue;
        }
        match inbox.offer(Sweep { readings, offset }) {
            Ok(()) => {}
            // The key has not signed for so long that memory would fill up.
            Err(Refused::Full(sweep)) => progress.give_up(&sweep.readings),
            Err(Refused::Closed) => return,
        }
    }
}

impl Progress {
    fn tell(&self, event: Event<'_>) {
        (self.observer.0)(event);
    }

    fn give_up(&self, readings: &[Reading]) {
        if !readings.is_empty() {
            self.tell(Event::GivenUp(readings));
        }
        let count = readings.len() as u64;
        self.uncounted.fetch_add(count, Ordering::Relaxed);
        self.given_up.fetch_add(count, Ordering::Relaxed);
    }
}

/// How long ago the oldest record that waits was sealed. A record that can't be read is
/// somebody else's to tell.
fn oldest_age(spool: &Spool) -> Option<Duration> {
    let record = spool.peek(1, 0).ok()?.pop()?;
    let envelope = Envelope::from_bytes(record.bytes()).ok()?;
    let sealed = envelope.unverified_header();
    let now = Clock::new(SystemTime::now).ok()?.now();
    let ms = if sealed.boot == now.boot {
        now.since_boot_ms.saturating_sub(sealed.since_boot_ms)
    } else {
        now.time.as_millis().saturating_sub(sealed.time.as_millis())
    };
    Some(Duration::from_millis(ms))
}

/// Whether what waits in the spool is this device's: under its certificate the
/// records of another one would be quarantined. A record that can't be read is
/// not judged here.
fn check_owner_of(spool: &Spool, config: &Config) -> Result<(), Error> {
    let oldest = spool.peek(1, usize::MAX)?;
    let oldest = oldest
        .first()
        .map(|record| Envelope::from_bytes(record.bytes()));
    let Some(Ok(oldest)) = oldest else {
        return Ok(());
    };
    let found = &oldest.unverified_header().device;
    if *found == config.device.id {
        return Ok(());
    }
    Err(Error::OtherSpool {
        dir: config.spool.dir.clone(),
        device: config.device.id.clone(),
        found: found.clone(),
    })
}

pub(crate) fn spool_options(config: &Config) -> Result<zk_spool::Options, Error> {
    let engine = match config.spool.engine {
        config::Engine::Log => zk_spool::Engine::Log,
        #[cfg(feature = "sled")]
        config::Engine::Sled => zk_spool::Engine::Sled,
        #[cfg(not(feature = "sled"))]
        config::Engine::Sled => {
            return Err(Error::Setting(
                "spool.engine is \"sled\", and this program was built without it: build it with \
                 --features sled, or give \"log\" and another spool.dir"
                    .to_owned(),
            ));
        }
    };
    Ok(zk_spool::Options {
        engine,
        sync: match config.spool.sync {
            config::Sync::Each => SyncPolicy::Each,
            config::Sync::Every(window) => SyncPolicy::Every(unsigned(window)),
        },
        cap: config.spool.cap.as_u64(),
        full: match config.spool.full {
            Full::Reject => zk_spool::Full::Reject,
            Full::DropOldest => zk_spool::Full::DropOldest,
        },
        ..zk_spool::Options::default()
    })
}

/// Of readings, in metrics from the start.
const QUALITIES: &[&str] = &[
    "crc",
    "empty",
    "false-zero",
    "fault",
    "garbled",
    "ok",
    "out-of-range",
    "power-on",
    "stale-suspect",
    "unplugged",
    "unreadable",
];
/// Of losses.
const REASONS: &[&str] = &["damaged", "dropped", "refused", "rejected", "several"];

/// How often the log repeats why the sensors can't be read.
const SAID_AGAIN: Duration = Duration::from_secs(600);
/// Readings that may wait for a key that does not sign, about 1 MiB; later ones
/// are given up and counted.
const READINGS_WAITING: usize = 16_384;
/// For deadlines that no clock can count to.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
