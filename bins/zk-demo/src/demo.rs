//! The story, from an empty directory to an audit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zk_agent::{Agent, Config, Status};
use zk_envelope::{DeviceId, Kind, OwnerKey, TrustFile};
use zk_gateway::{Gateway, Overrides, Tls};
use zk_hsm::Hsm;
use zk_provision::{CertificateRequest, Device, LocalSetup, Passphrase};
use zk_publish::PublishError;
use zk_reader::{Reader, Record, Table, all_times};
use zk_sensors::{Curve, MilliCelsius, SensorId, SimulatedBus};
use zk_store::{Options, Store};
use zk_verify::StreamFindings;

use crate::forge::{self, Party};
use crate::keys::{self, Chip, ERRORS, Keys};
use crate::link::Link;
use crate::screen::Screen;

/// Tells the story; true if every promise held.
pub(crate) async fn run(dir: Option<PathBuf>, keys: Keys, serve: bool) -> Result<bool> {
    let mut screen = Screen::new();
    let dir = directory(dir)?;
    println!("zk-demo: from a sensor to a verified, decrypted reading, on this machine alone.");
    println!("Everything is kept in {}", dir.display());

    screen.step("Set-up: what zk-setup and zk-reader keygen do");
    let system = System::set_up(&dir, keys).await?;
    screen.say("two certificate authorities, one for gateways and one for devices");
    screen.say(&format!(
        "owner {}, whose key alone can decrypt",
        system.owner.id()
    ));
    let signer = keys::describe(&system.pi_01.hsm)?;
    screen.say(&format!(
        "device {DEVICE} with a certificate, and key {signer}"
    ));
    screen.say(&format!(
        "a gateway with mutual TLS on {}",
        system.link.address()
    ));

    screen.step("Good data: sampled, encrypted, signed, spooled, published, verified, stored");
    let mut thermometers = Thermometers::create(&dir.join("sys"))?;
    let config = system.agent_config(&dir)?;
    let agent = Agent::start(&config, || {})?;
    let good = until(
        &screen,
        &agent,
        &mut thermometers,
        "readings published",
        |status| (status.publisher.records.min(GOOD), GOOD),
    )
    .await?;
    screen.promise(
        good.publisher.state == zk_publish::State::Online,
        "readings of three thermometers reach the store",
        &format!(
            "{} records, TLS by the device's key",
            good.publisher.records
        ),
    );

    screen.step("Forged data: what somebody else might try");
    forgeries(&mut screen, &system).await?;

    if let Some(chip) = keys.chip(&dir, DEVICE)? {
        screen.step("A chip in trouble: it fails, it lies, it hangs; sampling goes on");
        trouble(&mut screen, &agent, &mut thermometers, &chip).await?;
    }

    screen.step("Outage: the link is cut, sampling goes on");
    system.link.cut();
    let before = agent.status()?.sealed;
    let cut = until(
        &screen,
        &agent,
        &mut thermometers,
        "readings kept on disk",
        |status| ((status.sealed - before).min(OUTAGE), OUTAGE),
    )
    .await?;
    screen.promise(
        cut.spool.records > 0 && cut.publisher.state == zk_publish::State::Offline,
        "without a link, records wait on disk",
        &format!("{} wait", cut.spool.records),
    );
    system.link.restore();
    agent.link_returned();
    let back = until(
        &screen,
        &agent,
        &mut thermometers,
        "waiting records published",
        |status| {
            let published = status.publisher.records - cut.publisher.records;
            (published.min(cut.spool.records), cut.spool.records)
        },
    )
    .await?;
    screen.promise(
        back.publisher.state == zk_publish::State::Online,
        "with the link, they go out, oldest first",
        &format!(
            "{} published",
            back.publisher.records - cut.publisher.records
        ),
    );

    let stopped =
        tokio::task::spawn_blocking(move || agent.stop(Duration::from_secs(10))).await??;
    ensure!(
        stopped.spool.records == 0,
        "{} records did not get out",
        stopped.spool.records
    );

    screen.step("Reading back: verified against the trust file, decrypted by the owner's key");
    let read = read_back(&mut screen, &system, &stopped, &thermometers, &dir).await?;
    summary(&read, &signer);
    let held = screen.verdict();
    further(&dir, keys, serve);
    if serve {
        let agent = Agent::start(&config, || {})?;
        go_on(&agent, &mut thermometers).await?;
        tokio::task::spawn_blocking(move || agent.stop(Duration::from_secs(10))).await??;
    }
    system.stop().await?;
    Ok(held)
}

