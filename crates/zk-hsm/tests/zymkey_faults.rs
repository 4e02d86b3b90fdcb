//! Every fault of the simulated chip at every call: each ends in recovery or in
//! a typed error, and the chip works again once the fault is over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::thread;
use std::time::Duration;

use zk_hsm::{Class, Error, Health, Hsm, Info, Operation, State, generate_key, list_keys};
use zk_hsm_sim::{DaemonState, Fault, Latency, Model, Rule, Throttle};

use crate::chip::{Chip, PATIENCE, options, patient, sign, until};

#[path = "support/chip.rs"]
#[allow(dead_code)]
mod chip;

const OPEN: &str = "zkOpen";
const EXPORT: &str = "zkExportPubKey";
const SIGN: &str = "zkGenECDSASigFromDigest";
const RANDOM: &str = "zkGetRandBytes";
const LOCK: &str = "zkLockDataB2B";
const UNLOCK: &str = "zkUnlockDataB2B";
const TEXTS: [&str; 3] = [
    "zkGetModelNumberString",
    "zkGetSerialNumberString",
    "zkGetFirmwareVersionString",
];
const TIME: &str = "zkGetTime";
const PERIMETER: &str = "zkGetPerimeterDetectInfo";
/// What not all models can.
const EXTRAS: [&str; 3] = [
    "zkGetCurrentBindingInfo",
    "zkGetBatteryVoltage",
    "zkGetCPUTemp",
];
const SLOTS: &str = "zkGetAllocSlotsList";
const GENERATE: &str = "zkGenKeyPair";

/// The way to the chip, with the names that messages have for them.
const TRANSIENT: [(i32, &str); 13] = [
    (-4, "EINTR"),
    (-5, "EIO"),
    (-6, "ENXIO"),
    (-11, "EAGAIN"),
    (-16, "EBUSY"),
    (-19, "ENODEV"),
    (-32, "EPIPE"),
    (-71, "EPROTO"),
    (-104, "ECONNRESET"),
    (-107, "ENOTCONN"),
    (-110, "ETIMEDOUT"),
    (-111, "ECONNREFUSED"),
    (-121, "EREMOTEIO"),
];
/// Codes that say little. -1 is the vendor's for any failure.
const UNCLEAR: [(i32, &str); 5] = [
    (-1, "EPERM, or any failure"),
    (-2, "ENOENT"),
    (-13, "EACCES"),
    (-74, "EBADMSG"),
    (-4095, "unknown"),
];
const INVALID: i32 = -22;
const UNSUPPORTED: [i32; 2] = [-38, -95];

/// What a fault at one function must lead to.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// The call is made again after the chip was opened again; when that
    /// doesn't help either, the answer is [`Error::Library`] with this code
    /// and meaning.
    Retried(i32, &'static str),
    /// [`Error::Library`] of this code, at once; nothing is opened again.
    Refused(i32),
    /// [`Error::Unsupported`], at once.
    Unsupported,
    /// No error: what can't be had is missing from the answer.
    Done,
}

/// One call through the public interface. The answer is checked by it.
type Call = fn(&Hsm) -> Result<(), Error>;

fn sign_call(hsm: &Hsm) -> Result<(), Error> {
    sign(hsm, b"21.4 degrees").map(drop)
}

fn random_call(hsm: &Hsm) -> Result<(), Error> {
    assert_eq!(hsm.random(40)?.len(), 40);
    Ok(())
}

fn lock_call(hsm: &Hsm) -> Result<(), Error> {
    let locked = hsm.lock(b"a secret")?;
    assert!(locked.len() > 8);
    Ok(())
}

fn unlock_call(hsm: &Hsm) -> Result<(), Error> {
    let plain = hsm.unlock(LOCKED.with(|locked| locked.clone().into_inner()).as_slice())?;
    assert_eq!(*plain, b"a secret");
    Ok(())
}

