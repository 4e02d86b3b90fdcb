//! What goes wrong on command, while a context is open.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Chip, EINVAL, EIO, ENODEV, ENOENT, ETIMEDOUT, Room, room};
use p256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use p256::elliptic_curve::scalar::IsHigh;
use signature::hazmat::PrehashVerifier;
use zk_hsm_sim::{Daemon, DaemonState, Error, Fault, Faults, Latency, Model, Rule, Throttle};

const DIGEST: [u8; 32] = [7; 32];

fn opened() -> (Room, Chip) {
    let room = room(Model::Zymkey4i);
    let chip = room.chip();
    (room, chip)
}

fn strike(room: &Room, rule: Rule) {
    room.device.set_faults(&rule.into()).unwrap();
}

fn is_valid(key: &VerifyingKey, signature: &[u8]) -> bool {
    let signature = Signature::from_slice(signature).unwrap();
    key.verify_prehash(&DIGEST, &signature).is_ok()
}

#[test]
fn a_code_strikes_after_some_calls_and_as_many_as_it_says() {
    let (room, chip) = opened();
    let rule = Rule::new("sign", Fault::Code(ETIMEDOUT)).after(2).count(3);
    strike(&room, rule.clone());
    let codes = || -> Vec<_> {
        (0..7)
            .map(|_| chip.sign(&DIGEST, 0).err().unwrap_or(0))
            .collect()
    };
    let expected = [0, 0, -110, -110, -110, 0, 0];
    assert_eq!(codes(), expected);
    assert_eq!(codes(), [0; 7]);
    // Written anew it is counted anew, and another module's calls are its own.
    strike(&room, rule);
    assert_eq!(codes(), expected);
    // Both functions are counted together.
    strike(&room, Rule::new("sign", Fault::Code(EIO)).after(1).count(1));
    chip.sign_recoverable(&DIGEST, 0).unwrap();
    assert_eq!(chip.sign(&DIGEST, 0), Err(EIO));
    chip.sign(&DIGEST, 0).unwrap();
    // Without a count it is for good, until it is taken away.
    strike(&room, Rule::new("sign", Fault::Code(EIO)));
    assert_eq!(codes(), [EIO; 7]);
    room.device.clear_faults().unwrap();
    assert_eq!(codes(), [0; 7]);
}

#[test]
fn a_rule_strikes_what_it_names_and_nothing_else() {
    let (room, chip) = opened();
    let locked = chip.lock(b"x", false);
    let signature = chip.sign(&DIGEST, 0).unwrap();
    let calls: &[(&str, &dyn Fn() -> Option<i32>)] = &[
        ("open", &|| chip.module.open().err()),
        ("sign", &|| chip.sign(&DIGEST, 0).err()),
        ("verify", &|| chip.verify(&DIGEST, 0, &signature).err()),
        ("public-key", &|| chip.public_key(0).err()),
        ("slots", &|| chip.slots(false).err()),
        ("random", &|| chip.random(8).err()),
        ("lock", &|| chip.b2b("zkLockDataB2B", b"x", false).err()),
        ("unlock", &|| chip.unlock(&locked, false).err()),
        ("info", &|| chip.text("zkGetSerialNumberString").err()),
        ("binding", &|| chip.binding().err()),
        ("time", &|| chip.time(false).err()),
        ("led", &|| chip.plain("zkLEDOn").err()),
        ("perimeter", &|| chip.perimeter().err()),
        ("other", &|| chip.wait("zkWaitForTap", 0).err()),
        ("close", &|| chip.module.open().unwrap().close().err()),
    ];
    let struck = || -> Vec<_> {
        let struck = calls.iter().filter(|(_, call)| call() == Some(-4000));
        struck.map(|(group, _)| *group).collect()
    };
    assert!(struck().is_empty());
    for (group, _) in calls {
        if *group != "open" {
            strike(&room, Rule::new(*group, Fault::Code(-4000)));
            assert_eq!(struck(), [*group]);
        }
    }
    strike(&room, Rule::new("open", Fault::Code(-4000)).count(1));
    assert_eq!(struck(), ["open"]);
    strike(&room, Rule::new("zkGetTime", Fault::Code(-4000)));
    assert_eq!(struck(), ["time"]);
    strike(
        &room,
        Rule::new("any", Fault::Code(-4000)).count(calls.len() as u64 - 1),
    );
    assert_eq!(struck().len(), calls.len() - 1);
}

