//! Who may connect: the authority, and each device's thing, policy and
//! certificates.

mod authority;
mod remove;

use std::collections::BTreeSet;
use std::fmt;

use aws_sdk_iot::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_iot::types::{AttributePayload, CertificateStatus, Tag};
use serde_json::{Value, json};
use zk_envelope::{DeviceId, KeyState};
use zk_verify::{DeviceRecord, topic_of};

use crate::aws::account::{Account, Names};
use crate::aws::failure::{failed, incomplete, told};
use crate::aws::ours::{Drift, SOON, VERSION, patiently};
use crate::device::{Older, Site};
use crate::hand::Hand;
use crate::report::Action;
use crate::{Certificate, Error};

impl Account {
    /// Where devices publish to, `host:port`.
    pub(crate) async fn endpoint(&self) -> Result<String, Error> {
        let found = self
            .iot
            .describe_endpoint()
            // without it, AWS answers with one whose certificate few still trust
            .endpoint_type(ENDPOINT)
            .send()
            .await
            .map_err(failed("iot:DescribeEndpoint", ENDPOINT))?;
        let address = found.endpoint_address.filter(|address| !address.is_empty());
        let address = told(address, "iot:DescribeEndpoint", ENDPOINT, "address")?;
        // a stand-in has a port of its own
        Ok(if address.contains(':') {
            address
        } else {
            format!("{address}:8443")
        })
    }

    /// Lets a device in with these certificates, and makes of its others what
    /// they are to be. Without one that is yet to be made.
    ///
    /// What lets it in is the last thing done: a certificate that has no policy
    /// may connect to nothing.
    pub(crate) async fn admit(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        admitted: &[Option<&Certificate>],
        older: Older,
        site: &Site<'_>,
    ) -> Result<(), Error> {
        let attached = self.thing_stage(hand, device).await?;
        self.policy_stage(hand, device).await?;
        for certificate in admitted {
            let Some(certificate) = certificate else {
                let name = format!("of {device}, yet to be signed");
                hand.resource(Action::Created, CERTIFICATE, &name, "");
                continue;
            };
            let issuer = site.signer.certificate.as_ref();
            self.certificate_stage(hand, device, certificate, issuer, &attached)
                .await?;
        }
        let admitted: Vec<_> = admitted
            .iter()
            .flatten()
            .map(|certificate| certificate.principal())
            .collect();
        for (principal, record) in of_device(&site.records, device) {
            if admitted.contains(principal) {
                continue;
            }
            let wanted = match (record.certificate, older) {
                (KeyState::Revoked { .. }, _) => CertificateStatus::Revoked,
                (KeyState::Retired, _) | (KeyState::Active, Older::Retired) => {
                    CertificateStatus::Inactive
                }
                // it may be the one that the device still uses
                (KeyState::Active, Older::AsRecorded) => CertificateStatus::Active,
            };
            self.status_stage(hand, principal, &wanted).await?;
        }
        Ok(())
    }

