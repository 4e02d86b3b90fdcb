//! The set-up seen from a device: a good message and a forged one are published
//! as the device, and each has to arrive where it belongs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use zk_agent::{Clock, Config};
use zk_envelope::{
    Content, DeviceEvent, Envelope, Message, OwnerPublicKey, Report, Sealer, StreamId, Timestamp,
};
use zk_hsm::{Hsm, HsmUri};
use zk_provision::{Checked, Verdict};
use zk_publish::{Client, PublishError, Target, Timeouts};
use zk_store::{Quarantined, Store, StoreError};
use zk_verify::{Context, Reason, topic_of};

/// What is published, and where it is looked for.
pub(crate) struct SelfTest<'a> {
    /// What was made for the device: agent.toml, certificate, roots.
    pub(crate) dir: &'a Path,
    pub(crate) store: &'a Store,
    /// How long the server may refuse what was set up just now.
    pub(crate) settling: Duration,
    /// Where to look if a message is taken and arrives nowhere.
    pub(crate) clue: &'a str,
}

impl SelfTest<'_> {
    /// Whatever fails is named as the stage that it is, and ends the test.
    pub(crate) async fn run(&self) -> Vec<Checked> {
        let mut found = Vec::new();
        if let Err(failed) = self.stages(&mut found).await {
            found.push(failed);
        }
        found
    }

    async fn stages(&self, found: &mut Vec<Checked>) -> Result<(), Checked> {
        let config = self.dir.join("agent.toml");
        let config = Config::read(&config)
            .map_err(|error| bad("self-test: agent.toml", &error, "run `zk-setup apply`"))?;
        let what = |stage: &str| format!("self-test of {}: {stage}", config.device.id);

        let stage = what("its key");
        let device = Device::open(&config).map_err(|problem| problem.told(&stage))?;
        let stage = what("the registry");
        let known = self.store.devices().await.map_err(|error| {
            bad(
                &stage,
                &error,
                "let whoever runs this read the devices table",
            )
        })?;
        let principals: Vec<_> = known
            .into_iter()
            .filter(|(_, record)| record.device == config.device.id)
            .map(|(principal, _)| principal)
            .collect();

        let stage = what("sealing");
        let sealed = device
            .seal()
            .map_err(|error| bad(&stage, &error, "look at the key: `zk-ctl doctor`"))?;

        let stage = what(&format!("publishing to {}", config.target.endpoint));
        let started = SystemTime::now();
        for message in [&sealed.good, &sealed.forged] {
            device
                .publish(message, Instant::now() + self.settling)
                .await
                .map_err(|error| refused(&stage, &error))?;
        }
        found.push(good(stage));

        let deadline = Instant::now() + PATIENCE;
        let stage = what("the good message");
        let ids = device.ids(&sealed.good, &principals);
        self.stored(&sealed, &ids, &device, started, deadline)
            .await
            .map_err(|problem| problem.told(&stage))?;
        found.push(good(format!("{stage} is among the readings")));
        let stage = what("the forged message");
        let ids = device.ids(&sealed.forged, &principals);
        let id = self
            .put_aside(&ids, deadline)
            .await
            .map_err(|problem| problem.told(&stage))?;
        found.push(good(format!("{stage} is in quarantine, as bad-signature")));
        // the device has so much room there, and that is for what others forge
        self.store.discard(&id).await.map_err(|error| {
            let cure = "let whoever runs this delete and update items of the quarantine table";
            bad(&what("clearing up"), &error, cure)
        })?;
        Ok(())
    }

    /// Waits until the good records are among the readings. `ids`: those it would
    /// have in quarantine.
    async fn stored(
        &self,
        sealed: &Sealed,
        ids: &[String],
        device: &Device<'_>,
        since: SystemTime,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let mut pause = Duration::from_millis(100);
        loop {
            let mut missing = sealed.records.clone();
            let mut readings = self
                .store
                .readings(&device.config.device.id, sealed.times.0..=sealed.times.1);
            while let Some(reading) = readings.next().await {
                let reading = reading.map_err(|error| {
                    Problem::new(&error, "let whoever runs this read the readings table")
                })?;
                missing.retain(|record| *record != reading.encrypted_data);
            }
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(held) = self.held(ids).await? {
                return Err(astray(&held));
            }
            if Instant::now() >= deadline {
                return Err(self.whereabouts(device, since).await);
            }
            wait(&mut pause, deadline).await;
        }
    }

    /// Why the good message is not among the readings, if its principal is nobody
    /// that the registry knows.
    async fn whereabouts(&self, device: &Device<'_>, since: SystemTime) -> Problem {
        let topic = topic_of(&device.config.device.id);
        // a clock here may be a little ahead of the cloud's
        let since = Timestamp::from(since - Duration::from_secs(60));
        let mut listing = self.store.quarantine();
        while let Some(item) = listing.next().await {
            let item = match item {
                Ok(item) => item,
                Err(StoreError::Damaged { .. }) => continue,
                // which would come again for ever
                Err(_) => break,
            };
            if item.context.topic == topic
                && item.last_received_at >= since
                && item.reason == Reason::UnknownDevice
            {
                return astray(&item);
            }
        }
        let cause = format!(
            "taken by the server, but neither among the readings nor in quarantine after {} s",
            PATIENCE.as_secs()
        );
        Problem::new(&cause, self.clue)
    }

    /// Waits until the forged message is in quarantine, for the right reason. Answers
    /// its id there.
    async fn put_aside(&self, ids: &[String], deadline: Instant) -> Result<String, Problem> {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.held(ids).await? {
                Some(held) if held.reason == Reason::BadSignature => return Ok(held.id),
                Some(held) => return Err(astray(&held)),
                None => {}
            }
            if Instant::now() >= deadline {
                let cause = format!(
                    "taken by the server, but not in quarantine after {} s",
                    PATIENCE.as_secs()
                );
                return Err(Problem::new(&cause, self.clue));
            }
            wait(&mut pause, deadline).await;
        }
    }

    async fn held(&self, ids: &[String]) -> Result<Option<Quarantined>, Problem> {
        for id in ids {
            let held = self.store.quarantined(id).await.map_err(|error| {
                Problem::new(&error, "let whoever runs this read the quarantine table")
            })?;
            if held.is_some() {
                return Ok(held);
            }
        }
        Ok(None)
    }
}

