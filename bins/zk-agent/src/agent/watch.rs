//! What is seen of an agent from outside.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use zk_envelope::{ClockQuality, Envelope};
use zk_hsm::Hsm;
use zk_publish::{Publisher, State};
use zk_spool::Spool;

use super::module::Measured;
use super::progress::Progress;
use crate::Error;
use crate::clock::Clock;
use crate::files::{Expires, expiry};

/// A view of an agent, for as long as somebody looks: clones are the same view.
///
/// It keeps the spool open: drop it when the agent has stopped.
#[derive(Clone, Debug)]
pub struct Watch(pub(super) Arc<Parts>);

#[derive(Debug)]
pub(super) struct Parts {
    pub(super) started: Instant,
    pub(super) publisher: Publisher,
    pub(super) spool: Arc<Spool>,
    pub(super) hsm: Hsm,
    pub(super) progress: Arc<Progress>,
    pub(super) measured: Arc<Measured>,
    pub(super) certificate_expires: Expires,
}

/// What an agent has done since it started.
#[derive(Debug)]
#[non_exhaustive]
pub struct Status {
    /// For how long it has been running.
    pub uptime: Duration,
    /// Readings taken from sensors, of any quality.
    pub sampled: u64,
    /// Readings that now lie in sealed records.
    pub sealed: u64,
    /// Readings that were given up because neither key nor spool took them.
    pub given_up: u64,
    /// Records of data that other programs handed over, and that are on disk.
    pub data_taken: u64,
    /// Those that the spool did not take.
    pub data_refused: u64,
    /// Thermometers that gave a good value in the last sweep.
    pub sensors: u64,
    /// Readings by the name of their quality.
    pub qualities: BTreeMap<&'static str, u64>,
    /// What was found lost since the start, by reason: records and readings that
    /// receipts name. What an earlier process found, and no receipt that has arrived
    /// named, is among it.
    pub lost: BTreeMap<&'static str, u64>,
    /// How far the last record's clock is to be believed. None before the first one.
    pub clock: Option<ClockQuality>,
    /// For how long the oldest record that waits has waited: by the clock that is
    /// never set, if it is of this boot.
    pub oldest_age: Option<Duration>,
    /// When the device's certificate expires.
    pub certificate_expires: SystemTime,
    /// The spool.
    pub spool: zk_spool::Stats,
    /// The publisher.
    pub publisher: zk_publish::Status,
    /// The device's key.
    pub hsm: zk_hsm::Counters,
    /// How its module is.
    pub hsm_state: zk_hsm::State,
    /// What its module measured last, and when. None before it was first asked,
    /// which is after a heartbeat's interval, and if it measures nothing.
    pub hsm_health: Option<(SystemTime, zk_hsm::Health)>,
}