    /// Revokes every certificate that the device was ever let in with.
    pub(crate) async fn shut(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        records: &[(String, DeviceRecord)],
    ) -> Result<(), Error> {
        let mut known = BTreeSet::new();
        for (principal, _) in of_device(records, device) {
            known.insert(principal.as_str());
            self.status_stage(hand, principal, &CertificateStatus::Revoked)
                .await?;
        }
        match self.our_thing(device).await {
            Ok(Some(_)) => {}
            // what hangs on it isn't this device's either
            Ok(None) | Err(Error::NotOurs { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        // one that an interrupted run has registered, and no more
        for arn in self.attached_to(&self.names.thing(device)).await? {
            let id = id_in(&arn);
            if is_id(id) && !known.contains(id) {
                self.status_stage(hand, id, &CertificateStatus::Revoked)
                    .await?;
            }
        }
        Ok(())
    }

    /// Makes the device's thing. Answers the ARNs of the certificates that hang
    /// on it.
    async fn thing_stage(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
    ) -> Result<Vec<String>, Error> {
        let name = self.names.thing(device);
        let mut drift = Drift::default();
        let found = self.our_thing(device).await?;
        let is_new = found.is_none();
        let mut attached = Vec::new();
        if let Some(is_complete) = found {
            attached = self.attached_to(&name).await?;
            drift.note(!is_complete, "it doesn't say which form of set-up it is");
        }
        if !hand.plans() && (is_new || !drift.is_none()) {
            let mut attributes = AttributePayload::builder().merge(true);
            for (key, value) in thing_attributes(&self.names) {
                attributes = attributes.attributes(key, value);
            }
            let attributes = attributes.build();
            if is_new {
                let made = self.iot.create_thing().thing_name(&name);
                made.attribute_payload(attributes)
                    .send()
                    .await
                    .map_err(failed("iot:CreateThing", &name))?;
            } else {
                let changed = self.iot.update_thing().thing_name(&name);
                changed
                    .attribute_payload(attributes)
                    .send()
                    .await
                    .map_err(failed("iot:UpdateThing", &name))?;
            }
        }
        hand.mended(THING, &name, is_new, &drift);
        Ok(attached)
    }

    /// Whether there is a thing of ours for the device, and if so, whether its
    /// attributes are all as they are to be.
    async fn our_thing(&self, device: &DeviceId) -> Result<Option<bool>, Error> {
        let name = self.names.thing(device);
        let found = self.iot.describe_thing().thing_name(&name).send().await;
        let Some(found) = if_there(found, "iot:DescribeThing", &name)? else {
            return Ok(None);
        };
        let attributes = found.attributes.unwrap_or_default();
        let tags = attributes.iter().filter_map(|(key, value)| {
            let known = [
                (SET_UP, crate::aws::account::TAG),
                (OF_VERSION, crate::aws::ours::VERSION_TAG),
            ];
            let tag = known.into_iter().find(|(name, _)| name == key)?.1;
            Some((tag, value.as_str()))
        });
        self.names.own(&format!("{THING} {name}"), tags).map(Some)
    }

    /// The ARNs of what hangs on a thing.
    async fn attached_to(&self, thing: &str) -> Result<Vec<String>, Error> {
        let mut pages = self
            .iot
            .list_thing_principals()
            .thing_name(thing)
            .into_paginator()
            .items()
            .send();
        let mut all = Vec::new();
        while let Some(principal) = pages.next().await {
            all.push(principal.map_err(failed("iot:ListThingPrincipals", thing))?);
        }
        Ok(all)
    }

    /// Makes the device's policy: it may publish to its own topic, and connect
    /// under its own name.
    async fn policy_stage(&self, hand: &mut Hand<'_>, device: &DeviceId) -> Result<(), Error> {
        let name = self.names.thing(device);
        let wanted = policy(&self.names, device);
        let found = self.iot.get_policy().policy_name(&name).send().await;
        let found = if_there(found, "iot:GetPolicy", &name)?;
        let is_new = found.is_none();
        let mut drift = Drift::default();
        if let Some(found) = &found {
            let arn = found.policy_arn().unwrap_or_default();
            let tags = self.tags_of(arn).await?;
            let is_complete = self.names.own(&format!("{POLICY} {name}"), tags)?;
            if drift.note(!is_complete, "a tag is missing") && !hand.plans() {
                self.tag(arn).await?;
            }
            let document = found.policy_document().unwrap_or_default();
            let is_same = serde_json::from_str::<Value>(document).is_ok_and(|it| it == wanted);
            if drift.note(!is_same, "it allows something else") && !hand.plans() {
                self.replace_policy(&name, &wanted).await?;
            }
        } else if !hand.plans() {
            let mut made = self.iot.create_policy().policy_name(&name);
            for tag in self.iot_tags()? {
                made = made.tags(tag);
            }
            made.policy_document(wanted.to_string())
                .send()
                .await
                .map_err(failed("iot:CreatePolicy", &name))?;
        }
        hand.mended(POLICY, &name, is_new, &drift);
        Ok(())
    }

    /// Puts another version of a policy in force. There are five at most: the
    /// others go first.
    async fn replace_policy(&self, name: &str, document: &Value) -> Result<(), Error> {
        self.remove_versions(name).await?;
        self.iot
            .create_policy_version()
            .policy_name(name)
            .policy_document(document.to_string())
            .set_as_default(true)
            .send()
            .await
            .map_err(failed("iot:CreatePolicyVersion", name))?;
        Ok(())
    }

    /// Removes all versions of a policy but the one in force.
    async fn remove_versions(&self, name: &str) -> Result<(), Error> {
        let versions = self.iot.list_policy_versions().policy_name(name).send();
        let versions = versions
            .await
            .map_err(failed("iot:ListPolicyVersions", name))?;
        for version in versions.policy_versions() {
            if version.is_default_version {
                continue;
            }
            let removed = self.iot.delete_policy_version().policy_name(name);
            let removed = removed.set_policy_version_id(version.version_id.clone());
            if_there(removed.send().await, "iot:DeletePolicyVersion", name)?;
        }
        Ok(())
    }

    /// Registers a certificate, lets it in, and hangs it on the device's thing.
    async fn certificate_stage(
        &self,
        hand: &mut Hand<'_>,
        device: &DeviceId,
        certificate: &Certificate,
        issuer: Option<&Certificate>,
        attached: &[String],
    ) -> Result<(), Error> {
        let id = certificate.principal();
        let name = self.names.thing(device);
        let arn = self.certificate_arn(&id);
        let mut drift = Drift::default();
        let status = self.status_of(&id).await?;
        match &status {
            None if hand.plans() => {}
            None => self.register(certificate, issuer).await?,
            // somebody has shut it out, and whoever that was had a reason
            Some(CertificateStatus::Revoked) => {
                return Err(Error::RevokedInAws {
                    device: device.clone(),
                    principal: id,
                });
            }
            Some(CertificateStatus::Active) => {}
            Some(other) => {
                drift.note(true, format_args!("it is {other}"));
                if !hand.plans() {
                    self.set_status(&id, CertificateStatus::Active).await?;
                }
            }
        }
        let is_new = status.is_none();
        let policies = if is_new {
            Vec::new()
        } else {
            self.policies_of(&arn).await?
        };
        let has_policy = policies.contains(&name);
        drift.note(!has_policy && !is_new, "its policy is not attached");
        let has_thing = attached.contains(&arn);
        drift.note(!has_thing && !is_new, "it is not attached to its thing");
        let others: Vec<_> = policies
            .iter()
            .map(String::as_str)
            .filter(|other| *other != name)
            .collect();
        if !hand.plans() {
            if !has_thing {
                self.attach_to_thing(&name, &arn).await?;
            }
            if !has_policy {
                self.attach_policy(&name, &arn).await?;
            }
        }
        if is_new || !drift.is_none() || others.is_empty() {
            hand.mended(CERTIFICATE, &id, is_new, &drift);
        } else {
            let reason = format!(
                "it has a policy that isn't ours, too: {}",
                others.join(", ")
            );
            hand.resource(Action::Kept, CERTIFICATE, &id, reason);
        }
        Ok(())
    }

    async fn register(
        &self,
        certificate: &Certificate,
        issuer: Option<&Certificate>,
    ) -> Result<(), Error> {
        let registered = self
            .iot
            .register_certificate()
            .certificate_pem(certificate.pem())
            // there may be several authorities of one name
            .set_ca_certificate_pem(issuer.map(|issuer| issuer.pem().to_owned()))
            .status(CertificateStatus::Active)
            .send()
            .await;
        match registered {
            Err(error) if error.code() == Some(EXISTS) => Ok(()),
            other => other
                .map(drop)
                .map_err(failed("iot:RegisterCertificate", &certificate.principal())),
        }
    }

    async fn attach_to_thing(&self, thing: &str, arn: &str) -> Result<(), Error> {
        let attach = async || {
            let attached = self.iot.attach_thing_principal().thing_name(thing);
            let attached = attached.principal(arn).send().await.map(drop);
            attached.map_err(failed("iot:AttachThingPrincipal", thing))
        };
        patiently(SOON, attach, is_missing).await
    }

    async fn attach_policy(&self, policy: &str, arn: &str) -> Result<(), Error> {
        let attach = async || {
            let attached = self.iot.attach_policy().policy_name(policy).target(arn);
            let attached = attached.send().await.map(drop);
            attached.map_err(failed("iot:AttachPolicy", policy))
        };
        patiently(SOON, attach, is_missing).await
    }

    /// Gives a certificate that is registered this status. One that isn't is
    /// let in nowhere. What was revoked stays so.
    async fn status_stage(
        &self,
        hand: &mut Hand<'_>,
        id: &str,
        wanted: &CertificateStatus,
    ) -> Result<(), Error> {
        let Some(status) = self.status_of(id).await? else {
            return Ok(());
        };
        if status == *wanted || status == CertificateStatus::Revoked {
            hand.resource(Action::Kept, CERTIFICATE, id, "");
            return Ok(());
        }
        if !hand.plans() {
            self.set_status(id, wanted.clone()).await?;
        }
        let reason = match wanted {
            CertificateStatus::Revoked => "revoked: it is refused from now on".to_owned(),
            CertificateStatus::Inactive => "retired: another one has taken over".to_owned(),
            _ => format!("it is {status}"),
        };
        hand.resource(Action::Changed, CERTIFICATE, id, reason);
        Ok(())
    }

    /// How a certificate stands, if it is registered.
    async fn status_of(&self, id: &str) -> Result<Option<CertificateStatus>, Error> {
        let found = self.iot.describe_certificate().certificate_id(id);
        let found = if_there(found.send().await, "iot:DescribeCertificate", id)?;
        Ok(found
            .and_then(|found| found.certificate_description)
            .and_then(|found| found.status))
    }

    async fn set_status(&self, id: &str, status: CertificateStatus) -> Result<(), Error> {
        let changed = self.iot.update_certificate().certificate_id(id);
        changed
            .new_status(status)
            .send()
            .await
            .map_err(failed("iot:UpdateCertificate", id))?;
        Ok(())
    }

    /// The names of the policies that a certificate has.
    async fn policies_of(&self, arn: &str) -> Result<Vec<String>, Error> {
        let pages = self.iot.list_attached_policies().target(arn);
        let mut pages = pages.into_paginator().items().send();
        let mut all = Vec::new();
        while let Some(policy) = pages.next().await {
            let policy = policy.map_err(failed("iot:ListAttachedPolicies", arn))?;
            all.extend(policy.policy_name);
        }
        Ok(all)
    }

    fn certificate_arn(&self, id: &str) -> String {
        self.names.arn("iot", &format!("cert/{id}"))
    }

    /// The tags of something in IoT.
    pub(crate) async fn tags_of(&self, arn: &str) -> Result<Vec<(String, String)>, Error> {
        let pages = self.iot.list_tags_for_resource().resource_arn(arn);
        let mut pages = pages.into_paginator().items().send();
        let mut all = Vec::new();
        while let Some(tag) = pages.next().await {
            let tag = tag.map_err(failed("iot:ListTagsForResource", arn))?;
            all.push((tag.key, tag.value.unwrap_or_default()));
        }
        Ok(all)
    }

    async fn tag(&self, arn: &str) -> Result<(), Error> {
        self.iot
            .tag_resource()
            .resource_arn(arn)
            .set_tags(Some(self.iot_tags()?))
            .send()
            .await
            .map_err(failed("iot:TagResource", arn))?;
        Ok(())
    }

    fn iot_tags(&self) -> Result<Vec<Tag>, Error> {
        let tag = |(key, value): (&str, String)| {
            let tag = Tag::builder().key(key).value(value).build();
            tag.map_err(|error| incomplete("iot:TagResource", key, error))
        };
        self.names.tags().into_iter().map(tag).collect()
    }
}

/// What a device may do: publish to its topic, over HTTPS or MQTT. A literal
/// topic, since what AWS would put in the place of a variable is not known over
/// HTTPS.
fn policy(names: &Names, device: &DeviceId) -> Value {
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": "iot:Publish",
                "Resource": names.arn("iot", &format!("topic/{}", topic_of(device))),
            },
            {
                "Effect": "Allow",
                "Action": "iot:Connect",
                "Resource": names.arn("iot", &format!("client/{device}")),
            },
        ],
    })
}

