//! Key files, and what an `Hsm` does with one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Verifier;
use p256::pkcs8::DecodePrivateKey;
use proptest::prelude::*;
use signature::Keypair;
use tempfile::TempDir;
use zk_hsm::{
    BackendKind, Class, Error, Hsm, HsmUri, MAX_LOCK, MAX_RANDOM, Options, State, UriError,
    create_soft_key, generate_key, list_keys,
};

#[test]
fn a_new_key_is_in_a_file_of_mode_0600() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key with space.pem");

    let uri = create_soft_key(&path).unwrap();

    assert_eq!(uri, HsmUri::soft(&path).unwrap());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(
        names,
        std::slice::from_ref(&path),
        "nothing else is left there"
    );
    let key = SigningKey::from_pkcs8_pem(&fs::read_to_string(&path).unwrap()).unwrap();
    let hsm = open(&uri);
    assert_eq!(hsm.public_key(), key.verifying_key());
    assert_eq!(&hsm.verifying_key(), hsm.public_key());
    assert_eq!(hsm.uri(), &uri);

    let other = create_soft_key(dir.path().join("other.pem")).unwrap();
    assert_ne!(open(&other).public_key(), hsm.public_key());
}

#[test]
fn a_key_file_has_one_key_or_none() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key.pem");
    let uri = HsmUri::soft(&path).unwrap();
    assert!(list_keys(&uri, Duration::MAX).unwrap().is_empty());

    assert_eq!(generate_key(&uri, Duration::MAX).unwrap(), uri);
    let keys = list_keys(&uri, Duration::MAX).unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].uri, uri);
    assert_eq!(keys[0].public_key.as_ref(), Some(open(&uri).public_key()));

    // what can't be looked at isn't said to be empty
    let no_directory = HsmUri::soft(path.join("key.pem")).unwrap();
    let itself = dir.path().join("loop.pem");
    symlink(&itself, &itself).unwrap();
    for uri in [no_directory, HsmUri::soft(itself).unwrap()] {
        let error = list_keys(&uri, Duration::MAX).unwrap_err();
        assert!(matches!(error, Error::KeyFileIo { .. }), "{error}");
    }
}