thread_local! {
    /// What the chip of this thread's test has locked.
    static LOCKED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn info_call(hsm: &Hsm) -> Result<(), Error> {
    hsm.info()
        .map(|Info { development, .. }| assert!(development))
}

fn health_call(hsm: &Hsm) -> Result<(), Error> {
    hsm.health().map(drop)
}

/// Has `function` fail in each of the ways `faults`, once and for good, while
/// `call` is made. Much of that is waiting, so it goes on with several chips.
fn strike(
    model: Model,
    function: &'static str,
    call: Call,
    faults: impl IntoIterator<Item = (Fault, Outcome)>,
) {
    let faults: Vec<_> = faults.into_iter().collect();
    thread::scope(|scope| {
        for some in faults.chunks(6) {
            scope.spawn(move || strike_one(model, function, call, some));
        }
    });
}

fn strike_one(model: Model, function: &'static str, call: Call, faults: &[(Fault, Outcome)]) {
    let chip = Chip::new(model);
    let locked = chip.open().lock(b"a secret").unwrap();
    LOCKED.set(locked);
    for &(ref fault, outcome) in faults {
        let case = format!("{function}, {fault:?}, {outcome:?}");
        for once in [true, false] {
            let hsm = chip.open();
            call(&hsm).unwrap();
            let before = hsm.counters();
            let rule = Rule::new(function, fault.clone());
            chip.fail([if once { rule.count(1) } else { rule }]);

            let result = call(&hsm);

            let after = hsm.counters();
            let is_ready = matches!(hsm.state(), State::Ready);
            let counted = (
                after.transient_failures - before.transient_failures,
                after.logic_failures - before.logic_failures,
                after.retries - before.retries,
            );
            match (outcome, once) {
                (Outcome::Retried(..), true) => {
                    result.expect(&case);
                    assert_eq!((counted, after.reopens), ((1, 0, 1), 1), "{case}");
                    assert!(is_ready, "{case}");
                }
                (Outcome::Retried(code, meaning), false) => {
                    assert_library(&case, &result.unwrap_err(), function, code, meaning);
                    assert_eq!(counted, (2, 0, 1), "{case}");
                }
                (Outcome::Refused(code), _) => {
                    let error = result.unwrap_err();
                    assert!(
                        matches!(&error, Error::Library { code: c, class: Class::Logic, .. }
                            if *c == i64::from(code)),
                        "{case}: {error}"
                    );
                    assert_eq!((counted, after.reopens), ((0, 1, 0), 0), "{case}");
                    assert!(is_ready, "{case}");
                }
                (Outcome::Unsupported, _) => {
                    let error = result.unwrap_err();
                    assert!(
                        matches!(error, Error::Unsupported { .. }),
                        "{case}: {error}"
                    );
                    assert_eq!((counted, after.reopens), ((0, 1, 0), 0), "{case}");
                    assert!(is_ready, "{case}");
                }
                (Outcome::Done, _) => {
                    result.expect(&case);
                    assert_eq!((counted, after.reopens), ((0, 0, 0), 0), "{case}");
                    assert!(is_ready, "{case}");
                }
            }
            assert_eq!(after.fatal_failures, 0, "{case}");
            chip.fail([]);
            call(&hsm).expect(&case);
            sign(&hsm, b"m").expect(&case);
            assert!(matches!(hsm.state(), State::Ready), "{case}");
        }
    }
}

fn assert_library(case: &str, error: &Error, function: &str, code: i32, meaning: &str) {
    let Error::Library {
        function: f,
        code: c,
        meaning: m,
        class: Class::Transient,
        ..
    } = error
    else {
        panic!("{case}: {error}")
    };
    assert_eq!((*f, *c, *m), (function, code.into(), meaning), "{case}");
}

fn transient_codes() -> impl Iterator<Item = (Fault, Outcome)> {
    TRANSIENT
        .into_iter()
        .map(|(code, name)| (Fault::Code(code), Outcome::Retried(code, name)))
}

/// For where only a few functions are between the code and its sorting, which
/// [`signing`] is about.
fn some_transient_codes() -> impl Iterator<Item = (Fault, Outcome)> {
    transient_codes().step_by(4)
}

fn unclear_codes() -> impl Iterator<Item = (Fault, Outcome)> {
    UNCLEAR
        .into_iter()
        .map(|(code, name)| (Fault::Code(code), Outcome::Retried(code, name)))
}

fn unsupported_codes(outcome: Outcome) -> impl Iterator<Item = (Fault, Outcome)> {
    UNSUPPORTED
        .map(|code| (Fault::Code(code), outcome))
        .into_iter()
}

fn null(code: i32) -> (Fault, Outcome) {
    (
        Fault::NullOutput,
        Outcome::Retried(code, "success, but no output"),
    )
}

fn lengths(code: i32, lengths: &[u16]) -> impl Iterator<Item = (Fault, Outcome)> {
    let wrong = Outcome::Retried(code, "an output of the wrong length");
    lengths
        .iter()
        .map(move |&length| (Fault::Length(length), wrong))
}

fn slow() -> [(Fault, Outcome); 2] {
    let throttle = Throttle {
        rested: 1,
        tired: 20,
        calls: 3,
        recovery: 1000,
    };
    [
        (Fault::Latency(Latency::Fixed(20)), Outcome::Done),
        (Fault::Throttle(throttle), Outcome::Done),
    ]
}

#[test]
fn signing() {
    let invalid = (Fault::Code(INVALID), Outcome::Retried(INVALID, "EINVAL"));
    let faults = transient_codes()
        .chain(unclear_codes())
        .chain([invalid, null(0)])
        .chain(unsupported_codes(Outcome::Unsupported))
        .chain(lengths(0, &[0, 1, 32, 63, 65, 128, u16::MAX]))
        .chain(slow())
        .chain([(Fault::HighS, Outcome::Done), (Fault::LowS, Outcome::Done)]);
    strike(Model::Zymkey4i, SIGN, sign_call, faults);
}

#[test]
fn random_bytes() {
    let faults = some_transient_codes()
        .chain(unclear_codes())
        .chain([(Fault::Code(INVALID), Outcome::Refused(INVALID)), null(0)])
        .chain(unsupported_codes(Outcome::Unsupported))
        .chain(slow());
    strike(Model::Zymkey4i, RANDOM, random_call, faults);
}

#[test]
fn locking() {
    let faults = some_transient_codes()
        .chain(unclear_codes())
        .chain([(Fault::Code(INVALID), Outcome::Refused(INVALID)), null(0)])
        .chain(unsupported_codes(Outcome::Unsupported))
        .chain(lengths(0, &[0]))
        .chain(slow());
    strike(Model::Zymkey4i, LOCK, lock_call, faults);
    // cut, or filled up: then what was locked can't be unlocked
    let damaged = Outcome::Retried(0, "success, but what it put out can't be unlocked");
    let faults = [1, 8, 44, 46, u16::MAX].map(|length| (Fault::Length(length), damaged));
    strike(Model::Zymkey4i, LOCK, lock_call, faults);
}

#[test]
fn unlocking() {
    let faults = some_transient_codes()
        .chain(unclear_codes())
        .chain([(Fault::Code(INVALID), Outcome::Refused(INVALID)), null(1)])
        .chain(unsupported_codes(Outcome::Unsupported))
        .chain(lengths(1, &[0]))
        .chain(slow());
    strike(Model::Zymkey4i, UNLOCK, unlock_call, faults);
}

#[test]
fn telling_what_it_is() {
    thread::scope(|scope| {
        for function in TEXTS {
            scope.spawn(move || {
                let faults = some_transient_codes()
                    .chain(unclear_codes())
                    .chain([(Fault::Code(INVALID), Outcome::Retried(INVALID, "EINVAL"))])
                    .chain(unsupported_codes(Outcome::Done))
                    .chain([null(0)])
                    .chain(slow());
                strike(Model::Zymkey4i, function, info_call, faults);
            });
        }
    });
}

#[test]
fn telling_how_it_is() {
    thread::scope(|scope| {
        for function in [TIME, PERIMETER] {
            scope.spawn(move || {
                let faults = some_transient_codes()
                    .chain(unclear_codes())
                    .chain([(Fault::Code(INVALID), Outcome::Retried(INVALID, "EINVAL"))])
                    .chain(unsupported_codes(Outcome::Done))
                    .chain(slow());
                strike(Model::Hsm6, function, health_call, faults);
            });
        }
        for function in EXTRAS {
            scope.spawn(move || {
                let tolerated = UNCLEAR.map(|(code, _)| (Fault::Code(code), Outcome::Done));
                let faults = some_transient_codes()
                    .chain(tolerated)
                    .chain([(Fault::Code(INVALID), Outcome::Done)])
                    .chain(unsupported_codes(Outcome::Done))
                    .chain(slow());
                strike(Model::Hsm6, function, health_call, faults);
            });
        }
    });
    let faults = [null(0)].into_iter().chain(lengths(0, &[65, u16::MAX]));
    strike(Model::Hsm6, PERIMETER, health_call, faults);
}

#[test]
fn what_a_model_refuses_to_measure_is_missing_from_its_health() {
    let chip = Chip::new(Model::Hsm6);
    let hsm = chip.open();
    for code in [-1, INVALID, -38] {
        chip.fail(EXTRAS.map(|function| Rule::new(function, Fault::Code(code))));
        let Health {
            binding,
            battery_volts,
            cpu_celsius,
            time,
            perimeter,
            ..
        } = hsm.health().unwrap();
        assert_eq!((binding, battery_volts, cpu_celsius), (None, None, None));
        assert!(time.is_some() && perimeter.is_some());
    }
}

#[test]
fn flipped_bits_of_a_signature_never_leave() {
    let chip = Chip::new(Model::Zymkey4i);
    for flip in [Fault::FlipR, Fault::FlipS] {
        let hsm = chip.open();
        chip.fail([Rule::new(SIGN, flip.clone()).count(1)]);
        sign(&hsm, b"m").unwrap();
        let counters = hsm.counters();
        assert_eq!((counters.bad_signatures, counters.retries), (1, 1));
        assert_eq!((counters.signatures, counters.reopens), (1, 1));

        chip.fail([Rule::new(SIGN, flip)]);
        let error = hsm.sign(b"m").unwrap_err();
        assert!(matches!(error, Error::BadSignature { .. }), "{error}");
        let counters = hsm.counters();
        assert_eq!((counters.bad_signatures, counters.retries), (3, 2));
        assert_eq!(counters.signatures, 1);

        chip.fail([]);
        sign(&hsm, b"m").unwrap();
    }
}

/// Opening isn't tried twice: what goes wrong is the answer.
#[test]
fn opening() {
    let chip = Chip::new(Model::Zymkey4i);
    let mut cases = Vec::new();
    for function in [OPEN, EXPORT].into_iter().chain(TEXTS) {
        for (code, meaning) in TRANSIENT.into_iter().chain([(INVALID, "EINVAL")]) {
            cases.push((function, Fault::Code(code), Some((code, meaning))));
        }
        for (code, meaning) in UNCLEAR {
            cases.push((function, Fault::Code(code), Some((code, meaning))));
        }
        cases.push((
            function,
            Fault::NullOutput,
            Some((0, "success, but no output")),
        ));
    }
    // NULL for a context isn't among the simulator's faults
    cases.retain(|(function, fault, _)| *function != OPEN || *fault != Fault::NullOutput);
    for length in [0, 1, 63, 65, u16::MAX] {
        let wrong = Some((0, "an output of the wrong length"));
        cases.push((EXPORT, Fault::Length(length), wrong));
    }
    for function in [OPEN, EXPORT] {
        for code in UNSUPPORTED {
            cases.push((function, Fault::Code(code), None));
        }
    }
    for (function, fault, expected) in cases {
        let case = format!("{function}, {fault:?}");
        // for all slots: one that is refused alone is an empty one
        chip.fail([
            Rule::new(function, fault),
            Rule::new(RANDOM, Fault::Code(-5)),
        ]);
        let error = Hsm::open(&chip.uri(0), options()).unwrap_err();
        match expected {
            Some((code, meaning)) => assert_library(&case, &error, function, code, meaning),
            None => assert!(
                matches!(error, Error::Unsupported { .. }),
                "{case}: {error}"
            ),
        }
        chip.fail([]);
        sign(&chip.open(), b"m").expect(&case);
    }
}

#[test]
fn a_key_that_vanished_is_told_from_a_failure() {
    let chip = Chip::new(Model::Zymkey4i);
    fn vanished() -> Rule {
        Rule::new(EXPORT, Fault::KeyVanished)
    }
    fn unclear() -> Rule {
        Rule::new(EXPORT, Fault::Code(-1))
    }
    let missing = |result: Result<_, Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::KeyMissing { .. }), "{error}");
        assert_eq!(error.class(), Class::Fatal);
    };

    // this slot's, not the next one's, and this one's again
    let alternate = |rule: fn() -> Rule, times: u64| {
        chip.fail((0..times).map(|n| rule().after(2 * n).count(1)));
        Hsm::open(&chip.uri(0), options()).map(drop)
    };
    missing(alternate(vanished, 4));
    // by a code that says nothing
    missing(alternate(unclear, 4));
    // fewer times it may be the connection
    for times in 1..4 {
        let error = alternate(unclear, times).unwrap_err();
        assert_library("fewer", &error, EXPORT, -1, "EPERM, or any failure");
    }
    // all slots', but the chip answers
    chip.fail([vanished()]);
    missing(Hsm::open(&chip.uri(0), options()).map(drop));
    // once only: it was a failure
    chip.fail([vanished().count(1)]);
    let error = Hsm::open(&chip.uri(0), options()).unwrap_err();
    assert_library("once", &error, EXPORT, -2, "ENOENT");

    // while it was open
    chip.fail([]);
    let hsm = chip.open();
    chip.fail([Rule::new("any", Fault::KeyVanished)]);
    missing(hsm.sign(b"m").map(drop));
    chip.fail([]);
    missing(hsm.sign(b"m").map(drop));
    assert!(matches!(
        hsm.state(),
        State::Failed {
            cause: Error::KeyMissing { .. }
        }
    ));
    assert_eq!(hsm.counters().fatal_failures, 1);
    sign(&chip.open(), b"m").unwrap();
}

