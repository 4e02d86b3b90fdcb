//! The agent as it is shipped, a process of its own: what it takes, how soon it
//! seals, whether it keeps up with a slow chip, and how it comes back after an
//! outage.
//!
//! Thermometers and chip are simulated, each chip in a file of its own that the
//! program loads as it loads the vendor's. This process is the server that it
//! publishes to. `cargo xtask bench agent` builds the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use zk_bench::{Bar, ROUNDS, Row, by_turns, directory};
use zk_envelope::{
    BootId, ClockQuality, Content, Kind, Message, Moment, OwnerKey, Sealer, StreamId, VerifyingKey,
};
use zk_hsm::{Hsm, HsmUri};
use zk_hsm_sim::{Device, Fault, Latency, Model, Rule, Throttle};
use zk_publish::{Publisher, Target};
use zk_sensors::{Readings, SensorId, SimulatedBus};
use zk_spool::Spool;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, dir] = &arguments[..]
        && role == "publish"
    {
        return publish(Path::new(dir));
    }
    let parent = directory(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&parent).unwrap();
    tempfile::env::override_temp_dir(Box::leak(parent.into_boxed_path())).unwrap();
    let program = std::env::var_os(PROGRAM)
        .expect("run this as cargo xtask bench agent, which builds the program");
    let program = Path::new(&program);

    let size = fs::metadata(program).unwrap().len();
    alone("the program", "MiB", Some(Bar::AtMost(8.0)), &[mib(size)]);
    start(program);
    memory(program);
    pace(program);
    link_up(program);
    drain(program);
}

/// From its start to a reading in the spool, durably. A server that is there wants
/// a signature for the connection, of the same chip.
fn start(program: &Path) {
    let starts = [
        ("chip: no delay, link up", None, true),
        ("chip: 80 ms, link down", Some(slow()), false),
        ("chip: 80 ms, link up", Some(slow()), true),
    ];
    for (how, rule, link) in starts {
        let (mut times, mut processor) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let place = Place::new(rule.clone(), 1, "10s");
            let _server = link.then(|| Server::start(&place));
            let start = Instant::now();
            let agent = Running::start(program, &place);
            agent.until(|page| page["readings_sealed_total"] >= 1.0);
            times.push(start.elapsed().as_secs_f64());
            processor.push(agent.processor_seconds() * 1e3);
        }
        let name = format!("from its start to the first sealed reading, {how}");
        alone(&name, "s", Some(Bar::AtMost(0.3)), &times);
        let name = format!("{name}, the processor's time");
        alone(&name, "ms", None, &processor);
    }
}

/// When it has nothing to do, and when a million records wait for a link that is
/// down.
fn memory(program: &Path) {
    let place = Place::new(None, 1, "10s");
    let idle: Vec<Memory> = (0..STARTS)
        .map(|_| {
            let _server = Server::start(&place);
            let agent = Running::start(program, &place);
            agent.until(|page| {
                page["readings_sealed_total"] >= 1.0
                    && page["published_records_total"] >= 1.0
                    && page["spool_records"] == 0.0
            });
            agent.memory(&place)
        })
        .collect();
    print_memory("idle", Some(Bar::AtMost(12.0)), &idle);
    let of_chip: Vec<f64> = idle.iter().map(|of| of.of_chip).collect();
    let name = "memory, idle, PSS of the simulated chip's library";
    alone(name, "MiB", None, &of_chip);

    let place = Place::new(None, 1, "10s");
    eprintln!("writing a million records");
    let spool = place.spool();
    let record = place.records(&spool, 1).pop().unwrap();
    for _ in 0..1000 {
        append(&spool, (0..1000).map(|_| record.clone()));
    }
    spool.close().unwrap();
    let waiting: Vec<Memory> = (0..STARTS)
        .map(|_| {
            let agent = Running::start(program, &place);
            let page = agent.until(|page| {
                page["readings_sealed_total"] >= 1.0 && page["publish_retries_total"] >= 2.0
            });
            assert!(page["spool_records"] >= 1e6);
            agent.memory(&place)
        })
        .collect();
    let name = "a million records waiting";
    print_memory(name, Some(Bar::AtMost(12.0)), &waiting);
}

