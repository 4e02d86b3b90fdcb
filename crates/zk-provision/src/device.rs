use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use p256::ecdsa::VerifyingKey;
use zk_envelope::{
    DeviceId, KeyId, KeyState, OwnerPublicKey, Timestamp, TrustFile, TrustedDevice, TrustedKey,
};
use zk_store::Store;
use zk_verify::DeviceRecord;

use crate::authority::clock_is_set;
#[cfg(feature = "aws")]
use crate::aws::Account;
use crate::config::{self, Config};
use crate::desired::{DesiredDevice, DesiredKey};
use crate::destroy::is_dir;
use crate::files::{self, PUBLIC};
use crate::hand::{Hand, Secrets};
use crate::local::{Role, Signer, copy_root, read_certificate};
use crate::owner::Owners;
use crate::report::{
    Action, AddedDevice, CertificateEntry, DeviceEntry, Item, RevokedDevice, Standing, Step,
};
use crate::rotate::Rotation;
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
        let signer = Signer::of(self.device_authority(passphrase)?);
        let roots = self.authority_certificate(Role::Gateway)?;
        let _lock = files::lock(self.dir())?;
        let site = Site {
            signer: &signer,
            roots: Roots::of_gateway(Some(&roots)),
            endpoint: self.endpoint().ok(),
            records: store.devices().await?,
            store: Some(store),
            gate: Gate::Store,
        };
        let secrets = Secrets {
            authorities: Some(passphrase),
            owner: None,
        };
        let mut tell = |_: &Step| {};
        let hand = Hand::that_does(now, secrets, &mut tell);
        self.add_stage(hand, device, &site).await
    }

    /// Makes one device what it is to be.
    pub(crate) async fn add_stage(
        &self,
        mut hand: Hand<'_>,
        device: &Device,
        site: &Site<'_>,
    ) -> Result<AddedDevice, Error> {
        let name = device.request.device();
        let mut trust = Trust::read(self)?;
        let desired = DesiredDevice {
            key: DesiredKey::Request(device.request.clone()),
            hsm: device.hsm.clone(),
            endpoint: device.endpoint.clone(),
        };
        let owners = match &device.owners[..] {
            [] => Owners::AsTheyAre,
            given => Owners::Given(given.to_vec()),
        };
        let certificate = self
            .device_stage(&mut hand, name, &desired, &owners, &mut trust, site)
            .await?
            // one that does has made it
            .ok_or(Error::NoAuthorities {
                dir: self.dir().to_owned(),
            })?;
        Ok(AddedDevice {
            device: name.clone(),
            key: KeyId::of(certificate.key()),
            certificate,
            dir: self.device_dir(name),
            steps: hand.steps,
        })
    }

    /// Makes a device what it is to be. Answers its certificate, unless a plan
    /// has yet to make one.
    pub(crate) async fn device_stage(
        &self,
        hand: &mut Hand<'_>,
        name: &DeviceId,
        desired: &DesiredDevice,
        owners: &Owners,
        trust: &mut Trust,
        site: &Site<'_>,
    ) -> Result<Option<Certificate>, Error> {
        let rotation = self.rotation_stage(hand, name, trust, site).await?;
        if let Rotation::Promoted(certificate) = rotation {
            return Ok(Some(certificate));
        }
        let registered = trust.active_key(name);
        let key = match (&desired.key, registered) {
            // its time comes when it has connected
            (DesiredKey::Request(request), Some(registered)) if rotation.is_to(request.key()) => {
                Some(registered)
            }
            (DesiredKey::Request(request), _) => Some(*request.key()),
            (DesiredKey::Registered, Some(registered)) => Some(registered),
            (DesiredKey::Registered, None) => {
                return Err(Error::NoKey {
                    device: name.clone(),
                });
            }
            (DesiredKey::ToBeMade(path), None) if hand.plans() => {
                hand.new_file(path, "");
                None
            }
            (DesiredKey::ToBeMade(path), _) => {
                return Err(Error::KeyLost {
                    device: name.clone(),
                    path: path.clone(),
                });
            }
        };
        if let Some(key) = &key {
            enter_key(&mut trust.file, name, key)?;
            agree(&site.records, name, key)?;
        }
        enter_owners(&mut trust.file, name, owners)?;

        let dir = self.device_dir(name);
        hand.make_dir(&dir)?;
        let file = dir.join(CERTIFICATE);
        let there = read_certificate(&file)?;
        let other = there
            .as_ref()
            .map(|there| site.signer.rejects(there, key.as_ref(), hand.now));
        let certificate = match (there, other) {
            (Some(there), Some(None)) => {
                hand.kept(&file);
                Some(there)
            }
            (_, reason) => {
                let reason = reason.flatten().unwrap_or_default();
                let issue =
                    |authority: &Authority, key: &_, now| authority.issue_device(name, key, now);
                site.signer
                    .sign(hand, key.as_ref(), issue, &file, &reason)?
            }
        };
        self.agent_files(hand, &dir, name, desired, owners, trust, site)?;
        // Owners learn of the key before the gateway takes its records, so that
        // none of them looks forged.
        let is_new = key.is_none() || matches!(owners, Owners::New);
        trust.write(hand, self, is_new, &format!("{name} is entered"))?;
        let principal = certificate.as_ref().map(Certificate::principal);
        register(hand, site, name, principal, &trust.keys(name)).await?;
        let next = match &rotation {
            Rotation::Waiting(next) => Some(next),
            Rotation::No | Rotation::Promoted(_) => None,
        };
        site.admit(hand, name, certificate.as_ref(), next, Older::AsRecorded)
            .await?;
        Ok(certificate)
    }

    /// What trust file and store say of every device that either of them knows,
    /// by name.
    ///
    /// # Errors
    /// [`Error::Envelope`] for a bad trust file, [`Error::Store`].
    pub async fn devices(&self, store: &Store) -> Result<Vec<DeviceEntry>, Error> {
        let trust = Trust::read(self)?.file;
        let records = by_device(&trust, store.devices().await?);
        let entry = |(device, records): (DeviceId, Vec<(String, DeviceRecord)>)| {
            let trusted = trust.devices.get(&device);
            let keys = trusted.map_or(&[][..], |trusted| &trusted.keys);
            let certificate = read_certificate(&self.device_dir(&device).join(CERTIFICATE))?;
            let next = self.next_certificate(&device)?;
            Ok(DeviceEntry {
                expires: certificate.map(|there| there.not_after()),
                next: next.map(|next| next.principal()),
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
            })
        };
        records.into_iter().map(entry).collect()
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
        let site = Site {
            signer: &Signer::default(),
            roots: Roots::of_gateway(None),
            endpoint: None,
            records: store.devices().await?,
            store: Some(store),
            gate: Gate::Store,
        };
        let mut tell = |_: &Step| {};
        let hand = Hand::that_does(now, Secrets::default(), &mut tell);
        self.revoke_one(hand, device, &site).await
    }

    pub(crate) async fn revoke_one(
        &self,
        mut hand: Hand<'_>,
        device: &DeviceId,
        site: &Site<'_>,
    ) -> Result<RevokedDevice, Error> {
        let mut trust = Trust::read(self)?;
        let records = &site.records;
        if !trust.file.devices.contains_key(device)
            && records.iter().all(|(_, record)| record.device != *device)
        {
            return Err(Error::UnknownDevice {
                device: device.clone(),
            });
        }
        self.revoke_stage(&mut hand, device, &mut trust, site)
            .await?;
        Ok(RevokedDevice {
            device: device.clone(),
            steps: hand.steps,
        })
    }

    /// Revokes what is not revoked yet of a device, on both sides.
    ///
    /// The trust file is first: it is what a later run goes by, whatever became
    /// of this one. Then the gate, which keeps out what the store would take for
    /// as long as somebody remembers the old record; the store last.
    pub(crate) async fn revoke_stage(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        trust: &mut Trust,
        site: &Site<'_>,
    ) -> Result<(), Error> {
        let mut at = Timestamp::from(hand.now);
        if let Some(trusted) = trust.file.devices.get_mut(device) {
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
            trust.write(hand, self, false, &format!("{device} is revoked"))?;
        }
        site.shut(hand, device).await?;
        for (principal, record) in &site.records {
            if record.device != *device {
                continue;
            }
            let close = |record: &mut DeviceRecord| {
                revoke(&mut record.certificate, at);
                record
                    .keys
                    .iter_mut()
                    .for_each(|known| revoke(&mut known.state, at));
            };
            change_record(hand, site.store, principal, record, close, "revoked").await?;
        }
        Ok(())
    }

    /// Revokes a device, and removes what was made for it. `agreed`: who may be
    /// revoked, if not everybody.
    pub(crate) async fn remove_stage(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        agreed: Option<&[DeviceId]>,
        trust: &mut Trust,
        site: &Site<'_>,
    ) -> Result<(), Error> {
        let records = &site.records;
        let open = trust.is_open(device)
            || records.iter().any(|(_, record)| {
                record.device == *device && revoked_at(record.certificate).is_none()
            });
        if open {
            if agreed.is_some_and(|agreed| !agreed.contains(device)) {
                return Err(Error::NotAgreed {
                    device: device.clone(),
                });
            }
            hand.revokes.push(device.clone());
            self.revoke_stage(hand, device, trust, site).await?;
        }
        self.remove_device_files(hand, device, &format!("{device} is not to be any more"))
    }

    /// Removes what was made for a device. What else lies there stays.
    pub(crate) fn remove_device_files(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        reason: &str,
    ) -> Result<(), Error> {
        let dir = self.device_dir(device);
        // what is behind a link is somebody's, however far up the link is
        let is_ours = is_dir(&self.devices_dir()) && is_dir(&dir);
        for dir in [dir.join(NEXT), dir] {
            if !is_ours || !is_dir(&dir) {
                continue;
            }
            for file in files::list(&dir)? {
                if is_of_device(&file) {
                    hand.remove(&file, reason)?;
                }
            }
            if !hand.plans() {
                files::remove_dir_if_empty(&dir)?;
            }
        }
        Ok(())
    }

    /// What the agent needs besides the certificate: roots, owners, agent.toml.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn agent_files(
        &self,
        hand: &mut Hand<'_>,
        dir: &Path,
        name: &DeviceId,
        desired: &DesiredDevice,
        owners: &Owners,
        trust: &Trust,
        site: &Site<'_>,
    ) -> Result<(), Error> {
        let roots = &site.roots;
        roots.copy(hand, dir)?;
        let reason = "as it is asked for";
        let mut names = Vec::new();
        for owner in trust.owners(name) {
            let name = format!("owner-{}.pub.pem", owner.id());
            hand.file(&dir.join(&name), owner.to_pem().as_bytes(), PUBLIC, reason)?;
            names.push(name);
        }
        let file = dir.join(AGENT);
        if matches!(owners, Owners::New) {
            hand.new_file(&dir.join("owner-ID.pub.pem"), "");
            hand.new_file(&file, "the owner is another one");
            return Ok(());
        }
        // beside a certificate that is to follow it: as the device has it now
        let now = files::read(&self.device_dir(name).join(AGENT))?;
        let now = now.as_deref().and_then(|text| str::from_utf8(text).ok());
        let mut agent = Config::open_or(&file, now.unwrap_or(config::AGENT))?;
        agent.set("device.id", name.as_str())?;
        if let Some(hsm) = &desired.hsm {
            agent.set("device.hsm", hsm)?;
        }
        if let Some(endpoint) = &desired.endpoint {
            agent.set("target.endpoint", endpoint)?;
        } else if agent.text("target.endpoint").map_or(true, str::is_empty) {
            let endpoint = site.endpoint.as_ref().ok_or_else(|| Error::NoGateway {
                dir: self.dir().to_owned(),
            })?;
            agent.set("target.endpoint", endpoint)?;
        }
        // others that a person has named stay
        if matches!(
            agent.text("target.roots"),
            Err(_) | Ok(ROOTS | AMAZON_ROOTS)
        ) {
            agent.set("target.roots", roots.file)?;
        }
        agent.set_list("owners.files", &names)?;
        hand.file(&file, agent.text_of().as_bytes(), PUBLIC, reason)?;
        if dir.is_dir() {
            for path in files::list(dir)? {
                let stale = file_name(&path).is_some_and(|name| {
                    is_owner_file(name) && !names.iter().any(|known| known == name)
                });
                if stale {
                    hand.remove(&path, "no owner of this device")?;
                }
            }
        }
        Ok(())
    }

    /// The directories of the devices that may publish and that something was made
    /// for, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Envelope`] for a bad trust file, [`Error::Io`].
    pub fn device_dirs(&self) -> Result<Vec<PathBuf>, Error> {
        let trust = Trust::read(self)?;
        let devices = trust.file.devices.keys();
        let open = devices.filter(|device| trust.active_key(device).is_some());
        let mut dirs: Vec<_> = open.map(|device| self.device_dir(device)).collect();
        dirs.retain(|dir| is_dir(&self.devices_dir()) && is_dir(dir) && dir.join(AGENT).is_file());
        Ok(dirs)
    }

    pub(crate) fn device_dir(&self, device: &DeviceId) -> PathBuf {
        self.devices_dir().join(device.as_str())
    }

    pub(crate) fn devices_dir(&self) -> PathBuf {
        self.dir().join("devices")
    }
}

