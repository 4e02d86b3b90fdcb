use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zk_envelope::{
    DeviceId, KeyId, KeyState, OwnerPublicKey, Timestamp, TrustFile, TrustedDevice, TrustedKey,
};
use zk_store::Store;
use zk_verify::DeviceRecord;

use crate::authority::clock_is_set;
use crate::config::{self, Config};
use crate::files::{self, PUBLIC};
use crate::local::{Role, read_certificate};
use crate::report::{
    Action, AddedDevice, CertificateEntry, DeviceEntry, Item, RevokedDevice, Standing, Step,
};
use crate::{Authority, Certificate, CertificateRequest, Error, LocalSetup, Passphrase};

/// What a device is to be.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name and key.
    pub request: CertificateRequest,
    /// The URI of its key, for its configuration. `None`: leave what is
    /// there; at first that is `zymkey:slot=0`.
    pub hsm: Option<String>,
    /// Where it publishes to, `host:port`. `None`: leave what is there; at
    /// first that is the first name in the gateway's certificate.
    pub endpoint: Option<String>,
    /// Whom it encrypts for, 1 to 8. Empty: those it has; at first those are
    /// all owners in the trust file.
    pub owners: Vec<OwnerPublicKey>,
}

impl LocalSetup {
    /// Lets a device publish: signs its certificate, writes what goes to the
    /// device, and enters its key in the trust file and its record in `store`.
    ///
    /// Run again with the same key it keeps the certificate, unless that has
    /// less than a third of its life left, and completes what is missing.
    ///
    /// # Errors
    /// [`Error::KeyInUse`], [`Error::KeyChanged`], [`Error::KeyRevoked`] if the
    /// trust file knows device or key otherwise; [`Error::NoOwners`],
    /// [`Error::TooManyOwners`]; [`Error::NoAuthorities`], [`Error::NoGateway`]
    /// if set-up isn't that far; [`Error::WrongPassphrase`],
    /// [`Error::AuthorityExpired`], [`Error::Busy`], [`Error::ClockUnset`],
    /// [`Error::Envelope`], [`Error::Io`], [`Error::Malformed`],
    /// [`Error::Random`], [`Error::Store`].
    pub async fn add_device(
        &self,
        device: &Device,
        passphrase: &Passphrase,
        store: &Store,
        now: SystemTime,
    ) -> Result<AddedDevice, Error> {
        clock_is_set(now)?;
        let name = device.request.device();
        let authority = self.device_authority(passphrase)?;
        let _lock = files::lock(self.dir())?;
        let mut trust = self.trust()?.unwrap_or_default();
        let trusted = enter(&mut trust, device)?;
        agree(&store.devices().await?, &device.request)?;

        let dir = self.device_dir(name);
        files::make_dir(&dir)?;
        let file = dir.join(CERTIFICATE);
        let certificate = certificate(&file, &authority, &device.request, now)?;
        let mut steps = vec![files::update(&file, certificate.pem().as_bytes(), PUBLIC)?];
        let owners = trusted.owners.iter().filter_map(|id| trust.owners.get(id));
        self.write_agent_files(&dir, device, owners, &mut steps)?;
        // Owners learn of the key before the gateway takes its records, so that
        // none of them looks forged.
        steps.push(self.write_trust(&trust)?);
        let record = DeviceRecord {
            device: name.clone(),
            certificate: KeyState::Active,
            keys: trusted.keys,
            registered_at: now.into(),
        };
        steps.push(register(store, certificate.principal(), record).await?);
        Ok(AddedDevice {
            device: name.clone(),
            key: KeyId::of(device.request.key()),
            certificate,
            dir,
            steps,
        })
    }

    /// What trust file and store say of every device that either of them knows,
    /// by name.
    ///
    /// # Errors
    /// [`Error::Envelope`] for a bad trust file, [`Error::Store`].
    pub async fn devices(&self, store: &Store) -> Result<Vec<DeviceEntry>, Error> {
        let trust = self.trust()?.unwrap_or_default();
        let mut records: BTreeMap<DeviceId, Vec<(String, DeviceRecord)>> = BTreeMap::new();
        for (principal, record) in store.devices().await? {
            records
                .entry(record.device.clone())
                .or_default()
                .push((principal, record));
        }
        for device in trust.devices.keys() {
            records.entry(device.clone()).or_default();
        }
        let entry = |(device, mut records): (DeviceId, Vec<(String, DeviceRecord)>)| {
            records.sort_by_key(|(_, record)| record.registered_at);
            let trusted = trust.devices.get(&device);
            let keys = trusted.map_or(&[][..], |trusted| &trusted.keys);
            DeviceEntry {
                standing: standing(trusted, &records),
                keys: keys
                    .iter()
                    .map(|known| (KeyId::of(&known.key), known.state))
                    .collect(),
                certificates: records
                    .into_iter()
                    .map(|(principal, record)| CertificateEntry {
                        principal,
                        state: record.certificate,
                        registered_at: record.registered_at,
                    })
                    .collect(),
                device,
            }
        };
        Ok(records.into_iter().map(entry).collect())
    }

