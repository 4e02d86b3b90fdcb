//! Keys on PKCS#11 tokens: SoftHSM2.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::hsm::Key;
use crate::world::{World, as_documented, finish};

/// A token without keys, and the URI that a key is to have there.
fn token() -> Key {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tokens")).unwrap();
    let tokens = dir.path().join("tokens");
    let pin = dir.path().join("pin");
    let uri = format!(
        "pkcs11:token=plant;object=device?pin-source=file:{}",
        pin.display()
    );
    let key = Key { dir, uri };
    let configuration = format!("directories.tokendir = {}\n", tokens.display());
    key.write("softhsm2.conf", configuration.as_bytes());
    key.write("pin", b"8317402\n");
    fs::set_permissions(pin, fs::Permissions::from_mode(0o600)).unwrap();
    let mut make = Command::new("softhsm2-util");
    make.args(["--init-token", "--free", "--label", "plant"])
        .args(["--so-pin", "5550199", "--pin", "8317402"])
        .env("SOFTHSM2_CONF", key.dir.path().join("softhsm2.conf"));
    assert!(
        make.output()
            .expect("this test needs SoftHSM2: apt-get install softhsm2")
            .status
            .success()
    );
    key
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_does_all_that_a_key_file_does() {
    let token = token();
    // no key is made unasked
    let missing = token.ctl(&["info"], b"").ends(1);
    missing.says(&["no key there", "keys list"]);
    let none = token.ctl(&["keys", "list"], b"").ends(0);
    assert_eq!(none.text(), "no keys\n");

    let made = token.ctl(&["keys", "generate"], b"").ends(0);
    let made = made.text().trim_end().to_owned();
    assert!(made.starts_with("pkcs11:token=plant;"), "{made}");
    assert!(made.contains("object=device"), "{made}");
    let twice = token.ctl(&["keys", "generate"], b"").ends(1);
    twice.says(&["none is overwritten"]);

    // as the URI that it was made by, and as the one that was printed
    let printed = Key {
        dir: tempfile::tempdir().unwrap(),
        uri: made,
    };
    let configuration = token.read("softhsm2.conf");
    printed.write("softhsm2.conf", &configuration);
    let info = |key: &Key| key.ctl(&["info", "--json"], b"").ends(0).json();
    assert_eq!(info(&token)["key"], info(&printed)["key"]);
    assert_eq!(info(&token)["backend"], "pkcs11");
    assert_eq!(info(&token)["development"], true);
    let listed = token.ctl(&["keys", "list", "--json"], b"").ends(0).json();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1);
    assert_eq!(listed["keys"][0]["key"], info(&token)["key"]);

    token.write("KEY.pem", &token.ctl(&["public-key"], b"").ends(0).out);
    token.write("report", b"21.437\n");
    let signed = token
        .ctl(&["sign", "report", "--out", "report.sig"], b"")
        .ends(0);
    let command = signed.err.lines().find(|line| line.contains("openssl"));
    token.sh(command.unwrap()).ends(0);
    token
        .ctl(&["verify", "report", "--signature", "report.sig"], b"")
        .ends(0);
    let csr = token.ctl(&["csr", "--name", "pi-07"], b"").ends(0);
    token.write("csr.pem", &csr.out);
    token
        .sh("openssl req -in csr.pem -verify -noout 2>&1 && openssl req -in csr.pem -pubkey -noout | cmp - KEY.pem")
        .ends(0);
    let locked = token.ctl(&["lock"], b"a secret").ends(0);
    let opened = token.ctl(&["unlock"], &locked.out).ends(0);
    assert_eq!(opened.out, b"a secret");
    token.ctl(&["random", "32"], b"").ends(0);
    let seen = token
        .ctl(&["watch", "--once", "--json"], b"")
        .ends(0)
        .json();
    assert_eq!(seen["state"], "ready");
}

/// Cause and cure for each thing that keeps a token's key from being used. A
/// wrong PIN is tried once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs softhsm2"]
async fn doctor_names_what_is_wrong_with_a_token() {
    let world = World::new().await;
    let token = token();
    let is = |status: &str, exit, uri: &str, parts: &[&str]| {
        let mut command = crate::world::program(&world.path("."));
        command
            .env("SOFTHSM2_CONF", token.dir.path().join("softhsm2.conf"))
            .args(["--config", "agent.toml", "doctor", "--json", "--hsm", uri]);
        let report = finish(&mut command, b"").ends(exit).json();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["check"] == "key").unwrap();
        assert_eq!(check["status"], status, "{check}");
        let words = check.to_string();
        for part in parts {
            assert!(words.contains(part), "no {part:?} in {words}");
        }
    };
    let failed = |uri: &str, parts: &[&str]| is("failed", 3, uri, parts);
    failed(&token.uri, &["no key there", "keys generate"]);
    token.ctl(&["keys", "generate"], b"").ends(0);
    let other = token.uri.replace("token=plant", "token=pier");
    failed(
        &other,
        &["no such token", "plant", "is the token plugged in"],
    );
    failed(
        &token
            .uri
            .replace("?pin-source=", "?module-path=/nowhere/p11.so&pin-source="),
        &["/nowhere/p11.so", "install the token's PKCS#11 module"],
    );
    failed(
        &token.uri.replace("/pin", "/nowhere"),
        &["no PIN from", "mode 0600"],
    );
    let (uri, _) = token.uri.split_once("pin-source").unwrap();
    // and who looks is not the service
    is(
        "not run",
        0,
        &format!("{uri}pin-source=credential:pin"),
        &["no PIN from", "which the service itself has"],
    );
    token.write("pin", b"0000000");
    failed(&token.uri, &["PIN", "lock a token for good"]);
}

#[test]
#[ignore = "needs softhsm2"]
fn what_the_document_shows_works() {
    let run = as_documented("token.rs").ends(0);
    let text = run.text();
    for part in [
        "object=device",
        "SoftHSM v2",
        "created  pi-01.csr.pem",
        "a secret",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
