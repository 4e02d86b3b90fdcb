//! Metrics and health over plain HTTP, for this machine.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use crate::Error;
use crate::agent::{Status, Watch};
use crate::serve::{AGE, Server, http, next};

/// Serves metrics at `/metrics`, in Prometheus' text format 0.0.4, and health
/// at `/healthz`, from a thread of its own until dropped.
///
/// Health is 200 and `ok`, with a line for each of [`Watch::notices`], or 503 and
/// what somebody has to look after, a line each (see [`Watch::troubles`]). A link that
/// is down is no trouble: the agent is made for that.
#[derive(Debug)]
pub struct Metrics {
    _server: Server,
}

impl Metrics {
    /// Serves what `watch` sees on `listener`, which is bound to a loopback
    /// address: there is no TLS, and nobody is asked who they are.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn serve(listener: TcpListener, watch: Watch) -> Result<Self, Error> {
        listener.set_nonblocking(true).map_err(Error::Thread)?;
        let server = Server::spawn("metrics", async move |stopped| {
            tokio::select! {
                // A sender that is gone says the same as one that sends.
                _ = stopped => {}
                () = run(listener, &watch) => {}
            }
        })?;
        Ok(Self { _server: server })
    }
}

/// Accepts connections until dropped.
async fn run(listener: TcpListener, watch: &Watch) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics are not served"),
    };
    let places = Arc::new(Semaphore::new(MAX_SCRAPERS));
    loop {
        let Some((stream, place)) = next(&places, listener.accept()).await else {
            continue;
        };
        let watch = watch.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&watch, &request);
                async { Ok::<_, Infallible>(response) }
            });
            let serving = http(SILENCE).serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(AGE, serving).await {
                tracing::debug!(%error, "a metrics connection ended");
            }
            drop(place);
        });
    }
}

