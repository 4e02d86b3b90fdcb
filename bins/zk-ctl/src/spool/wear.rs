//! What the agent writes to its spool, by its own counters.

use bytesize::ByteSize;
use serde_json::{Value, json};

use crate::agent;
use crate::arguments::{Common, SpoolPlace};

/// Counters are kept by the agent in memory alone: to keep them on the disk would
/// wear it.
pub(super) enum Wear {
    /// Since the agent started.
    Counted(Counters),
    /// Nobody tells, and why.
    Unknown(String),
}

pub(super) struct Counters {
    uptime: f64,
    bytes: f64,
    syncs: f64,
}

/// Asks the agent whose spool it is.
pub(super) fn of(common: &Common, place: &SpoolPlace) -> Wear {
    if place.dir.is_some() {
        return Wear::Unknown("only for the agent's own spool, without --dir".to_owned());
    }
    let listen = match common.read().map(|config| config.metrics.listen) {
        Ok(Some(listen)) => listen,
        Ok(None) => return Wear::Unknown("metrics.listen is not set".to_owned()),
        Err(error) => return Wear::Unknown(error.to_string()),
    };
    match agent::page(listen, "/metrics") {
        Ok((_, page)) => Counters::read(&page).map_or_else(
            || Wear::Unknown(format!("what answers at {listen} is not this agent")),
            Wear::Counted,
        ),
        Err(error) => Wear::Unknown(format!("no agent answers at {listen}: {error}")),
    }
}

impl Counters {
    fn read(page: &str) -> Option<Self> {
        let value = |name: &str| -> Option<f64> {
            page.lines()
                .find_map(|line| {
                    line.strip_prefix(name)?
                        .strip_prefix(' ')?
                        .trim()
                        .parse()
                        .ok()
                })
                .filter(|value: &f64| value.is_finite())
        };
        let of_records = value("zk_agent_spool_syncs_total")?;
        let of_state = value("zk_agent_spool_state_syncs_total")?;
        Some(Self {
            uptime: value("zk_agent_uptime_seconds")?,
            bytes: value("zk_agent_spool_written_bytes_total")?,
            syncs: of_records + of_state,
        })
    }

    /// `None` before it can be told from what happens at a start.
    fn an_hour(&self, count: f64) -> Option<u64> {
        // Cut off, as counts are.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (count * 3600.0 / self.uptime) as u64;
        (self.uptime >= SHORTEST).then_some(rate)
    }
}

impl Wear {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Unknown(why) => format!("not known: {why}"),
            Self::Counted(counters) => {
                let rates = counters
                    .an_hour(counters.bytes)
                    .zip(counters.an_hour(counters.syncs));
                match rates {
                    Some((bytes, syncs)) => format!(
                        "{} and {syncs} syncs an hour, in the {:.1} h that the agent has run",
                        ByteSize(bytes),
                        counters.uptime / 3600.0
                    ),
                    None => "not known: the agent has run for less than a minute".to_owned(),
                }
            }
        }
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::Unknown(why) => json!({ "notKnown": why }),
            Self::Counted(counters) => json!({
                "seconds": counters.uptime,
                "bytes": counters.bytes,
                "syncs": counters.syncs,
                "bytesAnHour": counters.an_hour(counters.bytes),
                "syncsAnHour": counters.an_hour(counters.syncs),
            }),
        }
    }
}

/// Seconds.
const SHORTEST: f64 = 60.0;

#[cfg(test)]
mod tests {
    use super::Counters;

    #[test]
    fn an_hours_rate_is_of_all_syncs_and_not_of_a_first_moment() {
        let page = |uptime: &str| {
            format!(
                "# HELP zk_agent_uptime_seconds x\nzk_agent_uptime_seconds {uptime}\n\
                 zk_agent_spool_syncs_total 700\nzk_agent_spool_state_syncs_total 20\n\
                 zk_agent_spool_written_bytes_total 1000000\n"
            )
        };
        let counters = Counters::read(&page("7200.5")).unwrap();
        assert_eq!(counters.an_hour(counters.bytes), Some(499_965));
        assert_eq!(counters.an_hour(counters.syncs), Some(359));
        let counters = Counters::read(&page("59")).unwrap();
        assert_eq!(counters.an_hour(counters.bytes), None);
        assert!(Counters::read("zk_agent_uptime_seconds 100\n").is_none());
    }
}
