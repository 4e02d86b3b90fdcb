//! Devices from their request to their revocation: every step run twice,
//! interrupted, or given what it must refuse.

use std::fs;
use std::time::SystemTime;

use p256::ecdsa::SigningKey;
use tempfile::TempDir;
use zk_envelope::{KeyId, KeyState, OwnerKey, OwnerPublicKey, Timestamp, TrustFile};
use zk_provision::{Action, AddedDevice, Device, Error, Item, LocalSetup, RevokedDevice, Standing};
use zk_store::{Options, Store};

use crate::common::{actions, files, gateway, id, key, now, passphrase, request, years};

#[tokio::test]
async fn an_added_device_has_all_it_needs() {
    let world = World::new().await;
    let key = key();
    let owner = owner();
    let added = world.add("pi-01", &key, &[&owner]).await.unwrap();
    assert_eq!(actions(&added.steps), [Action::Created; 6]);
    assert_eq!(added.device, id("pi-01"));
    assert_eq!(added.key, KeyId::of(key.verifying_key()));
    assert_eq!(added.certificate.key(), key.verifying_key());

    let record = world
        .store
        .device(&added.certificate.principal())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.device, id("pi-01"));
    assert_eq!(record.certificate, KeyState::Active);
    assert_eq!(record.registered_at, Timestamp::from(now()));
    let trust = world.trust();
    let trusted = &trust.devices[&id("pi-01")];
    assert_eq!(record.keys, trusted.keys);
    assert_eq!(trusted.keys.len(), 1);
    assert_eq!(trusted.keys[0].key, *key.verifying_key());
    assert_eq!(trusted.keys[0].state, KeyState::Active);
    assert_eq!(trusted.owners, [owner.id()].into());
    assert_eq!(trust.owners, [(owner.id(), owner.clone())].into());

    // every file that agent.toml names is there, and is what it should be
    let text = fs::read_to_string(added.dir.join("agent.toml")).unwrap();
    let agent: toml_edit::DocumentMut = text.parse().unwrap();
    let value = |table: &str, key: &str| agent[table][key].as_str().unwrap().to_owned();
    assert_eq!(value("device", "id"), "pi-01");
    assert_eq!(value("device", "hsm"), "zymkey:slot=0");
    assert_eq!(value("target", "endpoint"), "gateway.example:8443");
    let read = |file: &str| fs::read_to_string(added.dir.join(file)).unwrap();
    assert_eq!(
        read(&value("device", "certificate")),
        added.certificate.pem()
    );
    let roots = fs::read_to_string(world.setup.dir().join("ca/gateway-ca.crt.pem")).unwrap();
    assert_eq!(read(&value("target", "roots")), roots);
    let [file] = &agent["owners"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .collect::<Vec<_>>()[..]
    else {
        panic!("{text}");
    };
    assert_eq!(
        OwnerPublicKey::from_pem(&read(file.as_str().unwrap())).unwrap(),
        owner
    );
}

#[tokio::test]
async fn adding_a_device_again_changes_nothing() {
    let world = World::new().await;
    let key = key();
    let first = world.add("pi-01", &key, &[&owner()]).await.unwrap();
    let before = files(world.setup.dir());
    // another request with the same key, a year later
    let again = world
        .add_at("pi-01", &key, &[], now() + years(1))
        .await
        .unwrap();
    assert_eq!(actions(&again.steps), [Action::Kept; 6]);
    assert_eq!(again.certificate, first.certificate);
    assert_eq!(files(world.setup.dir()), before);
    assert_eq!(world.store.devices().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_device_certificate_is_renewed_when_it_is_due() {
    let world = World::new().await;
    let key = key();
    let first = world.add("pi-01", &key, &[&owner()]).await.unwrap();
    let second = world
        .add_at("pi-01", &key, &[], now() + years(7))
        .await
        .unwrap();
    assert_ne!(first.certificate, second.certificate);
    // until the device has the new one it uses the old one
    for added in [&first, &second] {
        let record = world
            .store
            .device(&added.certificate.principal())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(record.certificate, KeyState::Active);
    }
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Active);
    assert_eq!(listed[0].certificates.len(), 2);
}

#[tokio::test]
async fn an_interrupted_add_is_completed() {
    let world = World::new().await;
    let key = key();
    world.store.delete_tables().await.unwrap();
    let error = world.add("pi-01", &key, &[&owner()]).await.unwrap_err();
    assert!(matches!(error, Error::Store(_)), "{error}");
    Store::create(&world.setup.store().unwrap(), Options::default())
        .await
        .unwrap();
    let first = world.add("pi-01", &key, &[&owner()]).await.unwrap();

    // as if it had stopped before the record, before the trust file, before agent.toml
    world
        .store
        .remove_device(&first.certificate.principal())
        .await
        .unwrap();
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Incomplete);
    for lost in [
        "trust.toml",
        "devices/pi-01/agent.toml",
        "devices/pi-01/gateway-ca.crt.pem",
    ] {
        fs::remove_file(world.setup.dir().join(lost)).unwrap();
    }
    let second = world.add("pi-01", &key, &[&owner()]).await.unwrap();
    assert_eq!(second.certificate, first.certificate);
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Active);
}