/// As after its export was disabled.
#[test]
fn a_key_that_is_listed_is_not_missing() {
    let chip = Chip::new(Model::Hsm6);
    chip.fail((0..4).map(|n| Rule::new(EXPORT, Fault::Code(-1)).after(2 * n).count(1)));
    let error = Hsm::open(&chip.uri(0), options()).unwrap_err();
    assert_library("listed", &error, EXPORT, -1, "EPERM, or any failure");
    // one that isn't listed is
    chip.fail([]);
    let error = Hsm::open(&chip.uri(20), options()).unwrap_err();
    assert!(matches!(error, Error::KeyMissing { .. }), "{error}");
}

#[test]
fn who_may_not_reach_the_daemon_is_told_so() {
    let chip = Chip::new(Model::Zymkey4i);
    chip.fail([Rule::new(OPEN, Fault::Code(-13))]);
    let error = Hsm::open(&chip.uri(0), options()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("run this as a user who may"), "{text}");
}

/// Who locks a secret gives up the open one.
#[test]
fn what_does_not_unlock_to_what_was_locked_is_not_handed_out() {
    let chip = Chip::new(Model::Zymkey4i);
    let hsm = chip.open();
    hsm.lock(b"a secret").unwrap();
    let cut = Rule::new(UNLOCK, Fault::Length(7));
    chip.fail([cut.clone()]);
    let error = hsm.lock(b"a secret").unwrap_err();
    let problem = "success, but what it put out can't be unlocked";
    assert_library("cut", &error, LOCK, 0, problem);
    chip.fail([cut.count(1)]);
    hsm.lock(b"a secret").unwrap();
    assert_eq!(hsm.counters().retries, 2);
}

