//! The topic rule, which hands the devices' messages to the function.

use aws_sdk_iot::error::ProvideErrorMetadata;
use aws_sdk_iot::types::{
    Action as RuleAction, LambdaAction, SqsAction, Tag, TopicRule, TopicRulePayload,
};

use super::{function, only_ours};
use crate::Error;
use crate::aws::account::{Account, Names};
use crate::aws::failure::{failed, incomplete};
use crate::aws::ours::{Drift, PATIENCE, patiently};
use crate::hand::Hand;
use crate::report::Action;

const KIND: &str = "IoT topic rule";

#[derive(Default)]
pub(super) struct Found {
    rule: Option<Ours>,
    /// Other rules that take the same messages.
    rivals: Vec<String>,
}

struct Ours {
    has_tags: bool,
    there: TopicRule,
}

pub(super) async fn look(account: &Account) -> Result<Found, Error> {
    let (iot, names) = (&account.iot, &account.names);
    let (name, resource) = (names.rule(), resource(names));
    // Of a rule that is missing, AWS says that it may not be looked at.
    let (mut is_there, mut rivals) = (false, Vec::new());
    let mut rules = iot.list_topic_rules().into_paginator().items().send();
    while let Some(rule) = rules.next().await {
        let rule = rule.map_err(failed("iot:ListTopicRules", "the rules"))?;
        let pattern = rule.topic_pattern().unwrap_or_default();
        match rule.rule_name {
            Some(found) if found == name => is_there = true,
            Some(found) if rule.rule_disabled != Some(true) && takes_ours(pattern) => {
                rivals.push(found);
            }
            _ => {}
        }
    }
    rivals.sort();
    if !is_there {
        return Ok(Found { rule: None, rivals });
    }
    let tags = account.tags_of(&arn(names)).await?;
    let has_tags = names.own(&resource, tags)?;
    let there = iot
        .get_topic_rule()
        .rule_name(&name)
        .send()
        .await
        .map_err(failed("iot:GetTopicRule", &resource))?;
    let rule = there.rule.map(|there| Ours { has_tags, there });
    Ok(Found { rule, rivals })
}

pub(super) async fn make(
    hand: &mut Hand<'_>,
    account: &Account,
    found: Found,
    queue: Option<&str>,
) -> Result<(), Error> {
    let (iot, names) = (&account.iot, &account.names);
    let (name, resource) = (names.rule(), resource(names));
    let Some(Ours { has_tags, there }) = &found.rule else {
        if !hand.plans() {
            create(account, queue).await?;
        }
        hand.resource(Action::Created, KIND, &name, rivalry(&found.rivals));
        return Ok(());
    };
    let wanted = payload(names, queue)?;
    let mut drift = Drift::default();
    drift.note(there.sql() != Some(wanted.sql()), "its SQL is not ours");
    let version = there.aws_iot_sql_version();
    drift.compare("SQL version", version, &SQL_VERSION);
    drift.note(there.rule_disabled() == Some(true), "it is disabled");
    let calls = there.actions() == wanted.actions();
    drift.note(!calls, "it does not only call the function");
    let (saves, ours) = (there.error_action(), wanted.error_action());
    let saves = match (saves.and_then(|to| to.sqs()), ours.and_then(|to| to.sqs())) {
        (Some(there), Some(ours)) => {
            there.role_arn() == ours.role_arn()
                && there.queue_url() == ours.queue_url()
                && there.use_base64() != Some(true)
        }
        _ => false,
    };
    drift.note(!saves, "what it can't hand over does not go to the queue");
    let replace = !drift.is_none();
    let tag = drift.note(!has_tags, "its tags are incomplete");
    if !hand.plans() {
        if tag {
            let tags = names.tags().map(|(key, value)| {
                Tag::builder()
                    .key(key)
                    .value(value)
                    .build()
                    .map_err(|error| incomplete("iot:TagResource", &resource, error))
            });
            let tags = tags.into_iter().collect::<Result<_, _>>()?;
            let request = iot.tag_resource().resource_arn(arn(names));
            let tagged = request.set_tags(Some(tags)).send().await;
            tagged.map_err(failed("iot:TagResource", &resource))?;
        }
        if replace {
            let request = iot
                .replace_topic_rule()
                .rule_name(&name)
                .topic_rule_payload(wanted);
            let ask = async || {
                let replaced = request.clone().send().await.map(drop);
                replaced.map_err(failed("iot:ReplaceTopicRule", &resource))
            };
            patiently(PATIENCE, ask, role_is_new).await?;
        }
    }
    let (action, mut reason) = drift.told();
    let rivalry = rivalry(&found.rivals);
    if !rivalry.is_empty() {
        let semicolon = if reason.is_empty() { "" } else { "; " };
        reason = format!("{reason}{semicolon}{rivalry}");
    }
    hand.resource(action, KIND, &name, reason);
    Ok(())
}

async fn create(account: &Account, queue: Option<&str>) -> Result<(), Error> {
    let names = &account.names;
    // as in a query; nothing in them would have to be encoded
    let tags = names.tags().map(|(key, value)| format!("{key}={value}"));
    let request = account
        .iot
        .create_topic_rule()
        .rule_name(names.rule())
        .tags(tags.join("&"))
        .topic_rule_payload(payload(names, queue)?);
    let ask = async || match request.clone().send().await {
        Ok(_) => Ok(()),
        // one that was asked twice: a moment ago there was none
        Err(error) if error.code() == Some("ResourceAlreadyExistsException") => Ok(()),
        Err(error) => Err(failed("iot:CreateTopicRule", &resource(names))(error)),
    };
    patiently(PATIENCE, ask, role_is_new).await
}

