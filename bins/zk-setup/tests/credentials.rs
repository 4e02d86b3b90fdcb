//! `credentials`: what is sealed, who gets it, and who doesn't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use serde_json::{Value, json};
use tempfile::TempDir;
use zk_envelope::KeyId;
use zk_hsm::{Hsm, HsmUri, Options, create_soft_key};
use zk_hsm_sim::{Device, Model};

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLEtoken==";

#[test]
fn a_command_gets_the_keys_in_its_environment_and_is_all_that_is_left() {
    let place = Place::new();
    let sealed = place.seal_by(&place.chip("chip"), "default", &keys());
    assert!(
        sealed
            .out
            .starts_with("sealed zk/credentials/default.sealed\n")
    );
    assert!(sealed.out.contains("unlocked again"), "{}", sealed.out);
    let file = place.path("zk/credentials/default.sealed");
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    assert!(!fs::read_to_string(&file).unwrap().contains(SECRET));

    // what it has, in its environment alone; and those of others are gone
    let script = "test -z \"$AWS_SESSION_TOKEN$AWS_SECURITY_TOKEN$AWS_PROFILE\" || exit 1; tr '\\0' ' ' \
                  </proc/$$/cmdline; echo \"$AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY\"";
    let mut command = place.command(&["credentials", "run", "--", "sh", "-c", script, "a b"]);
    command.env("AWS_SESSION_TOKEN", "another's");
    command.env("AWS_SECURITY_TOKEN", "another's");
    command.env("AWS_PROFILE", "another");
    let ran = Ended::of(&mut command, "");
    assert_eq!(ran.code(), 0, "{}", ran.err);
    let (line, environment) = ran.out.split_at(ran.out.find(ID).expect("the key's id"));
    assert!(line.ends_with("a b "), "{line}");
    assert!(!line.contains(SECRET), "{line}");
    assert_eq!(environment, format!("{ID} {SECRET}\n"));
    assert!(ran.err.contains("AWS_PROFILE is taken"), "{}", ran.err);

    // its end is the end: status and signal
    let run = ["credentials", "run", "--", "sh", "-c"];
    let seven = place.run(&[&run[..], &["exit 7"]].concat());
    assert_eq!(seven.code(), 7);
    let killed = place.run(&[&run[..], &["kill -TERM $$"]].concat());
    assert_eq!(killed.status.signal(), Some(15));
    // `$PPID` of the command is this process
    let parent = place.run(&[&run[..], &["echo $PPID"]].concat());
    assert_eq!(parent.out.trim(), std::process::id().to_string());

    let missing = place.fails(&["credentials", "run", "--", "no-such-command"]);
    assert!(
        missing.err.contains("cannot run no-such-command"),
        "{}",
        missing.err
    );
}

/// The AWS SDK reads what `seal` says is to stand in ~/.aws/config.
#[test]
fn the_sdk_gets_the_keys_by_credential_process() {
    let place = Place::new();
    let chip = place.chip("chip");
    for (name, token, expires) in [("default", None, None), ("ops", Some(TOKEN), Some(2100))] {
        let mut given = keys();
        if let (Some(token), Some(year)) = (token, expires) {
            given["SessionToken"] = json!(token);
            given["Expiration"] = json!(format!("{year}-01-01T00:00:00Z"));
            given["AccountId"] = json!("123456789012");
        }
        // where quotation marks are needed
        let dir = "some where/zk";
        let seal = [
            "--dir",
            dir,
            "--json",
            "credentials",
            "seal",
            name,
            "--hsm",
            &chip,
        ];
        let sealed = place.with_input(&seal, &given.to_string());
        assert_eq!(sealed.code(), 0, "{}", sealed.err);
        let told: Value = serde_json::from_str(&sealed.out).unwrap();
        let lines = [&told["config"][0], &told["config"][1]].map(|line| line.as_str().unwrap());
        fs::write(place.path("config"), lines.join("\n")).unwrap();
        let found = of_sdk(&place.path("config"), name).unwrap();
        assert_eq!(found.access_key_id(), ID);
        assert_eq!(found.secret_access_key(), SECRET);
        assert_eq!(found.session_token(), token);
        assert_eq!(found.expiry().is_some(), expires.is_some());
        assert_eq!(found.account_id().is_some(), token.is_some());
    }
    // and hears why not
    fs::remove_file(place.path("some where/zk/credentials/ops.sealed")).unwrap();
    let error = of_sdk(&place.path("config"), "ops").unwrap_err();
    let said = format!("{error:?}");
    assert!(said.contains("cannot use the keys ops"), "{said}");
}

