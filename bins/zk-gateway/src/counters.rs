//! What the gateway counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

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
    pub(crate) fn prometheus(&self, certificate_expires: SystemTime) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("zk_gateway");
        registry.register_collector(Box::new(Page {
            counters: self.clone(),
            certificate_expires,
        }));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
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

/// One scrape.
#[derive(Debug)]
struct Page {
    counters: Counters,
    certificate_expires: SystemTime,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Counters {
            answers,
            bytes,
            connections_open,
            connections,
            resumed,
            displaced,
            handshakes_failed,
            stored,
            duplicates,
            ahead,
            quarantined,
            over_budget,
            store_calls,
            store_time,
            store_failures,
            store_failing,
        } = &self.counters;
        let expires = self.certificate_expires.duration_since(UNIX_EPOCH);
        let expires = expires.map_or(0, |since| since.as_secs());
        let mut page = Families(encoder);

        page.counters("answers", "Answers by status", "status", answers)?;
        page.counter("body_bytes", "Bytes of request bodies", bytes)?;
        page.gauge(
            "certificate_expires_seconds",
            "When the gateway's own certificate expires, since the epoch",
            expires,
        )?;
        page.gauge(
            "connections_open",
            "Connections of proven devices",
            *connections_open,
        )?;
        page.counter("connections", "Connections of proven devices", connections)?;
        page.counter(
            "connections_displaced",
            "Connections closed for a newer one of their device",
            displaced,
        )?;
        page.counters(
            "handshakes_failed",
            "Handshakes that failed, by cause",
            "cause",
            handshakes_failed,
        )?;
        page.counter(
            "records_ahead",
            "Records stored that are over an hour ahead of their receipt",
            ahead,
        )?;
        page.counter(
            "records_duplicate",
            "Records that were stored already",
            duplicates,
        )?;
        page.counter(
            "records_over_budget",
            "Records not accepted, and not kept for want of room",
            over_budget,
        )?;
        page.counters(
            "records_quarantined",
            "Records and whole messages not accepted, by reason",
            "reason",
            quarantined,
        )?;
        page.counter("records_stored", "Records stored", stored)?;
        page.counter(
            "sessions_resumed",
            "Connections that resumed a session",
            resumed,
        )?;
        page.counter("store_calls", "Messages handed to the store", store_calls)?;
        page.counter("store_failures", "Times the store failed", store_failures)?;
        page.gauge(
            "store_failing",
            "Whether the store has failed since it last took a message",
            u64::from(*store_failing),
        )?;
        page.counter(
            "store_seconds",
            "Time the store took over messages",
            &store_time.as_secs_f64(),
        )
    }
}

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter(&mut self, name: &str, help: &str, value: &impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(value, None)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &BTreeMap<impl ToString, u64>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, value) in values {
            family
                .encode_family(&[(label, of.to_string())])?
                .encode_counter::<NoLabelSet, _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }
}
