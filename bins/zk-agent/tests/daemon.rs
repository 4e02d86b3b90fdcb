//! The program as a service: what it tells monitoring, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use rustix::process::{Pid, Signal, kill_process};
use zk_envelope::OwnerKey;
use zk_hsm::create_soft_key;
use zk_sensors::SimulatedBus;

/// A device in a directory of its own, with an endpoint where nobody listens.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self(dir);
        create_soft_key(place.path("key.pem")).unwrap();
        place.certificate("pi-01", 2049);
        let owner = OwnerKey::generate().unwrap();
        fs::write(place.path("owner.pem"), owner.public_key().to_pem()).unwrap();
        let sensors = ["28-0000000a0001".parse().unwrap()];
        SimulatedBus::create(place.path("sys"), &sensors).unwrap();
        // Bound and dropped: nobody answers there.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = nobody.local_addr().unwrap();
        let text = format!(
            "[device]\nid = \"pi-01\"\nhsm = \"soft:{}\"\ncertificate = \"cert.pem\"\n\
             [target]\nendpoint = \"{nobody}\"\nroots = \"cert.pem\"\n\
             [owners]\nfiles = [\"owner.pem\"]\n\
             [sensors]\ninterval = \"10ms\"\nroot = \"sys\"\n\
             [spool]\ndir = \"spool\"\n\
             [metrics]\nlisten = \"127.0.0.1:0\"\n",
            place.path("key.pem").display()
        );
        fs::write(place.path("agent.toml"), text).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A certificate of the key for this device, until this year's first day.
    fn certificate(&self, device: &str, expires: i32) {
        let key = KeyPair::from_pem(&fs::read_to_string(self.path("key.pem")).unwrap()).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device);
        params.not_after = date_time_ymd(expires, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
    }

    fn replace(&self, from: &str, to: &str) {
        let file = self.path("agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(file, text.replace(from, to)).unwrap();
    }

    fn start(&self) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
            .args(["--log-format", "json", "--config"])
            .arg(self.path("agent.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Daemon { child, log }
    }
}

struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Daemon {
    /// Reads the log until a line says `message`.
    fn logged(&mut self, message: &str) -> serde_json::Value {
        self.log_until(message).pop().unwrap()
    }

    /// What the log says up to a line with `message`.
    fn log_until(&mut self, message: &str) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "it ended before it logged {message:?}");
            let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
            let last = line["fields"]["message"] == message;
            lines.push(line["fields"].take());
            if last {
                return lines;
            }
        }
    }

    fn address(&mut self) -> SocketAddr {
        let fields = self.logged("serving /metrics and /healthz");
        fields["address"].as_str().unwrap().parse().unwrap()
    }

    /// SIGTERM, and what the log says of the end.
    fn terminate(mut self) -> (serde_json::Value, ExitStatus) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let last = self.logged("stopped; what waits goes out after the next start");
        self.log.read_to_end(&mut Vec::new()).unwrap();
        (last, self.child.wait().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.to_owned(), body.to_owned())
}

