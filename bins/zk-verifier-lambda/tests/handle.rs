//! Events as the rule gives them, and as it never would, into a store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, SystemTime};

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::SigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Envelope, KeyState, Moment, OwnerKey, Sealer,
    StreamId, Timestamp, TrustedKey, pack,
};
use zk_store::{Budget, Options, Store, StoreUri};
use zk_verifier_lambda::{Answer, Error, Event, handle};
use zk_verify::{DeviceRecord, topic_of};

const PRINCIPAL: &str = "3f2a000000000000000000000000000000000000000000000000000000000000";

/// 2026-11-18T11:06:40Z.
const START: u64 = 1_795_000_000_000;

struct World {
    store: Store,
    key: SigningKey,
    sealer: Sealer,
    _directory: TempDir,
}

impl World {
    async fn new(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let uri = StoreUri::File(directory.path().join("zk.db"));
        let store = Store::create(&uri, options).await.unwrap();
        let device: DeviceId = "pi-01".parse().unwrap();
        let key = SigningKey::from_slice(&[1; 32]).unwrap();
        let record = DeviceRecord {
            device: device.clone(),
            certificate: KeyState::Active,
            keys: vec![TrustedKey {
                key: *key.verifying_key(),
                state: KeyState::Active,
            }],
            registered_at: Timestamp::from_millis(START).unwrap(),
        };
        assert!(store.register(PRINCIPAL, &record).await.unwrap());
        let owners = [OwnerKey::generate().unwrap().public_key().clone()];
        let stream = StreamId([9; 16]);
        let sealer = Sealer::new(device, stream, key.verifying_key(), &owners).unwrap();
        Self {
            store,
            key,
            sealer,
            _directory: directory,
        }
    }

    fn sealed(&mut self, sequence: u64) -> Envelope {
        let moment = Moment {
            boot: BootId([3; 16]),
            since_boot_ms: 5,
            time: Timestamp::from_millis(START + sequence).unwrap(),
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "text/plain",
            body: b"21.437",
        };
        self.sealer
            .seal(&self.key, &moment, sequence, content)
            .unwrap()
    }

    fn message(&mut self, sequences: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let records: Vec<_> = sequences
            .into_iter()
            .map(|sequence| self.sealed(sequence).to_bytes())
            .collect();
        pack(&records, usize::MAX).unwrap().0
    }

    async fn handle(&self, event: &Value) -> Result<Answer, Error> {
        let deadline = SystemTime::now() + Duration::from_secs(60);
        handle(&self.store, &event.to_string(), "a request", deadline).await
    }
}

fn event(message: &[u8]) -> Value {
    json!({
        "message": STANDARD.encode(message),
        "principal": PRINCIPAL,
        "topic": topic_of(&"pi-01".parse().unwrap()),
        "receivedAt": START + 1000,
    })
}

fn kind(result: Result<Answer, Error>) -> &'static str {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn what_the_rule_gives_is_taken_in_once() {
    let mut world = World::new(Options::default()).await;
    let batch = event(&world.message(1..=3));
    let answer = world.handle(&batch).await.unwrap();
    assert_eq!((answer.stored, answer.duplicates), (3, 0));
    assert_eq!(answer.quarantined, []);
    // Lambda gives events twice now and then, without any error before.
    let again = world.handle(&batch).await.unwrap();
    assert_eq!((again.stored, again.duplicates), (0, 3));
}