/// A thing has no tags; these say the same.
fn thing_attributes(names: &Names) -> [(&'static str, String); 2] {
    [
        (SET_UP, names.prefix.clone()),
        (OF_VERSION, VERSION.to_string()),
    ]
}

/// The device's certificates in the store, by ids that AWS could know.
fn of_device<'a>(
    records: &'a [(String, DeviceRecord)],
    device: &'a DeviceId,
) -> impl Iterator<Item = &'a (String, DeviceRecord)> {
    records
        .iter()
        .filter(move |(principal, record)| record.device == *device && is_id(principal))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The id at the end of a certificate's ARN.
fn id_in(arn: &str) -> &str {
    arn.rsplit_once('/').map_or(arn, |(_, id)| id)
}

/// The answer, or `None` if what it is about isn't there.
fn if_there<T, E, R>(
    answer: Result<T, SdkError<E, R>>,
    operation: &'static str,
    resource: &str,
) -> Result<Option<T>, Error>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    match answer {
        Err(error) if error.code() == Some(MISSING) => Ok(None),
        other => other.map(Some).map_err(failed(operation, resource)),
    }
}

fn is_missing(error: &Error) -> bool {
    error.is_aws(MISSING)
}

const THING: &str = "IoT thing";
const POLICY: &str = "IoT policy";
const CERTIFICATE: &str = "IoT certificate";

