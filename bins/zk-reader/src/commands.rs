//! The commands: what is asked of the library, and what is printed.

pub(crate) mod export;
pub(crate) mod follow;
pub(crate) mod quarantine;

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use zk_envelope::{DeviceId, OwnerKey, Timestamp, TrustFile};
use zk_reader::{
    Difference, Reader, Registry, State, Table, Wanted, all_times, describe, findings_json,
};
use zk_store::Store;

use crate::config::Settings;
use crate::{Failure, Outcome, passphrase};
use zk_reader::arguments::Selection;
use zk_reader::when::When;

pub(crate) fn keygen(
    out: &Path,
    backup: Option<&Path>,
    no_backup: bool,
    passphrase_file: Option<&Path>,
    json: bool,
) -> Result<Outcome, Failure> {
    if backup.is_none() && !no_backup {
        return Err(Failure::Usage(format!(
            "no backup. {ALL_IS_LOST}\nGive --backup PATH, in another directory and best on a \
             medium that can be taken away, or, if you see to it yourself, --no-backup"
        )));
    }
    // Nobody thinks up a passphrase for nothing.
    if out.symlink_metadata().is_ok() {
        return Err(zk_reader::Error::Exists {
            path: out.to_owned(),
        }
        .into());
    }
    let passphrase = passphrase::new(passphrase_file)?;
    let files = zk_reader::keygen(out, backup, &passphrase)?;
    let mut to = output();
    if json {
        let made = json!({
            "owner": files.owner.id().to_string(),
            "key": files.key.display().to_string(),
            "publicKey": files.public_key.display().to_string(),
            "backup": files.backup.map(|path| path.display().to_string()),
        });
        writeln!(to, "{made}")?;
        to.flush()?;
        return Ok(Outcome::Fine);
    }
    writeln!(to, "owner       {}", files.owner.id())?;
    writeln!(
        to,
        "key         {} (stays on this machine)",
        files.key.display()
    )?;
    writeln!(
        to,
        "public key  {} (devices encrypt for it)",
        files.public_key.display()
    )?;
    match files.backup {
        Some(path) => {
            writeln!(
                to,
                "backup      {} (opens with the same passphrase)",
                path.display()
            )?;
            writeln!(
                to,
                "\n{ALL_IS_LOST}\nKeep the backup and the passphrase where this machine's end does not reach them."
            )?;
            if path.metadata()?.dev() == files.key.metadata()?.dev() {
                writeln!(
                    to,
                    "The backup is on the same file system as the key: copy it to another medium."
                )?;
            }
        }
        None => writeln!(
            to,
            "backup      NONE\n\n{ALL_IS_LOST}\nCopy {} to a safe place now.",
            files.key.display()
        )?,
    }
    to.flush()?;
    Ok(Outcome::Fine)
}

pub(crate) async fn list(
    settings: &Settings,
    selection: &Selection,
    limit: Option<u32>,
    as_signed: bool,
    json: bool,
) -> Result<Outcome, Failure> {
    let times = times(selection)?;
    let (reader, store) = open(settings).await?;
    let Registry {
        devices,
        differences,
    } = select(&reader, &store, selection).await?;
    let table = table(&devices);
    let mut dates = reader.dates();
    let mut tally = Tally::default();
    let mut to = output();
    for device in &devices {
        let mut records = match limit {
            Some(limit) => reader.newest(device, times.clone(), limit).await?,
            None => reader.records(device, times.clone()),
        };
        while let Some(record) = records.next().await {
            let mut record = record?;
            // Who asks for a few is not made to wait for a look at all of them.
            if !as_signed && limit.is_none() {
                dates.date(&mut record).await?;
            }
            if json {
                writeln!(to, "{}", record.to_json())?;
            } else {
                if tally.records == 0 {
                    writeln!(to, "{}", table.heading())?;
                }
                for row in table.rows(&record) {
                    writeln!(to, "{row}")?;
                }
            }
            tally.count(&record);
        }
        to.flush()?;
        hint_at_unset_clocks(&store, device, &times).await?;
    }
    if tally.records == 0 {
        eprintln!("zk-reader: no records");
    }
    tally.report();
    alarms(&differences);
    Ok(outcome(tally.is_fine() && differences.is_empty()))
}

