//! A device changes its key: with real records, on time and late.

use std::fs;

use p256::ecdsa::SigningKey;
use tempfile::TempDir;
use zk_envelope::{
    BootId, ClockQuality, Content, Entry, KeyId, KeyState, Message, Moment, OwnerKey, Sealer,
    StreamId, Timestamp, TrustFile,
};
use zk_provision::{
    AddedDevice, Certificate, Desired, Device, Error, LocalSetup, Secrets, Standing, Verdict,
};
use zk_store::{Options, Store};
use zk_verify::{Context, topic_of};

use crate::common::{files, gateway, id, key, now, passphrase, request, years};

#[tokio::test]
async fn the_old_key_is_retired_once_the_new_certificate_is_used() {
    let world = World::new().await;
    let (old, new) = (key(), key());
    let first = world.add(&old).await;
    world.accepts(&first.certificate, &old, 1).await;
    let next = world.rotate(&new).await.unwrap();
    assert_ne!(next.certificate, first.certificate);
    assert_eq!(world.states(), [KeyState::Active; 2]);
    assert_eq!(world.standing().await, Standing::Active);
    let agent = fs::read_to_string(next.dir.join("agent.toml")).unwrap();
    assert!(agent.contains("hsm = \"soft:/new.pem\""), "{agent}");

    // nothing has come in under the new one: the device is where it was
    let before = files(world.setup.dir());
    let error = world.finish().await.unwrap_err();
    assert!(matches!(error, Error::NotConnected { .. }), "{error}");
    world.accepts(&first.certificate, &old, 2).await;
    let error = world.finish().await.unwrap_err();
    assert!(matches!(error, Error::NotConnected { .. }), "{error}");
    assert_eq!(files(world.setup.dir()), before);
    let on_disk = world.setup.dir().join("devices/pi-01/device.crt.pem");
    assert_eq!(
        fs::read_to_string(&on_disk).unwrap(),
        first.certificate.pem()
    );

    // its spool still has what the old key has signed: that comes first
    world.accepts(&next.certificate, &old, 3).await;
    let finished = world.finish().await.unwrap();
    assert_eq!(finished.key, KeyId::of(new.verifying_key()));
    assert_eq!(world.states(), [KeyState::Retired, KeyState::Active]);
    assert_eq!(world.standing().await, Standing::Active);
    assert_eq!(
        fs::read_to_string(&on_disk).unwrap(),
        next.certificate.pem()
    );
    let agent = fs::read_to_string(on_disk.with_file_name("agent.toml")).unwrap();
    assert!(agent.contains("hsm = \"soft:/new.pem\""), "{agent}");
    assert!(!next.dir.exists());
    // late records by the old key stay right, under either certificate
    world.accepts(&next.certificate, &old, 4).await;
    world.accepts(&first.certificate, &old, 5).await;
    world.accepts(&next.certificate, &new, 6).await;
    // and there is no way back
    let error = world.try_add(&old).await.unwrap_err();
    assert!(matches!(error, Error::KeyChanged { .. }), "{error}");
    let error = world.finish().await.unwrap_err();
    assert!(matches!(error, Error::NoRotation { .. }), "{error}");
    world.nothing_is_wrong().await;
}

#[tokio::test]
async fn the_next_apply_finishes_it() {
    let world = World::new().await;
    let (old, new) = (key(), key());
    world.add(&old).await;
    let next = world.rotate(&new).await.unwrap();
    world.apply().await;
    assert_eq!(world.states(), [KeyState::Active; 2]);
    world.accepts(&next.certificate, &new, 1).await;
    world.apply().await;
    assert_eq!(world.states(), [KeyState::Retired, KeyState::Active]);
    let plan = world.setup.plan(&Desired::default(), now()).await.unwrap();
    assert!(!plan.has_changes(), "{:?}", plan.steps);
    world.nothing_is_wrong().await;
}