/// A hundred readings a second and chips that can't sign each; then readings that
/// have a record each, or nearly.
fn pace(program: &Path) {
    let tired = Rule::new("sign", Fault::Throttle(Throttle::default()));
    let (all, soon) = (Some(Bar::AtLeast(99.0)), Some(Bar::AtMost(1.0)));
    // With a second or so before it is measured; the throttled chip takes longer to
    // be as slow as it gets.
    let paces = [
        (
            "100 readings/s, chip: 80 ms",
            Some(slow()),
            10,
            "100ms",
            2,
            all,
            soon,
        ),
        (
            "100 readings/s, chip: throttled to 520 ms",
            Some(tired),
            10,
            "100ms",
            20,
            all,
            None,
        ),
        (
            "50 readings/s, chip: no delay",
            None,
            1,
            "20ms",
            2,
            None,
            None,
        ),
    ];
    for (name, rule, sensors, interval, before, all, soon) in paces {
        let rounds: Vec<Pace> = (0..PACES)
            .map(|_| {
                Pace::of(
                    program,
                    &Place::new(rule.clone(), sensors, interval),
                    before,
                )
            })
            .collect();
        let row = |what: &str, unit, bar, of: fn(&Pace) -> f64| {
            let values: Vec<f64> = rounds.iter().map(of).collect();
            alone(&format!("{name}, {what}"), unit, bar, &values);
        };
        row("sealed", "readings/s", all, |pace| pace.sealed);
        row("the oldest when the server has it", "s", soon, |pace| {
            pace.oldest
        });
        row("in a record", "readings", None, |pace| pace.in_a_record);
        row("the processor's time for 1,000", "ms", None, |pace| {
            pace.processor
        });
        row("written, the kernel's count", "B/reading", None, |pace| {
            pace.to_disk
        });
        row("written, the spool's count", "B/reading", None, |pace| {
            pace.by_spool
        });
        let memory: Vec<Memory> = rounds.into_iter().map(|pace| pace.memory).collect();
        print_memory(name, None, &memory);
    }
}

/// From the moment at which the server listens again to the first message of the
/// backlog that it has.
fn link_up(program: &Path) {
    let place = Place::new(Some(slow()), 10, "1s");
    let mut server = Server::start(&place);
    let agent = Running::start(program, &place);
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        agent.until(|page| page["published_records_total"] >= 3.0);
        drop(server);
        let before = agent.metrics()["publish_retries_total"];
        // Enough of them for the longest pause.
        agent.until(|page| {
            page["publish_retries_total"] >= before + 5.0 && page["spool_records"] >= 1.0
        });
        // Not always at the same point of it.
        thread::sleep(Duration::from_secs(1) * round as u32 / ROUNDS as u32);
        let start = Instant::now();
        server = Server::start(&place);
        let first = server.next();
        rounds.push((first.at - start).as_secs_f64());
        agent.until(|page| page["spool_records"] == 0.0);
    }
    drop(agent);
    let name = "from the link's return to the first record delivered";
    alone(name, "s", Some(Bar::AtMost(1.0)), &rounds);
}

/// Records a second of what an outage left, while readings go on; against a
/// publisher that has nothing but the spool.
fn drain(program: &Path) {
    let place = Place::new(Some(slow()), 10, "1s");
    let spool = place.spool();
    // signed without the delay
    place.chip.clear_faults().unwrap();
    let records = place.records(&spool, DRAINED);
    append(&spool, records);
    spool.close().unwrap();
    place.set_rule(slow());
    let kept = place.path("kept");
    fs::rename(place.path("spool"), &kept).unwrap();
    let again = || {
        let _ = fs::remove_dir_all(place.path("spool"));
        copy(&kept, &place.path("spool"));
    };
    let rounds = by_turns(
        DRAINS,
        || {
            again();
            let agent = Running::start(program, &place);
            agent.until(|page| {
                page["publish_retries_total"] >= 1.0 && page["readings_sealed_total"] >= 1.0
            });
            Server::start(&place).records_a_second()
        },
        || {
            again();
            let bare = Bare::start(&place);
            let rate = Server::start(&place).records_a_second();
            drop(bare);
            rate
        },
    );
    Row::compare(
        "agent: an outage's backlog drained, readings going on",
        "the same publisher with a full spool and nothing else",
        "records/s",
        None,
        &rounds,
    )
    .print()
    .unwrap();
}

