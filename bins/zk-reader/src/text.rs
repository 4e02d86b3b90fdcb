//! For people: rows of a table, a record in full, an audit in words.
//!
//! Whatever a store or a sender can choose goes through [`escaped`] or
//! [`clipped`]: it can move no cursor, colour nothing and begin no line.

use std::fmt::{self, Write as _};

use jiff::SignedDuration;
use zk_cli::{clipped, escaped};
use zk_envelope::{
    ClockBefore, ClockQuality, DeviceEvent, DeviceId, Header, KeyState, Kind, LossReason,
    RecipientId, Report, TimeAnchor, TrustFile,
};
use zk_sensors::Reading;
use zk_verify::{AlarmKind, Reason};

use crate::reader::{Record, State};

/// Records as rows of fixed width, so that they can be shown as they come.
///
/// Sensor readings have a row each, with the time of the reading; `?` behind a
/// time says that the device knew nothing of its clock, `~` that the time is by
/// an anchor of the device's, which knows better than its clock did then. Other contents are
/// summarised, alarms follow their record. A record that does not verify has
/// the word `REFUSED` for its kind, and its time and number are only what it
/// claims.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    device_width: usize,
    /// Of the terminal, if rows have to be narrower than they would be.
    fit: Option<usize>,
}

impl Table {
    /// A table wide enough for these devices.
    #[must_use]
    pub fn new<'a>(devices: impl IntoIterator<Item = &'a DeviceId>) -> Self {
        let widest = devices
            .into_iter()
            .map(|device| device.as_str().len())
            .max();
        Self {
            device_width: widest.unwrap_or(0).max("DEVICE".len()),
            fit: None,
        }
    }

    /// The same in so many columns: closer together if it takes that, and then
    /// what is still too long is cut off, with a `…`.
    #[must_use]
    pub fn fit(self, columns: usize) -> Self {
        let widest = WIDTH_BESIDES_DEVICE + self.device_width;
        let fit = (columns < widest).then_some(columns);
        Self { fit, ..self }
    }

    /// The names of the columns.
    #[must_use]
    pub fn heading(&self) -> String {
        self.row(
            "TIME",
            "DEVICE",
            "NUMBER",
            "KIND",
            &self.sensor("SENSOR", "VALUE", "QUALITY"),
        )
    }

    /// The rows of one record.
    #[must_use]
    pub fn rows(&self, record: &Record) -> Vec<String> {
        let device = record.device.as_str();
        let mut rows = Vec::new();
        match &record.state {
            State::Open { content, .. } => {
                let header = content.header();
                let number = header.sequence.to_string();
                let kind = header.kind.to_string();
                if let Some(readings) = record.readings() {
                    rows.extend(readings.readings.iter().map(|reading| {
                        let time = dated(record, reading.at).map_or_else(
                            || time(&format!("{:.3}", reading.at), header.clock),
                            |dated| format!("{dated}~"),
                        );
                        let rest = self.sensor_of(reading);
                        self.row(&time, device, &number, &kind, &rest)
                    }));
                }
                if rows.is_empty() {
                    let time = match record.dated {
                        Some(dated) => format!("{}~", dated.time),
                        None => time(&header.time.to_string(), header.clock),
                    };
                    let summary = summary(content);
                    rows.push(self.row(&time, device, &number, &kind, &summary));
                }
            }
            State::Sealed { record, error } => {
                rows.push(self.claim(device, record.header(), "SEALED", &error.to_string()));
            }
            State::Refused { claimed, reason } => {
                let why = format!("{reason}: {}", explain(*reason));
                rows.push(self.claim(device, claimed, "REFUSED", &why));
            }
            State::Damaged { detail } => {
                let what = format!("{} at {}", clipped(detail, 200), clipped(&record.key, 100));
                rows.push(self.row("-", device, "-", "DAMAGED", &what));
            }
        }
        // Why a record is refused stands in its row.
        let alarms = record
            .alarms
            .iter()
            .filter(|kind| !matches!(kind, AlarmKind::Refused { .. }));
        let indent = if self.fit.is_some() { 2 } else { 26 };
        rows.extend(alarms.map(|kind| format!("{:indent$}ALARM: {}", "", alarm(kind))));
        rows
    }

    fn claim(&self, device: &str, header: &Header, kind: &str, what: &str) -> String {
        let time = time(&header.time.to_string(), header.clock);
        self.row(
            &time,
            device,
            &header.sequence.to_string(),
            kind,
            &escaped(what).to_string(),
        )
    }

    fn row(&self, time: &str, device: &str, number: &str, kind: &str, rest: &str) -> String {
        let width = self.device_width;
        let row = match self.fit {
            None => format!("{time:<25} {device:<width$} {number:>8}  {kind:<12}  {rest}"),
            Some(columns) => {
                let row = format!("{time:<25} {device:<width$} {number:>6} {kind} {rest}");
                let row = row.trim_end();
                if row.chars().count() <= columns {
                    return row.to_owned();
                }
                let left = row.chars().take(columns.saturating_sub(1));
                left.chain(['…']).collect()
            }
        };
        row.trim_end().to_owned()
    }

    fn sensor_of(&self, reading: &Reading) -> String {
        let value = reading
            .value
            .map_or("-".to_owned(), |value| format!("{value} °C"));
        let name = reading.sensor.to_string();
        self.sensor(&name, &value, reading.quality.as_str())
    }

    fn sensor(&self, sensor: &str, value: &str, quality: &str) -> String {
        match self.fit {
            None => format!("{sensor:<15}  {value:>12}  {quality}"),
            Some(_) => format!("{sensor:<15} {value:>10} {quality}"),
        }
    }
}

