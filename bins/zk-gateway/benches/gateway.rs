//! The gateway against the store alone, and against nginx.
//!
//! The gateway runs in this process, on a runtime like its program's. The load
//! comes from a second process, this program in another role, and goes to
//! nginx the same way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, missing_docs)]

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Region, StalledStreamProtectionConfig};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use zk_bench::{Bar, Row, by_turns, compute, directory};
use zk_envelope::{Timestamp, pack};
use zk_gateway::{Limits, Tls};
use zk_publish::{Publisher, Target};
use zk_spool::Spool;
use zk_store::{Options, Store};
use zk_verify::{Context, check, topic_of};

#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
#[path = "../tests/gateway/world.rs"]
mod world;

use world::{Device, Running, World};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if let ["load", dir, address, status, seconds] = arguments[..] {
        let address = address.parse().unwrap();
        let seconds = seconds.parse().unwrap();
        return runtime.block_on(load(Path::new(dir), address, status, seconds));
    }
    let parent = directory(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&parent).unwrap();
    let parent: &'static Path = Box::leak(parent.into_boxed_path());
    tempfile::env::override_temp_dir(parent).unwrap();
    let wanted = |area| {
        !["store", "nginx"].iter().any(|a| arguments.contains(a)) || arguments.contains(&area)
    };
    if wanted("store") {
        store(&runtime);
    }
    if wanted("nginx") {
        nginx(&runtime);
    }
}

/// Readings a second, durable: through the gateway, and into the store alone.
fn store(runtime: &Runtime) {
    let (world, mut device) = runtime.block_on(one_device());
    let (bare, context) = runtime.block_on(bare_store(&world, &device));
    let gateway = runtime.block_on(world.start_with(limits()));
    let mut sequences = 1..;

    // What an agent with one connection does, message by message.
    let drains: Vec<Vec<Vec<u8>>> = (0..DRAINS)
        .map(|_| sealed(&mut device, &mut sequences, DRAINED))
        .collect();
    let (mut spools, mut messages) = (drains.iter(), drains.iter());
    let rounds = by_turns(
        DRAINS,
        || drain(&world, &device, &gateway, spools.next().unwrap()),
        || {
            let messages = packed(messages.next().unwrap());
            let start = Instant::now();
            runtime.block_on(async {
                for message in &messages {
                    let done = bare.ingest(message, &context).await.unwrap();
                    assert!(done.stored > 0 && done.quarantined.is_empty());
                }
            });
            DRAINED as f64 / start.elapsed().as_secs_f64()
        },
    );
    Row::compare(
        "store: a spool drained through the gateway",
        "zk-store's ingest of the same messages, one at a time",
        "readings/s",
        Some(Bar::AtLeast(0.8)),
        &rounds,
    )
    .print()
    .unwrap();

    let rushes: Vec<Vec<Vec<u8>>> = (0..RUSHES)
        .map(|_| packed(&sealed(&mut device, &mut sequences, RUSHED)))
        .collect();
    let (mut loads, mut messages) = (rushes.iter(), rushes.iter());
    let rounds = by_turns(
        RUSHES,
        || {
            let requests = loads.next().unwrap().iter().map(|m| device.post(m));
            write_requests(&world.path("requests"), requests);
            let (_, seconds) = start_load(&world, gateway.address, "200", 0.0);
            RUSHED as f64 / seconds
        },
        || {
            let messages = messages.next().unwrap();
            let start = Instant::now();
            runtime.block_on(ingest_at_once(&bare, &context, messages));
            RUSHED as f64 / start.elapsed().as_secs_f64()
        },
    );
    Row::compare(
        "store: 16 connections to the gateway",
        "zk-store's ingest of the same messages, 16 at a time",
        "readings/s",
        Some(Bar::AtLeast(0.8)),
        &rounds,
    )
    .print()
    .unwrap();

    let all = DRAINS * DRAINED + RUSHES * RUSHED;
    assert_eq!(runtime.block_on(world.stored(&device)).len(), all);
    runtime.block_on(gateway.stop());
}