/// What devices need of the rest of the set-up.
pub(crate) struct Site<'a> {
    /// The authority that signs devices.
    pub(crate) signer: &'a Signer,
    pub(crate) roots: Roots<'a>,
    /// Where devices publish to.
    pub(crate) endpoint: Option<String>,
    /// `None` in the plan of a store.
    pub(crate) store: Option<&'a Store>,
    /// What it has registered.
    pub(crate) records: Vec<(String, DeviceRecord)>,
    pub(crate) gate: Gate<'a>,
}

/// Who signed the certificate of what devices publish to.
pub(crate) struct Roots<'a> {
    /// What the file is called that says so.
    pub(crate) file: &'static str,
    /// What it holds; `None` if that is yet to be made.
    pub(crate) pem: Option<&'a str>,
}

impl<'a> Roots<'a> {
    pub(crate) fn of_gateway(authority: Option<&'a Certificate>) -> Self {
        Self {
            file: ROOTS,
            pem: authority.map(Certificate::pem),
        }
    }

    fn copy(&self, hand: &mut Hand<'_>, dir: &Path) -> Result<(), Error> {
        copy_root(hand, self.pem, &dir.join(self.file))
    }
}

/// What a device has to pass before the store is asked about it.
#[cfg_attr(not(feature = "aws"), expect(dead_code))]
pub(crate) enum Gate<'a> {
    /// Nothing: a gateway asks the store before it reads.
    Store,
    /// AWS IoT, which lets in what is registered there and no more.
    Iot(&'a Account),
}

