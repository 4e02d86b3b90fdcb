//! `zk-ctl spool`: a look into a spool, whoever has it open.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde_json::{Value, json};
use zk_envelope::{Envelope, Timestamp};
use zk_spool::{Inspection, Loss, Reason, Record, StreamId, inspect};

use crate::Error;
use crate::arguments::{Common, SpoolCommand, SpoolPlace};
use crate::outcome::{Outcome, table};

pub(crate) fn run(common: &Common, command: &SpoolCommand) -> Result<Outcome, Error> {
    match command {
        SpoolCommand::Status(place) => {
            let (dir, seen) = look(common, place)?;
            Ok(status(&dir, &seen))
        }
        SpoolCommand::List { place, limit } => {
            let (dir, seen) = look(common, place)?;
            list(&dir, &seen, u64::from(*limit)).map_err(|source| Error::Spool { dir, source })
        }
    }
}

fn look(common: &Common, place: &SpoolPlace) -> Result<(PathBuf, Inspection), Error> {
    let dir = match &place.dir {
        Some(dir) => dir.clone(),
        None => common.read()?.spool.dir,
    };
    match inspect(&dir) {
        Ok(Some(seen)) => Ok((dir, seen)),
        Ok(None) => Err(Error::NoSpool { dir }),
        Err(source) => Err(Error::Spool { dir, source }),
    }
}

fn status(dir: &Path, seen: &Inspection) -> Outcome {
    let place = |place: Option<(StreamId, u64)>| match place {
        Some((stream, sequence)) => format!("{sequence} of stream {stream}"),
        None => "-".to_owned(),
    };
    let mut rows = vec![
        ["spool".to_owned(), dir.display().to_string()],
        [
            "waiting".to_owned(),
            format!("{} records, {}", seen.records, ByteSize(seen.bytes)),
        ],
        ["oldest".to_owned(), place(seen.oldest)],
        ["newest".to_owned(), place(seen.newest)],
        ["delivered to".to_owned(), place(seen.acked)],
        [
            "on disk".to_owned(),
            format!(
                "{} in {} segments",
                ByteSize(seen.disk_bytes),
                seen.segments
            ),
        ],
    ];
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
        "oldest": place_json(seen.oldest),
        "newest": place_json(seen.newest),
        "acknowledged": place_json(seen.acked),
        "diskBytes": seen.disk_bytes,
        "segments": seen.segments,
        "unreadable": seen.unreadable,
        "losses": seen.losses.iter().map(loss_json).collect::<Vec<_>>(),
    });
    Outcome::done(table(&rows), json)
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
        outcome
    })
}

/// What the header says that is not encrypted. Nothing of it is verified.
fn describe(record: &Record) -> ([String; 6], Value) {
    let envelope = Envelope::from_bytes(record.bytes()).ok();
    let header = envelope.as_ref().map(Envelope::unverified_header);
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

fn place_json(place: Option<(StreamId, u64)>) -> Value {
    match place {
        Some((stream, sequence)) => json!({ "stream": stream.to_string(), "sequence": sequence }),
        None => Value::Null,
    }
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
