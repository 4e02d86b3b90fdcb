//! What a device's records say together.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use p256::ecdsa::SigningKey;
use proptest::prelude::*;
use zk_envelope::{
    BootId, ClockBefore, ClockQuality, Content, DeviceEvent, DeviceId, Heartbeat, KeyState,
    LossReason, LossReceipt, Moment, OwnerKey, PreviousStream, Report, Sealer, SequenceRange,
    StreamId, TimeAnchor, Timestamp, TrustedDevice, TrustedKey, Verified,
};
use zk_verify::{AlarmKind, Audit, Findings, Gap, Origin, Place, Reason, StreamFindings};

static OWNER: LazyLock<OwnerKey> = LazyLock::new(|| OwnerKey::generate().unwrap());
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_slice(&[1; 32]).unwrap());

const A: StreamId = StreamId([0xa; 16]);
const B: StreamId = StreamId([0xb; 16]);
const C: StreamId = StreamId([0xc; 16]);

fn device() -> DeviceId {
    "pi-01".parse().unwrap()
}

fn trusted() -> TrustedDevice {
    TrustedDevice {
        owners: [OWNER.id()].into(),
        keys: vec![TrustedKey {
            key: *KEY.verifying_key(),
            state: KeyState::Active,
        }],
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(1_795_000_000_000 + ms).unwrap()
}

fn moment(ms: u64) -> Moment {
    Moment {
        boot: BootId([3; 16]),
        since_boot_ms: ms,
        time: at(ms),
        clock: ClockQuality::Synchronised,
    }
}

fn sealer(stream: StreamId, owners: &[&OwnerKey]) -> Sealer {
    let owners: Vec<_> = owners
        .iter()
        .map(|owner| owner.public_key().clone())
        .collect();
    Sealer::new(device(), stream, KEY.verifying_key(), &owners).unwrap()
}

/// Record number `n` of a stream, made `n` seconds after the start.
fn seal(sealer: &mut Sealer, n: u64, body: &[u8]) -> Verified {
    let content = Content::Data {
        content_type: "text/plain",
        body,
    };
    let envelope = sealer
        .seal(&*KEY, &moment(n % 1_000_000 * 1000), n, content)
        .unwrap();
    envelope.verify(KEY.verifying_key()).unwrap()
}

fn records(stream: StreamId, numbers: impl IntoIterator<Item = u64>) -> Vec<Verified> {
    let mut sealer = sealer(stream, &[&OWNER]);
    numbers
        .into_iter()
        .map(|n| seal(&mut sealer, n, b"21.4"))
        .collect()
}

fn whole() -> Audit {
    Audit::new(device(), &trusted(), true)
}

fn take(audit: &mut Audit, records: &[Verified]) {
    for record in records {
        audit.record(record, record.header().time, 0);
    }
}

fn report(audit: &mut Audit, stream: StreamId, n: u64, report: &Report) {
    let envelope = sealer(stream, &[&OWNER])
        .seal(&*KEY, &moment(n), n, Content::Report(report))
        .unwrap();
    let record = envelope.verify(KEY.verifying_key()).unwrap();
    audit.record(&record, at(n), 0);
    audit.report(
        record.header(),
        at(n),
        record
            .open(&OWNER)
            .unwrap()
            .report()
            .unwrap()
            .as_ref()
            .unwrap(),
    );
}

fn lost(reason: LossReason, stream: StreamId, first: u64, last: u64) -> Report {
    Report::LossReceipt(LossReceipt {
        reason,
        records: last - first + 1,
        range: Some(SequenceRange {
            stream,
            first,
            last,
        }),
        noticed_at: at(0),
    })
}

fn started(previous: Option<PreviousStream>) -> Report {
    Report::DeviceEvent(DeviceEvent::StreamStarted { previous })
}

fn of(findings: &Findings, stream: StreamId) -> StreamFindings {
    findings
        .streams
        .iter()
        .find(|s| s.stream == stream)
        .unwrap()
        .clone()
}

fn gap(first: u64, last: u64, receipt: Option<LossReason>) -> Gap {
    Gap {
        first,
        last,
        receipt,
    }
}

#[test]
fn a_complete_stream_is_clean_whatever_the_order() {
    let mut audit = whole();
    let mut all = records(A, 1..=100);
    all.reverse();
    all.rotate_left(37);
    take(&mut audit, &all);
    let findings = audit.finish();
    assert!(findings.is_clean());
    let stream = of(&findings, A);
    assert_eq!(
        (stream.records, stream.seen, stream.complete_to),
        (100, Some(1..=100), 100)
    );
    let (heard, place) = findings.last_heard.unwrap();
    assert_eq!(heard, at(100_000));
    assert_eq!(
        place,
        Place {
            time: at(100_000),
            stream: A,
            sequence: 100
        }
    );
}

#[test]
fn tells_exactly_what_is_missing() {
    let mut audit = whole();
    take(&mut audit, &records(A, [3, 4, 7, 9, 10]));
    let findings = audit.finish();
    assert!(!findings.is_clean());
    let stream = of(&findings, A);
    assert_eq!(
        stream.missing,
        [gap(1, 2, None), gap(5, 6, None), gap(8, 8, None)]
    );
    assert_eq!(stream.complete_to, 0);
}

#[test]
fn a_range_of_time_begins_where_it_begins() {
    let mut audit = Audit::new(device(), &trusted(), false);
    take(&mut audit, &records(A, [30, 31, 33]));
    report(
        &mut audit,
        B,
        2,
        &started(Some(PreviousStream {
            stream: A,
            last: 90,
        })),
    );
    let findings = audit.finish();
    let stream = of(&findings, A);
    assert_eq!(stream.missing, [gap(32, 32, None)]);
    assert_eq!((stream.seen, stream.complete_to), (Some(30..=33), 31));
}

#[test]
fn a_receipt_explains_what_it_covers_and_nothing_else() {
    let mut audit = whole();
    take(&mut audit, &records(A, [1, 2, 10]));
    report(&mut audit, A, 11, &lost(LossReason::Dropped, A, 2, 5));
    report(&mut audit, A, 12, &lost(LossReason::Damaged, A, 5, 7));
    // Sealed twice, after a stop in between: the same loss.
    report(&mut audit, A, 13, &lost(LossReason::Damaged, A, 5, 7));
    let stream = of(&audit.clone().finish(), A);
    let explained = [
        gap(3, 5, Some(LossReason::Dropped)),
        gap(6, 7, Some(LossReason::Damaged)),
        gap(8, 9, None),
    ];
    assert_eq!(stream.missing, explained);
    assert_eq!(stream.complete_to, 7);
    assert!(!stream.is_clean());

    report(&mut audit, A, 14, &lost(LossReason::Refused, A, 8, 9));
    let findings = audit.finish();
    assert!(findings.is_clean());
    assert_eq!(of(&findings, A).complete_to, 14);
}

/// A record that was put aside, and published again by hand; or one whose
/// delivery the device did not hear of.
#[test]
fn what_arrives_though_it_is_stated_as_lost_is_told_and_is_no_finding() {
    let mut audit = whole();
    report(&mut audit, A, 1, &started(None));
    take(&mut audit, &records(A, [2, 3, 9]));
    report(&mut audit, A, 10, &lost(LossReason::Refused, A, 4, 4));
    report(&mut audit, A, 11, &lost(LossReason::Dropped, A, 5, 8));
    assert_eq!(of(&audit.clone().finish(), A).arrived, []);
    take(&mut audit, &records(A, [4, 7]));
    let findings = audit.clone().finish();
    let stream = of(&findings, A);
    let dropped = Some(LossReason::Dropped);
    assert_eq!(stream.missing, [gap(5, 6, dropped), gap(8, 8, dropped)]);
    assert_eq!(stream.arrived, [4..=4, 7..=7]);
    assert_eq!((stream.forks.len(), stream.complete_to), (0, 11));
    assert!(findings.is_clean());
    // A doubt names no record.
    let doubt = Report::LossReceipt(LossReceipt {
        reason: LossReason::Damaged,
        records: 0,
        range: Some(SequenceRange {
            stream: A,
            first: 1,
            last: 11,
        }),
        noticed_at: at(0),
    });
    report(&mut audit, A, 12, &doubt);
    assert_eq!(of(&audit.finish(), A).arrived, [4..=4, 7..=7]);
}

#[test]
fn readings_refused_before_they_had_a_number_are_counted_once() {
    let mut audit = whole();
    let receipt = |reason, records, noticed_at| {
        let (range, noticed_at) = (None, at(noticed_at));
        Report::LossReceipt(LossReceipt {
            reason,
            records,
            range,
            noticed_at,
        })
    };
    use LossReason::{Rejected, Several};
    let receipts = [
        (Rejected, 40, 5),
        (Several, 40, 5),
        (Rejected, 40, 4),
        (Rejected, 40, 5),
        (Several, 40, 5),
        (Rejected, 41, 5),
    ];
    for (number, (reason, records, noticed_at)) in (1..).zip(receipts) {
        report(&mut audit, A, number, &receipt(reason, records, noticed_at));
    }
    let findings = audit.finish();
    let found = findings.rejected.iter();
    let found: Vec<_> = found.map(|it| (it.reason, it.records)).collect();
    let expected = [
        (Rejected, 40),
        (Rejected, 40),
        (Several, 40),
        (Rejected, 41),
    ];
    assert_eq!(found, expected);
    assert!(findings.is_clean());
}

#[test]
fn the_next_stream_tells_where_the_last_one_ended() {
    let mut audit = whole();
    report(&mut audit, A, 1, &started(None));
    take(&mut audit, &records(A, 2..=5));
    report(
        &mut audit,
        B,
        1,
        &started(Some(PreviousStream { stream: A, last: 7 })),
    );
    let findings = audit.clone().finish();
    let first = of(&findings, A);
    assert_eq!(first.missing, [gap(6, 7, None)]);
    assert_eq!((first.origin, first.successors), (Origin::First, vec![B]));
    assert_eq!(
        of(&findings, B).origin,
        Origin::After(PreviousStream { stream: A, last: 7 })
    );

    // Both arrive late: complete. One more, and somebody uses its key.
    take(&mut audit, &records(A, 6..=7));
    assert!(audit.clone().finish().is_clean());
    take(&mut audit, &records(A, 8..=8));
    let findings = audit.finish();
    assert_eq!(of(&findings, A).beyond_end, [8..=8]);
    assert!(!findings.is_clean());
}

#[test]
fn a_stream_of_which_nothing_arrived_is_missing_whole() {
    let mut audit = whole();
    report(
        &mut audit,
        B,
        1,
        &started(Some(PreviousStream { stream: A, last: 7 })),
    );
    let findings = audit.finish();
    let stream = of(&findings, A);
    assert_eq!((stream.records, stream.seen.clone()), (0, None));
    assert_eq!(stream.missing, [gap(1, 7, None)]);
    assert!(!findings.is_clean());

    // A stream of which nothing was kept has nothing to miss.
    let mut audit = whole();
    report(
        &mut audit,
        B,
        1,
        &started(Some(PreviousStream { stream: A, last: 0 })),
    );
    assert!(audit.finish().is_clean());
}

#[test]
fn two_streams_after_the_same_one_are_a_copy() {
    let mut audit = whole();
    take(&mut audit, &records(A, 1..=3));
    for stream in [B, C] {
        report(
            &mut audit,
            stream,
            1,
            &started(Some(PreviousStream { stream: A, last: 3 })),
        );
    }
    let findings = audit.finish();
    assert_eq!(of(&findings, A).successors, [B, C]);
    assert!(!findings.is_clean());
}

#[test]
fn two_records_with_one_number_are_a_fork() {
    let mut audit = whole();
    take(&mut audit, &records(A, 1..=5));
    let mut copy = sealer(A, &[&OWNER]);
    for n in [2, 3, 5] {
        take(&mut audit, &[seal(&mut copy, n, b"something else")]);
    }
    let findings = audit.finish();
    let stream = of(&findings, A);
    assert_eq!(stream.forks, [2..=3, 5..=5]);
    assert_eq!(stream.records, 5);
    assert!(!findings.is_clean());
}

#[test]
fn what_came_in_again_is_counted_and_fine() {
    let mut audit = whole();
    for record in records(A, 1..=3) {
        let again = record.header().sequence * 10;
        audit.record(&record, record.header().time, again);
    }
    let findings = audit.finish();
    assert_eq!(of(&findings, A).again, 60);
    assert!(findings.is_clean());
}

#[test]
fn recipients_that_are_not_the_owners_are_an_alarm() {
    let stranger = OwnerKey::generate().unwrap();
    let mut audit = whole();
    let mut both = sealer(A, &[&OWNER, &stranger]);
    take(
        &mut audit,
        &[seal(&mut both, 2, b"x"), seal(&mut both, 1, b"x")],
    );
    let mut without = sealer(B, &[&stranger]);
    take(&mut audit, &[seal(&mut without, 1, b"x")]);
    let findings = audit.finish();
    let alarms: Vec<_> = findings
        .alarms
        .iter()
        .map(|a| (a.kind, a.records, a.first.sequence))
        .collect();
    assert_eq!(
        alarms,
        [
            (AlarmKind::UnexpectedRecipient(stranger.id()), 3, 1),
            (AlarmKind::OwnerLeftOut(OWNER.id()), 1, 1),
        ]
    );
    assert!(!findings.is_clean());
}

#[test]
fn what_does_not_verify_is_an_alarm_and_counts_for_nothing() {
    let mut audit = whole();
    let forged = records(A, [1]).remove(0);
    audit.refused(forged.header(), Reason::SignerMismatch);
    audit.damaged(
        "2026-11-23T11:20:44.123Z#aa#1",
        "the signature does not have 64 bytes",
    );
    let findings = audit.finish();
    assert!(findings.streams.is_empty());
    let signer = forged.header().signer;
    assert_eq!(
        findings.alarms[0].kind,
        AlarmKind::Refused {
            reason: Reason::SignerMismatch,
            signer
        }
    );
    assert_eq!(findings.damaged[0].key, "2026-11-23T11:20:44.123Z#aa#1");
    assert!(!findings.is_clean());
}

#[test]
fn what_happened_to_the_device_is_told_in_order() {
    let mut audit = whole();
    report(&mut audit, A, 1, &started(None));
    let broken = DeviceEvent::PerimeterBroken {
        circuit: 0,
        at: at(60),
    };
    let cleared = DeviceEvent::PerimeterCleared { circuit: 0 };
    report(&mut audit, A, 3, &Report::DeviceEvent(cleared.clone()));
    report(&mut audit, A, 2, &Report::DeviceEvent(broken.clone()));
    let findings = audit.finish();
    let events: Vec<_> = findings
        .events
        .iter()
        .map(|(place, event)| (place.sequence, event.clone()))
        .collect();
    assert_eq!(events, [(2, broken), (3, cleared)]);
    assert!(findings.is_clean());
}

#[test]
fn clocks_that_are_set_or_ahead_are_told() {
    let mut audit = whole();
    let anchor = TimeAnchor {
        before: Some(ClockBefore {
            time: at(60),
            clock: ClockQuality::Unknown,
        }),
        error_ms: Some(16),
    };
    report(&mut audit, A, 2, &Report::TimeAnchor(anchor));
    // A program's first: it sets nothing right.
    let anchor = TimeAnchor {
        before: None,
        error_ms: Some(16),
    };
    report(&mut audit, A, 4, &Report::TimeAnchor(anchor));
    let record = records(A, [1]).remove(0);
    let early = Timestamp::from_millis(record.header().time.as_millis() - 3_600_001).unwrap();
    audit.record(&record, early, 0);
    let mut unset = sealer(A, &[&OWNER]);
    let unset_moment = Moment {
        clock: ClockQuality::Unknown,
        ..moment(3)
    };
    let content = Content::Data {
        content_type: "text/plain",
        body: b"x",
    };
    let envelope = unset.seal(&*KEY, &unset_moment, 3, content).unwrap();
    take(&mut audit, &[envelope.verify(KEY.verifying_key()).unwrap()]);

    let findings = audit.finish();
    assert_eq!((findings.ahead, findings.clock_unknown), (1, 1));
    assert_eq!(findings.repairs.len(), 1);
    let repair = findings.repairs[0];
    assert_eq!((repair.place.sequence, repair.before), (2, at(60)));
    assert_eq!(repair.error_ms, Some(16));
    assert!(findings.is_clean());
}

#[test]
fn the_last_heartbeat_counts_whatever_the_order() {
    let heartbeat = |waiting| {
        Report::Heartbeat(Heartbeat {
            interval_ms: 300_000,
            waiting,
            waiting_bytes: 0,
            sensors: 3,
        })
    };
    for order in [[1, 2, 3], [3, 1, 2]] {
        let mut audit = whole();
        for n in order {
            report(&mut audit, A, n, &heartbeat(n));
        }
        let (received_at, last) = audit.finish().heartbeat.unwrap();
        assert_eq!((received_at, last.waiting), (at(3), 3));
    }
}

/// Several heartbeats may come in one message, and so at one time.
#[test]
fn of_heartbeats_received_together_the_one_with_the_highest_number_is_the_last() {
    let mut sealer = sealer(A, &[&OWNER]);
    let beats: Vec<_> = (1..=3)
        .map(|n| {
            let beat = Report::Heartbeat(Heartbeat {
                interval_ms: 300_000,
                waiting: n,
                waiting_bytes: 0,
                sensors: 3,
            });
            let sealed = sealer.seal(&*KEY, &moment(n), n, Content::Report(&beat));
            (sealed.unwrap(), beat)
        })
        .collect();
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut audit = whole();
        for n in order {
            let (envelope, beat) = &beats[n];
            audit.report(envelope.unverified_header(), at(9), beat);
        }
        assert_eq!(audit.finish().heartbeat.unwrap().1.waiting, 3, "{order:?}");
    }
}

