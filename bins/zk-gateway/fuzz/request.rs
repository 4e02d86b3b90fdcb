//! What a proven device sends over its connection, up to the answers: as it stands,
//! from a device that is registered and from one that is not; and, if it is a head
//! and a message, with each record signed and the length of the body as it is.
#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::Runtime;
use zk_envelope::{KeyState, MAX_MESSAGE, Message, Signature, Timestamp, TrustedKey};
use zk_gateway::{Counters, Gateway, Limits, Tls, TlsFiles, serve_proven};
use zk_store::{Options, Store, StoreUri};
use zk_verify::DeviceRecord;

fuzz_target!(|input: &[u8]| {
    thread_local! {
        static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    }
    WORLD.with_borrow_mut(|slot| {
        // A store that grows would make each input depend on many before it.
        if slot
            .as_ref()
            .is_some_and(|world| taken(&world.gateway.counters()) > MANY)
        {
            *slot = None;
        }
        let world = slot.get_or_insert_with(World::new);
        assert_eq!(world.talk(input, STRANGER), 0);
        world.talk(input, REGISTERED);
        if let Some((request, records)) = signed(input, &world.key) {
            let before = taken(&world.gateway.counters());
            if world.talk(&request, REGISTERED) > 0 {
                assert_eq!(taken(&world.gateway.counters()) - before, records);
            }
        }
    });
});

/// A gateway that has just been set up, and the key of its one device.
struct World {
    runtime: Runtime,
    gateway: Gateway,
    store: Store,
    key: SigningKey,
    _directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let tls = Tls::load(&certificates(directory.path())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/keys.json")).unwrap();
        let hex = file["keys"]["device"]["private"].as_str().unwrap();
        let key = SigningKey::from_slice(&base16ct::lower::decode_vec(hex).unwrap()).unwrap();
        let record = DeviceRecord {
            device: "pi-01".parse().unwrap(),
            certificate: KeyState::Active,
            keys: vec![TrustedKey {
                key: *key.verifying_key(),
                state: KeyState::Active,
            }],
            registered_at: Timestamp::from_millis(0).unwrap(),
        };
        let uri = StoreUri::File(directory.path().join("store.db"));
        let store = runtime.block_on(async {
            let store = Store::create(&uri, Options::default()).await.unwrap();
            assert!(store.register(REGISTERED, &record).await.unwrap());
            store
        });
        let gateway = Gateway::new(store.clone(), tls, Limits::default());
        Self {
            runtime,
            gateway,
            store,
            key,
            _directory: directory,
        }
    }

    /// Sends this, reads the answers to their end, and gives how many were 200.
    fn talk(&self, bytes: &[u8], principal: &str) -> u64 {
        let before = self.gateway.counters();
        let answers = self.runtime.block_on(async {
            let (mut device, stream) = duplex(64 << 10);
            let serving = serve_proven(&self.gateway, stream, principal.to_owned());
            let talking = async {
                let (mut answers, mut requests) = tokio::io::split(&mut device);
                let sending = async {
                    // The gateway may have had enough before all is sent.
                    let _ = requests.write_all(bytes).await;
                    let _ = requests.shutdown().await;
                };
                let mut read = Vec::new();
                let (read_all, ()) = tokio::join!(answers.read_to_end(&mut read), sending);
                read_all.unwrap();
                read
            };
            tokio::join!(serving, talking).1
        });
        let after = self.gateway.counters();
        assert_eq!((after.store_failures, after.connections_open), (0, 0));
        let ok = statuses(&answers).remove(&200).unwrap_or_default();
        assert!(
            ok <= taken(&after) - taken(&before),
            "200 for what was not taken"
        );
        if ok > 0 {
            self.runtime.block_on(self.hold(&after));
        }
        ok
    }

    /// What was counted as taken is in the store.
    async fn hold(&self, counters: &Counters) {
        let always = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut stored = 0;
        let mut readings = self.store.readings(&"pi-01".parse().unwrap(), always);
        while let Some(reading) = readings.next().await {
            reading
                .unwrap()
                .envelope()
                .unwrap()
                .verify(self.key.verifying_key())
                .unwrap();
            stored += 1;
        }
        assert_eq!(stored, counters.stored);
        let mut held = 0;
        let mut quarantine = self.store.quarantine();
        while let Some(message) = quarantine.next().await {
            held += message.unwrap().times;
        }
        let quarantined: u64 = counters.quarantined.values().sum();
        assert_eq!(held + counters.over_budget, quarantined);
    }
}

/// How often each status stands in these answers; none but those that are documented.
fn statuses(mut answers: &[u8]) -> BTreeMap<u16, u64> {
    let mut statuses = BTreeMap::new();
    while let Some(at) = answers
        .windows(9)
        .position(|bytes| bytes.starts_with(b"HTTP/1."))
    {
        let status = str::from_utf8(&answers[at + 9..at + 12])
            .unwrap()
            .parse()
            .unwrap();
        assert!(DOCUMENTED.contains(&status), "{status}");
        *statuses.entry(status).or_default() += 1;
        answers = &answers[at + 12..];
    }
    statuses
}

/// The same request with each record signed by the device, if its body is a
/// message; and how many records there are.
fn signed(request: &[u8], key: &SigningKey) -> Option<(Vec<u8>, u64)> {
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (&request[..end], &request[end + 4..]);
    let mut message = Message::parse(body).ok()?;
    for entry in &mut message.entries {
        let signature: Signature = key.sign(&entry.encrypted_data);
        entry.signature = signature.to_bytes().into();
    }
    let body = message
        .to_json()
        .ok()
        .filter(|body| body.len() <= MAX_MESSAGE)?;
    // An empty line ends the head, with or without a carriage return.
    let kept = |line: &&[u8]| {
        let line = line.to_ascii_lowercase();
        !line.is_empty()
            && !line.starts_with(b"content-length")
            && !line.starts_with(b"transfer-encoding")
    };
    let lines = head.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut request = lines.filter(kept).collect::<Vec<_>>().join(&b"\r\n"[..]);
    request.extend(format!("\r\ncontent-length: {}\r\n\r\n", body.len()).bytes());
    request.extend(body);
    Some((request, message.entries.len() as u64))
}

fn taken(counters: &Counters) -> u64 {
    counters.stored + counters.duplicates + counters.quarantined.values().sum::<u64>()
}

/// A gateway has certificates, though nobody asks for them here.
fn certificates(directory: &Path) -> TlsFiles {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let files = TlsFiles {
        certificate: directory.join("gateway.crt.pem"),
        key: directory.join("gateway.key.pem"),
        device_ca: directory.join("device-ca.crt.pem"),
    };
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&files.device_ca, authority.pem()).unwrap();
    files
}

const REGISTERED: &str = "registered";
const STRANGER: &str = "stranger";

/// The gateway's own, and those of hyper: to a client that asks first, and to a
/// head that it can't read.
const DOCUMENTED: [u16; 9] = [100, 200, 400, 403, 404, 405, 413, 414, 431];

/// So many records may be in a store.
const MANY: u64 = 200;
