//! The Lambda function that verifies, who may invoke it, and what becomes of a
//! message that it could not store.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_sdk_lambda::error::ProvideErrorMetadata;
use aws_sdk_lambda::operation::get_function_configuration::GetFunctionConfigurationOutput;
use aws_sdk_lambda::primitives::Blob;
use aws_sdk_lambda::types::{
    Architecture, DestinationConfig, Environment, FunctionCode, LastUpdateStatus,
    LastUpdateStatusReasonCode, OnFailure, Runtime, State, StateReasonCode,
};
use serde_json::{Value, json};

use super::document::normal;
use super::{only_ours, queue};
use crate::Error;
use crate::aws::FunctionZip;
use crate::aws::account::{Account, Names};
use crate::aws::failure::failed;
use crate::aws::ours::{Drift, PATIENCE, patiently};
use crate::hand::Hand;
use crate::report::Action;

pub(crate) const KIND: &str = "Lambda function";
const PERMISSION: &str = "Lambda permission";
const FAILURES: &str = "Lambda failure destination";

pub(super) struct Found {
    has_tags: bool,
    configuration: GetFunctionConfigurationOutput,
    /// Nothing invokes it, by a limit of 0.
    is_stopped: bool,
    /// Who may invoke it.
    permissions: Vec<Value>,
    failures: Option<Failures>,
}

/// What becomes of a message that fails.
#[derive(PartialEq, Eq)]
struct Failures {
    retries: Option<i32>,
    queue: Option<String>,
}

pub(super) async fn look(account: &Account) -> Result<Option<Found>, Error> {
    let (lambda, names) = (&account.lambda, &account.names);
    let (name, resource) = (names.function(), resource(names));
    let Some(configuration) = configuration(account).await? else {
        return Ok(None);
    };
    let tags = lambda.list_tags().resource(arn(names)).send().await;
    let tags = tags.map_err(failed("lambda:ListTags", &resource))?;
    let has_tags = names.own(&resource, tags.tags.unwrap_or_default())?;
    let limit = lambda.get_function_concurrency().function_name(&name);
    let limit = limit.send().await;
    let limit = limit.map_err(failed("lambda:GetFunctionConcurrency", &resource))?;
    let is_stopped = limit.reserved_concurrent_executions == Some(0);
    let permissions = match lambda.get_policy().function_name(&name).send().await {
        Ok(answer) => statements(answer.policy().unwrap_or_default()),
        Err(error) if error.code() == Some(NOT_FOUND) => Vec::new(),
        Err(error) => return Err(failed("lambda:GetPolicy", &resource)(error)),
    };
    let failures = lambda
        .get_function_event_invoke_config()
        .function_name(&name)
        .send()
        .await;
    let failures = match failures {
        Ok(there) => {
            let destination = there.destination_config.and_then(|to| to.on_failure);
            Some(Failures {
                retries: there.maximum_retry_attempts,
                queue: destination.and_then(|to| to.destination),
            })
        }
        Err(error) if error.code() == Some(NOT_FOUND) => None,
        Err(error) => {
            return Err(failed("lambda:GetFunctionEventInvokeConfig", &resource)(
                error,
            ));
        }
    };
    Ok(Some(Found {
        has_tags,
        configuration,
        is_stopped,
        permissions,
        failures,
    }))
}

async fn configuration(account: &Account) -> Result<Option<GetFunctionConfigurationOutput>, Error> {
    let names = &account.names;
    let request = account.lambda.get_function_configuration();
    match request.function_name(names.function()).send().await {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.code() == Some(NOT_FOUND) => Ok(None),
        Err(error) => {
            let operation = "lambda:GetFunctionConfiguration";
            Err(failed(operation, &resource(names))(error))
        }
    }
}

/// Waits until the function runs as it was last told to.
async fn finished(account: &Account, operation: &'static str) -> Result<(), Error> {
    let there = settled(account).await?;
    let Some((code, reason)) = failure(&there) else {
        return Ok(());
    };
    Err(Error::Aws {
        operation,
        resource: resource(&account.names),
        code: code.map(str::to_owned),
        source: reason.into(),
    })
}

