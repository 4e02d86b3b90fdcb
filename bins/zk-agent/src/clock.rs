//! What time it is, by all the clocks there are.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};
use zk_envelope::{BootId, ClockQuality, Moment, Report, TimeAnchor, Timestamp};

use crate::Error;

/// The device's clocks.
pub struct Clock {
    boot: BootId,
    wall: Box<dyn Fn() -> SystemTime + Send>,
    /// Wall clock minus uptime in milliseconds, and the quality, at the last
    /// record: what a step is measured against.
    last: Option<(i64, ClockQuality)>,
}

impl Clock {
    /// The clocks of this machine, as of its last boot. `wall` tells the time,
    /// as a rule [`SystemTime::now`].
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Envelope`]: the kernel tells no boot id.
    pub fn new(wall: impl Fn() -> SystemTime + Send + 'static) -> Result<Self, Error> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let text = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        Ok(Self {
            boot: BootId::from_uuid(&text)?,
            wall: Box::new(wall),
            last: None,
        })
    }

    /// Now, by all of them, and how far the wall clock is to be believed.
    pub fn now(&self) -> Moment {
        let up = clock_gettime(ClockId::Boottime);
        let since_boot_ms =
            up.tv_sec.unsigned_abs().saturating_mul(1000) + up.tv_nsec.unsigned_abs() / 1_000_000;
        let time = Timestamp::from((self.wall)());
        Moment {
            boot: self.boot,
            since_boot_ms,
            time,
            clock: quality(time),
        }
    }

    /// A time anchor if the wall clock was set since the last record, or became
    /// known to be right.
    pub(crate) fn anchor(&self, now: &Moment) -> Option<Report> {
        let (before, clock_before) = self.last?;
        let stepped = offset(now)?.abs_diff(before) >= STEP_MS;
        let became_right =
            now.clock == ClockQuality::Synchronised && clock_before != ClockQuality::Synchronised;
        if !stepped && !became_right {
            return None;
        }
        let since_boot = i64::try_from(now.since_boot_ms).ok()?;
        let time_before = u64::try_from(before.saturating_add(since_boot)).unwrap_or(0);
        let time_before = Timestamp::from_millis(time_before).unwrap_or(Timestamp::MAX);
        Some(Report::TimeAnchor(TimeAnchor {
            time_before,
            clock_before,
        }))
    }

    /// A clock that is slewed drifts from its first offset: from here on, steps
    /// are measured against this moment.
    pub(crate) fn follow(&mut self, now: &Moment) {
        self.last = offset(now).map(|offset| (offset, now.clock));
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("boot", &self.boot)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// Wall clock minus uptime.
fn offset(now: &Moment) -> Option<i64> {
    let time = i64::try_from(now.time.as_millis()).ok()?;
    time.checked_sub(i64::try_from(now.since_boot_ms).ok()?)
}

/// Before 2020 nothing has set the clock. systemd-timesyncd, which Raspberry Pi
/// OS runs, touches its flag file at each synchronisation and removes it at
/// start; without it the clock runs on its own, as far as can be told.
fn quality(time: Timestamp) -> ClockQuality {
    if time.as_millis() < Y2020_MS {
        ClockQuality::Unknown
    } else if Path::new("/run/systemd/timesync/synchronized").exists() {
        ClockQuality::Synchronised
    } else {
        ClockQuality::FreeRunning
    }
}

/// A jump of the wall clock that is worth a record.
const STEP_MS: u64 = 1000;
pub(crate) const Y2020_MS: u64 = 1_577_836_800_000;