#[cfg(not(feature = "aws"))]
use std::convert::Infallible as Account;

/// What becomes of the certificates that a device has had before.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "aws"), expect(dead_code))]
pub(crate) enum Older {
    /// What the store says of each.
    AsRecorded,
    /// They are retired: the new one has been used.
    Retired,
}

#[cfg_attr(not(feature = "aws"), expect(unused_variables, clippy::unused_async))]
impl Site<'_> {
    /// Lets the device in with its certificate, and with the next one while it
    /// changes; without one that is yet to be made.
    pub(crate) async fn admit(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        certificate: Option<&Certificate>,
        next: Option<&Certificate>,
        older: Older,
    ) -> Result<(), Error> {
        match self.gate {
            Gate::Store => Ok(()),
            #[cfg(feature = "aws")]
            Gate::Iot(account) => {
                let admitted = [(true, certificate), (next.is_some(), next)];
                let admitted = admitted.into_iter().filter(|(is, _)| *is).map(|(_, it)| it);
                let admitted: Vec<_> = admitted.collect();
                account.admit(hand, device, &admitted, older, self).await
            }
            #[cfg(not(feature = "aws"))]
            Gate::Iot(never) => match *never {},
        }
    }

    /// Keeps the device out, whatever it was let in with.
    pub(crate) async fn shut(&self, hand: &mut Hand<'_>, device: &DeviceId) -> Result<(), Error> {
        match self.gate {
            Gate::Store => Ok(()),
            #[cfg(feature = "aws")]
            Gate::Iot(account) => account.shut(hand, device, &self.records).await,
            #[cfg(not(feature = "aws"))]
            Gate::Iot(never) => match *never {},
        }
    }
}

