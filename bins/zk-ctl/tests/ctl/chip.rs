//! A key in a chip: a simulated one, which takes the place of the vendor's
//! library and fails on command.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zk_hsm_sim::{Daemon, Device, Fault, Faults, Model, Rule};

use crate::hsm::Key;
use crate::world::{World, as_documented, program};

/// Slot 0 of a new chip.
fn chip(model: Model) -> (Key, Device) {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::create(dir.path().join("chip"), model).unwrap();
    let uri = uri(&device, 0);
    (Key { dir, uri }, device)
}

fn uri(device: &Device, slot: u16) -> String {
    let module = device.module_path();
    format!("zymkey:slot={slot}?module-path={}", module.display())
}

#[test]
fn a_chip_does_all_that_a_key_file_does() {
    for model in [Model::Zymkey4i, Model::Hsm4, Model::Hsm6] {
        let (key, _device) = chip(model);
        let info = key.ctl(&["info", "--json"], b"").ends(0).json();
        assert_eq!(info["backend"], "zymkey");
        assert_eq!(info["development"], true);
        for name in ["model", "serial", "firmware"] {
            let text = info[name].as_str().unwrap();
            assert!(text.to_lowercase().contains("simulator"), "{name}: {text}");
        }

        key.write("KEY.pem", &key.ctl(&["public-key"], b"").ends(0).out);
        key.write("report", b"21.437\n");
        let signed = key.ctl(&["sign", "report", "--out", "report.sig"], b"");
        let signed = signed.ends(0);
        let command = signed.err.lines().find(|line| line.contains("openssl"));
        key.sh(command.unwrap()).ends(0);
        let verify = ["verify", "report", "--signature", "report.sig"];
        key.ctl(&verify, b"").ends(0);
        key.write("report", b"21.438\n");
        key.ctl(&verify, b"").ends(3);

        let csr = key.ctl(&["csr", "--name", "pi-07"], b"").ends(0);
        key.write("csr.pem", &csr.out);
        key.sh("openssl req -in csr.pem -verify -noout -subject 2>&1 | grep pi-07")
            .ends(0);
        // whose key it is: the one that was shown
        key.sh("openssl req -in csr.pem -pubkey -noout | cmp - KEY.pem")
            .ends(0);

        let locked = key.ctl(&["lock"], b"a secret").ends(0);
        let opened = key.ctl(&["unlock"], &locked.out).ends(0);
        assert_eq!(opened.out, b"a secret");
        let mut changed = locked.out.clone();
        changed[7] ^= 1;
        let refused = key.ctl(&["unlock"], &changed).ends(1);
        refused.says(&["was not locked by this HSM, or was changed"]);
        let other = chip(model);
        other.0.ctl(&["unlock"], &locked.out).ends(1);

        let random = key.ctl(&["random", "32"], b"").ends(0);
        assert_eq!(random.text().trim_end().len(), 64);
    }
}

#[test]
fn what_a_model_cannot_do_has_an_exit_code_of_its_own() {
    let (small, _device) = chip(Model::Zymkey4i);
    let generate = small.ctl(&["keys", "generate"], b"").ends(6);
    assert!(generate.out.is_empty());
    generate.says(&["can't generate keys", "model"]);
    let keys = small.ctl(&["keys", "list", "--json"], b"").ends(0).json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 3);
    let info = small.ctl(&["info", "--json"], b"").ends(0).json();
    let untold = info["notTold"].as_array().unwrap();
    assert!(untold.contains(&"battery".into()), "{untold:?}");
    assert!(untold.contains(&"temperature".into()), "{untold:?}");
    let text = small.ctl(&["info"], b"").ends(0);
    assert!(text.text().contains("not told"), "{}", text.text());

    let (large, device) = chip(Model::Hsm6);
    let info = large.ctl(&["info", "--json"], b"").ends(0).json();
    assert_eq!(info["notTold"], Value::Array(vec![]));
    assert!(info["health"]["batteryVolts"].as_f64().unwrap() > 0.0);
    // whichever slot is named, a free one is taken
    let generated = large.ctl(&["keys", "generate"], b"").ends(0);
    let made = generated.text().trim_end().to_owned();
    assert_eq!(made, uri(&device, 16));
    generated.says(&["device.hsm", &made]);
    let keys = large.ctl(&["keys", "list", "--json"], b"").ends(0).json();
    let keys = keys["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 13);
    let listed = keys.iter().find(|entry| entry["uri"] == made.as_str());
    let new = Key {
        uri: made.clone(),
        ..large
    };
    let info = new.ctl(&["info", "--json"], b"").ends(0).json();
    assert_eq!(info["key"], listed.unwrap()["key"]);
    new.ctl(&["sign"], b"21.437").ends(0);
}