/// AWS's code for why the function, or its last change, was not made, and why.
fn failure(there: &GetFunctionConfigurationOutput) -> Option<(Option<&str>, &str)> {
    let (code, reason) = if there.state() == Some(&State::Failed) {
        let code = there.state_reason_code().map(StateReasonCode::as_str);
        (code, there.state_reason())
    } else if there.last_update_status() == Some(&LastUpdateStatus::Failed) {
        let code = there.last_update_status_reason_code();
        let code = code.map(LastUpdateStatusReasonCode::as_str);
        (code, there.last_update_status_reason())
    } else {
        return None;
    };
    Some((code, reason.unwrap_or("AWS doesn't say why")))
}

/// Waits until the function takes changes, and answers how it is then.
async fn settled(account: &Account) -> Result<GetFunctionConfigurationOutput, Error> {
    let not_ready = |state: &str| Error::NotReady {
        resource: resource(&account.names),
        state: state.to_owned(),
    };
    let ask = async || {
        let Some(there) = configuration(account).await? else {
            return Err(not_ready("missing"));
        };
        match (there.state(), there.last_update_status()) {
            (Some(State::Pending), _) => Err(not_ready("pending")),
            (_, Some(LastUpdateStatus::InProgress)) => Err(not_ready("being updated")),
            _ => Ok(there),
        }
    };
    patiently(PATIENCE, ask, |error| {
        matches!(error, Error::NotReady { .. })
    })
    .await
}

/// What the function runs on, if there is one.
pub(crate) async fn running_on(account: &Account) -> Result<Option<crate::Architecture>, Error> {
    let there = configuration(account).await?;
    let processor = there.as_ref().map(processor);
    let known = [crate::Architecture::Arm64, crate::Architecture::X86_64];
    Ok(known
        .into_iter()
        .find(|known| Some(known.as_str()) == processor))
}

fn processor(there: &GetFunctionConfigurationOutput) -> &str {
    // where AWS says nothing
    let default = Architecture::X8664.as_str();
    let first = there.architectures().first();
    first.map_or(default, Architecture::as_str)
}

pub(super) async fn make(
    hand: &mut Hand<'_>,
    account: &Account,
    zip: Option<&FunctionZip>,
    found: Option<Found>,
) -> Result<(), Error> {
    let name = account.names.function();
    let (permissions, failures) = match found {
        None => {
            let zip = zip.ok_or_else(|| Error::NoFunction { name: name.clone() })?;
            if !hand.plans() {
                create(account, zip).await?;
                finished(account, "lambda:CreateFunction").await?;
            }
            hand.resource(Action::Created, KIND, &name, "");
            (Vec::new(), None)
        }
        Some(found) => {
            mend(hand, account, zip, &found).await?;
            (found.permissions, found.failures)
        }
    };
    permit(hand, account, &permissions).await?;
    catch_failures(hand, account, failures.as_ref()).await
}

async fn create(account: &Account, zip: &FunctionZip) -> Result<(), Error> {
    let names = &account.names;
    let code = FunctionCode::builder().zip_file(Blob::new(zip.bytes()));
    let mut request = account
        .lambda
        .create_function()
        .function_name(names.function())
        .runtime(RUNTIME)
        .handler(HANDLER)
        .role(names.role_arn(&names.function()))
        .architectures(architecture(zip))
        .memory_size(MEMORY)
        .timeout(TIMEOUT)
        .environment(environment(names))
        .code(code.build());
    for (key, value) in names.tags() {
        request = request.tags(key, value);
    }
    let ask = async || {
        let request = request.clone().customize();
        match request.config_override(with_time()).send().await {
            Ok(_) => Ok(()),
            // one that was asked twice: a moment ago there was none
            Err(error) if error.code() == Some(CONFLICT) => Ok(()),
            Err(error) => Err(failed("lambda:CreateFunction", &resource(names))(error)),
        }
    };
    patiently(PATIENCE, ask, role_is_new).await
}

