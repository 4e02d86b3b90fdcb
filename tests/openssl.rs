//! What the openssl program, which knows nothing of this project, confirms:
//! signatures of records, from the JSON alone, and TLS with the device's key.
//! (Requests and certificates are put to it in `zk-hsm` and `zk-provision`.)
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread;

use serde_json::Value;
use zk_envelope::pack;
use zk_publish::{Client, Target};
use zk_tests::{PATIENT, System};

#[tokio::test]
async fn a_record_is_verified_from_its_json_alone() {
    let system = System::new().await;
    let path = |name: &str| system.dir.path().join(name);
    let certificate = system.device_file("device.crt.pem");
    let key = openssl(&["x509", "-noout", "-pubkey", "-in", text(&certificate)]);
    fs::write(path("key"), key.stdout).unwrap();
    let verified = |name: &str, data: &str, signature: &str| {
        fs::write(path("data"), bytes(data)).unwrap();
        fs::write(path("signature"), der(&bytes(signature))).unwrap();
        let (key, signature) = (path("key"), path("signature"));
        let arguments = ["dgst", "-sha256", "-verify", text(&key), "-signature"];
        let output = openssl(&[&arguments[..], &[text(&signature), text(&path("data"))]].concat());
        match &output.stdout[..] {
            b"Verified OK\n" => true,
            b"Verification failure\n" => false,
            _ => panic!("{name}: {output:?}"),
        }
    };

    // A few, and then until one of the two numbers has lost a byte of zeros.
    let mut last: Option<String> = None;
    for (number, record) in system.sealed().enumerate() {
        let message = pack(&[record], 0).unwrap().0;
        let message: Value = serde_json::from_slice(&message).unwrap();
        let member = |name: &str| message["data"][name].as_str().unwrap().to_owned();
        let (data, signature) = (member("encryptedData"), member("signature"));
        let short = signature.starts_with("00") || signature[64..].starts_with("00");
        if number < 4 || short {
            assert!(verified("as it is", &data, &signature), "{message}");

            let digit = if data.ends_with('0') { "1" } else { "0" };
            let changed = format!("{}{digit}", &data[..data.len() - 1]);
            assert!(!verified("another bit", &changed, &signature));
            assert!(!verified(
                "one byte less",
                &data[..data.len() - 2],
                &signature
            ));
            let swapped = format!("{}{}", &signature[64..], &signature[..64]);
            assert!(!verified("halves swapped", &data, &swapped));
            if let Some(other) = &last {
                assert!(!verified("of another record", &data, other));
            }
            if number >= 4 {
                break;
            }
        }
        last = Some(signature);
    }
}

#[tokio::test]
async fn the_server_sees_certificate_and_protocol_in_both_versions_of_tls() {
    let system = System::new().await;
    for (version, cipher) in [
        ("-tls1_2", "CIPHER is ECDHE-ECDSA-"),
        ("-tls1_3", "CIPHER is TLS_"),
    ] {
        for offered in [&[][..], &[&b"x-amzn-http-ca"[..]]] {
            let (hsm, tls) = system.client(offered);
            let before = hsm.counters().signatures;
            let mut server = Server::start(&system, version);
            let target = Target::new(&format!("localhost:{}", server.address.port()), "t");
            let mut client = Client::new(target.unwrap(), tls, PATIENT);
            let publishing = thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(client.publish("{\"a\":1}\n"))
            });

            let seen = server.until("{\"a\":1}");
            server.say("HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"traceId\":\"x\"}\n");

            let delivered = publishing.join().unwrap().unwrap();
            assert_eq!(delivered.trace_id.as_deref(), Some("x"));
            let certificate = fs::read_to_string(system.device_file("device.crt.pem")).unwrap();
            let signed = "Peer signing digest: SHA256\nPeer signature type: ECDSA\n";
            let request = "POST /topics/t?qos=1 HTTP/1.1\r\n";
            for part in [&certificate, signed, cipher, request] {
                assert!(seen.contains(part), "no {part:?} in {seen}");
            }
            let protocols: Vec<_> = seen.lines().filter(|l| l.starts_with("ALPN")).collect();
            if offered.is_empty() {
                assert!(protocols.is_empty(), "{protocols:?}");
            } else {
                let expected = [
                    "ALPN protocols advertised by the client: x-amzn-http-ca",
                    "ALPN protocols selected: x-amzn-http-ca",
                ];
                assert_eq!(protocols, expected);
            }
            assert_eq!(hsm.counters().signatures, before + 1);
        }
    }
}

/// `openssl s_server` that insists on a certificate of the device CA; killed
/// when dropped.
struct Server {
    child: Child,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Server {
    fn start(system: &System, version: &str) -> Self {
        let file = |name: &str| system.gateway_file(name);
        let mut child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-naccept",
                "1",
                version,
            ])
            .args(["-Verify", "1", "-verify_return_error", "-no-CApath"])
            .args(["-alpn", "x-amzn-http-ca"])
            .arg("-CAfile")
            .arg(file("device-ca.crt.pem"))
            .arg("-cert")
            .arg(file("gateway.crt.pem"))
            .arg("-key")
            .arg(file("gateway.key.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect(MISSING);
        let stdin = child.stdin.take().unwrap();
        let mut server = Self {
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
            stdin,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let said = server.until("ACCEPT ");
        let (_, address) = said.trim_end().rsplit_once(' ').unwrap();
        server.address = address.parse().unwrap();
        server
    }

    /// What it says up to the line that starts so.
    fn until(&mut self, start: &str) -> String {
        let mut said = String::new();
        loop {
            let before = said.len();
            let read = self.lines.read_line(&mut said).unwrap();
            assert_ne!(read, 0, "it ended before {start:?}: {said}");
            if said[before..].starts_with(start) {
                return said;
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        self.stdin.flush().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn openssl(arguments: &[&str]) -> Output {
    let mut command = Command::new("openssl");
    command.args(arguments).output().expect(MISSING)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// `SEQUENCE { r INTEGER, s INTEGER }` of r ‖ s.
fn der(signature: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    for number in signature.chunks(32) {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        let number = &number[zeros..];
        // what begins with a one would be negative
        let sign = usize::from(number[0] >> 7);
        inner.extend([0x02, (number.len() + sign) as u8]);
        inner.extend(&[0; 1][..sign]);
        inner.extend(number);
    }
    [&[0x30, inner.len() as u8], &inner[..]].concat()
}

const MISSING: &str = "this test needs the openssl program: apt-get install openssl";
