//! The program as a process: what it prints where, what it leaves, how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use zk_envelope::{DeviceId, KeyState, OwnerKey, TrustFile};
use zk_hsm::{Hsm, Options, create_soft_key};
use zk_hsm_sim::{Device, Model};

const PASSPHRASE: &str = "correct horse battery";
const OWNER: &str = "the owner's words";

#[test]
fn from_nothing_to_a_revoked_device() {
    let place = Place::new();
    let ca = place.ok(&["ca", "init"]);
    assert_eq!(ca.out.lines().count(), 4);
    assert!(
        ca.out
            .lines()
            .all(|line| line.starts_with("created  zk/ca/")),
        "{}",
        ca.out
    );
    assert!(ca.err.contains("Back up zk/ca"), "{}", ca.err);

    let gateway = place.ok(&[
        "gateway",
        "init",
        "--name",
        "gateway.example",
        "--ip",
        "127.0.0.1",
    ]);
    assert!(
        gateway
            .out
            .contains("gateway gateway.example, 127.0.0.1, certificate until"),
        "{}",
        gateway.out
    );
    assert!(
        gateway
            .err
            .contains("zk-gateway --config zk/gateway/gateway.toml"),
        "{}",
        gateway.err
    );

    let owner = place.owner("owner.pub.pem");
    let csr = place.csr("pi-01");
    let add = [
        "device",
        "add",
        "pi-01",
        "--csr",
        &csr,
        "--owner",
        "owner.pub.pem",
    ];
    let added = place.ok(&add);
    assert!(
        added.out.contains("device pi-01 may publish"),
        "{}",
        added.out
    );
    assert!(
        added.err.contains("Copy zk/devices/pi-01 to the device"),
        "{}",
        added.err
    );
    let trust = TrustFile::read(&place.path("zk/trust.toml")).unwrap();
    let pi_01 = DeviceId::try_from("pi-01").unwrap();
    assert_eq!(trust.devices[&pi_01].owners, [owner].into());

    // again: the same certificate, and it says so
    let certificate = place.read("zk/devices/pi-01/device.crt.pem");
    let again = place.ok(&add);
    assert!(
        again
            .out
            .lines()
            .take(6)
            .all(|line| line.starts_with("kept ")),
        "{}",
        again.out
    );
    assert_eq!(place.read("zk/devices/pi-01/device.crt.pem"), certificate);

    let list = place.ok(&["device", "list"]);
    let rows: Vec<_> = list
        .out
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert_eq!(
        rows[0],
        ["DEVICE", "STATE", "KEY", "CERTIFICATE", "REGISTERED"]
    );
    assert_eq!(rows[1][..2], ["pi-01", "active"]);
    assert_eq!(rows.len(), 2);

    let revoked = place.ok(&["device", "revoke", "pi-01"]);
    assert!(
        revoked.out.contains("device pi-01 is revoked"),
        "{}",
        revoked.out
    );
    let trust = TrustFile::read(&place.path("zk/trust.toml")).unwrap();
    assert!(matches!(
        trust.devices[&pi_01].keys[0].state,
        KeyState::Revoked { .. }
    ));
    let list = place.ok(&["device", "list"]);
    assert!(
        list.out
            .lines()
            .nth(1)
            .unwrap()
            .starts_with("pi-01   revoked "),
        "{}",
        list.out
    );
    let refused = place.fails(1, &add);
    assert!(refused.err.contains("was revoked"), "{}", refused.err);
}

