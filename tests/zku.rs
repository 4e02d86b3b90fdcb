//! The vendor's Python client against the simulated chip: what it takes for a
//! Zymkey is one, as far as anybody can tell without the hardware.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::DecodePublicKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zk_hsm_sim::{Device, Fault, Model, Rule, Settings, Unlock};

/// The one sample of a real device: the vendor's page on verifying signatures.
const SAMPLE: (&str, &str, &str) = (
    "6cd0b8b14963f6712877eb50a3f5afa9c0e39483e560f58eb795e634df53f399\
     ba370dbceb71ea87cba5e2fca4f23ef73b8e683a9946758829f76521e7a19e5a",
    "hello world",
    "28953e99dcc7f7ebf2771acae9e996e45997a212f7deba04a5974d1db6651fc8\
     c50f11a5e5ad24ef25bdf0dafbdb736513f618184505f469f126c7dd4557cade",
);

#[test]
fn the_client_starts_and_reads_what_a_device_is() {
    for (model, name) in [
        (Model::Zymkey4i, "Zymkey 4i"),
        (Model::Hsm4, "HSM4"),
        (Model::Hsm6, "HSM6"),
    ] {
        let room = Room::new(model);
        let is = room.zku("starts", &Value::Null);
        let model = format!("{name} SIMULATOR (zk-hsm-sim)");
        assert_eq!(is["model"], model);
        for string in ["serial", "firmware"] {
            assert!(is[string].as_str().unwrap().starts_with("SIMULATOR-"));
        }
        // The same device in another process.
        assert_eq!(room.zku("starts", &Value::Null), is);
    }
}

#[test]
fn a_client_that_gets_no_context_ends_well() {
    let room = Room::new(Model::Zymkey4i);
    room.faults(Rule::new("open", Fault::Code(-19)));
    assert_eq!(room.zku("starts", &Value::Null), Value::Null);
}

#[test]
fn rust_verifies_what_the_client_signs() {
    for (model, slots) in [(Model::Zymkey4i, 3), (Model::Hsm4, 3), (Model::Hsm6, 12)] {
        let room = Room::new(model);
        let message = b"a reading, with \0 and \xff";
        let slots: Vec<u32> = (0..slots).collect();
        let given = json!({ "message": hex(message), "slots": slots });
        let signed = room.zku("signs", &given);
        assert_eq!(signed.as_array().unwrap().len(), slots.len());
        for signed in signed.as_array().unwrap() {
            let key = verifying_key(&signed["key"]);
            let signature = Signature::from_slice(&unhex(&signed["signature"])).unwrap();
            key.verify(message, &signature).unwrap();
            let pem = signed["pem"].as_str().unwrap();
            assert_eq!(VerifyingKey::from_public_key_pem(pem).unwrap(), key);
            let id = u8::try_from(signed["recoveryId"].as_u64().unwrap()).unwrap();
            let id = RecoveryId::from_byte(id).unwrap();
            let digest = Sha256::digest(message);
            let recovered = VerifyingKey::recover_from_prehash(&digest, &signature, id);
            assert_eq!(recovered.unwrap(), key);
        }
    }
}

#[test]
fn the_client_verifies_what_rust_signs() {
    let room = Room::new(Model::Hsm6);
    let mut cases = Vec::new();
    let mut expected = Vec::new();
    for n in 0..8_u8 {
        let (key, message) = (SigningKey::generate(), [n; 100]);
        let signature: Signature = key.sign(&message);
        let mut bytes = signature.to_bytes();
        let is_good = n % 2 == 0;
        bytes[usize::from(n)] ^= u8::from(!is_good);
        cases.push(json!({
            "key": public_hex(key.verifying_key()),
            "message": hex(&message),
            "signature": hex(&bytes),
        }));
        expected.push(is_good);
    }
    assert_eq!(room.zku("verifies", &Value::from(cases)), json!(expected));
}

#[test]
fn the_vendors_sample_is_good_to_both() {
    let (key, message, signature) = SAMPLE;
    let digest = Sha256::digest(message);
    let parsed = Signature::from_slice(&unhex(&json!(signature))).unwrap();
    let verifying_key = verifying_key(&json!(key));
    verifying_key.verify_prehash(&digest, &parsed).unwrap();
    // Its s is high, as half of a chip's are.
    assert_ne!(parsed.normalize_s(), parsed);
    let room = Room::new(Model::Hsm6);
    let case = |message: &str, signature: &Signature| {
        json!({
            "key": key,
            "message": hex(message.as_bytes()),
            "signature": hex(&signature.to_bytes()),
        })
    };
    let cases = json!([
        case(message, &parsed),
        case("hello, world", &parsed),
        // with n - s it is the other good signature
        case(message, &parsed.normalize_s()),
    ]);
    assert_eq!(room.zku("verifies", &cases), json!([true, false, true]));
}

