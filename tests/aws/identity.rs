//! A set-up in AWS with its devices, seen on MiniStack: by zk-setup as a program,
//! run by an operator who may do no more than `zk-setup policy` prints, and call by
//! call.
//!
//! `cargo xtask test aws` installs MiniStack and builds zk-setup. By hand:
//! `cargo build --workspace --bin zk-setup`, then
//! `cargo test --workspace --features zk-tests/aws --test aws_identity`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod stand_in;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_sdk_iam::config::Credentials;
use aws_sdk_iot::types::{AttributePayload, CaCertificateStatus, CertificateStatus};
use serde_json::Value;
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceId, Moment, OwnerKey, OwnerPublicKey, Sealer, StreamId,
    Timestamp, pack,
};
use zk_hsm::{Hsm, HsmUri, create_soft_key};
use zk_provision::{
    Action, AwsDesired, AwsSetup, CertificateRequest, DesiredDevice, DesiredKey, Destroy, Error,
    FunctionZip, LocalSetup, Others, Passphrase, Secrets, operator_policy,
};
use zk_store::{Options, Store};
use zk_verify::{Context, topic_of};

use stand_in::{Fault, REGION, StandIn, Way, changes, root};

const PASSPHRASE: &str = "correct horse battery";

/// The program, by somebody who has the rights that it prints and no other.
#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_account_and_back() {
    let world = World::new();
    let iot = aws_sdk_iot::Client::new(&world.root());

    let planned = world.json(3, &["plan", "--device", "pi-01", "--hsm", &world.key("k1")]);
    assert_eq!(planned["hasChanges"], true);
    assert!(planned["calls"].as_u64().unwrap() > 10, "{planned}");
    assert!(planned["seconds"].as_f64().unwrap() > 0.0, "{planned}");
    assert_eq!(inventory(&world.root()).await, BTreeSet::new());
    assert!(!world.path("zk").exists() && !world.path("k1").exists());

    let apply = ["apply", "--device", "pi-01", "--csr", &world.request("k1")];
    let unasked = world.fails(1, &apply);
    assert!(unasked.err.contains("--yes"), "{}", unasked.err);
    let made = world.json(0, &[&apply[..], &["--yes"]].concat());
    assert_eq!(made["hasChanged"], true);
    assert_eq!(made["account"], world.account);
    println!("apply: {} calls, {} s", made["calls"], made["seconds"]);
    println!("plan: {} calls, {} s", planned["calls"], planned["seconds"]);
    let all = inventory(&world.root()).await;
    for there in [
        "ca ACTIVE",
        "certificate 0 ACTIVE",
        "thing zk-pi-01 with 1",
        "policy zk-pi-01 for 1 in 1",
        "rule zk_verify",
        "function zk-verifier for 1",
        "role zk-verifier with 1",
        "role zk-rule with 1",
        "queue zk-dead-letters",
        "log group /aws/lambda/zk-verifier",
        "table zk-devices of 1",
        "table zk-readings of 0",
        "table zk-quarantine of 0",
    ] {
        assert!(all.contains(there), "no {there} in {all:#?}");
    }
    assert_eq!(all.len(), 13, "{all:#?}");

    // what the agent and the reader are told
    let agent = zk_agent::Config::read(&world.path("zk/devices/pi-01/agent.toml")).unwrap();
    assert!(agent.target.endpoint.contains("-ats.iot."), "{agent:?}");
    assert!(agent.target.roots.ends_with("amazon-roots.pem"));
    let roots = fs::read_to_string(&agent.target.roots).unwrap();
    assert_eq!(roots, AwsSetup::AMAZON_ROOTS);
    let authority = fs::read_to_string(world.path("zk/ca/device-ca.crt.pem")).unwrap();
    assert!(!roots.contains(authority.lines().nth(2).unwrap()));
    let reader = fs::read_to_string(world.path("zk/reader.toml")).unwrap();
    assert!(
        reader.contains("store = \"dynamodb:eu-central-1\""),
        "{reader}"
    );

    // again: nothing, and nothing is asked
    let again = world.json(0, &["apply"]);
    assert_eq!(again["hasChanged"], false, "{again}");
    assert_eq!(inventory(&world.root()).await, all);
    let status = world.json(0, &["status"]);
    assert_eq!(status["devices"][0]["state"], "active");
    // a profile that is named goes before keys in the environment
    let profile = format!(
        "[profile ops]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        world.operator.access_key_id(),
        world.operator.secret_access_key()
    );
    fs::write(world.path("config"), profile).unwrap();
    for (arguments, code) in [(&["plan", "--profile", "ops"][..], 0), (&["plan"], 1)] {
        let mut command = world.command(arguments);
        command
            .env("AWS_CONFIG_FILE", world.path("config"))
            .env("AWS_SECRET_ACCESS_KEY", "another");
        ended(command, code);
    }
    let checked = world.json(0, &["check"]);
    let item = |item: &Value| item["item"].as_str().unwrap().starts_with("IoT policy");
    assert!(checked["checks"].as_array().unwrap().iter().any(item));

    // what others have done to it is seen, and mended
    let certificate = iot.list_certificates().send().await.unwrap();
    let certificate = certificate.certificates()[0].clone();
    let (id, arn) = (
        certificate.certificate_id.unwrap(),
        certificate.certificate_arn.unwrap(),
    );
    let off = iot.update_certificate().certificate_id(&id);
    off.new_status(CertificateStatus::Inactive)
        .send()
        .await
        .unwrap();
    let open =
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#;
    for _ in 0..4 {
        // as many as there can be
        let version = iot.create_policy_version().policy_name("zk-pi-01");
        let version = version.policy_document(open).set_as_default(true);
        version.send().await.unwrap();
    }
    let detached = iot.detach_policy().policy_name("zk-pi-01").target(&arn);
    detached.send().await.unwrap();
    let loose = iot.detach_thing_principal().thing_name("zk-pi-01");
    loose.principal(&arn).send().await.unwrap();
    let ca = iot.list_ca_certificates().send().await.unwrap();
    let ca = ca.certificates()[0].certificate_id.clone().unwrap();
    let off = iot.update_ca_certificate().certificate_id(&ca);
    off.new_status(CaCertificateStatus::Inactive)
        .send()
        .await
        .unwrap();
    let drift = world.json(3, &["plan"]);
    for (item, reason) in [
        (format!("IoT CA certificate {ca}"), "INACTIVE"),
        ("IoT policy zk-pi-01".to_owned(), "allows something else"),
        (
            format!("IoT certificate {id}"),
            "it is INACTIVE, its policy is not attached, it is not attached to its thing",
        ),
    ] {
        let change = change(&drift, &item);
        assert_eq!(change["action"], "change", "{item}");
        let said = change["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{item}: {said}");
    }
    assert_eq!(
        world.json(3, &["check"])["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["state"] == "wrong")
            .count(),
        3
    );
    world.json(0, &["apply", "--yes"]);
    world.json(0, &["plan"]);
    assert!(
        inventory(&world.root())
            .await
            .contains("policy zk-pi-01 for 1 in 2")
    );

    // a new key: both until the new one is used
    let rotate = ["device", "rotate", "pi-01", "--csr", &world.request("k2")];
    let next = world.json(0, &rotate);
    let next = next["principal"].as_str().unwrap().to_owned();
    assert_eq!(
        statuses(&iot).await,
        [(&id, "ACTIVE"), (&next, "ACTIVE")].into_map()
    );
    let early = world.fails(1, &["device", "rotate", "pi-01", "--finish"]);
    assert!(early.err.contains("nothing has come in"), "{}", early.err);
    world.publish(&next, "k2").await;
    let plan = world.json(3, &["plan"]);
    let retires = change(&plan, &format!("IoT certificate {id}"));
    assert_eq!(retires["action"], "change", "{retires}");
    world.json(0, &["device", "rotate", "pi-01", "--finish"]);
    assert_eq!(
        statuses(&iot).await,
        [(&id, "INACTIVE"), (&next, "ACTIVE")].into_map()
    );
    world.json(0, &["plan"]);

    // without a zip file beside it the program that is there stays
    let without = world.json_of(0, world.command(&["--json", "plan"]));
    let function = change(&without, "Lambda function zk-verifier");
    assert_eq!(function["action"], "keep", "{function}");
    let reason = function["reason"].as_str().unwrap();
    assert!(reason.contains("not compared"), "{reason}");
    let other = ["--json", "plan", "--arch", "x86_64"];
    let refused = ended(world.command(&other), 1);
    assert!(
        refused.err.contains("cargo xtask lambda --arch x86_64"),
        "{}",
        refused.err
    );

    // shut out, and it stays so
    world.json(0, &["device", "revoke", "pi-01"]);
    assert_eq!(
        statuses(&iot).await,
        [(&id, "REVOKED"), (&next, "REVOKED")].into_map()
    );
    world.json(0, &["plan"]);
    assert_eq!(
        world.json(0, &["device", "list"])["devices"][0]["state"],
        "revoked"
    );
    let listed = world.json(0, &["device", "list"]);
    assert!(listed["calls"].as_u64() > Some(0) && listed["seconds"].is_number());
    assert_eq!(listed["prefix"], "zk");

    // and away: the data, the keys, all
    world.json(0, &["destroy", "--yes"]);
    let left = inventory(&world.root()).await;
    let data = [
        "table zk-devices of 2",
        "table zk-quarantine of 0",
        "table zk-readings of 1",
    ];
    assert_eq!(left, data.map(str::to_owned).into());
    assert!(world.path("zk/trust.toml").exists() && world.path("zk/aws.toml").exists());
    world.json(0, &["destroy", "--with-data", "--with-keys", "--yes"]);
    assert_eq!(inventory(&world.root()).await, BTreeSet::new());
    assert!(!world.path("zk").exists());
    world.json(0, &["destroy", "--with-data", "--with-keys", "--yes"]);
}

