//! The way of a reading on the device: sampled, sealed, spooled, published.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel,
};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use p256::ecdsa::Signature;
use p256::ecdsa::signature::Signer;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::ext::pkix::name::DirectoryString;
use zk_envelope::{
    Content, DeviceEvent, DeviceId, LossReason, LossReceipt, OwnerPublicKey, PreviousStream,
    Report, Sealer, SequenceRange, StreamId, Timestamp,
};
use zk_hsm::{Class, Hsm, HsmUri};
use zk_publish::{Publisher, State};
use zk_sensors::{Quality, Reading, Readings, W1Bus};
use zk_spool::{AppendError, Spool, SyncPolicy};

use crate::Error;
use crate::clock::{Clock, Y2020_MS};
use crate::config::{self, Config, Full, unsigned};

/// A running agent.
///
/// Three threads: one reads the sensors at each interval, one seals what was
/// read and appends it to the spool, one (the publisher's) takes the oldest
/// records from the spool to the target. They meet only in a bounded channel
/// and in the spool.
#[derive(Debug)]
pub struct Agent {
    /// Dropped to stop the sampler.
    stop: Sender<()>,
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
    publisher: Publisher,
    spool: Arc<Spool>,
    hsm: Hsm,
    progress: Arc<Progress>,
    certificate_expires: SystemTime,
}

/// What an agent has done since it started.
#[derive(Debug)]
#[non_exhaustive]
pub struct Status {
    /// Readings taken from sensors, of any quality.
    pub sampled: u64,
    /// Readings that now lie in sealed records.
    pub sealed: u64,
    /// Readings that were given up because neither key nor spool took them.
    pub given_up: u64,
    /// Thermometers that gave a good value in the last sweep.
    pub sensors: u64,
    /// When the device's certificate expires.
    pub certificate_expires: SystemTime,
    /// The spool.
    pub spool: zk_spool::Stats,
    /// The publisher.
    pub publisher: zk_publish::Status,
    /// The device's key.
    pub hsm: zk_hsm::Counters,
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
        /// What is in it, in order.
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
        config.check().map_err(Error::Setting)?;
        let uri: HsmUri = config.device.hsm.parse()?;
        let hsm_error = |source: zk_hsm::Error| Error::Hsm {
            uri: config.device.hsm.clone(),
            source: Box::new(source),
        };
        let hsm = Hsm::open(&uri, zk_hsm::Options::default()).map_err(hsm_error)?;
        let chain = certificates(&config.device.certificate)?;
        let certificate_expires =
            check_certificate(&config.device.certificate, &chain, &config.device.id)?;
        let roots = roots(&config.target.roots)?;
        let tls = hsm.client_config(chain, roots, &[]).map_err(hsm_error)?;
        let topic = format!("Zymkey/{}", config.device.id);
        let target = zk_publish::Target::new(&config.target.endpoint, &topic)?;