#[test]
fn a_slot_without_a_key_is_named_with_the_way_on() {
    let (key, device) = chip(Model::Zymkey4i);
    let empty = Key {
        uri: uri(&device, 9),
        ..key
    };
    let run = empty.ctl(&["info"], b"").ends(1);
    run.says(&["slot=9", "no key there", "keys list"]);
}

/// It fails, is busy or comes back as another daemon: one call's failure is
/// nobody's, and what stays is told with its function and code.
#[test]
fn what_passes_passes_and_what_stays_is_told() {
    let (key, device) = chip(Model::Zymkey4i);
    for fault in [Fault::Code(-110), Fault::FlipS, Fault::NullOutput] {
        let once = Rule::new("sign", fault).count(1);
        device.set_faults(&once.into()).unwrap();
        key.ctl(&["sign"], b"21.437").ends(0);
    }
    device
        .set_faults(&Rule::new("sign", Fault::Code(-110)).into())
        .unwrap();
    let run = key.ctl(&["sign"], b"21.437").ends(1);
    assert!(run.out.is_empty());
    run.says(&["zkGenECDSASigFromDigest", "-110", "ETIMEDOUT", "zkifc"]);
    device
        .set_faults(&Rule::new("sign", Fault::FlipR).into())
        .unwrap();
    let run = key.ctl(&["sign"], b"21.437").ends(1);
    assert!(run.out.is_empty());
    run.says(&["does not verify under its public key"]);
}

/// A program that watches, and its lines.
struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    fn start(key: &Key) -> Self {
        let mut child = program(key.dir.path())
            .args(["hsm", "watch", "--interval", "10ms", "--json"])
            .args(["--hsm", &key.uri])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads on until a line says that this has changed.
    fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "it has ended");
            let line: Value = serde_json::from_str(&line).unwrap();
            let changed = line["changed"].as_array().unwrap();
            if changed.contains(&what.into()) && is(&line) {
                return line;
            }
        }
    }

    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn watch_tells_what_happens_to_a_chip() {
    let (key, device) = chip(Model::Hsm6);
    let mut watch = Watch::start(&key);
    let first = watch.until("state", |_| true);
    assert_eq!(first["state"], "ready");
    assert_eq!(
        first["health"]["perimeterBrokenAt"],
        serde_json::json!([null, null])
    );

    device.breach(1, 1_577_836_800).unwrap();
    let broken = watch.until("perimeter", |_| true);
    assert_eq!(
        broken["health"]["perimeterBrokenAt"][1],
        "2020-01-01T00:00:00.000Z"
    );
    assert_eq!(broken["state"], "ready");

    let restarted = Faults {
        daemon: Daemon {
            restarts: 1,
            ..Daemon::default()
        },
        ..Faults::default()
    };
    device.set_faults(&restarted).unwrap();
    let reopened = watch.until("counters", |line| line["counters"]["reopens"] == 1);
    assert_eq!(reopened["counters"]["transientFailures"], 1);

    let mut stopped = restarted;
    stopped.daemon.state = zk_hsm_sim::DaemonState::Down;
    device.set_faults(&stopped).unwrap();
    let down = watch.until("state", |line| line["state"] == "reopening");
    let cause = down["cause"].as_str().unwrap();
    assert!(cause.contains("ENODEV"), "{cause}");
    assert!(down["health"].is_null());

    // it comes back without its keys
    stopped.daemon.state = zk_hsm_sim::DaemonState::Up;
    stopped.rules = vec![Rule::new("public-key", Fault::KeyChanged)];
    device.set_faults(&stopped).unwrap();
    let changed = watch.until("state", |line| line["state"] == "failed");
    let cause = changed["cause"].as_str().unwrap();
    assert!(cause.contains("was opened again and holds key"), "{cause}");
    watch.end();
}

/// What hangs in the chip holds up no signal and no other call, and once it
/// goes on, so does everything.
#[test]
fn a_chip_that_hangs_is_given_up_and_taken_up_again() {
    let (key, device) = chip(Model::Zymkey4i);
    let mut watch = Watch::start(&key);
    watch.until("state", |line| line["state"] == "ready");
    device
        .set_faults(&Rule::new("time", Fault::Hang).into())
        .unwrap();
    std::thread::scope(|scope| {
        // another process, which gets stuck in the same way
        let other = scope.spawn(|| key.ctl(&["info"], b"").ends(1));
        let stuck = watch.until("state", |line| line["state"] == "wedged");
        assert_eq!(stuck["counters"]["timeouts"], 1);
        let other = other.join().unwrap();
        other.says(&["health got no answer from the HSM within 10"]);
    });
    device.clear_faults().unwrap();
    let again = watch.until("state", |line| line["state"] == "ready");
    assert_eq!(again["counters"]["lateResults"], 1);
    watch.end();
    key.ctl(&["watch", "--once"], b"").ends(0);
}

