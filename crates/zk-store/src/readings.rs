//! The readings: accepted envelopes, by device and signed time.

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use zk_envelope::{DeviceId, Envelope, Header, Timestamp, Verified};
use zk_verify::{Accepted, Context};

use crate::devices::CONDITION_FAILED;
use crate::item::{Item, Reader, b, n, s};
use crate::{Store, StoreError};

/// A stored reading. Nothing in it is proven: verify the envelope.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredReading {
    /// Its key among the readings of the device:
    /// `2026-11-23T11:20:44.123Z#<stream>#<sequence, 20 digits>`.
    pub key: String,
    /// The device that it is stored under.
    pub device: DeviceId,
    /// The bytes that the signature covers.
    pub encrypted_data: Vec<u8>,
    /// 64 bytes: r, then s, big-endian.
    pub signature: [u8; 64],
    /// When it was received.
    pub received_at: Timestamp,
    /// Whose certificate brought it.
    pub principal: String,
    /// Its time was more than an hour ahead of its receipt.
    pub ahead: bool,
    /// How often it came in again.
    pub again: u64,
}

impl StoredReading {
    /// The envelope, parsed, and found to belong where it is stored.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn envelope(&self) -> Result<Envelope, StoreError> {
        let damaged = |detail| StoreError::Damaged {
            table: "of readings".into(),
            key: format!("{} of {}", self.key, self.device),
            detail,
        };
        let envelope = Envelope::from_parts(self.encrypted_data.clone(), self.signature)
            .map_err(|error| damaged(error.to_string()))?;
        let header = envelope.unverified_header();
        if header.device == self.device && sort_key(header) == self.key {
            Ok(envelope)
        } else {
            Err(damaged(format!(
                "holds {} of {}",
                sort_key(header),
                header.device
            )))
        }
    }
}

/// Leaves the bytes out.
impl fmt::Debug for StoredReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredReading")
            .field("key", &self.key)
            .field("device", &self.device)
            .field("received_at", &self.received_at)
            .finish_non_exhaustive()
    }
}

/// The readings of one device in a range of time, from [`Store::readings`].
#[derive(Debug)]
pub struct Readings(Pages);

impl Readings {
    /// The next reading, or `None` after the last. Fetches page by page.
    ///
    /// After an error that is [`StoreError::Damaged`] the readings behind the
    /// damaged one follow; after any other, the same page is asked for again.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn next(&mut self) -> Option<Result<StoredReading, StoreError>> {
        let item = self.0.next().await?;
        Some(item.and_then(|item| read(self.0.store.readings_table(), &self.0.device, &item)))
    }
}

/// The keys of readings, from [`Store::reading_keys`] or [`Store::newest_keys`].
#[derive(Debug)]
pub struct ReadingKeys(Pages);

impl ReadingKeys {
    /// The next key, or `None` after the last. Fetches page by page; after an
    /// error, the same page is asked for again.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn next(&mut self) -> Option<Result<String, StoreError>> {
        let item = self.0.next().await?;
        Some(item.and_then(|item| Ok(key_of(self.0.store.readings_table(), &item)?.to_owned())))
    }
}

/// Items of one device in a range of time, page by page.
#[derive(Debug)]
struct Pages {
    store: Store,
    device: DeviceId,
    /// The bounds of the sort key.
    between: (String, String),
    keys_only: bool,
    /// If given, the newest come first, and so many more of them.
    newest: Option<u32>,
    page: VecDeque<Item>,
    /// Where the next page begins; `None` after the last.
    next: Option<Option<Item>>,
}

impl Pages {
    async fn next(&mut self) -> Option<Result<Item, StoreError>> {
        loop {
            if self.newest == Some(0) {
                return None;
            }
            if let Some(item) = self.page.pop_front() {
                self.newest = self.newest.map(|more| more - 1);
                return Some(Ok(item));
            }
            let start = self.next.clone()?;
            if let Err(error) = self.fetch(start).await {
                return Some(Err(error));
            }
        }
    }

