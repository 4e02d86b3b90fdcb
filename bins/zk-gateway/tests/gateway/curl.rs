//! What curl, which was not written with the gateway in mind, makes of it.

use std::fs;
use std::process::{Command, Output};

use crate::world::{Device, Running, World, write_secret};

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

    // two messages, one connection
    let url = url(&running);
    let before = running.gateway.counters().connections;
    let twice = curl(
        &world,
        &running,
        Some(&device),
        &["--data-binary", "{}", &url],
    );
    assert!(twice.status.success(), "{twice:?}");
    assert_eq!(running.gateway.counters().connections, before + 1);
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

    for somebody in [None, Some(&world.foreigner("pi-01"))] {
        let output = curl(&world, &running, somebody, &[]);
        // 35 and 56: the handshake, or the first read after it, failed
        assert!(matches!(output.status.code(), Some(35 | 56)), "{output:?}");
    }

    fs::write(world.path("message.json"), vec![b' '; 3 << 20]).unwrap();
    let (answer, status) = told(&curl(&world, &running, Some(&device), &[]));
    assert_eq!(status, "413", "{answer}");
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
        let (certificate, key) = (world.path("curl.crt.pem"), world.path("curl.key.pem"));
        fs::write(&certificate, &device.pem).unwrap();
        write_secret(&key, &device.key_pem);
        command.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    let message = format!("@{}", world.path("message.json").display());
    command
        .arg("--data-binary")
        .arg(message)
        .args(more)
        .arg(url(running));
    tokio::task::block_in_place(|| command.output().expect("curl cannot be run"))
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