#[test]
fn the_client_locks_and_unlocks() {
    let (room, other) = (Room::new(Model::Zymkey4i), Room::new(Model::Zymkey4i));
    let locked = room.zku("locks", &Value::Null);
    let data: Vec<u8> = (0..=255).collect();
    assert_eq!(room.zku("unlocks", &locked), json!(hex(&data)));
    assert_eq!(other.zku("unlocks", &locked), "VerificationError");
}

/// Why the client's convention is the default: under the header's it takes good
/// data for bad.
#[test]
fn the_client_contradicts_the_header() {
    let mut settings = Settings::from(Model::Zymkey4i);
    settings.unlock = Unlock::Header;
    let room = Room::new(settings);
    let plain = json!("00".repeat(64));
    // What was never locked is an error of its own,
    assert_eq!(room.zku("unlocks", &plain), "AssertionError");
    // but what was locked is "not verified".
    let locked = room.zku("locked", &json!("616263"));
    assert_eq!(room.zku("unlocks", &locked), "VerificationError");
}

#[test]
fn the_client_has_time_random_bytes_lamp_and_perimeter() {
    let room = Room::new(Model::Zymkey4i);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now().as_secs();
    room.device.breach(0, 1_795_432_844).unwrap();
    let minor = room.zku("minor", &Value::Null);
    let span = before..=now().as_secs();
    assert!(span.contains(&minor["time"].as_u64().unwrap()), "{minor}");
    assert!(span.contains(&minor["precise"].as_u64().unwrap()));
    assert_eq!(minor["perimeter"], json!([1_795_432_844, 0]));
}

#[test]
fn the_client_sees_what_each_model_has() {
    for model in [Model::Zymkey4i, Model::Hsm4] {
        Room::new(model).zku("lacks", &Value::Null);
    }
    let measured = Room::new(Model::Hsm6).zku("slots", &Value::Null);
    assert_eq!(measured.as_array().unwrap().len(), 2);
}

#[test]
fn the_client_raises_what_a_fault_returns() {
    let room = Room::new(Model::Zymkey4i);
    room.faults(Rule::new("sign", Fault::Code(-110)).after(1).count(2));
    let codes = room.zku("sign_codes", &json!(5));
    assert_eq!(codes, json!([0, -110, -110, 0, 0]));
}

/// A device of its own, in a directory that ends with the test.
struct Room {
    _dir: TempDir,
    device: Device,
}

impl Room {
    fn new(settings: impl Into<Settings>) -> Self {
        let dir = TempDir::new().unwrap();
        let device = Device::create(dir.path().join("device"), settings).unwrap();
        Self { _dir: dir, device }
    }

    fn faults(&self, rule: Rule) {
        self.device.set_faults(&rule.into()).unwrap();
    }

    /// What a case of `zku.py` gives.
    fn zku(&self, case: &str, given: &Value) -> Value {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let environment = tests.parent().unwrap().join("target/venv");
        let installed = Command::new(environment.join("bin/python"))
            .args(["-c", "import importlib.metadata as m; m.version('zku')"])
            .stderr(Stdio::null())
            .status();
        assert!(
            installed.is_ok_and(|status| status.success()),
            "zku is not in {0}; `cargo xtask test python` installs it, or: cd {1} && \
             python3 -m venv target/venv && \
             target/venv/bin/pip install --no-deps -r tests/zku.txt",
            environment.display(),
            tests.parent().unwrap().display(),
        );
        let mut child = Command::new(environment.join("bin/python"))
            .arg(tests.join("zku.py"))
            .arg(self.device.module_path())
            .arg(case)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(given.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {error}");
        // Also what Python only prints, as it does of errors while it ends.
        let own = |line: &str| line.starts_with("zk-hsm-sim: ");
        assert!(error.lines().all(own), "{case}: {error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap().as_bytes();
    let digits = text.chunks(2);
    digits
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

/// From X and Y.
fn verifying_key(text: &Value) -> VerifyingKey {
    VerifyingKey::from_sec1_bytes(&[&[4], &unhex(text)[..]].concat()).unwrap()
}

fn public_hex(key: &VerifyingKey) -> String {
    hex(&key.to_sec1_point(false).as_bytes()[1..])
}