#[test]
fn another_key_in_the_slot_signs_nothing() {
    let chip = Chip::new(Model::Zymkey4i);
    let hsm = chip.open();
    chip.fail([Rule::new("any", Fault::KeyChanged)]);

    let error = hsm.sign(b"m").unwrap_err();

    assert!(matches!(error, Error::KeyChanged { .. }), "{error}");
    chip.fail([]);
    let error = hsm.sign(b"m").unwrap_err();
    assert!(matches!(error, Error::KeyChanged { .. }), "{error}");
    let State::Failed { cause } = hsm.state() else {
        panic!("{:?}", hsm.state())
    };
    assert!(matches!(cause, Error::KeyChanged { .. }));
    let counters = hsm.counters();
    assert_eq!((counters.bad_signatures, counters.signatures), (1, 0));
    assert_eq!(counters.fatal_failures, 1);

    // the same key as before, when only the signature was another key's
    let hsm = chip.open();
    chip.fail([Rule::new(SIGN, Fault::KeyChanged).count(1)]);
    sign(&hsm, b"m").unwrap();
    assert_eq!(hsm.counters().bad_signatures, 1);
}

#[test]
fn failures_while_it_is_opened_again_are_waited_out() {
    let chip = Chip::new(Model::Zymkey4i);
    for (function, fault) in [
        (OPEN, Fault::Code(-111)),
        (OPEN, Fault::Code(-1)),
        (EXPORT, Fault::Code(-110)),
        (EXPORT, Fault::Code(INVALID)),
        (EXPORT, Fault::NullOutput),
        (EXPORT, Fault::Length(63)),
    ] {
        let case = format!("{function}, {fault:?}");
        let hsm = chip.open();
        chip.fail([
            Rule::new(SIGN, Fault::Code(-5)).count(1),
            Rule::new(function, fault).count(1),
        ]);
        sign(&hsm, b"m").expect(&case);
        let counters = hsm.counters();
        assert_eq!(
            (
                counters.transient_failures,
                counters.retries,
                counters.reopens
            ),
            (2, 1, 1),
            "{case}"
        );
    }
}

