//! The program itself: what it says, how it ends, what signals do.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use crate::service::{Service, configuration, gateway, told};
use crate::world::{PATIENCE, World, connect, write_secret};
use rcgen::KeyPair;
use rustix::process::{Resource, Rlimit, Signal, prlimit};

#[test]
fn help_has_examples_and_the_exit_codes() {
    let output = gateway().arg("--help").output().unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for text in [
        "Examples:",
        "zk-gateway --config",
        "curl ",
        "Exit codes: 0",
        "ZK_GATEWAY_CONFIG",
    ] {
        assert!(help.contains(text), "{text} is missing in {help}");
    }
}

#[test]
fn wrong_arguments_end_with_2() {
    for arguments in [
        &["--lisen", "127.0.0.1:0"][..],
        &["--listen", "somewhere"],
        &["--metrics", "0.0.0.0:9464"],
        &["--store", "sqlite:x"],
        &["--log", "loud=very"],
        &["--log-format", "xml"],
    ] {
        let output = gateway().args(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            told(&output)
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_configuration_is_told_with_its_line() {
    let world = World::new().await;
    let good = configuration();
    let cases = [
        (
            good.replace("listen", "lisen"),
            "1 |",
            "expected one of `listen`, `metrics`, `store`",
        ),
        (
            good.replace("\"127.0.0.1:0\"", "8443"),
            "1 |",
            "expected a string",
        ),
        (
            good.replace("\"127.0.0.1:0\"", "\"localhost\""),
            "1 |",
            "\"localhost\"",
        ),
        (
            good.replace("file:", "sqlite:"),
            "2 |",
            "a store is file:PATH or dynamodb:REGION",
        ),
        (good.replace("key =", "keys ="), "", "`key`"),
        (
            good.replace("listen = \"127.0.0.1:0\"\n", ""),
            "",
            "missing field `listen`",
        ),
        (
            format!("metrics = \"0.0.0.0:9464\"\n{good}"),
            "1 |",
            "loopback",
        ),
        (
            format!("{good}\n[limits]\nconnections = 0"),
            "9 |",
            "0 is not from 1 to 1000000",
        ),
        (
            format!("{good}\n[limits]\nidle = 30"),
            "9 |",
            "expected a string",
        ),
        (
            format!("{good}\n[limits]\nidle = \"30\""),
            "9 |",
            "give a time such as",
        ),
        (
            format!("{good}\n[limits]\nidle = \"-30s\""),
            "9 |",
            "not from 10ms to 24h",
        ),
        (
            format!("{good}\n[limits]\nspeed = \"30s\""),
            "9 |",
            "unknown field `speed`",
        ),
        (format!("{good}\nlisten"), "8 |", "TOML parse error"),
    ];
    for (text, line, reason) in cases {
        let path = world.path("gateway.toml");
        fs::write(&path, &text).unwrap();
        let output = check(&path);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(3), "{text}\n{told}");
        for part in [path.to_str().unwrap(), line, reason] {
            assert!(told.contains(part), "{part:?} is missing in {told}");
        }
        assert_eq!(told.matches("TOML parse error").count(), 1, "{told}");
    }
    let output = check(&world.path("none.toml"));
    assert_eq!(output.status.code(), Some(3));
    assert!(
        told(&output).contains("none.toml cannot be read"),
        "{}",
        told(&output)
    );
}

#[tokio::test]
async fn what_is_wrong_with_certificates_or_key_is_told_with_the_cure() {
    let world = World::new().await;
    let path = world.path("gateway.toml");
    fs::write(&path, configuration()).unwrap();
    assert!(check(&path).status.success(), "{}", told(&check(&path)));
    let files = world.files();
    let key = fs::read_to_string(&files.key).unwrap();

    let complains = |parts: &[&str]| {
        let output = check(&path);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(4), "{told}");
        for part in parts {
            assert!(told.contains(part), "{part:?} is missing in {told}");
        }
    };
    let name = files.key.to_str().unwrap();
    for mode in [0o644, 0o640, 0o620, 0o602] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        complains(&[name, &format!("mode {mode:04o}"), "chmod 600"]);
    }

    write_secret(&files.key, &KeyPair::generate().unwrap().serialize_pem());
    complains(&[name, "gateway.crt.pem does not belong to the key"]);

    write_secret(
        &files.key,
        &key.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE")
            .replace("END PRIVATE", "END ENCRYPTED PRIVATE"),
    );
    complains(&[name, "it is encrypted", "openssl pkey"]);

    write_secret(&files.key, "no key");
    complains(&[name, "is not usable"]);

    fs::remove_file(&files.key).unwrap();
    complains(&[name, "cannot be read", "check the path"]);
    write_secret(&files.key, &key);

    for file in [&files.certificate, &files.device_ca] {
        let text = fs::read_to_string(file).unwrap();
        fs::write(file, &key).unwrap();
        complains(&[file.to_str().unwrap(), "holds no certificate"]);
        fs::write(file, &text[..text.len() / 2]).unwrap();
        complains(&[file.to_str().unwrap(), "is not usable"]);
        fs::remove_file(file).unwrap();
        complains(&[file.to_str().unwrap(), "cannot be read"]);
        fs::write(file, &text).unwrap();
    }
    assert!(check(&path).status.success());
}

