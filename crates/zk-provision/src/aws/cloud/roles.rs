//! The two roles, with no more rights than they need: exactly these.

use aws_sdk_iam::error::ProvideErrorMetadata;
use aws_sdk_iam::types::Tag;
use serde_json::{Value, json};

use super::document::{policy, says_the_same};
use super::{only_ours, queue};
use crate::Error;
use crate::aws::account::{Account, Names};
use crate::aws::failure::{failed, incomplete};
use crate::aws::ours::{Drift, SOON, patiently};
use crate::hand::Hand;
use crate::report::Action;

const KIND: &str = "IAM role";

/// What a role is to be.
pub(super) struct Role {
    pub(super) name: String,
    /// Who may act in it, and for whom.
    trust: Value,
    /// What it may do.
    rights: Value,
}

/// How a role is.
pub(super) struct Found {
    has_tags: bool,
    has_trust: bool,
    /// `None`: it has no policy of our name.
    has_rights: Option<bool>,
    /// Policies in the role that are not ours.
    others: Vec<String>,
    /// ARNs of policies that are attached to it.
    attached: Vec<String>,
}

impl Role {
    /// The function's: what [`Store::ingest`](zk_store::Store::ingest) asks, logs,
    /// and messages that failed too often.
    pub(super) fn of_function(names: &Names) -> Self {
        let table = |name: &str| names.arn("dynamodb", &format!("table/{}-{name}", names.prefix));
        let streams = names.arn("logs", &format!("log-group:{}:*", names.log_group()));
        Self {
            name: names.function(),
            // no more than that: a role is for functions of its own account alone, and
            // that Lambda names the account when it asks for one is not documented
            trust: trust("lambda.amazonaws.com", None),
            rights: policy(&[
                allow(&["dynamodb:GetItem"], &[table("devices")]),
                allow(
                    &[
                        "dynamodb:GetItem",
                        "dynamodb:PutItem",
                        "dynamodb:UpdateItem",
                    ],
                    &[table("readings"), table("quarantine")],
                ),
                allow(&["logs:CreateLogStream", "logs:PutLogEvents"], &[streams]),
                allow(&["sqs:SendMessage"], &[queue::arn(names)]),
            ]),
        }
    }

    /// The rule's: what it could not hand over.
    pub(super) fn of_rule(names: &Names) -> Self {
        Self {
            name: names.rule_role(),
            trust: trust("iot.amazonaws.com", Some(&names.account)),
            rights: policy(&[allow(&["sqs:SendMessage"], &[queue::arn(names)])]),
        }
    }

    fn resource(&self) -> String {
        format!("{KIND} {}", self.name)
    }
}

fn allow(actions: &[&str], resources: &[String]) -> Value {
    json!({ "Effect": "Allow", "Action": actions, "Resource": resources })
}

/// `account`: the one for which alone the service may act.
fn trust(service: &str, account: Option<&str>) -> Value {
    let mut statement = json!({
        "Effect": "Allow",
        "Principal": { "Service": service },
        "Action": "sts:AssumeRole",
    });
    if let Some(account) = account {
        statement["Condition"] = json!({ "StringEquals": { "aws:SourceAccount": account } });
    }
    policy(&[statement])
}

pub(super) async fn look(account: &Account, role: &Role) -> Result<Option<Found>, Error> {
    let (iam, name, resource) = (&account.iam, &role.name, role.resource());
    let there = match iam.get_role().role_name(name).send().await {
        Ok(answer) => answer.role,
        Err(error) if error.code() == Some(NOT_FOUND) => None,
        Err(error) => return Err(failed("iam:GetRole", &resource)(error)),
    };
    let Some(there) = there else {
        return Ok(None);
    };
    let tags = there.tags().iter().map(|tag| (tag.key(), tag.value()));
    let has_tags = account.names.own(&resource, tags)?;
    let trust = there.assume_role_policy_document().unwrap_or_default();

    let mut has_rights = None;
    let mut others = Vec::new();
    let mut policies = iam
        .list_role_policies()
        .role_name(name)
        .into_paginator()
        .items()
        .send();
    while let Some(policy) = policies.next().await {
        match policy.map_err(failed("iam:ListRolePolicies", &resource))? {
            ours if ours == POLICY => {
                let policy = iam
                    .get_role_policy()
                    .role_name(name)
                    .policy_name(POLICY)
                    .send()
                    .await
                    .map_err(failed("iam:GetRolePolicy", &resource))?;
                has_rights = Some(says_the_same(policy.policy_document(), &role.rights));
            }
            other => others.push(other),
        }
    }
    let mut attached = Vec::new();
    let mut policies = iam
        .list_attached_role_policies()
        .role_name(name)
        .into_paginator()
        .items()
        .send();
    while let Some(policy) = policies.next().await {
        let policy = policy.map_err(failed("iam:ListAttachedRolePolicies", &resource))?;
        attached.extend(policy.policy_arn);
    }
    Ok(Some(Found {
        has_tags,
        has_trust: says_the_same(trust, &role.trust),
        has_rights,
        others,
        attached,
    }))
}

