//! TLS client authentication with a key in each kind of HSM, over TLS 1.2 and
//! 1.3, at each kind of server: OpenSSL's, nginx and rustls; and how many
//! signatures it takes.
//!
//! Each server answers with what it saw: a word for the version, one for whether
//! the session was resumed, and the client's certificate in PEM.
//!
//! Requests and certificates by each kind of key are put to OpenSSL, too.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../crates/zk-hsm/tests/support/mod.rs"]
#[allow(dead_code, reason = "zk-hsm's own tests use more of it")]
mod support;
#[path = "../crates/zk-hsm/tests/pkcs11/tokens.rs"]
#[allow(dead_code, reason = "zk-hsm's own tests use more of it")]
mod tokens;

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePrivateKey, LineEnding};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, Signer, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, OtherError, ProtocolVersion,
    ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme, StreamOwned,
};
use support::{Authority, server_config};
use tempfile::TempDir;
use tokens::Tokens;
use tokio::runtime::{self, Handle};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::der::pem;
use zk_hsm::{Error, Hsm, HsmUri, Operation, Options, Subject, create_soft_key};
use zk_hsm_sim::{Device, Fault, Latency, Model, Rule};
use zk_tests::peers::{CACHE, NEITHER, Nginx, TICKETS};

#[test]
fn servers_see_the_certificate_and_resumed_sessions_cost_no_signature() {
    World::with(
        "servers_see_the_certificate_and_resumed_sessions_cost_no_signature",
        |world| {
            for key in &world.keys {
                for server in &world.servers {
                    let at = format!("{} at {server}", key.name);
                    let config = world.config(key);
                    let before = key.signatures();
                    for connection in 1..=3 {
                        let seen = server.get(&config).unwrap_or_else(|error| {
                            panic!("{at}, connection {connection}: {error}");
                        });
                        let resumed = server.resumes && connection > 1;
                        assert_eq!(seen.version, server.version, "{at}");
                        assert_eq!(seen.resumed, resumed, "{at}, connection {connection}");
                        assert_eq!(seen.certificate.as_ref(), Some(&key.certificate), "{at}");
                        let signatures = if server.resumes { 1 } else { connection };
                        assert_eq!(key.signatures() - before, signatures, "{at}");
                    }
                    // sessions are of one configuration: another one begins anew
                    let seen = server.get(&world.config(key)).unwrap();
                    assert!(!seen.resumed, "{at}");
                    let signatures = if server.resumes { 2 } else { 4 };
                    assert_eq!(key.signatures() - before, signatures, "{at}");
                }
            }
        },
    );
}

#[test]
fn who_has_no_certificate_or_another_authoritys_is_refused() {
    World::with(
        "who_has_no_certificate_or_another_authoritys_is_refused",
        |world| {
            let nobody = ClientConfig::builder()
                .with_root_certificates(world.authority.roots())
                .with_no_client_auth();
            let nobody = Arc::new(nobody);
            let stranger = Authority::new();
            for server in &world.servers {
                // TLS 1.2 has no alert of its own for that
                let alert = match server.version {
                    "TLSv1.2" if server.name == "OpenSSL" => AlertDescription::HandshakeFailure,
                    _ => AlertDescription::CertificateRequired,
                };
                server.refuses(&nobody, alert);
            }
            for key in &world.keys {
                let foreign = stranger.issue(&key.hsm.csr(key.name).unwrap());
                let config = key
                    .hsm
                    .client_config(vec![foreign], world.authority.roots(), &[])
                    .unwrap();
                for server in &world.servers {
                    let before = key.signatures();
                    // both authorities have one name; rustls looks at that alone, tries
                    // the key, and finds that it isn't the one
                    let alert = match server.name {
                        "rustls" => AlertDescription::DecryptError,
                        _ => AlertDescription::UnknownCA,
                    };
                    server.refuses(&config, alert);
                    // the client can't know, so it has signed
                    assert_eq!(key.signatures() - before, 1, "{} at {server}", key.name);
                }
            }
        },
    );
}

