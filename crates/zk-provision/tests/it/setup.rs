//! The operator's directory with its authorities and its gateway: every step run
//! twice, interrupted, or given what it must refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use zk_provision::{Action, Error, Gateway, LocalSetup, Passphrase};
use zk_store::{Options, Store, StoreUri};

use crate::common::{actions, authorities, files, gateway, names, now, passphrase, years};

#[test]
fn short_passphrases_are_refused() {
    assert!(matches!(
        Passphrase::new("1234567".to_owned()),
        Err(Error::PassphraseTooShort { .. })
    ));
    // characters, not bytes
    assert!(Passphrase::new("äöüß".to_owned()).is_err());
    Passphrase::new("12345678".to_owned()).unwrap();
    assert_eq!(format!("{:?}", passphrase()), "Passphrase(..)");
}

#[test]
fn authorities_are_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let setup = LocalSetup::new(dir.path().join("a/b"));
    let steps = setup.init_authorities(&passphrase(), now()).unwrap();
    assert_eq!(actions(&steps), [Action::Created; 4]);
    let before = files(setup.dir());
    let steps = setup
        .init_authorities(&passphrase(), now() + years(1))
        .unwrap();
    assert_eq!(actions(&steps), [Action::Kept; 4]);
    assert_eq!(files(setup.dir()), before);
}

#[tokio::test]
async fn secrets_are_for_the_operator_alone() {
    let (_dir, setup) = gateway().await;
    let mode = |path: &str| {
        fs::metadata(setup.dir().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    for (path, expected) in [
        ("", 0o700),
        ("ca", 0o700),
        ("ca/device-ca.key.pem", 0o600),
        ("ca/gateway-ca.key.pem", 0o600),
        ("gateway", 0o700),
        ("gateway/gateway.key.pem", 0o600),
    ] {
        assert_eq!(mode(path), expected, "{path}: {:o}", mode(path));
    }
    // nothing but the gateway's own key is in clear, and nothing is left over
    let clear: Vec<_> = files(setup.dir())
        .into_iter()
        .filter(|(_, bytes)| bytes.windows(17).any(|part| part == b"BEGIN PRIVATE KEY"))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(clear, [Path::new("gateway/gateway.key.pem")]);
}

#[tokio::test]
async fn a_wrong_passphrase_opens_and_changes_nothing() {
    let (_dir, setup) = gateway().await;
    let before = files(setup.dir());
    let wrong = Passphrase::new("incorrect horse".to_owned()).unwrap();
    let refused = |result: Result<(), Error>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::WrongPassphrase { .. }), "{error}");
    };
    refused(setup.init_authorities(&wrong, now()).map(drop));
    refused(
        setup
            .init_gateway(&Gateway::default(), &wrong, now())
            .await
            .map(drop),
    );
    refused(setup.device_authority(&wrong).map(drop));
    assert_eq!(files(setup.dir()), before);
}

#[test]
fn an_authority_interrupted_after_its_key_is_completed_with_that_key() {
    let (_dir, setup) = authorities();
    let before = files(setup.dir());
    fs::remove_file(setup.dir().join("ca/device-ca.crt.pem")).unwrap();
    fs::remove_file(setup.dir().join("ca/gateway-ca.crt.pem")).unwrap();
    fs::remove_file(setup.dir().join("ca/gateway-ca.key.pem")).unwrap();
    let steps = setup.init_authorities(&passphrase(), now()).unwrap();
    let expected = [
        Action::Kept,
        Action::Created,
        Action::Created,
        Action::Created,
    ];
    assert_eq!(actions(&steps), expected);
    let after = files(setup.dir());
    let key = Path::new("ca/device-ca.key.pem");
    assert_eq!(after[key], before[key]);
    setup.device_authority(&passphrase()).unwrap();
}

/// A new key in its place would silently shut out every device.
#[test]
fn a_lost_or_swapped_authority_key_is_not_replaced() {
    let (_dir, setup) = authorities();
    let key = setup.dir().join("ca/device-ca.key.pem");
    fs::copy(setup.dir().join("ca/gateway-ca.key.pem"), &key).unwrap();
    let error = setup.init_authorities(&passphrase(), now()).unwrap_err();
    assert!(error.to_string().contains("not the key of"), "{error}");

    fs::remove_file(&key).unwrap();
    let error = setup.init_authorities(&passphrase(), now()).unwrap_err();
    assert!(
        error.to_string().contains("restore it from a backup"),
        "{error}"
    );
    assert!(!key.exists());
}