/// At every stop between, old and new key are right.
#[tokio::test]
async fn an_interrupted_rotation_locks_nobody_out() {
    let world = World::new().await;
    let (old, new) = (key(), key());
    let first = world.add(&old).await;
    let trust_before = fs::read(world.setup.trust_file()).unwrap();
    let record_before = world.record(&first.certificate).await;
    let next = world.rotate(&new).await.unwrap();

    // as if it had stopped before the new record, before the old one's, before
    // the trust file
    let principal = next.certificate.principal();
    world.store.remove_device(&principal).await.unwrap();
    world.accepts(&first.certificate, &old, 1).await;
    let before = record_before.clone();
    let reset = |record: &mut zk_verify::DeviceRecord| record.clone_from(&before);
    let old_principal = first.certificate.principal();
    world
        .store
        .update_device(&old_principal, reset)
        .await
        .unwrap();
    world.accepts(&first.certificate, &old, 2).await;
    fs::write(world.setup.trust_file(), trust_before).unwrap();
    world.accepts(&first.certificate, &old, 3).await;
    // either of the two goes on
    world.apply().await;
    assert_eq!(world.states(), [KeyState::Active; 2]);
    assert_eq!(world.standing().await, Standing::Active);
    let again = world.rotate(&new).await.unwrap();
    assert_eq!(again.certificate, next.certificate);
    world.accepts(&first.certificate, &old, 4).await;
    world.accepts(&next.certificate, &new, 5).await;

    // as if the end had stopped after the trust file
    let mut trust = world.trust();
    trust.devices.get_mut(&id("pi-01")).unwrap().keys[0].state = KeyState::Retired;
    trust.write(&world.setup.trust_file()).unwrap();
    world.accepts(&first.certificate, &old, 6).await;
    world.finish().await.unwrap();
    assert_eq!(world.states(), [KeyState::Retired, KeyState::Active]);
    assert_eq!(world.standing().await, Standing::Active);
    world.nothing_is_wrong().await;
}

#[tokio::test]
async fn a_change_that_is_given_up_for_another_stays_right() {
    let world = World::new().await;
    let (old, lost, new) = (key(), key(), key());
    let first = world.add(&old).await;
    let given_up = world.rotate(&lost).await.unwrap();
    let next = world.rotate(&new).await.unwrap();
    assert_eq!(
        world.states(),
        [KeyState::Active, KeyState::Retired, KeyState::Active]
    );
    world.accepts(&first.certificate, &old, 1).await;
    // if it had been in use after all
    world.accepts(&given_up.certificate, &lost, 2).await;
    world.accepts(&next.certificate, &new, 3).await;
    world.finish().await.unwrap();
    assert_eq!(
        world.states(),
        [KeyState::Retired, KeyState::Retired, KeyState::Active]
    );
    world.nothing_is_wrong().await;
}

#[tokio::test]
async fn a_rotation_needs_a_device_and_a_key_of_its_own() {
    let world = World::new().await;
    let (old, other) = (key(), key());
    let error = world.rotate(&old).await.unwrap_err();
    assert!(matches!(error, Error::UnknownDevice { .. }), "{error}");
    world.add(&old).await;
    let before = files(world.setup.dir());
    let error = world.rotate(&old).await.unwrap_err();
    assert!(matches!(error, Error::KeyUnchanged { .. }), "{error}");
    let error = world.finish().await.unwrap_err();
    assert!(matches!(error, Error::NoRotation { .. }), "{error}");
    let device = device("pi-02", &other, &world.owner);
    world
        .setup
        .add_device(&device, &passphrase(), &world.store, now())
        .await
        .unwrap();
    let error = world.rotate(&other).await.unwrap_err();
    assert!(matches!(error, Error::KeyInUse { .. }), "{error}");
    let after = files(world.setup.dir());
    let of_it = |name: &std::path::Path| name.starts_with("devices/pi-01");
    assert!(
        before
            .iter()
            .filter(|(name, _)| of_it(name))
            .eq(after.iter().filter(|(name, _)| of_it(name)))
    );
    world
        .setup
        .revoke_device(&id("pi-01"), &world.store, now())
        .await
        .unwrap();
    let error = world.rotate(&key()).await.unwrap_err();
    assert!(matches!(error, Error::NoKey { .. }), "{error}");
}

