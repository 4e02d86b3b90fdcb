//! `zk-ctl spool rejected`: records that the server refused for good.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use zk_envelope::Envelope;
use zk_publish::{Client, PublishError, Timeouts};
use zk_spool::{Inspection, Position, Record, Rejected, StreamId, inspect};

use super::{Progress, describe, directory, look};
use crate::Error;
use crate::arguments::{Common, Endpoint, RejectedCommand, SpoolPlace, Which};
use crate::device::Device;
use crate::outcome::{Outcome, table};

pub(super) fn run(common: &Common, command: &RejectedCommand) -> Result<Outcome, Error> {
    match command {
        RejectedCommand::List(place) => {
            let (dir, seen) = look(common, place)?;
            list(&dir, &seen)
        }
        RejectedCommand::Retry {
            place,
            which,
            timeout,
            endpoint,
        } => retry(common, place, which, *timeout, endpoint),
        RejectedCommand::Drop { place, which } => drop_them(common, place, which),
    }
}

fn list(dir: &Path, seen: &Inspection) -> Result<Outcome, Error> {
    let heading = ["RECORD", "BYTES", "KIND", "TIME", "CLOCK"];
    let mut rows = vec![heading.map(str::to_owned)];
    let mut list = Vec::new();
    visit(dir, seen, |record| {
        let ([_, _, bytes, kind, time, clock], mut object) = describe(&record);
        rows.push([name(&record), bytes, kind, time, clock]);
        object["name"] = name(&record).into();
        list.push(object);
        ControlFlow::Continue(())
    })?;
    let text = if list.is_empty() {
        "nothing was refused".to_owned()
    } else {
        table(&rows)
    };
    let json = json!({ "dir": dir, "records": list });
    Ok(Outcome::done(text, json))
}

