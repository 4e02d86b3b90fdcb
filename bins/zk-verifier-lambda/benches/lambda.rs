//! The function over a table that answers by HTTP, against bare writes to the
//! same table; and the program that is uploaded: how soon it answers, and its
//! memory.
//!
//! `cargo xtask bench lambda` builds the zip and starts dynalite in the place of
//! DynamoDB; cargo lambda watch stands for Lambda.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::SigningKey;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::task::JoinSet;
use zip::ZipArchive;
use zk_bench::{ROUNDS, Row, median};
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, KeyState, Moment, OwnerKey, Sealer, StreamId,
    Timestamp, TrustedKey, pack,
};
use zk_store::{Options, Store, StoreUri};
use zk_verifier_lambda::handle;
use zk_verify::{DeviceRecord, topic_of};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let endpoint = std::env::var("ZK_BENCH_DYNALITE")
        .expect("run this as cargo xtask bench lambda, which sets ZK_BENCH_DYNALITE");
    let zip = PathBuf::from(std::env::var_os("ZK_BENCH_LAMBDA_ZIP").unwrap());
    let mut world = runtime.block_on(World::new(&endpoint));

    for batch in [1, 8] {
        // for connections and caches
        let event = world.event(batch);
        runtime.block_on(world.take(&event));
        let item = runtime.block_on(world.stored());
        let mut number = 0;
        let (mut times, mut processor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for turn in 0..2 * TURNS {
                number += 1;
                // who is first changes: ours, theirs, theirs, ours
                if [0, 3].contains(&(turn % 4)) {
                    let event = world.event(batch);
                    ours.push(timed(|| runtime.block_on(world.take(&event))));
                } else {
                    let put = world.put(&item, batch, number);
                    theirs.push(timed(|| runtime.block_on(put)));
                }
            }
            let of = |side: &[Taken], what: fn(&Taken) -> f64| {
                median(&side.iter().map(what).collect::<Vec<_>>())
            };
            times.push((of(&ours, |one| one.ms), of(&theirs, |one| one.ms)));
            processor.push((of(&ours, |one| one.busy), of(&theirs, |one| one.busy)));
        }
        let (ours, theirs) = match batch {
            1 => ("one record", "the bare PutItem of such an item"),
            _ => ("8 records", "8 bare PutItems of such items at once"),
        };
        for (what, unit, rounds) in [
            ("verified and stored", "ms", &times),
            ("the function's processor time", "µs", &processor),
        ] {
            let name = format!("lambda: a message of {ours}, {what}");
            Row::compare(&name, theirs, unit, None, rounds)
                .print()
                .unwrap();
        }
    }

    let directory = tempfile::tempdir().unwrap();
    let mut archive = ZipArchive::new(File::open(&zip).unwrap()).unwrap();
    archive.extract(directory.path()).unwrap();
    let bootstrap = directory.path().join("bootstrap");
    let lambda = Lambda::start();
    let mut peaks = Vec::new();
    let firsts: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let event = world.event(1);
            let invocation = lambda.invoke(&event);
            let start = Instant::now();
            let program = lambda.program(&bootstrap, &endpoint);
            finish(invocation);
            let first = start.elapsed().as_secs_f64() * 1e3;
            for _ in 0..MESSAGES / 8 {
                finish(lambda.invoke(&world.event(8)));
            }
            peaks.push(program.peak());
            first
        })
        .collect();
    let alone = |name, unit, rounds: &[f64]| Row::alone(name, unit, None, rounds).print().unwrap();
    alone(
        "lambda: the first answer of a cold program, its record stored",
        "ms",
        &firsts,
    );
    alone(
        "lambda: its peak memory (VmHWM) after 1,000 records",
        "MiB",
        &peaks,
    );
    let size = fs::metadata(&zip).unwrap().len() as f64 / 1e6;
    alone("lambda: the zip", "MB", &[size]);
    let size = fs::metadata(&bootstrap).unwrap().len() as f64 / 1e6;
    alone("lambda: the program in it", "MB", &[size]);
}

struct World {
    client: Client,
    store: Store,
    key: SigningKey,
    sealer: Sealer,
    sequence: u64,
}