/// Requests a second: with a store that keeps nothing, and from nginx with a
/// static answer.
fn nginx(runtime: &Runtime) {
    let (world, mut device) = runtime.block_on(one_device());
    let off = store_off();
    let record = device.record();
    let registered = runtime.block_on(off.register(&device.principal, &record));
    assert!(registered.unwrap());
    let message = device.message([1]);
    let context = context(&device);
    let ingest = || {
        let done = runtime.block_on(off.ingest(&message, &context)).unwrap();
        assert_eq!(done.stored, 1);
    };
    let verdict = || assert!(check(&message, &context, Some(&record))[0].is_ok());
    Row::compare(
        "gateway: zk-store's ingest, the store off",
        "zk_verify::check, which is a part of it",
        "µs",
        None,
        &compute(ingest, verdict),
    )
    .print()
    .unwrap();

    let tls = Tls::load(&world.files()).unwrap();
    let gateway = runtime.block_on(world::start(off, tls, limits()));
    let nginx = Nginx::start(&world);
    let compare = |name: &str, request: Vec<u8>, status, bar| {
        write_requests(&world.path("requests"), [request]);
        let side = |address, status, used: &dyn Fn() -> f64, each: &mut Vec<f64>| {
            let before = used();
            let (count, seconds) = start_load(&world, address, status, SECONDS);
            each.push((used() - before) * 1e6 / count);
            count / seconds
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let rounds = by_turns(
            LOADS,
            || side(gateway.address, status, &processor_seconds, &mut ours),
            || {
                side(
                    nginx.address,
                    "200",
                    &|| nginx.processor_seconds(),
                    &mut theirs,
                )
            },
        );
        let against = "nginx, a static answer over the same TLS";
        let row = Row::compare(name, against, "requests/s", bar, &rounds);
        row.print().unwrap();
        let each: Vec<_> = ours.into_iter().zip(theirs).collect();
        let name = format!("{name}, the server's processor time");
        let row = Row::compare(&name, against, "µs/request", None, &each);
        row.print().unwrap();
    };
    compare(
        "gateway: verified, the store off",
        device.post(&message),
        "200",
        Some(Bar::AtLeast(0.5)),
    );
    compare(
        "gateway: answered before anything is verified",
        world::post("/no-topic", &message),
        "404",
        None,
    );
    let counters = gateway.gateway.counters();
    assert!(counters.stored > 0 && counters.quarantined.is_empty());
    runtime.block_on(gateway.stop());
}

async fn one_device() -> (World, Device) {
    let world = World::new().await;
    let device = world.device("pi-01").await;
    fs::write(world.path("device.crt.pem"), &device.pem).unwrap();
    fs::write(world.path("device.key.pem"), &device.key_pem).unwrap();
    (world, device)
}

/// Another store like the gateway's.
async fn bare_store(world: &World, device: &Device) -> (Store, Context) {
    let uri = world::uri(&world.path("bare"));
    let store = Store::create(&uri, Options::default()).await.unwrap();
    let registered = store.register(&device.principal, &device.record()).await;
    assert!(registered.unwrap());
    (store, context(device))
}

fn context(device: &Device) -> Context {
    Context {
        principal: device.principal.clone(),
        topic: topic_of(&device.name.parse().unwrap()),
        received_at: Timestamp::from_millis(1_790_000_000_000).unwrap(),
    }
}

/// As many connections as there are; the default is for a device that has one.
fn limits() -> Limits {
    Limits {
        connections_per_device: CONNECTIONS,
        ..Limits::default()
    }
}

fn sealed(
    device: &mut Device,
    sequences: &mut impl Iterator<Item = u64>,
    count: usize,
) -> Vec<Vec<u8>> {
    let sequences = sequences.take(count);
    sequences.map(|n| device.record_of(n)).collect()
}

/// The messages that a publisher makes of these records.
fn packed(records: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let (message, taken) = pack(rest, zk_publish::Options::default().batch_bytes).unwrap();
        messages.push(message);
        rest = &rest[taken..];
    }
    messages
}

