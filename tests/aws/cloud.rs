//! What a set-up in AWS makes for all devices: seen on MiniStack, by an operator
//! who may do no more than `zk-setup policy` prints, with what AWS may answer; and on
//! moto, as far as that goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod stand_in;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_sdk_iam::config::Credentials;
use stand_in::{Fault, REGION, StandIn, Way, changes, root};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;
use zk_provision::{
    Action, Architecture, AwsDesired, AwsSetup, Destroy, Error, FunctionZip, Item, Others,
    Passphrase, Plan, Secrets, Step, operator_policy,
};

/// An operator's machine, and the way from there.
struct Operator {
    dir: TempDir,
    way: Way,
    setup: AwsSetup,
    passphrase: Passphrase,
}

impl Operator {
    /// One who may do no more than the printed policy says.
    async fn of(server: &StandIn) -> Self {
        let policy = operator_policy(&server.account(), REGION, "zk").unwrap();
        let credentials = server.operator("operator", &policy);
        Self::with(server, &credentials, false).await.unwrap()
    }

    async fn with(
        server: &StandIn,
        credentials: &Credentials,
        retries: bool,
    ) -> Result<Self, Error> {
        let dir = tempfile::tempdir().unwrap();
        let way = Way::new();
        let config = server.config(credentials, &way, retries);
        let setup = AwsSetup::with_config(dir.path().join("zk"), "zk", &config).await?;
        let passphrase = Passphrase::new("for tests only".to_owned()).unwrap();
        Ok(Self {
            dir,
            way,
            setup,
            passphrase,
        })
    }

    fn desired(&self) -> AwsDesired {
        AwsDesired {
            function: Some(zip(self.dir.path(), Architecture::Arm64, b"")),
            roots: None,
            owners: Vec::new(),
            devices: BTreeMap::new(),
            others: Others::Keep,
        }
    }

    async fn plan(&self) -> Result<Plan, Error> {
        Box::pin(self.setup.plan(&self.desired(), SystemTime::now())).await
    }

    async fn apply(&self) -> Result<Vec<Step>, Error> {
        self.apply_this(&self.desired()).await
    }

    async fn apply_this(&self, desired: &AwsDesired) -> Result<Vec<Step>, Error> {
        let secrets = Secrets {
            authorities: Some(&self.passphrase),
            owner: Some(&self.passphrase),
        };
        patient(async || {
            let tell = &mut |_: &Step| {};
            let now = SystemTime::now();
            Box::pin(self.setup.apply(desired, secrets, now, tell)).await
        })
        .await
    }

    async fn destroy(&self, data: bool) -> Result<Vec<Step>, Error> {
        // the authority stays: making one takes a while
        let what = Destroy { data, keys: false };
        patient(async || Box::pin(self.setup.destroy(what, &mut |_| {})).await).await
    }

    /// Nothing is to be done.
    async fn is_clean(&self) {
        let plan = self.plan().await.unwrap();
        assert!(!plan.has_changes(), "{}", said(&plan.steps));
    }
}