/// A file in the right place is no reason to trust a key.
#[tokio::test]
async fn a_certificate_that_was_not_made_here_is_not_entered() {
    let world = World::new().await;
    let old = key();
    world.add(&old).await;
    let next = world.setup.dir().join("devices/pi-01/next");
    fs::create_dir(&next).unwrap();
    let other = World::new().await;
    let stranger = other.add(&key()).await;
    let authority = world.setup.device_authority(&passphrase()).unwrap();
    let of_another_device = authority
        .issue_device(&id("pi-02"), key().verifying_key(), now())
        .unwrap();
    for certificate in [of_another_device.pem(), &stranger_of(&stranger)] {
        fs::write(next.join("device.crt.pem"), certificate).unwrap();
        let before = world.trust();
        let error = world.finish().await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        let plan = world.setup.plan(&Desired::default(), now()).await;
        assert!(matches!(plan, Err(Error::Malformed { .. })));
        assert_eq!(world.trust(), before);
    }
}

/// A certificate of the same name by an authority that is not ours: the tests'
/// set-ups share theirs, so this one signs itself.
fn stranger_of(added: &AddedDevice) -> String {
    let dir = added.dir.parent().unwrap();
    let key = dir.join("stranger.pem");
    let (key, text) = (key.to_str().unwrap(), crate::common::openssl_ok);
    text(
        &[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            key,
        ],
        b"",
    );
    text(&["req", "-x509", "-key", key, "-subj", "/CN=pi-01"], b"")
}

#[tokio::test]
async fn a_revoked_device_takes_the_next_key_with_it() {
    let world = World::new().await;
    let (old, new) = (key(), key());
    world.add(&old).await;
    world.rotate(&new).await.unwrap();
    world
        .setup
        .revoke_device(&id("pi-01"), &world.store, now())
        .await
        .unwrap();
    assert_eq!(world.standing().await, Standing::Revoked);
    world.apply().await;
    assert_eq!(world.standing().await, Standing::Revoked);
}

/// A trust file out of a backup, and a rotation that had stopped before its
/// record: what the store knows of the revocation holds for the next key, too.
#[tokio::test]
async fn a_forgotten_revocation_lets_no_next_key_in() {
    for is_entered in [false, true] {
        let world = World::new().await;
        let (old, new) = (key(), key());
        let first = world.add(&old).await;
        let at_first = fs::read(world.setup.trust_file()).unwrap();
        let record = world.record(&first.certificate).await;
        let next = world.rotate(&new).await.unwrap();
        let principal = next.certificate.principal();
        world.store.remove_device(&principal).await.unwrap();
        if !is_entered {
            let reset = |there: &mut zk_verify::DeviceRecord| there.clone_from(&record);
            let old_principal = first.certificate.principal();
            let store = &world.store;
            store.update_device(&old_principal, reset).await.unwrap();
            fs::write(world.setup.trust_file(), &at_first).unwrap();
        }
        world
            .setup
            .revoke_device(&id("pi-01"), &world.store, now())
            .await
            .unwrap();
        fs::write(world.setup.trust_file(), &at_first).unwrap();
        let error = world.finish().await.unwrap_err();
        assert!(matches!(error, Error::KeyRevoked { .. }), "{error}");
        let error = world.rotate(&key()).await.unwrap_err();
        assert!(matches!(error, Error::KeyRevoked { .. }), "{error}");
        assert_eq!(world.store.device(&principal).await.unwrap(), None);
        assert_eq!(fs::read(world.setup.trust_file()).unwrap(), at_first);
    }
}

/// A key that another device has taken since the rotation stopped.
#[tokio::test]
async fn a_next_key_that_is_another_devices_is_not_entered() {
    let world = World::new().await;
    let (old, new) = (key(), key());
    let first = world.add(&old).await;
    let at_first = fs::read(world.setup.trust_file()).unwrap();
    let record = world.record(&first.certificate).await;
    let next = world.rotate(&new).await.unwrap();
    let principal = next.certificate.principal();
    world.store.remove_device(&principal).await.unwrap();
    let reset = |there: &mut zk_verify::DeviceRecord| there.clone_from(&record);
    let old_principal = first.certificate.principal();
    let store = &world.store;
    store.update_device(&old_principal, reset).await.unwrap();
    fs::write(world.setup.trust_file(), &at_first).unwrap();
    let other = device("pi-02", &new, &world.owner);
    let setup = &world.setup;
    setup
        .add_device(&other, &passphrase(), store, now())
        .await
        .unwrap();
    let before = world.trust();
    let error = world.finish().await.unwrap_err();
    assert!(matches!(error, Error::KeyInUse { .. }), "{error}");
    assert_eq!(world.trust(), before);
}

