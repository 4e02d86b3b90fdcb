//! The configuration files that people read and edit: written from templates,
//! and changed in place afterwards, so that edits and comments stay.

use std::path::Path;

use toml_edit::{Array, DocumentMut, Item, TableLike, Value};

use crate::{Error, files};

pub(crate) const AGENT: &str = include_str!("../templates/agent.toml");
#[cfg(feature = "aws")]
pub(crate) const AWS: &str = include_str!("../templates/aws.toml");
pub(crate) const GATEWAY: &str = include_str!("../templates/gateway.toml");
pub(crate) const READER: &str = include_str!("../templates/reader.toml");

/// A TOML file of values, some of them in tables. A key is written `key` or
/// `table.key`.
pub(crate) struct Config<'a> {
    path: &'a Path,
    document: DocumentMut,
}

impl<'a> Config<'a> {
    /// The file as it is, or `template` where there is none yet.
    pub(crate) fn open_or(path: &'a Path, template: &str) -> Result<Self, Error> {
        match Self::open(path)? {
            Some(config) => Ok(config),
            None => Self::parse(path, template),
        }
    }

    pub(crate) fn open(path: &'a Path) -> Result<Option<Self>, Error> {
        let Some(bytes) = files::read(path)? else {
            return Ok(None);
        };
        let text = str::from_utf8(&bytes).map_err(|error| Error::malformed(path, error))?;
        Self::parse(path, text).map(Some)
    }

    fn parse(path: &'a Path, text: &str) -> Result<Self, Error> {
        let document = text
            .parse()
            .map_err(|error| Error::malformed(path, error))?;
        Ok(Self { path, document })
    }

    /// A text that must be there.
    pub(crate) fn text(&self, key: &str) -> Result<&str, Error> {
        let root = self.document.as_item();
        key.split('.')
            .try_fold(root, |item, key| item.get(key))
            .and_then(Item::as_str)
            .ok_or_else(|| {
                Error::malformed(self.path, format_args!("{key} is missing, or no text"))
            })
    }

    /// The texts of a list; of something else, none.
    pub(crate) fn list(&self, key: &str) -> Vec<String> {
        let root = self.document.as_item();
        let found = key.split('.').try_fold(root, |item, key| item.get(key));
        let list = found.and_then(Item::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        self.replace(key, value.into())
    }

    pub(crate) fn set_list(&mut self, key: &str, values: &[String]) -> Result<(), Error> {
        self.replace(key, Array::from_iter(values).into())
    }

    /// The whole file.
    pub(crate) fn text_of(&self) -> String {
        self.document.to_string()
    }

    /// Puts in a new value and leaves the blanks and comments round the old one.
    fn replace(&mut self, key: &str, new: Value) -> Result<(), Error> {
        let (table, key) = key.rsplit_once('.').unwrap_or(("", key));
        let item = match table {
            "" => self.document.as_item_mut(),
            name => self.document.entry(name).or_insert(toml_edit::table()),
        };
        let table: &mut dyn TableLike = item
            .as_table_like_mut()
            .ok_or_else(|| Error::malformed(self.path, format_args!("{table} is not a table")))?;
        match table.get_mut(key).and_then(Item::as_value_mut) {
            Some(old) if same(old, &new) => {}
            Some(old) => {
                let decor = old.decor().clone();
                *old = new;
                *old.decor_mut() = decor;
            }
            None => {
                table.insert(key, Item::Value(new));
            }
        }
        Ok(())
    }
}

/// Whether they mean the same, however they are laid out.
fn same(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same(old, new))
        }
        (old, new) => old.as_str().is_some() && old.as_str() == new.as_str(),
    }
}
