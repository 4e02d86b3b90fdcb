//! Which libraries `zymkey:` loads, and what it believes of what they say. The
//! libraries are made by the C compiler, each with manners of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;
use zk_hsm::{Class, Error, Health, Hsm, Info, State, generate_key, list_keys};
use zk_hsm_sim::{Device, Model};

use crate::chip::{Chip, PATIENCE, options, until, uri};
use crate::stub::{MESSAGE, Stub};

#[path = "support/chip.rs"]
#[allow(dead_code)]
mod chip;
#[path = "support/stub.rs"]
mod stub;

fn unloadable(library: &Path) -> String {
    let error = Hsm::open(&uri(library, 0), options()).unwrap_err();
    assert_eq!(error.class(), Class::Fatal);
    let text = error.to_string();
    let Error::LibraryUnloadable { path, problem, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(path, library);
    assert!(text.contains("install Zymbit's packages"), "{text}");
    assert!(text.contains("zk-hsm-sim"), "{text}");
    problem.into()
}

fn answer(what: &str, error: &Error) {
    let Error::Library {
        meaning,
        class: Class::Transient,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(*meaning, what);
}

#[test]
fn what_is_no_library_is_not_loaded_and_why_is_said() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing.so");
    let problem = unloadable(&missing);
    assert!(problem.contains("No such file"), "{problem}");

    let text = directory.path().join("text.so");
    fs::write(&text, "not a library").unwrap();
    let problem = unloadable(&text);
    assert!(
        problem.contains("too short") || problem.contains("invalid ELF"),
        "{problem}"
    );
    assert!(problem.contains("text.so"), "{problem}");

    let error = list_keys(&uri(&missing, 0), PATIENCE).unwrap_err();
    assert!(matches!(error, Error::LibraryUnloadable { .. }), "{error}");
    let error = generate_key(&uri(&missing, 0), PATIENCE).unwrap_err();
    assert!(matches!(error, Error::LibraryUnloadable { .. }), "{error}");
}

#[test]
fn a_library_without_what_is_required_is_not_the_vendors() {
    for (define, function) in [
        ("NO_OPEN", "zkOpen"),
        ("NO_CLOSE", "zkClose"),
        ("NO_SIGN", "zkGenECDSASigFromDigest"),
        ("NO_EXPORT", "zkExportPubKey"),
    ] {
        let stub = Stub::new(&[define]);
        // and not at the second time either
        for _ in 0..2 {
            let problem = unloadable(&stub.path);
            assert!(problem.contains(&format!("`{function}`")), "{problem}");
        }
    }
}

#[test]
fn a_library_that_others_can_write_is_not_loaded() {
    let chip = Chip::new(Model::Zymkey4i);
    let file = chip.device.module_path();
    let directory = file.parent().unwrap();
    for (place, good, bad) in [
        (file.as_path(), 0o755, [0o775, 0o757, 0o777]),
        (directory, 0o755, [0o775, 0o757, 0o1777]),
    ] {
        for mode in bad {
            fs::set_permissions(place, Permissions::from_mode(mode)).unwrap();
            let error = Hsm::open(&chip.uri(0), options()).unwrap_err();
            assert_eq!(error.class(), Class::Fatal);
            let text = error.to_string();
            let Error::LibraryUntrusted { path, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(path, fs::canonicalize(place).unwrap(), "{mode:o}");
            let cure = format!("chmod go-w {}", path.display());
            assert!(text.contains(&cure), "{text}");
            for error in [
                list_keys(&chip.uri(0), PATIENCE).unwrap_err(),
                generate_key(&chip.uri(0), PATIENCE).unwrap_err(),
            ] {
                assert!(matches!(error, Error::LibraryUntrusted { .. }), "{error}");
            }
        }
        fs::set_permissions(place, Permissions::from_mode(good)).unwrap();
    }
    chip.open();
}

/// Further up a group may write, and anybody where only owners may rename.
#[test]
fn the_directories_above_are_looked_at_too() {
    let above = TempDir::new().unwrap();
    let device = Device::create(above.path().join("chip"), Model::Zymkey4i).unwrap();
    let open = || Hsm::open(&uri(&device.module_path(), 0), options());
    let untrusted = |place: &Path| {
        let error = open().unwrap_err();
        let Error::LibraryUntrusted { path, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(path, fs::canonicalize(place).unwrap());
    };
    for (mode, is_trusted) in [
        (0o757, false),
        (0o777, false),
        (0o1777, true),
        (0o775, true),
    ] {
        fs::set_permissions(above.path(), Permissions::from_mode(mode)).unwrap();
        if is_trusted {
            open().unwrap();
        } else {
            untrusted(above.path());
        }
    }
    // only root can give a file away
    if rustix::process::geteuid().is_root() {
        let file = device.module_path();
        for place in [file.as_path(), file.parent().unwrap(), above.path()] {
            chown(place, Some(12345), None).unwrap();
            untrusted(place);
            chown(place, Some(0), None).unwrap();
        }
        open().unwrap();
    }
}

/// Older libraries have fewer functions, and other ones for the same.
#[test]
fn a_library_with_only_what_is_required_signs() {
    for defines in [
        &["ONLY_REQUIRED"][..],
        &["ONLY_REQUIRED", "NO_SIGN", "RECOVERABLE"],
        &["ONLY_REQUIRED", "NO_EXPORT", "OLD_EXPORT"],
    ] {
        let stub = Stub::new(defines);
        let hsm = stub.open();
        hsm.sign(MESSAGE).unwrap();
        let Info {
            model,
            serial,
            firmware,
            development,
            ..
        } = hsm.info().unwrap();
        assert_eq!((model, serial, firmware), (None, None, None));
        assert!(!development, "nothing says that it is a simulator");
        assert_eq!(hsm.health().unwrap(), Health::default());

        let unsupported = |error: Error, verb: &str| {
            assert_eq!(error.class(), Class::Logic);
            assert!(
                matches!(error, Error::Unsupported { what, .. } if what == verb),
                "{error}"
            );
        };
        unsupported(hsm.random(9).unwrap_err(), "give random bytes");
        unsupported(hsm.lock(b"a secret").unwrap_err(), "lock data");
        unsupported(hsm.unlock(b"a secret").unwrap_err(), "unlock data");
        let error = generate_key(&stub.uri(), PATIENCE).unwrap_err();
        unsupported(error, "generate keys");
        // the slots that every model has, by trial
        assert_eq!(list_keys(&stub.uri(), PATIENCE).unwrap().len(), 3);
        hsm.sign(MESSAGE).unwrap();
        assert!(matches!(hsm.state(), State::Ready));
    }
}

#[test]
fn a_real_chips_signature_is_verified() {
    let hsm = Stub::new(&[]).open();
    let signature = hsm.sign(MESSAGE).unwrap();
    assert_eq!(signature.to_bytes()[..4], [0x28, 0x95, 0x3e, 0x99]);
    // it signs everything by that
    let error = hsm.sign(b"hello").unwrap_err();
    assert!(matches!(error, Error::BadSignature { .. }), "{error}");
}

#[test]
fn lengths_that_cannot_be_true_are_not_believed() {
    let wrong = "an output of the wrong length";
    for length in [
        "-1",
        "-2147483648",
        "2147483647",
        "63",
        "65",
        "0",
        "1000000",
    ] {
        let hsm = Stub::new(&[&format!("SIGNATURE_LENGTH={length}"), "ALLOCATED(n)=64"]).open();
        answer(wrong, &hsm.sign(MESSAGE).unwrap_err());

        let stub = Stub::new(&[&format!("KEY_LENGTH={length}"), "ALLOCATED(n)=64"]);
        answer(wrong, &stub.try_open().unwrap_err());
    }
    // a right one, of which less is there
    let hsm = Stub::new(&["ALLOCATED(n)=((n)==64?0:(n))", "NO_EXPORT", "OLD_EXPORT"]);
    answer(wrong, &hsm.try_open().unwrap_err());
    // keys on curve 25519 are as long
    let error = Stub::new(&["KEY_LENGTH=32"]).try_open().unwrap_err();
    answer("success, but no public key on P-256", &error);

    for length in ["-1", "0", "2147483647", "140000"] {
        let hsm = Stub::new(&[&format!("LOCKED_LENGTH={length}")]).open();
        answer(wrong, &hsm.lock(b"a secret").unwrap_err());
    }
    // fewer random bytes than were asked for
    let hsm = Stub::new(&["ALLOCATED(n)=((n)>100?8:(n))"]).open();
    assert_eq!(hsm.random(100).unwrap().len(), 100);
    answer(wrong, &hsm.random(1000).unwrap_err());
}

#[test]
fn what_is_put_out_by_a_failure_is_not_used() {
    let hsm = Stub::new(&["SIGN_CODE=-5"]).open();
    for _ in 0..3 {
        let error = hsm.sign(MESSAGE).unwrap_err();
        assert!(matches!(error, Error::Library { code: -5, .. }), "{error}");
    }
    // the vendor's own client takes what isn't negative for success
    Stub::new(&["SIGN_CODE=3"]).open().sign(MESSAGE).unwrap();
}

#[test]
fn no_context_is_no_success() {
    let error = Stub::new(&["CONTEXT=NULL"]).try_open().unwrap_err();
    answer("success, but no output", &error);
}

#[test]
fn only_a_one_unlocks() {
    let hsm = Stub::new(&[]).open();
    let locked = hsm.lock(b"a secret").unwrap();
    assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
    let mut changed = locked.clone();
    changed[3] ^= 8;
    let error = hsm.unlock(&changed).unwrap_err();
    assert!(matches!(error, Error::UnlockRefused), "{error}");

    let untrusted = |defines: &[&str], problem: &str| {
        let hsm = Stub::new(defines).open();
        for _ in 0..2 {
            let error = hsm.unlock(&locked).unwrap_err();
            assert!(matches!(error, Error::UnlockUntrusted { .. }), "{error}");
            assert!(error.to_string().contains(problem), "{error}");
            hsm.sign(MESSAGE).unwrap();
        }
    };
    // as the header has it
    untrusted(&["UNLOCK_GOOD=0", "UNLOCK_CHANGED=-74"], "didn't give back");
    untrusted(&["UNLOCK_GOOD=0", "UNLOCK_CHANGED=1"], "didn't give back");
    // anything is authentic
    untrusted(&["UNLOCK_CHANGED=1"], "data that was changed");

    // a negative number is no success either
    let hsm = Stub::new(&["UNLOCK_CHANGED=-74"]).open();
    assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
    let error = hsm.unlock(&changed).unwrap_err();
    assert!(matches!(error, Error::Library { code: -74, .. }), "{error}");
    for code in ["2", "100"] {
        let hsm = Stub::new(&[&format!("UNLOCK_GOOD={code}")]).open();
        answer(
            "neither success nor failure",
            &hsm.unlock(&locked).unwrap_err(),
        );
    }
}

#[test]
fn slots_are_checked() {
    let listed = |defines: &[&str]| list_keys(&Stub::new(defines).uri(), PATIENCE);
    // slot 16 holds a key of another curve
    assert_eq!(listed(&[]).unwrap().len(), 2);
    for slots in ["{0,656}", "{-1,0}", "{2147483647}"] {
        answer(
            "it lists slots that no chip has",
            &listed(&[&format!("SLOTS={slots}")]).unwrap_err(),
        );
    }
    for length in ["-1", "1000000", "2147483647", "100"] {
        answer(
            "an output of the wrong length",
            &listed(&[&format!("SLOTS_LENGTH={length}")]).unwrap_err(),
        );
    }
    assert!(listed(&["SLOTS_LENGTH=0"]).unwrap().is_empty());

    let made = |define: &str| {
        let stub = Stub::new(&[define]);
        generate_key(&stub.uri(), PATIENCE).map(|made| {
            let own = stub.uri().to_string();
            made.to_string().replace(own.split_once('?').unwrap().1, "")
        })
    };
    assert_eq!(made("GENERATED=17").unwrap(), "zymkey:slot=17?");
    assert_eq!(made("GENERATED=655").unwrap(), "zymkey:slot=655?");
    for number in ["656", "2147483647"] {
        let error = made(&format!("GENERATED={number}")).unwrap_err();
        answer("no slot has this number", &error);
    }
    let error = made("GENERATED=-1").unwrap_err();
    assert!(matches!(error, Error::Library { code: -1, .. }), "{error}");
}

#[test]
fn texts_and_measurements_are_checked() {
    let hsm = Stub::new(&[]).open();
    let info = hsm.info().unwrap();
    assert_eq!(info.model.unwrap(), "a stub");
    assert_eq!(info.firmware, None);
    let health = hsm.health().unwrap();
    let binding = health.binding.unwrap();
    assert!(!binding.locked && binding.bound);
    assert_eq!(health.battery_volts, Some(3.1));
    assert_eq!(health.cpu_celsius, None);
    let broken = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    assert_eq!(health.perimeter, Some(vec![None, Some(broken)]));

    for text in [r#""""#, r#""Zymkey \x1b[2J""#, r#""my Simulator""#] {
        let info = Stub::new(&[&format!("TEXT={text}")]).open().info().unwrap();
        let model = info.model.unwrap();
        assert!(!model.contains('\u{1b}'), "{model:?}");
        assert_eq!(info.development, model == "my Simulator");
    }
    let error = Stub::new(&["ENDLESS"]).try_open().unwrap_err();
    answer("an output of the wrong length", &error);
    let error = Stub::new(&[r#"TEXT="\xff""#]).try_open().unwrap_err();
    answer("it put out no text", &error);

    // there is room for 2, and for what an allocator adds to that
    for length in ["-1", "11", "65", "2147483647"] {
        let hsm = Stub::new(&[&format!("CIRCUITS_LENGTH={length}")]).open();
        let error = hsm.health().unwrap_err();
        answer("an output of the wrong length", &error);
    }
    for volts in ["(0.0f/0.0f)", "(1.0f/0.0f)"] {
        let hsm = Stub::new(&[&format!("VOLTS={volts}")]).open();
        answer("success, but no number", &hsm.health().unwrap_err());
    }
}

/// The library counts who is inside, and what it was given.
#[test]
fn one_call_at_a_time_is_inside_and_contexts_are_closed() {
    let stub = Stub::new(&[]);
    let witness = stub.open();
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let hsm = stub.open();
                    hsm.sign(MESSAGE).unwrap();
                    hsm.random(10).unwrap();
                    list_keys(&stub.uri(), PATIENCE).unwrap();
                    // which opens it again
                    hsm.sign(b"another message").unwrap_err();
                    hsm.health().unwrap();
                }
            });
        }
    });
    // 30 handles, each opened three times, 30 lists, and the witness
    until("all contexts are closed", || {
        let serial = witness.info().unwrap().serial.unwrap();
        assert!(serial.ends_with("together 0, wrong 0"), "{serial}");
        serial.starts_with("opened 121, closed 120,")
    });
}
