//! Rust and Python against each other. `tests/envelope.py` was written from
//! `docs/envelope-format.md` alone, so where the two agree, the page is right.
//! The `openssl` command is a third opinion on key files, and python-ecdsa, which
//! the original project used, one on signatures.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use p256::SecretKey;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use tempfile::TempDir;
use zk_envelope::{
    BootId, ClockBefore, ClockQuality, Content, DeviceEvent, Envelope, Heartbeat, KeyId,
    LossReason, LossReceipt, MAX_MESSAGE, Message, Moment, OwnerKey, PreviousStream, Report,
    Sealer, SequenceRange, StreamId, TimeAnchor, Timestamp, pack,
};
use zk_tests::System;

#[test]
fn python_judges_every_vector_the_same_way() {
    let judged = success(python("make_vectors.py").arg("--judge"));
    let judged: BTreeMap<String, Value> = serde_json::from_slice(&judged).unwrap();
    let mut expected = BTreeMap::new();
    for (name, bytes) in files(&tests().join("vectors")) {
        if name != "keys.json" {
            let vector: Value = serde_json::from_slice(&bytes).unwrap();
            let name = name.strip_suffix(".json").unwrap();
            expected.insert(name.to_owned(), vector["expect"].clone());
        }
    }
    assert!(expected.len() >= 45);
    assert!(judged.keys().eq(expected.keys()));
    for (name, expected) in &expected {
        assert_eq!(judged[name], *expected, "{name}");
    }
}

#[test]
fn the_vectors_are_those_that_python_makes() {
    let made = TempDir::new().unwrap();
    success(python("make_vectors.py").arg(made.path()));
    let (made, committed) = (files(made.path()), files(&tests().join("vectors")));
    assert!(made.keys().eq(committed.keys()));
    for (name, bytes) in &made {
        assert!(*bytes == committed[name], "{name} is made otherwise");
    }
}

#[test]
fn hpke_by_hand_is_hpke() {
    success(python("-c").env("PYTHONPATH", tests()).arg(
        r"
import os
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec
from envelope import CURVE, hpke_open, hpke_seal

suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
for length in (0, 1, 200):
    owner, ephemeral = ec.generate_private_key(CURVE), ec.generate_private_key(CURVE)
    info, data_key = os.urandom(length), os.urandom(32)
    ours = hpke_seal(owner.public_key(), info, data_key, ephemeral)
    assert suite.decrypt(ours, owner, info) == data_key
    theirs = suite.encrypt(data_key, owner.public_key(), info)
    assert hpke_open(theirs[:65], owner, info, theirs[65:]) == data_key
",
    ));
}

#[test]
fn python_opens_what_rust_seals() {
    let room = Room::new();
    for owners in 1..=8 {
        let records = room.sealed_by_rust(owners);
        let (batch, taken) = pack(&records, MAX_MESSAGE).unwrap();
        assert_eq!(taken, records.len());
        let expected: Vec<_> = records.iter().map(|r| room.opened_by_rust(r)).collect();
        for owner in [0, owners - 1] {
            assert_eq!(room.opened_by_python(&batch, owner), expected);
        }
        let (single, _) = pack(&records, 0).unwrap();
        assert_eq!(room.opened_by_python(&single, 0), expected[..1]);
    }
}

