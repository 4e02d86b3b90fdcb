//! What curl and OpenSSL's client, which were not written with the gateway in
//! mind, make of it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use zk_envelope::{KeyState, Timestamp};
use zk_gateway::{Limits, Tls};
use zk_store::{Options, Store};
use zk_verify::DeviceRecord;

use crate::world::{Device, Running, World, post, start, uri, write_secret};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs curl"]
async fn curl_publishes_with_a_certificate() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let message = device.message([1]);
    fs::write(world.path("message.json"), &message).unwrap();
    let variants = [
        &["--http1.1"][..],
        &["--http1.0"],
        &["--http2"],
        &["--tls-max", "1.2"],
        &["--tlsv1.3"],
        &["--header", "Transfer-Encoding: chunked"],
        &["--header", "Expect: 100-continue"],
    ];
    for arguments in variants {
        let output = curl(&world, &running, Some(&device), arguments);
        let (body, status) = told(&output);
        assert_eq!(status, "200", "{arguments:?}: {output:?}");
        assert!(body.starts_with(r#"{"message":"OK","traceId":""#), "{body}");
    }
    let counters = running.gateway.counters();
    assert_eq!(
        (counters.stored, counters.duplicates),
        (1, variants.len() as u64 - 1)
    );
    assert_eq!(world.stored(&device).await.len(), 1);

    // what AWS IoT's answer looks like
    let output = curl(&world, &running, Some(&device), &["--include"]);
    let (answer, _) = told(&output);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let trace_id = body
        .strip_prefix(r#"{"message":"OK","traceId":""#)
        .and_then(|rest| rest.strip_suffix(r#""}"#))
        .unwrap();
    for line in [
        "HTTP/1.1 200 OK",
        "content-type: application/json",
        "content-length: 65",
        &format!("x-amzn-requestid: {trace_id}"),
    ] {
        assert!(head.lines().any(|l| l == line), "no {line:?} in {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs curl"]
async fn curl_keeps_its_connection_for_the_next_message() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    fs::write(world.path("message.json"), device.message([1])).unwrap();
    for version in ["1.2", "1.3"] {
        let before = running.gateway.counters().connections;
        // curl's own count of the connections it made for each of two requests
        let output = curl(
            &world,
            &running,
            Some(&device),
            &[
                "--tls-max",
                version,
                "--write-out",
                "\n%{http_code} %{num_connects}\n",
                &url(&running),
            ],
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let [first, "200 1", second, "200 0"] = lines[..] else {
            panic!("{text}")
        };
        assert_ne!(first, second, "each has a trace id of its own");
        assert_eq!(running.gateway.counters().connections, before + 1);
    }
    let counters = running.gateway.counters();
    assert_eq!((counters.stored, counters.duplicates), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs curl"]
async fn curl_with_a_certificate_that_was_revoked_is_forbidden() {
    let world = World::new().await;
    let mut device = world.device("pi-01").await;
    let options = Options {
        registry_age: Duration::ZERO,
        ..Options::default()
    };
    let store = Store::open(&uri(world.directory.path()), options)
        .await
        .unwrap();
    let running = start(store, Tls::load(&world.files()).unwrap(), Limits::default()).await;

    fs::write(world.path("message.json"), device.message([1])).unwrap();
    let (answer, status) = told(&curl(&world, &running, Some(&device), &[]));
    assert_eq!(status, "200", "{answer}");

    let at = Timestamp::from(std::time::SystemTime::now());
    let revoke = |record: &mut DeviceRecord| record.certificate = KeyState::Revoked { at };
    let operator = &world.store;
    operator
        .update_device(&device.principal, revoke)
        .await
        .unwrap();
    fs::write(world.path("message.json"), device.message([2])).unwrap();
    for version in ["1.2", "1.3"] {
        let arguments = ["--include", "--tls-max", version];
        let (answer, status) = told(&curl(&world, &running, Some(&device), &arguments));
        assert_eq!(status, "403");
        let refusal = "x-amzn-errortype: ForbiddenException\r\n";
        assert!(answer.contains(refusal), "{answer}");
    }
    assert_eq!(world.stored(&device).await.len(), 1);
    assert!(world.quarantined().await.is_empty());
}

/// curl has no pipelining, but OpenSSL's client sends what it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_their_order() {
    let world = World::new().await;
    let running = world.start().await;
    let mut device = world.device("pi-01").await;
    let close = "POST /topics/Zymkey%2Fpi-01?qos=1 HTTP/1.1\r\nhost: localhost\r\n\
                 content-length: 0\r\nconnection: close\r\n\r\n";
    let mut sequence = 0;
    for version in ["-tls1_2", "-tls1_3"] {
        let mut next = || {
            sequence += 1;
            device.message([sequence])
        };
        let (first, second) = (next(), next());
        let requests = [
            device.post(&first),
            post("/nowhere", b"{}"),
            device.post(&second),
            close.into(),
        ];
        let before = running.gateway.counters();

        let answers = s_client(&world, &running, &device, version, &requests.concat());

        let answers: Vec<_> = answers.split_inclusive('}').collect();
        let statuses: Vec<_> = answers
            .iter()
            .map(|answer| answer.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!(statuses, ["200", "404", "200", "200"], "{answers:?}");
        let mut trace_ids: Vec<_> = answers
            .iter()
            .map(|answer| {
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                let trace_id = body["traceId"].as_str().unwrap().to_owned();
                assert!(head.contains(&trace_id), "{answer}");
                trace_id
            })
            .collect();
        trace_ids.sort_unstable();
        trace_ids.dedup();
        assert_eq!(trace_ids.len(), requests.len(), "{answers:?}");
        let counters = running.gateway.counters();
        assert_eq!(counters.stored, before.stored + 2);
        assert_eq!(counters.connections, before.connections + 1);
    }
    assert_eq!(world.stored(&device).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs curl"]
async fn curl_is_told_what_is_wrong() {
    let world = World::new().await;
    let running = world.start().await;
    let device = world.device("pi-01").await;
    fs::write(world.path("message.json"), "{}").unwrap();

    let output = curl(
        &world,
        &running,
        Some(&world.stranger("pi-99")),
        &["--include"],
    );
    let (answer, status) = told(&output);
    assert_eq!(status, "403");
    assert!(
        answer.contains("x-amzn-errortype: ForbiddenException\r\n"),
        "{answer}"
    );

    // In TLS 1.3 curl learns of it when it reads, so its exit codes differ.
    for somebody in [None, Some(&world.foreigner("pi-01"))] {
        for version in ["1.2", "1.3"] {
            let output = curl(&world, &running, somebody, &["--tls-max", version]);
            assert!(!output.status.success(), "{output:?}");
            assert_eq!(told(&output), (String::new(), "000".into()), "{output:?}");
        }
    }

    fs::write(world.path("message.json"), vec![b' '; 3 << 20]).unwrap();
    let (answer, status) = told(&curl(&world, &running, Some(&device), &[]));
    assert_eq!(status, "413", "{answer}");

    let gateway = running.gateway.clone();
    running.stop().await;
    let counters = gateway.counters();
    assert_eq!(counters.handshakes_failed, [("certificate", 4)].into());
    assert_eq!(counters.stored, 0);
}

fn curl(world: &World, running: &Running, device: Option<&Device>, more: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--write-out",
        "\n%{http_code}",
    ]);
    command
        .arg("--cacert")
        .arg(world.path("gateway-ca.crt.pem"));
    if let Some(device) = device {
        let (certificate, key) = identity(world, device);
        command.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    let message = format!("@{}", world.path("message.json").display());
    command
        .arg("--data-binary")
        .arg(message)
        .args(more)
        .arg(url(running));
    tokio::task::block_in_place(|| {
        command
            .output()
            .expect("this test needs the curl program: apt-get install curl")
    })
}

/// What comes back for `requests` on one connection, until the gateway closes it.
fn s_client(
    world: &World,
    running: &Running,
    device: &Device,
    version: &str,
    requests: &[u8],
) -> String {
    let (certificate, key) = identity(world, device);
    fs::write(world.path("requests"), requests).unwrap();
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-quiet", "-verify_quiet", "-no-CApath"])
        .args(["-verify_return_error", "-verify_hostname", "localhost"])
        .args(["-servername", "localhost", version, "-connect"])
        .arg(running.address.to_string())
        .arg("-CAfile")
        .arg(world.path("gateway-ca.crt.pem"))
        .arg("-cert")
        .arg(certificate)
        .arg("-key")
        .arg(key)
        .stdin(File::open(world.path("requests")).unwrap());
    let output = tokio::task::block_in_place(|| {
        command
            .output()
            .expect("this test needs the openssl program: apt-get install openssl")
    });
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Files with a device's certificate and key.
fn identity(world: &World, device: &Device) -> (PathBuf, PathBuf) {
    let (certificate, key) = (world.path("client.crt.pem"), world.path("client.key.pem"));
    fs::write(&certificate, &device.pem).unwrap();
    write_secret(&key, &device.key_pem);
    (certificate, key)
}

fn url(running: &Running) -> String {
    format!(
        "https://localhost:{}/topics/Zymkey%2Fpi-01?qos=1",
        running.address.port()
    )
}

/// The body, and the status after it.
fn told(output: &Output) -> (String, String) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (body.to_owned(), status.to_owned())
}
