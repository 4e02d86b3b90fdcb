//! A device changes its key: the new one beside the old one, until it is used.

use std::time::SystemTime;

use p256::ecdsa::VerifyingKey;
use zk_envelope::{DeviceId, KeyId, KeyState, Timestamp, TrustedKey};
use zk_store::{Readings, Store, StoredReading};
use zk_verify::{DeviceRecord, recheck};

use crate::authority::clock_is_set;
use crate::config::Config;
use crate::desired::DesiredDevice;
use crate::device::{
    AGENT, CERTIFICATE, Gate, NEXT, Older, Roots, Site, Trust, agree, belongs_to_nobody_else,
    change_record, is_of_device, register, revoked_at,
};
use crate::files::{self, PUBLIC};
use crate::hand::{Hand, Secrets};
use crate::local::{Role, Signer, read_certificate};
use crate::owner::Owners;
use crate::report::{Action, AddedDevice, FinishedRotation, Step};
use crate::{Authority, Certificate, CertificateRequest, Error, LocalSetup, Passphrase};

/// How far a change of key is.
pub(crate) enum Rotation {
    /// There is none.
    No,
    /// To the key of this certificate, which was not used yet.
    Waiting(Certificate),
    /// The device has used this certificate: its key has taken over.
    Promoted(Certificate),
}

impl Rotation {
    pub(crate) fn is_to(&self, key: &VerifyingKey) -> bool {
        matches!(self, Self::Waiting(next) if next.key() == key)
    }
}

impl LocalSetup {
    /// Prepares a device's change to another key: a second certificate, in
    /// `devices/NAME/next`, trusted and registered beside the first. Nothing that
    /// the device has stops working.
    ///
    /// The old key is retired once a record has come in under the new
    /// certificate: by [`LocalSetup::finish_rotation`] or
    /// [`LocalSetup::apply`](crate::LocalSetup::apply), whichever is first.
    /// What it has signed stays right, however late it arrives.
    ///
    /// Run again with the same key it completes what is missing. With another
    /// one, it gives up the change that was under way: that key is retired.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::NoKey`] if the device is revoked,
    /// [`Error::KeyUnchanged`], [`Error::KeyInUse`], [`Error::KeyRevoked`];
    /// otherwise as [`LocalSetup::add_device`].
    pub async fn rotate_device(
        &self,
        request: &CertificateRequest,
        hsm: Option<&str>,
        passphrase: &Passphrase,
        store: &Store,
        now: SystemTime,
    ) -> Result<AddedDevice, Error> {
        clock_is_set(now)?;
        let signer = Signer::of(self.device_authority(passphrase)?);
        let roots = self.authority_certificate(Role::Gateway)?;
        let _lock = files::lock(self.dir())?;
        let secrets = Secrets {
            authorities: Some(passphrase),
            owner: None,
        };
        let mut tell = |_: &Step| {};
        let hand = Hand::that_does(now, secrets, &mut tell);
        let site = Site {
            signer: &signer,
            roots: Roots::of_gateway(Some(&roots)),
            endpoint: self.endpoint().ok(),
            records: store.devices().await?,
            store: Some(store),
            gate: Gate::Store,
        };
        self.begin_rotation(hand, request, hsm, site).await
    }

    /// Puts another key beside the one that the device has.
    pub(crate) async fn begin_rotation(
        &self,
        mut hand: Hand<'_>,
        request: &CertificateRequest,
        hsm: Option<&str>,
        mut site: Site<'_>,
    ) -> Result<AddedDevice, Error> {
        let (name, key, now) = (request.device(), *request.key(), hand.now);
        let signer = site.signer;
        let mut trust = Trust::read(self)?;
        if !trust.file.devices.contains_key(name) {
            return Err(Error::UnknownDevice {
                device: name.clone(),
            });
        }
        if let Rotation::Promoted(_) = self
            .rotation_stage(&mut hand, name, &mut trust, &site)
            .await?
            && let Some(store) = site.store
        {
            site.records = store.devices().await?;
        }
        let registered = trust.active_key(name).ok_or_else(|| Error::NoKey {
            device: name.clone(),
        })?;
        if registered == key {
            return Err(Error::KeyUnchanged {
                device: name.clone(),
            });
        }
        belongs_to_nobody_else(&trust.file, name, &key)?;
        agree(&site.records, name, &registered)?;
        agree(&site.records, name, &key)?;
        let known = trust.file.key(name, KeyId::of(&key));
        if known.is_some_and(|known| revoked_at(known.state).is_some()) {
            return Err(Error::KeyRevoked {
                device: name.clone(),
                key: KeyId::of(&key),
            });
        }

        let dir = self.device_dir(name).join(NEXT);
        hand.make_dir(&dir)?;
        let file = dir.join(CERTIFICATE);
        let there = read_certificate(&file)?;
        let certificate = match there {
            Some(there) if signer.rejects(&there, Some(&key), now).is_none() => {
                hand.kept(&file);
                there
            }
            _ => {
                let issue =
                    |authority: &Authority, key: &_, now| authority.issue_device(name, key, now);
                let reason = "another key takes the place of one that was never used";
                let signed = signer.sign(&mut hand, Some(&key), issue, &file, reason)?;
                // one that does has signed it
                signed.ok_or(Error::NoAuthorities {
                    dir: self.dir().to_owned(),
                })?
            }
        };
        let desired = DesiredDevice {
            hsm: hsm.map(str::to_owned),
            ..DesiredDevice::default()
        };
        let owners = Owners::AsTheyAre;
        self.agent_files(&mut hand, &dir, name, &desired, &owners, &trust, &site)?;
        self.enter_next(&mut hand, name, &key, &mut trust)?;
        let principal = Some(certificate.principal());
        register(&mut hand, &site, name, principal, &trust.keys(name)).await?;
        let now = read_certificate(&self.device_dir(name).join(CERTIFICATE))?;
        let next = Some(&certificate);
        site.admit(&mut hand, name, now.as_ref(), next, Older::AsRecorded)
            .await?;
        Ok(AddedDevice {
            device: name.clone(),
            key: KeyId::of(&key),
            certificate,
            dir,
            steps: hand.steps,
        })
    }