fn astray(held: &Quarantined) -> Problem {
    let cause = format!(
        "it is in quarantine as {} (principal {})",
        held.reason, held.context.principal
    );
    let cure = format!(
        "see `zk-reader quarantine show {}`, and run `zk-setup apply`, which registers what is \
         missing",
        held.id
    );
    Problem::new(&cause, &cure)
}

async fn wait(pause: &mut Duration, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    sleep((*pause).min(left)).await;
    *pause = (*pause * 2).min(Duration::from_secs(2));
}

/// A device whose key is in this machine.
struct Device<'a> {
    config: &'a Config,
    hsm: Hsm,
    owners: Vec<OwnerPublicKey>,
    target: Target,
    tls: Arc<rustls::ClientConfig>,
}

/// Two messages, on streams of their own, so that those of the agent stay as
/// they are.
struct Sealed {
    good: Vec<u8>,
    forged: Vec<u8>,
    /// What is signed in the good one.
    records: Vec<Vec<u8>>,
    /// From the first to the last of them.
    times: (Timestamp, Timestamp),
}

impl<'a> Device<'a> {
    fn open(config: &'a Config) -> Result<Self, Problem> {
        let files = |error: zk_agent::Error| Problem::new(&error, "run `zk-setup apply`");
        let chain = zk_agent::certificates(&config.device.certificate).map_err(files)?;
        zk_agent::check_certificate(&config.device.certificate, &chain, &config.device.id)
            .map_err(files)?;
        let roots = zk_agent::roots(&config.target.roots).map_err(files)?;
        let owners = config.owners.files.iter().map(|file| zk_agent::owner(file));
        let owners = owners.collect::<Result<_, _>>().map_err(files)?;
        let topic = topic_of(&config.device.id);
        let target = Target::new(&config.target.endpoint, &topic)
            .map_err(|error| Problem::new(&error, "mend target.endpoint in agent.toml"))?;
        let uri: HsmUri = config
            .device
            .hsm
            .parse()
            .map_err(|error| Problem::new(&error, "mend device.hsm in agent.toml"))?;
        let elsewhere = |error: zk_hsm::Error| Problem {
            is_elsewhere: true,
            ..Problem::new(
                &error,
                "if the key is in the device, run `zk-ctl doctor` and `zk-ctl publish` there",
            )
        };
        let hsm = Hsm::open(&uri, zk_hsm::Options::default()).map_err(elsewhere)?;
        // refused if the key is not the certificate's
        let tls = hsm.client_config(chain, roots, &[]).map_err(elsewhere)?;
        Ok(Self {
            config,
            hsm,
            owners,
            target,
            tls,
        })
    }

