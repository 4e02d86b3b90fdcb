//! The way of a reading on the device: sampled, sealed, spooled, published.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ClientConfig;
use zk_envelope::{ClockQuality, Envelope, OwnerPublicKey, Sealer, StreamId, Timestamp};
use zk_hsm::{Hsm, HsmUri};
use zk_publish::Publisher;
use zk_spool::{Spool, SyncPolicy};

use self::inbox::Inbox;
use self::module::{Measured, Module};
use self::progress::{Observer, Progress};
use self::sampling::sample;
use self::sealing::{MAX_BODY, Receipts, Sealing};
use self::threads::{Alarm, Bell, Thread};
use self::watch::Parts;
use crate::Error;
use crate::clock::{Clock, Y2020_MS};
use crate::config::{self, Config, Full, unsigned};
use crate::files::{Expires, Reminder, certificates, check_certificate, owner, roots};
use crate::socket::Socket;

mod inbox;
mod module;
mod progress;
mod pulse;
mod sampling;
mod sealing;
#[cfg(test)]
mod tests;
mod threads;
mod watch;

pub use self::progress::Event;
pub use self::sealing::receipt_of;
pub use self::watch::{Status, Watch};

/// A running agent.
///
/// Three threads: one reads the sensors at each interval, one seals what was
/// read and appends it to the spool, one (the publisher's) takes the oldest
/// records from the spool to the target. They meet only in a bounded inbox
/// and in the spool. Besides, one asks the key's module now and then what it
/// measures.
#[derive(Debug)]
pub struct Agent {
    /// Takes another interval and other offsets for the sampler; dropped to stop it.
    stop: Sender<config::Sensors>,
    /// Dropped to stop whoever asks the key's module what it measures.
    _asked: Sender<()>,
    inbox: Arc<Inbox>,
    socket: Option<Socket>,
    /// What holds now.
    config: Mutex<Config>,
    /// Those that records are encrypted for.
    owners: Vec<OwnerPublicKey>,
    sampler: Thread<()>,
    sealer: Thread<Result<Receipts, Error>>,
    /// Until when the sealer may try, once the agent is to stop. What it has not
    /// sealed by then it gives up.
    patience: Arc<OnceLock<Instant>>,
    alarm: Arc<Alarm>,
    watch: Watch,
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
            .map_err(|(key, detail)| Error::Setting { key, detail })?;
        let uri: HsmUri = config.device.hsm.parse()?;
        let hsm = Hsm::open(&uri, zk_hsm::Options::default())
            .map_err(|source| Error::hsm(&config.device.hsm, source))?;
        let (tls, expires) = identity(&hsm, config, &config.device)?;
        let certificate_expires = Expires::new(expires);
        let target = target(config)?;

