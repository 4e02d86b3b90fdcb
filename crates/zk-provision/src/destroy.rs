//! Taking a set-up away.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zk_envelope::DeviceId;
use zk_store::{Store, StoreError, StoreUri};

use crate::check::{Answer, probe};
use crate::device::NEXT;
use crate::hand::{Hand, Secrets};
use crate::local::{CERTIFICATE, CONFIG, KEY, ROOTS, Role, has_tables, read_certificate};
use crate::report::{Action, Item, Plan, Step};
use crate::{Error, LocalSetup, files};

/// What [`LocalSetup::destroy`] takes away besides the gateway's and the
/// devices' files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destroy {
    /// The store with all readings, and what is needed to read them: trust
    /// file, gateway.toml, which says where the store is, and reader.toml.
    pub data: bool,
    /// The authorities, and the owner's key if it was made here: what was
    /// encrypted for it can't be read any more, wherever it is.
    pub keys: bool,
}

impl LocalSetup {
    /// What [`LocalSetup::destroy`] would do now. It writes nothing.
    ///
    /// # Errors
    /// As [`LocalSetup::destroy`].
    pub async fn plan_destroy(&self, what: Destroy) -> Result<Plan, Error> {
        let mut hand = Hand::that_plans(SystemTime::UNIX_EPOCH);
        self.destroy_stage(&mut hand, what).await?;
        Ok(Plan {
            steps: hand.steps,
            ..Plan::default()
        })
    }