/// A directory that is lost costs the keys, and keeps nobody from taking the rest
/// away.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_is_found_without_its_directory() {
    let world = World::new();
    let apply = [
        "apply",
        "--yes",
        "--device",
        "pi-01",
        "--csr",
        &world.request("k1"),
    ];
    world.json(0, &apply);
    fs::remove_file(world.path("zk/aws.toml")).unwrap();
    world.json(3, &["plan"]);
    world.json(0, &["apply", "--yes"]);
    fs::remove_dir_all(world.path("zk")).unwrap();
    let there = inventory(&world.root()).await;
    let all = ["destroy", "--with-data", "--with-keys", "--yes"];
    // the directory's name may be another's, mistyped
    for arguments in [&all[..], &[&all[..], &["--dir", "zkk"]].concat()] {
        let refused = world.fails(1, arguments);
        let says = ["doesn't say where in AWS", "--prefix zk", "--dir"];
        for part in says {
            assert!(refused.err.contains(part), "{}", refused.err);
        }
    }
    assert_eq!(inventory(&world.root()).await, there);
    world.json(0, &[&all[..], &["--prefix", "zk"]].concat());
    assert_eq!(inventory(&world.root()).await, BTreeSet::new());
    world.json(0, &all);
}

/// What isn't ours is found before anything is made, and left alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_stays() {
    let world = World::new();
    let iot = aws_sdk_iot::Client::new(&world.root());
    let device = ["--device", "pi-01", "--csr", &world.request("k1")];
    let plan = [&["plan"][..], &device].concat();
    let apply = [&["apply", "--yes"][..], &device].concat();

    iot.create_thing()
        .thing_name("zk-pi-01")
        .send()
        .await
        .unwrap();
    for arguments in [&plan, &apply] {
        let refused = world.fails(1, arguments);
        let parts = [
            "IoT thing zk-pi-01 exists, and was not made by this set-up",
            "--prefix",
        ];
        for part in parts {
            assert!(refused.err.contains(part), "{}", refused.err);
        }
    }
    assert_eq!(inventory(&world.root()).await.len(), 1);
    iot.delete_thing()
        .thing_name("zk-pi-01")
        .send()
        .await
        .unwrap();
    let foreign = iot.create_policy().policy_name("zk-pi-01");
    let document = r#"{"Version":"2012-10-17","Statement":[]}"#;
    foreign.policy_document(document).send().await.unwrap();
    let refused = world.fails(1, &plan);
    assert!(
        refused.err.contains("IoT policy zk-pi-01 exists"),
        "{}",
        refused.err
    );
    iot.delete_policy()
        .policy_name("zk-pi-01")
        .send()
        .await
        .unwrap();

    // a later version's
    let attributes = AttributePayload::builder().attributes("zk-set-up", "zk");
    let attributes = attributes.attributes("zk-version", "2").build();
    let thing = iot.create_thing().thing_name("zk-pi-01");
    thing.attribute_payload(attributes).send().await.unwrap();
    let refused = world.fails(1, &plan);
    assert!(refused.err.contains("version"), "{}", refused.err);
    iot.delete_thing()
        .thing_name("zk-pi-01")
        .send()
        .await
        .unwrap();

    // beside ours, and under our authority
    world.json(0, &apply);
    iot.create_thing().thing_name("lamp").send().await.unwrap();
    let lamp = iot.create_policy().policy_name("zk-lamp");
    lamp.policy_document(document).send().await.unwrap();
    let certificate = world.sign("lamp");
    let registered = iot.register_certificate().certificate_pem(certificate);
    let registered = registered.status(CertificateStatus::Active).send().await;
    let arn = registered.unwrap().certificate_arn.unwrap();
    // and on one of ours, too
    for thing in ["lamp", "zk-pi-01"] {
        let hung = iot.attach_thing_principal().thing_name(thing);
        hung.principal(&arn).send().await.unwrap();
    }
    let attached = iot.attach_policy().policy_name("zk-lamp").target(&arn);
    attached.send().await.unwrap();
    world.json(0, &["plan"]);
    let destroyed = world.json(0, &["destroy", "--with-data", "--with-keys", "--yes"]);
    let kept = |item: &str| {
        let steps = destroyed["steps"].as_array().unwrap();
        steps.iter().any(|step| {
            step["action"] == "kept" && step["item"].as_str().unwrap().starts_with(item)
        })
    };
    assert!(
        kept("IoT CA certificate") && kept("IoT certificate") && kept("IoT policy zk-lamp"),
        "{destroyed}"
    );
    let left = inventory(&world.root()).await;
    let theirs = [
        "ca ACTIVE",
        "certificate 0 ACTIVE",
        "policy zk-lamp for 1 in 1",
        "thing lamp with 1",
    ];
    assert_eq!(left, theirs.map(str::to_owned).into());
}

