//! Points in time, as people write them.

use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo, civil};
use zk_envelope::Timestamp;

use crate::all_times;

/// A point in time, or a whole day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Milliseconds before now.
    Ago(u64),
    /// That millisecond.
    At(Timestamp),
    /// From the day's first millisecond to its last.
    Day(Timestamp, Timestamp),
}

impl When {
    /// Its first millisecond.
    #[must_use]
    pub fn start(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(ms) => now
                .as_millis()
                .checked_sub(ms)
                .and_then(Timestamp::from_millis)
                .unwrap_or(*all_times().start()),
            Self::At(time) | Self::Day(time, _) => time,
        }
    }

    /// Its last millisecond.
    #[must_use]
    pub fn end(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Day(_, end) => end,
            Self::Ago(_) | Self::At(_) => self.start(now),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let outside = || "is before 1970 or after 9999".to_owned();
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return millis(time.as_millisecond())
                .map(Self::At)
                .ok_or_else(outside);
        }
        if text.len() == "2026-11-23".len()
            && let Ok(day) = text.parse::<civil::Date>()
        {
            let start = day.to_datetime(civil::Time::midnight());
            let since = start.duration_since(civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
            let start = i64::try_from(since.as_millis()).map_err(|_| outside())?;
            let day = millis(start).zip(millis(start + DAY_MS - 1));
            return day
                .map(|(start, end)| Self::Day(start, end))
                .ok_or_else(outside);
        }
        let wrong = || {
            "is no time: give one like 2026-11-23T11:20:44Z, a day like 2026-11-23 (UTC), \
             or how long ago, like 90m, 12h or 7d"
                .to_owned()
        };
        let ago = duration(text).ok_or_else(wrong)?;
        u64::try_from(ago.abs().as_millis())
            .map(Self::Ago)
            .map_err(|_| outside())
    }
}

/// A length of time, such as `500ms`, `2s`, `12h` or `7d`.
pub fn span(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|span| Duration::try_from(span).ok())
        .ok_or_else(|| "is no length of time: give one like 500ms, 2s, 12h or 7d".to_owned())
}

fn duration(text: &str) -> Option<SignedDuration> {
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
}

fn millis(since: i64) -> Option<Timestamp> {
    u64::try_from(since).ok().and_then(Timestamp::from_millis)
}

const DAY_MS: i64 = 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn takes_instants_days_and_spans() {
        let now = at("2026-11-23T11:20:44.123Z");
        let cases = [
            (
                "2026-11-23T11:20:44.123Z",
                "2026-11-23T11:20:44.123Z",
                "2026-11-23T11:20:44.123Z",
            ),
            (
                "2026-11-23T12:20:44+01:00",
                "2026-11-23T11:20:44.000Z",
                "2026-11-23T11:20:44.000Z",
            ),
            (
                "2026-11-23",
                "2026-11-23T00:00:00.000Z",
                "2026-11-23T23:59:59.999Z",
            ),
            (
                "9999-12-31",
                "9999-12-31T00:00:00.000Z",
                "9999-12-31T23:59:59.999Z",
            ),
            (
                "20m",
                "2026-11-23T11:00:44.123Z",
                "2026-11-23T11:00:44.123Z",
            ),
            (
                "20m ago",
                "2026-11-23T11:00:44.123Z",
                "2026-11-23T11:00:44.123Z",
            ),
            (
                "1w 1d",
                "2026-11-15T11:20:44.123Z",
                "2026-11-15T11:20:44.123Z",
            ),
            (
                "2000w",
                "1988-07-25T11:20:44.123Z",
                "1988-07-25T11:20:44.123Z",
            ),
            (
                "5000w",
                "1970-01-01T00:00:00.000Z",
                "1970-01-01T00:00:00.000Z",
            ),
        ];
        for (text, start, end) in cases {
            let when: When = text.parse().unwrap();
            assert_eq!(
                (when.start(now), when.end(now)),
                (at(start), at(end)),
                "{text}"
            );
        }
    }

    #[test]
    fn takes_spans() {
        assert_eq!(span("1m 500ms"), Ok(Duration::from_millis(60_500)));
        assert_eq!(span("1d"), Ok(Duration::from_hours(24)));
        assert_eq!(span("0s"), Ok(Duration::ZERO));
        for text in ["", "10", "2 days ago", "-2s", "1 month", "2026-11-23"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "yesterday",
            "2026-11-23T11:20:44",
            "1969-12-31",
            "2026-13-01",
            "1 month",
            "10",
        ] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }
}