/// The first use of unlocking tries it; each of the calls for that can fail.
#[test]
fn failures_while_unlocking_is_tried() {
    for (function, after) in [(LOCK, 0), (UNLOCK, 0), (UNLOCK, 1)] {
        let chip = Chip::new(Model::Zymkey4i);
        let hsm = chip.open();
        for fault in [Fault::Code(-110), Fault::NullOutput] {
            // data that was changed has no output that could be NULL
            if (function, after, &fault) == (UNLOCK, 1, &Fault::NullOutput) {
                continue;
            }
            let case = format!("{function}, {after}, {fault:?}");
            chip.fail([Rule::new(function, fault).after(after)]);
            let error = hsm.lock(b"a secret").unwrap_err();
            assert!(
                matches!(&error, Error::Library { function: f, class: Class::Transient, .. }
                    if *f == function),
                "{case}: {error}"
            );
            chip.fail([Rule::new(function, Fault::Code(-110)).after(after).count(1)]);
        }
        let locked = hsm.lock(b"a secret").unwrap();
        assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
    }
    // a length that can't be told from a right one is told by the trial
    let chip = Chip::new(Model::Zymkey4i);
    let hsm = chip.open();
    chip.fail([Rule::new(UNLOCK, Fault::Length(7))]);
    let error = hsm.lock(b"a secret").unwrap_err();
    assert!(matches!(error, Error::UnlockUntrusted { .. }), "{error}");
    chip.fail([]);
    let locked = hsm.lock(b"a secret").unwrap();
    assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
}

