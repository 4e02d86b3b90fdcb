//! What is the same for all devices: tables, queue, logs, roles, function, rule.

mod document;
mod function;
mod logs;
mod queue;
mod roles;
mod rule;
mod tables;

use crate::Error;
use crate::aws::FunctionZip;
use crate::aws::account::Account;
use crate::hand::Hand;
use crate::report::Action;

/// Makes all of it what it is to be. All is looked at first: where a name is
/// taken by something that isn't ours, nothing is made.
pub(crate) async fn cloud_stage(
    hand: &mut Hand<'_>,
    account: &Account,
    zip: &FunctionZip,
) -> Result<(), Error> {
    let tables = tables::look(account).await?;
    let queue = queue::look(account).await?;
    let log_group = logs::look(account).await?;
    let function_role = roles::Role::of_function(&account.names);
    let found_function_role = roles::look(account, &function_role).await?;
    let rule_role = roles::Role::of_rule(&account.names);
    let found_rule_role = roles::look(account, &rule_role).await?;
    let function = function::look(account).await?;
    let rule = rule::look(account).await?;

    tables::make(hand, account, tables).await?;
    let queue = queue::make(hand, account, queue).await?;
    logs::make(hand, account, log_group).await?;
    roles::make(hand, account, &function_role, found_function_role).await?;
    roles::make(hand, account, &rule_role, found_rule_role).await?;
    function::make(hand, account, zip, function).await?;
    rule::make(hand, account, rule, queue.as_deref()).await
}

/// Takes it away again, what uses something before what it uses. Tables stay
/// unless `with_data`, and so does a queue with something in it.
pub(crate) async fn cloud_destroy_stage(
    hand: &mut Hand<'_>,
    account: &Account,
    with_data: bool,
) -> Result<(), Error> {
    rule::remove(hand, account).await?;
    function::remove(hand, account).await?;
    logs::remove(hand, account).await?;
    roles::remove(hand, account, &roles::Role::of_function(&account.names)).await?;
    roles::remove(hand, account, &roles::Role::of_rule(&account.names)).await?;
    queue::remove(hand, account, with_data).await?;
    tables::remove(hand, account, with_data).await
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
