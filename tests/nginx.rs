//! nginx with client certificates takes what the publisher sends with a key
//! in an HSM, over TLS 1.2 and 1.3, and resumes sessions where it is told to.
//!
//! nginx says what it made of a request in the trace id of its answer.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;

use rustls::{AlertDescription, ClientConfig};
use tempfile::TempDir;
use zk_publish::{Client, PublishError, Target};
use zk_tests::{PATIENT, System};

/// A version of TLS, and how a session of it can be resumed.
type Way = (&'static str, &'static str);

const TICKETS: &str = "ssl_session_cache none; ssl_session_tickets on;";
const CACHE: &str = "ssl_session_cache shared:sessions:1m; ssl_session_tickets off;";
const NEITHER: &str = "ssl_session_cache off; ssl_session_tickets off;";

/// An answer as AWS IoT gives it.
const ANSWER: &str = r#"return 200 '{"message":"OK","traceId":"$ssl_protocol $ssl_client_verify $ssl_client_fingerprint $ssl_session_reused request $connection_requests $request_method $request_uri $content_type $content_length alpn $ssl_alpn_protocol"}';"#;

#[tokio::test]
async fn it_takes_posts_and_knows_the_device_by_its_certificate() {
    let system = System::new().await;
    let nginx = Nginx::start(&system);
    let fingerprint = fingerprint(&system.device_file("device.crt.pem"));
    for version in ["TLSv1.2", "TLSv1.3"] {
        let (hsm, tls) = system.client(&[]);
        let before = hsm.counters().signatures;
        let mut client = nginx.client((version, NEITHER), &tls);
        // all on one connection
        for (number, message) in ["{}".to_owned(), "x".repeat(100_000), "{}".to_owned()]
            .iter()
            .enumerate()
        {
            let seen = client.publish(message.clone()).await.unwrap().trace_id;
            let expected = format!(
                "{version} SUCCESS {fingerprint} . request {} POST \
                 /topics/Zymkey%2Fpi-01?qos=1 application/json {} alpn ",
                number + 1,
                message.len()
            );
            assert_eq!(seen, Some(expected));
        }
        assert_eq!(client.connections(), 1);
        assert_eq!(hsm.counters().signatures, before + 1);
    }
}

#[tokio::test]
async fn sessions_resume_without_a_signature_where_the_server_lets_them() {
    let system = System::new().await;
    let nginx = Nginx::start(&system);
    for version in ["TLSv1.2", "TLSv1.3"] {
        for (how, resumes) in [(TICKETS, true), (CACHE, true), (NEITHER, false)] {
            let (hsm, tls) = system.client(&[]);
            let before = hsm.counters().signatures;
            let mut reused = Vec::new();
            for _ in 0..3 {
                // a new client makes a new connection
                let mut client = nginx.client((version, how), &tls);
                let seen = client.publish("{}").await.unwrap().trace_id.unwrap();
                let words: Vec<_> = seen.split(' ').collect();
                assert_eq!(words[..2], [version, "SUCCESS"]);
                reused.push(words[3].to_owned());
            }
            let signatures = hsm.counters().signatures - before;
            if resumes {
                assert_eq!(reused, [".", "r", "r"], "{version}, {how}");
                assert_eq!(signatures, 1, "{version}, {how}");
            } else {
                assert_eq!(reused, [".", ".", "."], "{version}, {how}");
                assert_eq!(signatures, 3, "{version}, {how}");
            }
        }
    }
}

#[tokio::test]
async fn it_refuses_who_has_no_certificate_or_another_authoritys() {
    let (system, other) = (System::new().await, System::new().await);
    let nginx = Nginx::start(&system);
    let nobody = ClientConfig::builder()
        .with_root_certificates(system.roots())
        .with_no_client_auth();
    let (_, foreigner) = other.client_of(&system, &[]);
    for version in ["TLSv1.2", "TLSv1.3"] {
        for tls in [&Arc::new(nobody.clone()), &foreigner] {
            let mut client = nginx.client((version, NEITHER), tls);
            let error = client.publish("{}").await.unwrap_err();
            let PublishError::Refused { answer } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(answer.status, 400);
        }
    }
}