#[test]
fn listing_and_making_keys() {
    let chip = Chip::new(Model::Hsm6);
    let list = |uri: &_| list_keys(uri, PATIENCE).map(drop);
    let make = |uri: &_| generate_key(uri, PATIENCE).map(drop);
    type Once = fn(&zk_hsm::HsmUri) -> Result<(), Error>;
    for (function, call) in [
        (OPEN, list as Once),
        (SLOTS, list),
        (EXPORT, list),
        (OPEN, make),
        (GENERATE, make),
    ] {
        for (code, meaning) in TRANSIENT {
            let case = format!("{function}, {code}");
            chip.fail([Rule::new(function, Fault::Code(code)).count(1)]);
            let error = call(&chip.uri(0)).unwrap_err();
            assert_library(&case, &error, function, code, meaning);
        }
    }
    for code in [-1, -4095] {
        for (function, call) in [(SLOTS, list as Once), (GENERATE, make)] {
            chip.fail([Rule::new(function, Fault::Code(code))]);
            let error = call(&chip.uri(0)).unwrap_err();
            assert!(matches!(error, Error::Library { .. }), "{error}");
        }
        // a key that isn't given out is there all the same
        chip.fail([Rule::new(EXPORT, Fault::Code(code)).after(3).count(1)]);
        let keys = list_keys(&chip.uri(0), PATIENCE).unwrap();
        assert_eq!(keys.len(), 12);
        let unknown = keys.iter().position(|key| key.public_key.is_none());
        assert_eq!(unknown, Some(3));
    }
    chip.fail([Rule::new(GENERATE, Fault::Code(INVALID))]);
    let error = make(&chip.uri(0)).unwrap_err();
    assert_eq!(error.class(), Class::Logic);
    for code in UNSUPPORTED {
        chip.fail([Rule::new(GENERATE, Fault::Code(code))]);
        let error = make(&chip.uri(0)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        // then as for a model that can't list
        chip.fail([Rule::new(SLOTS, Fault::Code(code))]);
        assert_eq!(list_keys(&chip.uri(0), PATIENCE).unwrap().len(), 3);
    }
    for (function, fault) in [
        (SLOTS, Fault::NullOutput),
        (SLOTS, Fault::Length(u16::MAX)),
        (EXPORT, Fault::NullOutput),
        (EXPORT, Fault::Length(63)),
    ] {
        chip.fail([Rule::new(function, fault)]);
        let error = list(&chip.uri(0)).unwrap_err();
        assert!(
            matches!(&error, Error::Library { function: f, code: 0, .. } if *f == function),
            "{error}"
        );
    }
    // nothing of this has made a key
    chip.fail([]);
    assert_eq!(list_keys(&chip.uri(0), PATIENCE).unwrap().len(), 12);
    assert_eq!(generate_key(&chip.uri(0), PATIENCE).unwrap(), chip.uri(16));
}

#[test]
fn a_daemon_that_restarts_costs_one_retry() {
    let chip = Chip::new(Model::Hsm6);
    let hsm = chip.open();
    LOCKED.set(hsm.lock(b"a secret").unwrap());
    let calls: [Call; 6] = [
        sign_call,
        random_call,
        lock_call,
        unlock_call,
        info_call,
        health_call,
    ];
    for (n, call) in (1..).zip(calls) {
        chip.restart_daemon();
        call(&hsm).unwrap();
        let counters = hsm.counters();
        assert_eq!((counters.retries, counters.reopens), (n, n));
        assert_eq!(counters.transient_failures, n);
        assert!(matches!(hsm.state(), State::Ready));
    }
}

#[test]
fn a_daemon_that_is_down_is_waited_for() {
    let chip = Chip::new(Model::Zymkey4i);
    let hsm = chip.open();
    let mut faults = chip.device.faults().unwrap();
    faults.daemon.state = DaemonState::Down;
    faults.daemon.code = -111;
    chip.device.set_faults(&faults).unwrap();

    thread::scope(|scope| {
        let waiting = scope.spawn(|| sign(&hsm, b"m"));
        until("it fails", || hsm.counters().transient_failures >= 3);
        let State::Reopening {
            failures, cause, ..
        } = hsm.state()
        else {
            panic!("{:?}", hsm.state())
        };
        assert!(failures >= 3);
        assert_library("down", &cause, OPEN, -111, "ECONNREFUSED");
        faults.daemon.state = DaemonState::Up;
        faults.daemon.restarts += 1;
        chip.device.set_faults(&faults).unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert!(matches!(hsm.state(), State::Ready));
    assert_eq!((hsm.counters().retries, hsm.counters().reopens), (1, 1));
}

#[test]
fn a_daemon_that_stays_down_is_reported_within_the_deadline() {
    let chip = Chip::new(Model::Zymkey4i);
    chip.open();
    let hsm = Hsm::open(&chip.uri(0), patient(SHORT)).unwrap();
    let mut faults = chip.device.faults().unwrap();
    faults.daemon.state = DaemonState::Down;
    chip.device.set_faults(&faults).unwrap();

    let error = hsm.sign(b"m").unwrap_err();
    let Error::Unavailable { source, .. } = error else {
        panic!("{error}")
    };
    assert_library("down", &source, OPEN, -19, "ENODEV");

    faults.daemon.state = DaemonState::Up;
    chip.device.set_faults(&faults).unwrap();
    until("it works again", || hsm.sign(b"m").is_ok());
}

/// Each function hangs in turn, each on a chip of its own.
#[test]
fn a_call_that_hangs_is_given_up_and_nobody_is_opened_beside_it() {
    let calls = [
        (SIGN, Operation::Sign, sign_call as Call),
        (RANDOM, Operation::Random, random_call),
        (LOCK, Operation::Lock, lock_call),
        (UNLOCK, Operation::Unlock, unlock_call),
        (TEXTS[0], Operation::Info, info_call),
        (TEXTS[1], Operation::Info, info_call),
        (TEXTS[2], Operation::Info, info_call),
        (EXTRAS[0], Operation::Health, health_call),
        (EXTRAS[1], Operation::Health, health_call),
        (EXTRAS[2], Operation::Health, health_call),
        (TIME, Operation::Health, health_call),
        (PERIMETER, Operation::Health, health_call),
    ];
    thread::scope(|scope| {
        for (function, operation, call) in calls {
            scope.spawn(move || hang(function, operation, call));
        }
    });
}

fn hang(function: &'static str, operation: Operation, call: Call) {
    let chip = Chip::new(Model::Hsm6);
    // what takes long at first, on a busy machine, is behind it then
    LOCKED.set(chip.open().lock(b"a secret").unwrap());
    let hsm = Hsm::open(&chip.uri(0), patient(SHORT)).unwrap();
    let other = Hsm::open(&chip.uri(1), patient(SHORT)).unwrap();
    chip.fail([Rule::new(function, Fault::Hang)]);

    let error = call(&hsm).unwrap_err();
    assert!(
        matches!(error, Error::TimedOut { operation: o, after } if o == operation && after >= SHORT),
        "{function}: {error}"
    );
    // the caller's time began a moment before the call's own
    until(
        "it is wedged",
        || matches!(hsm.state(), State::Wedged { operation: o, .. } if o == operation),
    );
    let is_wedged = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Wedged { operation: o, elapsed } if o == operation && elapsed >= SHORT),
            "{function}: {error}"
        );
        assert_eq!(error.class(), Class::Transient);
    };
    for _ in 0..3 {
        is_wedged(hsm.sign(b"m").map(drop));
        is_wedged(other.sign(b"m").map(drop));
        let state = other.state();
        assert!(
            matches!(state, State::Wedged { operation: o, .. } if o == operation),
            "{function}: {state:?}"
        );
        is_wedged(Hsm::open(&chip.uri(2), patient(SHORT)).map(drop));
        is_wedged(list_keys(&chip.uri(0), SHORT).map(drop));
        is_wedged(generate_key(&chip.uri(0), SHORT).map(drop));
    }
    let counters = hsm.counters();
    assert_eq!((counters.timeouts, counters.reopens), (1, 0), "{function}");

    chip.fail([]);
    until("the hang ends", || matches!(hsm.state(), State::Ready));
    until("for the other, too", || {
        matches!(other.state(), State::Ready)
    });
    call(&hsm).unwrap();
    sign(&hsm, b"m").unwrap();
    let counters = hsm.counters();
    assert_eq!(counters.late_results, 1, "{function}");
    assert_eq!((counters.retries, counters.reopens), (0, 0), "{function}");
    // what it holds is as good as before
    sign(&other, b"m").unwrap();
    assert_eq!(other.counters().reopens, 0, "{function}");
    // it was never asked to
    assert_eq!(list_keys(&chip.uri(0), PATIENCE).unwrap().len(), 12);
}

