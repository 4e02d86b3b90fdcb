//! `zk-ctl publish`: data of a person's, sealed as the device's own and
//! delivered, now or with the next run.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zk_agent::{Config, MAX_DATA};
use zk_envelope::{Content, DeviceEvent, PreviousStream, Report, Sealer, StreamId};
use zk_publish::{Options, Publisher, State};
use zk_spool::{AppendError, Reason, Spool, Stats};

use crate::Error;
use crate::agent;
use crate::arguments::{Common, Publish};
use crate::device::Device;
use crate::files;
use crate::outcome::{Outcome, table};

pub(crate) fn publish(common: &Common, arguments: &Publish) -> Result<Outcome, Error> {
    let config = common.read()?;
    let dir = spool_dir(&config, arguments.spool.as_deref())?;
    let input = files::read(arguments.file.as_deref(), MAX_DATA, FITS)?;
    let content_type = match &arguments.content_type {
        Some(given) => given,
        None => guess(&input),
    };
    // Another key, server or spool than the agent's is not the agent's business.
    let own =
        common.hsm.is_some() || arguments.endpoint.endpoint.is_some() || arguments.spool.is_some();
    if !own
        && let Some(socket) = &config.socket.listen
        && let Some((stream, sequence)) =
            agent::hand_over(socket, content_type, input.to_vec(), arguments.timeout)?
    {
        return Ok(taken(&config, content_type, input.len(), &stream, sequence));
    }
    let device = Device::open(common, &arguments.endpoint)?;

    let deadline = Instant::now() + arguments.timeout;
    let spool = Arc::new(open(&dir, deadline)?);
    let spool_error = |source| Error::Spool {
        dir: dir.clone(),
        source,
    };
    let mut sealing = Sealing {
        sealer: device.sealer(StreamId(spool.stream().0))?,
        device: &device,
        spool: &spool,
        dir: &dir,
    };
    let earlier = sealing.stats()?.records;
    let receipts = sealing.begin(earlier)?;
    let content = Content::Data {
        content_type,
        body: &input,
    };
    let sequence = sealing.append(content, Room::Usual)?;

    let publisher = Publisher::spawn(
        Arc::clone(&spool),
        device.target.clone(),
        Arc::clone(&device.tls),
        Options::default(),
        |records: &[&[u8]], limit| zk_envelope::pack(records, limit),
    )
    .map_err(Error::Thread)?;
    let seen = publisher.wait_for(left(deadline), |status| {
        let hopeless = matches!(
            status.state,
            State::Failed | State::Forbidden | State::Refusing
        );
        hopeless || spool.stats().is_ok_and(|stats| stats.records == 0)
    });
    let state = seen.unwrap_or_else(|| publisher.status()).state;
    let status = publisher.stop(Duration::ZERO);
    drop(publisher);

    let stats = spool.stats().map_err(spool_error)?;
    let losses = spool.losses().map_err(spool_error)?;
    let loss_of = |sequence: u64| {
        losses
            .iter()
            .filter(|loss| loss.stream == spool.stream())
            .find(|loss| (loss.first..=loss.last).contains(&sequence))
            .map(|loss| loss.reason)
    };
    // What is confirmed is forgotten, so that its receipt must have arrived.
    let arrived = |receipt: &&(u64, u64)| {
        let at = receipt.1;
        !waits(&spool, &stats, at) && loss_of(at).is_none()
    };
    // Of several, nobody knows which.
    let unclear = losses.iter().any(|loss| {
        loss.reason == Reason::Several && receipts.iter().all(|(named, _)| *named != loss.id)
    });
    if !unclear && let Some((loss, _)) = receipts.iter().take_while(arrived).last() {
        spool.confirm(*loss).map_err(spool_error)?;
    }
    let lost = loss_of(sequence);
    let end = match lost {
        Some(Reason::Refused) => End::Refused,
        Some(Reason::Damaged | Reason::Dropped) => End::Lost,
        _ if !waits(&spool, &stats, sequence) => End::Delivered,
        _ if matches!(state, State::Forbidden | State::Refusing) => End::Forbidden,
        _ => End::Kept,
    };
    let stream = spool.stream();
    if let Some(spool) = Arc::into_inner(spool) {
        spool.close().map_err(spool_error)?;
    }

    let mut rows = vec![[
        end.as_str().to_owned(),
        format!(
            "sequence {sequence} of stream {stream}, {} bytes of {content_type}",
            input.len()
        ),
    ]];
    if earlier > 0 {
        let text = format!("{earlier} of earlier runs, which go first");
        rows.push(["before it".to_owned(), text]);
    }
    rows.push(["waiting".to_owned(), stats.records.to_string()]);
    if let Some(error) = &status.last_error {
        rows.push(["because".to_owned(), error.clone()]);
    }
    let json = json!({
        "outcome": end.as_str(),
        "device": device.config.device.id.as_str(),
        "stream": stream.to_string(),
        "sequence": sequence,
        "contentType": content_type,
        "bytes": input.len(),
        "earlier": earlier,
        "delivered": status.records,
        "waiting": stats.records,
        "spool": dir,
        "traceId": status.last_trace_id,
        "error": status.last_error,
    });
    let outcome = Outcome {
        exit: end.exit_code(),
        ..Outcome::done(table(&rows), json)
    };
    Ok(match end {
        End::Delivered => outcome,
        End::Kept => outcome.hint("It is kept: the next zk-ctl publish delivers it first."),
        End::Forbidden => outcome.hint(
            "It is kept, but nothing is delivered before the server lets this device publish: \
             see zk-ctl doctor, and zk-setup device list.",
        ),
        End::Refused => outcome.hint(format!(
            "It will not be tried again; it lies in {}. Once the server takes it: zk-ctl spool \
             rejected retry --all --dir {}",
            dir.join("rejected").display(),
            dir.display()
        )),
        End::Lost => outcome.hint("The spool lost it: is the disk in order? Publish it again."),
    })
}

