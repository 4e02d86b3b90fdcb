//! Where the passphrase of the owner's key comes from.

use std::env;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

/// The passphrase of a key that exists, and where it comes from, in words.
pub(crate) fn known(file: Option<&Path>) -> Result<(Zeroizing<String>, String)> {
    let source = match file {
        Some(path) => format!("in {}", path.display()),
        None => format!("in {VARIABLE}"),
    };
    match without_asking(file)? {
        Some(passphrase) => Ok((passphrase, source)),
        None => {
            let passphrase = ask("Passphrase of the owner's key: ")?;
            Ok((passphrase, "that was typed".into()))
        }
    }
}

/// The passphrase of a new key: on a terminal it is asked for twice.
pub(crate) fn new(file: Option<&Path>) -> Result<Zeroizing<String>> {
    if let Some(passphrase) = without_asking(file)? {
        return Ok(passphrase);
    }
    let first = ask("New passphrase of the owner's key: ")?;
    let second = ask("The same once more: ")?;
    if first != second {
        bail!("the two passphrases differ; nothing was made, try again");
    }
    Ok(first)
}

fn without_asking(file: Option<&Path>) -> Result<Option<Zeroizing<String>>> {
    if let Some(path) = file {
        return read(path).map(Some);
    }
    match env::var(VARIABLE) {
        Ok(passphrase) => {
            eprintln!(
                "zk-reader: warning: the passphrase comes from {VARIABLE}: what else this user \
                 runs can read it there; --passphrase-file is safer"
            );
            Ok(Some(Zeroizing::new(passphrase)))
        }
        Err(env::VarError::NotPresent) => Ok(None),
        Err(error @ env::VarError::NotUnicode(_)) => bail!("{VARIABLE}: {error}"),
    }
}

fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .with_context(|| {
            format!(
                "no terminal to ask for the passphrase; give --passphrase-file, or set {VARIABLE}"
            )
        })
}

/// The first line's end is not part of it.
fn read(path: &Path) -> Result<Zeroizing<String>> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    let mode = file.metadata().with_context(name)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!(zk_envelope::Error::Permissions {
            path: path.into(),
            mode
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE + 1));
    file.take(MAX_FILE as u64 + 1)
        .read_to_string(&mut text)
        .with_context(name)?;
    if text.len() > MAX_FILE {
        bail!(
            "{}: over {MAX_FILE} bytes, is this a passphrase?",
            path.display()
        );
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains('\n') {
        bail!(
            "{}: more than one line; the passphrase stands there alone",
            path.display()
        );
    }
    Ok(Zeroizing::new(line.to_owned()))
}

const VARIABLE: &str = "ZK_OWNER_PASSPHRASE";
const MAX_FILE: usize = 4096;