impl World {
    async fn new(endpoint: &str) -> Self {
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "bench"))
            .build();
        let client = Client::from_conf(config);
        // xtask has set AWS_ENDPOINT_URL_DYNAMODB to the same
        let uri: StoreUri = "dynamodb:us-east-1".parse().unwrap();
        Store::create(&uri, Options::default()).await.unwrap();
        let store = Store::with_client(client.clone(), Options::default()).unwrap();
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
        store.register(PRINCIPAL, &record).await.unwrap();
        let owners = [OwnerKey::generate().unwrap().public_key().clone()];
        let sealer = Sealer::new(device, StreamId([9; 16]), key.verifying_key(), &owners).unwrap();
        Self {
            client,
            store,
            key,
            sealer,
            sequence: 0,
        }
    }

    /// An event of the rule, with so many new records.
    fn event(&mut self, records: usize) -> String {
        let records: Vec<_> = (0..records).map(|_| self.sealed()).collect();
        let (message, _) = pack(&records, usize::MAX).unwrap();
        json!({
            "message": STANDARD.encode(message),
            "principal": PRINCIPAL,
            "topic": topic_of(&"pi-01".parse().unwrap()),
            "receivedAt": START,
        })
        .to_string()
    }

    fn sealed(&mut self) -> Vec<u8> {
        self.sequence += 1;
        let moment = Moment {
            boot: BootId([3; 16]),
            since_boot_ms: 5,
            time: Timestamp::from_millis(START + self.sequence).unwrap(),
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "application/json",
            body: BODY,
        };
        let sealed = self.sealer.seal(&self.key, &moment, self.sequence, content);
        sealed.unwrap().to_bytes()
    }

    async fn take(&self, event: &str) {
        let deadline = SystemTime::now() + Duration::from_secs(60);
        let answer = handle(&self.store, event, "a request", deadline).await;
        assert!(answer.unwrap().stored > 0);
    }

    /// An item as the store writes it.
    async fn stored(&self) -> HashMap<String, AttributeValue> {
        let table = &self.store.table_names()[1];
        let page = self.client.scan().table_name(table).limit(1).send().await;
        page.unwrap().items()[0].clone()
    }

    /// The same item so many times at once, under keys of their own.
    async fn put(&self, item: &HashMap<String, AttributeValue>, at_once: usize, number: u32) {
        let mut running = JoinSet::new();
        for one in 0..at_once {
            let mut item = item.clone();
            let key = format!("2026-11-18T11:06:40.123Z#{number:016}{at_once:016}#{one:020}");
            item.insert("timestamp".to_owned(), AttributeValue::S(key));
            let table = &self.store.table_names()[1];
            let put = self.client.put_item().table_name(table);
            let put = put
                .set_item(Some(item))
                .condition_expression("attribute_not_exists(#d)")
                .expression_attribute_names("#d", "deviceId");
            running.spawn(put.send());
        }
        for put in running.join_all().await {
            put.unwrap();
        }
    }
}

/// How long something took, and how long the processor was busy with it.
struct Taken {
    ms: f64,
    busy: f64,
}

fn timed(work: impl FnOnce()) -> Taken {
    let busy = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
    let (start, before) = (Instant::now(), busy());
    work();
    Taken {
        ms: start.elapsed().as_secs_f64() * 1e3,
        busy: (busy() - before).as_secs_f64() * 1e6,
    }
}

/// cargo lambda watch; killed when dropped.
struct Lambda {
    watch: Child,
    address: SocketAddr,
}

impl Lambda {
    fn start() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut watch = Command::new("cargo-lambda")
            .args(["lambda", "watch", "--only-lambda-apis", "--invoke-address"])
            .arg(address.ip().to_string())
            .arg("--invoke-port")
            .arg(address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(watch.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("starting Runtime server") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0);
        }
        // whatever else it says must not fill the pipe
        thread::spawn(move || said.read_to_end(&mut Vec::new()));
        while TcpStream::connect(address).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        Self { watch, address }
    }

    /// The request for an invocation, which waits for a program to take it.
    fn invoke(&self, event: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "POST /2015-03-31/functions/_/invocations HTTP/1.1\r\nHost: lambda\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            event.len()
        );
        stream.write_all((head + event).as_bytes()).unwrap();
        stream
    }

    fn program(&self, bootstrap: &Path, endpoint: &str) -> Program {
        let program = Command::new(bootstrap)
            .env_clear()
            .env(
                "AWS_LAMBDA_RUNTIME_API",
                format!("http://{}/.rt", self.address),
            )
            .env("AWS_LAMBDA_FUNCTION_NAME", "_")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_ENDPOINT_URL", endpoint)
            .stdout(Stdio::null())
            .spawn();
        Program(program.unwrap())
    }
}

impl Drop for Lambda {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

/// Reads the invocation's answer, which is a success.
fn finish(mut invocation: TcpStream) {
    let mut answer = String::new();
    invocation.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// The function; killed when dropped.
struct Program(Child);

impl Program {
    /// Its peak memory in MiB.
    fn peak(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: f64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib / 1024.0
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Turns of each side in a round, one message each.
const TURNS: u32 = 51;

/// Records before memory is read.
const MESSAGES: usize = 1000;

const PRINCIPAL: &str = "3f2a000000000000000000000000000000000000000000000000000000000000";

/// 2026-11-18T11:06:40Z.
const START: u64 = 1_795_000_000_000;

const BODY: &[u8] = br#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.123Z","celsius":21.437,"quality":"ok"},{"sensor":"28-0000000a0002","at":"2026-11-23T11:20:44.123Z","celsius":21.500,"quality":"ok"}]}"#;