#[test]
fn of_several_rules_each_does_what_it_does() {
    let (room, chip) = opened();
    let rule = |on: &str, fault| Rule::new(on, fault);
    room.device
        .set_faults(&Faults {
            rules: vec![
                rule("random", Fault::Code(-7)),
                rule("sign", Fault::HighS),
                rule("any", Fault::Length(70)),
                rule("random", Fault::Code(-8)),
                rule("any", Fault::NullOutput).after(1),
            ],
            ..Faults::default()
        })
        .unwrap();
    let signature = chip.sign(&DIGEST, 0).unwrap();
    assert_eq!(signature.len(), 70);
    assert_eq!(chip.try_sign(&DIGEST, 0), Ok(None));
    // the first code
    assert_eq!(chip.random(8), Err(-7));
}

#[test]
fn s_is_high_or_low_as_told_and_the_signature_good() {
    let (room, chip) = opened();
    let key = chip.verifying_key(0);
    for (fault, high) in [(Fault::HighS, true), (Fault::LowS, false)] {
        strike(&room, Rule::new("sign", fault));
        for _ in 0..16 {
            let (signature, id) = chip.sign_recoverable(&DIGEST, 0).unwrap();
            let parsed = Signature::from_slice(&signature).unwrap();
            assert_eq!(bool::from(parsed.s().is_high()), high);
            assert!(is_valid(&key, &signature));
            let id = RecoveryId::from_byte(id).unwrap();
            let recovered = VerifyingKey::recover_from_prehash(&DIGEST, &parsed, id);
            assert_eq!(recovered.unwrap(), key);
        }
    }
}

#[test]
fn a_flipped_bit_is_in_r_or_in_s() {
    let (room, chip) = opened();
    let key = chip.verifying_key(0);
    for (fault, byte) in [(Fault::FlipR, 31), (Fault::FlipS, 63)] {
        strike(&room, Rule::new("sign", fault).count(1));
        let mut signature = chip.sign(&DIGEST, 0).unwrap();
        assert!(!is_valid(&key, &signature));
        assert_eq!(chip.verify(&DIGEST, 0, &signature), Ok(0));
        signature[byte] ^= 1;
        assert!(is_valid(&key, &signature));
        assert!(is_valid(&key, &chip.sign(&DIGEST, 0).unwrap()));
    }
}

#[test]
fn a_key_vanishes_or_is_another_one() {
    let (room, chip) = opened();
    let key = chip.verifying_key(0);
    strike(&room, Rule::new("any", Fault::KeyVanished));
    assert_eq!(chip.sign(&DIGEST, 0), Err(ENOENT));
    assert_eq!(chip.public_key(0), Err(ENOENT));
    assert_eq!(chip.verify(&DIGEST, 0, &[1; 64]), Err(ENOENT));
    assert_eq!(chip.sign(&DIGEST, 99), Err(EINVAL));

    strike(&room, Rule::new("any", Fault::KeyChanged));
    let other = chip.verifying_key(0);
    assert_ne!(other, key);
    assert_eq!(chip.verifying_key(0), other);
    assert_ne!(chip.verifying_key(1), other);
    let signature = chip.sign(&DIGEST, 0).unwrap();
    assert!(is_valid(&other, &signature));
    assert_eq!(chip.verify(&DIGEST, 0, &signature), Ok(1));
    // Only signing: the public key is what it was.
    strike(&room, Rule::new("sign", Fault::KeyChanged));
    assert_eq!(chip.verifying_key(0), key);
    assert!(!is_valid(&key, &chip.sign(&DIGEST, 0).unwrap()));

    room.device.clear_faults().unwrap();
    assert_eq!(chip.verifying_key(0), key);
    assert!(is_valid(&key, &chip.sign(&DIGEST, 0).unwrap()));
}

#[test]
fn outputs_are_null_or_of_another_length() {
    let room = room(Model::Hsm6);
    let chip = room.chip();
    let key = chip.public_key(0).unwrap();
    let locked = chip.lock(b"a passphrase", false);
    strike(&room, Rule::new("any", Fault::Length(63)));
    assert_eq!(chip.public_key(0).unwrap(), key[..63]);
    assert_eq!(chip.sign(&DIGEST, 0).unwrap().len(), 63);
    let unlocked = chip.unlock(&locked, false).unwrap().0.unwrap();
    assert_eq!(unlocked, [&b"a passphrase"[..], &[0; 51]].concat());
    assert_eq!(chip.slots(false).unwrap().1.len(), 63);
    assert_eq!(chip.random(8).unwrap().unwrap().len(), 8);
    strike(&room, Rule::new("any", Fault::Length(0)));
    assert!(chip.public_key(0).unwrap().is_empty());

    strike(&room, Rule::new("any", Fault::NullOutput));
    assert_eq!(chip.try_sign(&DIGEST, 0), Ok(None));
    assert_eq!(chip.random(8), Ok(None));
    assert_eq!(chip.text("zkGetSerialNumberString"), Ok(None));
    assert_eq!(chip.unlock(&locked, false), Ok((None, 1)));
}

