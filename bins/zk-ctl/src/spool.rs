//! `zk-ctl spool`: a look into a spool, whoever has it open, and what to do about
//! records that the server refused.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde_json::{Value, json};
use zk_envelope::{Envelope, Header, Timestamp};
use zk_spool::{Damage, Inspection, Loss, Reason, Record, StreamId, inspect};

use crate::Error;
use crate::arguments::{Common, SpoolCommand, SpoolPlace};
use crate::outcome::{Outcome, Output, Progress, table};

mod rejected;
mod wear;

pub(crate) fn run(common: &Common, command: &SpoolCommand) -> Result<Outcome, Error> {
    match command {
        SpoolCommand::Status(place) => {
            let (dir, seen) = look(common, place)?;
            let wear = wear::of(common, place);
            status(&dir, &seen, &wear).map_err(|source| Error::Spool { dir, source })
        }
        SpoolCommand::List { place, limit } => {
            let (dir, seen) = look(common, place)?;
            list(&dir, &seen, u64::from(*limit)).map_err(|source| Error::Spool { dir, source })
        }
        SpoolCommand::Verify(place) => {
            let (dir, seen) = look(common, place)?;
            verify(&dir, &seen).map_err(|source| Error::Spool { dir, source })
        }
        SpoolCommand::Export { place, out } => {
            let (dir, seen) = look(common, place)?;
            export(&dir, &seen, out.as_deref())
        }
        SpoolCommand::Rejected(command) => rejected::run(common, command),
    }
}

fn directory(common: &Common, place: &SpoolPlace) -> Result<PathBuf, Error> {
    Ok(match &place.dir {
        Some(dir) => dir.clone(),
        None => common.read()?.spool.dir,
    })
}

fn look(common: &Common, place: &SpoolPlace) -> Result<(PathBuf, Inspection), Error> {
    let dir = directory(common, place)?;
    match inspect(&dir) {
        Ok(Some(seen)) => Ok((dir, seen)),
        Ok(None) => Err(Error::NoSpool { dir }),
        Err(source) => Err(Error::Spool { dir, source }),
    }
}

fn status(dir: &Path, seen: &Inspection, wear: &wear::Wear) -> Result<Outcome, zk_spool::Error> {
    let mut oldest = None;
    seen.visit(|record| {
        oldest = Some(record);
        ControlFlow::Break(())
    })?;
    let newest = seen.newest_record()?;
    let place = |place: Option<(StreamId, u64)>, record: Option<&Record>| match place {
        Some((stream, sequence)) => {
            let time = record
                .filter(|record| (record.stream(), record.sequence()) == (stream, sequence))
                .and_then(time);
            let time = time.map_or_else(String::new, |time| format!(", of {time}"));
            format!("{sequence} of stream {stream}{time}")
        }
        None => "-".to_owned(),
    };
    let mut rows = vec![
        ["spool".to_owned(), dir.display().to_string()],
        [
            "waiting".to_owned(),
            format!("{} records, {}", seen.records, ByteSize(seen.bytes)),
        ],
        ["oldest".to_owned(), place(seen.oldest, oldest.as_ref())],
        ["newest".to_owned(), place(seen.newest, newest.as_ref())],
        ["delivered to".to_owned(), place(seen.acked, None)],
        [
            "on disk".to_owned(),
            format!(
                "{} in {} segments",
                ByteSize(seen.disk_bytes),
                seen.segments
            ),
        ],
        ["written".to_owned(), wear.text()],
    ];
    if seen.rejected > 0 {
        let text = format!(
            "{} records that the server refused, {}",
            seen.rejected,
            ByteSize(seen.rejected_bytes)
        );
        rows.push(["rejected".to_owned(), text]);
    }
    rows.extend(
        seen.losses
            .iter()
            .map(|loss| ["lost".to_owned(), loss_text(loss)]),
    );
    if seen.unreadable > 0 {
        let text = format!("{} segments can't be read", seen.unreadable);
        rows.push(["damaged".to_owned(), text]);
    }
    let json = json!({
        "dir": dir,
        "records": seen.records,
        "bytes": seen.bytes,
        "oldest": place_json(seen.oldest, oldest.as_ref()),
        "newest": place_json(seen.newest, newest.as_ref()),
        "acknowledged": place_json(seen.acked, None),
        "diskBytes": seen.disk_bytes,
        "segments": seen.segments,
        "unreadable": seen.unreadable,
        "rejected": seen.rejected,
        "rejectedBytes": seen.rejected_bytes,
        "written": wear.json(),
        "losses": seen.losses.iter().map(loss_json).collect::<Vec<_>>(),
    });
    let outcome = Outcome::done(table(&rows), json);
    Ok(if seen.rejected > 0 {
        outcome.hint("To see what the server refused: zk-ctl spool rejected list.")
    } else {
        outcome
    })
}