/// Everything but the device's agent.
struct System {
    setup: LocalSetup,
    store: Store,
    gateway: Gateway,
    address: SocketAddr,
    stop_gateway: oneshot::Sender<()>,
    gateway_runs: JoinHandle<()>,
    link: Link,
    owner: OwnerKey,
    device: DeviceId,
    /// The device itself, and another one that is registered too.
    pi_01: Party,
    pi_02: Party,
    /// A certificate of the right authority that nobody registered.
    nobody: Party,
}

impl System {
    async fn set_up(dir: &Path, keys: Keys) -> Result<Self> {
        let now = SystemTime::now();
        let passphrase = Passphrase::new(PASSPHRASE.to_owned())?;
        let setup = LocalSetup::new(dir.join("zk"));
        setup.init_authorities(&passphrase, now)?;
        let names = vec!["localhost".try_into()?];
        let gateway = zk_provision::Gateway {
            names,
            listen: None,
            store: None,
        };
        let files = setup.init_gateway(&gateway, &passphrase, now).await?;

        let owner = OwnerKey::generate()?;
        owner.write_new(&dir.join("owner.pem"), PASSPHRASE)?;
        fs::write(dir.join("owner.pub.pem"), owner.public_key().to_pem())?;

        let store = Store::open(&setup.store()?, Options::default()).await?;
        let config =
            zk_gateway::Config::load(&files.dir.join("gateway.toml"), Overrides::default())?;
        let gateway = Gateway::new(store.clone(), Tls::load(&config.tls)?, config.limits);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let link = Link::start(address).await?;
        let (stop_gateway, stopped) = oneshot::channel::<()>();
        let gateway_runs = tokio::spawn(zk_gateway::run(listener, gateway.clone(), async {
            // A sender that is gone says the same as one that sends.
            let _ = stopped.await;
        }));

        let mut parties = Vec::new();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(setup.dir().join("ca/gateway-ca.crt.pem"))?
        {
            roots.add(certificate?)?;
        }
        for name in [DEVICE, OTHER] {
            let device = DeviceId::try_from(name)?;
            let uri = keys.make(dir, name)?;
            let hsm = Hsm::open(&uri, zk_hsm::Options::default())?;
            let csr = hsm.csr(name)?;
            let added = setup
                .add_device(
                    &Device {
                        request: CertificateRequest::from_pem(csr.as_bytes(), &device)?,
                        hsm: Some(uri.to_string()),
                        endpoint: Some(format!("localhost:{}", link.address().port())),
                        owners: vec![owner.public_key().clone()],
                    },
                    &passphrase,
                    &store,
                    now,
                )
                .await?;
            parties.push(Party::new(hsm, &added.certificate, roots.clone())?);
        }
        let nobody = {
            let uri = keys.make(dir, "nobody")?;
            let hsm = Hsm::open(&uri, zk_hsm::Options::default())?;
            let device = DeviceId::try_from(DEVICE)?;
            let authority = setup.device_authority(&passphrase)?;
            let certificate = authority.issue_device(&device, hsm.public_key(), now)?;
            Party::new(hsm, &certificate, roots.clone())?
        };
        let (Some(pi_02), Some(pi_01)) = (parties.pop(), parties.pop()) else {
            bail!("two devices were added");
        };
        let system = Self {
            setup,
            store,
            gateway,
            address,
            stop_gateway,
            gateway_runs,
            link,
            owner,
            device: DeviceId::try_from(DEVICE)?,
            pi_01,
            pi_02,
            nobody,
        };
        system.write_reader_config(dir)?;
        Ok(system)
    }

