//! A gateway on loopback with authorities, devices and a store of its own, and
//! a client that sends the bytes it is told to.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p256::ecdsa::SigningKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zk_envelope::{
    BootId, ClockQuality, Content, KeyState, Moment, OwnerKey, Sealer, StreamId, Timestamp,
    TrustedKey,
};
use zk_gateway::{Gateway, Limits, Tls, TlsFiles, run};
use zk_store::{Options, Store, StoreUri};
use zk_verify::{DeviceRecord, principal_of};

/// What a gateway's operator has, in a directory.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
    server_ca: Authority,
    device_ca: Authority,
    owner: OwnerKey,
}

impl World {
    pub(crate) async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let store = Store::create(&uri(directory.path()), Options::default())
            .await
            .unwrap();
        let world = Self {
            directory,
            store,
            server_ca: authority("gateway CA"),
            device_ca: authority("device CA"),
            owner: OwnerKey::generate().unwrap(),
        };
        world.renew_certificate();
        fs::write(world.path("device-ca.crt.pem"), world.device_ca.pem()).unwrap();
        fs::write(world.path("gateway-ca.crt.pem"), world.server_ca.pem()).unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.path("gateway.crt.pem"),
            key: self.path("gateway.key.pem"),
            device_ca: self.path("device-ca.crt.pem"),
        }
    }

    /// Gives the gateway another key and certificate, whose DER it returns.
    pub(crate) fn renew_certificate(&self) -> CertificateDer<'static> {
        let leaf = leaf(
            &self.server_ca,
            "localhost",
            ExtendedKeyUsagePurpose::ServerAuth,
            |_| {},
        );
        fs::write(self.path("gateway.crt.pem"), &leaf.pem).unwrap();
        write_secret(&self.path("gateway.key.pem"), &leaf.key.serialize_pem());
        leaf.der
    }

    /// A device of the device CA, not registered.
    pub(crate) fn stranger(&self, name: &str) -> Device {
        self.device_by(&self.device_ca, name, |_| {})
    }

    /// A device with a certificate of its own making.
    pub(crate) fn device_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Device {
        self.device_by(&self.device_ca, name, change)
    }

    /// A device of an authority that the gateway doesn't know.
    pub(crate) fn foreigner(&self, name: &str) -> Device {
        self.device_by(&authority("another CA"), name, |_| {})
    }

    /// A client with a certificate for servers, of the servers' authority.
    pub(crate) fn server_as_client(&self) -> Device {
        self.device_by(&self.server_ca, "localhost", |_| {})
    }

    /// A registered device.
    pub(crate) async fn device(&self, name: &str) -> Device {
        let device = self.stranger(name);
        assert!(
            self.store
                .register(&device.principal, &device.record())
                .await
                .unwrap()
        );
        device
    }

    /// A client without a certificate.
    pub(crate) fn nobody(&self) -> ClientConfig {
        ClientConfig::builder()
            .with_root_certificates(self.server_roots())
            .with_no_client_auth()
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_with(Limits::default()).await
    }

    pub(crate) async fn start_with(&self, limits: Limits) -> Running {
        start(
            self.store.clone(),
            Tls::load(&self.files()).unwrap(),
            limits,
        )
        .await
    }

    /// Keys of what is stored for a device.
    pub(crate) async fn stored(&self, device: &Device) -> Vec<String> {
        let name = device.name.parse().unwrap();
        let times = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut readings = self.store.readings(&name, times);
        let mut keys = Vec::new();
        while let Some(reading) = readings.next().await {
            keys.push(reading.unwrap().key);
        }
        keys
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

    pub(crate) fn server_roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.server_ca.der().clone()).unwrap();
        roots
    }

    fn device_by(
        &self,
        ca: &Authority,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Device {
        let leaf = leaf(ca, name, ExtendedKeyUsagePurpose::ClientAuth, change);
        let principal = principal_of(&leaf.der);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        let tls = ClientConfig::builder()
            .with_root_certificates(self.server_roots())
            .with_client_auth_cert(vec![leaf.der], key)
            .unwrap();
        // any key will do, as long as each device has its own
        let mut scalar = [7; 32];
        scalar[..name.len()].copy_from_slice(name.as_bytes());
        let signing_key = SigningKey::from_slice(&scalar).unwrap();
        let sealer = Sealer::new(
            name.parse().unwrap(),
            StreamId([1; 16]),
            signing_key.verifying_key(),
            &[self.owner.public_key().clone()],
        );
        Device {
            name: name.to_owned(),
            principal,
            tls,
            pem: leaf.pem,
            key_pem: leaf.key.serialize_pem(),
            signing_key,
            sealer: sealer.unwrap(),
        }
    }
}

/// A device, as it is after provisioning.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) principal: String,
    pub(crate) tls: ClientConfig,
    pub(crate) pem: String,
    pub(crate) key_pem: String,
    signing_key: SigningKey,
    sealer: Sealer,
}

impl Device {
    /// Puts what it needs for TLS where [`Self::read_files`] finds it.
    pub(crate) fn write_files(&self, world: &World) {
        fs::write(world.path("device.crt.pem"), &self.pem).unwrap();
        write_secret(&world.path("device.key.pem"), &self.key_pem);
    }

