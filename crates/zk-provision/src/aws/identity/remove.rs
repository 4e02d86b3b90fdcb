//! Taking things, policies, certificates and the authority away again.

use std::collections::BTreeSet;

use aws_sdk_iot::types::{CaCertificateStatus, CertificateStatus};

use super::authority::AUTHORITY;
use super::{CERTIFICATE, POLICY, SET_UP, THING, id_in, if_there, is_id};
use crate::Error;
use crate::aws::account::Account;
use crate::aws::failure::failed;
use crate::aws::ours::{PATIENCE, patiently};
use crate::hand::Hand;
use crate::report::Action;

impl Account {
    /// Takes away whatever lets devices in, found by attributes and tags; then
    /// the authority, if nothing of anybody else's hangs on it. `authority`: the
    /// id of the one in the operator's directory.
    pub(crate) async fn identity_destroy_stage(
        &self,
        hand: &mut Hand<'_>,
        authority: Option<&str>,
    ) -> Result<(), Error> {
        let authorities = self.our_authorities().await?;
        let things = self.our_things().await?;
        let (mut removed, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for thing in &things {
            for arn in self.attached_to(thing).await? {
                let id = id_in(&arn).to_owned();
                // something else than a certificate is not ours to remove
                if !is_id(&id) {
                    if !hand.plans() {
                        self.detach_from_thing(thing, &arn).await?;
                    }
                } else if self.is_on_others(&arn, &things).await? {
                    self.let_go(hand, &arn, thing).await?;
                    kept.insert(id);
                } else {
                    self.remove_certificate(hand, &arn, Some(thing)).await?;
                    removed.insert(id);
                }
            }
        }
        // What a run that was interrupted has made, and hung on nothing.
        let known: BTreeSet<_> = authority
            .map(str::to_owned)
            .into_iter()
            .chain(authorities.iter().cloned())
            .collect();
        for authority in &known {
            let mut others = 0_u32;
            for arn in self.issued_by(authority).await? {
                let id = id_in(&arn);
                if removed.contains(id) {
                    continue;
                }
                if kept.contains(id) {
                    others += 1;
                } else if self.is_on_others(&arn, &things).await? || self.has_others(&arn).await? {
                    others += 1;
                    hand.resource(Action::Kept, CERTIFICATE, id, ELSEWHERE);
                } else {
                    self.remove_certificate(hand, &arn, None).await?;
                }
            }
            if !authorities.contains(authority) {
                if self.authority(authority).await?.is_some() {
                    let reason = "not registered by this set-up";
                    hand.resource(Action::Kept, AUTHORITY, authority, reason);
                }
            } else if others > 0 {
                let reason = "other certificates hang on it";
                hand.resource(Action::Kept, AUTHORITY, authority, reason);
            } else {
                if !hand.plans() {
                    self.delete_authority(authority).await?;
                }
                hand.resource(Action::Removed, AUTHORITY, authority, "");
            }
        }
        for thing in &things {
            self.remove_policy(hand, thing).await?;
            if !hand.plans() {
                self.delete_thing(thing).await?;
            }
            hand.resource(Action::Removed, THING, thing, "");
        }
        for policy in self.policies_by_prefix().await? {
            let is_told = |step: &crate::Step| matches!(&step.item, crate::Item::Resource { kind: POLICY, name } if *name == policy);
            if !hand.steps.iter().any(is_told) {
                self.remove_policy(hand, &policy).await?;
            }
        }
        Ok(())
    }

    /// The names of our things.
    async fn our_things(&self) -> Result<Vec<String>, Error> {
        let pages = self.iot.list_things().attribute_name(SET_UP);
        let pages = pages.attribute_value(&self.names.prefix);
        let mut pages = pages.into_paginator().items().send();
        let mut all = Vec::new();
        while let Some(thing) = pages.next().await {
            let thing = thing.map_err(failed("iot:ListThings", SET_UP))?;
            // somebody may have taken the attribute over with another thing
            let is_ours = |name: &String| name.starts_with(&format!("{}-", self.names.prefix));
            all.extend(thing.thing_name.filter(is_ours));
        }
        Ok(all)
    }

    /// The ids of the authorities with our tag.
    async fn our_authorities(&self) -> Result<BTreeSet<String>, Error> {
        let mut pages = self
            .iot
            .list_ca_certificates()
            .into_paginator()
            .items()
            .send();
        let mut all = BTreeSet::new();
        while let Some(found) = pages.next().await {
            let found = found.map_err(failed("iot:ListCACertificates", "this account"))?;
            let (Some(id), Some(arn)) = (found.certificate_id, found.certificate_arn) else {
                continue;
            };
            if self.is_ours(&arn).await? {
                all.insert(id);
            }
        }
        Ok(all)
    }

    /// The policies whose names could be ours.
    async fn policies_by_prefix(&self) -> Result<Vec<String>, Error> {
        let mut pages = self.iot.list_policies().into_paginator().items().send();
        let mut all = Vec::new();
        while let Some(policy) = pages.next().await {
            let policy = policy.map_err(failed("iot:ListPolicies", "this account"))?;
            let name = policy.policy_name.unwrap_or_default();
            if name.starts_with(&format!("{}-", self.names.prefix)) {
                all.push(name);
            }
        }
        Ok(all)
    }

    /// The ARNs of the certificates that an authority has issued.
    async fn issued_by(&self, authority: &str) -> Result<Vec<String>, Error> {
        let (mut all, mut marker) = (Vec::new(), None);
        loop {
            let page = self.iot.list_certificates_by_ca();
            let page = page.ca_certificate_id(authority).set_marker(marker);
            let page = if_there(page.send().await, "iot:ListCertificatesByCA", authority)?;
            let Some(page) = page else { break };
            let found = page.certificates.unwrap_or_default();
            all.extend(found.into_iter().filter_map(|found| found.certificate_arn));
            marker = page.next_marker.filter(|marker| !marker.is_empty());
            if marker.is_none() {
                break;
            }
        }
        Ok(all)
    }

    /// Whether a certificate hangs on a thing that isn't `ours`.
    async fn is_on_others(&self, arn: &str, ours: &[String]) -> Result<bool, Error> {
        let pages = self.iot.list_principal_things().principal(arn);
        let mut pages = pages.into_paginator().items().send();
        while let Some(thing) = pages.next().await {
            match if_there(thing, "iot:ListPrincipalThings", arn)? {
                Some(thing) if ours.contains(&thing) => {}
                Some(_) => return Ok(true),
                None => break,
            }
        }
        Ok(false)
    }

    /// Whether a certificate has a policy that isn't ours.
    async fn has_others(&self, arn: &str) -> Result<bool, Error> {
        for policy in self.policies_of(arn).await? {
            let policy = self.names.arn("iot", &format!("policy/{policy}"));
            if !self.is_ours(&policy).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes what is ours off a certificate of our thing that is somebody's as well.
    async fn let_go(&self, hand: &mut Hand<'_>, arn: &str, thing: &str) -> Result<(), Error> {
        if !hand.plans() {
            // of the same name
            let detached = self.iot.detach_policy().policy_name(thing).target(arn);
            if_there(detached.send().await, "iot:DetachPolicy", thing)?;
            self.detach_from_thing(thing, arn).await?;
        }
        hand.resource(Action::Kept, CERTIFICATE, id_in(arn), ELSEWHERE);
        Ok(())
    }

    async fn is_ours(&self, arn: &str) -> Result<bool, Error> {
        let tags = self.tags_of(arn).await?;
        match self.names.own(arn, tags) {
            Ok(_) => Ok(true),
            Err(Error::NotOurs { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes it off its `thing` only when it lets nobody in any more: what a run
    /// that is interrupted leaves is found by that, or hangs on nothing.
    async fn remove_certificate(
        &self,
        hand: &mut Hand<'_>,
        arn: &str,
        thing: Option<&str>,
    ) -> Result<(), Error> {
        let id = id_in(arn);
        if !hand.plans() {
            for policy in self.policies_of(arn).await? {
                let detached = self.iot.detach_policy().policy_name(&policy).target(arn);
                if_there(detached.send().await, "iot:DetachPolicy", &policy)?;
            }
            if let Some(CertificateStatus::Active) = self.status_of(id).await? {
                self.set_status(id, CertificateStatus::Inactive).await?;
            }
            if let Some(thing) = thing {
                self.detach_from_thing(thing, arn).await?;
            }
            let delete = async || {
                let deleted = self.iot.delete_certificate().certificate_id(id);
                if_there(deleted.send().await, "iot:DeleteCertificate", id)
            };
            patiently(PATIENCE, delete, is_held).await?;
        }
        hand.resource(Action::Removed, CERTIFICATE, id, "");
        Ok(())
    }

    async fn remove_policy(&self, hand: &mut Hand<'_>, name: &str) -> Result<(), Error> {
        let found = self.iot.get_policy().policy_name(name).send().await;
        let Some(found) = if_there(found, "iot:GetPolicy", name)? else {
            return Ok(());
        };
        if !self.is_ours(found.policy_arn().unwrap_or_default()).await? {
            hand.resource(Action::Kept, POLICY, name, "not made by zk-setup");
            return Ok(());
        }
        if !hand.plans() {
            self.remove_versions(name).await?;
            let delete = async || {
                let deleted = self.iot.delete_policy().policy_name(name);
                if_there(deleted.send().await, "iot:DeletePolicy", name)
            };
            // for minutes it may count as attached where it was a moment ago
            patiently(2 * PATIENCE, delete, is_held).await?;
        }
        hand.resource(Action::Removed, POLICY, name, "");
        Ok(())
    }

    async fn detach_from_thing(&self, thing: &str, arn: &str) -> Result<(), Error> {
        let detached = self.iot.detach_thing_principal().thing_name(thing);
        let detached = detached.principal(arn).send().await;
        if_there(detached, "iot:DetachThingPrincipal", thing)?;
        Ok(())
    }

    async fn delete_thing(&self, thing: &str) -> Result<(), Error> {
        let delete = async || {
            let deleted = self.iot.delete_thing().thing_name(thing);
            if_there(deleted.send().await, "iot:DeleteThing", thing)
        };
        patiently(PATIENCE, delete, is_held).await?;
        Ok(())
    }

    async fn delete_authority(&self, id: &str) -> Result<(), Error> {
        self.set_authority_status(id, CaCertificateStatus::Inactive)
            .await?;
        let deleted = self.iot.delete_ca_certificate().certificate_id(id);
        if_there(deleted.send().await, "iot:DeleteCACertificate", id)?;
        Ok(())
    }
}

const ELSEWHERE: &str = "it hangs on something that isn't ours";

/// Whether it is still held by something that was detached: AWS takes its time
/// to see that.
fn is_held(error: &Error) -> bool {
    ["DeleteConflictException", "InvalidRequestException"]
        .iter()
        .any(|code| error.is_aws(code))
}
