//! The backend `zymkey`, on simulated chips that are in order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use zk_hsm::{
    BackendKind, Class, Error, Hsm, HsmUri, MAX_LOCK, MAX_RANDOM, State, generate_key, list_keys,
};
use zk_hsm_sim::{Model, Settings, Unlock};

use crate::chip::{Chip, PATIENCE, options, sign, uri};

#[path = "support/chip.rs"]
#[allow(dead_code)]
mod chip;

const MODELS: [Model; 3] = [Model::Zymkey4i, Model::Hsm4, Model::Hsm6];

#[test]
fn every_model_signs_with_the_key_of_the_slot() {
    for model in MODELS {
        let chip = Chip::new(model);
        let keys: Vec<_> = (0..3)
            .map(|slot| {
                let hsm = Hsm::open(&chip.uri(slot), options()).unwrap();
                assert_eq!(hsm.uri(), &chip.uri(slot));
                sign(&hsm, b"21.4 degrees").unwrap();
                sign(&hsm, b"").unwrap();
                sign(&hsm, &[7; 100_000]).unwrap();
                assert_eq!(hsm.counters().signatures, 3);
                assert_eq!(hsm.counters().retries, 0);
                *hsm.public_key()
            })
            .collect();
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        // and the same again
        assert_eq!(chip.open().public_key(), &keys[0]);
    }
}

#[test]
fn every_model_gives_random_bytes_and_locks() {
    for model in MODELS {
        let chip = Chip::new(model);
        let hsm = chip.open();
        for n in [1, 32, 33, MAX_RANDOM] {
            assert_eq!(hsm.random(n).unwrap().len(), n);
        }
        assert_ne!(hsm.random(32).unwrap(), hsm.random(32).unwrap());

        for len in [1, 4, 512, MAX_LOCK] {
            let secret: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let locked = hsm.lock(&secret).unwrap();
            assert_ne!(locked, hsm.lock(&secret).unwrap());
            assert_eq!(*hsm.unlock(&locked).unwrap(), secret);
            // by whoever opens it, and with whatever slot
            let other = Hsm::open(&chip.uri(2), options()).unwrap();
            assert_eq!(*other.unlock(&locked).unwrap(), secret);
        }
        assert!(matches!(hsm.lock(b""), Err(Error::Length { .. })));
        assert!(matches!(hsm.random(0), Err(Error::Length { .. })));
    }
}

#[test]
fn what_was_changed_is_not_unlocked() {
    let chip = Chip::new(Model::Zymkey4i);
    let hsm = chip.open();
    let locked = hsm.lock(b"a secret").unwrap();
    for bit in 0..8 * locked.len() {
        let mut changed = locked.clone();
        changed[bit / 8] ^= 0x80 >> (bit % 8);
        let error = hsm.unlock(&changed).unwrap_err();
        assert!(matches!(error, Error::UnlockRefused), "bit {bit}: {error}");
    }
    for len in 1..locked.len() {
        let error = hsm.unlock(&locked[..len]).unwrap_err();
        assert!(matches!(error, Error::UnlockRefused), "{len}: {error}");
    }
    assert_eq!(*hsm.unlock(&locked).unwrap(), b"a secret");
    let counters = hsm.counters();
    assert_eq!(counters.transient_failures, 0);
    assert_eq!(
        counters.logic_failures,
        (9 * locked.len() - 1).try_into().unwrap()
    );
}

#[test]
fn devices_in_one_process_are_apart() {
    let [a, b] = [Chip::new(Model::Zymkey4i), Chip::new(Model::Hsm6)];
    let [a, b] = [a.open(), b.open()];
    assert_ne!(a.public_key(), b.public_key());
    assert_ne!(a.info().unwrap().serial, b.info().unwrap().serial);
    let locked = a.lock(b"for a alone").unwrap();
    let error = b.unlock(&locked).unwrap_err();
    assert!(matches!(error, Error::UnlockRefused), "{error}");
    assert_eq!(*a.unlock(&locked).unwrap(), b"for a alone");
    sign(&a, b"m").unwrap();
    sign(&b, b"m").unwrap();
}

/// The vendor's header says that unlocking returns 0 for success, its Python
/// client that this is a failure. By the header nothing is unlocked.
#[test]
fn a_library_that_speaks_as_the_header_says_unlocks_nothing() {
    let mut settings = Settings::from(Model::Zymkey4i);
    settings.unlock = Unlock::Header;
    let chip = Chip::new(settings);
    let hsm = chip.open();

    for _ in 0..2 {
        let errors = [
            hsm.lock(b"a secret").unwrap_err(),
            hsm.unlock(&[1; 100]).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.class(), Class::Logic);
            assert!(matches!(error, Error::UnlockUntrusted { .. }), "{error}");
            assert!(error.to_string().contains("didn't give back"), "{error}");
        }
    }

    sign(&hsm, b"m").unwrap();
    assert!(matches!(hsm.state(), State::Ready));
    let counters = hsm.counters();
    assert_eq!((counters.logic_failures, counters.reopens), (4, 0));
}