/// The attributes of a thing that say whose it is.
const SET_UP: &str = "zk-set-up";
const OF_VERSION: &str = "zk-version";

/// Those whose certificates lead to Amazon's own roots.
const ENDPOINT: &str = "iot:Data-ATS";

const MISSING: &str = "ResourceNotFoundException";
const EXISTS: &str = "ResourceAlreadyExistsException";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_publish_to_its_own_topic_and_no_more() {
        let names = Names {
            prefix: "zk".into(),
            partition: "aws-cn".into(),
            region: "cn-north-1".into(),
            account: "123456789012".into(),
        };
        let policy = policy(&names, &"pi-01".parse().unwrap());
        let wanted = json!([
            [
                "iot:Publish",
                "arn:aws-cn:iot:cn-north-1:123456789012:topic/Zymkey/pi-01"
            ],
            [
                "iot:Connect",
                "arn:aws-cn:iot:cn-north-1:123456789012:client/pi-01"
            ],
        ]);
        let statements = policy["Statement"].as_array().unwrap();
        let found: Vec<_> = statements
            .iter()
            .map(|statement| json!([statement["Action"], statement["Resource"]]))
            .collect();
        assert_eq!(Value::from(found), wanted);
        assert!(
            statements
                .iter()
                .all(|statement| statement["Effect"] == "Allow")
        );
        // AWS takes 2048 characters
        let longest = names.thing(&"d".repeat(64).parse().unwrap());
        assert!(longest.len() <= 128 && policy.to_string().len() < 2048);
    }

    /// A store may have others, of which AWS would not even be asked.
    #[test]
    fn ids_of_certificates_are_told_from_other_principals() {
        let id = "0a".repeat(32);
        assert!(is_id(&id));
        for other in [
            "",
            "000000000000",
            "AROAEXAMPLE:session",
            &id[1..],
            &format!("{id}0"),
        ] {
            assert!(!is_id(other), "{other}");
        }
        let arn = format!("arn:aws:iot:eu-central-1:123456789012:cert/{id}");
        assert_eq!(id_in(&arn), id);
    }
}