fn drop_them(common: &Common, place: &SpoolPlace, which: &Which) -> Result<Outcome, Error> {
    let (dir, seen, lock) = locked(common, place)?;
    let chosen = choose(&dir, &seen, which)?;
    let mut names = Vec::new();
    let mut failure = None;
    visit(&dir, &seen, |record| {
        if !chosen.contains(&(record.stream(), record.sequence())) {
            return ControlFlow::Continue(());
        }
        if let Err(error) = remove(&dir, &lock, record.position()) {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        names.push(name(&record));
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    let rows = names
        .iter()
        .map(|name| ["dropped".to_owned(), name.clone()]);
    let rows: Vec<_> = rows.collect();
    let json = json!({ "dir": dir, "dropped": names });
    Ok(Outcome::done(said(&rows), json))
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Delivered,
    /// It is no record, or not of this device: it would only end in quarantine.
    Unfit,
    /// It was not its turn any more.
    Untried,
    Refused,
    Kept,
    /// The server does not let this device publish.
    Forbidden,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Forbidden => "forbidden",
            Self::Kept => "kept",
            Self::Refused => "refused",
            Self::Unfit => "unfit",
            Self::Untried => "untried",
        }
    }

    fn exit_code(self) -> u8 {
        match self {
            Self::Delivered => 0,
            Self::Unfit => 3,
            Self::Kept | Self::Untried => 4,
            Self::Forbidden | Self::Refused => 5,
        }
    }
}

/// Each is published alone, so that what the server says is of this one, and is
/// removed as soon as the server has it. If this ends in between, it is published
/// again some day, which the store takes for what it is.
fn retry(
    common: &Common,
    place: &SpoolPlace,
    which: &Which,
    limit: Duration,
    endpoint: &Endpoint,
) -> Result<Outcome, Error> {
    let (dir, seen, lock) = locked(common, place)?;
    let chosen = choose(&dir, &seen, which)?;
    let device = Device::open(common, endpoint)?;
    let default = Timeouts::default();
    let timeouts = Timeouts {
        connect: default.connect.min(limit),
        handshake: default.handshake.min(limit),
        response: default.response.min(limit),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let mut client = Client::new(device.target.clone(), Arc::clone(&device.tls), timeouts);

    let mut rows = Vec::new();
    let mut list = Vec::new();
    let mut worst = End::Delivered;
    let mut stopped = false;
    let mut failure = None;
    let mut progress = Progress::new();
    visit(&dir, &seen, |record| {
        let name = name(&record);
        if !chosen.contains(&(record.stream(), record.sequence())) {
            return ControlFlow::Continue(());
        }
        progress.show(&format!("{} of {}: {name}", list.len() + 1, chosen.len()));
        let (end, why) = if stopped {
            (End::Untried, None)
        } else if let Some(why) = unfit(&device, &record) {
            (End::Unfit, Some(why.to_owned()))
        } else {
            match zk_envelope::pack(&[record.bytes()], usize::MAX) {
                Ok((message, _)) => publish(&runtime, &mut client, message),
                Err(error) => (End::Unfit, Some(error.to_string())),
            }
        };
        stopped |= matches!(end, End::Forbidden | End::Kept);
        worst = worst.max(end);
        let text = match &why {
            Some(why) => format!("{name}: {why}"),
            None => name.clone(),
        };
        rows.push([end.as_str().to_owned(), text]);
        list.push(json!({ "name": name, "outcome": end.as_str(), "error": why }));
        if end == End::Delivered
            && let Err(error) = remove(&dir, &lock, record.position())
        {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    progress.end();
    if let Some(error) = failure {
        return Err(error);
    }
    let count = |end: End| {
        let of = |object: &&Value| object["outcome"] == end.as_str();
        list.iter().filter(of).count()
    };
    let json = json!({
        "dir": dir,
        "delivered": count(End::Delivered),
        "left": list.len() - count(End::Delivered),
        "records": list,
    });
    let outcome = Outcome {
        exit: worst.exit_code(),
        ..Outcome::done(said(&rows), json)
    };
    Ok(match worst {
        End::Delivered => outcome,
        End::Unfit => outcome.hint(
            "What is unfit was not sent: it would end in quarantine. zk-ctl spool rejected drop \
             removes it.",
        ),
        End::Refused => outcome.hint(
            "The server refuses what is refused still; is its topic and size limit the right one? \
             It is kept.",
        ),
        End::Kept | End::Untried => {
            outcome.hint("What was not delivered is kept: see zk-ctl doctor.")
        }
        End::Forbidden => outcome.hint(
            "The server does not let this device publish: see zk-ctl doctor, and zk-setup device \
             list. What was not delivered is kept.",
        ),
    })
}

fn publish(
    runtime: &tokio::runtime::Runtime,
    client: &mut Client,
    message: Vec<u8>,
) -> (End, Option<String>) {
    match runtime.block_on(client.publish(message)) {
        Ok(_) => (End::Delivered, None),
        Err(error) => {
            let end = match &error {
                PublishError::Refused { .. } => End::Refused,
                PublishError::Forbidden { .. } | PublishError::CertificateRefused { .. } => {
                    End::Forbidden
                }
                _ => End::Kept,
            };
            (end, Some(crate::server::with_causes(&error)))
        }
    }
}

/// Why a file is not what the device has sealed under that name, if it is not.
fn unfit(device: &Device, record: &Record) -> Option<&'static str> {
    let Ok(envelope) = Envelope::from_bytes(record.bytes()) else {
        return Some("no record; was the file written only in part?");
    };
    let header = envelope.unverified_header();
    if header.device != device.config.device.id {
        return Some("of another device");
    }
    if (header.stream.0, header.sequence) != (record.stream().0, record.sequence()) {
        return Some("another record than its name says");
    }
    // By a key that the device had before, it is for the server to judge.
    let verified = envelope.verify(device.hsm.public_key());
    matches!(verified, Err(zk_envelope::Error::BadSignature))
        .then_some("damaged: its signature does not fit")
}

/// The spool, as nobody else has it: what is seen stays so.
fn locked(common: &Common, place: &SpoolPlace) -> Result<(PathBuf, Inspection, Rejected), Error> {
    let dir = directory(common, place)?;
    let lock = match Rejected::lock(&dir) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Err(Error::NoSpool { dir }),
        Err(zk_spool::Error::Locked { holder, .. }) => {
            let holder = named(holder);
            return Err(Error::SpoolInUse { dir, holder });
        }
        Err(source) => return Err(Error::Spool { dir, source }),
    };
    match inspect(&dir) {
        Ok(Some(seen)) => Ok((dir, seen, lock)),
        Ok(None) => Err(Error::NoSpool { dir }),
        Err(source) => Err(Error::Spool { dir, source }),
    }
}

/// The program and its process id, as far as the system tells.
fn named(holder: Option<u32>) -> String {
    let Some(process) = holder else {
        return "another process".to_owned();
    };
    match std::fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!(
            "{} (process {process})",
            crate::server::printable(name.trim())
        ),
        Err(_) => format!("process {process}"),
    }
}

/// Which records: by stream and number.
type Places = BTreeSet<(StreamId, u64)>;

/// Those that were named.
fn choose(dir: &Path, seen: &Inspection, which: &Which) -> Result<Places, Error> {
    let mut all = Places::new();
    visit(dir, seen, |record| {
        all.insert((record.stream(), record.sequence()));
        ControlFlow::Continue(())
    })?;
    if which.all {
        return Ok(all);
    }
    let mut chosen = Places::new();
    for name in &which.records {
        let named = |(stream, sequence): &&(StreamId, u64)| {
            *sequence == name.sequence && stream.to_string().starts_with(&name.stream)
        };
        let found: Vec<_> = all.iter().filter(named).collect();
        let [place] = found[..] else {
            return Err(Error::NoRecord {
                record: name.to_string(),
                found: found.len(),
                dir: dir.to_owned(),
            });
        };
        chosen.insert(*place);
    }
    Ok(chosen)
}

fn remove(dir: &Path, lock: &Rejected, position: Position) -> Result<(), Error> {
    lock.remove(position).map_err(|source| Error::Spool {
        dir: dir.to_owned(),
        source,
    })
}

fn visit(
    dir: &Path,
    seen: &Inspection,
    see: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<(), Error> {
    seen.visit_rejected(see).map_err(|source| Error::Spool {
        dir: dir.to_owned(),
        source,
    })
}

/// What a person calls it.
fn name(record: &Record) -> String {
    let stream: String = record.stream().to_string().chars().take(8).collect();
    format!("{stream}/{}", record.sequence())
}

fn said(rows: &[[String; 2]]) -> String {
    if rows.is_empty() {
        "nothing was refused".to_owned()
    } else {
        table(rows)
    }
}