/// The end of a stream may be lost as well, and the stream after it then says
/// that it ended before.
#[test]
fn a_receipt_for_the_end_of_a_stream_is_told() {
    let previous = |last| Some(PreviousStream { stream: A, last });
    let mut audit = whole();
    take(&mut audit, &records(A, 1..=10));
    report(&mut audit, B, 1, &started(previous(10)));
    report(&mut audit, B, 2, &lost(LossReason::Damaged, A, 11, 20));
    let findings = audit.finish();
    let stream = of(&findings, A);
    let stated = [gap(11, 20, Some(LossReason::Damaged))];
    assert_eq!((stream.missing, stream.complete_to), (stated.into(), 20));
    assert!(findings.is_clean());

    // Of a stream that is lost whole, and one of which more is missing.
    let mut audit = whole();
    report(&mut audit, B, 1, &started(previous(0)));
    report(&mut audit, B, 2, &lost(LossReason::Damaged, A, 3, 4));
    let stream = of(&audit.finish(), A);
    let missing = [gap(1, 2, None), gap(3, 4, Some(LossReason::Damaged))];
    assert_eq!((stream.missing, stream.complete_to), (missing.into(), 0));
}

#[test]
fn a_loss_of_unknown_extent_is_never_clean() {
    let unknown = |first| {
        Report::LossReceipt(LossReceipt {
            reason: LossReason::Damaged,
            records: 0,
            range: Some(SequenceRange {
                stream: A,
                first,
                last: first,
            }),
            noticed_at: at(0),
        })
    };
    let mut audit = whole();
    take(&mut audit, &records(A, 1..=10));
    let previous = PreviousStream {
        stream: A,
        last: 10,
    };
    report(&mut audit, B, 1, &started(Some(previous)));
    assert!(audit.clone().finish().is_clean());
    report(&mut audit, B, 2, &unknown(15));
    report(&mut audit, B, 3, &unknown(11));
    let findings = audit.finish();
    assert_eq!(of(&findings, A).doubt_from, Some(11));
    assert_eq!(of(&findings, B).doubt_from, None);
    assert!(!findings.is_clean());
}