/// Each is an error that says what to do next, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_before_anything_is_done() {
    let world = World::new();
    let device = ["--device", "pi-01", "--csr", &world.request("k1")];
    let apply = [&["apply", "--yes"][..], &device].concat();
    let says = |ended: &Ended, parts: &[&str]| {
        for part in parts {
            assert!(ended.err.contains(part), "no {part:?} in {}", ended.err);
        }
    };

    // nothing is configured
    let mut bare = world.command(&apply);
    bare.env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    says(&ended(bare, 1), &["credentials", "--target local"]);
    let mut bare = world.command(&apply);
    bare.env_remove("AWS_REGION");
    says(&ended(bare, 1), &["region", "--target local"]);
    let prefix = world.fails(1, &[&apply[..], &["--prefix", "1zk"]].concat());
    says(&prefix, &["prefix", "letter"]);
    let none = [&["plan", "--lambda-zip", "none.zip"][..], &device].concat();
    let mut none = world.command(&none);
    none.env_remove("ZK_TEST_ZIP");
    says(
        &ended(none, 1),
        &["none.zip", "cargo xtask lambda --arch arm64"],
    );
    says(
        &world.fails(1, &["apply", "--name", "gateway.example"]),
        &["--target local"],
    );
    says(
        &world.fails(1, &["gateway", "init", "--target", "aws"]),
        &["--target local"],
    );
    let mut rightless = world.command(&apply);
    let nothing = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["iot:AttachPolicy"],"Resource":"*"}]}"#;
    let nobody = world.server.operator("nobody", nothing);
    rightless
        .env("AWS_ACCESS_KEY_ID", nobody.access_key_id())
        .env("AWS_SECRET_ACCESS_KEY", nobody.secret_access_key());
    says(&ended(rightless, 1), &["zk-setup policy"]);
    says(
        &world.fails(1, &["device", "revoke", "pi-01"]),
        &["zk holds no setup", "zk-setup apply", "--dir"],
    );
    says(
        &world.fails(1, &["plan", "--region", "EU Central"]),
        &["\"EU Central\" is none of AWS's", "eu-central-1"],
    );
    assert!(!world.path("zk").exists());
    assert_eq!(inventory(&world.root()).await, BTreeSet::new());

    world.json(0, &apply);
    let all = inventory(&world.root()).await;
    let files = world.files();
    // somewhere else
    let mut elsewhere = world.command(&["apply", "--yes"]);
    elsewhere.env("AWS_REGION", "us-east-1");
    says(
        &ended(elsewhere, 1),
        &[
            "aws.toml is for the region eu-central-1",
            "asked for is us-east-1",
            "AWS_REGION",
            "--dir",
        ],
    );
    for (option, other) in [("--region", "us-east-1"), ("--prefix", "other")] {
        for command in [&["plan"][..], &["destroy", "--yes"]] {
            says(
                &world.fails(1, &[command, &[option, other]].concat()),
                &[
                    "aws.toml is for the ",
                    &format!("asked for is {other}"),
                    option,
                ],
            );
        }
    }
    let mut other = world.command(&["apply", "--yes"]);
    other
        .env("AWS_ACCESS_KEY_ID", "100000000006")
        .env("AWS_SECRET_ACCESS_KEY", "test");
    says(
        &ended(other, 1),
        &[
            "is for AWS account 000000000000",
            "100000000006",
            "--profile",
        ],
    );
    says(
        &world.fails(1, &["plan", "--target", "local"]),
        &["was set up for AWS"],
    );

    // revoked there
    let iot = aws_sdk_iot::Client::new(&world.root());
    let certificate = iot.list_certificates().send().await.unwrap().certificates()[0].clone();
    let id = certificate.certificate_id.unwrap();
    let set = async |status| {
        let changed = iot
            .update_certificate()
            .certificate_id(&id)
            .new_status(status);
        changed.send().await.unwrap();
    };
    set(CertificateStatus::Revoked).await;
    says(
        &world.fails(1, &["apply", "--yes"]),
        &["was revoked in AWS IoT", "device revoke pi-01"],
    );
    assert_eq!(statuses(&iot).await, [(&id, "REVOKED")].into_map());
    set(CertificateStatus::Active).await;

    // an authority that is none, or was one
    let ca = world.path("zk/ca/device-ca.crt.pem");
    let good = fs::read(&ca).unwrap();
    fs::copy(world.path("zk/devices/pi-01/device.crt.pem"), &ca).unwrap();
    says(
        &world.fails(1, &["plan"]),
        &["device-ca.crt.pem: not a certificate authority"],
    );
    fs::write(&ca, "nonsense").unwrap();
    says(
        &world.fails(1, &["plan"]),
        &["device-ca.crt.pem", "not a certificate"],
    );
    fs::write(&ca, good).unwrap();

    assert_eq!(world.files(), files);
    assert_eq!(inventory(&world.root()).await, all);
    world.json(0, &["plan"]);
}