async fn mend(
    hand: &mut Hand<'_>,
    account: &Account,
    zip: Option<&FunctionZip>,
    found: &Found,
) -> Result<(), Error> {
    let (lambda, names) = (&account.lambda, &account.names);
    let (name, resource) = (names.function(), resource(names));
    let there = &found.configuration;
    let mut drift = Drift::default();
    let upload = zip.filter(|zip| {
        let ours = zip.architecture().as_str();
        let move_it = drift.compare("architecture", Some(processor(there)), &ours);
        let has_code = there.code_sha256() == Some(zip.sha256());
        drift.note(!has_code, "its code is not that of the zip file") || move_it
    });

    let mut configuration = Drift::default();
    let role = names.role_arn(&name);
    let runtime = there.runtime().map(Runtime::as_str);
    configuration.compare("runtime", runtime, &RUNTIME.as_str());
    configuration.compare("handler", there.handler(), &HANDLER);
    configuration.compare("role", there.role(), &&role[..]);
    let mebibytes = |size| format!("{size} MB");
    configuration.compare(
        "memory",
        there.memory_size().map(mebibytes),
        &mebibytes(MEMORY),
    );
    let seconds = |time| format!("{time} s");
    configuration.compare(
        "time limit",
        there.timeout().map(seconds),
        &seconds(TIMEOUT),
    );
    let variables = there.environment().and_then(|there| there.variables());
    // not their values: who knows what somebody put there
    configuration.note(
        variables != environment(names).variables(),
        "its environment is not that of this set-up",
    );
    configuration.note(!there.layers().is_empty(), "it has layers");
    if let Some((_, reason)) = failure(there) {
        // which another change may pass
        configuration.note(true, format_args!("AWS could not make it so ({reason})"));
    }
    drift.note(!configuration.is_none(), &configuration);
    // another limit may be meant; then messages wait their turn
    let start = drift.note(found.is_stopped, "it is stopped, by a concurrency of 0");
    let tag = drift.note(!found.has_tags, "its tags are incomplete");

    if !hand.plans() {
        if tag {
            let mut request = lambda.tag_resource().resource(arn(names));
            for (key, value) in names.tags() {
                request = request.tags(key, value);
            }
            let tagged = request.send().await;
            tagged.map_err(failed("lambda:TagResource", &resource))?;
        }
        if upload.is_some() || !configuration.is_none() {
            settled(account).await?;
        }
        if !configuration.is_none() {
            let request = lambda
                .update_function_configuration()
                .function_name(&name)
                .runtime(RUNTIME)
                .handler(HANDLER)
                .role(role)
                .memory_size(MEMORY)
                .timeout(TIMEOUT)
                .environment(environment(names))
                .set_layers(Some(Vec::new()));
            let ask = async || {
                let changed = request.clone().send().await.map(drop);
                changed.map_err(failed("lambda:UpdateFunctionConfiguration", &resource))
            };
            patiently(PATIENCE, ask, |error| {
                role_is_new(error) || error.is_aws(CONFLICT)
            })
            .await?;
            finished(account, "lambda:UpdateFunctionConfiguration").await?;
        }
        if let Some(zip) = upload {
            let request = lambda
                .update_function_code()
                .function_name(&name)
                .zip_file(Blob::new(zip.bytes()))
                .architectures(architecture(zip));
            let ask = async || {
                let request = request.clone().customize();
                let changed = request.config_override(with_time()).send().await;
                changed
                    .map(drop)
                    .map_err(failed("lambda:UpdateFunctionCode", &resource))
            };
            patiently(PATIENCE, ask, |error| error.is_aws(CONFLICT)).await?;
            finished(account, "lambda:UpdateFunctionCode").await?;
        }
        if start {
            let request = lambda.delete_function_concurrency();
            let started = request.function_name(&name).send().await;
            started.map_err(failed("lambda:DeleteFunctionConcurrency", &resource))?;
        }
    }
    if zip.is_none() && drift.is_none() {
        let reason = "its code was not compared, as there is no zip file to compare it with";
        hand.resource(Action::Kept, KIND, &name, reason);
    } else {
        hand.mended(KIND, &name, false, &drift);
    }
    Ok(())
}

