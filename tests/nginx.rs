//! nginx with client certificates takes what the publisher sends with a key
//! in an HSM, over TLS 1.2 and 1.3, and resumes sessions where it is told to.
//!
//! nginx says what it made of a request in the trace id of its answer.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::{AlertDescription, ClientConfig};
use zk_publish::{Client, PublishError, Target};
use zk_tests::peers::{CACHE, NEITHER, Nginx, TICKETS, Way};
use zk_tests::{PATIENT, System};

/// An answer as AWS IoT gives it.
const ANSWER: &str = r#"{"message":"OK","traceId":"$ssl_protocol $ssl_client_verify $ssl_client_fingerprint $ssl_session_reused request $connection_requests $request_method $request_uri $content_type $content_length alpn $ssl_alpn_protocol"}"#;

#[tokio::test]
async fn it_takes_posts_and_knows_the_device_by_its_certificate() {
    let system = System::new().await;
    let nginx = start(&system);
    let fingerprint = fingerprint(&system.device_file("device.crt.pem"));
    for version in ["TLSv1.2", "TLSv1.3"] {
        let (hsm, tls) = system.client(&[]);
        let before = hsm.counters().signatures;
        let mut client = client(&nginx, (version, NEITHER), &tls);
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
    let nginx = start(&system);
    for version in ["TLSv1.2", "TLSv1.3"] {
        for (how, resumes) in [(TICKETS, true), (CACHE, true), (NEITHER, false)] {
            let (hsm, tls) = system.client(&[]);
            let before = hsm.counters().signatures;
            let mut reused = Vec::new();
            for _ in 0..3 {
                // a new client makes a new connection
                let mut client = client(&nginx, (version, how), &tls);
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
    let nginx = start(&system);
    let nobody = ClientConfig::builder()
        .with_root_certificates(system.roots())
        .with_no_client_auth();
    let (_, foreigner) = other.client_of(&system, &[]);
    for version in ["TLSv1.2", "TLSv1.3"] {
        for tls in [&Arc::new(nobody.clone()), &foreigner] {
            let mut client = client(&nginx, (version, NEITHER), tls);
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
    let nginx = start(&system);
    for version in ["TLSv1.2", "TLSv1.3"] {
        let publish = async |offered: &[&[u8]]| {
            let (_, tls) = system.client(offered);
            let mut client = client(&nginx, (version, NEITHER), &tls);
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

/// With the files that zk-setup made for a gateway.
fn start(system: &System) -> Nginx {
    Nginx::start(
        &system.gateway_file("gateway.crt.pem"),
        &system.gateway_file("gateway.key.pem"),
        &system.gateway_file("device-ca.crt.pem"),
        ANSWER,
    )
}

fn client(nginx: &Nginx, way: Way, tls: &Arc<ClientConfig>) -> Client {
    let endpoint = format!("localhost:{}", nginx.port(way));
    let target = Target::new(&endpoint, "Zymkey/pi-01").unwrap();
    Client::new(target, Arc::clone(tls), PATIENT)
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