#[tokio::test]
async fn bad_data_is_a_success_with_its_reason() {
    let mut world = World::new(Options::default()).await;
    let forged = Envelope::from_parts(world.sealed(1).encrypted_data().to_vec(), [7; 64]).unwrap();
    let (forged, _) = pack(&[forged.to_bytes()], usize::MAX).unwrap();
    let mut stranger = event(&world.message([2]));
    stranger["principal"] = "AROAEXAMPLEID:a-session".into();
    let mut elsewhere = event(&world.message([3]));
    elsewhere["topic"] = "Zymkey/pi-02".into();
    for (bad, reason) in [
        (event(&forged), "bad-signature"),
        (stranger, "unknown-device"),
        (elsewhere, "topic-mismatch"),
        (event(b"{}"), "malformed"),
        (event(b""), "malformed"),
        (event(&vec![b' '; 128 * 1024 + 1]), "too-large"),
    ] {
        let answer = world.handle(&bad).await.unwrap();
        assert_eq!(answer.stored, 0, "{reason}");
        let [held] = &answer.quarantined[..] else {
            panic!("{reason}: {answer:?}");
        };
        assert_eq!((held.reason, held.kept), (reason, true));
        assert!(world.store.quarantined(&held.id).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn evidence_without_room_is_an_error() {
    let nothing = Budget { items: 0, bytes: 0 };
    let mut world = World::new(Options {
        evidence: nothing,
        ..Options::default()
    })
    .await;
    let mut elsewhere = event(&world.message([1]));
    elsewhere["topic"] = "Zymkey/pi-02".into();
    assert_eq!(kind(world.handle(&elsewhere).await), "EvidenceFull");
}

#[tokio::test]
async fn a_store_without_its_tables_is_an_error() {
    let mut world = World::new(Options::default()).await;
    world.store.delete_tables().await.unwrap();
    let good = event(&world.message([1]));
    assert_eq!(kind(world.handle(&good).await), "StoreFailed");
}

#[tokio::test]
async fn an_invocation_ends_before_its_time_though_the_store_is_silent() {
    let mut world = World::new(Options::default()).await;
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(format!("http://{address}"))
        .credentials_provider(Credentials::new("id", "secret", None, None, "test"))
        .build();
    let client = aws_sdk_dynamodb::Client::from_conf(config);
    let store = Store::with_client(client, Options::default()).unwrap();
    let good = event(&world.message([1])).to_string();
    let deadline = SystemTime::now() + Duration::from_millis(700);
    let late = handle(&store, &good, "a request", deadline).await;
    assert_eq!(kind(late), "StoreTimeout");
}

#[tokio::test]
async fn an_invocation_that_should_be_over_has_time_all_the_same() {
    let mut world = World::new(Options::default()).await;
    let good = event(&world.message([1])).to_string();
    let answer = handle(&world.store, &good, "a request", SystemTime::UNIX_EPOCH).await;
    assert_eq!(answer.unwrap().stored, 1);
}

#[test]
fn an_event_is_read_as_the_rule_gives_it() {
    let given = event(b"the bytes").to_string();
    let read = Event::parse(&given).unwrap();
    assert_eq!(read.message, b"the bytes");
    assert_eq!(read.context.principal, PRINCIPAL);
    assert_eq!(read.context.topic, "Zymkey/pi-01");
    assert_eq!(read.context.received_at.as_millis(), START + 1000);
    // JSON may escape what base64 has.
    let escaped = r#"{"message":"\/\/8=","principal":"p","topic":"t","receivedAt":0}"#;
    assert_eq!(Event::parse(escaped).unwrap().message, [0xff, 0xff]);
}

#[test]
fn any_other_event_is_refused_without_a_word_of_it() {
    let with = |member: &str, value: Value| {
        let mut event = event(b"secret");
        event[member] = value;
        event.to_string()
    };
    let without = |member: &str| {
        let mut event = event(b"secret");
        event.as_object_mut().unwrap().remove(member);
        event.to_string()
    };
    let good = event(b"secret").to_string();
    for (bad, says) in [
        ("\"secret\"".to_owned(), "no object"),
        (r#"["c2Vj","secret","secret",0]"#.to_owned(), "no object"),
        ("null".to_owned(), "no object"),
        ("{}".to_owned(), "members"),
        (without("message"), "members"),
        (without("principal"), "members"),
        (without("topic"), "members"),
        (without("receivedAt"), "members"),
        // by `SELECT *, …`, where a payload says who it is
        (with("deviceId", "secret".into()), "members"),
        (
            good.replacen('{', r#"{"principal":"secret","#, 1),
            "members",
        ),
        (with("receivedAt", "secret".into()), "members"),
        (with("receivedAt", json!(-1)), "members"),
        (with("receivedAt", json!(1.5)), "members"),
        (with("message", json!({"secret": 1})), "members"),
        (with("receivedAt", json!(u64::MAX)), "receivedAt"),
        (with("message", "secret!".into()), "base64"),
        // no padding, or bits that say nothing
        (with("message", "c2VjcmV0cw".into()), "base64"),
        (with("message", "c2VjcmV0cx==".into()), "base64"),
        (with("principal", "".into()), "principal"),
        (with("principal", "x".repeat(257).into()), "principal"),
        (with("topic", "".into()), "topic"),
        (with("topic", "x".repeat(257).into()), "topic"),
        (with("message", "c2Vj".repeat(1 << 18).into()), "1 MiB"),
    ] {
        let error = Event::parse(&bad).unwrap_err();
        assert_eq!(error.kind(), "MalformedEvent");
        let said = error.to_string();
        assert!(said.contains(says), "{said}");
        assert!(!said.contains("secret") && !said.contains("c2Vj"), "{said}");
    }
}