    async fn fetch(&mut self, start: Option<Item>) -> Result<(), StoreError> {
        let table = self.store.readings_table();
        let mut request = self
            .store
            .client()
            .query()
            .table_name(table)
            .consistent_read(true)
            .key_condition_expression("#d = :d AND #t BETWEEN :from AND :to")
            .expression_attribute_names("#d", DEVICE)
            .expression_attribute_names("#t", TIMESTAMP)
            .expression_attribute_values(":d", s(self.device.as_str()))
            .expression_attribute_values(":from", s(&self.between.0))
            .expression_attribute_values(":to", s(&self.between.1))
            .set_exclusive_start_key(start);
        if self.keys_only {
            request = request.projection_expression("#t");
        }
        if let Some(more) = self.newest {
            let limit = i32::try_from(more).unwrap_or(i32::MAX);
            request = request.scan_index_forward(false).limit(limit);
        }
        let answer = request
            .send()
            .await
            .map_err(StoreError::request("Query", table))?;
        self.page = answer.items.unwrap_or_default().into();
        self.next = answer
            .last_evaluated_key
            .filter(|key| !key.is_empty())
            .map(Some);
        Ok(())
    }
}

/// What became of a reading.
pub(crate) enum Put {
    Stored,
    /// The same bytes were there.
    Duplicate,
    /// Other bytes were there.
    Conflict,
}

impl Store {
    /// The readings of a device whose signed time lies in `times`, both ends
    /// included, ascending by time, then stream, then sequence number.
    ///
    /// A device whose clock was not set yet signs times at the beginning of
    /// 1970: ask for those too.
    #[must_use]
    pub fn readings(&self, device: &DeviceId, times: RangeInclusive<Timestamp>) -> Readings {
        Readings(self.pages(device, &times))
    }

    /// The keys of the same readings, in the same order. Asking for them costs
    /// DynamoDB as much as asking for the readings; what is spared is the way.
    #[must_use]
    pub fn reading_keys(&self, device: &DeviceId, times: RangeInclusive<Timestamp>) -> ReadingKeys {
        ReadingKeys(Pages {
            keys_only: true,
            ..self.pages(device, &times)
        })
    }

    /// The keys of the newest `count` of them, the newest first. No others are
    /// looked at.
    #[must_use]
    pub fn newest_keys(
        &self,
        device: &DeviceId,
        times: RangeInclusive<Timestamp>,
        count: u32,
    ) -> ReadingKeys {
        ReadingKeys(Pages {
            keys_only: true,
            newest: Some(count),
            ..self.pages(device, &times)
        })
    }

    fn pages(&self, device: &DeviceId, times: &RangeInclusive<Timestamp>) -> Pages {
        // '#' follows the time in every key, and '$' follows '#'.
        let between = (times.start().to_string(), format!("{}$", times.end()));
        let next = (times.start() <= times.end()).then_some(None);
        Pages {
            store: self.clone(),
            device: device.clone(),
            between,
            keys_only: false,
            newest: None,
            page: VecDeque::new(),
            next,
        }
    }

    /// The reading of a device with the latest signed time.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn latest(&self, device: &DeviceId) -> Result<Option<StoredReading>, StoreError> {
        let table = self.readings_table();
        let answer = self
            .client()
            .query()
            .table_name(table)
            .consistent_read(true)
            .key_condition_expression("#d = :d")
            .expression_attribute_names("#d", DEVICE)
            .expression_attribute_values(":d", s(device.as_str()))
            .scan_index_forward(false)
            .limit(1)
            .send()
            .await
            .map_err(StoreError::request("Query", table))?;
        answer
            .items()
            .first()
            .map(|item| read(table, device, item))
            .transpose()
    }

    /// Stores a reading, once.
    pub(crate) async fn put_reading(
        &self,
        accepted: &Accepted,
        context: &Context,
    ) -> Result<Put, StoreError> {
        let table = self.readings_table();
        let record = &accepted.envelope;
        let put = self
            .client()
            .put_item()
            .table_name(table)
            .set_item(Some(write(accepted, context)))
            .condition_expression("attribute_not_exists(#d)")
            .expression_attribute_names("#d", DEVICE)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let error = match put {
            Ok(_) => return Ok(Put::Stored),
            Err(error) if error.code() == Some(CONDITION_FAILED) => error.into_service_error(),
            Err(error) => return Err(StoreError::request("PutItem", table)(error)),
        };
        let there = match &error {
            aws_sdk_dynamodb::operation::put_item::PutItemError::ConditionalCheckFailedException(
                failed,
            ) => failed.item.clone().filter(|item| !item.is_empty()),
            _ => None,
        };
        // Not every engine gives back what was there.
        let there = match there {
            Some(item) => item,
            None => {
                let found = self.reading(record.header()).await?;
                found.ok_or_else(|| StoreError::Damaged {
                    table: table.to_owned(),
                    key: sort_key(record.header()),
                    detail: "was deleted while the same record came in: send it again".into(),
                })?
            }
        };
        if !is_same(table, record, &there) {
            return Ok(Put::Conflict);
        }
        self.client()
            .update_item()
            .table_name(table)
            .set_key(Some(item_key(record.header())))
            .update_expression("ADD #n :one")
            .condition_expression("attribute_exists(#d)")
            .expression_attribute_names("#n", AGAIN)
            .expression_attribute_names("#d", DEVICE)
            .expression_attribute_values(":one", n(1))
            .send()
            .await
            .map_err(StoreError::request("UpdateItem", table))?;
        Ok(Put::Duplicate)
    }

    /// What putting a reading would come to now.
    pub(crate) async fn would_put(&self, accepted: &Accepted) -> Result<Put, StoreError> {
        let record = &accepted.envelope;
        let Some(there) = self.reading(record.header()).await? else {
            return Ok(Put::Stored);
        };
        let same = is_same(self.readings_table(), record, &there);
        Ok(if same { Put::Duplicate } else { Put::Conflict })
    }

    async fn reading(&self, header: &Header) -> Result<Option<Item>, StoreError> {
        let table = self.readings_table();
        let found = self
            .client()
            .get_item()
            .table_name(table)
            .set_key(Some(item_key(header)))
            .consistent_read(true)
            .send()
            .await
            .map_err(StoreError::request("GetItem", table))?;
        Ok(found.item)
    }
}