/// A profile may have a role in place of keys; and one that is named by option goes
/// before keys in the environment, one by variable after them.
#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_those_of_awss_own_tools() {
    let world = World::new();
    let trust = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"sts:AssumeRole"}]}"#;
    let iam = aws_sdk_iam::Client::new(&world.root());
    let role = iam.create_role().role_name("ops");
    let made = role.assume_role_policy_document(trust).send().await;
    let arn = made.unwrap().role.unwrap().arn;
    let profiles = format!(
        "[profile base]\naws_access_key_id = test\naws_secret_access_key = test\n\
         [profile ops]\nrole_arn = {arn}\nsource_profile = base\nregion = {REGION}\n"
    );
    fs::write(world.path("profiles"), profiles).unwrap();
    let with_profiles = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env("AWS_CONFIG_FILE", world.path("profiles"));
        command
    };
    for region in [None, Some(REGION)] {
        let mut by_role = with_profiles(&["--profile", "ops", "policy"]);
        by_role.env_remove("AWS_REGION");
        by_role.env("AWS_ACCESS_KEY_ID", "AKIANOBODYNOBODYNOBO");
        by_role.args(region.iter().flat_map(|region| ["--region", region]));
        let told = ended(by_role, 0).out;
        assert!(
            told.contains(&format!(":{REGION}:{}:", world.account)),
            "{told}"
        );
    }
    let mut by_keys = with_profiles(&["policy"]);
    by_keys.env("AWS_PROFILE", "ops");
    by_keys.env("AWS_ACCESS_KEY_ID", "100000000006");
    by_keys.env("AWS_SECRET_ACCESS_KEY", "test");
    let told = ended(by_keys, 0).out;
    assert!(told.contains(":100000000006:"), "{told}");
}