#[test]
fn keys_of_a_profile_are_sealed_and_where_they_still_are_is_said() {
    let place = Place::new();
    let chip = place.chip("chip");
    let aws = place.path(".aws");
    fs::create_dir(&aws).unwrap();
    let credentials = format!(
        "[other]\naws_access_key_id = AKIAOTHEROTHEROTHER1\naws_secret_access_key = {OTHER}\n\n\
         # mine\n[ops]\nAWS_ACCESS_KEY_ID={ID}\naws_secret_access_key = {SECRET} # old\n\
         region = eu-central-1\n[half]\naws_access_key_id = {ID}\n"
    );
    fs::write(aws.join("credentials"), &credentials).unwrap();
    fs::write(
        aws.join("config"),
        format!("[profile copy]\naws_secret_access_key = {SECRET}\n"),
    )
    .unwrap();
    let seal = ["credentials", "seal", "--hsm", &chip, "--profile"];
    let sealed = place.run(&[&seal[..], &["ops", "--json"]].concat());
    assert_eq!(sealed.code(), 0, "{}", sealed.err);
    let told: Value = serde_json::from_str(&sealed.out).unwrap();
    assert_eq!(told["name"], "ops");
    assert_eq!(told["plaintext"][0]["lines"], json!([7, 8, 11]));
    assert_eq!(told["plaintext"][1]["lines"], json!([2]));
    assert!(
        sealed.err.contains("/.aws/credentials, lines 7, 8, 11"),
        "{}",
        sealed.err
    );
    // nobody was asked, and so nothing was taken out
    assert_eq!(
        fs::read_to_string(aws.join("credentials")).unwrap(),
        credentials
    );

    for (profile, says) in [
        ("nobody", "has no profile nobody"),
        ("half", "aws configure export-credentials --profile half"),
        ("no such", "is none: name one"),
    ] {
        let refused = place.fails(&[&seal[..], &[profile]].concat());
        assert!(refused.err.contains(says), "{}", refused.err);
    }

    // at a terminal it is offered, for each file
    fs::set_permissions(aws.join("credentials"), Permissions::from_mode(0o600)).unwrap();
    let answers = [("lines out? [y/N] ", "y"), ("lines out? [y/N] ", "n")];
    let (code, said) = place.at_terminal(&[&seal[..], &["ops"]].concat(), &answers);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("/.aws/config, line 2:"), "{said}");
    let left = fs::read_to_string(aws.join("credentials")).unwrap();
    assert!(!left.contains(SECRET) && !left.contains(ID), "{left}");
    assert!(
        left.starts_with("[other]\naws_access_key_id = AKIAOTHER"),
        "{left}"
    );
    assert!(
        left.contains(OTHER) && left.contains("[ops]\nregion = eu-central-1\n"),
        "{left}"
    );
    assert_eq!(mode(&aws.join("credentials")), 0o600);
    assert!(
        fs::read_to_string(aws.join("config"))
            .unwrap()
            .contains(SECRET)
    );
}

const OTHER: &str = "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY";

#[test]
fn a_person_types_the_keys_and_nobody_sees_them() {
    let place = Place::new();
    let chip = place.chip("chip");
    let typed = [
        ("Access key id (AKIA…): ", ID),
        ("Secret access key: ", SECRET),
        ("Session token (none: Enter): ", TOKEN),
        ("not known: Enter): ", "2100-01-01T00:00:00Z"),
    ];
    let (code, said) = place.at_terminal(&["credentials", "seal", "--hsm", &chip], &typed);
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains(SECRET) && !said.contains(TOKEN), "{said}");
    let ran = place.run(&["credentials", "run"]);
    let found: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        found,
        json!({
            "Version": 1,
            "AccessKeyId": ID,
            "SecretAccessKey": SECRET,
            "SessionToken": TOKEN,
            "Expiration": "2100-01-01T00:00:00Z",
        })
    );

    // without a command the terminal gets nothing
    let (code, said) = place.at_terminal(&["credentials", "run"], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("not shown at a terminal"), "{said}");
    assert!(!said.contains(SECRET), "{said}");
}

