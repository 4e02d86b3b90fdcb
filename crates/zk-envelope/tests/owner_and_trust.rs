//! Owner key files, the trust file and the texts of ids and times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use pkcs8::der::asn1::OctetString;
use pkcs8::pkcs5::pbes2::{self, Salt, ScryptParams};
use pkcs8::{EncodePublicKey, EncryptedPrivateKeyInfo, SecretDocument};
use sha2::{Digest, Sha256};
use zk_envelope::{
    DeviceId, Error, KeyId, KeyState, OwnerKey, OwnerPublicKey, RecipientId, StreamId, Timestamp,
    TrustFile, TrustedDevice, TrustedKey,
};

#[test]
fn an_owner_key_file_opens_with_its_passphrase_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("owner.pem");
    let key = OwnerKey::generate().unwrap();
    key.write_new(&path, "correct horse").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
        "{text}"
    );

    assert_eq!(
        OwnerKey::read(&path, "correct horse").unwrap().id(),
        key.id()
    );
    assert!(matches!(
        OwnerKey::read(&path, "wrong"),
        Err(Error::Key { .. })
    ));
    assert!(matches!(
        key.write_new(&path, "again"),
        Err(Error::Io { .. })
    ));
    assert!(matches!(key.to_encrypted_pem(""), Err(Error::Key { .. })));

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = OwnerKey::read(&path, "correct horse")
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("mode 640") && refused.contains("chmod 600"),
        "{refused}"
    );

    let absent = OwnerKey::read(&dir.path().join("absent"), "x")
        .unwrap_err()
        .to_string();
    assert!(absent.contains("absent"), "{absent}");
    fs::write(&path, vec![b'x'; 20_000]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(
        OwnerKey::read(&path, "x"),
        Err(Error::TooLarge { .. })
    ));
}

/// The parameters stand in the file, and so are anybody's who can write it.
#[test]
fn a_key_file_of_absurd_cost_is_refused_before_it_is_paid() {
    let scrypt = |cost_parameter, block_size, parallelization| {
        pbes2::Kdf::Scrypt(ScryptParams {
            salt: Salt::new([7; 16]).unwrap(),
            cost_parameter,
            block_size,
            parallelization,
            key_length: None,
        })
    };
    let pbkdf2 = |rounds| {
        pbes2::Pbkdf2Params::hmac_sha256(rounds, &[7; 16])
            .unwrap()
            .into()
    };
    let key = |kdf| {
        let encryption = pbes2::EncryptionScheme::Aes256Cbc { iv: [7; 16] };
        let encrypted = EncryptedPrivateKeyInfo {
            encryption_algorithm: pbes2::Parameters { kdf, encryption }.into(),
            encrypted_data: OctetString::new(vec![7; 48]).unwrap(),
        };
        let der = SecretDocument::try_from(&encrypted).unwrap();
        let pem = der.to_pem("ENCRYPTED PRIVATE KEY", pkcs8::LineEnding::LF);
        OwnerKey::from_encrypted_pem(&pem.unwrap(), "x")
            .unwrap_err()
            .to_string()
    };
    for absurd in [
        scrypt(0, 8, 1),
        scrypt(3, 8, 1),
        scrypt(1 << 21, 8, 1),
        scrypt(1 << 63, 8, 1),
        scrypt(1 << 40, u16::MAX, u16::MAX),
        scrypt(1 << 14, 8, u16::MAX),
        pbkdf2(10_000_001),
        pbkdf2(100_000_000),
    ] {
        let said = format!("{absurd:?}");
        let refused = key(absurd);
        assert!(refused.contains("openssl pkcs8"), "{said}: {refused}");
    }
    // What cannot be computed at all, and what can and is the wrong key.
    for plain in [
        scrypt(2, 0, 1),
        scrypt(2, 1, 0),
        scrypt(16, 1, 1),
        pbkdf2(2048),
    ] {
        let said = format!("{plain:?}");
        let refused = key(plain);
        assert!(
            refused.contains("is the passphrase right"),
            "{said}: {refused}"
        );
    }
}

#[test]
fn ids_are_digests_of_the_public_key_as_der() {
    let key = SigningKey::generate();
    let der = key.verifying_key().to_public_key_der().unwrap();
    let digest: [u8; 32] = Sha256::digest(der.as_bytes()).into();
    assert_eq!(KeyId::of(key.verifying_key()), KeyId(digest));
    let pem = key
        .verifying_key()
        .to_public_key_pem(pkcs8::LineEnding::LF)
        .unwrap();
    let owner = OwnerPublicKey::from_pem(&pem).unwrap();
    assert_eq!(owner.id().0, digest[..8]);
    assert_eq!(owner.to_pem(), pem);
    assert!(matches!(
        OwnerPublicKey::from_pem("nothing"),
        Err(Error::Key { .. })
    ));
}

