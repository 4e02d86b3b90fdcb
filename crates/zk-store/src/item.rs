//! Reading the attributes of an item: nothing in a store is taken for granted.

use std::collections::HashMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use zk_envelope::Timestamp;

use crate::StoreError;

pub(crate) type Item = HashMap<String, AttributeValue>;

/// An item with the names that an error about it needs.
pub(crate) struct Reader<'a> {
    pub(crate) table: &'a str,
    pub(crate) key: &'a str,
    pub(crate) item: &'a Item,
}

impl<'a> Reader<'a> {
    /// An error about this item.
    pub(crate) fn damaged(&self, detail: impl Into<String>) -> StoreError {
        StoreError::Damaged {
            table: self.table.to_owned(),
            key: self.key.to_owned(),
            detail: detail.into(),
        }
    }

    pub(crate) fn string(&self, name: &str) -> Result<&'a str, StoreError> {
        let value = self.item.get(name).and_then(|value| value.as_s().ok());
        value
            .map(String::as_str)
            .ok_or_else(|| self.damaged(format!("{name} is not a string")))
    }

    /// The string in its own type.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<T, StoreError> {
        self.string(name)?
            .parse()
            .map_err(|_| self.damaged(format!("{name} has no such form")))
    }

    pub(crate) fn binary(&self, name: &str) -> Result<&'a [u8], StoreError> {
        let value = self.item.get(name).and_then(|value| value.as_b().ok());
        value
            .map(AsRef::as_ref)
            .ok_or_else(|| self.damaged(format!("{name} is not binary")))
    }

    pub(crate) fn number(&self, name: &str) -> Result<u64, StoreError> {
        let value = self.item.get(name).and_then(|value| value.as_n().ok());
        let number = value.and_then(|digits| digits.parse().ok());
        number.ok_or_else(|| self.damaged(format!("{name} is not a whole number from 0")))
    }

    /// 0 if there is no such attribute.
    pub(crate) fn counter(&self, name: &str) -> Result<u64, StoreError> {
        if self.item.contains_key(name) {
            self.number(name)
        } else {
            Ok(0)
        }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn time(&self, name: &str) -> Result<Timestamp, StoreError> {
        Timestamp::from_millis(self.number(name)?)
            .ok_or_else(|| self.damaged(format!("{name} is after the year 9999")))
    }

    /// `false` if there is no such attribute.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, StoreError> {
        match self.item.get(name) {
            None => Ok(false),
            Some(AttributeValue::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.damaged(format!("{name} is not true or false"))),
        }
    }
}

pub(crate) fn s(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(crate) fn n(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

pub(crate) fn b(bytes: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}