/// MiniStack has no such accounts: it is what AWS answers.
#[tokio::test]
async fn an_authority_of_another_account_is_named_and_nothing_is_stuck() {
    let bench = Bench::new().await;
    bench.way.fault(|_, call| {
        let answer = "CA Certificate already exists.";
        let taken = Fault::Refused(409, "ResourceAlreadyExistsException", answer);
        call.starts_with("POST /cacertificate").then_some(taken)
    });
    let taken = bench.apply().await.unwrap_err();
    assert!(matches!(taken, Error::AuthorityTaken { .. }), "{taken:?}");
    let said = taken.to_string();
    for part in ["in another AWS account of eu-central-1", "empty directory"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(inventory(&bench.root).await, BTreeSet::new());
    // there it was removed
    bench.way.clear();
    bench.apply().await.unwrap();
    assert_eq!(bench.plan().await, [""; 0]);
}

/// Whatever a whole apply with a device, or a whole destroy, asks of AWS may fail, or
/// be done and its answer be lost: the next run completes it, and makes nothing twice.
///
/// Every call at its turn by `cargo xtask test aws`, which sets `ZK_TEST_AWS_STRIDE`
/// to 1; otherwise some of them.
#[tokio::test]
async fn what_a_failure_stopped_at_any_call_is_completed_by_the_next_run() {
    let stride = std::env::var("ZK_TEST_AWS_STRIDE");
    let stride: usize = stride.map_or(EVERY_FEW, |stride| stride.parse().unwrap());
    let bench = Bench::new().await;
    // so that the authority and its like are there
    bench.apply().await.unwrap();
    let all = inventory(&bench.root).await;
    bench.destroy().await.unwrap();
    bench.way.clear();
    bench.apply().await.unwrap();
    let applying = bench.way.clear();
    bench.destroy().await.unwrap();
    let destroying = bench.way.clear();
    assert!(applying.len() > 40, "{applying:#?}");
    assert!(destroying.len() > 40, "{destroying:#?}");

    // what only looks is the same whether it was lost or its answer
    let faults = |calls: &[String]| -> Vec<(usize, Fault)> {
        let lost = (0..calls.len()).map(|number| (number, Fault::Lost));
        let unanswered = (0..calls.len()).filter(|&number| changes(&calls[number]));
        let unanswered = unanswered.map(|number| (number, Fault::Unanswered));
        lost.chain(unanswered).step_by(stride).collect()
    };
    let (mut stopped, mut passed) = (0, 0);
    for (number, fault) in faults(&applying) {
        let what = format!("{fault:?}: {number} {}", applying[number]);
        bench.fail_at(number, &fault);
        let applied = bench.apply().await;
        // how often it looks while it waits is not the same each time
        let calls = bench.way.clear();
        match calls.get(number) {
            Some(_) => stopped += 1,
            None => passed += 1,
        }
        assert_eq!(
            applied.is_err(),
            calls.len() > number,
            "{what}: {applied:?}"
        );
        let done = bench.apply().await;
        assert!(done.is_ok(), "after {what}: {done:?}");
        assert_eq!(bench.plan().await, [""; 0], "after {what}");
        assert_eq!(inventory(&bench.root).await, all, "after {what}");
        bench.destroy().await.unwrap();
    }
    for (number, fault) in faults(&destroying) {
        let what = format!("{fault:?}: {number} {}", destroying[number]);
        bench.apply().await.unwrap();
        bench.fail_at(number, &fault);
        let destroyed = bench.destroy().await;
        let calls = bench.way.clear();
        match calls.get(number) {
            Some(_) => stopped += 1,
            None => passed += 1,
        }
        // whether that one is gone is looked at, as its error doesn't tell
        let is_gone = matches!(fault, Fault::Unanswered)
            && calls
                .get(number)
                .is_some_and(|call| call.starts_with("DELETE /rules/"));
        let is_stopped = calls.len() > number && !is_gone;
        assert_eq!(destroyed.is_err(), is_stopped, "{what}: {destroyed:?}");
        let done = bench.destroy().await;
        assert!(done.is_ok(), "after {what}: {done:?}");
        let left = inventory(&bench.root).await;
        assert_eq!(left, BTreeSet::new(), "after {what}");
    }
    println!(
        "of {} calls of apply and {} of destroy, {stopped} failures, and {passed} past the end",
        applying.len(),
        destroying.len()
    );
    assert!(passed * 10 < stopped, "{passed} past the end");
}

/// Not a divisor of how many calls there are of a kind.
const EVERY_FEW: usize = 7;

/// The same for a change of key, its end, and a revocation, at each kind of call that
/// changes something: lost, then, by the run that is to mend that, done but for its
/// answer.
#[tokio::test]
async fn a_rotation_and_a_revocation_are_completed_by_the_next_run() {
    let bench = Bench::new().await;
    let iot = aws_sdk_iot::Client::new(&bench.root);
    bench.apply().await.unwrap();
    let device: DeviceId = "pi-01".parse().unwrap();
    let now = SystemTime::now;

    for step in ["rotate", "finish", "revoke"] {
        // what it asks is known once nothing has gone wrong
        let mut failing: Option<Vec<String>> = None;
        loop {
            let next = failing.as_mut().map(Vec::pop);
            let what = match next {
                None => "nothing".to_owned(),
                Some(Some(next)) => next,
                Some(None) => break,
            };
            let (key, request) = bench.key();
            let rotate = async || {
                let passphrase = &bench.passphrase;
                let done = bench.setup.rotate_device(&request, None, passphrase, now());
                done.await.map(|next| next.certificate.principal())
            };
            let mut next = String::new();
            if step != "rotate" {
                next = rotate().await.unwrap();
                publish(&bench.root, &next, &key, bench.owner.clone()).await;
            }
            let run = async || match step {
                "rotate" => rotate().await.map(drop),
                "finish" => bench.setup.finish_rotation(&device, now()).await.map(drop),
                _ => bench.setup.revoke_device(&device, now()).await.map(drop),
            };
            if failing.is_some() {
                for fault in [Fault::Lost, Fault::Unanswered] {
                    let (kind, mut left) = (what.clone(), 1);
                    bench.way.fault(move |_, call| {
                        let is_it = left > 0 && kind_of(call) == kind;
                        left -= usize::from(is_it);
                        is_it.then(|| fault.clone())
                    });
                    let stopped = run().await;
                    assert!(stopped.is_err(), "{step}, {what}: {stopped:?}");
                }
            }
            bench.way.clear();
            let done = run().await;
            assert!(done.is_ok(), "{step} after {what}: {done:?}");
            if failing.is_none() {
                let calls = bench.way.changes();
                let kinds: BTreeSet<_> = calls.iter().map(|call| kind_of(call)).collect();
                assert!(kinds.len() > 1, "{step}: {kinds:?}");
                let found = kinds.into_iter().collect();
                failing = Some(found);
            }
            assert_eq!(bench.plan().await, [""; 0], "{step} after {what}");
            let found = statuses(&iot).await;
            let active = found.values().filter(|status| *status == "ACTIVE").count();
            match step {
                "rotate" => assert!(active >= 2, "{what}: {found:?}"),
                "finish" => {
                    assert_eq!(active, 1, "{what}: {found:?}");
                    assert_eq!(found[&next], "ACTIVE", "{what}");
                }
                _ => {
                    let is_shut = found.values().all(|status| status == "REVOKED");
                    assert!(is_shut, "{what}: {found:?}");
                    bench.start_anew().await;
                }
            }
        }
    }
}

/// Who isn't known to be shut out everywhere is not said to be.
#[tokio::test]
async fn a_revocation_that_can_not_look_everywhere_fails() {
    let bench = Bench::new().await;
    bench.apply().await.unwrap();
    let iot = aws_sdk_iot::Client::new(&bench.root);
    let device = "pi-01".parse().unwrap();
    let revoke = async || bench.setup.revoke_device(&device, SystemTime::now()).await;
    bench.way.fault(|_, call| {
        let fault = Fault::Refused(429, "ThrottlingException", "Rate exceeded");
        call.starts_with("GET /things/").then_some(fault)
    });
    let stopped = revoke().await;
    assert!(
        matches!(stopped, Err(Error::Throttled { .. })),
        "{stopped:?}"
    );
    // what is known is shut out all the same
    assert!(
        statuses(&iot)
            .await
            .values()
            .all(|status| status == "REVOKED")
    );
    bench.way.clear();
    revoke().await.unwrap();
    assert_eq!(bench.plan().await, [""; 0]);
}

/// An authority that another account has registered: AWS says that it exists, and
/// it isn't here.
#[tokio::test]
async fn an_authority_of_another_account_is_told() {
    let bench = Bench::new().await;
    bench.way.fault(|_, call| {
        let code = "ResourceAlreadyExistsException";
        call.starts_with("POST /cacertificate")
            .then_some(Fault::Refused(
                409,
                code,
                "CA certificate already registered",
            ))
    });
    let refused = bench.apply().await;
    let Err(Error::AuthorityTaken { subject, region }) = &refused else {
        panic!("{refused:?}");
    };
    assert!(subject.starts_with("CN=zk device CA "), "{subject}");
    assert_eq!(region, REGION);
    // once it is removed there, all is well
    bench.way.clear();
    bench.apply().await.unwrap();
    assert_eq!(bench.plan().await, [""; 0]);
}

/// A call without the names of certificates, which are others each time.
fn kind_of(call: &str) -> String {
    let parts = call.split(['/', '?', '%']);
    let parts: Vec<_> = parts.filter(|part| part.len() < 60).collect();
    parts.join("/")
}

/// An account with an operator, and that one's machine.
struct World {
    server: StandIn,
    account: String,
    dir: TempDir,
    operator: Credentials,
    zip: PathBuf,
}

struct Ended {
    out: String,
    err: String,
}

impl World {
    fn new() -> Self {
        let server = StandIn::ministack();
        let account = server.account();
        let policy = operator_policy(&account, REGION, "zk").unwrap();
        let operator = server.operator("operator", &policy);
        let dir = tempfile::tempdir().unwrap();
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.path().join("passphrase"))
            .unwrap();
        writeln!(file, "{PASSPHRASE}").unwrap();
        let zip = function_zip(dir.path());
        Self {
            server,
            account,
            dir,
            operator,
            zip,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str) -> String {
        format!("soft:{}", self.path(name).display())
    }

    /// A request for pi-01 by this key, as it comes from the device. A key that were in
    /// this machine would be used for the self-test, to which this stand-in doesn't
    /// listen.
    fn request(&self, name: &str) -> String {
        let uri = create_soft_key(self.path(name)).unwrap();
        let key = Hsm::open(&uri, zk_hsm::Options::default()).unwrap();
        let path = self.path(&format!("{name}.csr.pem"));
        fs::write(&path, key.csr("pi-01").unwrap()).unwrap();
        path.display().to_string()
    }

    fn root(&self) -> SdkConfig {
        self.server.config(&root(), &Way::new(), true)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(zk_setup());
        command.env_clear().args(arguments);
        let takes_zip = matches!(arguments[0], "plan" | "apply" | "status" | "check");
        if takes_zip && !arguments.contains(&"--lambda-zip") {
            command.arg("--lambda-zip").arg(&self.zip);
        }
        if matches!(arguments[0], "apply" | "ca") || arguments.contains(&"rotate") {
            command.args(["--passphrase-file", "passphrase"]);
        }
        command
            .env("AWS_ENDPOINT_URL", self.server.url())
            .env("AWS_ACCESS_KEY_ID", self.operator.access_key_id())
            .env("AWS_SECRET_ACCESS_KEY", self.operator.secret_access_key())
            .env("AWS_REGION", REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "none")
            .env("AWS_SHARED_CREDENTIALS_FILE", "none")
            .env("ZK_OWNER_PASSPHRASE", "the owner's words")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn fails(&self, code: i32, arguments: &[&str]) -> Ended {
        ended(self.command(arguments), code)
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        self.json_of(code, self.command(&[arguments, &["--json"]].concat()))
    }

    fn json_of(&self, code: i32, command: Command) -> Value {
        let ended = ended(command, code);
        // whoever believes it to be AWS is told
        assert!(ended.err.contains("THIS IS NOT AWS"), "{}", ended.err);
        serde_json::from_str(&ended.out).unwrap()
    }

    /// All files below the directory, with their bytes.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.path("zk")];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let bytes = fs::read(&path).unwrap();
                    found.insert(path, bytes);
                }
            }
        }
        found
    }

    /// A record comes in under this certificate.
    async fn publish(&self, principal: &str, key: &str) {
        let owner = fs::read_to_string(self.path("zk/owner.pub.pem")).unwrap();
        let owner = OwnerPublicKey::from_pem(&owner).unwrap();
        let key = self.key(key).parse().unwrap();
        publish(&self.root(), principal, &key, owner).await;
    }

    /// A certificate by the authority of the directory.
    fn sign(&self, name: &str) -> String {
        let setup = LocalSetup::new(self.path("zk"));
        let passphrase = Passphrase::new(PASSPHRASE.to_owned()).unwrap();
        let authority = setup.device_authority(&passphrase).unwrap();
        let uri = create_soft_key(self.path(name)).unwrap();
        let key = Hsm::open(&uri, zk_hsm::Options::default()).unwrap();
        let name = name.parse().unwrap();
        let now = SystemTime::now();
        let signed = authority.issue_device(&name, key.public_key(), now);
        signed.unwrap().pem().to_owned()
    }
}

