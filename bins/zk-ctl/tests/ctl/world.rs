//! A device with a key, a certificate and a configuration; its owner; a gateway
//! with a store on loopback.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use zk_envelope::{
    DeviceId, Header, KeyState, Opened, OwnerKey, Timestamp, TrustedDevice, TrustedKey,
    VerifyingKey,
};
use zk_gateway::{Gateway, Limits, Tls, TlsFiles, run};
use zk_hsm::{Hsm, HsmUri, create_soft_key};
use zk_sensors::SimulatedBus;
use zk_store::{Options, Store, StoreUri};
use zk_verify::{Audit, DeviceRecord, Findings, principal_of};

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) struct World {
    directory: TempDir,
    pub(crate) store: Store,
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) key: VerifyingKey,
    pub(crate) server_ca: Authority,
    pub(crate) device_ca: Authority,
    owner: OwnerKey,
}

impl World {
    /// All is well, and the device `pi-01` registered.
    pub(crate) async fn new() -> Self {
        let world = Self::unregistered().await;
        world.register().await;
        world
    }

    /// The same with this key.
    pub(crate) async fn with_key(uri: &HsmUri) -> Self {
        let world = Self::build(Some(uri)).await;
        world.register().await;
        world
    }

    pub(crate) async fn unregistered() -> Self {
        Self::build(None).await
    }

    async fn build(uri: Option<&HsmUri>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (server_ca, device_ca) = (authority("gateway CA"), authority("device CA"));

        let server_key = key();
        let server = leaf(&server_ca, &server_key, "localhost", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        let files = TlsFiles {
            certificate: path("gateway.crt.pem"),
            key: path("gateway.key.pem"),
            device_ca: path("device-ca.crt.pem"),
        };
        fs::write(&files.certificate, &server.pem).unwrap();
        secret(&files.key, server_key.serialize_pem().as_bytes());
        fs::write(&files.device_ca, device_ca.pem()).unwrap();
        let store = StoreUri::File(path("store.db"));
        let store = Store::create(&store, Options::default()).await.unwrap();
        let tls = Tls::load(&files).unwrap();
        let gateway = Gateway::new(store.clone(), tls, Limits::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(run(listener, gateway.clone(), std::future::pending()));

        let uri = match uri {
            Some(uri) => uri.clone(),
            None => create_soft_key(path("key.pem")).unwrap(),
        };
        let hsm = Hsm::open(&uri, zk_hsm::Options::default()).unwrap();
        let owner = OwnerKey::generate().unwrap();
        fs::write(path("owner.pub.pem"), owner.public_key().to_pem()).unwrap();
        fs::write(path("roots.pem"), server_ca.pem()).unwrap();
        let sensor = "28-0000000a0001".parse().unwrap();
        SimulatedBus::create(path("sys"), &[sensor]).unwrap();
        let config = CONFIG
            .replace("KEY", &uri.to_string())
            .replace("PORT", &address.port().to_string());
        fs::write(path("agent.toml"), config).unwrap();
        let world = Self {
            key: *hsm.public_key(),
            directory,
            store,
            gateway,
            address,
            server_ca,
            device_ca,
            owner,
        };
        world.certify(&world.device_ca, "pi-01", |_| {});
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A path as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Issues the device's certificate.
    pub(crate) fn certify(
        &self,
        authority: &Authority,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let key = Point(self.key.to_sec1_point(false).as_bytes().to_vec());
        let leaf = leaf(authority, &key, name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        });
        fs::write(self.path("pi-01.crt.pem"), leaf.pem).unwrap();
    }

    /// Lets the device publish with the certificate that it has.
    pub(crate) async fn register(&self) {
        let chain = zk_agent::certificates(&self.path("pi-01.crt.pem")).unwrap();
        let record = DeviceRecord {
            device: "pi-01".parse().unwrap(),
            certificate: KeyState::Active,
            keys: vec![TrustedKey {
                key: self.key,
                state: KeyState::Active,
            }],
            registered_at: Timestamp::from_millis(0).unwrap(),
        };
        let principal = principal_of(&chain[0]);
        assert!(self.store.register(&principal, &record).await.unwrap());
    }

    /// Changes the device's configuration.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("agent.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.path("agent.toml"), text.replace(from, to)).unwrap();
    }

    /// A server at an address of its own that takes the device's certificate
    /// for any, and gives every request the same answer.
    pub(crate) async fn server(
        &self,
        authority: &Authority,
        name: &str,
        answer: &'static str,
    ) -> String {
        let key = key();
        let leaf = leaf(authority, &key, name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der], secret)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        listen(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    say(stream, answer).await;
                }
            }
        })
        .await
    }

    /// A server that speaks HTTP without TLS.
    pub(crate) async fn plain_server(&self, answer: &'static str) -> String {
        listen(move |stream| say(stream, answer)).await
    }

    /// Runs `zk-ctl` with the device's configuration.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Run {
        self.ctl_with(arguments, b"")
    }

    /// As [`Self::ctl`], with something on standard input.
    pub(crate) fn ctl_with(&self, arguments: &[&str], stdin: &[u8]) -> Run {
        let config = self.arg("agent.toml");
        let all = [&["--config", &config], arguments].concat();
        ctl(self.directory.path(), &all, stdin)
    }

    /// What was stored of the device, opened by its owner, in the order of time.
    pub(crate) async fn stored(&self) -> Vec<Opened> {
        let times = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut readings = self.store.readings(&"pi-01".parse().unwrap(), times);
        let mut records = Vec::new();
        while let Some(reading) = readings.next().await {
            let envelope = reading.unwrap().envelope().unwrap();
            let verified = envelope.verify(&self.key).unwrap();
            records.push(verified.open(&self.owner).unwrap());
        }
        records.sort_by_key(|record| place(record.header()));
        records
    }

    /// Whether the owner's audit finds every record of the device, or that its
    /// loss is stated.
    pub(crate) async fn audits_clean(&self) -> bool {
        self.audit().await.is_clean()
    }

    /// What the owner's audit finds.
    pub(crate) async fn audit(&self) -> Findings {
        let device: DeviceId = "pi-01".parse().unwrap();
        let trusted = TrustedDevice {
            owners: [self.owner.id()].into(),
            ..TrustedDevice::default()
        };
        let mut audit = Audit::new(device.clone(), &trusted, true);
        let times = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut readings = self.store.readings(&device, times);
        while let Some(reading) = readings.next().await {
            let reading = reading.unwrap();
            let verified = reading.envelope().unwrap().verify(&self.key).unwrap();
            audit.record(&verified, reading.received_at, reading.again);
            let opened = verified.open(&self.owner).unwrap();
            if let Some(report) = opened.report().unwrap() {
                audit.report(opened.header(), reading.received_at, &report);
            }
        }
        audit.finish()
    }

    /// Reasons of what is in quarantine, sorted.
    pub(crate) async fn quarantined(&self) -> Vec<&'static str> {
        let mut quarantine = self.store.quarantine();
        let mut reasons = Vec::new();
        while let Some(held) = quarantine.next().await {
            reasons.push(held.unwrap().reason.as_str());
        }
        reasons.sort_unstable();
        reasons
    }
}

