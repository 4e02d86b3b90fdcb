//! The verdict on messages, by every way in which they can be wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use p256::ecdsa::SigningKey;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Envelope, KeyState, Message, Moment, OwnerKey, Sealer,
    StreamId, Timestamp, TrustedKey, pack,
};
use zk_verify::{
    Context, DeviceRecord, Evidence, Reason, Verdict, check, principal_of, recheck, topic_of,
};

struct Device {
    id: DeviceId,
    key: SigningKey,
}

impl Device {
    fn new(name: &str, seed: u8) -> Self {
        Self {
            id: name.parse().unwrap(),
            key: SigningKey::from_slice(&[seed; 32]).unwrap(),
        }
    }

    fn seal(&self, sequence: u64, time: &str) -> Envelope {
        let owner = OwnerKey::generate().unwrap();
        let verifying = self.key.verifying_key();
        let stream = StreamId([9; 16]);
        let mut sealer = Sealer::new(
            self.id.clone(),
            stream,
            verifying,
            &[owner.public_key().clone()],
        )
        .unwrap();
        let moment = Moment {
            boot: BootId([3; 16]),
            since_boot_ms: 5,
            time: time.parse().unwrap(),
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "text/plain",
            body: b"21.4",
        };
        sealer.seal(&self.key, &moment, sequence, content).unwrap()
    }

    fn message(&self, sequences: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        message(&sequences.map(|n| self.seal(n, MADE)).collect::<Vec<_>>())
    }

    fn record(&self) -> DeviceRecord {
        DeviceRecord {
            device: self.id.clone(),
            certificate: KeyState::Active,
            keys: vec![self.trusted(KeyState::Active)],
            registered_at: at("2026-01-01T00:00:00.000Z"),
        }
    }

    fn trusted(&self, state: KeyState) -> TrustedKey {
        TrustedKey {
            key: *self.key.verifying_key(),
            state,
        }
    }

    fn context(&self) -> Context {
        Context {
            principal: principal_of(self.id.as_str().as_bytes()),
            topic: topic_of(&self.id),
            received_at: at(RECEIVED),
        }
    }

    fn check(&self, message: &[u8]) -> Vec<Verdict> {
        check(message, &self.context(), Some(&self.record()))
    }
}