struct World {
    setup: LocalSetup,
    store: Store,
    owner: OwnerKey,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let (dir, setup) = gateway().await;
        let store = Store::open(&setup.store().unwrap(), Options::default())
            .await
            .unwrap();
        let owner = OwnerKey::generate().unwrap();
        Self {
            setup,
            store,
            owner,
            _dir: dir,
        }
    }

    async fn add(&self, key: &SigningKey) -> AddedDevice {
        self.try_add(key).await.unwrap()
    }

    async fn try_add(&self, key: &SigningKey) -> Result<AddedDevice, Error> {
        let device = device("pi-01", key, &self.owner);
        self.setup
            .add_device(&device, &passphrase(), &self.store, now())
            .await
    }

    async fn rotate(&self, key: &SigningKey) -> Result<AddedDevice, Error> {
        let request = request("pi-01", key);
        let hsm = Some("soft:/new.pem");
        self.setup
            .rotate_device(&request, hsm, &passphrase(), &self.store, now())
            .await
    }

    async fn finish(&self) -> Result<zk_provision::FinishedRotation, Error> {
        self.setup
            .finish_rotation(&id("pi-01"), &self.store, now())
            .await
    }

    async fn apply(&self) {
        let passphrase = passphrase();
        let secrets = Secrets {
            authorities: Some(&passphrase),
            owner: None,
        };
        self.setup
            .apply(&Desired::default(), secrets, now(), &mut |_| {})
            .await
            .unwrap();
    }

    /// A record by this key comes in under this certificate, and is stored.
    async fn accepts(&self, certificate: &Certificate, key: &SigningKey, sequence: u64) {
        let device = id("pi-01");
        let owners = [self.owner.public_key().clone()];
        let stream = StreamId([7; 16]);
        let mut sealer = Sealer::new(device.clone(), stream, key.verifying_key(), &owners).unwrap();
        // what a spool brings may be older than the certificate
        let time = Timestamp::from(now() - years(1) / 100 + sequence as u32 * years(1) / 1000);
        let moment = Moment {
            boot: BootId([1; 16]),
            since_boot_ms: sequence,
            time,
            clock: ClockQuality::Synchronised,
        };
        let content = Content::Data {
            content_type: "text/plain",
            body: b"warm",
        };
        let envelope = sealer.seal(key, &moment, sequence, content).unwrap();
        let message = Message {
            device_id: device.to_string(),
            entries: vec![Entry::from(&envelope)],
        };
        let context = Context {
            principal: certificate.principal(),
            topic: topic_of(&device),
            received_at: Timestamp::from(now() + years(1)),
        };
        let message = message.to_json().unwrap();
        // as a gateway: it remembers the registry for a while
        let uri = self.setup.store().unwrap();
        let gateway = Store::open(&uri, Options::default()).await.unwrap();
        let ingested = gateway.ingest(&message, &context).await.unwrap();
        assert_eq!(ingested.stored, 1, "{sequence}: {ingested:?}");
    }

    fn trust(&self) -> TrustFile {
        TrustFile::read(&self.setup.trust_file()).unwrap()
    }

    fn states(&self) -> Vec<KeyState> {
        let trust = self.trust();
        let keys = &trust.devices[&id("pi-01")].keys;
        keys.iter().map(|known| known.state).collect()
    }

    async fn record(&self, certificate: &Certificate) -> zk_verify::DeviceRecord {
        let found = self.store.device(&certificate.principal()).await.unwrap();
        found.unwrap()
    }

    async fn standing(&self) -> Standing {
        self.setup.devices(&self.store).await.unwrap()[0].standing
    }

    async fn nothing_is_wrong(&self) {
        let found = self.setup.check(now()).await;
        let bad = |one: &&zk_provision::Checked| matches!(one.verdict, Verdict::Bad { .. });
        assert_eq!(found.iter().filter(bad).count(), 0, "{found:?}");
    }
}

fn device(name: &str, key: &SigningKey, owner: &OwnerKey) -> Device {
    Device {
        request: request(name, key),
        hsm: None,
        endpoint: None,
        owners: vec![owner.public_key().clone()],
    }
}