    /// What zk-setup wrote for the device, with simulated sensors in place of
    /// /sys and a pace that suits an audience.
    fn agent_config(&self, dir: &Path) -> Result<Config> {
        let file = self
            .setup
            .dir()
            .join("devices")
            .join(DEVICE)
            .join("agent.toml");
        let mut config = Config::read(&file)?;
        config.sensors.root = dir.join("sys");
        config.sensors.interval = INTERVAL.try_into()?;
        config.spool.dir = dir.join("spool");
        Ok(config)
    }

    fn write_reader_config(&self, dir: &Path) -> Result<()> {
        let mut passphrase = OpenOptions::new();
        passphrase.write(true).create_new(true).mode(0o600);
        passphrase
            .open(dir.join("owner.passphrase"))?
            .write_all(PASSPHRASE.as_bytes())?;
        let config = format!(
            "store = \"{}\"\ntrust = \"{}\"\nkey = \"{}\"\npassphrase-file = \"{}\"\n",
            self.setup.store()?,
            self.setup.trust_file().display(),
            dir.join("owner.pem").display(),
            dir.join("owner.passphrase").display(),
        );
        Ok(fs::write(dir.join("reader.toml"), config)?)
    }

    async fn stop(self) -> Result<()> {
        // Nobody listens if the gateway has ended already; then there is
        // nothing to stop.
        let _ = self.stop_gateway.send(());
        Ok(self.gateway_runs.await?)
    }
}

/// Each attempt, and where it ends.
async fn forgeries(screen: &mut Screen, system: &System) -> Result<()> {
    let System {
        device,
        address,
        store,
        owner,
        ..
    } = system;
    let owner = owner.public_key();
    let honest = forge::record(device, &system.pi_01.hsm, owner)?;

    let changed = forge::changed(&honest)?;
    let before = quarantined(store).await?;
    let answer = system.pi_01.publish(*address, device, changed).await?;
    let now = quarantined(store).await?;
    screen.promise(
        answer.is_ok() && new_reasons(&before, &now) == ["bad-signature"],
        "a record that was changed on its way",
        &format!("quarantined: {}", new_reasons(&before, &now).join(", ")),
    );

    let answer = system
        .pi_02
        .publish(*address, device, honest.to_json()?)
        .await?;
    let later = quarantined(store).await?;
    let reasons = new_reasons(&now, &later);
    screen.promise(
        answer.is_ok() && reasons == ["principal-mismatch"],
        "a record under another device's certificate",
        &format!("quarantined: {}", reasons.join(", ")),
    );

    let mut stored = store.readings(device, all_times());
    let genuine = stored.next().await.context("nothing is stored")??;
    let again = zk_envelope::Message {
        device_id: device.to_string(),
        entries: vec![zk_envelope::Entry::from(&genuine.envelope()?)],
    };
    let counted = system.gateway.counters().duplicates;
    let answer = system
        .pi_01
        .publish(*address, device, again.to_json()?)
        .await?;
    let counted = system.gateway.counters().duplicates - counted;
    screen.promise(
        answer.is_ok() && counted == 1 && quarantined(store).await?.len() == later.len(),
        "a true record, sent a second time",
        "200, stored once, counted",
    );

    let stolen = forge::record(device, &system.nobody.hsm, owner)?;
    let answer = system
        .nobody
        .publish(*address, device, stolen.to_json()?)
        .await?;
    let seen = match &answer {
        Ok(_) => "accepted".to_owned(),
        Err(PublishError::Forbidden { answer }) => format!("{}, nothing stored", answer.status),
        Err(error) => error.to_string(),
    };
    screen.promise(
        matches!(answer, Err(PublishError::Forbidden { .. }))
            && quarantined(store).await?.len() == later.len(),
        "a certificate that nobody registered",
        &seen,
    );
    Ok(())
}

