//! From a sensor to the owner, with the programs as processes of their own that
//! are killed where it hurts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::Read;
use std::time::Duration;

use zk_agent::{Agent, Config};
use zk_gateway::{Gateway, Overrides, Tls};
use zk_reader::{Record, all_times};
use zk_store::{Options, Store};
use zk_tests::{Process, System, role_file};

/// The gateway, when this program runs in that role.
#[test]
fn role_gateway() {
    let Some(file) = role_file() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = zk_gateway::Config::load(&file, Overrides::default()).unwrap();
        let store = Store::open(&config.store, Options::default())
            .await
            .unwrap();
        let gateway = Gateway::new(store, Tls::load(&config.tls).unwrap(), config.limits);
        let address = std::env::var("ZK_TEST_LISTEN").unwrap();
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        println!("listening");
        let asked = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        zk_gateway::run(listener, gateway, async {
            asked.await.unwrap().unwrap();
        })
        .await;
    });
}

/// The agent, when this program runs in that role: tells how it fares whenever
/// that changes.
#[test]
fn role_agent() {
    let Some(file) = role_file() else { return };
    let agent = Agent::start(&Config::read(&file).unwrap(), || println!("failed")).unwrap();
    let (asked, ask) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        drop(asked);
    });
    let mut last = String::new();
    loop {
        let status = agent.status().unwrap();
        let line = format!(
            "sealed {} waiting {} published {}",
            status.sealed, status.spool.records, status.publisher.records
        );
        if line != last {
            println!("{line}");
            last = line;
        }
        let ended = ask.recv_timeout(Duration::from_millis(5));
        if ended == Err(std::sync::mpsc::RecvTimeoutError::Disconnected) {
            break;
        }
    }
    let status = agent.stop(Duration::from_secs(20)).unwrap();
    assert_eq!(
        status.spool.records, 0,
        "everything was to get out: {:?}",
        status.publisher
    );
}

/// `sealed 12 waiting 3 published 9`
fn numbers(line: &str) -> Option<(u64, u64, u64)> {
    let mut words = line.split(' ');
    let mut number = |name| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?;
    Some((number("sealed")?, number("waiting")?, number("published")?))
}

#[test]
fn killed_in_the_middle_of_an_outage_nothing_is_lost_and_nothing_doubled() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let system = runtime.block_on(System::new());
    let gateway_file = system.gateway_config();
    let agent_file = system.agent_config();
    let start_gateway = || {
        let listen = [("ZK_TEST_LISTEN", system.gateway.to_string())];
        let mut gateway = Process::start("role_gateway", &gateway_file, &listen);
        gateway.wait_for("it listened", |line| {
            line.contains("listening").then_some(())
        });
        gateway
    };
    let start_agent = || Process::start("role_agent", &agent_file, &[]);
    let wait = |agent: &mut Process, what: &str, wanted: &dyn Fn((u64, u64, u64)) -> bool| {
        agent.wait_for(what, |line| numbers(line).filter(|n| wanted(*n)))
    };

    let gateway = start_gateway();
    let mut agent = start_agent();
    wait(&mut agent, "10 records were published", &|(
        _,
        _,
        published,
    )| {
        published >= 10
    });

    // The outage: the gateway dies while it is served.
    gateway.kill();
    let (_, waiting, _) = wait(&mut agent, "30 records waited", &|(_, waiting, _)| {
        waiting >= 30
    });
    // In the middle of it the agent dies too, sampling and sealing.
    agent.kill();
    let mut agent = start_agent();
    let (_, found, _) = wait(&mut agent, "it found its records", &|(_, found, _)| {
        found > 0
    });
    assert!(found >= waiting, "{waiting} waited, {found} are left");
    wait(&mut agent, "90 records waited", &|(_, waiting, _)| {
        waiting >= 90
    });

    // Back, and gone again in the middle of the drain.
    let gateway = start_gateway();
    wait(&mut agent, "a record was published", &|(
        _,
        _,
        published,
    )| published >= 1);
    gateway.kill();
    let gateway = start_gateway();
    let (sealed, _, _) = wait(&mut agent, "all was published", &|(
        _,
        waiting,
        published,
    )| {
        waiting <= 2 && published >= 90
    });
    agent.stop();
    gateway.stop();
    assert!(sealed > 0);

    runtime.block_on(async {
        let reader = system.reader().await;
        let mut records: Vec<Record> = Vec::new();
        let mut all = reader.records(&system.device, all_times());
        while let Some(record) = all.next().await {
            records.push(record.unwrap());
        }
        assert!(records.iter().all(Record::is_fine));
        let mut places: Vec<_> = records
            .iter()
            .map(|r| r.header().unwrap())
            .map(|h| (h.stream, h.sequence))
            .collect();
        let stored = places.len();
        assert!(stored >= 100, "{stored}");
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), stored, "each once");

        let findings = reader.audit(&system.device, all_times()).await.unwrap();
        assert!(findings.is_clean(), "{findings:#?}");
        for stream in &findings.streams {
            assert!(stream.missing.is_empty(), "{findings:#?}");
            assert_eq!(stream.seen, Some(1..=stream.complete_to), "{findings:#?}");
        }
        // In the order of numbers the times rise.
        let in_order = records.windows(2).all(|pair| {
            let (before, after) = (pair[0].header().unwrap(), pair[1].header().unwrap());
            before.stream != after.stream || before.sequence < after.sequence
        });
        assert!(in_order);
    });
}
