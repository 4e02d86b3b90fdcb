//! An audit in words.

use std::fmt::Write as _;

use zk_cli::clipped;
use zk_envelope::Timestamp;
use zk_verify::{Findings, Gap, Origin, StreamFindings};

use crate::text::{alarm, clock_error, counted, event_in_words, loss, span};

/// What an audit found, in words: a line that says it all, then the details.
///
/// It may go to a terminal as it is. Of long lists it says the first 100 and
/// how many more there are. `now` is for telling how long ago the device was
/// heard.
#[must_use]
pub fn describe(findings: &Findings, now: Timestamp) -> String {
    let mut out = format!("{}: {}\n", findings.device, headline(findings, now));
    for stream in &findings.streams {
        describe_stream(&mut out, stream);
    }
    let indent = "  ";
    list(&mut out, indent, &findings.rejected, |receipt| {
        format!(
            "{} had no number: {}",
            counted(receipt.records.into(), "reading"),
            loss(receipt.reason)
        )
    });
    list(&mut out, indent, &findings.repairs, |repair| {
        format!(
            "clock set to {} at number {}, {}; before, it said {} ({})",
            repair.place.time,
            repair.place.sequence,
            clock_error(repair.error_ms),
            repair.before,
            repair.clock_before
        )
    });
    list(&mut out, indent, &findings.events, |(place, event)| {
        format!(
            "EVENT: {}; number {} at {}",
            event_in_words(event),
            place.sequence,
            place.time
        )
    });
    if findings.clock_unknown > 0 {
        line(
            &mut out,
            indent,
            &format!(
                "{} of a clock not known to be right",
                counted(findings.clock_unknown.into(), "record")
            ),
        );
    }
    if findings.ahead > 0 {
        line(
            &mut out,
            indent,
            &format!(
                "{} whose time is over an hour ahead of the receipt",
                counted(findings.ahead.into(), "record")
            ),
        );
    }
    if let Some((received_at, beat)) = &findings.heartbeat {
        let ago = ago(*received_at, now);
        let every = span(beat.interval_ms);
        line(
            &mut out,
            indent,
            &format!("a heartbeat every {every}, the last one {ago}"),
        );
    }
    let first = findings.without_predecessor();
    if first.len() > 1 {
        line(
            &mut out,
            indent,
            &format!(
                "note: {} streams without a predecessor: each says that it is the device's \
                 first. So does what `zk-ctl publish` sends without an agent, and a device \
                 whose storage was replaced, with what was waiting there",
                first.len()
            ),
        );
    }
    list(&mut out, indent, &findings.unlinked, |stream| {
        format!(
            "UNLINKED: the record that tells what stream {stream} came after is not there, so \
             where the streams before it ended is not known"
        )
    });
    list(&mut out, indent, &findings.alarms, |found| {
        format!(
            "ALARM: {}; {}, the first is number {} of stream {} at {}",
            alarm(&found.kind),
            counted(found.records.into(), "record"),
            found.first.sequence,
            found.first.stream,
            found.first.time
        )
    });
    list(&mut out, indent, &findings.damaged, |damaged| {
        format!(
            "DAMAGED: {}: {}",
            clipped(&damaged.key, 100),
            clipped(&damaged.detail, 200)
        )
    });
    out
}

fn headline(findings: &Findings, now: Timestamp) -> String {
    let Some((heard, place)) = &findings.last_heard else {
        let rest = if findings.is_clean() {
            ""
        } else {
            ", and what is there is not its own"
        };
        return format!("nothing heard{rest}");
    };
    let heard = format!("last heard at {heard} ({})", ago(*heard, now));
    if !findings.is_clean() {
        return format!("{}; {heard}", problems(findings));
    }
    let newest = findings
        .streams
        .iter()
        .find(|stream| stream.stream == place.stream);
    let (from, to) = newest
        .and_then(|stream| Some((*stream.seen.as_ref()?.start(), stream.complete_to)))
        .unwrap_or((place.sequence, place.sequence));
    let lost: u128 = receipted(findings).map(numbers).sum();
    let complete = if from == 1 {
        format!("complete up to {to}")
    } else {
        format!("complete from {from} to {to}")
    };
    let lost = if lost > 0 {
        format!(" but for {lost} that the device states as lost")
    } else {
        String::new()
    };
    format!("{complete}{lost}, {heard}")
}

