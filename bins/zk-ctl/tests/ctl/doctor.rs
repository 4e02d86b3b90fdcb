//! What doctor finds, and that it names the cause.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use zk_spool::Spool;

use zk_sensors::SimulatedBus;

use crate::world::{Run, World, authority, closed_endpoint};

/// Status of each check, from JSON.
fn checks(run: &Run) -> BTreeMap<String, (String, String)> {
    let json = run.json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = json["checks"].as_array().unwrap().iter();
    checks
        .map(|check| {
            let words = format!("{} -> {}", text(&check["finding"]), text(&check["cure"]));
            // a check that failed has a cure, on one line
            assert_eq!(
                check["status"] == "failed",
                check["cure"].is_string() && check["status"] != "warning"
            );
            assert!(!words.contains('\n'), "{words}");
            (text(&check["check"]), (text(&check["status"]), words))
        })
        .collect()
}

/// Runs doctor and expects one check to fail, for a reason that has `parts`,
/// and those behind it not to run.
#[track_caller]
fn finds(world: &World, arguments: &[&str], check: &str, parts: &[&str], not_run: &[&str]) {
    let run = world
        .ctl(&[&["doctor", "--json"], arguments].concat())
        .ends(3);
    let all = checks(&run);
    let (status, words) = &all[check];
    assert_eq!(status, "failed", "{all:#?}");
    for part in parts {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    for (name, (status, words)) in &all {
        match status.as_str() {
            "failed" => assert_eq!(name, check, "{all:#?}"),
            // a key file has none, whatever else there is
            "not run" if words.contains("measures nothing") => assert_eq!(name, "module"),
            "not run" if name == "unit" || !words.contains("it needs") => {}
            "not run" => {
                assert!(not_run.contains(&name.as_str()), "{name}: {all:#?}");
                assert!(words.contains("it needs"), "{words}");
            }
            _ => assert!(!not_run.contains(&name.as_str()), "{name}: {all:#?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_nothing_is_found_and_nothing_published() {
    let world = World::new().await;
    let run = world.ctl(&["doctor", "--json"]).ends(0);
    let all = checks(&run);
    let names: Vec<_> = run.json()["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["check"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "configuration",
            "clock",
            "key",
            "module",
            "certificate",
            "pair",
            "roots",
            "owners",
            "name",
            "connection",
            "tls",
            "server-clock",
            "spool",
            "disk",
            "sensors",
            "bulk",
            "unit",
            "agent",
            "publish"
        ]
    );
    for (name, (status, words)) in &all {
        // a key in a file is what it is
        let expected = match name.as_str() {
            "key" | "bulk" => "warning",
            "module" | "agent" | "publish" => "not run",
            // as this machine is
            "unit" => continue,
            _ => "ok",
        };
        assert_eq!(status, expected, "{name}: {words}");
    }
    assert!(all["key"].1.contains("signs in"), "{}", all["key"].1);
    assert!(
        all["server-clock"].1.contains("0 s"),
        "{}",
        all["server-clock"].1
    );

    let text = world.ctl(&["doctor"]).ends(0);
    assert!(text.text().contains("nothing failed; "), "{}", text.text());
    let counters = world.gateway.counters();
    assert_eq!((counters.bytes, counters.stored), (0, 0));
    assert!(world.stored().await.is_empty());
    assert!(world.quarantined().await.is_empty());
    assert!(!world.path("spool").exists() && !world.path("zk-ctl-spool").exists());
}

const NETWORK: [&str; 4] = ["name", "connection", "tls", "server-clock"];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_the_configuration_is_named() {
    let world = World::new().await;
    let endpoint = format!("endpoint = \"localhost:{}\"", world.address.port());
    world.reconfigure(&endpoint, "");
    let rest = [
        "key",
        "module",
        "certificate",
        "pair",
        "roots",
        "owners",
        "spool",
        "disk",
        "sensors",
        "bulk",
        "agent",
        "publish",
    ];
    let not_run = [&NETWORK[..], &rest].concat();
    finds(
        &world,
        &[],
        "configuration",
        &["agent.toml", "endpoint"],
        &not_run,
    );
    let text = world.ctl(&["doctor"]).ends(3);
    assert!(
        text.text().contains("failed   configuration"),
        "{}",
        text.text()
    );
    assert!(text.text().contains("-> correct"), "{}", text.text());

    fs::remove_file(world.path("agent.toml")).unwrap();
    finds(
        &world,
        &[],
        "configuration",
        &["No such file", "--config"],
        &not_run,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_open_is_named() {
    let world = World::new().await;
    fs::remove_file(world.path("key.pem")).unwrap();
    let not_run = ["module", "pair", "tls", "server-clock"];
    let says = ["key.pem", "No such file", "keys generate"];
    finds(&world, &[], "key", &says, &not_run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_key_is_named() {
    let world = World::new().await;
    let other = format!("soft:{}", world.arg("other.pem"));
    world
        .ctl(&["hsm", "keys", "generate", "--hsm", &other])
        .ends(0);
    let not_run = ["tls", "server-clock"];
    let parts = ["holds key", "zk-ctl hsm csr"];
    finds(&world, &["--hsm", &other], "pair", &parts, &not_run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_over_or_somebody_elses_is_named() {
    let world = World::new().await;
    let not_run = ["pair", "tls", "server-clock"];
    world.certify(&world.device_ca, "pi-01", |params| {
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let parts = ["expired at 2021-01-01", "zk-setup device add pi-01"];
    finds(&world, &[], "certificate", &parts, &not_run);
    world.certify(&world.device_ca, "pi-02", |_| {});
    finds(
        &world,
        &[],
        "certificate",
        &["CN=pi-02", "device.id is pi-01"],
        &not_run,
    );
    fs::write(world.path("pi-01.crt.pem"), "nothing").unwrap();
    finds(
        &world,
        &[],
        "certificate",
        &["pi-01.crt.pem", "certificate"],
        &not_run,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let world = World::new().await;
    let down = closed_endpoint();
    let not_run = ["tls", "server-clock"];
    let parts = ["localhost", "refused", "is the server running"];
    finds(
        &world,
        &["--endpoint", &down],
        "connection",
        &parts,
        &not_run,
    );
    let nowhere = ["--endpoint", "nowhere.invalid:8443"];
    let not_run = ["connection", "tls", "server-clock"];
    finds(
        &world,
        &nowhere,
        "name",
        &["nowhere.invalid", "name server"],
        &not_run,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_an_unknown_authority_is_named_with_its_issuer() {
    let world = World::new().await;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let other = authority("some other CA");
    let server = world.server(&other, "localhost", answer).await;
    let parts = [
        "some other CA",
        "no authority in",
        "roots.pem",
        "target.roots",
    ];
    finds(
        &world,
        &["--endpoint", &server],
        "tls",
        &parts,
        &["server-clock"],
    );

    // the page to log in to of a network: neither the name nor the authority
    let portal = world
        .server(&authority("Hotel CA"), "login.example", answer)
        .await;
    let parts = ["Hotel CA", "something else answers", "captive portal"];
    finds(
        &world,
        &["--endpoint", &portal],
        "tls",
        &parts,
        &["server-clock"],
    );
    let plain = world
        .plain_server("HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n")
        .await;
    let parts = ["does not speak TLS", "captive portal"];
    finds(
        &world,
        &["--endpoint", &plain],
        "tls",
        &parts,
        &["server-clock"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_name_is_named() {
    let world = World::new().await;
    let by_address = format!("127.0.0.1:{}", world.address.port());
    let parts = ["not for 127.0.0.1", "target.endpoint"];
    finds(
        &world,
        &["--endpoint", &by_address],
        "tls",
        &parts,
        &["server-clock"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_take_the_device_is_named() {
    let world = World::new().await;
    world.certify(&authority("another device CA"), "pi-01", |_| {});
    let parts = [
        "does not take this device's certificate",
        "zk-setup device list",
    ];
    finds(&world, &[], "tls", &parts, &["server-clock"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_date_is_not_compared_with() {
    let world = World::new().await;
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let server = world.server(&world.server_ca, "localhost", answer).await;
    let run = world
        .ctl(&["doctor", "--json", "--endpoint", &server])
        .ends(0);
    assert_eq!(checks(&run)["server-clock"].0, "not run");

    let answer =
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: Sat, 01 Feb 2020 10:00:00 GMT\r\n\r\n";
    let server = world.server(&world.server_ca, "localhost", answer).await;
    let parts = ["ahead of the server's", "timedatectl"];
    finds(
        &world,
        &["--endpoint", &server],
        "server-clock",
        &parts,
        &[],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_roots_and_spool_are_looked_at() {
    let world = World::new().await;
    fs::write(world.path("owner.pub.pem"), "nothing").unwrap();
    finds(
        &world,
        &[],
        "owners",
        &["owner.pub.pem", "zk-reader keygen"],
        &[],
    );
    world.reconfigure("owner.pub.pem", "owner-2.pub.pem");
    finds(
        &world,
        &[],
        "owners",
        &["owner-2.pub.pem", "No such file"],
        &[],
    );

    let world = World::new().await;
    fs::write(world.path("roots.pem"), "nothing").unwrap();
    let not_run = ["tls", "server-clock"];
    finds(
        &world,
        &[],
        "roots",
        &["roots.pem", "target.roots"],
        &not_run,
    );

    let world = World::new().await;
    fs::write(world.path("spool"), "a file").unwrap();
    let run = world.ctl(&["doctor", "--json"]).ends(3);
    assert_eq!(checks(&run)["spool"].0, "failed");
}

/// What works still, and will not for long.
#[tokio::test(flavor = "multi_thread")]
async fn warnings_are_no_failures() {
    let world = World::new().await;
    let warns = |check: &str, parts: &[&str]| {
        let run = world.ctl(&["doctor", "--json"]).ends(0);
        let (status, words) = &checks(&run)[check];
        assert_eq!(status, "warning", "{words}");
        for part in parts {
            assert!(words.contains(part), "no {part:?} in {words}");
        }
    };
    let in_ten_days = SystemTime::now() + Duration::from_secs(10 * 24 * 60 * 60);
    world.certify(&world.device_ca, "pi-01", |params| {
        params.not_after = in_ten_days.into();
    });
    warns(
        "certificate",
        &["valid until", "expires soon", "zk-ctl hsm csr"],
    );

    let options = zk_spool::Options {
        cap: 1 << 20,
        ..zk_spool::Options::default()
    };
    let spool = Spool::open(world.path("spool"), options).unwrap();
    let append = |len| spool.append_with(|_| Ok::<_, Infallible>(vec![0; len]));
    append(900_000).unwrap();
    append(60_000).unwrap();
    warns("spool", &["2 records wait", "nearly full", "spool.cap"]);
    let oldest = spool.peek(1, 0).unwrap().pop().unwrap();
    spool.reject(oldest.position()).unwrap();
    warns(
        "spool",
        &[
            "1 records wait",
            "1 (refused), 1 to 1",
            "zk-ctl spool status",
        ],
    );

    world.reconfigure("1MiB", "4000PiB");
    warns("disk", &["may grow by", "lower spool.cap"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sensors_are_read_and_doubtful_ones_named() {
    let world = World::new().await;
    let check = |name: &str, exit: i32| {
        let run = world.ctl(&["doctor", "--json"]).ends(exit);
        checks(&run)[name].clone()
    };
    let (status, words) = check("sensors", 0);
    assert_eq!(status, "ok");
    assert!(words.contains("1 of 1 thermometers"), "{words}");
    // root alone may begin a conversion, until the udev rule permits it
    let (status, words) = check("bulk", 0);
    assert_eq!(status, "warning");
    for part in ["therm_bulk_read", "mode 644", "zk-agent.rules", "udevadm"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    let file = world.path("sys/bus/w1/devices/w1_bus_master1/therm_bulk_read");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    // as a rule without its chgrp leaves it
    if fs::metadata(&file).unwrap().gid() == 0 {
        assert_eq!(check("bulk", 0).0, "warning");
        std::os::unix::fs::chown(&file, None, Some(1)).unwrap();
    }
    assert_eq!(check("bulk", 0).0, "ok");
    // of an offset for a sensor that isn't here, which is a slip, somebody is told
    let offset = |text: &str| format!("[sensors]\noffsets = [\"{text}\"]\n");
    world.reconfigure("[sensors]\n", &offset("28-0000000a0001=-0.25"));
    assert_eq!(check("sensors", 0).0, "ok");
    world.reconfigure(
        &offset("28-0000000a0001=-0.25"),
        &offset("28-0000000b0001=-0.25"),
    );
    let (status, words) = check("sensors", 0);
    assert_eq!(status, "warning");
    for part in ["1 of 1", "28-0000000b0001=-0.250", "sensors.offsets"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    world.reconfigure(&offset("28-0000000b0001=-0.25"), "[sensors]\n");
    // where an agent reads as well, nothing is converted under its hands
    let more = ["28-0000000a0002", "28-0000000a0003"].map(|id| id.parse().unwrap());
    let mut wires = SimulatedBus::create(world.path("sys"), &more).unwrap();
    assert!(check("sensors", 0).1.contains("3 of 3"));
    let begun = world.path("sys/devices/w1_bus_master2/therm_bulk_read");
    assert_eq!(fs::read_to_string(begun).unwrap(), "0\n");
    for sensor in more {
        wires.unplug(sensor).unwrap();
    }

    let sensor = world.path("sys/bus/w1/devices/28-0000000a0001/w1_slave");
    fs::write(&sensor, "").unwrap();
    let (status, words) = check("sensors", 3);
    assert_eq!(status, "failed");
    for part in ["0 of 1", "28-0000000a0001 empty", "wiring"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    fs::remove_dir_all(world.path("sys")).unwrap();
    let (status, words) = check("sensors", 3);
    assert_eq!(status, "failed");
    assert!(words.contains("dtoverlay=w1-gpio"), "{words}");
    assert_eq!(check("bulk", 3).0, "not run");
    // a device may be there for data alone
    world.reconfigure("[spool]", "[socket]\nlisten = \"publish.sock\"\n\n[spool]");
    assert_eq!(check("sensors", 0).0, "warning");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_is_asked_how_it_is() {
    let world = World::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = format!("[metrics]\nlisten = \"{address}\"\n\n[spool]");
    world.reconfigure("[spool]", &metrics);
    let check = |exit: i32| {
        let run = world.ctl(&["doctor", "--json"]).ends(exit);
        checks(&run)["agent"].clone()
    };
    let config = zk_agent::Config::read(&world.path("agent.toml")).unwrap();
    let agent = zk_agent::Agent::start(&config, || {}).unwrap();
    let metrics = zk_agent::Metrics::serve(listener, agent.watch()).unwrap();
    let (status, words) = check(0);
    assert_eq!(status, "ok", "{words}");
    drop(metrics);
    agent.stop(Duration::from_secs(30)).unwrap();
    let (status, words) = check(0);
    assert_eq!(status, "warning");
    assert!(words.contains("no agent answers"), "{words}");

    // one that needs somebody
    world.certify(&world.device_ca, "pi-01", |params| {
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let listener = std::net::TcpListener::bind(address).unwrap();
    let agent = zk_agent::Agent::start(&config, || {}).unwrap();
    let metrics = zk_agent::Metrics::serve(listener, agent.watch()).unwrap();
    let (status, words) = check(3);
    assert_eq!(status, "failed");
    assert!(words.contains("certificate has expired"), "{words}");
    drop(metrics);
    agent.stop(Duration::ZERO).unwrap();
}

/// The handshake of TLS 1.3 succeeds with a certificate that the server doesn't know:
/// only a record shows that.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_real_record_shows_that_a_device_may_publish() {
    let world = World::unregistered().await;
    let run = world.ctl(&["doctor", "--json"]).ends(0);
    assert_eq!(checks(&run)["publish"].0, "not run");
    let run = world.ctl(&["doctor", "--json", "--publish"]).ends(3);
    let (status, words) = checks(&run)["publish"].clone();
    assert_eq!(status, "failed");
    for part in ["does not let this device publish", "zk-setup device list"] {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    assert!(world.stored().await.is_empty());

    world.register().await;
    let run = world.ctl(&["doctor", "--json", "--publish"]).ends(0);
    let (status, words) = checks(&run)["publish"].clone();
    assert_eq!(status, "ok", "{words}");
    // what was kept goes first
    let stored = world.stored().await;
    let bodies = stored
        .iter()
        .filter(|record| record.body() == b"zk-ctl doctor");
    assert_eq!(bodies.count(), 2);
    assert!(world.audits_clean().await);

    let down = closed_endpoint();
    let arguments = [
        "doctor",
        "--publish",
        "--endpoint",
        &down,
        "--timeout",
        "1s",
    ];
    let not_run = ["tls", "server-clock"];
    let run = world.ctl(&[&arguments[..], &["--json"]].concat()).ends(3);
    let all = checks(&run);
    assert_eq!(all["publish"].0, "failed");
    assert!(all["publish"].1.contains("kept"), "{}", all["publish"].1);
    assert!(not_run.iter().all(|name| all[*name].0 == "not run"));
}