impl Watch {
    /// What the agent has done so far.
    ///
    /// # Errors
    /// [`Error::Spool`] if the spool has failed.
    pub fn status(&self) -> Result<Status, Error> {
        let Parts {
            started,
            publisher,
            spool,
            hsm,
            progress,
            measured,
            certificate_expires,
        } = &*self.0;
        Ok(Status {
            uptime: started.elapsed(),
            sampled: progress.sampled.load(Ordering::Relaxed),
            sealed: progress.sealed.load(Ordering::Relaxed),
            given_up: progress.given_up.load(Ordering::Relaxed),
            data_taken: progress.data_taken.load(Ordering::Relaxed),
            data_refused: progress.data_refused.load(Ordering::Relaxed),
            sensors: progress.sensors.load(Ordering::Relaxed),
            qualities: progress.qualities.read(QUALITIES),
            lost: progress.lost.read(REASONS),
            clock: *progress
                .clock
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            oldest_age: oldest_age(spool),
            certificate_expires: certificate_expires.get(),
            spool: spool.stats()?,
            publisher: publisher.status(),
            hsm: hsm.counters(),
            hsm_state: hsm.state(),
            hsm_health: measured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }

    /// The threads, of those that sample, seal and publish, that have been at one
    /// piece of work for longer than `limit`, and for how long. Empty while all of
    /// them get on, or wait for something to do.
    ///
    /// A link that is down and a key's module that is slow, fails or has to be
    /// opened again hold up none of them for long: each attempt has an end of its
    /// own, and the next one counts as another piece of work. So it is with each
    /// sensor, and its driver is given up after 100 s. What does is a disk that does
    /// not answer, and a defect.
    #[must_use]
    pub fn stuck(&self, limit: Duration) -> Vec<(&'static str, Duration)> {
        let Parts {
            publisher,
            progress,
            ..
        } = &*self.0;
        let busy = publisher.status().busy_since;
        let at_it = [
            ("sampler", progress.sampler.at_it()),
            ("sealer", progress.sealer.at_it()),
            ("publisher", busy.map(|since| since.elapsed())),
        ];
        let at_it = at_it.into_iter().filter_map(|(name, at)| Some((name, at?)));
        at_it.filter(|(_, at)| *at > limit).collect()
    }

    /// What somebody has to look after, a sentence each; empty if nothing has.
    ///
    /// A link that is down is not among it: records wait for it. Nor is a full
    /// spool: what it does then was chosen, and loss receipts name what is lost.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let parts = &*self.0;
        let mut troubles = Vec::new();
        if parts.progress.ended.load(Ordering::Relaxed) {
            troubles.push("nothing is sealed any more; the log says why".to_owned());
        } else if parts.progress.waits_for_key.load(Ordering::Relaxed) {
            let state = match parts.hsm.state() {
                zk_hsm::State::Reopening {
                    failures, cause, ..
                } => format!("opened again in vain {failures} times: {cause}"),
                zk_hsm::State::Wedged { operation, since } => {
                    format!("{operation} has been in it for {:?}", since.elapsed())
                }
                zk_hsm::State::Failed { cause } => cause.to_string(),
                _ => "the next attempt is under way".to_owned(),
            };
            troubles.push(format!(
                "the key does not sign ({state}); readings wait in memory"
            ));
        }
        if let Err(error) = parts.spool.stats() {
            troubles.push(format!("spool: {error}"));
        }
        let publisher = parts.publisher.status();
        if matches!(
            publisher.state,
            State::Failed | State::Forbidden | State::Refusing | State::Untrusted
        ) {
            let why = publisher.last_error.unwrap_or_default();
            troubles.push(format!("publisher {}: {why}", publisher.state.as_str()));
        }
        if parts.certificate_expires.get() <= SystemTime::now() {
            troubles.push("the device's certificate has expired; it needs a new one".to_owned());
        }
        troubles
    }

    /// What somebody will have to look after, a sentence each, though nothing is
    /// wrong yet: a certificate that expires within 30 days.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let now = SystemTime::now();
        let expires = self.0.certificate_expires.get();
        let soon = expiry(expires, now).filter(|_| now < expires);
        soon.into_iter().collect()
    }
}

/// How long ago the oldest record that waits was sealed. A record that can't be read is
/// somebody else's to tell.
fn oldest_age(spool: &Spool) -> Option<Duration> {
    let record = spool.peek(1, 0).ok()?.pop()?;
    let envelope = Envelope::from_bytes(record.bytes()).ok()?;
    let sealed = envelope.unverified_header();
    let now = Clock::new(SystemTime::now).ok()?.now();
    let ms = if sealed.boot == now.boot {
        now.since_boot_ms.saturating_sub(sealed.since_boot_ms)
    } else {
        now.time.as_millis().saturating_sub(sealed.time.as_millis())
    };
    Some(Duration::from_millis(ms))
}

/// Of readings, in metrics from the start.
const QUALITIES: &[&str] = &[
    "crc",
    "empty",
    "false-zero",
    "fault",
    "garbled",
    "ok",
    "out-of-range",
    "power-on",
    "stale-suspect",
    "unplugged",
    "unreadable",
];
/// Of losses.
const REASONS: &[&str] = &["damaged", "dropped", "refused", "rejected", "several"];