/// A test beside this one that starts a program shares the lock of the directory
/// with it, until it has become that program.
async fn patient(
    mut run: impl AsyncFnMut() -> Result<Vec<Step>, Error>,
) -> Result<Vec<Step>, Error> {
    for _ in 0..1000 {
        match run().await {
            Err(Error::Busy { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            done => return done,
        }
    }
    run().await
}

/// A zip file with a program of that architecture, which can't run, for these
/// bytes are all there is to it.
fn zip(dir: &Path, architecture: Architecture, more: &[u8]) -> FunctionZip {
    let path = dir.join("function.zip");
    let machine: u16 = match architecture {
        Architecture::Arm64 => 0xb7,
        Architecture::X86_64 => 0x3e,
    };
    let mut program = vec![0; 64];
    program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    program[18..20].copy_from_slice(&machine.to_le_bytes());
    program.extend_from_slice(more);
    write_zip(&path, "bootstrap", 0o755, &program);
    FunctionZip::read(&path).unwrap()
}

fn write_zip(path: &Path, name: &str, mode: u32, bytes: &[u8]) {
    let mut zip = ZipWriter::new(fs::File::create(path).unwrap());
    let options = SimpleFileOptions::default().unix_permissions(mode);
    zip.start_file(name, options).unwrap();
    zip.write_all(bytes).unwrap();
    zip.finish().unwrap();
}

/// The steps in the account that are not kept, but for the authority, whose name a
/// plan may not know yet.
fn done(steps: &[Step]) -> Vec<String> {
    let in_account = |step: &&Step| {
        let is_shared = |kind: &str| !kind.contains("CA certificate");
        step.action != Action::Kept
            && matches!(step.item, Item::Resource { kind, .. } if is_shared(kind))
    };
    let steps = steps.iter().filter(in_account);
    steps
        .map(|step| format!("{} {}", step.action, step.item))
        .collect()
}

fn said(steps: &[Step]) -> String {
    let line = |step: &Step| format!("{} {}: {}", step.action, step.item, step.reason);
    steps.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// All that is ours, or has such a name, by foreign eyes.
const INVENTORY: &str = "
found = []
found += client('dynamodb').list_tables()['TableNames']
found += [url.split('/')[-1] for url in client('sqs').list_queues().get('QueueUrls', [])]
found += [group['logGroupName'] for group in client('logs').describe_log_groups()['logGroups']]
found += [role['RoleName'] for role in client('iam').list_roles()['Roles']]
found += [function['FunctionName'] for function in client('lambda').list_functions()['Functions']]
found += [rule['ruleName'] for rule in client('iot').list_topic_rules()['rules']]
print(' '.join(sorted(name for name in found if 'zk' in name)))
";

const ALL: &str = "/aws/lambda/zk-verifier zk-dead-letters zk-devices zk-quarantine zk-readings \
                   zk-rule zk-verifier zk-verifier zk_verify";
const DATA: &str = "zk-devices zk-quarantine zk-readings";

fn inventory(server: &StandIn) -> String {
    server.boto3(INVENTORY).trim().to_owned()
}

#[tokio::test]
async fn the_printed_policy_suffices_and_nothing_is_done_twice() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;

    let plan = operator.plan().await.unwrap();
    assert!(operator.way.changes().is_empty());
    assert_eq!(inventory(&server), "");
    let planned = done(&plan.steps);

    let steps = operator.apply().await.unwrap();
    assert_eq!(done(&steps), planned, "{}", said(&steps));
    assert_eq!(inventory(&server), ALL);

    operator.way.clear();
    let again = operator.apply().await.unwrap();
    let none: Vec<String> = Vec::new();
    assert_eq!(done(&again), none, "{}", said(&again));
    assert_eq!(operator.way.changes(), none);
    operator.is_clean().await;

    let planned = operator
        .setup
        .plan_destroy(Destroy::default())
        .await
        .unwrap();
    assert_eq!(operator.way.changes(), none);
    let steps = operator.destroy(false).await.unwrap();
    assert_eq!(done(&steps), done(&planned.steps));
    assert_eq!(inventory(&server), DATA);

    // what was kept is taken up again
    operator.apply().await.unwrap();
    assert_eq!(inventory(&server), ALL);
    operator.is_clean().await;
    operator.destroy(true).await.unwrap();
    assert_eq!(inventory(&server), "");
    let nothing = operator.destroy(true).await.unwrap();
    assert_eq!(done(&nothing), none);
}

#[tokio::test]
async fn drift_is_named_and_mended() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    operator.apply().await.unwrap();

    let cases = [
        (
            "client('dynamodb').update_table(TableName='zk-readings', DeletionProtectionEnabled=False)",
            "DynamoDB table zk-readings",
            "it is not protected against deletion",
        ),
        (
            "client('dynamodb').update_table(TableName='zk-readings', BillingMode='PROVISIONED', \
             ProvisionedThroughput={'ReadCapacityUnits': 1, 'WriteCapacityUnits': 1})",
            "DynamoDB table zk-readings",
            "it is not billed by request",
        ),
        (
            "client('dynamodb').update_continuous_backups(TableName='zk-readings', \
             PointInTimeRecoverySpecification={'PointInTimeRecoveryEnabled': False})",
            "DynamoDB table zk-readings",
            "point-in-time recovery is off",
        ),
        (
            "client('dynamodb').update_time_to_live(TableName='zk-readings', \
             TimeToLiveSpecification={'Enabled': True, 'AttributeName': 'timestamp'})",
            "DynamoDB table zk-readings",
            "items expire by timestamp",
        ),
        (
            "client('dynamodb').update_time_to_live(TableName='zk-quarantine', \
             TimeToLiveSpecification={'Enabled': False, 'AttributeName': 'expiresAt'})",
            "DynamoDB table zk-quarantine",
            "items never expire",
        ),
        (
            "d = client('dynamodb')\n\
             arn = d.describe_table(TableName='zk-devices')['Table']['TableArn']\n\
             d.untag_resource(ResourceArn=arn, TagKeys=['zk:version'])",
            "DynamoDB table zk-devices",
            "its tags are incomplete",
        ),
        (
            "q = client('sqs')\n\
             url = q.get_queue_url(QueueName='zk-dead-letters')['QueueUrl']\n\
             q.set_queue_attributes(QueueUrl=url, Attributes={'MessageRetentionPeriod': '345600'})",
            "SQS queue zk-dead-letters",
            "retention is 4 days, not 14 days",
        ),
        (
            "q = client('sqs')\n\
             url = q.get_queue_url(QueueName='zk-dead-letters')['QueueUrl']\n\
             q.set_queue_attributes(QueueUrl=url, Attributes={'SqsManagedSseEnabled': 'false'})",
            "SQS queue zk-dead-letters",
            "it is not encrypted by SQS",
        ),
        (
            "client('logs').put_retention_policy(logGroupName='/aws/lambda/zk-verifier', retentionInDays=7)",
            "CloudWatch log group /aws/lambda/zk-verifier",
            "retention is 7 days, not 30 days",
        ),
        (
            "client('logs').delete_retention_policy(logGroupName='/aws/lambda/zk-verifier')",
            "CloudWatch log group /aws/lambda/zk-verifier",
            "retention is not 30 days",
        ),
        (
            "client('iam').put_role_policy(RoleName='zk-verifier', PolicyName='zk', \
             PolicyDocument=json.dumps({'Version': '2012-10-17', 'Statement': \
             [{'Effect': 'Allow', 'Action': 'dynamodb:*', 'Resource': '*'}]}))",
            "IAM role zk-verifier",
            "its rights are not those it is to have",
        ),
        (
            "client('iam').delete_role_policy(RoleName='zk-verifier', PolicyName='zk')",
            "IAM role zk-verifier",
            "its rights are missing",
        ),
        (
            "client('iam').put_role_policy(RoleName='zk-rule', PolicyName='more', \
             PolicyDocument=json.dumps({'Version': '2012-10-17', 'Statement': \
             [{'Effect': 'Allow', 'Action': '*', 'Resource': '*'}]}))",
            "IAM role zk-rule",
            "it has the rights of more as well",
        ),
        (
            "client('iam').attach_role_policy(RoleName='zk-rule', PolicyArn=\
             client('iam').create_policy(PolicyName='most', PolicyDocument=json.dumps({'Version': \
             '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': '*', 'Resource': '*'}]}))\
             ['Policy']['Arn'])",
            "IAM role zk-rule",
            "policy/most as well",
        ),
        (
            "client('iam').update_assume_role_policy(RoleName='zk-rule', \
             PolicyDocument=json.dumps({'Version': '2012-10-17', 'Statement': \
             [{'Effect': 'Allow', 'Principal': {'AWS': '*'}, 'Action': 'sts:AssumeRole'}]}))",
            "IAM role zk-rule",
            "others may act in it than are to",
        ),
        (
            "client('lambda').update_function_configuration(FunctionName='zk-verifier', MemorySize=256)",
            "Lambda function zk-verifier",
            "memory is 256 MB, not 128 MB",
        ),
        (
            "client('lambda').update_function_configuration(FunctionName='zk-verifier', Timeout=3)",
            "Lambda function zk-verifier",
            "time limit is 3 s, not 30 s",
        ),
        (
            "client('lambda').update_function_configuration(FunctionName='zk-verifier', \
             Environment={'Variables': {'ZK_PREFIX': 'zk', 'RUST_LOG': 'trace'}})",
            "Lambda function zk-verifier",
            "its environment is not that of this set-up",
        ),
        (
            "client('lambda').update_function_configuration(FunctionName='zk-verifier', \
             Handler='other')",
            "Lambda function zk-verifier",
            "handler is other, not bootstrap",
        ),
        (
            "arn = client('iam').get_role(RoleName='zk-rule')['Role']['Arn']\n\
             client('lambda').update_function_configuration(FunctionName='zk-verifier', Role=arn)",
            "Lambda function zk-verifier",
            "role is arn:aws:iam::000000000000:role/zk-rule, not ",
        ),
        (
            "client('lambda').put_function_concurrency(FunctionName='zk-verifier', \
             ReservedConcurrentExecutions=0)",
            "Lambda function zk-verifier",
            "it is stopped, by a concurrency of 0",
        ),
        (
            "l = client('lambda')\n\
             l.remove_permission(FunctionName='zk-verifier', StatementId='zk-rule')\n\
             l.add_permission(FunctionName='zk-verifier', StatementId='zk-rule', \
             Action='lambda:InvokeFunction', Principal='iot.amazonaws.com')",
            "Lambda permission zk-verifier",
            "the rule's is not as it is to be",
        ),
        (
            "client('lambda').add_permission(FunctionName='zk-verifier', StatementId='all', \
             Action='lambda:InvokeFunction', Principal='*')",
            "Lambda permission zk-verifier",
            "all lets others invoke it",
        ),
        (
            "client('lambda').put_function_event_invoke_config(FunctionName='zk-verifier', \
             MaximumRetryAttempts=0)",
            "Lambda failure destination zk-verifier",
            "retries is 0, not 2",
        ),
        (
            "client('iot').disable_topic_rule(ruleName='zk_verify')",
            "IoT topic rule zk_verify",
            "it is disabled",
        ),
        (
            "i = client('iot')\n\
             rule = i.get_topic_rule(ruleName='zk_verify')['rule']\n\
             payload = {name: rule[name] for name in \
             ('sql', 'actions', 'awsIotSqlVersion', 'errorAction')}\n\
             payload['sql'] = \"SELECT * FROM 'Zymkey/+'\"\n\
             i.replace_topic_rule(ruleName='zk_verify', topicRulePayload=payload)",
            "IoT topic rule zk_verify",
            "its SQL is not ours",
        ),
        (
            "i = client('iot')\n\
             rule = i.get_topic_rule(ruleName='zk_verify')['rule']\n\
             payload = {name: rule[name] for name in ('sql', 'actions', 'awsIotSqlVersion')}\n\
             i.replace_topic_rule(ruleName='zk_verify', topicRulePayload=payload)",
            "IoT topic rule zk_verify",
            "what it can't hand over does not go to the queue",
        ),
    ];
    for (code, item, reason) in cases {
        server.boto3(code);
        let plan = operator.plan().await.unwrap();
        let changed: Vec<_> = plan
            .steps
            .iter()
            .filter(|step| step.action != Action::Kept)
            .collect();
        let [step] = &changed[..] else {
            panic!("{code}: {}", said(&plan.steps));
        };
        assert_eq!(step.item.to_string(), item, "{code}");
        assert!(step.reason.contains(reason), "{code}: {}", step.reason);
        // whether it only lacks a part, or more
        assert!(
            matches!(step.action, Action::Changed | Action::Created),
            "{code}"
        );
        let steps = operator.apply().await.unwrap();
        assert_eq!(done(&steps), done(&plan.steps), "{code}");
        operator.is_clean().await;
    }
}

#[tokio::test]
async fn only_code_that_changed_is_uploaded() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    operator.apply().await.unwrap();
    let mut desired = operator.desired();

    desired.function = Some(zip(
        operator.dir.path(),
        Architecture::Arm64,
        b"a newer one",
    ));
    operator.way.clear();
    let steps = operator.apply_this(&desired).await.unwrap();
    assert_eq!(done(&steps), ["changed Lambda function zk-verifier"]);
    let calls = operator.way.changes();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].contains("/code"), "{calls:?}");

    let function = zip(operator.dir.path(), Architecture::X86_64, b"a newer one");
    desired.function = Some(function.clone());
    let steps = operator.apply_this(&desired).await.unwrap();
    assert!(
        said(&steps).contains("architecture is arm64, not x86_64"),
        "{}",
        said(&steps)
    );
    let found = server.boto3(
        "f = client('lambda').get_function_configuration(FunctionName='zk-verifier')\n\
         print(f['Architectures'], f['CodeSha256'], f['Environment']['Variables'])",
    );
    let wanted = format!("['x86_64'] {} {{'ZK_PREFIX': 'zk'}}", function.sha256());
    assert_eq!(found.trim(), wanted);
}

