//! The agent, its sensors, chip, clock and disk, the gateway and the network between
//! them fail at random, again and again; the owner holds what arrived against the
//! agent's own journal.
//!
//! | variable | what |
//! | --- | --- |
//! | `ZK_FAULTS_SECONDS` | how long it goes on; 60 |
//! | `ZK_FAULTS_SEED` | the faults of an earlier run, which printed it |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

mod account;
mod chip;
mod clock;
mod journal;
mod sensors;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, geteuid, prlimit};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_agent::{Agent, Config};
use zk_gateway::{Gateway, Overrides, Tls};
use zk_hsm_sim::{Device, Model};
use zk_sensors::SimulatedBus;
use zk_store::{Options, Store, StoreUri};
use zk_tests::{Fault, Process, Proxy, System, Way, role_file};

use chip::{Chip, Trouble};
use journal::{Journal, Line};

/// The gateway, when this program runs in that role. Tells its counters when
/// asked, and stops when its input ends.
#[test]
fn role_gateway() {
    let Some(file) = role_file() else { return };
    log_to_file();
    // A file that may not grow is an error then, and not the end.
    signal_hook::flag::register(
        signal_hook::consts::SIGXFSZ,
        Arc::new(AtomicBool::new(false)),
    )
    .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = zk_gateway::Config::load(&file, Overrides::default()).unwrap();
        let store = Store::open(&config.store, Options::default())
            .await
            .unwrap();
        let gateway = Gateway::new(store, Tls::load(&config.tls).unwrap(), config.limits);
        let address = std::env::var("ZK_TEST_LISTEN").unwrap();
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        println!("listening");
        let asked = gateway.clone();
        let asked = tokio::task::spawn_blocking(move || {
            for _ in std::io::stdin().lines() {
                let counters = asked.counters();
                let unavailable = counters.answers.get(&503).copied().unwrap_or_default();
                let (stored, again) = (counters.stored, counters.duplicates);
                println!("counters {stored} {again} {unavailable}");
            }
        });
        zk_gateway::run(listener, gateway, async {
            asked.await.unwrap();
        })
        .await;
    });
}