fn ended(mut command: Command, code: i32) -> Ended {
    let output = command.output().unwrap();
    let ended = Ended {
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    let said = format!("{command:?}: {}\n{}", ended.out, ended.err);
    assert_eq!(output.status.code(), Some(code), "{said}");
    ended
}

fn change<'a>(plan: &'a Value, item: &str) -> &'a Value {
    let changes = plan["changes"].as_array().unwrap();
    let found = changes.iter().find(|change| change["item"] == item);
    found.unwrap_or_else(|| panic!("no {item} in {plan:#}"))
}

/// A record of pi-01 comes in, signed with this key, under this certificate.
async fn publish(root: &SdkConfig, principal: &str, key: &HsmUri, owner: OwnerPublicKey) {
    let hsm = Hsm::open(key, zk_hsm::Options::default()).unwrap();
    let device: DeviceId = "pi-01".parse().unwrap();
    let now = Timestamp::from(SystemTime::now());
    let mut stream = [0; 16];
    stream[..8].copy_from_slice(&now.as_millis().to_be_bytes());
    let sealer = Sealer::new(device.clone(), StreamId(stream), hsm.public_key(), &[owner]);
    let moment = Moment {
        boot: BootId([1; 16]),
        since_boot_ms: 1,
        time: now,
        clock: ClockQuality::Synchronised,
    };
    let content = Content::Data {
        content_type: "text/plain",
        body: b"21.437",
    };
    let sealed = sealer.unwrap().seal(&hsm, &moment, 1, content).unwrap();
    let (message, _) = pack(&[sealed.to_bytes()], usize::MAX).unwrap();
    let client = aws_sdk_dynamodb::Client::new(root);
    let store = Store::with_client(client, Options::default()).unwrap();
    let context = Context {
        principal: principal.to_owned(),
        topic: topic_of(&device),
        received_at: now,
    };
    let taken = store.ingest(&message, &context).await.unwrap();
    assert_eq!(taken.stored, 1, "{taken:?}");
}

