//! The owner's key, if it is made here, and the reader's configuration.

use std::path::PathBuf;

use zk_envelope::{OwnerKey, OwnerPublicKey, TrustFile};
use zk_store::StoreUri;

use crate::config::{self, Config};
use crate::device::is_owner_file;
use crate::files::{PUBLIC, SECRET};
use crate::hand::Hand;
use crate::report::Age;
use crate::{Error, LocalSetup, files};

/// Whom devices are to encrypt for.
pub(crate) enum Owners {
    /// These.
    Given(Vec<OwnerPublicKey>),
    /// Those that each device has, or all that the trust file knows.
    AsTheyAre,
    /// One that is yet to be made; only in a plan.
    New,
}

impl LocalSetup {
    /// The owner's private key, if it is made here.
    #[must_use]
    pub fn owner_key_file(&self) -> PathBuf {
        self.dir().join("owner.pem")
    }

    /// The configuration of `zk-reader`, if the owner's key is made here.
    #[must_use]
    pub fn reader_file(&self) -> PathBuf {
        self.dir().join("reader.toml")
    }

    pub(crate) fn owner_public_file(&self) -> PathBuf {
        self.dir().join("owner.pub.pem")
    }

    /// Makes an owner's key if nobody has one.
    pub(crate) fn owner_stage(
        &self,
        hand: &mut Hand<'_>,
        given: &[OwnerPublicKey],
        trust: &TrustFile,
    ) -> Result<Owners, Error> {
        let (private, public) = (self.owner_key_file(), self.owner_public_file());
        if !given.is_empty() || !trust.owners.is_empty() {
            for file in [private, public] {
                if file.exists() {
                    hand.kept(&file);
                }
            }
            return Ok(if given.is_empty() {
                Owners::AsTheyAre
            } else {
                Owners::Given(given.to_vec())
            });
        }
        if let Some(pem) = files::read(&public)? {
            if private.exists() {
                hand.kept(&private);
            }
            hand.kept(&public);
            let key = OwnerPublicKey::from_pem(&String::from_utf8_lossy(&pem))?;
            return Ok(Owners::Given(vec![key]));
        }
        if !private.exists() && self.has_owner_files()? {
            // another owner than the one devices encrypt for is nobody's wish
            let cure = "missing, though there are devices that encrypt for somebody: restore it \
                        from a backup, or name the owners with --owner";
            return Err(Error::malformed(&self.trust_file(), cure));
        }
        let key = if private.exists() {
            // an interrupted run has left the public key out
            let passphrase = hand.need_owner(Age::Known)?;
            let open = |passphrase| OwnerKey::read(&private, passphrase);
            let key = passphrase.map(|known| open(known.as_str())).transpose()?;
            hand.kept(&private);
            key
        } else if let Some(passphrase) = hand.need_owner(Age::New)? {
            let key = OwnerKey::generate()?;
            let pem = key.to_encrypted_pem(passphrase.as_str())?;
            hand.file(&private, pem.as_bytes(), SECRET, "")?;
            // what nobody could open again would be worse than none
            let found = OwnerKey::read(&private, passphrase.as_str())?;
            Some(found)
        } else {
            hand.new_file(&private, "");
            None
        };
        match key {
            Some(key) => {
                let owner = key.public_key().clone();
                hand.file(&public, owner.to_pem().as_bytes(), PUBLIC, "")?;
                Ok(Owners::Given(vec![owner]))
            }
            None => {
                hand.new_file(&public, "");
                Ok(Owners::New)
            }
        }
    }

    /// Whether anything that was made for a device names an owner.
    fn has_owner_files(&self) -> Result<bool, Error> {
        let devices = self.devices_dir();
        if !devices.is_dir() {
            return Ok(false);
        }
        for dir in files::list(&devices)? {
            let named = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(is_owner_file)
            };
            if dir.is_dir() && files::list(&dir)?.iter().any(named) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes what `zk-reader --config` needs where the owner's key is.
    pub(crate) fn reader_stage(
        &self,
        hand: &mut Hand<'_>,
        store: &StoreUri,
        prefix: Option<&str>,
    ) -> Result<(), Error> {
        let is_made = hand.plans() && hand.needs.owner == Some(Age::New);
        if !is_made && !self.owner_key_file().exists() {
            return Ok(());
        }
        let file = self.reader_file();
        let mut reader = Config::open_or(&file, config::READER)?;
        // beside the file, so that the directory can be moved
        let store = match store {
            StoreUri::File(path) => {
                StoreUri::File(path.strip_prefix(self.dir()).unwrap_or(path).to_owned())
            }
            other => other.clone(),
        };
        reader.set("store", &store.to_string())?;
        if let Some(prefix) = prefix {
            reader.set("prefix", prefix)?;
        }
        let text = reader.text_of();
        hand.file(&file, text.as_bytes(), PUBLIC, "the store is another one")
    }
}