pub(crate) fn place(header: &Header) -> (Timestamp, [u8; 16], u64) {
    (header.time, header.stream.0, header.sequence)
}

/// How a run of `zk-ctl` went.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Run {
    /// Fails the test unless it ended like this.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        let out = String::from_utf8_lossy(&self.out);
        assert_eq!(self.code, code, "out: {out}\nerr: {}", self.err);
        self
    }

    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.out).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap()
    }

    /// Fails the test unless standard error has all of this.
    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {}", self.err);
        }
    }
}

pub(crate) fn ctl(dir: &Path, arguments: &[&str], stdin: &[u8]) -> Run {
    finish(program(dir).args(arguments), stdin)
}

/// `zk-ctl` in a directory.
pub(crate) fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zk-ctl"));
    for name in ["CONFIG", "HSM", "ENDPOINT", "SPOOL", "SENSORS_ROOT"] {
        command.env_remove(format!("ZK_CTL_{name}"));
    }
    command.current_dir(dir);
    command
}

/// Runs what docs/hsm.md shows and says to be run by `here`, as a person in an
/// empty directory.
pub(crate) fn as_documented(here: &str) -> Run {
    let document = include_str!("../../../../docs/hsm.md");
    let mark = format!("<!-- run by bins/zk-ctl/tests/ctl/{here} -->\n```sh\n");
    let blocks = document.split(&mark).skip(1);
    let script: String = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(!script.is_empty(), "{here}");
    // what cargo builds is there already
    let built = std::env::current_exe().unwrap();
    let built = built.parent().unwrap().to_str().unwrap();
    let script: String = script
        .lines()
        .filter(|line| !line.starts_with("cargo "))
        .map(|line| line.replace("target/debug", built) + "\n")
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_zk-ctl")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-euxc", &script])
        .env("PATH", format!("{}:{path}", programs.display()))
        .current_dir(dir.path());
    finish(&mut shell, b"")
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command, stdin: &[u8]) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // it may end without having read all of it
    let feeder = std::thread::spawn(move || pipe.write_all(&stdin));
    let output = child.wait_with_output().unwrap();
    let _ = feeder.join().unwrap();
    Run {
        code: output.status.code().expect("it ended by itself"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A port at which nobody listens.
pub(crate) fn closed_endpoint() -> String {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    format!("localhost:{}", listener.local_addr().unwrap().port())
}

pub(crate) fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(params, key()).unwrap()
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    format!("localhost:{port}")
}

/// Reads something and answers with `answer`.
async fn say(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, answer: &'static str) {
    let mut read = vec![0; 64 << 10];
    // Whatever goes wrong, the other side will tell.
    let _ = stream.read(&mut read).await;
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.flush().await;
    while matches!(stream.read(&mut read).await, Ok(1..)) {
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

struct Leaf {
    der: CertificateDer<'static>,
    pem: String,
}

/// A public key whose private half is elsewhere.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn leaf(
    authority: &Authority,
    key: &impl PublicKeyData,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> Leaf {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    change(&mut params);
    let certificate = params.signed_by(key, authority).unwrap();
    Leaf {
        der: certificate.der().clone(),
        pem: certificate.pem(),
    }
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn secret(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

const CONFIG: &str = r#"
[device]
id = "pi-01"
hsm = "KEY"
certificate = "pi-01.crt.pem"

[target]
endpoint = "localhost:PORT"
roots = "roots.pem"

[owners]
files = ["owner.pub.pem"]

[sensors]
root = "sys"

[spool]
dir = "spool"
cap = "1MiB"
"#;