#[test]
fn watch_ends_with_what_was_to_be_seen_at_last() {
    let (key, device) = chip(Model::Zymkey4i);
    device
        .set_faults(&Rule::new("time", Fault::Code(-5)).after(1).into())
        .unwrap();
    let run = key.ctl(&["watch", "--count", "2", "--interval", "10ms"], b"");
    let run = run.ends(3);
    assert!(run.text().contains("state reopening"), "{}", run.text());
    assert!(run.text().contains("EIO"), "{}", run.text());
}

/// A record and a handshake, both signed in the chip; and all checks of doctor.
#[tokio::test(flavor = "multi_thread")]
async fn a_chip_publishes_as_a_key_file_does() {
    let (key, device) = chip(Model::Zymkey4i);
    let world = World::with_key(&key.uri.parse().unwrap()).await;
    world.ctl_with(&["publish"], b"21.437").ends(0);
    let stored = world.stored().await;
    assert_eq!(stored.last().unwrap().body(), b"21.437");

    let doctor = world.ctl(&["doctor"]).ends(0);
    for part in ["ok       pair", "ok       tls", "ok       module"] {
        assert!(
            doctor.text().contains(part),
            "no {part} in {}",
            doctor.text()
        );
    }
    // by a chip that has other things to do, and loses its daemon, too
    let mut faults = Faults {
        rules: vec![
            Rule::new("sign", Fault::Code(-16)).count(1),
            Rule::new("sign", Fault::FlipR).after(2).count(1),
        ],
        ..Faults::default()
    };
    faults.daemon.restarts = 1;
    device.set_faults(&faults).unwrap();
    world.ctl_with(&["publish"], b"21.438").ends(0);
    assert_eq!(world.stored().await.last().unwrap().body(), b"21.438");
    assert!(world.audits_clean().await);
}

/// Cause and cure for each thing that keeps a chip's key from being used.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_is_wrong_with_a_chip() {
    let world = World::new().await;
    let device = Device::create(world.path("chip"), Model::Hsm4).unwrap();
    let key = |uri: &str| {
        let run = world.ctl(&["doctor", "--json", "--hsm", uri]);
        let report = run.json();
        let checks = report["checks"].as_array().unwrap();
        let check = |name: &str| {
            let check = checks.iter().find(|check| check["check"] == name);
            let check = check.unwrap();
            let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
            let words = format!("{} -> {}", text("finding"), text("cure"));
            (text("status"), words)
        };
        (check("key"), check("module"))
    };
    let failed = |uri: &str, parts: &[&str]| {
        let ((status, words), module) = key(uri);
        assert_eq!(status, "failed", "{words}");
        for part in parts {
            assert!(words.contains(part), "no {part:?} in {words}");
        }
        assert_eq!(module.1, "it needs key -> ");
    };

    let ((status, words), (module, measured)) = key(&uri(&device, 0));
    assert_eq!(status, "warning");
    assert!(words.contains("which no hardware protects"), "{words}");
    // a simulated one is never bound for good
    assert_eq!(module, "warning", "{measured}");
    assert!(measured.contains("bind it for good"), "{measured}");

    device.breach(0, 1_577_836_800).unwrap();
    let (_, (module, measured)) = key(&uri(&device, 0));
    assert_eq!(module, "warning");
    assert!(
        measured.contains("circuit 0 BROKEN at 2020-01-01"),
        "{measured}"
    );

    failed(&uri(&device, 9), &["no key there", "keys list"]);
    for (on, code, parts) in [
        (
            "open",
            -111,
            ["zkOpen", "ECONNREFUSED", "systemctl status zkifc"],
        ),
        ("sign", -5, ["zkGenECDSASig", "EIO", "Restart zkifc"]),
    ] {
        let rule = Rule::new(on, Fault::Code(code));
        device.set_faults(&rule.into()).unwrap();
        failed(&uri(&device, 0), &parts);
    }
    device.clear_faults().unwrap();

    failed(
        "zymkey:slot=0?module-path=/nowhere/lib.so",
        &["/nowhere/lib.so", "install Zymbit's packages"],
    );
    let module = device.module_path();
    fs::set_permissions(&module, fs::Permissions::from_mode(0o777)).unwrap();
    failed(
        &uri(&device, 0),
        &["others could put their code", "install it again"],
    );
    fs::set_permissions(&module, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(&module, b"not a library").unwrap();
    failed(&uri(&device, 0), &["can't be loaded", "module-path"]);
}

#[test]
fn what_the_document_shows_works() {
    let run = as_documented("chip.rs").ends(0);
    let text = run.text();
    for part in [
        "HSM6 SIMULATOR",
        "zymkey:slot=16?",
        "valid    signed by key",
        "state ready",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