#[test]
fn opening_listing_and_making_can_hang() {
    let open = |chip: &Chip| Hsm::open(&chip.uri(0), patient(SHORT)).map(drop);
    let list = |chip: &Chip| list_keys(&chip.uri(0), SHORT).map(drop);
    let make = |chip: &Chip| generate_key(&chip.uri(0), SHORT).map(drop);
    type Once = fn(&Chip) -> Result<(), Error>;
    let calls = [
        (OPEN, Operation::Open, open as Once),
        (EXPORT, Operation::Open, open),
        (TEXTS[0], Operation::Open, open),
        (OPEN, Operation::List, list),
        (SLOTS, Operation::List, list),
        (EXPORT, Operation::List, list),
        (OPEN, Operation::Generate, make),
        (GENERATE, Operation::Generate, make),
    ];
    thread::scope(|scope| {
        for (function, operation, call) in calls {
            scope.spawn(move || {
                let chip = Chip::new(Model::Hsm6);
                chip.fail([Rule::new(function, Fault::Hang)]);
                let error = call(&chip).unwrap_err();
                assert!(
                    matches!(error, Error::TimedOut { operation: o, .. } if o == operation),
                    "{function}: {error}"
                );
                for again in [open as Once, list, make] {
                    let error = again(&chip).unwrap_err();
                    assert!(matches!(error, Error::Wedged { .. }), "{function}: {error}");
                }
                chip.fail([]);
                sign(&chip.open(), b"m").unwrap();
            });
        }
    });
}