        let spool = Arc::new(Spool::open(&config.spool.dir, spool_options(config))?);
        let owners = config
            .owners
            .files
            .iter()
            .map(|f| owner(f))
            .collect::<Result<Vec<_>, _>>()?;
        let stream = StreamId(spool.stream().0);
        let sealer = Sealer::new(config.device.id.clone(), stream, hsm.public_key(), &owners)?;
        let clock = Clock::new(SystemTime::now)?;
        if clock.now().time.as_millis() < Y2020_MS {
            tracing::warn!(
                now = %clock.now().time,
                "the clock was never set: records wait in the spool until it is, because no \
                 certificate is valid yet; is time synchronisation running?"
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
        let (sweeps, swept) = sync_channel(SWEEPS_WAITING);
        let (stop, stopped) = channel();
        let interval = unsigned(config.sensors.interval);
        let bus = W1Bus::new(&config.sensors.root);
        let sampler = {
            let progress = Arc::clone(&progress);
            Thread::spawn("sampler", &alarm, move || {
                sample(bus, interval, &stopped, &sweeps, &progress);
            })?
        };
        let patience = Arc::new(OnceLock::new());
        let sealing = Sealing {
            sealer,
            key: hsm.clone(),
            spool: Arc::clone(&spool),
            clock,
            progress: Arc::clone(&progress),
            patience: Arc::clone(&patience),
            heartbeat: unsigned(config.heartbeat.interval),
            started: None,
            receipts: Receipts::new(&spool, config.spool.cap.as_u64()),
            receipts_wait: false,
        };
        let sealer = Thread::spawn("sealer", &alarm, move || sealing.run_to_the_end(&swept))?;
        tracing::info!(
            device = %config.device.id, key = %uri, %stream, endpoint = %config.target.endpoint,
            "started"
        );
        Ok(Self {
            stop,
            sampler,
            sealer,
            patience,
            alarm,
            watch: Watch(Arc::new(Parts {
                publisher,
                spool,
                hsm,
                progress,
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
            publisher,
            spool,
            hsm,
            progress,
            certificate_expires,
        } = &*self.0;
        Ok(Status {
            sampled: progress.sampled.load(Ordering::Relaxed),
            sealed: progress.sealed.load(Ordering::Relaxed),
            given_up: progress.given_up.load(Ordering::Relaxed),
            sensors: progress.sensors.load(Ordering::Relaxed),
            certificate_expires: *certificate_expires,
            spool: spool.stats()?,
            publisher: publisher.status(),
            hsm: hsm.counters(),
        })
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
            State::Failed | State::Forbidden | State::Refusing
        ) {
            let why = publisher.last_error.unwrap_or_default();
            troubles.push(format!("publisher {}: {why}", publisher.state.as_str()));
        }
        if parts.certificate_expires <= SystemTime::now() {
            troubles.push("the device's certificate has expired; it needs a new one".to_owned());
        }
        troubles
    }
}

/// Reads all sensors at each interval until told to stop.
fn sample(
    mut bus: W1Bus,
    interval: Duration,
    stopped: &Receiver<()>,
    sweeps: &SyncSender<Vec<Reading>>,
    progress: &Progress,
) {
    let mut next = Instant::now();
    // What keeps the sensors from being read, and when that was last said.
    let mut trouble: Option<(String, Instant)> = None;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        if !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
            return;
        }
        // A sweep that takes longer than the interval delays the next one; it
        // does not make up for it afterwards by two of the same moment.
        next = (next + interval).max(Instant::now() + interval / 2);
        let readings = match bus.read_all(SystemTime::now) {
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
        progress.sensors.store(well as u64, Ordering::Relaxed);
        progress.sampled.fetch_add(count, Ordering::Relaxed);
        if readings.is_empty() {
            continue;
        }
        match sweeps.try_send(readings) {
            Ok(()) => {}
            // The key has not signed for so long that memory would fill up.
            Err(TrySendError::Full(readings)) => progress.give_up(&readings),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Everything that it takes to make records of readings.
struct Sealing<K> {
    sealer: Sealer,
    key: K,
    spool: Arc<Spool>,
    clock: Clock,
    progress: Arc<Progress>,
    patience: Arc<OnceLock<Instant>>,
    heartbeat: Duration,
    /// Where the record is, or can be, that says how the stream began; `None` if
    /// there is none.
    started: Option<RangeInclusive<u64>>,
    receipts: Receipts,
    /// A receipt found no room; the next try is when a record has found some.
    receipts_wait: bool,
}

impl<K: Signer<Signature>> Sealing<K> {
    fn run_to_the_end(mut self, swept: &Receiver<Vec<Reading>>) -> Result<Receipts, Error> {
        let outcome = self.run(swept);
        self.progress.ended.store(true, Ordering::Relaxed);
        if let Err(error) = &outcome {
            for sweep in swept.try_iter() {
                self.progress.give_up(&sweep);
            }
            let lost = self.progress.uncounted.load(Ordering::Relaxed);
            tracing::error!(%error, readings_lost = lost, "the agent stops");
            // If it is not the spool that failed, the next start can name them.
            if let Err(error) = self.count_given_up() {
                tracing::error!(%error, "they could not be counted");
            }
        }
        outcome.map(|()| self.receipts)
    }

    fn run(&mut self, swept: &Receiver<Vec<Reading>>) -> Result<(), Error> {
        let last = self.spool.stats()?.next_sequence - 1;
        self.started = (last > 0).then_some(1..=last);
        // Once they were asked for they grow no more: an earlier process may have
        // named them.
        self.spool.losses()?;
        let mut next_heartbeat = Instant::now();
        loop {
            if Instant::now() >= next_heartbeat {
                self.beat()?;
                next_heartbeat = Instant::now() + self.heartbeat;
            }
            self.receipts()?;
            match swept.recv_timeout(next_heartbeat.saturating_duration_since(Instant::now())) {
                Ok(first) => self.readings(gather(first, swept))?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // There may be room now, and no record comes to find it.
                    self.receipts_wait = false;
                    self.receipts()?;
                    return Ok(self.spool.sync()?);
                }
            }
        }
    }

    fn beat(&mut self) -> Result<(), Error> {
        let stats = self.spool.stats()?;
        let beat = Report::Heartbeat(zk_envelope::Heartbeat {
            interval_ms: self.heartbeat.as_millis().try_into().unwrap_or(u64::MAX),
            waiting: stats.records,
            waiting_bytes: stats.bytes,
            sensors: self.progress.sensors.load(Ordering::Relaxed),
        });
        if self.append(Content::Report(&beat), &[])?.is_none() {
            self.progress.tell(Event::GivenUp(&[]));
        }
        Ok(())
    }

    /// Hands what was given up to the spool, which remembers it.
    fn count_given_up(&mut self) -> Result<(), Error> {
        let given_up = self.progress.uncounted.swap(0, Ordering::Relaxed);
        if given_up > 0 {
            self.spool.refuse(given_up)?;
        }
        Ok(())
    }

    /// Names what was lost, in records that nobody can change. What finds no
    /// room stays counted, and is named when there is some.
    fn receipts(&mut self) -> Result<(), Error> {
        self.count_given_up()?;
        if self.receipts_wait {
            return Ok(());
        }
        let losses = self.receipts.unnamed()?;
        let stream = self.spool.stream();
        if let Some(place) = &self.started
            && losses.iter().any(|loss| takes(loss, stream, place))
        {
            self.started = None;
        }
        for run in losses.chunk_by(continues) {
            let Some((first, last)) = run.first().zip(run.last()) else {
                continue;
            };
            if self.receipts.waiting()? >= self.receipts.most {
                return Ok(());
            }
            let mut loss = *last;
            loss.first = first.first;
            loss.records = run.iter().map(|loss| loss.records).sum();
            let receipt = receipt_of(&loss, stream);
            tracing::warn!(reason = ?loss.reason, records = receipt.records, "records are lost");
            let Some(sequence) = self.receipt(receipt)? else {
                return Ok(());
            };
            let ids = run.iter().map(|loss| (loss.id, sequence));
            self.receipts.named.extend(ids);
        }
        Ok(())
    }

    /// `None`: there is no room even for this.
    fn receipt(&mut self, receipt: LossReceipt) -> Result<Option<u64>, Error> {
        let report = Report::LossReceipt(receipt);
        let mut taken = None;
        if self.start_stream()? {
            taken = self.seal_until_signed(Content::Report(&report), &[], Room::Receipts)?;
        }
        if taken.is_none() {
            self.progress.tell(Event::GivenUp(&[]));
        }
        self.receipts_wait = taken.is_none();
        Ok(taken)
    }

    fn readings(&mut self, mut readings: Vec<Reading>) -> Result<(), Error> {
        while !readings.is_empty() {
            let rest = readings.split_off(readings.len().min(READINGS_PER_RECORD));
            let batch = Readings { readings };
            readings = rest;
            let count = batch.readings.len() as u64;
            let Ok(body) = serde_json::to_vec(&batch) else {
                return Err(Error::ThreadEnded);
            };
            let content = Content::Data {
                content_type: "application/json",
                body: &body,
            };
            match self.append(content, &batch.readings) {
                Ok(Some(_)) => {
                    self.progress.sealed.fetch_add(count, Ordering::Relaxed);
                }
                Ok(None) => {
                    self.progress.give_up(&batch.readings);
                    // The spool has counted the record: for one of them.
                    self.progress.uncounted.fetch_sub(1, Ordering::Relaxed);
                    self.count_given_up()?;
                }
                Err(error) => {
                    self.progress.give_up(&batch.readings);
                    self.progress.give_up(&readings);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// A record, of these readings if any, and before it an anchor if the clock
    /// was set. `None`: the spool is full, and has counted it.
    fn append(&mut self, content: Content<'_>, readings: &[Reading]) -> Result<Option<u64>, Error> {
        if !self.start_stream()? {
            return Ok(None);
        }
        let now = self.clock.now();
        if let Some(anchor) = self.clock.anchor(&now) {
            tracing::info!(?anchor, "the clock was set");
            let anchored = self.seal_until_signed(Content::Report(&anchor), &[], Room::Usual)?;
            if anchored.is_none() {
                return Ok(None);
            }
        }
        self.clock.follow(&now);
        let taken = self.seal_until_signed(content, readings, Room::Usual)?;
        self.receipts_wait &= taken.is_none();
        Ok(taken)
    }

    /// The first record of a stream says which stream it takes the place of; if
    /// it is lost, another one does.
    fn start_stream(&mut self) -> Result<bool, Error> {
        if self.started.is_none() {
            let previous = self.spool.predecessor().map(|before| PreviousStream {
                stream: StreamId(before.stream.0),
                last: before.last_sequence,
            });
            let started = Report::DeviceEvent(DeviceEvent::StreamStarted { previous });
            let sequence =
                self.seal_until_signed(Content::Report(&started), &[], Room::Receipts)?;
            self.started = sequence.map(|sequence| sequence..=sequence);
        }
        Ok(self.started.is_some())
    }

    /// Tries until the key signs, and returns the record's number; `None`: there
    /// is no room for it. A key that is out for good, or stuck, is an error, and
    /// so is one that does not sign while the agent is to stop.
    fn seal_until_signed(
        &mut self,
        content: Content<'_>,
        readings: &[Reading],
        room: Room,
    ) -> Result<Option<u64>, Error> {
        let mut pause = Duration::from_millis(50);
        loop {
            let Self {
                sealer,
                key,
                clock,
                spool,
                ..
            } = self;
            // The clocks are read last, so that times rise with the numbers.
            let seal = |sequence| {
                sealer
                    .seal(&*key, &clock.now(), sequence, content)
                    .map(|e| e.to_bytes())
            };
            let outcome = match room {
                Room::Usual => spool.append_with(seal),
                Room::Receipts => spool.append_receipt_with(seal),
            };
            let waits = matches!(&outcome, Err(AppendError::Seal(_)));
            self.progress.waits_for_key.store(waits, Ordering::Relaxed);
            match outcome {
                Ok(sequence) => {
                    let stream = StreamId(spool.stream().0);
                    self.progress.tell(match content {
                        Content::Data { .. } => Event::Sealed {
                            stream,
                            sequence,
                            readings,
                        },
                        Content::Report(report) => Event::Reported {
                            stream,
                            sequence,
                            report,
                        },
                    });
                    return Ok(Some(sequence));
                }
                Err(AppendError::Spool(
                    zk_spool::Error::Full { .. } | zk_spool::Error::DiskFull { .. },
                )) => return Ok(None),
                Err(AppendError::Spool(error)) => return Err(error.into()),
                Err(AppendError::Seal(error)) if may_pass(&error) => {
                    let left = self.patience.get().map(|until| {
                        let left = until.saturating_duration_since(Instant::now());
                        (!left.is_zero()).then_some(left)
                    });
                    let wait = match left {
                        None => pause,
                        Some(Some(left)) => pause.min(left),
                        Some(None) => return Err(error.into()),
                    };
                    tracing::warn!(%error, "next try in {wait:?}");
                    std::thread::park_timeout(wait);
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                Err(AppendError::Seal(error)) => return Err(error.into()),
            }
        }
    }
}

/// Which room in the spool a record may take.
#[derive(Clone, Copy)]
enum Room {
    Usual,
    /// Kept free for loss receipts, so that a full spool can still say so.
    Receipts,
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

/// Which losses are named by receipts that lie in the spool.
///
/// A loss is confirmed when its receipt was delivered, and not before: a full
/// spool that drops its oldest records drops receipts too, and what these named
/// has to be named again. A process that starts knows of no receipt and names
/// all once more, which the audit takes for the same.
#[derive(Debug)]
struct Receipts {
    spool: Arc<Spool>,
    /// By the losses' ids, the receipts' numbers in the spool's present stream.
    named: BTreeMap<u64, u64>,
    /// How many receipts may wait at a time. In a small spool that drops its
    /// oldest records more of them would drive each other out, and all readings.
    most: usize,
}

impl Receipts {
    fn new(spool: &Arc<Spool>, cap: u64) -> Self {
        let most = usize::try_from(cap / 2 / RECEIPT).unwrap_or(usize::MAX);
        Self {
            spool: Arc::clone(spool),
            named: BTreeMap::new(),
            most: most.max(1),
        }
    }

    /// How many receipts are in the spool, not delivered yet.
    fn waiting(&self) -> Result<usize, Error> {
        let acked = self.spool.stats()?.acked;
        let done = acked.map_or(0, |(of, to)| if of == self.spool.stream() { to } else { 0 });
        let numbers: BTreeSet<_> = self.named.values().filter(|at| **at > done).collect();
        Ok(numbers.len())
    }

    /// Confirms what is delivered. Returns what no receipt in the spool names.
    fn unnamed(&mut self) -> Result<Vec<zk_spool::Loss>, Error> {
        let stream = self.spool.stream();
        // Asked first: what moved it by dropping records is among the losses.
        let acked = self.spool.stats()?.acked;
        let mut losses = self.spool.losses()?;
        for loss in &losses {
            if !self.named.contains_key(&loss.id) {
                self.named
                    .retain(|_, number| !takes(loss, stream, &(*number..=*number)));
            }
        }
        let delivered = |loss: &&zk_spool::Loss| {
            let number = self.named.get(&loss.id);
            number.is_some_and(|number| acked.is_some_and(|(of, to)| of == stream && *number <= to))
        };
        let last = losses.iter().take_while(delivered).last();
        if let Some(id) = last.map(|loss| loss.id) {
            self.spool.confirm(id)?;
            losses.retain(|loss| loss.id > id);
            self.named.retain(|named, _| *named > id);
        }
        losses.retain(|loss| !self.named.contains_key(&loss.id));
        Ok(losses)
    }
}

/// Whether a loss can have taken away the record at one of these numbers before
/// it was delivered. One that the cloud refused was delivered, in a way, and is
/// not sent again.
fn takes(loss: &zk_spool::Loss, stream: zk_spool::StreamId, numbers: &RangeInclusive<u64>) -> bool {
    let last = if loss.records == 0 {
        u64::MAX
    } else {
        loss.last
    };
    match loss.reason {
        zk_spool::Reason::Full | zk_spool::Reason::Refused => false,
        zk_spool::Reason::Damaged | zk_spool::Reason::Dropped => {
            loss.stream == stream && loss.first <= *numbers.end() && *numbers.start() <= last
        }
        // Of several, nobody knows which.
        _ => true,
    }
}

/// Whether two losses can be named as one, exactly.
fn continues(one: &zk_spool::Loss, next: &zk_spool::Loss) -> bool {
    use zk_spool::Reason::{Damaged, Dropped, Refused};
    matches!(one.reason, Damaged | Dropped | Refused)
        && (one.reason, one.stream) == (next.reason, next.stream)
        && one.records > 0
        && next.records > 0
        && one.last.checked_add(1) == Some(next.first)
}

/// What came in while the key signed shares the next record.
fn gather(first: Vec<Reading>, swept: &Receiver<Vec<Reading>>) -> Vec<Reading> {
    let mut readings = first;
    while readings.len() < READINGS_PER_RECORD {
        let Ok(mut more) = swept.try_recv() else {
            break;
        };
        readings.append(&mut more);
    }
    readings
}

/// Whether the same key may sign later, in this process.
fn may_pass(error: &zk_envelope::Error) -> bool {
    let zk_envelope::Error::Sign(error) = error else {
        return false;
    };
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<zk_hsm::Error>())
    {
        // Only another process can open it anew.
        Some(zk_hsm::Error::Wedged { elapsed, .. }) => *elapsed < STUCK,
        Some(error) => error.class() == Class::Transient,
        None => false,
    }
}

/// The receipt that tells the owner of a loss in a spool, whose present stream is
/// `stream`.
#[must_use]
pub fn receipt_of(loss: &zk_spool::Loss, stream: zk_spool::StreamId) -> LossReceipt {
    let (reason, stream) = match loss.reason {
        zk_spool::Reason::Damaged => (LossReason::Damaged, loss.stream),
        zk_spool::Reason::Dropped => (LossReason::Dropped, loss.stream),
        zk_spool::Reason::Refused => (LossReason::Refused, loss.stream),
        zk_spool::Reason::Full => (LossReason::Rejected, loss.stream),
        // The table of losses is damaged: nobody knows what stood in it. All
        // that the stream has is in doubt then, whatever the number.
        _ if loss.records == 0 => (LossReason::Damaged, stream),
        _ => (LossReason::Several, stream),
    };
    let numbered = !matches!(reason, LossReason::Rejected | LossReason::Several);
    let range = numbered.then(|| {
        let first = loss.first.max(1);
        SequenceRange {
            stream: StreamId(stream.0),
            first,
            last: loss.last.max(first),
        }
    });
    let records = match range {
        Some(_) if loss.records == 0 => 0,
        Some(range) => range.last - range.first + 1,
        None => loss.records,
    };
    let noticed_at = Timestamp::from_millis(loss.until_ms).unwrap_or(Timestamp::MAX);
    LossReceipt {
        reason,
        records,
        range,
        noticed_at,
    }
}

fn spool_options(config: &Config) -> zk_spool::Options {
    zk_spool::Options {
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
    }
}

/// Reads an owner's public key, as in [`Owners::files`](crate::Owners::files).
///
/// # Errors
/// [`Error::File`], [`Error::Pem`].
pub fn owner(path: &Path) -> Result<OwnerPublicKey, Error> {
    let pem = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    OwnerPublicKey::from_pem(&pem).map_err(|error| Error::Pem {
        path: path.into(),
        what: "owner's public key",
        detail: error.to_string(),
    })
}

/// Reads certificates in PEM, at least one, as in
/// [`Device::certificate`](crate::Device::certificate).
///
/// # Errors
/// [`Error::File`], [`Error::Pem`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = fs::read(path).map_err(|e| Error::file(path, e))?;
    let wrong = |detail: String| Error::Pem {
        path: path.into(),
        what: "certificate",
        detail,
    };
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| wrong(e.to_string()))?;
    if chain.is_empty() {
        Err(wrong("the file holds none".into()))
    } else {
        Ok(chain)
    }
}

/// Returns when the first certificate of `chain`, which was read from `path`,
/// expires, if it is the device's own. Logs a warning if that is soon, or past.
///
/// # Errors
/// [`Error::Pem`], [`Error::OtherDevice`].
pub fn check_certificate(
    path: &Path,
    chain: &[CertificateDer<'_>],
    device: &DeviceId,
) -> Result<SystemTime, Error> {
    let der = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let certificate = Certificate::from_der(der).map_err(|error| Error::Pem {
        path: path.into(),
        what: "certificate",
        detail: error.to_string(),
    })?;
    let certificate = certificate.tbs_certificate();
    let subject = certificate.subject();
    let names = subject.iter().filter(|part| part.oid == COMMON_NAME);
    let names = names.filter_map(|part| DirectoryString::try_from(&part.value).ok());
    let names: Vec<_> = names.map(|name| name.value().into_owned()).collect();
    if names != [device.as_str()] {
        return Err(Error::OtherDevice {
            path: path.into(),
            device: device.clone(),
            found: names.join(", "),
        });
    }
    let expires = certificate.validity().not_after.to_system_time();
    match expires.duration_since(SystemTime::now()) {
        Err(_) => tracing::warn!(
            path = %path.display(),
            "the device's certificate has expired: records wait in the spool until there is a new \
             one, from zk-setup device add"
        ),
        Ok(left) if left < SOON => tracing::warn!(
            path = %path.display(),
            days = left.as_secs() / (24 * 3600),
            "the device's certificate expires soon: zk-setup device add makes a new one"
        ),
        Ok(_) => {}
    }
    Ok(expires)
}

/// Reads trust roots in PEM, at least one, as in
/// [`Target::roots`](crate::Target::roots).
///
/// # Errors
/// [`Error::File`], [`Error::Pem`].
pub fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| Error::Pem {
            path: path.into(),
            what: "root certificate",
            detail: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// One of the agent's threads. Its end is an alarm, however it comes.
#[derive(Debug)]
struct Thread<T> {
    handle: JoinHandle<T>,
    /// Disconnected at its end.
    ended: Receiver<()>,
}

impl<T: Send + 'static> Thread<T> {
    fn spawn(
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

    fn wake(&self) {
        self.handle.thread().unpark();
    }

    /// What it came to; `None` if it has not ended by then, and is left alone.
    fn join_by(self, deadline: Instant) -> Result<Option<T>, Error> {
        let wait = deadline.saturating_duration_since(Instant::now());
        match self.ended.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => Ok(None),
            _ => self.handle.join().map(Some).map_err(|_| Error::ThreadEnded),
        }
    }
}

/// Called once, when a thread ends that should not.
struct Alarm(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Alarm {
    fn disarm(&self) -> Option<Box<dyn FnOnce() + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarm")
    }
}

/// Gives the alarm when it is dropped: at the end of a thread, also by a panic.
struct Bell(Arc<Alarm>);

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(failed) = self.0.disarm() {
            failed();
        }
    }
}

/// How often the log repeats why the sensors can't be read.
const SAID_AGAIN: Duration = Duration::from_secs(600);
/// When an expiring certificate is worth a warning.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// Sweeps that may wait for a key that does not sign; later ones are given up
/// and counted.
const SWEEPS_WAITING: usize = 256;
/// About 48 KiB of JSON.
const READINGS_PER_RECORD: usize = 480;
/// Bytes that a receipt takes in the spool, about.
const RECEIPT: u64 = 1024;
/// A key that is stuck for so long is given up: systemd starts the agent anew.
const STUCK: Duration = Duration::from_secs(60);
/// For deadlines that no clock can count to.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::sync::atomic::AtomicI64;

    use p256::ecdsa::signature::Error as SignatureError;
    use tempfile::TempDir;
    use zk_envelope::{ClockQuality, Envelope, Kind, OwnerKey};
    use zk_hsm::{Operation, create_soft_key};
    use zk_sensors::{SensorId, SimulatedBus};

    use super::*;

    /// A real key behind a chip that may refuse.
    struct Chip {
        key: Hsm,
        refuses: Box<dyn Fn() -> Option<zk_hsm::Error> + Send>,
    }

    impl Signer<Signature> for Chip {
        fn try_sign(&self, message: &[u8]) -> Result<Signature, SignatureError> {
            match (self.refuses)() {
                Some(error) => Err(SignatureError::from_source(error)),
                None => self.key.try_sign(message),
            }
        }
    }

    fn away() -> zk_hsm::Error {
        zk_hsm::Error::Unavailable {
            retry_in: Duration::from_secs(1),
            source: Box::new(zk_hsm::Error::Busy { waiting: 1 }),
        }
    }

    fn stuck(elapsed: Duration) -> zk_hsm::Error {
        zk_hsm::Error::Wedged {
            operation: Operation::Sign,
            elapsed,
        }
    }

    /// A device with a spool, two thermometers and an owner.
    struct Device {
        dir: TempDir,
        key: Hsm,
        owner: OwnerKey,
        cap: u64,
        spool: Arc<Spool>,
        progress: Arc<Progress>,
        patience: Arc<OnceLock<Instant>>,
        _bus: SimulatedBus,
    }

    impl Device {
        fn new(options: zk_spool::Options) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let key = create_soft_key(dir.path().join("key.pem")).unwrap();
            let sensors = ["28-0000000a0001", "28-0000000a0002"];
            let sensors: Vec<SensorId> = sensors.iter().map(|id| id.parse().unwrap()).collect();
            Self {
                key: Hsm::open(&key, zk_hsm::Options::default()).unwrap(),
                owner: OwnerKey::generate().unwrap(),
                cap: options.cap,
                spool: Arc::new(Spool::open(dir.path().join("spool"), options).unwrap()),
                progress: Arc::default(),
                patience: Arc::default(),
                _bus: SimulatedBus::create(dir.path().join("sys"), &sensors).unwrap(),
                dir,
            }
        }

        fn sealing(
            &self,
            clock: Clock,
            refuses: impl Fn() -> Option<zk_hsm::Error> + Send + 'static,
        ) -> Sealing<Chip> {
            let owners = [self.owner.public_key().clone()];
            let stream = StreamId(self.spool.stream().0);
            let device = "pi-01".parse().unwrap();
            Sealing {
                sealer: Sealer::new(device, stream, self.key.public_key(), &owners).unwrap(),
                key: Chip {
                    key: self.key.clone(),
                    refuses: Box::new(refuses),
                },
                spool: Arc::clone(&self.spool),
                clock,
                progress: Arc::clone(&self.progress),
                patience: Arc::clone(&self.patience),
                heartbeat: Duration::from_secs(3600),
                started: None,
                receipts: Receipts::new(&self.spool, self.cap),
                receipts_wait: false,
            }
        }

        fn bus(&self) -> W1Bus {
            W1Bus::new(self.dir.path().join("sys"))
        }

        /// What the owner finds in the spool: each record opened.
        fn records(&self) -> Vec<zk_envelope::Opened> {
            let records = self.spool.peek(usize::MAX, usize::MAX).unwrap();
            let open = |record: &zk_spool::Record| {
                let envelope = Envelope::from_bytes(record.bytes()).unwrap();
                let verified = envelope.verify(self.key.public_key()).unwrap();
                verified.open(&self.owner).unwrap()
            };
            records.iter().map(open).collect()
        }

        fn count(&self, counter: impl Fn(&Progress) -> &AtomicU64) -> u64 {
            counter(&self.progress).load(Ordering::Relaxed)
        }
    }

    /// Readings in these records, and readings that their receipts name.
    fn tally(records: &[zk_envelope::Opened]) -> (u64, u64) {
        let (mut kept, mut named) = (0, 0);
        for record in records {
            match record.report().unwrap() {
                Some(Report::LossReceipt(receipt)) => named += receipt.records,
                Some(_) => {}
                None => {
                    let batch: Readings = serde_json::from_slice(record.body()).unwrap();
                    kept += batch.readings.len() as u64;
                }
            }
        }
        (kept, named)
    }

    fn clock() -> Clock {
        Clock::new(SystemTime::now).unwrap()
    }

    #[test]
    fn a_key_that_does_not_sign_costs_readings_that_are_named_afterwards() {
        let device = Device::new(zk_spool::Options::default());
        let progress = Arc::clone(&device.progress);
        // Signs again when so much waited that readings had to be given up.
        let refuses = move || (progress.given_up.load(Ordering::Relaxed) < 10).then(away);
        let sealing = device.sealing(clock(), refuses);
        let (sweeps, swept) = sync_channel(SWEEPS_WAITING);
        let (stop, stopped) = channel();
        std::thread::scope(|scope| {
            let sealer = scope.spawn(move || sealing.run_to_the_end(&swept));
            let bus = device.bus();
            let progress = &device.progress;
            let sampler = scope.spawn(move || {
                sample(bus, Duration::ZERO, &stopped, &sweeps, progress);
            });
            while progress.sealed.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            drop(stop);
            sampler.join().unwrap();
            sealer.join().unwrap().unwrap();
        });
        let sampled = device.count(|progress| &progress.sampled);
        let given_up = device.count(|progress| &progress.given_up);
        assert!(given_up >= 10);
        assert_eq!(tally(&device.records()), (sampled - given_up, given_up));
    }

    #[test]
    fn what_a_full_spool_does_not_take_is_named_when_it_has_room() {
        let device = Device::new(zk_spool::Options {
            cap: 16 << 10,
            ..zk_spool::Options::default()
        });
        let mut sealing = device.sealing(clock(), || None);
        let sweep = || device.bus().read_all(SystemTime::now).unwrap();
        let mut sampled = 0;
        let mut offer = |sealing: &mut Sealing<Chip>| {
            let readings = sweep();
            sampled += readings.len() as u64;
            sealing.readings(readings).unwrap();
            sealing.receipts().unwrap();
        };
        // Until there is no room for receipts either, and on.
        while !sealing.receipts_wait {
            offer(&mut sealing);
        }
        for _ in 0..20 {
            offer(&mut sealing);
        }
        let before = device.records();
        let newest = device.spool.peek(usize::MAX, usize::MAX).unwrap();
        device.spool.ack(newest.last().unwrap().position()).unwrap();
        for _ in 0..3 {
            offer(&mut sealing);
        }
        let (kept, named) = tally(&before);
        let (kept_after, named_after) = tally(&device.records());
        let lost = sampled - kept - kept_after;
        let given_up = device.count(|progress| &progress.given_up);
        assert!(lost > 40);
        assert_eq!(given_up, lost);
        // One more: the receipt that found no room is counted by the spool too.
        assert_eq!(named + named_after, lost + 1);
    }

    /// A device whose full spool drops the oldest records, in an outage so long
    /// that nothing is left of the first ones and of the receipts for them.
    fn after_an_outage() -> (Device, Sealing<Chip>) {
        let device = Device::new(zk_spool::Options {
            cap: 16 << 10,
            full: zk_spool::Full::DropOldest,
            ..zk_spool::Options::default()
        });
        let mut sealing = device.sealing(clock(), || None);
        for _ in 0..60 {
            let sweep = device.bus().read_all(SystemTime::now).unwrap();
            sealing.readings(sweep).unwrap();
            sealing.receipts().unwrap();
        }
        (device, sealing)
    }

    /// The numbers that are there, and those that receipts name.
    fn numbers(records: &[zk_envelope::Opened]) -> (Vec<u64>, Vec<u64>) {
        let there = records.iter().map(|record| record.header().sequence);
        let mut named: Vec<u64> = reports(records)
            .filter_map(|report| match report {
                Report::LossReceipt(receipt) => receipt.range,
                _ => None,
            })
            .flat_map(|range| range.first..=range.last)
            .collect();
        named.sort_unstable();
        named.dedup();
        (there.collect(), named)
    }

    fn reports(records: &[zk_envelope::Opened]) -> impl Iterator<Item = Report> {
        records.iter().filter_map(|record| record.report().unwrap())
    }

    #[test]
    fn what_a_dropped_receipt_named_is_named_again() {
        let (device, _sealing) = after_an_outage();
        let (there, named) = numbers(&device.records());
        let (first, last) = (there[0], there[there.len() - 1]);
        assert!(first > 30, "{there:?}");
        assert_eq!(there, (first..=last).collect::<Vec<_>>());
        assert_eq!(named, (1..first).collect::<Vec<_>>());
    }

    #[test]
    fn a_loss_is_confirmed_when_its_receipt_is_delivered() {
        let (device, _sealing) = after_an_outage();
        let before = numbers(&device.records()).0;
        // A process that starts does not know of the receipts, and names all.
        let mut sealing = device.sealing(clock(), || None);
        sealing.receipts().unwrap();
        let mut records = device.records();
        records.retain(|record| !before.contains(&record.header().sequence));
        let (_, named) = numbers(&records);
        assert_eq!(named[..10], (1..=10).collect::<Vec<_>>());

        // These receipts have driven out others, whose losses are named in a
        // further turn.
        for _ in 0..2 {
            if let Some(newest) = device.spool.peek(usize::MAX, usize::MAX).unwrap().last() {
                assert_ne!(device.spool.losses().unwrap(), []);
                device.spool.ack(newest.position()).unwrap();
            }
            sealing.receipts().unwrap();
        }
        assert_eq!(device.spool.losses().unwrap(), []);
        assert_eq!(device.records().len(), 0, "nothing is left to name");
    }

    /// So many losses apart from each other that their receipts do not fit into
    /// the spool at once.
    #[test]
    fn receipts_leave_room_for_readings_and_come_in_turns() {
        let device = Device::new(zk_spool::Options {
            cap: 16 << 10,
            full: zk_spool::Full::DropOldest,
            ..zk_spool::Options::default()
        });
        let sweep = || device.bus().read_all(SystemTime::now).unwrap();
        let oldest = || device.spool.peek(1, usize::MAX).unwrap()[0].position();
        let mut sealing = device.sealing(clock(), || None);
        sealing.readings(sweep()).unwrap();
        device.spool.ack(oldest()).unwrap();
        for _ in 0..60 {
            device.spool.reject(oldest()).unwrap();
            sealing.readings([sweep(), sweep()].concat()).unwrap();
            device.spool.ack(oldest()).unwrap();
            sealing.readings(sweep()).unwrap();
        }
        let losses = device.spool.losses().unwrap();
        assert_eq!(losses.len(), 60);

        // No link: the spool is full of what is newest.
        for _ in 0..40 {
            sealing.readings(sweep()).unwrap();
            sealing.receipts().unwrap();
        }
        let records = device.records();
        let (all, receipts) = (records.len(), reports(&records).count());
        assert!(0 < receipts && receipts + 1 < all, "{receipts} of {all}");

        // A link again: each of them is named, and that comes to an end.
        let mut named = Vec::new();
        let mut turns = 0;
        while !device.spool.losses().unwrap().is_empty() {
            turns += 1;
            assert!(turns <= 60, "{:?}", device.spool.losses());
            named.extend(numbers(&device.records()).1);
            if let Some(newest) = device.spool.peek(usize::MAX, usize::MAX).unwrap().last() {
                device.spool.ack(newest.position()).unwrap();
            }
            sealing.receipts().unwrap();
        }
        for loss in losses {
            assert!(named.contains(&loss.first), "{loss:?} in {named:?}");
        }
    }

    #[test]
    fn losses_that_continue_each_other_share_a_receipt() {
        let device = Device::new(zk_spool::Options::default());
        let mut sealing = device.sealing(clock(), || None);
        for _ in 0..3 {
            let sweep = device.bus().read_all(SystemTime::now).unwrap();
            sealing.readings(sweep).unwrap();
        }
        for record in device.spool.peek(3, usize::MAX).unwrap() {
            device.spool.reject(record.position()).unwrap();
            device.spool.losses().unwrap();
        }
        assert_eq!(device.spool.losses().unwrap().len(), 3);
        sealing.receipts().unwrap();
        let records = device.records();
        let receipts: Vec<_> = reports(&records)
            .filter_map(|report| match report {
                Report::LossReceipt(receipt) => receipt.range,
                _ => None,
            })
            .map(|range| (range.first, range.last))
            .collect();
        assert_eq!(receipts, [(1, 3)]);
    }

    #[test]
    fn how_a_stream_began_is_said_again_when_it_is_dropped() {
        let (device, _sealing) = after_an_outage();
        let started = |report: &Report| matches!(report, Report::DeviceEvent(_));
        let records = device.records();
        assert!(numbers(&records).0[0] > 1);
        assert_eq!(reports(&records).filter(started).count(), 1);
    }

    /// The spool's table of losses is gone: how many stood in it, nobody knows.
    #[test]
    fn losses_of_unknown_number_are_named_as_such() {
        let (device, sealing) = after_an_outage();
        drop(sealing);
        let Device {
            dir,
            key,
            owner,
            cap,
            ..
        } = device;
        let place = dir.path().join("spool");
        drop(device.spool);
        fs::write(place.join("state"), [0; 64]).unwrap();
        let device = Device {
            spool: Arc::new(Spool::open(&place, zk_spool::Options::default()).unwrap()),
            dir,
            key,
            owner,
            cap,
            progress: Arc::default(),
            patience: Arc::default(),
            _bus: device._bus,
        };
        device.sealing(clock(), || None).receipts().unwrap();
        let records = device.records();
        let unknown = reports(&records).find_map(|report| match report {
            Report::LossReceipt(receipt) if receipt.records == 0 => Some(receipt),
            _ => None,
        });
        let unknown = unknown.unwrap();
        assert_eq!(unknown.reason, LossReason::Damaged);
        let stream = StreamId(device.spool.stream().0);
        let range = unknown.range.map(|range| (range.stream, range.first));
        assert_eq!(range, Some((stream, 1)));
    }

    #[test]
    fn a_sweep_of_many_sensors_makes_several_records() {
        let device = Device::new(zk_spool::Options::default());
        let mut sealing = device.sealing(clock(), || None);
        let sweep = device.bus().read_all(SystemTime::now).unwrap();
        let readings: Vec<_> = sweep.into_iter().cycle().take(5000).collect();
        sealing.readings(readings).unwrap();
        assert_eq!(tally(&device.records()), (5000, 0));
    }

    #[test]
    fn a_key_that_stays_stuck_ends_the_agent() {
        let device = Device::new(zk_spool::Options::default());
        let elapsed = AtomicU64::new(58);
        let refuses = move || {
            let seconds = elapsed.fetch_add(1, Ordering::Relaxed);
            Some(stuck(Duration::from_secs(seconds)))
        };
        let sealing = device.sealing(clock(), refuses);
        let (_sweeps, swept) = sync_channel(1);
        let error = sealing.run_to_the_end(&swept).unwrap_err();
        assert!(may_pass(&zk_envelope::Error::Sign(
            SignatureError::from_source(stuck(Duration::ZERO))
        )));
        assert!(matches!(error, Error::Envelope(_)), "{error}");
    }

    #[test]
    fn told_to_stop_it_does_not_wait_for_a_key_that_does_not_sign() {
        let device = Device::new(zk_spool::Options::default());
        let sealing = device.sealing(clock(), || Some(away()));
        let (sweeps, swept) = sync_channel(1);
        let sweep = device.bus().read_all(SystemTime::now).unwrap();
        sweeps.send(sweep).unwrap();
        device.patience.set(Instant::now()).unwrap();
        let error = sealing.run_to_the_end(&swept).unwrap_err();
        assert!(matches!(error, Error::Envelope(_)), "{error}");
        assert_eq!(device.count(|progress| &progress.given_up), 2);
    }

    #[test]
    fn a_thread_that_panics_is_an_alarm() {
        let (rung, rings) = channel();
        let alarm = Arc::new(Alarm(Mutex::new(Some(Box::new(move || {
            rung.send(()).unwrap();
        })))));
        let thread = Thread::<()>::spawn("test", &alarm, || panic!("as the test wants it"));
        rings.recv().unwrap();
        let ended = thread.unwrap().join_by(Instant::now() + FOREVER);
        assert!(matches!(ended, Err(Error::ThreadEnded)), "{ended:?}");
    }

    #[test]
    fn a_thread_that_hangs_is_left_behind() {
        let alarm = Arc::new(Alarm(Mutex::new(None)));
        let (_hold, held) = channel::<()>();
        let thread = Thread::spawn("test", &alarm, move || held.recv());
        assert!(thread.unwrap().join_by(Instant::now()).unwrap().is_none());
    }

    /// Kinds, and the clocks, of what a device makes while its clock is set
    /// from one moment to another between two sweeps.
    fn anchors(steps_ms: &[i64]) -> Vec<zk_envelope::Opened> {
        let device = Device::new(zk_spool::Options::default());
        let start = i64::try_from(Y2020_MS).unwrap() - 60_000;
        let wall = Arc::new(AtomicI64::new(start));
        let hand = Arc::clone(&wall);
        let begun = Instant::now();
        // Runs as fast as the monotonic clock.
        let clock = Clock::new(move || {
            let ms = hand.load(Ordering::Relaxed).unsigned_abs();
            SystemTime::UNIX_EPOCH + Duration::from_millis(ms) + begun.elapsed()
        });
        let mut sealing = device.sealing(clock.unwrap(), || None);
        for step in steps_ms {
            wall.fetch_add(*step, Ordering::Relaxed);
            let sweep = device.bus().read_all(SystemTime::now).unwrap();
            sealing.readings(sweep).unwrap();
        }
        device.records()
    }

    #[test]
    fn when_the_clock_is_set_an_anchor_says_what_it_said_before() {
        let kinds = |records: &[zk_envelope::Opened]| -> Vec<Kind> {
            records.iter().map(|record| record.header().kind).collect()
        };
        let start = Kind::DeviceEvent;
        // Forward over 2020, and back again; a wobble is none.
        let hour = 3_600_000;
        let records = anchors(&[0, hour, 500, -500, -hour]);
        assert_eq!(
            kinds(&records),
            [
                start,
                Kind::Data,
                Kind::TimeAnchor,
                Kind::Data,
                Kind::Data,
                Kind::Data,
                Kind::TimeAnchor,
                Kind::Data
            ]
        );
        let anchor = |at: usize| match records[at].report().unwrap() {
            Some(Report::TimeAnchor(anchor)) => (anchor, records[at].header().time),
            other => panic!("{other:?}"),
        };
        let apart = |a: Timestamp, b: Timestamp| a.as_millis().abs_diff(b.as_millis());
        let (set, now) = anchor(2);
        assert_eq!(set.clock_before, ClockQuality::Unknown);
        // The old clock goes on to this very moment, so the step is all between.
        assert!(apart(now, set.time_before).abs_diff(3_600_000) < 1000);
        assert!(set.time_before < now);
        assert_ne!(records[2].header().clock, ClockQuality::Unknown);
        let (back, now) = anchor(6);
        assert_ne!(back.clock_before, ClockQuality::Unknown);
        assert!(back.time_before > now);
        assert_eq!(records[6].header().clock, ClockQuality::Unknown);
        // What a slewed clock gains in small steps is no step.
        let slewed = anchors(&[0, 900, 900, 900, 900]);
        assert!(!kinds(&slewed).contains(&Kind::TimeAnchor));
    }

    /// The step is not forgotten with the anchor that found no room.
    #[test]
    fn an_anchor_that_a_full_spool_does_not_take_comes_later() {
        let device = Device::new(zk_spool::Options {
            cap: 16 << 10,
            ..zk_spool::Options::default()
        });
        let ahead = Arc::new(AtomicU64::new(0));
        let hand = Arc::clone(&ahead);
        let clock = Clock::new(move || {
            SystemTime::now() + Duration::from_secs(hand.load(Ordering::Relaxed))
        });
        let mut sealing = device.sealing(clock.unwrap(), || None);
        let sweep = || device.bus().read_all(SystemTime::now).unwrap();
        while device.count(|progress| &progress.given_up) == 0 {
            sealing.readings(sweep()).unwrap();
        }
        ahead.store(3600, Ordering::Relaxed);
        sealing.readings(sweep()).unwrap();
        let newest = device.spool.peek(usize::MAX, usize::MAX).unwrap();
        device.spool.ack(newest.last().unwrap().position()).unwrap();
        sealing.readings(sweep()).unwrap();
        let kinds: Vec<_> = device.records().iter().map(|r| r.header().kind).collect();
        assert_eq!(kinds, [Kind::TimeAnchor, Kind::Data]);
    }
}