    /// Shuts a device out: from now on nothing it sends is accepted, whatever
    /// time it claims, by the gateway or by readers who have the new trust file.
    ///
    /// Run again it keeps the first instant.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`] if neither trust file nor store know it;
    /// [`Error::ClockUnset`], because all that was ever received after a wrong
    /// instant would count for nothing; [`Error::Busy`], [`Error::Envelope`],
    /// [`Error::Io`], [`Error::Store`].
    pub async fn revoke_device(
        &self,
        device: &DeviceId,
        store: &Store,
        now: SystemTime,
    ) -> Result<RevokedDevice, Error> {
        clock_is_set(now)?;
        let _lock = files::lock(self.dir())?;
        let mut trust = self.trust()?.unwrap_or_default();
        let mut records = store.devices().await?;
        records.retain(|(_, record)| record.device == *device);
        let mut at = Timestamp::from(now);
        let mut steps = Vec::new();
        if let Some(trusted) = trust.devices.get_mut(device) {
            // An interrupted run has set the instant; both sides shall have the
            // same. Keys that were revoked long before have nothing to say: by a
            // clock that was wrong then, their instant may be yet to come.
            if trusted
                .keys
                .iter()
                .all(|known| revoked_at(known.state).is_some())
            {
                let instants = trusted
                    .keys
                    .iter()
                    .filter_map(|known| revoked_at(known.state));
                at = instants.max().unwrap_or(at);
            }
            trusted
                .keys
                .iter_mut()
                .for_each(|known| revoke(&mut known.state, at));
            steps.push(self.write_trust(&trust)?);
        } else if records.is_empty() {
            return Err(Error::UnknownDevice {
                device: device.clone(),
            });
        }
        for (principal, record) in records {
            let close = |record: &mut DeviceRecord| {
                revoke(&mut record.certificate, at);
                record
                    .keys
                    .iter_mut()
                    .for_each(|known| revoke(&mut known.state, at));
            };
            let mut closed = record.clone();
            close(&mut closed);
            let action = if closed == record {
                Action::Kept
            } else {
                store.update_device(&principal, close).await?;
                Action::Changed
            };
            steps.push(Step {
                action,
                item: Item::Record(principal),
            });
        }
        Ok(RevokedDevice {
            device: device.clone(),
            steps,
        })
    }