/// The trust file while it changes.
pub(crate) struct Trust {
    pub(crate) file: TrustFile,
    /// As it was written last, or, in a plan, as it would be.
    written: Option<TrustFile>,
}

impl Trust {
    pub(crate) fn read(setup: &LocalSetup) -> Result<Self, Error> {
        let written = match TrustFile::read(&setup.trust_file()) {
            Ok(trust) => Some(trust),
            Err(zk_envelope::Error::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            file: written.clone().unwrap_or_default(),
            written,
        })
    }

    /// `is_new`: something of it is yet to be made, and not in here.
    pub(crate) fn write(
        &mut self,
        hand: &mut Hand<'_>,
        setup: &LocalSetup,
        is_new: bool,
        reason: &str,
    ) -> Result<(), Error> {
        let action = match &self.written {
            Some(there) if *there == self.file && !is_new => Action::Kept,
            Some(_) => Action::Changed,
            None => Action::Created,
        };
        let path = setup.trust_file();
        if action != Action::Kept {
            if !hand.plans() {
                self.file.write(&path)?;
            }
            self.written = Some(self.file.clone());
        }
        let reason = if action == Action::Kept { "" } else { reason };
        hand.step_file(action, &path, reason);
        Ok(())
    }

    /// The key that the device uses: the oldest active one.
    pub(crate) fn active_key(&self, device: &DeviceId) -> Option<VerifyingKey> {
        let keys = &self.file.devices.get(device)?.keys;
        let active = keys.iter().find(|known| known.state == KeyState::Active);
        active.map(|known| known.key)
    }

