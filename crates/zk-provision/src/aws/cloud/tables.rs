//! The store's tables.

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoverySpecification,
    PointInTimeRecoveryStatus, ScalarAttributeType, TableDescription, TableStatus, Tag,
    TimeToLiveSpecification, TimeToLiveStatus,
};
use zk_store::{EXPIRES_AT, StoreError, TABLE_KEYS};

use super::only_ours;
use crate::Error;
use crate::aws::account::{Account, Names};
use crate::aws::failure::{failed, incomplete};
use crate::aws::ours::{Drift, PATIENCE, patiently};
use crate::hand::Hand;
use crate::report::Action;

const KIND: &str = "DynamoDB table";

/// What a table is to be.
pub(super) struct Wanted {
    name: String,
    keys: &'static [&'static str],
    /// Only the quarantine forgets.
    expires: bool,
}

/// How a table is.
pub(super) struct Found {
    has_tags: bool,
    has_keys: bool,
    is_on_demand: bool,
    is_protected: bool,
    is_recoverable: bool,
    /// The attribute by which items expire.
    expiry: Option<String>,
}

pub(super) type Tables = [(Wanted, Option<Found>); 3];

fn wanted(names: &Names) -> [Wanted; 3] {
    let [devices, readings, quarantine] = TABLE_KEYS;
    [
        ("devices", devices, false),
        ("readings", readings, false),
        ("quarantine", quarantine, true),
    ]
    .map(|(table, keys, expires)| Wanted {
        name: format!("{}-{table}", names.prefix),
        keys,
        expires,
    })
}

pub(super) async fn look(account: &Account) -> Result<Tables, Error> {
    let [devices, readings, quarantine] = wanted(&account.names);
    Ok([
        look_at(account, devices).await?,
        look_at(account, readings).await?,
        look_at(account, quarantine).await?,
    ])
}

async fn look_at(account: &Account, table: Wanted) -> Result<(Wanted, Option<Found>), Error> {
    let found = find(account, &table).await?;
    Ok((table, found))
}

async fn find(account: &Account, table: &Wanted) -> Result<Option<Found>, Error> {
    let resource = table.resource();
    let Some(there) = settled(account, table).await? else {
        return Ok(None);
    };
    let (mut tags, mut next) = (Vec::new(), None);
    loop {
        let page = account.dynamodb.list_tags_of_resource();
        let page = page.resource_arn(table.arn(account)).set_next_token(next);
        let page = page.send().await;
        let page = page.map_err(failed("dynamodb:ListTagsOfResource", &resource))?;
        tags.extend(page.tags.unwrap_or_default());
        next = page.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            break;
        }
    }
    let has_tags = account
        .names
        .own(&resource, tags.iter().map(|tag| (tag.key(), tag.value())))?;
    let backups = account
        .dynamodb
        .describe_continuous_backups()
        .table_name(&table.name)
        .send()
        .await
        .map_err(failed("dynamodb:DescribeContinuousBackups", &resource))?;
    let recovery = backups
        .continuous_backups_description()
        .and_then(|backups| backups.point_in_time_recovery_description())
        .and_then(|recovery| recovery.point_in_time_recovery_status());
    let ttl = account
        .dynamodb
        .describe_time_to_live()
        .table_name(&table.name)
        .send()
        .await
        .map_err(failed("dynamodb:DescribeTimeToLive", &resource))?;
    let ttl = ttl.time_to_live_description();
    let expires = matches!(
        ttl.and_then(|ttl| ttl.time_to_live_status()),
        Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)
    );
    let attribute = ttl.and_then(|ttl| ttl.attribute_name()).unwrap_or_default();
    Ok(Some(Found {
        has_tags,
        is_recoverable: recovery == Some(&PointInTimeRecoveryStatus::Enabled),
        expiry: expires.then(|| attribute.to_owned()),
        ..Found::of(table, &there)
    }))
}

/// The table, once it is neither being made, changed nor taken away.
async fn settled(account: &Account, table: &Wanted) -> Result<Option<TableDescription>, Error> {
    let passing = |status: &TableStatus| {
        matches!(
            status,
            TableStatus::Creating | TableStatus::Updating | TableStatus::Deleting
        )
    };
    let ask = async || {
        let there = describe(account, table).await?;
        match there.as_ref().and_then(TableDescription::table_status) {
            Some(status) if passing(status) => Err(Error::NotReady {
                resource: table.resource(),
                state: status.as_str().to_owned(),
            }),
            _ => Ok(there),
        }
    };
    patiently(PATIENCE, ask, |error| {
        matches!(error, Error::NotReady { .. })
    })
    .await
}

async fn describe(account: &Account, table: &Wanted) -> Result<Option<TableDescription>, Error> {
    let answer = account
        .dynamodb
        .describe_table()
        .table_name(&table.name)
        .send()
        .await;
    match answer {
        Ok(answer) => Ok(answer.table),
        Err(error) if error.code() == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(failed("dynamodb:DescribeTable", &table.resource())(error)),
    }
}