/// A chip that fails, and what becomes of readings meanwhile. That none is lost
/// shows at the end.
async fn trouble(
    screen: &mut Screen,
    agent: &Agent,
    thermometers: &mut Thermometers,
    chip: &Chip,
) -> Result<()> {
    let before = agent.status()?.hsm;
    chip.err()?;
    let failed = until(screen, agent, thermometers, "failures passed", |status| {
        let failures = status.hsm.transient_failures - before.transient_failures;
        // those that fail, and two that are wrong
        let goal = ERRORS + 2;
        let signs = matches!(status.hsm_state, zk_hsm::State::Ready);
        (failures.min(goal - u64::from(!signs)), goal)
    })
    .await?;
    screen.promise(
        failed.given_up == 0 && failed.hsm.fatal_failures == 0,
        "signatures that fail are made again",
        &format!(
            "{} failures passed",
            failed.hsm.transient_failures - before.transient_failures
        ),
    );
    screen.promise(
        failed.hsm.bad_signatures == before.bad_signatures + 2,
        "signatures that are wrong do not leave the device",
        &format!(
            "{} found and discarded",
            failed.hsm.bad_signatures - before.bad_signatures
        ),
    );

    chip.restart()?;
    let restarted = until(
        screen,
        agent,
        thermometers,
        "times opened again",
        |status| {
            let failures = status.hsm.transient_failures - failed.hsm.transient_failures;
            let reopens = status.hsm.reopens - failed.hsm.reopens;
            (failures.min(reopens).min(1), 1)
        },
    )
    .await?;
    screen.promise(
        restarted.given_up == 0,
        "a chip whose daemon was restarted is opened again",
        "with the same key",
    );

    chip.hang()?;
    let stuck = until(
        screen,
        agent,
        thermometers,
        "readings wait in memory",
        |status| {
            let waiting = status.sampled - status.sealed;
            (waiting.min(WAITING), WAITING)
        },
    )
    .await?;
    chip.restart()?;
    let back = until(screen, agent, thermometers, "of them sealed", |status| {
        let goal = stuck.sampled - stuck.sealed;
        ((status.sealed - stuck.sealed).min(goal), goal)
    })
    .await?;
    screen.promise(
        back.given_up == 0,
        "while it hangs, readings wait in memory",
        &format!("{} waited", stuck.sampled - stuck.sealed),
    );
    Ok(())
}

/// Quarantined messages by id, with their reasons.
async fn quarantined(store: &Store) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let mut quarantine = store.quarantine();
    while let Some(item) = quarantine.next().await {
        let item = item?;
        all.insert(item.id.clone(), item.reason.to_string());
    }
    Ok(all)
}

fn new_reasons(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    now.iter()
        .filter(|(id, _)| !before.contains_key(*id))
        .map(|(_, why)| why.clone())
        .collect()
}

/// What the owner sees.
struct ReadBack {
    records: Vec<Record>,
    readings: u64,
    quarantine: BTreeMap<String, String>,
    audit: String,
}

