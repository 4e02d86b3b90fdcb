//! A look into a spool that somebody else has open.

use std::convert::Infallible;
use std::fs;
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use zk_agent::{Agent, Clock, Config, Event, Metrics};
use zk_envelope::{Content, DeviceEvent, Envelope, OwnerKey, Report, Sealer, StreamId};
use zk_hsm::{Hsm, Options};
use zk_spool::Spool;

use crate::world::{World, closed_endpoint, mode};

#[tokio::test(flavor = "multi_thread")]
async fn a_live_spool_is_seen_as_it_is() {
    let world = World::new().await;
    let none = world.ctl(&["spool", "status"]).ends(2);
    none.says(&["there is no spool", "--dir"]);

    // as the agent has it open
    let spool = Spool::open(world.path("spool"), zk_spool::Options::default()).unwrap();
    let uri = format!("soft:{}", world.arg("key.pem")).parse().unwrap();
    let hsm = Hsm::open(&uri, Options::default()).unwrap();
    let owner = OwnerKey::generate().unwrap();
    let stream = StreamId(spool.stream().0);
    let mut sealer = Sealer::new(
        "pi-01".parse().unwrap(),
        stream,
        hsm.public_key(),
        &[owner.public_key().clone()],
    )
    .unwrap();
    let clock = Clock::new(SystemTime::now).unwrap();
    let event = Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None });
    for number in 0..5 {
        let content = match number {
            0 => Content::Report(&event),
            _ => Content::Data {
                content_type: "text/plain",
                body: b"21.437",
            },
        };
        spool
            .append_with(|sequence| {
                sealer
                    .seal(&hsm, &clock.now(), sequence, content)
                    .map(|envelope| envelope.to_bytes())
            })
            .unwrap();
    }
    spool
        .append_with(|_| Ok::<_, Infallible>(b"of no kind".to_vec()))
        .unwrap();

    let status = world.ctl(&["spool", "status", "--json"]).ends(0).json();
    let stats = spool.stats().unwrap();
    assert_eq!(status["records"], 6);
    assert_eq!(status["bytes"], stats.bytes);
    assert_eq!(status["diskBytes"], stats.disk_bytes);
    assert_eq!(status["oldest"]["sequence"], 1);
    assert_eq!(status["newest"]["stream"], stream.to_string());
    assert!(status["acknowledged"].is_null());
    let list = world.ctl(&["spool", "list", "--json"]).ends(0).json();
    let records = list["records"].as_array().unwrap();
    assert_eq!(records.len(), 6);
    assert_eq!(records[0]["kind"], "device-event");
    assert_eq!(
        (&records[1]["kind"], &records[1]["device"]),
        (&"data".into(), &"pi-01".into())
    );
    assert!(records[1]["time"].as_str().unwrap().ends_with('Z'));
    assert!(records[5]["kind"].is_null());
    // times are those of the oldest and the newest record, if it tells one
    assert_eq!(status["oldest"]["time"], records[0]["time"]);
    assert!(status["newest"]["time"].is_null());

    // it is the owner's still, and what is done is seen as done
    let second = spool.peek(2, usize::MAX).unwrap().pop().unwrap();
    spool.ack(second.position()).unwrap();
    let third = spool.peek(1, usize::MAX).unwrap().pop().unwrap();
    spool.reject(third.position()).unwrap();
    let text = world.ctl(&["spool", "status"]).ends(0);
    for part in ["3 records", "3 of stream", "1 (refused), 3 to 3"] {
        assert!(text.text().contains(part), "{}", text.text());
    }
    let limited = world.ctl(&["spool", "list", "--limit", "2"]).ends(0);
    assert_eq!(limited.text().lines().count(), 3, "{}", limited.text());
    limited.says(&["2 of 3 are shown", "--limit"]);
    assert_eq!(spool.losses().unwrap().len(), 1);
    spool.close().unwrap();
    assert_eq!(
        world.ctl(&["spool", "status", "--json"]).ends(0).json()["records"],
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_empty_or_newer_or_elsewhere_is_said_to_be() {
    let world = World::new().await;
    drop(Spool::open(world.path("elsewhere"), zk_spool::Options::default()).unwrap());
    let dir = world.arg("elsewhere");
    let list = world.ctl(&["spool", "list", "--dir", &dir]).ends(0);
    assert_eq!(list.text(), "nothing waits\n");
    // no configuration is needed for a directory that is named
    fs::remove_file(world.path("agent.toml")).unwrap();
    world.ctl(&["spool", "status", "--dir", &dir]).ends(0);
    world.ctl(&["spool", "status"]).ends(2).says(&[
        "agent.toml",
        "--config",
        "zk-setup device add",
    ]);
}

/// What may be done while the agent runs is done, and what may not is refused,
/// with the agent's name.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_agent() {
    let world = World::new().await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    // nothing of it is delivered
    let offline = format!("endpoint = \"{}\"", closed_endpoint());
    world.reconfigure(
        &format!("endpoint = \"localhost:{}\"", world.address.port()),
        &offline,
    );
    let metrics = format!("[metrics]\nlisten = \"{address}\"\n\n[spool]");
    world.reconfigure("[spool]", &metrics);
    // one sweep, and the records around it
    world.reconfigure("root = \"sys\"", "root = \"sys\"\ninterval = \"24h\"");
    let config = Config::read(&world.path("agent.toml")).unwrap();
    let alone = world.ctl(&["spool", "rejected", "drop", "--all"]).ends(2);
    alone.says(&["there is no spool"]);

    let (sealed, last) = mpsc::channel();
    let observe = move |event: Event<'_>| {
        if let Event::Reported { report, .. } = event {
            let _ = sealed.send(matches!(report, Report::Heartbeat(_)));
        }
    };
    let agent = Agent::start_observed(&config, observe, || {}).unwrap();
    let served = Metrics::serve(free, agent.watch()).unwrap();
    // Nothing comes behind the first heartbeat, which is behind the sweep.
    while !last.recv().unwrap() {}
    let status = world.ctl(&["spool", "status", "--json"]).ends(0).json();
    let written = &status["written"];
    assert!(written["seconds"].as_f64().unwrap() > 0.0, "{written}");
    assert!(written["bytes"].as_f64().unwrap() > 1000.0, "{written}");
    assert!(written["syncs"].as_f64().unwrap() >= 2.0, "{written}");
    // a first moment is no hour
    assert!(written["bytesAnHour"].is_null(), "{written}");
    let text = world.ctl(&["spool", "status"]).ends(0);
    assert!(
        text.text().contains("less than a minute"),
        "{}",
        text.text()
    );

    let verified = world.ctl(&["spool", "verify", "--json"]).ends(0).json();
    assert_eq!(verified["records"], status["records"]);
    assert_eq!(verified["damage"], Value::Array(Vec::new()));
    let lines = world.ctl(&["spool", "export"]).ends(0);
    assert_eq!(lines.text().lines().count() as u64, status["records"]);
    world.ctl(&["spool", "rejected", "list"]).ends(0);
    for command in [
        &["drop", "--all"][..],
        &["drop", "d7/17"],
        &["retry", "--all"],
    ] {
        let run = world
            .ctl(&[&["spool", "rejected"], command].concat())
            .ends(1);
        let process = format!("(process {})", std::process::id());
        run.says(&["in use by", &process, "systemctl stop zk-agent"]);
    }
    drop(served);
    agent.stop(Duration::ZERO).unwrap();
    let stopped = world.ctl(&["spool", "status"]).ends(0);
    assert!(
        stopped.text().contains("no agent answers"),
        "{}",
        stopped.text()
    );
    // A thread that was left behind lets go of the spool when it ends.
    while Spool::open(&config.spool.dir, zk_spool::Options::default()).is_err() {
        tokio::task::yield_now().await;
    }
    world.ctl(&["spool", "rejected", "drop", "--all"]).ends(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_copied_and_stays() {
    let world = World::new().await;
    let unreachable = closed_endpoint();
    let arguments = ["publish", "--timeout", "10ms", "--endpoint", &unreachable];
    for text in [b"one", b"two"] {
        world.ctl_with(&arguments, text).ends(4);
    }
    let dir = world.arg("zk-ctl-spool/pi-01");
    let export = ["spool", "export", "--dir", &dir];
    let lines = world.ctl(&export).ends(0);
    let lines: Vec<Value> = lines
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        (&lines[2]["kind"], &lines[2]["sequence"]),
        (&"data".into(), &3.into())
    );

    let out = world
        .ctl(&[&export[..], &["--out", "copy", "--json"]].concat())
        .ends(0);
    assert_eq!(out.json()["records"], 3);
    assert_eq!(mode(&world.path("copy")), 0o700);
    for line in &lines {
        let (stream, sequence) = (line["stream"].as_str().unwrap(), &line["sequence"]);
        let sequence = sequence.as_u64().unwrap();
        let file = world
            .path("copy")
            .join(format!("{stream}-{sequence:020}.rec"));
        assert_eq!(mode(&file), 0o600);
        let bytes = fs::read(file).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(line["record"], hex);
        let record = Envelope::from_bytes(&bytes).unwrap();
        record.verify(&world.key).unwrap();
    }
    let again = world
        .ctl(&[&export[..], &["--out", "copy"]].concat())
        .ends(2);
    again.says(&["copy exists", "nothing is overwritten"]);

    // all of it is there still
    world.ctl_with(&["publish"], b"three").ends(0);
    assert_eq!(world.stored().await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_said_with_what_it_costs() {
    let world = World::new().await;
    let spool = Spool::open(world.path("spool"), zk_spool::Options::default()).unwrap();
    let stream = spool.stream();
    for number in 0..5_u8 {
        spool
            .append_with(|_| Ok::<_, Infallible>(vec![number; 300]))
            .unwrap();
    }
    let second = spool.peek(2, usize::MAX).unwrap().pop().unwrap();
    spool.ack(second.position()).unwrap();
    spool.close().unwrap();
    world.ctl(&["spool", "verify"]).ends(0);
    let segment = world.path("spool/00000000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    // one that was delivered, and one that waits
    for number in [1, 3] {
        let at = bytes
            .windows(300)
            .position(|window| window == [number; 300]);
        bytes[at.unwrap()] ^= 1;
    }
    fs::write(&segment, &bytes).unwrap();
    let run = world.ctl(&["spool", "verify"]).ends(3);
    for part in [
        format!("2 to 2 of stream {stream}, delivered already"),
        format!("LOST 4 to 4 of stream {stream}"),
    ] {
        assert!(run.text().contains(&part), "{}", run.text());
    }
    run.says(&["Nothing has to be done by hand"]);
    let json = world.ctl(&["spool", "verify", "--json"]).ends(3).json();
    let lost = |at: usize| {
        (
            &json["damage"][at]["lost"]["first"],
            &json["damage"][at]["lost"]["delivered"],
        )
    };
    assert_eq!(lost(0), (&2.into(), &true.into()));
    assert_eq!(lost(1), (&4.into(), &false.into()));
    // what can't be read is not left out in silence
    let missing = ["1 of 3 are missing", "zk-ctl spool verify"];
    world.ctl(&["spool", "list"]).ends(0).says(&missing);
    world.ctl(&["spool", "export"]).ends(0).says(&missing);
    let copy = ["spool", "export", "--out", "copy"];
    world.ctl(&copy).ends(0).says(&missing);
    assert_eq!(fs::read(&segment).unwrap(), bytes);
}

/// A record that was refused, and stated as lost, goes out as it was sealed: the
/// owner has it then, and is told both.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_retried_as_it_is() {
    let world = World::new().await;
    world.ctl_with(&["publish"], b"one").ends(0);
    let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let refusing = world.server(&world.server_ca, "localhost", answer).await;
    for text in [b"two", b"six"] {
        let run = world
            .ctl_with(&["publish", "--endpoint", &refusing], text)
            .ends(5);
        run.says(&["spool rejected retry --all --dir"]);
    }
    // the receipt that the second run made was refused, too
    world.ctl_with(&["publish"], b"seven").ends(0);
    let stated = world.audit().await;
    assert!(stated.is_clean(), "{stated:?}");
    assert_eq!(stated.streams[0].arrived, []);

    let dir = world.arg("zk-ctl-spool/pi-01");
    let status = world.ctl(&["spool", "status", "--dir", &dir]).ends(0);
    status.says(&["zk-ctl spool rejected list"]);
    let rejected =
        |command: &[&str]| world.ctl(&[&["spool", "rejected"], command, &["--dir", &dir]].concat());
    let list = rejected(&["list", "--json"]).ends(0).json();
    let names: Vec<String> = list["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(list["records"][0]["kind"], "data");
    assert!(names.len() >= 2, "{names:?}");
    let count = names.len();

    // a server that still refuses, and none at all: they are kept
    let run = rejected(&["retry", "--all", "--endpoint", &refusing]).ends(5);
    run.says(&["It is kept"]);
    let nowhere = closed_endpoint();
    let kept = [
        "retry",
        "--all",
        "--timeout",
        "1s",
        "--endpoint",
        &nowhere,
        "--json",
    ];
    let kept = rejected(&kept).ends(4).json();
    assert_eq!(
        (&kept["delivered"], &kept["left"]),
        (&0.into(), &count.into())
    );
    let wrong = rejected(&["retry", "ffffffff/99"]).ends(2);
    wrong.says(&["ffffffff/99 names 0", "rejected list"]);

    // what is none of this device's is not sent
    let aside = world.path("zk-ctl-spool/pi-01/rejected");
    let odd = aside.join(format!("{:020}-{:020}-{:032x}.rec", 1, 77, 5));
    fs::write(&odd, b"half a rec").unwrap();
    let mut files = fs::read_dir(&aside)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let stream = names[0].split('/').next().unwrap();
    let number = format!(
        "-{:020}-{stream}",
        list["records"][0]["sequence"].as_u64().unwrap()
    );
    let first = files
        .find(|file| file.to_str().unwrap().contains(&number))
        .unwrap();
    let bytes = fs::read(&first).unwrap();
    // nor is what the card has changed: the server would take it, and put it aside
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&first, changed).unwrap();
    let unfit = rejected(&["retry", &names[0], "--json"]).ends(3).json();
    assert_eq!(unfit["records"][0]["outcome"], "unfit");
    fs::write(&first, &bytes).unwrap();
    let one = rejected(&["retry", &names[0], "--json"]).ends(0).json();
    assert_eq!((&one["delivered"], &one["left"]), (&1.into(), &0.into()));
    let rest = rejected(&["retry", "--all", "--json"]).ends(3).json();
    assert_eq!(
        (&rest["delivered"], &rest["left"]),
        (&(count - 1).into(), &1.into())
    );
    assert!(odd.exists());
    rejected(&["drop", "00000000/77"]).ends(0);
    assert!(!odd.exists());
    let none = rejected(&["list"]).ends(0);
    assert_eq!(none.text(), "nothing was refused\n");

    assert_eq!(world.quarantined().await, [] as [&str; 0]);
    let told = world.audit().await;
    assert!(told.is_clean(), "{told:?}");
    let stream = &told.streams[0];
    assert_eq!((stream.missing.len(), stream.forks.len()), (0, 0));
    let arrived: u64 = stream
        .arrived
        .iter()
        .map(|range| range.end() - range.start() + 1)
        .sum();
    assert_eq!(arrived as usize, count);

    // as if a run had ended between the server's answer and the removal
    fs::write(&first, bytes).unwrap();
    let again = rejected(&["retry", "--all", "--json"]).ends(0).json();
    assert_eq!(again["delivered"], 1);
    assert!(!first.exists());
    assert_eq!(world.gateway.counters().duplicates, 1);
    let told = world.audit().await;
    assert!(told.is_clean(), "{told:?}");
    assert_eq!((told.streams[0].again, told.streams[0].forks.len()), (1, 0));
}

/// The files of the engine `sled` are its owner's alone. That is said, not taken for
/// an empty spool.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_of_another_engine_is_not_looked_into() {
    let world = World::new().await;
    fs::create_dir_all(world.path("spool/00000000000000000001.sled")).unwrap();
    for verb in ["status", "list"] {
        let said = world.ctl(&["spool", verb]).ends(1);
        said.says(&["the engine sled", "its owner's metrics"]);
    }
}