    pub(crate) fn read_files(world: &Path) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(world.join("gateway-ca.crt.pem"));
        roots.add(root.unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_file(world.join("device.crt.pem"));
        let key = PrivateKeyDer::from_pem_file(world.join("device.key.pem"));
        ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.unwrap()], key.unwrap())
            .unwrap()
    }

    /// A sealed record.
    pub(crate) fn record_of(&mut self, sequence: u64) -> Vec<u8> {
        let moment = Moment {
            boot: BootId([2; 16]),
            since_boot_ms: sequence,
            time: Timestamp::from_millis(1_790_000_000_000 + sequence).unwrap(),
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "text/plain",
            body: b"21.437",
        };
        self.sealer
            .seal(&self.signing_key, &moment, sequence, content)
            .unwrap()
            .to_bytes()
    }

    /// A message of several records.
    pub(crate) fn message(&mut self, sequences: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let records: Vec<_> = sequences.into_iter().map(|n| self.record_of(n)).collect();
        let (message, taken) = zk_envelope::pack(&records, zk_envelope::MAX_MESSAGE).unwrap();
        assert_eq!(taken, records.len());
        message
    }

    /// Like [`Self::message`], with a signature that is not the device's.
    pub(crate) fn forged(&mut self, sequence: u64) -> Vec<u8> {
        let mut record = self.record_of(sequence);
        *record.last_mut().unwrap() ^= 1;
        zk_envelope::pack(&[record], zk_envelope::MAX_MESSAGE)
            .unwrap()
            .0
    }

    pub(crate) fn record(&self) -> DeviceRecord {
        let key = TrustedKey {
            key: *self.signing_key.verifying_key(),
            state: KeyState::Active,
        };
        DeviceRecord {
            device: self.name.parse().unwrap(),
            certificate: KeyState::Active,
            keys: vec![key],
            registered_at: Timestamp::from_millis(0).unwrap(),
        }
    }

    /// A publish of `body`, byte by byte as it is sent.
    pub(crate) fn post(&self, body: &[u8]) -> Vec<u8> {
        post(&format!("/topics/Zymkey%2F{}?qos=1", self.name), body)
    }
}

pub(crate) fn post(target: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A gateway that runs.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn connect(&self, tls: &ClientConfig) -> Conversation {
        self.try_connect(tls).await.unwrap()
    }

    pub(crate) async fn try_connect(&self, tls: &ClientConfig) -> io::Result<Conversation> {
        connect(self.address, Arc::new(tls.clone())).await
    }

    /// Tells it to stop, and hands over what ends when it has.
    pub(crate) fn begin_stop(self) -> JoinHandle<()> {
        self.stop.send(()).unwrap();
        self.task
    }

    pub(crate) async fn stop(self) {
        timeout(PATIENCE, self.begin_stop()).await.unwrap().unwrap();
    }
}

pub(crate) async fn start(store: Store, tls: Tls, limits: Limits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Gateway::new(store, tls, limits);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(run(listener, gateway.clone(), async {
        let _ = stopped.await;
    }));
    Running {
        gateway,
        address,
        stop,
        task,
    }
}

/// One connection, over which bytes go out as they are given and answers are
/// read by a parser that is not the server's.
pub(crate) struct Conversation {
    pub(crate) stream: TlsStream<TcpStream>,
    read: Vec<u8>,
}

impl Conversation {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn ask(&mut self, bytes: &[u8]) -> Answer {
        self.send(bytes).await;
        self.answer().await
    }

    pub(crate) async fn answer(&mut self) -> Answer {
        let answer = timeout(PATIENCE, self.try_answer())
            .await
            .expect("no answer came");
        answer.expect("the connection was closed instead")
    }

    /// Waits for the server to close, without another byte.
    pub(crate) async fn closed(&mut self) {
        let rest = timeout(PATIENCE, self.try_answer())
            .await
            .expect("it was not closed");
        assert_eq!(rest.map(|answer| answer.status), None);
    }

    /// `None` when the connection ends first.
    pub(crate) async fn try_answer(&mut self) -> Option<Answer> {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                break String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            self.more().await?;
        };
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let headers: BTreeMap<_, _> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers
            .get("content-length")
            .map_or(0, |length| length.parse().unwrap());
        while self.read.len() < length {
            self.more().await?;
        }
        let rest = self.read.split_off(length);
        let body = std::mem::replace(&mut self.read, rest);
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer {
            line,
            status,
            headers,
            body: String::from_utf8(body).unwrap(),
        })
    }

    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) line: String,
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    /// A member of the body.
    pub(crate) fn member(&self, name: &str) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        body[name].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn connect(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> io::Result<Conversation> {
    talk(TcpStream::connect(address).await?, tls).await
}

pub(crate) async fn talk(stream: TcpStream, tls: Arc<ClientConfig>) -> io::Result<Conversation> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    Ok(Conversation {
        stream,
        read: Vec::new(),
    })
}

/// How long a test waits for what must come: long, since it only matters when it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn uri(directory: &Path) -> StoreUri {
    StoreUri::File(directory.join("readings.db"))
}

pub(crate) fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

type Authority = CertifiedIssuer<'static, KeyPair>;

struct Leaf {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(
    issuer: &Authority,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    change: impl FnOnce(&mut CertificateParams),
) -> Leaf {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).unwrap();
    Leaf {
        der: certificate.der().clone(),
        pem: certificate.pem(),
        key,
    }
}