#[test]
fn ids_and_times_have_one_text_each() {
    let id = StreamId([0xab; 16]);
    assert_eq!(id.to_string().parse::<StreamId>().unwrap(), id);
    for text in [
        "",
        "ab",
        "ABABABABABABABABABABABABABABABAB",
        &"ab".repeat(17),
        &"zz".repeat(16),
    ] {
        assert!(text.parse::<StreamId>().is_err(), "{text}");
    }
    let uuid = "b0c1d2e3-f405-1627-3849-5a6b7c8d9eaf\n";
    assert_eq!(
        zk_envelope::BootId::from_uuid(uuid).unwrap().to_string(),
        "b0c1d2e3f405162738495a6b7c8d9eaf"
    );
    for name in ["pi-01", "A", "_", &"x".repeat(64)] {
        assert_eq!(DeviceId::try_from(name).unwrap().as_str(), name);
    }
    for name in ["", " ", "pi/01", "pi.01", "pï", &"x".repeat(65)] {
        assert!(DeviceId::try_from(name).is_err(), "{name}");
    }
    let times = [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400_001, "2000-02-29T00:00:00.001Z"),
        (1_795_432_844_123, "2026-11-23T11:20:44.123Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ];
    for (millis, text) in times {
        let time = Timestamp::from_millis(millis).unwrap();
        assert_eq!(time.to_string(), text);
        assert_eq!(text.parse::<Timestamp>().unwrap(), time);
    }
    assert_eq!(Timestamp::from_millis(253_402_300_800_000), None);
    for text in [
        "2026-11-23T11:20:44.123",
        "2026-11-23T11:20:44Z",
        "2026-11-23T11:20:44.1234Z",
        "2026-11-23 11:20:44.123Z",
        "2026-11-23T11:20:44.123+00:00",
        "2026-02-29T11:20:44.123Z",
        "2026-11-23T11:20:60.123Z",
        "1969-12-31T23:59:59.999Z",
        "+002026-11-23T11:20:44.123Z",
        "2026-11-23t11:20:44.123Z",
        "",
    ] {
        assert!(text.parse::<Timestamp>().is_err(), "{text}");
    }
}

fn trust() -> (TrustFile, KeyId) {
    let owner = OwnerKey::generate().unwrap();
    let keys: Vec<TrustedKey> = [
        KeyState::Revoked {
            at: "2026-11-23T11:20:44.123Z".parse().unwrap(),
        },
        KeyState::Retired,
        KeyState::Active,
    ]
    .into_iter()
    .map(|state| TrustedKey {
        key: *SigningKey::generate().verifying_key(),
        state,
    })
    .collect();
    let active = KeyId::of(&keys[2].key);
    let mut trust = TrustFile::default();
    trust.owners.insert(owner.id(), owner.public_key().clone());
    trust.devices.insert(
        DeviceId::try_from("pi-01").unwrap(),
        TrustedDevice {
            owners: BTreeSet::from([owner.id()]),
            keys,
        },
    );
    (trust, active)
}

#[test]
fn a_trust_file_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.toml");
    let (trust, active) = trust();
    trust.write(&path).unwrap();
    trust.write(&path).unwrap();
    let read = TrustFile::read(&path).unwrap();
    assert_eq!(read, trust);
    let device = DeviceId::try_from("pi-01").unwrap();
    assert_eq!(read.key(&device, active).unwrap().state, KeyState::Active);
    assert_eq!(read.key(&device, KeyId([0; 32])), None);
    assert_eq!(
        read.key(&DeviceId::try_from("pi-02").unwrap(), active),
        None
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn a_trust_file_that_others_may_write_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.toml");
    trust().0.write(&path).unwrap();
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = TrustFile::read(&path).unwrap_err().to_string();
        let said = [&format!("mode {mode:o}"), "chmod go-w", "trust.toml"];
        assert!(said.iter().all(|part| refused.contains(*part)), "{refused}");
    }
    // Everybody may read it: it holds no secret.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    TrustFile::read(&path).unwrap();
}

#[test]
fn a_trust_file_takes_nothing_from_what_was_left_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.toml");
    let (trust, _) = trust();
    let left = dir.path().join("trust.tmp");
    fs::write(&left, "half a file").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).unwrap();
    trust.write(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &left).unwrap();
    trust.write(&path).unwrap();
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
    assert_eq!(TrustFile::read(&path).unwrap(), trust);
}

#[test]
fn a_trust_file_that_breaks_a_rule_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.toml");
    let (trust, active) = trust();
    trust.write(&path).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let owner: RecipientId = *trust.owners.keys().next().unwrap();
    let last_key = &good[good.rfind("[[devices").unwrap()..];
    let revoked = "\"revoked\"\nrevoked_at = \"2026-11-23T11:20:44.123Z\"";
    let twice = format!("{last_key}\n{}", last_key.replace("\"active\"", revoked));
    let cases = [
        ("version = 1", "version = 2", "newer"),
        ("version = 1", "version = 1\nextra = 1", "line 5"),
        ("state = \"retired\"", "state = \"forgotten\"", "forgotten"),
        ("state = \"retired\"", "state = \"revoked\"", "revoked_at"),
        ("state = \"revoked\"", "state = \"active\"", "revoked_at"),
        (&active.to_string(), &"00".repeat(32), "id"),
        (
            &format!("owners = [\"{owner}\"]"),
            "owners = [\"0000000000000000\"]",
            "owners",
        ),
        (
            &format!("id = \"{owner}\""),
            "id = \"0000000000000000\"",
            "id",
        ),
        ("devices.pi-01", "devices.\"pi/01\"", "device id"),
        ("BEGIN PUBLIC KEY", "BEGIN PUBLIC LOCK", "PEM"),
        // The same key active and revoked.
        (last_key, &twice, "once"),
    ];
    for (from, to, says) in cases {
        assert!(good.contains(from), "{from} in {good}");
        fs::write(&path, good.replace(from, to)).unwrap();
        let refused = TrustFile::read(&path).unwrap_err().to_string();
        assert!(
            refused.contains("trust.toml") && refused.contains(says),
            "{from} -> {to}: {refused}"
        );
    }
}
