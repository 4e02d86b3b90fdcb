//! What carries a plan out, or only says what it would do: one code for both, so
//! that the one can't promise what the other doesn't keep.

use std::path::Path;
use std::time::SystemTime;

use zk_envelope::DeviceId;

use crate::report::{Action, Age, Item, Needs, Step};
use crate::{Error, Passphrase, files};

/// The passphrases that an operation may need.
#[derive(Clone, Copy, Debug, Default)]
pub struct Secrets<'a> {
    /// That of the authorities' keys.
    pub authorities: Option<&'a Passphrase>,
    /// That of the owner's key, if it is made here.
    pub owner: Option<&'a Passphrase>,
}

pub(crate) struct Hand<'a> {
    pub(crate) now: SystemTime,
    pub(crate) steps: Vec<Step>,
    pub(crate) needs: Needs,
    pub(crate) revokes: Vec<DeviceId>,
    /// `None`: nothing is written, only said.
    doing: Option<Doing<'a>>,
}

struct Doing<'a> {
    secrets: Secrets<'a>,
    tell: &'a mut dyn FnMut(&Step),
}

impl<'a> Hand<'a> {
    pub(crate) fn that_plans(now: SystemTime) -> Self {
        Self {
            now,
            steps: Vec::new(),
            needs: Needs::default(),
            revokes: Vec::new(),
            doing: None,
        }
    }

    pub(crate) fn that_does(
        now: SystemTime,
        secrets: Secrets<'a>,
        tell: &'a mut dyn FnMut(&Step),
    ) -> Self {
        Self {
            doing: Some(Doing { secrets, tell }),
            ..Self::that_plans(now)
        }
    }

    pub(crate) fn plans(&self) -> bool {
        self.doing.is_none()
    }

    /// What opens the authorities' keys, if it was given.
    pub(crate) fn authorities(&self) -> Option<&'a Passphrase> {
        self.doing.as_ref()?.secrets.authorities
    }

    /// What opens the authorities' keys, because something has to be signed. A
    /// plan notes that, and gets `None`.
    pub(crate) fn need_authorities(&mut self, age: Age) -> Result<Option<&'a Passphrase>, Error> {
        self.needs.authorities.get_or_insert(age);
        need(self.doing.as_ref(), "authorities' keys", |secrets| {
            secrets.authorities
        })
    }

    /// The same for the owner's key.
    pub(crate) fn need_owner(&mut self, age: Age) -> Result<Option<&'a Passphrase>, Error> {
        self.needs.owner.get_or_insert(age);
        need(self.doing.as_ref(), "owner's key", |secrets| secrets.owner)
    }

    pub(crate) fn step(&mut self, action: Action, item: Item, reason: impl Into<String>) {
        let step = Step {
            action,
            item,
            reason: reason.into(),
        };
        if let Some(doing) = &mut self.doing {
            (doing.tell)(&step);
        }
        self.steps.push(step);
    }

    pub(crate) fn step_file(&mut self, action: Action, path: &Path, reason: impl Into<String>) {
        self.step(action, Item::File(path.to_owned()), reason);
    }

    pub(crate) fn kept(&mut self, path: &Path) {
        self.step_file(Action::Kept, path, "");
    }

    pub(crate) fn make_dir(&self, path: &Path) -> Result<(), Error> {
        if self.plans() {
            return Ok(());
        }
        files::make_dir(path)
    }

    /// Makes the file have these bytes. The reason is one for a change: what is
    /// missing is made because it is missing.
    pub(crate) fn file(
        &mut self,
        path: &Path,
        bytes: &[u8],
        mode: u32,
        reason: &str,
    ) -> Result<(), Error> {
        let action = files::compare(path, bytes)?;
        if action != Action::Kept && !self.plans() {
            files::replace(path, bytes, mode)?;
        }
        let reason = if action == Action::Changed {
            reason
        } else {
            ""
        };
        self.step_file(action, path, reason);
        Ok(())
    }

    /// Says of a plan that the file gets bytes which are not known yet.
    pub(crate) fn new_file(&mut self, path: &Path, reason: &str) {
        if path.exists() {
            self.step_file(Action::Changed, path, reason);
        } else {
            self.step_file(Action::Created, path, "");
        }
    }

    /// Takes the file away, if it is there.
    pub(crate) fn remove(&mut self, path: &Path, reason: &str) -> Result<(), Error> {
        if !path.is_file() || path.is_symlink() {
            return Ok(());
        }
        if !self.plans() {
            files::remove(path)?;
        }
        self.step_file(Action::Removed, path, reason);
        Ok(())
    }
}

fn need<'a>(
    doing: Option<&Doing<'a>>,
    of: &'static str,
    choose: impl Fn(Secrets<'a>) -> Option<&'a Passphrase>,
) -> Result<Option<&'a Passphrase>, Error> {
    match doing {
        None => Ok(None),
        Some(doing) => match choose(doing.secrets) {
            Some(passphrase) => Ok(Some(passphrase)),
            None => Err(Error::PassphraseNeeded { of }),
        },
    }
}