pub(crate) async fn show(
    settings: &Settings,
    device: &DeviceId,
    record: &str,
    times: RangeInclusive<Timestamp>,
    as_signed: bool,
    json: bool,
) -> Result<Outcome, Failure> {
    let wanted = match record.parse() {
        Ok(sequence) => Wanted::Sequence(sequence),
        Err(_) => Wanted::Key(record.to_owned()),
    };
    let (reader, store) = open(settings).await?;
    let registry = reader.registry().await?;
    known_device(&store, &registry, device).await?;
    let differences = of_device(registry, Some(device)).differences;
    let mut found = reader.find(device, times, &wanted).await?;
    let mut record = found.pop().ok_or_else(|| {
        anyhow!(
            "{device} has no record {record}; `zk-reader list --device {device}` shows those \
             there are"
        )
    })?;
    if !found.is_empty() {
        let keys = found
            .iter()
            .chain([&record])
            .map(|record| format!("\n{}", record.key));
        let keys: String = keys.collect();
        return Err(anyhow!("several records have this number; show one by its key:{keys}").into());
    }
    if !as_signed {
        reader.dates().date(&mut record).await?;
    }
    let mut to = output();
    if json {
        writeln!(to, "{}", record.to_json())?;
    } else {
        write!(to, "{}", reader.page(&record))?;
    }
    to.flush()?;
    alarms(&differences);
    Ok(outcome(record.is_fine() && differences.is_empty()))
}

pub(crate) async fn audit(
    settings: &Settings,
    selection: &Selection,
    json: bool,
) -> Result<Outcome, Failure> {
    let times = times(selection)?;
    let (reader, store) = open(settings).await?;
    let Registry {
        devices,
        differences,
    } = select(&reader, &store, selection).await?;
    let mut fine = differences.is_empty();
    let mut to = output();
    for device in &devices {
        let findings = reader.audit(device, times.clone()).await?;
        fine &= findings.is_clean() && findings.last_heard.is_some();
        if json {
            let of_device = differences
                .iter()
                .filter(|found| found.device() == Some(device));
            writeln!(
                to,
                "{}",
                findings_json(&findings, &of_device.collect::<Vec<_>>())
            )?;
        } else {
            write!(to, "{}", describe(&findings, now()))?;
        }
        to.flush()?;
    }
    alarms(&differences);
    Ok(outcome(fine))
}

/// What a list was made of.
#[derive(Default)]
struct Tally {
    records: u64,
    refused: u64,
    sealed: u64,
    damaged: u64,
    /// Verified and opened, with alarms.
    alarming: u64,
}

impl Tally {
    fn count(&mut self, record: &zk_reader::Record) {
        self.records += 1;
        match &record.state {
            State::Open { .. } => self.alarming += u64::from(!record.is_fine()),
            State::Sealed { .. } => self.sealed += 1,
            State::Refused { .. } => self.refused += 1,
            State::Damaged { .. } => self.damaged += 1,
        }
    }

    fn is_fine(&self) -> bool {
        self.refused + self.sealed + self.damaged + self.alarming == 0
    }

    fn report(&self) {
        if self.is_fine() {
            return;
        }
        let Self {
            records,
            refused,
            sealed,
            damaged,
            alarming,
        } = self;
        eprintln!(
            "zk-reader: of {records} records {refused} are refused, {sealed} do not open, \
             {damaged} are damaged, {alarming} others raise an alarm; \
             `zk-reader show DEVICE NUMBER` says more"
        );
    }
}

async fn open(settings: &Settings) -> Result<(Reader, Store), Failure> {
    let (_, key, trust) = (settings.store()?, settings.key()?, settings.trust()?);
    let trust = TrustFile::read(trust)?;
    let store = settings.open_store().await?;
    // Nobody types a passphrase for a file that is not there.
    std::fs::metadata(key).with_context(|| key.display().to_string())?;
    let (passphrase, source) = passphrase::known(settings.passphrase_file.as_deref())?;
    let owner = OwnerKey::read(key, &passphrase).map_err(|error| match error {
        zk_envelope::Error::Key { .. } => anyhow!(error).context(format!(
            "{}: the key does not open with the passphrase {source}",
            key.display()
        )),
        other => other.into(),
    })?;
    Ok((Reader::new(store.clone(), trust, owner), store))
}