fn list(dir: &Path, seen: &Inspection, limit: u64) -> Result<Outcome, zk_spool::Error> {
    let heading = ["STREAM", "SEQUENCE", "BYTES", "KIND", "TIME", "CLOCK"];
    let mut rows = vec![heading.map(str::to_owned)];
    let mut list = Vec::new();
    seen.visit(|record| {
        let (row, object) = describe(&record);
        rows.push(row);
        list.push(object);
        if (list.len() as u64) < limit {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    let shown = list.len() as u64;
    let text = if shown == 0 {
        "nothing waits".to_owned()
    } else {
        table(&rows)
    };
    let json = json!({ "dir": dir, "waiting": seen.records, "records": list });
    let outcome = Outcome::done(text, json);
    Ok(if shown == limit && shown < seen.records {
        let waiting = seen.records;
        outcome.hint(format!("{shown} of {waiting} are shown; see --limit"))
    } else {
        hint_of_missing(outcome, seen, shown)
    })
}

/// What was left out is not passed over in silence.
fn hint_of_missing(outcome: Outcome, seen: &Inspection, shown: u64) -> Outcome {
    if shown >= seen.records {
        return outcome;
    }
    outcome.hint(format!(
        "{} of {} are missing: they were delivered meanwhile, or can't be read, which zk-ctl \
         spool verify tells",
        seen.records - shown,
        seen.records
    ))
}

fn verify(dir: &Path, seen: &Inspection) -> Result<Outcome, zk_spool::Error> {
    let mut progress = Progress::new();
    let report = seen.verify(|report| {
        let (segments, bytes) = (report.segments, ByteSize(report.bytes));
        progress.show(&format!(
            "{segments} of {} segments, {bytes}",
            seen.segments
        ));
    })?;
    progress.end();
    // What is up to here was delivered.
    let delivered = |damage: &Damage| {
        let acked = seen.acked;
        let (stream, _, last) = damage.lost?;
        Some(acked.is_some_and(|(of, to)| of == stream && last <= to))
    };
    let mut rows = vec![
        ["spool".to_owned(), dir.display().to_string()],
        [
            "read".to_owned(),
            format!(
                "{} records in {} segments, {}",
                report.records,
                report.segments,
                ByteSize(report.bytes)
            ),
        ],
    ];
    for damage in &report.damage {
        let place = match damage.bytes {
            0 => "is missing".to_owned(),
            bytes => format!("{bytes} bytes from {}", damage.offset),
        };
        let lost = match (damage.lost, delivered(damage)) {
            (Some((stream, first, last)), Some(true)) => {
                format!(": {first} to {last} of stream {stream}, delivered already")
            }
            (Some((stream, first, last)), _) => {
                format!(": LOST {first} to {last} of stream {stream}")
            }
            (None, _) => String::new(),
        };
        rows.push([
            "damaged".to_owned(),
            format!("{} {place}{lost}", damage.file),
        ]);
    }
    if report.damage.is_empty() {
        rows.push(["damaged".to_owned(), "nothing".to_owned()]);
    }
    let damage: Vec<_> = report
        .damage
        .iter()
        .map(|damage| {
            let lost = damage.lost.map(|(stream, first, last)| {
                json!({
                    "stream": stream.to_string(),
                    "first": first,
                    "last": last,
                    "delivered": delivered(damage),
                })
            });
            json!({
                "file": damage.file,
                "offset": damage.offset,
                "bytes": damage.bytes,
                "lost": lost,
            })
        })
        .collect();
    let json = json!({
        "dir": dir,
        "segments": report.segments,
        "records": report.records,
        "bytes": report.bytes,
        "damage": damage,
    });
    let outcome = Outcome::done(table(&rows), json);
    Ok(if report.damage.is_empty() {
        outcome
    } else {
        let outcome = Outcome { exit: 3, ..outcome };
        outcome.hint(
            "Nothing has to be done by hand: what the agent can't read any more it names as lost, \
             and goes on with the rest. But is the card in order?",
        )
    })
}

/// To lines of JSON, or to files of their own.
fn export(dir: &Path, seen: &Inspection, out: Option<&Path>) -> Result<Outcome, Error> {
    if let Some(out) = out {
        let made = DirBuilder::new().mode(0o700).create(out);
        made.map_err(|source| output_error(out, source))?;
    }
    let mut stdout = io::stdout().lock();
    let mut failure = None;
    let (mut records, mut bytes) = (0_u64, 0_u64);
    let visited = seen.visit(|record| {
        let written = match out {
            Some(out) => write_record(out, &record),
            None => {
                let (_, mut line) = describe(&record);
                line["record"] = base16ct::lower::encode_string(record.bytes()).into();
                writeln!(stdout, "{line}").map_err(Error::Print)
            }
        };
        if let Err(error) = written {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        records += 1;
        bytes += record.bytes().len() as u64;
        ControlFlow::Continue(())
    });
    visited.map_err(|source| Error::Spool {
        dir: dir.to_owned(),
        source,
    })?;
    let all = failure.is_none();
    match failure {
        // Whoever read it has seen enough.
        Some(Error::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Some(error) => return Err(error),
        None => stdout.flush().map_err(Error::Print)?,
    }
    drop(stdout);
    let Some(out) = out else {
        let outcome = Outcome::done(String::new(), Value::Null);
        let outcome = Outcome {
            output: Output::Said,
            ..outcome
        }
        .hint(format!("{records} records, {}", ByteSize(bytes)));
        return Ok(if all {
            hint_of_missing(outcome, seen, records)
        } else {
            outcome
        });
    };
    let synced = File::open(out).and_then(|out| out.sync_all());
    synced.map_err(|source| output_error(out, source))?;
    let text = format!(
        "{records} records, {}, in {}",
        ByteSize(bytes),
        out.display()
    );
    let json = json!({ "dir": dir, "out": out, "records": records, "bytes": bytes });
    Ok(hint_of_missing(Outcome::done(text, json), seen, records))
}

/// A file of mode 0600, durable but for its name.
fn write_record(out: &Path, record: &Record) -> Result<(), Error> {
    let name = format!("{}-{:020}.rec", record.stream(), record.sequence());
    let path = out.join(name);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| {
        file.write_all(record.bytes())?;
        file.sync_data()
    });
    written.map_err(|source| output_error(&path, source))
}

fn output_error(path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::AlreadyExists => Error::OutputExists { path },
        _ => Error::Output { path, source },
    }
}

/// What the header says that is not encrypted. Nothing of it is verified.
fn describe(record: &Record) -> ([String; 6], Value) {
    let header = header(record);
    let header = header.as_ref();
    let kind = header.map(|header| header.kind.to_string());
    let time = header.map(|header| header.time.to_string());
    let clock = header.map(|header| header.clock.to_string());
    let stream = record.stream().to_string();
    let object = json!({
        "stream": stream,
        "sequence": record.sequence(),
        "bytes": record.bytes().len(),
        "kind": kind,
        "device": header.map(|header| header.device.as_str()),
        "time": time,
        "clock": clock,
    });
    let row = [
        stream.chars().take(8).collect(),
        record.sequence().to_string(),
        record.bytes().len().to_string(),
        kind.unwrap_or_else(|| "not a record".to_owned()),
        time.unwrap_or_default(),
        clock.unwrap_or_default(),
    ];
    (row, object)
}

fn header(record: &Record) -> Option<Header> {
    let envelope = Envelope::from_bytes(record.bytes()).ok()?;
    Some(envelope.unverified_header().clone())
}

/// When a record was made, by its own word.
fn time(record: &Record) -> Option<Timestamp> {
    header(record).map(|header| header.time)
}

/// With the time of the record, if it is that of this place.
fn place_json(place: Option<(StreamId, u64)>, record: Option<&Record>) -> Value {
    let Some((stream, sequence)) = place else {
        return Value::Null;
    };
    let record = record.filter(|record| (record.stream(), record.sequence()) == (stream, sequence));
    json!({
        "stream": stream.to_string(),
        "sequence": sequence,
        "time": record.and_then(time).map(|time| time.to_string()),
    })
}

/// Why, how many, and which.
pub(crate) fn loss_text(loss: &Loss) -> String {
    let records = match loss.records {
        0 => "an unknown number".to_owned(),
        records => records.to_string(),
    };
    let which = match loss.reason {
        Reason::Full | Reason::Several => String::new(),
        _ => format!(
            ", {} to {} of stream {}",
            loss.first, loss.last, loss.stream
        ),
    };
    format!("{records} ({}){which}", reason(loss.reason))
}

fn loss_json(loss: &Loss) -> Value {
    let time = |ms| Timestamp::from_millis(ms).map(|time| time.to_string());
    json!({
        "reason": reason(loss.reason),
        "stream": loss.stream.to_string(),
        "first": loss.first,
        "last": loss.last,
        "records": loss.records,
        "since": time(loss.since_ms),
        "until": time(loss.until_ms),
    })
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Damaged => "damaged",
        Reason::Dropped => "dropped",
        Reason::Refused => "refused",
        Reason::Full => "no-room",
        _ => "several",
    }
}
