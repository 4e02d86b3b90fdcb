//! Data of other programs, through the program's socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use support::{Daemon, PATIENCE, Place, is_whole, metrics, started_with, until};
use zk_agent::MAX_DATA;
use zk_envelope::{Kind, Opened};
use zk_hsm_sim::{DaemonState, Device, Faults, Model};

/// Few readings, and a socket.
fn with_socket(place: &Place) {
    place.reconfigure("\"10ms\"", "\"1h\"");
    place.reconfigure("[spool]", "[socket]\nlisten = \"publish.sock\"\n[spool]");
}

fn start(place: &Place) -> (Daemon, std::net::SocketAddr) {
    let mut daemon = place.start();
    let address = daemon.address();
    daemon.logged("taking data of other programs");
    (daemon, address)
}

fn connect(place: &Place) -> UnixStream {
    let stream = UnixStream::connect(place.path("publish.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn request(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{head}\r\nHost: agent\r\nConnection: close\r\n");
    let length = format!("Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), length.as_bytes(), body].concat()
}

fn post(content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /records HTTP/1.1\r\nContent-Type: {content_type}");
    request(&head, body)
}

fn answer(mut stream: UnixStream) -> (u16, serde_json::Value) {
    let mut answer = Vec::new();
    // what it did not want to read resets the connection behind the answer
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn ask(place: &Place, request: &[u8]) -> (u16, serde_json::Value) {
    let mut stream = connect(place);
    // it may answer before it has read all of it
    let _ = stream.write_all(request);
    answer(stream)
}

fn data(records: &[Opened]) -> Vec<&Opened> {
    let own = records.iter().filter(|record| {
        record.header().kind == Kind::Data && record.content_type() != "application/json"
    });
    own.collect()
}

#[test]
fn data_is_sealed_in_the_agents_stream_and_answered_when_it_is_on_disk() {
    let place = Place::new();
    with_socket(&place);
    // the answer is sure even if records are not synced one by one
    place.reconfigure(
        "dir = \"spool\"",
        "dir = \"spool\"\nsync = { every = \"24h\" }",
    );
    let (daemon, address) = start(&place);
    let meta = fs::metadata(place.path("publish.sock")).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);

    // the first heartbeat and the first reading wait to be synced, until tomorrow
    let page = until(address, |page| page["readings_sealed_total"] == 1.0);
    assert!(page["spool_unsynced"] > 0.0);
    let largest = vec![0xab; MAX_DATA];
    let (status, first) = ask(&place, &post("text/csv", b"a,b\n1,2\n"));
    assert_eq!(status, 201, "{first}");
    assert_eq!(metrics(address)["spool_unsynced"], 0.0);
    let (status, second) = ask(&place, &post("application/octet-stream", &largest));
    assert_eq!(status, 201, "{second}");
    assert_eq!(
        metrics(address)["data_records_total{outcome=\"taken\"}"],
        2.0
    );
    drop(daemon);

    let records = place.records();
    assert!(is_whole(&records));
    let told = |answer: &serde_json::Value| {
        let sequence = answer["sequence"].as_u64().unwrap();
        let record = records
            .iter()
            .find(|record| record.header().sequence == sequence);
        let record = record.unwrap();
        assert_eq!(record.header().stream.to_string(), answer["stream"]);
        (record.content_type().to_owned(), record.body().to_vec())
    };
    assert_eq!(
        told(&first),
        ("text/csv".to_owned(), b"a,b\n1,2\n".to_vec())
    );
    assert_eq!(told(&second).1, largest);
}

#[test]
fn several_at_once_each_get_their_own_number() {
    let place = Place::new();
    with_socket(&place);
    // among many readings
    place.reconfigure("\"1h\"", "\"10ms\"");
    let (daemon, _) = start(&place);
    let mut numbers: Vec<u64> = std::thread::scope(|scope| {
        let place = &place;
        let clients: Vec<_> = (0..8)
            .map(|client| {
                scope.spawn(move || {
                    let one = |turn: usize| {
                        let body = format!("{client} {turn}");
                        let (status, answer) = ask(place, &post("text/plain", body.as_bytes()));
                        assert_eq!(status, 201, "{answer}");
                        answer["sequence"].as_u64().unwrap()
                    };
                    // of one client in its order
                    let numbers: Vec<_> = (0..5).map(one).collect();
                    assert!(numbers.is_sorted(), "{numbers:?}");
                    numbers
                })
            })
            .collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    let (stopped, status) = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(stopped["sealed"], stopped["sampled"], "{stopped}");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 40);
    let records = place.records();
    assert!(is_whole(&records));
    assert_eq!(data(&records).len(), 40);
    // what it listened at is gone
    assert!(!place.path("publish.sock").exists());
}

#[test]
fn what_is_no_data_is_refused_with_its_reason() {
    let place = Place::new();
    with_socket(&place);
    let (daemon, _) = start(&place);
    let too_long = "t".repeat(256);
    let forged = r#"{"readings":[{"sensor":"28-0000000a0001","at":"2026-11-23T11:20:44.123Z","celsius":4.0,"quality":"ok"}]}"#;
    let cases = [
        (
            post("text/plain", &vec![b'x'; MAX_DATA + 1]),
            413,
            "too-large",
        ),
        (post("text/plain", b""), 400, "empty"),
        (post("", b"x"), 415, "content-type"),
        (post(&too_long, b"x"), 415, "content-type"),
        (request("POST /records HTTP/1.1", b"x"), 415, "content-type"),
        (post("application/json", forged.as_bytes()), 422, "readings"),
        (request("GET /records HTTP/1.1", b""), 405, "method"),
        (
            request("POST / HTTP/1.1\r\nContent-Type: a/b", b"x"),
            404,
            "path",
        ),
    ];
    for (request, status, error) in cases {
        let answer = ask(&place, &request);
        assert_eq!(
            (answer.0, answer.1["error"].as_str()),
            (status, Some(error))
        );
        assert!(answer.1["message"].as_str().unwrap().len() > 10);
    }
    // more than it says, without an end
    let mut chunked = connect(&place);
    let head = "POST /records HTTP/1.1\r\nHost: agent\r\nContent-Type: a/b\r\nTransfer-Encoding: \
                chunked\r\nConnection: close\r\n\r\n";
    chunked.write_all(head.as_bytes()).unwrap();
    let chunk = [b"8000\r\n", &[b'x'; 0x8000][..], b"\r\n"].concat();
    while chunked.write_all(&chunk).is_ok() {}
    // no HTTP at all
    let mut wrong = connect(&place);
    wrong.write_all(b"\x00\x01\x02 hello\r\n\r\n").unwrap();
    let mut said = Vec::new();
    // closed, with or without a word
    let _ = wrong.read_to_end(&mut said);
    assert!(
        said.is_empty() || said.starts_with(b"HTTP/1.1 400"),
        "{said:?}"
    );

    // who breaks off in between, and who says nothing at all, is no trouble
    let mut half = connect(&place);
    let whole = post("text/plain", b"half of it");
    half.write_all(&whole[..whole.len() - 3]).unwrap();
    drop(half);
    let silent: Vec<_> = (0..10).map(|_| connect(&place)).collect();
    assert_eq!(ask(&place, &post("text/plain", b"whole")).0, 201);
    drop(silent);
    assert_eq!(daemon.terminate().1.code(), Some(0));
    let records = place.records();
    let bodies: Vec<_> = data(&records)
        .iter()
        .map(|record| record.body().to_vec())
        .collect();
    assert_eq!(bodies, [b"whole"]);
}

#[test]
fn a_full_spool_says_so_and_what_it_did_not_take_is_named() {
    let place = Place::new();
    with_socket(&place);
    place.reconfigure(
        "dir = \"spool\"",
        "dir = \"spool\"\ncap = \"256KiB\"\nfull = \"reject\"",
    );
    let (daemon, address) = start(&place);
    let large = vec![b'x'; MAX_DATA];
    let refused = loop {
        match ask(&place, &post("text/plain", &large)) {
            (201, _) => {}
            other => break other,
        }
    };
    assert_eq!(
        (refused.0, refused.1["error"].as_str()),
        (507, Some("spool-full"))
    );
    let page = metrics(address);
    assert_eq!(page["data_records_total{outcome=\"refused\"}"], 1.0);
    // the receipt comes right behind
    until(address, |page| {
        page["lost_total{reason=\"rejected\"}"] == 1.0
    });
    assert_eq!(daemon.terminate().1.code(), Some(0));
}

/// Data that waits for a key that does not sign is taken when it does; who has gone by
/// then has taken it back; and at the end who waits is told.
#[test]
fn while_the_key_does_not_sign_data_waits_and_so_does_its_sender() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::create(dir.path().join("chip"), Model::Zymkey4i).unwrap();
    let module = device.module_path();
    let uri = format!("zymkey:slot=0?module-path={}", module.display());
    let place = Place::with_key(dir, &uri.parse().unwrap());
    with_socket(&place);
    let (daemon, address) = start(&place);
    let away = Faults {
        daemon: zk_hsm_sim::Daemon {
            state: DaemonState::Down,
            ..zk_hsm_sim::Daemon::default()
        },
        ..Faults::default()
    };
    assert_eq!(ask(&place, &post("text/plain", b"before")).0, 201);
    device.set_faults(&away).unwrap();
    let mut waits = connect(&place);
    waits.write_all(&post("text/plain", b"waits")).unwrap();
    until(address, |page| {
        page["hsm_state{state=\"reopening\"}"] == 1.0
    });
    device.clear_faults().unwrap();
    assert_eq!(answer(waits).0, 201);

    device.set_faults(&away).unwrap();
    let mut waits = connect(&place);
    waits.write_all(&post("text/plain", b"too late")).unwrap();
    until(address, |page| {
        page["hsm_state{state=\"reopening\"}"] == 1.0
    });
    daemon.signal(rustix::process::Signal::TERM);
    let (status, told) = answer(waits);
    assert_eq!((status, told["error"].as_str()), (503, Some("stopping")));
    daemon.ends();
    device.clear_faults().unwrap();
    let records = place.records();
    let bodies: Vec<_> = data(&records)
        .iter()
        .map(|record| record.body().to_vec())
        .collect();
    assert_eq!(bodies, [&b"before"[..], b"waits"]);
}

/// Somebody removed its socket, and another agent has one there now.
#[test]
fn at_the_end_it_removes_its_own_socket_alone() {
    let place = Place::new();
    with_socket(&place);
    let (first, _) = start(&place);
    fs::remove_file(place.path("publish.sock")).unwrap();
    let _other = UnixListener::bind(place.path("publish.sock")).unwrap();
    assert_eq!(first.terminate().1.code(), Some(0));
    assert!(place.path("publish.sock").exists());
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_nothing_else_is() {
    let place = Place::new();
    with_socket(&place);
    let (daemon, _) = start(&place);
    // killed: its socket stays
    drop(daemon);
    assert!(place.path("publish.sock").exists());
    let (daemon, _) = start(&place);
    assert_eq!(ask(&place, &post("text/plain", b"x")).0, 201);

    // another agent, with a spool of its own, does not take it over
    let other = place.path("other.toml");
    let text = fs::read_to_string(place.path("agent.toml")).unwrap();
    fs::write(&other, text.replace("\"spool\"", "\"other-spool\"")).unwrap();
    let refused = |config: &Path, parts: [&str; 2], code| {
        let (status, said) = started_with(config, &[]);
        assert_eq!(status, Some(code), "{said}");
        for part in parts {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    };
    refused(&other, ["publish.sock", "in use"], 1);
    assert_eq!(daemon.terminate().1.code(), Some(0));

    let agent = place.path("agent.toml");
    fs::write(place.path("publish.sock"), "a file").unwrap();
    refused(&agent, ["publish.sock", "something else"], 1);
    assert_eq!(
        fs::read_to_string(place.path("publish.sock")).unwrap(),
        "a file"
    );
    fs::remove_file(place.path("publish.sock")).unwrap();
    std::os::unix::fs::symlink("nowhere", place.path("publish.sock")).unwrap();
    refused(&agent, ["publish.sock", "something else"], 1);
    fs::remove_file(place.path("publish.sock")).unwrap();
    // at sockets of another kind somebody listens, too
    let other = UnixDatagram::bind(place.path("publish.sock")).unwrap();
    refused(&agent, ["publish.sock", "in use"], 1);
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(place.path("publish.sock")).unwrap();
    drop(other);
    fs::remove_file(place.path("publish.sock")).unwrap();
    // and at one where so many wait already that nobody else may
    let busy = UnixListener::bind(place.path("publish.sock")).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _first = UnixStream::connect(place.path("publish.sock")).unwrap();
    refused(&agent, ["publish.sock", "in use"], 1);
    drop(busy);
    place.reconfigure("[socket]", "[socket]\ngroup = \"no-such-group\"");
    refused(
        &place.path("agent.toml"),
        ["socket.group", "no-such-group"],
        2,
    );
}
