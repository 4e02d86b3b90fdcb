use std::env;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::Client;
use zk_store::{Options, Store};

use crate::Error;

/// Where the function stores, as its environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `AWS_REGION`, which Lambda sets.
    pub region: String,
    /// `ZK_PREFIX`: the tables are `<prefix>-devices`, `<prefix>-readings` and
    /// `<prefix>-quarantine`. Default `zk`.
    pub prefix: String,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`Error::Environment`] for a variable that is not there, or not UTF-8.
    pub fn from_env() -> Result<Self, Error> {
        let variable = |name| match env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(Error::Environment { name }),
        };
        let name = "AWS_REGION";
        Ok(Self {
            region: variable(name)?.ok_or(Error::Environment { name })?,
            prefix: variable("ZK_PREFIX")?.unwrap_or_else(|| Options::default().prefix),
        })
    }

    /// The store: one client for all invocations, with the credentials that are
    /// in the environment and nowhere else. It is not asked yet.
    ///
    /// `AWS_ENDPOINT_URL_DYNAMODB` and `AWS_ENDPOINT_URL` lead to another place.
    ///
    /// # Errors
    /// [`Error::Store`] for a prefix that makes no table names.
    pub async fn open(self) -> Result<Store, Error> {
        // `Store::open` would look for credentials in files and on the network, too.
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region))
            .credentials_provider(EnvironmentVariableCredentialsProvider::new())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT)
                    .operation_attempt_timeout(ATTEMPT)
                    .build(),
            )
            .load()
            .await;
        let variables = ["AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"];
        if let Some(endpoint) = variables.iter().find_map(|name| env::var(name).ok()) {
            tracing::warn!(
                endpoint,
                "another endpoint than the region's own is configured"
            );
        }
        let options = Options {
            prefix: self.prefix,
            ..Options::default()
        };
        Ok(Store::with_client(Client::new(&config), options)?)
    }
}

/// For one connection. The table is near.
const CONNECT: Duration = Duration::from_secs(2);

/// For one attempt of a request: an invocation has time for another one.
const ATTEMPT: Duration = Duration::from_secs(5);
