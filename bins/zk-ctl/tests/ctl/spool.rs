//! A look into a spool that somebody else has open.

use std::convert::Infallible;
use std::fs;
use std::time::SystemTime;

use zk_agent::Clock;
use zk_envelope::{Content, DeviceEvent, OwnerKey, Report, Sealer, StreamId};
use zk_hsm::{Hsm, Options};
use zk_spool::Spool;

use crate::world::World;

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