/// The widest row of a reading, without its device: time 25, number 8, kind 12,
/// sensor 15, value 12, quality 13, and what is between them.
const WIDTH_BESIDES_DEVICE: usize = 25 + 1 + 1 + 8 + 2 + 12 + 2 + 15 + 2 + 12 + 2 + 13;

/// A record in full.
pub(crate) fn page(record: &Record, trust: &TrustFile, owner: RecipientId) -> String {
    let mut page = Page(String::new());
    page.line("key", escaped(&record.key));
    page.line("device", &record.device);
    match &record.state {
        State::Open {
            record: verified,
            content,
        } => {
            page.line("state", "verified and opened");
            page.header(verified.header(), trust, owner);
            page.dated(record);
            page.sizes(verified.encrypted_data().len());
            page.delivery(record, Some(verified.header()));
            page.line(
                "content",
                format_args!("{}, {} bytes", content.content_type(), content.body().len()),
            );
            page.alarms(record);
            page.0.push('\n');
            page.body(record, content);
        }
        State::Sealed {
            record: verified,
            error,
        } => {
            page.line(
                "state",
                format_args!("SEALED: verified, but it does not open: {error}"),
            );
            page.header(verified.header(), trust, owner);
            page.dated(record);
            page.sizes(verified.encrypted_data().len());
            page.delivery(record, Some(verified.header()));
            page.alarms(record);
        }
        State::Refused { claimed, reason } => {
            page.line(
                "state",
                format_args!("REFUSED, {reason}: {}", explain(*reason)),
            );
            page.line("", "what follows is only what it claims");
            page.header(claimed, trust, owner);
            page.delivery(record, None);
        }
        State::Damaged { detail } => {
            page.line("state", format_args!("DAMAGED: {}", clipped(detail, 1000)));
            page.delivery(record, None);
        }
    }
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, name: &str, value: impl fmt::Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{}", format_args!("{name:<12} {value}"));
    }

    fn header(&mut self, header: &Header, trust: &TrustFile, owner: RecipientId) {
        self.line(
            "kind",
            format_args!("{} ({})", header.kind, kind_in_words(header.kind)),
        );
        self.line(
            "stream",
            format_args!("{} (one spool of the device)", header.stream),
        );
        self.line("number", format_args!("{} of that stream", header.sequence));
        self.line("time", header.time);
        self.line(
            "clock",
            format_args!("{}: {}", header.clock, clock_in_words(header.clock)),
        );
        self.line("boot", header.boot);
        let (seconds, millis) = (header.since_boot_ms / 1000, header.since_boot_ms % 1000);
        self.line("since boot", format_args!("{seconds}.{millis:03} s"));
        let signer = match trust.key(&header.device, header.signer) {
            Some(known) => format!("{} in the trust file", key_state(known.state)),
            None => "NOT in the trust file".into(),
        };
        self.line("signer", format_args!("{} ({signer})", header.signer));
        let expected = trust
            .devices
            .get(&header.device)
            .map(|device| &device.owners);
        for (i, id) in header.recipients.iter().enumerate() {
            let known = expected.is_some_and(|owners| owners.contains(id));
            let who = match (*id == owner, known) {
                (true, true) => "you",
                (true, false) => "you, but none of the device's owners in the trust file",
                (false, true) => "an owner in the trust file",
                (false, false) => "NOT an owner in the trust file",
            };
            self.line(
                if i == 0 { "encrypted to" } else { "" },
                format_args!("{id} ({who})"),
            );
        }
    }

    fn dated(&mut self, record: &Record) {
        if let Some(dated) = record.dated {
            let error = clock_error(dated.error_ms);
            self.line(
                "made at",
                format_args!("{}, {error}, by a time anchor of its boot", dated.time),
            );
        }
    }

    fn sizes(&mut self, encrypted: usize) {
        self.line(
            "size",
            format_args!("{encrypted} bytes, and a signature of 64"),
        );
    }

    fn delivery(&mut self, record: &Record, header: Option<&Header>) {
        let Some(delivery) = &record.delivery else {
            return;
        };
        let late = header.map_or(String::new(), |header| {
            let (received, made) = (delivery.received_at.as_millis(), header.time.as_millis());
            let (distance, side) = (
                received.abs_diff(made),
                if received < made { "before" } else { "after" },
            );
            format!(" ({} {side} its time)", span(distance))
        });
        self.line("received", format_args!("{}{late}", delivery.received_at));
        self.line(
            "brought by",
            format_args!("certificate {}", clipped(&delivery.principal, 100)),
        );
        if delivery.again > 0 {
            self.line(
                "delivered",
                format_args!("{} times, stored once", delivery.again.saturating_add(1)),
            );
        }
    }

    fn alarms(&mut self, record: &Record) {
        for kind in &record.alarms {
            self.line("ALARM", alarm(kind));
        }
    }

    fn body(&mut self, record: &Record, content: &zk_envelope::Opened) {
        if let Some(readings) = record.readings() {
            let table = Table::new([&record.device]);
            for reading in &readings.readings {
                let _ = writeln!(
                    self.0,
                    "{:.3}  {}",
                    reading.at,
                    table.sensor_of(reading).trim_end()
                );
            }
        } else if content.header().kind != Kind::Data && content.report().is_ok() {
            let _ = writeln!(self.0, "{}", summary(content));
        } else {
            self.0.push_str(&dump(content.body()));
        }
    }
}