        let spool = Arc::new(Spool::open(&config.spool.dir, spool_options(config)?)?);
        check_owner_of(&spool, config)?;
        let owners = owners(config)?;
        let stream = StreamId(spool.stream().0);
        let sealer = Sealer::new(config.device.id.clone(), stream, hsm.public_key(), &owners)
            .map_err(|error| Error::owners(&error))?;
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
        let sampler = {
            let (inbox, progress) = (Arc::clone(&inbox), Arc::clone(&progress));
            let sensors = config.sensors.clone();
            Thread::spawn("sampler", &alarm, move || {
                sample(&sensors, &stopped, &inbox, &progress);
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
            anchored: None,
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
            owners,
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
    /// certificate and roots, which are read anew in any case, the intervals of sensors
    /// and heartbeat, and the sensors' offsets. Returns the keys that have changed
    /// otherwise, or that name a file which has: for them it has to be started anew.
    ///
    /// # Errors
    /// As [`start`](Self::start), for all that is read without disturbing what runs.
    /// Everything stays as it is then.
    pub fn reload(&self, config: &Config) -> Result<Vec<String>, Error> {
        config
            .check()
            .map_err(|(key, detail)| Error::Setting { key, detail })?;
        // The next start will want them.
        let _: HsmUri = config.device.hsm.parse()?;
        target(config)?;
        let owners = owners(config)?;
        let parts = &*self.watch.0;
        let mut held = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        // Its own name is that of this process's device, whatever the file says now.
        let identity = identity(&parts.hsm, config, &held.device);
        let (tls, expires) = identity.map_err(|error| match error {
            Error::OtherDevice { .. } if config.device.id != held.device.id => Error::Setting {
                key: "device.id",
                detail: format!(
                    "is {} now, and this process is {}: start the agent anew",
                    config.device.id, held.device.id
                ),
            },
            error => error,
        })?;
        parts.publisher.set_tls(tls);
        parts.certificate_expires.set(expires);
        // The sampler may be stuck, but it has not ended, or somebody was told.
        let _ = self.stop.send(config.sensors.clone());
        self.inbox
            .set_heartbeat(unsigned(config.heartbeat.interval));

        held.device
            .certificate
            .clone_from(&config.device.certificate);
        held.target.roots.clone_from(&config.target.roots);
        held.sensors.interval = config.sensors.interval;
        held.sensors.offsets.clone_from(&config.sensors.offsets);
        held.heartbeat = config.heartbeat.clone();
        held.log.filter.clone_from(&config.log.filter);
        let mut changed = held.changed(config)?;
        let key = "owners.files";
        if owners != self.owners && changed.iter().all(|changed| changed != key) {
            changed.push(key.to_owned());
        }
        Ok(changed)
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
        let left = deadline.saturating_duration_since(Instant::now());
        // Nobody sets it but this, which runs once.
        let _ = self.patience.set(deadline - COUNTING.min(left / 4));
        self.sealer.wake();
        let sealer = self.sealer.join_by(deadline);
        let grace = deadline.saturating_duration_since(Instant::now());
        self.watch.0.publisher.stop(grace);
        // Who waited for what became of data has heard it.
        drop(self.socket);
        self.watch.0.spool.sync()?;
        sampler?;
        let Some(outcome) = sealer? else {
            return self.watch.abandon_sealer();
        };
        // What the publisher has delivered since need not be named again.
        outcome?.unnamed()?;
        self.watch.status()
    }
}

impl Watch {
    /// The sealer is left behind in a call to the key that does not end: what it has
    /// not sealed is counted in its place, so that the next start can name it.
    fn abandon_sealer(&self) -> Result<Status, Error> {
        let Parts {
            spool, progress, ..
        } = &*self.0;
        progress.abandoned.store(true, Ordering::SeqCst);
        let status = self.status()?;
        let done = status.sealed.saturating_add(status.given_up);
        let readings = status.sampled.saturating_sub(done);
        let uncounted = progress.uncounted.swap(0, Ordering::Relaxed);
        let lost = readings.saturating_add(uncounted);
        if lost > 0 {
            spool.refuse(lost)?;
            spool.sync()?;
        }
        match readings {
            0 => Ok(status),
            readings => Err(Error::Unsealed { readings }),
        }
    }
}

pub(crate) fn target(config: &Config) -> Result<zk_publish::Target, Error> {
    let topic = format!("Zymkey/{}", config.device.id);
    Ok(zk_publish::Target::new(&config.target.endpoint, &topic)?)
}

pub(crate) fn owners(config: &Config) -> Result<Vec<OwnerPublicKey>, Error> {
    config.owners.files.iter().map(|file| owner(file)).collect()
}

/// What `device` shows to servers and whom it takes for one, and until when.
fn identity(
    hsm: &Hsm,
    config: &Config,
    device: &config::Device,
) -> Result<(Arc<ClientConfig>, SystemTime), Error> {
    let chain = certificates(&config.device.certificate)?;
    let expires = check_certificate(&config.device.certificate, &chain, &device.id)?;
    let tls = hsm.client_config(chain, roots(&config.target.roots)?, &[]);
    let tls = tls.map_err(|source| Error::hsm(&device.hsm, source))?;
    Ok((tls, expires))
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
            return Err(Error::Setting {
                key: "spool.engine",
                detail: "is \"sled\", and this program was built without it: build it with \
                         --features sled, or give \"log\" and another spool.dir"
                    .to_owned(),
            });
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

/// Readings that may wait for a key that does not sign, about 1 MiB; later ones
/// are given up and counted.
const READINGS_WAITING: usize = 16_384;
/// Of the time that an agent has to stop, what the sealer has to count what it gives
/// up, on a disk that may be slow.
const COUNTING: Duration = Duration::from_secs(2);
/// For deadlines that no clock can count to.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