/// The agent, when this program runs in that role. Keeps a journal; does what
/// it is told, line by line.
#[test]
fn role_agent() {
    let Some(file) = role_file() else { return };
    log_to_file();
    let path = PathBuf::from(std::env::var_os("ZK_TEST_JOURNAL").unwrap());
    let ahead_ms = std::env::var("ZK_TEST_CLOCK").unwrap().parse().unwrap();
    clock::set(ahead_ms);
    let journal = Arc::new(Journal::create(&path));
    let since_boot_ms = clock::since_boot_ms();
    journal.line(&Line::Begins {
        since_boot_ms,
        ahead_ms,
    });
    let (observer, failed) = (Arc::clone(&journal), Arc::clone(&journal));
    let config = Config::read(&file).unwrap();
    let agent = Agent::start_observed(
        &config,
        move |event| observer.event(event),
        move || {
            failed.line(&Line::Failed);
            println!("failed");
        },
    );
    let agent = match agent {
        Ok(agent) => agent,
        Err(error @ zk_agent::Error::Hsm { .. }) => {
            journal.line(&Line::Stopped);
            println!("no key: {error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    println!("has begun");
    let mut last = String::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        if line == "link" {
            agent.link_returned();
        } else if let Some(ahead) = line.strip_prefix("clock ") {
            let ahead = ahead.parse().unwrap();
            journal.line(&Line::ClockToBe(ahead));
            clock::set(ahead);
            journal.line(&Line::ClockIs(ahead));
        } else if let Some(grace) = line.strip_prefix("stop ") {
            let outcome = agent.stop(Duration::from_millis(grace.parse().unwrap()));
            match outcome {
                Ok(status) => {
                    journal.line(&Line::Stopped);
                    println!("stopped {} {}", status.spool.records, status.spool.losses);
                }
                Err(zk_agent::Error::Unsealed { readings }) => {
                    journal.line(&Line::Unsealed(readings));
                    println!("stopped: {readings} readings are not sealed");
                }
                Err(error @ zk_agent::Error::Envelope(_)) => {
                    journal.line(&Line::Unsigned);
                    println!("stopped: {error}");
                }
                Err(error) => panic!("{error:?}"),
            }
            return;
        } else {
            // Something changes with each sweep.
            last = loop {
                let status = agent.status().unwrap();
                let line = format!(
                    "status {} {} {} {} {}",
                    status.spool.records,
                    status.spool.losses,
                    status.publisher.records,
                    status.publisher.retries,
                    status.sampled
                );
                if line != last {
                    break line;
                }
                thread::yield_now();
            };
            println!("{last}");
        }
    }
}

fn log_to_file() {
    let path = std::env::var_os("ZK_TEST_LOG").unwrap();
    let file = OpenOptions::new().append(true).create(true).open(path);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(file.unwrap());
    let filter: Targets = "info,zk_publish=debug,zk_gateway=debug,zk_spool=debug"
        .parse()
        .unwrap();
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}

#[test]
fn faults_at_random_lose_nothing_unnamed_and_double_nothing() {
    let seed = number("ZK_FAULTS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let time = Duration::from_secs(number("ZK_FAULTS_SECONDS").unwrap_or(60));
    println!("ZK_FAULTS_SEED={seed}, for {time:?}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut device = None;
    let system = System::with_key(|dir| {
        let chip = Device::create(dir.join("chip"), Model::Hsm6).unwrap();
        let uri = format!("zymkey:slot=0?module-path={}", chip.module_path().display());
        device = Some(chip);
        uri.parse().unwrap()
    });
    let mut system = Kept(runtime.block_on(system));
    let offset_ms = clock::check();
    let none = SimulatedBus::create(system.0.dir.path().join("none"), &[]).unwrap();
    let bus = std::mem::replace(&mut system.0.bus, none);
    let mut world = World::new(&system.0, &runtime, Chip::new(device.unwrap()), seed);
    let rng = world.rng.fork();
    let (end, ended) = channel::<()>();
    // It waits for the agent now and then: if the test fails, nobody waits for it.
    let measuring = thread::spawn(move || sensors::measure(bus, rng, &ended));
    world.run(time);
    drop(end);
    world.counts.extend(measuring.join().unwrap());
    world.finish();
    println!("{}", world.tally());
    let journals = std::mem::take(&mut world.journals);
    drop(world);
    runtime.block_on(account::settle(&system.0, &journals, offset_ms));
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect(variable))
}

/// Keeps everything when the test fails.
struct Kept(System);

impl Drop for Kept {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.dir.disable_cleanup(true);
            println!("what happened is in {}", self.0.dir.path().display());
        }
    }
}

/// Everything that can fail, and what is wrong with it now.
struct World {
    rng: fastrand::Rng,
    proxy: Proxy,
    dir: PathBuf,
    gateway_file: PathBuf,
    gateway_address: SocketAddr,
    store_lock: PathBuf,
    agent_text: String,
    agent: Option<Process>,
    gateway: Option<Process>,
    /// Of the agent's processes, and whether each syncs within a window.
    journals: Vec<(PathBuf, bool)>,
    disk: Disk,
    /// Nobody else writes to the store.
    held: Option<File>,
    /// The gateway's files can't grow.
    limited: bool,
    link_fault: bool,
    chip: Chip,
    /// How far the device's wall clock is ahead, in milliseconds.
    ahead_ms: i64,
    counts: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(system: &System, runtime: &tokio::runtime::Runtime, chip: Chip, seed: u64) -> Self {
        let gateway_file = system.gateway_config();
        let limits = "\n[limits]\nstore = \"300ms\"\nbody = \"2s\"\nhandshake = \"5s\"\n";
        let text = fs::read_to_string(&gateway_file).unwrap() + limits;
        fs::write(&gateway_file, text).unwrap();
        let StoreUri::File(store) = system.setup.store().unwrap() else {
            panic!("the store is a file");
        };
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let gateway_address = free.local_addr().unwrap();
        drop(free);
        let dir = system.dir.path().to_path_buf();
        let proxy = Proxy::start(system.gateway, gateway_address);
        let mut world = Self {
            rng: fastrand::Rng::with_seed(seed),
            proxy: runtime.block_on(proxy).unwrap(),
            gateway_file,
            gateway_address,
            store_lock: PathBuf::from(format!("{}-lock", store.display())),
            agent_text: fs::read_to_string(system.agent_config()).unwrap(),
            agent: None,
            gateway: None,
            journals: Vec::new(),
            disk: Disk::new(dir.join("disk")),
            dir,
            held: None,
            limited: false,
            link_fault: false,
            chip,
            ahead_ms: 0,
            counts: BTreeMap::new(),
        };
        world.start_gateway();
        world.start_agent();
        world
    }

    fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let pause = self.rng.u64(20..400);
            thread::sleep(Duration::from_millis(pause));
            if self.rng.u8(..10) < 5 {
                self.heal();
            }
            match self.rng.u8(..130) {
                0..22 => self.break_link(),
                28..38 => {
                    self.count("all connections reset");
                    self.proxy.cut();
                }
                38..52 => self.kill_agent(),
                52..66 => self.kill_gateway(),
                66..70 => self.stop_agent(),
                70..73 => self.stop_gateway(),
                73..83 if self.held.is_none() => {
                    self.count("store locked");
                    let lock = File::open(&self.store_lock).unwrap();
                    lock.lock().unwrap();
                    self.held = Some(lock);
                }
                83..92 => self.limit_gateway(),
                92..100 if self.disk.fill() => self.count("spool's disk full"),
                100..118 if self.chip.trouble.is_none() => {
                    let what = self.chip.fail(&mut self.rng);
                    self.count(what);
                }
                118.. => self.set_wrong_clock(),
                _ => {}
            }
            if let Some((Trouble::Hangs, since)) = self.chip.trouble
                && since.elapsed() > HANGS_AT_MOST
            {
                self.chip.heal();
            }
        }
        self.heal();
        self.proxy.cut();
        self.chip.heal();
        self.set_clock(0);
    }

    /// Nothing is wrong any more: all that is left gets out.
    fn finish(&mut self) {
        let mut failures = None;
        loop {
            let numbers = self.ask_agent("status");
            let [waiting, losses, published, retries, _] = numbers[..] else {
                panic!("{numbers:?}");
            };
            // Losses are named a few at a time, and are gone when that has arrived.
            if waiting <= 2 && losses == 0 && published > 0 {
                break;
            }
            if failures != Some(retries) {
                failures = Some(retries);
                self.tell_agent("link");
            }
        }
        let left = self.ask_agent("stop 60000");
        assert_eq!(left, [0, 0], "records and losses are left");
        self.agent.take().unwrap().stop();
        self.note_gateway();
        self.gateway.take().unwrap().stop();
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn tally(&self) -> String {
        let mut text = self.disk.0.as_ref().err().cloned().unwrap_or_default();
        for (what, times) in &self.counts {
            let _ = writeln!(text, "{what}: {times}");
        }
        let _ = write!(text, "network: {}", self.proxy.counts());
        text
    }

    /// Ends all faults but those of processes, which are started at once.
    fn heal(&mut self) {
        self.held = None;
        self.disk.free();
        if self.limited {
            self.set_limit(None);
        }
        if self.link_fault {
            self.proxy.set(None);
            self.link_fault = false;
            // Half-open connections end, or nobody ever hears of them again.
            if self.rng.bool() {
                self.proxy.cut();
            }
        }
        // Faults of the device itself may outlast those of the way.
        if self.rng.u8(..10) < 7 {
            self.chip.heal();
        }
        if self.ahead_ms != 0 && self.rng.bool() {
            self.count("clock: set right");
            self.set_clock(0);
        }
        if self.rng.u8(..10) < 8 {
            self.tell_agent("link");
        }
    }

    fn set_wrong_clock(&mut self) {
        const HOUR: i64 = 3_600_000;
        // Whole tens of seconds, so that one is told from the other.
        let (what, ahead) = match self.rng.u8(..5) {
            0 => ("clock: a bit forwards", self.rng.i64(1..=6) * 10_000),
            1 => ("clock: a bit backwards", self.rng.i64(-6..=-1) * 10_000),
            2 => ("clock: hours forwards", self.rng.i64(1..=48) * HOUR),
            3 => ("clock: hours backwards", self.rng.i64(-48..=-1) * HOUR),
            _ => ("clock: 1970", 100_000 - clock::wall_ms() / 10_000 * 10_000),
        };
        self.count(what);
        self.set_clock(ahead);
    }

    fn set_clock(&mut self, ahead_ms: i64) {
        self.ahead_ms = ahead_ms;
        self.tell_agent(&format!("clock {ahead_ms}"));
    }

    fn break_link(&mut self) {
        let way = if self.rng.bool() {
            Way::ToGateway
        } else {
            Way::ToDevice
        };
        let bytes = match way {
            Way::ToGateway => self.rng.u64(..8000),
            Way::ToDevice => self.rng.u64(..1500),
        };
        let (what, fault) = match self.rng.u8(..7) {
            0 => ("link: refused", Fault::Refuse),
            1 => ("link: swallows one way", Fault::Swallow(way)),
            6 => ("link: half-open", Fault::Silence),
            2 => ("link: stalls one way", Fault::Stall(way)),
            3 => {
                let delay = Duration::from_millis(self.rng.u64(20..300));
                ("link: slow", Fault::Delay(delay))
            }
            4 => ("link: reset in the middle", Fault::CutAfter(way, bytes)),
            _ => ("link: ends one way", Fault::EndAfter(way, bytes)),
        };
        self.count(what);
        self.proxy.set(Some(fault));
        self.link_fault = true;
    }

    fn limit_gateway(&mut self) {
        self.count("store's files can't grow");
        let bytes = self.rng.u64(..1 << 20);
        self.set_limit(Some(bytes));
    }

    fn set_limit(&mut self, bytes: Option<u64>) {
        let id = self.gateway.as_ref().unwrap().id();
        let pid = Pid::from_raw(i32::try_from(id).unwrap());
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(pid, Resource::Fsize, limit).unwrap();
        self.limited = bytes.is_some();
    }

    fn start_gateway(&mut self) {
        let listen = [
            ("ZK_TEST_LISTEN", self.gateway_address.to_string()),
            ("ZK_TEST_LOG", self.log("gateway")),
        ];
        let mut gateway = Process::start("role_gateway", &self.gateway_file, &listen);
        gateway.wait_for("it listened", |line| {
            line.contains("listening").then_some(())
        });
        self.gateway = Some(gateway);
    }

    /// Notes what it has counted: that goes with it.
    fn note_gateway(&mut self) {
        let gateway = self.gateway.as_mut().unwrap();
        gateway.say("counters");
        let numbers = gateway.wait_for("it told its counters", |line| numbers(line, "counters "));
        let names = ["gateway: stored", "gateway: had it already", "gateway: 503"];
        for (what, times) in names.into_iter().zip(numbers) {
            *self.counts.entry(what).or_default() += times;
        }
        // It could not end, nor another one begin.
        self.held = None;
        self.limited = false;
    }

    fn kill_gateway(&mut self) {
        self.count("kill -9 gateway");
        self.note_gateway();
        self.gateway.take().unwrap().kill();
        self.start_gateway();
    }

    fn stop_gateway(&mut self) {
        self.count("stop gateway");
        self.set_limit(None);
        self.note_gateway();
        self.gateway.take().unwrap().stop();
        self.start_gateway();
    }

    /// A new process with other settings for its spool, which stays.
    fn start_agent(&mut self) {
        let full = ["reject", "drop-oldest"][self.journals.len() % 2];
        let cap = self.rng.choice(["16KiB", "64KiB", "512KiB"]).unwrap();
        let sync = ["\"each\"", "\"each\"", "{ every = \"50ms\" }"];
        let sync = self.rng.choice(sync).unwrap();
        let mut table = "";
        let mut text = String::new();
        for line in self.agent_text.lines() {
            if line.starts_with('[') {
                table = line;
            }
            let key = line.split_once('=').map(|(key, _)| key.trim());
            let _ = match (table, key) {
                ("[spool]", Some("dir")) => {
                    writeln!(text, "dir = {:?}", self.dir.join("disk/spool"))
                }
                ("[spool]", Some("cap")) => writeln!(text, "cap = {cap:?}"),
                ("[spool]", Some("full")) => writeln!(text, "full = {full:?}"),
                ("[spool]", Some("sync")) => writeln!(text, "sync = {sync}"),
                ("[heartbeat]", Some("interval")) => writeln!(text, "interval = \"500ms\""),
                _ => writeln!(text, "{line}"),
            };
        }
        text += "[events]\nmodule = true\ninterval = \"500ms\"\n";
        let file = self.dir.join("zk/devices/pi-01/agent-faults.toml");
        fs::write(&file, text).unwrap();
        loop {
            let journal = format!("journal-{:04}.jsonl", self.journals.len());
            let journal = self.dir.join(journal);
            self.journals
                .push((journal.clone(), sync.contains("every")));
            let journal = journal.display().to_string();
            let more = [
                ("ZK_TEST_JOURNAL", journal),
                ("ZK_TEST_LOG", self.log("agent")),
                ("ZK_TEST_CLOCK", self.ahead_ms.to_string()),
            ];
            let mut agent = Process::start("role_agent", &file, &more);
            if self.chip.is(Trouble::Hangs) {
                thread::sleep(Duration::from_millis(self.rng.u64(..1500)));
                self.chip.heal();
            }
            let has_begun = agent.wait_for("it began", |line| {
                let has_begun = line.contains("has begun");
                (has_begun || line.contains("no key: ")).then_some(has_begun)
            });
            if has_begun {
                self.agent = Some(agent);
                return;
            }
            self.count("agent: no start without its key");
            agent.stop();
            if self.rng.bool() {
                self.chip.heal();
            }
        }
    }

    fn kill_agent(&mut self) {
        self.count("kill -9 agent");
        self.agent.take().unwrap().kill();
        self.start_agent();
    }

    fn stop_agent(&mut self) {
        self.count("stop agent");
        self.tell_agent("stop 3000");
        self.agent.take().unwrap().stop();
        self.start_agent();
    }

    fn tell_agent(&mut self, line: &str) {
        self.agent.as_mut().unwrap().say(line);
    }

    fn ask_agent(&mut self, line: &str) -> Vec<u64> {
        let agent = self.agent.as_mut().unwrap();
        agent.say(line);
        let prefix = if line == "status" {
            "status "
        } else {
            "stopped "
        };
        agent.wait_for(line, |line| {
            assert_ne!(line, "failed", "the agent failed; its log says why");
            numbers(line, prefix)
        })
    }

    fn log(&self, name: &str) -> String {
        self.dir
            .join(name)
            .with_extension("log")
            .display()
            .to_string()
    }
}

