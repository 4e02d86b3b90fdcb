//! Anchors of a boot date its other records.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use proptest::prelude::*;
use zk_envelope::{
    BootId, ClockQuality, Header, KeyId, Kind, RecipientId, StreamId, TimeAnchor, Timestamp,
};
use zk_verify::{Dated, Dating};

fn header(boot: u8, since_boot_ms: u64, time: Timestamp, clock: ClockQuality) -> Header {
    Header {
        kind: Kind::Data,
        device: "pi-01".parse().unwrap(),
        stream: StreamId([7; 16]),
        sequence: 1,
        boot: BootId([boot; 16]),
        since_boot_ms,
        time,
        clock,
        signer: KeyId([1; 32]),
        recipients: vec![RecipientId([2; 8])],
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// At a time of a boot, stating an error or not.
fn anchor(dating: &mut Dating, boot: u8, since_boot_ms: u64, time: &str, error_ms: Option<u64>) {
    let clock = match error_ms {
        Some(_) => ClockQuality::Synchronised,
        None => ClockQuality::FreeRunning,
    };
    let header = header(boot, since_boot_ms, at(time), clock);
    let before = None;
    dating.anchor(&header, &TimeAnchor { before, error_ms });
}

#[test]
fn records_of_1970_are_dated_by_the_anchor_of_their_boot() {
    let mut dating = Dating::default();
    anchor(&mut dating, 1, 60_000, "2026-11-26T12:00:00.000Z", Some(16));
    anchor(&mut dating, 2, 60_000, "2026-11-27T12:00:00.000Z", Some(3));
    let unset = at("1970-01-01T00:00:30.000Z");
    let of_boot = |boot| dating.date(&header(boot, 30_000, unset, ClockQuality::Unknown));
    // 500 ppm of 30 s are 15 ms
    let expected = |time, error| {
        Some(Dated {
            time: at(time),
            error_ms: Some(error),
        })
    };
    assert_eq!(of_boot(1), expected("2026-11-26T11:59:30.000Z", 31));
    assert_eq!(of_boot(2), expected("2026-11-27T11:59:30.000Z", 18));
    assert_eq!(of_boot(3), None);
}

#[test]
fn the_anchor_that_errs_least_counts_wherever_it_is() {
    let mut dating = Dating::default();
    anchor(
        &mut dating,
        1,
        10_000,
        "2026-11-26T12:00:00.000Z",
        Some(900),
    );
    anchor(
        &mut dating,
        1,
        100_000,
        "2026-11-26T12:01:31.000Z",
        Some(10),
    );
    let dated = |since_boot_ms| {
        let time = at("2026-11-20T00:00:00.000Z");
        let header = header(1, since_boot_ms, time, ClockQuality::FreeRunning);
        dating.date(&header).unwrap()
    };
    assert_eq!(dated(10_000).error_ms, Some(10 + 45));
    assert_eq!(dated(10_000).time, at("2026-11-26T12:00:01.000Z"));
    // later ones, too
    assert_eq!(dated(200_000).time, at("2026-11-26T12:03:11.000Z"));
    // a day on, what it drifts is more than what the anchor errs
    assert_eq!(dated(86_500_000).error_ms, Some(10 + 43_200));
}

#[test]
fn a_clock_that_a_source_keeps_stands_and_one_set_by_hand_dates_what_was_before() {
    let mut dating = Dating::default();
    anchor(&mut dating, 1, 60_000, "2026-11-26T12:00:00.000Z", None);
    anchor(&mut dating, 1, 90_000, "2026-11-26T13:00:30.000Z", None);
    let dated = |since_boot_ms, clock| {
        dating.date(&header(
            1,
            since_boot_ms,
            at("2026-01-01T00:00:00.000Z"),
            clock,
        ))
    };
    assert_eq!(dated(30_000, ClockQuality::Synchronised), None);
    let by_hand = Dated {
        time: at("2026-11-26T12:59:30.000Z"),
        error_ms: None,
    };
    assert_eq!(dated(30_000, ClockQuality::Unknown), Some(by_hand));
    assert_eq!(dated(100_000, ClockQuality::FreeRunning), None);
    // Back to 1970: that is no time to date anything by.
    let mut unset = Dating::default();
    let header = header(
        1,
        60_000,
        at("1970-01-01T00:00:00.000Z"),
        ClockQuality::Unknown,
    );
    let (before, error_ms) = (None, None);
    unset.anchor(&header, &TimeAnchor { before, error_ms });
    assert_eq!(unset.date(&header), None);
}

proptest! {
    /// Whatever a device signs, dating comes to an end with a time.
    #[test]
    fn any_numbers_are_dated(
        own in any::<u64>(),
        anchored in any::<u64>(),
        time in 0..=Timestamp::MAX.as_millis(),
        error in any::<u64>(),
    ) {
        let time = Timestamp::from_millis(time).unwrap();
        let mut dating = Dating::default();
        let there = header(1, anchored, time, ClockQuality::Synchronised);
        let (before, error_ms) = (None, Some(error));
        dating.anchor(&there, &TimeAnchor { before, error_ms });
        let unset = header(1, own, time, ClockQuality::Unknown);
        prop_assert!(dating.date(&unset).unwrap().error_ms >= Some(error));
    }
}