    fn seal(&self) -> Result<Sealed, Box<dyn std::error::Error>> {
        let clock = Clock::new(SystemTime::now)?;
        let start = Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None });
        let data = Content::Data {
            content_type: "text/plain",
            body: b"a self-test by zk-setup",
        };
        let mut envelopes = Vec::new();
        let (from, mut until) = (clock.now().time, clock.now().time);
        let mut seal = |stream: StreamId, sequence: u64, content: Content<'_>| {
            let (id, key) = (self.config.device.id.clone(), self.hsm.public_key());
            let moment = clock.now();
            until = until.max(moment.time);
            Sealer::new(id, stream, key, &self.owners)?.seal(&self.hsm, &moment, sequence, content)
        };
        let stream = self.stream()?;
        envelopes.push(seal(stream, 1, Content::Report(&start))?);
        envelopes.push(seal(stream, 2, data)?);
        let forged = seal(self.stream()?, 1, data)?;
        let mut forged = self.message(&[forged]);
        // one bit of the ciphertext: the tag behind it has 32 bytes
        for entry in &mut forged.entries {
            if let Some(byte) = entry.encrypted_data.iter_mut().rev().nth(32) {
                *byte ^= 1;
            }
        }
        Ok(Sealed {
            good: self.message(&envelopes).to_json()?,
            forged: forged.to_json()?,
            records: envelopes
                .iter()
                .map(|envelope| envelope.encrypted_data().to_vec())
                .collect(),
            times: (from, until),
        })
    }

    fn stream(&self) -> Result<StreamId, zk_hsm::Error> {
        let mut stream = StreamId([0; 16]);
        stream.0.copy_from_slice(&self.hsm.random(16)?);
        Ok(stream)
    }

    fn message(&self, envelopes: &[Envelope]) -> Message {
        Message {
            device_id: self.config.device.id.to_string(),
            entries: envelopes.iter().map(Into::into).collect(),
        }
    }

    /// Under what ids a message of the device can be in quarantine: whole, or each
    /// of its records alone.
    fn ids(&self, message: &[u8], principals: &[String]) -> Vec<String> {
        let mut messages = vec![message.to_vec()];
        if let Ok(parsed) = Message::parse(message) {
            let alone = |entry| Message {
                device_id: parsed.device_id.clone(),
                entries: vec![entry],
            };
            let entries = parsed.entries.iter().cloned();
            messages.extend(entries.filter_map(|entry| alone(entry).to_json().ok()));
        }
        let mut ids = Vec::new();
        for principal in principals {
            let context = Context {
                principal: principal.clone(),
                topic: topic_of(&self.config.device.id),
                received_at: Timestamp::from(SystemTime::now()),
            };
            ids.extend(
                messages
                    .iter()
                    .map(|message| Quarantined::id_of(&context, message)),
            );
        }
        ids
    }

    /// Publishes, and until then tries again if the device is not known yet.
    async fn publish(&self, message: &[u8], until: Instant) -> Result<(), PublishError> {
        let timeouts = Timeouts::default();
        let mut client = Client::new(self.target.clone(), Arc::clone(&self.tls), timeouts);
        let mut pause = Duration::from_millis(500);
        loop {
            match client.publish(message.to_vec()).await {
                Err(
                    PublishError::CertificateRefused { .. }
                    | PublishError::Closed { .. }
                    | PublishError::Forbidden { .. },
                ) if Instant::now() < until => wait(&mut pause, until).await,
                done => return done.map(drop),
            }
        }
    }
}

/// What keeps the test from going on.
struct Problem {
    cause: String,
    cure: String,
    /// Nothing is wrong: the test can only be made where the key is.
    is_elsewhere: bool,
}

impl Problem {
    fn new(cause: &impl ToString, cure: &str) -> Self {
        Self {
            cause: cause.to_string(),
            cure: cure.to_owned(),
            is_elsewhere: false,
        }
    }

    fn told(self, what: &str) -> Checked {
        let (cause, cure) = (self.cause, self.cure);
        let what = what.to_owned();
        let verdict = if self.is_elsewhere {
            Verdict::Warning { cause, cure }
        } else {
            Verdict::Bad { cause, cure }
        };
        Checked { what, verdict }
    }
}

fn good(what: String) -> Checked {
    let verdict = Verdict::Good;
    Checked { what, verdict }
}

fn bad(what: &str, error: &impl ToString, cure: &str) -> Checked {
    Problem::new(error, cure).told(what)
}

fn refused(stage: &str, error: &PublishError) -> Checked {
    let mut cause = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let text = error.to_string();
        if !cause.contains(&text) {
            cause = format!("{cause}: {text}");
        }
        source = error.source();
    }
    let cure = match error {
        PublishError::CertificateRefused { .. } | PublishError::Closed { .. } => {
            "the certificate is not active there: run `zk-setup apply`; if it was made just now, \
             try again in a minute"
        }
        PublishError::Forbidden { .. } => {
            "its policy doesn't let it publish to its topic: run `zk-setup apply`"
        }
        PublishError::Handshake { .. } | PublishError::Untrusted { .. } => {
            "the server is another one than agent.toml's target.roots stand for, or the clock of \
             this machine is off"
        }
        PublishError::Busy { .. } | PublishError::TimedOut { .. } => "try again later",
        _ => "look at target.endpoint in agent.toml, and at the network",
    };
    bad(stage, &cause, cure)
}

/// How long a message may take from the server to its table: a rule, a queue
/// within Lambda and a cold start lie between them.
const PATIENCE: Duration = Duration::from_secs(60);