/// Lets our rule invoke the function, and nobody else: who may, says who the
/// device is.
async fn permit(hand: &mut Hand<'_>, account: &Account, there: &[Value]) -> Result<(), Error> {
    let (lambda, names) = (&account.lambda, &account.names);
    let (name, resource) = (names.function(), resource(names));
    let wanted = normal(&permission(names));
    let mut drift = Drift::default();
    let (mut is_right, mut is_there, mut wrong) = (false, false, Vec::new());
    for statement in there {
        let statement_id = statement["Sid"].as_str().unwrap_or_default();
        is_there |= statement_id == STATEMENT;
        if normal(statement) == wanted {
            is_right = true;
            continue;
        }
        if statement_id == STATEMENT {
            drift.note(true, "the rule's is not as it is to be");
        } else {
            drift.note(true, format_args!("{statement_id} lets others invoke it"));
        }
        wrong.push(statement_id);
    }
    drift.note(!is_there, "the rule's is missing");
    if !hand.plans() {
        for statement_id in wrong {
            let removed = lambda
                .remove_permission()
                .function_name(&name)
                .statement_id(statement_id)
                .send()
                .await;
            match removed {
                Ok(_) => {}
                // one that was asked twice
                Err(error) if error.code() == Some(NOT_FOUND) => {}
                Err(error) => return Err(failed("lambda:RemovePermission", &resource)(error)),
            }
        }
        if !is_right {
            let added = lambda
                .add_permission()
                .function_name(&name)
                .statement_id(STATEMENT)
                .principal("iot.amazonaws.com")
                .action("lambda:InvokeFunction")
                .source_arn(rule_arn(names))
                .source_account(&names.account)
                .send()
                .await;
            match added {
                Ok(_) => {}
                // one that was asked twice
                Err(error) if error.code() == Some(CONFLICT) => {}
                Err(error) => return Err(failed("lambda:AddPermission", &resource)(error)),
            }
        }
    }
    let is_new = there.is_empty();
    hand.mended(PERMISSION, &name, is_new, &drift);
    Ok(())
}

/// What Lambda makes of our permission.
fn permission(names: &Names) -> Value {
    json!({
        "Sid": STATEMENT,
        "Effect": "Allow",
        "Principal": { "Service": "iot.amazonaws.com" },
        "Action": "lambda:InvokeFunction",
        "Resource": arn(names),
        "Condition": {
            "StringEquals": { "AWS:SourceAccount": names.account },
            "ArnLike": { "AWS:SourceArn": rule_arn(names) },
        },
    })
}

fn statements(policy: &str) -> Vec<Value> {
    match serde_json::from_str::<Value>(policy) {
        Ok(mut policy) => match policy["Statement"].take() {
            Value::Array(statements) => statements,
            Value::Null => Vec::new(),
            one => vec![one],
        },
        Err(_) => Vec::new(),
    }
}

/// What comes from a rule comes asynchronously: Lambda tries it twice more, then
/// it goes to the queue.
async fn catch_failures(
    hand: &mut Hand<'_>,
    account: &Account,
    there: Option<&Failures>,
) -> Result<(), Error> {
    let names = &account.names;
    let (name, queue) = (names.function(), queue::arn(names));
    let mut drift = Drift::default();
    let nothing = Failures {
        retries: None,
        queue: None,
    };
    let found = there.unwrap_or(&nothing);
    drift.compare("retries", found.retries, &RETRIES);
    drift.compare("destination", found.queue.as_deref(), &&queue[..]);
    if !drift.is_none() && !hand.plans() {
        let to = DestinationConfig::builder()
            .on_failure(OnFailure::builder().destination(&queue).build())
            .build();
        let request = account
            .lambda
            .put_function_event_invoke_config()
            .function_name(&name)
            .maximum_retry_attempts(RETRIES)
            .destination_config(to);
        let ask = async || {
            let operation = "lambda:PutFunctionEventInvokeConfig";
            let put = request.clone().send().await.map(drop);
            put.map_err(failed(operation, &resource(names)))
        };
        // that it may send to the queue is known a while after it may
        patiently(PATIENCE, ask, |error| {
            error.is_aws(CONFLICT)
                || error.is_aws_saying("InvalidParameterValueException", "permission")
        })
        .await?;
    }
    hand.mended(FAILURES, &name, there.is_none(), &drift);
    Ok(())
}