/// The agent has it, which delivers it among its own records.
fn taken(
    config: &Config,
    content_type: &str,
    bytes: usize,
    stream: &str,
    sequence: u64,
) -> Outcome {
    let text = format!(
        "taken  sequence {sequence} of stream {stream}, {bytes} bytes of {content_type}\nby     the \
         agent: it is on its disk, and goes out among its records"
    );
    let json = json!({
        "outcome": "taken",
        "device": config.device.id.as_str(),
        "stream": stream,
        "sequence": sequence,
        "contentType": content_type,
        "bytes": bytes,
        "earlier": null,
        "delivered": null,
        "waiting": null,
        "spool": config.spool.dir,
        "traceId": null,
        "error": null,
    });
    Outcome::done(text, json)
}

/// What became of the record.
#[derive(Clone, Copy)]
enum End {
    Delivered,
    Forbidden,
    Kept,
    Lost,
    Refused,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Forbidden => "forbidden",
            Self::Kept => "kept",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }

    fn exit_code(self) -> u8 {
        match self {
            Self::Delivered => 0,
            Self::Lost => 1,
            Self::Kept => 4,
            Self::Forbidden | Self::Refused => 5,
        }
    }
}

/// Makes records on the stream of the spool.
struct Sealing<'a> {
    sealer: Sealer,
    device: &'a Device,
    spool: &'a Spool,
    dir: &'a Path,
}

impl Sealing<'_> {
    /// What comes first: a new stream says so, and what earlier runs lost is
    /// named, so that the stream audits as complete. Returns the losses' ids and
    /// the numbers of their receipts.
    ///
    /// While records of earlier runs wait, receipts may wait among them, so that
    /// nothing is named before these are delivered.
    fn begin(&mut self, earlier: u64) -> Result<Vec<(u64, u64)>, Error> {
        if self.stats()?.next_sequence == 1 {
            let previous = self.spool.predecessor().map(|before| PreviousStream {
                stream: StreamId(before.stream.0),
                last: before.last_sequence,
            });
            let event = DeviceEvent::StreamStarted { previous };
            self.append(Content::Report(&Report::DeviceEvent(event)), Room::Receipts)?;
        }
        let mut receipts = Vec::new();
        if earlier > 0 {
            return Ok(receipts);
        }
        for loss in self.spool.losses().map_err(|error| self.failed(error))? {
            let report = Report::LossReceipt(zk_agent::receipt_of(&loss, self.spool.stream()));
            let sequence = self.append(Content::Report(&report), Room::Receipts)?;
            receipts.push((loss.id, sequence));
        }
        Ok(receipts)
    }

    fn append(&mut self, content: Content<'_>, room: Room) -> Result<u64, Error> {
        let Self {
            sealer,
            device: Device { hsm, clock, .. },
            ..
        } = self;
        let seal = |sequence| {
            sealer
                .seal(hsm, &clock.now(), sequence, content)
                .map(|envelope| envelope.to_bytes())
        };
        let outcome = match room {
            Room::Usual => self.spool.append_with(seal),
            Room::Receipts => self.spool.append_receipt_with(seal),
        };
        outcome.map_err(|error| match error {
            AppendError::Seal(error) => Error::Seal(error),
            AppendError::Spool(error) => self.failed(error),
        })
    }

    fn stats(&self) -> Result<Stats, Error> {
        self.spool.stats().map_err(|error| self.failed(error))
    }

    fn failed(&self, source: zk_spool::Error) -> Error {
        Error::Spool {
            dir: self.dir.into(),
            source,
        }
    }
}