#[tokio::test]
async fn a_key_that_another_user_owns_is_told_with_who_does() {
    if !rustix::process::geteuid().is_root() {
        // only root can give files away, and run as somebody else
        return;
    }
    let world = World::new().await;
    let path = world.path("gateway.toml");
    fs::write(&path, configuration()).unwrap();
    fs::set_permissions(world.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = world.path("zk-gateway");
    fs::copy(env!("CARGO_BIN_EXE_zk-gateway"), &program).unwrap();
    let check = || {
        let mut command = Command::new(&program);
        command.env_clear().arg("--check").arg("--config");
        command.arg(&path).uid(65_534).gid(65_534);
        loop {
            match command.output() {
                // while another test's thread is about to become a process, that
                // has our copy open too
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
                output => break output.unwrap(),
            }
        }
    };
    let complains = |parts: &[&str]| {
        let output = check();
        let told = told(&output);
        assert_eq!(output.status.code(), Some(4), "{told}");
        for part in parts {
            assert!(told.contains(part), "{part:?} is missing in {told}");
        }
    };
    let owner = "mode 0600, owner 0";
    complains(&[owner, "this process is user 65534", "chown 65534"]);

    // by its group it may be read, as a credential that systemd hands over
    let key = world.files().key;
    std::os::unix::fs::chown(&key, None, Some(65_534)).unwrap();
    for (mode, open) in [(0o640, false), (0o660, true), (0o644, true)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        if open {
            complains(&[&format!("mode {mode:04o}"), "chmod 600"]);
        } else {
            // the key is fine, and the store is another's
            assert_eq!(check().status.code(), Some(6), "{}", told(&check()));
        }
    }
}

#[tokio::test]
async fn an_address_or_a_store_that_cannot_be_had_is_told() {
    let world = World::new().await;
    let path = world.path("gateway.toml");
    fs::write(&path, configuration()).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--metrics"] {
        let output = gateway()
            .arg("--config")
            .arg(&path)
            .args([flag, &address])
            .output()
            .unwrap();
        let told = told(&output);
        assert_eq!(output.status.code(), Some(5), "{told}");
        assert!(
            told.contains(&address) && told.contains("another process has the port"),
            "{told}"
        );
        assert_eq!(told.matches("os error").count(), 1, "{told}");
    }
    // of a block that was never given out
    let output = gateway()
        .arg("--config")
        .arg(&path)
        .args(["--listen", "240.0.0.1:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", told(&output));

    let store = format!("file:{}", world.path("none.db").display());
    let output = gateway()
        .arg("--config")
        .arg(&path)
        .args(["--store", &store])
        .output()
        .unwrap();
    let told = told(&output);
    assert_eq!(output.status.code(), Some(6), "{told}");
    assert!(
        told.contains(&store) && told.contains("no store here"),
        "{told}"
    );
    assert!(!world.path("none.db").exists());
}

#[tokio::test]
async fn settings_of_the_command_line_go_before_the_environment_before_the_file() {
    let world = World::new().await;
    let path = world.path("gateway.toml");
    // the file's is not this machine's, so who listens there does not start
    fs::write(&path, configuration().replace("127.0.0.1:0", "240.0.0.1:0")).unwrap();
    let run = |environment: Option<&str>, flag: Option<&str>| {
        let mut command = gateway();
        command
            .env("ZK_GATEWAY_CONFIG", &path)
            .env("ZK_GATEWAY_STORE", "file:/nowhere/none.db");
        command.envs(environment.map(|address| ("ZK_GATEWAY_LISTEN", address)));
        command.args(flag.map(|address| format!("--listen={address}")));
        let store = format!("--store=file:{}", world.path("readings.db").display());
        told(&command.arg(store).output().unwrap())
    };
    assert!(run(None, None).contains("cannot listen on 240.0.0.1:0"));
    assert!(run(Some("240.0.0.2:0"), None).contains("cannot listen on 240.0.0.2:0"));
    assert!(run(Some("240.0.0.2:0"), Some("240.0.0.3:0")).contains("cannot listen on 240.0.0.3:0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_says_when_it_is_ready_and_obeys_signals() {
    let world = World::new().await;
    let mut service = Service::start(&world, "", gateway().args(["--log-format", "json"]));
    let address = service.address;

    let mut device = world.device("pi-01").await;
    let message = device.message([1]);
    let tls = Arc::new(device.tls.clone());
    let certificate = async || {
        let mut conversation = connect(address, Arc::clone(&tls)).await.unwrap();
        assert_eq!(conversation.ask(&device.post(&message)).await.status, 200);
        conversation.stream.get_ref().1.peer_certificates().unwrap()[0]
            .clone()
            .into_owned()
    };
    let before = certificate().await;
    assert_eq!(world.stored(&device).await.len(), 1);

    // a certificate that is not usable changes nothing
    let key = fs::read_to_string(world.files().key).unwrap();
    let renewed = world.renew_certificate();
    let new_key = fs::read_to_string(world.files().key).unwrap();
    write_secret(&world.files().key, &key);
    service.signal(Signal::HUP);
    assert_eq!(certificate().await, before);

    write_secret(&world.files().key, &new_key);
    service.signal(Signal::HUP);
    tokio::time::timeout(PATIENCE, async { while certificate().await != renewed {} })
        .await
        .unwrap();

    service.signal(Signal::TERM);
    assert_eq!(service.notified(), "STOPPING=1\n");
    let output = service.end();
    let told = told(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    for line in told.lines() {
        let _: serde_json::Value = serde_json::from_str(line).unwrap();
    }
    assert!(
        told.contains("going on with the old certificates"),
        "{told}"
    );
}

/// A limit to the size of files stands for a disk that is full, and then not.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_delivery_and_is_told_once() {
    let world = World::new().await;
    // 25: the signal that would end it in place of an error
    let small = "trap '' 25 && ulimit -Sf 1000 && exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", small]);
    command.arg(env!("CARGO_BIN_EXE_zk-gateway"));
    let mut service = Service::start(&world, "", &mut command);

    let mut device = world.device("pi-01").await;
    let tls = Arc::new(device.tls.clone());
    let mut conversation = connect(service.address, tls).await.unwrap();
    let mut delivered = 0;
    let refused = loop {
        let message = device.message([delivered + 1]);
        match conversation.ask(&device.post(&message)).await.status {
            200 => delivered += 1,
            503 => break message,
            other => panic!("{other}"),
        }
        assert!(delivered < 1000, "the disk is never full");
    };
    for _ in 0..3 {
        let answer = conversation.ask(&device.post(&refused)).await;
        assert_eq!(answer.status, 503);
    }
    assert_eq!(world.stored(&device).await.len() as u64, delivered);

    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    prlimit(Some(service.pid()), Resource::Fsize, unlimited).unwrap();
    let answer = conversation.ask(&device.post(&refused)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.stored(&device).await.len() as u64, delivered + 1);

    service.signal(Signal::TERM);
    let output = service.end();
    let told = told(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert_eq!(told.matches(" ERROR ").count(), 1, "{told}");
    for part in ["the store failed;", "the store is well again"] {
        assert_eq!(told.matches(part).count(), 1, "{part:?} in {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_fill_the_log() {
    let world = World::new().await;
    let mut service = Service::start(&world, "", &mut gateway());
    let nobody = Arc::new(world.nobody());
    for _ in 0..100 {
        // in TLS 1.3 the client learns of it with the first answer
        if let Ok(mut conversation) = connect(service.address, Arc::clone(&nobody)).await {
            conversation.closed().await;
        }
    }
    service.signal(Signal::TERM);
    let output = service.end();
    let told = told(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert_eq!(told.matches("refused a connection").count(), 1, "{told}");
}

/// Systems give a program 1024 open files at first, fewer than it has
/// connections.
#[tokio::test]
async fn it_takes_the_open_files_that_it_needs_or_says_so() {
    let world = World::new().await;
    let path = world.path("gateway.toml");
    fs::write(&path, configuration()).unwrap();
    let check = |limit: &str| {
        let output = Command::new("sh")
            .env_clear()
            .args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_zk-gateway"))
            .arg("--check")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", told(&output));
        told(&output)
    };
    let told = check("-Sn 100");
    assert!(!told.contains("files may be open"), "{told}");
    let told = check("-n 100");
    for part in ["too few files may be open", "allowed=100", "LimitNOFILE"] {
        assert!(told.contains(part), "{part:?} is missing in {told}");
    }
}

fn check(configuration: &Path) -> Output {
    gateway()
        .arg("--check")
        .arg("--config")
        .arg(configuration)
        .output()
        .unwrap()
}