#[test]
fn scripts_read_json() {
    let place = Place::new();
    let steps = place.json(&["ca", "init"]);
    assert_eq!(steps["steps"][0]["action"], "created");
    assert_eq!(steps["steps"][0]["item"], "zk/ca/device-ca.key.pem");
    let gateway = place.json(&["gateway", "init", "--name", "localhost"]);
    assert_eq!(gateway["names"], serde_json::json!(["localhost"]));
    place.owner("owner.pub.pem");
    let csr = place.csr("pi-01");
    let added = place.json(&[
        "device",
        "add",
        "pi-01",
        "--csr",
        &csr,
        "--owner",
        "owner.pub.pem",
    ]);
    assert_eq!(added["device"], "pi-01");
    assert_eq!(added["dir"], "zk/devices/pi-01");

    let list = place.json(&["device", "list"]);
    let [device] = &list["devices"].as_array().unwrap()[..] else {
        panic!("{list}")
    };
    assert_eq!(device["device"], "pi-01");
    assert_eq!(device["state"], "active");
    assert_eq!(device["keys"][0]["id"], added["key"]);
    assert_eq!(device["keys"][0]["state"], "active");
    assert_eq!(device["certificates"][0]["principal"], added["principal"]);

    place.json(&["device", "revoke", "pi-01"]);
    let list = place.json(&["device", "list"]);
    let device = &list["devices"][0];
    assert_eq!(device["state"], "revoked");
    assert_eq!(
        device["keys"][0]["revokedAt"],
        device["certificates"][0]["revokedAt"]
    );
    assert!(
        device["keys"][0]["revokedAt"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
}

/// What it writes is what the gateway and the agent read.
#[test]
fn gateway_and_agent_read_their_configuration() {
    let place = Place::new();
    place.ok(&["ca", "init"]);
    place.ok(&[
        "gateway",
        "init",
        "--name",
        "localhost",
        "--listen",
        "127.0.0.1:9443",
    ]);
    place.owner("owner.pub.pem");
    let key = format!("soft:{}", place.path("key.pem").display());
    place.ok(&[
        "device",
        "add",
        "pi-01",
        "--hsm",
        &key,
        "--owner",
        "owner.pub.pem",
    ]);

    let path = place.path("zk/gateway/gateway.toml");
    let gateway = zk_gateway::Config::load(&path, zk_gateway::Overrides::default()).unwrap();
    assert_eq!(gateway.listen, "127.0.0.1:9443".parse().unwrap());
    assert_eq!(
        gateway.store,
        zk_store::StoreUri::File(place.path("zk/gateway/store.db"))
    );
    zk_gateway::Tls::load(&gateway.tls).unwrap();

    let agent = zk_agent::Config::read(&place.path("zk/devices/pi-01/agent.toml")).unwrap();
    assert_eq!(agent.device.id.as_str(), "pi-01");
    assert_eq!(agent.device.hsm, key);
    assert_eq!(agent.target.endpoint, "localhost:9443");
    for file in [
        &agent.device.certificate,
        &agent.target.roots,
        &agent.owners.files[0],
    ] {
        assert!(file.exists(), "{}", file.display());
    }
    assert_eq!(agent.spool.dir, Path::new("/var/lib/zk-agent/spool"));
    // what is off, and how it is switched on
    assert_eq!(agent.socket.listen, None);
    let path = place.path("zk/devices/pi-01/agent.toml");
    let mut text = fs::read_to_string(&path).unwrap();
    for line in ["[socket]", "listen = ", "group = "] {
        text = text.replace(&format!("# {line}"), line);
    }
    fs::write(&path, text).unwrap();
    let socket = zk_agent::Config::read(&path).unwrap().socket;
    let listen = Path::new("/run/zk-agent/publish.sock");
    assert_eq!(socket.listen.as_deref(), Some(listen));
    assert_eq!(socket.group.as_deref(), Some("zk-publish"));
}

#[test]
fn a_key_in_this_machine_makes_its_request_here() {
    let place = Place::new();
    place.ok(&["ca", "init"]);
    place.ok(&["gateway", "init", "--name", "localhost"]);
    place.owner("owner.pub.pem");
    // a development key is made if it isn't there, and used the next time
    let key = format!("soft:{}", place.path("key.pem").display());
    let add = [
        "device",
        "add",
        "pi-01",
        "--hsm",
        &key,
        "--owner",
        "owner.pub.pem",
    ];
    let first = place.json(&add);
    let second = place.json(&add);
    assert_eq!(first["key"], second["key"]);
    assert_eq!(first["principal"], second["principal"]);
    let refused = place.fails(2, &["device", "add", "pi-01", "--hsm", "soft:key.pem"]);
    assert!(refused.err.contains("absolute path"), "{}", refused.err);
}

#[test]
fn the_passphrase_comes_from_a_private_file_or_the_environment() {
    let place = Place::new();
    let in_clear = place.secret("shared", "correct horse battery", 0o640);
    let refused = place.without_passphrase(&["ca", "init", "--passphrase-file", &in_clear]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("chmod 600"), "{}", refused.err);
    for (content, reason) in [
        ("correct\nhorse battery\n", "one line"),
        (&"x".repeat(1024), "one line"),
        ("short\n", "at least 8 characters"),
        ("", "at least 8 characters"),
    ] {
        let file = place.secret("bad", content, 0o600);
        let refused = place.without_passphrase(&["ca", "init", "--passphrase-file", &file]);
        assert_eq!(refused.code, 1);
        assert!(refused.err.contains(reason), "{content:?}: {}", refused.err);
        assert!(
            content.is_empty() || !refused.err.contains(content),
            "{}",
            refused.err
        );
    }
    assert!(!place.path("zk").exists());

    place.ok(&["ca", "init"]);
    // the line's end is no part of it, in whatever way it was written
    let file = place.secret("crlf", "correct horse battery\r\n", 0o600);
    let same = place.without_passphrase(&["ca", "init", "--passphrase-file", &file]);
    assert_eq!(same.code, 0, "{}", same.err);

    let environment = |text: &str| {
        let mut command = place.command(&["ca", "init"]);
        Place::run(command.env("ZK_SETUP_PASSPHRASE", text))
    };
    let same = environment(PASSPHRASE);
    assert_eq!(same.code, 0, "{}", same.err);
    assert!(
        same.err.contains("--passphrase-file keeps it better"),
        "{}",
        same.err
    );
    let wrong = environment("incorrect horse");
    assert_eq!(wrong.code, 1);
    assert!(
        wrong.err.contains("device-ca.key.pem: wrong passphrase"),
        "{}",
        wrong.err
    );
    assert!(!wrong.err.contains("incorrect"), "{}", wrong.err);
}

#[test]
fn a_person_is_asked_for_the_passphrase_and_twice_for_a_new_one() {
    let place = Place::new();
    let init = ["ca", "init"];
    let (code, said) = place.at_terminal(
        &init,
        &[("authorities: ", PASSPHRASE), ("again: ", "other words")],
    );
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("the two passphrases differ"), "{said}");
    assert!(!place.path("zk").exists());
    let (code, said) = place.at_terminal(
        &init,
        &[("authorities: ", PASSPHRASE), ("again: ", PASSPHRASE)],
    );
    assert_eq!(code, 0, "{said}");
    let (code, said) = place.at_terminal(&init, &[("authorities: ", PASSPHRASE)]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = place.at_terminal(&init, &[("authorities: ", "other words")]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("wrong passphrase"), "{said}");

    // where nobody can be asked, it says what to do instead
    let mut detached = Command::new("setsid");
    detached
        .arg("--wait")
        .arg(env!("CARGO_BIN_EXE_zk-setup"))
        .env("ZK_SETUP_TARGET", "local")
        .args(init);
    let alone = Place::run(detached.current_dir(place.0.path()).stdin(Stdio::null()));
    assert_eq!(alone.code, 1);
    assert!(alone.err.contains("--passphrase-file"), "{}", alone.err);
}

#[test]
fn mistakes_say_what_to_do_next() {
    let place = Place::new();
    let early = place.fails(1, &["gateway", "init", "--name", "localhost"]);
    assert!(
        early.err.contains("begin with `zk-setup ca init`"),
        "{}",
        early.err
    );
    place.ok(&["ca", "init"]);
    let early = place.fails(1, &["device", "list"]);
    assert!(
        early.err.contains("run `zk-setup gateway init` first"),
        "{}",
        early.err
    );
    place.ok(&["gateway", "init", "--name", "localhost"]);

    let csr = place.csr("pi-01");
    let nobody = place.fails(1, &["device", "add", "pi-01", "--csr", &csr]);
    assert!(nobody.err.contains("zk-reader keygen"), "{}", nobody.err);
    place.owner("owner.pub.pem");
    let other = place.fails(
        1,
        &[
            "device",
            "add",
            "pi-02",
            "--csr",
            &csr,
            "--owner",
            "owner.pub.pem",
        ],
    );
    assert!(other.err.contains("CN=pi-02"), "{}", other.err);
    let missing = place.fails(1, &["device", "add", "pi-01", "--csr", "nowhere"]);
    assert!(missing.err.contains("nowhere"), "{}", missing.err);
    let not_a_key = place.fails(
        1,
        &["device", "add", "pi-01", "--csr", &csr, "--owner", &csr],
    );
    assert!(
        not_a_key.err.contains("owner's key pi-01.csr.pem"),
        "{}",
        not_a_key.err
    );
    fs::write(place.path("bytes"), [0xff; 40]).unwrap();
    let owner = |file| ["device", "add", "pi-01", "--csr", &csr, "--owner", file];
    let request = |file| ["device", "add", "pi-01", "--csr", file];
    for (arguments, says) in [
        (&owner("bytes")[..], "as `zk-reader keygen` writes it"),
        (&owner("nowhere"), "next: check the path"),
        (&request("bytes"), "bytes"),
        (&request("bytes"), "openssl req -new"),
        (&request("owner.pub.pem"), "openssl req -new"),
        (&request("zk"), "next: check the path"),
        (&request("nowhere"), "next: check the path"),
        (
            &["--dir", "bytes", "ca", "init"],
            "next: choose another path",
        ),
    ] {
        let mistaken = place.fails(1, arguments);
        let err = &mistaken.err;
        assert!(err.contains(says), "{arguments:?}: no {says:?} in {err}");
    }
    let unknown = place.fails(1, &["device", "revoke", "pi-09"]);
    assert!(
        unknown.err.contains("zk-setup device list"),
        "{}",
        unknown.err
    );
    // nothing of this has added anybody
    assert_eq!(
        place.json(&["device", "list"])["devices"],
        serde_json::json!([])
    );
}

/// The store's table of devices is not the operator's word.
#[test]
fn what_a_store_says_does_not_reach_the_terminal_raw() {
    let place = Place::new();
    place.ok(&["ca", "init"]);
    place.ok(&["gateway", "init", "--name", "localhost"]);
    let uri = zk_store::StoreUri::File(place.path("zk/gateway/store.db"));
    let record = zk_verify::DeviceRecord {
        device: DeviceId::try_from("pi-01").unwrap(),
        certificate: KeyState::Active,
        keys: Vec::new(),
        registered_at: std::time::SystemTime::now().into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = zk_store::Store::open(&uri, zk_store::Options::default());
        let store = store.await.unwrap();
        store.register("\x1b]0;owned\x07", &record).await.unwrap();
    });
    for command in ["list", "revoke"] {
        let arguments = ["device", command, "pi-01"];
        let name = if command == "list" { 2 } else { 3 };
        let said = place.ok(&arguments[..name]);
        for text in [said.out, said.err] {
            assert!(!text.contains(['\x1b', '\x07']), "{command}: {text:?}");
        }
    }
}

/// The promise: one command, then everything is there and in order.
#[test]
fn one_command_from_nothing() {
    let place = Place::new();
    let key = format!("soft:{}", place.path("key.pem").display());
    let listen = place.free_address();
    let apply = [
        "apply", "--device", "pi-01", "--hsm", &key, "--listen", &listen,
    ];
    let planned = place.with_passphrase(&["plan", "--device", "pi-01", "--hsm", &key]);
    assert_eq!(planned.code, 3, "{}", planned.err);
    assert!(
        planned.out.contains("create   zk/ca/device-ca.key.pem"),
        "{}",
        planned.out
    );
    assert!(
        planned.out.contains("create   zk/owner.pem"),
        "{}",
        planned.out
    );
    assert!(!place.path("zk").exists() && !place.path("key.pem").exists());

    let applied = place.ok(&apply);
    assert!(
        applied.out.contains("created  zk/trust.toml"),
        "{}",
        applied.out
    );
    for hint in [
        "BACK UP THE OWNER'S KEY NOW: zk/owner.pem",
        "names are localhost",
        "zk-gateway --config zk/gateway/gateway.toml",
        "zk-agent --config zk/devices/pi-01/agent.toml",
        "zk-reader --config zk/reader.toml list",
    ] {
        assert!(applied.err.contains(hint), "no {hint:?} in {}", applied.err);
    }
    let agent = zk_agent::Config::read(&place.path("zk/devices/pi-01/agent.toml")).unwrap();
    assert_eq!(agent.device.hsm, key);
    let pem = place.read("zk/owner.pem");
    let owner = OwnerKey::from_encrypted_pem(&pem, OWNER).unwrap();
    let trust = TrustFile::read(&place.path("zk/trust.toml")).unwrap();
    let pi_01 = DeviceId::try_from("pi-01").unwrap();
    assert_eq!(trust.devices[&pi_01].owners, [owner.id()].into());

    // again, and nobody is asked for anything
    let again = place.without_passphrase(&apply);
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(again.out.starts_with("nothing to do"), "{}", again.out);
    for command in ["plan", "status"] {
        let said = place.without_passphrase(&[command]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    }
    let status = place.json(&["status"]);
    assert_eq!(status["hasChanges"], false);
    assert_eq!(status["devices"][0]["state"], "active");
    assert_eq!(status["certificates"].as_array().unwrap().len(), 4);

    fs::remove_file(place.path("zk/devices/pi-01/agent.toml")).unwrap();
    for command in ["plan", "status", "check"] {
        let said = place.without_passphrase(&[command, "--json"]);
        assert_eq!(said.code, 3, "{}{}", said.out, said.err);
        let json: Value = serde_json::from_str(&said.out).unwrap();
        assert!(json.to_string().contains("agent.toml"), "{json}");
    }
    let applied = place.without_passphrase(&["apply"]);
    assert_eq!(applied.code, 0, "{}", applied.err);
    let changed: Vec<_> = applied
        .out
        .lines()
        .filter(|line| line.starts_with("created"))
        .collect();
    assert_eq!(changed, ["created  zk/devices/pi-01/agent.toml"]);
}

/// The same with a key in a chip, here a simulated one: its keys are there from
/// the beginning.
#[test]
fn one_command_from_nothing_with_a_chip() {
    let place = Place::new();
    let chip = Device::create(place.path("chip"), Model::Zymkey4i).unwrap();
    let key = |slot: u8| {
        let module = chip.module_path();
        format!("zymkey:slot={slot}?module-path={}", module.display())
    };
    let listen = place.free_address();
    let uri = key(0);
    let apply = [
        "apply", "--device", "pi-01", "--hsm", &uri, "--listen", &listen,
    ];
    let applied = place.ok(&apply);
    // it is in this machine, like one in a file
    let next = "zk-agent --config zk/devices/pi-01/agent.toml";
    assert!(applied.err.contains(next), "{}", applied.err);
    let agent = zk_agent::Config::read(&place.path("zk/devices/pi-01/agent.toml")).unwrap();
    assert_eq!(agent.device.hsm, uri);
    let hsm = Hsm::open(&uri.parse().unwrap(), Options::default()).unwrap();
    let chain = zk_agent::certificates(&agent.device.certificate).unwrap();
    hsm.client_config(chain, rustls::RootCertStore::empty(), &[])
        .unwrap();
    let again = place.without_passphrase(&apply);
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(again.out.starts_with("nothing to do"), "{}", again.out);

    // and on to another of its keys
    place.ok(&["device", "rotate", "pi-01", "--hsm", &key(1)]);
    let add = ["device", "add", "pi-02", "--hsm", &key(2)];
    place.ok(&add);
    let empty = place.fails(1, &["device", "add", "pi-03", "--hsm", &key(9)]);
    let command = format!("zk-ctl hsm keys generate --hsm '{}'", key(9));
    assert!(empty.err.contains(&command), "{}", empty.err);
}

/// A key on a token is made when somebody says so, and not by the way.
#[test]
#[ignore = "needs softhsm2"]
fn one_command_from_nothing_with_a_token() {
    let place = Place::new();
    fs::create_dir(place.path("tokens")).unwrap();
    let configuration = format!(
        "directories.tokendir = {}\n",
        place.path("tokens").display()
    );
    fs::write(place.path("softhsm2.conf"), configuration).unwrap();
    place.secret("pin", "8317402\n", 0o600);
    let softhsm = |arguments: &[&str]| {
        let mut command = Command::new("softhsm2-util");
        command
            .args(arguments)
            .args(["--pin", "8317402"])
            .env("SOFTHSM2_CONF", place.path("softhsm2.conf"));
        let output = command.output();
        let output = output.expect("this test needs SoftHSM2: apt-get install softhsm2");
        assert!(output.status.success(), "{output:?}");
    };
    let init = ["--init-token", "--free", "--label", "plant"];
    softhsm(&[&init[..], &["--so-pin", "5550199"]].concat());
    let key = format!(
        "pkcs11:token=plant;object=device?pin-source=file:{}",
        place.path("pin").display()
    );
    let listen = place.free_address();
    let apply = [
        "apply", "--device", "pi-01", "--hsm", &key, "--listen", &listen,
    ];
    for words in [&apply[..], &["plan", "--device", "pi-01", "--hsm", &key]] {
        let missing = place.fails(1, words);
        let command = format!("zk-ctl hsm keys generate --hsm '{key}'");
        assert!(missing.err.contains(&command), "{}", missing.err);
        assert!(!place.path("zk").exists());
    }
    create_soft_key(place.path("import.pem")).unwrap();
    let import = place.path("import.pem");
    let import = ["--import", import.to_str().unwrap(), "--token", "plant"];
    softhsm(&[&import[..], &["--label", "device", "--id", "01"]].concat());
    let applied = place.ok(&apply);
    assert!(applied.err.contains("zk-agent --config"), "{}", applied.err);
    let agent = zk_agent::Config::read(&place.path("zk/devices/pi-01/agent.toml")).unwrap();
    assert_eq!(agent.device.hsm, key);
    let again = place.without_passphrase(&apply);
    assert_eq!(again.code, 0, "{}", again.err);
}

/// Killed wherever it is, the next run ends where one that was not would have.
#[test]
fn a_killed_apply_is_completed_by_the_next() {
    let whole = Place::new();
    let key = |place: &Place| format!("soft:{}", place.path("keys/key.pem").display());
    let apply = |key: &str| {
        let words = ["apply", "--device", "pi-01", "--hsm", key];
        words.map(str::to_owned)
    };
    let run = |place: &Place| {
        let words = apply(&key(place));
        place.ok(&words.each_ref().map(String::as_str))
    };
    let lines = run(&whole).out.lines().count();
    assert!(lines > 18, "{lines}");
    // after each line that it prints, as soon as it is there
    for line in 0..lines - 2 {
        let place = Place::new();
        let words = apply(&key(&place));
        let mut killed = place
            .command(&words.each_ref().map(String::as_str))
            .env("ZK_SETUP_PASSPHRASE_FILE", "passphrase")
            .env("ZK_OWNER_PASSPHRASE", OWNER)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut shown = BufReader::new(killed.stdout.take().unwrap()).lines();
        for _ in 0..line {
            shown.next().unwrap().unwrap();
        }
        killed.kill().unwrap();
        killed.wait().unwrap();

        run(&place);
        let plan = place.without_passphrase(&["plan"]);
        assert_eq!(plan.code, 0, "{line}: {}{}", plan.out, plan.err);
        assert_eq!(
            place.json(&["device", "list"])["devices"][0]["state"],
            "active"
        );
        assert_eq!(
            place.tree("zk"),
            whole.tree("zk"),
            "killed after {line} lines"
        );
    }
}

#[test]
fn a_file_says_what_is_to_be_and_removal_is_asked_about() {
    let place = Place::new();
    place.owner("owner.pub.pem");
    let (one, two) = (place.csr("pi-01"), place.csr("pi-02"));
    let device = |name: &str, csr: &str| format!("[devices.{name}]\ncsr = \"{csr}\"\n");
    let head = "owners = [\"owner.pub.pem\"]\n[gateway]\nnames = [\"gateway.example\"]\n";
    let file = place.path("zk-setup.toml");
    fs::write(
        &file,
        format!("{head}{}{}", device("pi-01", &one), device("pi-02", &two)),
    )
    .unwrap();
    let applied = place.ok(&["apply", "--file", "zk-setup.toml"]);
    assert!(!applied.out.contains("owner.pem"), "{}", applied.out);
    assert!(
        applied.err.contains("copy zk/devices/pi-01 to the device"),
        "{}",
        applied.err
    );
    let agent = zk_agent::Config::read(&place.path("zk/devices/pi-02/agent.toml")).unwrap();
    assert_eq!(agent.target.endpoint, "gateway.example:8443");
    // the requests have done their work
    fs::remove_file(place.path(&one)).unwrap();
    assert_eq!(
        place
            .without_passphrase(&["plan", "--file", "zk-setup.toml"])
            .code,
        0
    );

    fs::write(&file, format!("{head}{}", device("pi-01", &one))).unwrap();
    let plan = place.without_passphrase(&["plan", "--file", "zk-setup.toml"]);
    assert_eq!(plan.code, 3);
    assert!(
        plan.err.contains("pi-02 would be revoked for good"),
        "{}",
        plan.err
    );
    let json = place.with_passphrase(&["plan", "--file", "zk-setup.toml", "--json"]);
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["revokes"], serde_json::json!(["pi-02"]));
    let apply = ["apply", "--file", "zk-setup.toml"];
    let alone = place.fails(1, &apply);
    assert!(alone.err.contains("--yes"), "{}", alone.err);
    let (code, said) = place.at_terminal(&apply, &[("[y/N] ", "n")]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert!(said.contains("pi-02 would be revoked for good"), "{said}");
    assert_eq!(place.without_passphrase(&["status"]).code, 0);
    let (code, said) = place.at_terminal(&apply, &[("[y/N] ", "y")]);
    assert_eq!(code, 0, "{said}");
    let devices = &place.json(&["device", "list"])["devices"];
    assert_eq!(devices[0]["state"], "active");
    assert_eq!(devices[1]["state"], "revoked");
    assert!(!place.path("zk/devices/pi-02").exists());

    fs::write(&file, format!("{head}mistake = 1\n")).unwrap();
    let mistaken = place.fails(1, &["plan", "--file", "zk-setup.toml"]);
    assert!(mistaken.err.contains("zk-setup.toml"), "{}", mistaken.err);
    assert!(mistaken.err.contains("line 4"), "{}", mistaken.err);
    let template = place.ok(&["template"]);
    fs::write(&file, template.out).unwrap();
    let code = place
        .without_passphrase(&["plan", "--file", "zk-setup.toml"])
        .code;
    assert_eq!(code, 3, "pi-01 is not in the template");
}

/// Whoever reads may go: the work is done, and the exit status is of the work.
#[test]
fn nobody_reads_and_the_work_is_done_all_the_same() {
    for json in [&[][..], &["--json"]] {
        let place = Place::new();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = place.command(&[&["apply"], json].concat());
        let status = command
            .env("ZK_SETUP_PASSPHRASE_FILE", "passphrase")
            .env("ZK_OWNER_PASSPHRASE", OWNER)
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .status()
            .unwrap();
        // nobody listens yet, which is only a warning
        assert_eq!(status.code(), Some(0));
        assert_eq!(place.without_passphrase(&["plan"]).code, 0);
    }
}

/// JSON is UTF-8, a directory's name may be anything.
#[test]
fn a_directory_of_any_name() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    // no store can be there
    let dir = std::ffi::OsStr::from_bytes(b"z\xffk");
    let destroy = ["destroy", "--with-data", "--with-keys", "--yes"];
    for arguments in [&["ca", "init"][..], &destroy, &destroy] {
        let mut command = place.command(&[arguments, &["--json"]].concat());
        command
            .env("ZK_SETUP_DIR", dir)
            .env("ZK_SETUP_PASSPHRASE_FILE", "passphrase")
            .env("ZK_OWNER_PASSPHRASE", OWNER);
        let ended = Place::run(&mut command);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        let json: Value = serde_json::from_str(&ended.out).unwrap();
        assert!(json.is_object(), "{json}");
    }
}

#[test]
fn what_a_file_is_called_does_not_reach_the_terminal_raw() {
    let place = Place::new();
    place.ok(&["ca", "init"]);
    fs::write(place.path("zk/\u{1b}[31mred"), "mine").unwrap();
    let ended = place.ok(&["destroy", "--with-data", "--with-keys", "--yes"]);
    assert!(!ended.out.contains('\u{1b}'), "{}", ended.out);
    assert!(ended.out.contains("[31mred"), "{}", ended.out);
}

#[test]
fn destroy_asks_for_the_directory_by_name() {
    let place = Place::new();
    place.ok(&["apply"]);
    fs::write(place.path("zk/notes.txt"), "mine").unwrap();
    let destroy = ["destroy", "--with-data", "--with-keys"];
    let alone = place.fails(1, &destroy);
    assert!(alone.err.contains("--yes"), "{}", alone.err);
    let (code, said) = place.at_terminal(&destroy, &[("name, zk: ", "y")]);
    assert_eq!(code, 1, "{said}");
    assert!(place.path("zk/owner.pem").exists());
    assert_eq!(place.fails(2, &["destroy", "--with-keys"]).code, 2);
    place.ok(&["destroy", "--yes"]);
    for stays in [
        "zk/owner.pem",
        "zk/trust.toml",
        "zk/gateway/store.db",
        "zk/ca/device-ca.key.pem",
    ] {
        // no device was ever added: there is no trust file
        assert_eq!(
            place.path(stays).exists(),
            stays != "zk/trust.toml",
            "{stays}"
        );
    }
    fs::create_dir(place.path("zk/credentials")).unwrap();
    fs::write(place.path("zk/credentials/ops.sealed"), "{}").unwrap();
    let (code, said) = place.at_terminal(&destroy, &[("name, zk: ", "zk")]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("notes.txt  (not made by zk-setup)"), "{said}");
    let sealed = "zk/credentials  (AWS keys: `zk-setup credentials forget` removes them)";
    assert!(said.contains(sealed), "{said}");
    fs::remove_dir_all(place.path("zk/credentials")).unwrap();
    assert_eq!(place.tree("zk"), ["zk/notes.txt"]);
    place.ok(&[&destroy[..], &["--yes"]].concat());
    fs::remove_file(place.path("zk/notes.txt")).unwrap();
    place.ok(&[&destroy[..], &["--yes"]].concat());
}

/// The policy is that of the directory's set-up, if nothing else is asked for.
#[test]
fn the_policy_is_for_what_the_directory_remembers() {
    let place = Place::new();
    let policy = |arguments: &[&str]| {
        let all = [&["policy", "--account", "123456789012"], arguments].concat();
        let mut command = place.command(&all);
        command.env_remove("ZK_SETUP_TARGET").env("AWS_REGION", "");
        Place::run(&mut command)
    };
    let nowhere = policy(&[]);
    assert_eq!(nowhere.code, 1, "{}", nowhere.out);
    assert!(nowhere.err.contains("no region"), "{}", nowhere.err);

    fs::create_dir(place.path("zk")).unwrap();
    let toml = "region = \"eu-west-1\"\nprefix = \"greenhouse\"\naccount = \"123456789012\"\n";
    fs::write(place.path("zk/aws.toml"), toml).unwrap();
    let table = |ended: &Ended, region: &str, prefix: &str| {
        let arn = format!("arn:aws:dynamodb:{region}:123456789012:table/{prefix}-readings");
        assert_eq!(ended.code, 0, "{}", ended.err);
        assert!(ended.out.contains(&arn), "{}", ended.out);
    };
    table(&policy(&[]), "eu-west-1", "greenhouse");
    let other = policy(&["--region", "us-east-1", "--prefix", "zk"]);
    table(&other, "us-east-1", "zk");
}

/// With a real gateway: check reaches it, destroy leaves it alone.
#[test]
fn a_running_gateway_is_found_and_not_pulled_away() {
    let place = Place::new();
    let listen = place.free_address();
    place.ok(&["apply", "--listen", &listen, "--name", "localhost"]);
    let gateway_of = |json: &Value| {
        let checks = json["checks"].as_array().unwrap().clone();
        let of_it = |check: &Value| check["item"].as_str().unwrap().starts_with("gateway at");
        checks.into_iter().find(of_it).unwrap()["state"].clone()
    };
    assert_eq!(gateway_of(&place.json(&["check"])), "warning");

    let runtime = place.gateway(&listen);
    assert_eq!(gateway_of(&place.json(&["check"])), "ok");
    let refused = place.fails(1, &["destroy", "--yes"]);
    assert!(
        refused.err.contains("stop zk-gateway first"),
        "{}",
        refused.err
    );
    // it goes on with the old certificate
    place.ok(&["apply", "--name", "localhost", "--name", "other.example"]);
    assert_eq!(gateway_of(&place.json(&["check"])), "warning");
    drop(runtime);

    let stranger = std::net::TcpListener::bind(&listen).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut connection, _)) = stranger.accept() {
            let _ = connection.write_all(b"220 mail.example ESMTP\r\n");
        }
    });
    let found = place.without_passphrase(&["check", "--json"]);
    assert_eq!(found.code, 3, "{}", found.out);
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(gateway_of(&found), "wrong");
}