    pub(crate) fn keys(&self, device: &DeviceId) -> Vec<TrustedKey> {
        let trusted = self.file.devices.get(device);
        trusted
            .map(|trusted| trusted.keys.clone())
            .unwrap_or_default()
    }

    /// Whether any key of the device still counts.
    pub(crate) fn is_open(&self, device: &DeviceId) -> bool {
        let keys = self.keys(device);
        keys.iter().any(|known| revoked_at(known.state).is_none())
    }

    pub(crate) fn owners(&self, device: &DeviceId) -> impl Iterator<Item = &OwnerPublicKey> {
        let trusted = self.file.devices.get(device);
        trusted
            .into_iter()
            .flat_map(|trusted| &trusted.owners)
            .filter_map(|id| self.file.owners.get(id))
    }
}

/// Enters the device's key in the trust file, or says why not.
fn enter_key(trust: &mut TrustFile, name: &DeviceId, key: &VerifyingKey) -> Result<(), Error> {
    belongs_to_nobody_else(trust, name, key)?;
    let keys = &mut trust.devices.entry(name.clone()).or_default().keys;
    let known = keys.iter().find(|known| known.key == *key);
    if known.is_some_and(|known| revoked_at(known.state).is_some()) {
        return Err(Error::KeyRevoked {
            device: name.clone(),
            key: KeyId::of(key),
        });
    }
    let active = |known: &&TrustedKey| known.state == KeyState::Active;
    if known.filter(active).is_some() {
        return Ok(());
    }
    if let Some(other) = keys.iter().find(active) {
        return Err(Error::KeyChanged {
            device: name.clone(),
            registered: KeyId::of(&other.key),
            requested: KeyId::of(key),
        });
    }
    if known.is_none() {
        keys.push(TrustedKey {
            key: *key,
            state: KeyState::Active,
        });
    }
    Ok(())
}

pub(crate) fn belongs_to_nobody_else(
    trust: &TrustFile,
    name: &DeviceId,
    key: &VerifyingKey,
) -> Result<(), Error> {
    for (owner, other) in &trust.devices {
        if owner != name && other.keys.iter().any(|known| known.key == *key) {
            return Err(Error::KeyInUse {
                device: name.clone(),
                owner: owner.clone(),
                key: KeyId::of(key),
            });
        }
    }
    Ok(())
}

/// Enters whom the device encrypts for.
fn enter_owners(trust: &mut TrustFile, name: &DeviceId, owners: &Owners) -> Result<(), Error> {
    let known: BTreeSet<_> = trust.owners.keys().copied().collect();
    let trusted = trust.devices.entry(name.clone()).or_default();
    match owners {
        Owners::New => return Ok(()),
        Owners::Given(given) => {
            trusted.owners = given.iter().map(OwnerPublicKey::id).collect();
            let given = given.iter().map(|owner| (owner.id(), owner.clone()));
            trust.owners.extend(given);
        }
        Owners::AsTheyAre if trusted.owners.is_empty() => trusted.owners = known,
        Owners::AsTheyAre => {}
    }
    match trusted.owners.len() {
        0 => Err(Error::NoOwners),
        1..=MAX_OWNERS => Ok(()),
        count => Err(Error::TooManyOwners {
            count,
            limit: MAX_OWNERS,
        }),
    }
}