fn answer(watch: &Watch, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    // of what is asked for by HEAD the head alone is sent
    let method = match *request.method() {
        Method::HEAD => &Method::GET,
        ref method => method,
    };
    let (status, kind, text) = match (method, request.uri().path()) {
        (&Method::GET, "/metrics") => match page(watch) {
            Ok(page) => (StatusCode::OK, "text/plain; version=0.0.4", page),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", why),
        },
        (&Method::GET, "/healthz") => match watch.troubles() {
            troubles if troubles.is_empty() => {
                let lines = [vec!["ok".to_owned()], watch.notices()].concat();
                (StatusCode::OK, "text/plain", lines.join("\n") + "\n")
            }
            troubles => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                troubles.join("\n") + "\n",
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "GET /metrics or /healthz\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn page(watch: &Watch) -> Result<String, String> {
    let status = watch.status().map_err(|error| format!("{error}\n"))?;
    let mut registry = Registry::with_prefix("zk_agent");
    registry.register_collector(Box::new(Page {
        status,
        healthy: watch.troubles().is_empty(),
    }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).map_err(|error| format!("{error}\n"))?;
    Ok(text)
}

/// One scrape.
#[derive(Debug)]
struct Page {
    status: Status,
    healthy: bool,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Status {
            uptime,
            sampled,
            sealed,
            given_up,
            data_taken,
            data_refused,
            sensors,
            qualities,
            lost,
            clock,
            oldest_age,
            certificate_expires,
            spool,
            publisher,
            hsm,
            hsm_state,
            hsm_health,
        } = &self.status;
        let mut page = Families(encoder);

        page.gauge(
            "healthy",
            "Whether nothing needs anybody",
            u64::from(self.healthy),
        )?;
        page.measurement(
            "uptime_seconds",
            "For how long the agent has been running: what the counters are over",
            uptime.as_secs_f64(),
        )?;
        page.gauge(
            "certificate_expires_seconds",
            "When the device's certificate expires, since the epoch",
            since_epoch(*certificate_expires),
        )?;

        page.gauge(
            "sensors",
            "Thermometers that gave a good value in the last sweep",
            *sensors,
        )?;
        page.counter(
            "readings_sampled",
            "Readings taken, of any quality",
            *sampled,
        )?;
        page.counter(
            "readings_sealed",
            "Readings that lie in sealed records",
            *sealed,
        )?;
        page.counter(
            "readings_given_up",
            "Readings that neither key nor spool took; receipts name them",
            *given_up,
        )?;

        page.gauge("spool_records", "Records that wait", spool.records)?;
        page.gauge(
            "spool_bytes",
            "Bytes that wait, with their framing",
            spool.bytes,
        )?;
        let counts = |counts: &BTreeMap<&'static str, u64>| -> Vec<_> {
            counts.iter().map(|(name, count)| (*name, *count)).collect()
        };
        page.counters(
            "readings",
            "Readings taken from the sensors, by their quality",
            "quality",
            &counts(qualities),
        )?;
        page.counters(
            "lost",
            "Records and readings found lost, which receipts name, by reason",
            "reason",
            &counts(lost),
        )?;
        if let Some(clock) = clock {
            let now = clock.to_string();
            let qualities = ["free-running", "hardware-clock", "synchronised", "unknown"];
            page.gauges(
                "clock_quality",
                "How far the clock is to be believed: 1 for the last record's quality",
                "quality",
                &qualities.map(|quality| (quality, u64::from(quality == now))),
            )?;
        }
        page.measurement(
            "spool_oldest_age_seconds",
            "For how long the oldest record that waits has waited; 0: none waits",
            oldest_age.unwrap_or_default().as_secs_f64(),
        )?;
        page.counters(
            "data_records",
            "Records of data that other programs handed over, by what became of them",
            "outcome",
            &[("refused", *data_refused), ("taken", *data_taken)],
        )?;
        page.gauge(
            "spool_disk_bytes",
            "Bytes the spool takes on disk",
            spool.disk_bytes,
        )?;
        page.gauge("spool_unsynced", "Records not durable yet", spool.unsynced)?;
        page.gauge(
            "spool_losses",
            "Losses that no receipt names yet",
            u64::try_from(spool.losses).unwrap_or(u64::MAX),
        )?;
        page.counter("spool_appended", "Records appended", spool.appended)?;
        page.counter("spool_syncs", "Syncs of segments", spool.syncs)?;
        page.counter(
            "spool_state_syncs",
            "Syncs of the state file: what acknowledging takes",
            spool.state_syncs,
        )?;
        page.counter(
            "spool_written_bytes",
            "Bytes written to the spool",
            spool.written,
        )?;

        page.gauge(
            "publisher_online",
            "Whether the last message was delivered",
            u64::from(publisher.state == zk_publish::State::Online),
        )?;
        page.counter(
            "published_messages",
            "Messages the server took",
            publisher.messages,
        )?;
        page.counter("published_records", "Records in them", publisher.records)?;
        page.counter("published_bytes", "Bytes of them", publisher.bytes)?;
        page.counter(
            "publish_retries",
            "Attempts that failed and are made again",
            publisher.retries,
        )?;
        page.counter(
            "publish_rejected",
            "Records put aside because the server refused them for good",
            publisher.rejected,
        )?;
        page.counter("connections", "TLS connections made", publisher.connections)?;
        if let Some(last) = publisher.last_delivery {
            page.gauge(
                "last_delivery_seconds",
                "When the server last took a message, since the epoch",
                since_epoch(at(last)),
            )?;
        }

        page.gauges(
            "hsm_state",
            "How the key's module is: 1 for the state that it is in",
            "state",
            &states(hsm_state),
        )?;
        page.counter(
            "hsm_signatures",
            "Signatures made and found to verify",
            hsm.signatures,
        )?;
        page.counter(
            "hsm_bad_signatures",
            "Signatures that did not verify",
            hsm.bad_signatures,
        )?;
        page.counters(
            "hsm_failures",
            "Calls that the key's module failed or refused, by class",
            "class",
            &[
                ("fatal", hsm.fatal_failures),
                ("logic", hsm.logic_failures),
                ("transient", hsm.transient_failures),
            ],
        )?;
        page.counter(
            "hsm_retries",
            "Calls made a second time, after the module was opened again",
            hsm.retries,
        )?;
        page.counter(
            "hsm_reopens",
            "Times the module was opened again",
            hsm.reopens,
        )?;
        page.counter(
            "hsm_timeouts",
            "Calls given up while the module was at work",
            hsm.timeouts,
        )?;
        page.counter(
            "hsm_late_results",
            "Answers that came after their call was given up, and were discarded",
            hsm.late_results,
        )?;
        page.counter(
            "hsm_busy",
            "Calls that never reached the module, because too many were before them",
            hsm.busy,
        )?;
        page.histogram(
            "hsm_sign_seconds",
            "Time for one signature",
            &hsm.sign_latency,
        )?;
        if let Some((at, health)) = hsm_health {
            page.health(*at, health)?;
        }
        Ok(())
    }
}

fn states(now: &zk_hsm::State) -> [(&'static str, u64); 4] {
    use zk_hsm::State;
    [
        ("ready", matches!(now, State::Ready)),
        ("reopening", matches!(now, State::Reopening { .. })),
        ("wedged", matches!(now, State::Wedged { .. })),
        ("failed", matches!(now, State::Failed { .. })),
    ]
    .map(|(name, is)| (name, u64::from(is)))
}

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        count(
            self.0
                .encode_descriptor(name, help, None, MetricType::Counter)?,
            value,
        )
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, value) in values {
            count(family.encode_family(&[(label, *of)])?, *value)?;
        }
        Ok(())
    }

    /// Only what this model tells.
    fn health(&mut self, at: SystemTime, health: &zk_hsm::Health) -> fmt::Result {
        self.gauge(
            "hsm_measured_seconds",
            "When the key's module told what follows, since the epoch",
            since_epoch(at),
        )?;
        if let Some(binding) = health.binding {
            self.gauge(
                "hsm_bound",
                "Whether the module is in the machine that it is bound to",
                u64::from(binding.bound),
            )?;
            self.gauge(
                "hsm_binding_locked",
                "Whether the module is bound for good",
                u64::from(binding.locked),
            )?;
        }
        if let Some(volts) = health.battery_volts {
            self.measurement(
                "hsm_battery_volts",
                "Voltage of the module's battery",
                f64::from(volts),
            )?;
        }
        if let Some(degrees) = health.cpu_celsius {
            self.measurement(
                "hsm_temperature_celsius",
                "Temperature of the module's processor",
                f64::from(degrees),
            )?;
        }
        if let Some(time) = health.time {
            let ahead = match time.duration_since(at) {
                Ok(ahead) => ahead.as_secs_f64(),
                Err(behind) => -behind.duration().as_secs_f64(),
            };
            self.measurement(
                "hsm_clock_ahead_seconds",
                "By how much the module's clock, in whole seconds, was ahead of this machine's",
                ahead,
            )?;
        }
        if let Some(circuits) = &health.perimeter {
            let circuits: Vec<(String, u64)> = circuits
                .iter()
                .enumerate()
                .map(|(circuit, broken)| (circuit.to_string(), broken.map_or(0, since_epoch)))
                .collect();
            let circuits: Vec<_> = circuits
                .iter()
                .map(|(circuit, at)| (circuit.as_str(), *at))
                .collect();
            self.gauges(
                "hsm_perimeter_broken_seconds",
                "When a perimeter circuit was last found broken, since the epoch; 0: it is whole",
                "circuit",
                &circuits,
            )?;
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (of, value) in values {
            family.encode_family(&[(label, *of)])?.encode_gauge(value)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn measurement(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn histogram(&mut self, name: &str, help: &str, values: &zk_hsm::Histogram) -> fmt::Result {
        // The encoder wants each bucket's own count and adds them up itself.
        let mut below = 0;
        let buckets: Vec<(f64, u64)> = values
            .buckets()
            .map(|(bound, up_to)| {
                let own = up_to - below;
                below = up_to;
                (bound.as_secs_f64(), own)
            })
            .collect();
        self.0
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(
                values.sum().as_secs_f64(),
                values.count(),
                &buckets,
                None,
            )
    }
}

fn count(mut metric: MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn at(instant: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(instant.elapsed()).unwrap_or(now)
}

fn since_epoch(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Connections at a time, and how long each may be silent: any user of this machine can
/// make some, and health is asked for at once.
const MAX_SCRAPERS: usize = 16;
const SILENCE: Duration = Duration::from_secs(5);