/// Readings a second from a spool that is full to a spool that is empty.
fn drain(world: &World, device: &Device, gateway: &Running, records: &[Vec<u8>]) -> f64 {
    let spool = Spool::open(world.path("spool"), zk_spool::Options::default()).unwrap();
    for group in records.chunks(256) {
        let appends = group
            .iter()
            .map(|record| |_| Ok::<_, String>(record.clone()));
        spool.append_batch_with(appends).unwrap();
    }
    let endpoint = format!("localhost:{}", gateway.address.port());
    let target = Target::new(&endpoint, &format!("Zymkey/{}", device.name)).unwrap();
    let start = Instant::now();
    let publisher = Publisher::spawn(
        Arc::new(spool),
        target,
        Arc::new(device.tls.clone()),
        zk_publish::Options::default(),
        |records, limit| pack(records, limit),
    )
    .unwrap();
    let all = records.len() as u64;
    let done = publisher.wait_for(world::PATIENCE, |status| status.records == all);
    assert!(done.is_some(), "{:?}", publisher.status());
    all as f64 / start.elapsed().as_secs_f64()
}

async fn ingest_at_once(store: &Store, context: &Context, messages: &[Vec<u8>]) {
    let messages = Arc::new(messages.to_vec());
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (store, context) = (store.clone(), context.clone());
        let (messages, next) = (Arc::clone(&messages), Arc::clone(&next));
        tasks.spawn(async move {
            while let Some(message) = messages.get(next.fetch_add(1, Relaxed)) {
                let done = store.ingest(message, &context).await.unwrap();
                assert!(done.stored > 0 && done.quarantined.is_empty());
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}

/// A store over the AWS SDK as everywhere, whose DynamoDB says yes to every
/// write and keeps nothing but the one device.
fn store_off() -> Store {
    let connector = SharedHttpConnector::new(Yes::default());
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("off"))
        .endpoint_url("http://off.invalid")
        .allow_no_auth()
        // as for a store in a file
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .build();
    Store::with_client(Client::from_conf(config), Options::default()).unwrap()
}

#[derive(Clone, Default)]
struct Yes(Arc<Mutex<Option<serde_json::Value>>>);

impl HttpConnector for Yes {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let operation = request.headers().get("x-amz-target").unwrap_or_default();
        let read = operation.ends_with(".GetItem");
        let mut known = self.0.lock().unwrap();
        if !read && known.is_none() {
            let body = request.body().bytes().unwrap();
            let put: HashMap<String, serde_json::Value> = serde_json::from_slice(body).unwrap();
            *known = put.get("Item").cloned();
        }
        let answer = match &*known {
            Some(device) if read => serde_json::json!({ "Item": device }).to_string(),
            _ => "{}".to_owned(),
        };
        let ok = StatusCode::try_from(200).unwrap();
        HttpConnectorFuture::ready(Ok(HttpResponse::new(ok, SdkBody::from(answer))))
    }
}

impl fmt::Debug for Yes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Yes")
    }
}

/// nginx as a user would run it, with the gateway's certificates.
struct Nginx {
    child: Child,
    address: SocketAddr,
    /// Kept so that it can write.
    _errors: BufReader<ChildStderr>,
    _dir: TempDir,
}

