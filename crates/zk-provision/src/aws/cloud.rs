//! What is the same for all devices: tables, queue, logs, roles, function, rule.

mod document;
mod function;
mod logs;
mod queue;
mod roles;
mod rule;
mod tables;

pub(crate) use function::{KIND as FUNCTION, running_on as function_architecture};
use roles::Role;

use crate::Error;
use crate::aws::FunctionZip;
use crate::aws::account::Account;
use crate::hand::Hand;
use crate::report::Action;

/// Makes all of it what it is to be. All is looked at first: where a name is
/// taken by something that isn't ours, nothing is made. Without a `zip`, the program
/// that is there stays.
pub(crate) async fn cloud_stage(
    hand: &mut Hand<'_>,
    account: &Account,
    zip: Option<&FunctionZip>,
) -> Result<(), Error> {
    let names = &account.names;
    let (function_role, rule_role) = (Role::of_function(names), Role::of_rule(names));
    // What is asked of an SDK is large, and would all be one future.
    let tables = Box::pin(tables::look(account)).await?;
    let queue = Box::pin(queue::look(account)).await?;
    let log_group = Box::pin(logs::look(account)).await?;
    let found_function_role = Box::pin(roles::look(account, &function_role)).await?;
    let found_rule_role = Box::pin(roles::look(account, &rule_role)).await?;
    let function = Box::pin(function::look(account)).await?;
    let rule = Box::pin(rule::look(account)).await?;
    if function.is_none() && zip.is_none() {
        return Err(Error::NoFunction {
            name: names.function(),
        });
    }

    Box::pin(tables::make(hand, account, tables)).await?;
    let queue = Box::pin(queue::make(hand, account, queue)).await?;
    Box::pin(logs::make(hand, account, log_group)).await?;
    Box::pin(roles::make(
        hand,
        account,
        &function_role,
        found_function_role,
    ))
    .await?;
    Box::pin(roles::make(hand, account, &rule_role, found_rule_role)).await?;
    Box::pin(function::make(hand, account, zip, function)).await?;
    Box::pin(rule::make(hand, account, rule, queue.as_deref())).await
}

/// Takes it away again, what uses something before what it uses. Tables stay
/// unless `with_data`, and so does a queue with something in it.
pub(crate) async fn cloud_destroy_stage(
    hand: &mut Hand<'_>,
    account: &Account,
    with_data: bool,
) -> Result<(), Error> {
    let names = &account.names;
    Box::pin(rule::remove(hand, account)).await?;
    Box::pin(function::remove(hand, account)).await?;
    Box::pin(logs::remove(hand, account)).await?;
    for role in [Role::of_function(names), Role::of_rule(names)] {
        Box::pin(roles::remove(hand, account, &role)).await?;
    }
    Box::pin(queue::remove(hand, account, with_data)).await?;
    Box::pin(tables::remove(hand, account, with_data)).await
}

/// What is there under one of our names, if it is ours. If it isn't, that it
/// stays is told.
fn only_ours<T>(
    hand: &mut Hand<'_>,
    kind: &'static str,
    name: &str,
    found: Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    match found {
        Err(Error::NotOurs { .. }) => {
            hand.resource(Action::Kept, kind, name, "not made by zk-setup");
            Ok(None)
        }
        found => found,
    }
}
