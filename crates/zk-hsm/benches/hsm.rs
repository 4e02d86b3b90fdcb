//! Each kind of key against the bare call below it, TLS handshakes with and
//! without a signature, and how many signatures messages cost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![allow(unsafe_code, reason = "the bare call into the C library is one")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support;
#[path = "../tests/pkcs11/tokens.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod tokens;

use std::ffi::{c_int, c_void};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null_mut;
use std::sync::Arc;
use std::thread;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use libloading::{Library, Symbol};
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::DecodePrivateKey;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, HandshakeKind, ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};
use signature::hazmat::PrehashSigner;
use support::{Authority, connect, server_config};
use tokens::{PIN, SO_PIN, softhsm2_util, write_secret};
use zk_bench::{Bar, ROUNDS, Row, by_turns, directory, median, time};
use zk_hsm::{Hsm, HsmUri, Options, Signature, create_soft_key, generate_key};
use zk_hsm_sim::{Device, Fault, Faults, Latency, Model, Rule};
use zk_publish::{Client, Target, Timeouts};

fn main() {
    let parent = directory(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&parent).unwrap();
    let Some(dir) = std::env::var_os(DIRECTORY) else {
        return with_tokens(&parent);
    };
    let dir = Path::new(&dir);
    let authority = Authority::new();
    let key = SigningKey::generate();
    let certificate = authority.issue_server("localhost", &key);
    let server = server_config(&TLS13, &[], authority.roots(), certificate, &key);

    for kind in [soft, zymkey, slow_zymkey, softhsm] {
        let mut key = kind(dir);
        key.compare_signatures();
        let chain = vec![authority.issue(&key.hsm.csr("pi-01").unwrap())];
        key.compare_resumption(&authority, &server, &chain);
        if let Some(file) = &key.file {
            compare_with_rustls(&key.hsm, file, &authority, &server, &chain);
            count_signatures(&key.hsm, &authority, &server, &chain);
        }
    }
}

