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

fn dated(dating: &Dating, since_boot_ms: u64) -> Dated {
    let time = at("2026-11-20T00:00:00.000Z");
    let header = header(1, since_boot_ms, time, ClockQuality::FreeRunning);
    dating.date(&header).unwrap()
}

#[test]
fn of_the_anchors_before_and_after_a_record_the_one_that_errs_less_counts() {
    let mut dating = Dating::default();
    let noon = "2026-11-26T12:00:00.000Z";
    let later = "2026-11-26T12:01:30.500Z";
    anchor(&mut dating, 1, 10_000, noon, Some(900));
    anchor(&mut dating, 1, 100_000, later, Some(10));
    assert_eq!(dated(&dating, 20_000).error_ms, Some(10 + 40));
    assert_eq!(dated(&dating, 20_000).time, at("2026-11-26T12:00:10.500Z"));
    // later ones, too
    assert_eq!(dated(&dating, 200_000).time, at("2026-11-26T12:03:10.500Z"));
    // a day on, what it drifts is more than what the anchor errs
    assert_eq!(dated(&dating, 86_500_000).error_ms, Some(10 + 43_200));
}

/// A time source that finds the clock 0.9 s off and lets it run faster until it is
/// right does the same to the monotonic one: of what was before, an anchor after
/// that knows no more than the first one did.
#[test]
fn an_anchor_dates_nothing_beyond_another_one() {
    let mut dating = Dating::default();
    anchor(
        &mut dating,
        1,
        10_000,
        "2026-11-26T12:00:00.000Z",
        Some(900),
    );
    anchor(&mut dating, 1, 70_000, "2026-11-26T12:01:00.000Z", Some(3));
    let first = dated(&dating, 9_000);
    assert_eq!(first.time, at("2026-11-26T11:59:59.000Z"));
    assert_eq!(first.error_ms, Some(900 + 1));
}

/// A time source that lies and is put right: nothing says which of the two it was.
#[test]
fn anchors_that_contradict_each_other_are_believed_to_within_that() {
    let hour = 3_600_000;
    let lies = [
        (10_000, "2026-11-26T15:00:10.000Z"),
        // of another process
        (11_000, "2026-11-26T15:00:11.000Z"),
    ];
    let right = [
        (5_000, "2026-11-26T12:00:05.000Z"),
        (20_000, "2026-11-26T12:00:20.000Z"),
    ];
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]];
    for order in orders {
        let mut dating = Dating::default();
        for number in order {
            let (since_boot_ms, time) = [lies, right].concat()[number];
            anchor(&mut dating, 1, since_boot_ms, time, Some(16));
        }
        for since_boot_ms in [1_000, 7_000, 10_500, 15_000, 30_000] {
            let Dated { time, error_ms } = dated(&dating, since_boot_ms);
            let noon = at("2026-11-26T12:00:00.000Z").as_millis();
            let apart = time.as_millis().abs_diff(noon + since_boot_ms);
            assert!(
                error_ms.unwrap() >= apart,
                "{since_boot_ms}: {apart}, {error_ms:?}"
            );
            // forth and back
            assert!(error_ms.unwrap() < 7 * hour, "{error_ms:?}");
        }
    }
    let mut twice = Dating::default();
    for _ in 0..2 {
        anchor(&mut twice, 1, right[0].0, right[0].1, Some(16));
    }
    assert_eq!(dated(&twice, 5_000).error_ms, Some(16));
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

    /// In whatever order they come, and however often.
    #[test]
    fn the_order_of_anchors_means_nothing(
        anchors in prop::collection::vec(
            (0..100_u64, 0..=Timestamp::MAX.as_millis(), prop::option::of(any::<u64>())),
            1..8,
        ),
        own in 0..100_u64,
    ) {
        let dating = |order: &mut dyn Iterator<Item = &(u64, u64, Option<u64>)>| {
            let mut dating = Dating::default();
            for (since_boot_ms, time, error_ms) in order {
                let time = Timestamp::from_millis(*time).unwrap();
                let there = header(1, *since_boot_ms, time, ClockQuality::FreeRunning);
                let (before, error_ms) = (None, *error_ms);
                dating.anchor(&there, &TimeAnchor { before, error_ms });
            }
            dating.date(&header(1, own, at("1970-01-01T00:00:00.000Z"), ClockQuality::Unknown))
        };
        let forwards = dating(&mut anchors.iter());
        prop_assert_eq!(forwards, dating(&mut anchors.iter().rev()));
        prop_assert_eq!(forwards, dating(&mut anchors.iter().chain(&anchors)));
    }
}
