//! Owner key files, the trust file and the texts of ids and times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use p256::ecdsa::SigningKey;
use p256::elliptic_curve::Generate;
use pkcs8::EncodePublicKey;
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
fn a_trust_file_that_breaks_a_rule_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.toml");
    let (trust, active) = trust();
    trust.write(&path).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let owner: RecipientId = *trust.owners.keys().next().unwrap();
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
