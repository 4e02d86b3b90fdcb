//! What the operator has to be permitted.

use serde_json::{Value, json};

use crate::Error;
use crate::aws::account::{Names, check_prefix, check_region};

/// The IAM policy of an operator of a set-up with this prefix, as JSON: exactly
/// what plan, apply, check, destroy and the operations on devices ask, and of
/// nothing but this set-up's own, as far as AWS lets a policy say so. It fits one
/// managed policy (6144 characters without spaces).
///
/// Who has it can make roles of two names, and so can give rights to the function
/// and to the rule, but to nothing and nobody else.
///
/// ```
/// let policy = zk_provision::operator_policy("123456789012", "eu-central-1", "zk")?;
/// assert!(policy.contains("arn:aws:iam::123456789012:role/zk-verifier"));
/// # Ok::<(), zk_provision::Error>(())
/// ```
///
/// # Errors
/// [`Error::Prefix`], [`Error::Region`], [`Error::AccountId`].
pub fn operator_policy(account: &str, region: &str, prefix: &str) -> Result<String, Error> {
    check_prefix(prefix)?;
    check_region(region)?;
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::AccountId {
            given: account.to_owned(),
        });
    }
    let partition = match region {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    };
    let names = Names {
        prefix: prefix.to_owned(),
        partition: partition.to_owned(),
        region: region.to_owned(),
        account: account.to_owned(),
    };
    Ok(format!("{:#}", document(&names)))
}

fn document(names: &Names) -> Value {
    let Names { prefix, .. } = names;
    let roles = [names.function(), names.rule_role()].map(|role| names.role_arn(&role));
    let table = |name: &str| names.arn("dynamodb", &format!("table/{prefix}-{name}"));
    let group = names.log_group();
    let statements = [
        (
            "FindInIot",
            IOT_ANYWHERE,
            json!("*"), // of these, AWS can't say of what
        ),
        (
            "Iot",
            IOT,
            json!([
                names.arn("iot", &format!("rule/{}", names.rule())),
                names.arn("iot", &format!("thing/{prefix}-*")),
                names.arn("iot", &format!("policy/{prefix}-*")),
                // their names are their hashes
                names.arn("iot", "cert/*"),
                names.arn("iot", "cacert/*"),
            ]),
        ),
        ("Roles", IAM, json!(roles)),
        (
            "Function",
            LAMBDA,
            json!(names.arn("lambda", &format!("function:{}", names.function()))),
        ),
        (
            "Tables",
            DYNAMODB,
            json!([table("devices"), table("readings"), table("quarantine")]),
        ),
        ("Devices", REGISTRY, json!(table("devices"))),
        ("Readings", READINGS, json!(table("readings"))),
        ("Quarantine", QUARANTINE, json!(table("quarantine"))),
        ("Queue", SQS, json!(names.arn("sqs", &names.queue()))),
        (
            "FindLogs",
            LOGS_ANYWHERE,
            json!(names.arn("logs", "log-group:*")),
        ),
        (
            "Logs",
            LOGS,
            json!([
                names.arn("logs", &format!("log-group:{group}")),
                names.arn("logs", &format!("log-group:{group}:*")),
            ]),
        ),
    ];
    let mut statements: Vec<_> = statements
        .into_iter()
        .map(|(id, actions, resources)| {
            json!({ "Sid": id, "Effect": "Allow", "Action": actions, "Resource": resources })
        })
        .collect();
    statements.push(json!({
        "Sid": "HandRolesOver",
        "Effect": "Allow",
        "Action": "iam:PassRole",
        "Resource": roles,
        "Condition": { "StringEquals": {
            "iam:PassedToService": ["lambda.amazonaws.com", "iot.amazonaws.com"],
        } },
    }));
    json!({ "Version": "2012-10-17", "Statement": statements })
}

const IOT_ANYWHERE: &[&str] = &[
    "iot:DescribeEndpoint",
    "iot:GetRegistrationCode",
    "iot:ListCACertificates",
    "iot:ListCertificatesByCA",
    "iot:ListPolicies",
    "iot:ListThings",
    "iot:ListTopicRules",
    "iot:RegisterCACertificate",
    "iot:RegisterCertificate",
];

const IOT: &[&str] = &[
    "iot:AttachPolicy",
    "iot:AttachThingPrincipal",
    "iot:CreatePolicy",
    "iot:CreatePolicyVersion",
    "iot:CreateThing",
    "iot:CreateTopicRule",
    "iot:DeleteCACertificate",
    "iot:DeleteCertificate",
    "iot:DeletePolicy",
    "iot:DeletePolicyVersion",
    "iot:DeleteThing",
    "iot:DeleteTopicRule",
    "iot:DescribeCACertificate",
    "iot:DescribeCertificate",
    "iot:DescribeThing",
    "iot:DetachPolicy",
    "iot:DetachThingPrincipal",
    "iot:GetPolicy",
    "iot:GetTopicRule",
    "iot:ListAttachedPolicies",
    "iot:ListPolicyVersions",
    "iot:ListPrincipalThings",
    "iot:ListTagsForResource",
    "iot:ListThingPrincipals",
    "iot:ReplaceTopicRule",
    "iot:TagResource",
    "iot:UpdateCACertificate",
    "iot:UpdateCertificate",
    "iot:UpdateThing",
];

