//! The zip that would be uploaded, run by a foreign implementation of Lambda's
//! runtime interface (cargo lambda watch), over a foreign DynamoDB (dynalite).
//!
//! `cargo xtask test aws` builds the zip, starts dynalite, and says where they
//! are. `cargo xtask test long` does the same with the zip for arm64, which it has
//! qemu run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use p256::ecdsa::SigningKey;
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::ZipArchive;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Envelope, KeyState, Moment, OwnerKey, Sealer,
    StreamId, Timestamp, TrustedKey, pack,
};
use zk_store::{Options, Quarantined, Store, StoredReading};
use zk_tests::{Fault, Proxy, Way};
use zk_verify::{DeviceRecord, principal_of, topic_of};

/// 2026-11-18T11:06:40Z.
const START: u64 = 1_795_000_000_000;

/// What a record says, and no log.
const BODY: &[u8] = br#"{"readings":[{"sensor":"28-0000000a0001","celsius":21.437}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_good_is_stored_and_what_is_not_is_quarantined() {
    let mut world = World::new().await;
    let forged = Envelope::from_parts(world.sealed(9).encrypted_data().to_vec(), [7; 64]).unwrap();
    let one = world.event(&world.sealed(1));
    let half = world.event_of(&[world.sealed(2), forged.clone(), world.sealed(3)]);
    let other = world.sealed(1);
    let mut stranger = world.event(&world.sealed(4));
    stranger["principal"] = "AROAEXAMPLEID:a-session".into();
    let mut elsewhere = world.event(&world.sealed(5));
    elsewhere["topic"] = "Zymkey/pi-02".into();

    // stored, duplicates, and the reasons of those in quarantine
    for (what, event, stored, duplicates, reasons) in [
        ("good", one.clone(), 1, 0, &[][..]),
        ("again", one, 0, 1, &[]),
        ("half of it", half.clone(), 2, 0, &["bad-signature"]),
        ("half of it again", half, 0, 2, &["bad-signature"]),
        ("forged", world.event(&forged), 0, 0, &["bad-signature"]),
        ("other bytes", world.event(&other), 0, 0, &["conflict"]),
        ("stranger", stranger, 0, 0, &["unknown-device"]),
        ("elsewhere", elsewhere, 0, 0, &["topic-mismatch"]),
        (
            "malformed",
            world.raw(b"{\"deviceId\""),
            0,
            0,
            &["malformed"],
        ),
        ("empty", world.raw(b""), 0, 0, &["malformed"]),
        (
            "oversize",
            world.raw(&vec![b'x'; 128 * 1024 + 1]),
            0,
            0,
            &["too-large"],
        ),
    ] {
        let (status, answer) = world.invoke(&event);
        assert_eq!(status, 200, "{what}: {answer}");
        assert_eq!(answer["stored"], stored, "{what}: {answer}");
        assert_eq!(answer["duplicates"], duplicates, "{what}: {answer}");
        let held = answer["quarantined"].as_array().unwrap();
        let said: Vec<_> = held
            .iter()
            .map(|held| held["reason"].as_str().unwrap())
            .collect();
        assert_eq!(said, reasons, "{what}");

        // one line, with the same in it
        let line = world.line();
        assert_eq!(line["stored"], stored, "{what}: {line}");
        assert_eq!(line["duplicates"], duplicates, "{what}: {line}");
        let quarantined = line
            .get("quarantined")
            .map_or(0, |count| count.as_u64().unwrap());
        assert_eq!(quarantined, reasons.len() as u64, "{what}: {line}");
        let level = if reasons.is_empty() { "INFO" } else { "WARN" };
        assert_eq!(line["level"], level, "{what}: {line}");
        let device = (stored + duplicates > 0).then_some("pi-01");
        assert_eq!(
            line.get("device").and_then(Value::as_str),
            device,
            "{what}: {line}"
        );
        if !reasons.is_empty() {
            assert_eq!(line["reasons"], reasons.join(" "), "{what}: {line}");
            assert_eq!(line["first"], held[0]["id"], "{what}: {line}");
        }
    }

    let readings = world.readings().await;
    assert_eq!(readings.len(), 3);
    let again: Vec<_> = readings.iter().map(|reading| reading.again).collect();
    assert_eq!(again, [1, 1, 1]);
    let mut quarantine = world.quarantine().await;
    quarantine.sort_by_key(|held| held.reason.as_str());
    let reasons: Vec<_> = quarantine.iter().map(|held| held.reason.as_str()).collect();
    // The forged record is the same, alone or in a batch, once or twice.
    assert_eq!(
        reasons,
        [
            "bad-signature",
            "conflict",
            "malformed",
            "malformed",
            "too-large",
            "topic-mismatch",
            "unknown-device"
        ]
    );
    world.log_has_no_payload();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_of_the_rule_is_an_error() {
    let mut world = World::new().await;
    let good = world.event(&world.sealed(1));
    let mut with_payload = good.clone();
    with_payload["deviceId"] = "pi-01".into();
    let mut without_principal = good.clone();
    without_principal
        .as_object_mut()
        .unwrap()
        .remove("principal");
    let mut not_base64 = good.clone();
    not_base64["message"] = "{\"deviceId\":\"pi-01\"}".into();
    for event in [
        json!({}),
        json!([]),
        with_payload,
        without_principal,
        not_base64,
    ] {
        let (status, answer) = world.invoke(&event);
        assert_ne!(status, 200, "{answer}");
        assert_eq!(answer["errorType"], "MalformedEvent", "{answer}");
        let line = world.line();
        assert_eq!(
            (&line["level"], &line["kind"]),
            (&"ERROR".into(), &"MalformedEvent".into())
        );
    }
    // It lives on.
    assert_eq!(world.invoke(&good).1["stored"], 1);
    world.line();
    assert_eq!(world.readings().await.len(), 1);
    assert_eq!(world.quarantine().await.len(), 0);
    world.log_has_no_payload();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_lambda_is_told_to_try_again() {
    let mut world = World::new().await;
    let before = world.event(&world.sealed(1));
    assert_eq!(world.invoke(&before).1["stored"], 1);
    assert_eq!(world.line()["level"], "INFO");

    let event = world.event_of(&[world.sealed(2), world.sealed(3)]);
    let forged = Envelope::from_parts(world.sealed(4).encrypted_data().to_vec(), [7; 64]).unwrap();
    let forged = world.event(&forged);
    world.network.set(Some(Fault::Refuse));
    world.network.cut();
    for event in [&event, &forged] {
        let (status, answer) = world.invoke(event);
        assert_ne!(status, 200, "{answer}");
        assert_eq!(answer["errorType"], "StoreFailed", "{answer}");
        let line = world.line();
        assert_eq!(
            (&line["level"], &line["kind"]),
            (&"ERROR".into(), &"StoreFailed".into())
        );
    }
    // The same when it takes connections and says nothing.
    world.network.set(Some(Fault::Stall(Way::ToDevice)));
    let (status, answer) = world.invoke(&event);
    assert_ne!(status, 200, "{answer}");
    let kind = answer["errorType"].as_str().unwrap();
    assert!(["StoreFailed", "StoreTimeout"].contains(&kind), "{answer}");
    // of the SDK there may be others before
    while world.line()["kind"] != kind {}

    world.network.set(None);
    let (status, answer) = world.invoke(&event);
    assert_eq!(status, 200, "{answer}");
    let taken = |count: &str| answer[count].as_u64().unwrap();
    // What was on its way when the answers stopped may have arrived.
    assert_eq!(taken("stored") + taken("duplicates"), 2, "{answer}");
    assert_eq!(world.invoke(&forged).0, 200);
    assert_eq!(world.readings().await.len(), 3);
    assert_eq!(world.quarantine().await.len(), 1);
    world.log_has_no_payload();
}

#[test]
fn alone_it_says_who_starts_it() {
    let (_directory, mut alone) = unzip();
    let alone = spawn(alone.env_clear().stdout(Stdio::piped()));
    let output = alone.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("AWS Lambda starts this program"), "{said}");
}

