//! The registry: which principal is which device, and with which keys.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::AttributeValue;
use zk_envelope::{KeyState, Timestamp, TrustedKey, VerifyingKey};
use zk_verify::DeviceRecord;

use crate::item::{Item, Reader, b, n, s};
use crate::{Store, StoreError};

/// What is remembered of the registry.
#[derive(Default)]
pub(crate) struct Registry {
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone)]
struct Known {
    record: Option<Arc<DeviceRecord>>,
    read_at: Instant,
}

impl Registry {
    fn get(&self, principal: &str) -> Option<Known> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(principal)
            .cloned()
    }

    fn put(&self, principal: &str, known: Known) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(principal.to_owned(), known);
    }

    fn forget(&self, principal: &str) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(principal);
    }
}

impl Store {
    /// The device record of `principal`, if it is registered and its
    /// certificate counts at `received_at`: what a server asks before it reads
    /// a request.
    ///
    /// The record is at most [`registry_age`](crate::Options::registry_age)
    /// old; before the answer is `None` it is read again, unless that was done
    /// just now.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn registered(
        &self,
        principal: &str,
        received_at: Timestamp,
    ) -> Result<Option<Arc<DeviceRecord>>, StoreError> {
        let admitted = |record: &Arc<DeviceRecord>| record.admits(received_at);
        let remembered = self.remembered(principal).await?.filter(admitted);
        if remembered.is_some() {
            return Ok(remembered);
        }
        Ok(self.refreshed(principal).await?.filter(admitted))
    }

    /// Registers a device's certificate. Answers `false` if the very same is
    /// registered already.
    ///
    /// # Errors
    /// [`StoreError::AlreadyRegistered`] if something else is;
    /// [`StoreError::Request`], [`StoreError::NoTable`].
    pub async fn register(
        &self,
        principal: &str,
        record: &DeviceRecord,
    ) -> Result<bool, StoreError> {
        if self.put_device(principal, record, None).await? {
            return Ok(true);
        }
        match self.device(principal).await? {
            Some(there) if there == *record => Ok(false),
            _ => Err(StoreError::AlreadyRegistered {
                principal: principal.to_owned(),
            }),
        }
    }

    /// What is registered for `principal` now.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn device(&self, principal: &str) -> Result<Option<DeviceRecord>, StoreError> {
        Ok(self
            .device_and_version(principal)
            .await?
            .map(|(record, _)| record))
    }

    /// Everything that is registered: principals and their records, by device
    /// and date of registration.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn devices(&self) -> Result<Vec<(String, DeviceRecord)>, StoreError> {
        let table = self.devices_table();
        let mut pages = self
            .client()
            .scan()
            .table_name(table)
            .consistent_read(true)
            .into_paginator()
            .items()
            .send();
        let mut devices = Vec::new();
        while let Some(item) = pages.next().await {
            let item = item.map_err(StoreError::request("Scan", table))?;
            let principal = Reader {
                table,
                key: "?",
                item: &item,
            }
            .string("principal")?
            .to_owned();
            let (record, _) = read(table, &principal, &item)?;
            devices.push((principal, record));
        }
        devices.sort_by(|(_, a), (_, b)| {
            (&a.device, a.registered_at).cmp(&(&b.device, b.registered_at))
        });
        Ok(devices)
    }

    /// Changes a record, for example to revoke or retire a key, and answers what
    /// it is then. `change` is called again with the newer record if others
    /// change it at the same time.
    ///
    /// # Errors
    /// [`StoreError::NotRegistered`]; [`StoreError::Contended`];
    /// [`StoreError::Request`], [`StoreError::NoTable`], [`StoreError::Damaged`].
    pub async fn update_device(
        &self,
        principal: &str,
        mut change: impl FnMut(&mut DeviceRecord),
    ) -> Result<DeviceRecord, StoreError> {
        for _ in 0..ATTEMPTS {
            let found = self.device_and_version(principal).await?;
            let (mut record, version) = found.ok_or_else(|| StoreError::NotRegistered {
                principal: principal.to_owned(),
            })?;
            let before = record.clone();
            change(&mut record);
            if record == before || self.put_device(principal, &record, Some(version)).await? {
                return Ok(record);
            }
        }
        Err(StoreError::Contended {
            what: format!("the record of principal {principal}"),
        })
    }

    /// Takes a principal off the registry: from then on it is unknown. Answers
    /// whether it was there. To stop a device, revoke it instead: then its
    /// record still tells why.
    ///
    /// # Errors
    /// [`StoreError::Request`], [`StoreError::NoTable`].
    pub async fn remove_device(&self, principal: &str) -> Result<bool, StoreError> {
        let table = self.devices_table();
        let removed = self
            .client()
            .delete_item()
            .table_name(table)
            .key("principal", s(principal))
            .return_values(aws_sdk_dynamodb::types::ReturnValue::AllOld)
            .send()
            .await
            .map_err(StoreError::request("DeleteItem", table))?;
        self.inner.registry.forget(principal);
        Ok(removed.attributes.is_some_and(|item| !item.is_empty()))
    }

    /// The record, at most `registry_age` old.
    pub(crate) async fn remembered(
        &self,
        principal: &str,
    ) -> Result<Option<Arc<DeviceRecord>>, StoreError> {
        match self.inner.registry.get(principal) {
            Some(known) if known.read_at.elapsed() < self.inner.options.registry_age => {
                Ok(known.record)
            }
            _ => self.read_device(principal).await,
        }
    }

    /// The record, at most `registry_refresh` old.
    pub(crate) async fn refreshed(
        &self,
        principal: &str,
    ) -> Result<Option<Arc<DeviceRecord>>, StoreError> {
        match self.inner.registry.get(principal) {
            Some(known) if known.read_at.elapsed() < self.inner.options.registry_refresh => {
                Ok(known.record)
            }
            _ => self.read_device(principal).await,
        }
    }

    async fn read_device(&self, principal: &str) -> Result<Option<Arc<DeviceRecord>>, StoreError> {
        let read_at = Instant::now();
        // DynamoDB takes no other keys, and nobody is registered under them.
        let record = if (1..=2048).contains(&principal.len()) {
            self.device(principal).await?.map(Arc::new)
        } else {
            None
        };
        self.inner.registry.put(
            principal,
            Known {
                record: record.clone(),
                read_at,
            },
        );
        Ok(record)
    }

    async fn device_and_version(
        &self,
        principal: &str,
    ) -> Result<Option<(DeviceRecord, u64)>, StoreError> {
        let table = self.devices_table();
        let found = self
            .client()
            .get_item()
            .table_name(table)
            .key("principal", s(principal))
            .consistent_read(true)
            .send()
            .await
            .map_err(StoreError::request("GetItem", table))?;
        found
            .item
            .map(|item| read(table, principal, &item))
            .transpose()
    }

    /// Writes the record in place of that version, or of nothing. `false` if
    /// something else is there.
    async fn put_device(
        &self,
        principal: &str,
        record: &DeviceRecord,
        replaces: Option<u64>,
    ) -> Result<bool, StoreError> {
        let table = self.devices_table();
        let version = replaces.map_or(1, |version| version.saturating_add(1));
        let request = self
            .client()
            .put_item()
            .table_name(table)
            .set_item(Some(write(principal, record, version)))
            .expression_attribute_names(
                "#k",
                if replaces.is_some() {
                    "version"
                } else {
                    "principal"
                },
            );
        let request = match replaces {
            None => request.condition_expression("attribute_not_exists(#k)"),
            Some(version) => request
                .condition_expression("#k = :version")
                .expression_attribute_values(":version", n(version)),
        };
        let put = request.send().await;
        self.inner.registry.forget(principal);
        match put {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(CONDITION_FAILED) => Ok(false),
            Err(error) => Err(StoreError::request("PutItem", table)(error)),
        }
    }
}