/// Samples by name and labels.
fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, page) = get(address, "/metrics");
    assert_eq!(status, "200", "{page}");
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.strip_prefix("zk_agent_").unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Asks again until the page says so.
fn until(
    address: SocketAddr,
    held: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> BTreeMap<String, f64> {
    loop {
        let now = metrics(address);
        if held(&now) {
            return now;
        }
    }
}

#[test]
fn a_service_tells_how_it_fares_and_ends_with_everything_on_disk() {
    let place = Place::new();
    let mut daemon = place.start();
    let address = daemon.address();

    let page = until(address, |page| {
        page["spool_records"] >= 5.0 && page["publish_retries_total"] >= 1.0
    });
    assert_eq!(page["sensors"], 1.0);
    assert_eq!(page["readings_given_up_total"], 0.0);
    assert_eq!(page["publisher_online"], 0.0);
    assert!(page["readings_sealed_total"] <= page["readings_sampled_total"]);
    assert!(page["hsm_signatures_total"] >= 5.0);
    assert_eq!(page["hsm_failures_total{class=\"fatal\"}"], 0.0);
    // 2049-01-01T00:00:00Z
    assert_eq!(page["certificate_expires_seconds"], 2_493_072_000.0);
    let signed = page["hsm_sign_seconds_count"];
    assert!(signed >= 5.0);
    assert_eq!(page["hsm_sign_seconds_bucket{le=\"+Inf\"}"], signed);
    let buckets = page.iter().filter(|(name, _)| name.contains("_bucket"));
    assert!(buckets.clone().count() > 10);
    assert!(buckets.clone().all(|(_, below)| *below <= signed));
    // A link that is down needs nobody.
    assert_eq!(page["healthy"], 1.0);
    assert_eq!(get(address, "/healthz"), ("200".into(), "ok\n".into()));
    assert_eq!(get(address, "/").0, "404");

    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let waiting = stopped["waiting"].as_u64().unwrap();
    assert_eq!(stopped["sealed"], stopped["sampled"], "{stopped}");

    // Started again, it finds all of it, and goes on in the same stream.
    let mut daemon = place.start();
    let address = daemon.address();
    let page = until(address, |page| page["readings_sealed_total"] >= 1.0);
    assert!(page["spool_records"] > waiting as f64);
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// The other engine, from the configuration to the disk; and the spool keeps it.
#[test]
fn records_wait_in_sled_where_that_is_the_engine() {
    let place = Place::new();
    place.replace("[spool]\n", "[spool]\nengine = \"sled\"\n");
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["spool_records"] >= 5.0);
    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    let waiting = stopped["waiting"].as_u64().unwrap();

    let options = |engine| zk_spool::Options {
        engine,
        ..zk_spool::Options::default()
    };
    let spool = zk_spool::Spool::open(place.path("spool"), options(zk_spool::Engine::Sled));
    let spool = spool.unwrap();
    let records = spool.peek(usize::MAX, usize::MAX).unwrap();
    assert_eq!(records.len() as u64, waiting);
    drop(spool);

    place.replace("\"sled\"", "\"log\"");
    let mut refused = place.start();
    let mut said = String::new();
    refused.log.read_to_string(&mut said).unwrap();
    assert!(
        said.contains("a spool of the engine sled, not log"),
        "{said}"
    );
    assert!(!refused.child.wait().unwrap().success());
}

#[test]
fn health_names_what_needs_somebody() {
    let place = Place::new();
    place.certificate("pi-01", 2024);
    let mut daemon = place.start();
    let address = daemon.address();
    let (status, why) = get(address, "/healthz");
    assert_eq!(status, "503");
    assert!(why.contains("certificate has expired"), "{why}");
    assert_eq!(metrics(address)["healthy"], 0.0);
}

#[test]
fn sensors_that_cannot_be_read_do_not_fill_the_log() {
    let place = Place::new();
    fs::rename(place.path("sys"), place.path("unplugged")).unwrap();
    let mut daemon = place.start();
    let address = daemon.address();
    // Many sweeps later: they are 10 ms apart, attempts to publish far more.
    until(address, |page| page["publish_retries_total"] >= 2.0);
    assert_eq!(metrics(address)["readings_sampled_total"], 0.0);
    fs::rename(place.path("unplugged"), place.path("sys")).unwrap();
    let log = daemon.log_until("the sensors can be read again");
    let told = log.iter().filter(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("cannot read the sensors")
    });
    assert_eq!(told.count(), 1, "{log:#?}");
    until(address, |page| page["readings_sampled_total"] >= 1.0);
}

#[test]
fn records_that_wait_are_not_published_as_another_device() {
    let place = Place::new();
    let mut daemon = place.start();
    let address = daemon.address();
    until(address, |page| page["spool_records"] >= 1.0);
    assert_eq!(daemon.terminate().1.code(), Some(0));

    place.certificate("pi-02", 2049);
    let config = place.path("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"pi-01\"", "\"pi-02\"")).unwrap();
    let (code, said) = started_with(&config, &[]);
    assert_eq!(code, Some(2), "{said}");
    for part in ["device pi-01", "device.id is pi-02", "spool.dir"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn metrics_stay_on_this_machine() {
    let place = Place::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let cases = [
        ("0.0.0.0:9465", 2, "loopback"),
        ("localhost", 2, "127.0.0.1:9465"),
        (taken.as_str(), 1, "give another metrics.listen"),
    ];
    for (address, code, said) in cases {
        let output = started_with(&place.path("agent.toml"), &["--metrics", address]);
        assert_eq!(output.0, Some(code), "{address}: {}", output.1);
        assert!(output.1.contains(said), "{address}: {}", output.1);
    }
}

fn started_with(config: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
        .arg("--config")
        .arg(config)
        .args(more)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}