/// With a real gateway: what the device publishes is looked for in the store, and
/// what keeps it from getting there is named.
#[test]
fn check_publishes_as_the_device() {
    let place = Place::new();
    let listen = place.free_address();
    let key = format!("soft:{}", place.path("key.pem").display());
    place.ok(&[
        "apply",
        "--device",
        "pi-01",
        "--hsm",
        &key,
        "--listen",
        &listen,
        "--name",
        "localhost",
    ]);
    let runtime = place.gateway(&listen);
    let check = || {
        let ended = place.without_passphrase(&["check", "--json"]);
        let json: Value = serde_json::from_str(&ended.out).unwrap();
        let checks = json["checks"].as_array().unwrap().iter();
        let of_test = checks.filter(|one| one["item"].as_str().unwrap().starts_with("self-test"));
        let told = |one: &Value| {
            let [item, state, cause] = ["item", "state", "cause"].map(|name| one[name].as_str());
            let cause = cause.unwrap_or_default().to_owned();
            (state.unwrap().to_owned(), item.unwrap().to_owned(), cause)
        };
        (ended.code, of_test.map(told).collect::<Vec<_>>())
    };

    let (code, found) = check();
    assert_eq!(code, 0, "{found:?}");
    assert!(found.iter().all(|(state, ..)| state == "ok"), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
    let again = check();
    assert_eq!(again.0, 0, "{again:?}");

    // the key is somewhere else: nothing is wrong with that
    fs::rename(place.path("key.pem"), place.path("away.pem")).unwrap();
    let (code, found) = check();
    assert_eq!((code, found[0].0.as_str()), (0, "warning"), "{found:?}");
    fs::rename(place.path("away.pem"), place.path("key.pem")).unwrap();

    // the registry knows the certificate, and another key
    let uri: zk_store::StoreUri = format!("file:{}", place.path("zk/gateway/store.db").display())
        .parse()
        .unwrap();
    // of all of these, nothing was left where what others forge has its room
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = zk_store::Store::open(&uri, zk_store::Options::default());
        let store = store.await.unwrap();
        assert!(store.quarantine().next().await.is_none());
        store.close().await;
    });
    let change = |change: &dyn Fn(&mut zk_verify::DeviceRecord)| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = zk_store::Store::open(&uri, zk_store::Options::default());
            let store = store.await.unwrap();
            for (principal, _) in store.devices().await.unwrap() {
                store.update_device(&principal, change).await.unwrap();
            }
            store.close().await;
        });
    };
    let other = p256::ecdsa::SigningKey::from_slice(&[9; 32]).unwrap();
    change(&|record| record.keys[0].key = *other.verifying_key());
    // a running gateway remembers what it has read: this one is new
    drop(runtime);
    let runtime = place.gateway(&listen);
    let (code, found) = check();
    assert_eq!(code, 3, "{found:?}");
    let (state, item, cause) = found.last().unwrap();
    assert_eq!(
        (state.as_str(), item.as_str()),
        ("wrong", "self-test of pi-01: the good message")
    );
    assert!(cause.contains("signer-mismatch"), "{cause}");

    let at = zk_envelope::Timestamp::from(std::time::SystemTime::UNIX_EPOCH);
    change(&|record| record.certificate = KeyState::Revoked { at });
    drop(runtime);
    let _runtime = place.gateway(&listen);
    let (code, found) = check();
    assert_eq!(code, 3, "{found:?}");
    let (state, item, cause) = found.last().unwrap();
    assert_eq!(state, "wrong");
    assert!(item.contains("publishing to localhost:"), "{item}");
    assert!(cause.contains("forbidden"), "{cause}");

    // who is shut out is not asked to publish
    place.ok(&["device", "revoke", "pi-01"]);
    assert_eq!(check().1, []);
}