/// A device, its store, and the function that takes its messages in.
struct World {
    store: Store,
    /// Between function and store.
    network: Proxy,
    key: SigningKey,
    sealer: std::cell::RefCell<Sealer>,
    runtime: Runtime,
}

impl World {
    async fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let dynalite = variable("ZK_TEST_DYNALITE");
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("zk-lambda-{}-{count}", std::process::id());
        let options = Options {
            prefix: prefix.clone(),
            ..Options::default()
        };
        // xtask has set AWS_ENDPOINT_URL_DYNAMODB to the same
        let uri = "dynamodb:us-east-1".parse().unwrap();
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
        assert!(store.register(&principal(), &record).await.unwrap());
        let owners = [OwnerKey::generate().unwrap().public_key().clone()];
        let sealer = Sealer::new(device, StreamId([9; 16]), key.verifying_key(), &owners).unwrap();

        let listen = free_port();
        let network = Proxy::start(
            listen,
            dynalite.trim_start_matches("http://").parse().unwrap(),
        );
        Self {
            store,
            network: network.await.unwrap(),
            key,
            sealer: sealer.into(),
            runtime: Runtime::start(&prefix, &format!("http://{listen}")),
        }
    }

    fn sealed(&self, sequence: u64) -> Envelope {
        let moment = Moment {
            boot: BootId([3; 16]),
            since_boot_ms: 5,
            time: Timestamp::from_millis(START + sequence).unwrap(),
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "application/json",
            body: BODY,
        };
        let mut sealer = self.sealer.borrow_mut();
        sealer.seal(&self.key, &moment, sequence, content).unwrap()
    }

    fn event(&self, envelope: &Envelope) -> Value {
        self.event_of(std::slice::from_ref(envelope))
    }

    fn event_of(&self, envelopes: &[Envelope]) -> Value {
        let records: Vec<_> = envelopes.iter().map(Envelope::to_bytes).collect();
        self.raw(&pack(&records, usize::MAX).unwrap().0)
    }

    /// What the rule gives for these bytes.
    fn raw(&self, message: &[u8]) -> Value {
        json!({
            "message": base64(message),
            "principal": principal(),
            "topic": topic_of(&"pi-01".parse().unwrap()),
            "receivedAt": START + 60_000,
        })
    }

    /// Status and body of the invocation's answer.
    fn invoke(&self, event: &Value) -> (u16, Value) {
        self.runtime.invoke(event)
    }

    /// The next line of the log.
    fn line(&mut self) -> Value {
        self.runtime.line()
    }

    async fn readings(&self) -> Vec<StoredReading> {
        let all = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut readings = self.store.readings(&"pi-01".parse().unwrap(), all);
        let mut found = Vec::new();
        while let Some(reading) = readings.next().await {
            found.push(reading.unwrap());
        }
        found
    }

    async fn quarantine(&self) -> Vec<Quarantined> {
        let mut listing = self.store.quarantine();
        let mut found = Vec::new();
        while let Some(held) = listing.next().await {
            found.push(held.unwrap());
        }
        found
    }

    /// Ends it, and looks at all that it has logged.
    fn log_has_no_payload(self) {
        let log = self.runtime.stop();
        assert!(!log.is_empty());
        // a member of every message, encoded or not, the magic of every record,
        // and what they all say
        for payload in [
            "encryptedData",
            "5a4b4531",
            "eyJkZXZpY2VJZCI",
            "21.437",
            "xxxx",
        ] {
            assert!(!log.contains(payload), "{payload}: {log}");
        }
    }
}