/// What the first record of B says was lost: that A had gone on past 6.
#[test]
fn a_stream_of_unknown_beginning_leaves_the_ends_of_others_open() {
    let mut audit = whole();
    report(&mut audit, A, 1, &started(None));
    take(&mut audit, &records(A, 2..=6));
    take(&mut audit, &records(B, 3..=5));
    report(&mut audit, B, 6, &lost(LossReason::Dropped, B, 1, 2));
    let findings = audit.clone().finish();
    assert_eq!(findings.unlinked, [B]);
    assert!(!findings.is_clean());

    // It came after all, and A is complete.
    let previous = PreviousStream { stream: A, last: 6 };
    report(&mut audit, B, 1, &started(Some(previous)));
    assert!(audit.finish().is_clean());

    // Two that each say to be first: an agent's, and that of a tool beside it.
    let mut audit = whole();
    for stream in [A, B] {
        report(&mut audit, stream, 1, &started(None));
    }
    assert!(audit.finish().is_clean());
}

/// A device that says so twice, in whatever order it is read, hides nothing.
#[test]
fn each_statement_of_a_beginning_counts_in_any_order() {
    let after = |stream| started(Some(PreviousStream { stream, last: 7 }));
    let statements = [(C, 1, after(A)), (C, 2, after(B)), (C, 3, started(None))];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut audit = whole();
        for n in order {
            let (stream, sequence, statement) = &statements[n];
            report(&mut audit, *stream, *sequence, statement);
        }
        let findings = audit.finish();
        for stream in [A, B] {
            assert_eq!(of(&findings, stream).missing, [gap(1, 7, None)]);
            assert_eq!(of(&findings, stream).successors, [C]);
        }
        let previous = PreviousStream { stream: A, last: 7 };
        assert_eq!(of(&findings, C).origin, Origin::After(previous));
    }
}

