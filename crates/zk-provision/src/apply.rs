//! From what is there to what is to be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use zk_envelope::DeviceId;

use crate::authority::clock_is_set;
use crate::desired::{Desired, DesiredDevice, Others};
use crate::device::{Gate, Roots, Site, Trust, revoked_at};
use crate::hand::{Hand, Secrets};
use crate::local::Role;
use crate::owner::Owners;
use crate::report::{Plan, Step};
use crate::{Error, LocalSetup, files};

impl LocalSetup {
    /// What [`LocalSetup::apply`] would do now. It writes nothing, and needs no
    /// passphrase.
    ///
    /// # Errors
    /// What keeps it from being done: as [`LocalSetup::apply`], but for
    /// passphrases.
    pub async fn plan(&self, desired: &Desired, now: SystemTime) -> Result<Plan, Error> {
        clock_is_set(now)?;
        let mut hand = Hand::that_plans(now);
        self.carry_out(&mut hand, desired).await?;
        Ok(Plan {
            steps: hand.steps,
            needs: hand.needs,
            revokes: hand.revokes,
        })
    }

    /// Makes the set-up what it is to be: authorities, gateway, store, owner's
    /// key, devices, in this order. `tell` hears of each step when it is done.
    ///
    /// It is safe to run again, and after a failure at any place that is what
    /// completes it: every step looks at what is there. A device's key gets into
    /// the trust file before the gateway takes its records.
    ///
    /// # Errors
    /// [`Error::PassphraseNeeded`] where [`Plan::needs`] says so;
    /// [`Error::WrongPassphrase`]; [`Error::NotAgreed`]; and whatever
    /// [`LocalSetup::init_authorities`], [`LocalSetup::init_gateway`],
    /// [`LocalSetup::add_device`] and [`LocalSetup::revoke_device`] answer.
    pub async fn apply(
        &self,
        desired: &Desired,
        secrets: Secrets<'_>,
        now: SystemTime,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<Vec<Step>, Error> {
        clock_is_set(now)?;
        files::make_dir(self.dir())?;
        let _lock = files::lock(self.dir())?;
        let mut hand = Hand::that_does(now, secrets, tell);
        self.carry_out(&mut hand, desired).await?;
        Ok(hand.steps)
    }

    async fn carry_out(&self, hand: &mut Hand<'_>, desired: &Desired) -> Result<(), Error> {
        let devices = self.authority_stage(hand, Role::Device)?;
        let gateways = self.authority_stage(hand, Role::Gateway)?;
        let gateway = self
            .gateway_stage(
                hand,
                &desired.gateway,
                &desired.names_at_first,
                &gateways,
                devices.certificate.as_ref(),
            )
            .await?;
        let done = async {
            let mut trust = Trust::read(self)?;
            let owners = self.owner_stage(hand, &desired.owners, &trust.file)?;
            self.reader_stage(hand, &gateway.uri, gateway.prefix.as_deref())?;
            let site = Site {
                signer: &devices,
                roots: Roots::of_gateway(gateways.certificate.as_ref()),
                endpoint: gateway.endpoint.clone(),
                records: match &gateway.store {
                    Some(store) => store.devices().await?,
                    None => Vec::new(),
                },
                store: gateway.store.as_ref(),
                gate: Gate::Store,
            };
            let wanted = (&desired.devices, &desired.others);
            self.devices_stage(hand, wanted, &owners, &mut trust, &site)
                .await
        };
        let done = done.await;
        if let Some(store) = gateway.store {
            store.close().await;
        }
        done
    }

    /// Makes all devices what they are to be: those that are named, and those
    /// that are there.
    pub(crate) async fn devices_stage(
        &self,
        hand: &mut Hand<'_>,
        (devices, others): (&BTreeMap<DeviceId, DesiredDevice>, &Others),
        owners: &Owners,
        trust: &mut Trust,
        site: &Site<'_>,
    ) -> Result<(), Error> {
        let mut names: BTreeSet<_> = devices.keys().cloned().collect();
        names.extend(trust.file.devices.keys().cloned());
        if *others != Others::Keep {
            names.extend(site.records.iter().map(|(_, record)| record.device.clone()));
        }
        for name in &names {
            let as_it_is = DesiredDevice::default();
            let wanted = match devices.get(name) {
                Some(wanted) => wanted,
                None if *others != Others::Keep => {
                    let agreed = match others {
                        Others::RemoveThese(agreed) => Some(&agreed[..]),
                        Others::Keep | Others::Remove => None,
                    };
                    self.remove_stage(hand, name, agreed, trust, site).await?;
                    continue;
                }
                None if trust.active_key(name).is_some() => &as_it_is,
                None => {
                    // a revocation that was interrupted
                    let is_open = site.records.iter().any(|(_, record)| {
                        record.device == *name && revoked_at(record.certificate).is_none()
                    });
                    if !trust.is_open(name) {
                        if is_open {
                            self.revoke_stage(hand, name, trust, site).await?;
                        } else {
                            site.shut(hand, name).await?;
                        }
                    }
                    continue;
                }
            };
            self.device_stage(hand, name, wanted, owners, trust, site)
                .await?;
        }
        Ok(())
    }
}
