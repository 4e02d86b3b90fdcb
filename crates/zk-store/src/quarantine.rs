//! The quarantine: what was not accepted, and why, within a budget for each
//! principal.
//!
//! A message is kept once, under the hash of who sent what where. To keep a new
//! one takes three steps, of which any may be the last that happens: a
//! reservation of its room in the principal's budget, under the message's id and
//! with a serial number; the message itself, with that number; and the end of
//! the reservation. Who finds a reservation for the same message takes it over.
//! Whoever comes too late with a message of his own number gives its room back.
//! So no message ever counts twice, however often and by however many it is
//! tried.
//!
//! What nobody's key has signed expires, where the table is told to let it, and
//! so does the budget that it is taken from, as long after its first reservation:
//! before anything else of that budget, which then begins anew. So there is never
//! more than two budgets' worth. Evidence stays until somebody has looked into it.

use std::collections::VecDeque;
use std::fmt;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use sha2::{Digest, Sha256};
use zk_envelope::Timestamp;
use zk_verify::{Context, Evidence, Reason, check};

use crate::devices::{ATTEMPTS, CONDITION_FAILED};
use crate::item::{Item, Reader, b, n, s};
use crate::readings::Put;
use crate::{Ingested, Store, StoreError};

/// A message in the quarantine.
#[derive(Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// SHA-256 over principal, topic and message, each after its length in 8
    /// bytes; in lower-case hex.
    pub id: String,
    /// Why it was not accepted when it came in or was replayed last.
    pub reason: Reason,
    /// Whether, when it came in first, a key of the device that was not
    /// revoked had signed it.
    pub authentic: bool,
    /// How it came in: principal, topic, and when for the first time.
    pub context: Context,
    /// When it came in last.
    pub last_received_at: Timestamp,
    /// How often it came in.
    pub times: u64,
    /// The message; empty in a listing.
    pub message: Vec<u8>,
}

impl Quarantined {
    /// The [id](Self::id) under which a message is held that came in like this.
    /// Of an envelope out of a batch it is that of the message of its own that
    /// [`Evidence`] has.
    #[must_use]
    pub fn id_of(context: &Context, message: &[u8]) -> String {
        let mut hash = Sha256::new();
        for part in [
            context.principal.as_bytes(),
            context.topic.as_bytes(),
            message,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        base16ct::lower::encode_string(&hash.finalize())
    }
}

/// Leaves the message out.
impl fmt::Debug for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quarantined")
            .field("id", &self.id)
            .field("reason", &self.reason)
            .field("context", &self.context)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

/// What became of a message that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its id in the quarantine.
    pub id: String,
    /// Why it was not accepted.
    pub reason: Reason,
    /// Whether the quarantine has it; if not, its principal's budget is used
    /// up, and it was counted.
    pub kept: bool,
}

/// What a replay did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// What became of the envelopes of the message.
    pub ingested: Ingested,
    /// Whether the message leaves the quarantine under the id that it had.
    pub leaves: bool,
}

/// Messages of one principal that were past its budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// The principal.
    pub principal: String,
    /// How many there were; one that came in twice counts twice.
    pub messages: u64,
    /// The id that the last of them would have had.
    pub last_id: String,
    /// When it came in.
    pub last_received_at: Timestamp,
}

/// A listing of the quarantine, from [`Store::quarantine`].
#[derive(Debug)]
pub struct Quarantine {
    store: Store,
    page: VecDeque<Item>,
    /// Where the next page begins; `None` after the last.
    next: Option<Option<Item>>,
}

