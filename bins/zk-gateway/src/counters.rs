//! What the gateway counts.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A snapshot of what the gateway has counted since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Answers, by status.
    pub answers: BTreeMap<u16, u64>,
    /// Bytes of request bodies.
    pub bytes: u64,
    /// Connections of proven devices, now.
    pub connections_open: u64,
    /// Connections of proven devices, ever.
    pub connections: u64,
    /// Of those, how many resumed a session and so cost no signature.
    pub resumed: u64,
    /// Connections closed because their device opened more than it may have.
    pub displaced: u64,
    /// Handshakes that failed, by cause: `certificate` (none, or one that is
    /// not accepted), `crowded` (too many of its address were under way or waited), `full`
    /// (no connection was free in time), `timeout`, and `other`.
    pub handshakes_failed: BTreeMap<&'static str, u64>,
    /// Records that were stored.
    pub stored: u64,
    /// Records that were stored already.
    pub duplicates: u64,
    /// Records stored that are over an hour ahead of their receipt.
    pub ahead: u64,
    /// Records, and messages as a whole, that were not accepted, by reason.
    pub quarantined: BTreeMap<&'static str, u64>,
    /// Of those, how many were past the quarantine's budget, and not kept.
    pub over_budget: u64,
    /// Times that the store was asked to take a message.
    pub store_calls: u64,
    /// Time that it took over them, all together.
    pub store_time: Duration,
    /// Times that the store failed, taking a message or looking up a device.
    pub store_failures: u64,
    /// Whether it has failed since it last took a message.
    pub store_failing: bool,
}

impl Counters {
    /// The Prometheus text format, version 0.0.4.
    pub(crate) fn prometheus(&self, certificate_expires: SystemTime) -> String {
        let expires = certificate_expires
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let mut page = Page::default();
        page.counter("answers_total", "Answers by status.")
            .by("status", &self.answers);
        page.counter("body_bytes_total", "Bytes of request bodies.")
            .value(self.bytes);
        page.gauge(
            "certificate_expires_seconds",
            "When the gateway's own certificate expires, since the epoch.",
        )
        .value(expires);
        page.gauge("connections_open", "Connections of proven devices.")
            .value(self.connections_open);
        page.counter("connections_total", "Connections of proven devices.")
            .value(self.connections);
        page.counter(
            "connections_displaced_total",
            "Connections closed for a newer one of their device.",
        )
        .value(self.displaced);
        page.counter(
            "handshakes_failed_total",
            "Handshakes that failed, by cause.",
        )
        .by("cause", &self.handshakes_failed);
        page.counter(
            "records_ahead_total",
            "Records stored that are over an hour ahead of their receipt.",
        )
        .value(self.ahead);
        page.counter(
            "records_duplicate_total",
            "Records that were stored already.",
        )
        .value(self.duplicates);
        page.counter(
            "records_over_budget_total",
            "Records not accepted, and not kept for want of room.",
        )
        .value(self.over_budget);
        page.counter(
            "records_quarantined_total",
            "Records and whole messages not accepted, by reason.",
        )
        .by("reason", &self.quarantined);
        page.counter("records_stored_total", "Records stored.")
            .value(self.stored);
        page.counter(
            "sessions_resumed_total",
            "Connections that resumed a session.",
        )
        .value(self.resumed);
        page.counter("store_calls_total", "Messages handed to the store.")
            .value(self.store_calls);
        page.counter("store_failures_total", "Times the store failed.")
            .value(self.store_failures);
        page.gauge(
            "store_failing",
            "Whether the store has failed since it last took a message.",
        )
        .value(u8::from(self.store_failing));
        page.counter("store_seconds_total", "Time the store took over messages.")
            .value(self.store_time.as_secs_f64());
        page.text
    }
}

/// [`Counters`] while they are counted.
///
/// One lock: it is held for an addition, a few times per request.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<Counters>);

impl Meters {
    pub(crate) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn read(&self) -> Counters {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A page of metrics. Writing to a `String` cannot fail.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn counter(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.family(name, "counter", help)
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.family(name, "gauge", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.name = name;
        let _ = write!(
            self.text,
            "# HELP zk_gateway_{name} {help}\n# TYPE zk_gateway_{name} {kind}\n"
        );
        self
    }

    fn value(&mut self, value: impl Display) {
        let _ = writeln!(self.text, "zk_gateway_{} {value}", self.name);
    }

    fn by(&mut self, label: &str, values: &BTreeMap<impl Display, u64>) {
        for (name, value) in values {
            let _ = writeln!(
                self.text,
                "zk_gateway_{}{{{label}=\"{name}\"}} {value}",
                self.name
            );
        }
    }
}