#[test]
fn a_file_that_is_no_function_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.zip");
    let elf = |machine: u8| {
        let mut program = vec![0; 64];
        program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        program[18] = machine;
        program
    };
    let refused = |detail: &str| {
        let error = FunctionZip::read(&path).unwrap_err();
        assert!(matches!(error, Error::FunctionZip { .. }), "{error}");
        assert!(error.to_string().contains(detail), "{detail}: {error}");
    };
    fs::write(&path, b"not a zip").unwrap();
    refused("not a zip file");
    write_zip(&path, "main", 0o755, &elf(0xb7));
    refused("no bootstrap");
    write_zip(&path, "bootstrap", 0o644, &elf(0xb7));
    refused("may not be executed");
    write_zip(&path, "bootstrap", 0o755, b"#!/bin/sh\nexit 0\n");
    refused("no program");
    write_zip(&path, "bootstrap", 0o755, &[b'x'; 64]);
    refused("no program");
    write_zip(&path, "bootstrap", 0o755, &elf(0xf3));
    refused("ELF machine 243");
    fs::File::create(&path)
        .unwrap()
        .set_len((50 << 20) + 1)
        .unwrap();
    refused("50 MB");
    fs::remove_file(&path).unwrap();
    let missing = FunctionZip::read(&path).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
}