fn problems(findings: &Findings) -> String {
    let gaps = findings.streams.iter().flat_map(|stream| &stream.missing);
    let missing: u128 = gaps.filter(|gap| gap.receipt.is_none()).map(numbers).sum();
    let streams = || findings.streams.iter();
    let forks: u128 = streams().flat_map(|s| &s.forks).map(range_len).sum();
    let beyond: u128 = streams().flat_map(|s| &s.beyond_end).map(range_len).sum();
    let split = streams().filter(|s| s.successors.len() > 1).count() as u128;
    let doubtful = streams().filter(|s| s.doubt_from.is_some()).count() as u128;
    let unlinked = findings.unlinked.len() as u128;
    let found = [
        (missing, format!("{missing} missing")),
        (
            doubtful,
            format!(
                "{} with a loss of unknown extent",
                counted(doubtful, "stream")
            ),
        ),
        (
            unlinked,
            format!("{} of unknown beginning", counted(unlinked, "stream")),
        ),
        (
            forks,
            format!("{} of different records", counted(forks, "number")),
        ),
        (
            beyond,
            format!("{} past the end of a stream", counted(beyond, "record")),
        ),
        (
            split,
            format!("{} with two successors", counted(split, "stream")),
        ),
        (
            findings.alarms.len() as u128,
            counted(findings.alarms.len() as u128, "alarm"),
        ),
        (
            findings.damaged.len() as u128,
            format!("{} damaged", findings.damaged.len()),
        ),
    ];
    let found = found.into_iter().filter(|(count, _)| *count > 0);
    found.map(|(_, what)| what).collect::<Vec<_>>().join(", ")
}

fn describe_stream(out: &mut String, stream: &StreamFindings) {
    let seen = match &stream.seen {
        Some(seen) => format!(
            "{}, {} to {}",
            counted(stream.records.into(), "record"),
            seen.start(),
            seen.end()
        ),
        None => "no record of it".into(),
    };
    let origin = match stream.origin {
        Origin::First => ", the device's first".into(),
        Origin::After(previous) => format!(
            ", after {} which ended at {}",
            previous.stream, previous.last
        ),
        Origin::Unknown => String::new(),
    };
    line(
        out,
        "  ",
        &format!("stream {}: {seen}{origin}", stream.stream),
    );
    let indent = "    ";
    list(out, indent, &stream.missing, |gap| {
        let range = words(gap.first, gap.last);
        match gap.receipt {
            None => format!("MISSING: {range}"),
            Some(reason) => format!("stated as lost: {range}, {}", loss(reason)),
        }
    });
    list(out, indent, &stream.arrived, |range| {
        format!(
            "arrived after all, though stated as lost: {}",
            words(*range.start(), *range.end())
        )
    });
    if let Some(from) = stream.doubt_from {
        line(
            out,
            indent,
            &format!(
                "LOST: from {from} on the device's storage could not be read; how much was there \
                 is not known"
            ),
        );
    }
    list(out, indent, &stream.forks, |range| {
        format!(
            "FORK: different records have the same number: {}",
            words(*range.start(), *range.end())
        )
    });
    list(out, indent, &stream.beyond_end, |range| {
        format!("BEYOND ITS END: {}", words(*range.start(), *range.end()))
    });
    if stream.successors.len() > 1 {
        list(out, indent, &stream.successors, |id| {
            format!("FORK: followed by stream {id}")
        });
    }
    if stream.again > 0 {
        line(
            out,
            indent,
            &format!(
                "{} again of what was stored",
                counted(stream.again.into(), "delivery")
            ),
        );
    }
}

fn list<T>(out: &mut String, indent: &str, items: &[T], say: impl Fn(&T) -> String) {
    for item in items.iter().take(LIST) {
        line(out, indent, &say(item));
    }
    if let Some(more @ 1..) = items.len().checked_sub(LIST) {
        line(out, indent, &format!("… and {more} more such"));
    }
}

fn line(out: &mut String, indent: &str, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{indent}{text}");
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    match now.as_millis().checked_sub(then.as_millis()) {
        Some(ms) => format!("{} ago", span(ms)),
        None => "later than it is by this machine's clock".into(),
    }
}

fn words(first: u64, last: u64) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first} to {last} ({} records)", range_len(&(first..=last)))
    }
}

fn receipted(findings: &Findings) -> impl Iterator<Item = &Gap> {
    let gaps = findings.streams.iter().flat_map(|stream| &stream.missing);
    gaps.filter(|gap| gap.receipt.is_some())
}

fn numbers(gap: &Gap) -> u128 {
    range_len(&(gap.first..=gap.last))
}

fn range_len(range: &std::ops::RangeInclusive<u64>) -> u128 {
    u128::from(range.end().saturating_sub(*range.start())) + 1
}

/// So much of a list is shown.
const LIST: usize = 100;