/// Permissions and destination go with the function.
pub(super) async fn remove(hand: &mut Hand<'_>, account: &Account) -> Result<(), Error> {
    let names = &account.names;
    let name = names.function();
    if only_ours(hand, KIND, &name, look(account).await)?.is_none() {
        return Ok(());
    }
    if !hand.plans() {
        let request = account.lambda.delete_function().function_name(&name);
        let ask = async || match request.clone().send().await {
            Ok(_) => Ok(()),
            // one that was asked twice
            Err(error) if error.code() == Some(NOT_FOUND) => Ok(()),
            Err(error) => Err(failed("lambda:DeleteFunction", &resource(names))(error)),
        };
        patiently(PATIENCE, ask, |error| error.is_aws(CONFLICT)).await?;
    }
    hand.resource(Action::Removed, KIND, &name, "");
    Ok(())
}

/// Whether Lambda doesn't know yet that it may act in the role, or that the role is
/// another one than an earlier one of the same name.
fn role_is_new(error: &Error) -> bool {
    ["cannot be assumed", "access to your environment variables"]
        .iter()
        .any(|said| error.is_aws_saying("InvalidParameterValueException", said))
}

/// What uploads the program may take longer than anything else, over a slow link.
fn with_time() -> aws_sdk_lambda::config::Builder {
    let upload = TimeoutConfig::builder().operation_attempt_timeout(UPLOAD);
    aws_sdk_lambda::Config::builder().timeout_config(upload.build())
}

/// All that the program takes: which tables are its own. Nothing secret: it is
/// shown to everyone who may look at the function.
fn environment(names: &Names) -> Environment {
    Environment::builder()
        .variables("ZK_PREFIX", &names.prefix)
        .build()
}

fn architecture(zip: &FunctionZip) -> Architecture {
    zip.architecture().as_str().into()
}

pub(super) fn arn(names: &Names) -> String {
    names.arn("lambda", &format!("function:{}", names.function()))
}

fn rule_arn(names: &Names) -> String {
    names.arn("iot", &format!("rule/{}", names.rule()))
}

fn resource(names: &Names) -> String {
    format!("{KIND} {}", names.function())
}

const UPLOAD: Duration = Duration::from_secs(900);
const RUNTIME: Runtime = Runtime::Providedal2023;
/// Such a runtime has none, and AWS wants one.
const HANDLER: &str = "bootstrap";
/// In MB.
const MEMORY: i32 = 128;
/// In seconds.
const TIMEOUT: i32 = 30;
const RETRIES: i32 = 2;
const STATEMENT: &str = "zk-rule";
const NOT_FOUND: &str = "ResourceNotFoundException";
const CONFLICT: &str = "ResourceConflictException";

#[cfg(test)]
mod tests {
    use super::*;

    /// A change may fail after it was taken, and the next run has to see that.
    #[test]
    fn what_aws_could_not_make_is_known_as_such() {
        let there = GetFunctionConfigurationOutput::builder;
        let good = there().state(State::Active);
        let good = good.last_update_status(LastUpdateStatus::Successful);
        assert_eq!(failure(&good.build()), None);
        assert_eq!(failure(&there().build()), None);
        let unmade = there().state(State::Failed).state_reason("no");
        let unmade = unmade.state_reason_code(StateReasonCode::InternalError);
        let told = Some((Some("InternalError"), "no"));
        assert_eq!(failure(&unmade.build()), told);
        let unchanged = there().state(State::Active);
        let unchanged = unchanged.last_update_status(LastUpdateStatus::Failed);
        let told = Some((None, "AWS doesn't say why"));
        assert_eq!(failure(&unchanged.build()), told);
    }
}
