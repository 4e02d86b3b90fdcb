//! PKCS#11 libraries in this process.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as CryptokiError, RvError};

use super::ckr;
use crate::error::{Error, Operation};
use crate::library::{self, Chip, Turn};

/// A PKCS#11 library. It is loaded once, and stays until the process ends.
pub(super) struct Module {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    chip: Arc<Chip>,
    /// Of who has the turn.
    loaded: Mutex<Option<Loaded>>,
}

struct Loaded {
    context: Pkcs11,
    /// It was initialized here, so it may be finalized here.
    ours: bool,
    initialized: Instant,
    generation: u64,
    /// Open ones, of this generation.
    sessions: usize,
}

impl Module {
    /// The library at `path`, or the one that is installed. It isn't loaded yet.
    pub(super) fn at(path: Option<&str>) -> Result<&'static Self, Error> {
        static MODULES: Mutex<Option<HashMap<PathBuf, &'static Module>>> = Mutex::new(None);
        let path = path.map(Path::new);
        let installed = || WELL_KNOWN.iter().map(Path::new).find(|path| path.exists());
        let Some(path) = path.or_else(installed) else {
            return Err(Error::LibraryUnloadable {
                path: WELL_KNOWN[0].into(),
                problem: "it isn't there, and no other PKCS#11 library is where it is looked for"
                    .into(),
                next: NEXT,
            });
        };
        let path = library::trusted(path, NEXT)?;
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        let modules = modules.get_or_insert_default();
        if let Some(module) = modules.get(&path) {
            return Ok(module);
        }
        let metadata = fs::metadata(&path).map_err(|error| Error::LibraryUnloadable {
            path: path.clone(),
            problem: error.to_string().into(),
            next: NEXT,
        })?;
        let file = (metadata.dev(), metadata.ino());
        // by a hard link it may be here already: the linker loads a file once,
        // so it has one door
        let known = modules.values().find(|known| known.file == file).copied();
        let module = known.unwrap_or_else(|| {
            Box::leak(Box::new(Self {
                path: path.clone(),
                file,
                chip: Chip::of(&path),
                loaded: Mutex::new(None),
            }))
        });
        modules.insert(path, module);
        Ok(module)
    }

    pub(super) fn chip(&self) -> Arc<Chip> {
        Arc::clone(&self.chip)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the turn to call it.
    pub(super) fn enter(
        &'static self,
        operation: Operation,
        patience: Duration,
    ) -> Result<Inside, Error> {
        Ok(Inside {
            _turn: self.chip.enter(operation, patience)?,
            module: self,
        })
    }
}

/// The turn to call a library.
pub(super) struct Inside {
    _turn: Turn<'static>,
    module: &'static Module,
}

impl Inside {
    /// The library, loaded and initialized.
    pub(super) fn context(&mut self, hsm: &str) -> Result<Pkcs11, Error> {
        let mut loaded = self.loaded();
        if let Some(loaded) = &mut *loaded {
            // somebody else may have finalized it
            if initialize(&loaded.context, hsm)? {
                loaded.begin(true);
            }
            return Ok(loaded.context.clone());
        }
        let context = Pkcs11::new(&self.module.path).map_err(|error| match error {
            CryptokiError::Pkcs11(..) => ckr::failed(hsm, OPEN)(error),
            CryptokiError::LibraryLoading(error) => self.unloadable(&error.to_string()),
            error => self.unloadable(&format!("it is no PKCS#11 library ({error})")),
        })?;
        let ours = initialize(&context, hsm)?;
        *loaded = Some(Loaded {
            context: context.clone(),
            ours,
            initialized: Instant::now(),
            generation: 0,
            sessions: 0,
        });
        Ok(context)
    }

    /// Initializes the library anew, which ends all sessions: most libraries
    /// look for tokens only then. False if it isn't time for that, or somebody
    /// else uses the library, too.
    pub(super) fn renew(&mut self, hsm: &str) -> Result<bool, Error> {
        let mut loaded = self.loaded();
        let Some(loaded) = &mut *loaded else {
            return Ok(false);
        };
        let pause = if loaded.sessions == 0 {
            PAUSE_ALONE
        } else {
            PAUSE
        };
        if !loaded.ours || loaded.initialized.elapsed() < pause {
            return Ok(false);
        }
        tracing::info!(
            library = %self.module.path.display(),
            "the PKCS#11 library is initialized anew, to look for its tokens"
        );
        // whatever comes of it, the old sessions are gone
        loaded.begin(true);
        match loaded.context.clone().finalize() {
            Ok(()) | Err(CryptokiError::Pkcs11(RvError::CryptokiNotInitialized, _)) => {}
            Err(error) => return Err(ckr::failed(hsm, OPEN)(error)),
        }
        loaded.ours = initialize(&loaded.context, hsm)?;
        Ok(true)
    }

    /// Which initialization this is. A session is of one: later ones may give
    /// its handle to another session.
    pub(super) fn generation(&self) -> u64 {
        self.loaded().as_ref().map_or(0, |loaded| loaded.generation)
    }

    /// A session was opened, and stays.
    pub(super) fn opened(&mut self) {
        if let Some(loaded) = &mut *self.loaded() {
            loaded.sessions += 1;
        }
    }

    /// A session of this generation was closed.
    pub(super) fn closed(&mut self) {
        if let Some(loaded) = &mut *self.loaded() {
            loaded.sessions = loaded.sessions.saturating_sub(1);
        }
    }

    fn loaded(&self) -> MutexGuard<'_, Option<Loaded>> {
        // nothing panics with it, and who has the turn has no rival
        self.module
            .loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn unloadable(&self, problem: &str) -> Error {
        Error::LibraryUnloadable {
            path: self.module.path.clone(),
            problem: problem.into(),
            next: NEXT,
        }
    }
}

impl Loaded {
    fn begin(&mut self, ours: bool) {
        self.ours = ours;
        self.initialized = Instant::now();
        self.generation += 1;
        self.sessions = 0;
    }
}

/// True if it wasn't initialized before.
fn initialize(context: &Pkcs11, hsm: &str) -> Result<bool, Error> {
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    match context.initialize(arguments) {
        Ok(()) => Ok(true),
        Err(CryptokiError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(false),
        Err(error) => Err(ckr::failed(hsm, OPEN)(error)),
    }
}

/// Where Zymbit and Debian's SoftHSM2 put theirs; the first that is there is
/// taken.
const WELL_KNOWN: [&str; 5] = [
    "/usr/lib/libzk_pkcs11.so",
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/arm-linux-gnueabihf/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
];

/// What is being done here, for errors.
const OPEN: &str = "open the token";

const NEXT: &str = "install the PKCS#11 library of your token, and name it with \
    `?module-path=/absolute/library.so` in the URI (zk-hsm knows Zymbit's and SoftHSM2's)";

/// For so long after it was initialized a library is left alone, even if no session
/// is open.
const PAUSE_ALONE: Duration = Duration::from_secs(1);

/// The same while other sessions are open, which each time must be opened again.
const PAUSE: Duration = Duration::from_secs(5);