async fn read_back(
    screen: &mut Screen,
    system: &System,
    agent: &Status,
    thermometers: &Thermometers,
    dir: &Path,
) -> Result<ReadBack> {
    // As the owner does it: another handle to the store, the key from its file.
    let store = Store::open(&system.setup.store()?, Options::default()).await?;
    let trust = TrustFile::read(&system.setup.trust_file())?;
    let owner = OwnerKey::read(&dir.join("owner.pem"), PASSPHRASE)?;
    let reader = Reader::new(store.clone(), trust, owner);

    let mut records = Vec::new();
    let mut all = reader.records(&system.device, all_times());
    while let Some(record) = all.next().await {
        records.push(record?);
    }
    let fine = records.iter().filter(|record| record.is_fine()).count();
    screen.promise(
        fine == records.len() && !records.is_empty(),
        "every stored record verifies and opens",
        &format!("{fine} of {}", records.len()),
    );

    let readings: Vec<_> = records
        .iter()
        .filter_map(Record::readings)
        .flat_map(|batch| batch.readings)
        .collect();
    let true_values = readings
        .iter()
        .filter(|reading| thermometers.showed(reading.sensor, reading.value))
        .count();
    let count = readings.len() as u64;
    screen.promise(
        count == agent.sampled && agent.given_up == 0 && true_values == readings.len(),
        "every reading that was sampled is there, as it was",
        &format!("{count} of {}", agent.sampled),
    );

    let places: Vec<_> = records.iter().filter_map(Record::header).collect();
    let in_order = places.windows(2).all(|pair| {
        pair[0].stream == pair[1].stream
            && pair[0].sequence + 1 == pair[1].sequence
            && pair[0].time <= pair[1].time
    });
    screen.promise(
        in_order,
        "in the order of time, each once",
        "by number and by clock",
    );

    let findings = reader.audit(&system.device, all_times()).await?;
    // Stricter than an audit has to be: not even a loss that the device states.
    let whole = |stream: &StreamFindings| {
        stream.missing.is_empty() && stream.seen == Some(1..=stream.complete_to)
    };
    screen.promise(
        findings.is_clean() && findings.streams.iter().all(whole),
        "the audit finds nothing missing",
        &format!(
            "{} records in {} stream",
            records.len(),
            findings.streams.len()
        ),
    );
    let legible = legible_files(dir, b"celsius")?;
    screen.promise(
        legible.is_empty(),
        "no reading is legible on the card or in the store",
        "searched spool and store",
    );

    let audit = zk_reader::describe(&findings, SystemTime::now().into());
    let quarantine = quarantined(&store).await?;
    Ok(ReadBack {
        records,
        readings: count,
        quarantine,
        audit,
    })
}

fn summary(read: &ReadBack, signer: &str) {
    println!("\nThe last readings, as their owner sees them");
    let table = Table::new(std::iter::once(&DeviceId::try_from(DEVICE).ok()).flatten());
    println!("   {}", table.heading());
    let rows: Vec<String> = read
        .records
        .iter()
        .filter(|record| {
            record
                .header()
                .is_some_and(|header| header.kind == Kind::Data)
        })
        .flat_map(|record| table.rows(record))
        .collect();
    for row in rows.iter().skip(rows.len().saturating_sub(SHOWN)) {
        println!("   {row}");
    }
    println!(
        "   … {} readings in {} records",
        read.readings,
        read.records.len()
    );

    println!("   all signed by key {signer}");

    println!("\nThe quarantine, with its reasons");
    for (id, reason) in &read.quarantine {
        println!("   {}…  {reason}", &id[..id.len().min(16)]);
    }
    println!("\nThe audit");
    for line in read.audit.lines() {
        println!("   {line}");
    }
}

fn further(dir: &Path, keys: Keys, serve: bool) {
    let reader = format!(
        "cargo run --release -p zk-reader -- --config {}/reader.toml",
        dir.display()
    );
    println!("\nTo look further");
    println!("   {reader} list");
    println!("   {reader} show {DEVICE} 3");
    println!("   {reader} audit --device {DEVICE}");
    println!("   {reader} quarantine list");
    println!(
        "   ls {}/zk          what zk-setup makes for an operator",
        dir.display()
    );
    if keys == Keys::Sim {
        println!(
            "   ls {}/chips/{DEVICE}    the chip; faults.toml there makes it fail",
            dir.display()
        );
    }
    println!("   rm -r {}    when you have seen enough", dir.display());
    if serve {
        println!("\nThe device samples and publishes until you press Ctrl-C.");
    } else {
        println!("   cargo run --release -p zk-demo -- --serve    the same, and keeps running");
    }
}

/// Until Ctrl-C.
async fn go_on(agent: &Agent, thermometers: &mut Thermometers) -> Result<()> {
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => thermometers.next()?,
            pressed = tokio::signal::ctrl_c() => {
                pressed?;
                let status = agent.status()?;
                println!("\nStopping after {} more readings.", status.sealed);
                return Ok(());
            }
        }
    }
}