/// A chip that hangs for longer than ten seconds counts as stuck, and after a minute
/// as broken; that is another test's.
const HANGS_AT_MOST: Duration = Duration::from_secs(3);

/// The numbers of a line that begins so.
fn numbers(line: &str, prefix: &str) -> Option<Vec<u64>> {
    let numbers = line.strip_prefix(prefix)?.split(' ');
    Some(numbers.map(|number| number.parse().unwrap()).collect())
}

/// A small file system for the spool; without it, why there is none.
struct Disk(Result<PathBuf, String>);

impl Disk {
    fn new(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        if !geteuid().is_root() {
            return Self(Err(
                "NOT RUN: the spool on a full disk, which takes root to mount one\n".to_owned(),
            ));
        }
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=2m", "zk-faults"])
            .arg(&path);
        let said = mount.output().unwrap();
        if said.status.success() {
            return Self(Ok(path));
        }
        let why = String::from_utf8_lossy(&said.stderr);
        Self(Err(format!("NOT RUN: the spool on a full disk: {why}\n")))
    }

    /// Nothing more fits. `false`: there is no such disk, or it is full.
    fn fill(&self) -> bool {
        let Ok(path) = &self.0 else { return false };
        let ballast = ballast(path);
        if ballast.exists() {
            return false;
        }
        let mut file = File::create(ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        true
    }

    fn free(&self) {
        if let Ok(path) = &self.0
            && ballast(path).exists()
        {
            fs::remove_file(ballast(path)).unwrap();
        }
    }
}

fn ballast(disk: &Path) -> PathBuf {
    disk.join("ballast")
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Ok(path) = &self.0 {
            let ended = Command::new("umount").arg("--lazy").arg(path).status();
            assert!(ended.unwrap().success() || thread::panicking());
        }
    }
}
