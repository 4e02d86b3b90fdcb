//! `zk-ctl hsm watch`: a line whenever something about a security module changes.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zk_envelope::Timestamp;
use zk_hsm::{Counters, Hsm, State};

use super::Report;
use crate::Error;
use crate::arguments::{self, Common};
use crate::outcome::{Outcome, Output};

pub(crate) fn watch(
    common: &Common,
    arguments: &arguments::Watch,
    json: bool,
) -> Result<Outcome, Error> {
    let (events, happened) = channel();
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::Thread)?;
    let ended = events.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // nobody listens once it has ended
            let _ = ended.send(Event::Signal);
        }
    });
    let hsm = common.key()?;
    let count = if arguments.once {
        Some(1)
    } else {
        arguments.count
    };
    let interval = arguments.interval;
    // a look may be stuck in the module, and a signal isn't to wait for it
    std::thread::spawn(move || looks(&hsm, interval, count, &events));
    let ready = match print(&happened, json) {
        // whoever read it has seen enough
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => true,
        outcome => outcome.map_err(Error::Print)?,
    };
    Ok(Outcome {
        output: Output::Said,
        exit: if ready { 0 } else { 3 },
        ..Outcome::done(String::new(), Value::Null)
    })
}

enum Event {
    /// It was looked at.
    Look(Box<Look>),
    /// That was the last time.
    Last,
    /// A signal has come.
    Signal,
}

/// What was to be seen at one moment.
struct Look {
    at: SystemTime,
    state: &'static str,
    /// Why it isn't ready.
    cause: Option<String>,
    /// What it measured, if it could.
    report: Option<Report>,
    counters: Counters,
}

/// Looks until there is nobody to tell, or often enough.
fn looks(hsm: &Hsm, interval: Duration, count: Option<u64>, events: &Sender<Event>) {
    let mut left = count;
    while left != Some(0) {
        left = left.map(|left| left - 1);
        let look = Look::now(hsm);
        if events.send(Event::Look(Box::new(look))).is_err() {
            return;
        }
        if left != Some(0) {
            std::thread::sleep(interval);
        }
    }
    // nobody listens once a signal has come
    let _ = events.send(Event::Last);
}

impl Look {
    fn now(hsm: &Hsm) -> Self {
        let (report, failure) = match hsm.health() {
            Ok(health) => (Some(Report::new(&health)), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (state, cause) = match hsm.state() {
            State::Ready => ("ready", None),
            State::Reopening { cause, .. } => ("reopening", Some(cause.to_string())),
            State::Wedged { operation, since } => {
                let cause = format!("{operation} has been in it for {:?}", since.elapsed());
                ("wedged", Some(cause))
            }
            State::Failed { cause } => ("failed", Some(cause.to_string())),
            _ => ("unknown", None),
        };
        Self {
            at: SystemTime::now(),
            state,
            cause: cause.or(failure),
            report,
            counters: hsm.counters(),
        }
    }

    fn changes(&self, before: Option<&Self>) -> Vec<&'static str> {
        let Some(before) = before else {
            return vec!["state", "health", "counters"];
        };
        let mut changes = Vec::new();
        if self.state != before.state || self.report.is_some() != before.report.is_some() {
            changes.push("state");
        }
        if let (Some(now), Some(then)) = (&self.report, &before.report) {
            changes.extend(now.changes(then));
        }
        if counts(&self.counters) != counts(&before.counters) {
            changes.push("counters");
        }
        changes
    }

    fn text(&self, changes: &[&str]) -> String {
        let has = |name: &str| changes.contains(&name);
        let mut parts = Vec::new();
        if has("state") {
            let cause = self.cause.as_ref();
            let cause = cause.map_or_else(String::new, |cause| format!(" ({cause})"));
            parts.push(format!("state {}{cause}", self.state));
        }
        for (name, text) in self.report.iter().flat_map(Report::items) {
            if has("health") || has(name) {
                parts.push(format!("{name} {text}"));
            }
        }
        if has("counters") {
            let counts = counts(&self.counters);
            let counts: Vec<_> = counts
                .iter()
                .filter(|(_, count)| *count > 0)
                .map(|(name, count)| format!("{count} {name}"))
                .collect();
            if !counts.is_empty() {
                parts.push(counts.join(", "));
            }
        }
        format!("{}  {}", Timestamp::from(self.at), parts.join("; "))
    }

    fn to_json(&self, changes: &[&str]) -> Value {
        let counters = &self.counters;
        json!({
            "time": Timestamp::from(self.at).to_string(),
            "changed": changes,
            "state": self.state,
            "cause": self.cause,
            "health": self.report.as_ref().map(Report::to_json),
            "counters": {
                "transientFailures": counters.transient_failures,
                "fatalFailures": counters.fatal_failures,
                "refusals": counters.logic_failures,
                "retries": counters.retries,
                "reopens": counters.reopens,
                "timeouts": counters.timeouts,
                "lateResults": counters.late_results,
            },
        })
    }
}

/// Those that say that something went wrong, with their names.
fn counts(counters: &Counters) -> [(&'static str, u64); 7] {
    [
        ("transient failures", counters.transient_failures),
        ("fatal failures", counters.fatal_failures),
        ("refusals", counters.logic_failures),
        ("retries", counters.retries),
        ("reopens", counters.reopens),
        ("timeouts", counters.timeouts),
        ("late results", counters.late_results),
    ]
}

/// Prints what changes until the end. Returns whether all was well then.
fn print(happened: &Receiver<Event>, json: bool) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let mut before: Option<Box<Look>> = None;
    loop {
        let look = match happened.recv() {
            Ok(Event::Look(look)) => look,
            Ok(Event::Signal) => return Ok(true),
            Ok(Event::Last) | Err(_) => break,
        };
        let changes = look.changes(before.as_deref());
        if changes.is_empty() {
            continue;
        }
        if json {
            writeln!(out, "{}", look.to_json(&changes))?;
        } else {
            writeln!(out, "{}", look.text(&changes))?;
        }
        out.flush()?;
        before = Some(look);
    }
    Ok(before.is_none_or(|last| last.state == "ready" && last.report.is_some()))
}
