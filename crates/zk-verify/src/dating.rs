//! When records were made whose own clock was not right.

use std::collections::{BTreeMap, BTreeSet};

use zk_envelope::{BootId, ClockQuality, DRIFT_PPM, Header, TimeAnchor, Timestamp};

/// The time anchors of one device: they date the records of their boots that were
/// made while nothing vouched for the clock.
///
/// A boot's monotonic clock is never set, so an anchor says of the records of its
/// boot, earlier or later, how long before or after it they were made.
#[derive(Clone, Debug, Default)]
pub struct Dating {
    boots: BTreeMap<BootId, Boot>,
}

/// The anchors of one boot.
#[derive(Clone, Debug, Default)]
struct Boot {
    /// Those that state an error.
    stated: BTreeSet<Stated>,
    /// By how many milliseconds neighbours among them contradict each other, in all.
    doubt: u128,
    /// The last of those that state none: its monotonic time and its wall clock.
    by_hand: Option<(u64, Timestamp)>,
}

/// An anchor that states an error, in the order of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stated {
    since_boot_ms: u64,
    time: Timestamp,
    error_ms: u64,
}

/// When a record was made, by an anchor of its boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    /// The time.
    pub time: Timestamp,
    /// By how much it may be wrong, earlier or later: what the device states of
    /// the anchor, what its monotonic clock may have drifted in between, and by how
    /// much the anchors of the boot contradict each other.
    /// `None`: somebody has set the clock by hand, and nothing says how exactly.
    pub error_ms: Option<u64>,
}

impl Dating {
    /// Takes an anchor and the header of its record, which verifies as the
    /// device's. In any order; one that comes again changes nothing.
    pub fn anchor(&mut self, header: &Header, anchor: &TimeAnchor) {
        // One that was set to before 2020 dates nothing.
        if header.clock == ClockQuality::Unknown {
            return;
        }
        let boot = self.boots.entry(header.boot).or_default();
        match anchor.error_ms {
            Some(error_ms) => boot.take(Stated {
                since_boot_ms: header.since_boot_ms,
                time: header.time,
                error_ms,
            }),
            None => {
                let at = (header.since_boot_ms, header.time);
                boot.by_hand = boot.by_hand.max(Some(at));
            }
        }
    }

    /// When the record of this header was made. `None` if its own time stands:
    /// a time source kept its clock, or its boot has no anchor that knows better.
    ///
    /// Of the anchors that state an error, the last before it and the first after it
    /// are asked: what lies beyond another anchor is also beyond a while in which the
    /// time source has moved the monotonic clock.
    #[must_use]
    pub fn date(&self, header: &Header) -> Option<Dated> {
        if !Self::may_date(header) {
            return None;
        }
        let boot = self.boots.get(&header.boot)?;
        let at = header.since_boot_ms;
        let nearest = boot.nearest(at).into_iter().flatten();
        if let Some((error, anchor)) = nearest
            .map(|anchor| (anchor.error_at(at), anchor))
            .min_by_key(|(error, _)| *error)
        {
            let error = u128::from(error).saturating_add(boot.doubt);
            return Some(Dated {
                time: dated(anchor.since_boot_ms, anchor.time, at),
                error_ms: Some(error.try_into().unwrap_or(u64::MAX)),
            });
        }
        // Set by hand: that knows better than what was before. Of several times the
        // last one does.
        let (set_at, time) = boot.by_hand.filter(|(set_at, _)| *set_at > at)?;
        Some(Dated {
            time: dated(set_at, time, at),
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

impl Boot {
    fn take(&mut self, anchor: Stated) {
        let before = self.stated.range(..anchor).next_back().copied();
        let after = self.stated.range(anchor..).next().copied();
        if after == Some(anchor) {
            return;
        }
        let doubt = |one: Option<Stated>, other: Option<Stated>| {
            let both = one.zip(other);
            both.map_or(0, |(one, other)| one.contradicts(&other))
        };
        // Those two are no neighbours any more.
        self.doubt = self.doubt.saturating_sub(doubt(before, after))
            + doubt(before, Some(anchor))
            + doubt(Some(anchor), after);
        self.stated.insert(anchor);
    }

    /// The last one before this moment, and the first one after it.
    fn nearest(&self, since_boot_ms: u64) -> [Option<&Stated>; 2] {
        let here = Stated {
            since_boot_ms,
            time: Timestamp::MAX,
            error_ms: u64::MAX,
        };
        let before = self.stated.range(..=here).next_back();
        [before, self.stated.range(here..).next()]
    }
}

impl Stated {
    /// By how much it may be wrong of a moment.
    fn error_at(&self, since_boot_ms: u64) -> u64 {
        self.error_ms
            .saturating_add(drift(self.since_boot_ms.abs_diff(since_boot_ms)))
    }

    /// By how many milliseconds two are further apart than both may be wrong.
    fn contradicts(&self, other: &Self) -> u128 {
        let there = dated(self.since_boot_ms, self.time, other.since_boot_ms);
        let apart = there.as_millis().abs_diff(other.time.as_millis());
        let most = self.error_at(other.since_boot_ms);
        apart
            .saturating_sub(most.saturating_add(other.error_ms))
            .into()
    }
}

/// The time of a moment by a clock that said `time` at `since_boot_ms`.
fn dated(since_boot_ms: u64, time: Timestamp, moment_ms: u64) -> Timestamp {
    let time = i128::from(time.as_millis()) + i128::from(moment_ms) - i128::from(since_boot_ms);
    let time = u64::try_from(time.max(0)).unwrap_or(u64::MAX);
    Timestamp::from_millis(time).unwrap_or(Timestamp::MAX)
}

/// What a monotonic clock may be wrong by after so long.
fn drift(ms: u64) -> u64 {
    let drift = (u128::from(ms) * u128::from(DRIFT_PPM)).div_ceil(1_000_000);
    u64::try_from(drift).unwrap_or(u64::MAX)
}