fn message(envelopes: &[Envelope]) -> Vec<u8> {
    let records: Vec<_> = envelopes.iter().map(Envelope::to_bytes).collect();
    let (message, taken) = pack(&records, usize::MAX).unwrap();
    assert_eq!(taken, records.len());
    message
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn replace(message: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(message).unwrap();
    assert!(text.contains(from));
    text.replace(from, to).into()
}

fn only(mut verdicts: Vec<Verdict>) -> Evidence {
    assert_eq!(verdicts.len(), 1);
    verdicts.pop().unwrap().expect_err("accepted")
}

fn reasons(verdicts: &[Verdict]) -> Vec<Option<Reason>> {
    verdicts
        .iter()
        .map(|v| v.as_ref().err().map(|e| e.reason))
        .collect()
}

#[test]
fn accepts_what_the_device_made_and_sent() {
    let device = Device::new("pi-01", 1);
    let verdicts = device.check(&device.message(7..=7));
    let accepted = verdicts[0].as_ref().unwrap();
    assert_eq!(accepted.envelope.header().sequence, 7);
    assert!(!accepted.ahead);
    assert_eq!(reasons(&device.check(&device.message(1..=5))), [None; 5]);
}

#[test]
fn flags_what_is_more_than_an_hour_ahead() {
    let device = Device::new("pi-01", 1);
    for (received, ahead) in [
        ("2026-11-23T10:20:44.123Z", false),
        ("2026-11-23T10:20:44.122Z", true),
    ] {
        let context = Context {
            received_at: at(received),
            ..device.context()
        };
        let verdicts = check(&device.message(1..=1), &context, Some(&device.record()));
        assert_eq!(verdicts[0].as_ref().unwrap().ahead, ahead);
    }
}

#[test]
fn a_message_is_refused_as_a_whole() {
    let device = Device::new("pi-01", 1);
    let good = device.message(1..=2);
    let context = device.context();

    let mut large = good.clone();
    large.resize(zk_envelope::MAX_MESSAGE + 100, b' ');
    let unknown = only(check(&good, &context, None));
    assert_eq!(
        (unknown.reason, unknown.message),
        (Reason::UnknownDevice, good.clone())
    );
    // The size is looked at first, then who sent it, then what it is.
    assert_eq!(only(check(&large, &context, None)).reason, Reason::TooLarge);
    assert_eq!(
        only(check(b"{}", &context, None)).reason,
        Reason::UnknownDevice
    );

    let mut record = device.record();
    record.certificate = KeyState::Revoked { at: at(RECEIVED) };
    assert_eq!(
        only(check(b"{}", &context, Some(&record))).reason,
        Reason::RevokedDevice
    );
    for broken in [&b""[..], b"{}", b"\xff", &good[..good.len() - 1]] {
        let evidence = only(device.check(broken));
        assert_eq!(
            (evidence.reason, evidence.authentic),
            (Reason::Malformed, false)
        );
        assert_eq!(evidence.message, broken);
    }
    // A hex digit out of place spoils the JSON, and with it the message.
    let upper = replace(&good, "\"signature\":\"", "\"signature\":\"A");
    assert_eq!(only(device.check(&upper)).reason, Reason::Malformed);
}

#[test]
fn too_large_stays_too_large() {
    let device = Device::new("pi-01", 1);
    let evidence = only(device.check(&vec![b'x'; 10 << 20]));
    assert_eq!(evidence.reason, Reason::TooLarge);
    assert!(
        evidence.message.len() <= zk_envelope::MAX_MESSAGE + 1,
        "what is kept is bounded"
    );
    assert_eq!(only(device.check(&evidence.message)), evidence);
}

#[test]
fn an_envelope_says_which_rule_it_breaks() {
    let device = Device::new("pi-01", 1);
    let other = Device::new("pi-02", 2);
    let envelope = device.seal(1, MADE);
    let good = message(std::slice::from_ref(&envelope));
    let signature = hex(envelope.signature());
    let foreign_signature = hex(other.seal(1, MADE).signature());
    let signed = hex(envelope.encrypted_data());
    let record = device.record();
    let mut stolen = device.record();
    stolen.keys[0].state = KeyState::Revoked { at: at(RECEIVED) };
    let mut rotated = device.record();
    rotated.keys = vec![other.trusted(KeyState::Active)];
    let topic = |topic: &str| Context {
        topic: topic.into(),
        ..device.context()
    };
    let own = topic("Zymkey/pi-01");

    let cases = [
        // The format of the envelope.
        (
            Reason::Malformed,
            false,
            replace(&good, &signed, &signed[..signed.len() - 2]),
            &own,
            &record,
        ),
        (
            Reason::Malformed,
            false,
            replace(&good, &signed, &format!("{signed}00")),
            &own,
            &record,
        ),
        (
            Reason::UnsupportedVersion,
            false,
            replace(&good, &signed[..10], "5a4b453201"),
            &own,
            &record,
        ),
        (
            Reason::UnsupportedVersion,
            false,
            replace(&good, &signed[..10], "5a4b453102"),
            &own,
            &record,
        ),
        // Whose it is.
        (
            Reason::PrincipalMismatch,
            false,
            other.message(1..=1),
            &own,
            &record,
        ),
        (Reason::SignerMismatch, false, good.clone(), &own, &rotated),
        (Reason::RevokedDevice, false, good.clone(), &own, &stolen),
        // The signature.
        (
            Reason::BadSignature,
            false,
            replace(&good, &signature, &foreign_signature),
            &own,
            &record,
        ),
        (
            Reason::BadSignature,
            false,
            replace(&good, &signature, &"0".repeat(128)),
            &own,
            &record,
        ),
        // What is not signed. Once the signature is right, it is evidence.
        (
            Reason::HeaderMismatch,
            true,
            replace(&good, "pi-01", "pi-02"),
            &own,
            &record,
        ),
        (
            Reason::HeaderMismatch,
            true,
            replace(&good, MADE, "2026-11-23T11:20:44.124Z"),
            &own,
            &record,
        ),
        (
            Reason::HeaderMismatch,
            true,
            replace(&good, MADE, "2026-11-23T11:20:44.123000Z"),
            &own,
            &record,
        ),
        (
            Reason::TopicMismatch,
            true,
            good.clone(),
            &topic("Zymkey/pi-02"),
            &record,
        ),
        (
            Reason::TopicMismatch,
            true,
            good.clone(),
            &topic("Zymkey/pi-01/"),
            &record,
        ),
    ];
    for (number, (reason, authentic, message, context, record)) in cases.into_iter().enumerate() {
        let evidence = only(check(&message, context, Some(record)));
        assert_eq!(
            (evidence.reason, evidence.authentic),
            (reason, authentic),
            "case {number}"
        );
        assert_eq!(
            evidence.message, message,
            "an envelope alone is kept as it came"
        );
        assert_eq!(
            only(check(&evidence.message, context, Some(record))),
            evidence
        );
    }
}

#[test]
fn every_bit_is_under_the_signature() {
    let device = Device::new("pi-01", 1);
    let envelope = device.seal(1, MADE);
    let signed = hex(envelope.encrypted_data());
    let good = message(&[envelope]);
    for place in 0..signed.len() {
        let mut digits = signed.clone().into_bytes();
        digits[place] = if digits[place] == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(digits).unwrap();
        only(device.check(&replace(&good, &signed, &changed)));
    }
}

#[test]
fn a_device_that_poses_as_another_is_caught_with_its_own_signature() {
    let device = Device::new("pi-01", 1);
    // pi-01's key, pi-02's name, over pi-01's certificate.
    let impostor = Device {
        id: "pi-02".parse().unwrap(),
        key: device.key.clone(),
    };
    let evidence = only(device.check(&impostor.message(1..=1)));
    assert_eq!(
        (evidence.reason, evidence.authentic),
        (Reason::PrincipalMismatch, true)
    );
}

#[test]
fn a_bad_envelope_does_not_spoil_its_batch() {
    let device = Device::new("pi-01", 1);
    let envelopes: Vec<_> = (1..=4).map(|n| device.seal(n, MADE)).collect();
    let batch = message(&envelopes);
    let batch = replace(
        &batch,
        &hex(envelopes[2].signature()),
        &hex(envelopes[1].signature()),
    );
    let verdicts = device.check(&batch);
    assert_eq!(
        reasons(&verdicts),
        [None, None, Some(Reason::BadSignature), None]
    );

    // It stands alone in the evidence, the same as if it had come alone.
    let evidence = verdicts[2].as_ref().unwrap_err();
    let alone = Message::parse(&evidence.message).unwrap();
    assert_eq!(alone.entries.len(), 1);
    assert_eq!(
        alone.entries[0].encrypted_data,
        envelopes[2].encrypted_data()
    );
    assert_eq!(&only(device.check(&evidence.message)), evidence);
}

#[test]
fn routing_copies_of_any_text_come_back_as_they_were() {
    let device = Device::new("pi-01", 1);
    let odd = r#"\"\\\u0000\ud83d\ude00 "#;
    let changed = replace(&device.message(1..=2), "\"pi-01\"", &format!("\"{odd}\""));
    for verdict in device.check(&changed) {
        let evidence = verdict.unwrap_err();
        assert_eq!(evidence.reason, Reason::HeaderMismatch);
        let parsed = Message::parse(&evidence.message).unwrap();
        assert_eq!(parsed.device_id, "\"\\\u{0}\u{1f600} ");
    }
}

#[test]
fn keys_count_by_the_time_of_receipt() {
    let device = Device::new("pi-01", 1);
    let revoked = KeyState::Revoked {
        at: at("2026-11-23T12:00:00.000Z"),
    };
    let cases = [
        (KeyState::Active, "2027-01-01T00:00:00.000Z", true),
        (KeyState::Retired, "2027-01-01T00:00:00.000Z", true),
        (revoked, "2026-11-23T11:59:59.999Z", true),
        (revoked, "2026-11-23T12:00:00.000Z", false),
        (revoked, "2027-01-01T00:00:00.000Z", false),
    ];
    for (state, received, good) in cases {
        let context = Context {
            received_at: at(received),
            ..device.context()
        };
        let mut by_key = device.record();
        by_key.keys[0].state = state;
        let mut by_certificate = device.record();
        by_certificate.certificate = state;
        for record in [by_key, by_certificate] {
            let verdicts = check(&device.message(1..=1), &context, Some(&record));
            let expected = (!good).then_some(Reason::RevokedDevice);
            assert_eq!(reasons(&verdicts), [expected], "{state:?}, {received}");
        }
        let again = recheck(
            device.seal(1, MADE),
            at(received),
            &device.id,
            &[device.trusted(state)],
        );
        assert_eq!(again.err(), (!good).then_some(Reason::RevokedDevice));
    }
}

#[test]
fn a_key_that_stands_there_twice_is_as_bad_as_the_worst_that_is_said_of_it() {
    let device = Device::new("pi-01", 1);
    let revoked = KeyState::Revoked { at: at(RECEIVED) };
    for states in [[KeyState::Active, revoked], [revoked, KeyState::Active]] {
        let keys = states.map(|state| device.trusted(state));
        let again = recheck(device.seal(1, MADE), at(RECEIVED), &device.id, &keys);
        assert_eq!(again.err(), Some(Reason::RevokedDevice), "{states:?}");
    }
}

/// The evidence of each record has the routing copy of the device id.
#[test]
fn evidence_is_no_multiple_of_the_message() {
    let device = Device::new("pi-01", 1);
    let record = format!(
        r#"{{"timestamp":"","data":{{"encryptedData":"","signature":"{}"}}}}"#,
        "0".repeat(128)
    );
    let batch = |name: &str| {
        let records = vec![&*record; (60_000 - name.len()) / record.len()].join(",");
        format!(r#"{{"deviceId":"{name}","batch":[{records}]}}"#)
    };
    for length in [5, 64, 65, 30_000] {
        let message = batch(&"x".repeat(length));
        let kept: usize = device
            .check(message.as_bytes())
            .iter()
            .map(|verdict| verdict.as_ref().unwrap_err().message.len())
            .sum();
        assert!(
            kept < 2 * message.len(),
            "{kept} bytes of {}",
            message.len()
        );
    }
}

#[test]
fn after_a_rotation_both_keys_count() {
    let (old, new) = (Device::new("pi-01", 1), Device::new("pi-01", 2));
    let mut record = new.record();
    record.keys.insert(0, old.trusted(KeyState::Retired));
    for device in [&old, &new] {
        let verdicts = check(&device.message(1..=1), &device.context(), Some(&record));
        assert_eq!(reasons(&verdicts), [None]);
    }
}

#[test]
fn rechecks_as_it_checks() {
    let device = Device::new("pi-01", 1);
    let other = Device::new("pi-02", 2);
    let keys = [device.trusted(KeyState::Active)];
    let again = |envelope| recheck(envelope, at(RECEIVED), &device.id, &keys).err();
    assert_eq!(again(device.seal(1, MADE)), None);
    assert_eq!(again(other.seal(1, MADE)), Some(Reason::PrincipalMismatch));
    let stranger = Device {
        id: device.id.clone(),
        key: other.key,
    };
    assert_eq!(again(stranger.seal(1, MADE)), Some(Reason::SignerMismatch));
    let good = device.seal(1, MADE);
    let forged = Envelope::from_parts(good.encrypted_data().to_vec(), [7; 64]).unwrap();
    assert_eq!(again(forged), Some(Reason::BadSignature));
}

#[test]
fn the_names_of_reasons_are_stable() {
    let names = Reason::ALL.map(Reason::as_str);
    assert_eq!(
        names,
        [
            "bad-signature",
            "conflict",
            "header-mismatch",
            "malformed",
            "principal-mismatch",
            "revoked-device",
            "signer-mismatch",
            "too-large",
            "topic-mismatch",
            "unknown-device",
            "unsupported-version",
        ]
    );
    for reason in Reason::ALL {
        assert_eq!(reason.to_string().parse(), Ok(reason));
    }
    assert!("Malformed".parse::<Reason>().is_err());
}

#[test]
fn a_principal_is_the_hash_of_the_certificate() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(principal_of(b""), empty);
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

const MADE: &str = "2026-11-23T11:20:44.123Z";
const RECEIVED: &str = "2026-11-23T11:20:45.001Z";