impl Quarantine {
    /// The next message, without its bytes, or `None` after the last. Fetches
    /// page by page.
    ///
    /// After an error that is [`StoreError::Damaged`] the messages behind the
    /// damaged one follow; after any other, the same page is asked for again.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn next(&mut self) -> Option<Result<Quarantined, StoreError>> {
        loop {
            if let Some(item) = self.page.pop_front() {
                return Some(read(self.store.quarantine_table(), &item));
            }
            let start = self.next.clone()?;
            if let Err(error) = self.fetch(start).await {
                return Some(Err(error));
            }
        }
    }

    async fn fetch(&mut self, start: Option<Item>) -> Result<(), StoreError> {
        let table = self.store.quarantine_table();
        let all = [ID, REASON, AUTHENTIC, PRINCIPAL, TOPIC, FIRST, LAST, TIMES];
        let mut request = self
            .store
            .client()
            .scan()
            .table_name(table)
            .consistent_read(true)
            .filter_expression("attribute_exists(#1)")
            .projection_expression("#0,#1,#2,#3,#4,#5,#6,#7")
            .set_exclusive_start_key(start);
        for (place, name) in all.into_iter().enumerate() {
            request = request.expression_attribute_names(format!("#{place}"), name);
        }
        let answer = request
            .send()
            .await
            .map_err(StoreError::request("Scan", table))?;
        self.page = answer.items.unwrap_or_default().into();
        self.next = answer
            .last_evaluated_key
            .filter(|key| !key.is_empty())
            .map(Some);
        Ok(())
    }
}

impl Store {
    /// All that is in the quarantine, in no particular order.
    #[must_use]
    pub fn quarantine(&self) -> Quarantine {
        Quarantine {
            store: self.clone(),
            page: VecDeque::new(),
            next: Some(None),
        }
    }