/// A name that is taken is found before anything is made; and what isn't ours
/// stays where it is.
#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let trust = "json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', \
                 'Principal': {'Service': 'lambda.amazonaws.com'}, 'Action': 'sts:AssumeRole'}]})";
    let role =
        format!("client('iam').create_role(RoleName='zk-rule', AssumeRolePolicyDocument={trust})");
    let cases = [
        (
            "client('dynamodb').create_table(TableName='zk-quarantine', \
             BillingMode='PAY_PER_REQUEST', KeySchema=[{'AttributeName': 'id', 'KeyType': 'HASH'}], \
             AttributeDefinitions=[{'AttributeName': 'id', 'AttributeType': 'S'}])",
            "client('dynamodb').delete_table(TableName='zk-quarantine')",
            "zk-quarantine",
        ),
        (
            "client('sqs').create_queue(QueueName='zk-dead-letters', tags={'zk:set-up': 'other'})",
            "q = client('sqs')\n\
             q.delete_queue(QueueUrl=q.get_queue_url(QueueName='zk-dead-letters')['QueueUrl'])",
            "zk-dead-letters",
        ),
        (
            "client('logs').create_log_group(logGroupName='/aws/lambda/zk-verifier')",
            "client('logs').delete_log_group(logGroupName='/aws/lambda/zk-verifier')",
            "/aws/lambda/zk-verifier",
        ),
        (
            &role,
            "client('iam').delete_role(RoleName='zk-rule')",
            "zk-rule",
        ),
        (
            "client('iot').create_topic_rule(ruleName='zk_verify', topicRulePayload={'sql': \
             \"SELECT * FROM 'a'\", 'actions': []})",
            "client('iot').delete_topic_rule(ruleName='zk_verify')",
            "zk_verify",
        ),
    ];
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    for (make, unmake, name) in cases {
        server.boto3(make);
        operator.way.clear();
        for result in [
            operator.plan().await.map(|plan| plan.steps),
            operator.apply().await,
        ] {
            let Err(Error::NotOurs { resource }) = &result else {
                panic!("{name}: {result:?}");
            };
            assert!(resource.contains(name), "{resource}");
        }
        let changed = operator.way.changes();
        let ours = ["CreateTable", "CreateQueue", "CreateRole", "CreateLogGroup"];
        assert!(
            !changed.iter().any(|call| ours.contains(&&call[..])),
            "{changed:?}"
        );
        let steps = operator.destroy(true).await.unwrap();
        assert!(
            steps.iter().any(|step| step.action == Action::Kept
                && step.item.to_string().contains(name)
                && step.reason == "not made by zk-setup"),
            "{}",
            said(&steps)
        );
        assert_eq!(inventory(&server), name);
        server.boto3(unmake);
    }
    // made by a later version
    server.boto3(
        "client('logs').create_log_group(logGroupName='/aws/lambda/zk-verifier', \
         tags={'zk:set-up': 'zk', 'zk:version': '2'})",
    );
    for result in [
        operator.plan().await.map(|plan| plan.steps),
        operator.destroy(true).await,
    ] {
        assert!(
            matches!(result, Err(Error::NewerSetUp { .. })),
            "{result:?}"
        );
    }
}