#[test]
fn a_key_file_is_never_overwritten() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key.pem");
    create_soft_key(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let dangling = dir.path().join("link.pem");
    symlink("nowhere", &dangling).unwrap();

    for path in [&path, &dangling] {
        let error = create_soft_key(path).unwrap_err();
        assert!(
            matches!(&error, Error::KeyFileExists { path: p } if p == path),
            "{error}"
        );
    }

    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_key_that_cannot_be_written_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let error = create_soft_key(dir.path().join("missing/key.pem")).unwrap_err();
    assert!(
        matches!(
            error,
            Error::KeyFileIo {
                action: "create",
                ..
            }
        ),
        "{error}"
    );
    let error = create_soft_key(dir.path().join("key\n.pem")).unwrap_err();
    assert!(matches!(error, Error::Uri(UriError::SoftPath)), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_cure() {
    let (dir, uri, path) = key();
    for mode in [
        0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o660, 0o644, 0o777,
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Hsm::open(&uri, Options::default()).unwrap_err();
        assert_eq!(error.class(), Class::Fatal);
        let text = error.to_string();
        let Error::KeyFilePermissions {
            path: named,
            mode: seen,
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!((named, seen), (path.clone(), mode));
        assert!(text.contains(&format!("{mode:04o}")), "{text}");
        assert!(
            text.contains(&format!("chmod 600 {}", path.display())),
            "{text}"
        );
    }
    for mode in [0o600, 0o400, 0o700] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        open(&uri);
    }
    drop(dir);
}

#[test]
fn what_is_no_key_is_refused_with_the_way_out() {
    let (dir, _, good) = key();
    let good = fs::read_to_string(good).unwrap();
    let p384 = "-----BEGIN PRIVATE KEY-----\n\
        MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDAAAAAAAAAAAAAAAAAA\n\
        -----END PRIVATE KEY-----\n";
    for (content, hint) in [
        ("", "genpkey"),
        (
            "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
            "genpkey",
        ),
        (p384, "genpkey"),
        (&good[..good.len() / 2], "genpkey"),
        (&good.replace("PRIVATE", "PUBLIC"), "genpkey"),
        (&"x".repeat(1 << 20), "genpkey"),
        (
            &good.replace("BEGIN PRIVATE", "BEGIN EC PRIVATE"),
            "pkcs8 -topk8 -nocrypt",
        ),
        (
            &good.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE"),
            "encrypted",
        ),
    ] {
        let path = dir.path().join("bad.pem");
        write(&path, content.as_bytes());
        let error = Hsm::open(&HsmUri::soft(&path).unwrap(), Options::default()).unwrap_err();
        assert!(
            matches!(&error, Error::KeyFileFormat { path: p, .. } if *p == path),
            "{error}"
        );
        assert!(error.to_string().contains(hint), "{error}");
        assert!(
            !error.to_string().contains("MIG"),
            "no key material in {error}"
        );
    }
    write(&dir.path().join("bad.pem"), &[0xff; 100]);
    // nobody writes into it, and nobody waits for that
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo")
        .args(["-m", "600"])
        .arg(&pipe)
        .status();
    assert!(made.expect("this test needs coreutils").success());
    for path in [dir.path().join("bad.pem"), dir.path().to_owned(), pipe] {
        let error = Hsm::open(&HsmUri::soft(&path).unwrap(), Options::default()).unwrap_err();
        assert!(matches!(error, Error::KeyFileFormat { .. }), "{error}");
    }
    let missing = HsmUri::soft(dir.path().join("missing.pem")).unwrap();
    let error = Hsm::open(&missing, Options::default()).unwrap_err();
    let Error::KeyFileIo {
        action: "open",
        source,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn openssl_makes_a_key_that_opens() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key.pem");
    let made = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
        ])
        .arg(&path)
        .output()
        .expect("this test needs the openssl program: apt-get install openssl");
    assert!(made.status.success(), "{made:?}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let hsm = open(&HsmUri::soft(&path).unwrap());
    hsm.public_key()
        .verify(b"m", &hsm.sign(b"m").unwrap())
        .unwrap();
}

#[test]
fn signatures_verify_and_are_counted() {
    let (_dir, uri, _) = key();
    let hsm = open(&uri);
    for message in [&b""[..], b"m", &[0x5a; 100_000]] {
        hsm.public_key()
            .verify(message, &hsm.sign(message).unwrap())
            .unwrap();
    }
    let counters = hsm.counters();
    assert_eq!(counters.signatures, 3);
    assert_eq!(counters.sign_latency.count(), 3);
    assert!(counters.sign_latency.sum() > Duration::ZERO);
    assert!(matches!(hsm.state(), State::Ready));
}

#[test]
fn it_says_what_it_is() {
    let (_dir, uri, _) = key();
    let info = open(&uri).info().unwrap();
    assert_eq!(info.backend, BackendKind::Soft);
    assert!(info.development);
    assert_eq!((info.serial, info.firmware), (None, None));
}

#[test]
fn random_bytes_are_as_many_as_asked_for() {
    let (_dir, uri, _) = key();
    let hsm = open(&uri);
    for n in [1, 32, MAX_RANDOM] {
        assert_eq!(hsm.random(n).unwrap().len(), n);
    }
    assert_ne!(hsm.random(32).unwrap(), hsm.random(32).unwrap());
    for n in [0, MAX_RANDOM + 1] {
        let error = hsm.random(n).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Length {
                    min: 1,
                    max: MAX_RANDOM,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn what_was_locked_unlocks_and_nothing_else_does() {
    let (_dir, uri, _) = key();
    let (_other_dir, other, _) = key();
    let hsm = open(&uri);
    for len in [1, 15, 16, 17, MAX_LOCK] {
        let plain = vec![0xa5; len];
        let locked = hsm.lock(&plain).unwrap();
        assert_eq!(*hsm.unlock(&locked).unwrap(), plain);
        assert_ne!(
            hsm.lock(&plain).unwrap(),
            locked,
            "each has a nonce of its own"
        );
        assert!(
            !locked.windows(8).any(|window| window == [0xa5; 8]),
            "it is encrypted"
        );
        // the same key, opened again
        assert_eq!(*open(&uri).unlock(&locked).unwrap(), plain);
        let error = open(&other).unlock(&locked).unwrap_err();
        assert!(matches!(error, Error::UnlockRefused), "{error}");
        assert_eq!(error.class(), Class::Logic);
    }
    for len in [0, MAX_LOCK + 1] {
        assert!(matches!(hsm.lock(&vec![0; len]), Err(Error::Length { .. })));
    }
    for len in [0, 2 * MAX_LOCK] {
        assert!(matches!(
            hsm.unlock(&vec![0; len]),
            Err(Error::Length { .. })
        ));
    }
    assert!(
        matches!(hsm.state(), State::Ready),
        "refusals close nothing"
    );
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let (_dir, uri, _) = key();
    let hsm = open(&uri);
    let locked = hsm.lock(b"a secret of some length").unwrap();
    for bit in 0..8 * locked.len() {
        let mut changed = locked.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(
            matches!(hsm.unlock(&changed), Err(Error::UnlockRefused)),
            "bit {bit}"
        );
    }
    for len in 1..locked.len() {
        assert!(
            matches!(hsm.unlock(&locked[..len]), Err(Error::UnlockRefused)),
            "cut at {len}"
        );
    }
    let longer = [&locked[..], &[0]].concat();
    assert!(matches!(hsm.unlock(&longer), Err(Error::UnlockRefused)));
    assert_eq!(hsm.counters().logic_failures, (9 * locked.len()) as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lock_and_unlock_are_inverse(plain in prop::collection::vec(any::<u8>(), 1..2000)) {
        let (_dir, uri, _) = key();
        let hsm = open(&uri);
        let locked = hsm.lock(&plain).unwrap();
        prop_assert_eq!(&*hsm.unlock(&locked).unwrap(), &plain);
    }

    #[test]
    fn strange_data_does_not_unlock(locked in prop::collection::vec(any::<u8>(), 1..200)) {
        let (_dir, uri, _) = key();
        let hsm = open(&uri);
        for locked in [locked.clone(), [&b"ZKS1"[..], &locked].concat()] {
            prop_assert!(matches!(hsm.unlock(&locked), Err(Error::UnlockRefused)));
        }
    }
}

#[test]
fn nothing_secret_is_in_debug_output() {
    let (_dir, uri, path) = key();
    let hsm = open(&uri);
    let secret = SigningKey::from_pkcs8_pem(&fs::read_to_string(path).unwrap()).unwrap();
    let secret: String = secret
        .to_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let debug = format!("{hsm:?} {:?}", hsm.signing_key()).to_lowercase();
    assert!(debug.contains("soft:/"), "{debug}");
    assert!(!debug.contains(&secret[..16]), "{debug}");
}

fn key() -> (TempDir, HsmUri, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key.pem");
    let uri = create_soft_key(&path).unwrap();
    (dir, uri, path)
}

fn open(uri: &HsmUri) -> Hsm {
    Hsm::open(uri, Options::default()).unwrap()
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