#[test]
fn only_the_hsm_that_locked_them_unlocks_them() {
    let place = Place::new();
    let (one, other) = (place.chip("one"), place.chip("other"));
    place.seal_by(&one, "default", &keys());
    place.edit("default", |file| file["hsm"] = json!(other));
    let refused = place.fails(&["credentials", "run"]);
    for says in [&format!("and {other} has key"), ID, "make a new access key"] {
        assert!(refused.err.contains(says), "{says}: {}", refused.err);
    }
    // nor if the file says that it is that one
    let key = KeyId::of(open(&other).public_key());
    place.edit("default", |file| file["hsmKey"] = json!(key));
    let refused = place.fails(&["credentials", "run"]);
    assert!(
        refused.err.contains("not locked by this HSM"),
        "{}",
        refused.err
    );
}

#[test]
fn a_key_file_says_that_it_protects_nothing() {
    let place = Place::new();
    let key = create_soft_key(place.path("key.pem")).unwrap().to_string();
    let sealed = place.seal_by(&key, "default", &keys());
    assert!(sealed.err.contains("protects NOTHING"), "{}", sealed.err);
    let ran = place.run(&["--json", "credentials", "run"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), keys());
    create_soft_key(place.path("other.pem")).unwrap();
    fs::rename(place.path("other.pem"), place.path("key.pem")).unwrap();
    let refused = place.fails(&["credentials", "run"]);
    assert!(
        refused.err.contains("only that one unlocks them"),
        "{}",
        refused.err
    );
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_locks_and_unlocks_them() {
    let place = Place::new();
    fs::create_dir(place.path("tokens")).unwrap();
    let tokens = format!(
        "directories.tokendir = {}\n",
        place.path("tokens").display()
    );
    fs::write(place.path("softhsm2.conf"), tokens).unwrap();
    fs::write(place.path("pin"), "8317402\n").unwrap();
    fs::set_permissions(place.path("pin"), Permissions::from_mode(0o600)).unwrap();
    let softhsm = |arguments: &[&str]| {
        let mut command = Command::new("softhsm2-util");
        command.args(arguments).args(["--pin", "8317402"]);
        let output = command
            .env("SOFTHSM2_CONF", place.path("softhsm2.conf"))
            .output();
        let output = output.expect("this test needs SoftHSM2: apt-get install softhsm2");
        assert!(output.status.success(), "{output:?}");
    };
    create_soft_key(place.path("import.pem")).unwrap();
    let import = place.path("import.pem");
    let import = [
        "--import",
        import.to_str().unwrap(),
        "--id",
        "01",
        "--label",
        "device",
    ];
    for token in ["plant", "spare"] {
        softhsm(&[
            "--init-token",
            "--free",
            "--label",
            token,
            "--so-pin",
            "5550199",
        ]);
        softhsm(&[&import[..], &["--token", token]].concat());
    }
    let pin = place.path("pin");
    let uri = |token| {
        let pin = pin.display();
        format!("pkcs11:token={token};object=device?pin-source=file:{pin}")
    };
    place.seal_by(&uri("plant"), "default", &keys());
    let ran = place.run(&["credentials", "run"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), keys());
    // the other has the same key, but not what locks
    place.edit("default", |file| file["hsm"] = json!(uri("spare")));
    let refused = place.fails(&["credentials", "run"]);
    assert!(
        refused.err.contains("does not unlock key"),
        "{}",
        refused.err
    );
}

#[test]
fn a_file_that_is_not_as_it_was_gives_nothing_away() {
    let place = Place::new();
    place.seal_by(&place.chip("chip"), "default", &keys());
    let path = place.path("zk/credentials/default.sealed");
    let good = fs::read(&path).unwrap();
    let refused = |says: &str| {
        let refused = place.fails(&["credentials", "run", "--", "true"]);
        assert!(refused.err.contains(says), "{says}: {}", refused.err);
        assert!(!refused.err.contains(SECRET), "{}", refused.err);
    };
    let changed = |member: &str, value: Value, says: &str| {
        place.edit("default", |file| file[member] = value);
        refused(says);
        fs::write(&path, &good).unwrap();
    };
    let file: Value = serde_json::from_slice(&good).unwrap();
    let locked = file["locked"].as_str().unwrap();
    for at in [0, locked.len() / 2, locked.len() - 1] {
        let digit = if &locked[at..=at] == "0" { "1" } else { "0" };
        let flipped = [&locked[..at], digit, &locked[at + 1..]].concat();
        changed("locked", json!(flipped), "does not unlock key");
    }
    changed("locked", json!(locked[2..]), "does not unlock key");
    changed("locked", json!(locked[1..]), "hex");
    changed("locked", json!(locked.to_uppercase()), "hex");
    changed("locked", json!(""), "bytes given");
    changed(
        "accessKeyId",
        json!("AKIAOTHEROTHEROTHER1"),
        "somebody has changed the file",
    );
    changed("accessKeyId", json!("\u{1b}[2J"), "accessKeyId");
    changed("hsmKey", json!("ab"), "damaged");
    changed(
        "hsmKey",
        json!("ab".repeat(32)),
        "only that one unlocks them",
    );
    changed("hsm", json!("soft:key.pem"), "absolute path");
    changed("format", json!("zk-credentials/2"), "another form");
    changed("more", json!(1), "damaged");
    for length in [0, 1, good.len() / 2, good.len() - 3] {
        fs::write(&path, &good[..length]).unwrap();
        refused("damaged, or no sealed file");
    }
    fs::write(&path, [&good[..], b"{}"].concat()).unwrap();
    refused("damaged, or no sealed file");
    fs::write(&path, [&good[..], &[b' '; 200_000]].concat()).unwrap();
    refused("longer than");

    // who else may have touched it
    fs::write(&path, &good).unwrap();
    for mode in [0o644, 0o620, 0o604] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        refused("chmod 600");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::rename(&path, place.path("elsewhere")).unwrap();
    symlink(place.path("elsewhere"), &path).unwrap();
    refused("is a link");
    let seal = ["credentials", "seal", "--hsm", "zymkey:slot=0"];
    let taken = place.with_input(&seal, &keys().to_string());
    assert_eq!(taken.code(), 1);
    assert!(taken.err.contains("move it away"), "{}", taken.err);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("not a regular file");
    fs::remove_dir(&path).unwrap();
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    refused("not a regular file");
}

/// The form of the file, from its description alone; and what it holds is looked
/// at like what comes from anywhere else.
#[test]
fn what_the_hsm_locked_is_keys_in_force_or_nothing() {
    let place = Place::new();
    let chip = place.chip("chip");
    let hsm = open(&chip);
    let dir = place.path("zk/credentials");
    fs::create_dir_all(&dir).unwrap();
    let mut expired = keys();
    expired["Expiration"] = json!("2026-01-01T00:00:00Z");
    for (locked, says) in [
        (keys().to_string(), None),
        (expired.to_string(), Some("expired at 2026-01-01T00:00:00Z")),
        (format!("{} ", SECRET), Some("are no AWS keys")),
    ] {
        let locked = hsm.lock(locked.as_bytes()).unwrap();
        let locked: String = locked.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = json!({
            "format": "zk-credentials/1",
            "hsm": chip,
            "hsmKey": KeyId::of(hsm.public_key()),
            "accessKeyId": ID,
            "locked": locked,
        });
        let path = dir.join("made.sealed");
        fs::write(&path, file.to_string()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let run = ["credentials", "run", "--credentials", "made"];
        match says {
            None => {
                let ran = place.run(&run);
                assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), keys());
            }
            Some(says) => {
                let refused = place.fails(&run);
                assert!(refused.err.contains(says), "{}", refused.err);
                assert!(!refused.err.contains(SECRET), "{}", refused.err);
            }
        }
    }
}