#[test]
fn a_device_changes_its_key() {
    let place = Place::new();
    let key = |name: &str| format!("soft:{}", place.path(name).display());
    place.ok(&["apply", "--device", "pi-01", "--hsm", &key("old.pem")]);
    let next = place.json(&["device", "rotate", "pi-01", "--hsm", &key("new.pem")]);
    assert_eq!(next["dir"], "zk/devices/pi-01/next");
    let agent = zk_agent::Config::read(&place.path("zk/devices/pi-01/next/agent.toml")).unwrap();
    assert_eq!(agent.device.hsm, key("new.pem"));
    let early = place.fails(1, &["device", "rotate", "pi-01", "--finish"]);
    assert!(
        early.err.contains("the old key stays in use"),
        "{}",
        early.err
    );
    let status = place.json(&["status"]);
    assert_eq!(status["devices"][0]["changingTo"], next["principal"]);
    assert_eq!(status["devices"][0]["state"], "active");
    for wrong in [
        &["device", "rotate", "pi-01"][..],
        &["device", "rotate", "pi-01", "--finish", "--csr", "x"],
    ] {
        place.fails(2, wrong);
    }
}

#[test]
fn what_is_missing_is_said_before_anything_is_done() {
    let place = Place::new();
    let mut detached = Command::new("setsid");
    detached
        .arg("--wait")
        .arg(env!("CARGO_BIN_EXE_zk-setup"))
        .env("ZK_SETUP_TARGET", "local")
        .args(["apply", "--passphrase-file", "passphrase"])
        .env_remove("ZK_OWNER_PASSPHRASE");
    let alone = Place::run(detached.current_dir(place.0.path()).stdin(Stdio::null()));
    assert_eq!(alone.code, 1);
    assert!(
        alone.err.contains("--owner-passphrase-file"),
        "{}",
        alone.err
    );
    assert!(!place.path("zk").exists());

    // a key that is gone is not made again under a device's name
    let key = format!("soft:{}", place.path("key.pem").display());
    let apply = ["apply", "--device", "pi-01", "--hsm", &key];
    place.ok(&apply);
    fs::remove_file(place.path("key.pem")).unwrap();
    let lost = place.fails(1, &apply);
    assert!(lost.err.contains("restore it"), "{}", lost.err);
    assert!(!place.path("key.pem").exists());
}

