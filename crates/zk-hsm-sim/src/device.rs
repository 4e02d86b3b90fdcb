use std::env;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::faults::{Daemon, Faults};
use crate::state::{State, Store};

/// The file that makes a directory a device.
pub(crate) const SETTINGS: &str = "zk-hsm-sim.toml";
/// The file with what is to go wrong.
pub(crate) const FAULTS: &str = "faults.toml";
/// The C library's file name.
const LIBRARY: &str = "libzk_hsm_sim.so";

/// What can go wrong while a device is set up or told to fail.
///
/// The C functions don't give it: they answer with negative `errno` values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is a device already.
    #[error("{} is a simulated device already; open it, or choose another directory", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },

    /// A file can't be read, written or copied.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The C library was not built, or is not where the program's is.
    #[error(
        "{LIBRARY} is neither beside {} nor in a directory `deps` there or one level up; \
         build it with `cargo build -p zk-hsm-sim`",
        program.display()
    )]
    LibraryMissing {
        /// The running program.
        program: PathBuf,
    },

    /// The directory is no device.
    #[error("{} is no simulated device: it holds no {SETTINGS}", path.display())]
    NotADevice {
        /// The directory.
        path: PathBuf,
    },

    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random(#[from] getrandom::Error),

    /// A file of the device says what it must not, or not as it must be said.
    #[error("{}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
}

/// Which of the vendor's devices is simulated.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Model {
    /// Key pairs in slots 0 to 2, as a [`Zymkey4i`](Self::Zymkey4i), and binding
    /// information.
    Hsm4,
    /// Key pairs in slots 0 to 11, generated ones from slot 16 up, public keys
    /// of others, battery and CPU temperature.
    Hsm6,
    /// Key pairs in slots 0 to 2, and nothing else to make or to list.
    #[default]
    Zymkey4i,
}

impl Model {
    /// How many key pairs it comes with, from slot 0 on.
    pub const fn key_pairs(self) -> u32 {
        match self {
            Self::Hsm4 | Self::Zymkey4i => 3,
            Self::Hsm6 => 12,
        }
    }

    /// The model number string, without what says that it is simulated.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Hsm4 => "HSM4",
            Self::Hsm6 => "HSM6",
            Self::Zymkey4i => "Zymkey 4i",
        }
    }

    /// Whether it has what the vendor documents for the HSM6 and later.
    pub(crate) const fn is_large(self) -> bool {
        matches!(self, Self::Hsm6)
    }
}

/// What `zkUnlockDataB2B` returns. The vendor's header and the vendor's Python
/// client disagree; nobody has published what a device does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Unlock {
    /// As the Python client takes it: 1 is success, 0 is data that is not
    /// authentic.
    #[default]
    Client,
    /// As the header says it: 0 is success, and all else is negative.
    Header,
}

/// What a device is: the content of its `zk-hsm-sim.toml`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The model.
    pub model: Model,
    /// What unlocking returns.
    pub unlock: Unlock,
    /// The serial number, which is returned after the word `SIMULATOR-`:
    /// printable ASCII, 1 to 64 bytes. Without one it is 0.
    pub serial: Option<String>,
}

impl From<Model> for Settings {
    fn from(model: Model) -> Self {
        Self {
            model,
            ..Self::default()
        }
    }
}

impl Settings {
    /// Those of the device in `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(SETTINGS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = directory.to_owned();
                return Err(Error::NotADevice { path });
            }
            Err(source) => return Err(failed("read", &path)(source)),
        };
        let settings = toml::from_str::<Self>(&text).map_err(|error| error.to_string());
        settings
            .and_then(Self::check)
            .map_err(|problem| Error::Syntax { path, problem })
    }

    fn check(self) -> Result<Self, String> {
        let is_good = |serial: &String| {
            (1..=64).contains(&serial.len()) && serial.bytes().all(|b| b.is_ascii_graphic())
        };
        if self.serial.as_ref().is_none_or(is_good) {
            Ok(self)
        } else {
            Err("serial must be 1 to 64 printable ASCII characters".to_owned())
        }
    }
}

/// A simulated device: a directory with a copy of the C library, which is all
/// that a program needs to know.
///
/// Two devices are two copies, and can be loaded into one process.
#[derive(Clone, Debug)]
pub struct Device {
    directory: PathBuf,
}