#[test]
fn every_model_says_what_it_is() {
    for (model, name) in MODELS.into_iter().zip(["Zymkey 4i", "HSM4", "HSM6"]) {
        let mut settings = Settings::from(model);
        settings.serial = Some("00aa".to_owned());
        let info = Chip::new(settings).open().info().unwrap();
        assert_eq!(info.backend, BackendKind::Zymkey);
        assert!(info.development, "it is a simulator");
        let model = info.model.unwrap();
        assert!(model.starts_with(name), "{model}");
        assert_eq!(info.serial.unwrap(), "SIMULATOR-00aa");
        assert!(info.firmware.unwrap().starts_with("SIMULATOR-"));
    }
}

#[test]
fn every_model_says_how_it_is() {
    for model in MODELS {
        let chip = Chip::new(model);
        let hsm = chip.open();
        let health = hsm.health().unwrap();
        let binding = health
            .binding
            .map(|binding| (binding.locked, binding.bound));
        assert_eq!(binding, (model != Model::Zymkey4i).then_some((false, true)));
        let large = model == Model::Hsm6;
        assert_eq!(health.battery_volts.is_some(), large);
        assert_eq!(health.cpu_celsius.is_some(), large);
        let time = health.time.unwrap();
        let age = SystemTime::now().duration_since(time).unwrap();
        assert!(age < PATIENCE);
        assert_eq!(health.perimeter, Some(vec![None, None]));

        chip.device.breach(1, 1_700_000_000).unwrap();

        let breached = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let perimeter = hsm.health().unwrap().perimeter;
        assert_eq!(perimeter, Some(vec![None, Some(breached)]));
    }
}

#[test]
fn keys_are_listed_and_made() {
    for (model, keys) in [(Model::Zymkey4i, 3), (Model::Hsm4, 3), (Model::Hsm6, 12)] {
        let chip = Chip::new(model);
        // which slot the URI has doesn't matter
        let any = chip.uri(600);
        let listed = |uri: &HsmUri| -> Vec<_> {
            let keys = list_keys(uri, PATIENCE).unwrap();
            keys.into_iter()
                .map(|key| (key.uri, key.public_key.unwrap()))
                .collect()
        };
        let before = listed(&any);
        assert_eq!(before.len(), keys);
        for (slot, (uri, key)) in (0..).zip(&before) {
            assert_eq!(uri, &chip.uri(slot));
            assert_eq!(Hsm::open(uri, options()).unwrap().public_key(), key);
        }

        let made = generate_key(&any, PATIENCE);
        if model == Model::Hsm6 {
            assert_eq!(made.unwrap(), chip.uri(16));
            let after = listed(&any);
            let (new, old) = after.split_last().unwrap();
            assert_eq!(old, before);
            let hsm = Hsm::open(&chip.uri(16), options()).unwrap();
            assert_eq!(new, &(chip.uri(16), *hsm.public_key()));
            sign(&hsm, b"m").unwrap();
        } else {
            let error = made.unwrap_err();
            let Error::Unsupported { what, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(what, "generate keys");
            assert_eq!(listed(&any), before);
        }
    }
}

#[test]
fn a_slot_without_a_key_is_told_from_a_chip_that_fails() {
    for (model, empty) in [
        (Model::Zymkey4i, [3, 16, 655]),
        (Model::Hsm6, [12, 16, 655]),
    ] {
        let chip = Chip::new(model);
        for slot in empty {
            let uri = chip.uri(slot);
            let error = Hsm::open(&uri, options()).unwrap_err();
            let Error::KeyMissing { hsm } = &error else {
                panic!("{error}")
            };
            assert_eq!(**hsm, *uri.to_string());
            assert_eq!(error.class(), Class::Fatal);
        }
    }
}

/// Handles of one chip, through whatever path, and threads of each.
#[test]
fn many_handles_and_threads_share_a_chip() {
    let chip = Chip::new(Model::Hsm6);
    let links = TempDir::new().unwrap();
    let link = links.path().join("link.so");
    symlink(chip.device.module_path(), &link).unwrap();
    let handles =
        [chip.uri(0), chip.uri(1), uri(&link, 2)].map(|uri| Hsm::open(&uri, options()).unwrap());

    thread::scope(|scope| {
        for hsm in handles.iter().chain(&handles) {
            scope.spawn(move || {
                for i in 0..20_u8 {
                    sign(hsm, &[i]).unwrap();
                    assert_eq!(hsm.random(20).unwrap().len(), 20);
                    let locked = hsm.lock(&[i]).unwrap();
                    assert_eq!(*hsm.unlock(&locked).unwrap(), [i]);
                }
            });
        }
    });

    for hsm in &handles {
        let counters = hsm.counters();
        assert_eq!(counters.signatures, 40);
        assert_eq!(counters.transient_failures + counters.logic_failures, 0);
    }
}

#[test]
fn nothing_secret_is_in_debug_output_or_errors() {
    let chip = Chip::new(Model::Zymkey4i);
    let hsm = chip.open();
    let locked = hsm.lock(b"the secret").unwrap();
    let mut changed = locked.clone();
    changed[20] ^= 1;
    let error = hsm.unlock(&changed).unwrap_err();
    for text in [
        format!("{hsm:?}"),
        format!("{error:?} {error}"),
        format!("{:?} {:?}", hsm.state(), hsm.counters()),
    ] {
        assert!(
            !text.contains("the secret") && !text.contains("[116, 104"),
            "{text}"
        );
    }
    let debug = format!("{hsm:?}");
    assert!(debug.contains(&chip.uri(0).to_string()), "{debug}");
}