/// The SDK asks again when no answer came, and what was done is done already.
#[tokio::test]
async fn an_answer_that_is_lost_is_no_failure() {
    let server = StandIn::ministack();
    let policy = operator_policy(&server.account(), REGION, "zk").unwrap();
    let credentials = server.operator("operator", &policy);
    let operator = Operator::with(&server, &credentials, true).await.unwrap();
    let every_first = || {
        let mut last = String::new();
        move |_, call: &str| {
            let is_again = call == last;
            last = if is_again {
                String::new()
            } else {
                call.to_owned()
            };
            (changes(call) && !is_again).then_some(Fault::Unanswered)
        }
    };
    operator.way.fault(every_first());
    operator.apply().await.unwrap();
    operator.way.clear();
    operator.is_clean().await;
    assert_eq!(inventory(&server), ALL);
    operator.way.fault(every_first());
    operator.destroy(true).await.unwrap();
    operator.way.clear();
    assert_eq!(inventory(&server), "");
}

/// What AWS takes a while to know is waited for.
#[tokio::test]
async fn what_is_not_known_everywhere_yet_is_waited_for() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    let refusals = [
        (
            "POST /2015-03-31/functions",
            400,
            "InvalidParameterValueException",
            "The role defined for the function cannot be assumed by Lambda.",
        ),
        (
            "PUT /2019-09-25/functions/zk-verifier/event-invoke-config",
            400,
            "InvalidParameterValueException",
            "The provided destination config DestinationConfig is invalid: the function's execution \
             role does not have permissions to call SendMessage on SQS.",
        ),
        (
            "POST /rules/zk_verify",
            400,
            "InvalidRequestException",
            "iot.amazonaws.com is unable to perform: sts:AssumeRole on resource: \
             arn:aws:iam::000000000000:role/zk-rule",
        ),
        (
            "UpdateContinuousBackups",
            400,
            "ContinuousBackupsUnavailableException",
            "Backups are being enabled for the table: zk-devices. Please retry later",
        ),
        (
            "CreateQueue",
            400,
            "AWS.SimpleQueueService.QueueDeletedRecently",
            "You must wait 60 seconds after deleting a queue before you can create another.",
        ),
    ];
    let mut left = refusals.map(|_| 2);
    operator.way.fault(move |_, call| {
        for (left, (refused, status, code, message)) in left.iter_mut().zip(refusals) {
            let path = call.split('?').next().unwrap_or_default();
            if path.trim_end_matches('/') == refused && *left > 0 {
                *left -= 1;
                return Some(Fault::Refused(status, code, message));
            }
        }
        None
    });
    operator.apply().await.unwrap();
    let calls = operator.way.clear();
    for (refused, ..) in refusals {
        let asked = calls
            .iter()
            .filter(|call| call.starts_with(refused))
            .count();
        assert!(asked >= 3, "{refused}: {calls:?}");
    }
    operator.is_clean().await;

    // but not for what doesn't pass
    operator.destroy(true).await.unwrap();
    operator.way.fault(|_, call| {
        let fault = Fault::Refused(
            400,
            "InvalidParameterValueException",
            "Unzipped size must be smaller than 262144000 bytes",
        );
        call.starts_with("POST /2015-03-31/functions")
            .then_some(fault)
    });
    let stopped = operator.apply().await.unwrap_err();
    assert!(stopped.to_string().contains("Unzipped size"), "{stopped}");
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let server = StandIn::ministack();

    // nobody's key, and one whose secret is another
    for credentials in [
        Credentials::new("AKIAAAAAAAAAAAAAAAAA", "x", None, None, "test"),
        {
            let good = server.operator(
                "other",
                &operator_policy(&server.account(), REGION, "zk").unwrap(),
            );
            Credentials::new(good.access_key_id(), "x", None, None, "test")
        },
    ] {
        let refused = Operator::with(&server, &credentials, false).await.err();
        assert!(
            matches!(refused, Some(Error::CredentialsRefused { .. })),
            "{refused:?}"
        );
    }

    // one permission less, each at its turn
    let policy = operator_policy(&server.account(), REGION, "zk").unwrap();
    let cases = [
        ("dynamodb:CreateTable", "zk-devices"),
        ("sqs:CreateQueue", "zk-dead-letters"),
        ("logs:PutRetentionPolicy", "zk-verifier"),
        ("iam:CreateRole", "zk-verifier"),
        ("lambda:CreateFunction", "zk-verifier"),
        ("iot:CreateTopicRule", "zk_verify"),
    ];
    for (number, (missing, on)) in cases.into_iter().enumerate() {
        let less = policy.replace(&format!("\"{missing}\""), "\"sqs:GetQueueUrl\"");
        assert_ne!(less, policy);
        let credentials = server.operator(&format!("less-{number}"), &less);
        let operator = Operator::with(&server, &credentials, false).await.unwrap();
        let stopped = operator.apply().await.unwrap_err();
        let Error::Denied {
            action, resource, ..
        } = &stopped
        else {
            panic!("{missing}: {stopped:?}");
        };
        assert_eq!(action, missing);
        assert!(resource.contains(on), "{resource}");
        assert!(
            stopped.to_string().contains("`zk-setup policy`"),
            "{stopped}"
        );
    }

    // what AWS itself says, and MiniStack doesn't
    let operator = Operator::with(&server, &root(), false).await.unwrap();
    let refused = [
        (
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ),
        (
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
        ),
        ("ThrottlingException", "Rate exceeded"),
    ];
    for (code, message) in refused {
        operator
            .way
            .fault(move |_, _| Some(Fault::Refused(400, code, message)));
        let stopped = operator.plan().await.unwrap_err();
        let is_named = match code {
            "ExpiredTokenException" => matches!(stopped, Error::CredentialsExpired { .. }),
            "RequestTimeTooSkewed" => matches!(stopped, Error::ClockOff { .. }),
            _ => matches!(stopped, Error::Throttled { .. }),
        };
        assert!(is_named, "{code}: {stopped:?}");
        assert!(stopped.to_string().contains(message), "{stopped}");
    }
    operator.way.clear();

    // nobody there
    drop(server);
    let unreachable = operator.plan().await.unwrap_err();
    assert!(
        matches!(unreachable, Error::Unreachable { .. }),
        "{unreachable:?}"
    );
}

