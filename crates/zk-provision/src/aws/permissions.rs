//! What the operator has to be permitted.

use serde_json::{Value, json};

use crate::Error;
use crate::aws::account::{Names, check_prefix, check_region};

/// The IAM policy of an operator of a set-up with this prefix, as JSON: exactly
/// what plan, apply, check, destroy and the operations on devices ask, and of
/// nothing but this set-up's own, as far as AWS lets a policy say so. It fits one
/// managed policy (6144 characters without spaces).
///
/// Who has it can write the rights of two roles, and who may act in them: with
/// intent, that is every right in the account. It ends where an administrator has
/// set a permissions boundary on both roles, which is kept, and has taken
/// `iam:CreateRole` and `iam:DeleteRole` out of the policy.
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
    let partition = PARTITIONS
        .into_iter()
        .find(|(prefix, _)| region.starts_with(prefix))
        .map_or("aws", |(_, partition)| partition);
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
            "Find",
            ANYWHERE,
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
    let [of_function, of_rule] = roles;
    for (id, role, service) in [
        ("HandToLambda", of_function, "lambda.amazonaws.com"),
        ("HandToIot", of_rule, "iot.amazonaws.com"),
    ] {
        statements.push(json!({
            "Sid": id,
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": role,
            "Condition": { "StringEquals": { "iam:PassedToService": service } },
        }));
    }
    json!({ "Version": "2012-10-17", "Statement": statements })
}

/// How the regions of those parts of AWS begin whose ARNs are others.
const PARTITIONS: [(&str, &str); 7] = [
    ("cn-", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-iso-", "aws-iso"),
    ("us-isob-", "aws-iso-b"),
    ("eu-isoe-", "aws-iso-e"),
    ("us-isof-", "aws-iso-f"),
    ("eusc-", "aws-eusc"),
];

/// What AWS doesn't check against resources: a statement that names any never
/// permits them.
const ANYWHERE: &[&str] = &[
    "iot:DescribeEndpoint",
    "iot:GetRegistrationCode",
    "iot:ListAttachedPolicies",
    "iot:ListCACertificates",
    "iot:ListCertificatesByCA",
    "iot:ListPolicies",
    "iot:ListThings",
    "iot:ListTopicRules",
    "iot:RegisterCACertificate",
    "iot:RegisterCertificate",
    "logs:DescribeLogGroups",
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
    "lambda:DeleteFunctionConcurrency",
    "lambda:GetFunctionConcurrency",
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
const REGISTRY: &[&str] = &["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Scan"];

/// Whether a device has connected.
const READINGS: &[&str] = &["dynamodb:GetItem", "dynamodb:Query"];

/// Whether what was forged for a test has got there, and why what was not; and to
/// take it out again.
const QUARANTINE: &[&str] = &[
    "dynamodb:DeleteItem",
    "dynamodb:GetItem",
    "dynamodb:Scan",
    "dynamodb:UpdateItem",
];

const SQS: &[&str] = &[
    "sqs:CreateQueue",
    "sqs:DeleteQueue",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ListQueueTags",
    "sqs:SetQueueAttributes",
    "sqs:TagQueue",
];

const LOGS: &[&str] = &[
    "logs:CreateLogGroup",
    "logs:DeleteLogGroup",
    "logs:ListTagsForResource",
    "logs:PutRetentionPolicy",
    "logs:TagResource",
];

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
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

    /// By the Service Authorization Reference these have no type of resource, and
    /// all others of the policy have one.
    #[test]
    fn what_has_no_resource_is_permitted_on_everything() {
        let policy: Value = serde_json::from_str(&longest()).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        let of_all: Vec<_> = statements
            .iter()
            .filter(|statement| statement["Resource"] == "*")
            .collect();
        let [of_all] = of_all[..] else {
            panic!("{of_all:#?}");
        };
        let wanted = [
            "iot:DescribeEndpoint",
            "iot:GetRegistrationCode",
            "iot:ListAttachedPolicies",
            "iot:ListCACertificates",
            "iot:ListCertificatesByCA",
            "iot:ListPolicies",
            "iot:ListThings",
            "iot:ListTopicRules",
            "iot:RegisterCACertificate",
            "iot:RegisterCertificate",
            "logs:DescribeLogGroups",
        ];
        assert_eq!(of_all["Action"], json!(wanted));
    }

    #[test]
    fn each_part_of_aws_has_its_own_arns() {
        for (region, partition) in [
            ("eu-central-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eusc-de-east-1", "aws-eusc"),
        ] {
            let policy = operator_policy("123456789012", region, "zk").unwrap();
            let all = policy.matches("\"arn:").count();
            let own = policy.matches(&format!("\"arn:{partition}:")).count();
            assert!(all > 10 && own == all, "{region}: {own} of {all}");
        }
    }

    /// Every call of this crate is named where it is made, as its permission.
    #[test]
    fn it_permits_what_is_asked_and_nothing_else() {
        let mut asked = BTreeSet::new();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/aws");
        collect(&sources, &mut asked);
        let permitted: BTreeSet<_> = [ANYWHERE, IOT, IAM, LAMBDA, DYNAMODB, SQS, LOGS]
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