pub(super) async fn make(
    hand: &mut Hand<'_>,
    account: &Account,
    role: &Role,
    found: Option<Found>,
) -> Result<(), Error> {
    let (iam, name, resource) = (&account.iam, &role.name, role.resource());
    let is_new = found.is_none();
    if is_new && !hand.plans() {
        create(account, role).await?;
    }
    let found = found.unwrap_or(Found {
        has_tags: true,
        has_trust: true,
        has_rights: None,
        others: Vec::new(),
        attached: Vec::new(),
    });
    let mut drift = Drift::default();
    let trust = drift.note(!found.has_trust, "others may act in it than are to");
    let rights = match found.has_rights {
        Some(true) => false,
        Some(false) => drift.note(true, "its rights are not those it is to have"),
        None => drift.note(true, "its rights are missing"),
    };
    for policy in found.others.iter().chain(&found.attached) {
        drift.note(true, format_args!("it has the rights of {policy} as well"));
    }
    let tag_it = drift.note(!found.has_tags, "its tags are incomplete");
    if !hand.plans() {
        if tag_it {
            let tags = tags(account, "iam:TagRole", &resource)?;
            let request = iam.tag_role().role_name(name).set_tags(Some(tags));
            let tagged = request.send().await;
            tagged.map_err(failed("iam:TagRole", &resource))?;
        }
        if trust {
            iam.update_assume_role_policy()
                .role_name(name)
                .policy_document(role.trust.to_string())
                .send()
                .await
                .map_err(failed("iam:UpdateAssumeRolePolicy", &resource))?;
        }
        if rights {
            iam.put_role_policy()
                .role_name(name)
                .policy_name(POLICY)
                .policy_document(role.rights.to_string())
                .send()
                .await
                .map_err(failed("iam:PutRolePolicy", &resource))?;
        }
        take_rights(account, role, &found.others, &found.attached).await?;
    }
    hand.mended(KIND, name, is_new, &drift);
    Ok(())
}

async fn create(account: &Account, role: &Role) -> Result<(), Error> {
    const OPERATION: &str = "iam:CreateRole";
    let tags = tags(account, OPERATION, &role.resource())?;
    let created = account
        .iam
        .create_role()
        .role_name(&role.name)
        .assume_role_policy_document(role.trust.to_string())
        .set_tags(Some(tags))
        .send()
        .await;
    match created {
        Ok(_) => Ok(()),
        // one that was asked twice: a moment ago there was none
        Err(error) if error.code() == Some("EntityAlreadyExists") => Ok(()),
        Err(error) => Err(failed(OPERATION, &role.resource())(error)),
    }
}

/// Takes away the policies of these names and ARNs.
async fn take_rights(
    account: &Account,
    role: &Role,
    inside: &[String],
    attached: &[String],
) -> Result<(), Error> {
    let (iam, name, resource) = (&account.iam, &role.name, role.resource());
    for policy in inside {
        let request = iam.delete_role_policy().role_name(name).policy_name(policy);
        match request.send().await {
            Ok(_) => {}
            Err(error) if error.code() == Some(NOT_FOUND) => {}
            Err(error) => return Err(failed("iam:DeleteRolePolicy", &resource)(error)),
        }
    }
    for policy in attached {
        let request = iam.detach_role_policy().role_name(name).policy_arn(policy);
        match request.send().await {
            Ok(_) => {}
            Err(error) if error.code() == Some(NOT_FOUND) => {}
            Err(error) => return Err(failed("iam:DetachRolePolicy", &resource)(error)),
        }
    }
    Ok(())
}

pub(super) async fn remove(
    hand: &mut Hand<'_>,
    account: &Account,
    role: &Role,
) -> Result<(), Error> {
    let name = &role.name;
    let Some(mut found) = only_ours(hand, KIND, name, look(account, role).await)? else {
        return Ok(());
    };
    if !hand.plans() {
        if found.has_rights.is_some() {
            found.others.push(POLICY.into());
        }
        take_rights(account, role, &found.others, &found.attached).await?;
        let delete = async || match account.iam.delete_role().role_name(name).send().await {
            Ok(_) => Ok(()),
            // one that was asked twice
            Err(error) if error.code() == Some(NOT_FOUND) => Ok(()),
            Err(error) => Err(failed("iam:DeleteRole", &role.resource())(error)),
        };
        // that its policies are gone is known a while after they are
        patiently(SOON, delete, |error| error.is_aws("DeleteConflict")).await?;
    }
    hand.resource(Action::Removed, KIND, name, "");
    Ok(())
}

fn tags(account: &Account, operation: &'static str, resource: &str) -> Result<Vec<Tag>, Error> {
    let tag = |(key, value): (&str, String)| Tag::builder().key(key).value(value).build();
    let tags: Result<_, _> = account.names.tags().into_iter().map(tag).collect();
    tags.map_err(|error| incomplete(operation, resource, error))
}

/// The only policy of a role of ours.
const POLICY: &str = "zk";
const NOT_FOUND: &str = "NoSuchEntity";