#[tokio::test]
async fn a_key_belongs_to_one_device() {
    let world = World::new().await;
    let key = key();
    let first = world.add("pi-01", &key, &[&owner()]).await.unwrap();
    let before = files(world.setup.dir());
    let refused = async || {
        let error = world.add("pi-02", &key, &[&owner()]).await.unwrap_err();
        assert!(
            matches!(&error, Error::KeyInUse { owner, .. } if *owner == id("pi-01")),
            "{error}"
        );
    };
    refused().await;
    assert_eq!(files(world.setup.dir()), before);
    // nor does it help if either side forgets
    let record = world
        .store
        .device(&first.certificate.principal())
        .await
        .unwrap()
        .unwrap();
    world
        .store
        .remove_device(&first.certificate.principal())
        .await
        .unwrap();
    refused().await;
    world
        .store
        .register(&first.certificate.principal(), &record)
        .await
        .unwrap();
    fs::remove_file(world.setup.trust_file()).unwrap();
    refused().await;
}

#[tokio::test]
async fn a_device_keeps_its_key() {
    let world = World::new().await;
    let first = world.add("pi-01", &key(), &[&owner()]).await.unwrap();
    let before = files(world.setup.dir());
    let other = key();
    let error = world.add("pi-01", &other, &[]).await.unwrap_err();
    let Error::KeyChanged {
        registered,
        requested,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(registered, first.key);
    assert_eq!(requested, KeyId::of(other.verifying_key()));
    assert_eq!(files(world.setup.dir()), before);
}

#[tokio::test]
async fn owners_are_named_once_and_can_be_changed() {
    let world = World::new().await;
    let (one, two) = (key(), key());
    let error = world.add("pi-01", &one, &[]).await.unwrap_err();
    assert!(matches!(error, Error::NoOwners), "{error}");
    let (alice, bob) = (owner(), owner());
    world.add("pi-01", &one, &[&alice]).await.unwrap();
    // a further device has the owners there are
    world.add("pi-02", &two, &[]).await.unwrap();
    assert_eq!(
        world.trust().devices[&id("pi-02")].owners,
        [alice.id()].into()
    );

    let changed = world.add("pi-02", &two, &[&alice, &bob]).await.unwrap();
    assert_eq!(
        world.trust().devices[&id("pi-02")].owners,
        [alice.id(), bob.id()].into()
    );
    assert_eq!(
        world.trust().devices[&id("pi-01")].owners,
        [alice.id()].into()
    );
    let text = fs::read_to_string(changed.dir.join("agent.toml")).unwrap();
    for owner in [alice, bob] {
        assert!(
            text.contains(&format!("owner-{}.pub.pem", owner.id())),
            "{text}"
        );
    }
    let many: Vec<_> = (0..9).map(|_| owner()).collect();
    let error = world
        .add("pi-02", &two, &many.iter().collect::<Vec<_>>())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::TooManyOwners { count: 9, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_a_person_wrote_into_agent_toml_stays() {
    let world = World::new().await;
    let key = key();
    let added = world.add("pi-01", &key, &[&owner()]).await.unwrap();
    let file = added.dir.join("agent.toml");
    let text = fs::read_to_string(&file).unwrap();
    let edited = text
        .replace("interval = \"10s\"", "interval = \"1m\" # calm")
        .replace(
            "certificate = \"device.crt.pem\"",
            "certificate = \"/etc/zk/device.pem\"",
        )
        .replace("\"gateway.example:8443\"", "\"gateway.example:443\"")
        .replace("\"zymkey:slot=0\"\n", "\"zymkey:slot=3\"\n");
    fs::write(&file, &edited).unwrap();
    world.add("pi-01", &key, &[]).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), edited);

    let device = Device {
        request: request("pi-01", &key),
        hsm: Some("soft:/tmp/key.pem".into()),
        endpoint: Some("192.0.2.9:8443".into()),
        owners: vec![],
    };
    world
        .setup
        .add_device(&device, &passphrase(), &world.store, now())
        .await
        .unwrap();
    let expected = edited
        .replace("\"gateway.example:443\"", "\"192.0.2.9:8443\"")
        .replace("\"zymkey:slot=3\"\n", "\"soft:/tmp/key.pem\"\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
}

#[tokio::test]
async fn a_revoked_device_is_out_on_both_sides() {
    let world = World::new().await;
    let key = key();
    let added = world.add("pi-01", &key, &[&owner()]).await.unwrap();
    world.add("pi-02", &self::key(), &[]).await.unwrap();
    let at = Timestamp::from(now() + years(1));
    let revoked = world.revoke("pi-01", now() + years(1)).await.unwrap();
    assert_eq!(actions(&revoked.steps), [Action::Changed; 2]);
    assert_eq!(
        revoked.steps[1].item,
        Item::Record(added.certificate.principal())
    );

    let state = KeyState::Revoked { at };
    assert_eq!(world.trust().devices[&id("pi-01")].keys[0].state, state);
    let record = world
        .store
        .device(&added.certificate.principal())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.certificate, state);
    assert_eq!(record.keys[0].state, state);

    // a second time: the first instant stays
    let again = world.revoke("pi-01", now() + years(2)).await.unwrap();
    assert_eq!(actions(&again.steps), [Action::Kept; 2]);
    assert_eq!(world.trust().devices[&id("pi-01")].keys[0].state, state);

    let listed = world.setup.devices(&world.store).await.unwrap();
    let standings: Vec<_> = listed
        .iter()
        .map(|entry| (entry.device.as_str(), entry.standing))
        .collect();
    assert_eq!(
        standings,
        [("pi-01", Standing::Revoked), ("pi-02", Standing::Active)]
    );

    // its key never comes back, even if a backup of either side forgets
    let refused = async || {
        let error = world.add("pi-01", &key, &[&owner()]).await.unwrap_err();
        assert!(matches!(error, Error::KeyRevoked { .. }), "{error}");
    };
    refused().await;
    let remembered = fs::read(world.setup.trust_file()).unwrap();
    fs::remove_file(world.setup.trust_file()).unwrap();
    refused().await;
    fs::write(world.setup.trust_file(), remembered).unwrap();
    world
        .store
        .remove_device(&added.certificate.principal())
        .await
        .unwrap();
    refused().await;
}

#[tokio::test]
async fn an_interrupted_revocation_is_completed_with_its_first_instant() {
    let world = World::new().await;
    let added = world.add("pi-01", &key(), &[&owner()]).await.unwrap();
    let mut trust = world.trust();
    let at = Timestamp::from(now() + years(1));
    trust.devices.get_mut(&id("pi-01")).unwrap().keys[0].state = KeyState::Revoked { at };
    trust.write(&world.setup.trust_file()).unwrap();
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Incomplete);

    let revoked = world.revoke("pi-01", now() + years(2)).await.unwrap();
    assert_eq!(actions(&revoked.steps), [Action::Kept, Action::Changed]);
    let record = world
        .store
        .device(&added.certificate.principal())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.certificate, KeyState::Revoked { at });
}

