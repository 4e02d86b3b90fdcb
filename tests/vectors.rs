//! Runs every vector of `tests/vectors` through every way into the crates, and
//! expects exactly what the file says. `tests/make_vectors.py` tells the shape
//! of the files, and writes them.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use pkcs8::{DecodePublicKey, EncodePrivateKey, LineEnding};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zk_envelope::{
    Entry, Envelope, Error, Header, KeyId, KeyState, Kind, Message, OwnerKey, Timestamp,
    TrustedKey, Verified, VerifyingKey, pack,
};
use zk_store::{Options, Store, StoreUri};
use zk_verify::{Context, DeviceRecord, check, principal_of, recheck, topic_of};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Vector {
    about: String,
    registered: Option<Registered>,
    owner: String,
    message: Option<String>,
    message_hex: Option<String>,
    #[serde(default)]
    spaces: usize,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Registered {
    device: String,
    keys: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
enum Expect {
    /// Refused as a whole.
    Message(String),
    Records(Vec<Outcome>),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
enum Outcome {
    Refused(String),
    Unopened {
        reason: String,
        header: HeaderLine,
    },
    Opened {
        header: HeaderLine,
        content_type: String,
        body: Body,
    },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HeaderLine {
    kind: String,
    device_id: String,
    stream: String,
    sequence: u64,
    boot: String,
    monotonic_ms: u64,
    timestamp: String,
    clock: String,
    signer: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
enum Body {
    Utf8(String),
    Hex(String),
    Sha256(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    about: String,
    keys: BTreeMap<String, TestKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestKey {
    private: String,
    spki: String,
}

/// The named keys of `keys.json`, and those of them that are owners.
struct Keys {
    public: BTreeMap<String, VerifyingKey>,
    owners: BTreeMap<String, OwnerKey>,
}

/// A vector, ready to be run.
struct Case<'a> {
    message: Vec<u8>,
    device: Option<DeviceRecord>,
    owner: &'a OwnerKey,
}

#[test]
fn message_then_entry_then_envelope() {
    for_all(|case| {
        case.by_hand(Entry::envelope, |envelope, device| {
            verify(envelope, device).map_err(|error| reason_of(&error).into())
        })
    });
}

#[test]
fn sealed_record_then_recheck() {
    for_all(|case| {
        case.by_hand(
            |entry| {
                let record = [&entry.encrypted_data[..], &entry.signature].concat();
                let envelope = Envelope::from_bytes(&record)?;
                assert_eq!(envelope.to_bytes(), record);
                Ok(envelope)
            },
            |envelope, device| {
                recheck(envelope, received_at(), &device.device, &device.keys)
                    .map_err(|reason| reason.as_str().into())
            },
        )
    });
}

#[test]
fn written_again_and_packed_again() {
    for_all(|case| {
        if let Ok(message) = Message::parse(&case.message) {
            let again = message.to_json().unwrap();
            assert_eq!(Message::parse(&again).unwrap(), message);
        }
        case.by_hand(
            |entry| {
                let record = entry.envelope()?.to_bytes();
                let (message, taken) = pack(&[&record], 0).unwrap();
                let packed = Message::parse(&message).unwrap();
                assert_eq!((taken, packed.entries.len()), (1, 1));
                packed.entries[0].envelope()
            },
            |envelope, device| verify(envelope, device).map_err(|error| reason_of(&error).into()),
        )
    });
}

#[test]
fn check_and_check_of_its_evidence() {
    for_all(|case| {
        let context = Context {
            principal: principal_of(b"a certificate"),
            topic: topic_of_case(case),
            received_at: received_at(),
        };
        let verdicts = check(&case.message, &context, case.device.as_ref());
        let refused_whole = case.device.is_none() || Message::parse(&case.message).is_err();
        let outcomes: Vec<_> = verdicts
            .into_iter()
            .map(|verdict| {
                let evidence = match verdict {
                    Ok(accepted) => return open(&accepted.envelope, case.owner),
                    Err(evidence) => evidence,
                };
                let again = check(&evidence.message, &context, case.device.as_ref());
                let [Err(same)] = &again[..] else {
                    panic!("evidence that is judged anew: {again:?}")
                };
                assert_eq!(same.reason, evidence.reason);
                assert_eq!(same.authentic, evidence.authentic);
                Outcome::Refused(evidence.reason.to_string())
            })
            .collect();
        match &outcomes[..] {
            [Outcome::Refused(reason)] if refused_whole => Expect::Message(reason.clone()),
            _ => Expect::Records(outcomes),
        }
    });
}

/// What a gateway does with a message, and what its owner then finds.
#[test]
fn ingested_and_read_back() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for_all(|case| runtime.block_on(ingest_and_read(case)));
}

async fn ingest_and_read(case: &Case<'_>) -> Expect {
    let directory = tempfile::tempdir().unwrap();
    let uri = StoreUri::File(directory.path().join("store.db"));
    let store = Store::create(&uri, Options::default()).await.unwrap();
    let context = Context {
        principal: principal_of(b"a certificate"),
        topic: topic_of_case(case),
        received_at: received_at(),
    };
    if let Some(device) = &case.device {
        store.register(&context.principal, device).await.unwrap();
    }
    let ingested = store.ingest(&case.message, &context).await.unwrap();

    let mut stored = Vec::new();
    if let Some(device) = &case.device {
        let always = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut readings = store.readings(&device.device, always);
        while let Some(reading) = readings.next().await {
            stored.push(reading.unwrap());
        }
    }
    assert_eq!(ingested.stored, stored.len() as u64);
    let mut refused = ingested.quarantined.iter();
    let mut outcomes = Vec::new();
    for verdict in check(&case.message, &context, case.device.as_ref()) {
        let kept = verdict.ok().and_then(|accepted| {
            let bytes = accepted.envelope.encrypted_data();
            stored
                .iter()
                .find(|reading| reading.encrypted_data == bytes)
        });
        outcomes.push(match (kept, &case.device) {
            (Some(kept), Some(device)) => {
                let envelope = kept.envelope().unwrap();
                let again = recheck(envelope, received_at(), &device.device, &device.keys);
                open(&again.unwrap(), case.owner)
            }
            _ => Outcome::Refused(refused.next().unwrap().reason.to_string()),
        });
    }
    assert!(refused.next().is_none(), "{ingested:?}");
    match &outcomes[..] {
        [Outcome::Refused(reason)]
            if case.device.is_none() || Message::parse(&case.message).is_err() =>
        {
            Expect::Message(reason.clone())
        }
        _ => Expect::Records(outcomes),
    }
}

/// Section 9 of the format page: the reading of the examples, for one owner.
#[test]
fn a_reading_has_403_bytes() {
    let vectors = vectors();
    let vector = &vectors["one-record"];
    let message = vector.message.as_deref().unwrap();
    let message = Message::parse(message.as_bytes()).unwrap();
    assert_eq!(message.device_id, "pi-01");
    assert_eq!(message.entries[0].encrypted_data.len(), 403);
    let Expect::Records(records) = &vector.expect else {
        panic!("it opens")
    };
    let [
        Outcome::Opened {
            content_type,
            body: Body::Utf8(body),
            ..
        },
    ] = &records[..]
    else {
        panic!("it is one record of text")
    };
    assert_eq!(1 + content_type.len() + body.len(), 124);
}

#[test]
fn most_vectors_are_negative() {
    let vectors = vectors();
    let is_positive = |vector: &&Vector| match &vector.expect {
        Expect::Message(_) => false,
        Expect::Records(records) => records.iter().all(|r| matches!(r, Outcome::Opened { .. })),
    };
    let positive = vectors.values().filter(is_positive).count();
    assert!(vectors.len() >= 45, "{} vectors", vectors.len());
    assert!(positive >= 15, "{positive} positive vectors");
    assert!(positive < vectors.len() - positive, "{positive} positive");
    for (name, vector) in &vectors {
        assert!(!vector.about.is_empty(), "{name} says nothing of itself");
    }
}

/// The topic that the registered device publishes on.
fn topic_of_case(case: &Case<'_>) -> String {
    case.device.as_ref().map_or_else(
        || "Zymkey/pi-01".into(),
        |registered| topic_of(&registered.device),
    )
}

impl Case<'_> {
    /// The order of work, written out with zk-envelope's own types.
    fn by_hand(
        &self,
        parse: impl Fn(&Entry) -> Result<Envelope, Error>,
        verify: impl Fn(Envelope, &DeviceRecord) -> Result<Verified, String>,
    ) -> Expect {
        let message = match Message::parse(&self.message) {
            Ok(message) => message,
            Err(error) => return Expect::Message(reason_of(&error).into()),
        };
        let Some(device) = &self.device else {
            return Expect::Message("unknown-device".into());
        };
        let judge = |entry: &Entry| {
            let envelope = parse(entry).map_err(|error| reason_of(&error).to_owned())?;
            if envelope.unverified_header().device != device.device {
                return Err("principal-mismatch".into());
            }
            let verified = verify(envelope, device)?;
            let header = verified.header();
            if message.device_id != header.device.as_str()
                || entry.timestamp != header.time.to_string()
            {
                return Err("header-mismatch".into());
            }
            Ok(open(&verified, self.owner))
        };
        let entries = message.entries.iter();
        Expect::Records(
            entries
                .map(|entry| judge(entry).unwrap_or_else(Outcome::Refused))
                .collect(),
        )
    }
}

/// Verifies with the key that the envelope names, or with any other.
fn verify(envelope: Envelope, device: &DeviceRecord) -> Result<Verified, Error> {
    let signer = envelope.unverified_header().signer;
    let named = device.keys.iter().find(|k| KeyId::of(&k.key) == signer);
    envelope.verify(&named.unwrap_or(&device.keys[0]).key)
}

fn open(verified: &Verified, owner: &OwnerKey) -> Outcome {
    let header = header_line(verified.header());
    let opened = match verified.open(owner) {
        Ok(opened) => opened,
        Err(error) => {
            let reason = reason_of(&error).into();
            return Outcome::Unopened { reason, header };
        }
    };
    assert_eq!(opened.header(), verified.header());
    let report = opened.report().expect("every body of kind 2 to 5 is right");
    assert_eq!(
        report.map_or(Kind::Data, |report| report.kind()),
        verified.header().kind
    );
    let body = opened.body();
    Outcome::Opened {
        header,
        content_type: opened.content_type().into(),
        body: if body.len() > 1024 {
            Body::Sha256(hex(&Sha256::digest(body)))
        } else {
            str::from_utf8(body).map_or_else(|_| Body::Hex(hex(body)), |t| Body::Utf8(t.into()))
        },
    }
}

fn header_line(header: &Header) -> HeaderLine {
    HeaderLine {
        kind: header.kind.to_string(),
        device_id: header.device.to_string(),
        stream: header.stream.to_string(),
        sequence: header.sequence,
        boot: header.boot.to_string(),
        monotonic_ms: header.since_boot_ms,
        timestamp: header.time.to_string(),
        clock: header.clock.to_string(),
        signer: header.signer.to_string(),
    }
}

fn reason_of(error: &Error) -> &'static str {
    match error {
        Error::BadSignature => "bad-signature",
        Error::Json(_) | Error::Malformed { .. } => "malformed",
        Error::NotARecipient { .. } => "not-a-recipient",
        Error::TooLarge { .. } => "too-large",
        Error::Undecryptable => "undecryptable",
        Error::UnsupportedVersion { .. } => "unsupported-version",
        Error::WrongSigner { .. } => "signer-mismatch",
        other => panic!("no outcome of a vector: {other}"),
    }
}

/// Runs all vectors, then tells all that differ.
fn for_all(run: impl Fn(&Case<'_>) -> Expect) {
    static KEYS: LazyLock<Keys> = LazyLock::new(keys);
    let keys = &*KEYS;
    let mut wrong = Vec::new();
    for (name, vector) in vectors() {
        let mut message = match (vector.message, vector.message_hex) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(hex)) => unhex(&hex),
            _ => panic!("{name} has one of message and messageHex"),
        };
        message.resize(message.len() + vector.spaces, b' ');
        let trusted = |name: &String| TrustedKey {
            key: keys.public[name],
            state: KeyState::Active,
        };
        let case = Case {
            message,
            device: vector.registered.map(|registered| DeviceRecord {
                device: registered.device.parse().unwrap(),
                certificate: KeyState::Active,
                keys: registered.keys.iter().map(trusted).collect(),
                registered_at: Timestamp::from_millis(0).unwrap(),
            }),
            owner: &keys.owners[&vector.owner],
        };
        let found = run(&case);
        if found != vector.expect {
            wrong.push(format!(
                "{name}: {}\n  expected {:?}\n  found    {found:?}",
                vector.about, vector.expect
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every file but the keys, by name.
fn vectors() -> BTreeMap<String, Vector> {
    let mut vectors = BTreeMap::new();
    for file in fs::read_dir(directory()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == "keys" {
            continue;
        }
        assert_eq!(path.extension().unwrap(), "json", "{}", path.display());
        let vector = serde_json::from_slice(&fs::read(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        vectors.insert(name.to_owned(), vector);
    }
    vectors
}

fn keys() -> Keys {
    let file = fs::read(directory().join("keys.json")).unwrap();
    let file: KeyFile = serde_json::from_slice(&file).unwrap();
    assert!(file.about.contains("never use them"));
    let mut keys = Keys {
        public: BTreeMap::new(),
        owners: BTreeMap::new(),
    };
    for (name, key) in file.keys {
        let secret = p256::SecretKey::from_slice(&unhex(&key.private)).unwrap();
        let public = VerifyingKey::from_public_key_der(&unhex(&key.spki)).unwrap();
        assert_eq!(VerifyingKey::from(secret.public_key()), public, "{name}");
        if name.starts_with("owner-") {
            keys.owners.insert(name.clone(), owner_key(&secret));
        }
        keys.public.insert(name, public);
    }
    keys
}

/// An owner's key goes in as it lies on disk.
fn owner_key(secret: &p256::SecretKey) -> OwnerKey {
    let pem = secret.to_pkcs8_encrypted_pem("published", LineEnding::LF);
    OwnerKey::from_encrypted_pem(&pem.unwrap(), "published").unwrap()
}

/// Well after the time in the records.
fn received_at() -> Timestamp {
    "2027-01-01T00:00:00.000Z".parse().unwrap()
}

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2) && text.is_ascii());
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}
