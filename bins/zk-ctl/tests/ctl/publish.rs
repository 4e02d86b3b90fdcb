//! Data of a person's on its way.

use std::fs;
use std::os::unix::fs::symlink;

use zk_envelope::{DeviceEvent, Kind, LossReason, Opened, Report};

use crate::world::{Run, World, closed_endpoint};

/// Bodies of what a person published.
fn data(records: &[Opened]) -> Vec<&[u8]> {
    let data = records
        .iter()
        .filter(|record| record.header().kind == Kind::Data);
    data.map(Opened::body).collect()
}

/// Numbers on the stream that `run` published to.
fn sequences(records: &[Opened], run: &Run) -> Vec<u64> {
    let stream = run.json()["stream"].as_str().unwrap().to_owned();
    let own = records
        .iter()
        .map(Opened::header)
        .filter(|header| header.stream.to_string() == stream);
    own.map(|header| header.sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_stored_and_its_owner_reads_it() {
    let world = World::new().await;
    let first = world
        .ctl_with(&["publish", "--json"], b"21.437 degrees")
        .ends(0);
    let json = first.json();
    assert_eq!(json["outcome"], "delivered");
    assert_eq!(
        (&json["device"], &json["bytes"]),
        (&"pi-01".into(), &14.into())
    );
    assert_eq!(
        (&json["earlier"], &json["delivered"]),
        (&0.into(), &2.into())
    );
    // the stream's own beginning is number 1
    assert_eq!(
        (&json["sequence"], &json["waiting"]),
        (&2.into(), &0.into())
    );

    fs::write(world.path("a.bin"), [0xff, 0, 0xfe]).unwrap();
    let text = world.ctl(&["publish", &world.arg("a.bin")]).ends(0);
    assert!(text.text().starts_with("delivered"), "{}", text.text());
    assert!(
        text.text().contains("sequence 3 of stream"),
        "{}",
        text.text()
    );
    let typed = ["publish", "-", "--content-type", "text/csv", "--json"];
    let last = world.ctl_with(&typed, b"a,b\n1,2\n").ends(0);

    let stored = world.stored().await;
    assert_eq!(sequences(&stored, &last), [1, 2, 3, 4]);
    assert!(matches!(
        stored[0].report().unwrap(),
        Some(Report::DeviceEvent(DeviceEvent::StreamStarted {
            previous: None
        }))
    ));
    let seen: Vec<_> = stored[1..]
        .iter()
        .map(|record| (record.content_type(), record.body()))
        .collect();
    assert_eq!(
        seen,
        [
            ("text/plain; charset=utf-8", &b"21.437 degrees"[..]),
            ("application/octet-stream", &[0xff, 0, 0xfe]),
            ("text/csv", b"a,b\n1,2\n"),
        ]
    );
    assert!(world.quarantined().await.is_empty());
    // the agent's spool is the agent's
    assert!(!world.path("spool").exists());
    assert!(world.path("zk-ctl-spool").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_link_it_is_kept_and_goes_first_in_the_next_run() {
    let world = World::new().await;
    world.ctl_with(&["publish"], b"zero").ends(0);
    let down = closed_endpoint();
    for body in [b"one", b"two"] {
        let arguments = ["publish", "--endpoint", &down, "--timeout", "1s", "--json"];
        let kept = world.ctl_with(&arguments, body).ends(4);
        assert_eq!(kept.json()["outcome"], "kept");
        assert!(
            kept.json()["error"].as_str().unwrap().contains("reached"),
            "{:?}",
            kept.json()
        );
        kept.says(&["the next zk-ctl publish delivers it first"]);
    }
    assert_eq!(data(&world.stored().await), [b"zero"]);
    let dir = world.arg("zk-ctl-spool/pi-01");
    let status = world.ctl(&["spool", "status", "--dir", &dir, "--json"]);
    assert_eq!(status.ends(0).json()["records"], 2);

    let run = world.ctl_with(&["publish", "--json"], b"three").ends(0);
    let json = run.json();
    assert_eq!(
        (&json["earlier"], &json["delivered"], &json["waiting"]),
        (&2.into(), &3.into(), &0.into())
    );
    let stored = world.stored().await;
    assert_eq!(sequences(&stored, &run), [1, 2, 3, 4, 5]);
    assert_eq!(
        data(&stored),
        [b"zero".as_slice(), b"one", b"two", b"three"]
    );
}

/// What waits for one device does not go under the certificate of another.
#[tokio::test(flavor = "multi_thread")]
async fn each_device_has_a_spool_of_its_own() {
    let world = World::unregistered().await;
    let down = closed_endpoint();
    let arguments = ["publish", "--endpoint", &down, "--timeout", "1s", "--json"];
    let first = world.ctl_with(&arguments, b"of the first").ends(4).json();

    world.reconfigure("pi-01\"\nhsm", "pi-02\"\nhsm");
    // not with the certificate of the first
    let other = world.ctl_with(&arguments, b"of nobody").ends(2);
    other.says(&["certificate is for \"pi-01\"", "pi-02"]);
    world.certify(&world.device_ca, "pi-02", |_| {});
    let second = world.ctl_with(&arguments, b"of the second").ends(4).json();
    assert_eq!(
        (&second["earlier"], &second["sequence"]),
        (&0.into(), &2.into())
    );
    assert_ne!(first["stream"], second["stream"]);

    world.reconfigure("pi-02\"\nhsm", "pi-01\"\nhsm");
    world.certify(&world.device_ca, "pi-01", |_| {});
    world.register().await;
    world.ctl_with(&["publish"], b"the last").ends(0);
    let stored = world.stored().await;
    assert_eq!(data(&stored), [b"of the first".as_slice(), b"the last"]);
    assert!(world.quarantined().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_may_not_publish_is_told_so_and_keeps_its_data() {
    let world = World::unregistered().await;
    // it does not wait for what only a person can change
    let arguments = ["publish", "--json", "--timeout", "24h"];
    let refused = world.ctl_with(&arguments, b"one").ends(5);
    assert_eq!(refused.json()["outcome"], "forbidden");
    assert_eq!(refused.json()["waiting"], 2);
    refused.says(&["It is kept", "zk-setup device list"]);
    assert!(world.stored().await.is_empty());

    world.register().await;
    world.ctl_with(&["publish"], b"two").ends(0);
    assert_eq!(data(&world.stored().await), [b"one", b"two"]);
}

/// What a server refuses for good is not tried again, blocks nothing, and is
/// named to the owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_refused_is_set_aside_and_reported() {
    let world = World::new().await;
    world.ctl_with(&["publish"], b"one").ends(0);
    let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let server = world.server(&world.server_ca, "localhost", answer).await;
    let arguments = ["publish", "--endpoint", &server, "--json"];
    let refused = world.ctl_with(&arguments, b"two").ends(5);
    let json = refused.json();
    assert_eq!(json["outcome"], "refused");
    assert_eq!(
        (&json["sequence"], &json["waiting"]),
        (&3.into(), &0.into())
    );
    refused.says(&["will not be tried again", "rejected"]);
    let rejected = fs::read_dir(world.path("zk-ctl-spool/pi-01/rejected")).unwrap();
    assert_eq!(rejected.count(), 1);

    let run = world.ctl_with(&["publish", "--json"], b"three").ends(0);
    let stored = world.stored().await;
    assert_eq!(sequences(&stored, &run), [1, 2, 4, 5]);
    assert_eq!(data(&stored), [b"one".as_slice(), b"three"]);
    assert!(world.audits_clean().await);
    let Some(Report::LossReceipt(receipt)) = stored[2].report().unwrap() else {
        panic!("{:?}", stored[2]);
    };
    assert_eq!(receipt.reason, LossReason::Refused);
    assert_eq!(
        receipt.range.map(|range| (range.first, range.last)),
        Some((3, 3))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_the_size_that_fits() {
    let world = World::new().await;
    const MOST: usize = 63_488;
    for len in [MOST + 1, 200_000] {
        let run = world.ctl_with(&["publish"], &vec![b'x'; len]).ends(2);
        run.says(&[
            "standard input holds more than 63488",
            "128 KiB",
            "split it",
        ]);
    }
    let fits = world
        .ctl_with(&["publish", "--json"], &[b'x'; MOST])
        .ends(0);
    // nothing was numbered that did not fit
    assert_eq!(fits.json()["sequence"], 2);
    assert_eq!(data(&world.stored().await)[0].len(), MOST);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_spool_is_never_touched() {
    let world = World::new().await;
    let agents = world.path("spool");
    fs::create_dir(&agents).unwrap();
    symlink(&agents, world.path("link")).unwrap();
    let inside = world.arg("spool/inside");
    let above = world.arg(".");
    let around = world.arg("not-there/../spool");
    for dir in [
        &world.arg("spool"),
        &world.arg("link"),
        &inside,
        &above,
        &around,
    ] {
        let run = world.ctl_with(&["publish", "--spool", dir], b"x").ends(2);
        run.says(&["the agent's spool", "--spool"]);
    }
    assert_eq!(fs::read_dir(&agents).unwrap().count(), 0);
    assert!(world.stored().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_at_once_wait_for_each_other() {
    let world = World::new().await;
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| world.ctl_with(&["publish", "--json"], b"at once")))
            .collect();
        let mut sequences: Vec<_> = runs
            .into_iter()
            .map(|run| run.join().unwrap().ends(0).json()["sequence"].as_u64())
            .collect();
        sequences.sort_unstable();
        assert_eq!(sequences, [Some(2), Some(3), Some(4)]);
    });
    assert_eq!(data(&world.stored().await).len(), 3);
}

/// Where an agent takes data it goes by its way; where none is, or is not wanted, by
/// zk-ctl's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_is_handed_the_data() {
    let world = World::new().await;
    world.reconfigure("[spool]", "[socket]\nlisten = \"publish.sock\"\n\n[spool]");
    // no agent there yet
    let own = world
        .ctl_with(&["publish", "--json"], b"zero")
        .ends(0)
        .json();
    assert_eq!(own["outcome"], "delivered");

    let config = zk_agent::Config::read(&world.path("agent.toml")).unwrap();
    let agent = zk_agent::Agent::start(&config, || {}).unwrap();
    // neither key nor certificate are needed for it
    fs::rename(world.path("key.pem"), world.path("away.pem")).unwrap();
    let taken = world
        .ctl_with(&["publish", "--json"], b"one")
        .ends(0)
        .json();
    fs::rename(world.path("away.pem"), world.path("key.pem")).unwrap();
    assert_eq!(taken["outcome"], "taken");
    assert_eq!(
        (&taken["device"], &taken["bytes"]),
        (&"pi-01".into(), &3.into())
    );
    assert_eq!(taken["contentType"], "text/plain; charset=utf-8");
    assert_ne!(taken["stream"], own["stream"]);
    let text = world.ctl_with(&["publish"], b"two").ends(0);
    assert!(
        text.text().starts_with("taken  sequence "),
        "{}",
        text.text()
    );
    // without it
    let spool = world.arg("zk-ctl-spool");
    let around = world
        .ctl_with(&["publish", "--spool", &spool, "--json"], b"three")
        .ends(0);
    assert_eq!(around.json()["stream"], own["stream"]);
    agent.stop(std::time::Duration::from_secs(30)).unwrap();

    let run = world
        .ctl_with(&["publish", "--json"], b"four")
        .ends(0)
        .json();
    assert_eq!(run["outcome"], "delivered");
    let stored = world.stored().await;
    let mut bodies = data(&stored);
    bodies.retain(|body| !body.starts_with(b"{\"readings\""));
    bodies.sort_unstable();
    assert_eq!(bodies, [&b"four"[..], b"one", b"three", b"two", b"zero"]);
    let sequence = taken["sequence"].as_u64().unwrap();
    let one = stored
        .iter()
        .find(|record| record.body() == b"one")
        .unwrap();
    assert_eq!(one.header().sequence, sequence);
    assert_eq!(one.header().stream.to_string(), taken["stream"]);
    assert!(world.audits_clean().await);
}

/// An agent that does not take it, or says nothing, is no reason to go another way.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_does_not_take_is_told_with_its_reason() {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    let world = World::new().await;
    world.reconfigure("[spool]", "[socket]\nlisten = \"publish.sock\"\n\n[spool]");
    let listener = UnixListener::bind(world.path("publish.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut full, _) = listener.accept().unwrap();
        let mut read = [0; 4096];
        assert!(full.read(&mut read).unwrap() > 0);
        let body = r#"{"error":"spool-full","message":"the spool is full"}"#;
        let length = body.len();
        let head = "HTTP/1.1 507 Insufficient Storage\r\nconnection: close\r\ncontent-length: ";
        full.write_all(format!("{head}{length}\r\n\r\n{body}").as_bytes())
            .unwrap();
        drop(full);
        // says nothing
        let (silent, _) = listener.accept().unwrap();
        silent
    });
    let full = world.ctl_with(&["publish"], b"x").ends(1);
    full.says(&["publish.sock", "spool-full", "the spool is full"]);
    let silent = world
        .ctl_with(&["publish", "--timeout", "1s"], b"x")
        .ends(1);
    silent.says(&["did not answer in time", "not known", "--timeout"]);
    drop(server.join().unwrap());
    // where so many wait that nobody else may
    fs::remove_file(world.path("publish.sock")).unwrap();
    let busy = UnixListener::bind(world.path("publish.sock")).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _first = UnixStream::connect(world.path("publish.sock")).unwrap();
    let waits = world
        .ctl_with(&["publish", "--timeout", "1s"], b"x")
        .ends(1);
    waits.says(&["did not answer in time"]);
    // nothing was kept anywhere else
    assert!(!world.path("zk-ctl-spool").exists());
    assert!(world.stored().await.is_empty());
}