pub(super) async fn make(
    hand: &mut Hand<'_>,
    account: &Account,
    tables: Tables,
) -> Result<(), Error> {
    // all at once, as each takes its time
    if !hand.plans() {
        for (table, found) in &tables {
            if found.is_none() {
                create(account, table).await?;
            }
        }
    }
    for (table, found) in tables {
        match found {
            Some(found) => mend(hand, account, &table, found, false).await?,
            None if hand.plans() => hand.resource(Action::Created, KIND, &table.name, ""),
            None => {
                let found = settled(account, &table)
                    .await?
                    .map(|there| Found::of(&table, &there));
                let found = found.ok_or_else(|| Error::NotReady {
                    resource: table.resource(),
                    state: "missing".into(),
                })?;
                mend(hand, account, &table, found, true).await?;
            }
        }
    }
    Ok(())
}

/// Makes the table, with its tags from the first.
async fn create(account: &Account, table: &Wanted) -> Result<(), Error> {
    let resource = table.resource();
    let incomplete = |error| incomplete("dynamodb:CreateTable", &resource, error);
    let mut request = account
        .dynamodb
        .create_table()
        .table_name(&table.name)
        .billing_mode(BillingMode::PayPerRequest)
        .deletion_protection_enabled(true);
    for (name, key_type) in table.keys.iter().zip([KeyType::Hash, KeyType::Range]) {
        let key = KeySchemaElement::builder()
            .attribute_name(*name)
            .key_type(key_type);
        let attribute = AttributeDefinition::builder()
            .attribute_name(*name)
            .attribute_type(ScalarAttributeType::S);
        request = request
            .key_schema(key.build().map_err(incomplete)?)
            .attribute_definitions(attribute.build().map_err(incomplete)?);
    }
    for (key, value) in account.names.tags() {
        request = request.tags(tag(key, value).map_err(incomplete)?);
    }
    match request.send().await {
        Ok(_) => Ok(()),
        // one that was asked twice: a moment ago there was none
        Err(error) if error.code() == Some(IN_USE) => Ok(()),
        Err(error) => Err(failed("dynamodb:CreateTable", &resource)(error)),
    }
}

async fn mend(
    hand: &mut Hand<'_>,
    account: &Account,
    table: &Wanted,
    found: Found,
    is_new: bool,
) -> Result<(), Error> {
    let resource = table.resource();
    if !found.has_keys {
        return Err(StoreError::WrongTable {
            table: table.name.clone(),
        }
        .into());
    }
    let mut drift = Drift::default();
    let bill = drift.note(!found.is_on_demand, "it is not billed by request");
    let protect = drift.note(!found.is_protected, "it is not protected against deletion");
    let recover = drift.note(!found.is_recoverable, "point-in-time recovery is off");
    let wanted = table.expires.then_some(EXPIRES_AT);
    let expiry = found.expiry.as_deref();
    let expire = match (expiry, wanted) {
        (found, wanted) if found == wanted => false,
        (Some(other), Some(wanted)) => {
            drift.note(true, format_args!("items expire by {other}, not {wanted}"))
        }
        (Some(other), None) => drift.note(true, format_args!("items expire by {other}")),
        (None, _) => drift.note(true, "items never expire"),
    };
    let tag_it = drift.note(!found.has_tags, "its tags are incomplete");
    if !hand.plans() {
        if tag_it {
            tag_table(account, table).await?;
        }
        let update = || account.dynamodb.update_table().table_name(&table.name);
        let protection = update().deletion_protection_enabled(true);
        let billing = update().billing_mode(BillingMode::PayPerRequest);
        // AWS takes one change at a time
        for request in [(protect, protection), (bill, billing)]
            .into_iter()
            .filter_map(|(is_due, request)| is_due.then_some(request))
        {
            let changed = request.send().await;
            changed.map_err(failed("dynamodb:UpdateTable", &resource))?;
            settled(account, table).await?;
        }
        if recover {
            make_recoverable(account, table).await?;
        }
        if expire {
            // one at a time: what expires by another attribute is first to stop
            if let Some(other) = expiry {
                set_expiry(account, table, other, false).await?;
            }
            if let Some(wanted) = wanted {
                set_expiry(account, table, wanted, true).await?;
            }
        }
    }
    hand.mended(KIND, &table.name, is_new, &drift);
    Ok(())
}

async fn tag_table(account: &Account, table: &Wanted) -> Result<(), Error> {
    const OPERATION: &str = "dynamodb:TagResource";
    let mut request = account
        .dynamodb
        .tag_resource()
        .resource_arn(table.arn(account));
    for (key, value) in account.names.tags() {
        let tag = tag(key, value);
        request = request.tags(tag.map_err(|error| incomplete(OPERATION, &table.name, error))?);
    }
    let tagged = request.send().await.map(drop);
    tagged.map_err(failed(OPERATION, &table.resource()))
}

