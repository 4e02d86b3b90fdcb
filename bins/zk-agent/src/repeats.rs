//! Log lines that are not said over and over.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes warnings and errors as `format` does, but the same one again only after a
/// while, with how often it was not said meanwhile, as `repeats`.
///
/// The same: from one place in the program, with one text as `error` or `event`; where
/// there is none, with texts that differ in numbers alone.
pub(crate) struct Repeats<F> {
    format: F,
    /// Whether it writes an object in a line.
    json: bool,
    now: fn() -> Instant,
    said: Mutex<HashMap<(Identifier, String), Said>>,
}

struct Said {
    at: Instant,
    unsaid: u64,
}

impl<F> Repeats<F> {
    pub(crate) fn new(format: F, json: bool) -> Self {
        Self {
            format,
            json,
            now: Instant::now,
            said: Mutex::default(),
        }
    }

    /// How often it was not said since it last was; `None`: it is not said now either.
    fn say(&self, what: (Identifier, String)) -> Option<u64> {
        let now = (self.now)();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = said.get_mut(&what)
            && now.saturating_duration_since(before.at) < AGAIN
        {
            before.unsaid += 1;
            return None;
        }
        if said.len() >= MOST {
            said.retain(|_, before| now.saturating_duration_since(before.at) < AGAIN);
        }
        // So many different ones: rather some of them again than memory without an end.
        if said.len() >= MOST {
            said.clear();
        }
        let first = Said { at: now, unsaid: 0 };
        let before = said.insert(what, first);
        Some(before.map_or(0, |before| before.unsaid))
    }
}

impl<S, N, F> FormatEvent<S, N> for Repeats<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let about = event.metadata();
        if *about.level() > Level::WARN || about.target() == ON_REQUEST {
            return self.format.format_event(context, writer, event);
        }
        let mut text = Text::default();
        event.record(&mut text);
        let repeats = match self.say((about.callsite(), text.into())) {
            None => return Ok(()),
            Some(0) => return self.format.format_event(context, writer, event),
            Some(repeats) => repeats,
        };
        let mut line = String::new();
        self.format
            .format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match line.strip_suffix('}') {
            Some(object) if self.json => writeln!(writer, "{object},\"repeats\":{repeats}}}"),
            _ => writeln!(writer, "{line} repeats={repeats}"),
        }
    }
}

/// What of an event tells it from others of its place.
#[derive(Default)]
struct Text {
    own: Option<String>,
    rest: String,
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        let without_numbers = |mut rest: Self| {
            rest.retain(|character| !character.is_ascii_digit());
            rest
        };
        text.own.unwrap_or_else(|| without_numbers(text.rest))
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if matches!(field.name(), "error" | "event") {
            self.own = Some(format!("{value:?}"));
        } else {
            // A text takes whatever is written.
            let _ = write!(self.rest, "{}={value:?} ", field.name());
        }
    }
}

/// Whoever asks for something hears each time what came of it.
pub(crate) const ON_REQUEST: &str = "zk_agent::on_request";

/// After this the same is said again.
const AGAIN: Duration = Duration::from_secs(600);
/// Different ones that are remembered.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;
    use std::io;
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Log {
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    thread_local! {
        /// How far this test's clock is ahead.
        static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    fn now() -> Instant {
        Instant::now() + AHEAD.get()
    }

    fn fails(error: &str, attempt: u32) {
        tracing::warn!(error, attempt, "next try in {attempt} s");
    }

    #[test]
    fn the_same_error_is_said_again_after_ten_minutes_with_a_count() {
        for json in [true, false] {
            AHEAD.set(Duration::ZERO);
            let log = Log::default();
            let logs = tracing_subscriber::fmt()
                .with_writer(log.clone())
                .without_time();
            let told = || {
                for attempt in 0..5 {
                    fails("no answer", attempt);
                }
                fails("another answer", 0);
                for records in 1..4 {
                    tracing::error!(records, reason = ?"full", "lost");
                    tracing::info!("this is no error");
                }
                AHEAD.set(AGAIN / 2);
                fails("no answer", 5);
                AHEAD.set(2 * AGAIN);
                fails("no answer", 6);
                fails("no answer", 7);
                tracing::error!(target: ON_REQUEST, "asked");
                tracing::error!(target: ON_REQUEST, "asked");
                for circuit in [1, 2, 1] {
                    tracing::warn!(event = ?("broken", circuit), "it has changed");
                }
            };
            if json {
                let logs = logs.json().map_event_format(|format| Repeats {
                    now,
                    ..Repeats::new(format, true)
                });
                tracing::subscriber::with_default(logs.finish(), told);
            } else {
                let logs = logs.with_ansi(false).map_event_format(|format| Repeats {
                    now,
                    ..Repeats::new(format, false)
                });
                tracing::subscriber::with_default(logs.finish(), told);
            }
            let lines = log.lines();
            let with = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
            assert_eq!(with("no answer"), 2, "{lines:#?}");
            assert_eq!(with("another answer"), 1);
            assert_eq!(with("lost"), 1);
            assert_eq!(with("this is no error"), 3);
            assert_eq!(with("asked"), 2);
            assert_eq!(with("it has changed"), 2);
            assert_eq!(lines.len(), 11);
            let again = &lines[6];
            if json {
                let again: serde_json::Value = serde_json::from_str(again).unwrap();
                assert_eq!(again["repeats"], 5);
                assert_eq!(again["fields"]["attempt"], 6);
            } else {
                assert!(again.ends_with("repeats=5"), "{again}");
            }
        }
    }
}