#[test]
fn what_can_not_be_unlocked_again_is_not_sealed() {
    let place = Place::new();
    let chip = place.chip("chip");
    place.seal_by(&chip, "default", &keys());
    let before = fs::read(place.path("zk/credentials/default.sealed")).unwrap();
    let device = Device::create(place.path("faulty"), Model::Zymkey4i).unwrap();
    let faulty = uri(&device);
    let rules = "[[rule]]\non = \"unlock\"\nfault = { code = -74 }\n";
    device.set_faults(&rules.parse().unwrap()).unwrap();
    let seal = ["credentials", "seal", "--hsm", &faulty];
    let refused = place.with_input(&seal, &keys().to_string());
    assert_eq!(
        (refused.code(), refused.out.as_str()),
        (1, ""),
        "{}",
        refused.err
    );
    assert_eq!(place.files(), ["default.sealed"]);
    let after = fs::read(place.path("zk/credentials/default.sealed")).unwrap();
    assert_eq!(before, after);
}

#[test]
fn what_is_no_aws_key_is_not_sealed_and_not_shown() {
    let place = Place::new();
    let seal = ["credentials", "seal", "--hsm", "zymkey:slot=0"];
    let mut expired = keys();
    expired["Expiration"] = json!("2026-01-01T00:00:00Z");
    let long = format!("{{\"Version\":1,\"SecretAccessKey\":\"{SECRET}{:40000}", "");
    for (given, says) in [
        ("", "standard input is empty"),
        (SECRET, "not the JSON that credential_process has"),
        (&long, "more than"),
        (&expired.to_string(), "expired at"),
    ] {
        let refused = place.with_input(&seal, given);
        assert_eq!(refused.code(), 1, "{}", refused.err);
        assert!(refused.err.contains(says), "{says}: {}", refused.err);
        assert!(!refused.err.contains(SECRET), "{}", refused.err);
    }
    assert!(!place.path("zk").exists());
}