/// Which a new table may refuse for a moment.
async fn make_recoverable(account: &Account, table: &Wanted) -> Result<(), Error> {
    const OPERATION: &str = "dynamodb:UpdateContinuousBackups";
    let specification = PointInTimeRecoverySpecification::builder()
        .point_in_time_recovery_enabled(true)
        .build()
        .map_err(|error| incomplete(OPERATION, &table.name, error))?;
    let request = account
        .dynamodb
        .update_continuous_backups()
        .table_name(&table.name)
        .point_in_time_recovery_specification(specification);
    let ask = async || {
        let changed = request.clone().send().await.map(drop);
        changed.map_err(failed(OPERATION, &table.resource()))
    };
    patiently(PATIENCE, ask, |error| {
        error.is_aws("ContinuousBackupsUnavailableException")
    })
    .await
}

async fn set_expiry(
    account: &Account,
    table: &Wanted,
    attribute: &str,
    expires: bool,
) -> Result<(), Error> {
    const OPERATION: &str = "dynamodb:UpdateTimeToLive";
    let specification = TimeToLiveSpecification::builder()
        .attribute_name(attribute)
        .enabled(expires)
        .build()
        .map_err(|error| incomplete(OPERATION, &table.name, error))?;
    let set = account
        .dynamodb
        .update_time_to_live()
        .table_name(&table.name)
        .time_to_live_specification(specification)
        .send()
        .await;
    match set {
        Ok(_) => Ok(()),
        // one that was asked twice
        Err(error) if error.message().is_some_and(|said| said.contains("already")) => Ok(()),
        Err(error) => Err(failed(OPERATION, &table.resource())(error)),
    }
}

/// What can be deleted again with the table, or is kept.
pub(super) async fn remove(
    hand: &mut Hand<'_>,
    account: &Account,
    with_data: bool,
) -> Result<(), Error> {
    let mut going = Vec::new();
    for table in wanted(&account.names) {
        let found = find(account, &table).await;
        let Some(found) = only_ours(hand, KIND, &table.name, found)? else {
            continue;
        };
        if !with_data {
            hand.resource(Action::Kept, KIND, &table.name, "the data");
            continue;
        }
        if !hand.plans() {
            if found.is_protected {
                unprotect(account, &table).await?;
            }
            delete(account, &table).await?;
        }
        going.push(table);
    }
    for table in going {
        // in use, as by a backup that is being made, it would not go
        if !hand.plans() && settled(account, &table).await?.is_some() {
            return Err(Error::NotReady {
                resource: table.resource(),
                state: "in use".into(),
            });
        }
        hand.resource(Action::Removed, KIND, &table.name, "");
    }
    Ok(())
}

async fn unprotect(account: &Account, table: &Wanted) -> Result<(), Error> {
    account
        .dynamodb
        .update_table()
        .table_name(&table.name)
        .deletion_protection_enabled(false)
        .send()
        .await
        .map_err(failed("dynamodb:UpdateTable", &table.resource()))?;
    settled(account, table).await.map(drop)
}

async fn delete(account: &Account, table: &Wanted) -> Result<(), Error> {
    let deleted = account
        .dynamodb
        .delete_table()
        .table_name(&table.name)
        .send()
        .await;
    match deleted {
        Ok(_) => Ok(()),
        // one that was asked twice
        Err(error) if matches!(error.code(), Some(NOT_FOUND | IN_USE)) => Ok(()),
        Err(error) => Err(failed("dynamodb:DeleteTable", &table.resource())(error)),
    }
}

impl Wanted {
    fn resource(&self) -> String {
        format!("{KIND} {}", self.name)
    }

    fn arn(&self, account: &Account) -> String {
        let resource = format!("table/{}", self.name);
        account.names.arn("dynamodb", &resource)
    }
}

impl Found {
    /// What a table says of itself; of a new one, that is all.
    fn of(table: &Wanted, there: &TableDescription) -> Self {
        let keys = there.key_schema().iter();
        let billing = there.billing_mode_summary();
        Self {
            has_tags: true,
            has_keys: keys
                .map(KeySchemaElement::attribute_name)
                .eq(table.keys.iter().copied()),
            is_on_demand: billing.and_then(|billing| billing.billing_mode())
                == Some(&BillingMode::PayPerRequest),
            is_protected: there.deletion_protection_enabled() == Some(true),
            is_recoverable: false,
            expiry: None,
        }
    }
}

fn tag(key: &str, value: String) -> Result<Tag, aws_sdk_dynamodb::error::BuildError> {
    Tag::builder().key(key).value(value).build()
}

const NOT_FOUND: &str = "ResourceNotFoundException";
/// It is there; or it is on its way out.
const IN_USE: &str = "ResourceInUseException";
