//! The dead-letter queue: what neither rule nor function could deliver.

use std::collections::HashMap;

use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::QueueAttributeName;

use super::only_ours;
use crate::Error;
use crate::aws::account::{Account, Names};
use crate::aws::failure::failed;
use crate::aws::ours::{Drift, PATIENCE, patiently};
use crate::hand::Hand;
use crate::report::Action;

const KIND: &str = "SQS queue";

pub(super) struct Found {
    url: String,
    has_tags: bool,
    retention: Option<u32>,
    is_encrypted: bool,
    /// With a key of the account's instead, which would want rights of its own.
    has_own_key: bool,
    messages: u64,
}

pub(super) fn arn(names: &Names) -> String {
    names.arn("sqs", &names.queue())
}

pub(super) async fn look(account: &Account) -> Result<Option<Found>, Error> {
    let (name, resource) = (account.names.queue(), resource(account));
    let answer = account.sqs.get_queue_url().queue_name(&name).send().await;
    let url = match answer {
        Ok(answer) => answer.queue_url.unwrap_or_default(),
        Err(error) if is_missing(error.code()) => return Ok(None),
        Err(error) => return Err(failed("sqs:GetQueueUrl", &resource)(error)),
    };
    let tags = account.sqs.list_queue_tags().queue_url(&url).send().await;
    let tags = match tags {
        Ok(tags) => tags.tags.unwrap_or_default(),
        // it is on its way out
        Err(error) if is_missing(error.code()) => return Ok(None),
        Err(error) => return Err(failed("sqs:ListQueueTags", &resource)(error)),
    };
    let has_tags = account.names.own(&resource, tags)?;
    let answer = account
        .sqs
        .get_queue_attributes()
        .queue_url(&url)
        .attribute_names(QueueAttributeName::All)
        .send()
        .await;
    let attributes = match answer {
        Ok(answer) => answer.attributes.unwrap_or_default(),
        Err(error) if is_missing(error.code()) => return Ok(None),
        Err(error) => return Err(failed("sqs:GetQueueAttributes", &resource)(error)),
    };
    Ok(Some(Found::of(url, has_tags, &attributes)))
}

/// Answers where it answers, which a plan of a new one can't know.
pub(super) async fn make(
    hand: &mut Hand<'_>,
    account: &Account,
    found: Option<Found>,
) -> Result<Option<String>, Error> {
    let (name, resource) = (account.names.queue(), resource(account));
    let Some(found) = found else {
        let url = if hand.plans() {
            None
        } else {
            create(account).await?
        };
        hand.resource(Action::Created, KIND, &name, "");
        return Ok(url);
    };
    let mut drift = Drift::default();
    let days = |seconds| format!("{} days", seconds / DAY);
    drift.compare("retention", found.retention.map(days), &days(RETENTION));
    drift.note(!found.is_encrypted, "it is not encrypted by SQS");
    let set = !drift.is_none();
    let tag = drift.note(!found.has_tags, "its tags are incomplete");
    if !hand.plans() {
        if tag {
            let mut request = account.sqs.tag_queue().queue_url(&found.url);
            for (key, value) in account.names.tags() {
                request = request.tags(key, value);
            }
            let tagged = request.send().await;
            tagged.map_err(failed("sqs:TagQueue", &resource))?;
        }
        if set {
            let mut attributes = attributes();
            if found.has_own_key {
                attributes.insert(QueueAttributeName::KmsMasterKeyId, String::new());
            }
            account
                .sqs
                .set_queue_attributes()
                .queue_url(&found.url)
                .set_attributes(Some(attributes))
                .send()
                .await
                .map_err(failed("sqs:SetQueueAttributes", &resource))?;
        }
    }
    hand.mended(KIND, &name, false, &drift);
    Ok(Some(found.url))
}

/// The same name is free again a minute after a queue of it was deleted.
async fn create(account: &Account) -> Result<Option<String>, Error> {
    let mut request = account
        .sqs
        .create_queue()
        .queue_name(account.names.queue())
        .set_attributes(Some(attributes()));
    for (key, value) in account.names.tags() {
        request = request.tags(key, value);
    }
    let ask = async || {
        let created = request.clone().send().await;
        let url = created.map(|created| created.queue_url);
        url.map_err(failed("sqs:CreateQueue", &resource(account)))
    };
    patiently(PATIENCE, ask, |error| {
        error.is_aws("AWS.SimpleQueueService.QueueDeletedRecently")
            || error.is_aws("QueueDeletedRecently")
    })
    .await
}

pub(super) async fn remove(
    hand: &mut Hand<'_>,
    account: &Account,
    with_data: bool,
) -> Result<(), Error> {
    let name = account.names.queue();
    let Some(found) = only_ours(hand, KIND, &name, look(account).await)? else {
        return Ok(());
    };
    if found.messages > 0 && !with_data {
        let reason = format!("{} messages in it that were not stored", found.messages);
        hand.resource(Action::Kept, KIND, &name, reason);
        return Ok(());
    }
    if !hand.plans() {
        let deleted = account
            .sqs
            .delete_queue()
            .queue_url(&found.url)
            .send()
            .await;
        match deleted {
            Ok(_) => {}
            // one that was asked twice
            Err(error) if is_missing(error.code()) => {}
            Err(error) => return Err(failed("sqs:DeleteQueue", &resource(account))(error)),
        }
    }
    hand.resource(Action::Removed, KIND, &name, "");
    Ok(())
}

impl Found {
    fn of(url: String, has_tags: bool, attributes: &HashMap<QueueAttributeName, String>) -> Self {
        let number = |name| attributes.get(&name).and_then(|value| value.parse().ok());
        let messages = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let encrypted = attributes.get(&QueueAttributeName::SqsManagedSseEnabled);
        let key = attributes.get(&QueueAttributeName::KmsMasterKeyId);
        let has_own_key = key.is_some_and(|key| !key.is_empty());
        Self {
            url,
            has_tags,
            retention: number(QueueAttributeName::MessageRetentionPeriod),
            is_encrypted: encrypted.is_some_and(|value| value == "true") && !has_own_key,
            has_own_key,
            messages: messages.into_iter().filter_map(number).map(u64::from).sum(),
        }
    }
}

fn attributes() -> HashMap<QueueAttributeName, String> {
    HashMap::from([
        (
            QueueAttributeName::MessageRetentionPeriod,
            RETENTION.to_string(),
        ),
        (QueueAttributeName::SqsManagedSseEnabled, "true".into()),
    ])
}

fn resource(account: &Account) -> String {
    format!("{KIND} {}", account.names.queue())
}

fn is_missing(code: Option<&str>) -> bool {
    matches!(
        code,
        Some("AWS.SimpleQueueService.NonExistentQueue" | "QueueDoesNotExist")
    )
}

const DAY: u32 = 24 * 60 * 60;
/// The longest that there is.
const RETENTION: u32 = 14 * DAY;
