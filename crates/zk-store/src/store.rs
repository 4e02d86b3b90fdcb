//! Opening a store, and its tables.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::StalledStreamProtectionConfig;
use aws_sdk_dynamodb::config::retry::{ReconnectMode, RetryConfig};
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::delete_table::DeleteTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    TableDescription, TableStatus,
};
use tokio::sync::watch;

use crate::devices::Registry;
use crate::{StoreError, StoreUri, embedded};

/// Devices, readings and quarantine, in three tables. Cheap to clone; clones
/// share their connections and what they remember of the registry.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) tables: [String; 3],
    pub(crate) options: Options,
    pub(crate) registry: Registry,
    /// Ends when the engine has closed its file.
    closed: Option<watch::Receiver<()>>,
}

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The tables are `<prefix>-devices`, `<prefix>-readings` and
    /// `<prefix>-quarantine`: 1 to 200 of `A-Z a-z 0-9 _ . -`. Default `zk`.
    pub prefix: String,
    /// What the quarantine keeps for one principal of records that the device's
    /// key has signed. Past it, such a record is refused with
    /// [`StoreError::EvidenceFull`], so that its sender keeps it. Default 1000
    /// records, 16 MiB.
    pub evidence: Budget,
    /// What the quarantine keeps for one principal of everything else. Past it,
    /// messages are counted, not kept. Default 1000 messages, 16 MiB.
    pub unproven: Budget,
    /// How long a device record is used without being read again: how long a
    /// revocation may take to have effect. Default 60 s.
    pub registry_age: Duration,
    /// Before anything is refused for what is registered, the registry is read
    /// again, but not more often than this for one principal. Default 1 s.
    pub registry_refresh: Duration,
}

/// A limit to what is kept. What is kept already is never pushed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many messages.
    pub items: u64,
    /// How many bytes of message they have together.
    pub bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        let budget = Budget {
            items: 1000,
            bytes: 16 << 20,
        };
        Self {
            prefix: "zk".into(),
            evidence: budget,
            unproven: budget,
            registry_age: Duration::from_secs(60),
            registry_refresh: Duration::from_secs(1),
        }
    }
}

impl Store {
    /// Opens the store at `uri`, which must have been [created](Store::create).
    ///
    /// # Errors
    /// [`StoreError::NoStore`], [`StoreError::Writable`], [`StoreError::Locked`],
    /// [`StoreError::File`] or [`StoreError::Engine`] for a file; [`StoreError::Uri`] for a prefix that
    /// makes no table names. DynamoDB is not asked yet: a table that is missing
    /// there shows with the first request.
    pub async fn open(uri: &StoreUri, options: Options) -> Result<Self, StoreError> {
        check_prefix(&options.prefix)?;
        let mut closed = None;
        let config = match uri {
            StoreUri::File(path) => {
                let (engine, is_closed) = embedded::open(path).await?;
                closed = Some(is_closed);
                aws_sdk_dynamodb::Config::builder()
                    .behavior_version(BehaviorVersion::latest())
                    .region(Region::from_static("embedded"))
                    .endpoint_url("http://embedded.invalid")
                    .allow_no_auth()
                    // There is no way to get lost on: a request that was asked twice
                    // would only be done twice. Nor is there a connection to give up,
                    // of which the SDK would complain with each failure.
                    .retry_config(
                        RetryConfig::disabled()
                            .with_reconnect_mode(ReconnectMode::ReuseAllConnections),
                    )
                    .timeout_config(timeouts(Duration::from_secs(60)))
                    .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
                    .http_client(engine)
                    .build()
            }
            StoreUri::DynamoDb { region } => {
                let config = aws_config::defaults(BehaviorVersion::latest())
                    .region(Region::new(region.clone()))
                    .timeout_config(timeouts(Duration::from_secs(10)))
                    .load()
                    .await;
                let variables = ["AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"];
                let set = variables.iter().find_map(|name| std::env::var(name).ok());
                if let Some(endpoint) = set.as_deref().or_else(|| config.endpoint_url()) {
                    tracing::warn!(
                        endpoint,
                        "another endpoint than the region's own is configured"
                    );
                }
                (&config).into()
            }
        };
        Self::over(Client::from_conf(config), options, closed)
    }