/// What an agent did in a while.
struct Pace {
    /// Readings a second.
    sealed: f64,
    /// Seconds from the sensor to the server, at most.
    oldest: f64,
    in_a_record: f64,
    /// Milliseconds for a thousand readings.
    processor: f64,
    /// Bytes for a reading.
    to_disk: f64,
    by_spool: f64,
    memory: Memory,
}

impl Pace {
    /// Waits for so many seconds, then measures.
    fn of(program: &Path, place: &Place, before: u64) -> Self {
        let server = Server::start(place);
        let agent = Running::start(program, place);
        agent.until(|page| page["readings_sealed_total"] >= 1.0);
        thread::sleep(Duration::from_secs(before));
        // Readings are sealed many at a time: the time from one such moment to
        // another is what they are to be divided by.
        let (began, sealed) = agent.next_record();
        server.arrived();
        let look = || (agent.metrics(), agent.used());
        let (first, used) = look();
        thread::sleep(MEASURED);
        let (last, used_then) = look();
        let arrived = server.arrived();
        let (ended, sealed_then) = agent.next_record();
        let memory = agent.memory(place);

        // It ends well only if it has sealed all that it took.
        agent.stop();
        let more = |name: &str| last[name] - first[name];
        assert_eq!(last["readings_given_up_total"], 0.0);
        let readings = more("readings_sealed_total");
        let (records, oldest) = place.ages(&arrived);
        Self {
            sealed: (sealed_then - sealed) / (ended - began).as_secs_f64(),
            oldest: oldest.as_secs_f64(),
            in_a_record: readings / records as f64,
            processor: (used_then.processor - used.processor) * 1e6 / readings,
            to_disk: (used_then.written - used.written) / readings,
            by_spool: more("spool_written_bytes_total") / readings,
            memory,
        }
    }
}

/// A device in a directory, with a chip and thermometers, and what its server needs.
struct Place {
    dir: TempDir,
    chip: Device,
    key: VerifyingKey,
    owner: OwnerKey,
    tls: Arc<ServerConfig>,
    server: SocketAddr,
    metrics: SocketAddr,
}