#[test]
fn wrong_arguments_end_with_2() {
    let place = Place::new();
    for arguments in [
        &["device", "add", "no/slash", "--hsm", "zymkey:slot=0"][..],
        &["device", "add", "pi-01"],
        &["device", "revoke", ""],
        &["gateway", "init", "--name", "no host"],
        &[
            "gateway",
            "init",
            "--name",
            "localhost",
            "--store",
            "elsewhere",
        ],
        &["gateway", "init", "--listen", "localhost:8443"],
        &[
            "device",
            "add",
            "pi-01",
            "--hsm",
            "zymkey:slot=0",
            "--endpoint",
            "https://gateway.example/",
        ],
        &["ca"],
        &["no-such-command"],
    ] {
        let refused = place.fails(2, arguments);
        assert!(refused.out.is_empty());
    }
    // a PIN that doesn't belong there is not said
    let uri = "pkcs11:token=t;object=o?pin-value=8317402";
    let file = place.path("with-pin.toml");
    fs::write(&file, format!("[devices.pi-01]\nhsm = {uri:?}\n")).unwrap();
    let file = file.to_str().unwrap();
    for (code, arguments) in [
        (2, &["device", "add", "pi-01", "--hsm", uri][..]),
        (1, &["plan", "--file", file]),
    ] {
        let refused = place.fails(code, arguments);
        assert!(
            refused.err.contains("must not stand in a URI"),
            "{}",
            refused.err
        );
        assert!(!refused.err.contains("8317402"), "{}", refused.err);
    }
    assert!(!place.path("zk").exists());
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let help = Place::new().ok(&["--help"]);
    assert!(
        help.out.contains("zk-setup device add pi-01 --csr"),
        "{}",
        help.out
    );
    assert!(help.out.contains("Exit codes:"), "{}", help.out);
}