/// Bytes of anybody: as text, line by line, if that is what they are, or as
/// hex.
pub(crate) fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    if let Ok(text) = str::from_utf8(bytes)
        && !text
            .chars()
            .any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    {
        for line in text.lines() {
            let _ = writeln!(out, "{}", escaped(line));
        }
        return out;
    }
    for (i, row) in bytes.chunks(16).enumerate() {
        let _ = write!(out, "{:06x} ", i * 16);
        for byte in row {
            let _ = write!(out, " {byte:02x}");
        }
        let shown = |byte: &u8| {
            if byte.is_ascii_graphic() {
                char::from(*byte)
            } else {
                '.'
            }
        };
        let text: String = row.iter().map(shown).collect();
        let _ = writeln!(out, "{:pad$}  {text}", "", pad = (16 - row.len()) * 3);
    }
    out
}

pub(crate) fn alarm(kind: &AlarmKind) -> String {
    match kind {
        AlarmKind::UnexpectedRecipient(id) => {
            format!("encrypted also for {id}, who is none of the device's owners")
        }
        AlarmKind::OwnerLeftOut(id) => format!("not encrypted for {id}, an owner of the device"),
        AlarmKind::Refused { reason, signer } => {
            format!("{reason}: {} (signer {signer})", explain(*reason))
        }
        other => format!("{other:?}"),
    }
}

pub(crate) fn key_state(state: KeyState) -> String {
    match state {
        KeyState::Active => "active".into(),
        KeyState::Retired => "retired".into(),
        KeyState::Revoked { at } => format!("revoked since {at}"),
    }
}

pub(crate) fn loss(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Dropped => "dropped: the spool was full",
        LossReason::Damaged => "damaged by the storage medium",
        LossReason::Rejected => "not taken: the spool was full",
        LossReason::Refused => "refused by the cloud for good",
        _ => "for a reason that this version does not know",
    }
}

/// `1 record`, `2 records`.
pub(crate) fn counted(count: u128, noun: &str) -> String {
    match (count, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {noun}s"),
    }
}