/// Another rule that takes the same messages is named; it may well be meant so.
#[tokio::test]
async fn a_rule_beside_ours_is_named() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    server.boto3(
        "i = client('iot')\n\
         for name, topic, off in (('all', '#', False), ('old', 'Zymkey/+', True), \
         ('mine', 'Zymkey/pi-01', False), ('else', 'a/+', False)):\n    \
         i.create_topic_rule(ruleName=name, topicRulePayload={'sql': \
         f\"SELECT * FROM '{topic}'\", 'actions': [], 'ruleDisabled': off})",
    );
    let told = "other rules take the same messages as well: all, mine";
    for _ in 0..2 {
        let steps = operator.apply().await.unwrap();
        let rule = steps
            .iter()
            .find(|step| step.item.to_string() == "IoT topic rule zk_verify")
            .unwrap();
        assert!(rule.reason.contains(told), "{}", said(&steps));
    }
    operator.is_clean().await;
}

/// A table of which a backup is being made doesn't go, whatever was asked.
#[tokio::test]
async fn a_table_that_stays_is_not_said_to_be_gone() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    operator.apply().await.unwrap();
    operator.way.fault(|_, call| {
        let busy = "Table is being backed up: zk-devices";
        let fault = Fault::Refused(400, "ResourceInUseException", busy);
        (call == "DeleteTable").then_some(fault)
    });
    let stopped = operator.destroy(true).await.unwrap_err();
    assert!(
        matches!(&stopped, Error::NotReady { resource, .. } if resource.contains("zk-devices")),
        "{stopped:?}"
    );
    assert_eq!(inventory(&server), DATA);
    operator.way.clear();
    operator.destroy(true).await.unwrap();
    assert_eq!(inventory(&server), "");
}