#[test]
fn rust_opens_what_python_seals() {
    let room = Room::new();
    let kinds = [
        "data",
        "loss-receipt",
        "time-anchor",
        "device-event",
        "heartbeat",
    ];
    let clocks = ["unknown", "free-running", "synchronised", "hardware-clock"];
    let mut records = Vec::new();
    let mut expected = Vec::new();
    for owners in 1..=8_usize {
        let (kind, clock) = (kinds[owners % 5], clocks[owners % 4]);
        let body = format!("kind {kind} for {owners}");
        fs::write(room.path("body"), &body).unwrap();
        let public = |owner| room.path(&format!("owner-{owner}.pub.pem"));
        let message = success(
            python("envelope.py")
                .args(["seal", "--device=pi-01", "--content-type=text/plain"])
                .arg("--signing-key")
                .arg(room.path("device.pem"))
                .args((0..owners).flat_map(|owner| ["--owner".into(), public(owner)]))
                .args(["--kind", kind, "--clock", clock])
                .args(["--stream", &"ab".repeat(16), "--boot", &"cd".repeat(16)])
                .args(["--sequence", &(u64::MAX - owners as u64).to_string()])
                .args(["--monotonic-ms=81000", "--time-ms=1795432844123"])
                .stdin(File::open(room.path("body")).unwrap()),
        );
        let message = Message::parse(&message).unwrap();
        assert_eq!(message.device_id, "pi-01");
        assert_eq!(message.entries[0].timestamp, "2026-11-23T11:20:44.123Z");
        let record = message.entries[0].envelope().unwrap().to_bytes();
        assert_eq!(
            Envelope::from_bytes(&record)
                .unwrap()
                .unverified_header()
                .recipients
                .len(),
            owners
        );
        expected.push(json!({
            "kind": kind,
            "deviceId": "pi-01",
            "stream": "ab".repeat(16),
            "sequence": u64::MAX - owners as u64,
            "boot": "cd".repeat(16),
            "monotonicMs": 81_000,
            "timestamp": "2026-11-23T11:20:44.123Z",
            "clock": clock,
            "signer": KeyId::of(room.device.verifying_key()),
            "contentType": "text/plain",
            "body": body,
        }));
        assert_eq!(room.opened_by_rust(&record), *expected.last().unwrap());
        records.push(record);
    }
    // Rust packs what Python sealed, and Python opens that.
    let (batch, _) = pack(&records, MAX_MESSAGE).unwrap();
    assert_eq!(room.opened_by_python(&batch, 0), expected);
}

#[test]
fn python_refuses_with_one_reason_and_status_1() {
    let room = Room::new();
    let message = pack(&room.sealed_by_rust(1)[..1], 0).unwrap().0;
    let cut = &message[..100];
    let cases = [
        (
            &message[..],
            "owner-0.pub.pem",
            0,
            "record 1: signer-mismatch: ",
        ),
        (&message, "device.pub.pem", 1, "record 1: not-a-recipient: "),
        (cut, "device.pub.pem", 0, "malformed: "),
        (&message, "owner-0.pem", 0, "owner-0.pem: "),
    ];
    for (message, device_key, owner, reason) in cases {
        let output = room.python_open(message, device_key, owner);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(output.stdout.is_empty());
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("Traceback"), "{error}");
    }
}

#[test]
fn openssl_and_rust_read_each_others_key_files() {
    let room = Room::new();
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        let command = command.args(arguments).current_dir(room.dir.path());
        success(command.env("PASSPHRASE", PASSPHRASE))
    };
    let ours = ["-in", "owner-0.pem", "-passin", "env:PASSPHRASE"];
    let public = room.owners[0].public_key();
    assert_eq!(
        openssl(&[&["pkey", "-pubout"], &ours[..]].concat()),
        public.to_pem().as_bytes()
    );
    let plain = openssl(&[&["pkcs8"], &ours[..]].concat());
    assert!(plain.starts_with(b"-----BEGIN PRIVATE KEY-----"));

    for how in [&[][..], &["-scrypt"], &["-v2", "aes-128-cbc"]] {
        let write = ["pkcs8", "-topk8", "-out", "theirs.pem"];
        let write = [&write, &ours[..], &["-passout", "env:PASSPHRASE"], how];
        openssl(&write.concat());
        let read = OwnerKey::read(&room.path("theirs.pem"), PASSPHRASE).unwrap();
        assert_eq!(read.public_key(), public, "{how:?}");
    }
}

