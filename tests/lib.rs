//! What the end-to-end tests share: a whole system in a directory, and its
//! programs as processes that can be killed.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout
)]

pub mod peers;
mod proxy;

pub use proxy::{Fault, Proxy, Way};

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use zk_agent::Config;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Moment, OwnerKey, Sealer, StreamId, Timestamp,
    TrustFile,
};
use zk_hsm::{Hsm, HsmUri, create_soft_key};
use zk_provision::{CertificateRequest, Device, LocalSetup, Passphrase};
use zk_publish::Timeouts;
use zk_reader::Reader;
use zk_sensors::{SensorId, SimulatedBus};
use zk_store::{Options, Store};

/// Long enough not to matter.
pub const PATIENT: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    handshake: Duration::from_secs(60),
    response: Duration::from_secs(60),
};

/// Everything that zk-setup makes for one gateway and the device `pi-01`, in a
/// directory of its own.
#[derive(Debug)]
pub struct System {
    /// The directory, removed with this.
    pub dir: TempDir,
    /// The operator's side.
    pub setup: LocalSetup,
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// The device.
    pub device: DeviceId,
    /// The thermometers.
    pub bus: SimulatedBus,
    owner: OwnerKey,
    key: HsmUri,
}

impl System {
    /// Sets it up: authorities, gateway, store, owner, device, two sensors. The
    /// device's key is in a file.
    pub async fn new() -> Self {
        Self::with_key(|dir| create_soft_key(dir.join("key.pem")).expect("a key")).await
    }

    /// The same with a key that `make` makes, which may keep it in this directory.
    pub async fn with_key(make: impl FnOnce(&Path) -> HsmUri) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let now = SystemTime::now();
        let passphrase = Passphrase::new("for tests only".to_owned()).expect("a passphrase");
        let setup = LocalSetup::new(dir.path().join("zk"));
        setup
            .init_authorities(&passphrase, now)
            .expect("authorities");
        let names = vec!["localhost".try_into().expect("a name")];
        let gateway = zk_provision::Gateway {
            names,
            listen: None,
            store: None,
        };
        setup
            .init_gateway(&gateway, &passphrase, now)
            .await
            .expect("a gateway");
        let owner = OwnerKey::generate().expect("an owner");

        // Free now; nobody else on this machine asks for a port by number.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = free.local_addr().expect("its number");
        let device = DeviceId::try_from("pi-01").expect("a name");
        let uri = make(dir.path());
        let hsm = Hsm::open(&uri, zk_hsm::Options::default()).expect("its key");
        let csr = hsm.csr("pi-01").expect("a request");
        let request = CertificateRequest::from_pem(csr.as_bytes(), &device).expect("a request");
        let store = Store::open(&setup.store().expect("a URI"), Options::default()).await;
        let added = Device {
            request,
            hsm: Some(uri.to_string()),
            endpoint: Some(format!("localhost:{}", address.port())),
            owners: vec![owner.public_key().clone()],
        };
        let store = store.expect("a store");
        setup
            .add_device(&added, &passphrase, &store, now)
            .await
            .expect("a device");

