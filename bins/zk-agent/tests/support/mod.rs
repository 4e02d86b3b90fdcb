//! A device in a directory, and the program that runs there.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use zk_envelope::{Envelope, Opened, OwnerKey, Report, VerifyingKey};
use zk_hsm::{Hsm, HsmUri, Options, create_soft_key};
use zk_sensors::{Readings, SimulatedBus};
use zk_spool::Spool;

/// A device in a directory of its own, with an endpoint where nobody listens.
pub(crate) struct Place {
    dir: TempDir,
    key: VerifyingKey,
    owner: OwnerKey,
}

impl Place {
    /// Its key is in a file.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uri = create_soft_key(dir.path().join("key.pem")).unwrap();
        Self::with_key(dir, &uri)
    }

    pub(crate) fn with_key(dir: TempDir, uri: &HsmUri) -> Self {
        let place = Self {
            dir,
            key: *Hsm::open(uri, Options::default()).unwrap().public_key(),
            owner: OwnerKey::generate().unwrap(),
        };
        place.certificate("pi-01", 2049);
        let owner = place.owner.public_key().to_pem();
        fs::write(place.path("owner.pem"), owner).unwrap();
        let sensors = ["28-0000000a0001".parse().unwrap()];
        SimulatedBus::create(place.path("sys"), &sensors).unwrap();
        // Bound and dropped: nobody answers there.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = nobody.local_addr().unwrap();
        let text = format!(
            "[device]\nid = \"pi-01\"\nhsm = \"{uri}\"\ncertificate = \"cert.pem\"\n\
             [target]\nendpoint = \"{nobody}\"\nroots = \"cert.pem\"\n\
             [owners]\nfiles = [\"owner.pem\"]\n\
             [sensors]\ninterval = \"10ms\"\nroot = \"sys\"\n\
             [spool]\ndir = \"spool\"\n\
             [metrics]\nlisten = \"127.0.0.1:0\"\n",
        );
        fs::write(place.path("agent.toml"), text).unwrap();
        place
    }

    /// Changes agent.toml.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("agent.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.path("agent.toml"), text.replace(from, to)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate of the key for this device, until this year's first day.
    pub(crate) fn certificate(&self, device: &str, expires: i32) {
        self.certificate_with(device, |params| {
            params.not_after = date_time_ymd(expires, 1, 1);
        });
    }

    pub(crate) fn certificate_with(
        &self,
        device: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, authority).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device);
        change(&mut params);
        let point = Point(self.key.to_sec1_point(false).as_bytes().to_vec());
        let certificate = params.signed_by(&point, &authority).unwrap();
        fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
    }

    /// What waits in the spool, as its owner sees it: each record verified and
    /// opened.
    pub(crate) fn records(&self) -> Vec<Opened> {
        let spool = Spool::open(self.path("spool"), zk_spool::Options::default()).unwrap();
        let records = spool.peek(usize::MAX, usize::MAX).unwrap();
        let open = |record: &zk_spool::Record| {
            let envelope = Envelope::from_bytes(record.bytes()).unwrap();
            let verified = envelope.verify(&self.key).unwrap();
            verified.open(&self.owner).unwrap()
        };
        records.iter().map(open).collect()
    }

    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&mut Command::new(env!("CARGO_BIN_EXE_zk-agent")))
    }

    /// As systemd starts it, which is told what happens; with a watchdog that has to
    /// be fed within this time.
    pub(crate) fn start_as_service(&self, watchdog: Duration) -> (Daemon, Systemd) {
        let socket = self.path("notify");
        let systemd = UnixDatagram::bind(&socket).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zk-agent"));
        command
            .env("NOTIFY_SOCKET", socket)
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        (self.start_with(&mut command), Systemd(systemd))
    }

    pub(crate) fn start_with(&self, command: &mut Command) -> Daemon {
        let mut child = command
            .args(["--log-format", "json", "--config"])
            .arg(self.path("agent.toml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Daemon { child, log }
    }
}

/// What systemd hears.
pub(crate) struct Systemd(UnixDatagram);

impl Systemd {
    /// What it is told next.
    pub(crate) fn notified(&self) -> String {
        let mut bytes = [0; 1024];
        let length = self.0.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// Hears on until it is told this.
    pub(crate) fn until(&self, said: impl Fn(&str) -> bool) -> String {
        loop {
            let heard = self.notified();
            if said(&heard) {
                return heard;
            }
        }
    }
}

pub(crate) struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Daemon {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says until it ends by itself, which is no success.
    pub(crate) fn rest(&mut self) -> String {
        let mut said = String::new();
        self.log.read_to_string(&mut said).unwrap();
        assert!(!self.child.wait().unwrap().success(), "{said}");
        said
    }

    /// Reads the log until a line says `message`.
    pub(crate) fn logged(&mut self, message: &str) -> serde_json::Value {
        self.log_until(message).pop().unwrap()
    }

    /// What the log says up to a line with `message`.
    pub(crate) fn log_until(&mut self, message: &str) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "it ended before it logged {message:?}");
            // a simulated chip says what it is, to whoever reads standard error
            let Ok(mut line) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            let last = line["fields"]["message"] == message;
            lines.push(line["fields"].take());
            if last {
                return lines;
            }
        }
    }

    pub(crate) fn address(&mut self) -> SocketAddr {
        let fields = self.logged("serving /metrics and /healthz");
        fields["address"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and what the log says of the end.
    pub(crate) fn terminate(mut self) -> (serde_json::Value, ExitStatus) {
        self.signal(Signal::TERM);
        let last = self.logged("stopped; what waits goes out after the next start");
        self.log.read_to_end(&mut Vec::new()).unwrap();
        (last, self.child.wait().unwrap())
    }

    /// Waits for an end that nobody asked for. What it said until then, and its
    /// exit status.
    pub(crate) fn ends(mut self) -> (String, ExitStatus) {
        let mut said = String::new();
        self.log.read_to_string(&mut said).unwrap();
        (said, self.child.wait().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

/// Readings in these records, and readings that receipts among them name as lost.
pub(crate) fn tally(records: &[Opened]) -> (u64, u64) {
    let (mut kept, mut named) = (0, 0);
    for record in records {
        match record.report().unwrap() {
            Some(Report::LossReceipt(receipt)) => named += receipt.records,
            Some(_) => {}
            None => {
                let batch: Readings = serde_json::from_slice(record.body()).unwrap();
                kept += batch.readings.len() as u64;
            }
        }
    }
    (kept, named)
}

/// Whether they are one stream from its beginning, without a gap.
pub(crate) fn is_whole(records: &[Opened]) -> bool {
    let stream = records[0].header().stream;
    let mut numbers = (1..).zip(records.iter().map(Opened::header));
    numbers.all(|(number, header)| header.stream == stream && header.sequence == number)
}

pub(crate) fn get(address: SocketAddr, path: &str) -> (String, String) {
    ask(address, "GET", path)
}

pub(crate) fn ask(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.to_owned(), body.to_owned())
}

/// Samples by name and labels.
pub(crate) fn metrics(address: SocketAddr) -> BTreeMap<String, f64> {
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
pub(crate) fn until(
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

pub(crate) fn started_with(config: &Path, more: &[&str]) -> (Option<i32>, String) {
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

/// How long something may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