impl Nginx {
    fn start(world: &World) -> Self {
        let dir = TempDir::new().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut temporary = String::new();
        for module in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            temporary += &format!("{module}_temp_path {module};\n");
        }
        let files = world.files();
        let config = format!(
            r#"
            daemon off;
            pid nginx.pid;
            error_log stderr notice;
            worker_processes auto;
            events {{}}
            http {{
                access_log off;
                {temporary}
                keepalive_requests 1000000000;
                ssl_certificate {certificate:?};
                ssl_certificate_key {key:?};
                ssl_client_certificate {devices:?};
                ssl_verify_client on;
                ssl_protocols TLSv1.3;
                default_type application/json;
                server {{
                    listen {address} ssl;
                    return 200 '{{"message":"OK","traceId":"6f0c1f3e-3d0f-4a55-9f5e-6f6f8a0f8d11"}}';
                }}
            }}
            "#,
            certificate = files.certificate,
            key = files.key,
            devices = files.device_ca,
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        // it may be where only root's PATH leads
        let path = std::env::var("PATH").unwrap() + ":/usr/sbin";
        let mut child = Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(dir.path())
            .env("PATH", path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("this bench needs the nginx program: apt-get install nginx");
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("start worker process ") {
            let read = errors.read_line(&mut said).unwrap();
            assert_ne!(read, 0, "nginx fails: {said}");
        }
        Self {
            child,
            address,
            _errors: errors,
            _dir: dir,
        }
    }
}

impl Nginx {
    /// Of its workers, which have one thread each.
    fn processor_seconds(&self) -> f64 {
        let master = self.child.id();
        let workers = fs::read_to_string(format!("/proc/{master}/task/{master}/children"));
        let workers = workers.unwrap();
        let nanoseconds = workers.split_whitespace().map(|worker| {
            let stat = fs::read_to_string(format!("/proc/{worker}/schedstat")).unwrap();
            let (running, _) = stat.split_once(' ').unwrap();
            running.parse::<f64>().unwrap()
        });
        nanoseconds.sum::<f64>() / 1e9
    }
}

/// Of this process, which is the gateway's while the load is another one.
fn processor_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap().as_secs_f64()
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // its workers end with it when it is asked, not when it is killed
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

fn write_requests(path: &PathBuf, requests: impl IntoIterator<Item = Vec<u8>>) {
    let requests: Vec<_> = requests
        .into_iter()
        .map(|request| String::from_utf8(request).unwrap())
        .collect();
    fs::write(path, serde_json::to_vec(&requests).unwrap()).unwrap();
}

/// Runs this program as the load. Requests that were answered, and seconds.
fn start_load(world: &World, address: SocketAddr, status: &str, seconds: f64) -> (f64, f64) {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("load")
        .arg(world.directory.path())
        .args([&address.to_string(), status, &seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the load: {}", output.status);
    let said = String::from_utf8(output.stdout).unwrap();
    let (count, seconds) = said.trim().split_once(' ').unwrap();
    (count.parse().unwrap(), seconds.parse().unwrap())
}

/// Sends what is in `requests` over as many connections as there are, kept
/// alive: each request once, or all of them again and again for so many seconds.
async fn load(dir: &Path, address: SocketAddr, status: &str, seconds: f64) {
    let requests: Vec<String> =
        serde_json::from_slice(&fs::read(dir.join("requests")).unwrap()).unwrap();
    let requests = Arc::new(requests);
    let tls = Arc::new(client(dir));
    let expected = Arc::<str>::from(format!("HTTP/1.1 {status} "));
    let ready = Arc::new(Barrier::new(CONNECTIONS + 1));
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (requests, tls) = (Arc::clone(&requests), Arc::clone(&tls));
        let (ready, next, expected) =
            (Arc::clone(&ready), Arc::clone(&next), Arc::clone(&expected));
        tasks.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
            let mut answer = Vec::with_capacity(4096);
            ready.wait().await;
            let deadline = Instant::now() + Duration::from_secs_f64(seconds);
            let mut count = 0;
            loop {
                let number = next.fetch_add(1, Relaxed);
                let request = match requests.get(number) {
                    _ if seconds > 0.0 && Instant::now() < deadline => {
                        &requests[number % requests.len()]
                    }
                    Some(request) if seconds == 0.0 => request,
                    _ => break count,
                };
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                answer.clear();
                while length(&answer).is_none_or(|length| answer.len() < length) {
                    let read = stream.read_buf(&mut answer).await.unwrap();
                    assert_ne!(read, 0, "the connection was closed");
                }
                let line = String::from_utf8_lossy(&answer[..answer.len().min(64)]);
                assert!(line.starts_with(&*expected), "{line}");
                count += 1;
            }
        });
    }
    ready.wait().await;
    let start = Instant::now();
    let mut total = 0_u64;
    while let Some(count) = tasks.join_next().await {
        total += count.unwrap();
    }
    println!("{total} {}", start.elapsed().as_secs_f64());
}

fn client(dir: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(dir.join("gateway-ca.crt.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let chain = CertificateDer::pem_file_iter(dir.join("device.crt.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("device.key.pem")).unwrap();
    ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap()
}

/// How long an answer is, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).unwrap();
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let length = name.eq_ignore_ascii_case("content-length");
        length.then(|| value.trim().parse::<usize>().unwrap())
    });
    Some(head + body.expect("an answer with a length"))
}

const CONNECTIONS: usize = 16;

/// Rounds, and records in each.
const DRAINS: usize = 15;
const DRAINED: usize = 300;
const RUSHES: usize = 15;
const RUSHED: usize = 1500;

/// Rounds, and seconds of each side in them.
const LOADS: usize = 15;
const SECONDS: f64 = 0.7;
