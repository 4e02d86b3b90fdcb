//! The authority that signs devices, made known to AWS IoT.

use aws_sdk_iot::types::CaCertificateStatus;

use super::{EXISTS, if_there};
use crate::aws::account::Account;
use crate::aws::failure::failed;
use crate::aws::ours::Drift;
use crate::hand::Hand;
use crate::local::Signer;
use crate::report::{Action, Age};
use crate::{Certificate, Error};

/// A registered authority.
pub(crate) struct Registered {
    pub(super) arn: String,
    is_active: bool,
    pem: String,
}

impl Account {
    /// Registers the authority, which proves that its key is at hand.
    pub(crate) async fn authority_stage(
        &self,
        hand: &mut Hand<'_>,
        signer: &Signer,
    ) -> Result<(), Error> {
        let Some(certificate) = &signer.certificate else {
            hand.resource(Action::Created, AUTHORITY, "yet to be made", "");
            return Ok(());
        };
        let id = certificate.principal();
        if let Some(found) = self.authority(&id).await? {
            return self.keep_authority(hand, &id, &found).await;
        }
        hand.need_authorities(Age::Known)?;
        if let (false, Some(authority)) = (hand.plans(), &signer.authority) {
            let code = self.iot.get_registration_code().send().await;
            let code = code.map_err(failed("iot:GetRegistrationCode", "this account"))?;
            let code = code.registration_code().unwrap_or_default();
            let proof = authority.issue_proof(code, hand.now)?;
            let registered = self
                .iot
                .register_ca_certificate()
                .ca_certificate(certificate.pem())
                .verification_certificate(proof.pem())
                .set_as_active(true)
                .allow_auto_registration(false)
                .set_tags(Some(self.iot_tags()?))
                .send()
                .await;
            if let Err(error) = registered {
                let elsewhere = error
                    .as_service_error()
                    .is_some_and(|error| error.meta().code() == Some(EXISTS));
                if !elsewhere {
                    return Err(failed("iot:RegisterCACertificate", &id)(error));
                }
                // an answer that was lost, or somebody else's registration
                let its_id = error
                    .as_service_error()
                    .and_then(already)
                    .unwrap_or_else(|| id.clone());
                let taken = || Error::AuthorityTaken {
                    subject: certificate.subject(),
                    region: self.names.region.clone(),
                };
                let found = self.authority(&its_id).await?.ok_or_else(taken)?;
                if !found.is(certificate) {
                    return Err(taken());
                }
                return self.keep_authority(hand, &its_id, &found).await;
            }
        }
        hand.resource(Action::Created, AUTHORITY, &id, "");
        Ok(())
    }

    async fn keep_authority(
        &self,
        hand: &mut Hand<'_>,
        id: &str,
        found: &Registered,
    ) -> Result<(), Error> {
        let mut drift = Drift::default();
        if drift.note(!found.is_active, "it is INACTIVE") && !hand.plans() {
            self.set_authority_status(id, CaCertificateStatus::Active)
                .await?;
        }
        let tags = self.tags_of(&found.arn).await?;
        match self.names.own(&format!("{AUTHORITY} {id}"), tags) {
            Ok(is_complete) => {
                if drift.note(!is_complete, "a tag is missing") && !hand.plans() {
                    self.tag(&found.arn).await?;
                }
                hand.mended(AUTHORITY, id, false, &drift);
            }
            // its key is ours all the same: it may be used, and not removed
            Err(Error::NotOurs { .. }) if drift.is_none() => {
                let reason = "not registered by this set-up, so it stays when that goes";
                hand.resource(Action::Kept, AUTHORITY, id, reason);
            }
            Err(Error::NotOurs { .. }) => hand.mended(AUTHORITY, id, false, &drift),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(crate) async fn authority(&self, id: &str) -> Result<Option<Registered>, Error> {
        let found = self.iot.describe_ca_certificate().certificate_id(id);
        let found = if_there(found.send().await, "iot:DescribeCACertificate", id)?;
        let found = found.and_then(|found| found.certificate_description);
        Ok(found.map(|found| Registered {
            is_active: found.status == Some(CaCertificateStatus::Active),
            arn: found.certificate_arn.unwrap_or_default(),
            pem: found.certificate_pem.unwrap_or_default(),
        }))
    }

    pub(super) async fn set_authority_status(
        &self,
        id: &str,
        status: CaCertificateStatus,
    ) -> Result<(), Error> {
        let changed = self.iot.update_ca_certificate().certificate_id(id);
        changed
            .new_status(status)
            .send()
            .await
            .map_err(failed("iot:UpdateCACertificate", id))?;
        Ok(())
    }
}

impl Registered {
    pub(crate) fn status(&self) -> &'static str {
        if self.is_active { "ACTIVE" } else { "INACTIVE" }
    }

    fn is(&self, certificate: &Certificate) -> bool {
        Certificate::from_pem(self.pem.as_bytes())
            .is_ok_and(|found| found.der() == certificate.der())
    }
}

/// The id of what is there already.
fn already(
    error: &aws_sdk_iot::operation::register_ca_certificate::RegisterCACertificateError,
) -> Option<String> {
    use aws_sdk_iot::operation::register_ca_certificate::RegisterCACertificateError as Failure;
    match error {
        Failure::ResourceAlreadyExistsException(found) => found.resource_id.clone(),
        _ => None,
    }
}

pub(super) const AUTHORITY: &str = "IoT CA certificate";