/// A directory to work in.
struct Place(TempDir);

struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    /// A real gateway of the set-up, until the runtime is dropped.
    fn gateway(&self, listen: &str) -> tokio::runtime::Runtime {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let overrides = zk_gateway::Overrides::default();
        let config = zk_gateway::Config::load(&self.path("zk/gateway/gateway.toml"), overrides);
        let config = config.unwrap();
        let (listener, gateway) = runtime.block_on(async {
            let store = zk_store::Store::open(&config.store, zk_store::Options::default());
            let tls = zk_gateway::Tls::load(&config.tls).unwrap();
            let gateway = zk_gateway::Gateway::new(store.await.unwrap(), tls, config.limits);
            (
                tokio::net::TcpListener::bind(listen).await.unwrap(),
                gateway,
            )
        });
        runtime.spawn(zk_gateway::run(
            listener,
            gateway,
            std::future::pending::<()>(),
        ));
        runtime
    }

    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.secret("passphrase", &format!("{PASSPHRASE}\n"), 0o600);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An address that nobody else on this machine asks for by number.
    fn free_address(&self) -> String {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    }

    /// The names of all files below, but for an owner's, which is another one
    /// each time.
    fn tree(&self, dir: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![self.path(dir)];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                let name = path.strip_prefix(self.0.path()).unwrap().to_str().unwrap();
                found.push(match name.split_once("/owner-") {
                    Some((dir, _)) => format!("{dir}/owner-ID"),
                    None => name.to_owned(),
                });
            }
        }
        found.sort();
        found
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn secret(&self, name: &str, text: &str, mode: u32) -> String {
        let mut file = OpenOptions::new();
        file.create(true).write(true).truncate(true).mode(mode);
        file.open(self.path(name))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        name.to_owned()
    }

    fn owner(&self, name: &str) -> zk_envelope::RecipientId {
        let owner = OwnerKey::generate().unwrap();
        fs::write(self.path(name), owner.public_key().to_pem()).unwrap();
        owner.id()
    }

    /// A request by a new key of the device.
    fn csr(&self, device: &str) -> String {
        let key = create_soft_key(self.path(&format!("{device}.key.pem"))).unwrap();
        let csr = Hsm::open(&key, Options::default())
            .unwrap()
            .csr(device)
            .unwrap();
        let name = format!("{device}.csr.pem");
        fs::write(self.path(&name), csr).unwrap();
        name
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zk-setup"));
        for name in [
            "ZK_SETUP_DIR",
            "ZK_SETUP_FILE",
            "ZK_SETUP_PASSPHRASE",
            "ZK_SETUP_PASSPHRASE_FILE",
            "ZK_OWNER_PASSPHRASE",
        ] {
            command.env_remove(name);
        }
        command
            .args(arguments)
            // a new directory is for AWS otherwise
            .env("ZK_SETUP_TARGET", "local")
            // where SoftHSM2 has its tokens; others don't look at it
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(command: &mut Command) -> Ended {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended {
            code: status.code().unwrap(),
            out: text(stdout),
            err: text(stderr),
        }
    }

    fn without_passphrase(&self, arguments: &[&str]) -> Ended {
        Self::run(&mut self.command(arguments))
    }

    fn with_passphrase(&self, arguments: &[&str]) -> Ended {
        Self::run(
            self.command(arguments)
                .env("ZK_SETUP_PASSPHRASE_FILE", "passphrase")
                .env("ZK_OWNER_PASSPHRASE", OWNER),
        )
    }

    /// Runs the program at a terminal of its own, where each prompt gets its
    /// answer.
    fn at_terminal(&self, arguments: &[&str], answers: &[(&str, &str)]) -> (i32, String) {
        let line = format!("{} {}", env!("CARGO_BIN_EXE_zk-setup"), arguments.join(" "));
        let spawned = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("ZK_SETUP_TARGET", "local")
            .env_remove("ZK_SETUP_PASSPHRASE")
            .env_remove("ZK_SETUP_PASSPHRASE_FILE")
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            panic!("the script program is missing; install it with: apt-get install bsdutils");
        };
        let (mut typed, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut said = String::new();
        for (prompt, answer) in answers {
            while !said.ends_with(prompt) {
                let mut byte = [0];
                shown
                    .read_exact(&mut byte)
                    .unwrap_or_else(|_| panic!("no {prompt:?} in {said:?}"));
                said.push(char::from(byte[0]));
            }
            typed.write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
        shown.read_to_string(&mut said).unwrap();
        (child.wait().unwrap().code().unwrap(), said)
    }

    fn ok(&self, arguments: &[&str]) -> Ended {
        let ended = self.with_passphrase(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        ended
    }

    fn fails(&self, code: i32, arguments: &[&str]) -> Ended {
        let ended = self.with_passphrase(arguments);
        assert_eq!(
            ended.code, code,
            "{arguments:?}: {}{}",
            ended.out, ended.err
        );
        assert!(ended.out.is_empty(), "{}", ended.out);
        ended
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&ended.out).unwrap()
    }
}