/// Milliseconds in the two largest units.
pub(crate) fn span(ms: u64) -> String {
    let (seconds, millis) = (ms / 1000, ms % 1000);
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes, rest) {
        (0, 0, 0, 0) => format!("{millis} ms"),
        (0, 0, 0, s) => format!("{s}.{millis:03} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

pub(crate) fn explain(reason: Reason) -> &'static str {
    match reason {
        Reason::BadSignature => "changed, or not signed by the key that it names",
        Reason::PrincipalMismatch => "names another device",
        Reason::RevokedDevice => "received after its signing key was revoked",
        Reason::SignerMismatch => "the trust file knows no such key of the device",
        Reason::UnknownDevice => "the trust file does not know the device",
        _ => "not as it should be",
    }
}

fn time(text: &str, clock: ClockQuality) -> String {
    let doubt = if clock == ClockQuality::Unknown {
        "?"
    } else {
        ""
    };
    format!("{text}{doubt}")
}

/// A time in a record's body, by the anchor that dates the record.
pub(crate) fn dated(record: &Record, at: jiff::Timestamp) -> Option<String> {
    let shift = SignedDuration::from_millis(record.shift()?);
    let at = at.saturating_add(shift).unwrap_or(at);
    Some(format!("{at:.3}"))
}

fn summary(content: &zk_envelope::Opened) -> String {
    match content.report() {
        Ok(Some(report)) => report_in_words(&report),
        Ok(None) => {
            let (body, content_type) = (content.body(), clipped(content.content_type(), 40));
            let size = body.len();
            match str::from_utf8(body) {
                Ok(text) => format!("{content_type}, {size} bytes: {}", clipped(text, 60)),
                Err(_) => format!("{content_type}, {size} bytes, no text"),
            }
        }
        Err(_) => {
            let body = String::from_utf8_lossy(content.body());
            format!("of a later version: {}", clipped(&body, 60))
        }
    }
}

fn report_in_words(report: &Report) -> String {
    match report {
        Report::LossReceipt(receipt) => {
            let why = loss(receipt.reason);
            match receipt.range {
                Some(range) if range.first == range.last => {
                    format!("lost {} of stream {}, {why}", range.first, range.stream)
                }
                Some(range) => {
                    format!(
                        "lost {} to {} of stream {}, {why}",
                        range.first, range.last, range.stream
                    )
                }
                None => format!("lost {} without a number, {why}", receipt.records),
            }
        }
        Report::TimeAnchor(TimeAnchor { before, error_ms }) => {
            let error = clock_error(*error_ms);
            match before {
                Some(ClockBefore { time, clock }) => {
                    format!("the clock was set, {error}; before, it said {time} ({clock})")
                }
                None => format!("the clock is right, {error}"),
            }
        }
        Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None }) => {
            "the device's first stream begins".into()
        }
        Report::DeviceEvent(DeviceEvent::StreamStarted {
            previous: Some(previous),
        }) => {
            format!(
                "a new stream begins, after {} which ended at {}",
                previous.stream, previous.last
            )
        }
        Report::DeviceEvent(event) => event_in_words(event),
        Report::Heartbeat(beat) => format!(
            "every {}; {} waiting ({} bytes), {}",
            span(beat.interval_ms),
            counted(beat.waiting.into(), "record"),
            beat.waiting_bytes,
            counted(beat.sensors.into(), "sensor")
        ),
        other => format!(
            "of a later version: {}",
            clipped(&format!("{other:?}"), 200)
        ),
    }
}

/// What a device tells of itself and its security module.
pub(crate) fn event_in_words(event: &DeviceEvent) -> String {
    match event {
        DeviceEvent::PerimeterBroken { circuit, at } => {
            format!("perimeter circuit {circuit} was broken at {at}, by the module's clock")
        }
        DeviceEvent::PerimeterCleared { circuit } => {
            format!("perimeter circuit {circuit} is told of as whole again")
        }
        DeviceEvent::BatteryLow { millivolts } => {
            format!("the module's battery is low: {}", volts(*millivolts))
        }
        DeviceEvent::BatteryRestored { millivolts } => {
            format!(
                "the module's battery is not low any more: {}",
                volts(*millivolts)
            )
        }
        DeviceEvent::BindingChanged { bound, locked } => format!(
            "the module is {} to the machine that it is in{}",
            if *bound { "bound" } else { "NOT bound" },
            if *locked { ", for good" } else { "" },
        ),
        DeviceEvent::ModuleRecovered { outage_ms } => {
            format!("the module signs again, after {}", span(*outage_ms))
        }
        other => format!(
            "of a later version: {}",
            clipped(&format!("{other:?}"), 200)
        ),
    }
}

fn volts(millivolts: u32) -> String {
    format!("{}.{:03} V", millivolts / 1000, millivolts % 1000)
}

/// How far a clock that was set may be from the truth.
pub(crate) fn clock_error(ms: Option<u64>) -> String {
    match ms {
        Some(ms) => format!("to within {}", span(ms)),
        None => "nothing says how exactly".to_owned(),
    }
}

fn kind_in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "the application's own",
        Kind::LossReceipt => "records that will never arrive, and why",
        Kind::TimeAnchor => "the clock was set, or is known to be right",
        Kind::DeviceEvent => "something happened to the device itself",
        Kind::Heartbeat => "alive, and this is all so far",
    }
}

fn clock_in_words(clock: ClockQuality) -> &'static str {
    match clock {
        ClockQuality::Unknown => "nothing was known of it, the time may be wrong",
        ClockQuality::FreeRunning => "was set once and ran on its own",
        ClockQuality::Synchronised => "kept by a time source",
        ClockQuality::HardwareClock => "from a battery-backed clock",
    }
}
