//! What an agent process says it captured and took responsibility for, written
//! by itself beside its spool.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use zk_agent::Event;
use zk_envelope::{DeviceEvent, LossReceipt, Report, StreamId};
use zk_sensors::Reading;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// It begins: by the clock that is never set, and how far ahead the other is.
    Begins {
        since_boot_ms: u64,
        ahead_ms: i64,
    },
    /// The wall clock is about to be set so far ahead of the right one.
    ClockToBe(i64),
    /// It has been.
    ClockIs(i64),
    Captured(Vec<Reading>),
    Sealed {
        stream: StreamId,
        sequence: u64,
        readings: Vec<Reading>,
    },
    Reported {
        stream: StreamId,
        sequence: u64,
        receipt: Option<LossReceipt>,
        /// It says how the stream began.
        starts: bool,
    },
    GivenUp(Vec<Reading>),
    /// It has ended in order while its key did not answer: so many readings are
    /// counted, those that were captured last.
    Unsealed(u64),
    /// The agent has ended by itself.
    Failed,
    /// It has ended in order; what is left its key did not sign.
    Unsigned,
    /// The agent has ended in order.
    Stopped,
}

/// The journal of one process.
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    pub(crate) fn create(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create_new(true).open(path);
        Self(Mutex::new(file.unwrap()))
    }

    pub(crate) fn event(&self, event: Event<'_>) {
        self.line(&match event {
            Event::Captured(readings) => Line::Captured(readings.to_vec()),
            Event::Sealed {
                stream,
                sequence,
                readings,
            } => Line::Sealed {
                stream,
                sequence,
                readings: readings.to_vec(),
            },
            Event::Reported {
                stream,
                sequence,
                report,
            } => Line::Reported {
                stream,
                sequence,
                receipt: match report {
                    Report::LossReceipt(receipt) => Some(receipt.clone()),
                    _ => None,
                },
                starts: matches!(
                    report,
                    Report::DeviceEvent(DeviceEvent::StreamStarted { .. })
                ),
            },
            Event::GivenUp(readings) => Line::GivenUp(readings.to_vec()),
            other => panic!("{other:?} is new"),
        });
    }

    /// In the kernel's hands when it returns: a kill takes nothing back.
    pub(crate) fn line(&self, line: &Line) {
        let mut text = serde_json::to_string(line).unwrap();
        text.push('\n');
        self.0.lock().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

/// The lines of a journal. A process that was killed may have left a part of one
/// more.
pub(crate) fn read(path: &Path) -> Vec<Line> {
    let text = fs::read_to_string(path).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}