impl Place {
    fn new(rule: Option<Rule>, sensors: u64, interval: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let chip = Device::create(path("chip"), Model::Zymkey4i).unwrap();
        let uri = uri(dir.path());
        let key = *open(dir.path()).public_key();
        let owner = OwnerKey::generate().unwrap();
        let tls = Arc::new(certificates(dir.path(), &key));
        fs::write(path("owner.pem"), owner.public_key().to_pem()).unwrap();
        let sensors: Vec<SensorId> = (1..=sensors)
            .map(|number| format!("28-{number:012x}").parse().unwrap())
            .collect();
        SimulatedBus::create(path("sys"), &sensors).unwrap();
        let [server, metrics] = free();
        let text = format!(
            "[device]\nid = \"{DEVICE}\"\nhsm = \"{uri}\"\ncertificate = \"device.pem\"\n\
             [target]\nendpoint = \"{server}\"\nroots = \"ca.pem\"\n\
             [owners]\nfiles = [\"owner.pem\"]\n\
             [sensors]\ninterval = \"{interval}\"\nroot = \"sys\"\n\
             [spool]\ndir = \"spool\"\ncap = \"1GiB\"\n\
             [metrics]\nlisten = \"{metrics}\"\n",
        );
        fs::write(path("agent.toml"), text).unwrap();
        fs::write(path("endpoint"), server.to_string()).unwrap();
        let place = Self {
            dir,
            chip,
            key,
            owner,
            tls,
            server,
            metrics,
        };
        rule.into_iter().for_each(|rule| place.set_rule(rule));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set_rule(&self, rule: Rule) {
        self.chip.set_faults(&rule.into()).unwrap();
    }

    /// Its spool, while no agent runs.
    fn spool(&self) -> Spool {
        Spool::open(self.path("spool"), spool_options()).unwrap()
    }

    /// Records of one reading each, as the agent makes them.
    fn records(&self, spool: &Spool, count: u64) -> Vec<Vec<u8>> {
        let hsm = open(self.dir.path());
        let stream = StreamId(spool.stream().0);
        let owners = [self.owner.public_key().clone()];
        let device = DEVICE.parse().unwrap();
        let mut sealer = Sealer::new(device, stream, &self.key, &owners).unwrap();
        let moment = Moment {
            boot: BootId([2; 16]),
            since_boot_ms: 81_000,
            time: "2026-11-23T11:20:44.123Z".parse().unwrap(),
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "application/json",
            body: READING,
        };
        (1..=count)
            .map(|number| {
                sealer
                    .seal(&hsm, &moment, number, content)
                    .unwrap()
                    .to_bytes()
            })
            .collect()
    }

    /// How many records of readings these are, and the age of the oldest reading
    /// when its record was there.
    fn ages(&self, messages: &[Arrival]) -> (u64, Duration) {
        let (mut records, mut oldest) = (0, Duration::ZERO);
        for message in messages {
            for entry in Message::parse(&message.body).unwrap().entries {
                let envelope = entry.envelope().unwrap();
                let opened = envelope.verify(&self.key).unwrap();
                let opened = opened.open(&self.owner).unwrap();
                if opened.header().kind != Kind::Data {
                    continue;
                }
                records += 1;
                let body: Readings = serde_json::from_slice(opened.body()).unwrap();
                for reading in body.readings {
                    let age = message.time.duration_since(reading.at);
                    oldest = oldest.max(age.unsigned_abs());
                }
            }
        }
        (records, oldest)
    }
}

/// The program, killed when dropped.
struct Running {
    child: Child,
    metrics: SocketAddr,
}

impl Running {
    fn start(program: &Path, place: &Place) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(place.path("log"));
        let child = Command::new(program)
            .arg("--config")
            .arg(place.path("agent.toml"))
            .stdin(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            metrics: place.metrics,
        }
    }