    /// Retires a device's old key, now that a record has come in under the new
    /// certificate.
    ///
    /// # Errors
    /// [`Error::NoRotation`]; [`Error::NotConnected`], and then nothing has
    /// changed; [`Error::KeyInUse`], [`Error::KeyRevoked`] if the store or the
    /// trust file knows a key of the device otherwise; [`Error::NoAuthorities`], [`Error::ClockUnset`], [`Error::Busy`], [`Error::Envelope`],
    /// [`Error::Io`], [`Error::Malformed`], [`Error::Store`].
    pub async fn finish_rotation(
        &self,
        device: &DeviceId,
        store: &Store,
        now: SystemTime,
    ) -> Result<FinishedRotation, Error> {
        clock_is_set(now)?;
        let _lock = files::lock(self.dir())?;
        let signer = Signer {
            certificate: Some(self.authority_certificate(Role::Device)?),
            ..Signer::default()
        };
        let site = Site {
            signer: &signer,
            roots: Roots::of_gateway(None),
            endpoint: None,
            records: store.devices().await?,
            store: Some(store),
            gate: Gate::Store,
        };
        let mut tell = |_: &Step| {};
        let hand = Hand::that_does(now, Secrets::default(), &mut tell);
        self.end_rotation(hand, device, &site).await
    }

    /// Lets the new key take over, if it was used.
    pub(crate) async fn end_rotation(
        &self,
        mut hand: Hand<'_>,
        device: &DeviceId,
        site: &Site<'_>,
    ) -> Result<FinishedRotation, Error> {
        let mut trust = Trust::read(self)?;
        match self
            .rotation_stage(&mut hand, device, &mut trust, site)
            .await?
        {
            Rotation::No => Err(Error::NoRotation {
                device: device.clone(),
            }),
            Rotation::Waiting(_) => Err(Error::NotConnected {
                device: device.clone(),
                dir: self.device_dir(device).join(NEXT),
            }),
            Rotation::Promoted(certificate) => Ok(FinishedRotation {
                device: device.clone(),
                key: KeyId::of(certificate.key()),
                certificate,
                steps: hand.steps,
            }),
        }
    }

    /// The certificate that a device is changing to.
    pub(crate) fn next_certificate(&self, device: &DeviceId) -> Result<Option<Certificate>, Error> {
        read_certificate(&self.device_dir(device).join(NEXT).join(CERTIFICATE))
    }

    /// Lets the new key take over if it was used, completes its registration if
    /// it was not.
    pub(crate) async fn rotation_stage(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        trust: &mut Trust,
        site: &Site<'_>,
    ) -> Result<Rotation, Error> {
        let Some(next) = self.next_certificate(device)? else {
            return Ok(Rotation::No);
        };
        // its key is about to be trusted: a file alone doesn't speak for it
        let subject = next.parsed().tbs_certificate().subject().to_string();
        let issuer = site.signer.certificate.as_ref();
        if subject != format!("CN={device}")
            || issuer.is_some_and(|issuer| !next.is_issued_by(issuer))
        {
            let file = self.device_dir(device).join(NEXT).join(CERTIFICATE);
            let what = format!("not a certificate that was made here for {device}: remove it");
            return Err(Error::malformed(&file, what));
        }
        let principal = next.principal();
        let state = trust
            .file
            .key(device, KeyId::of(next.key()))
            .map(|known| known.state);
        if trust.active_key(device).is_none() || state.and_then(revoked_at).is_some() {
            return Ok(Rotation::No);
        }
        // nor does a trust file out of a backup, or a rotation that stopped before
        // the store and the other devices knew of it
        for key in [trust.active_key(device).as_ref(), Some(next.key())] {
            let Some(key) = key else { continue };
            belongs_to_nobody_else(&trust.file, device, key)?;
            agree(&site.records, device, key)?;
        }
        let record = site.records.iter().find(|(other, _)| *other == principal);
        let used = match (record, site.store) {
            (Some((_, record)), Some(store)) if state.is_some() => {
                is_used(store, device, &principal, record, &trust.keys(device)).await?
            }
            _ => false,
        };
        if !used {
            let file = self.device_dir(device).join(NEXT).join(CERTIFICATE);
            let reason = "the old key stays in use until a record comes in under this one";
            hand.step_file(Action::Kept, &file, reason);
            self.enter_next(hand, device, next.key(), trust)?;
            register(hand, site, device, Some(principal), &trust.keys(device)).await?;
            return Ok(Rotation::Waiting(next));
        }

        // Owners first, as ever. Nothing here takes a right away: what is
        // retired is still right.
        if let Some(trusted) = trust.file.devices.get_mut(device) {
            for known in &mut trusted.keys {
                known.state = match known.state {
                    _ if known.key == *next.key() => KeyState::Active,
                    KeyState::Active => KeyState::Retired,
                    other => other,
                };
            }
        }
        trust.write(
            hand,
            self,
            false,
            &format!("{device} has used its new key: the old one is retired"),
        )?;
        let keys = trust.keys(device);
        for (other, record) in &site.records {
            if record.device != *device || revoked_at(record.certificate).is_some() {
                continue;
            }
            let set = |record: &mut DeviceRecord| {
                record.keys.clone_from(&keys);
                if *other != principal && record.certificate == KeyState::Active {
                    record.certificate = KeyState::Retired;
                }
            };
            let reason = "the old key is retired";
            change_record(hand, site.store, other, record, set, reason).await?;
        }
        site.admit(hand, device, Some(&next), None, Older::Retired)
            .await?;
        self.take_next(hand, device, &next)?;
        Ok(Rotation::Promoted(next))
    }