#[test]
fn the_highest_numbers_overflow_nothing() {
    let mut audit = whole();
    take(&mut audit, &records(A, [1, u64::MAX - 1, u64::MAX]));
    let previous = PreviousStream {
        stream: A,
        last: u64::MAX,
    };
    take(&mut audit, &records(B, [u64::MAX]));
    let last = records(B, [u64::MAX]).remove(0);
    audit.report(last.header(), at(0), &started(Some(previous)));
    report(&mut audit, B, 1, &lost(LossReason::Dropped, A, 2, u64::MAX));
    let findings = audit.finish();
    let stream = of(&findings, A);
    let stated = [gap(2, u64::MAX - 2, Some(LossReason::Dropped))];
    assert_eq!(
        (stream.missing, stream.complete_to),
        (stated.into(), u64::MAX)
    );
    let stream = of(&findings, B);
    assert_eq!(stream.missing, [gap(2, u64::MAX - 1, None)]);
    assert_eq!((stream.records, stream.complete_to), (2, 1));
}

#[test]
fn streams_stand_in_the_order_in_which_they_were_first_heard_of() {
    let mut audit = whole();
    for (stream, n) in [(C, 1), (A, 2), (B, 3)] {
        take(&mut audit, &records(stream, [n]));
    }
    let order: Vec<_> = audit.finish().streams.iter().map(|s| s.stream).collect();
    assert_eq!(order, [C, A, B]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against sets of numbers instead of ranges.
    #[test]
    fn agrees_with_a_simple_model(
        numbers in prop::collection::vec(1_u64..30, 1..40),
        receipts in prop::collection::vec((1_u64..30, 0_u64..5), 0..4),
        whole in any::<bool>(),
    ) {
        let mut audit = Audit::new(device(), &trusted(), whole);
        take(&mut audit, &records(A, numbers.iter().copied()));
        let mut explained = BTreeSet::new();
        for (n, (first, more)) in receipts.iter().enumerate() {
            // In a stream of its own, so that the numbers of A stay as they are.
            report(&mut audit, B, n as u64 + 1, &lost(LossReason::Dropped, A, *first, first + more));
            explained.extend(*first..=first + more);
        }
        let stream = of(&audit.finish(), A);

        let seen: BTreeSet<u64> = numbers.iter().copied().collect();
        let seen_last = *seen.last().unwrap();
        let last = if whole { seen_last.max(explained.last().copied().unwrap_or(0)) } else { seen_last };
        let first = if whole { 1 } else { *seen.first().unwrap() };
        let missing: Vec<u64> = (first..=last).filter(|n| !seen.contains(n)).collect();
        let told: Vec<u64> = stream.missing.iter().flat_map(|g| g.first..=g.last).collect();
        prop_assert_eq!(&told, &missing);
        let arrived: Vec<u64> = stream.arrived.iter().cloned().flatten().collect();
        prop_assert_eq!(arrived, seen.intersection(&explained).copied().collect::<Vec<_>>());
        for gap in &stream.missing {
            for n in gap.first..=gap.last {
                prop_assert_eq!(gap.receipt.is_some(), explained.contains(&n));
            }
        }
        let complete = missing.iter().find(|n| !explained.contains(n)).map_or(last, |n| n - 1);
        prop_assert_eq!(stream.complete_to, complete);
        prop_assert_eq!(stream.records, seen.len() as u64);
        let forks: BTreeSet<u64> = stream.forks.iter().cloned().flatten().collect();
        let twice: BTreeSet<u64> =
            seen.iter().filter(|n| numbers.iter().filter(|m| m == n).count() > 1).copied().collect();
        prop_assert_eq!(forks, twice);
    }
}