impl Device {
    /// Makes `directory`, with mode 0700, a new device. Its keys come into being
    /// when it is first opened. Without a serial number it gets one at random.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::LibraryMissing`], [`Error::Io`],
    /// [`Error::Random`], [`Error::Syntax`] for a serial number that can't be one.
    pub fn create(
        directory: impl AsRef<Path>,
        settings: impl Into<Settings>,
    ) -> Result<Self, Error> {
        let directory =
            std::path::absolute(directory.as_ref()).map_err(failed("find", directory.as_ref()))?;
        let path = directory.join(SETTINGS);
        if path.try_exists().map_err(failed("find", &path))? {
            return Err(Error::Exists { path: directory });
        }
        let mut settings: Settings = settings.into();
        if settings.serial.is_none() {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes)?;
            settings.serial = Some(base16ct::lower::encode_string(&bytes));
        }
        let syntax = |problem| Error::Syntax {
            path: path.clone(),
            problem,
        };
        let settings = settings.check().map_err(syntax)?;
        let text = toml::to_string(&settings).map_err(|error| syntax(error.to_string()))?;
        let library = find_library()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(0o700)))
            .map_err(failed("make", &directory))?;
        let device = Self { directory };
        // A copy, since a library is loaded once for each file, whatever the
        // file's names.
        let module = device.module_path();
        fs::copy(&library, &module)
            .and_then(|_| fs::set_permissions(&module, Permissions::from_mode(0o700)))
            .map_err(failed("copy the library to", &module))?;
        // Last, since it is what makes the directory a device.
        replace(&path, text.as_bytes())?;
        Ok(device)
    }

    /// The device in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::NotADevice`], [`Error::Io`], [`Error::Syntax`].
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let directory =
            std::path::absolute(directory.as_ref()).map_err(failed("find", directory.as_ref()))?;
        Settings::read(&directory)?;
        Ok(Self { directory })
    }

    /// The C library, to be loaded in place of the vendor's. It is an absolute
    /// path.
    pub fn module_path(&self) -> PathBuf {
        self.directory.join(LIBRARY)
    }

    /// What goes wrong from the next call on, in every process that has the
    /// device open. All rules are counted from the start.
    ///
    /// # Errors
    ///
    /// [`Error::Syntax`] if a rule is for a call that doesn't exist, or can't be
    /// followed; [`Error::Io`].
    pub fn set_faults(&self, faults: &Faults) -> Result<(), Error> {
        let path = self.directory.join(FAULTS);
        let syntax = |problem| Error::Syntax {
            path: path.clone(),
            problem,
        };
        let text = toml::to_string(faults).map_err(|error| syntax(error.to_string()))?;
        text.parse::<Faults>().map_err(syntax)?;
        replace(&path, text.as_bytes())
    }

    /// Nothing goes wrong from the next call on. The daemon stays the one it is,
    /// so that contexts that work go on working.
    ///
    /// # Errors
    ///
    /// As for [`set_faults`](Self::set_faults).
    pub fn clear_faults(&self) -> Result<(), Error> {
        let restarts = self.faults()?.daemon.restarts;
        self.set_faults(&Faults {
            daemon: Daemon {
                restarts,
                ..Daemon::default()
            },
            ..Faults::default()
        })
    }

    /// What goes wrong now.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Syntax`].
    pub fn faults(&self) -> Result<Faults, Error> {
        let path = self.directory.join(FAULTS);
        match fs::read_to_string(&path) {
            Ok(text) => text
                .parse()
                .map_err(|problem| Error::Syntax { path, problem }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Faults::default()),
            Err(source) => Err(failed("read", &path)(source)),
        }
    }

    /// Breaks the perimeter of `channel` (0 or 1) at `time`, in seconds since
    /// 1970, as if its wire had been cut. It lasts until a program clears it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Syntax`], [`Error::Random`]; [`Error::Syntax`] also
    /// for another channel.
    pub fn breach(&self, channel: usize, time: u32) -> Result<(), Error> {
        self.change(|state| match state.perimeter.get_mut(channel) {
            Some(perimeter) => {
                perimeter.breached = time;
                Ok(())
            }
            None => Err(Error::Syntax {
                path: self.directory.clone(),
                problem: format!("there is no perimeter channel {channel}, only 0 and 1"),
            }),
        })
    }

    /// Clears the perimeter of both channels, as a program does by
    /// `zkClearPerimeterDetectEvents`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Syntax`], [`Error::Random`].
    pub fn clear_breaches(&self) -> Result<(), Error> {
        self.change(|state| {
            for perimeter in &mut state.perimeter {
                perimeter.breached = 0;
            }
            Ok(())
        })
    }

    /// Charges or drains the battery, of a model that tells of it, to so many
    /// millivolts. A new device has 3050.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Syntax`], [`Error::Random`].
    pub fn set_battery(&self, millivolts: u16) -> Result<(), Error> {
        self.change(|state| {
            state.millivolts = millivolts;
            Ok(())
        })
    }

    /// Puts the device into the machine that it is bound to, or into another one,
    /// if it is a model that tells of it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Syntax`], [`Error::Random`].
    pub fn set_bound(&self, bound: bool) -> Result<(), Error> {
        self.change(|state| {
            state.elsewhere = !bound;
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Result<(), Error>) -> Result<(), Error> {
        let settings = Settings::read(&self.directory)?;
        let store = Store::in_directory(&self.directory, settings.model)?;
        store.change(change)?
    }
}

/// The C library that was built with this program.
fn find_library() -> Result<PathBuf, Error> {
    let program = env::current_exe().map_err(failed("find", Path::new("this program")))?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    // What cargo leaves one level up can be older than what is in deps.
    let candidates = [
        beside.join("deps").join(LIBRARY),
        beside.join("../deps").join(LIBRARY),
        beside.join(LIBRARY),
    ];
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(library) => Ok(library),
        None => Err(Error::LibraryMissing { program }),
    }
}

/// Writes a file of mode 0600 that appears complete or not at all.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || {
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(failed("write", path))
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