#[tokio::test]
async fn a_gateway_keeps_its_certificate_until_it_is_due_or_its_names_change() {
    let (_dir, setup) = gateway().await;
    let init = async |gateway: &Gateway, time| {
        setup
            .init_gateway(gateway, &passphrase(), time)
            .await
            .unwrap()
    };
    let first = init(&Gateway::default(), now()).await;
    assert_eq!(actions(&first.steps), [Action::Kept; 5]);
    assert_eq!(
        first.certificate.names(),
        names(&["gateway.example", "192.0.2.7", "2001:db8::7"])
    );

    // two thirds of two years, and an hour
    let due = now() + years(2) * 2 / 3 + Duration::from_secs(3600);
    let early = init(&Gateway::default(), due - Duration::from_secs(7200)).await;
    assert_eq!(early.certificate, first.certificate);
    let renewed = init(&Gateway::default(), due).await;
    assert_ne!(renewed.certificate, first.certificate);
    assert_eq!(renewed.certificate.names(), first.certificate.names());
    assert_eq!(renewed.certificate.key(), first.certificate.key());

    let other = Gateway {
        names: names(&["other.example"]),
        ..Gateway::default()
    };
    let renamed = init(&other, due).await;
    assert_eq!(renamed.certificate.names(), other.names);
    assert_eq!(init(&other, due).await.certificate, renamed.certificate);
}

#[tokio::test]
async fn a_gateway_needs_authorities_and_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let setup = LocalSetup::new(dir.path());
    let error = setup
        .init_gateway(&Gateway::default(), &passphrase(), now())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoAuthorities { .. }), "{error}");
    setup.init_authorities(&passphrase(), now()).unwrap();
    let error = setup
        .init_gateway(&Gateway::default(), &passphrase(), now())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoNames), "{error}");
    let error = setup.store().unwrap_err();
    assert!(matches!(error, Error::NoGateway { .. }), "{error}");
}

#[tokio::test]
async fn what_a_person_wrote_into_gateway_toml_stays() {
    let (_dir, setup) = gateway().await;
    let file = setup.dir().join("gateway/gateway.toml");
    let text = fs::read_to_string(&file).unwrap();
    let edited = text
        .replace("listen = \"0.0.0.0:8443\"", "listen = '[::]:443' # both")
        .replace(
            "certificate = \"gateway.crt.pem\"",
            "certificate = '/etc/ssl/public.pem'",
        )
        + "\n[limits]\nidle = \"5m\"\n";
    assert_ne!(edited, text);
    fs::write(&file, &edited).unwrap();
    let again = setup
        .init_gateway(&Gateway::default(), &passphrase(), now())
        .await
        .unwrap();
    assert_eq!(actions(&again.steps), [Action::Kept; 5]);
    assert_eq!(fs::read_to_string(&file).unwrap(), edited);

    // what is asked for is changed, and only that
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let other = Gateway {
        listen,
        ..Gateway::default()
    };
    setup
        .init_gateway(&other, &passphrase(), now())
        .await
        .unwrap();
    let changed = edited.replace("'[::]:443' # both", "\"127.0.0.1:0\" # both");
    assert_eq!(fs::read_to_string(&file).unwrap(), changed);
}

#[tokio::test]
async fn the_store_is_where_gateway_toml_says() {
    let (dir, setup) = gateway().await;
    let at_first = setup.dir().join("gateway/store.db");
    assert_eq!(setup.store().unwrap(), StoreUri::File(at_first));
    for (given, expected) in [
        (
            dir.path().join("other/store.db"),
            dir.path().join("other/store.db"),
        ),
        ("other.db".into(), setup.dir().join("gateway/other.db")),
    ] {
        let gateway = Gateway {
            store: Some(StoreUri::File(given)),
            ..Gateway::default()
        };
        setup
            .init_gateway(&gateway, &passphrase(), now())
            .await
            .unwrap();
        assert_eq!(setup.store().unwrap(), StoreUri::File(expected.clone()));
        Store::open(&StoreUri::File(expected), Options::default())
            .await
            .unwrap();
    }
}