#[test]
fn opening_again_and_closing_can_hang() {
    for function in [OPEN, EXPORT, "zkClose"] {
        let chip = Chip::new(Model::Zymkey4i);
        chip.open();
        let hsm = Hsm::open(&chip.uri(0), patient(SHORT)).unwrap();
        chip.fail([
            Rule::new(SIGN, Fault::Code(-110)).count(1),
            Rule::new(function, Fault::Hang),
        ]);
        let operation = if function == "zkClose" {
            Operation::Close
        } else {
            Operation::Open
        };
        let error = hsm.sign(b"m").unwrap_err();
        assert!(
            matches!(error, Error::Wedged { operation: o, .. } if o == operation)
                || matches!(error, Error::Unavailable { .. } | Error::Busy { .. }),
            "{function}: {error}"
        );
        until(
            "it is wedged",
            || matches!(hsm.state(), State::Wedged { operation: o, .. } if o == operation),
        );
        let error = hsm.sign(b"m").unwrap_err();
        assert!(matches!(error, Error::Wedged { .. }), "{function}: {error}");
        let error = Hsm::open(&chip.uri(1), patient(SHORT)).unwrap_err();
        assert!(matches!(error, Error::Wedged { .. }), "{function}: {error}");

        chip.fail([]);
        until("it works again", || hsm.sign(b"m").is_ok());
        sign(&hsm, b"m").unwrap();
    }
}

/// Long enough for what doesn't hang, on a machine that is busy.
const SHORT: Duration = Duration::from_secs(2);
