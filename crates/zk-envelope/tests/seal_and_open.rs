//! The way of a record: sealed, verified, opened; and what must not open.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use common::{Device, head_len, moment};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use proptest::prelude::*;
use zk_envelope::{
    ClockBefore, ClockQuality, Content, DeviceEvent, DeviceId, Envelope, Error, Heartbeat, Kind,
    LossReason, LossReceipt, MAX_ENCRYPTED_DATA, Moment, OwnerKey, PreviousStream, Report, Sealer,
    SequenceRange, StreamId, TimeAnchor, Timestamp,
};

#[test]
fn the_size_promised() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    // length(1) ‖ "application/json"(16) ‖ 107 = 124 bytes
    let envelope = device.seal(&[b'x'; 107]);
    assert_eq!(envelope.encrypted_data().len(), 403);
    assert_eq!(envelope.to_bytes().len(), 403 + 64);
}

#[test]
fn every_owner_opens_and_nobody_else() {
    let owners: Vec<OwnerKey> = (0..8).map(|_| OwnerKey::generate().unwrap()).collect();
    let stranger = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &owners.iter().collect::<Vec<_>>());
    let verified = device
        .seal(b"{}")
        .verify(device.key.verifying_key())
        .unwrap();
    for owner in &owners {
        let opened = verified.open(owner).unwrap();
        assert_eq!(opened.body(), b"{}");
        assert_eq!(opened.content_type(), "application/json");
        assert!(opened.report().unwrap().is_none());
    }
    assert!(matches!(
        verified.open(&stranger),
        Err(Error::NotARecipient { owner, recipients }) if owner == stranger.id() && recipients.len() == 8
    ));
}

#[test]
fn the_header_says_what_was_sealed() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("A-z_9", &[&owner]);
    device.seal(b"first");
    let envelope = device.seal_at(
        &Moment {
            time: Timestamp::MAX,
            clock: ClockQuality::HardwareClock,
            ..moment(u64::MAX)
        },
        Content::Data {
            content_type: "text/plain",
            body: b"",
        },
    );
    let header = envelope.unverified_header();
    assert_eq!(header.kind, Kind::Data);
    assert_eq!(header.device.as_str(), "A-z_9");
    assert_eq!(header.stream, StreamId([0x51; 16]));
    assert_eq!(header.sequence, 2);
    assert_eq!(header.since_boot_ms, u64::MAX);
    assert_eq!(header.time.to_string(), "9999-12-31T23:59:59.999Z");
    assert_eq!(header.clock, ClockQuality::HardwareClock);
    assert_eq!(header.recipients, [owner.id()]);
    let again = Envelope::from_bytes(&envelope.to_bytes()).unwrap();
    assert_eq!(again.unverified_header(), header);
    let opened = again
        .verify(device.key.verifying_key())
        .unwrap()
        .open(&owner)
        .unwrap();
    assert_eq!(
        (opened.content_type(), opened.body()),
        ("text/plain", &b""[..])
    );
}

#[test]
fn all_reports_come_back() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let at: Timestamp = "2026-11-23T11:20:44.123Z".parse().unwrap();
    let stream = StreamId([9; 16]);
    let reports = [
        (
            Report::LossReceipt(LossReceipt {
                reason: LossReason::Dropped,
                records: 17,
                range: Some(SequenceRange {
                    stream,
                    first: 41,
                    last: 57,
                }),
                noticed_at: at,
            }),
            r#"{"reason":"dropped","records":17,"range":{"stream":"09090909090909090909090909090909","first":41,"last":57},"noticedAt":"2026-11-23T11:20:44.123Z"}"#,
        ),
        (
            Report::LossReceipt(LossReceipt {
                reason: LossReason::Rejected,
                records: 3,
                range: None,
                noticed_at: at,
            }),
            r#"{"reason":"rejected","records":3,"range":null,"noticedAt":"2026-11-23T11:20:44.123Z"}"#,
        ),
        (
            Report::TimeAnchor(TimeAnchor {
                before: Some(ClockBefore {
                    time: Timestamp::from_millis(62_345).unwrap(),
                    clock: ClockQuality::Unknown,
                }),
                error_ms: Some(16),
            }),
            r#"{"before":{"time":"1970-01-01T00:01:02.345Z","clock":"unknown"},"errorMs":16}"#,
        ),
        (
            Report::TimeAnchor(TimeAnchor {
                before: None,
                error_ms: None,
            }),
            r#"{"before":null,"errorMs":null}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None }),
            r#"{"event":"stream-started","previous":null}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::StreamStarted {
                previous: Some(PreviousStream { stream, last: 57 }),
            }),
            r#"{"event":"stream-started","previous":{"stream":"09090909090909090909090909090909","last":57}}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::PerimeterBroken { circuit: 1, at }),
            r#"{"event":"perimeter-broken","circuit":1,"at":"2026-11-23T11:20:44.123Z"}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::PerimeterCleared { circuit: 1 }),
            r#"{"event":"perimeter-cleared","circuit":1}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::BatteryLow { millivolts: 2410 }),
            r#"{"event":"battery-low","millivolts":2410}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::BatteryRestored { millivolts: 3010 }),
            r#"{"event":"battery-restored","millivolts":3010}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::BindingChanged {
                bound: true,
                locked: false,
            }),
            r#"{"event":"binding-changed","bound":true,"locked":false}"#,
        ),
        (
            Report::DeviceEvent(DeviceEvent::ModuleRecovered { outage_ms: 52_000 }),
            r#"{"event":"module-recovered","outageMs":52000}"#,
        ),
        (
            Report::Heartbeat(Heartbeat {
                interval_ms: 300_000,
                waiting: 2,
                waiting_bytes: 934,
                sensors: 3,
            }),
            r#"{"intervalMs":300000,"waiting":2,"waitingBytes":934,"sensors":3}"#,
        ),
    ];
    for (report, json) in reports {
        let envelope = device.seal_at(&moment(1), Content::Report(&report));
        assert_eq!(envelope.unverified_header().kind, report.kind());
        let opened = envelope
            .verify(device.key.verifying_key())
            .unwrap()
            .open(&owner)
            .unwrap();
        assert_eq!(str::from_utf8(opened.body()).unwrap(), json);
        assert_eq!(opened.report().unwrap(), Some(report));
    }
}