/// cargo lambda watch, and the program out of the zip behind it; killed when
/// dropped.
struct Runtime {
    watch: Child,
    function: Child,
    address: SocketAddr,
    lines: Receiver<String>,
    seen: String,
    _directory: TempDir,
}

impl Runtime {
    fn start(prefix: &str, endpoint: &str) -> Self {
        let address = free_port();
        let mut watch = Command::new("cargo-lambda")
            .args(["lambda", "watch", "--only-lambda-apis", "--invoke-address"])
            .arg(address.ip().to_string())
            .arg("--invoke-port")
            .arg(address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs cargo-lambda: cargo xtask test aws");
        let mut said = BufReader::new(watch.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("starting Runtime server") {
            line.clear();
            assert_ne!(
                said.read_line(&mut line).unwrap(),
                0,
                "cargo lambda watch ended"
            );
        }
        // whatever else it says must not fill the pipe
        thread::spawn(move || said.read_to_end(&mut Vec::new()));
        while TcpStream::connect(address).is_err() {
            thread::sleep(Duration::from_millis(10));
        }

        let (directory, mut function) = unzip();
        function
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", format!("http://{address}/.rt"))
            .env("AWS_LAMBDA_FUNCTION_NAME", "_")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_SESSION_TOKEN", "test")
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("ZK_PREFIX", prefix)
            .stdout(Stdio::piped());
        let mut function = spawn(&mut function);
        let log = BufReader::new(function.stdout.take().unwrap());
        let (say, lines) = channel();
        thread::spawn(move || {
            for line in log.lines() {
                say.send(line.unwrap()).unwrap();
            }
        });
        let mut started = Self {
            watch,
            function,
            address,
            lines,
            seen: String::new(),
            _directory: directory,
        };
        // loud about what is not AWS
        let line = started.line();
        assert_eq!(
            (&line["level"], &line["endpoint"]),
            (&"WARN".into(), &endpoint.into())
        );
        started
    }

    fn invoke(&self, event: &Value) -> (u16, Value) {
        let url = format!("http://{}/2015-03-31/functions/_/invocations", self.address);
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "120"])
            .args(["--write-out", "\n%{http_code}", "--data-binary", "@-"])
            .arg(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs the curl program: apt-get install curl");
        let mut input = curl.stdin.take().unwrap();
        input.write_all(event.to_string().as_bytes()).unwrap();
        drop(input);
        let output = curl.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let (body, status) = said.rsplit_once('\n').unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| panic!("{status}: {body}"));
        (status.parse().unwrap(), body)
    }

