//! Readings as CSV, for spreadsheets and for programs that know no JSON.

use std::fmt::Display;
use std::io::{self, Write};

use csv::{Terminator, WriterBuilder};
use zk_cli::escaped;
use zk_envelope::Header;

use crate::reader::{Record, State};
use crate::text::{alarm, dated, explain};

/// Writes records as CSV (RFC 4180): a heading, then a row for each sensor
/// reading, each ended by CR LF.
///
/// The columns, in this order:
///
/// | column | what |
/// | --- | --- |
/// | `time` | of the reading, UTC, `2026-11-23T11:20:44.123Z`; empty without a reading |
/// | `device` | |
/// | `stream`, `sequence` | of the record; with `device` they say which record it is |
/// | `sensor` | `28-0000000a0001` |
/// | `celsius` | `21.437`; empty if the quality says that there is no value |
/// | `quality` | of the reading: `ok`, `power-on`, `empty` and so on |
/// | `clock` | what was known of the device's clock: `synchronised`, `unknown` and so on |
/// | `signed_time` | of the record |
/// | `received_at` | by the store's word |
/// | `state` | `open`: verified and opened; `sealed`, `refused`, `damaged` |
/// | `detail` | of the latter three: why, and the key in the store of what is damaged |
/// | `alarms` | separated by `; ` |
/// | `dated` | `time` as it was, if something knows better than the device's clock did then |
/// | `dated_error_ms` | by how much that may be wrong; empty if nothing says so |
///
/// Spreadsheets take a text for a formula if it begins with one of `= + - @` or
/// their wide forms. A text (`device`, `detail`, `alarms`) that does, or that
/// begins with `'`, has one `'` put before it: whoever takes one leading `'` away
/// has the text. Control characters are escaped. Numbers stay as they are.
#[derive(Debug)]
pub struct Csv<W: Write>(csv::Writer<W>);

impl<W: Write> Csv<W> {
    /// Writes the heading.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn new(to: W) -> io::Result<Self> {
        let mut writer = WriterBuilder::new()
            .terminator(Terminator::CRLF)
            .from_writer(to);
        writer.write_record(COLUMNS)?;
        Ok(Self(writer))
    }

    /// Writes the rows of a record and answers how many: one for each reading if
    /// it is open, one without a reading if it does not verify or open.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn record(&mut self, record: &Record) -> io::Result<u64> {
        let alarms: Vec<_> = record.alarms.iter().map(alarm).collect();
        let received_at = record.delivery.as_ref().map(|from| from.received_at);
        let mut row = Row {
            device: text(&record.device),
            received_at: received_at.map_or(String::new(), |at| at.to_string()),
            alarms: text(alarms.join("; ")),
            error_ms: record
                .dated
                .and_then(|dated| dated.error_ms)
                .map_or(String::new(), |error| error.to_string()),
            ..Row::default()
        };
        match &record.state {
            State::Open { content, .. } => {
                row.header(content.header());
                row.state = "open";
                let readings = record.readings().unwrap_or_default().readings;
                for reading in &readings {
                    let value = reading.value.map(|value| value.to_string());
                    let [time, sensor, celsius] = [
                        format!("{:.3}", reading.at),
                        reading.sensor.to_string(),
                        value.unwrap_or_default(),
                    ];
                    let quality = reading.quality.as_str();
                    row.dated = dated(record, reading.at).unwrap_or_default();
                    self.write(&row, [&time, &sensor, &celsius, quality])?;
                }
                return Ok(readings.len() as u64);
            }
            State::Sealed { record, error } => {
                row.header(record.header());
                row.state = "sealed";
                row.detail = text(error);
            }
            State::Refused { claimed, reason } => {
                row.header(claimed);
                row.state = "refused";
                row.detail = text(format_args!("{reason}: {}", explain(*reason)));
            }
            State::Damaged { detail } => {
                row.state = "damaged";
                row.detail = text(format_args!("{detail} at {}", record.key));
            }
        }
        self.write(&row, [""; 4])?;
        Ok(1)
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn write(&mut self, row: &Row, reading: [&str; 4]) -> io::Result<()> {
        let [time, sensor, celsius, quality] = reading;
        let row = [
            time,
            &row.device,
            &row.stream,
            &row.sequence,
            sensor,
            celsius,
            quality,
            &row.clock,
            &row.signed_time,
            &row.received_at,
            row.state,
            &row.detail,
            &row.alarms,
            &row.dated,
            &row.error_ms,
        ];
        Ok(self.0.write_record(row)?)
    }
}

/// What all rows of a record share.
#[derive(Default)]
struct Row {
    device: String,
    stream: String,
    sequence: String,
    clock: String,
    signed_time: String,
    received_at: String,
    state: &'static str,
    detail: String,
    alarms: String,
    dated: String,
    error_ms: String,
}

impl Row {
    fn header(&mut self, header: &Header) {
        self.stream = header.stream.to_string();
        self.sequence = header.sequence.to_string();
        self.clock = header.clock.to_string();
        self.signed_time = header.time.to_string();
    }
}

/// A text that no spreadsheet takes for a formula.
fn text(text: impl Display) -> String {
    let text = escaped(&text.to_string()).to_string();
    if text.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠', '\'']) {
        format!("'{text}")
    } else {
        text
    }
}

const COLUMNS: [&str; 15] = [
    "time",
    "device",
    "stream",
    "sequence",
    "sensor",
    "celsius",
    "quality",
    "clock",
    "signed_time",
    "received_at",
    "state",
    "detail",
    "alarms",
    "dated",
    "dated_error_ms",
];