/// Whether the item under a record's key holds the same bytes, so the same
/// SHA-256. Signatures differ each time; the first one stays. What cannot be
/// read is other bytes too: to wait for it to mend would hold up everything
/// behind this record.
fn is_same(table: &str, record: &Verified, there: &Item) -> bool {
    match read(table, &record.header().device, there) {
        Ok(there) => there.encrypted_data == record.encrypted_data(),
        Err(error) => {
            tracing::error!("{error}: put the record that belongs there in quarantine");
            false
        }
    }
}

/// `<time>#<stream>#<sequence, 20 digits>`: in the order of time, and what
/// makes a record of a device the one that it is.
fn sort_key(header: &Header) -> String {
    format!("{}#{}#{:020}", header.time, header.stream, header.sequence)
}

fn item_key(header: &Header) -> Item {
    Item::from([
        (DEVICE.into(), s(header.device.as_str())),
        (TIMESTAMP.into(), s(sort_key(header))),
    ])
}

fn write(accepted: &Accepted, context: &Context) -> Item {
    let record: &Verified = &accepted.envelope;
    let mut item = item_key(record.header());
    item.extend([
        (ENCRYPTED_DATA.into(), b(record.encrypted_data())),
        (SIGNATURE.into(), b(&record.signature()[..])),
        (RECEIVED_AT.into(), n(context.received_at.as_millis())),
        (PRINCIPAL.into(), write_principal(&context.principal)),
    ]);
    if accepted.ahead {
        item.insert(AHEAD.into(), AttributeValue::Bool(true));
    }
    item
}

fn key_of<'a>(table: &'a str, item: &'a Item) -> Result<&'a str, StoreError> {
    Reader {
        table,
        key: "?",
        item,
    }
    .string(TIMESTAMP)
}

fn read(table: &str, device: &DeviceId, item: &Item) -> Result<StoredReading, StoreError> {
    let key = key_of(table, item)?;
    let reader = Reader { table, key, item };
    let signature = reader.binary(SIGNATURE)?;
    Ok(StoredReading {
        key: key.to_owned(),
        device: device.clone(),
        encrypted_data: reader.binary(ENCRYPTED_DATA)?.to_vec(),
        signature: signature
            .try_into()
            .map_err(|_| reader.damaged("the signature does not have 64 bytes"))?,
        received_at: reader.time(RECEIVED_AT)?,
        principal: match reader.binary(PRINCIPAL) {
            Ok(digest) => base16ct::lower::encode_string(digest),
            Err(_) => reader.string(PRINCIPAL)?.to_owned(),
        },
        ahead: reader.flag(AHEAD)?,
        again: reader.counter(AGAIN)?,
    })
}

/// Half the size for a certificate's SHA-256.
fn write_principal(principal: &str) -> AttributeValue {
    match base16ct::lower::decode_vec(principal) {
        Ok(digest) if digest.len() == 32 => b(digest),
        _ => s(principal),
    }
}

const DEVICE: &str = "deviceId";
const TIMESTAMP: &str = "timestamp";
// Short, because names count: a reading for one owner has to fit a write unit
// of 1 KB.
const ENCRYPTED_DATA: &str = "e";
const SIGNATURE: &str = "s";
const RECEIVED_AT: &str = "r";
const PRINCIPAL: &str = "p";
const AHEAD: &str = "a";
const AGAIN: &str = "n";