#[test]
fn another_keys_certificate_is_refused_at_the_start() {
    World::with(
        "another_keys_certificate_is_refused_at_the_start",
        |world| {
            for (one, other) in pairs(&world.keys) {
                let before = one.signatures();
                let chain = vec![other.certificate.clone()];
                let error = one
                    .hsm
                    .client_config(chain, world.authority.roots(), &[])
                    .unwrap_err();
                let Error::CertificateMismatch { hsm, subject, .. } = &error else {
                    panic!("{error}")
                };
                assert_eq!(**hsm, one.hsm.uri().to_string());
                assert_eq!(**subject, format!("CN={}", other.name));
                assert_eq!(one.signatures(), before);
            }
        },
    );
}

#[test]
fn openssl_verifies_requests_and_certificates_of_each_kind_of_key() {
    let name = "openssl_verifies_requests_and_certificates_of_each_kind_of_key";
    tokens::alone(name, |tokens| {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("pem");
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).arg(&file).output();
            let output = output.expect(MISSING);
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        };
        let path = file.to_str().unwrap();
        for (name, uri) in uris(dir.path(), tokens) {
            let hsm = Hsm::open(&uri, Options::default()).unwrap();
            let subject = || Subject::new(name).country("DE").dns_name("pi.example.org");
            fs::write(&file, hsm.csr(subject()).unwrap()).unwrap();
            let said = openssl(&["req", "-verify", "-noout", "-in"]);
            assert!(said.contains("verify OK"), "{name}: {said}");

            let pem = hsm.self_signed(subject(), Duration::from_secs(3600));
            fs::write(&file, pem.unwrap()).unwrap();
            let strict = ["-x509_strict", "-check_ss_sig", "-purpose", "sslclient"];
            let said = openssl(&[&["verify", "-CAfile", path], &strict[..]].concat());
            assert_eq!(said, format!("{path}: OK\n"), "{name}");
            assert_eq!(hsm.counters().signatures, 2);
        }
    });
}

#[test]
fn a_chip_that_fails_in_a_handshake_is_asked_again_or_says_why() {
    let dir = TempDir::new().unwrap();
    let (device, key, authority) = zymkey(dir.path());
    let server = rustls_server(&authority);
    let get = |hsm: &Hsm| {
        // a full handshake each time
        let config = hsm.client_config(vec![key.certificate.clone()], authority.roots(), &[]);
        server.get(&config.unwrap())
    };
    let before = key.hsm.counters();
    // what passes is no concern of TLS
    for fault in [
        Fault::Code(-110),
        Fault::FlipR,
        Fault::FlipS,
        Fault::NullOutput,
    ] {
        let rule = Rule::new("sign", fault).count(1);
        device.set_faults(&rule.into()).unwrap();
        let seen = get(&key.hsm).unwrap();
        assert_eq!(seen.certificate.as_ref(), Some(&key.certificate));
    }
    let after = key.hsm.counters();
    assert_eq!(after.signatures - before.signatures, 4);
    assert_eq!(after.retries - before.retries, 4);
    assert_eq!(after.bad_signatures - before.bad_signatures, 2);

    // what doesn't reaches the caller as what it is
    let always = |on: &str, fault| device.set_faults(&Rule::new(on, fault).into()).unwrap();
    always("sign", Fault::FlipS);
    let error = of_hsm(get(&key.hsm));
    assert!(matches!(error, Error::BadSignature { .. }), "{error}");
    device.clear_faults().unwrap();
    get(&key.hsm).unwrap();

    let mut options = Options::default();
    options.deadline = Duration::from_secs(1);
    let impatient = Hsm::open(key.hsm.uri(), options).unwrap();
    always("sign", Fault::Hang);
    let error = of_hsm(get(&impatient));
    let sign = Operation::Sign;
    assert!(
        matches!(error, Error::TimedOut { operation, .. } if operation == sign),
        "{error}"
    );

    always("any", Fault::KeyChanged);
    let error = of_hsm(get(&key.hsm));
    assert!(matches!(error, Error::KeyChanged { .. }), "{error}");
}