#[test]
fn forgotten_keys_are_gone_and_the_way_to_deactivate_them_is_said() {
    let place = Place::new();
    let chip = place.chip("chip");
    place.seal_by(&chip, "ops", &keys());
    // other keys under the name: the first are still good in AWS
    let mut next = keys();
    next["AccessKeyId"] = json!("AKIAOTHEROTHEROTHER1");
    let replaced = place.seal_by(&chip, "ops", &next);
    let deactivate = |id: &str| {
        format!("aws iam update-access-key --access-key-id {id} --status Inactive --user-name USER")
    };
    assert!(replaced.err.contains(&deactivate(ID)), "{}", replaced.err);
    place.seal_by(&chip, "damaged", &keys());

    // without the chip
    fs::remove_dir_all(place.path("chip")).unwrap();
    let forgotten = place.run(&["credentials", "forget", "ops"]);
    assert_eq!(forgotten.code(), 0, "{}", forgotten.err);
    assert_eq!(
        forgotten.out,
        "forgotten ops, access key AKIAOTHEROTHEROTHER1\n"
    );
    let said = deactivate("AKIAOTHEROTHEROTHER1");
    assert!(forgotten.err.contains(&said), "{}", forgotten.err);
    assert!(
        forgotten.err.contains("can be overwritten"),
        "{}",
        forgotten.err
    );

    fs::write(place.path("zk/credentials/damaged.sealed"), "{").unwrap();
    let forgotten = place.run(&["credentials", "forget", "damaged", "--json"]);
    assert_eq!(forgotten.code(), 0, "{}", forgotten.err);
    let told: Value = serde_json::from_str(&forgotten.out).unwrap();
    assert_eq!(told["accessKeyId"], Value::Null);
    assert!(
        forgotten.err.contains("aws iam list-access-keys"),
        "{}",
        forgotten.err
    );
    assert!(place.files().is_empty());

    let missing = place.fails(&["credentials", "forget", "ops"]);
    assert!(missing.err.contains("ops.sealed"), "{}", missing.err);
    let name = place.run(&["credentials", "forget", "../ops"]);
    assert_eq!(name.code(), 2);
}