/// By a clock that ran ahead a first key was revoked in what is now the future.
#[tokio::test]
async fn an_earlier_revocation_does_not_put_off_a_later_one() {
    let world = World::new().await;
    world.add("pi-01", &key(), &[&owner()]).await.unwrap();
    world.revoke("pi-01", now() + years(3)).await.unwrap();
    let added = world.add("pi-01", &key(), &[]).await.unwrap();
    world.revoke("pi-01", now()).await.unwrap();
    let state = KeyState::Revoked { at: now().into() };
    assert_eq!(world.trust().devices[&id("pi-01")].keys[1].state, state);
    let principal = added.certificate.principal();
    let record = world.store.device(&principal).await.unwrap().unwrap();
    assert_eq!(record.certificate, state);
    assert_eq!(record.keys[1].state, state);
}

#[tokio::test]
async fn a_clock_that_was_never_set_revokes_and_adds_nothing() {
    let world = World::new().await;
    let key = key();
    world.add("pi-01", &key, &[&owner()]).await.unwrap();
    let before = world.trust();
    let unset = SystemTime::UNIX_EPOCH + years(3);
    let error = world.revoke("pi-01", unset).await.unwrap_err();
    assert!(matches!(error, Error::ClockUnset { .. }), "{error}");
    // the certificate is there already, so that none is to be made
    let again = world.add_at("pi-01", &key, &[], unset).await;
    let error = again.unwrap_err();
    assert!(matches!(error, Error::ClockUnset { .. }), "{error}");
    assert_eq!(world.trust(), before);
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Active);
}