/// zk-setup as it was built.
fn zk_setup() -> PathBuf {
    if let Some(told) = std::env::var_os("ZK_TEST_SETUP") {
        return told.into();
    }
    let this = std::env::current_exe().unwrap();
    // target/debug/deps/aws_identity-HASH
    let built = this.parent().unwrap().with_file_name("zk-setup");
    assert!(
        built.exists(),
        "this test needs {}: cargo build --workspace --bin zk-setup",
        built.display()
    );
    built
}

/// A zip as zk-setup takes it, whose program is none.
fn function_zip(dir: &Path) -> PathBuf {
    let path = dir.join("function.zip");
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    let mode = SimpleFileOptions::default().unix_permissions(0o755);
    zip.start_file("bootstrap", mode).unwrap();
    let mut program = vec![0; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    program[18] = 0xb7;
    zip.write_all(&program).unwrap();
    zip.finish().unwrap();
    path
}

/// Everything in the account that a set-up makes anything of, by name.
async fn inventory(root: &SdkConfig) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let iot = aws_sdk_iot::Client::new(root);
    for ca in iot
        .list_ca_certificates()
        .send()
        .await
        .unwrap()
        .certificates()
    {
        all.insert(format!("ca {}", ca.status().unwrap()));
    }
    let certificates = iot.list_certificates().send().await.unwrap();
    for (number, found) in certificates.certificates().iter().enumerate() {
        all.insert(format!("certificate {number} {}", found.status().unwrap()));
    }
    for thing in iot.list_things().send().await.unwrap().things() {
        let name = thing.thing_name().unwrap();
        let attached = iot.list_thing_principals().thing_name(name).send().await;
        let count = attached.unwrap().principals().len();
        all.insert(format!("thing {name} with {count}"));
    }
    for policy in iot.list_policies().send().await.unwrap().policies() {
        let name = policy.policy_name().unwrap();
        let targets = iot.list_targets_for_policy().policy_name(name).send().await;
        let count = targets.unwrap().targets().len();
        let versions = iot.list_policy_versions().policy_name(name).send().await;
        let versions = versions.unwrap().policy_versions().len();
        all.insert(format!("policy {name} for {count} in {versions}"));
    }
    for rule in iot.list_topic_rules().send().await.unwrap().rules() {
        all.insert(format!("rule {}", rule.rule_name().unwrap()));
    }
    let dynamodb = aws_sdk_dynamodb::Client::new(root);
    for table in dynamodb.list_tables().send().await.unwrap().table_names() {
        let rows = dynamodb.scan().table_name(table).send().await.unwrap();
        all.insert(format!("table {table} of {}", rows.items().len()));
    }
    let lambda = aws_sdk_lambda::Client::new(root);
    for function in lambda.list_functions().send().await.unwrap().functions() {
        let name = function.function_name().unwrap();
        let policy = lambda.get_policy().function_name(name).send().await;
        let policy = policy.map(|found| found.policy.unwrap_or_default());
        let count = policy.unwrap_or_default().matches("\"Sid\"").count();
        all.insert(format!("function {name} for {count}"));
    }
    let iam = aws_sdk_iam::Client::new(root);
    for role in iam.list_roles().send().await.unwrap().roles() {
        let name = role.role_name();
        let policies = iam.list_role_policies().role_name(name).send().await;
        let count = policies.unwrap().policy_names().len();
        all.insert(format!("role {name} with {count}"));
    }
    let sqs = aws_sdk_sqs::Client::new(root);
    for queue in sqs.list_queues().send().await.unwrap().queue_urls() {
        all.insert(format!("queue {}", queue.rsplit('/').next().unwrap()));
    }
    let logs = aws_sdk_cloudwatchlogs::Client::new(root);
    for group in logs
        .describe_log_groups()
        .send()
        .await
        .unwrap()
        .log_groups()
    {
        all.insert(format!("log group {}", group.log_group_name().unwrap()));
    }
    all
}

