//! Keys on PKCS#11 tokens: SoftHSM2, and a library that fails on command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code, reason = "the other tests' part")]
mod support;
#[path = "pkcs11/tokens.rs"]
mod tokens;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use cryptoki::object::Attribute;
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use rustls::version::{TLS12, TLS13};
use signature::Verifier;
use support::{Authority, connect, server_config};
use tokens::{
    PIN, Tokens, alone, lock_key, open, parse, patient, private_key, public_key, refused, run,
    softhsm2, write_secret,
};
use zk_hsm::{
    BackendKind, Class, Error, Hsm, HsmUri, MAX_LOCK, MAX_RANDOM, Options, State, generate_key,
    list_keys,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
#[ignore = "needs softhsm2"]
fn a_key_on_a_token_signs() {
    alone("a_key_on_a_token_signs", |tokens| {
        tokens.make("plant");
        let key = tokens.import("plant", "device key", "01");

        let hsm = open(&tokens.uri("token=plant;object=device%20key"));

        assert_eq!(hsm.public_key(), key.verifying_key());
        for message in [&b""[..], b"m", &[0x5a; 100_000]] {
            let signature = hsm.sign(message).unwrap();
            key.verifying_key().verify(message, &signature).unwrap();
        }
        assert_eq!(hsm.counters().signatures, 3);
        assert!(matches!(hsm.state(), State::Ready));
        hsm.health().unwrap();
        let info = hsm.info().unwrap();
        assert_eq!(info.backend, BackendKind::Pkcs11);
        assert_eq!(info.model.as_deref(), Some("SoftHSM v2"));
        assert_eq!(info.serial.unwrap().len(), 16);
        assert_eq!(info.firmware.as_deref(), Some("2.6"));
        assert!(info.development, "no hardware protects it");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn openssl_verifies_a_signature() {
    alone("openssl_verifies_a_signature", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.uri("token=plant;object=key"));
        let signature = hsm.sign(b"21.4 degrees").unwrap();

        let pem = hsm.public_key().to_public_key_pem(LineEnding::LF).unwrap();
        fs::write(tokens.path("key.pub"), pem).unwrap();
        fs::write(tokens.path("message"), b"21.4 degrees").unwrap();
        fs::write(tokens.path("signature"), signature.to_der()).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-verify"]);
        openssl.arg(tokens.path("key.pub")).arg("-signature");
        openssl.arg(tokens.path("signature"));
        let told = run(openssl.arg(tokens.path("message")), "openssl");
        assert_eq!(told, "Verified OK\n");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn tls_with_a_key_on_a_token() {
    alone("tls_with_a_key_on_a_token", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.uri("token=plant;object=key");
        let authority = Authority::new();
        let chain = vec![authority.issue(&open(&uri).csr("pi-01").unwrap())];
        let server_key = SigningKey::generate();
        for version in [&TLS13, &TLS12] {
            let certificate = authority.issue_server("localhost", &server_key);
            let server = server_config(version, &[], authority.roots(), certificate, &server_key);
            let hsm = open(&uri);
            let config = hsm
                .client_config(chain.clone(), authority.roots(), &[])
                .unwrap();

            let (_, server) = connect(&config, &server).unwrap();

            assert_eq!(server.peer_certificates().unwrap(), chain);
            assert_eq!(hsm.counters().signatures, 1);
        }
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn tokens_and_keys_are_picked_by_what_the_uri_says() {
    alone(
        "tokens_and_keys_are_picked_by_what_the_uri_says",
        |tokens| {
            tokens.make("one");
            tokens.make("two");
            let first = tokens.import("one", "a", "01");
            let second = tokens.import("one", "b", "02");
            let third = tokens.import("two", "a", "01");
            let serial = |uri: &str| open(&tokens.uri(uri)).info().unwrap().serial.unwrap();
            let serial = serial("token=two;object=a");
            for (uri, key) in [
                ("token=one;object=a".to_owned(), &first),
                ("token=one;id=%01".to_owned(), &first),
                ("token=one;object=b".to_owned(), &second),
                ("token=one;id=%02".to_owned(), &second),
                ("token=one;object=b;id=%02".to_owned(), &second),
                ("token=one;object=a;type=private".to_owned(), &first),
                (
                    "token=one;manufacturer=SoftHSM%20project;model=SoftHSM%20v2;object=a"
                        .to_owned(),
                    &first,
                ),
                // as the field is padded
                ("token=two%20%20;object=a".to_owned(), &third),
                (format!("serial={serial};object=a"), &third),
                (format!("token=two;serial={serial};id=%01"), &third),
            ] {
                let hsm = open(&tokens.uri(&uri));
                assert_eq!(hsm.public_key(), key.verifying_key(), "{uri}");
                let signature = hsm.sign(b"m").unwrap();
                key.verifying_key().verify(b"m", &signature).unwrap();
            }
            for uri in [
                "token=one;object=c",
                "token=one;id=%03",
                "token=one;object=a;id=%02",
                // a prefix and more than the name
                "token=one;id=%01%00",
                "token=one;object=A",
            ] {
                let error = refused(&tokens.uri(uri));
                assert!(matches!(error, Error::KeyMissing { .. }), "{uri}: {error}");
                assert_eq!(error.class(), Class::Fatal);
            }
            for uri in [
                "token=three;object=a",
                "token=on;object=a",
                "token=one;model=other;object=a",
                "token=one;manufacturer=other;object=a",
                &format!("token=one;serial={serial};object=a"),
            ] {
                let error = refused(&tokens.uri(uri));
                assert_eq!(error.class(), Class::Transient);
                let Error::TokenMissing { present, .. } = error else {
                    panic!("{uri}: {error}")
                };
                assert!(
                    present.contains("\"one\"") && present.contains("\"two\""),
                    "{present}"
                );
            }
        },
    );
}

#[test]
#[ignore = "needs softhsm2"]
fn fields_may_be_padded_with_zero_bytes() {
    alone("fields_may_be_padded_with_zero_bytes", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;model=SoftHSM%20v2;object=key");
        fs::write(tokens.path("zeros"), "").unwrap();
        let info = open(&uri).info().unwrap();
        assert_eq!(info.model.as_deref(), Some("SoftHSM v2"));
        assert!(info.development);
        let listed = &list_keys(&uri, DAY).unwrap()[0].uri;
        assert!(
            listed.to_string().starts_with("pkcs11:token=plant;"),
            "{listed}"
        );
        open(listed).sign(b"m").unwrap();
        let error = refused(&tokens.shim_uri("token=plan;object=key"));
        assert!(error.to_string().ends_with("\"plant\""), "{error}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn what_the_uri_does_not_tell_apart_is_refused() {
    alone("what_the_uri_does_not_tell_apart_is_refused", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let second = tokens.import("plant", "key", "02");
        let error = refused(&tokens.uri("token=plant;object=key"));
        let text = error.to_string();
        assert_eq!(error.class(), Class::Fatal);
        assert!(text.contains("there are 2 such private keys"), "{text}");
        let Error::Ambiguous {
            what: "private keys",
            found: 2,
            ..
        } = error
        else {
            panic!("{error}")
        };
        let hsm = open(&tokens.uri("token=plant;object=key;id=%02"));
        assert_eq!(hsm.public_key(), second.verifying_key());
        let signature = hsm.sign(b"m").unwrap();
        second.verifying_key().verify(b"m", &signature).unwrap();

        tokens.make("twin");
        tokens.make("twin");
        // this process has the library since before they were there
        let error = list_in_another_process(tokens, "token=twin;object=key");
        assert!(error.contains("there are 2 such tokens"), "{error}");
    });
}

/// What goes wrong with a token that was made after this process had loaded the
/// library.
fn list_in_another_process(tokens: &Tokens, uri: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "lists_what_it_is_told",
        "--ignored",
        "--nocapture",
    ]);
    command.env("ZK_TEST_URI", tokens.uri(uri).to_string());
    run(&mut command, "nothing")
}

/// No test of its own.
#[test]
#[ignore = "needs softhsm2"]
fn lists_what_it_is_told() {
    if let Ok(uri) = std::env::var("ZK_TEST_URI") {
        println!(
            "{:?}",
            list_keys(&parse(&uri), DAY).map_err(|e| e.to_string())
        );
    }
}

#[test]
#[ignore = "needs softhsm2"]
fn only_p256_keys_that_sign_count() {
    alone("only_p256_keys_that_sign_count", |tokens| {
        tokens.make("plant");
        for (kind, id) in [
            ("EC:secp384r1", "0a"),
            ("EC:secp521r1", "0b"),
            ("rsa:2048", "0c"),
        ] {
            #[rustfmt::skip]
            tokens.pkcs11_tool("plant", &[
                "--keypairgen", "--key-type", kind, "--usage-sign", "--label", "key", "--id", id,
            ]);
        }
        let mut agrees = private_key(&SigningKey::generate(), "key", 0x0d);
        agrees.push(Attribute::Derive(true));
        agrees.push(Attribute::Sign(false));
        tokens.create("plant", &[agrees]);
        let error = refused(&tokens.uri("token=plant;object=key"));
        assert!(matches!(error, Error::KeyMissing { .. }), "{error}");

        let key = tokens.import("plant", "key", "01");
        let hsm = open(&tokens.uri("token=plant;object=key"));
        assert_eq!(hsm.public_key(), key.verifying_key());
        assert_eq!(
            list_keys(hsm.uri(), DAY).unwrap().len(),
            1,
            "the others aren't listed"
        );
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn the_public_key_comes_from_where_it_is() {
    alone("the_public_key_comes_from_where_it_is", |tokens| {
        tokens.make("plant");
        let key = tokens.import("plant", "key", "01");
        let uri = tokens.uri("token=plant;object=key");
        let certificate = {
            let hsm = open(&uri);
            Authority::new().issue(&hsm.csr("pi-01").unwrap())
        };
        let delete = |id| {
            tokens.pkcs11_tool(
                "plant",
                &["--delete-object", "--type", "pubkey", "--id", id],
            );
        };
        delete("01");
        let error = refused(&uri);
        let Error::Unsupported { what, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(what, "tell this key's public key");
        assert_eq!(list_keys(&uri, DAY).unwrap()[0].public_key, None);

        let path = tokens.path("certificate.der");
        fs::write(&path, &certificate).unwrap();
        #[rustfmt::skip]
        tokens.pkcs11_tool("plant", &[
            "--write-object", path.to_str().unwrap(), "--type", "cert", "--id", "01", "--label",
            "another name",
        ]);
        let hsm = open(&uri);
        assert_eq!(hsm.public_key(), key.verifying_key());
        hsm.sign(b"m").unwrap();

        // a public key that belongs to another private key signs nothing
        let other = tokens.import("plant", "key", "02");
        tokens.pkcs11_tool(
            "plant",
            &["--delete-object", "--type", "privkey", "--id", "02"],
        );
        let hsm = open(&uri);
        assert_eq!(hsm.public_key(), other.verifying_key());
        let error = hsm.sign(b"m").unwrap_err();
        assert!(matches!(error, Error::BadSignature { .. }), "{error}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_point_may_be_der_or_bare() {
    alone("a_point_may_be_der_or_bare", |tokens| {
        tokens.make("plant");
        let key = SigningKey::generate();
        let point = key.verifying_key().to_sec1_point(false);
        let mut bare = public_key(&key, "bare", 2);
        for attribute in &mut bare {
            if let Attribute::EcPoint(bytes) = attribute {
                *bytes = point.as_bytes().to_vec();
            }
        }
        tokens.create(
            "plant",
            &[
                private_key(&key, "der", 1),
                public_key(&key, "der", 1),
                private_key(&key, "bare", 2),
                bare,
            ],
        );
        for object in ["der", "bare"] {
            let hsm = open(&tokens.uri(&format!("token=plant;object={object}")));
            assert_eq!(hsm.public_key(), key.verifying_key());
            hsm.sign(b"m").unwrap();
        }
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_key_that_wants_the_pin_each_time_is_refused() {
    alone("a_key_that_wants_the_pin_each_time_is_refused", |tokens| {
        tokens.make("plant");
        #[rustfmt::skip]
        tokens.pkcs11_tool("plant", &[
            "--keypairgen", "--key-type", "EC:prime256v1", "--usage-sign", "--always-auth",
            "--label", "key", "--id", "01",
        ]);
        let error = refused(&tokens.uri("token=plant;object=key"));
        assert!(
            error.to_string().contains("CKA_ALWAYS_AUTHENTICATE"),
            "{error}"
        );
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn pins_come_from_files_systemd_and_the_environment() {
    alone(
        "pins_come_from_files_systemd_and_the_environment",
        |tokens| {
            tokens.make("plant");
            let key = tokens.import("plant", "key", "01");
            let pin = tokens.path("pin");
            let credential = tokens.path("credentials/hsm-pin");
            let file = format!("file:{}", pin.display());
            let with = |source: &str| {
                parse(&format!(
                    "pkcs11:token=plant;object=key?pin-source={source}"
                ))
            };
            let opens = |source: &str| {
                let hsm = open(&with(source));
                assert_eq!(hsm.public_key(), key.verifying_key());
                let debug = format!("{hsm:?} {:?}", hsm.uri());
                assert!(!debug.contains(PIN), "{debug}");
            };
            for end in ["", "\n", "\r\n"] {
                write_secret(&pin, &format!("{PIN}{end}"));
                opens(&file);
                write_secret(&credential, &format!("{PIN}{end}"));
                opens("credential:hsm-pin");
            }
            opens("env:ZK_TEST_PIN");
            for mode in [0o400, 0o600, 0o700] {
                mode_of(&pin, mode);
                opens(&file);
            }
            // as systemd gives them to users that are in a group
            for mode in [0o400, 0o440] {
                mode_of(&credential, mode);
                opens("credential:hsm-pin");
            }

            let refused = |source: &str, hint: &str| {
                let error = refused(&with(source));
                assert_eq!(error.class(), Class::Fatal);
                let text = format!("{error} {error:?}");
                assert!(text.contains(hint), "{source}: {text}");
                assert!(!text.contains(PIN), "{text}");
                let Error::Pin { pin_source, .. } = error else {
                    panic!("{error}")
                };
                assert_eq!(&*pin_source, source);
            };
            for mode in [0o640, 0o604, 0o620, 0o601, 0o644, 0o660] {
                mode_of(&pin, mode);
                refused(&file, "chmod 600");
            }
            for mode in [0o444, 0o460, 0o402] {
                mode_of(&credential, mode);
                refused("credential:hsm-pin", "chmod 600");
            }
            for content in ["", "\n", "\r\n"] {
                write_secret(&pin, content);
                refused(&file, "empty");
            }
            write_secret(&pin, &"1".repeat(256));
            refused(&file, "255 bytes");
            write_secret(&pin, &"1".repeat(1 << 20));
            refused(&file, "255 bytes");
            fs::remove_file(&pin).unwrap();
            refused(&file, "no such file");
            fs::create_dir(&pin).unwrap();
            refused(&file, "not a regular file");
            refused("credential:other", "no such file");
            refused("credential:..", "not a regular file");
            refused("env:ZK_TEST_NO_PIN", "no such variable");
            if rustix::process::geteuid().is_root() {
                fs::remove_dir(&pin).unwrap();
                write_secret(&pin, PIN);
                std::os::unix::fs::chown(&pin, Some(12345), None).unwrap();
                refused(&file, "another user");
            }

            let error = tokens::refused(&parse("pkcs11:token=plant;object=key"));
            assert!(matches!(error, Error::Pin { .. }), "{error}");
            assert!(error.to_string().contains("pin-source="), "{error}");
        },
    );
}

fn mode_of(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
#[ignore = "needs softhsm2"]
fn a_wrong_pin_is_tried_once() {
    alone("a_wrong_pin_is_tried_once", |tokens| {
        tokens.make("plant");
        tokens.make("other");
        tokens.import("plant", "key", "01");
        tokens.import("other", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        write_secret(&tokens.path("pin"), "7777777");
        let tries = || tokens.calls("C_Login");

        let error = refused(&uri);
        let Error::PinRefused { problem, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((error.class(), tries()), (Class::Fatal, 1));
        assert_eq!(*problem, "the token refused the PIN");
        assert!(!format!("{error} {error:?}").contains("7777777"));
        // nobody tries it again, whatever is to be done
        for error in [
            refused(&uri),
            refused(&tokens.shim_uri("token=plant;id=%01")),
            list_keys(&uri, DAY).unwrap_err(),
            generate_key(&tokens.shim_uri("token=plant;object=new"), DAY).unwrap_err(),
        ] {
            let Error::PinRefused { problem, .. } = error else {
                panic!("{error}")
            };
            assert!(problem.contains("refused this PIN before"), "{problem}");
        }
        assert_eq!(tries(), 1);
        // another token may have another PIN
        assert!(matches!(
            refused(&tokens.shim_uri("token=other;object=key")),
            Error::PinRefused { .. }
        ));
        assert_eq!(tries(), 2);
        // what was changed may be tried
        write_secret(&tokens.path("pin"), "8888888");
        assert!(matches!(refused(&uri), Error::PinRefused { .. }));
        assert_eq!(tries(), 3);
        write_secret(&tokens.path("pin"), PIN);
        open(&uri).sign(b"m").unwrap();
        assert_eq!(tries(), 4);
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_pin_that_is_changed_on_the_token_is_tried_once_by_a_running_program() {
    let name = "a_pin_that_is_changed_on_the_token_is_tried_once_by_a_running_program";
    alone(name, |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.shim_uri("token=plant;object=key"));
        hsm.sign(b"m").unwrap();
        assert_eq!(tokens.calls("C_Login"), 1);

        tokens.fail("C_Login", PIN_INCORRECT, 1);
        tokens.fail("C_Sign", DEVICE_REMOVED, 1);
        let error = hsm.sign(b"m").unwrap_err();

        assert!(matches!(error, Error::PinRefused { .. }), "{error}");
        assert!(matches!(hsm.state(), State::Failed { .. }));
        for _ in 0..3 {
            let error = hsm.sign(b"m").unwrap_err();
            assert!(matches!(error, Error::PinRefused { .. }), "{error}");
        }
        assert_eq!(tokens.calls("C_Login"), 2);
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn whom_somebody_else_has_logged_in_is_logged_in() {
    alone("whom_somebody_else_has_logged_in_is_logged_in", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        let (first, _second) = (open(&uri), open(&uri));
        assert_eq!(tokens.calls("C_Login"), 1);
        // the second one's login, which falls between two questions of the first
        fs::write(tokens.path("public"), "").unwrap();
        tokens.fail("C_Sign", DEVICE_REMOVED, 1);
        first.sign(b"m").unwrap();
        assert_eq!(tokens.calls("C_Login"), 2);
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn no_pin_is_tried_where_one_more_locks_the_token() {
    alone("no_pin_is_tried_where_one_more_locks_the_token", |tokens| {
        const FINAL_TRY: u32 = 0x0002_0000;
        const LOCKED: u32 = 0x0004_0000;
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        for (flag, hint) in [
            (FINAL_TRY, "one more wrong PIN would lock the token"),
            (LOCKED, "has locked its user PIN"),
            (FINAL_TRY | LOCKED, "has locked its user PIN"),
        ] {
            tokens.flags(flag, 0);
            let error = refused(&uri);
            assert!(matches!(error, Error::PinRefused { .. }), "{error}");
            assert!(error.to_string().contains(hint), "{error}");
        }
        assert_eq!(tokens.calls("C_Login"), 0);
        tokens.flags(0, 0);
        open(&uri).sign(b"m").unwrap();
        assert_eq!(tokens.calls("C_Login"), 1);
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_that_wants_no_login_needs_no_pin() {
    alone("a_token_that_wants_no_login_needs_no_pin", |tokens| {
        const LOGIN_REQUIRED: u32 = 4;
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let with_pin = tokens.shim_uri("token=plant;object=key");
        let module = tokens.path("shim.so");
        let without = parse(&format!(
            "pkcs11:token=plant;object=key?module-path={}",
            module.display()
        ));
        let open_to_all = SigningKey::generate();
        let mut objects = [
            private_key(&open_to_all, "open", 2),
            public_key(&open_to_all, "open", 2),
        ];
        objects[0].push(Attribute::Private(false));
        tokens.create("plant", &objects);

        tokens.flags(0, LOGIN_REQUIRED);
        let hsm = open(&parse(&without.to_string().replace("=key", "=open")));
        assert_eq!(hsm.public_key(), open_to_all.verifying_key());
        hsm.sign(b"m").unwrap();
        // SoftHSM2 hides the other key until the login, whatever its flags say
        let error = refused(&without);
        assert!(matches!(error, Error::KeyMissing { .. }), "{error}");
        assert_eq!(tokens.calls("C_Login"), 0);
        // one handle's login is the process's
        let logged_in = open(&with_pin);
        let hsm = open(&without);
        hsm.sign(b"m").unwrap();
        drop(logged_in);
        hsm.sign(b"m").unwrap();
        assert_eq!(tokens.calls("C_Login"), 1);
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_that_goes_and_comes_back_is_opened_again() {
    alone(
        "a_token_that_goes_and_comes_back_is_opened_again",
        |tokens| {
            tokens.make("plant");
            tokens.import("plant", "key", "01");
            let hsm = open(&tokens.shim_uri("token=plant;object=key"));
            hsm.sign(b"m").unwrap();

            let (here, away) = (tokens.path("tokens"), tokens.path("away"));
            fs::rename(&here, &away).unwrap();
            fs::create_dir(&here).unwrap();
            thread::scope(|scope| {
                let call = scope.spawn(|| hsm.sign(b"m"));
                until(|| {
                    let State::Reopening { cause, .. } = hsm.state() else {
                        return false;
                    };
                    matches!(cause, Error::TokenMissing { .. })
                });
                // it waits for the token, or has failed twice before
                fs::remove_dir(&here).unwrap();
                fs::rename(&away, &here).unwrap();
                if let Err(error) = call.join().unwrap() {
                    assert_eq!(error.class(), Class::Transient, "{error}");
                }
            });
            let signature = hsm.sign(b"m").unwrap();

            hsm.public_key().verify(b"m", &signature).unwrap();
            assert!(tokens.calls("C_Finalize") >= 1, "it was looked for anew");
            assert!(matches!(hsm.state(), State::Ready));
        },
    );
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_that_comes_later_is_found_and_others_open_theirs_again() {
    let name = "a_token_that_comes_later_is_found_and_others_open_theirs_again";
    alone(name, |tokens| {
        tokens.make("one");
        let first = tokens.import("one", "key", "01");
        let old = open(&tokens.shim_uri("token=one;object=key"));
        old.sign(b"m").unwrap();
        let idle = open(&tokens.shim_uri("token=one;object=key"));
        let locked = old.lock(b"a secret").unwrap();
        tokens.make("two");
        let second = tokens.import("two", "key", "01");
        let uri = tokens.shim_uri("token=two;object=key");

        // not so soon after the last time
        let (mut missing, mut new) = (0, None);
        until(|| {
            match Hsm::open(&uri, patient()) {
                Ok(hsm) => new = Some(hsm),
                Err(Error::TokenMissing { .. }) => missing += 1,
                Err(error) => panic!("{error}"),
            }
            new.is_some()
        });
        let new = new.unwrap();
        assert!(missing > 0);
        assert_eq!(tokens.calls("C_Finalize"), 1);

        // SoftHSM2 numbers sessions from 1 again: the old handles' numbers are
        // those of the new one's
        for _ in 0..3 {
            let signature = new.sign(b"m").unwrap();
            second.verifying_key().verify(b"m", &signature).unwrap();
            for hsm in [&old, &idle] {
                let signature = hsm.sign(b"m").unwrap();
                first.verifying_key().verify(b"m", &signature).unwrap();
            }
        }
        assert_eq!(*old.unlock(&locked).unwrap(), b"a secret");
        for (hsm, times) in [(&old, 1), (&idle, 1), (&new, 0)] {
            let counters = hsm.counters();
            assert_eq!((counters.reopens, counters.bad_signatures), (times, 0));
        }
        assert_eq!(tokens.calls("C_Finalize"), 1, "once is enough");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_library_that_others_use_is_never_finalized() {
    alone("a_library_that_others_use_is_never_finalized", |tokens| {
        tokens.make("one");
        tokens.import("one", "key", "01");
        // the shim leads to the same library, which is initialized by now
        let others = open(&tokens.uri("token=one;object=key"));
        let hsm = open(&tokens.shim_uri("token=one;object=key"));
        hsm.sign(b"m").unwrap();
        // with no session of its own left, it would be time after a second
        drop(hsm);
        let missing = tokens.shim_uri("token=two;object=key");
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let error = refused(&missing);
            assert!(matches!(error, Error::TokenMissing { .. }), "{error}");
        }
        assert_eq!(tokens.calls("C_Finalize"), 0);
        assert_eq!(others.counters().reopens, 0);
        others.sign(b"m").unwrap();
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn what_was_locked_unlocks_and_nothing_else_does() {
    alone("what_was_locked_unlocks_and_nothing_else_does", |tokens| {
        tokens.make("one");
        tokens.make("two");
        tokens.import("one", "key", "01");
        tokens.import("one", "neighbour", "02");
        tokens.import("two", "key", "01");
        let uri = tokens.uri("token=one;object=key");
        let hsm = open(&uri);
        // there is no key to unlock with yet
        let stranger = open(&tokens.uri("token=two;object=key"));
        let foreign = stranger.lock(b"a secret").unwrap();
        let refused = |hsm: &Hsm, locked: &[u8]| {
            let error = hsm.unlock(locked).unwrap_err();
            assert!(matches!(error, Error::UnlockRefused), "{error}");
        };
        refused(&hsm, &foreign);

        for len in [1, 15, 16, 17, MAX_LOCK] {
            let plain = vec![0xa5; len];
            let locked = hsm.lock(&plain).unwrap();
            assert_eq!(locked.len(), 4 + 12 + len + 16);
            assert!(locked.starts_with(b"ZKP1"));
            assert_eq!(*hsm.unlock(&locked).unwrap(), plain);
            assert_ne!(hsm.lock(&plain).unwrap(), locked, "each has its own nonce");
            assert!(!locked.windows(8).any(|window| window == [0xa5; 8]));
            assert_eq!(*open(&uri).unlock(&locked).unwrap(), plain);
            refused(&stranger, &locked);
            refused(&open(&tokens.uri("token=one;object=neighbour")), &locked);
        }
        refused(&hsm, &foreign);
        let listed = tokens.pkcs11_tool("one", &["--list-objects", "--type", "secrkey"]);
        assert_eq!(listed.matches("key lock").count(), 1, "{listed}");
        assert!(
            listed.contains("sensitive, always sensitive, never extractable"),
            "{listed}"
        );

        let locked = hsm.lock(b"a secret of some length").unwrap();
        let before = hsm.counters();
        for bit in 0..8 * locked.len() {
            let mut changed = locked.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            refused(&hsm, &changed);
        }
        for len in 1..locked.len() {
            refused(&hsm, &locked[..len]);
        }
        refused(&hsm, &[&locked[..], &[0]].concat());
        let after = hsm.counters();
        assert_eq!(
            after.logic_failures - before.logic_failures,
            9 * locked.len() as u64
        );
        assert_eq!((after.transient_failures, after.reopens), (0, 0));
        assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret of some length");
    });
}

/// As when two processes have made one each at the same time. What is unlocked
/// was encrypted by another implementation, from the documented layout.
#[test]
#[ignore = "needs softhsm2"]
fn what_any_key_for_locking_locked_unlocks() {
    alone("what_any_key_for_locking_locked_unlocks", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let keys = [[1; 32], [2; 32]];
        tokens.create("plant", &keys.map(|key| lock_key("key lock", key)));
        let mut extractable = lock_key("key lock", [3; 32]);
        extractable.retain(|attribute| !matches!(attribute, Attribute::Extractable(_)));
        extractable.push(Attribute::Extractable(true));
        tokens.create("plant", &[extractable, lock_key("another lock", [4; 32])]);
        let hsm = open(&tokens.uri("token=plant;object=key"));
        let lock = |key: [u8; 32]| {
            let (magic, nonce) = (b"ZKP1", [7; 12]);
            let payload = Payload {
                msg: b"a secret",
                aad: magic,
            };
            let cipher = Aes256Gcm::new(&key.into());
            let sealed = cipher.encrypt(&nonce.into(), payload).unwrap();
            [&magic[..], &nonce, &sealed].concat()
        };
        for key in keys {
            let locked = lock(key);
            assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
            for byte in 0..locked.len() {
                let mut changed = locked.clone();
                changed[byte] ^= 0x80;
                let error = hsm.unlock(&changed).unwrap_err();
                assert!(matches!(error, Error::UnlockRefused), "{byte}: {error}");
            }
        }
        // of a key that may leave the token, and of one of another name
        for key in [[3; 32], [4; 32]] {
            let error = hsm.unlock(&lock(key)).unwrap_err();
            assert!(matches!(error, Error::UnlockRefused), "{error}");
        }
        let locked = hsm.lock(b"a secret").unwrap();
        assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_that_unlocks_anything_is_not_trusted() {
    alone("a_token_that_unlocks_anything_is_not_trusted", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        let locked = open(&uri).lock(b"a secret").unwrap();
        let hsm = open(&uri);
        tokens.fail("C_Decrypt", 0, 1000);
        let error = hsm.unlock(&locked).unwrap_err();
        assert!(matches!(error, Error::UnlockUntrusted { .. }), "{error}");
        let error = hsm.lock(b"another secret").unwrap_err();
        assert!(matches!(error, Error::UnlockUntrusted { .. }), "{error}");
        fs::remove_file(tokens.path("C_Decrypt")).unwrap();
        assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_with_a_problem_is_no_refusal_to_unlock() {
    alone("a_token_with_a_problem_is_no_refusal_to_unlock", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.shim_uri("token=plant;object=key"));
        let locked = hsm.lock(b"a secret").unwrap();
        assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
        for (code, survived) in [
            (GENERAL_ERROR, 2),
            (FUNCTION_FAILED, 2),
            (0x8000_0001, 2),
            (DEVICE_ERROR, 1),
            (DEVICE_REMOVED, 1),
        ] {
            for times in 1..=survived {
                tokens.fail("C_Decrypt", code, times);
                assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret", "{code:#x}");
            }
            tokens.fail("C_Decrypt", code, 100);
            let error = hsm.unlock(&locked).unwrap_err();
            assert_eq!(error.class(), Class::Transient, "{error}");
            fs::remove_file(tokens.path("C_Decrypt")).unwrap();
        }
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_without_aes_gcm_locks_nothing() {
    alone("a_token_without_aes_gcm_locks_nothing", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.shim_uri("token=plant;object=key"));
        fs::write(tokens.path("mechanism"), format!("{AES_GCM:#x}")).unwrap();
        let error = hsm.lock(b"m").unwrap_err();
        assert!(error.to_string().contains("CKM_AES_GCM"), "{error}");
        assert_eq!(tokens.calls("C_GenerateKey"), 0, "no key is left behind");
        fs::remove_file(tokens.path("mechanism")).unwrap();
        for function in ["C_GenerateKey", "C_EncryptInit"] {
            for code in [MECHANISM_INVALID, FUNCTION_NOT_SUPPORTED] {
                tokens.fail(function, code, 1);
                let error = hsm.lock(b"m").unwrap_err();
                assert_eq!(error.class(), Class::Logic);
                let Error::Unsupported { what, .. } = error else {
                    panic!("{error}")
                };
                assert_eq!(what, "lock data");
            }
            hsm.lock(b"m").unwrap();
        }
        assert!(matches!(hsm.state(), State::Ready));
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_generated_key_never_leaves_the_token() {
    alone("a_generated_key_never_leaves_the_token", |tokens| {
        tokens.make("plant");
        let uri = generate_key(&tokens.uri("token=plant;object=device%20key"), DAY).unwrap();
        let text = uri.to_string();
        assert!(text.contains("token=plant;serial="), "{text}");
        assert!(text.contains(";object=device%20key;id="), "{text}");
        assert!(text.contains("?pin-source=file:"), "{text}");
        let hsm = open(&uri);
        hsm.public_key()
            .verify(b"m", &hsm.sign(b"m").unwrap())
            .unwrap();
        assert_eq!(
            hsm.public_key(),
            open(&tokens.uri("token=plant;object=device%20key")).public_key()
        );

        let listed = tokens.pkcs11_tool("plant", &["--list-objects", "--type", "privkey"]);
        let usage = listed.lines().find(|line| line.contains("Usage")).unwrap();
        // SoftHSM2 says so of all keys, though none of this kind decrypts
        assert_eq!(usage.trim(), "Usage:      decrypt, sign", "{listed}");
        let access = "sensitive, always sensitive, never extractable, local";
        assert!(listed.contains(access), "{listed}");

        // no key is made beside one of the same label or id
        let id = text.split_once(";id=").unwrap().1;
        let id = id.split_once('?').unwrap().0;
        for uri in [
            "token=plant;object=device%20key".to_owned(),
            "token=plant;object=device%20key;id=%05".to_owned(),
            format!("token=plant;object=other;id={id}"),
            format!("token=plant;id={id}"),
        ] {
            let error = generate_key(&tokens.uri(&uri), DAY).unwrap_err();
            assert!(matches!(error, Error::KeyExists { .. }), "{error}");
            assert_eq!(error.class(), Class::Logic);
        }

        // with an id only, and with both
        for path in ["token=plant;id=%07", "token=plant;object=b;id=%08%09"] {
            let uri = generate_key(&tokens.uri(path), DAY).unwrap();
            let hsm = open(&tokens.uri(path));
            assert_eq!(hsm.public_key(), open(&uri).public_key());
        }
        let missing = generate_key(&tokens.uri("token=other;object=o"), DAY).unwrap_err();
        assert!(matches!(missing, Error::TokenMissing { .. }), "{missing}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn keys_are_listed_with_uris_that_open_them() {
    alone("keys_are_listed_with_uris_that_open_them", |tokens| {
        tokens.make("plant");
        tokens.make("other");
        let keys = [
            tokens.import("plant", "a", "01"),
            tokens.import("plant", "a", "02"),
            tokens.import("plant", "käy;=?&%", "03ff00"),
        ];
        tokens.import("other", "c", "04");
        // the key that is named needn't be there
        let entries = list_keys(&tokens.uri("token=plant;object=none"), DAY).unwrap();
        assert_eq!(entries.len(), keys.len());
        for key in &keys {
            let entry = entries
                .iter()
                .find(|entry| entry.public_key.as_ref() == Some(key.verifying_key()))
                .unwrap();
            let hsm = open(&entry.uri);
            assert_eq!(hsm.public_key(), key.verifying_key(), "{}", entry.uri);
            hsm.sign(b"m").unwrap();
        }
        let error = list_keys(&tokens.uri("token=none;object=a"), DAY).unwrap_err();
        assert!(matches!(error, Error::TokenMissing { .. }), "{error}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn random_bytes_are_as_many_as_asked_for() {
    alone("random_bytes_are_as_many_as_asked_for", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.shim_uri("token=plant;object=key"));
        for n in [1, 32, MAX_RANDOM] {
            let bytes = hsm.random(n).unwrap();
            assert_eq!(bytes.len(), n);
            assert!(n == 1 || bytes.iter().any(|byte| *byte != bytes[0]));
        }
        assert_ne!(hsm.random(32).unwrap(), hsm.random(32).unwrap());
        tokens.fail("C_GenerateRandom", RANDOM_NO_RNG, 1);
        let error = hsm.random(32).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn many_handles_and_threads_share_one_library() {
    alone("many_handles_and_threads_share_one_library", |tokens| {
        tokens.make("one");
        tokens.make("two");
        let uris = ["token=one;object=key", "token=two;object=key"].map(|uri| tokens.uri(uri));
        let keys = ["one", "two"].map(|token| tokens.import(token, "key", "01"));
        thread::scope(|scope| {
            for thread in 0..8 {
                let (uri, key) = (&uris[thread % 2], &keys[thread % 2]);
                scope.spawn(move || {
                    for round in 0..10 {
                        let hsm = open(uri);
                        assert_eq!(hsm.public_key(), key.verifying_key());
                        let message = format!("{thread} {round}");
                        let signature = hsm.sign(message.as_bytes()).unwrap();
                        key.verifying_key()
                            .verify(message.as_bytes(), &signature)
                            .unwrap();
                        let locked = hsm.lock(message.as_bytes()).unwrap();
                        assert_eq!(*hsm.unlock(&locked).unwrap(), message.as_bytes());
                        assert_eq!(hsm.random(16).unwrap().len(), 16);
                        assert_eq!(hsm.counters().transient_failures, 0);
                    }
                });
            }
        });
        let listed = tokens.pkcs11_tool("one", &["--list-objects", "--type", "secrkey"]);
        assert_eq!(listed.matches("key lock").count(), 1, "{listed}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn another_key_under_the_same_uri_signs_nothing() {
    alone("another_key_under_the_same_uri_signs_nothing", |tokens| {
        tokens.make("plant");
        let old = tokens.import("plant", "key", "01");
        let uri = tokens.uri("token=plant;object=key");
        let hsm = open(&uri);
        hsm.sign(b"m").unwrap();
        for kind in ["privkey", "pubkey"] {
            tokens.pkcs11_tool("plant", &["--delete-object", "--type", kind, "--id", "01"]);
        }
        let new = tokens.import("plant", "key", "01");

        let error = hsm.sign(b"m").unwrap_err();

        assert!(matches!(error, Error::KeyChanged { .. }), "{error}");
        let error = hsm.sign(b"m").unwrap_err();
        assert!(matches!(error, Error::KeyChanged { .. }), "{error}");
        assert_eq!(hsm.public_key(), old.verifying_key());
        assert_eq!(hsm.counters().signatures, 1);
        assert_eq!(open(&uri).public_key(), new.verifying_key());
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_key_that_is_deleted_is_missed() {
    alone("a_key_that_is_deleted_is_missed", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.uri("token=plant;object=key"));
        hsm.sign(b"m").unwrap();
        tokens.pkcs11_tool(
            "plant",
            &["--delete-object", "--type", "privkey", "--id", "01"],
        );
        let error = hsm.sign(b"m").unwrap_err();
        assert!(matches!(error, Error::KeyMissing { .. }), "{error}");
        assert!(matches!(hsm.state(), State::Failed { .. }));
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn every_transient_code_is_recovered_from() {
    alone("every_transient_code_is_recovered_from", |tokens| {
        tokens.make("plant");
        let key = tokens.import("plant", "key", "01");
        let hsm = open(&tokens.shim_uri("token=plant;object=key"));
        let codes = [
            GENERAL_ERROR,
            FUNCTION_FAILED,
            DEVICE_ERROR,
            0x31, // CKR_DEVICE_MEMORY
            DEVICE_REMOVED,
            0x60,        // CKR_KEY_HANDLE_INVALID
            0x82,        // CKR_OBJECT_HANDLE_INVALID
            0x90,        // CKR_OPERATION_ACTIVE
            0x91,        // CKR_OPERATION_NOT_INITIALIZED
            0xb0,        // CKR_SESSION_CLOSED
            0xb1,        // CKR_SESSION_COUNT
            0xb3,        // CKR_SESSION_HANDLE_INVALID
            0xe0,        // CKR_TOKEN_NOT_PRESENT
            0xe1,        // CKR_TOKEN_NOT_RECOGNIZED
            0x101,       // CKR_USER_NOT_LOGGED_IN
            0x190,       // CKR_CRYPTOKI_NOT_INITIALIZED
            0x8000_0001, // CKR_VENDOR_DEFINED and more
            0x3ff,       // no code at all
        ];
        for code in codes {
            let before = hsm.counters();
            for function in ["C_SignInit", "C_Sign"] {
                tokens.fail(function, code, 1);
                let signature = hsm.sign(b"m").unwrap();
                key.verifying_key().verify(b"m", &signature).unwrap();
            }
            tokens.fail("C_GenerateRandom", code, 1);
            assert_eq!(hsm.random(8).unwrap().len(), 8);
            let after = hsm.counters();
            assert_eq!(after.retries - before.retries, 3, "{code:#x}");
            assert_eq!(after.transient_failures - before.transient_failures, 3);
        }
        // it stays away while it is opened again, and then comes back
        for code in [
            GENERAL_ERROR,
            DEVICE_ERROR,
            DEVICE_REMOVED,
            0xe0,
            0xb3,
            0x190,
        ] {
            for function in [
                "C_OpenSession",
                "C_GetSessionInfo",
                "C_FindObjectsInit",
                "C_FindObjects",
                "C_GetAttributeValue",
                "C_GetTokenInfo",
                "C_GetSlotList",
                "C_Login",
            ] {
                tokens.fail(function, code, 1);
                tokens.fail("C_Sign", DEVICE_REMOVED, 1);
                hsm.sign(b"m")
                    .unwrap_or_else(|e| panic!("{function} {code:#x}: {e}"));
                assert!(!tokens.path(function).exists(), "{function} wasn't called");
            }
        }
        // a token that says at once what is wrong with it
        tokens.fail("C_Sign", DEVICE_ERROR, 2);
        let error = hsm.sign(b"m").unwrap_err();
        let text = error.to_string();
        let Error::Library {
            function: "C_Sign",
            code: 0x30,
            meaning: "CKR_DEVICE_ERROR",
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert!(text.contains("transient"), "{text}");
        hsm.sign(b"m").unwrap();
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn codes_that_do_not_pass_end_in_typed_errors() {
    alone("codes_that_do_not_pass_end_in_typed_errors", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        let hsm = open(&uri);
        // logic: the token is in order
        for code in [0x07, 0x20, 0x21, 0x68] {
            tokens.fail("C_SignInit", code, 1);
            let error = hsm.sign(b"m").unwrap_err();
            assert_eq!(error.class(), Class::Logic, "{error}");
            assert!(matches!(error, Error::Library { code: c, .. } if c == i64::from(code)));
        }
        for code in [MECHANISM_INVALID, FUNCTION_NOT_SUPPORTED] {
            tokens.fail("C_SignInit", code, 1);
            let error = hsm.sign(b"m").unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
        hsm.sign(b"m").unwrap();
        assert_eq!(hsm.counters().reopens, 0);
        drop(hsm);

        // PINs, in what order the token may say so
        for code in [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0x102] {
            let before = tokens.calls("C_Login");
            write_secret(&tokens.path("pin"), &format!("{PIN}{code}"));
            tokens.fail("C_Login", code, 1);
            let error = refused(&uri);
            assert!(
                matches!(error, Error::PinRefused { .. }),
                "{code:#x}: {error}"
            );
            assert_eq!(tokens.calls("C_Login"), before + 1);
        }
        write_secret(&tokens.path("pin"), PIN);
        // what may have cost a try isn't repeated
        for code in [FUNCTION_FAILED, 0x07, 0x8000_0001, 0x104] {
            tokens.fail("C_Login", code, 1);
            let error = refused(&uri);
            assert_eq!(error.class(), Class::Fatal, "{error}");
            let hsm = open(&uri);
            hsm.sign(b"m").unwrap();
            tokens.fail("C_Login", code, 1);
            tokens.fail("C_Sign", DEVICE_REMOVED, 1);
            let error = hsm.sign(b"m").unwrap_err();
            assert_eq!(error.class(), Class::Fatal, "{error}");
            assert!(matches!(hsm.state(), State::Failed { .. }));
        }
        open(&uri).sign(b"m").unwrap();
        // a first opening isn't repeated
        for function in ["C_OpenSession", "C_FindObjectsInit", "C_GetSlotList"] {
            tokens.fail(function, DEVICE_ERROR, 1);
            let error = refused(&uri);
            let Error::Library {
                function: name,
                code: 0x30,
                ..
            } = &error
            else {
                panic!("{error}")
            };
            assert_eq!(*name, function);
            assert_eq!(error.class(), Class::Transient);
        }
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn a_token_that_opens_but_does_no_work_has_its_library_initialized_anew() {
    let name = "a_token_that_opens_but_does_no_work_has_its_library_initialized_anew";
    alone(name, |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let hsm = open(&tokens.shim_uri("token=plant;object=key"));
        tokens.fail("C_Sign", DEVICE_ERROR, 1_000_000);
        until(|| {
            hsm.sign(b"m").unwrap_err();
            tokens.calls("C_Finalize") > 0
        });
        fs::remove_file(tokens.path("C_Sign")).unwrap();
        hsm.sign(b"m").unwrap();
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn while_one_call_is_stuck_no_other_goes_in() {
    alone("while_one_call_is_stuck_no_other_goes_in", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        let (stuck, waiting) = (open(&uri), open(&uri));
        let mut options = Options::default();
        options.deadline = Duration::from_millis(50);
        let hasty = Hsm::open(&uri, options).unwrap();
        // the same file by another name is the same library
        let link = tokens.path("link.so");
        fs::hard_link(tokens.path("shim.so"), &link).unwrap();
        let linked = tokens.uri("token=plant;object=key");
        let linked = parse(&format!("{linked}&module-path={}", link.display()));
        let linked = Hsm::open(&linked, options).unwrap();
        let hold = tokens.path("C_Sign.hold");
        fs::write(&hold, "").unwrap();
        let before = tokens.calls("C_Sign");
        thread::scope(|scope| {
            let signed = scope.spawn(|| stuck.sign(b"m"));
            until(|| tokens.calls("C_Sign") > before);
            let error = hasty.random(8).unwrap_err();
            // its own call waited for the turn for as long as its caller
            assert!(
                matches!(error, Error::TimedOut { .. } | Error::Wedged { .. }),
                "{error}"
            );
            until(|| matches!(hasty.state(), State::Wedged { .. }));
            until(|| matches!(linked.state(), State::Wedged { .. }));
            linked.random(8).unwrap_err();
            assert_eq!(tokens.calls("C_GenerateRandom"), 0);
            let drawn = scope.spawn(|| waiting.random(8));
            fs::remove_file(&hold).unwrap();
            signed.join().unwrap().unwrap();
            assert_eq!(drawn.join().unwrap().unwrap().len(), 8);
        });
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn only_trusted_libraries_are_loaded() {
    alone("only_trusted_libraries_are_loaded", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let with = |path: &std::path::Path| {
            let uri = tokens.uri("token=plant;object=key");
            parse(&format!("{uri}&module-path={}", path.display()))
        };
        let untrusted = |uri: &HsmUri| {
            for error in [refused(uri), list_keys(uri, DAY).unwrap_err()] {
                assert!(matches!(error, Error::LibraryUntrusted { .. }), "{error}");
            }
        };
        let shim = tokens.shim_uri("token=plant;object=key");
        let path = tokens.path("shim.so");
        for mode in [0o666, 0o775, 0o757] {
            mode_of(&path, mode);
            untrusted(&shim);
        }
        mode_of(&path, 0o755);
        mode_of(&tokens.path(""), 0o777);
        untrusted(&shim);
        mode_of(&tokens.path(""), 0o700);
        open(&shim).sign(b"m").unwrap();
        // by the path that it has in Debian, and by the one that the link leads to
        open(&with(softhsm2().as_ref())).sign(b"m").unwrap();
        let target = fs::canonicalize(softhsm2()).unwrap();
        open(&with(&target)).sign(b"m").unwrap();

        fs::write(tokens.path("text.so"), "no library").unwrap();
        for path in [tokens.path("text.so"), tokens.path("missing.so")] {
            let error = refused(&with(&path));
            let Error::LibraryUnloadable { path: named, .. } = &error else {
                panic!("{error}")
            };
            assert_eq!(*named, path);
            assert_eq!(error.class(), Class::Fatal);
            assert!(error.to_string().contains("module-path="), "{error}");
        }
        let empty = tokens.path("empty.so");
        let source = tokens.path("empty.c");
        fs::write(&source, "int nothing;").unwrap();
        let mut cc = Command::new("cc");
        run(cc.args(["-shared", "-o"]).args([&empty, &source]), "gcc");
        let error = refused(&with(&empty));
        assert!(matches!(error, Error::LibraryUnloadable { .. }), "{error}");
        assert!(error.to_string().contains("no PKCS#11 library"), "{error}");
    });
}

#[test]
#[ignore = "needs softhsm2"]
fn sessions_are_closed_with_their_handles() {
    alone("sessions_are_closed_with_their_handles", |tokens| {
        tokens.make("plant");
        tokens.import("plant", "key", "01");
        let uri = tokens.shim_uri("token=plant;object=key");
        let missing = tokens.shim_uri("token=plant;object=none");
        for _ in 0..3 {
            open(&uri).sign(b"m").unwrap();
            refused(&missing);
            list_keys(&uri, DAY).unwrap();
        }
        assert_eq!(tokens.calls("C_OpenSession"), 9);
        assert_eq!(tokens.calls("C_CloseSession"), 9);
    });
}

/// Waits for something that is sure to come. The machine has time for others
/// meanwhile.
fn until(mut come: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !come() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came");
        thread::yield_now();
    }
}

const GENERAL_ERROR: u32 = 0x05;
const PIN_INCORRECT: u32 = 0xa0;
const FUNCTION_FAILED: u32 = 0x06;
const DEVICE_ERROR: u32 = 0x30;
const DEVICE_REMOVED: u32 = 0x32;
const FUNCTION_NOT_SUPPORTED: u32 = 0x54;
const MECHANISM_INVALID: u32 = 0x70;
const RANDOM_NO_RNG: u32 = 0x121;
const AES_GCM: u32 = 0x1087;