    /// Removes what was made here: first what devices need, then the store if it
    /// is to go, the gateway, the rest, and each directory that is empty then.
    ///
    /// Files are known by their names and places. Whatever else lies in the
    /// directory stays, as do links; a step that keeps it says so. It is safe to
    /// run again.
    ///
    /// # Errors
    /// [`Error::Running`] while the gateway answers; [`Error::Busy`],
    /// [`Error::Io`], [`Error::Malformed`], [`Error::Store`].
    pub async fn destroy(
        &self,
        what: Destroy,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<Vec<Step>, Error> {
        if !self.dir().is_dir() {
            return Ok(Vec::new());
        }
        if let Some(address) = self.runs() {
            return Err(Error::Running {
                dir: self.dir().to_owned(),
                address,
            });
        }
        let lock = files::lock(self.dir())?;
        let mut hand = Hand::that_does(SystemTime::UNIX_EPOCH, Secrets::default(), tell);
        let done = self.destroy_stage(&mut hand, what).await;
        let done = done.and_then(|()| self.remove_dir(&mut hand));
        drop(lock);
        done.map(|()| hand.steps)
    }

    /// Removes the directory, if nothing is left in it but the lock.
    pub(crate) fn remove_dir(&self, hand: &mut Hand<'_>) -> Result<(), Error> {
        let is_foreign =
            |step: &Step| step.action != Action::Kept || [FOREIGN, SEALED].contains(&&*step.reason);
        let is_of_dir = |step: &&Step| matches!(step.item, Item::File(_));
        if hand.steps.iter().filter(is_of_dir).all(is_foreign) {
            files::remove(&self.dir().join(files::LOCK))?;
            if files::remove_dir_if_empty(self.dir())? {
                hand.step_file(Action::Removed, self.dir(), "");
            }
        }
        Ok(())
    }

    /// Where the gateway answers as the one of this set-up.
    fn runs(&self) -> Option<std::net::SocketAddr> {
        let roots = self.authority_certificate(Role::Gateway).ok()?;
        let address = self.listen().ok()?;
        let certificate = read_certificate(&self.gateway_file(CERTIFICATE)).ok()??;
        match probe(address, &roots, certificate.names().first()?) {
            Answer::Gateway { at, .. } => Some(at),
            _ => None,
        }
    }

    pub(crate) async fn destroy_stage(
        &self,
        hand: &mut Hand<'_>,
        what: Destroy,
    ) -> Result<(), Error> {
        let devices = self.devices_dir();
        if is_dir(&devices) {
            for dir in files::list(&devices)? {
                let name = dir.file_name().and_then(|name| name.to_str());
                if let Some(name) = name.and_then(|name| DeviceId::try_from(name).ok()) {
                    self.remove_device_files(hand, &name, "")?;
                }
            }
        }

        if what.data {
            self.remove_store(hand).await?;
        }
        for name in [KEY, CERTIFICATE, ROOTS] {
            self.remove_ours(hand, &self.gateway_file(name))?;
        }
        let data = [
            self.gateway_file(CONFIG),
            self.trust_file(),
            self.reader_file(),
            self.aws_file(),
        ];
        let mut keys = vec![self.owner_public_file(), self.owner_key_file()];
        for role in [Role::Device, Role::Gateway] {
            let (key, certificate) = self.authority_files(role);
            keys.extend([certificate, key]);
        }
        let mut kept = Vec::new();
        for (files, goes, why) in [
            (&data[..], what.data, "needed for the data"),
            (&keys, what.keys, "a key, or what belongs to one"),
        ] {
            for file in files {
                if goes {
                    self.remove_ours(hand, file)?;
                } else if file.exists() {
                    hand.step_file(Action::Kept, file, why);
                    kept.push(file.clone());
                }
            }
        }
        if !what.data
            && let Ok(store) = self.store()
        {
            let item = match store {
                StoreUri::File(path) => {
                    kept.extend(store_files(&path));
                    Item::File(path)
                }
                other => Item::Tables(other),
            };
            hand.step(Action::Kept, item, "the data");
        }
        for dir in [devices.clone(), self.gateway_dir(), self.dir().join("ca")] {
            if !hand.plans() && is_dir(&dir) {
                files::remove_dir_if_empty(&dir)?;
            }
        }
        self.name_foreign(hand, self.dir(), &kept)?;
        // nothing but the lock: one who was interrupted left it
        if hand.plans()
            && is_dir(self.dir())
            && files::list(self.dir())?
                .iter()
                .all(|path| path.ends_with(files::LOCK))
        {
            hand.step_file(Action::Removed, self.dir(), "");
        }
        Ok(())
    }

    /// The file, and what an interrupted run may have left of a new one; but not
    /// behind a link.
    fn remove_ours(&self, hand: &mut Hand<'_>, path: &Path) -> Result<(), Error> {
        let dir = path.parent().unwrap_or(path);
        if dir != self.dir() && !is_dir(dir) {
            return Ok(());
        }
        hand.remove(&files::temporary(path), "")?;
        hand.remove(path, "")
    }

    /// The store's file, or its tables.
    async fn remove_store(&self, hand: &mut Hand<'_>) -> Result<(), Error> {
        let uri = match self.store() {
            Ok(uri) => uri,
            // an interrupted run, after the store
            Err(Error::NoGateway { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let path = match &uri {
            StoreUri::File(path) => path,
            other => {
                let store = Store::open(other, self.store_options()?).await?;
                let was_there = has_tables(&store).await?;
                if !hand.plans() {
                    store.delete_tables().await?;
                }
                if was_there {
                    hand.step(Action::Removed, Item::Tables(uri), "");
                }
                return Ok(());
            }
        };
        if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
            let is_ours = match Store::open(&uri, self.store_options()?).await {
                Ok(store) => {
                    let found = has_tables(&store).await;
                    store.close().await;
                    found?
                }
                Err(StoreError::Engine { .. }) => false,
                Err(error) => return Err(error.into()),
            };
            if !is_ours {
                hand.step_file(Action::Kept, path, "not a store of zk-setup's");
                return Ok(());
            }
        }
        for file in store_files(path) {
            hand.remove(&file, "")?;
        }
        Ok(())
    }

    /// Names what lies in the directory and was not made here.
    fn name_foreign(&self, hand: &mut Hand<'_>, dir: &Path, kept: &[PathBuf]) -> Result<(), Error> {
        if !is_dir(dir) {
            return Ok(());
        }
        let planned: Vec<_> = hand.steps.iter().map(|step| step.item.clone()).collect();
        for path in files::list(dir)? {
            let is_known = kept.contains(&path)
                || path == self.dir().join(files::LOCK)
                || planned.contains(&Item::File(path.clone()));
            let ours = [
                self.devices_dir(),
                self.gateway_dir(),
                self.dir().join("ca"),
            ];
            let name = path.file_name().and_then(|name| name.to_str());
            let is_device = path.parent() == Some(&self.devices_dir())
                && name.is_some_and(|name| DeviceId::try_from(name).is_ok());
            let is_next = path.ends_with(NEXT) && path.starts_with(self.devices_dir());
            let is_ours = ours.contains(&path) || is_device || is_next;
            if is_ours && is_dir(&path) {
                self.name_foreign(hand, &path, kept)?;
            } else if !is_known {
                let is_sealed = path == self.dir().join("credentials");
                let reason = if is_sealed { SEALED } else { FOREIGN };
                hand.step_file(Action::Kept, &path, reason);
            }
        }
        Ok(())
    }
}

const FOREIGN: &str = "not made by zk-setup";
const SEALED: &str = "AWS keys: `zk-setup credentials forget` removes them";

/// The file and those that SQLite and the engine keep beside it.
fn store_files(path: &Path) -> Vec<PathBuf> {
    let beside = ["-wal", "-shm", "-lock"].map(|end| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    });
    [path.to_owned()].into_iter().chain(beside).collect()
}

/// A directory, and no link to one.
pub(crate) fn is_dir(path: &Path) -> bool {
    path.is_dir() && !path.is_symlink()
}