/// nginx knows the names of HTTP and no other, and since 1.21.4 refuses who
/// offers none of them; so what AWS asks for on port 443 is put to OpenSSL.
#[tokio::test]
async fn it_has_no_name_for_the_protocol_of_aws() {
    let system = System::new().await;
    let nginx = Nginx::start(&system);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let publish = async |offered: &[&[u8]]| {
            let (_, tls) = system.client(offered);
            let mut client = nginx.client((version, NEITHER), &tls);
            client.publish("{}").await
        };
        let error = publish(&[b"x-amzn-http-ca"]).await.unwrap_err();
        let source = error.source().unwrap().to_string();
        let alert = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert_eq!(source, alert.to_string());

        let both = publish(&[b"x-amzn-http-ca", b"http/1.1"]).await.unwrap();
        assert!(both.trace_id.unwrap().ends_with(" alpn http/1.1"));
    }
}

/// nginx as a child, with files of its own; killed when dropped.
struct Nginx {
    child: Child,
    /// Kept so that it can write.
    _errors: BufReader<ChildStderr>,
    ports: Vec<(Way, u16)>,
    _dir: TempDir,
}

impl Nginx {
    /// With the files that zk-setup made for a gateway.
    fn start(system: &System) -> Self {
        let mut tries = (0..10).filter_map(|_| Self::try_start(system));
        tries.next().expect("free ports")
    }

    /// `None` if a port that was free has been taken meanwhile.
    fn try_start(system: &System) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mut servers = String::new();
        let mut ports = Vec::new();
        let mut free = Vec::new();
        for version in ["TLSv1.2", "TLSv1.3"] {
            for how in [TICKETS, CACHE, NEITHER] {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let port = listener.local_addr().unwrap().port();
                // held until all are found, so that each is another one
                free.push(listener);
                ports.push(((version, how), port));
                let listen = format!("listen 127.0.0.1:{port} ssl; ssl_protocols {version};");
                writeln!(servers, "server {{ {listen} {how} {ANSWER} }}").unwrap();
            }
        }
        drop(free);
        let mut temporary = String::new();
        for module in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(temporary, "{module}_temp_path {module};").unwrap();
        }
        let file = |name: &str| system.gateway_file(name);
        let config = format!(
            r#"
            daemon off;
            master_process off;
            pid nginx.pid;
            error_log stderr notice;
            events {{}}
            http {{
                access_log off;
                {temporary}
                ssl_certificate {certificate:?};
                ssl_certificate_key {key:?};
                ssl_client_certificate {devices:?};
                ssl_verify_client on;
                default_type application/json;
                {servers}
            }}
            "#,
            certificate = file("gateway.crt.pem"),
            key = file("gateway.key.pem"),
            devices = file("device-ca.crt.pem"),
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        // it may be where only root's PATH leads
        let path = std::env::var("PATH").unwrap() + ":/usr/sbin";
        let mut child = Command::new("nginx")
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(dir.path())
            .env("PATH", path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs the nginx program: apt-get install nginx");
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        // it says so once it listens
        let mut said = String::new();
        while !said.contains("event method") {
            if errors.read_line(&mut said).unwrap() == 0 {
                child.wait().unwrap();
                assert!(said.contains("already in use"), "nginx fails: {said}");
                return None;
            }
        }
        Some(Self {
            child,
            _errors: errors,
            ports,
            _dir: dir,
        })
    }

    fn client(&self, way: Way, tls: &Arc<ClientConfig>) -> Client {
        let (_, port) = self.ports.iter().find(|(has, _)| *has == way).unwrap();
        let target = Target::new(&format!("localhost:{port}"), "Zymkey/pi-01").unwrap();
        Client::new(target, Arc::clone(tls), PATIENT)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// SHA-1 in hex, as nginx writes it.
fn fingerprint(certificate: &Path) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha1", "-in"])
        .arg(certificate)
        .output()
        .expect("this test needs the openssl program: apt-get install openssl");
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, hex) = text.trim_end().split_once('=').unwrap();
    hex.replace(':', "").to_lowercase()
}