#[test]
fn what_readings_cost_is_told_to_people_and_scripts() {
    let place = Place::new();
    let cost = ["cost", "--readings-per-hour", "60", "--sensors", "4"];
    let told = place.run(&[&cost[..], &["--json"]].concat());
    assert_eq!(told.code(), 0, "{}", told.err);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["readingsPerMonth"], 175_200.0);
    let beats = told["heartbeatsPerMonth"].as_f64().unwrap();
    assert_eq!(beats, 8_760.0);
    let alone = &told["alone"];
    assert_eq!(alone["messagesPerMonth"], 43_800.0 + 8_760.0);
    // each message is metered once, and its answer once
    let month = &alone["dollarsPerMonth"];
    let messages = 52_560.0 * 1e-6;
    for term in ["messaging", "response"] {
        let found = month[term].as_f64().unwrap();
        assert!((found - messages).abs() < 1e-9, "{found}");
    }
    assert!(told["packed"]["recordsPerMessage"].as_u64().unwrap() > 1);

    let told = place.run(&cost);
    for says in [
        "us-east-1, 2026-11-23",
        "the answer (?)",
        "Uncertain",
        "Not in it",
    ] {
        assert!(told.out.contains(says), "{says}: {}", told.out);
    }
    let bad = ["cost", "--readings-per-hour", "0", "--sensors", "4"];
    assert_eq!(place.run(&bad).code(), 2);
    // as the agent has it, if nobody says otherwise
    let every = zk_agent::Heartbeat::default().interval.as_secs_f64();
    assert_eq!(beats * every, 730.0 * 3600.0);
}

fn of_sdk(config: &Path, profile: &str) -> Result<Credentials, CredentialsError> {
    let files = EnvConfigFiles::builder()
        .with_file(EnvConfigFileKind::Config, config)
        .build();
    let provider = ProfileFileCredentialsProvider::builder()
        .profile_files(files)
        .profile_name(profile)
        .build();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(provider.provide_credentials())
}

fn keys() -> Value {
    json!({ "Version": 1, "AccessKeyId": ID, "SecretAccessKey": SECRET })
}

fn uri(device: &Device) -> String {
    format!(
        "zymkey:slot=0?module-path={}",
        device.module_path().display()
    )
}

fn open(uri: &str) -> Hsm {
    Hsm::open(&uri.parse::<HsmUri>().unwrap(), Options::default()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A directory to work in, which is HOME, too.
struct Place(TempDir);

struct Ended {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Ended {
    fn of(command: &mut Command, input: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // it may not want to read all
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Self {
            status: output.status,
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn code(&self) -> i32 {
        self.status.code().unwrap()
    }
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new simulated chip, by its key's URI.
    fn chip(&self, name: &str) -> String {
        uri(&Device::create(self.path(name), Model::Zymkey4i).unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zk-setup"));
        self.surround(&mut command).args(arguments);
        command
    }

    fn surround<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .env_remove("ZK_SETUP_DIR")
            .env("HOME", self.0.path())
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .current_dir(self.0.path())
    }

    fn with_input(&self, arguments: &[&str], input: &str) -> Ended {
        Ended::of(&mut self.command(arguments), input)
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.with_input(arguments, "")
    }

    fn fails(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code(), 1, "{}{}", ended.out, ended.err);
        assert_eq!(ended.out, "");
        ended
    }

    fn seal_by(&self, hsm: &str, name: &str, keys: &Value) -> Ended {
        let seal = ["credentials", "seal", name, "--hsm", hsm];
        let sealed = self.with_input(&seal, &keys.to_string());
        assert_eq!(sealed.code(), 0, "{}", sealed.err);
        assert!(!sealed.err.contains(SECRET), "{}", sealed.err);
        sealed
    }

    /// Changes a sealed file, and leaves its mode.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path(&format!("zk/credentials/{name}.sealed"));
        let mut file = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut file);
        fs::write(&path, file.to_string()).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("zk/credentials")).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|entry| name(entry.unwrap())).collect()
    }

    /// Runs the program at a terminal of its own, where each prompt gets its
    /// answer.
    fn at_terminal(&self, arguments: &[&str], answers: &[(&str, &str)]) -> (i32, String) {
        let quoted = arguments.iter().map(|argument| format!("'{argument}'"));
        let quoted: Vec<_> = quoted.collect();
        let line = format!("{} {}", env!("CARGO_BIN_EXE_zk-setup"), quoted.join(" "));
        let mut command = Command::new("script");
        let spawned = self
            .surround(&mut command)
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            panic!("the script program is missing; install it with: apt-get install bsdutils");
        };
        let (mut typed, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut said = Vec::new();
        for (prompt, answer) in answers {
            while !said.ends_with(prompt.as_bytes()) {
                let mut byte = [0];
                if shown.read_exact(&mut byte).is_err() {
                    panic!("no {prompt:?} in {:?}", String::from_utf8_lossy(&said));
                }
                said.push(byte[0]);
            }
            typed.write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
        shown.read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        (child.wait().unwrap().code().unwrap(), said)
    }
}