/// The original project's Lambda function took a message when python-ecdsa
/// verified its 64 bytes of signature over the bytes of `encryptedData`.
#[tokio::test]
async fn python_ecdsa_takes_what_we_take_and_refuses_what_we_refuse() {
    let (system, other) = (System::new().await, System::new().await);
    let good: Vec<_> = system.sealed().take(8).collect();
    let message = |record: &[u8]| {
        let (data, signature) = record.split_at(record.len() - 64);
        let data = json!({"encryptedData": hex(data), "signature": hex(signature)});
        let time = "2026-11-23T11:20:44.123Z";
        json!({"deviceId": "pi-01", "timestamp": time, "data": data}).to_string()
    };

    let record = &good[0];
    let (data, signature) = record.split_at(record.len() - 64);
    let (r, s) = Signature::from_slice(signature).unwrap().split_scalars();
    let with = |numbers: &[u8]| [data, numbers].concat();
    // Both values of s are right.
    let negated = Signature::from_scalars(r, -s).unwrap().to_bytes();
    let mut records = good.clone();
    records.push(with(&negated));
    let right = records.len();
    // A bit of each byte of the signature and of every seventh of the data.
    let places = (0..data.len()).step_by(7).chain(data.len()..record.len());
    records.extend(places.map(|at| {
        let mut changed = record.clone();
        changed[at] ^= 1 << (at % 8);
        changed
    }));
    let (r, s) = signature.split_at(32);
    records.extend([
        with(&good[1][data.len()..]),
        with(&[s, r].concat()),
        with(&[0; 64]),
        with(&[0xff; 64]),
        other.sealed().next().unwrap(),
    ]);

    let messages: Vec<_> = records.iter().map(|record| message(record)).collect();
    let path = system.dir.path().join("messages");
    fs::write(&path, messages.join("\n")).unwrap();
    for (side, expected) in [(&system, right), (&other, 1)] {
        let (hsm, _) = side.client(&[]);
        let ours = |message: &String| {
            let message = Message::parse(message.as_bytes()).unwrap();
            let envelope = message.entries[0].envelope();
            match envelope.and_then(|envelope| envelope.verify(hsm.public_key())) {
                Ok(_) => "good",
                Err(_) => "bad",
            }
        };
        let ours: Vec<_> = messages.iter().map(ours).collect();
        let theirs = success(
            python("lambda_rule.py")
                .arg(side.device_file("device.crt.pem"))
                .stdin(File::open(&path).unwrap()),
        );
        let theirs = String::from_utf8(theirs).unwrap();
        assert_eq!(theirs.lines().collect::<Vec<_>>(), ours);
        let good = ours.iter().filter(|verdict| **verdict == "good").count();
        assert_eq!(good, expected);
    }
}

/// A device and eight owners, and a directory with their key files.
struct Room {
    dir: TempDir,
    device: SigningKey,
    owners: Vec<OwnerKey>,
}

impl Room {
    /// `device.pem` is as it comes, `owner-0.pem` to `owner-7.pem` have the
    /// passphrase in `passphrase`; the public halves are in `….pub.pem`.
    fn new() -> Self {
        let device = SecretKey::generate();
        let room = Self {
            dir: TempDir::new().unwrap(),
            device: SigningKey::from(&device),
            owners: (0..8).map(|_| OwnerKey::generate().unwrap()).collect(),
        };
        let write = |name: &str, text: &str| fs::write(room.path(name), text).unwrap();
        write("device.pem", &device.to_pkcs8_pem(LineEnding::LF).unwrap());
        let public = device.public_key().to_public_key_pem(LineEnding::LF);
        write("device.pub.pem", &public.unwrap());
        write("passphrase", &format!("{PASSPHRASE}\n"));
        for (number, owner) in room.owners.iter().enumerate() {
            let path = room.path(&format!("owner-{number}.pem"));
            owner.write_new(&path, PASSPHRASE).unwrap();
            let public = format!("owner-{number}.pub.pem");
            write(&public, &owner.public_key().to_pem());
        }
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sealed records of every kind for the first so many owners.
    fn sealed_by_rust(&self, owners: usize) -> Vec<Vec<u8>> {
        let stream = StreamId([0x51; 16]);
        let time = "2026-11-23T11:20:44.123Z".parse::<Timestamp>().unwrap();
        let range = SequenceRange {
            stream,
            first: 41,
            last: 57,
        };
        let lost = |reason, range| {
            Report::LossReceipt(LossReceipt {
                reason,
                records: 17,
                range,
                noticed_at: time,
            })
        };
        let anchor = TimeAnchor {
            before: Some(ClockBefore {
                time: Timestamp::from_millis(62_345).unwrap(),
                clock: ClockQuality::Unknown,
            }),
            error_ms: Some(16),
        };
        let previous = PreviousStream { stream, last: 57 };
        let heartbeat = Heartbeat {
            interval_ms: 300_000,
            waiting: 0,
            waiting_bytes: 0,
            sensors: 3,
        };
        let reports = [
            lost(LossReason::Dropped, Some(range)),
            lost(LossReason::Rejected, None),
            Report::TimeAnchor(anchor),
            Report::DeviceEvent(DeviceEvent::StreamStarted {
                previous: Some(previous),
            }),
            Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None }),
            Report::Heartbeat(heartbeat),
        ];
        let data = |content_type, body| Content::Data { content_type, body };
        let contents = [
            data("application/json", &br#"{"readings":[]}"#[..]),
            data("text/plain", b""),
            data("application/octet-stream", b"\xff\x00\x10\n"),
        ];
        let contents = contents
            .into_iter()
            .chain(reports.iter().map(Content::Report));

        let public: Vec<_> = self.owners[..owners]
            .iter()
            .map(|owner| owner.public_key().clone())
            .collect();
        let device = "pi-01".parse().unwrap();
        let mut sealer = Sealer::new(device, stream, self.device.verifying_key(), &public).unwrap();
        let moment = Moment {
            boot: BootId([0xb0; 16]),
            since_boot_ms: u64::MAX,
            time,
            clock: ClockQuality::HardwareClock,
        };
        contents
            .zip(1..)
            .map(|(content, sequence)| {
                let sealed = sealer.seal(&self.device, &moment, sequence, content);
                sealed.unwrap().to_bytes()
            })
            .collect()
    }

