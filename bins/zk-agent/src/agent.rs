//! The way of a reading on the device: sampled, sealed, spooled, published.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel,
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zk_envelope::{
    Content, DeviceEvent, LossReason, LossReceipt, OwnerPublicKey, PreviousStream, Report, Sealer,
    SequenceRange, StreamId, Timestamp,
};
use zk_hsm::{Class, Hsm, HsmUri};
use zk_publish::Publisher;
use zk_sensors::{Quality, Reading, Readings, W1Bus};
use zk_spool::{AppendError, Spool, SyncPolicy};

use crate::Error;
use crate::clock::{Clock, Y2020_MS};
use crate::config::{Config, Full, Sync, unsigned};

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
    sampler: JoinHandle<()>,
    sealer: JoinHandle<Result<(), Error>>,
    publisher: Publisher,
    spool: Arc<Spool>,
    hsm: Hsm,
    progress: Arc<Progress>,
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
    /// The spool.
    pub spool: zk_spool::Stats,
    /// The publisher.
    pub publisher: zk_publish::Status,
    /// The device's key.
    pub hsm: zk_hsm::Counters,
}

#[derive(Debug, Default)]
struct Progress {
    sampled: AtomicU64,
    sealed: AtomicU64,
    /// Not sampled or not sealed, and not yet named in a loss receipt.
    unsealed: AtomicU64,
    given_up: AtomicU64,
    sensors: AtomicU64,
}

