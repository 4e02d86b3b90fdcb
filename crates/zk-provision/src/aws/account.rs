//! Who is asked, as whom, and what everything is called there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_config::default_provider::region;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_types::service_config::ServiceConfigKey;
use zk_envelope::DeviceId;

use crate::Error;
use crate::aws::failure::{failed, told};

/// How AWS is reached. What is `None` is found elsewhere.
#[derive(Clone, Debug, Default)]
pub struct AwsOptions {
    /// A profile of `~/.aws/config`, whose credentials count then. `None`: those of
    /// the environment, of `AWS_PROFILE`, or of `default`.
    pub profile: Option<String>,
    /// The region. `None`: `AWS_REGION`, or what the operator's directory says,
    /// or the profile.
    pub region: Option<String>,
    /// Something else that speaks AWS's protocols, for every service. `None`:
    /// what AWS's own variables and files say, and they rarely say anything.
    pub endpoint_url: Option<String>,
    /// What every name begins with: a letter, then up to 31 of `A-Z a-z 0-9 _ -`.
    /// `None`: what the operator's directory says, or `zk`.
    pub prefix: Option<String>,
}

/// One account, in one region, as one caller.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) names: Names,
    /// Who asks: the ARN of a user or of a role's session.
    pub(crate) caller: String,
    pub(crate) iot: aws_sdk_iot::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) lambda: aws_sdk_lambda::Client,
    pub(crate) iam: aws_sdk_iam::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) logs: aws_sdk_cloudwatchlogs::Client,
    calls: Calls,
}

impl Account {
    /// Asks AWS whose credentials these are.
    pub(crate) async fn over(config: &SdkConfig, prefix: &str) -> Result<Self, Error> {
        check_prefix(prefix)?;
        let region = config.region().ok_or(Error::NoRegion)?.to_string();
        check_region(&region)?;
        let calls = Calls::default();
        macro_rules! client {
            ($sdk:ident) => {
                $sdk::Client::from_conf(
                    $sdk::config::Builder::from(config)
                        .interceptor(calls.clone())
                        .build(),
                )
            };
        }
        const OPERATION: &str = "sts:GetCallerIdentity";
        let who = client!(aws_sdk_sts).get_caller_identity().send().await;
        let who = who.map_err(failed(OPERATION, CALLER))?;
        let account = told(who.account, OPERATION, CALLER, "account")?;
        let caller = told(who.arn, OPERATION, CALLER, "ARN")?;
        // arn:PARTITION:sts::ACCOUNT:…
        let partition = caller.split(':').nth(1);
        let partition = told(partition, OPERATION, CALLER, "ARN")?;
        let names = Names {
            prefix: prefix.to_owned(),
            partition: partition.to_owned(),
            region,
            account,
        };
        Ok(Self {
            names,
            caller,
            iot: client!(aws_sdk_iot),
            dynamodb: client!(aws_sdk_dynamodb),
            lambda: client!(aws_sdk_lambda),
            iam: client!(aws_sdk_iam),
            sqs: client!(aws_sdk_sqs),
            logs: client!(aws_sdk_cloudwatchlogs),
            calls,
        })
    }

    /// How many requests were sent so far, repeated ones among them.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.0.load(Ordering::Relaxed)
    }
}

/// Finds credentials, region and endpoints where AWS's own tools find them.
pub(crate) async fn load(options: &AwsOptions) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(10))
        .operation_attempt_timeout(Duration::from_secs(60))
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts)
        // a quota that is used up takes its time
        .retry_config(RetryConfig::standard().with_max_attempts(6));
    if let Some(profile) = &options.profile {
        let region = match &options.region {
            Some(region) => Some(Region::new(region.clone())),
            None => {
                let named = region::Builder::default().profile_name(profile);
                named.build().region().await
            }
        };
        // where a role is asked for, if the profile has one
        let known = ProviderConfig::without_region().with_region(region);
        // whoever names one means it, whatever keys the environment has
        let named = ProfileFileCredentialsProvider::builder().configure(&known);
        let named = named.profile_name(profile);
        loader = loader
            .profile_name(profile)
            .credentials_provider(named.build());
    }
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &options.endpoint_url {
        loader = loader.endpoint_url(endpoint);
    }
    loader.load().await
}

/// The services that are not asked at AWS's own endpoints, and where they are
/// asked instead, by option, variable or file.
pub(crate) fn overrides(config: &SdkConfig) -> Vec<(&'static str, String)> {
    let told = |service: &'static str| {
        if config.get_origin("endpoint_url").is_client_config() {
            return config.endpoint_url().map(str::to_owned);
        }
        let key = ServiceConfigKey::builder()
            .service_id(service)
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build()
            .ok()?;
        let by_service = config.service_config()?.load_config(key);
        by_service.or_else(|| config.endpoint_url().map(str::to_owned))
    };
    let found = |service| Some((service, told(service)?));
    SERVICES.into_iter().filter_map(found).collect()
}

const CALLER: &str = "the caller";

/// As AWS's configuration files call them.
const SERVICES: [&str; 7] = [
    "CloudWatch Logs",
    "DynamoDB",
    "IAM",
    "IoT",
    "Lambda",
    "SQS",
    "STS",
];

/// Counts the requests.
#[derive(Clone, Debug, Default)]
struct Calls(Arc<AtomicU64>);

#[dyn_dispatch_hint]
impl Intercept for Calls {
    fn name(&self) -> &'static str {
        "calls"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
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

/// Whether it looks like one: which there are, AWS alone knows.
pub(crate) fn check_region(region: &str) -> Result<(), Error> {
    let mut parts = region.rsplit('-');
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let ends_well = parts.next().is_some_and(is_number);
    if ends_well && region.len() <= 32 && parts.clone().count() >= 2 && parts.all(is_word) {
        Ok(())
    } else {
        Err(Error::Region {
            region: region.to_owned(),
        })
    }
}

/// The tag that says of what is found under a name that it is ours: the prefix.
pub(crate) const TAG: &str = "zk:set-up";

#[cfg(test)]
mod tests {
    use super::check_region;

    #[test]
    fn regions_are_called_as_regions_are() {
        for region in [
            "eu-central-1",
            "us-gov-west-1",
            "cn-north-1",
            "ap-southeast-2",
            "us-isob-east-1",
            "eusc-de-east-1",
        ] {
            assert!(check_region(region).is_ok(), "{region}");
        }
        for region in [
            "",
            "*",
            "EU Central",
            "eu-central",
            "eu-central-1a",
            "eu--1",
            "europe-1",
            "eu-central-1.evil.example",
            "-central-1",
        ] {
            assert!(check_region(region).is_err(), "{region}");
        }
    }
}