/// A simulated device with its certificate.
fn zymkey(dir: &Path) -> (Device, Key, Authority<SigningKey>) {
    let device = Device::create(dir, Model::Zymkey4i).unwrap();
    let module = device.module_path();
    let uri = format!("zymkey:slot=0?module-path={}", module.display());
    let authority = Authority::new();
    let key = Key::open("zymkey", &uri.parse().unwrap(), &authority);
    (device, key, authority)
}

fn rustls_server(authority: &Authority<SigningKey>) -> Server {
    let key = SigningKey::generate();
    let certificate = authority.issue_server("localhost", &key);
    let config = server_config(&TLS13, &[], authority.roots(), certificate, &key);
    Server {
        name: "rustls",
        version: "TLSv1.3",
        sessions: "cache",
        resumes: true,
        port: serve_rustls(config),
        _running: Arc::new(Running::Rustls),
    }
}

/// What an HSM's error has become on its way through rustls and std.
fn of_hsm(result: io::Result<Seen>) -> Error {
    let Err(error) = result else {
        panic!("no error")
    };
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::Other(OtherError(inner))) = inner else {
        panic!("{error:?}")
    };
    inner.downcast_ref::<Error>().unwrap().clone()
}

/// rustls signs on the thread that polls the handshake. What that means for all
/// other tasks of a runtime, counted in the steps that they take between the
/// beginning and the end of a signature of half a second.
#[test]
fn other_tasks_go_on_while_the_chip_signs_if_they_have_a_thread() {
    let dir = TempDir::new().unwrap();
    let (device, key, authority) = zymkey(dir.path());
    let port = rustls_server(&authority).port;
    let latency = Rule::new("sign", Fault::Latency(Latency::Fixed(500)));
    device.set_faults(&latency.into()).unwrap();
    let before = key.hsm.counters();

    let workers = |number| {
        let mut builder = runtime::Builder::new_multi_thread();
        builder.worker_threads(number);
        builder
    };
    let steps = |mut builder: runtime::Builder, way: Way| {
        let runtime = builder.enable_all().build().unwrap();
        let signer = Arc::new(Counted {
            key: key.hsm.signing_key(),
            steps: Arc::default(),
            during: Arc::default(),
        });
        let config = signer.client_config(&key, &authority);
        runtime.block_on(async {
            // more than there are threads
            for _ in 0..3 {
                signer.play();
            }
            let stream = match way {
                Way::Directly => tokio::spawn(handshake(config, port)).await.unwrap(),
                Way::SpawnBlocking => {
                    let runtime = Handle::current();
                    spawn_blocking(move || runtime.block_on(handshake(config, port)))
                        .await
                        .unwrap()
                }
            };
            let (_, connection) = stream.get_ref();
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        });
        signer.during.load(Relaxed)
    };
    // as the documentation of zk-hsm has it
    for builder in [
        workers(2),
        workers(1),
        runtime::Builder::new_current_thread(),
    ] {
        assert!(steps(builder, Way::SpawnBlocking) >= MANY);
    }
    // directly it takes a worker, and there is another one
    assert!(steps(workers(2), Way::Directly) >= MANY);
    // the last one, so that nothing moves
    assert_eq!(steps(workers(1), Way::Directly), 0);
    assert_eq!(
        steps(runtime::Builder::new_current_thread(), Way::Directly),
        0
    );

    let after = key.hsm.counters();
    assert_eq!(after.signatures - before.signatures, 6);
    let took = after.sign_latency.sum() - before.sign_latency.sum();
    assert!(took >= 6 * Duration::from_millis(500), "{took:?}");
}

/// In half a second hundreds of thousands are possible.
const MANY: u64 = 1000;

enum Way {
    Directly,
    SpawnBlocking,
}

async fn handshake(config: Arc<ClientConfig>, port: u16) -> TlsStream<tokio::net::TcpStream> {
    let tcp = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    TlsConnector::from(config)
        .connect("localhost".try_into().unwrap(), tcp.await.unwrap())
        .await
        .unwrap()
}