#[test]
fn a_loss_receipt_that_contradicts_itself_is_not_sealed() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let report = Report::LossReceipt(LossReceipt {
        reason: LossReason::Damaged,
        records: 2,
        range: Some(SequenceRange {
            stream: StreamId([9; 16]),
            first: 5,
            last: 5,
        }),
        noticed_at: Timestamp::MAX,
    });
    let sealed = device
        .sealer
        .seal(&device.key, &moment(1), 1, Content::Report(&report));
    assert!(matches!(sealed, Err(Error::Malformed { .. })));
}

#[test]
fn an_epoch_lasts_a_day_of_one_boot() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let day = 24 * 60 * 60 * 1000;
    let wraps = |device: &mut Device, at: &Moment| {
        let envelope = device.seal_at(
            at,
            Content::Data {
                content_type: "text/plain",
                body: b"x",
            },
        );
        let start = head_len("pi-01");
        envelope.encrypted_data()[start..start + 121].to_vec()
    };
    let first = wraps(&mut device, &moment(5_000));
    assert_eq!(wraps(&mut device, &moment(5_000 + day - 1)), first);
    let second = wraps(&mut device, &moment(5_000 + day));
    assert_ne!(second, first);
    // A clock that runs backwards, or another boot: a new epoch.
    let third = wraps(&mut device, &moment(4_999));
    assert_ne!(third, second);
    let rebooted = Moment {
        boot: zk_envelope::BootId([1; 16]),
        ..moment(4_999)
    };
    assert_ne!(wraps(&mut device, &rebooted), third);
}

#[test]
fn the_wrong_key_verifies_nothing() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let other = SigningKey::generate();
    let envelope = device.seal(b"{}");
    assert!(matches!(
        envelope.clone().verify(other.verifying_key()),
        Err(Error::WrongSigner { .. })
    ));
    // Another device signs the same bytes: right form, wrong hand.
    let forged: Signature = other.sign(envelope.encrypted_data());
    let forged =
        Envelope::from_parts(envelope.encrypted_data().to_vec(), forged.to_bytes().into()).unwrap();
    assert!(matches!(
        forged.verify(device.key.verifying_key()),
        Err(Error::BadSignature)
    ));
}

#[test]
fn high_and_low_s_are_both_right() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let envelope = device.seal(b"{}");
    let signature = Signature::from_slice(envelope.signature()).unwrap();
    let (r, s) = signature.split_scalars();
    let mirrored = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
    assert_ne!(mirrored, signature);
    for signature in [signature, mirrored] {
        let bytes = envelope.encrypted_data().to_vec();
        let envelope = Envelope::from_parts(bytes, signature.to_bytes().into()).unwrap();
        envelope.verify(device.key.verifying_key()).unwrap();
    }
}