    /// Moves what was made for the new key to where the old one's was; the
    /// certificate last, which says that this is still to be done.
    fn take_next(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        certificate: &Certificate,
    ) -> Result<(), Error> {
        let dir = self.device_dir(device);
        let next = dir.join(NEXT);
        let reason = "the new key's";
        let (from, to) = (next.join(AGENT), dir.join(AGENT));
        if let (Some(new), Some(mut agent)) = (Config::open(&from)?, Config::open(&to)?) {
            agent.set("device.hsm", new.text("device.hsm")?)?;
            hand.file(&to, agent.text_of().as_bytes(), PUBLIC, reason)?;
        }
        let file = dir.join(CERTIFICATE);
        hand.file(&file, certificate.pem().as_bytes(), PUBLIC, reason)?;
        let mut files: Vec<_> = files::list(&next)?;
        files.retain(|file| is_of_device(file));
        files.sort_by_key(|file| file.ends_with(CERTIFICATE));
        for file in files {
            hand.remove(&file, "in its place")?;
        }
        if !hand.plans() {
            files::remove_dir_if_empty(&next)?;
        }
        Ok(())
    }

    /// Trusts a key beside the active one; one that was on its way before it is
    /// retired.
    fn enter_next(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        key: &VerifyingKey,
        trust: &mut Trust,
    ) -> Result<(), Error> {
        let registered = trust.active_key(device);
        let keys = &mut trust.file.devices.entry(device.clone()).or_default().keys;
        for known in keys.iter_mut() {
            let is_neither = known.key != *key && Some(known.key) != registered;
            if is_neither && known.state == KeyState::Active {
                known.state = KeyState::Retired;
            }
        }
        // the newest last: the oldest active one is the one in use
        let known = keys.iter().position(|known| known.key == *key);
        if known.is_none_or(|place| keys[place].state != KeyState::Active) {
            if let Some(place) = known {
                keys.remove(place);
            }
            keys.push(TrustedKey {
                key: *key,
                state: KeyState::Active,
            });
        }
        let reason = format!("the next key of {device} is entered");
        trust.write(hand, self, false, &reason)
    }
}

/// Whether a record of the device has come in under this certificate. What the
/// store says is checked as far as it can be: the record has to be signed by a
/// key of the device.
async fn is_used(
    store: &Store,
    device: &DeviceId,
    principal: &str,
    record: &DeviceRecord,
    keys: &[TrustedKey],
) -> Result<bool, Error> {
    let is_it = |reading: &StoredReading| {
        reading.principal == principal
            && reading
                .envelope()
                .is_ok_and(|envelope| recheck(envelope, reading.received_at, device, keys).is_ok())
    };
    if let Some(latest) = store.latest(device).await?
        && is_it(&latest)
    {
        return Ok(true);
    }
    // What it brought first may be older than the certificate, by a spool that
    // was full of the past; what it brings next is not, unless its clock is
    // wrong, or was never set.
    let day = 24 * 60 * 60 * 1000;
    let since = record.registered_at.as_millis().saturating_sub(30 * day);
    let since = Timestamp::from_millis(since).unwrap_or(Timestamp::MAX);
    let epoch = Timestamp::from(SystemTime::UNIX_EPOCH);
    let unset = Timestamp::from_millis(366 * day).unwrap_or(Timestamp::MAX);
    for times in [since..=Timestamp::MAX, epoch..=unset] {
        let mut readings: Readings = store.readings(device, times);
        while let Some(reading) = readings.next().await {
            if is_it(&reading?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
