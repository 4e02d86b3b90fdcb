//! The function's log group. The function may not make one itself, which would
//! keep everything for ever.

use aws_sdk_cloudwatchlogs::error::ProvideErrorMetadata;

use super::only_ours;
use crate::Error;
use crate::aws::account::Account;
use crate::aws::failure::failed;
use crate::aws::ours::{Drift, SOON, patiently};
use crate::hand::Hand;
use crate::report::Action;

const KIND: &str = "CloudWatch log group";

pub(super) struct Found {
    has_tags: bool,
    /// In days; without it, for ever.
    retention: Option<i32>,
}

pub(super) async fn look(account: &Account) -> Result<Option<Found>, Error> {
    let (name, resource) = (account.names.log_group(), resource(account));
    let mut groups = account
        .logs
        .describe_log_groups()
        .log_group_name_prefix(&name)
        .into_paginator()
        .items()
        .send();
    let group = loop {
        match groups.next().await {
            None => return Ok(None),
            Some(Ok(group)) if group.log_group_name() == Some(&name) => break group,
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failed("logs:DescribeLogGroups", &resource)(error)),
        }
    };
    let tags = account
        .logs
        .list_tags_for_resource()
        .resource_arn(arn(account))
        .send()
        .await
        .map_err(failed("logs:ListTagsForResource", &resource))?;
    Ok(Some(Found {
        has_tags: account
            .names
            .own(&resource, tags.tags.unwrap_or_default())?,
        retention: group.retention_in_days,
    }))
}

pub(super) async fn make(
    hand: &mut Hand<'_>,
    account: &Account,
    found: Option<Found>,
) -> Result<(), Error> {
    let (name, resource) = (account.names.log_group(), resource(account));
    let is_new = found.is_none();
    if is_new && !hand.plans() {
        create(account).await?;
    }
    let found = found.unwrap_or(Found {
        has_tags: true,
        retention: None,
    });
    let mut drift = Drift::default();
    let days = |days| format!("{days} days");
    let retain = drift.compare("retention", found.retention.map(days), &days(RETENTION));
    let tag = drift.note(!found.has_tags, "its tags are incomplete");
    if !hand.plans() {
        if tag {
            let mut request = account.logs.tag_resource().resource_arn(arn(account));
            for (key, value) in account.names.tags() {
                request = request.tags(key, value);
            }
            let tagged = request.send().await;
            tagged.map_err(failed("logs:TagResource", &resource))?;
        }
        if retain {
            account
                .logs
                .put_retention_policy()
                .log_group_name(&name)
                .retention_in_days(RETENTION)
                .send()
                .await
                .map_err(failed("logs:PutRetentionPolicy", &resource))?;
        }
    }
    hand.mended(KIND, &name, is_new, &drift);
    Ok(())
}

async fn create(account: &Account) -> Result<(), Error> {
    let mut request = account
        .logs
        .create_log_group()
        .log_group_name(account.names.log_group());
    for (key, value) in account.names.tags() {
        request = request.tags(key, value);
    }
    let create = async || match request.clone().send().await {
        Ok(_) => Ok(()),
        // one that was asked twice: a moment ago there was none
        Err(error) if error.code() == Some("ResourceAlreadyExistsException") => Ok(()),
        Err(error) => Err(failed("logs:CreateLogGroup", &resource(account))(error)),
    };
    // an earlier one of the same name may be on its way out
    patiently(SOON, create, |error| {
        error.is_aws("OperationAbortedException")
    })
    .await
}

pub(super) async fn remove(hand: &mut Hand<'_>, account: &Account) -> Result<(), Error> {
    let name = account.names.log_group();
    if only_ours(hand, KIND, &name, look(account).await)?.is_none() {
        return Ok(());
    }
    if !hand.plans() {
        let deleted = account
            .logs
            .delete_log_group()
            .log_group_name(&name)
            .send()
            .await;
        match deleted {
            Ok(_) => {}
            // one that was asked twice
            Err(error) if error.code() == Some("ResourceNotFoundException") => {}
            Err(error) => return Err(failed("logs:DeleteLogGroup", &resource(account))(error)),
        }
    }
    hand.resource(Action::Removed, KIND, &name, "");
    Ok(())
}

fn arn(account: &Account) -> String {
    let names = &account.names;
    names.arn("logs", &format!("log-group:{}", names.log_group()))
}

fn resource(account: &Account) -> String {
    format!("{KIND} {}", account.names.log_group())
}

/// In days.
const RETENTION: i32 = 30;