/// Lower bounds only: how much longer it takes is the machine's affair.
#[test]
fn latency_and_throttling_take_their_time() {
    let (room, chip) = opened();
    let took = || {
        let start = Instant::now();
        chip.sign(&DIGEST, 0).unwrap();
        start.elapsed()
    };
    let fixed = Fault::Latency(Latency::Fixed(30));
    strike(&room, Rule::new("sign", fixed.clone()));
    assert!(took() >= Duration::from_millis(30));
    let uniform = Fault::Latency(Latency::Uniform {
        min: 20,
        max: 25,
        seed: 3,
    });
    strike(&room, Rule::new("sign", uniform));
    assert!(took() >= Duration::from_millis(20));
    let tiring = Fault::Throttle(Throttle {
        rested: 10,
        tired: 50,
        calls: 2,
        recovery: 3_600_000,
    });
    strike(&room, Rule::new("sign", tiring));
    for least in [10, 29, 49, 49] {
        assert!(took() >= Duration::from_millis(least));
    }
    // Two latencies add up, before an error too; and a chip does one thing at a
    // time.
    room.device
        .set_faults(&Faults {
            rules: vec![
                Rule::new("any", fixed.clone()),
                Rule::new("random", fixed),
                Rule::new("random", Fault::Code(EIO)),
            ],
            ..Faults::default()
        })
        .unwrap();
    let start = Instant::now();
    assert_eq!(chip.random(8), Err(EIO));
    assert!(start.elapsed() >= Duration::from_millis(60));
    let start = Instant::now();
    let threads = [(); 3].map(|()| thread::spawn(move || chip.sign(&DIGEST, 0).unwrap()));
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(90));
}

#[test]
fn a_hanging_call_goes_on_when_the_rule_is_gone() {
    let (room, chip) = opened();
    strike(&room, Rule::new("sign", Fault::Hang).after(1).count(1));
    chip.sign(&DIGEST, 0).unwrap();
    let (sender, receiver) = mpsc::channel();
    let hanging = thread::spawn(move || {
        sender.send(()).unwrap();
        let signature = chip.sign(&DIGEST, 0);
        sender.send(()).unwrap();
        signature
    });
    receiver.recv().unwrap();
    // Others aren't held up. Were the call not to hang, it would be over by the
    // time of the last of these.
    let other = chip.module.open().unwrap();
    for _ in 0..50 {
        other.public_key(0).unwrap();
    }
    assert!(receiver.try_recv().is_err());
    room.device.clear_faults().unwrap();
    receiver.recv().unwrap();
    let signature = hanging.join().unwrap().unwrap();
    assert!(is_valid(&chip.verifying_key(0), &signature));
}

#[test]
fn contexts_do_not_survive_the_daemon() {
    let (room, chip) = opened();
    let module = chip.module;
    let daemon = |restarts, state, code| Faults {
        daemon: Daemon {
            restarts,
            state,
            code,
        },
        ..Faults::default()
    };
    let set = |faults| room.device.set_faults(&faults).unwrap();
    set(daemon(1, DaemonState::Up, -104));
    for _ in 0..3 {
        assert_eq!(chip.sign(&DIGEST, 0), Err(-104));
        assert_eq!(chip.plain("zkLEDOn"), Err(-104));
    }
    let new = module.open().unwrap();
    new.sign(&DIGEST, 0).unwrap();
    assert_eq!(chip.sign(&DIGEST, 0), Err(-104));
    // Nothing else goes wrong, and the daemon isn't restarted by that.
    room.device.clear_faults().unwrap();
    assert_eq!(room.device.faults().unwrap().daemon.restarts, 1);
    new.sign(&DIGEST, 0).unwrap();
    assert_eq!(chip.sign(&DIGEST, 0), Err(ENODEV));
    assert_eq!(chip.close(), Ok(0));

    set(daemon(1, DaemonState::Down, -111));
    assert_eq!(new.sign(&DIGEST, 0), Err(-111));
    assert_eq!(module.open().err(), Some(-111));
    set(daemon(2, DaemonState::Up, -111));
    assert_eq!(new.sign(&DIGEST, 0), Err(-111));
    let third = module.open().unwrap();
    third.sign(&DIGEST, 0).unwrap();

    set(daemon(2, DaemonState::Stuck, -111));
    let calls = [
        thread::spawn(move || module.open().map(|_| ())),
        thread::spawn(move || third.sign(&DIGEST, 0).map(|_| ())),
    ];
    // Closing isn't the daemon's affair.
    assert_eq!(new.close(), Ok(0));
    assert!(calls.iter().all(|call| !call.is_finished()));
    set(daemon(2, DaemonState::Up, -111));
    for call in calls {
        assert_eq!(call.join().unwrap(), Ok(()));
    }
}