const IAM: &[&str] = &[
    "iam:CreateRole",
    "iam:DeleteRole",
    "iam:DeleteRolePolicy",
    "iam:DetachRolePolicy",
    "iam:GetRole",
    "iam:GetRolePolicy",
    "iam:ListAttachedRolePolicies",
    "iam:ListRolePolicies",
    "iam:PutRolePolicy",
    "iam:TagRole",
    "iam:UpdateAssumeRolePolicy",
];

const LAMBDA: &[&str] = &[
    "lambda:AddPermission",
    "lambda:CreateFunction",
    "lambda:DeleteFunction",
    "lambda:GetFunctionConfiguration",
    "lambda:GetFunctionEventInvokeConfig",
    "lambda:GetPolicy",
    "lambda:ListTags",
    "lambda:PutFunctionEventInvokeConfig",
    "lambda:RemovePermission",
    "lambda:TagResource",
    "lambda:UpdateFunctionCode",
    "lambda:UpdateFunctionConfiguration",
];

const DYNAMODB: &[&str] = &[
    "dynamodb:CreateTable",
    "dynamodb:DeleteTable",
    "dynamodb:DescribeContinuousBackups",
    "dynamodb:DescribeTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:ListTagsOfResource",
    "dynamodb:TagResource",
    "dynamodb:UpdateContinuousBackups",
    "dynamodb:UpdateTable",
    "dynamodb:UpdateTimeToLive",
];

/// What zk-store asks for those who set devices up.
const REGISTRY: &[&str] = &[
    "dynamodb:DeleteItem",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:Scan",
];

/// Whether a device has connected.
const READINGS: &[&str] = &["dynamodb:GetItem", "dynamodb:Query"];

/// Whether what was forged has got there, and why what was not.
const QUARANTINE: &[&str] = &["dynamodb:GetItem", "dynamodb:Scan"];

const SQS: &[&str] = &[
    "sqs:CreateQueue",
    "sqs:DeleteQueue",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ListQueueTags",
    "sqs:SetQueueAttributes",
    "sqs:TagQueue",
];

const LOGS_ANYWHERE: &[&str] = &["logs:DescribeLogGroups"];

const LOGS: &[&str] = &[
    "logs:CreateLogGroup",
    "logs:DeleteLogGroup",
    "logs:ListTagsForResource",
    "logs:PutRetentionPolicy",
    "logs:TagResource",
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn longest() -> String {
        operator_policy("123456789012", "ap-southeast-2", &"p".repeat(32)).unwrap()
    }

    #[test]
    fn it_fits_one_managed_policy() {
        let size = longest().chars().filter(|c| !c.is_whitespace()).count();
        assert!(size <= 6144, "{size}");
    }

    #[test]
    fn what_no_policy_can_name_is_refused() {
        for account in ["", "12345678901", "12345678901x", "*"] {
            let refused = operator_policy(account, "eu-central-1", "zk");
            assert!(matches!(refused, Err(Error::AccountId { .. })), "{account}");
        }
        let refused = operator_policy("123456789012", "eu-central-1", "*");
        assert!(matches!(refused, Err(Error::Prefix { .. })));
        let refused = operator_policy("123456789012", "*", "zk");
        assert!(matches!(refused, Err(Error::Region { .. })));
    }

    /// Every call of this crate is named where it is made, as its permission.
    #[test]
    fn it_permits_what_is_asked_and_nothing_else() {
        let mut asked = BTreeSet::new();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/aws");
        collect(&sources, &mut asked);
        let permitted: BTreeSet<_> = [
            IOT_ANYWHERE,
            IOT,
            IAM,
            LAMBDA,
            DYNAMODB,
            SQS,
            LOGS_ANYWHERE,
            LOGS,
        ]
        .into_iter()
        .flatten()
        .map(|&action| action.to_owned())
        .collect();
        let missing: Vec<_> = asked.difference(&permitted).collect();
        assert!(missing.is_empty(), "asked, and not permitted: {missing:?}");
        let idle: Vec<_> = permitted.difference(&asked).collect();
        assert!(idle.is_empty(), "permitted, and not asked: {idle:?}");
    }

    fn collect(dir: &Path, asked: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, asked);
                continue;
            }
            if path.ends_with("permissions.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let before_tests = text.split("#[cfg(test)]").next().unwrap();
            asked.extend(
                before_tests
                    .split('"')
                    .filter(|word| is_action(word))
                    .filter(|word| !GRANTED.contains(word))
                    .map(str::to_owned),
            );
        }
    }

    fn is_action(word: &str) -> bool {
        let services = ["dynamodb", "iam", "iot", "lambda", "logs", "sqs"];
        word.split_once(':').is_some_and(|(service, action)| {
            services.contains(&service)
                && action.starts_with(|first: char| first.is_ascii_uppercase())
                && action.chars().all(|c| c.is_ascii_alphanumeric())
        })
    }

    /// What function, rule and devices may do: the operator need not.
    const GRANTED: [&str; 9] = [
        "dynamodb:GetItem",
        "dynamodb:PutItem",
        "dynamodb:UpdateItem",
        "iot:Connect",
        "iot:Publish",
        "lambda:InvokeFunction",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "sqs:SendMessage",
    ];
}