/// Lets the weather change until `progress` of the agent reaches its goal.
async fn until(
    screen: &Screen,
    agent: &Agent,
    thermometers: &mut Thermometers,
    what: &str,
    progress: impl Fn(&Status) -> (u64, u64),
) -> Result<Status> {
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tick.tick().await;
        thermometers.next()?;
        let status = agent.status()?;
        let (done, goal) = progress(&status);
        screen.progress(&format!("{done} of {goal} {what}"));
        if done >= goal {
            screen.progress_ends();
            return Ok(status);
        }
        if started.elapsed() > PATIENCE {
            screen.progress_ends();
            bail!(
                "{done} of {goal} {what} after {PATIENCE:?}: {:?}",
                status.publisher
            );
        }
    }
}

/// Three simulated DS18B20 and all that they ever showed.
struct Thermometers {
    bus: SimulatedBus,
    sensors: Vec<(SensorId, Curve)>,
    step: u64,
    shown: BTreeMap<SensorId, BTreeSet<MilliCelsius>>,
}

impl Thermometers {
    fn create(root: &Path) -> Result<Self> {
        let ids: Vec<SensorId> = ["28-0000000a0001", "28-0000000a0002", "28-0000000a0003"]
            .into_iter()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let bus = SimulatedBus::create(root, &ids)?;
        let sensors = ids
            .iter()
            .zip(1..)
            .map(|(id, seed)| (*id, Curve::new(seed)))
            .collect();
        let start = MilliCelsius(20_000);
        let shown = ids
            .iter()
            .map(|id| (*id, BTreeSet::from([start])))
            .collect();
        let mut thermometers = Self {
            bus,
            sensors,
            step: 0,
            shown,
        };
        thermometers.next()?;
        Ok(thermometers)
    }

    fn next(&mut self) -> Result<()> {
        self.step += 1;
        for (id, curve) in &self.sensors {
            // What a thermometer of 12 bits makes of it: sixteenths of a degree.
            let sixteenths = (curve.at(self.step).0 * 16 + 500).div_euclid(1000);
            let value = MilliCelsius(sixteenths * 1000 / 16);
            self.shown.entry(*id).or_default().insert(value);
            self.bus.set(*id, value)?;
        }
        Ok(())
    }

    fn showed(&self, sensor: SensorId, value: Option<MilliCelsius>) -> bool {
        let shown = self.shown.get(&sensor);
        value.is_some_and(|value| shown.is_some_and(|shown| shown.contains(&value)))
    }
}

/// Files of spool and store that contain `text`.
fn legible_files(dir: &Path, text: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![dir.join("spool"), dir.join("zk/gateway")];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else if fs::read(&path)?
            .windows(text.len())
            .any(|window| window == text)
        {
            found.push(path);
        }
    }
    Ok(found)
}

fn directory(wanted: Option<PathBuf>) -> Result<PathBuf> {
    let Some(dir) = wanted else {
        return Ok(tempfile::Builder::new()
            .prefix("zk-demo-")
            .tempdir()?
            .keep());
    };
    fs::create_dir(&dir)
        .with_context(|| format!("cannot make {}; it must not exist yet", dir.display()))?;
    Ok(std::path::absolute(dir)?)
}

const DEVICE: &str = "pi-01";
const OTHER: &str = "pi-02";
/// Nothing in a demo is secret.
const PASSPHRASE: &str = "for demonstration only";
const INTERVAL: Duration = Duration::from_millis(100);
/// Records published before the story goes on.
const GOOD: u64 = 20;
/// Readings sealed while the link is cut.
const OUTAGE: u64 = 60;
/// Readings that wait for a chip that hangs.
const WAITING: u64 = 30;
const SHOWN: usize = 9;
const PATIENCE: Duration = Duration::from_secs(15);