fn write(principal: &str, record: &DeviceRecord, version: u64) -> Item {
    let key = |known: &TrustedKey| {
        let mut item = state(known.state);
        item.insert("key".into(), b(known.key.to_sec1_point(false).as_bytes()));
        AttributeValue::M(item)
    };
    let mut item = state(record.certificate);
    item.extend([
        ("principal".into(), s(principal)),
        ("version".into(), n(version)),
        ("deviceId".into(), s(record.device.as_str())),
        (
            "keys".into(),
            AttributeValue::L(record.keys.iter().map(key).collect()),
        ),
        ("registeredAt".into(), n(record.registered_at.as_millis())),
    ]);
    item
}

fn state(state: KeyState) -> Item {
    let (name, revoked_at) = match state {
        KeyState::Active => ("active", None),
        KeyState::Retired => ("retired", None),
        KeyState::Revoked { at } => ("revoked", Some(at)),
    };
    let mut item = Item::from([("state".into(), s(name))]);
    item.extend(revoked_at.map(|at| ("revokedAt".into(), n(at.as_millis()))));
    item
}

fn read(table: &str, principal: &str, item: &Item) -> Result<(DeviceRecord, u64), StoreError> {
    let reader = Reader {
        table,
        key: principal,
        item,
    };
    let keys = item.get("keys").and_then(|value| value.as_l().ok());
    let keys = keys.ok_or_else(|| reader.damaged("keys is not a list"))?;
    let key = |value: &AttributeValue| {
        let item = value
            .as_m()
            .map_err(|_| reader.damaged("a key is not a map"))?;
        let key_reader = Reader { item, ..reader };
        let key = VerifyingKey::from_sec1_bytes(key_reader.binary("key")?)
            .map_err(|_| reader.damaged("a key is not a point of P-256 (SEC 1)"))?;
        Ok(TrustedKey {
            key,
            state: read_state(&key_reader)?,
        })
    };
    let record = DeviceRecord {
        device: reader.parsed("deviceId")?,
        certificate: read_state(&reader)?,
        keys: keys.iter().map(key).collect::<Result<_, StoreError>>()?,
        registered_at: reader.time("registeredAt")?,
    };
    Ok((record, reader.number("version")?))
}

fn read_state(reader: &Reader<'_>) -> Result<KeyState, StoreError> {
    match reader.string("state")? {
        "active" => Ok(KeyState::Active),
        "retired" => Ok(KeyState::Retired),
        "revoked" => Ok(KeyState::Revoked {
            at: reader.time("revokedAt")?,
        }),
        _ => Err(reader.damaged("state is not active, retired or revoked")),
    }
}

/// The error code of a condition that does not hold.
pub(crate) const CONDITION_FAILED: &str = "ConditionalCheckFailedException";

/// So many principals are remembered at most.
const REMEMBERED: usize = 10_000;

/// So often is a change tried again when others get in between.
pub(crate) const ATTEMPTS: usize = 8;
