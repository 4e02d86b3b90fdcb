//! A store's file, read and written past the store.

use std::collections::HashMap;
use std::path::Path;

use dynoxide::actions::put_item::PutItemRequest;
use dynoxide::{AttributeValue, Database};

/// The engine's own view of the file.
pub struct Raw(Database);

impl Raw {
    pub fn open(path: &Path) -> Self {
        Self(Database::new(path.to_str().unwrap()).unwrap())
    }

    pub fn put(&self, table: &str, item: &[(&str, AttributeValue)]) {
        let request = PutItemRequest {
            table_name: table.into(),
            item: attributes(item),
            ..PutItemRequest::default()
        };
        self.0.put_item(request).unwrap();
    }

    pub fn get(
        &self,
        table: &str,
        key: &[(&str, AttributeValue)],
    ) -> HashMap<String, AttributeValue> {
        self.find(table, key).unwrap()
    }

    pub fn find(
        &self,
        table: &str,
        key: &[(&str, AttributeValue)],
    ) -> Option<HashMap<String, AttributeValue>> {
        let request = dynoxide::actions::get_item::GetItemRequest {
            table_name: table.into(),
            key: attributes(key),
            ..Default::default()
        };
        self.0.get_item(request).unwrap().item
    }

    pub fn delete(&self, table: &str, key: &[(&str, AttributeValue)]) {
        let request = dynoxide::actions::delete_item::DeleteItemRequest {
            table_name: table.into(),
            key: attributes(key),
            ..Default::default()
        };
        self.0.delete_item(request).unwrap();
    }
}

fn attributes(item: &[(&str, AttributeValue)]) -> HashMap<String, AttributeValue> {
    item.iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect()
}

pub fn s(text: &str) -> AttributeValue {
    AttributeValue::S(text.into())
}