/// The devices that are asked for, and what the registry says wrong of them.
async fn select(
    reader: &Reader,
    store: &Store,
    selection: &Selection,
) -> Result<Registry, Failure> {
    let registry = reader.registry().await?;
    if let Some(device) = &selection.device {
        known_device(store, &registry, device).await?;
    }
    Ok(of_device(registry, selection.device.as_ref()))
}

/// An error if neither the registry nor the readings know the device.
async fn known_device(
    store: &Store,
    registry: &Registry,
    device: &DeviceId,
) -> Result<(), Failure> {
    if registry.devices.contains(device) || store.latest(device).await?.is_some() {
        return Ok(());
    }
    let known: Vec<_> = registry.devices.iter().map(DeviceId::as_str).collect();
    let known = if known.is_empty() {
        "none".into()
    } else {
        known.join(", ")
    };
    Err(anyhow!("nobody knows a device {device}; known are: {known}").into())
}

/// What is about one device, if one is asked for.
fn of_device(mut registry: Registry, device: Option<&DeviceId>) -> Registry {
    if let Some(device) = device {
        registry.devices = BTreeSet::from([device.clone()]);
        registry
            .differences
            .retain(|found| found.device().is_none_or(|about| about == device));
    }
    registry
}

fn times(selection: &Selection) -> Result<RangeInclusive<Timestamp>, Failure> {
    range(selection.from, selection.to)
}

pub(crate) fn range(
    from: Option<When>,
    to: Option<When>,
) -> Result<RangeInclusive<Timestamp>, Failure> {
    let now = now();
    let (first, last) = all_times().into_inner();
    let from = from.map_or(first, |when| when.start(now));
    let to = to.map_or(last, |when| when.end(now));
    if from > to {
        return Err(Failure::Usage(format!(
            "--from ({from}) is after --to ({to})"
        )));
    }
    Ok(from..=to)
}

/// Records of a clock that was not set stand in 1970, and may be of the time
/// that was asked for.
async fn hint_at_unset_clocks(
    store: &Store,
    device: &DeviceId,
    times: &RangeInclusive<Timestamp>,
) -> Result<(), Failure> {
    let first = *all_times().start();
    let Some(end) = times.start().as_millis().checked_sub(1) else {
        return Ok(());
    };
    let Some(end) = Timestamp::from_millis(end.min(YEAR_1970_MS - 1)) else {
        return Ok(());
    };
    if store.readings(device, first..=end).next().await.is_some() {
        eprintln!(
            "zk-reader: {device} also has records of 1970, made while its clock was not set, \
             perhaps in this time; list them with --to 1970-12-31"
        );
    }
    Ok(())
}

fn alarms(differences: &[Difference]) {
    for difference in differences.iter().take(ALARMS) {
        eprintln!("zk-reader: ALARM: {difference}");
    }
    if let Some(more @ 1..) = differences.len().checked_sub(ALARMS) {
        eprintln!("zk-reader: ALARM: and {more} more differences between store and trust file");
    }
}

fn outcome(fine: bool) -> Outcome {
    if fine {
        Outcome::Fine
    } else {
        Outcome::Findings
    }
}

/// Resolves once the user, or the system, wants this to end.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// As wide as the terminal that it is printed on, if it is.
fn table(devices: &BTreeSet<DeviceId>) -> Table {
    let table = Table::new(devices);
    columns().map_or(table, |columns| table.fit(columns))
}

/// Those of the terminal that the output goes to.
fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0.into())
}

fn output() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

const ALL_IS_LOST: &str = "\
Whoever loses this key or its passphrase can never read anything again that was \
encrypted for it: there is no other way in.";

/// So many differences are shown.
const ALARMS: usize = 100;

const YEAR_1970_MS: u64 = 365 * 86_400_000;