    /// A store over a client of the caller's, for what a URI cannot say: other
    /// credentials, another endpoint, an HTTP client of one's own. Its tables
    /// must have been [created](Store::create); it is not asked yet.
    ///
    /// ```
    /// use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
    /// use aws_sdk_dynamodb::{Client, Config};
    /// use zk_store::{Options, Store};
    ///
    /// # fn main() -> Result<(), zk_store::StoreError> {
    /// let config = Config::builder()
    ///     .behavior_version(BehaviorVersion::latest())
    ///     .region(Region::new("eu-central-1"))
    ///     .credentials_provider(Credentials::new("id", "secret", None, None, "mine"))
    ///     .build();
    /// let store = Store::with_client(Client::from_conf(config), Options::default())?;
    /// assert_eq!(store.table_names()[1], "zk-readings");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Uri`] for a prefix that makes no table names.
    pub fn with_client(client: Client, options: Options) -> Result<Self, StoreError> {
        Self::over(client, options, None)
    }

    fn over(
        client: Client,
        options: Options,
        closed: Option<watch::Receiver<()>>,
    ) -> Result<Self, StoreError> {
        let prefix = &options.prefix;
        check_prefix(prefix)?;
        let tables = ["devices", "readings", "quarantine"].map(|name| format!("{prefix}-{name}"));
        let registry = Registry::default();
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                tables,
                options,
                registry,
                closed,
            }),
        })
    }

    /// Waits until the last clone is gone and a file is closed: then nothing of
    /// this process is left beside it. Who just drops a store and ends may leave
    /// SQLite's own files (`-wal`, `-shm`), which the next one who opens it clears
    /// away.
    pub async fn close(self) {
        let closed = self.inner.closed.clone();
        drop(self);
        if let Some(mut closed) = closed {
            // Nothing is ever sent: this is the other end's drop.
            let _ = closed.changed().await;
        }
    }

    /// Makes what is missing of the store at `uri`, waits until it is ready, and
    /// opens it. What is there already stays as it is.
    ///
    /// A file gets mode 0600, a directory that has to be made 0700. Tables are
    /// billed by request and protected against deletion.
    ///
    /// # Errors
    /// As [`Store::open`]; [`StoreError::WrongTable`]; [`StoreError::Request`].
    pub async fn create(uri: &StoreUri, options: Options) -> Result<Self, StoreError> {
        if let StoreUri::File(path) = uri {
            embedded::create(path)?;
        }
        let store = Self::open(uri, options).await?;
        let wanted = || store.inner.tables.iter().zip(TABLE_KEYS);
        for (table, keys) in wanted() {
            store.create_table(table, keys).await?;
        }
        for (table, keys) in wanted() {
            let ready = |found: Option<&TableDescription>| found.is_some_and(is_active);
            let found = store.wait_for(table, ready).await?;
            let found = found.as_ref().map_or(&[][..], TableDescription::key_schema);
            if !found
                .iter()
                .map(KeySchemaElement::attribute_name)
                .eq(keys.iter().copied())
            {
                return Err(StoreError::WrongTable {
                    table: table.clone(),
                });
            }
        }
        Ok(store)
    }

    /// Deletes the tables with all that is in them, protected or not. Tables
    /// that are not there are no error.
    ///
    /// # Errors
    /// [`StoreError::Request`].
    pub async fn delete_tables(&self) -> Result<(), StoreError> {
        for table in &self.inner.tables {
            let deleted = match self.delete_table(table).await {
                Err(error) if error.code() == Some("ValidationException") => {
                    self.unprotect(table).await?;
                    self.delete_table(table).await
                }
                other => other,
            };
            match deleted {
                Ok(()) => {}
                Err(error) if error.code() == Some("ResourceNotFoundException") => {}
                Err(error) => return Err(StoreError::request("DeleteTable", table)(error)),
            }
        }
        for table in &self.inner.tables {
            self.wait_for(table, |found| found.is_none()).await?;
        }
        Ok(())
    }

    /// The names of the tables: devices, readings, quarantine.
    #[must_use]
    pub fn table_names(&self) -> &[String; 3] {
        &self.inner.tables
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(crate) fn devices_table(&self) -> &str {
        &self.inner.tables[0]
    }

    pub(crate) fn readings_table(&self) -> &str {
        &self.inner.tables[1]
    }

    pub(crate) fn quarantine_table(&self) -> &str {
        &self.inner.tables[2]
    }

    async fn create_table(&self, table: &str, keys: &[&str]) -> Result<(), StoreError> {
        let failed = |source: aws_sdk_dynamodb::error::BuildError| StoreError::Request {
            operation: "CreateTable",
            table: table.to_owned(),
            source: source.into(),
        };
        let mut request = self
            .client()
            .create_table()
            .table_name(table)
            .billing_mode(BillingMode::PayPerRequest)
            .deletion_protection_enabled(true);
        for (name, key_type) in keys.iter().zip([KeyType::Hash, KeyType::Range]) {
            let key = KeySchemaElement::builder()
                .attribute_name(*name)
                .key_type(key_type);
            let attribute = AttributeDefinition::builder()
                .attribute_name(*name)
                .attribute_type(ScalarAttributeType::S);
            request = request
                .key_schema(key.build().map_err(failed)?)
                .attribute_definitions(attribute.build().map_err(failed)?);
        }
        match request.send().await {
            Ok(_) => tracing::info!(table, "table created"),
            Err(error) if error.code() == Some("ResourceInUseException") => {}
            Err(error) => return Err(StoreError::request("CreateTable", table)(error)),
        }
        Ok(())
    }

    async fn delete_table(&self, table: &str) -> Result<(), SdkError<DeleteTableError>> {
        self.client()
            .delete_table()
            .table_name(table)
            .send()
            .await
            .map(drop)
    }

    async fn unprotect(&self, table: &str) -> Result<(), StoreError> {
        self.client()
            .update_table()
            .table_name(table)
            .deletion_protection_enabled(false)
            .send()
            .await
            .map_err(StoreError::request("UpdateTable", table))?;
        self.wait_for(table, |found| found.is_none_or(is_active))
            .await?;
        Ok(())
    }

    /// Looks at a table, which may not be there, until it is as it should be.
    async fn wait_for(
        &self,
        table: &str,
        done: impl Fn(Option<&TableDescription>) -> bool,
    ) -> Result<Option<TableDescription>, StoreError> {
        let started = Instant::now();
        loop {
            let found = match self
                .client()
                .describe_table()
                .table_name(table)
                .send()
                .await
            {
                Ok(found) => found.table,
                Err(error) if error.code() == Some("ResourceNotFoundException") => None,
                Err(error) => return Err(StoreError::request("DescribeTable", table)(error)),
            };
            if done(found.as_ref()) {
                return Ok(found);
            }
            if started.elapsed() > PATIENCE {
                return Err(StoreError::Contended {
                    what: format!("table {table}"),
                });
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if (1..=200).contains(&prefix.len()) && prefix.bytes().all(legal) {
        return Ok(());
    }
    Err(StoreError::Uri {
        given: prefix.to_owned(),
        rule: "a prefix of table names is 1 to 200 of A-Z a-z 0-9 _ . -",
    })
}

/// `attempt` for each attempt, and a limit for all of them.
fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_attempt_timeout(attempt)
        .operation_timeout(attempt.max(Duration::from_secs(30)))
        .build()
}

fn is_active(table: &TableDescription) -> bool {
    table.table_status() == Some(&TableStatus::Active)
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("tables", &self.inner.tables)
            .finish_non_exhaustive()
    }
}

/// The keys of the tables, each a string: of devices, of readings, where the
/// second is the sort key, of quarantine.
pub const TABLE_KEYS: [&[&str]; 3] = [&["principal"], &["deviceId", "timestamp"], &["id"]];

/// How long a table may take to be made, changed or deleted.
const PATIENCE: Duration = Duration::from_secs(120);
