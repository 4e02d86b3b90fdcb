//! Data from files and standard input, results into new files.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::Error;

/// Reads all of a file, or of standard input (`-` or nothing), if that is not
/// more than `limit` bytes. The buffer is wiped in the end: it may hold a secret.
pub(crate) fn read(
    file: Option<&Path>,
    limit: usize,
    what: &'static str,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = file.filter(|path| *path != Path::new("-"));
    let from = file.map_or_else(
        || "standard input".to_owned(),
        |path| path.display().to_string(),
    );
    // What can be secret fits at once, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity((limit + 1).min(256 << 10)));
    let bound = limit as u64 + 1;
    let outcome = match file {
        Some(path) => File::open(path).and_then(|file| file.take(bound).read_to_end(&mut bytes)),
        // past the buffer of std, which is not wiped
        None => io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .and_then(|stdin| File::from(stdin).take(bound).read_to_end(&mut bytes)),
    };
    if let Err(source) = outcome {
        return Err(Error::Input { from, source });
    }
    match bytes.len() {
        0 => Err(Error::Empty { from }),
        len if len > limit => Err(Error::TooLarge { from, limit, what }),
        _ => Ok(bytes),
    }
}

/// Writes a new file of mode 0600, which appears complete or not at all.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::OutputExists { path: path.into() },
        _ => Error::Output {
            path: path.into(),
            source,
        },
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path)
        .map_err(|error| failed(error.error))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)
}

/// Refuses to send bytes to a terminal.
pub(crate) fn not_to_terminal() -> Result<(), Error> {
    if io::stdout().is_terminal() {
        return Err(Error::BinaryToTerminal);
    }
    Ok(())
}

/// Refuses to show a secret on a terminal unless that was asked for.
pub(crate) fn no_secret_to_terminal() -> Result<(), Error> {
    if io::stdout().is_terminal() {
        return Err(Error::SecretToTerminal);
    }
    Ok(())
}