    fn line(&mut self) -> Value {
        let line = self.lines.recv().expect("the function ended");
        self.seen += &line;
        self.seen.push('\n');
        let line = serde_json::from_str(&line).expect(&line);
        assert!(matches!(&line, Value::Object(_)));
        line
    }

    /// Ends the function: everything that it has logged.
    fn stop(mut self) -> String {
        self.function.kill().unwrap();
        while let Ok(line) = self.lines.recv() {
            self.seen += &line;
        }
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for child in [&mut self.function, &mut self.watch] {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program that is uploaded, and how to start it: by another program where
/// this machine is not the one that it is for.
fn unzip() -> (TempDir, Command) {
    let zip = File::open(variable("ZK_TEST_LAMBDA_ZIP")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut zip = ZipArchive::new(zip).unwrap();
    zip.extract(directory.path()).unwrap();
    let bootstrap = directory.path().join("bootstrap");
    let runner = std::env::var("ZK_TEST_LAMBDA_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let command = match words.next() {
        None => Command::new(bootstrap),
        Some(program) => {
            let mut command = Command::new(program);
            command.args(words).arg(bootstrap);
            command
        }
    };
    (directory, command)
}

/// Starts a program that was written just now: a child that another thread has
/// started meanwhile may not have closed its copy of the file yet.
fn spawn(command: &mut Command) -> Child {
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
            started => return started.unwrap(),
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: cargo xtask test aws"))
}

fn principal() -> String {
    principal_of(b"a certificate")
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Free now; nobody else on this machine asks for a port by number.
fn free_port() -> SocketAddr {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    free.local_addr().unwrap()
}