/// What verifies stays without a zip file, and all else is mended.
#[tokio::test]
async fn the_program_that_is_there_stays_without_a_zip_file() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    let without = AwsDesired {
        function: None,
        ..operator.desired()
    };
    let plan = async || {
        let now = SystemTime::now();
        Box::pin(operator.setup.plan(&without, now)).await
    };
    let stopped = plan().await.unwrap_err();
    assert!(matches!(stopped, Error::NoFunction { .. }), "{stopped:?}");
    assert!(
        stopped.to_string().contains("cargo xtask lambda"),
        "{stopped}"
    );
    assert_eq!(operator.setup.function_architecture().await.unwrap(), None);
    assert_eq!(inventory(&server), "");

    operator.apply().await.unwrap();
    let runs_on = operator.setup.function_architecture().await.unwrap();
    assert_eq!(runs_on, Some(Architecture::Arm64));
    let planned = plan().await.unwrap();
    assert!(!planned.has_changes(), "{}", said(&planned.steps));
    let told = "kept Lambda function zk-verifier: its code was not compared";
    assert!(
        said(&planned.steps).contains(told),
        "{}",
        said(&planned.steps)
    );
    server.boto3(
        "client('lambda').update_function_configuration(FunctionName='zk-verifier', MemorySize=256)",
    );
    let steps = operator.apply_this(&without).await.unwrap();
    assert_eq!(done(&steps), ["changed Lambda function zk-verifier"]);
    operator.is_clean().await;
}