    /// One message of the quarantine, with its bytes.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn quarantined(&self, id: &str) -> Result<Option<Quarantined>, StoreError> {
        if id.starts_with(BUDGET_PREFIX) {
            return Ok(None);
        }
        let item = self.get(id).await?;
        item.map(|item| read(self.quarantine_table(), &item))
            .transpose()
    }

    /// The principals whose budget did not suffice, and for how many messages.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn overflow(&self) -> Result<Vec<Overflow>, StoreError> {
        let table = self.quarantine_table();
        let mut items = self
            .client()
            .scan()
            .table_name(table)
            .consistent_read(true)
            .filter_expression("attribute_exists(#o)")
            .expression_attribute_names("#o", OVER)
            .into_paginator()
            .items()
            .send();
        let mut all = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.map_err(StoreError::request("Scan", table))?;
            let key = Reader {
                table,
                key: "?",
                item: &item,
            }
            .string(ID)?;
            let reader = Reader {
                table,
                key,
                item: &item,
            };
            all.push(Overflow {
                principal: reader.string(PRINCIPAL)?.to_owned(),
                messages: reader.number(OVER)?,
                last_id: reader.string(OVER_ID)?.to_owned(),
                last_received_at: reader.time(OVER_AT)?,
            });
        }
        all.sort_by(|a, b| a.principal.cmp(&b.principal));
        Ok(all)
    }

    /// Takes a message in again as it came in then: same principal, topic and
    /// time of receipt. Once nothing of it is refused any more for what put it
    /// here, it leaves the quarantine; what is still refused of a batch stays on
    /// its own, and if there is no room for that, the batch stays too. A message
    /// that stays as it was gets the reason of now.
    ///
    /// What is accepted is durable before the message leaves: a replay that ends
    /// in between is done again, and stores nothing twice.
    ///
    /// # Errors
    /// [`StoreError::NotQuarantined`]; as [`Store::ingest`].
    pub async fn replay(&self, id: &str) -> Result<Replayed, StoreError> {
        let found = self.known(id).await?;
        let expected = self.would_become(&found).await?;
        if !expected.leaves {
            // Taken in once more it would count as having come in once more.
            for held in &expected.ingested.quarantined {
                if held.id == found.id && held.reason != found.reason {
                    self.note(id, held.reason).await?;
                }
            }
            return Ok(expected);
        }
        let ingested = self.ingest(&found.message, &found.context).await?;
        let stays = |held: &Held| held.id == found.id || !held.kept;
        let leaves = !ingested.quarantined.iter().any(stays);
        if leaves {
            self.discard(id).await?;
        }
        Ok(Replayed { ingested, leaves })
    }

    /// What [`Store::replay`] would do now. Writes nothing, and does not ask
    /// whether the quarantine has room for the parts of a batch.
    ///
    /// # Errors
    /// [`StoreError::NotQuarantined`], [`StoreError::Request`],
    /// [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn rehearse(&self, id: &str) -> Result<Replayed, StoreError> {
        let found = self.known(id).await?;
        self.would_become(&found).await
    }

    async fn known(&self, id: &str) -> Result<Quarantined, StoreError> {
        let found = self.quarantined(id).await?;
        found.ok_or_else(|| StoreError::NotQuarantined { id: id.to_owned() })
    }

    async fn would_become(&self, found: &Quarantined) -> Result<Replayed, StoreError> {
        let context = &found.context;
        let device = self.refreshed(&context.principal).await?;
        let mut ingested = Ingested::default();
        for verdict in check(&found.message, context, device.as_deref()) {
            let evidence = match verdict {
                Ok(accepted) => match self.would_put(&accepted).await? {
                    Put::Stored => {
                        ingested.stored += 1;
                        ingested.ahead += u64::from(accepted.ahead);
                        continue;
                    }
                    Put::Duplicate => {
                        ingested.duplicates += 1;
                        continue;
                    }
                    Put::Conflict => accepted.conflict(),
                },
                Err(evidence) => evidence,
            };
            ingested.quarantined.push(Held {
                id: Quarantined::id_of(context, &evidence.message),
                reason: evidence.reason,
                kept: true,
            });
        }
        let leaves = ingested.quarantined.iter().all(|held| held.id != found.id);
        Ok(Replayed { ingested, leaves })
    }

    /// Notes why a message is not accepted now.
    async fn note(&self, id: &str, reason: Reason) -> Result<(), StoreError> {
        let table = self.quarantine_table();
        let updated = self
            .client()
            .update_item()
            .table_name(table)
            .key(ID, s(id))
            .update_expression("SET #r = :reason")
            .condition_expression("attribute_exists(#i)")
            .expression_attribute_names("#r", REASON)
            .expression_attribute_names("#i", ID)
            .expression_attribute_values(":reason", s(reason.as_str()))
            .send()
            .await;
        held(updated, "UpdateItem", table)?;
        Ok(())
    }

    /// Deletes a message from the quarantine and frees its room. Answers
    /// whether it was there.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn discard(&self, id: &str) -> Result<bool, StoreError> {
        if id.starts_with(BUDGET_PREFIX) {
            return Ok(false);
        }
        let table = self.quarantine_table();
        let deleted = self
            .client()
            .delete_item()
            .table_name(table)
            .key(ID, s(id))
            .return_values(ReturnValue::AllOld)
            .send()
            .await
            .map_err(StoreError::request("DeleteItem", table))?;
        let Some(item) = deleted.attributes.filter(|item| !item.is_empty()) else {
            return Ok(false);
        };
        let gone = read(table, &item)?;
        let place = Place::of(&gone.context, gone.authentic, id, gone.message.len());
        let serial = Reader {
            table,
            key: id,
            item: &item,
        }
        .number(RESERVATION)?;
        // If its reservation was never ended, that ends with it.
        if !self.free(&place, Some(serial)).await? {
            self.free(&place, None).await?;
        }
        Ok(true)
    }

    /// Puts evidence aside, once, however often it comes in.
    pub(crate) async fn hold(
        &self,
        evidence: &Evidence,
        context: &Context,
    ) -> Result<Held, StoreError> {
        let (reason, message) = (evidence.reason, &evidence.message);
        let id = Quarantined::id_of(context, message);
        let place = Place::of(context, evidence.authentic, &id, message.len());
        let held = |kept| Held {
            id: id.clone(),
            reason,
            kept,
        };
        for _ in 0..ATTEMPTS {
            if self.seen_again(&id, reason, context).await? {
                return Ok(held(true));
            }
            let Some(serial) = self.reserve(&place, context).await? else {
                // Its twin may hold the last room for a moment.
                if self.seen_again(&id, reason, context).await? {
                    return Ok(held(true));
                }
                if evidence.authentic {
                    let principal = context.principal.clone();
                    return Err(StoreError::EvidenceFull { principal });
                }
                self.count_overflow(&place, context).await?;
                return Ok(held(false));
            };
            if self.put_evidence(&id, serial, evidence, context).await? {
                self.settle(&place, serial).await?;
                return Ok(held(true));
            }
            // The same message came in at the same time and was put first: with
            // this reservation or with another, which leaves this one over.
            if self.reservation_of(&id).await? == Some(serial) {
                self.settle(&place, serial).await?;
            } else {
                self.free(&place, Some(serial)).await?;
            }
        }
        let what = format!("message {id} of the quarantine");
        Err(StoreError::Contended { what })
    }

    /// Counts a message that is there, and notes why it is not accepted now.
    /// `false` if it is not there.
    async fn seen_again(
        &self,
        id: &str,
        reason: Reason,
        context: &Context,
    ) -> Result<bool, StoreError> {
        let table = self.quarantine_table();
        let updated = self
            .client()
            .update_item()
            .table_name(table)
            .key(ID, s(id))
            .update_expression("SET #l = :now, #r = :reason ADD #t :one")
            .condition_expression("attribute_exists(#i)")
            .expression_attribute_names("#r", REASON)
            .expression_attribute_values(":reason", s(reason.as_str()))
            .expression_attribute_names("#l", LAST)
            .expression_attribute_names("#t", TIMES)
            .expression_attribute_names("#i", ID)
            .expression_attribute_values(":now", n(context.received_at.as_millis()))
            .expression_attribute_values(":one", n(1))
            .send()
            .await;
        held(updated, "UpdateItem", table)
    }

    /// Takes room out of the budget for the message with this id, or takes over
    /// the room that is taken for it already. Answers the serial number of the
    /// reservation, or `None` if there is no room.
    async fn reserve(
        &self,
        place: &Place<'_>,
        context: &Context,
    ) -> Result<Option<u64>, StoreError> {
        let options = &self.inner.options;
        let budget = if place.authentic {
            options.evidence
        } else {
            options.unproven
        };
        let room = budget.bytes.checked_sub(place.bytes);
        let Some(room) = room.filter(|_| budget.items > 0) else {
            return Ok(None);
        };
        let table = self.quarantine_table();
        let mut request = self
            .client()
            .update_item()
            .table_name(table)
            .key(ID, s(&place.budget))
            .update_expression(format!(
                "SET #r = if_not_exists(#n, :zero), #p = :principal{} \
                 ADD #n :one, #u :one, #b :bytes",
                match place.expires {
                    Some(_) => ", #e = if_not_exists(#e, :expires)",
                    None => "",
                }
            ))
            .condition_expression(
                "attribute_not_exists(#r) AND \
                 (attribute_not_exists(#u) OR (#u < :items AND #b <= :room))",
            )
            .expression_attribute_names("#r", place.id)
            .expression_attribute_names("#n", SERIAL)
            .expression_attribute_names("#p", PRINCIPAL)
            .expression_attribute_names("#u", USED)
            .expression_attribute_names("#b", BYTES)
            .expression_attribute_values(":principal", s(&context.principal))
            .expression_attribute_values(":bytes", n(place.bytes))
            .expression_attribute_values(":zero", n(0))
            .expression_attribute_values(":one", n(1))
            .expression_attribute_values(":items", n(budget.items))
            .expression_attribute_values(":room", n(room))
            .return_values(ReturnValue::AllNew);
        if let Some(expires) = place.expires {
            request = request
                .expression_attribute_names("#e", EXPIRES_AT)
                .expression_attribute_values(":expires", n(expires));
        }
        let updated = request.send().await;
        let item = match updated {
            Ok(updated) => updated.attributes,
            Err(error) if error.code() == Some(CONDITION_FAILED) => self.get(&place.budget).await?,
            Err(error) => return Err(StoreError::request("UpdateItem", table)(error)),
        };
        let item = item.filter(|item| item.contains_key(place.id));
        item.map(|item| {
            Reader {
                table,
                key: &place.budget,
                item: &item,
            }
            .number(place.id)
        })
        .transpose()
    }

    /// The number of the reservation with which a message was put.
    async fn reservation_of(&self, id: &str) -> Result<Option<u64>, StoreError> {
        let table = self.quarantine_table();
        let there = self.get(id).await?;
        there
            .map(|item| {
                Reader {
                    table,
                    key: id,
                    item: &item,
                }
                .number(RESERVATION)
            })
            .transpose()
    }

    /// Ends a reservation whose message is there.
    async fn settle(&self, place: &Place<'_>, serial: u64) -> Result<(), StoreError> {
        let table = self.quarantine_table();
        let updated = self
            .client()
            .update_item()
            .table_name(table)
            .key(ID, s(&place.budget))
            .update_expression("REMOVE #r")
            .condition_expression("#r = :serial")
            .expression_attribute_names("#r", place.id)
            .expression_attribute_values(":serial", n(serial))
            .send()
            .await;
        held(updated, "UpdateItem", table)?;
        Ok(())
    }

    /// Gives room back to the budget, and with it the reservation of that
    /// number; then only if there is one, and `false` if not.
    async fn free(&self, place: &Place<'_>, reserved: Option<u64>) -> Result<bool, StoreError> {
        let table = self.quarantine_table();
        let minus = |number: u64| AttributeValue::N(format!("-{number}"));
        let request = self
            .client()
            .update_item()
            .table_name(table)
            .key(ID, s(&place.budget))
            .expression_attribute_names("#u", USED)
            .expression_attribute_names("#b", BYTES)
            .expression_attribute_values(":one", minus(1))
            .expression_attribute_values(":bytes", minus(place.bytes));
        let request = match reserved {
            None => {
                let request = request.update_expression("ADD #u :one, #b :bytes");
                match place.expires {
                    None => request,
                    // not to a later budget, from which it was never taken
                    Some(expires) => request
                        .condition_expression(
                            "#e <= :expires OR (attribute_exists(#u) AND attribute_not_exists(#e))",
                        )
                        .expression_attribute_names("#e", EXPIRES_AT)
                        .expression_attribute_values(":expires", n(expires)),
                }
            }
            Some(serial) => request
                .update_expression("REMOVE #r ADD #u :one, #b :bytes")
                .condition_expression("#r = :serial")
                .expression_attribute_names("#r", place.id)
                .expression_attribute_values(":serial", n(serial)),
        };
        held(request.send().await, "UpdateItem", table)
    }

    async fn count_overflow(&self, place: &Place<'_>, context: &Context) -> Result<(), StoreError> {
        let table = self.quarantine_table();
        self.client()
            .update_item()
            .table_name(table)
            .key(ID, s(&place.budget))
            .update_expression("SET #p = :principal, #i = :id, #t = :now ADD #o :one")
            .expression_attribute_names("#p", PRINCIPAL)
            .expression_attribute_names("#i", OVER_ID)
            .expression_attribute_names("#t", OVER_AT)
            .expression_attribute_names("#o", OVER)
            .expression_attribute_values(":principal", s(&context.principal))
            .expression_attribute_values(":id", s(place.id))
            .expression_attribute_values(":now", n(context.received_at.as_millis()))
            .expression_attribute_values(":one", n(1))
            .send()
            .await
            .map_err(StoreError::request("UpdateItem", table))?;
        Ok(())
    }

    /// `false` if it was there.
    async fn put_evidence(
        &self,
        id: &str,
        serial: u64,
        evidence: &Evidence,
        context: &Context,
    ) -> Result<bool, StoreError> {
        let table = self.quarantine_table();
        let mut request = self
            .client()
            .put_item()
            .table_name(table)
            .item(ID, s(id))
            .item(REASON, s(evidence.reason.as_str()))
            .item(AUTHENTIC, AttributeValue::Bool(evidence.authentic))
            .item(PRINCIPAL, s(&context.principal))
            .item(TOPIC, s(&context.topic))
            .item(FIRST, n(context.received_at.as_millis()))
            .item(LAST, n(context.received_at.as_millis()))
            .item(TIMES, n(1))
            .item(RESERVATION, n(serial))
            .item(MESSAGE, b(&evidence.message[..]))
            .condition_expression("attribute_not_exists(#i)")
            .expression_attribute_names("#i", ID);
        if !evidence.authentic {
            request = request.item(EXPIRES_AT, n(expiry(context.received_at)));
        }
        held(request.send().await, "PutItem", table)
    }

    async fn get(&self, id: &str) -> Result<Option<Item>, StoreError> {
        let table = self.quarantine_table();
        let found = self
            .client()
            .get_item()
            .table_name(table)
            .key(ID, s(id))
            .consistent_read(true)
            .send()
            .await
            .map_err(StoreError::request("GetItem", table))?;
        Ok(found.item)
    }
}

