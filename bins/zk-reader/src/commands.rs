//! The commands: what is asked of the library, and what is printed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use zk_envelope::{DeviceId, OwnerKey, Timestamp, TrustFile};
use zk_reader::{
    Difference, Reader, Registry, State, Table, Wanted, all_times, describe, findings_json,
    printable, quarantine_heading, quarantine_json, quarantine_page, quarantine_row,
};
use zk_store::{Options, Store, StoreError};

use crate::config::Settings;
use crate::{Failure, Outcome, Selection, passphrase};

pub(crate) fn keygen(
    out: &Path,
    backup: Option<&Path>,
    no_backup: bool,
    passphrase_file: Option<&Path>,
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
    json: bool,
) -> Result<Outcome, Failure> {
    let times = times(selection)?;
    let (reader, store) = open(settings).await?;
    let Registry {
        devices,
        differences,
    } = select(&reader, &store, selection).await?;
    let table = Table::new(&devices);
    let mut tally = Tally::default();
    let mut to = output();
    for device in &devices {
        let mut records = match limit {
            Some(limit) => reader.newest(device, times.clone(), limit as usize).await?,
            None => reader.records(device, times.clone()),
        };
        while let Some(record) = records.next().await {
            let record = record?;
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
    json: bool,
) -> Result<Outcome, Failure> {
    let wanted = match record.parse() {
        Ok(sequence) => Wanted::Sequence(sequence),
        Err(_) => Wanted::Key(record.to_owned()),
    };
    let (reader, _) = open(settings).await?;
    let mut found = reader.find(device, &wanted).await?;
    let record = found
        .pop()
        .ok_or_else(|| anyhow!("{device} has no record {record}; `zk-reader list --device {device}` shows those there are"))?;
    if !found.is_empty() {
        let keys = found
            .iter()
            .chain([&record])
            .map(|record| format!("\n{}", record.key));
        let keys: String = keys.collect();
        return Err(anyhow!("several records have this number; show one by its key:{keys}").into());
    }
    let mut to = output();
    if json {
        writeln!(to, "{}", record.to_json())?;
    } else {
        write!(to, "{}", reader.page(&record))?;
    }
    to.flush()?;
    Ok(outcome(record.is_fine()))
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

pub(crate) async fn quarantine_list(settings: &Settings, json: bool) -> Result<Outcome, Failure> {
    let store = Store::open(settings.store()?, Options::default()).await?;
    let mut to = output();
    let mut newest = BTreeMap::new();
    let (mut total, mut damaged) = (0_u64, 0_u64);
    let mut items = store.quarantine();
    while let Some(item) = items.next().await {
        let held = match item {
            Ok(held) => held,
            Err(error @ StoreError::Damaged { .. }) => {
                damaged += 1;
                eprintln!("zk-reader: {}", printable(&error.to_string()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        total += 1;
        if json {
            writeln!(to, "{}", quarantine_json(&held))?;
        } else {
            newest.insert((held.last_received_at, held.id.clone()), held);
            if newest.len() > QUARANTINE_ROWS {
                newest.pop_first();
            }
        }
    }
    if !newest.is_empty() {
        writeln!(to, "{}", quarantine_heading())?;
    }
    for held in newest.values() {
        writeln!(to, "{}", quarantine_row(held))?;
    }
    to.flush()?;
    if total == 0 {
        eprintln!("zk-reader: the quarantine is empty");
    } else if !json && total > QUARANTINE_ROWS as u64 {
        eprintln!(
            "zk-reader: {} older ones; --json lists all",
            total - QUARANTINE_ROWS as u64
        );
    }
    for over in store.overflow().await? {
        let line = format!(
            "{} messages of certificate {} did not fit and were only counted, the last at {}",
            over.messages, over.principal, over.last_received_at
        );
        eprintln!("zk-reader: {}", printable(&line));
    }
    Ok(outcome(damaged == 0))
}

pub(crate) async fn quarantine_show(
    settings: &Settings,
    id: &str,
    json: bool,
) -> Result<Outcome, Failure> {
    let store = Store::open(settings.store()?, Options::default()).await?;
    let held = store.quarantined(id).await?;
    let held = held.ok_or_else(|| StoreError::NotQuarantined { id: id.to_owned() })?;
    let mut to = output();
    if json {
        writeln!(to, "{}", quarantine_json(&held))?;
    } else {
        write!(to, "{}", quarantine_page(&held))?;
    }
    to.flush()?;
    Ok(Outcome::Fine)
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
    let (uri, key, trust) = (settings.store()?, settings.key()?, settings.trust()?);
    let trust = TrustFile::read(trust)?;
    let store = Store::open(uri, Options::default()).await?;
    // Nobody types a passphrase for a file that is not there.
    std::fs::metadata(key).with_context(|| key.display().to_string())?;
    let passphrase = passphrase::known(settings.passphrase_file.as_deref())?;
    let owner = OwnerKey::read(key, &passphrase).map_err(|error| match error {
        zk_envelope::Error::Key { .. } => anyhow!(error).context(key.display().to_string()),
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
    let mut registry = reader.registry().await?;
    let Some(device) = &selection.device else {
        return Ok(registry);
    };
    if !registry.devices.contains(device) && matches!(store.latest(device).await, Ok(None)) {
        let known: Vec<_> = registry.devices.iter().map(DeviceId::as_str).collect();
        let known = if known.is_empty() {
            "none".into()
        } else {
            known.join(", ")
        };
        return Err(anyhow!("nobody knows a device {device}; known are: {known}").into());
    }
    registry.devices = BTreeSet::from([device.clone()]);
    registry
        .differences
        .retain(|found| found.device().is_none_or(|about| about == device));
    Ok(registry)
}

fn times(selection: &Selection) -> Result<RangeInclusive<Timestamp>, Failure> {
    let now = now();
    let (first, last) = all_times().into_inner();
    let from = selection.from.map_or(first, |when| when.start(now));
    let to = selection.to.map_or(last, |when| when.end(now));
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

fn output() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

const ALL_IS_LOST: &str = "\
Whoever loses this key or its passphrase can never read anything again that was \
encrypted for it: there is no other way in.";

/// So many messages of the quarantine are shown.
const QUARANTINE_ROWS: usize = 1000;

/// So many differences are shown.
const ALARMS: usize = 100;

const YEAR_1970_MS: u64 = 365 * 86_400_000;