#[test]
fn a_file_that_cannot_be_followed_is_no_file_without_faults() {
    let (room, chip) = opened();
    let path = room.dir.path().join("device/faults.toml");
    for text in [
        "[[rule]]\non = \"sign\"\nfault = { code =",
        "[[rule]]\non = \"sing\"\nfault = \"hang\"",
        "[[rule]]\non = \"sign\"\nfault = \"explode\"",
        "[[rule]]\non = \"sign\"\nfault = { code = 5 }",
        "[[rule]]\non = \"sign\"\nfault = { code = 0 }",
        "[[rule]]\non = \"sign\"\nfault = { code = -5000 }",
        "[[rule]]\non = \"sign\"",
        "[[rule]]\non = \"sign\"\nfault = \"hang\"\nslot = 1",
        "[daemon]\nrestarts = -1",
        "[daemon]\ncode = 1",
        "[daemon]\nstate = \"gone\"",
        "surprise = true",
        "\u{0}",
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(chip.sign(&DIGEST, 0), Err(EIO), "{text}");
        assert_eq!(chip.module.open().err(), Some(EIO), "{text}");
        assert!(text.parse::<Faults>().is_err(), "{text}");
        assert!(room.device.faults().is_err(), "{text}");
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(chip.sign(&DIGEST, 0), Err(EIO));
    fs::write(&path, "# nothing\n".repeat(10_000)).unwrap();
    assert_eq!(chip.sign(&DIGEST, 0), Err(EIO), "too long");
    fs::remove_file(&path).unwrap();
    chip.sign(&DIGEST, 0).unwrap();
}

#[test]
fn a_file_is_read_anew_though_its_time_is_the_same() {
    let (room, chip) = opened();
    let path = room.dir.path().join("device/faults.toml");
    strike(&room, Rule::new("sign", Fault::Code(EIO)));
    assert_eq!(chip.sign(&DIGEST, 0), Err(EIO));
    let text = fs::read_to_string(&path).unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    // in place, and as long as it was
    fs::write(&path, text.replace("-5", "-7")).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(time).unwrap();
    assert_eq!(chip.sign(&DIGEST, 0), Err(-7));
}

#[test]
fn faults_survive_the_file_and_bad_ones_are_not_written() {
    let room = room(Model::Zymkey4i);
    let all = [
        Fault::Code(-5),
        Fault::FlipR,
        Fault::FlipS,
        Fault::Hang,
        Fault::HighS,
        Fault::KeyChanged,
        Fault::KeyVanished,
        Fault::Latency(Latency::Fixed(1)),
        Fault::Latency(Latency::Normal {
            mean: 80,
            deviation: 5,
            seed: 1,
        }),
        Fault::Latency(Latency::Uniform {
            min: 1,
            max: 2,
            seed: u64::from(u32::MAX),
        }),
        Fault::Length(3),
        Fault::LowS,
        Fault::NullOutput,
        Fault::Throttle(Throttle::default()),
    ];
    let faults = Faults {
        daemon: Daemon {
            restarts: 3,
            code: -5,
            state: DaemonState::Stuck,
        },
        rules: all
            .map(|fault| Rule::new("sign", fault).after(1).count(2))
            .to_vec(),
    };
    room.device.set_faults(&faults).unwrap();
    assert_eq!(room.device.faults().unwrap(), faults);
    for rule in [
        Rule::new("sing", Fault::Hang),
        Rule::new("sign", Fault::Code(0)),
    ] {
        let error = room.device.set_faults(&rule.into()).unwrap_err();
        assert!(matches!(error, Error::Syntax { .. }), "{error}");
    }
    assert_eq!(room.device.faults().unwrap(), faults);
}