impl Agent {
    /// Checks everything that can be checked, then starts to sample.
    ///
    /// `failed` is called once, from another thread, if the agent cannot go on
    /// sealing: call [`Agent::stop`] then, which returns the error.
    ///
    /// # Errors
    /// Whatever keeps the agent from starting: key, certificate (also one that
    /// does not fit the key), owners, spool, target.
    pub fn start(config: &Config, failed: impl FnOnce() + Send + 'static) -> Result<Self, Error> {
        let uri: HsmUri = config.device.hsm.parse()?;
        let hsm_error = |source: zk_hsm::Error| Error::Hsm {
            uri: config.device.hsm.clone(),
            source: Box::new(source),
        };
        let hsm = Hsm::open(&uri, zk_hsm::Options::default()).map_err(hsm_error)?;
        let chain = certificates(&config.device.certificate)?;
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
        let clock = Clock::new()?;
        if clock.now().time.as_millis() < Y2020_MS {
            tracing::warn!(
                now = %clock.now().time,
                "the clock was never set: records wait in the spool until it is, because no \
                 certificate is valid yet; is time synchronisation running?"
            );
        }

        let publisher = Publisher::spawn(
            Arc::clone(&spool),
            target,
            tls,
            zk_publish::Options::default(),
            |records: &[&[u8]], limit| zk_envelope::pack(records, limit),
        )
        .map_err(Error::Thread)?;

        let progress = Arc::new(Progress::default());
        let (sweeps, swept) = sync_channel(SWEEPS_WAITING);
        let (stop, stopped) = channel();
        let interval = unsigned(config.sensors.interval);
        let bus = W1Bus::new(&config.sensors.root);
        let sampler = {
            let progress = Arc::clone(&progress);
            thread("sampler", move || {
                sample(bus, interval, &stopped, &sweeps, &progress);
            })?
        };
        let sealing = Sealing {
            sealer,
            hsm: hsm.clone(),
            spool: Arc::clone(&spool),
            clock,
            progress: Arc::clone(&progress),
            heartbeat: unsigned(config.heartbeat.interval),
        };
        let sealer = thread("sealer", move || {
            let outcome = sealing.run(&swept);
            if let Err(error) = &outcome {
                tracing::error!(%error, "the agent stops");
                failed();
            }
            outcome
        })?;
        tracing::info!(
            device = %config.device.id, key = %uri, %stream, endpoint = %config.target.endpoint,
            "started"
        );
        Ok(Self {
            stop,
            sampler,
            sealer,
            publisher,
            spool,
            hsm,
            progress,
        })
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// [`Error::Spool`] if the spool has failed.
    pub fn status(&self) -> Result<Status, Error> {
        status(
            &self.progress,
            &self.spool,
            self.publisher.status(),
            &self.hsm,
        )
    }

    /// Tells the publisher that the link is back, so that it does not wait for
    /// the end of its backoff.
    pub fn link_returned(&self) {
        self.publisher.link_returned();
    }

    /// Stops sampling, seals what was read, goes on publishing for at most
    /// `grace`, and leaves the spool synced.
    ///
    /// # Errors
    /// What made the agent fail, if it had.
    pub fn stop(self, grace: Duration) -> Result<Status, Error> {
        drop(self.stop);
        self.sampler.join().map_err(|_| Error::ThreadEnded)?;
        let outcome = self.sealer.join().map_err(|_| Error::ThreadEnded)?;
        let publisher = self.publisher.stop(grace);
        self.spool.sync()?;
        outcome?;
        status(&self.progress, &self.spool, publisher, &self.hsm)
    }
}

fn status(
    progress: &Progress,
    spool: &Spool,
    publisher: zk_publish::Status,
    hsm: &Hsm,
) -> Result<Status, Error> {
    Ok(Status {
        sampled: progress.sampled.load(Ordering::Relaxed),
        sealed: progress.sealed.load(Ordering::Relaxed),
        given_up: progress.given_up.load(Ordering::Relaxed),
        spool: spool.stats()?,
        publisher,
        hsm: hsm.counters(),
    })
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
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        if !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
            return;
        }
        // A sweep that takes longer than the interval delays the next one; it
        // does not make up for it afterwards.
        next = (next + interval).max(Instant::now());
        let readings = match bus.read_all(SystemTime::now) {
            Ok(readings) => readings,
            Err(error) => {
                tracing::warn!(%error, "cannot read the sensors; next try in {interval:?}");
                continue;
            }
        };
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
            Err(TrySendError::Full(_)) => progress.give_up(count),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Everything that it takes to make records of readings.
struct Sealing {
    sealer: Sealer,
    hsm: Hsm,
    spool: Arc<Spool>,
    clock: Clock,
    progress: Arc<Progress>,
    heartbeat: Duration,
}

impl Sealing {
    fn run(mut self, swept: &Receiver<Vec<Reading>>) -> Result<(), Error> {
        self.start_stream()?;
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
                    self.receipts()?;
                    return Ok(self.spool.sync()?);
                }
            }
        }
    }

    /// The first record of a stream says which stream it takes the place of.
    fn start_stream(&mut self) -> Result<(), Error> {
        if self.spool.stats()?.next_sequence != 1 {
            return Ok(());
        }
        let previous = self.spool.predecessor().map(|before| PreviousStream {
            stream: StreamId(before.stream.0),
            last: before.last_sequence,
        });
        self.append(&Report::DeviceEvent(DeviceEvent::StreamStarted {
            previous,
        }))
    }

    fn beat(&mut self) -> Result<(), Error> {
        let stats = self.spool.stats()?;
        self.append(&Report::Heartbeat(zk_envelope::Heartbeat {
            interval_ms: self.heartbeat.as_millis().try_into().unwrap_or(u64::MAX),
            waiting: stats.records,
            waiting_bytes: stats.bytes,
            sensors: self.progress.sensors.load(Ordering::Relaxed),
        }))
    }

    /// Names what was lost, in records that nobody can change.
    fn receipts(&mut self) -> Result<(), Error> {
        for loss in self.spool.losses()? {
            let receipt = receipt_of(&loss);
            tracing::warn!(reason = ?loss.reason, records = receipt.records, "records are lost");
            let report = Report::LossReceipt(receipt);
            self.seal_until_signed(Content::Report(&report), Room::Receipts)?;
            self.spool.sync()?;
            self.spool.confirm(loss.id)?;
        }
        let given_up = self.progress.unsealed.swap(0, Ordering::Relaxed);
        if given_up > 0 {
            tracing::warn!(
                readings = given_up,
                "readings are lost: the key did not sign in time"
            );
            self.append(&Report::LossReceipt(LossReceipt {
                reason: LossReason::Rejected,
                records: given_up,
                range: None,
                noticed_at: self.clock.now().time,
            }))?;
        }
        Ok(())
    }

    fn readings(&mut self, readings: Vec<Reading>) -> Result<(), Error> {
        let count = readings.len() as u64;
        let Ok(body) = serde_json::to_vec(&Readings { readings }) else {
            return Err(Error::ThreadEnded);
        };
        let content = Content::Data {
            content_type: "application/json",
            body: &body,
        };
        if self.seal(content)? {
            self.progress.sealed.fetch_add(count, Ordering::Relaxed);
        } else {
            // The spool is full and has counted it.
            self.progress.given_up.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    fn append(&mut self, report: &Report) -> Result<(), Error> {
        self.seal(Content::Report(report)).map(drop)
    }

    /// A record, and before it an anchor if the clock was set. `false`: the
    /// spool is full.
    fn seal(&mut self, content: Content<'_>) -> Result<bool, Error> {
        if let Some(anchor) = self.clock.anchor(&self.clock.now()) {
            tracing::info!(?anchor, "the clock was set");
            self.seal_until_signed(Content::Report(&anchor), Room::Usual)?;
        }
        self.seal_until_signed(content, Room::Usual)
    }

    /// Tries until the key signs; a key that is out for good is an error.
    fn seal_until_signed(&mut self, content: Content<'_>, room: Room) -> Result<bool, Error> {
        let mut pause = Duration::from_millis(50);
        loop {
            let Self {
                sealer,
                hsm,
                clock,
                spool,
                ..
            } = self;
            // The clocks are read last, so that times rise with the numbers.
            let seal = |sequence| {
                sealer
                    .seal(&*hsm, &clock.now(), sequence, content)
                    .map(|e| e.to_bytes())
            };
            let outcome = match room {
                Room::Usual => spool.append_with(seal),
                Room::Receipts => spool.append_receipt_with(seal),
            };
            match outcome {
                Ok(_) => return Ok(true),
                Err(AppendError::Spool(zk_spool::Error::Full { .. })) => return Ok(false),
                Err(AppendError::Spool(error)) => return Err(error.into()),
                Err(AppendError::Seal(error)) if is_transient(&error) => {
                    tracing::warn!(%error, "next try in {pause:?}");
                    std::thread::park_timeout(pause);
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
    fn give_up(&self, readings: u64) {
        self.unsealed.fetch_add(readings, Ordering::Relaxed);
        self.given_up.fetch_add(readings, Ordering::Relaxed);
    }
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

fn is_transient(error: &zk_envelope::Error) -> bool {
    let zk_envelope::Error::Sign(error) = error else {
        return false;
    };
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<zk_hsm::Error>())
        .is_some_and(|error| error.class() == Class::Transient)
}

fn receipt_of(loss: &zk_spool::Loss) -> LossReceipt {
    let reason = match loss.reason {
        zk_spool::Reason::Damaged => LossReason::Damaged,
        zk_spool::Reason::Dropped => LossReason::Dropped,
        zk_spool::Reason::Refused => LossReason::Refused,
        zk_spool::Reason::Full => LossReason::Rejected,
        _ => LossReason::Several,
    };
    let numbered = !matches!(reason, LossReason::Rejected | LossReason::Several);
    let range = numbered.then(|| {
        let first = loss.first.max(1);
        SequenceRange {
            stream: StreamId(loss.stream.0),
            first,
            last: loss.last.max(first),
        }
    });
    let records = match range {
        Some(_) if loss.records == 0 => 0,
        Some(range) => range.last - range.first + 1,
        None => loss.records.max(1),
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
            Sync::Each => SyncPolicy::Each,
            Sync::Every(window) => SyncPolicy::Every(unsigned(window)),
        },
        cap: config.spool.cap.as_u64(),
        full: match config.spool.full {
            Full::Reject => zk_spool::Full::Reject,
            Full::DropOldest => zk_spool::Full::DropOldest,
        },
        ..zk_spool::Options::default()
    }
}

fn owner(path: &Path) -> Result<OwnerPublicKey, Error> {
    let pem = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    OwnerPublicKey::from_pem(&pem).map_err(|error| Error::Pem {
        path: path.into(),
        what: "owner's public key",
        detail: error.to_string(),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
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

fn roots(path: &Path) -> Result<RootCertStore, Error> {
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

fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Error> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(Error::Thread)
}

/// Sweeps that may wait for a key that does not sign; later ones are given up
/// and counted.
const SWEEPS_WAITING: usize = 256;
/// About 48 KiB of JSON.
const READINGS_PER_RECORD: usize = 480;
