//! When records were made whose own clock was not right.

use std::collections::BTreeMap;

use zk_envelope::{BootId, ClockQuality, DRIFT_PPM, Header, TimeAnchor, Timestamp};

/// The time anchors of one device: they date the records of their boots that were
/// made while nothing vouched for the clock.
///
/// A boot's monotonic clock is never set, so an anchor says of every record of
/// its boot, earlier or later, how long before or after it was made.
#[derive(Clone, Debug, Default)]
pub struct Dating {
    boots: BTreeMap<BootId, Vec<Anchor>>,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    since_boot_ms: u64,
    time: Timestamp,
    error_ms: Option<u64>,
}

/// When a record was made, by an anchor of its boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    /// The time.
    pub time: Timestamp,
    /// By how much it may be wrong, earlier or later: what the device states of
    /// the anchor, and what its monotonic clock may have drifted in between.
    /// `None`: somebody has set the clock by hand, and nothing says how exactly.
    pub error_ms: Option<u64>,
}

impl Dating {
    /// Takes an anchor and the header of its record, which verifies as the
    /// device's.
    pub fn anchor(&mut self, header: &Header, anchor: &TimeAnchor) {
        // One that was set to before 2020 dates nothing.
        if header.clock != ClockQuality::Unknown {
            self.boots.entry(header.boot).or_default().push(Anchor {
                since_boot_ms: header.since_boot_ms,
                time: header.time,
                error_ms: anchor.error_ms,
            });
        }
    }

    /// When the record of this header was made. `None` if its own time stands:
    /// a time source kept its clock, or its boot has no anchor that knows better.
    #[must_use]
    pub fn date(&self, header: &Header) -> Option<Dated> {
        if !Self::may_date(header) {
            return None;
        }
        let anchors = self.boots.get(&header.boot)?;
        let stated = anchors.iter().filter_map(|anchor| {
            let apart = anchor.since_boot_ms.abs_diff(header.since_boot_ms);
            let drift = u128::from(apart) * u128::from(DRIFT_PPM);
            let drift = u64::try_from(drift.div_ceil(1_000_000)).unwrap_or(u64::MAX);
            Some((anchor.error_ms?.saturating_add(drift), anchor))
        });
        if let Some((error, anchor)) = stated.min_by_key(|(error, _)| *error) {
            return Some(Dated {
                time: anchor.date(header),
                error_ms: Some(error),
            });
        }
        // Set by hand: that knows better than what was before. Of several times the
        // last one does.
        let by_hand = anchors
            .iter()
            .filter(|anchor| anchor.since_boot_ms > header.since_boot_ms);
        let anchor = by_hand.max_by_key(|anchor| anchor.since_boot_ms)?;
        Some(Dated {
            time: anchor.date(header),
            error_ms: None,
        })
    }

    /// Whether an anchor could tell more of when the record of this header was
    /// made than it does itself.
    #[must_use]
    pub fn may_date(header: &Header) -> bool {
        header.clock != ClockQuality::Synchronised
    }
}

impl Anchor {
    fn date(&self, header: &Header) -> Timestamp {
        let time = i128::from(self.time.as_millis()) + i128::from(header.since_boot_ms)
            - i128::from(self.since_boot_ms);
        let time = u64::try_from(time.max(0)).unwrap_or(u64::MAX);
        Timestamp::from_millis(time).unwrap_or(Timestamp::MAX)
    }
}