/// SoftHSM2 reads where its tokens are from the environment, which only a new
/// process can change safely.
fn with_tokens(parent: &Path) {
    let dir = tempfile::tempdir_in(parent).unwrap();
    let tokens = dir.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let conf = dir.path().join("softhsm2.conf");
    fs::write(
        &conf,
        format!("directories.tokendir = {}\n", tokens.display()),
    )
    .unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .env(DIRECTORY, dir.path())
        .env("SOFTHSM2_CONF", &conf)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// Signs a digest.
type Bare = dyn FnMut(&[u8; 32]) -> [u8; 64];

/// A key behind zk-hsm, and the same key without it.
struct Key {
    name: &'static str,
    hsm: Hsm,
    /// The key's own file, if it has one.
    file: Option<PathBuf>,
    against: &'static str,
    bare: Box<Bare>,
    /// A call takes 3 ms or longer.
    slow: bool,
}

impl Key {
    /// Every signature is verified by zk-hsm, and comes from another thread;
    /// that is what is added.
    fn compare_signatures(&mut self) {
        let size = self.size();
        let Self { hsm, bare, .. } = self;
        let mut bare = || bare(&Sha256::digest(MESSAGE).into());
        let mut ours = || hsm.sign(MESSAGE).unwrap();
        // both sign with the same key
        let (bare_signature, key) = (bare(), hsm.public_key());
        let bare_signature = Signature::from_slice(&bare_signature).unwrap();
        signature::Verifier::verify(key, MESSAGE, &bare_signature).unwrap();

        let rounds = medians(size, &mut ours, &mut bare);
        let name = format!("hsm: a signature, {}", self.name);
        let bar = self.slow.then_some(Bar::AtMost(1.05));
        let micros: Vec<_> = rounds.iter().map(|(o, t)| (o * 1e6, t * 1e6)).collect();
        print(&Row::compare(&name, self.against, "µs", bar, &micros));
        if !self.slow {
            let added: Vec<_> = micros.iter().map(|(ours, theirs)| ours - theirs).collect();
            let name = format!("hsm: added to a signature, {}", self.name);
            print(&Row::alone(&name, "µs", Some(Bar::AtMost(150.0)), &added));
        }
        let rates: Vec<_> = rounds.iter().map(|(ours, _)| 1.0 / ours).collect();
        let name = format!("hsm: signatures by one caller, {}", self.name);
        print(&Row::alone(&name, "signatures/s", None, &rates));
    }

    /// How many rounds, and turns in each.
    fn size(&self) -> (usize, usize) {
        if self.slow { (5, 9) } else { FAST }
    }

    fn compare_resumption(
        &self,
        authority: &Authority<SigningKey>,
        server: &Arc<ServerConfig>,
        chain: &[CertificateDer<'static>],
    ) {
        let config = self
            .hsm
            .client_config(chain.to_vec(), authority.roots(), &[]);
        let resuming = config.unwrap();
        let rounds = handshakes(
            self.size(),
            server,
            &resuming,
            HandshakeKind::Resumed,
            &full(&resuming),
        );
        let name = format!("hsm: resumed TLS 1.3 handshakes, {}", self.name);
        let against = "full ones, with a signature each";
        print(&Row::compare(&name, against, "handshakes/s", None, &rounds));
    }
}

/// The same key in a signer of rustls's own.
fn compare_with_rustls(
    hsm: &Hsm,
    file: &Path,
    authority: &Authority<SigningKey>,
    server: &Arc<ServerConfig>,
    chain: &[CertificateDer<'static>],
) {
    let ours = hsm.client_config(chain.to_vec(), authority.roots(), &[]);
    let ours = ours.unwrap();
    let theirs = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_client_auth_cert(chain.to_vec(), PrivateKeyDer::from_pem_file(file).unwrap());
    let theirs = Arc::new(theirs.unwrap());
    let against = "rustls's own signer (aws-lc-rs), the same key";
    for (name, rounds) in [
        (
            "hsm: full TLS 1.3 handshakes, soft:",
            handshakes(
                FAST,
                server,
                &full(&ours),
                HandshakeKind::Full,
                &full(&theirs),
            ),
        ),
        (
            "hsm: resumed TLS 1.3 handshakes, soft:",
            handshakes(FAST, server, &ours, HandshakeKind::Resumed, &theirs),
        ),
    ] {
        print(&Row::compare(name, against, "handshakes/s", None, &rounds));
    }
}

/// In seconds, the median of single calls in turns, for each round: where other
/// work takes the processor away it does so in some calls, not in most.
fn medians<A, B>(
    (rounds, turns): (usize, usize),
    mut ours: impl FnMut() -> A,
    mut theirs: impl FnMut() -> B,
) -> Vec<(f64, f64)> {
    let round = |_| {
        let turns = by_turns(
            turns,
            || time(1, &mut ours).as_secs_f64(),
            || time(1, &mut theirs).as_secs_f64(),
        );
        let (ours, theirs): (Vec<_>, Vec<_>) = turns.into_iter().unzip();
        (median(&ours), median(&theirs))
    };
    (0..rounds).map(round).collect()
}

/// A second, of two configurations in turns; `kind` is what the first does.
fn handshakes(
    size: (usize, usize),
    server: &Arc<ServerConfig>,
    ours: &Arc<ClientConfig>,
    kind: HandshakeKind,
    theirs: &Arc<ClientConfig>,
) -> Vec<(f64, f64)> {
    // whatever is to be resumed
    connect(ours, server).unwrap();
    connect(theirs, server).unwrap();
    let shake = |config| connect(config, server).unwrap();
    let rounds = medians(size, || shake(ours), || shake(theirs));
    let (client, _) = shake(ours);
    assert_eq!(client.handshake_kind(), Some(kind));
    rounds
        .into_iter()
        .map(|(ours, theirs)| (1.0 / ours, 1.0 / theirs))
        .collect()
}

/// The same, but never resuming.
fn full(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut config = (**config).clone();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Of zk-publish's client, for 1,000 messages over HTTP/1.1 to a rustls server
/// on loopback.
fn count_signatures(
    hsm: &Hsm,
    authority: &Authority<SigningKey>,
    server: &Arc<ServerConfig>,
    chain: &[CertificateDer<'static>],
) {
    let config = || {
        hsm.client_config(chain.to_vec(), authority.roots(), &[])
            .unwrap()
    };
    let shared = config();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = |port, config| {
        let target = Target::new(&format!("localhost:{port}"), "Zymkey/pi-01").unwrap();
        Client::new(target, config, Timeouts::default())
    };
    // Every message by `next`; the signatures that all of them took.
    let count = |next: &mut dyn FnMut(usize)| {
        let before = hsm.counters().signatures;
        (0..MESSAGES).for_each(next);
        (hsm.counters().signatures - before) as f64
    };

    let port = serve(Arc::clone(server), usize::MAX);
    let mut kept = client(port, Arc::clone(&shared));
    let signatures = count(&mut |_| publish(&runtime, &mut kept));
    assert_eq!(kept.connections(), 1);
    let name = "hsm: signatures for 1,000 messages, one connection kept alive";
    print(&Row::alone(name, "signatures", None, &[signatures]));

    let port = serve(Arc::clone(server), PER_CONNECTION);
    let mut one = client(port, config());
    let ours = count(&mut |_| publish(&runtime, &mut one));
    assert_eq!(one.connections(), (MESSAGES / PER_CONNECTION) as u64);
    let mut each = None;
    let theirs = count(&mut |number| {
        if number.is_multiple_of(PER_CONNECTION) {
            each = Some(client(port, config()));
        }
        publish(&runtime, each.as_mut().unwrap());
    });
    let name = "hsm: signatures for 1,000 messages, 10 a connection, one configuration";
    let against = "a new configuration for each connection";
    let rounds = [(ours, theirs)];
    print(&Row::compare(name, against, "signatures", None, &rounds));
}

fn publish(runtime: &tokio::runtime::Runtime, client: &mut Client) {
    runtime.block_on(client.publish(MESSAGE)).unwrap();
}

/// A server of HTTP/1.1 that closes a connection after so many messages.
fn serve(config: Arc<ServerConfig>, per_connection: usize) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            let stream = StreamOwned::new(tls, stream.unwrap());
            thread::spawn(move || answer(stream, per_connection));
        }
    });
    port
}

fn answer(stream: StreamOwned<ServerConnection, TcpStream>, messages: usize) {
    let mut stream = BufReader::new(stream);
    for number in 1..=messages {
        let mut length = 0;
        loop {
            let mut line = String::new();
            // the client has gone
            if !matches!(stream.read_line(&mut line), Ok(1..)) {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        stream.read_exact(&mut vec![0; length]).unwrap();
        let close = if number == messages {
            "connection: close\r\n"
        } else {
            ""
        };
        let stream = stream.get_mut();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\n{close}content-length: 2\r\n\r\n{{}}"
        )
        .unwrap();
        stream.flush().unwrap();
    }
    let stream = stream.get_mut();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
}

fn soft(dir: &Path) -> Key {
    let file = dir.join("key.pem");
    let uri = create_soft_key(&file).unwrap();
    let bare = SigningKey::from_pkcs8_pem(&fs::read_to_string(&file).unwrap()).unwrap();
    Key {
        name: "soft:",
        hsm: open(&uri),
        file: Some(file),
        against: "p256, the bare call",
        bare: Box::new(move |digest| {
            let signature: Signature = bare.sign_prehash(digest).unwrap();
            signature.to_bytes().into()
        }),
        slow: false,
    }
}

/// The simulated Zymkey, which reads a file of faults at each call and signs
/// with p256.
fn zymkey(dir: &Path) -> Key {
    let device = Device::create(dir.join("fast"), Model::Zymkey4i).unwrap();
    simulated("zymkey: (simulator)", &device, false)
}

fn slow_zymkey(dir: &Path) -> Key {
    let device = Device::create(dir.join("slow"), Model::Zymkey4i).unwrap();
    let latency = Rule::new("sign", Fault::Latency(Latency::Fixed(80)));
    device.set_faults(&Faults::from(latency)).unwrap();
    simulated("zymkey: (simulator, 80 ms)", &device, true)
}

fn simulated(name: &'static str, device: &Device, slow: bool) -> Key {
    let module = device.module_path();
    let uri = format!("zymkey:slot=0?module-path={}", module.display());
    let bare = Chip::open(&module);
    Key {
        name,
        hsm: open(&uri.parse().unwrap()),
        file: None,
        against: "the bare call of zkGenECDSASigFromDigest",
        bare: Box::new(move |digest| bare.sign(digest)),
        slow,
    }
}

fn softhsm(dir: &Path) -> Key {
    let token = ["--init-token", "--free", "--label", "bench"];
    softhsm2_util(&[&token[..], &["--pin", PIN, "--so-pin", SO_PIN]].concat());
    let module = SOFTHSM2.iter().find(|path| Path::new(path).exists());
    let module = module.unwrap_or_else(|| panic!("no SoftHSM2 in {SOFTHSM2:?}"));
    let pin = dir.join("pin");
    write_secret(&pin, PIN);
    let uri = format!(
        "pkcs11:token=bench;object=key?module-path={module}&pin-source=file:{}",
        pin.display()
    );
    let uri = generate_key(&uri.parse().unwrap(), Options::default().deadline).unwrap();
    let hsm = open(&uri);
    let (session, key) = bare_session(module);
    Key {
        name: "pkcs11: (SoftHSM2)",
        hsm,
        file: None,
        against: "cryptoki, the bare C_Sign",
        bare: Box::new(move |digest| {
            let signature = session.sign(&Mechanism::Ecdsa, key, digest).unwrap();
            signature.try_into().unwrap()
        }),
        slow: false,
    }
}

/// In the process in which zk-hsm has initialised the module.
fn bare_session(module: &str) -> (Session, ObjectHandle) {
    let context = Pkcs11::new(module).unwrap();
    // it may say that it is initialised already
    let _ = context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slots = context.get_slots_with_initialized_token().unwrap();
    let mut slots = slots.into_iter();
    let slot = slots
        .find(|slot| context.get_token_info(*slot).unwrap().label() == "bench")
        .unwrap();
    let session = context.open_rw_session(slot).unwrap();
    let pin = AuthPin::new(PIN.into());
    // all sessions of a process are logged in together
    let _ = session.login(UserType::User, Some(&pin));
    let key = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Label(b"key".to_vec()),
    ];
    let found = session.find_objects(&key).unwrap();
    let [key] = found[..] else {
        panic!("{} keys", found.len())
    };
    (session, key)
}

fn open(uri: &HsmUri) -> Hsm {
    Hsm::open(uri, Options::default()).unwrap()
}

fn print(row: &Row) {
    row.print().unwrap();
}

/// The vendor's library as a C program uses it.
struct Chip {
    library: Library,
    context: *mut c_void,
}

type Open = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type Sign = unsafe extern "C" fn(*mut c_void, *const u8, c_int, *mut *mut u8, *mut c_int) -> c_int;

impl Chip {
    fn open(module: &Path) -> Self {
        // SAFETY: our own simulator; loading it runs no code but Rust's.
        let library = unsafe { Library::new(module) }.unwrap();
        let mut context = null_mut();
        // SAFETY: the prototype is `int zkOpen(zkCTX *)`.
        let code = unsafe {
            let open: Symbol<'_, Open> = library.get(b"zkOpen\0").unwrap();
            open(&raw mut context)
        };
        assert_eq!(code, 0);
        Self { library, context }
    }

    fn sign(&self, digest: &[u8; 32]) -> [u8; 64] {
        let (mut out, mut size) = (null_mut(), 0);
        // SAFETY: the prototype is `int zkGenECDSASigFromDigest(zkCTX, const
        // uint8_t *digest, int slot, uint8_t **sig, int *sig_sz)`.
        let code = unsafe {
            let sign: Symbol<'_, Sign> = self.library.get(b"zkGenECDSASigFromDigest\0").unwrap();
            sign(
                self.context,
                digest.as_ptr(),
                0,
                &raw mut out,
                &raw mut size,
            )
        };
        assert_eq!((code, size), (0, 64));
        // SAFETY: it gave 64 bytes, which are ours to free.
        unsafe {
            let signature = out.cast::<[u8; 64]>().read();
            libc::free(out.cast());
            signature
        }
    }
}

const MESSAGE: &[u8] = b"21.4 degrees";
/// Rounds, and turns in each, where a call takes less than a millisecond.
const FAST: (usize, usize) = (ROUNDS, 201);
const MESSAGES: usize = 1000;
const PER_CONNECTION: usize = 10;
/// Tells a process that its SoftHSM2 has tokens of its own there.
const DIRECTORY: &str = "ZK_BENCH_TOKENS";
const SOFTHSM2: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];