fn payload(names: &Names, queue: Option<&str>) -> Result<TopicRulePayload, Error> {
    let incomplete = |error| incomplete("iot:CreateTopicRule", &resource(names), error);
    let call = LambdaAction::builder()
        .function_arn(function::arn(names))
        .build()
        .map_err(incomplete)?;
    let save = SqsAction::builder()
        .role_arn(names.role_arn(&names.rule_role()))
        .queue_url(queue.unwrap_or_default())
        .use_base64(false)
        .build()
        .map_err(incomplete)?;
    TopicRulePayload::builder()
        .sql(SQL)
        .aws_iot_sql_version(SQL_VERSION)
        .description("Messages of devices to their verification; made by zk-setup")
        .rule_disabled(false)
        .actions(RuleAction::builder().lambda(call).build())
        .error_action(RuleAction::builder().sqs(save).build())
        .build()
        .map_err(incomplete)
}

pub(super) async fn remove(hand: &mut Hand<'_>, account: &Account) -> Result<(), Error> {
    let names = &account.names;
    let name = names.rule();
    let found = look(account).await.map(|found| found.rule);
    if only_ours(hand, KIND, &name, found)?.is_none() {
        return Ok(());
    }
    if !hand.plans() {
        let deleted = account
            .iot
            .delete_topic_rule()
            .rule_name(&name)
            .send()
            .await;
        if let Err(error) = deleted {
            let error = failed("iot:DeleteTopicRule", &resource(names))(error);
            // Of one that is gone, AWS says that it may not be deleted.
            let is_gone = look(account).await.is_ok_and(|found| found.rule.is_none());
            if !is_gone {
                return Err(error);
            }
        }
    }
    hand.resource(Action::Removed, KIND, &name, "");
    Ok(())
}

/// Whether IoT doesn't know yet that it may act in the role. It says so in more
/// than one way, and each has one of these in it.
fn role_is_new(error: &Error) -> bool {
    error.is_aws_saying("InvalidRequestException", "sts:AssumeRole")
        || error.is_aws_saying("InvalidRequestException", "nable to assume role")
}

/// Whether messages of our devices go to a filter of topics.
fn takes_ours(filter: &str) -> bool {
    let mut levels = filter.split('/');
    for ours in [Some("Zymkey"), None] {
        match (levels.next(), ours) {
            (Some("#"), _) => return true,
            (Some("+"), _) => {}
            (Some(level), Some(ours)) if level == ours => {}
            // the name of one device
            (Some(level), None) if !level.is_empty() => {}
            _ => return false,
        }
    }
    // a # at the end stands for no level, too
    matches!(
        (levels.next(), levels.next()),
        (None, _) | (Some("#"), None)
    )
}

fn rivalry(rivals: &[String]) -> String {
    if rivals.is_empty() {
        return String::new();
    }
    let rules = rivals.join(", ");
    format!("other rules take the same messages as well: {rules}")
}

fn arn(names: &Names) -> String {
    names.arn("iot", &format!("rule/{}", names.rule()))
}

fn resource(names: &Names) -> String {
    format!("{KIND} {}", names.rule())
}

/// The message as it was sent, in Base64; beside it, and so that no member of it
/// can pose as one, what the broker knows.
const SQL: &str = "SELECT encode(*, 'base64') AS message, principal() AS principal, \
                   topic() AS topic, timestamp() AS receivedAt FROM 'Zymkey/+'";
const SQL_VERSION: &str = "2016-03-23";

#[cfg(test)]
mod tests {
    use super::{role_is_new, takes_ours};
    use crate::Error;

    /// As AWS was seen to say it.
    #[test]
    fn a_role_that_is_new_is_known_by_what_aws_says() {
        let said = |source: &str| Error::Aws {
            operation: "iot:CreateTopicRule",
            resource: "IoT topic rule zk_verify".into(),
            code: Some("InvalidRequestException".into()),
            source: source.into(),
        };
        for passing in [
            "iot.amazonaws.com is unable to perform: sts:AssumeRole on resource: \
             arn:aws:iam::123456789012:role/zk-rule",
            "AWS IoT (iot.amazonaws.com) is unable to assume role (sts:AssumeRole) on resource: \
             arn:aws:iam::123456789012:role/zk-rule.  If the role was just created or updated, \
             please try again in a few seconds.",
            "Unable to assume role: arn:aws:iam::123456789012:role/zk-rule",
        ] {
            assert!(role_is_new(&said(passing)), "{passing}");
        }
        assert!(!role_is_new(&said("Topic rule payload is not valid")));
    }

    #[test]
    fn filters_that_take_our_messages() {
        for filter in [
            "Zymkey/+",
            "Zymkey/#",
            "Zymkey/pi-01",
            "#",
            "+/+",
            "+/#",
            "+/pi-01",
            "+/+/#",
            "Zymkey/+/#",
        ] {
            assert!(takes_ours(filter), "{filter}");
        }
        for filter in [
            "",
            "Zymkey",
            "zymkey/+",
            "Zymkey/",
            "Zymkey/+/+",
            "Zymkey/+/a",
            "a/#",
            "+",
            "a/+",
            "$aws/things/+/shadow/#",
            "Zymkey/+/a/#",
        ] {
            assert!(!takes_ours(filter), "{filter}");
        }
    }
}