/// What the store knows of device and key must not speak against them: a trust
/// file out of a backup may have forgotten a revocation.
pub(crate) fn agree(
    records: &[(String, DeviceRecord)],
    device: &DeviceId,
    key: &VerifyingKey,
) -> Result<(), Error> {
    for (_, record) in records {
        let Some(known) = record.keys.iter().find(|known| known.key == *key) else {
            continue;
        };
        let (device, key) = (device.clone(), KeyId::of(key));
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

/// Registers a certificate, and brings the keys of the device's other ones up to
/// date. Without a `principal` the certificate is yet to be made.
pub(crate) async fn register(
    hand: &mut Hand<'_>,
    site: &Site<'_>,
    device: &DeviceId,
    principal: Option<String>,
    keys: &[TrustedKey],
) -> Result<(), Error> {
    let mut is_there = false;
    for (other, record) in &site.records {
        if record.device != *device || revoked_at(record.certificate).is_some() {
            continue;
        }
        let is_this = principal.as_ref() == Some(other);
        is_there |= is_this;
        if is_this || record.keys != keys {
            let set = |record: &mut DeviceRecord| record.keys = keys.to_vec();
            change_record(hand, site.store, other, record, set, "its keys are others").await?;
        }
    }
    match principal {
        _ if is_there => {}
        None => hand.step(Action::Created, Item::NewRecord(device.clone()), ""),
        Some(principal) => {
            let record = DeviceRecord {
                device: device.clone(),
                certificate: KeyState::Active,
                keys: keys.to_vec(),
                registered_at: hand.now.into(),
            };
            if let (false, Some(store)) = (hand.plans(), site.store) {
                store.register(&principal, &record).await?;
            }
            hand.step(Action::Created, Item::Record(principal), "");
        }
    }
    Ok(())
}

/// Changes a record, unless it is so already.
pub(crate) async fn change_record(
    hand: &mut Hand<'_>,
    store: Option<&Store>,
    principal: &str,
    record: &DeviceRecord,
    change: impl Fn(&mut DeviceRecord),
    reason: &str,
) -> Result<(), Error> {
    let item = Item::Record(principal.to_owned());
    let mut changed = record.clone();
    change(&mut changed);
    if changed == *record {
        hand.step(Action::Kept, item, "");
        return Ok(());
    }
    if let (false, Some(store)) = (hand.plans(), store) {
        store.update_device(principal, change).await?;
    }
    hand.step(Action::Changed, item, reason);
    Ok(())
}

/// Whether it is a file that is made for a device.
pub(crate) fn is_of_device(path: &Path) -> bool {
    file_name(path).is_some_and(|name| {
        let stem = name.strip_suffix(".tmp");
        let made = [CERTIFICATE, ROOTS, AMAZON_ROOTS, AGENT];
        made.contains(&name)
            || is_owner_file(name)
            || stem.is_some_and(|stem| {
                let owner = format!("{stem}.pem");
                is_owner_file(&owner)
                    || made
                        .iter()
                        .any(|made| files::temporary(Path::new(made)) == Path::new(name))
            })
    })
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

pub(crate) fn is_owner_file(name: &str) -> bool {
    let id = name
        .strip_prefix("owner-")
        .and_then(|name| name.strip_suffix(".pub.pem"));
    id.is_some_and(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The records of every device that trust file or store know, oldest first.
pub(crate) fn by_device(
    trust: &TrustFile,
    records: Vec<(String, DeviceRecord)>,
) -> BTreeMap<DeviceId, Vec<(String, DeviceRecord)>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for device in trust.devices.keys() {
        all.entry(device.clone()).or_default();
    }
    for (principal, record) in records {
        let of_device = all.entry(record.device.clone()).or_default();
        of_device.push((principal, record));
    }
    for of_device in all.values_mut() {
        of_device.sort_by_key(|(_, record)| record.registered_at);
    }
    all
}

pub(crate) fn standing(
    trusted: Option<&TrustedDevice>,
    records: &[(String, DeviceRecord)],
) -> Standing {
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

pub(crate) fn revoked_at(state: KeyState) -> Option<Timestamp> {
    match state {
        KeyState::Revoked { at } => Some(at),
        KeyState::Active | KeyState::Retired => None,
    }
}

/// As many as an envelope has room for.
const MAX_OWNERS: usize = 8;

// these names stand in the template as well
pub(crate) const CERTIFICATE: &str = "device.crt.pem";
pub(crate) const ROOTS: &str = "gateway-ca.crt.pem";
/// In its place where devices publish to AWS.
pub(crate) const AMAZON_ROOTS: &str = "amazon-roots.pem";
pub(crate) const AGENT: &str = "agent.toml";
/// Below a device's directory: the same once more, for its next key.
pub(crate) const NEXT: &str = "next";