/// Which room in the spool a record may take.
#[derive(Clone, Copy)]
enum Room {
    Usual,
    /// Kept free, so that a full spool can still say what it lost.
    Receipts,
}

/// Whether a record of the spool's stream waits: everything before it goes
/// first.
fn waits(spool: &Spool, stats: &Stats, sequence: u64) -> bool {
    stats
        .oldest
        .is_some_and(|(stream, oldest)| stream != spool.stream() || oldest <= sequence)
}

/// Where records of zk-ctl wait: never in the agent's spool, and those of each
/// device in a spool of their own, since they go under its certificate and on
/// its stream whoever the machine is later.
fn spool_dir(config: &Config, given: Option<&Path>) -> Result<PathBuf, Error> {
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => config.spool.dir.with_file_name("zk-ctl-spool"),
    };
    let (own, agents) = (real(&dir), real(&config.spool.dir));
    if own.starts_with(&agents) || agents.starts_with(&own) {
        return Err(Error::SpoolOfAgent { dir });
    }
    Ok(dir.join(config.device.id.as_str()))
}

/// A path without links and without `..`, as it will be once it is made.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find_map(|ancestor| {
        let rest = path.strip_prefix(ancestor).ok()?;
        Some((ancestor.canonicalize().ok()?, rest))
    });
    let Some((mut real, rest)) = there else {
        return path;
    };
    for component in rest.components() {
        match component {
            Component::ParentDir => drop(real.pop()),
            component => real.push(component),
        }
    }
    real
}

/// Opens the spool; another zk-ctl that is at work is waited for.
fn open(dir: &Path, deadline: Instant) -> Result<Spool, Error> {
    let options = zk_spool::Options {
        cap: CAP,
        ..zk_spool::Options::default()
    };
    loop {
        match Spool::open(dir, options) {
            Err(zk_spool::Error::Locked { .. }) if !left(deadline).is_zero() => {
                std::thread::sleep(left(deadline).min(LOCK_PAUSE));
            }
            Ok(spool) => return Ok(spool),
            Err(source) => {
                let dir = dir.to_owned();
                return Err(Error::Spool { dir, source });
            }
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The media type of data that nobody named one for.
fn guess(bytes: &[u8]) -> &'static str {
    let json = matches!(
        serde_json::from_slice(bytes),
        Ok(Value::Object(_) | Value::Array(_))
    );
    match str::from_utf8(bytes) {
        Ok(_) if json => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    }
}

pub(crate) const FITS: &str = "goes into one record, because a message is bounded at 128 KiB and \
    carries it in hexadecimal; split it into smaller parts";

/// What may wait: a thousand of the largest records.
const CAP: u64 = 64 << 20;

const LOCK_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use p256::ecdsa::SigningKey;
    use zk_envelope::{
        BootId, ClockQuality, Content, Moment, OwnerKey, Sealer, StreamId, Timestamp,
    };

    use zk_agent::MAX_DATA;

    use super::guess;

    #[test]
    fn what_may_be_published_fits_in_the_worst_case() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let owners: Vec<_> = (0..8)
            .map(|_| OwnerKey::generate().unwrap().public_key().clone())
            .collect();
        let device = "d".repeat(64).parse().unwrap();
        let stream = StreamId([1; 16]);
        let mut sealer = Sealer::new(device, stream, key.verifying_key(), &owners).unwrap();
        let moment = Moment {
            boot: BootId([2; 16]),
            since_boot_ms: u64::MAX,
            time: Timestamp::MAX,
            clock: ClockQuality::Unknown,
        };
        let content = Content::Data {
            content_type: &"t".repeat(255),
            body: &vec![0; MAX_DATA],
        };
        let record = sealer.seal(&key, &moment, 1, content).unwrap().to_bytes();
        let (message, _) = zk_envelope::pack(&[record], usize::MAX).unwrap();
        assert!(message.len() <= zk_envelope::MAX_MESSAGE);
    }

    #[test]
    fn the_content_decides_about_its_type() {
        for (data, expected) in [
            (&br#"{"a":1}"#[..], "application/json"),
            (b" [1, 2]\n", "application/json"),
            (b"21.437\n", "text/plain; charset=utf-8"),
            (b"{not json}", "text/plain; charset=utf-8"),
            ("21 \u{b0}C".as_bytes(), "text/plain; charset=utf-8"),
            (b"\xff\xd8\xff", "application/octet-stream"),
        ] {
            assert_eq!(guess(data), expected, "{data:?}");
        }
    }
}
