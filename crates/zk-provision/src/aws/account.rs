//! Who is asked, as whom, and what everything is called there.

use std::fmt;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use zk_envelope::DeviceId;

use crate::Error;
use crate::aws::failure::failed;

/// How AWS is reached. What is `None` comes from the environment and the files of
/// AWS's own tools.
#[derive(Clone, Debug)]
pub struct AwsOptions {
    /// A profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Something else that speaks AWS's protocols, for every service.
    pub endpoint_url: Option<String>,
    /// What every name begins with: a letter, then up to 31 of `A-Z a-z 0-9 _ -`.
    /// Default `zk`.
    pub prefix: String,
}

impl Default for AwsOptions {
    fn default() -> Self {
        Self {
            profile: None,
            region: None,
            endpoint_url: None,
            prefix: "zk".into(),
        }
    }
}

/// One account, in one region, as one caller.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) names: Names,
    /// Who asks: the ARN of a user or of a role's session.
    pub(crate) caller: String,
    pub(crate) config: SdkConfig,
    pub(crate) iot: aws_sdk_iot::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) lambda: aws_sdk_lambda::Client,
    pub(crate) iam: aws_sdk_iam::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) logs: aws_sdk_cloudwatchlogs::Client,
}

impl Account {
    /// Finds credentials and region, and asks AWS whose they are.
    pub(crate) async fn connect(options: &AwsOptions) -> Result<Self, Error> {
        check_prefix(&options.prefix)?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(10))
            .operation_attempt_timeout(Duration::from_secs(60))
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
        if let Some(profile) = &options.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &options.endpoint_url {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        let region = config.region().ok_or(Error::NoRegion)?.to_string();
        let who = aws_sdk_sts::Client::new(&config)
            .get_caller_identity()
            .send()
            .await
            .map_err(failed("sts:GetCallerIdentity", "the caller"))?;
        let caller = who.arn().unwrap_or_default().to_owned();
        // arn:PARTITION:sts::ACCOUNT:…
        let partition = caller.split(':').nth(1).unwrap_or("aws");
        let names = Names {
            prefix: options.prefix.clone(),
            partition: partition.to_owned(),
            region,
            account: who.account().unwrap_or_default().to_owned(),
        };
        Ok(Self {
            names,
            caller,
            iot: aws_sdk_iot::Client::new(&config),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            lambda: aws_sdk_lambda::Client::new(&config),
            iam: aws_sdk_iam::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            logs: aws_sdk_cloudwatchlogs::Client::new(&config),
            config,
        })
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("names", &self.names)
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

/// What everything is called. Nothing is remembered: a set-up is found again by
/// these names, and known as ours by its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) prefix: String,
    pub(crate) partition: String,
    pub(crate) region: String,
    pub(crate) account: String,
}

impl Names {
    /// The Lambda function, and the role it runs in.
    pub(crate) fn function(&self) -> String {
        format!("{}-verifier", self.prefix)
    }

    /// The role in which the rule sends what it could not hand over.
    pub(crate) fn rule_role(&self) -> String {
        format!("{}-rule", self.prefix)
    }

    /// The dead-letter queue.
    pub(crate) fn queue(&self) -> String {
        format!("{}-dead-letters", self.prefix)
    }

    pub(crate) fn log_group(&self) -> String {
        format!("/aws/lambda/{}", self.function())
    }

    /// The topic rule, whose name may have no hyphen.
    pub(crate) fn rule(&self) -> String {
        format!("{}_verify", self.prefix.replace('-', "_"))
    }

    /// The device's thing, and its policy.
    pub(crate) fn thing(&self, device: &DeviceId) -> String {
        format!("{}-{device}", self.prefix)
    }

    /// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`
    pub(crate) fn arn(&self, service: &str, resource: &str) -> String {
        let Self {
            partition,
            region,
            account,
            ..
        } = self;
        format!("arn:{partition}:{service}:{region}:{account}:{resource}")
    }

    /// The same for IAM, which has no regions.
    pub(crate) fn role_arn(&self, role: &str) -> String {
        let Self {
            partition, account, ..
        } = self;
        format!("arn:{partition}:iam::{account}:role/{role}")
    }
}

pub(crate) fn check_prefix(prefix: &str) -> Result<(), Error> {
    let first = prefix.bytes().next();
    let is_good = first.is_some_and(|first| first.is_ascii_alphabetic())
        && prefix.len() <= 32
        && prefix
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_good {
        Ok(())
    } else {
        Err(Error::Prefix {
            prefix: prefix.to_owned(),
        })
    }
}

/// The tag that says of what is found under a name that it is ours: the prefix.
pub(crate) const TAG: &str = "zk:set-up";