/// Where a message is accounted for.
struct Place<'a> {
    /// The id of the budget's item.
    budget: String,
    authentic: bool,
    /// The message's id.
    id: &'a str,
    /// The message's size.
    bytes: u64,
    /// When it goes by itself, in seconds since 1970.
    expires: Option<u64>,
}

impl<'a> Place<'a> {
    fn of(context: &Context, authentic: bool, id: &'a str, bytes: usize) -> Self {
        let principal = &context.principal;
        let class = if authentic { "evidence" } else { "unproven" };
        let digest = base16ct::lower::encode_string(&Sha256::digest(principal));
        let budget = format!("{BUDGET_PREFIX}{class}#{digest}");
        Self {
            budget,
            authentic,
            id,
            bytes: bytes as u64,
            expires: (!authentic).then(|| expiry(context.received_at)),
        }
    }
}

/// When something goes by itself that came in then.
fn expiry(received_at: Timestamp) -> u64 {
    (received_at.as_millis() / 1000).saturating_add(KEPT)
}

/// Whether the condition of a write held.
fn held<T, E, R>(
    result: Result<T, aws_sdk_dynamodb::error::SdkError<E, R>>,
    operation: &'static str,
    table: &str,
) -> Result<bool, StoreError>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(CONDITION_FAILED) => Ok(false),
        Err(error) => Err(StoreError::request(operation, table)(error)),
    }
}