/// The signer may sign anything, but has no data key: nothing it changes opens.
#[test]
fn a_change_under_a_fresh_signature_does_not_open() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let envelope = device.seal(b"{\"readings\":[]}");
    let original = envelope.encrypted_data();
    for at in 0..original.len() {
        let mut bytes = original.to_vec();
        bytes[at] ^= 1;
        let signature: Signature = device.key.sign(&bytes);
        let Ok(envelope) = Envelope::from_parts(bytes, signature.to_bytes().into()) else {
            continue; // not even the form is right
        };
        let Ok(verified) = envelope.verify(device.key.verifying_key()) else {
            continue; // it names another signer now
        };
        let opened = verified.open(&owner);
        assert!(
            matches!(
                opened,
                Err(Error::Undecryptable | Error::NotARecipient { .. })
            ),
            "byte {at} changed, and it opens"
        );
    }
}

#[test]
fn a_signer_that_fails_or_has_another_key_is_told_apart() {
    struct Broken;
    impl signature::Signer<Signature> for Broken {
        fn try_sign(&self, _: &[u8]) -> Result<Signature, signature::Error> {
            Err(signature::Error::from_source("the chip is out"))
        }
    }
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let content = Content::Data {
        content_type: "text/plain",
        body: b"x",
    };
    let failed = device
        .sealer
        .seal(&Broken, &moment(1), 1, content)
        .unwrap_err();
    let Error::Sign(source) = failed else {
        panic!("{failed}")
    };
    assert_eq!(
        std::error::Error::source(&source).unwrap().to_string(),
        "the chip is out"
    );
    let other = SigningKey::generate();
    assert!(matches!(
        device.sealer.seal(&other, &moment(1), 1, content),
        Err(Error::SignerChanged { .. })
    ));
}

#[test]
fn what_a_sealer_refuses() {
    let owner = OwnerKey::generate().unwrap();
    let public = owner.public_key().clone();
    let key = SigningKey::generate();
    let new = |owners: &[_]| {
        let device = DeviceId::try_from("pi-01").unwrap();
        Sealer::new(device, StreamId([1; 16]), key.verifying_key(), owners)
    };
    assert!(matches!(new(&[]), Err(Error::Malformed { .. })));
    assert!(matches!(
        new(&[public.clone(), public.clone()]),
        Err(Error::Malformed { .. })
    ));
    let mut sealer = new(&[public]).unwrap();
    let mut refused = |sequence, content_type, len| {
        let body = vec![0; len];
        let content = Content::Data {
            content_type,
            body: &body,
        };
        sealer.seal(&key, &moment(1), sequence, content)
    };
    assert!(matches!(refused(0, "a", 1), Err(Error::Malformed { .. })));
    assert!(matches!(refused(1, "", 1), Err(Error::Malformed { .. })));
    assert!(matches!(
        refused(1, "tab\t", 1),
        Err(Error::Malformed { .. })
    ));
    assert!(matches!(
        refused(1, "a", MAX_ENCRYPTED_DATA),
        Err(Error::TooLarge { .. })
    ));
    // 275 bytes of frame; the largest plaintext fills its last block but one byte.
    let most = (MAX_ENCRYPTED_DATA - 275) / 16 * 16 - 1 - 2;
    refused(1, "a", most).unwrap();
    assert!(matches!(
        refused(1, "a", most + 1),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn nothing_secret_in_debug() {
    let owner = OwnerKey::generate().unwrap();
    let mut device = Device::new("pi-01", &[&owner]);
    let opened = device
        .seal(b"SECRET")
        .verify(device.key.verifying_key())
        .unwrap()
        .open(&owner)
        .unwrap();
    assert!(!format!("{opened:?}").contains("SECRET"));
    assert_eq!(format!("{owner:?}"), format!("OwnerKey({})", owner.id()));
    assert!(format!("{:?}", device.sealer).contains("pi-01"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_body_comes_back(body in proptest::collection::vec(any::<u8>(), 0..600), since: u64, ms in 0..=253_402_300_799_999_u64) {
        let owner = OwnerKey::generate().unwrap();
        let mut device = Device::new("pi-01", &[&owner]);
        let at = Moment { time: Timestamp::from_millis(ms).unwrap(), ..moment(since) };
        let envelope = device.seal_at(&at, Content::Data { content_type: "application/octet-stream", body: &body });
        let parsed = Envelope::from_bytes(&envelope.to_bytes()).unwrap();
        prop_assert_eq!(parsed.to_bytes(), envelope.to_bytes());
        let opened = parsed.verify(device.key.verifying_key()).unwrap().open(&owner).unwrap();
        prop_assert_eq!(opened.body(), &body[..]);
        prop_assert_eq!(opened.header().time.to_string().parse::<Timestamp>().unwrap(), at.time);
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Envelope::from_bytes(&bytes);
        let mut magic = b"ZKE1\x01".to_vec();
        magic.extend(&bytes);
        if let Ok(envelope) = Envelope::from_bytes(&magic) {
            prop_assert_eq!(envelope.to_bytes(), magic);
        }
    }
}