    /// What the agent needs besides the certificate: roots, owners, agent.toml.
    fn write_agent_files<'a>(
        &self,
        dir: &Path,
        device: &Device,
        owners: impl Iterator<Item = &'a OwnerPublicKey>,
        steps: &mut Vec<Step>,
    ) -> Result<(), Error> {
        let roots = self.authority_certificate(Role::Gateway)?;
        steps.push(files::update(
            &dir.join(ROOTS),
            roots.pem().as_bytes(),
            PUBLIC,
        )?);
        let mut names = Vec::new();
        for owner in owners {
            let name = format!("owner-{}.pub.pem", owner.id());
            steps.push(files::update(
                &dir.join(&name),
                owner.to_pem().as_bytes(),
                PUBLIC,
            )?);
            names.push(name);
        }
        let file = dir.join("agent.toml");
        let mut agent = Config::open_or(&file, config::AGENT)?;
        agent.set("device.id", device.request.device().as_str())?;
        if let Some(hsm) = &device.hsm {
            agent.set("device.hsm", hsm)?;
        }
        if let Some(endpoint) = &device.endpoint {
            agent.set("target.endpoint", endpoint)?;
        } else if agent.text("target.endpoint").map_or(true, str::is_empty) {
            agent.set("target.endpoint", &self.endpoint()?)?;
        }
        agent.set_list("owners.files", &names)?;
        steps.push(agent.write()?);
        Ok(())
    }

    fn trust(&self) -> Result<Option<TrustFile>, Error> {
        match TrustFile::read(&self.trust_file()) {
            Ok(trust) => Ok(Some(trust)),
            Err(zk_envelope::Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn write_trust(&self, trust: &TrustFile) -> Result<Step, Error> {
        let action = match self.trust()? {
            Some(there) if there == *trust => Action::Kept,
            Some(_) => Action::Changed,
            None => Action::Created,
        };
        if action != Action::Kept {
            trust.write(&self.trust_file())?;
        }
        Ok(files::step(action, &self.trust_file()))
    }

    fn device_dir(&self, device: &DeviceId) -> PathBuf {
        self.dir().join("devices").join(device.as_str())
    }
}

/// Enters the device and its key in the trust file, or says why not.
fn enter(trust: &mut TrustFile, device: &Device) -> Result<TrustedDevice, Error> {
    let name = device.request.device();
    let key = *device.request.key();
    let id = KeyId::of(&key);
    for (owner, other) in &trust.devices {
        if owner != name && other.keys.iter().any(|known| known.key == key) {
            let (device, owner) = (name.clone(), owner.clone());
            return Err(Error::KeyInUse {
                device,
                owner,
                key: id,
            });
        }
    }
    let mut trusted = trust.devices.get(name).cloned().unwrap_or_default();
    if let Some(known) = trusted.keys.iter().find(|known| known.key == key) {
        if revoked_at(known.state).is_some() {
            return Err(Error::KeyRevoked {
                device: name.clone(),
                key: id,
            });
        }
    } else if let Some(other) = trusted
        .keys
        .iter()
        .find(|known| known.state == KeyState::Active)
    {
        let (device, registered) = (name.clone(), KeyId::of(&other.key));
        return Err(Error::KeyChanged {
            device,
            registered,
            requested: id,
        });
    } else {
        trusted.keys.push(TrustedKey {
            key,
            state: KeyState::Active,
        });
    }
    if !device.owners.is_empty() {
        trust.owners.extend(
            device
                .owners
                .iter()
                .map(|owner| (owner.id(), owner.clone())),
        );
        trusted.owners = device.owners.iter().map(OwnerPublicKey::id).collect();
    } else if trusted.owners.is_empty() {
        trusted.owners = trust.owners.keys().copied().collect();
    }
    match trusted.owners.len() {
        0 => return Err(Error::NoOwners),
        1..=MAX_OWNERS => {}
        count => {
            return Err(Error::TooManyOwners {
                count,
                limit: MAX_OWNERS,
            });
        }
    }
    trust.devices.insert(name.clone(), trusted.clone());
    Ok(trusted)
}

/// What the store knows of device and key must not speak against them: a trust
/// file out of a backup may have forgotten a revocation.
fn agree(records: &[(String, DeviceRecord)], request: &CertificateRequest) -> Result<(), Error> {
    for (_, record) in records {
        let Some(known) = record.keys.iter().find(|known| known.key == *request.key()) else {
            continue;
        };
        let (device, key) = (request.device().clone(), KeyId::of(request.key()));
        if record.device != device {
            return Err(Error::KeyInUse {
                device,
                owner: record.device.clone(),
                key,
            });
        }
        if revoked_at(known.state)
            .or(revoked_at(record.certificate))
            .is_some()
        {
            return Err(Error::KeyRevoked { device, key });
        }
    }
    Ok(())
}

/// Gives the store the record, or brings the keys of the one it has up to date.
async fn register(store: &Store, principal: String, record: DeviceRecord) -> Result<Step, Error> {
    let action = match store.device(&principal).await? {
        Some(there) if there.keys == record.keys => Action::Kept,
        Some(_) => {
            let keys = |there: &mut DeviceRecord| there.keys.clone_from(&record.keys);
            store.update_device(&principal, keys).await?;
            Action::Changed
        }
        None => {
            store.register(&principal, &record).await?;
            Action::Created
        }
    };
    Ok(Step {
        action,
        item: Item::Record(principal),
    })
}

/// The certificate that is there, or a new one.
fn certificate(
    path: &Path,
    authority: &Authority,
    request: &CertificateRequest,
    now: SystemTime,
) -> Result<Certificate, Error> {
    match read_certificate(path)? {
        Some(there)
            if there.key() == request.key()
                && there.is_issued_by(authority.certificate())
                && !there.is_due(now) =>
        {
            Ok(there)
        }
        _ => authority.issue_device(request.device(), request.key(), now),
    }
}

fn standing(trusted: Option<&TrustedDevice>, records: &[(String, DeviceRecord)]) -> Standing {
    let Some(trusted) = trusted else {
        return Standing::Untrusted;
    };
    let certified: Vec<_> = records
        .iter()
        .filter(|(_, record)| revoked_at(record.certificate).is_none())
        .collect();
    let open = trusted
        .keys
        .iter()
        .any(|known| revoked_at(known.state).is_none());
    if !open && certified.is_empty() {
        Standing::Revoked
    } else if open
        && !certified.is_empty()
        && certified
            .iter()
            .all(|(_, record)| record.keys == trusted.keys)
    {
        Standing::Active
    } else {
        Standing::Incomplete
    }
}

/// Revokes what is not revoked yet.
fn revoke(state: &mut KeyState, at: Timestamp) {
    if revoked_at(*state).is_none() {
        *state = KeyState::Revoked { at };
    }
}

fn revoked_at(state: KeyState) -> Option<Timestamp> {
    match state {
        KeyState::Revoked { at } => Some(at),
        KeyState::Active | KeyState::Retired => None,
    }
}

/// As many as an envelope has room for.
const MAX_OWNERS: usize = 8;

// these names stand in the template as well
const CERTIFICATE: &str = "device.crt.pem";
const ROOTS: &str = "gateway-ca.crt.pem";
