//! What the C library allocates is freed, whatever happens: by valgrind, with
//! this file's first test under it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::process::Command;

use zk_hsm::{Error, Hsm, generate_key, list_keys};
use zk_hsm_sim::{Fault, Model, Rule};

use crate::chip::{Chip, PATIENCE, options, sign, until};
use crate::stub::{MESSAGE, Stub};

#[path = "support/chip.rs"]
#[allow(dead_code)]
mod chip;
#[path = "support/stub.rs"]
mod stub;

/// Some hundred calls, good ones and such as fail in each way that there is.
/// Afterwards everything is closed.
#[test]
fn calls_with_faults() {
    let chip = Chip::new(Model::Hsm6);
    let hsm = chip.open();
    let mut changed = hsm.lock(b"a secret").unwrap();
    changed[20] ^= 1;
    let calls = || {
        let _ = sign(&hsm, b"m");
        let _ = hsm.random(1000);
        let _ = hsm.lock(&[7; 1000]).and_then(|locked| hsm.unlock(&locked));
        let _ = hsm.unlock(&changed);
        let _ = hsm.info();
        let _ = hsm.health();
    };
    let others = || {
        let _ = list_keys(&chip.uri(0), PATIENCE);
        let _ = generate_key(&chip.uri(0), PATIENCE);
        let _ = Hsm::open(&chip.uri(1), options());
    };
    for _ in 0..40 {
        calls();
    }
    others();
    for fault in [
        Fault::Code(-5),
        Fault::Code(-22),
        Fault::Code(-38),
        Fault::NullOutput,
        Fault::Length(0),
        Fault::Length(63),
        Fault::Length(u16::MAX),
        Fault::FlipR,
        Fault::KeyVanished,
    ] {
        let functions = [
            "zkOpen",
            "zkExportPubKey",
            "zkGenECDSASigFromDigest",
            "zkGetRandBytes",
            "zkLockDataB2B",
            "zkUnlockDataB2B",
            "zkGetModelNumberString",
            "zkGetPerimeterDetectInfo",
            "zkGetAllocSlotsList",
            "zkGenKeyPair",
        ];
        chip.fail(functions.map(|function| Rule::new(function, fault.clone()).count(1)));
        calls();
        others();
        calls();
        sign(&hsm, b"m").unwrap();
    }
    chip.restart_daemon();
    calls();

    // outputs beside failures, of false lengths, and secrets that aren't authentic
    for (define, fails) in [
        ("RECOVERABLE", false),
        ("SIGN_CODE=-5", true),
        ("SIGNATURE_LENGTH=-1", true),
        ("SIGNATURE_LENGTH=20000", true),
        ("LOCKED_LENGTH=2147483647", false),
        ("CIRCUITS_LENGTH=65", false),
        ("SLOTS_LENGTH=1000", false),
        ("UNLOCK_GOOD=0", false),
        ("UNLOCK_GOOD=-1", false),
        ("UNLOCK_CHANGED=1", false),
    ] {
        let stub = Stub::new(&[define, "ALLOCATED(n)=64"]);
        let hsm = stub.open();
        assert_eq!(hsm.sign(MESSAGE).is_err(), fails, "{define}");
        let _ = hsm.health();
        let _ = hsm.unlock(b"a secret");
        let _ = hsm.lock(b"a secret").and_then(|locked| hsm.unlock(&locked));
        let _ = list_keys(&stub.uri(), PATIENCE);
    }
    for define in ["KEY_LENGTH=63", "KEY_LENGTH=20000", "ENDLESS"] {
        let stub = Stub::new(&[define, "ALLOCATED(n)=64"]);
        let error = stub.try_open().unwrap_err();
        assert!(matches!(error, Error::Library { .. }), "{error}");
    }

    assert!(hsm.counters().signatures > 50);
    drop(hsm);
    until("all is closed", || {
        let threads = fs::read_dir("/proc/self/task").unwrap();
        threads.flatten().all(|thread| {
            let name = fs::read_to_string(thread.path().join("comm"));
            name.is_ok_and(|name| name != "zk-hsm-zymkey\n")
        })
    });
}

#[test]
#[ignore = "needs valgrind: apt-get install valgrind"]
fn nothing_that_the_library_allocates_is_lost() {
    let output = Command::new("valgrind")
        .args(["--leak-check=full", "--show-leak-kinds=definite"])
        .args(["--errors-for-leak-kinds=definite", "--error-exitcode=9"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "calls_with_faults", "--test-threads=1"])
        .output()
        .expect("valgrind: apt-get install valgrind");
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("1 passed"), "{stdout}");
    assert!(report.contains("ERROR SUMMARY: 0 errors"), "{report}");
    // it was this library that it watched
    let lost = "definitely lost: 0 bytes in 0 blocks";
    let clean = report.contains(lost) || report.contains("no leaks are possible");
    assert!(clean, "{report}");
}