/// Counts what other tasks do during a signature.
#[derive(Clone, Debug)]
struct Counted {
    key: Arc<dyn rustls::sign::SigningKey>,
    steps: Arc<AtomicU64>,
    during: Arc<AtomicU64>,
}

impl Counted {
    /// Has two tasks throw a ball to and fro, each throw a step.
    fn play(&self) {
        let (to, mut fro) = mpsc::channel(1);
        let (back, mut again) = mpsc::channel(1);
        let steps = Arc::clone(&self.steps);
        tokio::spawn(async move {
            while let Some(()) = fro.recv().await {
                steps.fetch_add(1, Relaxed);
                back.send(()).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                to.send(()).await.unwrap();
                again.recv().await.unwrap();
            }
        });
    }

    fn client_config(&self, key: &Key, authority: &Authority<SigningKey>) -> Arc<ClientConfig> {
        let certified = CertifiedKey::new(vec![key.certificate.clone()], Arc::new(self.clone()));
        certified.keys_match().unwrap();
        let config = ClientConfig::builder()
            .with_root_certificates(authority.roots())
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        Arc::new(config)
    }
}

impl rustls::sign::SigningKey for Counted {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.key.choose_scheme(offered)?;
        Some(Box::new(self.clone()))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.key.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl Signer for Counted {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signer = self.key.choose_scheme(&[self.scheme()]).unwrap();
        let before = self.steps.load(Relaxed);
        let signature = signer.sign(message);
        let after = self.steps.load(Relaxed);
        self.during.store(after - before, Relaxed);
        signature
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// An authority for both sides, a key of each kind, and all servers.
struct World {
    authority: Authority<SigningKey>,
    keys: Vec<Key>,
    servers: Vec<Server>,
}

impl World {
    /// Runs `test`, the body of the function `name`, in a process of its own, for
    /// SoftHSM2's sake.
    fn with(name: &str, test: impl FnOnce(&Self)) {
        tokens::alone(name, |tokens| {
            let dir = TempDir::new().unwrap();
            let authority = Authority::new();
            let keys = uris(dir.path(), tokens);
            let keys = keys.map(|(name, uri)| Key::open(name, &uri, &authority));
            test(&Self {
                keys: keys.into(),
                servers: servers(dir.path(), &authority),
                authority,
            });
        });
    }

    /// One that shares no sessions with others.
    fn config(&self, key: &Key) -> Arc<ClientConfig> {
        key.hsm
            .client_config(vec![key.certificate.clone()], self.authority.roots(), &[])
            .unwrap()
    }
}

/// Where a key of each kind is, and the name of its certificate.
fn uris(dir: &Path, tokens: &Tokens) -> [(&'static str, HsmUri); 4] {
    let soft = |name: &str| create_soft_key(dir.join(name)).unwrap();
    let device = Device::create(dir.join("device"), Model::Zymkey4i).unwrap();
    let module = device.module_path();
    let zymkey = format!("zymkey:slot=0?module-path={}", module.display());
    tokens.make("plant");
    tokens.import("plant", "device", "01");
    [
        ("soft", soft("one.pem")),
        ("soft-2", soft("two.pem")),
        ("zymkey", zymkey.parse().unwrap()),
        ("softhsm2", tokens.uri("token=plant;object=device")),
    ]
}

struct Key {
    name: &'static str,
    hsm: Hsm,
    certificate: CertificateDer<'static>,
}

impl Key {
    fn open(name: &'static str, uri: &HsmUri, authority: &Authority<SigningKey>) -> Self {
        let hsm = Hsm::open(uri, Options::default()).unwrap();
        let certificate = authority.issue(&hsm.csr(name).unwrap());
        Self {
            name,
            hsm,
            certificate,
        }
    }

    fn signatures(&self) -> u64 {
        self.hsm.counters().signatures
    }
}

/// Each with all others.
fn pairs(keys: &[Key]) -> impl Iterator<Item = (&Key, &Key)> {
    let all = keys
        .iter()
        .flat_map(|one| keys.iter().map(move |other| (one, other)));
    all.filter(|(one, other)| !std::ptr::eq(*one, *other))
}

/// A server that insists on a client certificate.
struct Server {
    name: &'static str,
    version: &'static str,
    /// How it lets sessions be resumed; in words.
    sessions: &'static str,
    resumes: bool,
    port: u16,
    /// What runs, or what shares it.
    _running: Arc<Running>,
}

#[expect(dead_code, reason = "they are there to be dropped")]
enum Running {
    Nginx(Nginx),
    Openssl(Openssl),
    /// A thread, which ends with the process.
    Rustls,
}

/// What a server saw.
struct Seen {
    version: String,
    resumed: bool,
    certificate: Option<CertificateDer<'static>>,
}

impl Server {
    /// A connection of its own for one request.
    fn get(&self, config: &Arc<ClientConfig>) -> io::Result<Seen> {
        let answer = self.answer(config)?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer in HTTP");
        if !head.starts_with("HTTP/1.1 200") && !head.starts_with("HTTP/1.0 200") {
            let line = head.lines().next().unwrap_or_default();
            return Err(io::Error::other(line.to_owned()));
        }
        let (version, reused) = body
            .lines()
            .find_map(|line| {
                // nginx: `SUCCESS TLSv1.3 r`; OpenSSL: `Reused, TLSv1.3, Cipher is …`
                let words: Vec<_> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
                match words[..] {
                    ["SUCCESS", version, reused] => Some((version, reused == "r")),
                    ["New", version, ..] => Some((version, false)),
                    ["Reused", version, ..] => Some((version, true)),
                    _ => None,
                }
            })
            .unwrap_or_else(|| panic!("{self} said {body}"));
        Ok(Seen {
            version: version.to_owned(),
            resumed: reused,
            certificate: CertificateDer::from_pem_slice(body.as_bytes()).ok(),
        })
    }

    /// All that the server sends.
    fn answer(&self, config: &Arc<ClientConfig>) -> io::Result<Vec<u8>> {
        let name = "localhost".try_into().unwrap();
        let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut stream =
            StreamOwned::new(tls, TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?);
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            // s_server closes without saying so
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => {
                other?;
            }
        }
        Ok(answer)
    }

    /// By an alert, or, as nginx does it, by an answer.
    fn refuses(&self, config: &Arc<ClientConfig>, alert: AlertDescription) {
        let Err(error) = self.get(config) else {
            panic!("{self} takes it")
        };
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let got = match inner {
            Some(rustls::Error::AlertReceived(got)) => *got,
            _ => {
                assert_eq!(self.name, "nginx", "{error}");
                assert_eq!(error.to_string(), "HTTP/1.1 400 Bad Request");
                return;
            }
        };
        assert_eq!(got, alert, "{self}");
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, version, .. } = self;
        write!(f, "{name}, {version}, {}", self.sessions)
    }
}

fn servers(dir: &Path, authority: &Authority<SigningKey>) -> Vec<Server> {
    let key = SigningKey::generate();
    let certificate = authority.issue_server("localhost", &key);
    let files = Files::write(dir, authority, &certificate, &key);
    let mut all = Vec::new();

    let answer = "SUCCESS $ssl_protocol $ssl_session_reused\n$ssl_client_raw_cert";
    let answer = answer.replace("SUCCESS", "$ssl_client_verify");
    let nginx = Nginx::start(&files.certificate, &files.key, &files.clients, &answer);
    let nginx = Arc::new(Running::Nginx(nginx));
    for (version, short) in [("TLSv1.2", &TLS12), ("TLSv1.3", &TLS13)] {
        for (how, sessions, resumes) in [
            (TICKETS, "tickets", true),
            (CACHE, "cache", true),
            (NEITHER, "no sessions", false),
        ] {
            let Running::Nginx(running) = &*nginx else {
                unreachable!()
            };
            all.push(Server {
                name: "nginx",
                version,
                sessions,
                resumes,
                port: running.port((version, how)),
                _running: Arc::clone(&nginx),
            });
        }
        for (sessions, resumes) in [("tickets", true), ("no sessions", false)] {
            let openssl = Openssl::start(&files, version, resumes);
            all.push(Server {
                name: "OpenSSL",
                version,
                sessions,
                resumes,
                port: openssl.port,
                _running: Arc::new(Running::Openssl(openssl)),
            });
        }
        for (sessions, resumes) in [("cache", true), ("no sessions", false)] {
            let config = server_config(short, &[], authority.roots(), certificate.clone(), &key);
            let mut config = Arc::unwrap_or_clone(config);
            if !resumes {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
            all.push(Server {
                name: "rustls",
                version,
                sessions,
                resumes,
                port: serve_rustls(Arc::new(config)),
                _running: Arc::new(Running::Rustls),
            });
        }
    }
    all
}

/// What foreign servers read.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    clients: PathBuf,
}

impl Files {
    fn write(
        dir: &Path,
        authority: &Authority<SigningKey>,
        certificate: &CertificateDer<'_>,
        key: &SigningKey,
    ) -> Self {
        let files = Self {
            certificate: dir.join("server.crt.pem"),
            key: dir.join("server.key.pem"),
            clients: dir.join("clients.crt.pem"),
        };
        fs::write(&files.certificate, to_pem(certificate)).unwrap();
        fs::write(&files.key, key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap();
        fs::write(&files.clients, to_pem(&authority.certificate)).unwrap();
        files
    }
}

fn to_pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode_string("CERTIFICATE", LineEnding::LF, certificate).unwrap()
}

/// `openssl s_server`, killed when dropped. To each request it answers with a
/// page of all it knows.
struct Openssl {
    child: Child,
    /// Kept so that it can write.
    _lines: BufReader<ChildStdout>,
    port: u16,
}

impl Openssl {
    fn start(files: &Files, version: &str, sessions: bool) -> Self {
        let version = match version {
            "TLSv1.2" => "-tls1_2",
            _ => "-tls1_3",
        };
        let sessions: &[&str] = if sessions {
            &[]
        } else {
            &["-no_ticket", "-no_cache", "-num_tickets", "0"]
        };
        let mut child = Command::new("openssl")
            .args(["s_server", "-www", "-accept", "127.0.0.1:0", version])
            .args(["-Verify", "1", "-verify_return_error", "-no-CApath"])
            .args(sessions)
            .arg("-CAfile")
            .arg(&files.clients)
            .arg("-cert")
            .arg(&files.certificate)
            .arg("-key")
            .arg(&files.key)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect(MISSING);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        let port = loop {
            let before = said.len();
            let read = lines.read_line(&mut said).unwrap();
            assert_ne!(read, 0, "s_server ended: {said}");
            let address = said[before..].trim_end().strip_prefix("ACCEPT 127.0.0.1:");
            if let Some(port) = address {
                break port.parse().unwrap();
            }
        };
        Self {
            child,
            _lines: lines,
            port,
        }
    }
}

const MISSING: &str = "this test needs the openssl program: apt-get install openssl";

impl Drop for Openssl {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers one request a connection, like the others.
fn serve_rustls(config: Arc<ServerConfig>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // who is refused is none of its business
            let _ = answer_rustls(&config, stream.unwrap());
        }
    });
    port
}

fn answer_rustls(config: &Arc<ServerConfig>, stream: TcpStream) -> io::Result<()> {
    let tls = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut stream = StreamOwned::new(tls, stream);
    let mut request = [0; 18];
    if let Err(error) = stream.read_exact(&mut request) {
        // the alert
        stream.conn.write_tls(&mut stream.sock)?;
        return Err(error);
    }
    let version = match stream.conn.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let kind = match stream.conn.handshake_kind() {
        Some(HandshakeKind::Resumed) => "Reused",
        _ => "New",
    };
    let certificates = stream.conn.peer_certificates();
    let certificate = certificates.and_then(<[_]>::first).map(to_pem);
    let certificate = certificate.unwrap_or_default();
    write!(
        stream,
        "HTTP/1.0 200 OK\r\n\r\n{kind}, {version}\n{certificate}"
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}