        let sensors: Vec<SensorId> = ["28-0000000a0001", "28-0000000a0002"]
            .iter()
            .map(|id| id.parse().expect("an id"))
            .collect();
        let bus = SimulatedBus::create(dir.path().join("sys"), &sensors).expect("a bus");
        Self {
            dir,
            setup,
            gateway: address,
            device,
            bus,
            owner,
            key: uri,
        }
    }

    /// A file that zk-setup made for the gateway.
    pub fn gateway_file(&self, name: &str) -> PathBuf {
        self.setup.dir().join("gateway").join(name)
    }

    /// A file that zk-setup made for the device.
    pub fn device_file(&self, name: &str) -> PathBuf {
        self.setup.dir().join("devices/pi-01").join(name)
    }

    /// Whom the device trusts.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for root in certificates(&self.device_file("gateway-ca.crt.pem")) {
            roots.add(root).expect("a root");
        }
        Arc::new(roots)
    }

    /// The device's key, and a configuration with it for TLS, which shares no
    /// sessions with others.
    pub fn client(&self, alpn: &[&[u8]]) -> (Hsm, Arc<ClientConfig>) {
        self.client_of(self, alpn)
    }

    /// The same for the gateway of another system.
    pub fn client_of(&self, other: &Self, alpn: &[&[u8]]) -> (Hsm, Arc<ClientConfig>) {
        let hsm = self.hsm();
        let chain = certificates(&self.device_file("device.crt.pem"));
        let tls = hsm
            .client_config(chain, other.roots(), alpn)
            .expect("a certificate of the key");
        (hsm, tls)
    }

    /// Sealed records of the device, without end, from 1.
    pub fn sealed(&self) -> impl Iterator<Item = Vec<u8>> {
        let hsm = self.hsm();
        let owners = [self.owner.public_key().clone()];
        let stream = StreamId([0x51; 16]);
        let sealer = Sealer::new(self.device.clone(), stream, hsm.public_key(), &owners);
        let mut sealer = sealer.expect("a sealer");
        (1..).map(move |sequence| {
            let moment = Moment {
                boot: BootId([0xb0; 16]),
                since_boot_ms: sequence,
                time: Timestamp::from_millis(1_795_432_844_123).expect("a time"),
                clock: ClockQuality::Synchronised,
            };
            let content = Content::Data {
                content_type: "text/plain",
                body: b"21.437",
            };
            let sealed = sealer.seal(&hsm, &moment, sequence, content);
            sealed.expect("a record").to_bytes()
        })
    }

    fn hsm(&self) -> Hsm {
        Hsm::open(&self.key, zk_hsm::Options::default()).expect("its key")
    }

    /// The owner's view of the store.
    pub async fn reader(&self) -> Reader {
        let uri = self.setup.store().expect("a URI");
        let store = Store::open(&uri, Options::default())
            .await
            .expect("a store");
        let trust = TrustFile::read(&self.setup.trust_file()).expect("a trust file");
        let pem = self
            .owner
            .to_encrypted_pem("for tests only")
            .expect("a key");
        let owner = OwnerKey::from_encrypted_pem(&pem, "for tests only").expect("a key");
        Reader::new(store, trust, owner)
    }

    /// What zk-setup wrote for the gateway.
    pub fn gateway_config(&self) -> PathBuf {
        self.gateway_file("gateway.toml")
    }

    /// The agent's configuration: as zk-setup wrote it, but for the places of
    /// sensors and spool and a faster pace. Returns the file.
    pub fn agent_config(&self) -> PathBuf {
        let file = self.device_file("agent.toml");
        let text = fs::read_to_string(&file).expect("agent.toml");
        let replaced: Vec<String> = text
            .lines()
            .map(
                |line| match line.split_once('=').map(|(key, _)| key.trim()) {
                    Some("root") => format!("root = {:?}", self.dir.path().join("sys")),
                    Some("dir") => format!("dir = {:?}", self.dir.path().join("spool")),
                    Some("listen") => "listen = \"127.0.0.1:0\"".to_owned(),
                    Some("interval") => "interval = \"20ms\"".to_owned(),
                    _ => line.to_owned(),
                },
            )
            .collect();
        let file = file.with_file_name("agent-test.toml");
        fs::write(&file, replaced.join("\n")).expect("a file");
        Config::read(&file).expect("a configuration that the agent takes");
        file
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file)
        .expect("a file of certificates")
        .map(|certificate| certificate.expect("a certificate"))
        .collect()
}

/// This test program once more, in the role of another one; killed when
/// dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Closing it asks the process to stop.
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Process {
    /// Runs the test function `role` of this program in a process of its own,
    /// with `file` in the variable `ZK_TEST_FILE`.
    pub fn start(role: &str, file: &Path, more: &[(&str, String)]) -> Self {
        let this = std::env::current_exe().expect("this program");
        let mut child = Command::new(this)
            .args([
                "--exact",
                role,
                "--nocapture",
                "--test-threads",
                "1",
                "--include-ignored",
            ])
            .env("ZK_TEST_FILE", file)
            .envs(more.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("its output"));
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// Reads lines until `wanted` gives something.
    ///
    /// # Panics
    /// If the process ends before.
    pub fn wait_for<T>(&mut self, what: &str, mut wanted: impl FnMut(&str) -> Option<T>) -> T {
        let mut last = String::new();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("its output");
            assert_ne!(read, 0, "it ended before {what}; its last line: {last}");
            if let Some(found) = wanted(line.trim_end()) {
                return found;
            }
            last = line;
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its input.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input");
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .expect("it listens");
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        drop(self.stdin.take());
        // Whatever it still has to say must not fill the pipe.
        for line in self.lines.by_ref().lines() {
            line.expect("its output");
        }
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a role: the file it was given; `None` where the test runs as a test.
pub fn role_file() -> Option<PathBuf> {
    std::env::var_os("ZK_TEST_FILE").map(PathBuf::from)
}