    /// Its samples by name; empty while it is not that far.
    fn page(&self) -> Option<BTreeMap<String, f64>> {
        let mut stream = TcpStream::connect(self.metrics).ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, page) = answer.split_once("\r\n\r\n")?;
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.strip_prefix("zk_agent_").unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Some(samples.collect())
    }

    fn metrics(&self) -> BTreeMap<String, f64> {
        self.page().expect("an agent that runs")
    }

    /// Asks again until the page says so.
    fn until(&self, held: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
        let start = Instant::now();
        loop {
            if let Some(page) = self.page().filter(&held) {
                return page;
            }
            assert!(start.elapsed() < PATIENCE, "{:?}", self.page());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until more readings are sealed. When, and how many there are then.
    fn next_record(&self) -> (Instant, f64) {
        let sealed = "readings_sealed_total";
        let before = self.metrics()[sealed];
        let page = self.until(|page| page[sealed] > before);
        (Instant::now(), page[sealed])
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    fn memory(&self, place: &Place) -> Memory {
        let rollup = self.proc("smaps_rollup");
        let chip = place.chip.module_path();
        let chip = chip.to_str().unwrap();
        let mut of_chip = 0.0;
        let mut inside = false;
        for line in self.proc("smaps").lines() {
            // 7f00-7f01 r-xp 00000000 fd:00 123 /a/file
            if line
                .split(' ')
                .next()
                .is_some_and(|word| word.contains('-'))
            {
                inside = line.ends_with(chip);
            } else if inside && line.starts_with("Pss:") {
                of_chip += kib(line, "Pss:");
            }
        }
        Memory {
            pss: kib(&rollup, "Pss:"),
            rss: kib(&rollup, "Rss:"),
            of_chip,
        }
    }

    /// Of the threads that it has, more exactly than [`used`](Self::used).
    fn processor_seconds(&self) -> f64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let nanoseconds = threads.unwrap().filter_map(|thread| {
            // one may have ended meanwhile
            let stat = fs::read_to_string(thread.unwrap().path().join("schedstat")).ok()?;
            let (running, _) = stat.split_once(' ')?;
            running.parse::<f64>().ok()
        });
        nanoseconds.sum::<f64>() / 1e9
    }

    fn used(&self) -> Used {
        let stat = self.proc("stat");
        // the name, in parentheses, may hold anything
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
        let io = self.proc("io");
        let written = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        Used {
            // utime and stime, the fields 14 and 15 of the whole line
            processor: (ticks(11) + ticks(12)) / TICKS,
            written: written.unwrap().parse().unwrap(),
        }
    }

    /// Asks it to end, which it does well if nothing is lost.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// MiB.
struct Memory {
    pss: f64,
    rss: f64,
    /// Of the PSS, the simulated chip's library.
    of_chip: f64,
}

struct Used {
    /// Seconds of all threads.
    processor: f64,
    /// Bytes.
    written: f64,
}

/// A publisher alone, in a process of its own.
struct Bare(Child);

impl Bare {
    /// Returns when it has found that the server is not there.
    fn start(place: &Place) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("publish")
            .arg(place.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In that process, as the agent does it.
fn publish(dir: &Path) {
    let hsm = open(dir);
    let chain = CertificateDer::pem_file_iter(dir.join("device.pem")).unwrap();
    let tls = hsm
        .client_config(chain.map(Result::unwrap).collect(), roots(dir), &[])
        .unwrap();
    let endpoint = fs::read_to_string(dir.join("endpoint")).unwrap();
    let target = Target::new(&endpoint, &format!("Zymkey/{DEVICE}")).unwrap();
    let spool = Spool::open(dir.join("spool"), spool_options()).unwrap();
    let publisher = Publisher::spawn(
        Arc::new(spool),
        target,
        tls,
        zk_publish::Options::default(),
        |records: &[&[u8]], limit| zk_envelope::pack(records, limit),
    )
    .unwrap();
    let tried = publisher.wait_for(PATIENCE, |status| status.retries >= 1);
    assert!(tried.is_some(), "{:?}", publisher.status());
    println!("ready");
    // until it is killed
    let _ = std::io::stdin().read(&mut [0]);
}

/// Where messages arrive, answered with 200 each; nobody listens once it is dropped.
struct Server {
    arrivals: Receiver<Arrival>,
    /// Dropped to stop it.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Arrival {
    at: Instant,
    time: Timestamp,
    records: u64,
    body: Bytes,
}

impl Server {
    /// The same as before for its clients: they resume their sessions.
    fn start(place: &Place) -> Self {
        let listener = TcpListener::bind(place.server).unwrap();
        listener.set_nonblocking(true).unwrap();
        let tls = TlsAcceptor::from(Arc::clone(&place.tls));
        let (tell, arrivals) = channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            // What it has spawned ends with it.
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, tls, tell) => {}
                }
            });
        });
        Self {
            arrivals,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn next(&self) -> Arrival {
        self.arrivals.recv_timeout(PATIENCE).unwrap()
    }

    /// What came since it was last asked.
    fn arrived(&self) -> Vec<Arrival> {
        self.arrivals.try_iter().collect()
    }

    /// From the first message to the last that is sure to be of the backlog.
    fn records_a_second(self) -> f64 {
        let first = self.next();
        let (mut records, mut last) = (first.records, first.at);
        while records < DRAINED {
            let next = self.next();
            records += next.records;
            last = next.at;
        }
        (records - first.records) as f64 / (last - first.at).as_secs_f64()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, tell: Sender<Arrival>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (tls, tell) = (tls.clone(), tell.clone());
        tokio::spawn(async move {
            // Who gives up comes again.
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(|request: Request<Incoming>| {
                let tell = tell.clone();
                async move {
                    if let Ok(body) = request.into_body().collect().await {
                        let body = body.to_bytes();
                        // Nobody may be interested any more.
                        let _ = tell.send(Arrival {
                            at: Instant::now(),
                            time: Timestamp::now(),
                            records: count(&body),
                            body,
                        });
                    }
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(ANSWER))))
                }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Records in a message.
fn count(message: &[u8]) -> u64 {
    let member = b"\"encryptedData\"";
    message
        .windows(member.len())
        .filter(|at| at == member)
        .count() as u64
}

/// Certificates of device and server by one authority, in files; what the server is
/// configured with.
fn certificates(dir: &Path, key: &VerifyingKey) -> ServerConfig {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.join("ca.pem"), authority.pem()).unwrap();

    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DEVICE);
    let point = Point(key.to_sec1_point(false).as_bytes().to_vec());
    let device = params.signed_by(&point, &authority).unwrap();
    fs::write(dir.join("device.pem"), device.pem()).unwrap();

    let own = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&own, &authority).unwrap();
    let clients = WebPkiClientVerifier::builder(Arc::new(roots(dir)));
    ServerConfig::builder()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
        )
        .unwrap()
}

