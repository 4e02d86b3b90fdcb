//! `zk-reader export`.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};
use zk_reader::{Csv, Reader, Record, Registry, State};
use zk_store::Store;

use super::{Tally, alarms, hint_at_unset_clocks, open, outcome, output, select, stopped, times};
use crate::config::Settings;
use crate::{Failure, Outcome};
use zk_reader::arguments::{ExportArguments, Format};

pub(crate) async fn export(
    settings: &Settings,
    arguments: &ExportArguments,
) -> Result<Outcome, Failure> {
    let times = times(&arguments.selection)?;
    let file = arguments.out.as_deref();
    // Whether it can be written is told before anybody types a passphrase. No
    // file stays until then, as who is asked for it may as well end this.
    if let Some(path) = file {
        Target::check(path, arguments.force)?;
    }
    let (reader, store) = open(settings).await?;
    let registry = select(&reader, &store, &arguments.selection).await?;
    let mut export = Export {
        reader: &reader,
        store: &store,
        registry: &registry,
        times,
        arguments,
        tally: Tally::default(),
        rows: 0,
        without_reading: 0,
        progress: Progress::new(file.is_some()),
    };
    match file {
        None => export.write(&mut output()).await?,
        Some(path) => {
            // From here on no signal that can be caught leaves the file behind.
            let (stopped, hung_up) = (stopped()?, hung_up()?);
            let mut target = Target::new(path, arguments.force)?;
            tokio::select! {
                done = export.write(&mut target.to) => done?,
                () = stopped => return Err(interrupted()),
                () = hung_up => return Err(interrupted()),
            }
            target.finish()?;
        }
    }
    export.report();
    alarms(&registry.differences);
    let fine = export.tally.is_fine() && registry.differences.is_empty();
    Ok(outcome(fine))
}

struct Export<'a> {
    reader: &'a Reader,
    store: &'a Store,
    registry: &'a Registry,
    times: std::ops::RangeInclusive<zk_envelope::Timestamp>,
    arguments: &'a ExportArguments,
    tally: Tally,
    rows: u64,
    /// Verified and opened, but nothing for a table of readings.
    without_reading: u64,
    progress: Progress,
}

impl Export<'_> {
    async fn write(&mut self, to: &mut impl Write) -> Result<(), Failure> {
        match self.arguments.format {
            Format::Csv => {
                let mut csv = Csv::new(&mut *to)?;
                self.records(|record| csv.record(record)).await?;
                csv.finish()?;
            }
            Format::Jsonl => {
                let line = |record: &Record| writeln!(to, "{}", record.to_json()).map(|()| 1);
                self.records(line).await?;
            }
        }
        Ok(to.flush()?)
    }

    async fn records(
        &mut self,
        mut write: impl FnMut(&Record) -> io::Result<u64>,
    ) -> Result<(), Failure> {
        let mut dates = self.reader.dates();
        for device in &self.registry.devices {
            let mut records = self.reader.records(device, self.times.clone());
            while let Some(record) = records.next().await {
                let mut record = record?;
                if !self.arguments.as_signed {
                    dates.date(&mut record).await?;
                }
                self.tally.count(&record);
                let open = matches!(record.state, State::Open { .. });
                if open || self.arguments.include_refused {
                    let rows = write(&record)?;
                    self.rows += rows;
                    self.without_reading += u64::from(rows == 0);
                }
                self.progress.show(self.tally.records);
            }
            hint_at_unset_clocks(self.store, device, &self.times).await?;
        }
        self.progress.end();
        Ok(())
    }

    fn report(&self) {
        let Tally {
            records,
            refused,
            sealed,
            damaged,
            ..
        } = self.tally;
        let what = match self.arguments.format {
            Format::Csv => "rows",
            Format::Jsonl => "lines",
        };
        let mut told = format!("{} {what} of {records} records", self.rows);
        if let Some(path) = &self.arguments.out {
            told = format!("{}: {told}", path.display());
        }
        if self.without_reading > 0 {
            let n = self.without_reading;
            told += &format!("; {n} have no sensor reading, --format jsonl has them");
        }
        if refused + sealed + damaged > 0 {
            let done = if self.arguments.include_refused {
                "included"
            } else {
                "left out"
            };
            told += &format!("; {done}: {refused} refused, {sealed} sealed, {damaged} damaged");
        }
        eprintln!("zk-reader: {}", zk_cli::printable(&told));
        self.tally.report();
    }
}

fn interrupted() -> Failure {
    anyhow!("interrupted; nothing was written").into()
}

/// Resolves once the terminal is gone, unless that was to be ignored (nohup).
fn hung_up() -> io::Result<impl Future<Output = ()>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let mut hangup = match ignored {
        // The lowest bit is signal 1.
        Some(set) if set & 1 == 1 => None,
        _ => Some(signal(SignalKind::hangup())?),
    };
    Ok(async move {
        match &mut hangup {
            Some(hangup) => drop(hangup.recv().await),
            None => std::future::pending().await,
        }
    })
}

/// A file that appears whole, or not at all.
struct Target {
    path: PathBuf,
    force: bool,
    to: BufWriter<NamedTempFile>,
}

impl Target {
    /// Whether it can be made, by a file without a name.
    fn check(path: &Path, force: bool) -> Result<(), Failure> {
        let name = || path.display().to_string();
        match path.symlink_metadata() {
            Ok(there) if !there.is_file() => {
                return Err(anyhow!(
                    "{}: is no regular file; leave --out away to write to standard output",
                    name()
                )
                .into());
            }
            Ok(_) if !force => {
                return Err(anyhow!("{}: exists; --force replaces it", name()).into());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(anyhow!(error).context(name()).into()),
        }
        tempfile::tempfile_in(parent(path)).with_context(name)?;
        Ok(())
    }

    fn new(path: &Path, force: bool) -> Result<Self, Failure> {
        let file = tempfile::Builder::new()
            .prefix(".zk-reader-")
            .tempfile_in(parent(path))
            .with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            force,
            to: BufWriter::new(file),
        })
    }

    /// On the disk, under its name.
    fn finish(self) -> Result<(), Failure> {
        let name = || self.path.display().to_string();
        let file = self.to.into_inner().map_err(io::IntoInnerError::into_error);
        let file = file.with_context(name)?;
        file.as_file().sync_all().with_context(name)?;
        let kept = if self.force {
            file.persist(&self.path)
        } else {
            file.persist_noclobber(&self.path)
        };
        kept.map_err(|error| error.error).with_context(name)?;
        let directory = std::fs::File::open(parent(&self.path)).with_context(name)?;
        directory.sync_all().with_context(name)?;
        Ok(())
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// How far it is, on a terminal.
struct Progress(Option<Instant>);

impl Progress {
    fn new(wanted: bool) -> Self {
        Self((wanted && io::stderr().is_terminal()).then(Instant::now))
    }

    fn show(&mut self, records: u64) {
        if let Some(last) = &mut self.0
            && last.elapsed() > Duration::from_millis(200)
        {
            *last = Instant::now();
            eprint!("\r{records} records");
        }
    }

    fn end(&self) {
        if self.0.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