#[tokio::test]
async fn a_revoked_device_comes_back_with_a_new_key() {
    let world = World::new().await;
    let old = world.add("pi-01", &key(), &[&owner()]).await.unwrap();
    world.revoke("pi-01", now()).await.unwrap();
    let new = key();
    let added = world.add("pi-01", &new, &[]).await.unwrap();
    assert_ne!(added.certificate, old.certificate);
    let trust = world.trust();
    let keys = &trust.devices[&id("pi-01")].keys;
    assert_eq!(keys.len(), 2);
    assert!(matches!(keys[0].state, KeyState::Revoked { .. }));
    assert_eq!(
        (keys[1].key, keys[1].state),
        (*new.verifying_key(), KeyState::Active)
    );
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Active);
    let record = world
        .store
        .device(&old.certificate.principal())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(record.certificate, KeyState::Revoked { .. }));
}

#[tokio::test]
async fn records_that_the_trust_file_does_not_know_are_shown_and_can_be_revoked() {
    let world = World::new().await;
    world.add("pi-01", &key(), &[&owner()]).await.unwrap();
    fs::remove_file(world.setup.trust_file()).unwrap();
    let listed = world.setup.devices(&world.store).await.unwrap();
    assert_eq!(listed[0].standing, Standing::Untrusted);
    let revoked = world.revoke("pi-01", now()).await.unwrap();
    assert_eq!(actions(&revoked.steps), [Action::Changed]);
    let error = world.revoke("pi-02", now()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownDevice { .. }), "{error}");
}

#[tokio::test]
async fn one_writer_at_a_time() {
    let world = World::new().await;
    let held = fs::File::open(world.setup.dir().join(".lock")).unwrap();
    held.lock().unwrap();
    let error = world.add("pi-01", &key(), &[&owner()]).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let error = world.revoke("pi-01", now()).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    let error = world
        .setup
        .init_authorities(&passphrase(), now())
        .unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(held);
    world.add("pi-01", &key(), &[&owner()]).await.unwrap();
}

/// A gateway's directory and its store.
struct World {
    setup: LocalSetup,
    store: Store,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let (dir, setup) = gateway().await;
        let store = Store::open(&setup.store().unwrap(), Options::default())
            .await
            .unwrap();
        Self {
            setup,
            store,
            _dir: dir,
        }
    }

    async fn add(
        &self,
        name: &str,
        key: &SigningKey,
        owners: &[&OwnerPublicKey],
    ) -> Result<AddedDevice, Error> {
        self.add_at(name, key, owners, now()).await
    }

    async fn add_at(
        &self,
        name: &str,
        key: &SigningKey,
        owners: &[&OwnerPublicKey],
        time: SystemTime,
    ) -> Result<AddedDevice, Error> {
        let device = Device {
            request: request(name, key),
            hsm: None,
            endpoint: None,
            owners: owners.iter().copied().cloned().collect(),
        };
        self.setup
            .add_device(&device, &passphrase(), &self.store, time)
            .await
    }

    async fn revoke(&self, name: &str, time: SystemTime) -> Result<RevokedDevice, Error> {
        self.setup.revoke_device(&id(name), &self.store, time).await
    }

    fn trust(&self) -> TrustFile {
        TrustFile::read(&self.setup.trust_file()).unwrap()
    }
}

fn owner() -> OwnerPublicKey {
    OwnerKey::generate().unwrap().public_key().clone()
}