fn read(table: &str, item: &Item) -> Result<Quarantined, StoreError> {
    let key = Reader {
        table,
        key: "?",
        item,
    }
    .string(ID)?;
    let reader = Reader { table, key, item };
    Ok(Quarantined {
        id: key.to_owned(),
        reason: reader.parsed(REASON)?,
        authentic: reader.flag(AUTHENTIC)?,
        context: Context {
            principal: reader.string(PRINCIPAL)?.to_owned(),
            topic: reader.string(TOPIC)?.to_owned(),
            received_at: reader.time(FIRST)?,
        },
        last_received_at: reader.time(LAST)?,
        times: reader.number(TIMES)?,
        message: match item.get(MESSAGE) {
            Some(_) => reader.binary(MESSAGE)?.to_vec(),
            None => Vec::new(),
        },
    })
}

const ID: &str = "id";
const REASON: &str = "reason";
const AUTHENTIC: &str = "authentic";
const PRINCIPAL: &str = "principal";
const TOPIC: &str = "topic";
const FIRST: &str = "firstReceivedAt";
const LAST: &str = "lastReceivedAt";
const TIMES: &str = "times";
const RESERVATION: &str = "reservation";
const MESSAGE: &str = "message";
/// The attribute of the quarantine's items with the time at which DynamoDB may
/// delete them, in seconds since 1970, for its setting "time to live".
pub const EXPIRES_AT: &str = "expiresAt";

/// How long what nobody's key has signed is kept, in seconds: 90 days.
const KEPT: u64 = 90 * 24 * 60 * 60;

// The budget of a principal is an item of the same table. Besides these it has
// an attribute for each reservation: the message's id, with its serial number.
const BUDGET_PREFIX: &str = "budget#";
const SERIAL: &str = "serial";
const USED: &str = "items";
const BYTES: &str = "bytes";
const OVER: &str = "over";
const OVER_ID: &str = "overId";
const OVER_AT: &str = "overAt";