/// Messages that could not be stored are data.
#[tokio::test]
async fn a_queue_with_messages_is_kept_with_the_data() {
    let server = StandIn::ministack();
    let operator = Operator::of(&server).await;
    operator.apply().await.unwrap();
    server.boto3(
        "q = client('sqs')\n\
         url = q.get_queue_url(QueueName='zk-dead-letters')['QueueUrl']\n\
         q.send_message(QueueUrl=url, MessageBody='{}')",
    );
    let steps = operator.destroy(false).await.unwrap();
    assert!(
        said(&steps).contains("kept SQS queue zk-dead-letters: 1 messages in it"),
        "{}",
        said(&steps)
    );
    let kept = format!("zk-dead-letters {DATA}");
    assert_eq!(inventory(&server), kept);
    operator.destroy(true).await.unwrap();
    assert_eq!(inventory(&server), "");
}

/// moto has no list of authorities and no tags in AWS IoT: what AWS would answer is
/// put in the place of its errors. It calls an authority by another name than AWS, so
/// that it is registered anew each time, and is never found. And it gives certificates
/// such names, too, so that no device gets further than that. All the rest is moto's
/// own opinion.
#[tokio::test]
async fn moto_agrees_as_far_as_it_goes() {
    let in_its_place = |_: usize, call: &str| {
        let tags = "{\"tags\":[{\"Key\":\"zk:set-up\",\"Value\":\"zk\"},\
                    {\"Key\":\"zk:version\",\"Value\":\"1\"}]}";
        match call {
            "GET /cacertificates" => Some(Fault::Answered("{\"certificates\":[]}")),
            _ if call.starts_with("GET /tags?resourceArn=arn%3Aaws%3Aiot%3A") => {
                Some(Fault::Answered(tags))
            }
            _ => None,
        }
    };
    let server = StandIn::moto();
    let operator = Operator::with(&server, &root(), false).await.unwrap();
    let none: Vec<String> = Vec::new();

    operator.way.clear();
    let plan = operator.plan().await.unwrap();
    let planned = done(&plan.steps);
    assert_eq!(planned.len(), 11, "{planned:?}");
    assert!(
        planned.iter().all(|step| step.starts_with("created ")),
        "{planned:?}"
    );
    assert_eq!(operator.way.changes(), none);
    let steps = operator.apply().await.unwrap();
    assert_eq!(done(&steps), planned, "{}", said(&steps));
    assert_eq!(inventory(&server), ALL);

    operator.way.fault(in_its_place);
    let plan = operator.plan().await.unwrap();
    assert_eq!(done(&plan.steps), none, "{}", said(&plan.steps));
    assert_eq!(operator.way.changes(), none);
    operator.way.fault(in_its_place);
    let steps = operator.apply().await.unwrap();
    assert_eq!(done(&steps), none, "{}", said(&steps));
    let changed = operator.way.changes();
    let is_authority = |call: &String| call.starts_with("POST /cacertificate?");
    assert!(
        changed.len() == 1 && changed.iter().all(is_authority),
        "{changed:?}"
    );

    server.boto3(
        "client('dynamodb').update_table(TableName='zk-readings', DeletionProtectionEnabled=False)\n\
         client('logs').put_retention_policy(logGroupName='/aws/lambda/zk-verifier', retentionInDays=7)\n\
         client('iam').delete_role_policy(RoleName='zk-verifier', PolicyName='zk')\n\
         client('lambda').update_function_configuration(FunctionName='zk-verifier', MemorySize=256)\n\
         client('iot').disable_topic_rule(ruleName='zk_verify')",
    );
    operator.way.fault(in_its_place);
    let drift = done(&operator.plan().await.unwrap().steps);
    assert_eq!(
        drift,
        [
            "changed DynamoDB table zk-readings",
            "changed CloudWatch log group /aws/lambda/zk-verifier",
            "changed IAM role zk-verifier",
            "changed Lambda function zk-verifier",
            "changed IoT topic rule zk_verify",
        ]
    );
    assert_eq!(done(&operator.apply().await.unwrap()), drift);
    assert_eq!(done(&operator.plan().await.unwrap().steps), none);

    // it refuses to delete what is protected, and a role that has rights
    operator.destroy(false).await.unwrap();
    assert_eq!(inventory(&server), DATA);
    operator.destroy(true).await.unwrap();
    assert_eq!(inventory(&server), "");
}
