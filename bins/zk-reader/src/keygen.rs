//! Making an owner's key, with a backup.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zk_envelope::{OwnerKey, OwnerPublicKey};

use crate::Error;

/// The files of a new owner's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    /// The public key: what devices encrypt for.
    pub owner: OwnerPublicKey,
    /// The private key: encrypted PKCS#8 in PEM, mode 0600.
    pub key: PathBuf,
    /// The public key: SubjectPublicKeyInfo in PEM, mode 0644.
    pub public_key: PathBuf,
    /// The private key once more; the same passphrase opens it.
    pub backup: Option<PathBuf>,
}

/// Makes an owner's key: `out`, the public key beside it with the extension
/// `pub.pem`, and a backup of the private key.
///
/// `backup` is a file, or a directory that the file of the same name goes into.
/// Without the key nothing that was encrypted for it can ever be read again, so
/// `None` is for a caller who has seen to that.
///
/// Each private file is read back and opened before this returns. Nothing is
/// overwritten, and after an error nothing that was made is left.
///
/// # Errors
/// [`Error::Exists`], [`Error::BackupBesideKey`], [`Error::PassphraseTooShort`]
/// under [`MIN_PASSPHRASE`] characters, [`Error::Io`], [`Error::ReadsBackWrong`],
/// [`Error::Envelope`].
pub fn keygen(out: &Path, backup: Option<&Path>, passphrase: &str) -> Result<KeyFiles, Error> {
    if passphrase.chars().count() < MIN_PASSPHRASE {
        return Err(Error::PassphraseTooShort {
            least: MIN_PASSPHRASE,
        });
    }
    let public_key = out.with_extension("pub.pem");
    let backup = backup.map(|path| match out.file_name() {
        Some(name) if path.is_dir() => path.join(name),
        _ => path.to_owned(),
    });
    if let Some(path) = &backup
        && real_parent(path)? == real_parent(out)?
    {
        return Err(Error::BackupBesideKey { path: path.clone() });
    }
    let owner = OwnerKey::generate()?;
    // The backup first: what can fail most easily fails before there is a key.
    let mut made = Made(Vec::new());
    for path in backup.iter().map(PathBuf::as_path).chain([out]) {
        made.private(path, &owner, passphrase)?;
    }
    made.public(&public_key, owner.public_key())?;
    made.keep();
    Ok(KeyFiles {
        owner: owner.public_key().clone(),
        key: out.to_owned(),
        public_key,
        backup,
    })
}

/// Files that this call has made; dropped, it takes them away again.
struct Made(Vec<PathBuf>);

impl Made {
    fn private(&mut self, path: &Path, owner: &OwnerKey, passphrase: &str) -> Result<(), Error> {
        refuse_existing(path)?;
        let written = owner.write_new(path, passphrase);
        // A file that existed all the same is somebody else's.
        if !matches!(&written, Err(zk_envelope::Error::Io { source, .. })
            if source.kind() == io::ErrorKind::AlreadyExists)
        {
            self.0.push(path.to_owned());
        }
        written?;
        sync_parent(path)?;
        let found = OwnerKey::read(path, passphrase)?.id();
        if found != owner.id() {
            return Err(Error::ReadsBackWrong {
                path: path.to_owned(),
                found,
                written: owner.id(),
            });
        }
        Ok(())
    }

    fn public(&mut self, path: &Path, key: &OwnerPublicKey) -> Result<(), Error> {
        refuse_existing(path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(|source| io_error(path, source))?;
        self.0.push(path.to_owned());
        file.write_all(key.to_pem().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|source| io_error(path, source))?;
        sync_parent(path)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // It may not have come into being; there is nobody to tell.
            let _ = fs::remove_file(path);
        }
    }
}

/// Also what a dangling link occupies.
fn refuse_existing(path: &Path) -> Result<(), Error> {
    match path.symlink_metadata() {
        Ok(_) => Err(Error::Exists {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(io_error(path, source)),
    }
}

fn real_parent(path: &Path) -> Result<PathBuf, Error> {
    let parent = parent(path);
    parent
        .canonicalize()
        .map_err(|source| io_error(parent, source))
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = parent(path);
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| io_error(parent, source))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// The least number of characters of a passphrase.
pub const MIN_PASSPHRASE: usize = 8;