/// What AWS IoT says of each certificate.
async fn statuses(iot: &aws_sdk_iot::Client) -> BTreeMap<String, String> {
    let all = iot.list_certificates().send().await.unwrap();
    let one = |found: &aws_sdk_iot::types::Certificate| {
        let status = found.status().unwrap().to_string();
        (found.certificate_id().unwrap().to_owned(), status)
    };
    all.certificates().iter().map(one).collect()
}

trait IntoMap {
    fn into_map(self) -> BTreeMap<String, String>;
}

impl<const N: usize> IntoMap for [(&String, &str); N] {
    fn into_map(self) -> BTreeMap<String, String> {
        let pair = |(id, status): (&String, &str)| (id.clone(), status.to_owned());
        self.into_iter().map(pair).collect()
    }
}

/// An operator's directory, and a way to the account on which calls fail.
struct Bench {
    // the server ends when this is dropped
    _server: StandIn,
    root: SdkConfig,
    way: Way,
    dir: TempDir,
    setup: AwsSetup,
    passphrase: Passphrase,
    owner: OwnerPublicKey,
    request: CertificateRequest,
    function: FunctionZip,
}

impl Bench {
    async fn new() -> Self {
        let server = StandIn::ministack();
        let dir = tempfile::tempdir().unwrap();
        let policy = operator_policy(&server.account(), REGION, "zk").unwrap();
        let (way, operator) = (Way::new(), server.operator("operator", &policy));
        let config = server.config(&operator, &way, false);
        let setup = AwsSetup::with_config(dir.path().join("zk"), "zk", &config).await;
        let function = FunctionZip::read(&function_zip(dir.path())).unwrap();
        Self {
            root: server.config(&root(), &Way::new(), true),
            setup: setup.unwrap(),
            passphrase: Passphrase::new(PASSPHRASE.to_owned()).unwrap(),
            owner: OwnerKey::generate().unwrap().public_key().clone(),
            request: request(&create_soft_key(dir.path().join("key")).unwrap()),
            function,
            way,
            dir,
            _server: server,
        }
    }

    fn fail_at(&self, number: usize, fault: &Fault) {
        let fault = fault.clone();
        self.way
            .fault(move |n, _| (n == number).then(|| fault.clone()));
    }

    /// Another key of the device.
    fn key(&self) -> (HsmUri, CertificateRequest) {
        let keys = fs::read_dir(self.dir.path()).unwrap().count();
        let uri = create_soft_key(self.dir.path().join(format!("key-{keys}"))).unwrap();
        let request = request(&uri);
        (uri, request)
    }

    fn desired(&self) -> AwsDesired {
        let device = DesiredDevice {
            key: DesiredKey::Request(self.request.clone()),
            ..DesiredDevice::default()
        };
        // once it has another key, it keeps that
        let trust = fs::read_to_string(self.setup.local().trust_file());
        let is_known = trust.is_ok_and(|trust| trust.contains("pi-01"));
        let devices = if is_known {
            BTreeMap::new()
        } else {
            [("pi-01".parse().unwrap(), device)].into()
        };
        AwsDesired {
            function: Some(self.function.clone()),
            roots: None,
            owners: vec![self.owner.clone()],
            devices,
            others: Others::Keep,
        }
    }

    async fn apply(&self) -> Result<(), Error> {
        let secrets = Secrets {
            authorities: Some(&self.passphrase),
            owner: None,
        };
        let now = SystemTime::now();
        let desired = self.desired();
        self.setup
            .apply(&desired, secrets, now, &mut |_| {})
            .await
            .map(drop)
    }

    /// What is still to be done.
    async fn plan(&self) -> Vec<String> {
        let plan = self.setup.plan(&self.desired(), SystemTime::now()).await;
        let steps = plan.unwrap().steps;
        let is_change = |step: &&zk_provision::Step| step.action != Action::Kept;
        let line = |step: &zk_provision::Step| format!("{} {}", step.item, step.reason);
        steps.iter().filter(is_change).map(line).collect()
    }

    async fn destroy(&self) -> Result<(), Error> {
        // the authority stays: making one takes a while
        let what = Destroy {
            data: true,
            keys: false,
        };
        self.setup.destroy(what, &mut |_| {}).await.map(drop)
    }

    /// All of it once more, with another key.
    async fn start_anew(&self) {
        self.destroy().await.unwrap();
        self.way.clear();
        let (_, request) = self.key();
        let device = zk_provision::Device {
            request,
            hsm: None,
            endpoint: None,
            owners: vec![self.owner.clone()],
        };
        let mut desired = self.desired();
        desired.devices.clear();
        let secrets = Secrets {
            authorities: Some(&self.passphrase),
            owner: None,
        };
        let now = SystemTime::now();
        self.setup
            .apply(&desired, secrets, now, &mut |_| {})
            .await
            .unwrap();
        let added = self.setup.add_device(&device, &self.passphrase, now);
        added.await.unwrap();
        self.way.clear();
    }
}

fn request(key: &HsmUri) -> CertificateRequest {
    let hsm = Hsm::open(key, zk_hsm::Options::default()).unwrap();
    let pem = hsm.csr("pi-01").unwrap();
    CertificateRequest::from_pem(pem.as_bytes(), &"pi-01".parse().unwrap()).unwrap()
}