fn roots(dir: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap();
    roots.add(authority).unwrap();
    roots
}

/// A public key for a certificate.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The key of the device in `dir`.
fn uri(dir: &Path) -> HsmUri {
    let module = Device::open(dir.join("chip")).unwrap().module_path();
    let uri = format!("zymkey:slot=0?module-path={}", module.display());
    uri.parse().unwrap()
}

fn open(dir: &Path) -> Hsm {
    Hsm::open(&uri(dir), zk_hsm::Options::default()).unwrap()
}

fn spool_options() -> zk_spool::Options {
    zk_spool::Options {
        cap: 1 << 30,
        ..zk_spool::Options::default()
    }
}

/// In groups, with a sync each.
fn append(spool: &Spool, records: impl IntoIterator<Item = Vec<u8>>) {
    let records = records
        .into_iter()
        .map(|record| |_| Ok::<_, Infallible>(record));
    let results = spool.append_batch_with(records).unwrap();
    assert!(results.iter().all(Result::is_ok));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Two ports that nobody listens on.
fn free() -> [SocketAddr; 2] {
    let bound = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    bound.map(|listener| listener.local_addr().unwrap())
}

/// A chip that takes as long for a signature as a real one.
fn slow() -> Rule {
    Rule::new("sign", Fault::Latency(Latency::Fixed(80)))
}

fn print_memory(when: &str, bar: Option<Bar>, rounds: &[Memory]) {
    let each = |of: fn(&Memory) -> f64| rounds.iter().map(of).collect::<Vec<_>>();
    alone(
        &format!("memory, {when}, PSS"),
        "MiB",
        bar,
        &each(|of| of.pss),
    );
    alone(
        &format!("memory, {when}, RSS"),
        "MiB",
        None,
        &each(|of| of.rss),
    );
}

fn alone(name: &str, unit: &str, bar: Option<Bar>, rounds: &[f64]) {
    let row = Row::alone(&format!("agent: {name}"), unit, bar, rounds);
    row.print().unwrap();
}

/// What follows `key` in a table of the kernel's, in MiB.
fn kib(table: &str, key: &str) -> f64 {
    let line = table.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<f64>().unwrap() / 1024.0
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Names the program.
const PROGRAM: &str = "ZK_BENCH_AGENT";
const DEVICE: &str = "pi-01";
const READING: &[u8] = br#"{"readings":[{"sensor":"28-000000000001","at":"2026-11-23T11:20:44.012Z","celsius":21.437,"quality":"ok"}]}"#;
const ANSWER: &str = r#"{"message":"OK"}"#;

/// Starts of the program whose memory is looked at.
const STARTS: usize = 5;
/// Rounds at one pace, and for how long each is measured.
const PACES: usize = 3;
const MEASURED: Duration = Duration::from_secs(20);
/// Rounds of a drain, and records in each.
const DRAINS: usize = 7;
const DRAINED: u64 = 10_000;
/// Of the kernel's accounts in a second, on each of its platforms.
const TICKS: f64 = 100.0;
const PATIENCE: Duration = Duration::from_secs(120);