    /// What Rust reads in a sealed record as each of its owners, in the shape
    /// of a line of `envelope.py open`.
    fn opened_by_rust(&self, record: &[u8]) -> Value {
        let envelope = Envelope::from_bytes(record).unwrap();
        let verified = envelope.verify(self.device.verifying_key()).unwrap();
        let header = verified.header();
        let owners = &self.owners[..header.recipients.len()];
        let mut lines = owners.iter().map(|owner| {
            let opened = verified.open(owner).unwrap();
            let body = opened.body();
            let (name, body) = str::from_utf8(body)
                .map_or_else(|_| ("bodyHex", hex(body)), |text| ("body", text.to_owned()));
            json!({
                "kind": header.kind.to_string(),
                "deviceId": header.device,
                "stream": header.stream,
                "sequence": header.sequence,
                "boot": header.boot,
                "monotonicMs": header.since_boot_ms,
                "timestamp": header.time,
                "clock": header.clock,
                "signer": header.signer,
                "contentType": opened.content_type(),
                name: body,
            })
        });
        let first = lines.next().unwrap();
        assert!(lines.all(|line| line == first));
        first
    }

    fn opened_by_python(&self, message: &[u8], owner: usize) -> Vec<Value> {
        let output = self.python_open(message, "device.pub.pem", owner);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        let lines = String::from_utf8(output.stdout).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn python_open(&self, message: &[u8], device_key: &str, owner: usize) -> Output {
        fs::write(self.path("message"), message).unwrap();
        python("envelope.py")
            .args(["open", "--passphrase-file", "passphrase"])
            .args(["--device-key", device_key])
            .args(["--owner-key", &format!("owner-{owner}.pem")])
            .current_dir(self.dir.path())
            .stdin(File::open(self.path("message")).unwrap())
            .output()
            .unwrap()
    }
}

/// Python, with a program of this directory or `-c`.
fn python(program: &str) -> Command {
    let workspace = tests().parent().unwrap();
    let python = workspace.join("target/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing; `cargo xtask test` installs it, or: cd {} && \
         python3 -m venv target/venv && target/venv/bin/pip install -r tests/requirements.txt",
        python.display(),
        workspace.display(),
    );
    let mut command = Command::new(python);
    // no compiled files beside the sources
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    if program == "-c" {
        command.arg(program);
    } else {
        command.arg(tests().join(program));
    }
    command
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What it wrote, if it succeeded.
fn success(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output.stdout
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|file| {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            (name, fs::read(file.path()).unwrap())
        })
        .collect()
}

fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const PASSPHRASE: &str = "a passphrase, with blanks and umlauts: äöü";
